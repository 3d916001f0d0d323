/** What every store has to do with what is learned of upstreams, and with answers that are given again. */

import { createHash } from "node:crypto";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { ChangeSet, CommitResult, Ended, Part, PartKind, Vector } from "../../src/core/ports.ts";
import type { Degraded, Findings, RequestRecord } from "../../src/core/request.ts";
import {
  aRecord,
  completes,
  fails,
  isCancelled,
  isRevived,
  isThrottled,
  type Move,
  retries,
  someTerms,
  start,
  starts,
  walk,
} from "../support/builders.ts";
import type { Opened } from "./conformance.ts";

const applied: CommitResult = { status: "applied" };
const hash = "ab".repeat(32);
const otherHash = "cd".repeat(32);
const dayMs = 24 * 60 * 60 * 1000;
const every: PartKind[] = ["head", "body", "answer_head", "answer"];

const part = (kind: PartKind, text: string, seq = 0): Part => ({ kind, seq, bytes: Buffer.from(text) });
const shown = (parts: Part[]) =>
  parts.map(({ kind, seq, bytes }) => `${kind} ${seq} ${Buffer.from(bytes).toString()}`);

/** A request that has its answer without a call: the copy of another one's. */
const copyOf = (from: RequestRecord, over: Partial<RequestRecord> = {}): RequestRecord =>
  aRecord({
    state: "completed",
    endedAt: start + 5,
    updatedAt: start + 5,
    endReason: "answered",
    responseId: "chatcmpl-1",
    bodyHash: from.bodyHash,
    cachedFrom: from.id,
    ...over,
  });

export function learnedConformance(open: () => Promise<Opened>): void {
  let opened: Opened;

  async function commit(...changes: ChangeSet[]): Promise<void> {
    for (const change of changes) expect(await opened.store.commit(change)).toEqual(applied);
  }

  /** Stores a request, as it is after these steps. */
  async function accepted(record: RequestRecord, ...moves: Move[]): Promise<RequestRecord> {
    await commit({ kind: "accept", record, parts: [] });
    const taken = walk(record, ...moves);
    for (const transition of taken) await commit({ kind: "change", transition });
    return taken.at(-1)?.record ?? record;
  }

  const starting = () => starts(opened.owner);
  const read = ({ id }: RequestRecord) => opened.store.get(id);

  const restart = async () => {
    expect(opened.reopen).toBeDefined();
    opened = { ...opened, ...(await opened.reopen!()) };
  };

  /** A new store for each test: some reads are of all projects together. */
  const each = () => {
    beforeEach(async () => {
      opened = await open();
    });
    afterEach(() => opened.close());
  };

  describe("an answer that was measured", () => {
    each();
    const cut: Findings = { finishReason: "length", problems: ["length"] };
    const good: Findings = { finishReason: "stop", problems: [] };

    test("leaves what it cost, and what was found, on its attempt and on the request", async () => {
      const record = await accepted(
        aRecord(),
        starting(),
        retries({ verdict: "invalid_output", cost: 0.25, findings: cut }),
        starting(),
        retries(),
        starting(),
        completes({ cost: 0.5, findings: good }),
      );
      expect(record).toMatchObject({ invalid: 1, cost: 0.75, findings: good });
      expect(await read(record)).toEqual(record);
      const attempts = await opened.store.attempts(record.id);
      expect(attempts.map(({ cost, findings }) => ({ cost, findings }))).toEqual([
        { cost: 0.25, findings: cut },
        { cost: undefined, findings: undefined },
        { cost: 0.5, findings: good },
      ]);
    });

    test("that is told to the next attempt is kept until a new round begins; the request's own head stays", async () => {
      const parts = [part("head", "own"), part("body", "b")];
      const record = aRecord();
      const [begun, again, ended, revived] = walk(record, starting(), retries(), isCancelled(), isRevived());
      const feedback = [part("head", "told", 1)];
      await commit({ kind: "accept", record, parts }, { kind: "change", transition: begun! });
      await commit({ kind: "change", transition: again!, parts: feedback });
      const bystander = aRecord();
      await commit({ kind: "accept", record: bystander, parts: [...parts, part("head", "kept", 1)] });
      await commit({ kind: "change", transition: ended! });
      expect(shown(await opened.store.parts(record.id, ["head"]))).toEqual(["head 0 own", "head 1 told"]);
      await commit({ kind: "change", transition: revived!, dropAnswer: true });
      expect(shown(await opened.store.parts(record.id, every))).toEqual(["body 0 b", "head 0 own"]);
      expect(await opened.store.parts(bystander.id, every)).toHaveLength(3);
    });
  });

  describe("a mark of what a caller was given instead", () => {
    each();
    const mark = ({ id }: RequestRecord, degraded: Degraded): ChangeSet => ({
      kind: "degraded",
      id,
      degraded,
    });

    const states: [string, () => Move[]][] = [
      ["waits", () => []],
      ["is processing", () => [starting()]],
      ["waits for its next attempt", () => [starting(), retries()]],
      ["has completed", () => [starting(), completes()]],
    ];

    test.each(states)("is set on a request that %s, and on no other", async (_, moves) => {
      const record = await accepted(aRecord(), ...moves());
      const bystander = await accepted(aRecord(), ...moves());
      await commit(mark(record, "stale"));
      expect(await read(record)).toEqual({ ...record, degraded: "stale" });
      expect(await read(bystander)).toEqual(bystander);
      await commit(mark(record, "fixed"));
      expect(await read(record)).toEqual({ ...record, degraded: "fixed" });
    });

    test("of a request that does not exist is a conflict", async () => {
      const bystander = await accepted(aRecord());
      expect(await opened.store.commit(mark(aRecord(), "stale"))).toEqual({
        status: "conflict",
        current: undefined,
      });
      expect(await read(bystander)).toEqual(bystander);
    });

    test("stays when changes come that were worked out before it", async () => {
      const record = await accepted(aRecord(), starting());
      await commit(mark(record, "stale"));
      for (const transition of walk(record, retries(), starting(), completes())) {
        expect(transition.record.degraded).toBeUndefined();
        await commit({ kind: "change", transition });
        expect(await read(record)).toEqual({ ...transition.record, degraded: "stale" });
      }
    });

    test("is what a change says that knows of one", async () => {
      const record = await accepted(aRecord(), starting());
      await commit(mark(record, "stale"));
      const [transition] = walk({ ...record, degraded: "fixed" }, completes());
      await commit({ kind: "change", transition: transition! });
      expect(await read(record)).toEqual(transition!.record);
      expect(transition!.record.degraded).toBe("fixed");
    });

    test("is gone when a new round begins", async () => {
      const record = await accepted(aRecord(), starting(), fails());
      await commit(mark(record, "stale"));
      const [transition] = walk(record, isRevived());
      await commit({ kind: "change", transition: transition! });
      expect(await read(record)).toEqual(transition!.record);
      expect(transition!.record.degraded).toBeUndefined();
    });
  });

  describe("a request that is accepted with its answer", () => {
    each();
    const original = aRecord({ bodyHash: hash });
    const answer = [part("answer_head", "{}"), part("answer", "a")];
    const parts = [part("head", "h"), part("body", "b"), ...answer];

    /** Watches, and remembers what it is told. */
    function heard({ id }: RequestRecord): Ended[] {
      const those: Ended[] = [];
      opened.store.watch(id, (ended) => those.push(ended));
      return those;
    }

    test("has ended, without an attempt, and is found like any other", async () => {
      const record = copyOf(original, { idempotencyKey: "k" });
      const key = { project: record.project, endpoint: record.endpoint, key: "k" };
      await commit({ kind: "accept", record, parts, key });
      expect(await read(record)).toEqual(record);
      expect(await opened.store.attempts(record.id)).toEqual([]);
      expect(shown(await opened.store.parts(record.id, every)).toSorted()).toEqual(shown(parts).toSorted());
      expect(await opened.store.byKey(key.project, key.endpoint, "k")).toEqual(record);
      expect(await opened.store.byResponse(record.project, "chatcmpl-1")).toEqual(record);
      expect(await opened.store.groups()).toEqual([]);
      expect(await opened.store.expiring({ limit: 10 })).toEqual([]);
    });

    test("is never begun: it can only end once", async () => {
      const record = copyOf(original);
      await commit({ kind: "accept", record, parts });
      const [transition] = walk(aRecord({ id: record.id }), starting());
      expect(await opened.store.commit({ kind: "change", transition: transition! })).toEqual({
        status: "conflict",
        current: record,
      });
    });

    test("tells those who watched before, with the answer alone", async () => {
      const record = copyOf(original);
      const those = heard(record);
      await commit({ kind: "accept", record, parts });
      expect(those.map((ended) => ended.record)).toEqual([record]);
      expect(shown(those[0]!.answer)).toEqual(shown(answer));
    });

    test("tells nobody where it is a conflict, nor where it has only been accepted", async () => {
      const key = { project: "p", endpoint: "/e", key: "k" };
      await commit({ kind: "accept", record: aRecord(), parts: [], key });
      const record = copyOf(original);
      const refused = heard(record);
      expect(await opened.store.commit({ kind: "accept", record, parts, key })).toMatchObject({
        status: "conflict",
      });
      const waiting = aRecord();
      const pending = heard(waiting);
      await accepted(waiting, starting());
      expect([...refused, ...pending]).toEqual([]);
    });

    const again = (): ChangeSet => ({
      kind: "accept",
      record: aRecord({ callHash: otherHash }),
      parts: [],
      repeats: { now: 0, orphanedAfter: 0, isRetry: true, failedAfter: 0 },
    });

    test("may be adopted when its caller has gone, and is nobody's when its caller has it", async () => {
      const [gone, answered] = [1, 2].map(() => copyOf(original, { callHash: otherHash }));
      await commit({ kind: "accept", record: gone!, parts }, { kind: "accept", record: answered!, parts });
      await commit({ kind: "answered", ids: [answered!.id] });
      for (const { id } of [answered!, gone!])
        await commit({ kind: "orphaned", id, at: start, contentSent: false, forgetBefore: 0 });
      expect(await opened.store.commit(again())).toEqual({ status: "adopted", current: gone });
      expect(await opened.store.commit(again())).toEqual(applied);
    });

    test("may be adopted after a new start", async () => {
      const record = copyOf(original, { callHash: otherHash });
      await commit({ kind: "accept", record, parts });
      await restart();
      await commit({ kind: "all_orphaned", at: start, forgetBefore: 0 });
      expect(await opened.store.commit(again())).toEqual({ status: "adopted", current: record });
    });
  });

  describe("what was learned of upstreams", () => {
    each();
    const flow = (...rows: [string, unknown][]): ChangeSet => ({
      kind: "flow",
      rows: rows.map(([name, value]) => ({ name, value: JSON.stringify(value) })),
    });
    const learned = async () =>
      (await opened.store.flow()).map(({ name, value }) => [name, JSON.parse(value)]);

    test("is nothing at first", async () => {
      expect(await opened.store.flow()).toEqual([]);
    });

    test("is the newest of each name, in the order of the names, also after a new start", async () => {
      await commit(flow(["lane b/größe 🦉", { limit: 1.5 }], ["a", 1]), flow());
      await commit(flow(["c", null], ["a", { level: 2 }]));
      const expected = [
        ["a", { level: 2 }],
        ["c", null],
        ["lane b/größe 🦉", { limit: 1.5 }],
      ];
      expect(await learned()).toEqual(expected);
      await restart();
      expect(await learned()).toEqual(expected);
    });

    test("is refused as a whole where a value is no JSON", async () => {
      await commit(flow(["a", 1]));
      const rows = [
        { name: "a", value: "2" },
        { name: "b", value: "{" },
      ];
      await expect(opened.store.commit({ kind: "flow", rows })).rejects.toThrow("CHECK");
      expect(await learned()).toEqual([["a", 1]]);
    });
  });

  describe("calls since an instant", () => {
    each();
    const size = { textBytes: 100, mediaTokens: 7, maxOutput: 50 };

    test("are the attempts that began then or later, and have ended, in their order", async () => {
      const sized = aRecord({ terms: { ...someTerms, size }, lane: "one/größe/x" });
      await accepted(sized, starting(), isThrottled(), starting(), completes({ usage: '{ "a":1.0 }' }));
      // These began in the same instants, in another project and lane.
      await accepted(aRecord({ project: "other", lane: "two/y" }), starting(), retries(), starting());
      const one = { upstream: "one", model: "größe/x", size };
      const two = { upstream: "two", model: "y", size: undefined, usage: undefined };
      const first = { ...one, startedAt: start + 1000, usage: undefined, verdict: "throttled" };
      const others = [
        { ...two, startedAt: start + 1000, verdict: "transient" },
        { ...one, startedAt: start + 3000, usage: '{ "a":1.0 }', verdict: "success" },
      ];
      expect(await opened.store.calledSince(0)).toEqual([first, ...others]);
      expect(await opened.store.calledSince(start + 1000)).toEqual([first, ...others]);
      expect(await opened.store.calledSince(start + 1001)).toEqual([others[1]]);
      expect(await opened.store.calledSince(start + 3001)).toEqual([]);
    });

    test("are known after a new start", async () => {
      await accepted(aRecord(), starting(), completes());
      const before = await opened.store.calledSince(0);
      expect(before).toHaveLength(1);
      await restart();
      expect(await opened.store.calledSince(0)).toEqual(before);
    });
  });

  describe("the newest answer to a body", () => {
    each();
    const answered = (over: Partial<RequestRecord> = {}) =>
      accepted(aRecord({ bodyHash: hash, ...over }), starting(), completes());
    const newest = (endedAfter = 0, project = "default", bodyHash = hash) =>
      opened.store.newest(project, bodyHash, endedAfter);

    test("is that of the request that ended last, whichever came first", async () => {
      const late = await answered({ updatedAt: start + 10_000 });
      await answered();
      expect(await newest()).toEqual(late);
    });

    test("is the later one's of two that ended in the same instant", async () => {
      await answered();
      const second = await answered();
      expect(await newest()).toEqual(second);
    });

    test("is one of its own project and body, or none", async () => {
      await answered({ project: "other" });
      await answered({ bodyHash: otherHash });
      await answered({ bodyHash: undefined });
      expect(await newest()).toBeUndefined();
      expect(await newest(0, "other")).toMatchObject({ project: "other" });
      expect(await newest(0, "default", otherHash)).toMatchObject({ bodyHash: otherHash });
    });

    test("is none of a request that has not completed", async () => {
      const record = () => aRecord({ bodyHash: hash });
      await accepted(record());
      await accepted(record(), starting());
      await accepted(record(), starting(), fails());
      await accepted(record(), starting(), isCancelled());
      expect(await newest()).toBeUndefined();
    });

    test("is none that is too old", async () => {
      const record = await answered();
      expect(await newest(record.endedAt! - 1)).toEqual(record);
      expect(await newest(record.endedAt!)).toBeUndefined();
    });

    test("is never a copy, which would keep an old answer young", async () => {
      const record = await answered();
      await commit({ kind: "accept", record: copyOf(record, { endedAt: start + 99_000 }), parts: [] });
      expect(await newest()).toEqual(record);
      expect(await newest(record.endedAt!)).toBeUndefined();
    });
  });

  describe("vectors", () => {
    each();
    const hashOf = (n: number) => createHash("sha256").update(`${n}`).digest("hex");
    const vector = (n: number, text: string, over: Partial<Vector> = {}): Vector => ({
      project: "default",
      hash: hashOf(n),
      bytes: Buffer.from(text),
      createdAt: start,
      ...over,
    });

    /** Writes them with the end of a request. */
    async function write(...vectors: Vector[]): Promise<void> {
      const record = await accepted(aRecord(), starting());
      const [transition] = walk(record, completes());
      await commit({ kind: "change", transition: transition!, parts: [part("answer", "a")], vectors });
    }

    async function known(numbers: number[], createdAfter = 0, project = "default") {
      const found = await opened.store.vectors(project, numbers.map(hashOf), createdAfter);
      return found.map(({ bytes, ...rest }) => ({ ...rest, text: Buffer.from(bytes).toString() }));
    }
    const texts = async (...those: Parameters<typeof known>) =>
      (await known(...those)).map(({ text }) => text);

    test("come back as they went in, those that are known, each once", async () => {
      await write(vector(1, "[0.1,0.2]"), vector(2, "zwei 🦉"), vector(3, "three"));
      expect(await known([3, 9, 1, 3])).toEqual([
        { project: "default", hash: hashOf(3), createdAt: start, text: "three" },
        { project: "default", hash: hashOf(1), createdAt: start, text: "[0.1,0.2]" },
      ]);
      expect(await known([])).toEqual([]);
      await restart();
      expect(await texts([2])).toEqual(["zwei 🦉"]);
    });

    test("cross with the other bytes of their change, and of the changes beside it", async () => {
      const records = await Promise.all([1, 2, 3].map(() => accepted(aRecord(), starting())));
      const large = "x".repeat(100_000);
      await Promise.all(
        records.map((record, i) => {
          const [transition] = walk(record, completes());
          const parts = [part("answer_head", `h${i}`), part("answer", `a${i}`)];
          const events = { after: 0, bytes: Buffer.from(`e${i}`), anew: false };
          const vectors = [vector(i, large + i), vector(10 + i, ""), vector(20 + i, `v${i}`)];
          return commit({ kind: "change", transition: transition!, parts, events, vectors });
        }),
      );
      for (const [i, { id }] of records.entries()) {
        expect(shown(await opened.store.parts(id, every))).toEqual([`answer 0 a${i}`, `answer_head 0 h${i}`]);
        expect(
          (await opened.store.events(id, 0, 100)).map(({ bytes }) => Buffer.from(bytes).toString()),
        ).toEqual([`e${i}`]);
        expect(await texts([i, 10 + i, 20 + i])).toEqual([large + i, "", `v${i}`]);
      }
    });

    test("belong to one project", async () => {
      await write(vector(1, "mine"), vector(1, "theirs", { project: "other" }));
      expect(await texts([1])).toEqual(["mine"]);
      expect(await texts([1], 0, "other")).toEqual(["theirs"]);
      expect(await texts([1], 0, "third")).toEqual([]);
    });

    test("are replaced by newer ones alone", async () => {
      await write(vector(1, "first"));
      await write(vector(1, "second", { createdAt: start + 1 }));
      await write(vector(1, "late", { createdAt: start }));
      await write(vector(1, "no newer", { createdAt: start + 1 }));
      expect(await known([1])).toMatchObject([{ text: "second", createdAt: start + 1 }]);
    });

    test("that are too old are not given", async () => {
      await write(vector(1, "old"), vector(2, "new", { createdAt: start + 1 }));
      expect(await texts([1, 2], start - 1)).toEqual(["old", "new"]);
      expect(await texts([1, 2], start)).toEqual(["new"]);
    });

    test("of a change that is a conflict are not written", async () => {
      const record = await accepted(aRecord(), starting());
      const [transition] = walk(record, completes());
      const stale = { ...transition!, expect: { ...transition!.expect, attempt: 9 } };
      const result = await opened.store.commit({
        kind: "change",
        transition: stale,
        vectors: [vector(1, "no")],
      });
      expect(result.status).toBe("conflict");
      expect(await known([1])).toEqual([]);
    });

    test("that are thirty days old are swept out by new ones, the oldest first and not all at once", async () => {
      const old = Array.from({ length: 40 }, (_, i) => i);
      await write(
        ...old.toReversed().map((i) => vector(i, `${i}`, { createdAt: start + i, project: "past" })),
      );
      const left = () => texts(old, 0, "past");
      const numbers = (from: number) => old.slice(from).map(String);
      await write(vector(100, "new", { createdAt: start + 30 * dayMs - 1 }));
      expect(await left()).toEqual(numbers(0));
      await write(vector(101, "new", { createdAt: start + 30 * dayMs + 4 }));
      expect(await left()).toEqual(numbers(5));
      await write(vector(102, "new", { createdAt: start + 60 * dayMs }));
      expect(await left()).toEqual(numbers(22));
      // As many go as come, and some more: of old ones there are ever fewer.
      const many = Array.from({ length: 20 }, (_, i) =>
        vector(200 + i, "n", { createdAt: start + 60 * dayMs }),
      );
      await write(...many);
      expect(await left()).toEqual([]);
    });
  });
}
