/** Somebody who waits for one request. */

import type { Ended, Store } from "./ports.ts";

/**
 * The line to one request. As long as a caller's line is open, retries are quick, because
 * somebody is there to have the answer.
 */
export class Line {
  readonly id: string;
  /** Known where the request has ended. */
  ended: Ended | undefined;
  private listener: ((ended: Ended) => void) | undefined;
  private readonly unwatch: () => void;
  private readonly onClose: () => void;
  private closed = false;

  constructor(store: Store, id: string, onClose: () => void) {
    this.id = id;
    this.onClose = onClose;
    this.unwatch = store.watch(id, (ended) => this.hear(ended));
  }

  hear(ended: Ended): void {
    this.ended ??= ended;
    if (!this.closed) this.listener?.(this.ended);
  }

  onEnded(listener: (ended: Ended) => void): void {
    this.listener = listener;
    if (this.ended) listener(this.ended);
  }

  close(): void {
    if (this.closed) return;
    this.closed = true;
    this.unwatch();
    this.onClose();
  }
}
