/** Attempts that break off and begin anew, against the real feed, readers and store: what do readers get? */

import fc from "fast-check";
import { expect, test } from "vitest";
import { type AttemptSettings, Attempts } from "../../src/core/attempts.ts";
import { readChunk } from "../../src/core/chunk.ts";
import { StorageError } from "../../src/core/errors.ts";
import { type Feed, Feeds, linesOf } from "../../src/core/feed.ts";
import { Intake } from "../../src/core/intake.ts";
import { type LaneSettings, Lanes } from "../../src/core/lanes.ts";
import { Line } from "../../src/core/line.ts";
import type { Chunk, Upstream, World } from "../../src/core/ports.ts";
import { type StreamEnd, StreamReader, type StreamSink } from "../../src/core/reader.ts";
import { isTerminal, type RequestRecord, transition } from "../../src/core/request.ts";
import { beginning, cursorText, type StreamCursor } from "../../src/core/stream-cursor.ts";
import { type MemoryStore, openMemory } from "../../src/store/sqlite/memory.ts";
import {
  aRecord,
  fails,
  isCancelled,
  isRevived,
  type Move,
  someTerms,
  starts,
  walk,
} from "../support/builders.ts";
import { HandClock } from "../support/clock.ts";
import { contentOf, roleChunk, stopChunk, textChunk } from "../support/live-streams.ts";

const store: MemoryStore = openMemory();
const owner = { node: "local", epoch: store.nextEpoch("local", 1) };

/** Of a store that answers a while after it has done what it was asked to. */
const later = async <T>(answer: Promise<T>): Promise<T> => {
  for (let i = 0; i < 8; i++) await answer;
  return answer;
};
const slowStore: MemoryStore = {
  ...store,
  commit: (change) => later(store.commit(change)),
  events: (...asked) => later(store.events(...asked)),
};

const asChunk = (data: string): Chunk => readChunk(data)!;

/** Cuts a text anywhere: inside surrogate pairs, too. */
function pieces(text: string, places: number[]): string[] {
  const at = [...new Set(places.map((place) => place % (text.length + 1)))].sort((a, b) => a - b);
  return [0, ...at].map((start, i) => text.slice(start, at[i] ?? text.length)).filter(Boolean);
}

/** A reader that notes what it gets, and whose connection is now and then full. */
class Sink implements StreamSink {
  readonly data: string[] = [];
  readonly ids: string[] = [];
  last: StreamCursor = beginning;
  how: StreamEnd | undefined;
  reader: StreamReader | undefined;
  /** How many more batches it takes before it has to be resumed. */
  room = Number.POSITIVE_INFINITY;
  /** It was given something when it could not take more. */
  isOverrun = false;

  take(data: string[], last: StreamCursor): boolean {
    expect(this.how).toBeUndefined();
    this.data.push(...data);
    for (const i of data.keys())
      this.ids.push(cursorText({ ...last, after: last.after - data.length + 1 + i }));
    this.last = last;
    this.isOverrun ||= this.room <= 0;
    this.room--;
    return this.room > 0;
  }

  end(how: StreamEnd): void {
    expect(this.how).toBeUndefined();
    this.how = how;
  }

  get text(): string {
    return this.data.map(contentOf).join("");
  }
}

type Pace = "idle" | "written" | "writing";

/** One streamed request of this process, whose attempts are driven by hand. */
class Stage {
  clock = new HandClock();
  world: World;
  readonly record: RequestRecord;
  feed!: Feed;
  feeds: Feeds;

  constructor() {
    const tell = () => {
      throw new Error("nothing is to be told");
    };
    this.world = { clock: this.clock, store: slowStore, observer: { tell } } as unknown as World;
    this.feeds = new Feeds(this.world);
    this.record = aRecord({
      state: "processing",
      attempt: 1,
      owner,
      terms: { ...someTerms, stream: { mode: "live", usage: false } },
    });
  }

  async open(): Promise<void> {
    await store.commit({ kind: "accept", record: this.record, parts: [] });
    this.feed = await this.feeds.open(this.record);
    this.feed.fenceWith(this.record);
  }

  /** What is known of the request on disk, to a process that has just started. */
  async restarted(): Promise<void> {
    // The timers of before are gone with their process.
    this.clock = new HandClock();
    this.world = { ...this.world, clock: this.clock };
    this.feeds = new Feeds(this.world);
    const known = await store.get(this.record.id);
    this.feed = await this.feeds.open({ ...this.record, attempt: 2, forks: known!.forks });
    this.feed.fenceWith(this.record);
  }

  attempt(buffered = false): Intake {
    return new Intake(this.feed, { attempt: 1, lane: this.record.lane, headers: [] }, buffered);
  }

  /** Lets the recorder write what there is. */
  async record75ms(): Promise<void> {
    this.clock.advance(75);
    await settled();
  }

  async pace(pace: Pace): Promise<void> {
    if (pace !== "idle") this.clock.advance(75);
    if (pace === "written") await settled();
  }

  async read(cursor: StreamCursor, committedOnly: boolean): Promise<Sink> {
    const sink = await this.begin(cursor, committedOnly);
    await settled();
    return sink;
  }

  /** A reader that has just begun. */
  async begin(cursor: StreamCursor, committedOnly: boolean): Promise<Sink> {
    const sink = new Sink();
    const line = new Line(store, this.record.id, () => {});
    const record = (await store.get(this.record.id))!;
    if (isTerminal(record.state)) line.hear({ record, answer: [] });
    const from = { cursor, committedOnly, forks: record.forks };
    sink.reader = new StreamReader(slowStore, line, line.ended ? undefined : this.feed, from, sink);
    sink.reader.start();
    return sink;
  }

  async complete(): Promise<void> {
    const { events, done } = await this.feed.rest();
    const moved = transition(
      { ...this.record, forks: this.feed.forks },
      { type: "ended", now: 1, result: { verdict: "success" }, step: { kind: "complete" } },
    )!;
    const { status } = await store.commit({ kind: "change", transition: moved, events });
    done(status === "applied");
    await settled();
  }

  /** Steps that say nothing of the stream, by whose hand ever; the record behind them. */
  async walk(from: RequestRecord, ...moves: Move[]): Promise<RequestRecord> {
    const taken = walk(from, ...moves);
    for (const transition of taken) {
      const dropAnswer = transition.record.round > transition.expect.round;
      await store.commit({ kind: "change", transition, dropAnswer });
    }
    return taken.at(-1)!.record;
  }

  async onDisk(): Promise<string[]> {
    const batches = await store.events(this.record.id, 0, Number.MAX_SAFE_INTEGER);
    return batches.flatMap(({ bytes }) => linesOf(bytes));
  }
}

/** Lets every promise that can settle do so: the store is in memory. */
async function settled(): Promise<void> {
  for (let i = 0; i < 90; i++) await Promise.resolve();
}

const text = fc.string({
  unit: fc.constantFrom("a", "b", '"', "\\", "é", "😀", "\n", " "),
  minLength: 1,
  maxLength: 40,
});
const cuts = fc.array(fc.nat(80), { maxLength: 20 });
/** What the recorder does behind each chunk: nothing, a write, or the beginning of one. */
const writes = fc.infiniteStream(fc.constantFrom<Pace>("idle", "written", "writing"));

/** An attempt says these texts, one after the other, and the recorder writes in between as it likes. */
async function say(stage: Stage, intake: Intake, chunks: string[], write: Iterator<Pace>): Promise<void> {
  for (const data of chunks) {
    intake.take([asChunk(data)]);
    await stage.pace(write.next().value);
  }
}

const answerOf = (texts: string[]): string[] => [
  roleChunk(),
  ...texts.map((one) => textChunk(one)),
  stopChunk(),
];

test("cut anywhere and told anew in other pieces, readers get the text once and in order, and one end", async () => {
  await fc.assert(
    fc.asyncProperty(text, cuts, cuts, fc.nat(45), writes, async (whole, one, two, cutAt, write) => {
      const stage = new Stage();
      await stage.open();
      const live = await stage.read(beginning, false);
      const committed = await stage.read(beginning, true);
      const first = stage.attempt();
      const begun = answerOf(pieces(whole, one)).slice(0, -1);
      await say(stage, first, begun.slice(0, cutAt), write);
      first.end(false, true);
      const delivered = live.text;
      expect(whole.startsWith(delivered)).toBe(true);
      const late = await stage.read(beginning, true);
      const second = stage.attempt();
      await say(stage, second, answerOf(pieces(whole, two)), write);
      second.end(true, false);
      await stage.complete();
      for (const sink of [live, committed, late]) {
        expect(sink.how?.kind).toBe("ended");
        expect(sink.text).toBe(whole);
        expect(sink.data.filter((data) => data.includes('"stop"'))).toHaveLength(1);
        expect(sink.data.filter((data) => data.includes('"role"'))).toHaveLength(1);
        expect(sink.ids).toEqual(sink.data.map((_, i) => String(i + 1)));
      }
      expect(committed.data).toEqual(live.data);
      expect(await stage.onDisk()).toEqual(live.data);
    }),
    { numRuns: 200 },
  );
});

test("where the new answer is another one, readers are told, and then read it whole in its own version", async () => {
  const both = fc.tuple(text, text).filter(([old, fresh]) => !fresh.startsWith(old));
  await fc.assert(
    fc.asyncProperty(both, cuts, cuts, writes, async ([old, fresh], one, two, write) => {
      const stage = new Stage();
      await stage.open();
      const live = await stage.read(beginning, false);
      const committed = await stage.read(beginning, true);
      const first = stage.attempt();
      await say(stage, first, answerOf(pieces(old, one)).slice(0, -1), write);
      first.end(false, true);
      await stage.pace(write.next().value);
      const comer = await stage.begin(beginning, true);
      const second = stage.attempt();
      await say(stage, second, answerOf(pieces(fresh, two)), write);
      second.end(true, false);
      await stage.complete();
      expect([live.how?.kind, live.text]).toEqual(["restarted", old]);
      // Who had read nothing of the old answer never learns of it.
      for (const sink of [committed, comer]) {
        const hasRead = sink.ids.some((id) => !id.startsWith("2-"));
        expect(sink.how?.kind).toBe(hasRead ? "restarted" : "ended");
        if (hasRead) expect(old.startsWith(sink.text)).toBe(true);
        else expect(sink.text).toBe(fresh);
        const late = await stage.read(sink.last, true);
        expect([late.how?.kind, late.data]).toEqual([sink.how?.kind, []]);
      }
      expect((await stage.read(live.last, true)).how?.kind).toBe("restarted");
      const again = await stage.read(beginning, true);
      expect([again.how?.kind, again.text]).toEqual(["ended", fresh]);
      expect(again.data).toEqual(await stage.onDisk());
      expect(again.ids).toEqual(again.data.map((_, i) => `2-${i + 1}`));
      const middle = { version: 2, after: Math.floor(again.data.length / 2) };
      expect((await stage.read(middle, true)).data).toEqual(again.data.slice(middle.after));
    }),
    { numRuns: 200 },
  );
});

test("readers that come, stall and go while chunks come one by one: each event once, none before it is on disk", async () => {
  const steps = fc.array(
    fc.oneof(
      { weight: 4, arbitrary: fc.constant({ kind: "say" as const }) },
      { weight: 2, arbitrary: fc.constant({ kind: "write" as const }) },
      { weight: 2, arbitrary: fc.constant({ kind: "settle" as const }) },
      {
        weight: 2,
        arbitrary: fc.record({ kind: fc.constant("come" as const), room: fc.integer({ min: 1, max: 3 }) }),
      },
      { weight: 2, arbitrary: fc.record({ kind: fc.constant("leave" as const), which: fc.nat(9) }) },
      { weight: 3, arbitrary: fc.record({ kind: fc.constant("resume" as const), which: fc.nat(9) }) },
    ),
    { minLength: 10, maxLength: 80 },
  );
  await fc.assert(
    fc.asyncProperty(steps, async (all) => {
      const stage = new Stage();
      await stage.open();
      const intake = stage.attempt();
      intake.take([asChunk(roleChunk())]);
      /** Users who come back where they left, each with all that it has read. */
      const users: { data: string[]; ids: string[]; sink: Sink | undefined; last: StreamCursor }[] = [];
      const part = (user: (typeof users)[number]) => {
        const { sink } = user;
        if (!sink) return;
        sink.reader!.close();
        user.data.push(...sink.data);
        user.ids.push(...sink.ids);
        user.last = sink.last.after > user.last.after ? sink.last : user.last;
        user.sink = undefined;
      };
      let said = 0;
      for (const step of all) {
        if (step.kind === "say") intake.take([asChunk(textChunk(`t${++said} `))]);
        if (step.kind === "write") await stage.pace("writing");
        if (step.kind === "settle") await settled();
        if (step.kind === "come") {
          const away = users.find(({ sink }) => !sink);
          const user = away ?? { data: [], ids: [], sink: undefined, last: beginning };
          if (!away) users.push(user);
          user.sink = await stage.begin(user.last, true);
          user.sink.room = step.room;
        }
        const user = "which" in step ? users[step.which % Math.max(1, users.length)] : undefined;
        if (step.kind === "leave" && user) part(user);
        if (step.kind === "resume" && user?.sink) {
          user.sink.room = 2;
          user.sink.reader!.resume();
        }
        const disk = await stage.onDisk();
        for (const { data, sink } of users) {
          expect(sink?.isOverrun ?? false).toBe(false);
          const read = [...data, ...(sink?.data ?? [])];
          expect(read).toEqual(disk.slice(0, read.length));
        }
      }
      intake.take([asChunk(stopChunk())]);
      intake.end(true, false);
      await stage.complete();
      const disk = await stage.onDisk();
      for (const user of users) {
        if (user.sink) {
          user.sink.room = Number.POSITIVE_INFINITY;
          user.sink.reader!.resume();
          await settled();
          expect(user.sink.how?.kind).toBe("ended");
        }
        part(user);
        const rest = await stage.read(user.last, true);
        expect([...user.data, ...rest.data]).toEqual(disk);
        expect([...user.ids, ...rest.ids]).toEqual(disk.map((_, i) => String(i + 1)));
      }
    }),
    { numRuns: 200 },
  );
});

test("after a crash: what is on disk is continued in order; who has read further is told", async () => {
  await fc.assert(
    fc.asyncProperty(text, cuts, cuts, writes, fc.boolean(), async (whole, one, two, write, isSame) => {
      const stage = new Stage();
      await stage.open();
      const live = await stage.read(beginning, false);
      const committed = await stage.read(beginning, true);
      await say(stage, stage.attempt(), answerOf(pieces(whole, one)).slice(0, -1), write);
      await settled();
      for (const sink of [live, committed]) sink.reader!.close();
      const disk = await stage.onDisk();
      expect(committed.data).toEqual(disk);

      await stage.restarted();
      const resumed = await stage.read(committed.last, true);
      const ahead = await stage.read(live.last, true);
      const second = stage.attempt();
      const fresh = isSame ? whole : `x${whole}`;
      await say(stage, second, answerOf(pieces(fresh, two)), write);
      second.end(true, false);
      await stage.complete();
      const now = await stage.onDisk();
      expect(now.map(contentOf).join("")).toBe(fresh);
      if (isSame) expect([...committed.data, ...resumed.data]).toEqual(now);
      else if (disk.length > 0) expect([resumed.how?.kind, resumed.data]).toEqual(["restarted", []]);
      const late = await stage.read(live.last, true);
      for (const sink of live.data.length > disk.length ? [ahead, late] : []) {
        expect([sink.how?.kind, sink.data]).toEqual(["restarted", []]);
      }
      const again = await stage.read(beginning, true);
      expect([again.how?.kind, again.data]).toEqual(["ended", now]);
      for (const [i, id] of again.ids.entries()) {
        const [, version] = /^(?:(\d+)-)?/.exec(id)!;
        const cursor = { version: Number(version ?? 1), after: i + 1 };
        expect((await stage.read(cursor, true)).data).toEqual(now.slice(i + 1));
      }
    }),
    { numRuns: 200 },
  );
});

test("buffered: nothing before the answer is whole, nothing of one that was cut, and then all of it", async () => {
  const stage = new Stage();
  await stage.open();
  const live = await stage.read(beginning, false);
  const first = stage.attempt(true);
  for (const data of answerOf(["a", "b"]).slice(0, -1)) first.take([asChunk(data)]);
  first.end(false, true);
  const second = stage.attempt(true);
  for (const data of answerOf(["c", "d"])) second.take([asChunk(data)]);
  await stage.record75ms();
  expect([live.data, await stage.onDisk(), stage.feed.count]).toEqual([[], [], 0]);
  second.end(true, false);
  await stage.complete();
  expect([live.text, live.how?.kind]).toEqual(["cd", "ended"]);
});

test("what came before the first content is told with it, and not at all without it", async () => {
  const stage = new Stage();
  await stage.open();
  const first = stage.attempt();
  first.take([asChunk(roleChunk({ id: "first" }))]);
  first.end(false, true);
  expect([stage.feed.count, stage.feed.identity]).toEqual([0, undefined]);
  const second = stage.attempt();
  second.take([asChunk(roleChunk({ id: "second" }))]);
  expect(stage.feed.count).toBe(0);
  second.take([asChunk(textChunk("a", { id: "second" }))]);
  expect([stage.feed.count, stage.feed.identity?.id]).toEqual([2, "second"]);
});

test("what cannot be compared is given up with its attempt if another one follows, and kept if none does", async () => {
  for (const isRetried of [true, false]) {
    const stage = new Stage();
    await stage.open();
    const live = await stage.read(beginning, false);
    const intake = stage.attempt();
    intake.take([asChunk('{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0}]}}]}')]);
    intake.end(false, isRetried);
    expect(live.how?.kind).toBe(isRetried ? "restarted" : undefined);
    await stage.complete();
    expect(await stage.onDisk()).toHaveLength(isRetried ? 0 : 1);
    expect((await store.get(stage.record.id))!.forks).toEqual(isRetried ? [0] : []);
  }
});

test("who has read what began anew is told so, even if the record was read before it ended", async () => {
  const stage = new Stage();
  await stage.open();
  for (const texts of [
    ["a", "b"],
    ["c", "d"],
  ]) {
    const intake = stage.attempt();
    for (const data of answerOf(texts)) intake.take([asChunk(data)]);
    intake.end(texts[0] === "c", true);
  }
  await stage.complete();
  const line = new Line(store, stage.record.id, () => {});
  line.hear({ record: (await store.get(stage.record.id))!, answer: [] });
  const sink = new Sink();
  const from = { cursor: { version: 1, after: 2 }, committedOnly: true, forks: [] };
  new StreamReader(store, line, undefined, from, sink).start();
  await settled();
  expect([sink.data, sink.how?.kind]).toEqual([[], "restarted"]);
});

test("what a cancellation overtakes on its way to the disk is not told to readers of the disk", async () => {
  const stage = new Stage();
  await stage.open();
  const [live, committed] = [await stage.read(beginning, false), await stage.read(beginning, true)];
  const intake = stage.attempt();
  for (const data of answerOf(["a", "b"]).slice(0, -1)) intake.take([asChunk(data)]);
  await stage.record75ms();
  intake.take([asChunk(textChunk("c"))]);
  await stage.walk(stage.record, isCancelled());
  await settled();
  expect([live.text, live.how?.kind]).toEqual(["abc", "ended"]);
  expect([committed.text, committed.how?.kind]).toEqual(["ab", "ended"]);
  expect(committed.data).toEqual(await stage.onDisk());
});

test("who reads slowly what failed has nothing of the round that its key begins meanwhile", async () => {
  const stage = new Stage();
  await stage.open();
  const intake = stage.attempt();
  for (const letter of ["a", "b", "c"]) {
    intake.take([asChunk(textChunk(letter.repeat(200_000)))]);
    await stage.record75ms();
  }
  const failed = await stage.walk(stage.record, fails());
  const slow = await stage.begin(beginning, true);
  slow.room = 1;
  await settled();
  const read = slow.data.length;
  expect([read > 0 && read < 3, slow.how]).toEqual([true, undefined]);
  const revived = await stage.walk(failed, isRevived(stage.record.terms), starts(owner));
  const fresh = ["x", "y", "z"].map((letter) => textChunk(letter.repeat(10)));
  const { id, state, attempt, round, forks } = revived;
  const events = { after: 0, bytes: Buffer.from(fresh.join("\n")), anew: true };
  await store.commit({ kind: "events", id, expect: { state, attempt, round, owner }, forks, events });
  expect(await stage.onDisk()).toEqual(fresh);
  slow.room = Number.POSITIVE_INFINITY;
  slow.reader!.resume();
  await settled();
  expect(slow.data).toHaveLength(read);
  expect(slow.how).toMatchObject({ kind: "ended", ended: { record: { state: "failed", round: 1 } } });
});

test("an answer that waits for room on a full disk does not hold up a stop", async () => {
  const stage = new Stage();
  await stage.open();
  const full = () => Promise.reject(new StorageError("full", "The disk is full."));
  const said: string[] = [];
  const upstream: Pick<Upstream, "stream"> = {
    // All of it has come before the stop.
    async *stream(_call, _wish, abort) {
      for (const letter of ["a", "b", "c", "d", "e", "f"]) {
        said.push(letter);
        yield { kind: "chunks", chunks: [asChunk(textChunk(letter.repeat(300_000)))] };
      }
      expect(abort.aborted).toBe(true);
      yield { kind: "ended", outcome: { kind: "aborted", sent: true } };
    },
  };
  const random = { next: () => 0, id: () => "" };
  const observer = { tell() {} };
  const disk = { ...store, commit: full };
  const world = { ...stage.world, store: disk, upstream: upstream as Upstream, random, observer };
  const hourMs = 3_600_000;
  const settings = { attemptMs: hourMs, firstTokenMs: hourMs, idleMs: hourMs } as AttemptSettings;
  const upstreams = [{ name: "fake", maxConcurrency: 1 }];
  const breaker = { enabled: false } as LaneSettings["breaker"];
  const retryBudget = { ratio: 1, perSecond: 1 };
  const laneBackoff = { baseMs: 1, maxMs: 1 };
  const lanes = new Lanes({ upstreams, limitGroups: [], breaker, retryBudget, laneBackoff }, observer);
  const record = { ...stage.record, deadlineAt: stage.clock.now() + hourMs };
  const now = stage.clock.now();
  const slot = lanes.slot(lanes.get(record.lane, now)!, record, now)!;
  const dispatch = {
    lanes,
    feeds: new Feeds(world),
    targets: { openingsFor: () => [], hasAlternatives: () => false },
    heard() {},
    checkClock() {},
  };
  const attempts = new Attempts(world, settings, dispatch, { isConnected: () => true, onTrouble() {} });
  let isOver = false;
  const content = { head: { method: "POST", path: "/", headers: [] }, body: new Uint8Array(2) };
  void attempts.run(record, slot, content).finally(() => {
    isOver = true;
  });
  await settled();
  expect([said.join(""), isOver]).toEqual(["abcd", false]);
  attempts.shutDown();
  await settled();
  expect([said.join(""), isOver]).toEqual(["abcdef", true]);
  // The next start finds it interrupted.
  expect(await store.get(record.id)).toMatchObject({ state: "processing", attempt: 1 });
  expect(await stage.onDisk()).toEqual([]);
});
