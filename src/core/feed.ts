/**
 * Running streams. A feed has the numbered events of one request: those that are on disk are only counted, the few
 * that are not yet are kept. Callers of the moment are ahead of the disk by a blink, all others see what is on it.
 */

import { readChunk } from "./chunk.ts";
import { faultText, StorageError } from "./errors.ts";
import { GrowingText } from "./growing-text.ts";
import type { Chunk, EventsWritten, Identity, Observer, World } from "./ports.ts";
import type { Expectation, RequestRecord } from "./request.ts";
import { Table } from "./table.ts";
import { utf8 } from "./utf8.ts";

/** Who reads a feed as it grows. */
export interface FeedListener {
  /** There are new events. */
  published(): void;
  /** These are on disk now; `after` is the number of the event before the first. */
  committed(after: number, data: string[]): void;
  /** What was read until now is not the beginning of the answer any more, or never will be continued. */
  restarted(): void;
}

/** Who gives the answer that a feed has. */
export interface FeedSource {
  attempt: number;
  lane: string;
  headers: [string, string][];
}

/** Events are so long in memory alone; with the looking and the commit it is less than 100 ms. */
const recordAfterMs = 50;
const lookEveryMs = 30;
/** Where the disk is slower than the answer, the answer waits. */
const tailMaxBytes = 1024 * 1024;
const loadBytes = 256 * 1024;
const decoder = new TextDecoder();

export class Feed {
  readonly id: string;
  /** See `RequestRecord`. */
  forks: number[];
  /** How many events there are. */
  count = 0;
  /** How many of them are on disk. */
  committed = 0;
  /** Since when it is among those to be written, by the clock's ticks. */
  dirtySince: number | undefined;
  source: FeedSource | undefined;
  /** What the answer calls itself, from its first event on. */
  identity: Identity | undefined;
  /** All text that was published, where nothing else was. */
  private text: GrowingText | undefined = new GrowingText();
  /** How many events follow the one that said why the answer ends; undefined where none did. */
  afterEnd: number | undefined;
  private tail: string[] = [];
  private tailBytes = 0;
  /** What is on disk is of an answer that has been given up. */
  private anew = false;
  private fence: Expectation | undefined;
  private writing: Promise<void> | undefined;
  /** It should have been written while something else was. */
  private missed: World | undefined;
  private onRoom: (() => void) | undefined;
  private readonly listeners = new Set<FeedListener>();
  private readonly onDirty: (feed: Feed) => void;

  constructor(id: string, forks: number[], onDirty: (feed: Feed) => void) {
    this.id = id;
    this.forks = forks;
    this.onDirty = onDirty;
  }

  listen(listener: FeedListener): void {
    this.listeners.add(listener);
  }

  ignore(listener: FeedListener): void {
    this.listeners.delete(listener);
  }

  /** What an answer begun anew has to begin with to be the continuation; undefined where it cannot be. */
  get spliceText(): string | undefined {
    return this.count > 0 && !this.text?.isEmpty ? this.text?.toString() : undefined;
  }

  /** The events behind number `after` that are not on disk; `after` is not before those that are. */
  since(after: number): string[] {
    return this.tail.slice(after - this.committed);
  }

  /** An attempt begins: what it publishes is written under its fence. */
  fenceWith({ state, attempt, round, owner }: RequestRecord): void {
    this.fence = { state, attempt, round, owner };
  }

  publish(chunks: Chunk[], source: FeedSource): void {
    if (chunks.length === 0 || !this.fence) return;
    this.source ??= source;
    for (const chunk of chunks) {
      this.tail.push(chunk.data);
      this.tailBytes += chunk.data.length;
      this.note(chunk);
    }
    for (const listener of this.listeners) listener.published();
    this.onDirty(this);
  }

  /** What is known of an event beyond its data. */
  private note({ data, text, isEnd }: Chunk): void {
    this.count++;
    if (this.afterEnd !== undefined) this.afterEnd++;
    else if (isEnd) this.afterEnd = 0;
    if (text === undefined) this.text = undefined;
    else this.text?.add(text);
    this.identity ??= identityOf(data);
  }

  /** The answer begins anew: the events until now are nobody's beginning any more. */
  restart(): void {
    if (this.count === 0) return;
    this.forks = [...this.forks, 0];
    this.count = 0;
    this.committed = 0;
    this.tail = [];
    this.tailBytes = 0;
    this.text = new GrowingText();
    this.afterEnd = undefined;
    this.anew = true;
    this.source = undefined;
    for (const listener of [...this.listeners]) listener.restarted();
  }

  /** Whether the answer may go on: not too much of it waits for the disk. */
  get hasRoom(): boolean {
    return this.tailBytes < tailMaxBytes;
  }

  /** Resolves when there is room again. */
  async room(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.onRoom = resolve;
    });
  }

  /** Nobody waits for the disk any more: its trouble is told elsewhere, or the request has ended. */
  release(): void {
    this.onRoom?.();
    this.onRoom = undefined;
  }

  /** Takes what an earlier process has recorded. What its callers have read beyond that nobody knows. */
  load(data: string[]): void {
    const unread = { text: undefined, isContent: true, isEnd: false, chars: 0 };
    for (const line of data) this.note(readChunk(line) ?? { data: line, ...unread });
    this.committed = this.count;
    // What began anew before anything was recorded has no other beginning to be told from.
    if (this.count > 0 || this.forks.at(-1) !== 0) this.forks = [...this.forks, this.count];
  }

  /**
   * What is not yet on disk, to be written with a change of the request. Nothing else is written until `done` says
   * whether that was applied.
   */
  async rest(): Promise<{ events: EventsWritten | undefined; done: (isApplied: boolean) => void }> {
    while (this.writing) await this.writing;
    const { events, written } = this.unwritten();
    let release = () => {};
    this.writing = new Promise<void>((resolve) => {
      release = resolve;
    });
    const done = (isApplied: boolean) => {
      this.afterWrite(() => isApplied && written());
      release();
    };
    return { events, done };
  }

  /** Writes what is not yet on disk, unless that is being done. Never rejects. */
  write(world: World): void {
    const { store, observer } = world;
    const fence = this.fence;
    this.missed = this.writing ? world : undefined;
    if (this.writing || !fence || this.isWritten) return;
    const { events, written } = this.unwritten();
    const { id, forks } = this;
    const change = { kind: "events" as const, id, expect: fence, forks, events: events! };
    this.writing = store.commit(change).then(
      ({ status }) => this.afterWrite(() => (status === "applied" ? written() : this.lose())),
      (error) => this.afterWrite(() => this.trouble(error, observer)),
    );
  }

  private get isWritten(): boolean {
    return this.tail.length === 0 && !this.anew;
  }

  private afterWrite(note: () => void): void {
    this.writing = undefined;
    note();
    if (this.missed) this.write(this.missed);
    else if (this.tail.length > 0) this.onDirty(this);
  }

  /** The request is not ours any more: nothing of this is ever written. */
  private lose(): void {
    this.fence = undefined;
    this.count = this.committed;
    this.tail = [];
    this.tailBytes = 0;
    this.release();
  }

  private trouble(error: unknown, observer: Observer): void {
    // A full disk is tried again; one that is in doubt ends the process.
    if (error instanceof StorageError) return;
    observer.tell({ event: "fault", where: "events", message: faultText(error) });
  }

  private unwritten(): { events: EventsWritten | undefined; written: () => void } {
    const { tail, committed: after, anew, forks } = this;
    if (this.isWritten) return { events: undefined, written() {} };
    const data = tail.slice();
    const written = () => {
      // It has begun anew meanwhile: that is what the next write says.
      if (forks !== this.forks) return;
      this.anew = false;
      this.tail = this.tail.slice(data.length);
      this.tailBytes = this.tail.reduce((sum, line) => sum + line.length, 0);
      this.committed = after + data.length;
      if (this.hasRoom) this.release();
      for (const listener of this.listeners) listener.committed(after, data);
    };
    return { events: { after, bytes: utf8(data.join("\n")), anew }, written };
  }
}

/** All running streams of this process, and what brings them to disk. */
export class Feeds {
  private readonly world: World;
  private readonly byId = new Table<string, Feed>();
  /** Those that have something that is not written, in the order of time. */
  private readonly dirty: Feed[] = [];
  private armed = false;

  constructor(world: World) {
    this.world = world;
  }

  /**
   * The feed of a request, until that has ended. What another process has recorded of it is read first.
   * @throws StorageError
   */
  async open(record: RequestRecord): Promise<Feed> {
    const { id } = record;
    const known = this.byId.get(id);
    if (known) return known;
    const feed = new Feed(id, record.forks, (one) => this.record(one));
    let isOver = false;
    this.world.store.watch(id, () => {
      isOver = true;
      if (this.byId.get(id) === feed) this.byId.delete(id);
      feed.release();
    });
    if (wasCalled(record)) feed.load(await this.recorded(id));
    const other = this.byId.get(id);
    if (!other && !isOver) this.byId.set(id, feed);
    return other ?? feed;
  }

  private async recorded(id: string): Promise<string[]> {
    const data: string[] = [];
    for (;;) {
      const batches = await this.world.store.events(id, data.length, loadBytes);
      const lines = batches.flatMap(({ after, bytes }) =>
        linesOf(bytes).slice(Math.max(0, data.length - after)),
      );
      if (lines.length === 0) return data;
      for (const line of lines) data.push(line);
    }
  }

  /** Every stream is written at a time of its own: all at once would hold up who is just being accepted. */
  private record(feed: Feed): void {
    if (feed.dirtySince === undefined) {
      feed.dirtySince = this.world.clock.ticks();
      this.dirty.push(feed);
    }
    this.arm();
  }

  private arm(): void {
    if (this.armed) return;
    this.armed = true;
    this.world.clock.timer(lookEveryMs, () => {
      this.armed = false;
      for (const feed of this.takeDue(this.world.clock.ticks())) feed.write(this.world);
      if (this.dirty.length > 0) this.arm();
    });
  }

  private takeDue(now: number): Feed[] {
    // Where the wall clock was set back, what seems to be of later is old.
    const isDue = (since: number) => since <= now - recordAfterMs || since > now;
    const others = this.dirty.findIndex(({ dirtySince }) => !isDue(dirtySince!));
    const due = this.dirty.splice(0, others < 0 ? this.dirty.length : others);
    for (const feed of due) feed.dirtySince = undefined;
    return due;
  }
}

/** Whether an attempt before the one under way may have recorded something. */
const wasCalled = ({ attempt, state }: RequestRecord): boolean => attempt > (state === "processing" ? 1 : 0);

/** The data of the events of a batch. */
export const linesOf = (bytes: Uint8Array): string[] => decoder.decode(bytes).split("\n");

function identityOf(data: string): Identity | undefined {
  const { id, created } = JSON.parse(data) as Partial<Identity>;
  return typeof id === "string" && typeof created === "number" ? { id, created } : undefined;
}
