/** The attempts under way in this process: call → decide → apply → tell. */

import { failures, faultText, StorageError } from "./errors.ts";
import { partsOf } from "./exchange.ts";
import type { Feed, Feeds } from "./feed.ts";
import { Intake } from "./intake.ts";
import type { Slot } from "./lane.ts";
import type { Lanes } from "./lanes.ts";
import { talliesOf } from "./ledger/usage.ts";
import type {
  Abort,
  CallEnd,
  ChangeSet,
  Checks,
  UpstreamCall,
  UpstreamEvent,
  Vector,
  World,
} from "./ports.ts";
import { costOf, type Price } from "./price.ts";
import {
  isTerminal,
  laneParts,
  type RequestEvent,
  type RequestRecord,
  type Step,
  type Transition,
  transition,
} from "./request.ts";
import { type Backoff, classify, decide, decideInterrupted, type Reading } from "./retry.ts";
import { Table } from "./table.ts";
import type { Targets } from "./targets.ts";
import { estimatedUsage, type Usage, usageOf } from "./token-estimate.ts";
import { Recall, type VectorPlan } from "./vectors.ts";

export interface AttemptSettings {
  /** While a caller is connected, and otherwise. */
  heldBackoff: Backoff;
  backoff: Backoff;
  /** How long a plain held call may wait for an upstream that cannot be reached. */
  unreachableAfterMs: number;
  /** How long one attempt may take; a stream may go on as long as it is alive. */
  attemptMs: number;
  /** How long a stream may be without its first content, and then how long it may be silent. */
  firstTokenMs: number;
  idleMs: number;
  prices: Price[];
}

/** What the scheduler has for attempts. */
export interface Dispatch {
  lanes: Lanes;
  feeds: Feeds;
  targets: Pick<Targets, "openingsFor" | "hasAlternatives">;
  /** A stream has said something. */
  heard(slot: Slot): void;
  /** Looks whether somebody has set the wall clock. */
  checkClock(): void;
}

/** Those who wait on the line. */
interface Listeners {
  isConnected: (id: string) => boolean;
  onTrouble: (id: string) => void;
}

/** What a call needs beside its record. */
export interface Content {
  head: { method: string; path: string; headers: [string, string][]; checks?: Checks; vectors?: VectorPlan };
  body: Uint8Array;
  /** What the attempt is told beside the body: see `UpstreamCall`. */
  feedback?: string[];
}

/** What becomes of a request with the end of an attempt. */
type AttemptEnd = Extract<RequestEvent, { type: "ended" | "interrupted" }>;

type Timeout = "attempt" | "share" | "deadline" | "first_token" | "idle";
type Stop = Timeout | "ended" | "shutdown";

interface Run {
  /** What of its answer is known already, where it is answered in parts. */
  recall?: Recall;
  record: RequestRecord;
  slot: Slot;
  startedAt: number;
  promptBytes: number;
  abort: Abort;
  /** Why the call was stopped from here. */
  stopped?: Stop;
  stream?: Streaming;
}

/** What goes with an attempt whose answer is a stream. */
interface Streaming {
  feed: Feed;
  intake: Intake;
  /** Epoch ms of the last sign of life, and of the first content. */
  heardAt: number;
  contentAt?: number;
  /** The answer waits for the disk: its silence is ours. */
  isHeldBack?: boolean;
}

const storageRetryMs = 250;
const shortestShareMs = 60_000;

export class Attempts {
  private readonly running = new Table<string, Run>();
  private readonly world: World;
  private readonly settings: AttemptSettings;
  private readonly lanes: Lanes;
  private readonly feeds: Feeds;
  private readonly dispatch: Dispatch;
  private readonly listeners: Listeners;
  private closing = false;

  constructor(world: World, settings: AttemptSettings, dispatch: Dispatch, listeners: Listeners) {
    this.world = world;
    this.settings = settings;
    this.lanes = dispatch.lanes;
    this.feeds = dispatch.feeds;
    this.dispatch = dispatch;
    this.listeners = listeners;
  }

  isRunning(id: string): boolean {
    return this.running.has(id);
  }

  /** Stops the call of a request that has ended by somebody else's hand. False where none is under way here. */
  stop(id: string): boolean {
    const run = this.running.get(id);
    if (run) stopRun(run, "ended");
    return run !== undefined;
  }

  /** Stops every call; each is written as interrupted. */
  shutDown(): void {
    this.closing = true;
    for (const run of this.running.values()) stopRun(run, "shutdown");
  }

  /**
   * Makes the call of an attempt that has been committed as started, and sees it through to disk. Resolves
   * with the record where it has to wait for another attempt, undefined where it has ended or was fenced.
   * The slot is given back when the result is on disk, so a slow disk slows the intake, not the memory.
   */
  async run(record: RequestRecord, slot: Slot, content: Content): Promise<RequestRecord | undefined> {
    const { clock, observer } = this.world;
    const startedAt = clock.now();
    const abort: Abort = { aborted: false, onAbort: undefined };
    const run: Run = { record, slot, startedAt, promptBytes: content.body.byteLength, abort };
    this.running.set(record.id, run);
    // Its commit came back when all others had been stopped.
    if (this.closing) stopRun(run, "shutdown");
    observer.tell({ event: "attempt_started", id: record.id, attempt: record.attempt, lane: record.lane });
    try {
      if (record.terms.stream) run.stream = await this.streaming(record);
      const ended = await this.call(run, content);
      this.dispatch.checkClock();
      return await this.settle(run, ended, clock.now());
    } catch (error) {
      observer.tell({ event: "fault", where: "attempt", message: faultText(error) });
      // Where it was to try whether the upstream is well, the next one may.
      this.lanes.forgetProbe(slot, clock.now());
      // Where the store is in doubt the next start deals with it; whatever else went wrong must leave nobody waiting.
      if (!(error instanceof StorageError)) await this.fail(run, clock.now());
      return undefined;
    } finally {
      this.running.delete(record.id);
      this.lanes.free(slot);
    }
  }

  /** The wall clock was set: what is under way has as long as before. */
  clockSet(byMs: number): void {
    for (const run of this.running.values()) {
      run.record = { ...run.record, deadlineAt: run.record.deadlineAt + byMs };
      run.startedAt += byMs;
      if (!run.stream) continue;
      run.stream.heardAt += byMs;
      if (run.stream.contentAt !== undefined) run.stream.contentAt += byMs;
    }
  }

  private async fail({ record, slot: { waitedFor } }: Run, now: number): Promise<void> {
    const { upstream } = laneParts(record.lane);
    const failure = failures.unstorable(upstream);
    const moved = transition(record, {
      type: "ended",
      now,
      result: { verdict: "ambiguous", waitedFor, failure },
      step: { kind: "fail", failure, counted: true, reason: "outcome_unknown" },
    });
    if (!moved) return;
    const tallies = talliesOf(moved);
    await this.commitAtLast({ kind: "change", transition: moved, tallies }).catch(() => {});
  }

  private async streaming(record: RequestRecord): Promise<Streaming> {
    const feed = await this.feeds.open(record);
    feed.fenceWith(record);
    const source = { attempt: record.attempt, lane: record.lane, headers: [] };
    const intake = new Intake(feed, source, record.terms.stream?.mode === "buffered");
    return { feed, intake, heardAt: this.world.clock.now() };
  }

  private async call(run: Run, { head, body, feedback }: Content): Promise<CallEnd> {
    const { record, abort, stream } = run;
    const { upstream, model } = laneParts(record.lane);
    const { method, path, headers, checks, vectors } = head;
    if (vectors) run.recall = await Recall.of(this.world.cache, record, vectors, run.startedAt);
    const call: UpstreamCall = {
      upstream,
      model,
      askedModel: record.model,
      method,
      path,
      headers,
      body: run.recall?.bodyOf(body) ?? body,
      checks,
      feedback,
      keepSent: record.terms.store === "all",
    };
    const cancelTimers = this.limit(run);
    let ended: CallEnd;
    try {
      const waitMs = this.waitForPlaceMs(run);
      if (waitMs > 0) await this.placeFor(run, waitMs);
      ended = await (stream ? this.read(run, stream, call) : this.world.upstream.call(call, abort));
    } finally {
      cancelTimers();
    }
    const { outcome } = ended;
    if (outcome.kind === "aborted" && outcome.sent && isTimeout(run.stopped))
      return { ...ended, outcome: { kind: "timeout", phase: run.stopped } };
    return run.recall ? { ...ended, outcome: run.recall.wholeOf(outcome) } : ended;
  }

  /** Reads an answer that comes as a stream. */
  private async read(run: Run, stream: Streaming, call: UpstreamCall): Promise<CallEnd> {
    const { record, abort } = run;
    const wish = { usage: record.terms.stream?.usage ?? false, identity: stream.feed.identity };
    for await (const event of this.world.upstream.stream(call, wish, abort)) {
      if (event.kind === "ended") return event;
      const room = this.hear(run, stream, event);
      if (room) await room;
    }
    return { kind: "ended", outcome: { kind: "aborted", sent: true } };
  }

  /**
   * Limits count the call from now on. Told is how long until they let it through, in ms; they did when its start was
   * handed to the disk.
   */
  private waitForPlaceMs({ slot }: Run): number {
    const now = this.world.clock.now();
    return this.lanes.sending(slot, now) - now;
  }

  private async placeFor(run: Run, waitMs: number): Promise<void> {
    for (let leftMs = waitMs; leftMs > 0 && !run.abort.aborted; leftMs = this.waitForPlaceMs(run)) {
      await new Promise<void>((resolve) => {
        this.world.clock.timer(leftMs, resolve);
      });
    }
  }

  /** Stops a call that takes too long. The returned function ends that. */
  private limit(run: Run): () => void {
    const { clock } = this.world;
    const { record, startedAt, stream } = run;
    const leftMs = Math.max(0, record.deadlineAt - startedAt);
    const shareMs = this.shareMs(record, leftMs);
    const attemptMs = Math.min(this.settings.attemptMs, shareMs);
    const isHurried = shareMs < this.settings.attemptMs && isLate(record, leftMs);
    const ownPhase = isHurried ? "share" : "attempt";
    const phase = stream || leftMs <= attemptMs ? "deadline" : ownPhase;
    const cancelLimit = clock.timer(stream ? leftMs : Math.min(leftMs, attemptMs), () => stopRun(run, phase));
    const cancelSilence = stream ? this.limitSilence(run, stream) : undefined;
    return () => {
      cancelLimit();
      cancelSilence?.();
    };
  }

  /**
   * What is left of the time of a caller who waits is shared with the targets that could be tried after this one: one
   * that never answers must not take all of it. A share in which many an answer would not come is none.
   */
  private shareMs(record: RequestRecord, leftMs: number): number {
    if (!record.terms.held || !this.dispatch.targets.hasAlternatives(laneParts(record.lane).upstream))
      return leftMs;
    const targets = this.dispatch.targets.openingsFor(record);
    const own = targets.findIndex(({ lane }) => lane === record.lane);
    const now = this.world.clock.now();
    const others = targets.slice(own + 1).filter(({ opensAt }) => opensAt <= now).length;
    const shareMs = leftMs / (1 + others);
    return shareMs < shortestShareMs ? leftMs : shareMs;
  }

  /** One timer, set anew when it fires: one for each chunk would cost more than the chunk. */
  private limitSilence(run: Run, stream: Streaming): () => void {
    const { clock } = this.world;
    const { firstTokenMs, idleMs } = this.settings;
    let cancelTimer = () => {};
    const look = () => {
      this.dispatch.checkClock();
      const begun = stream.intake.hasContent;
      if (stream.isHeldBack) stream.heardAt = clock.now();
      const endsAt = begun ? stream.heardAt + idleMs : run.startedAt + firstTokenMs;
      const leftMs = endsAt - clock.now();
      if (leftMs <= 0) return stopRun(run, begun ? "idle" : "first_token");
      // The first content may come at any moment, and from then on another limit holds.
      cancelTimer = clock.timer(begun ? leftMs : Math.min(leftMs, idleMs), look);
    };
    look();
    return () => cancelTimer();
  }

  /** Returns a promise only where the answer has to wait: one for each chunk would be dear. */
  private hear(
    { abort, slot }: Run,
    stream: Streaming,
    event: Exclude<UpstreamEvent, CallEnd>,
  ): Promise<void> | undefined {
    const { feed, intake } = stream;
    if (event.kind === "head") {
      intake.head(event.headers);
      return undefined;
    }
    stream.heardAt = this.world.clock.now();
    intake.take(event.chunks);
    if (intake.hasContent && stream.contentAt === undefined) {
      stream.contentAt = stream.heardAt;
      this.dispatch.heard(slot);
    }
    return feed.hasRoom || abort.aborted ? undefined : this.waitForRoom(stream);
  }

  private async waitForRoom(stream: Streaming): Promise<void> {
    stream.isHeldBack = true;
    await stream.feed.room();
    stream.isHeldBack = false;
    stream.heardAt = this.world.clock.now();
  }

  private async settle(run: Run, called: CallEnd, now: number): Promise<RequestRecord | undefined> {
    const { record, slot } = run;
    const { outcome, connectedAt } = called;
    const stoppedByUs = outcome.kind === "aborted" && (run.stopped === "ended" || run.stopped === "shutdown");
    const reading = classify(outcome, record.lane, now);
    if (reading.used) reading.result.cost = this.costOf(record, reading.used);
    // A call that we stopped tells nothing about its upstream; its probe, if it was one, is free again.
    if (stoppedByUs) this.lanes.forgetProbe(slot, now);
    else {
      const isWhole = !run.recall?.isCut;
      this.lanes.learn(slot, record, reading, { now, luck: this.world.random.next(), isWhole });
    }
    if (run.stopped === "ended") return undefined;
    const end = this.endOf(record, reading, now, stoppedByUs);
    end.result.waitedFor = slot.waitedFor;
    end.result.connectedAt = connectedAt;
    const streamed = run.stream && (await this.streamed(run.stream, run, end));
    const moved = transition(run.stream ? { ...record, forks: run.stream.feed.forks } : record, end);
    if (!moved) return undefined;
    const ends = isTerminal(moved.record.state);
    const change = {
      kind: "change" as const,
      transition: moved,
      parts: partsOf(called, reading, moved),
      tallies: talliesOf(moved, reading.used),
      events: streamed?.events,
      vectors: this.vectorsOf(run, moved, now),
    };
    let isApplied = false;
    try {
      isApplied = await this.commitAtLast(change);
    } finally {
      streamed?.done(isApplied);
    }
    if (!isApplied) return undefined;
    this.tell(run, moved, reading, now);
    if (!ends && reading.timedOut) this.listeners.onTrouble(record.id);
    return ends ? undefined : moved.record;
  }

  private costOf({ lane }: RequestRecord, used: Usage): number | undefined {
    const { upstream, model } = laneParts(lane);
    return costOf(this.settings.prices, upstream, model, used);
  }

  private vectorsOf({ recall }: Run, { record }: Transition, now: number): Vector[] | undefined {
    return recall && record.state === "completed" ? recall.learned(record, now) : undefined;
  }

  /** What is left of a stream to be written with the end of its attempt, whose result learns what it used. */
  private async streamed(
    { feed, intake, contentAt }: Streaming,
    { record, promptBytes }: Run,
    end: AttemptEnd,
  ) {
    const { type, result, step } = end;
    // Callers of one that goes on after a restart are told so instead.
    intake.end(result.verdict === "success", type === "ended" && step.kind === "retry");
    result.firstByteAt ??= contentAt;
    if (intake.chars > 0 && result.usage === undefined) {
      result.usage = estimatedUsage(promptBytes, intake.chars);
      result.cost = this.costOf(record, usageOf(result.usage));
    }
    return feed.rest();
  }

  /**
   * Of a request that is being called and is about to be ended by somebody else's hand: what is left to write, and what
   * it has used, estimated. Undefined where no call is under way here.
   */
  async cutShort(id: string) {
    const run = this.running.get(id);
    if (!run) return undefined;
    const { stream, promptBytes, record, slot } = run;
    const rest = await stream?.feed.rest();
    const usage = estimatedUsage(promptBytes, stream?.intake.chars ?? 0);
    const cost = this.costOf(record, usageOf(usage));
    const { waitedFor } = slot;
    const firstByteAt = stream?.contentAt;
    return { ...rest, soFar: { waitedFor, firstByteAt, forks: stream?.feed.forks, usage, cost } };
  }

  private endOf(record: RequestRecord, reading: Reading, now: number, stoppedByUs: boolean): AttemptEnd {
    if (stoppedByUs) return { type: "interrupted", now, ...decideInterrupted(record, now) };
    const step = this.withinBudget(record, this.decide(record, reading, now), now);
    return { type: "ended", now, result: reading.result, step };
  }

  private decide(record: RequestRecord, reading: Reading, now: number): Step {
    const { heldBackoff, backoff, unreachableAfterMs } = this.settings;
    // What follows a success is plain: nobody else need be looked at.
    if (reading.verdict === "success") return { kind: "complete" };
    const targets = this.dispatch.targets.openingsFor(record);
    return decide(record, reading, {
      now,
      luck: this.world.random.next(),
      // Its own one where the configuration no longer knows the model.
      targets: targets.length > 0 ? targets : [this.lanes.opening(record.lane, now)],
      backoff: this.listeners.isConnected(record.id) ? heldBackoff : backoff,
      unreachableAfterMs,
      unreachableSince: this.lanes.unreachableSince(record.lane),
      isPatient: record.priority !== "interactive",
    });
  }

  /**
   * Where an upstream has failed too many calls of late, those that it failed wait longer before they are its work
   * again. That no request fails by: one whose deadline comes first fails by that.
   */
  private withinBudget(record: RequestRecord, step: Step, now: number): Step {
    if (step.kind !== "retry") return step;
    const { upstream } = laneParts(step.lane);
    const isAgain = upstream === laneParts(record.lane).upstream;
    const isWork = step.counted || step.reason === "invalid_output";
    if (!isAgain || !isWork) return step;
    const at = this.lanes.retryAt(upstream, now);
    if (at <= step.dueAt) return step;
    this.world.observer.tell({ event: "parked", id: record.id, upstream, until: at });
    return { ...step, dueAt: at };
  }

  /**
   * Writes the end of an attempt, however long the disk is full: the answer is paid for. Gives up where
   * the file is in doubt (the process is about to stop; the next start finds the attempt interrupted) and
   * while stopping.
   */
  private async commitAtLast(change: Extract<ChangeSet, { kind: "change" }>): Promise<boolean> {
    const { store, clock, observer } = this.world;
    const { record } = change.transition;
    for (;;) {
      try {
        const { status } = await store.commit(change);
        if (status === "conflict") observer.tell({ event: "fenced", id: record.id, attempt: record.attempt });
        return status === "applied";
      } catch (error) {
        if (!(error instanceof StorageError) || error.kind === "failed" || this.closing) throw error;
        await new Promise<void>((resolve) => {
          clock.timer(storageRetryMs, resolve);
        });
      }
    }
  }

  private tell(run: Run, moved: Transition, reading: Reading, now: number): void {
    const { observer } = this.world;
    const { record, attempt } = moved;
    const { id } = record;
    const { verdict, status, failure } = reading.result;
    const lane = run.record.lane;
    observer.tell({
      event: "attempt_ended",
      id,
      attempt: record.attempt,
      lane,
      verdict: attempt?.verdict ?? verdict,
      status,
      code: failure?.code,
      durationMs: now - run.startedAt,
      next: attempt?.reason ?? "",
      retryAt: attempt?.retryAt,
    });
    if (reading.alert && failure) {
      const { code, message } = failure;
      observer.tell({ event: "alert", lane, code, status: failure.status, message });
    }
    if (!isTerminal(record.state)) return;
    const { state, error } = record;
    observer.tell({
      event: "ended",
      id,
      state,
      attempts: record.attempt,
      durationMs: now - record.createdAt,
      code: error?.code,
    });
  }
}

/** What little time its caller gives a request, or a long wait has left of it, says nothing about who needs more. */
const isLate = ({ terms }: RequestRecord, leftMs: number): boolean =>
  terms.ownDeadline === true || leftMs < terms.deadlineMs / 2;

const isTimeout = (stop: Stop | undefined): stop is Timeout =>
  stop !== undefined && stop !== "ended" && stop !== "shutdown";

function stopRun(run: Run, why: Stop): void {
  if (run.abort.aborted) return;
  run.stopped = why;
  run.stream?.feed.release();
  run.abort.aborted = true;
  run.abort.onAbort?.();
}
