import type { Clock } from "../../src/core/ports.ts";

/** A clock that stands still until it is told to move. Timers fire in order, each at its own instant. */
export class HandClock implements Clock {
  private at: number;
  private jumpedMs = 0;
  private seq = 0;
  private timers: { at: number; seq: number; run: () => void }[] = [];

  constructor(at = Date.UTC(2026, 0, 2, 3, 4, 5)) {
    this.at = at;
  }

  now(): number {
    return this.at;
  }

  ticks(): number {
    return this.at - this.jumpedMs;
  }

  timer(delayMs: number, run: () => void): () => void {
    const timer = { at: this.at + Math.max(0, delayMs), seq: this.seq++, run };
    this.timers.push(timer);
    return () => {
      this.timers = this.timers.filter((one) => one !== timer);
    };
  }

  /** Moves on by `ms`, firing what falls due on the way. What timers set off over sockets is not awaited. */
  advance(ms: number): void {
    const until = this.at + ms;
    for (;;) {
      const next = this.timers
        .filter(({ at }) => at <= until)
        .sort((a, b) => a.at - b.at || a.seq - b.seq)[0];
      if (!next) break;
      this.timers = this.timers.filter((one) => one !== next);
      this.at = Math.max(this.at, next.at);
      next.run();
    }
    this.at = until;
  }

  /** The wall clock is set, forwards or back, without time passing for timers. */
  jump(ms: number): void {
    this.at += ms;
    this.jumpedMs += ms;
    for (const timer of this.timers) timer.at += ms;
  }
}
