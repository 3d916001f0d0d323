/** What has arrived of a stream and was not pulled yet. */

import type { CallEnd, Chunk, UpstreamEvent } from "../core/ports.ts";

/**
 * Chunks that arrive together, or while nobody pulls, are one event. There is one promise for each pull, and none
 * for each chunk: a generator would cost several. Pulls come one after the other.
 */
export class Arrivals implements AsyncIterableIterator<UpstreamEvent> {
  /** Characters that wait to be pulled. */
  size = 0;
  /** Called when they have been. */
  onRoom: () => void = () => {};
  /** Called when nobody will pull any more. */
  onLeft: () => void = () => {};
  private head: [string, string][] | undefined;
  private chunks: Chunk[] | undefined;
  private ended: CallEnd | undefined;
  private isOver = false;
  private wake: ((result: IteratorResult<UpstreamEvent>) => void) | undefined;

  begin(headers: [string, string][]): void {
    this.head = headers;
    this.flush();
  }

  /** Keeps a chunk until the next `flush`. */
  add(chunk: Chunk): void {
    this.chunks ??= [];
    this.chunks.push(chunk);
    this.size += chunk.data.length;
  }

  /** Something was read, perhaps nothing that is a chunk. */
  readSomething(): void {
    this.chunks ??= [];
    this.flush();
  }

  end(ended: CallEnd): void {
    this.ended ??= ended;
    this.flush();
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<IteratorResult<UpstreamEvent>> {
    const event = this.take();
    if (event) return Promise.resolve({ done: false, value: event });
    if (this.isOver) return Promise.resolve({ done: true, value: undefined });
    return new Promise((resolve) => {
      this.wake = resolve;
    });
  }

  return(): Promise<IteratorResult<UpstreamEvent>> {
    if (!this.isOver) {
      this.isOver = true;
      this.onLeft();
    }
    return Promise.resolve({ done: true, value: undefined });
  }

  private flush(): void {
    const { wake } = this;
    const value = wake && this.take();
    if (!value) return;
    this.wake = undefined;
    wake({ done: false, value });
  }

  private take(): UpstreamEvent | undefined {
    const { head, chunks, ended } = this;
    if (this.isOver) return undefined;
    if (head) {
      this.head = undefined;
      return { kind: "head", headers: head };
    }
    if (chunks) {
      this.chunks = undefined;
      this.size = 0;
      this.onRoom();
      return { kind: "chunks", chunks };
    }
    if (ended) this.isOver = true;
    return ended;
  }
}
