/**
 * Text search as the product sees it: asks the librarian's thread, and tells it when to go on.
 *
 * The librarian works in steps of about 20 ms, so that a search never waits for long. While requests come in, it rests
 * after each step: for as long as the step took and a 25th of that again for every change a second, up to nine times
 * as long, which is a tenth of a core. When nothing comes in it goes on at once. So the index may fall behind under
 * load, and catches up after it; `behind` tells by how much.
 */

import { AppError, faultText } from "../../core/errors.ts";
import type { SearchIndex, SearchQuery } from "../../core/ledger/ports.ts";
import type { Clock, Observer } from "../../core/ports.ts";
import type { FiledOp } from "./op.ts";
import { removeSearchFile } from "./search-file.ts";
import { expressionOf } from "./search-words.ts";
import { Thread } from "./thread.ts";
import type { Asks } from "./worker.ts";

export interface SearchOptions {
  /** Of the database. */
  path: string;
  /** The number of this start. */
  epoch: number;
  isOn: boolean;
  clock: Clock;
  observer: Observer;
  /** Writes to the database what the librarian has done. */
  write(filed: FiledOp): Promise<void>;
}

const stepMs = 20;
/** How many requests a step deals with: fewer would be one write to the disk each, and more take more memory at once. */
const stepLimitMin = 16;
const stepLimitMax = 64;
/** Changes a second by which the rest after a step grows by the step's own length, and how often it does so at most. */
const changesPerShare = 25;
const sharesMax = 9;
/** So often the librarian looks for what is new; when nothing has changed for the second while, no more. */
const roundMs = 1000;
/** The first calls after a start have the machine to themselves. */
const firstRoundMs = 2000;
const quietAfterMs = 10_000;
/** A request that has not ended for so long is indexed by its prompt. */
const longMs = 5000;
/** After a step that went wrong, a full disk for instance. */
const troubleMs = 5000;
/** So many are written at once, that no request waits for long behind them. */
const writeMax = 64;
/** Forgetting one takes some milliseconds: so many at a time, that a search never waits for long. */
const forgetMax = 8;

export class Search implements SearchIndex {
  readonly isOn: boolean;
  private readonly options: SearchOptions;
  /** Started when it is first needed. */
  private thread: Promise<Thread> | undefined;
  private hasRestarted = false;
  /** The librarian is lost for good. */
  private isRuined = false;
  private isClosed = false;
  /** A step is under way, or will be. */
  private isAwake = true;
  private cancelNext: () => void = () => {};
  private steps: Promise<void> = Promise.resolve();
  private stepLimit = stepLimitMin;
  /** How many changes there were, when the last one was, and what of both was known when the last step began. */
  private changes = 0;
  private changedAt: number;
  private before: { changes: number; at: number };

  /** Should the thread not start, there is no search, and all else works. */
  constructor(options: SearchOptions) {
    this.options = options;
    this.isOn = options.isOn;
    this.changedAt = options.clock.ticks() - quietAfterMs;
    this.before = { changes: 0, at: options.clock.ticks() };
    this.goOnIn(firstRoundMs);
  }

  private start(): Promise<Thread> {
    const { path, epoch, isOn } = this.options;
    const thread = Thread.start({ role: "librarian", path, epoch, isRestart: this.hasRestarted, isOn });
    // Whoever asks it is told.
    thread.catch(() => {});
    return thread;
  }

  /** A request was accepted, or has changed. */
  note(): void {
    this.changes++;
    this.changedAt = this.options.clock.ticks();
    if (!this.isAwake && !this.isClosed) this.goOnIn(roundMs);
  }

  async find({ project, text, ...page }: SearchQuery): Promise<string[]> {
    const expression = expressionOf(project, text);
    try {
      return await this.ask("find", { expression, ...page });
    } catch (error) {
      this.tellFault(error);
      throw new AppError("storage_failed", "The text index cannot be read at the moment. Try again later.");
    }
  }

  async forget(ids: string[]): Promise<void> {
    if (!this.isOn) return;
    try {
      for (let i = 0; i < ids.length; i += forgetMax) await this.ask("forget", ids.slice(i, i + forgetMax));
      await this.ask("flush");
    } catch (error) {
      // Without a file there is nothing left to be forgotten.
      if (!this.isRuined) throw error;
    }
  }

  behind(): Promise<number> {
    return this.ask("behind");
  }

  /** When the step under way is done. */
  async close(): Promise<void> {
    this.isClosed = true;
    this.cancelNext();
    await this.steps;
    await this.thread?.then((thread) => thread.ask({ kind: "close" })).catch(() => {});
  }

  private goOnIn(ms: number): void {
    this.isAwake = true;
    this.cancelNext = this.options.clock.timer(ms, () => {
      this.steps = this.goOn();
    });
  }

  private async goOn(): Promise<void> {
    let pauseMs: number | undefined = 0;
    while (pauseMs === 0 && !this.isClosed) pauseMs = await this.step();
    this.isAwake = false;
    if (pauseMs !== undefined && !this.isClosed) this.goOnIn(pauseMs);
  }

  /** How long to rest after it; undefined: until something changes. */
  private async step(): Promise<number | undefined> {
    const { clock, observer, write } = this.options;
    if (this.isRuined) return undefined;
    const at = clock.ticks();
    try {
      const step = await this.ask("step", { waitingSince: clock.now() - longMs, limit: this.stepLimit });
      const tookMs = clock.ticks() - at;
      if (step.rebuilding !== undefined) observer.tell({ event: "search_rebuilding", why: step.rebuilding });
      if (step.fault !== undefined) observer.tell({ event: "fault", where: "search", message: step.fault });
      if (step.filed) for (const some of slices(step.filed)) await write(some);
      if (step.hasMore) return this.restAfter(at, tookMs);
      return clock.ticks() - this.changedAt < quietAfterMs ? roundMs : undefined;
    } catch (error) {
      this.tellFault(error);
      return troubleMs;
    }
  }

  private restAfter(at: number, tookMs: number): number {
    const { changes, before } = this;
    this.before = { changes, at };
    if (tookMs > stepMs) this.stepLimit = Math.max(stepLimitMin, this.stepLimit >> 1);
    else if (tookMs < stepMs / 2) this.stepLimit = Math.min(stepLimitMax, this.stepLimit * 2);
    const perSecond = ((changes - before.changes) * 1000) / Math.max(1, at - before.at);
    return tookMs * Math.min(sharesMax, perSecond / changesPerShare);
  }

  /** Asks the thread. One that is lost is started again, once, and asked again. */
  private async ask<N extends keyof Asks>(
    name: N,
    ...args: Parameters<Asks[N]>
  ): Promise<ReturnType<Asks[N]>> {
    if (this.isRuined) throw new Error("The librarian is lost.");
    this.thread ??= this.start();
    const asked = this.thread;
    try {
      return await (await asked).read(name, ...args);
    } catch (error) {
      const isGone = await asked.then(
        (thread) => thread.isGone,
        () => true,
      );
      if (!isGone || this.isClosed) throw error;
      this.replace(asked, error);
      return this.ask(name, ...args);
    }
  }

  private replace(lost: Promise<Thread>, error: unknown): void {
    if (this.thread !== lost || this.isRuined) return;
    this.tellFault(error);
    if (this.hasRestarted) {
      // Nobody is left to forget anything in it. The next start makes it anew.
      this.isRuined = true;
      removeSearchFile(this.options.path);
      return;
    }
    this.hasRestarted = true;
    this.thread = this.start();
  }

  /** Without the error's own words, which may quote a text. */
  private tellFault(error: unknown): void {
    this.options.observer.tell({ event: "fault", where: "search", message: faultText(error) });
  }
}

function* slices({ seqs, packs }: FiledOp): Iterable<FiledOp> {
  for (let i = 0; i < seqs.length; i += writeMax) {
    const some = seqs.slice(i, i + writeMax);
    const own = new Set(some.map(([seq]) => seq));
    yield { kind: "filed", seqs: some, packs: packs.filter(([seq]) => own.has(seq)) };
  }
}
