/** What every store has to do with the events of streams. */

import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { StorageError } from "../../src/core/errors.ts";
import type { ChangeSet, CommitResult, EventBatch, EventsWritten } from "../../src/core/ports.ts";
import type { RequestRecord } from "../../src/core/request.ts";
import {
  aRecord,
  completes,
  isCancelled,
  isRevived,
  retries,
  staleExpectations,
  starts,
  walk,
} from "../support/builders.ts";
import type { Opened } from "./conformance.ts";

type EventsChange = Extract<ChangeSet, { kind: "events" }>;

const applied: CommitResult = { status: "applied" };
const unlimited = Number.MAX_SAFE_INTEGER;
const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString();
const batch = (after: number, ...data: string[]): EventsWritten => ({
  after,
  bytes: Buffer.from(data.join("\n")),
  anew: false,
});
const anew = (...data: string[]): EventsWritten => ({ ...batch(0, ...data), anew: true });
/** As it is read, with its data. */
const shown = (batches: EventBatch[]) => batches.map(({ after, bytes }) => [after, text(bytes)]);

export function streamConformance(open: () => Promise<Opened>): void {
  describe("a stream", () => {
    let opened: Opened;
    let record: RequestRecord;
    beforeAll(async () => {
      opened = await open();
    });
    beforeEach(async () => {
      record = await streaming();
    });
    afterAll(() => opened.close());

    const commit = (change: ChangeSet) => opened.store.commit(change);

    /** A stored request whose first attempt is under way. */
    async function streaming(): Promise<RequestRecord> {
      const waiting = aRecord();
      const [begun] = walk(waiting, starts(opened.owner));
      expect(await commit({ kind: "accept", record: waiting, parts: [] })).toEqual(applied);
      expect(await commit({ kind: "change", transition: begun! })).toEqual(applied);
      return begun!.record;
    }

    const eventsOf = (of: RequestRecord, events: EventsWritten, forks = of.forks): EventsChange => {
      const { state, attempt, round, owner } = of;
      return { kind: "events", id: of.id, expect: { state, attempt, round, owner }, forks, events };
    };

    async function write(...batches: EventsWritten[]): Promise<void> {
      for (const events of batches) expect(await commit(eventsOf(record, events))).toEqual(applied);
    }

    const read = async (after = 0, maxBytes = unlimited, { id } = record) =>
      shown(await opened.store.events(id, after, maxBytes));

    /** Everything of the request that events could touch. */
    const stored = async ({ id } = record) => ({
      record: await opened.store.get(id),
      events: shown(await opened.store.events(id, 0, unlimited)),
    });

    test("has its events in their order, and the record as it was", async () => {
      await write(batch(0, "a", "b"), batch(2, "c"), batch(3, "d", "e", "f"));
      expect(await stored()).toEqual({
        record,
        events: [
          [0, "a\nb"],
          [2, "c"],
          [3, "d\ne\nf"],
        ],
      });
    });

    test("has none before the first, and a request that is not there has none either", async () => {
      expect(await read()).toEqual([]);
      expect(await read(5)).toEqual([]);
      expect(await opened.store.events("req_none", 0, unlimited)).toEqual([]);
    });

    test("is read from the batch on that holds the next event, and its last batch where there is none", async () => {
      await write(batch(0, "a", "b"), batch(2, "c"), batch(3, "d", "e", "f"));
      const first: Record<number, number> = { 0: 0, 1: 0, 2: 2, 3: 3, 4: 3, 5: 3 };
      for (const [after, expected] of Object.entries(first)) {
        const found = await read(Number(after));
        expect(found[0]![0], `after ${after}`).toBe(expected);
        expect(found.at(-1)![0], `after ${after}`).toBe(3);
      }
      for (const after of [6, 7, 1000]) expect(await read(after), `after ${after}`).toEqual([[3, "d\ne\nf"]]);
    });

    test("is read up to the batch that reaches the limit, and then on from there", async () => {
      await write(batch(0, "aaaa", "bbbb"), batch(2, "cccc"), batch(3, "dddd"), batch(4, "eeee"));
      expect((await read(0, 1)).map(([after]) => after)).toEqual([0]);
      expect((await read(0, 9)).map(([after]) => after)).toEqual([0]);
      expect((await read(0, 10)).map(([after]) => after)).toEqual([0, 2]);
      expect((await read(0, 13)).map(([after]) => after)).toEqual([0, 2]);
      expect((await read(0, 14)).map(([after]) => after)).toEqual([0, 2, 3]);
      expect((await read(1, 1)).map(([after]) => after)).toEqual([0]);
      expect((await read(2, 1)).map(([after]) => after)).toEqual([2]);
      expect((await read(4, 1)).map(([after]) => after)).toEqual([4]);
      expect((await read(5, 1)).map(([after]) => after)).toEqual([4]);
    });

    test("is read to its end by a limit that is less than any batch", async () => {
      const data = Array.from({ length: 40 }, (_, i) => `event ${i + 1}`);
      for (let at = 0; at < data.length; at += 3) await write(batch(at, ...data.slice(at, at + 3)));
      const got: string[] = [];
      for (let rounds = 0; rounds < 100; rounds++) {
        const batches = await opened.store.events(record.id, got.length, 1);
        if (batches.length === 0) break;
        for (const { after, bytes } of batches)
          got.push(
            ...text(bytes)
              .split("\n")
              .slice(got.length - after),
          );
      }
      expect(got).toEqual(data);
    });

    test.each(staleExpectations)(
      "whose writer expects another %s is a conflict and writes nothing",
      async (_, stale) => {
        await write(batch(0, "a"));
        const before = await stored();
        const right = eventsOf(record, anew("b"), [0]);
        const wrong = { ...right.expect, ...stale(right.expect, opened.owner) };
        expect(await commit({ ...right, expect: wrong })).toEqual({ status: "conflict", current: record });
        expect(await stored()).toEqual(before);
        expect(await commit(right)).toEqual(applied);
        expect(await stored()).toEqual({ record: { ...record, forks: [0] }, events: [[0, "b"]] });
      },
    );

    test("of a request that does not exist is a conflict without a current record", async () => {
      const [nobody] = walk(aRecord(), starts(opened.owner));
      const change = eventsOf(nobody!.record, batch(0, "a"));
      expect(await commit(change)).toEqual({ status: "conflict", current: undefined });
      expect(await read(0, unlimited, nobody!.record)).toEqual([]);
    });

    test("of a request that has ended takes no more events", async () => {
      await write(batch(0, "a"));
      const [cancelled] = walk(record, isCancelled());
      expect(await commit({ kind: "change", transition: cancelled! })).toEqual(applied);
      expect(await commit(eventsOf(record, batch(1, "b")))).toEqual({
        status: "conflict",
        current: cancelled!.record,
      });
      expect(await read()).toEqual([[0, "a"]]);
    });

    test("that begins anew loses its events of before, and no other stream does", async () => {
      const other = await streaming();
      expect(await commit(eventsOf(other, batch(0, "x", "y")))).toEqual(applied);
      await write(batch(0, "a", "b"), batch(2, "c"));
      expect(await commit(eventsOf(record, anew("A"), [0]))).toEqual(applied);
      record = { ...record, forks: [0] };
      await write(batch(1, "B"));
      expect(await stored()).toEqual({
        record,
        events: [
          [0, "A"],
          [1, "B"],
        ],
      });
      expect(await stored(other)).toEqual({ record: other, events: [[0, "x\ny"]] });
    });

    test("that begins anew may have no event yet", async () => {
      await write(batch(0, "a"));
      expect(await commit(eventsOf(record, anew(), [0]))).toEqual(applied);
      expect(await stored()).toEqual({ record: { ...record, forks: [0] }, events: [] });
      expect(await commit(eventsOf(record, batch(0, "A"), [0]))).toEqual(applied);
      expect(await read()).toEqual([[0, "A"]]);
    });

    test("keeps its forks through all that comes later", async () => {
      await write(batch(0, "a", "b"));
      for (const forks of [[2], [2, 0], [2, 0, 12], [2, 0, 12, 2 ** 40]]) {
        expect(await commit(eventsOf(record, anew("a", "b"), forks))).toEqual(applied);
        record = { ...record, forks };
        expect(await opened.store.get(record.id)).toEqual(record);
      }
      for (const transition of walk(record, retries(), starts(opened.owner), completes())) {
        expect(await commit({ kind: "change", transition })).toEqual(applied);
        expect(await opened.store.get(record.id)).toEqual(transition.record);
        expect(transition.record.forks).toEqual([2, 0, 12, 2 ** 40]);
      }
    });

    test("keeps its forks where somebody who does not know the latest ends it", async () => {
      for (const forks of [[], [0], [0, 10]]) {
        const other = await streaming();
        expect(await commit(eventsOf(other, anew("A"), [0, 10]))).toEqual(applied);
        const [cancelled] = walk({ ...other, forks }, isCancelled());
        expect(await commit({ kind: "change", transition: cancelled! })).toEqual(applied);
        expect(await opened.store.get(other.id)).toEqual({ ...cancelled!.record, forks: [0, 10] });
      }
    });

    test("gets a new fork with a change too", async () => {
      for (const [forks, more] of [
        [[], [0]],
        [[0], [0, 0]],
        [[7], [7, 70]],
        [
          [0, 12],
          [0, 12, 1],
        ],
      ]) {
        const other = await streaming();
        expect(await commit(eventsOf(other, batch(0, "a"), forks))).toEqual(applied);
        const [ended] = walk({ ...other, forks: more! }, retries());
        expect(await commit({ kind: "change", transition: ended! })).toEqual(applied);
        expect((await opened.store.get(other.id))!.forks).toEqual(more);
      }
    });

    test("has its last events written in the step that ends it", async () => {
      await write(batch(0, "a"));
      const [ended] = walk(record, completes());
      const parts = [{ kind: "answer" as const, seq: 0, bytes: Buffer.from("whole") }];
      expect(await commit({ kind: "change", transition: ended!, parts, events: batch(1, "b", "c") })).toEqual(
        applied,
      );
      expect(await stored()).toEqual({
        record: ended!.record,
        events: [
          [0, "a"],
          [1, "b\nc"],
        ],
      });
      const [answer] = await opened.store.parts(record.id, ["answer"]);
      expect(text(answer!.bytes)).toBe("whole");
    });

    test("may begin anew in the step that ends it", async () => {
      await write(batch(0, "a"), batch(1, "b"));
      const [ended] = walk({ ...record, forks: [0] }, completes());
      expect(await commit({ kind: "change", transition: ended!, events: anew("A") })).toEqual(applied);
      expect(await stored()).toEqual({ record: ended!.record, events: [[0, "A"]] });
    });

    test("has no event of a change that is a conflict", async () => {
      await write(batch(0, "a"));
      const before = await stored();
      const [ended] = walk({ ...record, forks: [0] }, completes());
      const stale = { ...ended!, expect: { ...ended!.expect, attempt: 9 } };
      for (const events of [batch(1, "b"), anew("A")]) {
        const result = await commit({ kind: "change", transition: stale, events, dropAnswer: true });
        expect(result).toEqual({ status: "conflict", current: record });
        expect(await stored()).toEqual(before);
      }
    });

    test("is dropped with the answer of its round, and no other stream is", async () => {
      const other = await streaming();
      expect(await commit(eventsOf(other, batch(0, "x")))).toEqual(applied);
      await write(batch(0, "a"), batch(1, "b"));
      const [cancelled, revived] = walk(record, isCancelled(), isRevived());
      expect(await commit({ kind: "change", transition: cancelled! })).toEqual(applied);
      expect((await read()).length).toBe(2);
      expect(await commit({ kind: "change", transition: revived!, dropAnswer: true })).toEqual(applied);
      expect(await read()).toEqual([]);
      expect(await read(0, unlimited, other)).toEqual([[0, "x"]]);
    });

    test("may have new events in the step that drops the old ones", async () => {
      await write(batch(0, "a"), batch(1, "b"));
      const [ended] = walk(record, completes());
      const change: ChangeSet = {
        kind: "change",
        transition: ended!,
        events: batch(0, "A"),
        dropAnswer: true,
      };
      expect(await commit(change)).toEqual(applied);
      expect(await read()).toEqual([[0, "A"]]);
    });

    test("never has one batch in the place of another: that is a fault, and changes nothing", async () => {
      await write(batch(0, "a"), batch(1, "b"));
      const before = await stored();
      const others = [await streaming(), await streaming()];
      const [first, fault, behind] = await Promise.allSettled([
        commit(eventsOf(others[0]!, batch(0, "x"))),
        commit(eventsOf(record, batch(1, "B"), [1])),
        commit(eventsOf(others[1]!, batch(0, "y"))),
      ]);
      expect([first, behind]).toMatchObject(Array(2).fill({ status: "fulfilled", value: applied }));
      expect(fault.status).toBe("rejected");
      const { reason } = fault as PromiseRejectedResult;
      expect(reason).not.toBeInstanceOf(StorageError);
      expect(reason.message).toContain("UNIQUE");
      expect(await stored()).toEqual(before);
      expect(await read(0, unlimited, others[1])).toEqual([[0, "y"]]);
    });

    test("gets back the bytes that went in, of many streams that are written at once, beside all else", async () => {
      const large = Buffer.from("日本語 🦉 ".repeat(50_000));
      const sizes = [1, 17, 4000, 70_000, large.byteLength];
      const records = await Promise.all(Array.from({ length: 50 }, () => streaming()));
      const slice = (i: number) => large.subarray(0, sizes[i % sizes.length]);
      const added = records.map(() => aRecord());
      const changes = records.flatMap((of, i): ChangeSet[] => {
        const [ended] = walk(of, completes());
        const answer = [{ kind: "answer" as const, seq: 0, bytes: Buffer.from(`answer ${i}`) }];
        const body = [{ kind: "body" as const, seq: 0, bytes: Buffer.from(`body ${i}`) }];
        return [
          eventsOf(of, { after: 0, bytes: slice(i), anew: false }),
          { kind: "accept", record: added[i]!, parts: body },
          { kind: "answered", ids: ["req_none"] },
          {
            kind: "change",
            transition: ended!,
            parts: i % 2 === 0 ? answer : undefined,
            events: i % 3 === 0 ? undefined : { after: 1, bytes: slice(i + 1), anew: false },
          },
        ];
      });
      expect(await Promise.all(changes.map(commit))).toEqual(changes.map(() => applied));
      for (const [i, { id }] of records.entries()) {
        const found = await opened.store.events(id, 0, unlimited);
        for (const { bytes } of found) expect(bytes).toBeInstanceOf(Uint8Array);
        const expected = i % 3 === 0 ? [slice(i)] : [slice(i), slice(i + 1)];
        expect(found.map(({ bytes }) => Buffer.compare(bytes, expected.shift()!))).toEqual(
          found.map(() => 0),
        );
        expect(expected).toEqual([]);
        const [answer] = await opened.store.parts(id, ["answer"]);
        expect(answer && text(answer.bytes)).toBe(i % 2 === 0 ? `answer ${i}` : undefined);
        const [body] = await opened.store.parts(added[i]!.id, ["body"]);
        expect(text(body!.bytes)).toBe(`body ${i}`);
      }
    });

    test("is there after a new start, and goes on under the new owner alone", async ({ skip }) => {
      if (!opened.reopen) return skip();
      await write(batch(0, "a", "b"));
      const before = await stored();
      Object.assign(opened, await opened.reopen());
      expect(await stored()).toEqual(before);
      const [interrupted, begun] = walk(record, retries({ verdict: "ambiguous" }), starts(opened.owner));
      expect(await commit({ kind: "change", transition: interrupted! })).toEqual(applied);
      expect(await commit({ kind: "change", transition: begun! })).toEqual(applied);
      expect(await commit(eventsOf(record, batch(2, "old")))).toMatchObject({ status: "conflict" });
      expect(await commit(eventsOf(begun!.record, batch(2, "c"), [2]))).toEqual(applied);
      expect(await stored()).toEqual({
        record: { ...begun!.record, forks: [2] },
        events: [
          [0, "a\nb"],
          [2, "c"],
        ],
      });
    });
  });
}
