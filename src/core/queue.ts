/** The one door to requests for api and dashboard: submit, wait, look up, cancel, list. */

import { Admission, type Limits } from "./admission.ts";
import { Adoption, type AdoptionSettings } from "./adoption.ts";
import type { Content } from "./attempts.ts";
import { AppError } from "./errors.ts";
import type { Slot } from "./lane.ts";
import type { Waiting } from "./lanes.ts";
import { Ledger } from "./ledger/ledger.ts";
import type { RetryChange } from "./ledger/ports.ts";
import type { RetentionSettings } from "./ledger/retention.ts";
import { talliesOf, talliesOfHit } from "./ledger/usage.ts";
import { Line } from "./line.ts";
import type { ChangeSet, Ended, GroupKey, World } from "./ports.ts";
import { type StreamFrom, StreamReader, type StreamSink } from "./reader.ts";
import { reportOf, type UpstreamReport } from "./report.ts";
import {
  type AttemptRecord,
  type CallSize,
  failedInVain,
  isReady,
  isTerminal,
  type Origin,
  type Owner,
  type Priority,
  type RequestRecord,
  startAtOnce,
  type Terms,
  transition,
} from "./request.ts";
import { type ChangedContent, commit, contentParts, type RoundSettings, Rounds } from "./rounds.ts";
import { Scheduler, type SchedulerSettings } from "./scheduler.ts";
import { Substitutes } from "./substitutes.ts";
import { Members } from "./table.ts";
import type { CacheWish } from "./wishes.ts";

/** What a caller asks for, as api has read it. */
export interface Draft {
  project: string;
  endpoint: string;
  model: string;
  content: Content;
  terms: Terms;
  priority: Priority;
  /** Epoch ms; undefined = now. */
  runAt?: number;
  tags: string[];
  origin?: Origin;
  promptHash?: string;
  /** The request that it is a copy of. */
  replayOf?: string;
  idempotencyKey?: string;
  fingerprint?: string;
  /** Where a call without a key, whose caller waits, may be repeated. */
  callHash?: string;
  /** SHA-256 (hex) of what is compared where `cache` or `onFailure` look for an equal request. */
  bodyHash?: string;
  cache?: CacheWish;
  /** By its own account the call is a retry of one before. */
  isRetry?: boolean;
  /** False where its caller gets something else in place of a failure, and so has no reason to come back for it. */
  takesEcho?: boolean;
  /** The caller stays on the line. */
  hold: boolean;
  /** Whether the caller has gone. With `hold`, what is not accepted by then never is. */
  isGone?: () => boolean;
  /** Calls back when the caller goes; the returned function ends that. */
  onGone?: (callback: () => void) => () => void;
}

export type Submission = {
  /**
   * `replayed`: the key is known and its request has ended. `joined`: it is still under way. `adopted`: an
   * equal call's request whose caller had gone. `echoed`: an equal call failed in vain a moment ago.
   */
  kind: "accepted" | "joined" | "replayed" | "adopted" | "echoed";
  record: RequestRecord;
  /** Open where the draft said `hold`, but for `echoed`; to be handed to `wait`, or closed. */
  line?: Line;
  /** The caller went while its request was being written: that it is an orphan is noted already. */
  hasGone?: boolean;
};

export interface QueueSettings extends SchedulerSettings, AdoptionSettings, RoundSettings, RetentionSettings {
  limits: Limits;
}

/** How long the next start takes, so that who comes back then is served. */
const restartMs = 1000;

export class Queue {
  private readonly world: World;
  private readonly owner: Owner;
  private readonly scheduler: Scheduler;
  private readonly rounds: Rounds;
  /** To find, count, repeat and erase what was asked. */
  readonly ledger: Ledger;
  /** What becomes of keyless requests whose callers go. */
  readonly adoption: Adoption;
  /** How many callers wait on the line for a request. */
  private readonly connected = new Map<string, number>();
  private readonly waiting = new Members<(last: boolean) => void>();
  /** What callers get without a call, or in place of an answer. */
  readonly substitutes: Substitutes;
  readonly admission: Admission;
  /** Requests that will wait to be called, and are just being written. */
  private arriving = 0;
  private stopping = false;
  /** While stopping: until when calls under way may take. */
  private drainedAt = 0;

  constructor(world: World, settings: QueueSettings) {
    this.world = world;
    this.admission = new Admission(settings.limits, world);
    this.owner = settings.owner;
    this.adoption = new Adoption(world, settings);
    this.substitutes = new Substitutes(world);
    this.scheduler = new Scheduler(world, settings, {
      isConnected: (id) => this.isConnected(id),
      onParked: () => this.tellStopping(false),
      onTrouble: (id) => this.substitutes.tellTrouble(id),
      onBreaker: () => this.substitutes.tellBreaker(),
      onBody: (bytes) => this.admission.count(bytes),
    });
    this.rounds = new Rounds(world, settings, this.scheduler);
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
    this.tellStopping(false);
    await Promise.all([this.scheduler.stop(drainMs), this.ledger.stop()]);
    this.tellStopping(true);
  }

  /** Callers whose request will not end here any more have their reply; at the `last`, all have. */
  private tellStopping(last: boolean): void {
    for (const tell of this.waiting) tell(last);
  }

  /** Whether a caller waits on the line for a request. */
  isConnected(id: string): boolean {
    return this.connected.has(id);
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
    return this.accept(draft).catch((error) => this.knownOr(error, draft));
  }

  private async accept(draft: Draft): Promise<Submission> {
    const refusal = this.refusal();
    if (refusal) throw refusal;
    const record = this.newRecord(draft);
    const known = this.substitutes.mayKnow(draft) ? await this.fromCache(draft, record) : undefined;
    if (known) return known;
    try {
      let slot = this.scheduler.slotFor(record);
      if (!slot && mayWaitUnaccepted(draft)) {
        const soon = this.scheduler.slotSoon(record, draft.hold);
        if (soon) slot = await soon;
        this.checkStillWanted(draft, slot);
      }
      return slot ? await this.write(draft, record, slot) : await this.writeQueued(draft, record);
    } finally {
      // Callers choose the names of models: a lane that was only looked at must not stay.
      this.scheduler.lanes.tidy(record.lane, this.world.clock.now());
    }
  }

  /** @throws AppError where nothing new is taken any more; undefined where a caller on the line has gone meanwhile */
  private checkStillWanted(draft: Draft, slot: Slot | undefined): void {
    const refusal = this.refusal();
    // Who does not wait for the answer may go: it wants its request accepted.
    if (!refusal && !(draft.hold && draft.isGone?.())) return;
    if (slot) this.scheduler.release(slot);
    throw refusal;
  }

  /** What was answered before is answered again, without a call: on a record of its own, so that it is known. */
  private async fromCache(draft: Draft, record: RequestRecord): Promise<Submission | undefined> {
    const { idempotencyKey, hold } = draft;
    const hit = await this.substitutes.cached(draft, record);
    if (!hit) return undefined;
    const now = this.world.clock.now();
    const answered: RequestRecord = {
      ...record,
      ...hit.facts,
      // It is not what later ones are answered with: it would never grow old.
      bodyHash: undefined,
      callHash: undefined,
      state: "completed",
      endReason: "answered",
      dueAt: now,
      endedAt: now,
    };
    const parts = [...contentParts(draft.content), ...hit.answer];
    const key = idempotencyKey === undefined ? undefined : keyOf(draft);
    const tallies = talliesOfHit(answered);
    const result = await this.commit({ kind: "accept", record: answered, parts, tallies, key });
    if (result.status === "conflict") return this.known(draft, result.current);
    this.world.observer.tell({ event: "cache_hit", id: answered.id, from: hit.facts.cachedFrom });
    if (!hold) return { kind: "accepted", record: answered };
    const line = this.openLine(answered.id);
    line.hear({ record: answered, answer: hit.answer });
    return { kind: "accepted", record: answered, line };
  }

  private async writeQueued(draft: Draft, record: RequestRecord): Promise<Submission> {
    const refusal = this.admission.queueRefusal(this.scheduler.lanes.waiting + this.arriving);
    if (refusal) return this.repeatedOr(refusal, draft);
    this.arriving++;
    try {
      return await this.write(draft, record);
    } finally {
      this.arriving--;
    }
  }

  /** Where nothing new is taken, a retry still finds what it has asked for before. */
  private async repeatedOr(refusal: AppError, draft: Draft): Promise<Submission> {
    const { callHash } = draft;
    if (callHash === undefined) throw refusal;
    const repeats = this.adoption.repeats(draft, this.world.clock.now());
    const result = await this.commit({ kind: "repeat", callHash, repeats });
    if (result.status !== "adopted" && result.status !== "echoed") throw refusal;
    return this.repeated(result.status, result.current);
  }

  private async write(draft: Draft, record: RequestRecord, slot?: Slot): Promise<Submission> {
    const now = this.world.clock.now();
    const first = slot ? startAtOnce(record, { now, owner: this.owner }) : record;
    const line = draft.hold ? this.openLine(record.id) : undefined;
    const change: ChangeSet = {
      kind: "accept",
      record: first,
      parts: contentParts(draft.content),
      key: keyOf(draft),
      repeats: draft.callHash === undefined ? undefined : this.adoption.repeats(draft, now),
    };
    const abandon = () => {
      line?.close();
      if (slot) this.scheduler.release(slot);
    };
    const committed = this.commit(change);
    // Whoever goes now may come back before the commit does: the mark has to stand right behind the accept.
    let hasGone = false;
    const unwatch =
      draft.callHash === undefined
        ? undefined
        : draft.onGone?.(() => {
            hasGone = true;
            this.adoption.orphaned(record.id, false);
          });
    const result = await committed.catch((error) => {
      unwatch?.();
      abandon();
      throw error;
    });
    unwatch?.();
    if (result.status !== "applied") {
      abandon();
      if (result.status === "conflict") return this.known(draft, result.current);
      return this.repeated(result.status, result.current);
    }
    const { id, lane, state } = first;
    this.world.observer.tell({ event: "accepted", id, lane, state });
    if (slot) this.scheduler.run(first, slot, draft.content);
    else this.scheduler.enqueue(record, draft.content);
    if (hasGone) line?.close();
    return { kind: "accepted", record: first, line, hasGone };
  }

  /** A keyless call that gets what an equal one left behind. */
  private async repeated(kind: "adopted" | "echoed", record: RequestRecord): Promise<Submission> {
    this.world.observer.tell({ event: kind, id: record.id });
    if (kind === "echoed") return { kind, record };
    try {
      return { kind, record, line: await this.listen(record.id, { caller: true }) };
    } catch (error) {
      this.adoption.orphaned(record.id, false);
      throw error;
    }
  }

  /** A line to a request that may have ended already. `caller`: see `Line`. */
  async listen(id: string, as: { caller: boolean }): Promise<Line> {
    const line = this.openLine(id, as.caller);
    try {
      const ended = await this.ended(id);
      if (ended) line.hear(ended);
      return line;
    } catch (error) {
      line.close();
      throw error;
    }
  }

  /**
   * Waits on a line until the request ends, at most `waitMs`, and closes the line. Undefined when it has not
   * ended by then, when `hangUp` is called because nobody listens any more, or when the server stops and
   * the request is not just being answered.
   */
  wait(line: Line, waitMs: number, onHangUp?: (hangUp: () => void) => void): Promise<Ended | undefined> {
    return new Promise((resolve) => {
      const finish = (ended: Ended | undefined) => {
        cancelTimer();
        this.waiting.delete(member);
        line.close();
        resolve(ended);
      };
      const onStopping = (last: boolean) => {
        if (last || !this.scheduler.isRunning(line.id)) finish(undefined);
      };
      const cancelTimer = this.world.clock.timer(waitMs, () => finish(undefined));
      const member = this.waiting.add(onStopping);
      onHangUp?.(() => finish(undefined));
      line.onEnded(finish);
      if (this.stopping) onStopping(false);
    });
  }

  /** How many callers wait for the same turns whose requests are not accepted yet. */
  crowd(of: GroupKey): number {
    return this.scheduler.crowd(of);
  }

  /** Reads the stream of a request to its end. The line is the reader's from now on. */
  async read(line: Line, record: RequestRecord, from: StreamFrom, sink: StreamSink): Promise<StreamReader> {
    const { store } = this.world;
    const isRunning = record.terms.stream && !line.ended && !from.wholeOnly;
    const feed = isRunning ? await this.scheduler.feeds.open(record) : undefined;
    const reader = new StreamReader(store, line, feed, { ...from, forks: record.forks }, sink);
    const onStopping = (last: boolean) => {
      // What has ended is read to its end.
      if (!line.ended && (last || !this.scheduler.isRunning(line.id))) reader.stop();
    };
    const member = this.waiting.add(onStopping);
    reader.onClose = () => this.waiting.delete(member);
    reader.start();
    if (this.stopping) onStopping(false);
    return reader;
  }

  /** The request with its answer, if it has ended. */
  async ended(id: string): Promise<Ended | undefined> {
    const record = await this.world.store.get(id);
    return record && isTerminal(record.state) ? this.withAnswer(record) : undefined;
  }

  async withAnswer(record: RequestRecord): Promise<Ended> {
    const answer = await this.world.store.parts(record.id, ["answer_head", "answer"]);
    return { record, answer };
  }

  /** A request of the project, by its own id or by the id of its answer. @throws AppError `request_not_found` */
  async get(project: string, id: string): Promise<RequestRecord> {
    const { store } = this.world;
    const record = id.startsWith("req_") ? await store.get(id) : await store.byResponse(project, id);
    if (record && record.project === project) return record;
    throw new AppError("request_not_found", `There is no request "${printable(id)}".`, { param: "id" });
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
      const result = await this.commit(change).catch((error) => {
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

  private newRecord(draft: Draft): RequestRecord {
    const { clock, random } = this.world;
    const now = clock.now();
    const { project, endpoint, model, terms, priority, tags, idempotencyKey, fingerprint, callHash } = draft;
    const dueAt = draft.runAt ?? now;
    const deadlineAt = dueAt + terms.deadlineMs;
    const id = random.id();
    // Every field is there from the start: records that never change their shape are copied fast.
    return {
      id,
      project,
      endpoint,
      model,
      state: "queued",
      lane: this.rounds.firstLane(id, draft, deadlineAt),
      priority,
      dueAt,
      createdAt: now,
      updatedAt: now,
      startedAt: undefined,
      endedAt: undefined,
      deadlineAt,
      attempt: 0,
      round: 1,
      counted: 0,
      throttled: 0,
      invalid: 0,
      excluded: [],
      unreachableSince: undefined,
      owner: undefined,
      terms,
      idempotencyKey,
      fingerprint,
      callHash,
      duplicatePossible: false,
      tags,
      origin: draft.origin,
      promptHash: draft.promptHash,
      replayOf: draft.replayOf,
      resolvedAt: undefined,
      bodiesErasedAt: undefined,
      upstream: undefined,
      servedModel: undefined,
      responseId: undefined,
      usage: undefined,
      cost: undefined,
      findings: undefined,
      degraded: undefined,
      bodyHash: draft.bodyHash,
      cachedFrom: undefined,
      error: undefined,
      lastErrorCode: undefined,
      endReason: undefined,
      forks: [],
    };
  }

  private commit(change: ChangeSet) {
    return commit(this.world, change);
  }

  /** What cannot be accepted may be known by its key: that is neither new work nor in need of a route. */
  private async knownOr(refusal: unknown, draft: Draft): Promise<Submission> {
    const key = keyOf(draft);
    if (!key || !(refusal instanceof AppError) || refusal.requestId !== undefined) throw refusal;
    const known = this.world.store.byKey(key.project, key.endpoint, key.key);
    // Where the store cannot even be read, the refusal says more than that.
    const current = await known.catch(() => undefined);
    if (!current || failedInVain(current)) throw refusal;
    return this.known(draft, current);
  }

  /** What an idempotency key that is taken leads to. */
  private async known(draft: Draft, current: RequestRecord | undefined): Promise<Submission> {
    if (!current) throw new AppError("internal_error", "A new request collided with an old one. Try again.");
    if (current.fingerprint !== draft.fingerprint) {
      throw new AppError(
        "idempotency_key_reused",
        "This idempotency key was used with another body. Use a new key for a new request.",
        { param: "idempotency_key", requestId: current.id },
      );
    }
    if (failedInVain(current)) return this.revive(draft, current);
    return this.knownAs(isTerminal(current.state) ? "replayed" : "joined", draft, current);
  }

  private async knownAs(
    kind: "joined" | "replayed",
    draft: Draft,
    record: RequestRecord,
  ): Promise<Submission> {
    const line = draft.hold ? await this.listen(record.id, { caller: true }) : undefined;
    return { kind, record, line };
  }

  /** A key whose request failed for want of time or attempts starts a new round on the same record. */
  private async revive(draft: Draft, current: RequestRecord): Promise<Submission> {
    const { content, model, promptHash } = draft;
    // What it asks for is the same; it is needed where the body that was stored has been erased since.
    const changed = current.bodiesErasedAt === undefined ? undefined : { content, model, promptHash };
    // The body that is stored says whether the upstream is asked for a stream.
    const terms = { ...draft.terms, stream: (changed ? draft : current).terms.stream };
    const dueAt = draft.runAt ?? this.world.clock.now();
    const begun = await this.rounds.begin(current, { terms, dueAt, changed });
    if (begun.applied) return this.knownAs("joined", draft, begun.record!);
    return begun.record === current
      ? this.knownAs("replayed", draft, current)
      : this.known(draft, begun.record);
  }

  private openLine(id: string, caller = true): Line {
    const count = (by: number) => {
      const callers = (this.connected.get(id) ?? 0) + by;
      if (callers > 0) this.connected.set(id, callers);
      else this.connected.delete(id);
    };
    if (caller) count(1);
    return new Line(this.world.store, id, () => caller && count(-1));
  }
}

/** A call that cannot be known yet. */
const mayWaitUnaccepted = ({ idempotencyKey, isRetry }: Draft): boolean =>
  idempotencyKey === undefined && !isRetry;

function keyOf({ project, endpoint, idempotencyKey }: Draft) {
  return idempotencyKey === undefined ? undefined : { project, endpoint, key: idempotencyKey };
}

const printable = (id: string): string => id.slice(0, 80).replace(/[^\x21-\x7e]/g, "?");
