/**
 * Who reads streams, and what must hold for them: callers of the moment, who are ahead of the disk by a blink, and
 * readers who come and go with the number of the last event that they have, also to the next process.
 */

import { AppError } from "../../src/core/errors.ts";
import { linesOf } from "../../src/core/feed.ts";
import type { Line } from "../../src/core/line.ts";
import type { ChangeSet, Ended } from "../../src/core/ports.ts";
import type { StreamEnd, StreamReader, StreamSink } from "../../src/core/reader.ts";
import { isTerminal, type RequestRecord } from "../../src/core/request.ts";
import { beginning, cursorText, parseCursor, type StreamCursor } from "../../src/core/stream-cursor.ts";
import { readCompletion, readEvents } from "./answers.ts";
import type { Process, Sim } from "./world.ts";

/** What callers may be ahead of the disk, when that takes no time. */
const aheadMs = 100;
const endless = 2 ** 40;

const isSame = (one: string[], other: string[]): boolean =>
  one.length === other.length && one.every((line, i) => line === other[i]);

/** What is recorded of every stream, as its commits say. */
export class Recordings {
  private readonly sim: Sim;
  /** The events of each request; every answer begun anew is a list of its own. */
  private readonly byId = new Map<string, string[][]>();
  /** Of which answers readers were told that they begin anew, how often they had begun by then, and by whom. */
  readonly promised: { id: string; beginnings: number; process: number }[] = [];

  constructor(sim: Sim) {
    this.sim = sim;
  }

  /** The events of the answer of today. */
  of(id: string): string[] {
    return this.listsOf(id).at(-1)!;
  }

  /** How often the answer has begun. */
  beginnings(id: string): number {
    return this.listsOf(id).length;
  }

  /** Whether the event with this number ever was on disk. */
  had(id: string, number: number, data: string): boolean {
    return this.listsOf(id).some((events) => events[number - 1] === data);
  }

  private listsOf(id: string): string[][] {
    const lists = this.byId.get(id) ?? [[]];
    this.byId.set(id, lists);
    return lists;
  }

  /** Whoever is told that an answer begins anew finds that it does, unless the process dies over it. */
  checkPromises(): void {
    for (const { id, beginnings, process } of this.promised)
      if (this.beginnings(id) === beginnings && process === this.sim.process.number)
        this.sim.violation(`${id} was told to begin anew, and did not`);
  }

  /** A change is on disk. */
  applied(change: ChangeSet): void {
    if (change.kind !== "events" && change.kind !== "change") return;
    const id = change.kind === "events" ? change.id : change.transition.record.id;
    const lists = this.listsOf(id);
    const { events } = change;
    if (events?.anew || (change.kind === "change" && change.dropAnswer)) lists.push([]);
    const isLate = change.kind === "events" && isTerminal(this.sim.memory.engine.get(id)!.state);
    if (isLate) this.sim.violation(`${id} records events after its end`);
    if (events && events.bytes.byteLength > 0) {
      const list = lists.at(-1)!;
      if (events.after !== list.length)
        this.sim.violation(`${id} records event ${events.after + 1} behind event ${list.length}`);
      list.push(...linesOf(events.bytes));
    }
    if (change.kind === "change") this.checkEnd(change.transition.record);
  }

  /** With its end a stream is on disk whole, and says what the answer says. */
  private checkEnd({ id, state, terms }: RequestRecord): void {
    if (!isTerminal(state) || !terms.stream) return;
    const { engine } = this.sim.memory;
    const onDisk: string[] = [];
    for (const { after, bytes } of engine.events(id, 0, endless)) {
      if (after !== onDisk.length) this.sim.violation(`${id} has a gap behind event ${onDisk.length}`);
      onDisk.push(...linesOf(bytes));
    }
    if (!isSame(onDisk, this.of(id))) this.sim.violation(`${id} ended with other events than were written`);
    if (state !== "completed") return;
    const answer = readCompletion(engine.parts(id, ["answer"]));
    if (!answer) return this.sim.violation(`${id} completed without an answer`);
    const { said, ids, ends } = readEvents(onDisk);
    if (said !== answer.said) this.sim.violation(`${id} completed with another answer than its stream`);
    if (ids.size !== 1 || !ids.has(answer.id)) this.sim.violation(`${id} has several names for its answer`);
    if (ends !== 1) this.sim.violation(`${id} completed, and its stream has ${ends} ends`);
  }
}

/** How it went on for somebody who listened. */
export type Heard = StreamEnd | { kind: "died" | "left" };

/** Somebody who listens to a stream. What has been read is kept from one connection to the next. */
class Ear implements StreamSink {
  readonly over: Promise<StreamEnd>;
  reader: StreamReader | undefined;
  private resolve: (how: StreamEnd) => void = () => {};
  private isOver = false;
  private hasRestarted = false;
  private hasLeft = false;
  private readonly sim: Sim;
  private readonly process: Process;
  private readonly record: RequestRecord;
  private readonly tale: Tale;
  private readonly luck: () => number;

  constructor(sim: Sim, process: Process, record: RequestRecord, tale: Tale, luck: () => number) {
    this.sim = sim;
    this.process = process;
    this.record = record;
    this.tale = tale;
    this.luck = luck;
    this.over = new Promise((resolve) => {
      this.resolve = resolve;
    });
  }

  leave(): void {
    this.isOver = true;
    this.hasLeft = true;
    this.reader?.close();
  }

  take(data: string[], last: StreamCursor): boolean {
    if (!this.process.alive) return true;
    const { tale } = this;
    if (this.isOver) this.say("is told more than its end");
    if (data.length === 0) this.say("has nothing to tell, and tells it");
    if (last.after - data.length !== tale.cursor.after)
      this.say(`was read from ${cursorText(tale.cursor)} to ${cursorText(last)} with ${data.length} events`);
    tale.cursor = last;
    tale.events.push(...data);
    tale.said += readEvents(data).said;
    if (this.record.terms.stream) {
      if (tale.committedOnly) this.checkRecorded(data, last);
      else this.checkLive(data, last);
    }
    if (this.luck() >= 0.05) return true;
    this.sim.clock.timer(this.luck() * 2000, () => this.process.alive && this.reader?.resume());
    return false;
  }

  end(how: StreamEnd): void {
    if (!this.process.alive) return;
    if (this.isOver) this.say("is told its end twice");
    this.isOver = true;
    if (how.kind === "failed" || how.kind === "stopping") this.say(`${how.kind} for a reader`);
    if (how.kind === "ended") this.checkEnd(how.ended);
    if (how.kind === "restarted") this.noteRestart();
    this.resolve(how);
  }

  private noteRestart(): void {
    this.hasRestarted = true;
    const { id } = this.record;
    const { recordings, process } = this.sim;
    // Who comes back may hear of it late.
    const beginnings = this.tale.beginnings ?? recordings.beginnings(id);
    recordings.promised.push({ id, beginnings, process: process.number });
  }

  private say(text: string): void {
    this.sim.violation(`${this.record.id} ${text}`);
  }

  /** Only what is on disk is told to who counts on it; and of one and the same answer. */
  private checkRecorded(data: string[], last: StreamCursor): void {
    const { recordings } = this.sim;
    const { id } = this.record;
    const events = recordings.of(id).slice(last.after - data.length, last.after);
    if (!isSame(events, data)) this.say(`told event ${last.after} to a reader and has not recorded it`);
    const beginnings = recordings.beginnings(id);
    this.tale.beginnings ??= beginnings;
    if (this.tale.beginnings !== beginnings) this.say("was read on in another answer");
  }

  private checkLive(data: string[], last: StreamCursor): void {
    const { clock, recordings, upstream } = this.sim;
    const { id, terms } = this.record;
    const nonce = this.sim.nonces.get(id)!;
    const said = [...(upstream.said.get(nonce) ?? [])];
    if (!said.some((text) => text.startsWith(this.tale.said))) this.say("told a caller what nobody said");
    const isWhole = upstream.ledger.some(({ request, over }) => request === nonce && over);
    if (terms.stream?.mode === "buffered" && !isWhole) this.say("told of an answer that was not whole");
    if (this.sim.diskFull > 0) return;
    clock.timer(aheadMs, () => {
      // Who has left is not told that the answer begins anew.
      const mayBeGone = this.hasRestarted || this.hasLeft;
      if (!this.process.alive || mayBeGone || this.sim.diskFull > 0) return;
      if (!recordings.had(id, last.after, data.at(-1)!))
        this.say(`has not recorded event ${last.after} ${aheadMs} ms after a caller had it`);
    });
  }

  /** Who is told the end has all of it. */
  private checkEnd({ record: { state }, answer }: Ended): void {
    const { said, events } = this.tale;
    if (this.record.terms.stream && !isSame(events, this.sim.recordings.of(this.record.id)))
      this.say(`is ${state}, and its reader has other events than are recorded`);
    if (state !== "completed") return;
    if (readCompletion(answer)?.said !== said) this.say("is completed, and its reader has another answer");
  }
}

/** What somebody has been told of a stream until now. */
interface Tale {
  cursor: StreamCursor;
  committedOnly: boolean;
  events: string[];
  said: string;
  /** How often the answer had begun when the first of this was told. */
  beginnings?: number;
}

const newTale = (committedOnly: boolean): Tale => ({
  cursor: beginning,
  committedOnly,
  events: [],
  said: "",
});

export class Audience {
  private readonly sim: Sim;
  private readonly luck: () => number;
  /** Until when readers leave and come back. */
  private readonly restlessUntil: number;
  private readonly present = new Map<number, string>();
  private count = 0;

  constructor(sim: Sim, luck: () => number, restlessUntil: number) {
    this.sim = sim;
    this.luck = luck;
    this.restlessUntil = restlessUntil;
  }

  /** How many have come. */
  get size(): number {
    return this.count;
  }

  /** At the end nobody is left waiting. */
  check(): void {
    this.sim.recordings.checkPromises();
    for (const who of this.present.values()) this.sim.violation(`${who} waits for ever`);
  }

  /** A caller who hears the answer while it comes, as long as patience and connection last. */
  async call(
    process: Process,
    { line, record }: { line: Line; record: RequestRecord },
    patienceMs: number,
  ): Promise<{ heard: Heard; contentSent: boolean }> {
    const tale = newTale(false);
    const heard = await this.attend(`the caller of ${record.id}`, () =>
      this.hear({ process, record, line }, tale, patienceMs),
    );
    return { heard, contentSent: tale.events.length > 0 };
  }

  /** A reader who has the id, and comes back until the end is told. */
  read(project: string, id: string): Promise<void> {
    return this.attend(`a reader of ${id}`, async () => {
      let tale = newTale(true);
      for (;;) {
        const process = await this.sim.serving();
        const heard = await this.readOnce(process, project, id, tale);
        if (heard === undefined || heard.kind === "ended") return;
        if (heard.kind === "restarted") tale = newTale(true);
        else tale.cursor = parseCursor(cursorText(tale.cursor))!;
        await this.pause(this.luck() * 3000);
      }
    });
  }

  /** Undefined where there is nothing to read. */
  private async readOnce(
    process: Process,
    project: string,
    id: string,
    tale: Tale,
  ): Promise<Heard | undefined> {
    const { queue } = process;
    const died = process.died.then(() => undefined);
    try {
      const record = await Promise.race([queue.get(project, id), died]);
      const line = record && (await Promise.race([queue.lines.listen(id, { caller: false }), died]));
      if (!line) return { kind: "died" };
      const isRestless = this.sim.clock.now() < this.restlessUntil;
      const patienceMs = isRestless && this.luck() < 0.8 ? this.luck() ** 2 * 10_000 : endless;
      return await this.hear({ process, record, line }, tale, patienceMs);
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      return undefined;
    }
  }

  private async hear(
    { process, record, line }: { process: Process; record: RequestRecord; line: Line },
    tale: Tale,
    patienceMs: number,
  ): Promise<Heard> {
    const died = process.died.then(() => ({ kind: "died" as const }));
    const ear = new Ear(this.sim, process, record, tale, this.luck);
    const { cursor, committedOnly } = tale;
    const reader = await Promise.race([
      process.queue.lines.read(line, record, { cursor, committedOnly }, ear),
      died.then(() => undefined),
    ]);
    if (!reader) return { kind: "died" };
    ear.reader = reader;
    const left = this.pause(patienceMs).then(() => ({ kind: "left" as const }));
    const heard = await Promise.race([ear.over, died, left]);
    if (heard.kind === "left") ear.leave();
    return heard;
  }

  private async attend<T>(who: string, work: () => Promise<T>): Promise<T> {
    const number = this.count++;
    this.present.set(number, who);
    const result = await work();
    this.present.delete(number);
    return result;
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => this.sim.clock.timer(ms, resolve));
  }
}
