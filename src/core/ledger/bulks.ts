/**
 * The same thing done with many requests, page by page. How far it has come is on disk after each page: a restart goes
 * on from there, and what was done twice is done once, since each step depends on the state of its request.
 */

import { AppError, faultText, StorageError } from "../errors.ts";
import type { World } from "../ports.ts";
import { isTerminal, type RequestRecord } from "../request.ts";
import type { Eraser } from "./eraser.ts";
import type { Bulk, BulkAction, Filter, ListQuery, RetryChange } from "./ports.ts";

/** What is asked for. */
export interface BulkDraft {
  project: string;
  action: BulkAction;
  filter: Filter;
  text?: string;
  options?: RetryChange;
  idempotencyKey?: string;
  /** SHA-256 (hex) of what is asked. */
  fingerprint?: string;
}

/** What can be done with one request. */
export interface Hands {
  get(project: string, id: string): Promise<RequestRecord>;
  /** `record`: as it was a moment ago. */
  retry(record: RequestRecord, change: RetryChange): Promise<RequestRecord>;
  cancel(project: string, id: string): Promise<RequestRecord>;
}

/** Finds the requests of a page: see `Ledger.list`. */
type Find = (query: ListQuery & { text?: string }) => Promise<RequestRecord[]>;

/** One page: few enough that what else is written hardly waits for it, enough that most of the work is not the page. */
const pageSize = 128;
const troubleRetryMs = 1000;

/** Refusals that say that there is nothing to be done with a request any more. */
const notNeeded = new Set([
  "request_active",
  "request_completed",
  "request_ended",
  "request_not_failed",
  "request_not_found",
]);

interface Run {
  bulk: Bulk;
  isCancelled: boolean;
  endPause: () => void;
  ended: Promise<void>;
}

export class Bulks {
  private readonly world: World;
  private readonly hands: Hands;
  private readonly eraser: Eraser;
  private readonly find: Find;
  private readonly running = new Map<string, Run>();
  private stopping = false;

  constructor(world: World, hands: Hands, eraser: Eraser, find: Find) {
    this.world = world;
    this.hands = hands;
    this.eraser = eraser;
    this.find = find;
  }

  /** Goes on with what an earlier start left unfinished. */
  async recover(): Promise<void> {
    const { ledger } = this.world;
    for (let after: string | undefined; ; ) {
      const page = await ledger.bulks({ state: "in_progress", after, limit: 100 });
      for (const bulk of page) this.start(bulk);
      after = page.at(-1)?.id;
      if (after === undefined) return;
    }
  }

  async stop(): Promise<void> {
    this.stopping = true;
    for (const { endPause } of this.running.values()) endPause();
    await Promise.all([...this.running.values()].map(({ ended }) => ended));
  }

  /**
   * Commits a bulk and begins with it; one whose key is known is only found.
   * @throws AppError `idempotency_key_reused`, `invalid_parameter`, `storage_full`, …
   */
  async ask(draft: BulkDraft): Promise<{ bulk: Bulk; isKnown: boolean }> {
    const { ledger, clock, random, store } = this.world;
    const { project, idempotencyKey: key } = draft;
    const known = key === undefined ? undefined : await ledger.bulkByKey(project, key);
    if (known) return { bulk: this.same(known, draft), isKnown: true };
    const now = clock.now();
    const { filter, text } = draft;
    // Where a text cannot be looked for, it is said now.
    if (text !== undefined) await this.find({ ...filter, text, order: "desc", limit: 1 });
    // What matches is settled now: requests that are accepted later are not meant by it. Texts may be found later.
    const [last] = await ledger.list({ ...filter, order: "desc", limit: 1 });
    const bulk: Bulk = {
      ...draft,
      id: `bulk_${random.id().slice("req_".length)}`,
      state: last ? "in_progress" : "completed",
      total: text === undefined ? await this.count(filter) : undefined,
      done: 0,
      skipped: 0,
      failed: 0,
      lastId: last?.id,
      createdAt: now,
      updatedAt: now,
      endedAt: last ? undefined : now,
    };
    const { status } = await store.commit({ kind: "bulk", bulk });
    if (status !== "applied") return this.ask(draft);
    if (last) this.start(bulk);
    return { bulk, isKnown: false };
  }

  private same(known: Bulk, { fingerprint }: BulkDraft): Bulk {
    if (known.fingerprint === fingerprint) return this.current(known);
    const message = "This idempotency key was used for something else. Use a new key for a new request.";
    throw new AppError("idempotency_key_reused", message, { param: "idempotency_key" });
  }

  private async count(filter: Filter): Promise<number> {
    const counts = await this.world.ledger.counts(filter, []);
    return counts.reduce((sum, { count }) => sum + count, 0);
  }

  /** As far as it has come: memory knows more than the disk. */
  current(bulk: Bulk): Bulk {
    return this.running.get(bulk.id)?.bulk ?? bulk;
  }

  /** @throws AppError `bulk_not_found` */
  async get(project: string, id: string): Promise<Bulk> {
    const bulk = await this.world.ledger.bulk(id);
    if (bulk?.project === project) return this.current(bulk);
    throw new AppError("bulk_not_found", "There is no such bulk.", { param: "id" });
  }

  /** What is done stays done; the rest is left alone. One that has ended stays as it is. */
  async cancel(project: string, id: string): Promise<Bulk> {
    const bulk = await this.get(project, id);
    const run = this.running.get(bulk.id);
    if (!run) return bulk;
    run.isCancelled = true;
    run.endPause();
    await run.ended;
    return run.bulk;
  }

  private start(bulk: Bulk): void {
    const run: Run = { bulk, isCancelled: false, endPause: () => {}, ended: Promise.resolve() };
    this.running.set(bulk.id, run);
    run.ended = this.run(run).finally(() => this.running.delete(bulk.id));
  }

  private async run(run: Run): Promise<void> {
    while (!this.stopping) {
      try {
        const isOver = run.isCancelled || !(await this.step(run));
        if (!isOver) continue;
        return await this.end(run, run.isCancelled ? "cancelled" : "completed");
      } catch (error) {
        if (error instanceof StorageError && error.kind === "failed") return;
        const isTrouble = error instanceof StorageError || isFull(error);
        if (isTrouble) await this.pause(run);
        else return await this.fail(run, error);
      }
    }
  }

  /** One page. False where there is none left. */
  private async step(run: Run): Promise<boolean> {
    const isSettled = run.bulk.text === undefined || (await this.world.search.behind()) === 0;
    const page = await this.page(run.bulk);
    if (page.length === 0) {
      if (isSettled) return false;
      // What is found by its text may not be looked through yet.
      run.bulk = { ...run.bulk, cursor: undefined };
      await this.pause(run);
      return true;
    }
    // Whoever is erased is not found any more: who is to be is noted before.
    if (run.bulk.action === "erase" && run.bulk.text !== undefined)
      await this.keep(run, { ...run.bulk, cursor: page.map(({ id }) => id).join() });
    const results = await this.treat(run.bulk, page);
    const isErased = run.bulk.action === "erase";
    const cursor = isErased ? undefined : page.at(-1)!.id;
    const next = { ...run.bulk, cursor, updatedAt: this.world.clock.now() };
    for (const result of results) {
      if (result === "done" || result === "skipped") next[result]++;
      else {
        next.failed++;
        next.errorCode = result.code;
      }
    }
    await this.keep(run, next);
    if (results.length === 0) await this.pause(run);
    return !isSettled || isErased || page.length === pageSize;
  }

  private async page({ action, filter, text, cursor, lastId: upTo }: Bulk): Promise<RequestRecord[]> {
    const begun = action === "erase" ? (cursor?.split(",") ?? []) : [];
    const left = begun.length > 0 ? await this.world.ledger.many(begun) : [];
    if (left.length > 0) return left;
    const after = action === "erase" ? undefined : cursor;
    return this.find({ ...filter, text, after, upTo, order: "asc", limit: pageSize });
  }

  private treat(bulk: Bulk, page: RequestRecord[]): Promise<("done" | "skipped" | AppError)[]> {
    const { project, action, options = {} } = bulk;
    switch (action) {
      case "retry":
        return this.each(page, async (record) => {
          // It was retried before a crash cut its page short, and has failed again.
          if (!wasRevivedSince(record, bulk.createdAt)) await this.hands.retry(record, options);
        });
      case "cancel":
        return this.each(page, ({ id }) => this.hands.cancel(project, id));
      case "resolve":
        return this.resolve(page);
      case "erase":
        return this.erase(project, page);
    }
  }

  private each(page: RequestRecord[], act: (record: RequestRecord) => Promise<unknown>) {
    return Promise.all(
      page.map(async (record) => {
        try {
          await act(record);
          return "done" as const;
        } catch (error) {
          if (!(error instanceof AppError) || isFull(error)) throw error;
          return notNeeded.has(error.code) ? ("skipped" as const) : error;
        }
      }),
    );
  }

  private async resolve(page: RequestRecord[]) {
    const ids = page.filter(({ state }) => state === "failed").map(({ id }) => id);
    await this.world.store.commit({ kind: "resolve", ids, at: this.world.clock.now() });
    return page.map(({ state }) => (state === "failed" ? ("done" as const) : ("skipped" as const)));
  }

  /** One that lives on, because another round has just begun, is found again with the next page. */
  private async erase(project: string, page: RequestRecord[]) {
    const live = page.filter(({ state }) => !isTerminal(state));
    await this.each(live, ({ id }) => this.hands.cancel(project, id));
    const ids = page.map(({ id }) => id);
    await this.eraser.erase("record", ids);
    const left = new Set((await this.world.ledger.many(ids)).map(({ id }) => id));
    return ids.filter((id) => !left.has(id)).map(() => "done" as const);
  }

  private async end(run: Run, state: Bulk["state"]): Promise<void> {
    const now = this.world.clock.now();
    await this.keep(run, { ...forgetful(run.bulk), state, updatedAt: now, endedAt: now });
    const { id, action, done, failed } = run.bulk;
    this.world.observer.tell({ event: "bulk_ended", id, action, state, done, failed });
  }

  private async fail(run: Run, error: unknown): Promise<void> {
    const code = error instanceof AppError ? error.code : "internal_error";
    if (!(error instanceof AppError))
      this.world.observer.tell({ event: "fault", where: "bulk", message: faultText(error) });
    run.bulk = { ...run.bulk, errorCode: code };
    await this.end(run, "failed").catch(() => {});
  }

  private async keep(run: Run, bulk: Bulk): Promise<void> {
    run.bulk = bulk;
    await this.world.store.commit({ kind: "bulk", bulk });
  }

  private async pause(run: Run): Promise<void> {
    if (this.stopping || run.isCancelled) return;
    await new Promise<void>((resolve) => {
      const cancel = this.world.clock.timer(troubleRetryMs, resolve);
      run.endPause = () => {
        cancel();
        resolve();
      };
    });
  }
}

/** What was to be erased by what somebody had said of it is not to be read here for ever. */
function forgetful(bulk: Bulk): Bulk {
  if (bulk.action !== "erase") return bulk;
  return { ...bulk, text: undefined, filter: { ...bulk.filter, labels: undefined } };
}

const wasRevivedSince = ({ round, deadlineAt, terms }: RequestRecord, at: number): boolean =>
  round > 1 && deadlineAt - terms.deadlineMs >= at;

const passing = new Set(["storage_full", "storage_failed", "shutting_down"]);
/** The disk has no room now, or the text index is made anew: nothing is wrong with what is asked. */
const isFull = (error: unknown): boolean => error instanceof AppError && passing.has(error.code);
