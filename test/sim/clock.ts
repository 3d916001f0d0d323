/** Simulated time: exactly one timer fires per step, in the order of (instant, sequence). */

import type { Clock } from "../../src/core/ports.ts";

interface Timer {
  at: number;
  seq: number;
  run: () => void;
}

export const start = Date.UTC(2026, 0, 1);

export class SimClock implements Clock {
  private at = start;
  private offMs = 0;
  private seq = 0;
  private readonly heap: Timer[] = [];
  private readonly cancelled = new Set<Timer>();

  /** The time that timers go by: it only ever goes on. */
  now(): number {
    return this.at;
  }

  ticks(): number {
    return this.at;
  }

  /** What a clock on the wall says. */
  wall(): number {
    return this.at + this.offMs;
  }

  /** Somebody sets the clock on the wall. No timer takes notice. */
  jump(ms: number): void {
    this.offMs += ms;
  }

  timer(delayMs: number, run: () => void): () => void {
    const timer = { at: this.at + Math.max(0, Math.round(delayMs)), seq: this.seq++, run };
    this.push(timer);
    return () => this.cancelled.add(timer);
  }

  /** Fires the next timer, then lets every promise settle. False where there is none before `until`. */
  async step(until: number): Promise<boolean> {
    for (;;) {
      const timer = this.heap[0];
      if (!timer || timer.at > until) return false;
      this.pop();
      if (this.cancelled.delete(timer)) continue;
      this.at = Math.max(this.at, timer.at);
      timer.run();
      await settle();
      return true;
    }
  }

  private push(timer: Timer): void {
    const { heap } = this;
    let i = heap.push(timer) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!earlier(heap[i]!, heap[parent]!)) break;
      [heap[i], heap[parent]] = [heap[parent]!, heap[i]!];
      i = parent;
    }
  }

  private pop(): void {
    const { heap } = this;
    const last = heap.pop()!;
    if (heap.length === 0) return;
    heap[0] = last;
    let i = 0;
    for (;;) {
      let least = i;
      for (const child of [2 * i + 1, 2 * i + 2]) {
        if (child < heap.length && earlier(heap[child]!, heap[least]!)) least = child;
      }
      if (least === i) return;
      [heap[i], heap[least]] = [heap[least]!, heap[i]!];
      i = least;
    }
  }
}

const earlier = (a: Timer, b: Timer): boolean => a.at < b.at || (a.at === b.at && a.seq < b.seq);

/** All promise callbacks run before the next macrotask. */
export const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** mulberry32: small, fast, and the same everywhere. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
