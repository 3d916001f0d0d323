/** What every store has to do for keyless calls whose callers go, asked through the port alone. */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { ChangeSet, CommitResult, Repeats } from "../../src/core/ports.ts";
import type { RequestRecord } from "../../src/core/request.ts";
import {
  aRecord,
  completes,
  fails,
  givesUp,
  isCancelled,
  type Move,
  retries,
  start,
  starts,
  walk,
} from "../support/builders.ts";
import type { Opened } from "./conformance.ts";

type Accept = Extract<ChangeSet, { kind: "accept" }>;

const hash = "ab".repeat(32);
const otherHash = "cd".repeat(32);
const minuteMs = 60_000;

/** A call that takes whatever there is, of whatever age. */
const anything: Repeats = { now: 0, orphanedAfter: 0, isRetry: true, failedAfter: 0 };
const applied: CommitResult = { status: "applied" };

export function orphanConformance(open: () => Promise<Opened>): void {
  describe("orphans", () => {
    let opened: Opened;
    beforeEach(async () => {
      opened = await open();
    });
    afterEach(() => opened.close());

    const aCall = (over: Partial<RequestRecord> = {}) => aRecord({ callHash: hash, ...over });

    async function commit(change: ChangeSet): Promise<void> {
      expect(await opened.store.commit(change)).toEqual(applied);
    }

    /** Stores a call, as it is after these steps. */
    async function accepted(record = aCall(), ...moves: Move[]): Promise<RequestRecord> {
      await commit({ kind: "accept", record, parts: [] });
      const taken = walk(record, ...moves);
      for (const transition of taken) await commit({ kind: "change", transition });
      return taken.at(-1)?.record ?? record;
    }

    const processing = (record = aCall()) => accepted(record, starts(opened.owner));
    const completed = (record = aCall()) => accepted(record, starts(opened.owner), completes());

    const orphan = ({ id }: RequestRecord, at: number, contentSent = false, forgetBefore = 0) =>
      commit({ kind: "orphaned", id, at, contentSent, forgetBefore });

    /** What an equal call gets. */
    function call(repeats: Repeats = anything, over: Partial<RequestRecord> = {}): Promise<CommitResult> {
      const change: Accept = { kind: "accept", record: aCall(over), parts: [], repeats };
      return opened.store.commit(change);
    }

    const adopted = (current: RequestRecord): CommitResult => ({ status: "adopted", current });
    const echoed = (current: RequestRecord): CommitResult => ({ status: "echoed", current });

    const restart = async () => {
      expect(opened.reopen).toBeDefined();
      opened = { ...opened, ...(await opened.reopen!()) };
    };
    const allOrphaned = (at: number, forgetBefore = 0) => commit({ kind: "all_orphaned", at, forgetBefore });

    const adoptable: [string, () => Promise<RequestRecord>][] = [
      ["waits for its first attempt", () => accepted()],
      ["is processing", () => processing()],
      ["waits for its next attempt", () => accepted(aCall(), starts(opened.owner), retries())],
      ["has completed", () => completed()],
    ];

    test.each(adoptable)("that %s is adopted, as it is now, by one call", async (_, made) => {
      const record = await made();
      await orphan(record, start);
      expect(await call()).toEqual(adopted(record));
      expect(await opened.store.get(record.id)).toEqual(record);
      expect(await call()).toEqual(applied);
    });

    test.each<[string, () => Promise<RequestRecord>]>([
      ["has failed", () => accepted(aCall(), starts(opened.owner), fails())],
      ["was cancelled", () => accepted(aCall(), isCancelled())],
    ])("that %s is not adopted", async (_, made) => {
      await orphan(await made(), start);
      expect(await call()).toEqual(applied);
    });

    test("that is past its deadline is nobody's, unless it has completed", async () => {
      const late = await processing();
      await orphan(late, start);
      const now = late.deadlineAt;
      expect(await call({ ...anything, now })).toEqual(applied);
      expect(await call({ ...anything, now: now - 1 })).toEqual(adopted(late));
      const done = await completed();
      await orphan(done, start);
      expect(await call({ ...anything, now })).toEqual(adopted(done));
    });

    test("is found by who only asks for one; where there is none nothing is written", async () => {
      const ask: ChangeSet = { kind: "repeat", callHash: hash, repeats: anything };
      expect(await opened.store.commit(ask)).toEqual({ status: "conflict", current: undefined });
      const record = await processing();
      await orphan(record, start);
      expect(await opened.store.commit(ask)).toEqual(adopted(record));
      expect(await opened.store.commit(ask)).toEqual({ status: "conflict", current: undefined });
    });

    test("is no call whose caller is there", async () => {
      await processing();
      await completed();
      expect(await call()).toEqual(applied);
    });

    test("is adopted instead of the call, of which nothing is written", async () => {
      const record = await processing();
      await orphan(record, start);
      const late = aCall({ project: "default" });
      const parts = [{ kind: "body" as const, seq: 0, bytes: new Uint8Array(3) }];
      const result = await opened.store.commit({ kind: "accept", record: late, parts, repeats: anything });
      expect(result).toEqual(adopted(record));
      expect(await opened.store.get(late.id)).toBeUndefined();
      expect(await opened.store.parts(late.id, ["body"])).toEqual([]);
    });

    test("is left alone by a call with another hash, and by one that does not ask", async () => {
      const record = await processing();
      await orphan(record, start);
      expect(await call(anything, { callHash: otherHash })).toEqual(applied);
      expect(await opened.store.commit({ kind: "accept", record: aCall(), parts: [] })).toEqual(applied);
      const keyless = aCall({ callHash: undefined });
      expect(
        await opened.store.commit({ kind: "accept", record: keyless, parts: [], repeats: anything }),
      ).toEqual(applied);
      expect(await call()).toEqual(adopted(record));
    });

    test("never becomes a request without a call hash", async () => {
      const record = await processing(aCall({ callHash: undefined }));
      await orphan(record, start);
      await allOrphaned(start);
      expect(await call()).toEqual(applied);
    });

    test("is given away oldest first: by when it became one, then by when it was accepted", async () => {
      const records = [];
      for (let i = 0; i < 5; i++) records.push(await processing());
      const [a, b, c, d, e] = records as [RequestRecord, ...RequestRecord[]];
      await orphan(e!, start + 1);
      await orphan(d!, start + 2);
      await orphan(b!, start + 2);
      await orphan(c!, start + 2);
      await orphan(a, start + 3);
      for (const next of [e, b, c, d, a]) expect(await call()).toEqual(adopted(next!));
      expect(await call()).toEqual(applied);
    });

    test("is given to exactly one of many calls that come at once", async () => {
      const records = [await processing(), await processing()];
      for (const record of records) await orphan(record, start);
      const results = await Promise.all(Array.from({ length: 20 }, () => call()));
      expect(results.slice(0, 2)).toEqual(records.map(adopted));
      expect(results.slice(2)).toEqual(Array(18).fill(applied));
    });

    test("is found by a call that is handed over behind it, also in the same breath", async () => {
      const record = await processing();
      const marked = orphan(record, start);
      expect(await call()).toEqual(adopted(record));
      await marked;
    });

    test("is one from its instant on, and not for a call that asks for younger ones", async () => {
      const record = await processing();
      await orphan(record, start);
      expect(await call({ ...anything, orphanedAfter: start })).toEqual(applied);
      expect(await call({ ...anything, orphanedAfter: start - 1 })).toEqual(adopted(record));
    });

    test("is as old as before when the wall clock is set", async () => {
      const record = await processing();
      await orphan(record, start);
      const there = await processing();
      await commit({ kind: "clock_set", byMs: minuteMs, before: start });
      const moved = async ({ id, deadlineAt }: RequestRecord) => {
        const now = (await opened.store.get(id))!;
        expect(now.deadlineAt).toBe(deadlineAt + minuteMs);
        return now;
      };
      expect(await call({ ...anything, orphanedAfter: start + minuteMs })).toEqual(applied);
      expect(await call({ ...anything, orphanedAfter: start + minuteMs - 1 })).toEqual(
        adopted(await moved(record)),
      );
      await moved(there);
      expect(await call()).toEqual(applied);
    });

    test("becomes one again when its adopter is lost, as young as that", async () => {
      const record = await processing();
      await orphan(record, start);
      expect(await call()).toEqual(adopted(record));
      await orphan(record, start + minuteMs);
      expect(await call({ ...anything, orphanedAfter: start + minuteMs - 1 })).toEqual(adopted(record));
    });

    test("keeps the instant at which it became one", async () => {
      const record = await processing();
      await orphan(record, start);
      await orphan(record, start + minuteMs);
      await allOrphaned(start + minuteMs);
      expect(await call({ ...anything, orphanedAfter: start })).toEqual(applied);
    });

    test("of which content was sent goes to retries alone, also after it was adopted and lost", async () => {
      const record = await completed();
      await orphan(record, start, true);
      const first = { ...anything, isRetry: false };
      expect(await call(first)).toEqual(applied);
      expect(await call()).toEqual(adopted(record));
      await orphan(record, start + 1, false);
      expect(await call(first)).toEqual(applied);
      expect(await call()).toEqual(adopted(record));
    });

    test("of which content was sent does not hide a younger one from others", async () => {
      const [read, unread] = [await completed(), await completed()];
      await orphan(read, start, true);
      await orphan(unread, start + 1);
      expect(await call({ ...anything, isRetry: false })).toEqual(adopted(unread));
      expect(await call({ ...anything, isRetry: false })).toEqual(applied);
    });

    test("never becomes a request that was answered", async () => {
      const answered = await completed();
      opened.store.answered(answered.id);
      const later = await completed();
      await orphan(answered, start);
      await allOrphaned(start);
      expect(await call()).toEqual(adopted(later));
      expect(await call()).toEqual(applied);
    });

    test("never becomes a request that does not exist, and to be answered means nothing to it", async () => {
      opened.store.answered("req_none");
      await orphan(aCall(), start);
      expect(await call()).toEqual(applied);
    });

    test("is no more, once it was adopted and answered", async () => {
      const record = await completed();
      await orphan(record, start);
      expect(await call()).toEqual(adopted(record));
      opened.store.answered(record.id);
      await processing(aCall({ callHash: otherHash }));
      await orphan(record, start + 1);
      expect(await call()).toEqual(applied);
    });

    test("is forgotten when it is too old, some with every new one, and no younger one with them", async () => {
      const old = [];
      for (let i = 0; i < 40; i++) old.push(await processing());
      for (const record of old) await orphan(record, start);
      const young = await processing();
      await orphan(young, start + 2);
      for (let i = 0; i < 3; i++) {
        const other = await processing(aCall({ callHash: otherHash }));
        await orphan(other, start + minuteMs, false, start);
      }
      expect(await call()).toEqual(adopted(young));
      expect(await call()).toEqual(applied);
      for (const { id } of old) expect(await opened.store.get(id)).toBeDefined();
    });

    test("is not forgotten on the instant before", async () => {
      const record = await processing();
      await orphan(record, start, false, start - 1);
      expect(await call()).toEqual(adopted(record));
    });

    test("survives a restart, as old as it was, and so does what keeps it from others", async () => {
      const [unread, read] = [await processing(), await completed()];
      await orphan(unread, start);
      await orphan(read, start + 1, true);
      await restart();
      expect(await call({ ...anything, orphanedAfter: start, isRetry: false })).toEqual(applied);
      expect(await call({ ...anything, isRetry: false })).toEqual(adopted(unread));
      expect(await call()).toEqual(adopted(read));
    });

    test("is what a restart makes of every call that was not answered; who completed may have been", async () => {
      const waiting = await accepted();
      const running = await processing();
      const done = await completed();
      const [failed, cancelled] = [
        await accepted(aCall(), starts(opened.owner), fails()),
        await accepted(aCall(), isCancelled()),
      ];
      const answered = await completed();
      opened.store.answered(answered.id);
      await commit({ kind: "accept", record: aRecord(), parts: [] });
      const adopter = await processing();
      await orphan(adopter, start);
      expect(await call()).toEqual(adopted(adopter));

      await restart();
      await allOrphaned(start + minuteMs);
      const first = { ...anything, isRetry: false, orphanedAfter: start + minuteMs - 1 };
      for (const one of [waiting, running, adopter]) expect(await call(first)).toEqual(adopted(one));
      expect(await call(first)).toEqual(applied);
      expect(await call()).toEqual(adopted(done));
      expect(await call()).toEqual(applied);
      for (const { id } of [failed, cancelled]) expect(await opened.store.get(id)).toBeDefined();
    });

    test("of which a restart finds a part of its stream goes to retries alone", async () => {
      const [read, unread] = [await processing(), await processing()];
      const { id, state, attempt, round, owner } = read;
      const events = { after: 0, bytes: Buffer.from("a\nb"), anew: false };
      await commit({ kind: "events", id, expect: { state, attempt, round, owner }, forks: [], events });
      await restart();
      await allOrphaned(start);
      const first = { ...anything, isRetry: false };
      expect(await call(first)).toEqual(adopted(unread));
      expect(await call(first)).toEqual(applied);
      expect(await call()).toEqual(adopted(read));
    });

    test("that is too old is forgotten by a restart", async () => {
      const [old, young] = [await processing(), await processing()];
      await orphan(old, start);
      await orphan(young, start + 1);
      await restart();
      await allOrphaned(start + minuteMs, start);
      expect(await call()).toEqual(adopted(young));
      expect(await call()).toEqual(applied);
    });

    describe("and echoes", () => {
      const inVain = (record = aCall()) => accepted(record, givesUp());

      test("a failure in vain is echoed, as often as it is asked for, and nothing is written", async () => {
        const record = await inVain();
        for (let i = 0; i < 3; i++) expect(await call()).toEqual(echoed(record));
        const late = aCall();
        await opened.store.commit({ kind: "accept", record: late, parts: [], repeats: anything });
        expect(await opened.store.get(late.id)).toBeUndefined();
        expect(await opened.store.get(record.id)).toEqual(record);
      });

      test("is echoed for so long after its end", async () => {
        const record = await inVain();
        expect(await call({ ...anything, failedAfter: record.endedAt! })).toEqual(applied);
        expect(await call({ ...anything, failedAfter: record.endedAt! - 1 })).toEqual(echoed(record));
      });

      test("the newest of them is echoed", async () => {
        const newer = await inVain(aCall({ updatedAt: start + minuteMs }));
        await inVain();
        expect(await call()).toEqual(echoed(newer));
      });

      test("none is echoed to another hash, none that was a refusal, none that was cancelled", async () => {
        await inVain(aCall({ callHash: otherHash }));
        await inVain(aCall({ callHash: undefined }));
        await accepted(aCall(), starts(opened.owner), fails());
        await accepted(aCall(), isCancelled());
        await completed();
        expect(await call()).toEqual(applied);
      });

      test("a failure that nobody was told is not echoed", async () => {
        const record = await accepted(aCall(), givesUp());
        await orphan(record, start);
        expect(await call()).toEqual(applied);
      });

      test("an orphan goes before an echo", async () => {
        const failed = await inVain();
        const record = await processing();
        await orphan(record, start);
        expect(await call()).toEqual(adopted(record));
        expect(await call()).toEqual(echoed(failed));
      });
    });
  });
}
