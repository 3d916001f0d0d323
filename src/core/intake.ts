/** How the chunks of one attempt become events of a stream: not before the first content, and only where they continue it. */

import type { Feed, FeedSource } from "./feed.ts";
import type { Chunk } from "./ports.ts";
import { Splice } from "./splice.ts";

export class Intake {
  private readonly feed: Feed;
  private readonly source: FeedSource;
  /** Nothing is published before the answer is whole. */
  private readonly buffered: boolean;
  /** What is not published: what came before the first content, or until the answer is whole. */
  private held: Chunk[] = [];
  private splice: Splice | undefined;
  private flowing = false;
  /** It has said something to a caller. */
  hasContent = false;
  /** How many characters of output came. */
  chars = 0;

  constructor(feed: Feed, source: FeedSource, buffered: boolean) {
    this.feed = feed;
    this.source = source;
    this.buffered = buffered;
  }

  head(headers: [string, string][]): void {
    this.source.headers = headers;
  }

  take(chunks: Chunk[]): void {
    for (const chunk of chunks) {
      this.chars += chunk.chars;
      this.hasContent ||= chunk.isContent;
    }
    if (this.flowing) return this.feed.publish(chunks, this.source);
    for (const chunk of chunks) this.held.push(chunk);
    if (this.hasContent && !this.buffered && !this.isTold) this.flow();
  }

  /**
   * The attempt has ended. What was not published of a whole answer is now; of any other it never will be.
   * @param isRetried another attempt follows
   */
  end(isWhole: boolean, isRetried: boolean): void {
    if (!isWhole) {
      this.held = [];
      // Where nothing can follow seamlessly, nobody need wait for it, and who comes now begins with what follows.
      if (isRetried && this.feed.spliceText === undefined) this.feed.restart();
      return;
    }
    if (this.isTold) return this.tellAgain();
    if (!this.flowing) this.flow();
    if (!this.flowing && this.splice) this.settled(this.splice.end());
  }

  /** An attempt before has told all of an answer; that it was whole nobody knows. */
  private get isTold(): boolean {
    const { afterEnd, spliceText } = this.feed;
    return !this.flowing && afterEnd !== undefined && spliceText !== undefined;
  }

  /** Nothing follows the end of an answer, so this is the same one, or another. */
  private tellAgain(): void {
    const chunks = this.held;
    this.held = [];
    this.flowing = true;
    const isSame =
      chunks.every(({ text }) => text !== undefined) &&
      chunks.map(({ text }) => text).join("") === this.feed.spliceText;
    if (!isSame) this.feed.restart();
    // Of the same one callers may want only what came behind its end.
    const known = isSame ? chunks.findLastIndex(({ isContent }) => isContent) + 1 + this.feed.afterEnd! : 0;
    this.feed.publish(chunks.slice(known), this.source);
  }

  /** Publishes what was held, or begins to compare it with what was published by an attempt before. */
  private flow(): void {
    const chunks = this.held;
    this.held = [];
    const { spliceText } = this.feed;
    if (this.splice === undefined && this.feed.count > 0 && spliceText !== undefined) {
      this.splice = new Splice(spliceText);
    }
    if (this.splice) return this.compare(chunks);
    this.feed.restart();
    this.flowing = true;
    this.feed.publish(chunks, this.source);
  }

  private compare(chunks: Chunk[]): void {
    for (const [i, chunk] of chunks.entries()) {
      const spliced = this.splice!.take(chunk);
      if (spliced.kind === "comparing") continue;
      this.settled(spliced);
      return this.feed.publish(chunks.slice(i + 1), this.source);
    }
  }

  private settled(spliced: ReturnType<Splice["take"]>): void {
    if (spliced.kind === "comparing") return;
    this.flowing = true;
    if (spliced.kind === "diverged") this.feed.restart();
    this.feed.publish(spliced.chunks, this.source);
  }
}
