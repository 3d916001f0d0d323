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
/** Whoever has been told to come back for an answer that is not to be kept has as long as this at least. */
const shortestKeepMs = 10 * 60 * 1000;
/** A key protects from a second call for as long as this, whatever else is kept. */
const keyedMs = 24 * 60 * 60 * 1000;
/** Below this part of what it may have, a database that was too large is small enough. */
const enough = 0.95;
/** So often may erasing free nothing, because others write meanwhile. */
const stepsInVain = 64;
const manyUnpacked = 10_000;
/** A wall clock that is further from where it should be was set. */
const smallestJumpMs = 2_000;
const doubtMs = 60 * 60 * 1000;
const vacuumPages = 128;
/** So much may stay free in the file for what comes next. */
const spareBytes = 16 * 1024 * 1024;

export class Retention {
  private readonly world: World;
  private readonly settings: RetentionSettings;
  private readonly eraser: Eraser;
  private cancelTimer: () => void = () => {};
  private stopping = false;
  /** How far the wall clock is from the ticks, and from when on (ticks) it is believed again after it was set. */
  private skewMs: number;
  private trustedAt = 0;
  private running: Promise<void> = Promise.resolve();
  private endPause: () => void = () => {};

  constructor(world: World, settings: RetentionSettings, eraser: Eraser) {
    this.world = world;
    this.settings = settings;
    this.eraser = eraser;
    this.skewMs = world.clock.now() - world.clock.ticks();
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
      if (this.isClockTrusted()) {
        await this.sweepUnwanted();
        await this.sweepOld();
      }
      await this.sweepSize();
      await this.giveBack();
    } catch (error) {
      if (error instanceof StorageError) return;
      this.world.observer.tell({ event: "fault", where: "retention", message: faultText(error) });
    }
  }

  /** A wall clock that was set may be wrong, and what is erased by it is gone: it has an hour to be set right. */
  private isClockTrusted(): boolean {
    const { clock } = this.world;
    const skewMs = clock.now() - clock.ticks();
    if (Math.abs(skewMs - this.skewMs) > smallestJumpMs) this.trustedAt = clock.ticks() + doubtMs;
    this.skewMs = skewMs;
    return clock.ticks() >= this.trustedAt;
  }

  private async sweepUnwanted(): Promise<void> {
    const { ledger, clock } = this.world;
    const endedBefore = clock.now() - Math.max(this.settings.adoptWindowMs, shortestKeepMs);
    const { orphanedBefore } = this;
    await this.inSteps("bodies", "unwanted", () => ledger.unwanted(endedBefore, stepSize, orphanedBefore));
  }

  private get orphanedBefore(): number {
    return this.world.clock.now() - this.settings.adoptWindowMs;
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
    const { orphanedBefore } = this;
    const before = { endedBefore: now - keptMs, keyedBefore: now - keyedMs, orphanedBefore };
    await this.inSteps(what, "age", () => ledger.erasable({ what, state, ...before, limit: stepSize }));
  }

  private async sweepSize(): Promise<void> {
    const { maxBytes } = this.settings.retention!;
    if (maxBytes === undefined || (await this.usedBytes()) <= maxBytes || (await this.isUnpacked())) return;
    let least = Number.POSITIVE_INFINITY;
    let inVain = 0;
    await this.inSteps("record", "size", async () => {
      const used = await this.usedBytes();
      inVain = used < least ? 0 : inVain + 1;
      least = Math.min(least, used);
      // What fills the disk may be something else than requests.
      return used <= maxBytes * enough || inVain > stepsInVain ? [] : this.oldest();
    });
  }

  /** What is about to be packed needs half the space: after an upgrade that may be all that there is. */
  private async isUnpacked(): Promise<boolean> {
    return (await this.world.search.behind()) > manyUnpacked;
  }

  private async usedBytes(): Promise<number> {
    const { bytes, freeBytes } = await this.world.ledger.size();
    return bytes - freeBytes;
  }

  /** Those that were accepted first, among those of each state that ended first. */
  private async oldest(): Promise<string[]> {
    const { ledger, clock } = this.world;
    const now = clock.now();
    const { orphanedBefore } = this;
    const limits = { endedBefore: now, keyedBefore: now - keyedMs, orphanedBefore, limit: stepSize };
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
      await this.eraser.erase(what, ids, { orphanedBefore: this.orphanedBefore });
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
