/** The one door to requests for api: submit, wait (`lines`), look up, retry, cancel. */

import { Admission, type Limits } from "./admission.ts";
import { Adoption, type AdoptionSettings } from "./adoption.ts";
import { AppError } from "./errors.ts";
import type { Waiting } from "./lanes.ts";
import { Ledger } from "./ledger/ledger.ts";
import type { RetryChange } from "./ledger/ports.ts";
import type { RetentionSettings } from "./ledger/retention.ts";
import { talliesOf } from "./ledger/usage.ts";
import { Lines, withAnswer } from "./lines.ts";
import type { ChangeSet, Ended, GroupKey, World } from "./ports.ts";
import { reportOf, type UpstreamReport } from "./report.ts";
import { type AttemptRecord, type CallSize, isReady, type RequestRecord, transition } from "./request.ts";
import { type ChangedContent, commit, type RoundSettings, Rounds } from "./rounds.ts";
import { Scheduler, type SchedulerSettings } from "./scheduler.ts";
import { type Draft, type Submission, Submissions } from "./submissions.ts";
import { Substitutes } from "./substitutes.ts";

export interface QueueSettings extends SchedulerSettings, AdoptionSettings, RoundSettings, RetentionSettings {
  limits: Limits;
}

/** How long the next start takes, so that who comes back then is served. */
const restartMs = 1000;

export class Queue {
  private readonly world: World;
  private readonly scheduler: Scheduler;
  private readonly rounds: Rounds;
  private readonly submissions: Submissions;
  /** To find, count, repeat and erase what was asked. */
  readonly ledger: Ledger;
  /** What becomes of keyless requests whose callers go. */
  readonly adoption: Adoption;
  /** Who waits for requests. */
  readonly lines: Lines;
  /** What callers get without a call, or in place of an answer. */
  readonly substitutes: Substitutes;
  readonly admission: Admission;
  private stopping = false;
  /** While stopping: until when calls under way may take. */
  private drainedAt = 0;

  constructor(world: World, settings: QueueSettings) {
    this.world = world;
    this.admission = new Admission(settings.limits, world);
    this.adoption = new Adoption(world, settings);
    this.substitutes = new Substitutes(world);
    this.scheduler = new Scheduler(world, settings, {
      isConnected: (id) => this.lines.isConnected(id),
      onParked: () => this.lines.tellStopping(false),
      onTrouble: (id) => this.substitutes.tellTrouble(id),
      onBreaker: () => this.substitutes.tellBreaker(),
      onBody: (bytes) => this.admission.count(bytes),
    });
    this.lines = new Lines(world, this.scheduler);
    this.rounds = new Rounds(world, settings, this.scheduler);
    const { admission, adoption, substitutes, scheduler, rounds, lines } = this;
    const { owner } = settings;
    const refusal = () => this.refusal();
    const needs = { owner, admission, adoption, substitutes, scheduler, rounds, lines, refusal };
    this.submissions = new Submissions(world, needs);
    this.ledger = new Ledger(world, settings, {
      get: (project, id) => this.get(project, id),
      retry: (record, change) => this.retryOne(record, change),
      cancel: (project, id) => this.cancel(project, id),
    });
  }

  /** Recovers what a crash left behind. Before any traffic, and before `begin`. */
  async recover(): Promise<void> {
    await this.adoption.recover();
    await this.scheduler.recover();
  }

  /** Begins to call upstreams. */
  begin(): void {
    this.scheduler.begin();
    this.ledger.begin();
  }

  /** Refuses new work at once, gives attempts under way `drainMs`, then stops them safely. */
  async stop(drainMs: number): Promise<void> {
    this.stopping = true;
    this.drainedAt = this.world.clock.now() + drainMs;
    this.lines.tellStopping(false);
    await Promise.all([this.scheduler.stop(drainMs), this.ledger.stop()]);
    this.lines.tellStopping(true);
  }

  get isStopping(): boolean {
    return this.stopping;
  }

  /** Whether new work is accepted, and if not, why. */
  refusal(): AppError | undefined {
    if (this.stopping) return this.shuttingDown();
    if (!this.world.store.hasSpace()) {
      return new AppError(
        "storage_full",
        "There is too little disk space to accept requests. Try again later.",
      );
    }
    return undefined;
  }

  /** While the server is stopping: come back when the drain is over, and not all at once. */
  shuttingDown(message = "The server is shutting down. Try again in a moment."): AppError {
    const { clock, random } = this.world;
    const leftMs = this.scheduler.lanes.inFlight > 0 ? Math.max(0, this.drainedAt - clock.now()) : 0;
    const retryAfterMs = leftMs + restartMs * (1 + random.next());
    return new AppError("shutting_down", message, { retryAfterMs });
  }

  /**
   * Commits a request, or finds the one that its idempotency key names. When it resolves the request is on
   * disk. With `hold`, a line to the request is open before it can end.
   * @throws AppError `shutting_down`, `storage_full`, `model_not_found`, `idempotency_key_reused`, …
   */
  submit(draft: Draft): Promise<Submission> {
    return this.submissions.submit(draft);
  }

  /** How many callers wait for the same turns whose requests are not accepted yet. */
  crowd(of: GroupKey): number {
    return this.scheduler.crowd(of);
  }

  /** A request of the project, by its own id or by the id of its answer. @throws AppError `request_not_found` */
  async get(project: string, id: string): Promise<RequestRecord> {
    const { store } = this.world;
    const record = id.startsWith("req_") ? await store.get(id) : await store.byResponse(project, id);
    if (record && record.project === project) return record;
    throw new AppError("request_not_found", `There is no request "${printable(id)}".`, { param: "id" });
  }

  /** A request that has ended, with what its callers get. */
  withAnswer(record: RequestRecord): Promise<Ended> {
    return withAnswer(this.world.store, record);
  }

  /**
   * Begins another round of a request that failed or was cancelled.
   * @throws AppError `request_active`, `request_completed`, `bodies_erased`, `model_not_found`, …
   */
  async retry(
    project: string,
    id: string,
    change: RetryChange,
    changed?: ChangedContent,
  ): Promise<RequestRecord> {
    return this.retryOne(await this.get(project, id), change, changed);
  }

  private async retryOne(
    record: RequestRecord,
    change: RetryChange,
    changed?: ChangedContent,
  ): Promise<RequestRecord> {
    const refusal = this.refusal();
    if (refusal) throw refusal;
    const begun = await this.rounds.retry(record, change, changed);
    if (begun.applied) return begun.record!;
    return this.retryOne(await this.get(record.project, record.id), change, changed);
  }

  attempts(id: string): Promise<AttemptRecord[]> {
    return this.world.store.attempts(id);
  }

  async body(id: string): Promise<Uint8Array | undefined> {
    const [body] = await this.world.store.parts(id, ["body"]);
    return body?.bytes;
  }

  /**
   * Cancels a request: one that waits never starts, one that runs is stopped. Cancelling a cancelled one
   * changes nothing. @throws AppError `request_ended` where it has completed or failed.
   */
  async cancel(project: string, id: string): Promise<RequestRecord> {
    for (;;) {
      const record = await this.get(project, id);
      if (record.state === "cancelled") return record;
      const isCalled = record.state === "processing";
      const call = isCalled ? await this.scheduler.attempts.cutShort(record.id) : undefined;
      const now = this.world.clock.now();
      const moved = transition(record, { type: "cancelled", now, ...call?.soFar });
      if (!moved) {
        call?.done?.(false);
        throw new AppError("request_ended", `The request is ${record.state} already.`, {
          requestId: record.id,
        });
      }
      const tallies = talliesOf(moved);
      const change: ChangeSet = { kind: "change", transition: moved, tallies, events: call?.events };
      const result = await commit(this.world, change).catch((error) => {
        call?.done?.(false);
        throw error;
      });
      call?.done?.(result.status === "applied");
      if (result.status === "conflict") continue;
      this.scheduler.drop(record);
      const { state, attempt: attempts, lastErrorCode: code } = moved.record;
      const durationMs = now - record.createdAt;
      this.world.observer.tell({ event: "ended", id: record.id, state, attempts, durationMs, code });
      return moved.record;
    }
  }

  /** What holds each upstream's lanes, and until when. */
  upstreams(): UpstreamReport[] {
    return reportOf(this.scheduler.lanes, this.world.clock.now());
  }

  /**
   * Counts a call that is let through without a record against the limits of its lane.
   * @throws AppError `rate_limited` where they do not allow it now
   */
  countLetThrough(lane: string, size: CallSize): void {
    const now = this.world.clock.now();
    const opensAt = this.scheduler.lanes.letThrough(lane, size, now);
    if (opensAt === undefined) return;
    const message = "The limits of this model's upstream are used up for the moment. Try again later.";
    throw new AppError("rate_limited", message, { retryAfterMs: opensAt - now });
  }

  /** Why a request waits and until when; undefined for one that does not wait. */
  explain(record: RequestRecord): Waiting | undefined {
    return isReady(record.state) ? this.scheduler.lanes.explain(record, this.world.clock.now()) : undefined;
  }
}

const printable = (id: string): string => id.slice(0, 80).replace(/[^\x21-\x7e]/g, "?");
