/**
 * What is kept for how long. Old requests are erased in small steps, each followed by a pause several times as long, so
 * that nobody notices; what they leave free goes back to the disk in the same way.
 */

import { faultText, StorageError } from "../errors.ts";
import type { World } from "../ports.ts";
import type { Eraser } from "./eraser.ts";

export interface RetentionSettings {
  /** Undefined: nothing is ever looked at. */
  retention?: {
    /** How long requests are kept after their end; undefined = for ever. */
    completedMs?: number;
    failedMs?: number;
    cancelledMs?: number;
    /** How long their prompts and answers are. */
    bodiesMs?: number;
    /** What the database may have of the disk: beyond it, those that ended first go. */
    maxBytes?: number;
  };
  /** For so long somebody may come for an answer that is not to be kept. */
  adoptWindowMs: number;
}

type Why = "age" | "size" | "unwanted";

const states = ["completed", "failed", "cancelled"] as const;
/** So many requests are erased at once. */
const stepSize = 32;
const pauseFactor = 4;
const shortestPauseMs = 20;
const lookMs = 10_000;
/** A key protects from a second call for as long as this, whatever else is kept. */
const keyedMs = 24 * 60 * 60 * 1000;
/** Below this part of what it may have, a database that was too large is small enough. */
const enough = 0.95;
const vacuumPages = 128;
/** So much may stay free in the file for what comes next. */
const spareBytes = 16 * 1024 * 1024;

export class Retention {
  private readonly world: World;
  private readonly settings: RetentionSettings;
  private readonly eraser: Eraser;
  private cancelTimer: () => void = () => {};
  private stopping = false;
  private running: Promise<void> = Promise.resolve();
  private endPause: () => void = () => {};

  constructor(world: World, settings: RetentionSettings, eraser: Eraser) {
    this.world = world;
    this.settings = settings;
    this.eraser = eraser;
  }

  begin(): void {
    if (!this.settings.retention) return;
    this.cancelTimer = this.world.clock.timer(lookMs, () => {
      this.running = this.sweep().finally(() => {
        if (!this.stopping) this.begin();
      });
    });
  }

  async stop(): Promise<void> {
    this.stopping = true;
    this.cancelTimer();
    this.endPause();
    await this.running;
  }

  /** Erases all that is due. Where the store fails, the next sweep goes on. */
  private async sweep(): Promise<void> {
    try {
      await this.sweepUnwanted();
      await this.sweepOld();
      await this.sweepSize();
      await this.giveBack();
    } catch (error) {
      if (error instanceof StorageError) return;
      this.world.observer.tell({ event: "fault", where: "retention", message: faultText(error) });
    }
  }

  private async sweepUnwanted(): Promise<void> {
    const { ledger, clock } = this.world;
    const endedBefore = clock.now() - this.settings.adoptWindowMs;
    await this.inSteps("bodies", "unwanted", () => ledger.unwanted(endedBefore, stepSize));
  }

  private async sweepOld(): Promise<void> {
    const { completedMs, failedMs, cancelledMs, bodiesMs } = this.settings.retention!;
    const keptMs = { completed: completedMs, failed: failedMs, cancelled: cancelledMs };
    for (const state of states) {
      await this.sweepState("record", state, keptMs[state]);
      await this.sweepState("bodies", state, bodiesMs);
    }
  }

  private async sweepState(what: "bodies" | "record", state: (typeof states)[number], keptMs?: number) {
    if (keptMs === undefined) return;
    const { ledger, clock } = this.world;
    const now = clock.now();
    const query = { what, state, endedBefore: now - keptMs, keyedBefore: now - keyedMs, limit: stepSize };
    await this.inSteps(what, "age", () => ledger.erasable(query));
  }

  private async sweepSize(): Promise<void> {
    const { maxBytes } = this.settings.retention!;
    if (maxBytes === undefined || (await this.usedBytes()) <= maxBytes) return;
    await this.inSteps("record", "size", async () => {
      return (await this.usedBytes()) <= maxBytes * enough ? [] : this.oldest();
    });
  }

  private async usedBytes(): Promise<number> {
    const { bytes, freeBytes } = await this.world.ledger.size();
    return bytes - freeBytes;
  }

  /** Those that were accepted first, among those of each state that ended first. */
  private async oldest(): Promise<string[]> {
    const { ledger, clock } = this.world;
    const now = clock.now();
    const limits = { endedBefore: now, keyedBefore: now - keyedMs, limit: stepSize };
    const found = await Promise.all(
      states.map((state) => ledger.erasable({ what: "record", state, ...limits })),
    );
    return found.flat().sort().slice(0, stepSize);
  }

  private async inSteps(what: "bodies" | "record", why: Why, next: () => Promise<string[]>): Promise<void> {
    const { observer, clock } = this.world;
    let count = 0;
    let before = "";
    while (!this.stopping) {
      const begunAt = clock.ticks();
      const ids = await next();
      // What could not be erased is found again: it is left for the next sweep.
      if (ids.length === 0 || ids.join() === before) break;
      before = ids.join();
      await this.eraser.erase(what, ids, { unlessHeld: true });
      count += ids.length;
      await this.pause(clock.ticks() - begunAt);
    }
    if (count > 0) observer.tell({ event: "erased", what, count, why });
  }

  /** Gives free pages back to the disk. */
  private async giveBack(): Promise<void> {
    const { ledger, store, clock } = this.world;
    for (let before = Number.POSITIVE_INFINITY; !this.stopping; ) {
      const { freeBytes } = await ledger.size();
      if (freeBytes <= spareBytes || freeBytes >= before) return;
      before = freeBytes;
      const begunAt = clock.ticks();
      await store.commit({ kind: "vacuum", pages: vacuumPages });
      await this.pause(clock.ticks() - begunAt);
    }
  }

  private async pause(tookMs: number): Promise<void> {
    if (this.stopping) return;
    await new Promise<void>((resolve) => {
      const cancel = this.world.clock.timer(Math.max(shortestPauseMs, tookMs * pauseFactor), resolve);
      this.endPause = () => {
        cancel();
        resolve();
      };
    });
  }
}
