/** What every store has to do to find, count and erase requests, and to add up what they used. */

import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { matches } from "../../src/core/ledger/filter.ts";
import type { Bulk, CountBy, Filter, Label, ListQuery, Sums, Tally } from "../../src/core/ledger/ports.ts";
import type { ChangeSet, CommitResult, Part, PartKind } from "../../src/core/ports.ts";
import { causeOf, isTerminal, type RequestRecord } from "../../src/core/request.ts";
import {
  aFailure,
  anId,
  aRecord,
  completes,
  fails,
  givesUp,
  isCancelled,
  isRerouted,
  isRevived,
  type Move,
  retries,
  someTerms,
  start,
  starts,
  walk,
} from "../support/builders.ts";
import type { Opened } from "./conformance.ts";

const applied: CommitResult = { status: "applied" };
const every: PartKind[] = ["head", "body", "answer_head", "answer", "sent", "received"];
const hash = "ab".repeat(32);
const later = 10 * 24 * 3_600_000;

const part = (kind: PartKind, text: string, seq = 0): Part => ({ kind, seq, bytes: Buffer.from(text) });
const ids = (records: RequestRecord[]): string[] => records.map(({ id }) => id);
const tag = (value: string): Label => ({ name: "tag", value });

/** A request that the upstream refuses for what its caller sent. */
const refused = fails(aFailure({ code: "invalid_value", status: 422 }));

export function ledgerConformance(open: () => Promise<Opened>): void {
  let opened: Opened;
  let project: string;
  let other: string;

  beforeEach(async () => {
    opened = await open();
    project = `project of ${anId()}`;
    other = `${project}, other`;
  });
  afterEach(() => opened.close());

  const aRequest = (over: Partial<RequestRecord> = {}) => aRecord({ project, ...over });
  const starting = () => starts(opened.owner);
  const read = ({ id }: RequestRecord) => opened.store.get(id);

  async function commit(...changes: ChangeSet[]): Promise<void> {
    const results = await Promise.all(changes.map((change) => opened.store.commit(change)));
    expect(results).toEqual(changes.map(() => applied));
  }

  async function take(record: RequestRecord, ...moves: Move[]): Promise<RequestRecord> {
    const taken = walk(record, ...moves);
    await commit(...taken.map((transition) => ({ kind: "change" as const, transition })));
    return taken.at(-1)?.record ?? record;
  }

  async function accept(...records: RequestRecord[]): Promise<void> {
    await commit(...records.map((record) => ({ kind: "accept" as const, record, parts: [] })));
  }

  async function accepted(record: RequestRecord, ...moves: Move[]): Promise<RequestRecord> {
    await accept(record);
    return take(record, ...moves);
  }

  const erase = (what: "bodies" | "record", ...those: string[]) =>
    commit({ kind: "erase", what, ids: those, at: start + 99 });

  const list = (query: Partial<ListQuery> = {}) =>
    opened.store.list({ project, order: "asc", limit: 100, ...query });
  const count = async (filter: Partial<Filter> = {}) => {
    const [all] = await opened.store.counts({ project, ...filter }, []);
    return all?.count ?? 0;
  };

  describe("a list", () => {
    test("holds the requests of one project, in either order", async () => {
      const records = [aRequest(), aRequest(), aRequest()];
      await accept(records[0]!, aRequest({ project: other }), records[1]!, records[2]!);
      expect(await list()).toEqual(records);
      expect(await list({ order: "desc" })).toEqual(records.toReversed());
      expect(await list({ project: `${project}-nobody` })).toEqual([]);
    });

    test("holds no more than its limit", async () => {
      const records = Array.from({ length: 5 }, () => aRequest());
      await accept(...records);
      expect(ids(await list({ limit: 2 }))).toEqual(ids(records.slice(0, 2)));
      expect(ids(await list({ limit: 2, order: "desc" }))).toEqual(ids(records.slice(3).toReversed()));
      expect(await list({ limit: 5 })).toHaveLength(5);
    });

    const filters: [string, Partial<Filter>, Partial<RequestRecord>, Partial<RequestRecord>][] = [
      ["model", { model: "gpt-a" }, { model: "gpt-a" }, { model: "GPT-A" }],
      ["upstream", { upstream: "one" }, { upstream: "one" }, { upstream: "two" }],
      ["no upstream yet", { upstream: "one" }, { upstream: "one" }, {}],
      ["the last error's code", { errorCode: "c" }, { lastErrorCode: "c" }, { lastErrorCode: "d" }],
      ["endpoint", { endpoint: "/e" }, { endpoint: "/e" }, { endpoint: "/e/f" }],
      ["tag", { labels: [tag("b")] }, { tags: ["a", "b", "b"] }, { tags: ["a", "bb", '"b"'] }],
      ["no tags", { labels: [tag("b")] }, { tags: ["b"] }, { tags: [] }],
      ["a tag that looks like a number", { labels: [tag("1")] }, { tags: ["1"] }, { tags: ["01", "1.0"] }],
      ["two tags", { labels: [tag("a"), tag("b")] }, { tags: ["b", "c", "a"] }, { tags: ["a"] }],
      ["user", { labels: [{ name: "user", value: "u" }] }, { origin: { user: "u" } }, { tags: ["u"] }],
      [
        "safety identifier",
        { labels: [{ name: "safety_identifier", value: "s" }] },
        { origin: { safetyIdentifier: "s" } },
        { origin: { user: "s" } },
      ],
      [
        "metadata",
        { labels: [{ name: "metadata.k", value: "v" }] },
        { origin: { metadata: { j: "w", k: "v" } } },
        { origin: { metadata: { j: "v", k: "w" } } },
      ],
      [
        "trace",
        { labels: [{ name: "trace_id", value: "t" }] },
        { origin: { traceId: "t" } },
        { origin: { clientRequestId: "t" } },
      ],
      [
        "the caller's own id",
        { labels: [{ name: "client_request_id", value: "c" }] },
        { origin: { clientRequestId: "c" } },
        { origin: { traceId: "c" } },
      ],
      ["created after, exclusive", { createdAfter: start }, { createdAt: start + 1 }, { createdAt: start }],
      ["created before, exclusive", { createdBefore: start }, { createdAt: start - 1 }, { createdAt: start }],
    ];

    test.each(filters)("can be filtered by %s", async (_, filter, fits, doesNot) => {
      const wanted = [aRequest(fits), aRequest(fits)];
      await accept(wanted[0]!, aRequest(doesNot), wanted[1]!, aRequest({ ...fits, project: other }));
      expect(ids(await list(filter))).toEqual(ids(wanted));
      expect(ids(await list({ ...filter, order: "desc" }))).toEqual(ids(wanted.toReversed()));
      expect(await count(filter)).toBe(2);
    });

    test("can be filtered by a key, which each endpoint may have once", async () => {
      const keyed = (record: RequestRecord, key: string) =>
        commit({ kind: "accept", record, parts: [], key: { ...record, key } });
      const [first, second, unlike] = ["/a", "/b", "/a"].map((endpoint, i) =>
        aRequest({ endpoint, idempotencyKey: i < 2 ? "k" : "k2" }),
      );
      await keyed(first!, "k");
      await keyed(unlike!, "k2");
      await keyed(second!, "k");
      await keyed(aRequest({ project: other, endpoint: "/a", idempotencyKey: "k" }), "k");
      expect(ids(await list({ idempotencyKey: "k" }))).toEqual(ids([first!, second!]));
      expect(ids(await list({ idempotencyKey: "k", order: "desc", limit: 1 }))).toEqual([second!.id]);
      expect(ids(await list({ idempotencyKey: "k", endpoint: "/a" }))).toEqual([first!.id]);
      expect(await count({ idempotencyKey: "k" })).toBe(2);
    });

    test("can be filtered by one state or several", async () => {
      const queued = await accepted(aRequest());
      const processing = await accepted(aRequest(), starting());
      const retrying = await accepted(aRequest(), starting(), retries());
      const completed = await accepted(aRequest(), starting(), completes());
      const failed = await accepted(aRequest(), givesUp());
      const cancelled = await accepted(aRequest(), isCancelled());
      for (const record of [queued, processing, retrying, completed, failed, cancelled])
        expect(await list({ states: [record.state] })).toEqual([record]);
      expect(await list({ states: ["failed", "queued", "cancelled"] })).toEqual([queued, failed, cancelled]);
      expect(await list({ states: [] })).toEqual([]);
    });

    test("can be filtered by whose fault a failure is", async () => {
      const callers = await accepted(aRequest(), starting(), refused);
      const upstreams = await accepted(aRequest(), starting(), fails());
      await accepted(aRequest(), starting(), completes());
      expect(await list({ causedBy: "caller" })).toEqual([callers]);
      expect(await list({ causedBy: "upstream" })).toEqual([upstreams]);
    });

    test("can be filtered by several things at once", async () => {
      const fitting = { model: "gpt-a", tags: ["t"], createdAt: start + 5, origin: { user: "u" } };
      const all = aRequest(fitting);
      await accept(
        aRequest({ ...fitting, tags: [] }),
        aRequest({ ...fitting, model: "gpt-b" }),
        aRequest({ ...fitting, createdAt: start + 6 }),
        all,
        aRequest({ ...fitting, origin: { user: "v" } }),
      );
      const query: Partial<ListQuery> = {
        model: "gpt-a",
        labels: [tag("t"), { name: "user", value: "u" }],
        states: ["queued", "failed"],
        createdAfter: start + 4,
        createdBefore: start + 6,
      };
      expect(ids(await list(query))).toEqual([all.id]);
      expect(await list({ ...query, after: all.id })).toEqual([]);
    });

    test("takes what callers send as a value, never as a pattern or as SQL", async () => {
      await accept(aRequest({ tags: ["abc"], model: "gpt", idempotencyKey: "key" }));
      for (const value of ["%", "a%", "_bc", "' OR 1=1 --", "", "*"]) {
        for (const field of ["model", "upstream", "errorCode", "idempotencyKey", "endpoint", "project"])
          expect(await list({ [field]: value })).toEqual([]);
        expect(await list({ labels: [tag(value)] })).toEqual([]);
        expect(await list({ labels: [{ name: value, value: "abc" }] })).toEqual([]);
      }
    });

    test.each(["asc", "desc"] as const)(
      "read page by page (%s) neither repeats nor skips while requests are added",
      async (order) => {
        const records = Array.from({ length: 7 }, () => aRequest({ tags: ["t"] }));
        for (const record of records) await accept(aRequest(), record);
        const added: RequestRecord[] = [];
        const seen: string[] = [];
        for (let after: string | undefined; ; ) {
          const page = await list({ order, after, limit: 2, labels: [tag("t")] });
          seen.push(...ids(page));
          after = page.at(-1)?.id;
          if (!after) break;
          if (added.length < 3) {
            const more = aRequest({ tags: ["t"] });
            added.push(more);
            await accept(more, aRequest());
          }
        }
        expect(seen).toEqual(order === "asc" ? ids([...records, ...added]) : ids(records.toReversed()));
      },
    );

    test("goes on behind a request that the filter no longer fits", async () => {
      const records = [aRequest(), aRequest(), aRequest()];
      await accept(...records);
      const [first] = await list({ states: ["queued"], limit: 1 });
      await take(first!, isCancelled());
      const rest = await list({ states: ["queued"], after: first!.id });
      expect(ids(rest)).toEqual(ids(records.slice(1)));
    });

    test("goes on where a request stood that was erased", async () => {
      const records = [aRequest(), aRequest(), aRequest()] as const;
      await accept(...records);
      const { id } = await take(records[1], isCancelled());
      await erase("record", id);
      expect(ids(await list({ after: id }))).toEqual([records[2].id]);
      expect(ids(await list({ after: id, order: "desc" }))).toEqual([records[0].id]);
    });

    test("ends with the newest that is meant", async () => {
      const records = [aRequest(), aRequest(), aRequest()];
      await accept(...records);
      const upTo = records[1]!.id;
      expect(ids(await list({ upTo }))).toEqual(ids(records.slice(0, 2)));
      expect(ids(await list({ upTo, order: "desc" }))).toEqual(ids(records.slice(0, 2).toReversed()));
      expect(ids(await list({ upTo, after: records[0]!.id }))).toEqual([upTo]);
    });

    test("finds a time also where the clock was set back in between", async () => {
      const times = [0, 5000, 1000, 6000, 2000].map((ms) => start + ms);
      const records = times.map((createdAt) => aRequest({ createdAt }));
      await accept(...records);
      const between = { createdAfter: start + 500, createdBefore: start + 5500 };
      const expected = ids([records[1]!, records[2]!, records[4]!]);
      expect(ids(await list(between))).toEqual(expected);
      expect(ids(await list({ ...between, order: "desc" }))).toEqual(expected.toReversed());
      expect(await count(between)).toBe(3);
    });

    test("of ids is in their order, without those that are not there", async () => {
      const records = [aRequest(), aRequest(), aRequest()];
      await accept(...records);
      const found = await opened.store.many([records[2]!.id, "req_unknown", records[0]!.id]);
      expect(found).toEqual([records[2], records[0]]);
    });
  });

  describe("any history of requests", () => {
    const models = ["a", "b"];
    const tags = [[], ["x"], ["x", "y"], ["y"]];
    const users = [undefined, "u", "v"];
    const starting = (one: RequestRecord) => starts(opened.owner)(one);
    const moves: ((one: RequestRecord) => Move | undefined)[] = [
      (one) => (one.state === "queued" || one.state === "retrying" ? starting : undefined),
      (one) => (one.state === "processing" ? retries() : undefined),
      (one) => (one.state === "processing" ? completes() : undefined),
      (one) => (one.state === "processing" ? fails() : undefined),
      (one) => (one.state === "processing" ? refused : undefined),
      (one) => (isTerminal(one.state) ? undefined : isCancelled()),
      (one) => (one.state === "failed" || one.state === "cancelled" ? isRevived(someTerms) : undefined),
    ];
    const pick = <T>(from: readonly T[]) => fc.constantFrom(...from);
    const aBirth = fc.record({
      model: pick(models),
      tags: pick(tags),
      user: pick(users),
      later: fc.integer({ min: -2000, max: 5000 }),
    });
    const aStep = fc.oneof(
      { weight: 3, arbitrary: fc.record({ born: aBirth }) },
      { weight: 6, arbitrary: fc.record({ moved: fc.nat(), by: fc.nat(moves.length - 1) }) },
      fc.record({ resolved: fc.nat(), isResolved: fc.boolean() }),
      fc.record({ erased: fc.nat(), what: pick(["bodies", "record"] as const) }),
    );
    const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined });
    const aTime = maybe(fc.integer({ min: start - 3000, max: start + 60_000 }));
    const aFilter = fc.record({
      states: maybe(
        fc.subarray(["queued", "processing", "retrying", "completed", "failed", "cancelled"] as const),
      ),
      model: maybe(pick(models)),
      upstream: maybe(pick(["fake", "none"])),
      errorCode: maybe(pick(["server_error", "invalid_value", "request_cancelled"])),
      causedBy: maybe(pick(["caller", "upstream"] as const)),
      resolved: maybe(fc.boolean()),
      labels: maybe(fc.subarray([tag("x"), tag("y"), { name: "user", value: "u" }])),
      createdAfter: aTime,
      createdBefore: aTime,
    });
    type Step = typeof aStep extends fc.Arbitrary<infer S> ? S : never;

    /** What the store has to have, by the naive rules. */
    async function live(steps: Step[]): Promise<RequestRecord[]> {
      let known: RequestRecord[] = [];
      let now = start;
      const put = (next: RequestRecord) => {
        known = known.map((one) => (one.id === next.id ? next : one));
      };
      for (const step of steps) {
        if ("born" in step) {
          const { model, tags, user, later } = step.born;
          now += later;
          const record = aRequest({
            model,
            tags: [...tags],
            createdAt: now,
            origin: user ? { user } : undefined,
          });
          known.push(record);
          await accept(record);
          continue;
        }
        const at = (place: number) => known[place % known.length];
        if ("moved" in step) {
          const one = at(step.moved);
          const move = one && moves[step.by]!(one);
          if (move) put(await take(one, move));
        } else if ("resolved" in step) {
          const one = at(step.resolved);
          const resolvedAt = step.isResolved ? now : undefined;
          if (!one) continue;
          await commit({ kind: "resolve", ids: [one.id], at: resolvedAt });
          if (one.state === "failed") put({ ...one, resolvedAt });
        } else {
          const one = at(step.erased);
          // An erased body would have to come anew with another round.
          if (!one || step.what === "bodies") continue;
          await erase(step.what, one.id);
          if (isTerminal(one.state)) known = known.filter(({ id }) => id !== one.id);
        }
      }
      return known;
    }

    const countBys: CountBy[] = [
      "status",
      "model",
      "upstream",
      "endpoint",
      "error_code",
      "caused_by",
      "resolved",
    ];
    const valueIn = (one: RequestRecord, by: CountBy): string | null => {
      const isFailed = one.state === "failed";
      const values: Record<CountBy, string | undefined> = {
        status: one.state,
        model: one.model,
        upstream: one.upstream,
        endpoint: one.endpoint,
        error_code: one.lastErrorCode,
        caused_by: causeOf(one),
        resolved: isFailed ? String(one.resolvedAt !== undefined) : undefined,
      };
      return values[by] ?? null;
    };

    test("is listed and counted as it is, whatever is asked", async () => {
      await fc.assert(
        fc.asyncProperty(
          fc.array(aStep, { maxLength: 40 }),
          fc.array(aFilter, { minLength: 1, maxLength: 5 }),
          fc.subarray(countBys),
          fc.integer({ min: 1, max: 4 }),
          async (steps, filters, by, limit) => {
            project = `project of ${anId()}`;
            const known = await live(steps);
            for (const wanted of filters) {
              const filter: Filter = { project, ...wanted };
              const expected = known.filter((one) => matches(filter, one));
              for (const order of ["asc", "desc"] as const) {
                const seen: RequestRecord[] = [];
                for (let after: string | undefined; ; ) {
                  const page = await opened.store.list({ ...filter, after, order, limit });
                  seen.push(...page);
                  after = page.at(-1)?.id;
                  if (page.length < limit) break;
                }
                expect(seen).toEqual(order === "asc" ? expected : expected.toReversed());
              }
              const counted = new Map<string, number>();
              for (const one of expected) {
                const key = JSON.stringify(by.map((name) => valueIn(one, name)));
                counted.set(key, (counted.get(key) ?? 0) + 1);
              }
              const counts = await opened.store.counts(filter, by);
              const found = counts.map(({ values, count }) => [
                JSON.stringify(by.map((name) => values[name])),
                count,
              ]);
              expect(new Map(found as [string, number][])).toEqual(counted);
              expect(counts.map(({ count }) => count)).toEqual(
                counts.map(({ count }) => count).sort((a, b) => b - a),
              );
              const dead = await opened.store.deadLetters(filter, 100);
              const failed = expected.filter(({ state }) => state === "failed");
              expect(dead.reduce((sum, { count }) => sum + count, 0)).toBe(failed.length);
              for (const group of dead) {
                const those = failed.filter(
                  (one) =>
                    one.lastErrorCode === group.errorCode &&
                    one.model === group.model &&
                    (one.upstream ?? null) === group.upstream &&
                    causeOf(one) === group.causedBy,
                );
                expect(group).toMatchObject({ count: those.length, first: those[0], last: those.at(-1) });
                expect(group.resolved).toBe(
                  those.filter(({ resolvedAt }) => resolvedAt !== undefined).length,
                );
              }
            }
          },
        ),
        { numRuns: 30 },
      );
    });
  });

  describe("what requests have used", () => {
    const none: Sums = Object.fromEntries(
      [
        ...["completed", "failed", "cancelled", "cached", "attempts", "inputTokens", "cachedTokens"],
        ...["outputTokens", "reasoningTokens", "estimated", "unpriced", "cost", "durationMs", "refusal"],
        ...["contentFilter", "length", "empty", "invalidJson", "schemaMismatch"],
      ].map((name) => [name, 0]),
    ) as unknown as Sums;
    const aTally = (
      over: Partial<Tally["key"]> = {},
      sums: Partial<Sums> = {},
      tags: string[] = [],
    ): Tally => ({
      key: { day: 20_000, project, endpoint: "/e", model: "m", upstream: "one", promptHash: "", ...over },
      tags,
      sums: { completed: 1, ...sums },
    });
    const query = { fromDay: 0, toDay: 99_999, limit: 100 };
    const usage = (by: Parameters<typeof opened.store.usage>[0]["by"], more = {}) =>
      opened.store.usage({ ...query, project, by, ...more });
    const tally = (...tallies: Tally[]) => commit({ kind: "accept", record: aRequest(), parts: [], tallies });

    test("is added up, in one row where nothing keeps it apart, and is nothing at first", async () => {
      expect(await usage([])).toEqual([{ values: {}, sums: none }]);
      await tally(aTally({}, { inputTokens: 2 ** 40, cost: 0.25 }), aTally({ model: "n" }, { refusal: 1 }));
      const record = await accepted(aRequest(), starting());
      const [transition] = walk(record, completes());
      await commit({
        kind: "change",
        transition: transition!,
        tallies: [aTally({}, { cost: 0.5, length: 2 })],
      });
      const sums = { ...none, completed: 3, inputTokens: 2 ** 40, cost: 0.75, refusal: 1, length: 2 };
      expect(await usage([])).toEqual([{ values: {}, sums }]);
      const total = await opened.store.usage({ ...query, by: [] });
      expect(total[0]!.sums.completed).toBeGreaterThanOrEqual(3);
    });

    test("is kept apart by what is asked, days first, then what was dearest", async () => {
      await tally(
        aTally({ day: 2, model: "cheap", upstream: "two" }, { cost: 1 }),
        aTally({ day: 2, model: "dear" }, { cost: 2 }),
        aTally({ day: 1, model: "free", promptHash: hash }, { inputTokens: 1 }),
        aTally({ day: 1, model: "free too", endpoint: "/f" }, { inputTokens: 1, outputTokens: 2 }),
      );
      const values = async (by: Parameters<typeof usage>[0], more = {}) =>
        (await usage(by, more)).map((group) => Object.values(group.values));
      expect(await values(["day", "model"])).toEqual([
        [1, "free too"],
        [1, "free"],
        [2, "dear"],
        [2, "cheap"],
      ]);
      expect(await values(["model"])).toEqual([["dear"], ["cheap"], ["free too"], ["free"]]);
      expect(await values(["model"], { limit: 1 })).toEqual([["dear"]]);
      expect(await values(["upstream", "endpoint", "project"], { model: "cheap" })).toEqual([
        ["two", "/e", project],
      ]);
      expect(await values(["prompt_hash"], { fromDay: 1, toDay: 1 })).toEqual([[""], [hash]]);
      expect(await values(["model"], { promptHash: hash })).toEqual([["free"]]);
      expect(await values(["model"], { endpoint: "/f", upstream: "one" })).toEqual([["free too"]]);
      expect(await values(["model"], { fromDay: 3 })).toEqual([]);
    });

    test("is known of each tag, and counted once where tags are not asked for", async () => {
      await tally(
        aTally({}, { cost: 1 }, ["a", "b", "a"]),
        aTally({}, { cost: 2 }, ["b"]),
        aTally({}, { cost: 4 }),
      );
      const costs = async (by: Parameters<typeof usage>[0], more = {}) =>
        (await usage(by, more)).map(({ values, sums }) => [values.tag, sums.cost]);
      expect(await costs(["tag"])).toEqual([
        ["b", 3],
        ["a", 1],
      ]);
      expect(await costs([])).toEqual([[undefined, 7]]);
      expect(await costs([], { tag: "b" })).toEqual([[undefined, 3]]);
      expect(await costs(["tag"], { tag: "a" })).toEqual([["a", 1]]);
    });

    test("is kept apart for no more than 500 instructions of a project in a day", async () => {
      const hashes = Array.from({ length: 510 }, (_, i) => i.toString(16).padStart(64, "0"));
      await tally(...hashes.map((promptHash) => aTally({ promptHash })));
      await tally(
        ...hashes.map((promptHash) => aTally({ promptHash })),
        aTally({ promptHash: hash, day: 20_001 }),
      );
      const groups = await usage(["prompt_hash"], { limit: 1000, toDay: 20_000 });
      expect(groups).toHaveLength(501);
      expect(groups.find(({ values }) => values.prompt_hash === "")!.sums.completed).toBe(20);
      expect(await usage(["prompt_hash"], { fromDay: 20_001 })).toHaveLength(1);
    });

    test("is known of no more than 500 tags of a project in a day, and counted once of all", async () => {
      const tags = Array.from({ length: 510 }, (_, i) => `t${i}`);
      await tally(...tags.map((tag) => aTally({}, {}, [tag])));
      await tally(aTally({}, {}, tags), aTally({ day: 20_001 }, {}, ["other"]));
      const groups = await usage(["tag"], { limit: 1000, toDay: 20_000 });
      expect(groups).toHaveLength(500);
      expect(new Set(groups.map(({ sums }) => sums.completed))).toEqual(new Set([2]));
      expect((await usage([], { toDay: 20_000 }))[0]!.sums.completed).toBe(511);
      expect(await usage(["tag"], { fromDay: 20_001 })).toHaveLength(1);
    });

    test("is not what a change brings that is not applied", async () => {
      const record = await accepted(aRequest(), starting());
      const [transition] = walk(record, completes());
      await commit({ kind: "change", transition: transition!, tallies: [aTally()] });
      const again = await opened.store.commit({
        kind: "change",
        transition: transition!,
        tallies: [aTally()],
      });
      expect(again.status).toBe("conflict");
      expect((await usage([]))[0]!.sums.completed).toBe(1);
    });

    test("takes no number that is none", async () => {
      await tally(aTally({}, { cost: Number.NaN, inputTokens: Number.POSITIVE_INFINITY, outputTokens: 1.5 }));
      expect((await usage([]))[0]!.sums).toEqual({ ...none, completed: 1, outputTokens: 1.5 });
    });
  });

  describe("what is erased", () => {
    const parts = every.map((kind) => part(kind, kind));

    async function ended(over: Partial<RequestRecord> = {}, ...more: Move[]): Promise<RequestRecord> {
      const record = aRequest(over);
      await commit({ kind: "accept", record, parts });
      return take(record, starting(), completes(), ...more);
    }

    test("of its bodies leaves the record, its attempts and its labels", async () => {
      const record = await ended({ tags: ["t"], bodyHash: hash, origin: { user: "u" } });
      const kept = await ended();
      await erase("bodies", record.id);
      expect(await read(record)).toEqual({ ...record, bodiesErasedAt: start + 99, bodyHash: undefined });
      expect(await opened.store.parts(record.id, every)).toEqual([]);
      expect(await opened.store.attempts(record.id)).toHaveLength(1);
      expect(ids(await list({ labels: [tag("t")] }))).toEqual([record.id]);
      expect(await opened.store.newest(project, hash, 0)).toBeUndefined();
      expect(await opened.store.parts(kept.id, every)).toHaveLength(every.length);
      await erase("bodies", record.id);
      expect((await read(record))!.bodiesErasedAt).toBe(start + 99);
    });

    test("as a whole is nowhere any more", async () => {
      const record = aRequest({ tags: ["t"], idempotencyKey: "k", origin: { user: "u" } });
      const key = { project, endpoint: record.endpoint, key: "k" };
      await commit({ kind: "accept", record, parts, key });
      await take(record, starting(), completes());
      await erase("record", record.id, "req_unknown");
      expect(await read(record)).toBeUndefined();
      expect(await opened.store.parts(record.id, every)).toEqual([]);
      expect(await opened.store.attempts(record.id)).toEqual([]);
      expect(await opened.store.byKey(project, record.endpoint, "k")).toBeUndefined();
      expect(await list()).toEqual([]);
      expect(await count()).toBe(0);
      expect(await count({ labels: [tag("t")] })).toBe(0);
    });

    test("goes with the vectors that were learned from it", async () => {
      const head = part("head", JSON.stringify({ vectors: { hashes: [hash], ttlMs: 1 } }));
      const record = aRequest({ endpoint: "embeddings" });
      await commit({ kind: "accept", record, parts: [head] });
      const [begun, end] = walk(record, starting(), completes());
      const vectors = [project, other].map((of) => ({
        ...{ project: `${of} fake/gpt-test`, hash, createdAt: start, bytes: Buffer.from("[1]") },
      }));
      await commit({ kind: "change", transition: begun! }, { kind: "change", transition: end!, vectors });
      await erase("bodies", record.id);
      expect(await opened.store.vectors(`${project} fake/gpt-test`, [hash], 0)).toEqual([]);
      expect(await opened.store.vectors(`${other} fake/gpt-test`, [hash], 0)).toHaveLength(1);
    });

    test("is nothing of a request that has not ended", async () => {
      const record = await accepted(aRequest(), starting());
      await erase("record", record.id);
      await erase("bodies", record.id);
      expect(await read(record)).toEqual(record);
    });

    test("is nothing for which somebody may come, where that is asked for", async () => {
      const record = await ended({ callHash: hash });
      const unlessHeld = { orphanedBefore: start + later };
      const soft = { kind: "erase" as const, ids: [record.id], at: start, unlessHeld };
      await commit({ ...soft, what: "bodies" }, { ...soft, what: "record" });
      expect(await read(record)).toEqual(record);
      expect(await opened.store.parts(record.id, every)).toHaveLength(every.length);
      await commit({ kind: "answered", ids: [record.id] }, { ...soft, what: "record" });
      expect(await read(record)).toBeUndefined();
    });

    test("is also what somebody went without, when it is too late to come back", async () => {
      const record = await ended({ callHash: hash });
      const { id } = record;
      await commit({ kind: "orphaned", id, at: start + 5, contentSent: false, forgetBefore: 0 });
      const soft = (orphanedBefore: number): ChangeSet => ({
        ...{ kind: "erase", what: "record", ids: [id], at: start },
        unlessHeld: { orphanedBefore },
      });
      await commit(soft(start + 5));
      expect(await read(record)).toEqual(record);
      await commit(soft(start + 6));
      expect(await read(record)).toBeUndefined();
    });

    /** A failed request without bodies, and its next round as of before they were erased. */
    async function erasedAfterFailing() {
      const record = aRequest();
      await commit({ kind: "accept", record, parts });
      const failed = await take(record, starting(), fails());
      const [late] = walk(failed, isRevived());
      await erase("bodies", record.id);
      return { record, late: late!, erased: (await read(record))! };
    }

    test("cannot be tried again without a new body", async () => {
      const { record, late, erased } = await erasedAfterFailing();
      expect(await opened.store.commit({ kind: "change", transition: late })).toEqual({
        status: "conflict",
        current: erased,
      });
      const [anew] = walk(erased, isRevived());
      const revived = { ...anew!.record, bodiesErasedAt: undefined };
      const body = part("body", "new");
      await commit({ kind: "change", transition: { ...anew!, record: revived }, parts: [body] });
      expect(await read(record)).toEqual(revived);
    });

    test("while somebody changes what it asks for is not tried again as if nothing were missing", async () => {
      const { record, late, erased: current } = await erasedAfterFailing();
      const change: ChangeSet = { kind: "change", transition: late, parts: [part("body", "new")] };
      expect(await opened.store.commit(change)).toEqual({ status: "conflict", current });
      expect(await opened.store.parts(record.id, every)).toEqual([]);
    });
  });

  describe("what may be erased", () => {
    const endedAt = (record: RequestRecord) => record.endedAt!;
    const erasable = (query: Partial<Parameters<typeof opened.store.erasable>[0]> = {}) =>
      opened.store.erasable({
        ...{ what: "record" as const, state: "completed" as const },
        ...{ endedBefore: start + later, keyedBefore: start + later },
        ...{ orphanedBefore: start + later, limit: 100 },
        ...query,
      });
    const own = async (query: Parameters<typeof erasable>[0]) => {
      const records = await opened.store.many(await erasable(query));
      return ids(records.filter((one) => one.project === project));
    };

    test("has ended in that state, longest ago at first", async () => {
      const late = await accepted(aRequest({ updatedAt: start + 5000 }), starting(), completes());
      const early = await accepted(aRequest(), starting(), completes());
      const failed = await accepted(aRequest(), starting(), fails());
      await accepted(aRequest(), starting());
      expect(await own({})).toEqual([early.id, late.id]);
      expect(await own({ state: "failed" })).toEqual([failed.id]);
      expect(await own({ endedBefore: endedAt(late) })).toEqual([early.id]);
      expect(await own({ what: "bodies" })).toEqual([early.id, late.id]);
      await erase("bodies", early.id);
      expect(await own({ what: "bodies" })).toEqual([late.id]);
      expect(await own({})).toEqual([early.id, late.id]);
    });

    test("is nothing that somebody may come for, and no young key", async () => {
      const held = await accepted(aRequest({ callHash: hash }), starting(), completes());
      const keyed = await accepted(aRequest({ idempotencyKey: "k" }), starting(), completes());
      expect(await own({ keyedBefore: endedAt(keyed) })).toEqual([]);
      expect(await own({ keyedBefore: endedAt(keyed) + 1 })).toEqual([keyed.id]);
      expect(await own({ what: "bodies", keyedBefore: 0 })).toEqual([keyed.id]);
      const orphaned = { kind: "orphaned" as const, at: start + 5, contentSent: false, forgetBefore: 0 };
      await commit({ ...orphaned, id: held.id });
      expect(await own({ orphanedBefore: start + 5 })).toEqual([keyed.id]);
      expect((await own({ orphanedBefore: start + 6 })).toSorted()).toEqual([held.id, keyed.id]);
      await commit({ kind: "answered", ids: [held.id] });
      expect((await own({ orphanedBefore: 0 })).toSorted()).toEqual([held.id, keyed.id]);
    });

    test("is what nobody wanted to be kept", async () => {
      const terms = { ...someTerms, store: "none" as const };
      const unwanted = await accepted(aRequest({ terms }), starting(), completes());
      const held = await accepted(aRequest({ terms, callHash: hash }), starting(), completes());
      await accepted(aRequest(), starting(), completes());
      await accepted(aRequest({ terms }), starting());
      const found = async (before: number, orphanedBefore = start + later) => {
        const records = await opened.store.many(await opened.store.unwanted(before, 100, orphanedBefore));
        return ids(records.filter((one) => one.project === project));
      };
      expect(await found(endedAt(unwanted))).toEqual([]);
      expect(await found(endedAt(unwanted) + 1)).toEqual([unwanted.id]);
      await commit({ kind: "orphaned", id: held.id, at: start + 5, contentSent: false, forgetBefore: 0 });
      await erase("bodies", unwanted.id);
      expect(await found(start + later, start + 5)).toEqual([]);
      expect(await found(start + later, start + 6)).toEqual([held.id]);
      await commit({ kind: "answered", ids: [held.id] });
      expect(await found(start + later, 0)).toEqual([held.id]);
    });
  });

  test("only failed requests are resolved, and another round is not", async () => {
    const failed = await accepted(aRequest(), starting(), fails());
    const completed = await accepted(aRequest(), starting(), completes());
    await commit({ kind: "resolve", ids: [failed.id, completed.id, "req_unknown"], at: start });
    expect(await read(failed)).toEqual({ ...failed, resolvedAt: start });
    expect(await read(completed)).toEqual(completed);
    expect(ids(await list({ resolved: true }))).toEqual([failed.id]);
    expect(await list({ resolved: false })).toEqual([]);
    await commit({ kind: "resolve", ids: [failed.id], at: undefined });
    expect(await read(failed)).toEqual(failed);
    await commit({ kind: "resolve", ids: [failed.id], at: start });
    await take((await read(failed))!, isRevived());
    expect((await read(failed))!.resolvedAt).toBeUndefined();
    expect(await count({ resolved: true })).toBe(0);
  });

  test("another round may have another model, priority and instructions", async () => {
    const failed = await accepted(aRequest({ promptHash: hash }), starting(), fails());
    const [moved] = walk(failed, isRevived());
    const changed = { model: "other", priority: "batch" as const, promptHash: undefined };
    const record = { ...moved!.record, ...changed };
    await commit({ kind: "change", transition: { ...moved!, record } });
    expect(await read(failed)).toEqual(record);
    expect(ids(await list({ model: "other" }))).toEqual([failed.id]);
    expect(await list({ model: failed.model })).toEqual([]);
  });

  test("parts are put in place of those of their kind and number", async () => {
    const record = aRequest();
    await commit({ kind: "accept", record, parts: [part("head", "h"), part("body", "old")] });
    const [transition] = walk(record, isCancelled());
    const parts = [part("body", "new"), part("sent", "s", 1), part("sent", "t", 2)];
    await commit({ kind: "change", transition: transition!, parts });
    const found = await opened.store.parts(record.id, every);
    expect(found.map(({ kind, seq, bytes }) => `${kind} ${seq} ${Buffer.from(bytes)}`)).toEqual([
      ...["body 0 new", "head 0 h", "sent 1 s", "sent 2 t"],
    ]);
  });

  test.each([
    ["a head alone", ["head 0 new"], ["body 0 b", "head 0 new"]],
    ["a body alone, and then both", ["body 0 new"], ["body 0 new", "head 0 h"], ["head 0 x", "body 0 y"]],
    ["both", ["head 0 new", "body 0 newer"], ["body 0 newer", "head 0 new"]],
    ["a body that is large", [`body 0 ${"x".repeat(70_000)}`], [`body 0 ${"x".repeat(70_000)}`, "head 0 h"]],
  ])(
    "%s is put in place of what a head and a body were before",
    async (_, written, expected, again?: string[]) => {
      const toPart = (text: string) => {
        const [kind, seq, bytes] = text.split(" ");
        return part(kind as PartKind, bytes!, Number(seq));
      };
      const found = async (kinds: PartKind[]) => {
        const parts = await opened.store.parts(record.id, kinds);
        return parts.map(({ kind, seq, bytes }) => `${kind} ${seq} ${Buffer.from(bytes)}`);
      };
      const record = aRequest();
      await commit({ kind: "accept", record, parts: [part("head", "h"), part("body", "b")] });
      let last = record;
      const change = async (parts: string[]) => {
        const [transition] = walk(last, isRerouted("other/gpt"));
        await commit({ kind: "change", transition: transition!, parts: parts.map(toPart) });
        last = transition!.record;
      };
      await change(written);
      expect(await found(every)).toEqual(expected);
      expect(await found(["head"])).toEqual(expected.filter((text) => text.startsWith("head")));
      if (!again) return;
      await change(again);
      expect(await found(every)).toEqual([...again].reverse());
      expect(await found(["body"])).toEqual(again.slice(1));
    },
  );

  describe("a bulk", () => {
    const aBulk = (over: Partial<Bulk> = {}): Bulk => ({
      id: `bulk_${anId()}`,
      project,
      action: "retry",
      filter: { project, states: ["failed"], labels: [tag("t")] },
      state: "in_progress",
      done: 0,
      skipped: 0,
      failed: 0,
      createdAt: start,
      updatedAt: start,
      ...over,
    });
    const full = (over: Partial<Bulk> = {}): Required<Bulk> => ({
      ...aBulk(),
      text: "what",
      options: { terms: { maxAttempts: 2 }, priority: "batch", delayMs: 5 },
      total: 9,
      cursor: "req_1",
      lastId: "req_2",
      errorCode: "c",
      idempotencyKey: "k",
      fingerprint: hash,
      endedAt: start + 1,
      ...over,
    });

    test("comes back as it went in, and as it is from then on", async () => {
      for (const bulk of [aBulk(), full()]) {
        await commit({ kind: "bulk", bulk });
        expect(await opened.store.bulk(bulk.id)).toEqual(bulk);
        const next: Bulk = { ...bulk, state: "completed", done: 7, endedAt: start + 7, cursor: "req_9" };
        await commit({ kind: "bulk", bulk: next });
        expect(await opened.store.bulk(bulk.id)).toEqual(next);
      }
      expect(await opened.store.bulk("bulk_unknown")).toBeUndefined();
    });

    test("has a key that is no other one's of its project", async () => {
      const bulk = full();
      await commit({ kind: "bulk", bulk }, { kind: "bulk", bulk: { ...bulk, done: 1 } });
      const taken = await opened.store.commit({ kind: "bulk", bulk: full() });
      expect(taken).toEqual({ status: "conflict", current: undefined });
      await commit({ kind: "bulk", bulk: full({ project: other }) });
      expect((await opened.store.bulkByKey(project, "k"))!.id).toBe(bulk.id);
      expect(await opened.store.bulkByKey(project, "another")).toBeUndefined();
    });

    test("is listed, newest first", async () => {
      const bulks = [aBulk(), aBulk({ state: "failed" }), aBulk(), aBulk({ project: other })];
      for (const bulk of bulks) await commit({ kind: "bulk", bulk });
      const listed = async (query: Omit<Parameters<typeof opened.store.bulks>[0], "limit">, limit = 100) =>
        (await opened.store.bulks({ ...query, limit })).map(({ id }) => id);
      const [first, second, third, last] = bulks.map(({ id }) => id) as [string, string, string, string];
      expect(await listed({ project })).toEqual([third, second, first]);
      expect(await listed({ project }, 2)).toEqual([third, second]);
      expect(await listed({ project, after: third })).toEqual([second, first]);
      expect(await listed({ project, state: "failed" })).toEqual([second]);
      const running = await listed({ state: "in_progress" });
      expect(running.filter((id) => bulks.some((bulk) => bulk.id === id))).toEqual([last, third, first]);
    });
  });

  test("the size says how many requests there are, and gives back what is free", async () => {
    const before = await opened.store.size();
    await accept(aRequest(), aRequest());
    const after = await opened.store.size();
    expect(after.requests).toBe(before.requests + 2);
    expect(after.bytes).toBeGreaterThan(0);
    const record = aRequest();
    await commit({ kind: "accept", record, parts: [part("body", "x".repeat(1_000_000))] });
    await take(record, isCancelled());
    await erase("record", record.id);
    const erased = await opened.store.size();
    expect(erased.freeBytes).toBeGreaterThan(900_000);
    await commit({ kind: "vacuum", pages: 10_000 });
    const left = await opened.store.size();
    expect(left.freeBytes).toBeLessThan(erased.freeBytes);
    expect(left.bytes).toBeLessThan(erased.bytes);
  });
}
