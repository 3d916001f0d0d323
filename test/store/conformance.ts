/** What every store has to do, asked through the port alone. */

import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { LedgerStore } from "../../src/core/ledger/ports.ts";
import type {
  CacheStore,
  ChangeSet,
  Ended,
  FlowStore,
  GroupKey,
  Part,
  PartKind,
  ReadyGroup,
  Store,
} from "../../src/core/ports.ts";
import type { Owner, RequestRecord, Transition } from "../../src/core/request.ts";
import { attemptUnderWay, startAtOnce } from "../../src/core/request.ts";
import {
  aFailure,
  aFullAttempt,
  aFullRecord,
  anAttempt,
  anId,
  aRecord,
  completes,
  fails,
  givesUp,
  isCancelled,
  isRerouted,
  isRevived,
  isThrottled,
  type Move,
  retries,
  staleExpectations,
  start,
  starts,
  walk,
} from "../support/builders.ts";
import { learnedConformance } from "./learned.ts";
import { ledgerConformance } from "./ledger.ts";
import { orphanConformance } from "./orphans.ts";
import { streamConformance } from "./streams.ts";

export type WholeStore = Store & FlowStore & CacheStore & LedgerStore;

export interface Opened {
  store: WholeStore;
  /** The right that this start has. */
  owner: Owner;
  /** Stops, and starts again on what was stored. */
  reopen?: () => Promise<{ store: WholeStore; owner: Owner }>;
  close(): Promise<void>;
}

type Accept = Extract<ChangeSet, { kind: "accept" }>;
type Change = Extract<ChangeSet, { kind: "change" }>;

const every: PartKind[] = ["head", "body", "answer_head", "answer", "sent", "received"];
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const part = (kind: PartKind, text: string, seq = 0): Part => ({ kind, seq, bytes: bytes(text) });

/** Parts as text that compares quickly, whatever kind of array holds them. */
const shown = (parts: Part[]) =>
  parts.map(({ kind, seq, bytes }) => ({ kind, seq, hex: Buffer.from(bytes).toString("hex") }));

const ids = (records: RequestRecord[]): string[] => records.map(({ id }) => id);

export function storeConformance(name: string, open: () => Promise<Opened>): void {
  describe(name, () => {
    let shared: Opened;
    let opened: Opened;
    let store: WholeStore;
    let owner: Owner;
    /** Two projects that no other test knows. */
    let project: string;
    let other: string;

    const use = (one: Opened) => {
      opened = one;
      ({ store, owner } = one);
    };

    beforeAll(async () => {
      shared = await open();
      use(shared);
    });

    beforeEach(() => {
      project = `project of ${anId()}`;
      other = `${project}, other`;
    });

    afterAll(async () => {
      await shared.close();
    });

    const aRequest = (over: Partial<RequestRecord> = {}) => aRecord({ project, ...over });

    /** Commits, and expects that it is applied. */
    async function commit(change: ChangeSet): Promise<void> {
      expect(await store.commit(change)).toEqual({ status: "applied" });
    }

    async function accept(record: RequestRecord, more: Partial<Accept> = {}): Promise<RequestRecord> {
      await commit({ kind: "accept", record, parts: [], ...more });
      return record;
    }

    async function acceptAll(...records: RequestRecord[]): Promise<void> {
      for (const record of records) await accept(record);
    }

    /** Takes a stored record through these steps; returns it as the last one leaves it. */
    async function take(record: RequestRecord, ...moves: Move[]): Promise<RequestRecord> {
      const taken = walk(record, ...moves);
      for (const transition of taken) await commit({ kind: "change", transition });
      return taken.at(-1)!.record;
    }

    const accepted = (record: RequestRecord, ...moves: Move[]) =>
      accept(record).then((it) => take(it, ...moves));

    /** Everything that is stored of a request. */
    async function stored(id: string) {
      const [record, attempts, parts] = await Promise.all([
        store.get(id),
        store.attempts(id),
        store.parts(id, every),
      ]);
      return { record, attempts, parts: shown(parts) };
    }

    const nothing = { record: undefined, attempts: [], parts: [] };

    describe("accepting", () => {
      test("stores the record with its parts, without an attempt", async () => {
        const record = aRequest();
        const parts = [part("head", "{}"), part("body", '{"model":"gpt-test"}')];
        await accept(record, { parts });
        expect(await stored(record.id)).toEqual({ record, attempts: [], parts: sorted(shown(parts)) });
      });

      test("stores the first attempt in the same step when the request starts at once", async () => {
        const record = startAtOnce(aRequest(), { now: start + 5, owner });
        const attempt = attemptUnderWay(record);
        await accept(record, { parts: [part("body", "b")] });
        expect(await stored(record.id)).toEqual({
          record,
          attempts: [attempt],
          parts: shown([part("body", "b")]),
        });
      });

      test("binds the key", async () => {
        const record = aRequest({ idempotencyKey: "k" });
        await accept(record, { key: { project, endpoint: "/e", key: "k" } });
        expect(await store.byKey(project, "/e", "k")).toEqual(record);
      });

      test("binds no key where none is given", async () => {
        await accept(aRequest({ idempotencyKey: "k", endpoint: "/e" }));
        expect(await store.byKey(project, "/e", "k")).toBeUndefined();
      });

      test("gives nothing for what was never accepted", async () => {
        await accept(aRequest());
        expect(await stored(anId())).toEqual(nothing);
        expect(await store.byKey(project, "/e", "k")).toBeUndefined();
        expect(await store.byResponse(project, "chatcmpl-1")).toBeUndefined();
      });
    });

    describe("a key", () => {
      let key: { project: string; endpoint: string; key: string };
      beforeEach(() => {
        key = { project, endpoint: "/e", key: "k" };
      });

      test("that is taken is a conflict that tells the holder as it is now, and writes nothing", async () => {
        const holder = aRequest();
        await accept(holder, { key });
        const now = await take(holder, starts(owner), completes({ responseId: "chatcmpl-1" }));
        const record = startAtOnce(aRequest(), { now: start, owner });
        const late: ChangeSet = { kind: "accept", record, parts: [part("body", "b")], key };
        expect(await store.commit(late)).toEqual({ status: "conflict", current: now });
        expect(await stored(record.id)).toEqual(nothing);
        expect(await store.byKey(project, "/e", "k")).toEqual(now);
        expect(ids(await store.list({ project, order: "asc", limit: 9 }))).toEqual([holder.id]);
      });

      test("is bound by exactly one of many that come at once", async () => {
        const records = Array.from({ length: 20 }, () => aRequest());
        const results = await Promise.all(
          records.map((record) => store.commit({ kind: "accept", record, parts: [part("body", "b")], key })),
        );
        const applied = results.filter(({ status }) => status === "applied");
        expect(applied).toHaveLength(1);
        const winner = records[results.indexOf(applied[0]!)]!;
        for (const [i, result] of results.entries()) {
          if (records[i] === winner) continue;
          expect(result).toEqual({ status: "conflict", current: winner });
          expect(await stored(records[i]!.id)).toEqual(nothing);
        }
        expect(await store.byKey(project, "/e", "k")).toEqual(winner);
      });

      test("belongs to one project and endpoint", async () => {
        const mine = aRequest();
        const elsewhere = aRequest();
        const foreign = aRequest({ project: other });
        const another = aRequest();
        await accept(mine, { key });
        await accept(elsewhere, { key: { ...key, endpoint: "/f" } });
        await accept(foreign, { key: { ...key, project: other } });
        await accept(another, { key: { ...key, key: "K" } });
        expect(await store.byKey(project, "/e", "k")).toEqual(mine);
        expect(await store.byKey(project, "/f", "k")).toEqual(elsewhere);
        expect(await store.byKey(other, "/e", "k")).toEqual(foreign);
        expect(await store.byKey(project, "/e", "K")).toEqual(another);
        expect(await store.byKey(other, "/f", "k")).toBeUndefined();
        expect(await store.byKey(project, "/e", "k ")).toBeUndefined();
      });
    });

    describe("a change", () => {
      test("is written with its attempt and its parts at once", async () => {
        const record = await accepted(aRequest(), starts(owner));
        const [transition] = walk(record, completes({ responseId: "chatcmpl-1", usage: "{}" }));
        const parts = [part("answer_head", "[]"), part("answer", "hello")];
        await commit({ kind: "change", transition: transition!, parts });
        expect(await stored(record.id)).toEqual({
          record: transition!.record,
          attempts: [transition!.attempt],
          parts: sorted(shown(parts)),
        });
      });

      test("keeps when an attempt started", async () => {
        const record = await accepted(aRequest(), starts(owner));
        const [begun] = await store.attempts(record.id);
        await take(record, fails());
        const [ended] = await store.attempts(record.id);
        expect(ended).toMatchObject({ startedAt: begun!.startedAt, verdict: "permanent" });
      });

      /** A processing record that has everything that a change can write: attempts, an answer, room to make. */
      async function busy(): Promise<RequestRecord> {
        const record = aRequest();
        await accept(record, { parts: [part("body", "b"), part("answer", "old")] });
        return take(record, starts(owner), isThrottled(), starts(owner));
      }

      test.each(staleExpectations)(
        "that expects another %s is a conflict and writes nothing",
        async (_, other) => {
          const record = await busy();
          const before = await stored(record.id);
          const change: Change = {
            kind: "change",
            transition: { ...walk(record, completes())[0]!, keepThrottled: 0 },
            parts: [part("answer_head", "h"), part("answer", "new", 1)],
            dropAnswer: true,
          };
          const expected = { ...change.transition.expect, ...other(change.transition.expect, owner) };
          const stale: Change = { ...change, transition: { ...change.transition, expect: expected } };
          expect(await store.commit(stale)).toEqual({ status: "conflict", current: record });
          expect(await stored(record.id)).toEqual(before);
          await commit(change);
        },
      );

      test("that expects an owner where there is none is a conflict and writes nothing", async () => {
        const record = await accept(aRequest());
        const [transition] = walk(record, starts(owner));
        const stale: Transition = { ...transition!, expect: { ...transition!.expect, owner } };
        expect(await store.commit({ kind: "change", transition: stale })).toEqual({
          status: "conflict",
          current: record,
        });
        expect(await stored(record.id)).toEqual({ ...nothing, record });
      });

      test("of a request that does not exist is a conflict without a current record", async () => {
        const bystander = await accept(aRequest());
        const [transition] = walk(aRequest(), starts(owner));
        const change: Change = { kind: "change", transition: transition!, parts: [part("answer", "a")] };
        expect(await store.commit(change)).toEqual({ status: "conflict", current: undefined });
        expect(await stored(transition!.record.id)).toEqual(nothing);
        expect(await stored(bystander.id)).toEqual({ ...nothing, record: bystander });
      });

      test("of one request leaves the others as they are", async () => {
        const bystander = await accepted(aRequest(), starts(owner));
        const before = await stored(bystander.id);
        await accepted(aRequest(), starts(owner), completes());
        expect(await stored(bystander.id)).toEqual(before);
      });

      test("of many that claim one request, exactly one is applied", async () => {
        const record = await accept(aRequest());
        const claims = Array.from({ length: 10 }, (_, i) => {
          const [transition] = walk(record, starts({ ...owner, epoch: owner.epoch + i }));
          return transition!;
        });
        const results = await Promise.all(
          claims.map((transition) => store.commit({ kind: "change", transition })),
        );
        const winner = results.findIndex(({ status }) => status === "applied");
        const won = claims[winner]!;
        for (const [i, result] of results.entries()) {
          expect(result).toEqual(
            i === winner ? { status: "applied" } : { status: "conflict", current: won.record },
          );
        }
        expect(await stored(record.id)).toEqual({
          record: won.record,
          attempts: [attemptUnderWay(won.record)],
          parts: [],
        });
      });

      const walks: [string, (owner: Owner) => Move[]][] = [
        ["completed at the first attempt", (by) => [starts(by), completes()]],
        [
          "completed after two retries",
          (by) => [starts(by), retries(), starts(by), retries(), starts(by), completes()],
        ],
        ["failed at an attempt", (by) => [starts(by), fails()]],
        ["failed without one", () => [givesUp()]],
        ["failed while it waits for the next one", (by) => [starts(by), retries(), givesUp()]],
        ["cancelled before it starts", () => [isCancelled()]],
        ["cancelled under way", (by) => [starts(by), isCancelled()]],
        ["rerouted and completed", (by) => [isRerouted("other/gpt"), starts(by), completes()]],
        ["revived and completed", (by) => [givesUp(), isRevived(), starts(by), completes()]],
        ["revived and cancelled again", (by) => [starts(by), fails(), isRevived(), isCancelled()]],
      ];

      test.each(walks)("follows a request that is %s", async (_, moves) => {
        const record = await accept(aRequest());
        const ended: Transition["attempt"][] = [];
        for (const transition of walk(record, ...moves(owner))) {
          await commit({ kind: "change", transition });
          const { attempt, record: moved } = transition;
          if (attempt) ended.push(attempt);
          const underWay = moved.state === "processing" ? [attemptUnderWay(moved)] : [];
          expect(await store.get(record.id)).toEqual(moved);
          expect(await store.attempts(record.id)).toEqual([...ended, ...underWay]);
        }
      });

      test("drops the answer of the round before, and nothing else, in the step that writes a new one", async () => {
        const record = await accept(aRequest(), { parts: [part("head", "h"), part("body", "b")] });
        const [begun, ended] = walk(record, starts(owner), completes());
        const old = [part("answer_head", "old"), part("answer", "old"), part("answer", "old", 1)];
        await commit({ kind: "change", transition: begun! });
        await commit({ kind: "change", transition: ended!, parts: old });
        const other = await accept(aRequest(), { parts: [part("answer", "kept")] });

        const failed = { ...ended!.record, state: "failed", error: aFailure() } as RequestRecord;
        const again: Transition = { expect: { state: "completed", attempt: 1, round: 1 }, record: failed };
        const parts = [part("answer_head", "new"), part("answer", "new")];
        await commit({ kind: "change", transition: again, parts, dropAnswer: true });
        expect(shown(await store.parts(record.id, every))).toEqual(
          sorted(shown([part("head", "h"), part("body", "b"), ...parts])),
        );
        expect(await store.parts(other.id, ["answer"])).toHaveLength(1);

        const [revived] = walk(failed, isRevived());
        await commit({ kind: "change", transition: revived!, dropAnswer: true });
        expect(shown(await store.parts(record.id, every))).toEqual(
          sorted(shown([part("head", "h"), part("body", "b")])),
        );
      });

      test("keeps the newest throttled attempts, as many as it says, and all others", async () => {
        const throttled = [starts(owner), isThrottled()];
        const record = await accepted(
          aRequest(),
          ...throttled,
          starts(owner),
          retries(),
          ...throttled,
          ...throttled,
        );
        const other = await accepted(aRequest(), ...throttled);
        const [transition] = walk(record, starts(owner));
        await commit({ kind: "change", transition: { ...transition!, keepThrottled: 1 } });
        expect((await store.attempts(record.id)).map(({ number }) => number)).toEqual([2, 4, 5]);
        expect(await store.attempts(other.id)).toHaveLength(1);
      });

      test("drops no attempt where there are no more than it may keep", async () => {
        const record = await accepted(aRequest(), starts(owner), isThrottled(), starts(owner), isThrottled());
        const [transition] = walk(record, starts(owner));
        await commit({ kind: "change", transition: { ...transition!, keepThrottled: 2 } });
        expect((await store.attempts(record.id)).map(({ number }) => number)).toEqual([1, 2, 3]);
      });
    });

    describe("what comes back is what went in", () => {
      const endings: [string, Partial<RequestRecord>][] = [
        ["processing", { state: "processing", endedAt: undefined }],
        ["failed", { state: "failed", endedAt: start + 12, owner: undefined }],
      ];

      test.each(endings)("of a record with every field set that is %s", async (_, over) => {
        const record = await accept(aFullRecord({ project: `Zoë's ${project}`, ...over }));
        expect(await store.get(record.id)).toEqual(record);
        expect(await store.list({ project: record.project, order: "asc", limit: 1 })).toEqual([record]);
      });

      test.each(endings)(
        "of a record that a change fills up until it is %s, and empties again",
        async (_, over) => {
          // What was erased only a new body brings back.
          const full = aFullRecord({ ...over, bodiesErasedAt: undefined });
          const { id, project, endpoint, model, priority, createdAt } = full;
          const { idempotencyKey, fingerprint, callHash, bodyHash, cachedFrom, tags } = full;
          const { origin, replayOf } = full;
          const fixed = { id, project, endpoint, model, priority, createdAt, origin, replayOf };
          const known = { idempotencyKey, fingerprint, callHash, bodyHash, cachedFrom, tags };
          const empty = aRequest({ ...fixed, ...known });
          await accept(empty);
          expect(await store.get(id)).toEqual(empty);
          const { state, attempt, round } = empty;
          await commit({ kind: "change", transition: { expect: { state, attempt, round }, record: full } });
          expect(await store.get(id)).toEqual(full);
          await commit({ kind: "change", transition: { expect: full, record: empty } });
          // All but the forks, which only grow.
          expect(await store.get(id)).toEqual({ ...empty, forks: full.forks });
        },
      );

      test("of a record with no optional field", async () => {
        const record = await accept(aRequest());
        const found = await store.get(record.id);
        expect(found).toEqual(record);
        expect(Object.keys(found!).filter((name) => found![name as keyof RequestRecord] === null)).toEqual(
          [],
        );
      });

      test.each(["interactive", "default", "batch"] as const)("of the priority %s", async (priority) => {
        const record = await accept(aRequest({ priority }));
        expect(await store.get(record.id)).toEqual(record);
      });

      test("of a failure with and without a parameter", async () => {
        const bare = await accepted(aRequest(), givesUp(aFailure()));
        const named = await accepted(aRequest(), givesUp(aFailure({ param: "messages[0].content" })));
        expect((await store.get(bare.id))!.error).toEqual(aFailure());
        expect((await store.get(named.id))!.error).toEqual(aFailure({ param: "messages[0].content" }));
      });

      test("of an attempt with every field set, while it is under way and at its end", async () => {
        const processing = aFullRecord();
        await accept(processing);
        const begun = attemptUnderWay(processing);
        expect(await store.attempts(processing.id)).toEqual([begun]);
        const full = { ...aFullAttempt(), ...begun, counted: true };
        const record: RequestRecord = { ...processing, state: "retrying", owner: undefined };
        await commit({ kind: "change", transition: { expect: processing, record, attempt: full } });
        expect(await store.attempts(processing.id)).toEqual([full]);
      });

      test("of an attempt with no optional field, and gives no null", async () => {
        const record = await accepted(aRequest(), starts(owner));
        const [attempt] = await store.attempts(record.id);
        expect(attempt).toEqual(
          anAttempt({ requestId: record.id, dueAt: record.dueAt, startedAt: record.updatedAt }),
        );
        expect(Object.values(attempt!)).not.toContain(null);
      });

      const large = new Uint8Array(2 ** 20).map((_, i) => (i * 31 + (i >> 8)) & 0xff);
      const bodies: [string, Uint8Array][] = [
        ["an empty body", new Uint8Array(0)],
        ["an empty buffer", Buffer.alloc(0)],
        ["a body of one megabyte", large],
        ["bytes that are no UTF-8", Uint8Array.of(0xff, 0xfe, 0x00, 0xc3, 0x28, 0x80, 0x00)],
        ["every byte", Uint8Array.from({ length: 256 }, (_, i) => i)],
        ["text", Buffer.from('{"a":"日本語 🦉"}')],
        ["a slice of a larger buffer", large.subarray(1000, 1010)],
        ["an empty slice of a larger buffer", large.subarray(1000, 1000)],
        ["a slice up to the end of a larger buffer", Buffer.from(large.buffer).subarray(2 ** 20 - 3)],
      ];

      test.each(bodies)("of %s, in a request and in an answer", async (_, body) => {
        const record = await accept(aRequest(), { parts: [{ kind: "body", seq: 0, bytes: body }] });
        const [begun, ended] = walk(record, starts(owner), completes());
        await commit({ kind: "change", transition: begun! });
        await commit({
          kind: "change",
          transition: ended!,
          parts: [part("answer_head", "h"), { kind: "answer", seq: 0, bytes: body }],
        });
        const parts = await store.parts(record.id, ["body", "answer"]);
        for (const { bytes } of parts) expect(bytes).toBeInstanceOf(Uint8Array);
        expect(shown(parts)).toEqual(
          sorted(
            shown([
              { kind: "body", seq: 0, bytes: body },
              { kind: "answer", seq: 0, bytes: body },
            ]),
          ),
        );
      });
    });

    describe("parts", () => {
      test("come in the order of their numbers, whatever order they were written in", async () => {
        const order = [10, 2, 0, 100, 9, 1];
        const record = await accept(aRequest(), {
          parts: order.flatMap((seq) => [part("answer", `a${seq}`, seq), part("body", `b${seq}`, seq)]),
        });
        for (const kind of ["answer", "body"] as const) {
          const seqs = (await store.parts(record.id, [kind])).map(({ seq }) => seq);
          expect(seqs).toEqual([0, 1, 2, 9, 10, 100]);
        }
        const both = await store.parts(record.id, ["body", "answer"]);
        expect(both).toHaveLength(12);
        expect(both.filter(({ kind }) => kind === "body").map(({ seq }) => seq)).toEqual([
          0, 1, 2, 9, 10, 100,
        ]);
      });

      test("are those of the kinds and of the request that were asked for", async () => {
        const parts = every.map((kind) => part(kind, kind));
        const record = await accept(aRequest(), { parts });
        await accept(aRequest(), { parts: [part("body", "another request's")] });
        expect(shown(await store.parts(record.id, ["body"]))).toEqual(shown([part("body", "body")]));
        expect(shown(await store.parts(record.id, ["answer_head", "answer"]))).toEqual(
          sorted(shown([part("answer_head", "answer_head"), part("answer", "answer")])),
        );
        expect(await store.parts(record.id, [])).toEqual([]);
      });
    });

    describe("attempts", () => {
      test("come in the order of their numbers", async () => {
        const moves = Array.from({ length: 11 }, () => [starts(owner), retries()]).flat();
        const record = await accepted(aRequest(), ...moves);
        const numbers = (await store.attempts(record.id)).map(({ number }) => number);
        expect(numbers).toEqual(Array.from({ length: 11 }, (_, i) => i + 1));
      });
    });

    describe("the record of an answer's id", () => {
      const answered = (project: string, responseId: string) =>
        accepted(aRequest({ project }), starts(owner), completes({ responseId }));

      test("is the newest one of the project", async () => {
        await answered(project, "chatcmpl-1");
        const newest = await answered(project, "chatcmpl-1");
        await answered(project, "chatcmpl-2");
        expect(await store.byResponse(project, "chatcmpl-1")).toEqual(newest);
      });

      test("is never one of another project", async () => {
        const mine = await answered(project, "chatcmpl-1");
        await answered(other, "chatcmpl-1");
        await answered(other, "chatcmpl-2");
        expect(await store.byResponse(project, "chatcmpl-1")).toEqual(mine);
        expect(await store.byResponse(project, "chatcmpl-2")).toBeUndefined();
      });

      test("is unknown before the answer", async () => {
        await accepted(aRequest(), starts(owner));
        expect(await store.byResponse(project, "chatcmpl-1")).toBeUndefined();
      });
    });

    describe("waiting requests", () => {
      eachOpens(open, (one) => use(one ?? shared));
      const lane = "fake/gpt-test";
      let group: GroupKey;
      beforeEach(() => {
        group = { lane, priority: "default", project };
      });
      const key = ({ lane, priority, project }: ReadyGroup) => `${lane} ${priority} ${project}`;

      /** One request of each state that does not wait. */
      async function bystanders(): Promise<void> {
        await accepted(aRequest(), starts(owner));
        await accepted(aRequest(), starts(owner), completes());
        await accepted(aRequest(), givesUp());
        await accepted(aRequest(), isCancelled());
      }

      test("are counted by lane, priority and project", async () => {
        expect(await store.groups()).toEqual([]);
        await bystanders();
        expect(await store.groups()).toEqual([]);
        await acceptAll(
          aRequest(),
          aRequest({ dueAt: start + 1e9 }),
          aRequest({ priority: "interactive" }),
          aRequest({ priority: "batch" }),
          aRequest({ project: other }),
          aRequest({ lane: "fake/other" }),
        );
        await accepted(aRequest(), starts(owner), retries());
        const groups = (await store.groups()).toSorted((a, b) => (key(a) < key(b) ? -1 : 1));
        expect(groups).toEqual([
          { lane, priority: "batch", project, count: 1 },
          { lane, priority: "default", project, count: 3 },
          { lane, priority: "default", project: other, count: 1 },
          { lane, priority: "interactive", project, count: 1 },
          { lane: "fake/other", priority: "default", project, count: 1 },
        ]);
      });

      test("of a group come in the order of their instants, then of their ids", async () => {
        const [a, b, c, d] = [anId(), anId(), anId(), anId()];
        await acceptAll(
          aRequest({ id: d, dueAt: start + 1 }),
          aRequest({ id: a, dueAt: start + 20 }),
          aRequest({ id: c, dueAt: start + 3 }),
          aRequest({ id: b, dueAt: start + 3 }),
        );
        expect(ids(await store.heads(group, 10))).toEqual([d, b, c, a]);
        expect(ids(await store.heads(group, 2))).toEqual([d, b]);
      });

      test("of a group are whole records, and those of that group alone", async () => {
        const mine = await accept(aRequest());
        const retrying = await accepted(aRequest(), starts(owner), retries({}, 5000));
        await acceptAll(
          aRequest({ priority: "batch" }),
          aRequest({ project: other }),
          aRequest({ lane: "fake/other" }),
        );
        await bystanders();
        expect(await store.heads(group, 10)).toEqual([mine, retrying]);
        expect(await store.heads({ ...group, project: `${project}-nobody` }, 10)).toEqual([]);
      });

      test("move with their lane, and leave when they start", async () => {
        const record = await accept(aRequest());
        const moved = await take(record, isRerouted("other/gpt"));
        expect(await store.heads(group, 10)).toEqual([]);
        expect(await store.heads({ ...group, lane: "other/gpt" }, 10)).toEqual([moved]);
        await take(moved, starts(owner));
        expect(await store.heads({ ...group, lane: "other/gpt" }, 10)).toEqual([]);
      });

      test("expire in the order of their deadlines, over all lanes", async () => {
        const records = [
          aRequest({ deadlineAt: start + 30, lane: "fake/b" }),
          aRequest({ deadlineAt: start + 10, lane: "fake/b", project: other }),
          aRequest({ deadlineAt: start + 20, lane: "fake/a", priority: "batch" }),
          aRequest({ deadlineAt: start + 40, lane: "fake/a" }),
        ];
        await acceptAll(...records);
        const order = [1, 2, 0, 3].map((i) => records[i]!);
        expect(await store.expiring({ limit: 10 })).toEqual(order);
        expect(await store.expiring({ limit: 2 })).toEqual(order.slice(0, 2));
      });

      test("expire in the order of their deadlines, in one lane", async () => {
        const records = [
          aRequest({ deadlineAt: start + 30, lane: "fake/b" }),
          aRequest({ deadlineAt: start + 10, lane: "fake/a" }),
          aRequest({ deadlineAt: start + 20, lane: "fake/b" }),
        ];
        await acceptAll(...records);
        expect(await store.expiring({ lane: "fake/b", limit: 10 })).toEqual([records[2], records[0]]);
        expect(await store.expiring({ lane: "fake/b", limit: 1 })).toEqual([records[2]]);
        expect(await store.expiring({ lane: "fake/c", limit: 10 })).toEqual([]);
      });

      test("say until when their lane was told to wait", async () => {
        const [first, later] = [
          await accepted(aRequest({ lane: "fake/told" }), starts(owner), isThrottled()),
          await accepted(
            aRequest({ lane: "fake/told" }),
            starts(owner),
            retries(),
            starts(owner),
            isThrottled(),
          ),
        ];
        await accept(aRequest({ lane: "fake/told", dueAt: start + 99_999 }));
        await accepted(aRequest({ lane: "fake/error" }), starts(owner), retries());
        await accepted(
          aRequest({ lane: "fake/past" }),
          starts(owner),
          isThrottled(),
          starts(owner),
          retries(),
        );
        await accepted(aRequest({ lane: "fake/over" }), starts(owner), isThrottled(), isCancelled());
        expect(later.dueAt).toBeGreaterThan(first.dueAt);
        expect(await store.toldToWait(start)).toEqual([{ lane: "fake/told", until: later.dueAt }]);
        expect(await store.toldToWait(later.dueAt)).toEqual([]);
      });

      test("are the only ones that expire", async () => {
        await bystanders();
        const retrying = await accepted(aRequest(), starts(owner), retries());
        const revived = await accepted(aRequest(), givesUp(), isRevived());
        expect(ids(await store.expiring({ limit: 10 }))).toEqual([retrying.id, revived.id]);
        expect(ids(await store.expiring({ lane, limit: 10 }))).toEqual([retrying.id, revived.id]);
      });
    });

    describe("a wall clock that is set", () => {
      eachOpens(open, (one) => use(one ?? shared));
      const before = start + 100_000;

      test.each([3_600_000, -3_600_000])("by %i ms takes along what was to be in a while", async (byMs) => {
        const whole = { deadlineAt: start + 1e9 };
        const due = await accept(aRequest({ ...whole, dueAt: before }));
        const scheduled = await accept(aRequest({ ...whole, dueAt: before + 1 }));
        const retrying = await accepted(aRequest(whole), starts(owner), retries({}, 500_000));
        const processing = await accepted(aRequest({ ...whole, dueAt: before + 1 }), starts(owner));
        expect(retrying.dueAt).toBeGreaterThan(before);
        await commit({ kind: "clock_set", byMs, before });
        const moved = async ({ id, deadlineAt, dueAt }: RequestRecord) => {
          const now = (await store.get(id))!;
          return { deadline: now.deadlineAt - deadlineAt, due: now.dueAt - dueAt };
        };
        expect(await moved(due)).toEqual({ deadline: byMs, due: byMs });
        expect(await moved(scheduled)).toEqual({ deadline: byMs, due: 0 });
        expect(await moved(retrying)).toEqual({ deadline: byMs, due: byMs });
        expect(await moved(processing)).toEqual({ deadline: byMs, due: 0 });
      });

      test("leaves what is over as it was, and the times at which things happened", async () => {
        const over = [
          await accepted(aRequest(), starts(owner), completes()),
          await accepted(aRequest(), starts(owner), fails()),
          await accepted(aRequest(), isCancelled()),
        ];
        const live = await accepted(aRequest(), starts(owner), retries());
        const attempts = await store.attempts(live.id);
        await commit({ kind: "clock_set", byMs: 3_600_000, before });
        for (const record of over) expect(await store.get(record.id)).toEqual(record);
        expect(await store.get(live.id)).toEqual({
          ...live,
          deadlineAt: live.deadlineAt + 3_600_000,
          dueAt: live.dueAt + 3_600_000,
        });
        expect(await store.attempts(live.id)).toEqual(attempts);
      });

      test("is followed by changes of those that were under way", async () => {
        const live = await accepted(aRequest(), starts(owner));
        await commit({ kind: "clock_set", byMs: -3_600_000, before });
        const done = await take(live, completes());
        expect(await store.get(live.id)).toMatchObject({ state: "completed", endedAt: done.endedAt });
      });
    });

    describe("interrupted requests", () => {
      eachOpens(open, (one) => use(one ?? shared));
      test("are those that an earlier start of this node left processing", async () => {
        const of = (by: Owner, ...moves: Move[]) => accepted(aRequest(), starts(by), ...moves);
        const before = { ...owner, epoch: owner.epoch - 1 };
        const long = { ...owner, epoch: owner.epoch - 10 };
        const mine = [await of(before), await of(long)];
        await of(owner);
        await of({ ...owner, epoch: owner.epoch + 1 });
        await of({ node: "another", epoch: owner.epoch - 1 });
        await of(before, retries());
        await of(before, completes());
        await of(before, isCancelled());
        await accept(aRequest());
        const byId = (records: RequestRecord[]) => records.toSorted((a, b) => (a.id < b.id ? -1 : 1));
        expect(byId(await store.interrupted(owner, 10))).toEqual(mine);
        const [one, ...more] = await store.interrupted(owner, 1);
        expect(ids(mine)).toContain(one!.id);
        expect(more).toEqual([]);
      });

      test("are found after a new start, with everything that was committed before", async ({ skip }) => {
        if (!opened.reopen) return skip();
        const parts = [part("head", "h"), part("body", "b")];
        const waiting = await accept(aRequest(), { parts, key: { project: "p", endpoint: "/e", key: "k" } });
        const processing = await accepted(aRequest(), starts(owner));
        const ended = await accepted(aRequest(), starts(owner), completes());
        const all = [waiting, processing, ended].map(({ id }) => id);
        const before = await Promise.all(all.map(stored));
        expect(await store.interrupted(owner, 10)).toEqual([]);

        const first = owner;
        ({ store, owner } = await opened.reopen());
        expect(owner.node).toBe(first.node);
        expect(owner.epoch).toBeGreaterThan(first.epoch);
        expect(await Promise.all(all.map(stored))).toEqual(before);
        expect(await store.byKey("p", "/e", "k")).toEqual(waiting);
        expect(await store.interrupted(owner, 10)).toEqual([processing]);
        await take(processing, retries({ verdict: "ambiguous" }));
        expect(await store.interrupted(owner, 10)).toEqual([]);
      });
    });

    describe("a watcher", () => {
      /** Remembers what it is told. */
      function watcher() {
        const heard: Ended[] = [];
        return { heard, hear: (ended: Ended) => void heard.push(ended) };
      }

      test("is told once, with the record and the answer", async () => {
        const record = await accepted(aRequest(), starts(owner));
        const { heard, hear } = watcher();
        store.watch(record.id, hear);
        const [transition] = walk(record, fails());
        const parts = [part("answer_head", "h"), part("answer", "a")];
        await commit({ kind: "change", transition: transition!, parts });
        expect(heard.map((ended) => ({ ...ended, answer: shown(ended.answer) }))).toEqual([
          { record: transition!.record, answer: shown(parts) },
        ]);
        const revived = await take(transition!.record, isRevived());
        await take(revived, isCancelled());
        expect(heard).toHaveLength(1);
      });

      test("is told when the end has been committed, not before", async () => {
        const record = await accepted(aRequest(), starts(owner));
        const [transition] = walk(record, completes());
        const read = new Promise((resolve, reject) => {
          store.watch(record.id, () => {
            stored(record.id).then(resolve, reject);
          });
        });
        await commit({ kind: "change", transition: transition!, parts: [part("answer", "a")] });
        expect(await read).toEqual({
          record: transition!.record,
          attempts: [transition!.attempt],
          parts: shown([part("answer", "a")]),
        });
      });

      const ends: [string, (owner: Owner) => Move[]][] = [
        ["completed", (by) => [starts(by), completes()]],
        ["failed at an attempt", (by) => [starts(by), fails()]],
        ["given up", () => [givesUp()]],
        ["cancelled", () => [isCancelled()]],
      ];

      test.each(ends)("is told that a request was %s, and of no step before", async (_, moves) => {
        const record = await accept(aRequest());
        const { heard, hear } = watcher();
        store.watch(record.id, hear);
        const taken = walk(record, isRerouted("other/gpt"), starts(owner), retries(), ...moves(owner));
        for (const transition of taken) {
          expect(heard).toEqual([]);
          await commit({ kind: "change", transition });
        }
        expect(heard).toEqual([{ record: taken.at(-1)!.record, answer: [] }]);
      });

      test("may wait before the request is accepted", async () => {
        const record = aRequest();
        const { heard, hear } = watcher();
        store.watch(record.id, hear);
        await accepted(record, isCancelled());
        expect(heard).toHaveLength(1);
      });

      test("is not told of a change that is a conflict", async () => {
        const record = await accepted(aRequest(), starts(owner));
        const { heard, hear } = watcher();
        store.watch(record.id, hear);
        const [transition] = walk(record, completes());
        const stale = { ...transition!, expect: { ...transition!.expect, attempt: 9 } };
        const result = await store.commit({
          kind: "change",
          transition: stale,
          parts: [part("answer", "a")],
        });
        expect(result.status).toBe("conflict");
        expect(heard).toEqual([]);
        await take(record, isCancelled());
        expect(heard.map(({ record }) => record.state)).toEqual(["cancelled"]);
      });

      test("is not told of another request", async () => {
        const record = await accept(aRequest());
        const { heard, hear } = watcher();
        store.watch(record.id, hear);
        await accepted(aRequest(), isCancelled());
        expect(heard).toEqual([]);
      });

      test("is not told once it has stopped watching", async () => {
        const record = await accept(aRequest());
        const { heard, hear } = watcher();
        const stop = store.watch(record.id, hear);
        stop();
        stop();
        await take(record, isCancelled());
        stop();
        expect(heard).toEqual([]);
      });

      test("is told beside others, and stops for itself alone", async () => {
        const record = await accept(aRequest());
        const those = [watcher(), watcher(), watcher()];
        const stops = those.map(({ hear }) => store.watch(record.id, hear));
        stops[1]!();
        await take(record, isCancelled());
        expect(those.map(({ heard }) => heard.length)).toEqual([1, 0, 1]);
      });

      test("may stop watching while it is told", async () => {
        const record = await accept(aRequest());
        const told: string[] = [];
        const stop = store.watch(record.id, () => {
          told.push("first");
          stop();
        });
        store.watch(record.id, () => told.push("second"));
        const cancelled = await take(record, isCancelled());
        expect(told).toEqual(["first", "second"]);
        const again = await take(cancelled, isRevived());
        store.watch(record.id, () => told.push("third"));
        stop();
        await take(again, isCancelled());
        expect(told).toEqual(["first", "second", "third"]);
      });

      test("may watch again while it is told, for the next end", async () => {
        const record = await accept(aRequest());
        const rounds: number[] = [];
        const hear = ({ record }: Ended) => {
          rounds.push(record.round);
          store.watch(record.id, hear);
        };
        store.watch(record.id, hear);
        await take(record, isCancelled(), isRevived(), isCancelled());
        expect(rounds).toEqual([1, 2]);
      });
    });

    describe("many commits at once", () => {
      test("all get their own answers, in order", async () => {
        const records = Array.from({ length: 600 }, () => aRequest());
        const answered: number[] = [];
        const results = await Promise.all(
          records.map(async (record, i) => {
            // Two want each key; the second is behind the first, in another batch perhaps.
            const key = { project, endpoint: "/e", key: `k${i % 400}` };
            const change: Accept = { kind: "accept", record, parts: [part("body", `${i}`)], key };
            const result = await store.commit(change);
            answered.push(i);
            return result;
          }),
        );
        expect(answered).toEqual(records.map((_, i) => i));
        for (const [i, result] of results.entries()) {
          expect(result).toEqual(
            i < 400 ? { status: "applied" } : { status: "conflict", current: records[i - 400] },
          );
        }
        const listed = await store.list({ project, order: "asc", limit: 1000 });
        expect(ids(listed)).toEqual(ids(records.slice(0, 400)));
        expect(shown(await store.parts(records[399]!.id, ["body"]))).toEqual(shown([part("body", "399")]));
      });

      test("of one request are applied in the order in which they came", async () => {
        const records = Array.from({ length: 60 }, () => aRequest());
        const moves = [starts(owner), retries(), starts(owner), completes()];
        const results = await Promise.all(
          records.flatMap((record) => [
            store.commit({ kind: "accept", record, parts: [] }),
            ...walk(record, ...moves).map((transition) => store.commit({ kind: "change", transition })),
          ]),
        );
        expect(results.every(({ status }) => status === "applied")).toBe(true);
        const states = (await store.list({ project, order: "asc", limit: 100 })).map((one) => one.state);
        expect(states).toEqual(records.map(() => "completed"));
      });

      test("leave reads consistent: a request is never seen without its parts", async () => {
        const records = Array.from({ length: 50 }, () => aRequest());
        const committed = Promise.all(
          records.map((record) => store.commit({ kind: "accept", record, parts: [part("body", "b")] })),
        );
        for (const { id } of records) {
          if (await store.get(id)) expect(await store.parts(id, ["body"])).toHaveLength(1);
        }
        await committed;
      });
    });

    orphanConformance(open);
    streamConformance(open);
    learnedConformance(open);
    ledgerConformance(open);

    test("has space for new work", () => {
      expect(store.hasSpace()).toBe(true);
    });
  });
}

/** A store for each test of a block: for what is read of all projects together. */
function eachOpens(open: () => Promise<Opened>, use: (one?: Opened) => void): void {
  let own: Opened;
  beforeEach(async () => {
    own = await open();
    use(own);
  });
  afterEach(async () => {
    await own.close();
    use();
  });
}

/** Kinds come in the order of their names. */
function sorted<P extends { kind: string; seq: number }>(parts: P[]): P[] {
  return parts.toSorted((a, b) => (a.kind < b.kind ? -1 : a.kind > b.kind ? 1 : a.seq - b.seq));
}
