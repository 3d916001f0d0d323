/** One reader of a stream: from where it has read to, through what is on disk, to what is just being said. */

import { type Feed, type FeedListener, type FeedSource, linesOf } from "./feed.ts";
import type { Line } from "./line.ts";
import type { Ended, EventBatch, Store } from "./ports.ts";
import { chunksOf } from "./restream.ts";
import { cursorAt, isValidCursor, type StreamCursor } from "./stream-cursor.ts";

/** How a stream ends for one who reads it. */
export type StreamEnd =
  /** The request is over, and everything that its stream had was taken. */
  | { kind: "ended"; ended: Ended }
  /** What was read is not the beginning of the answer, or never will be continued. */
  | { kind: "restarted" }
  /** The server stops; the request goes on later. */
  | { kind: "stopping" }
  /** The store cannot be read. */
  | { kind: "failed"; error: unknown };

export interface StreamSink {
  /** Events that follow those before; `last` is how far the stream has been read with them. False: no more until `resume`. */
  take(data: string[], last: StreamCursor, source: FeedSource | undefined): boolean;
  /** Called once. */
  end(how: StreamEnd): void;
}

export interface StreamFrom {
  cursor: StreamCursor;
  /** Only what is on disk is read. */
  committedOnly: boolean;
  /** Nothing is read before the answer is whole. */
  wholeOnly?: boolean;
}

/** Bytes that are read from the store at a time. */
const readBytes = 256 * 1024;
const decoder = new TextDecoder();

export class StreamReader implements FeedListener {
  private readonly store: Store;
  private readonly line: Line;
  private readonly sink: StreamSink;
  private readonly feed: Feed | undefined;
  /** Whether only what is on disk is read. */
  private readonly committedOnly: boolean;
  private readonly wholeOnly: boolean;
  private readonly cursor: StreamCursor;
  /** To be called when the reader is closed, by whomever. */
  onClose = () => {};
  private forks: number[];
  private after: number;
  private ended: Ended | undefined;
  private isPaused = false;
  private isReading = false;
  private isOver = false;

  /**
   * @param line open; closed with the reader
   * @param feed of a stream that has not ended
   * @param forks of the record
   */
  constructor(
    store: Store,
    line: Line,
    feed: Feed | undefined,
    { cursor, committedOnly, wholeOnly = false, forks }: StreamFrom & { forks: number[] },
    sink: StreamSink,
  ) {
    this.store = store;
    this.line = line;
    this.feed = feed;
    this.sink = sink;
    this.committedOnly = committedOnly;
    this.wholeOnly = wholeOnly;
    // The record may have been read before its request ended.
    this.forks = feed?.forks ?? line.ended?.record.forks ?? forks;
    this.after = cursor.after;
    this.cursor = cursor;
  }

  /** Begins to read. */
  start(): void {
    const { feed } = this;
    const isValid = isValidCursor(this.cursor, this.forks) && !(feed && this.after > feed.count);
    if (!isValid) return this.over({ kind: "restarted" });
    feed?.listen(this);
    this.line.onEnded((ended) => {
      this.ended = ended;
      this.pump();
    });
    this.pump();
  }

  /** The sink can take more. */
  resume(): void {
    this.isPaused = false;
    this.pump();
  }

  /** Nothing is given any more. */
  close(): void {
    this.isOver = true;
    this.feed?.ignore(this);
    this.line.close();
    this.onClose();
  }

  stop(): void {
    this.over({ kind: "stopping" });
  }

  published(): void {
    if (!this.committedOnly) this.pump();
  }

  committed(after: number, data: string[]): void {
    // Who has read all that was on disk before has no need to read this from there.
    const isFree = !this.isPaused && !this.isReading && !this.isOver;
    // That the answer has begun anew may be written before it says anything.
    if (this.committedOnly && isFree && after === this.after && data.length > 0) this.give(data);
    else this.pump();
  }

  restarted(): void {
    if (this.after > 0) this.over({ kind: "restarted" });
  }

  /** Gives what there is, as long as the sink takes it. */
  private pump(): void {
    if (this.isPaused || this.isReading || this.isOver) return;
    const { feed, ended } = this;
    // What failed never will be whole.
    if (ended && this.wholeOnly && ended.record.state !== "completed")
      return this.over({ kind: "ended", ended });
    if (!feed) return void (ended && this.read());
    if (this.after < feed.committed) return void this.read();
    // What the feed has beyond the disk may never get there: somebody else may have ended the request.
    if (ended && this.committedOnly) return void this.read();
    if (!this.committedOnly && this.after < feed.count && !this.give(feed.since(this.after))) return;
    if (!ended || this.after < feed.count) return;
    // A feed that was opened just when the request had ended has heard nothing of it.
    if (feed.count === 0) return void this.read();
    this.conclude(ended, feed.count);
  }

  private give(data: string[]): boolean {
    this.after += data.length;
    this.forks = this.feed?.forks ?? this.forks;
    const last = cursorAt(this.after, this.forks);
    this.isPaused = !this.sink.take(data, last, this.feed?.source);
    return !this.isPaused && !this.isOver;
  }

  /** Reads on from the store. */
  private async read(): Promise<void> {
    const { after, feed } = this;
    const forks = feed?.forks;
    let batches: EventBatch[];
    let isRevived: boolean;
    this.isReading = true;
    try {
      batches = await this.store.events(this.line.id, after, readBytes);
      isRevived = await this.isRevived();
    } catch (error) {
      return this.over({ kind: "failed", error });
    } finally {
      this.isReading = false;
    }
    if (this.isOver) return;
    // Where the answer has begun anew meanwhile, that was its old beginning.
    if (feed?.forks !== forks) return this.pump();
    if (isRevived) return this.over({ kind: "ended", ended: this.ended! });
    const lines = batches.map(({ bytes }) => linesOf(bytes));
    const data = lines.flat().slice(after - (batches[0]?.after ?? after));
    if (data.length > 0) return void (this.give(data) && this.pump());
    const total = (batches.at(-1)?.after ?? 0) + (lines.at(-1)?.length ?? 0);
    if (this.ended) return this.conclude(this.ended, total);
    // The feed says that there is more.
    this.over({ kind: "restarted" });
  }

  /** What is on disk is of another round than the one that is being read: that failed, and is told as such. */
  private async isRevived(): Promise<boolean> {
    if (!this.ended || this.ended.record.state === "completed") return false;
    const current = await this.store.get(this.line.id);
    return current?.round !== this.ended.record.round;
  }

  /** Everything of a request that has ended was given, where its answer was recorded as a stream of so many events. */
  private conclude(ended: Ended, total: number): void {
    const isCompleted = ended.record.state === "completed";
    const told = total === 0 && isCompleted ? (chunksOf(answerText(ended)) ?? []) : [];
    const all = Math.max(total, told.length);
    if (isCompleted && this.after > all) return this.over({ kind: "restarted" });
    if (this.after < told.length && !this.give(told.slice(this.after))) return;
    this.over({ kind: "ended", ended });
  }

  private over(how: StreamEnd): void {
    if (this.isOver) return;
    this.close();
    this.sink.end(how);
  }
}

const answerText = ({ answer }: Ended): string =>
  answer.map(({ kind, bytes }) => (kind === "answer" ? decoder.decode(bytes) : "")).join("");
