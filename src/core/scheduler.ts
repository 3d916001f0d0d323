/**
 * The loop: gate → claim and attempt started (one commit) → call → decide → apply → tell.
 *
 * A request that its lane holds back is never claimed. Everything that is known only here (gates, slots,
 * windows of heads, calls under way) can be lost at any instant: the store has what is needed to go on.
 */

import { type AttemptSettings, Attempts, type Content } from "./attempts.ts";
import { windowSize } from "./backlog.ts";
import { Contents } from "./contents.ts";
import { failures, StorageError } from "./errors.ts";
import { Expiry } from "./expiry.ts";
import { Feeds } from "./feed.ts";
import type { GateBackoff } from "./gate.ts";
import { type Arrival, type Lane, Lanes, type Slot } from "./lanes.ts";
import type { ChangeSet, ReadyGroup, World } from "./ports.ts";
import { type Failure, isReady, type Owner, type Reason, type RequestRecord, transition } from "./request.ts";
import { decideInterrupted } from "./retry.ts";
import { laneOf, targetsFor } from "./routing.ts";

export interface SchedulerSettings extends AttemptSettings {
  owner: Owner;
  upstreams: { name: string; maxConcurrency: number }[];
  laneBackoff: GateBackoff;
}

/** Those who wait on the line. */
export interface Callers {
  isConnected: (id: string) => boolean;
  /** A request has to wait for another attempt, and this process will not make it: it is stopping. */
  onParked: (id: string) => void;
  /** So many bytes more (or less) are in memory for calls under way, and for those whose turn is near. */
  onBody: (bytes: number) => void;
}

const troubleRetryMs = 1000;
/** How long a caller waits for a slot before its request is queued. Nothing is promised and nothing sent before. */
const arrivalPatienceMs = 1000;
const rowsPerRead = 128;
/** The loop looks around this often at least, so that a wall clock that was set does no lasting harm. */
const longestSleepMs = 60_000;
const never = Number.POSITIVE_INFINITY;
const decoder = new TextDecoder();

export class Scheduler {
  readonly lanes: Lanes;
  readonly feeds: Feeds;
  private readonly world: World;
  private readonly settings: SchedulerSettings;
  readonly attempts: Attempts;
  private readonly expiry: Expiry;
  private readonly callers: Callers;
  private readonly contents: Contents;
  /** Requests that have left their backlog and whose claim is not yet on disk. */
  private readonly claiming = new Set<string>();
  private begun = false;
  private stopping = false;
  private onIdle: (() => void) | undefined;
  private wakeAt = never;
  private cancelWake: (() => void) | undefined;

  constructor(world: World, settings: SchedulerSettings, callers: Callers) {
    this.world = world;
    this.settings = settings;
    this.callers = callers;
    this.contents = new Contents(callers.onBody);
    this.lanes = new Lanes(settings.upstreams, settings.laneBackoff, world.observer);
    this.feeds = new Feeds(world);
    this.attempts = new Attempts(world, settings, this, callers.isConnected);
    this.expiry = new Expiry(world, settings, this.lanes, this);
  }

  /** Deals with what an earlier start of this node left behind, and learns who waits. Nothing is called yet. */
  async recover(): Promise<void> {
    const interrupted = await this.recoverInterrupted();
    const waiting = await this.loadGroups();
    this.world.observer.tell({ event: "recovered", interrupted, waiting });
  }

  /** Begins to dispatch. */
  begin(): void {
    this.begun = true;
    for (const lane of this.lanes.all()) this.dispatch(lane);
    this.arm();
  }

  /** No new claims; calls under way get `drainMs` to finish, then they are stopped and stand as interrupted. */
  async stop(drainMs: number): Promise<void> {
    this.stopping = true;
    this.cancelWake?.();
    for (const { arrivals } of this.lanes.all()) for (const arrival of arrivals) arrival.serve(undefined);
    if (this.lanes.inFlight === 0) return;
    const idle = new Promise<void>((resolve) => {
      this.onIdle = resolve;
    });
    const cancel = this.world.clock.timer(drainMs, () => this.attempts.shutDown());
    await idle;
    cancel();
  }

  isRunning(id: string): boolean {
    return this.attempts.isRunning(id) || this.claiming.has(id);
  }

  /** A slot for a request that is just being accepted, if it may start at once: nobody who waits is overtaken. */
  slotFor(record: RequestRecord): Slot | undefined {
    const now = this.world.clock.now();
    const lane = this.laneFor(record, now);
    return lane && lane.arrivals.size === 0 ? this.lanes.slot(lane, now) : undefined;
  }

  /**
   * The same for a caller who waits anyhow, and where only capacity is wanting: the slot that is free next. The
   * request is accepted when it starts, which saves the way through the queue: a third of the work, when there is
   * too much of it. Undefined where that would take too long.
   */
  async slotSoon(record: RequestRecord): Promise<Slot | undefined> {
    const { clock } = this.world;
    const lane = this.laneFor(record, clock.now());
    if (!lane || !this.lanes.isOnlyBusy(lane)) return undefined;
    return new Promise((resolve) => {
      const arrival: Arrival = {
        serve(slot) {
          cancelTimer();
          lane.arrivals.delete(arrival);
          resolve(slot);
        },
      };
      const cancelTimer = clock.timer(arrivalPatienceMs, () => arrival.serve(undefined));
      lane.arrivals.add(arrival);
    });
  }

  /** The lane of a request that could start now: nobody is due before it. */
  private laneFor(record: RequestRecord, now: number): Lane | undefined {
    const lane = this.lanes.get(record.lane);
    if (this.stopping || !lane || record.dueAt > now) return undefined;
    const othersAreDue = !lane.backlog.isEmpty && (lane.backlog.nextDueAt() ?? 0) <= now;
    return othersAreDue ? undefined : lane;
  }

  /**
   * Gives slots to those who have been waiting for them since before anybody in the queue was due. Where more
   * than capacity is wanting, they are queued.
   */
  private serveArrivals(lane: Lane): void {
    for (const arrival of lane.arrivals) {
      const slot = this.lanes.slot(lane, this.world.clock.now());
      if (!slot && this.lanes.isOnlyBusy(lane)) return;
      arrival.serve(slot);
    }
  }

  /** Gives back the slot of a request that was not accepted after all. */
  release(slot: Slot): void {
    this.lanes.abandon(slot, this.world.clock.now());
    // Its place may be what another lane of the upstream waits for.
    this.dispatchUpstream(slot.lane);
    this.checkIdle();
  }

  /** A request has come to wait; with its content, where that is at hand. */
  enqueue(record: RequestRecord, content?: Content): void {
    const lane = this.queueUp(record);
    if (!lane) return;
    const isNear = record.dueAt <= this.world.clock.now() && lane.backlog.size <= windowSize;
    if (content && isNear) this.contents.keep(record.id, content);
    this.dispatch(lane);
  }

  /** A request was ended by somebody else's hand: stops its call, or forgets that it waits. */
  drop(before: RequestRecord): void {
    if (this.attempts.stop(before.id)) return;
    if (isReady(before.state)) this.forget(before);
  }

  /** Runs an attempt that has been committed as started. */
  run(record: RequestRecord, slot: Slot, content: Content): void {
    const size = content.body.byteLength;
    this.callers.onBody(size);
    void this.attempts.run(record, slot, content).then((waiting) => {
      this.callers.onBody(-size);
      const next = waiting && this.queueUp(waiting);
      if (waiting && this.stopping) this.callers.onParked(waiting.id);
      this.wakeBy(this.expiry.noteClosed(slot.lane));
      // Its neighbours have their turn, too, before the lane of a request that is tried again.
      this.dispatchUpstream(slot.lane);
      if (next) this.dispatch(next);
      this.checkIdle();
    });
  }

  private queueUp(record: RequestRecord): Lane | undefined {
    const lane = this.lanes.get(record.lane);
    if (!lane || this.stopping) return undefined;
    lane.backlog.add(record);
    this.wakeBy(this.expiry.noteDeadline(record));
    this.wakeBy(this.expiry.noteClosed(lane));
    return lane;
  }

  private async recoverInterrupted(): Promise<number> {
    const { store, clock } = this.world;
    let interrupted = 0;
    for (;;) {
      const rows = await store.interrupted(this.settings.owner, rowsPerRead);
      if (rows.length === 0) return interrupted;
      const results = await Promise.all(rows.map((row) => store.commit(interruption(row, clock.now()))));
      if (results.every(({ status }) => status === "conflict")) {
        throw new StorageError("failed", "Requests that a crash interrupted could not be recovered.");
      }
      interrupted += rows.length;
    }
  }

  /** Learns who waits. Lanes whose upstream is no longer configured hand their requests to the route of today. */
  private async loadGroups(): Promise<number> {
    const groups = await this.world.store.groups();
    const homeless = groups.filter((group) => !this.lanes.get(group.lane));
    // All counts are known before anybody is moved on top of them.
    for (const group of groups) this.lanes.get(group.lane)?.backlog.know(group);
    const now = this.world.clock.now();
    for (const { lane: key, until } of await this.world.store.toldToWait(now)) {
      const lane = this.lanes.get(key);
      if (lane) this.lanes.closeUntil(lane, until, now);
    }
    for (const group of homeless) await this.rerouteGroup(group);
    return groups.reduce((sum, { count }) => sum + count, 0);
  }

  private async rerouteGroup(group: ReadyGroup): Promise<void> {
    for (let left = group.count; left > 0; left -= rowsPerRead) {
      const rows = await this.world.store.heads(group, rowsPerRead);
      await Promise.all(rows.map((row) => this.reroute(row, this.routeOf(row)[0])));
    }
  }

  /** Moves a waiting request to another lane. False where it stays. */
  async reroute(record: RequestRecord, lane: string | undefined): Promise<boolean> {
    if (lane === undefined || lane === record.lane) return false;
    const moved = transition(record, { type: "rerouted", now: this.world.clock.now(), lane });
    if (!moved) return false;
    const { status } = await this.world.store.commit({ kind: "change", transition: moved });
    if (status !== "applied") return false;
    this.forget(record);
    this.enqueue(moved.record);
    return true;
  }

  /** The lanes of today's route of a request, without those that refused it. */
  routeOf(record: RequestRecord): string[] {
    try {
      return targetsFor(this.settings.table, record.model, record.terms.upstream)
        .map(laneOf)
        .filter((lane) => !record.excluded.includes(lane));
    } catch {
      return [];
    }
  }

  private forget(record: RequestRecord): void {
    this.contents.take(record.id);
    const lane = this.lanes.get(record.lane);
    if (!lane || this.claiming.has(record.id)) return;
    lane.backlog.remove(record);
    this.lanes.forgetIdle(lane);
  }

  private dispatchUpstream(lane: Lane): void {
    for (const neighbour of this.lanes.inTurn(lane)) this.dispatch(neighbour);
  }

  /** Claims as many waiting requests of a lane as gates and capacity let through now. */
  private dispatch(lane: Lane): void {
    if (!this.begun || this.stopping) return;
    this.serveArrivals(lane);
    if (lane.backlog.isEmpty) return;
    const now = this.world.clock.now();
    for (;;) {
      const dueAt = lane.backlog.nextDueAt();
      if (dueAt === undefined || dueAt > now) break;
      const slot = this.lanes.slot(lane, now);
      if (!slot) break;
      const record = lane.backlog.take(now);
      if (record) void this.claim(record, slot);
      else this.lanes.abandon(slot, now);
      if (!record) break;
    }
    for (const group of lane.backlog.startLoading(this.claiming)) void this.load(lane, group);
    this.arm();
  }

  private async load(lane: Lane, group: Omit<ReadyGroup, "count">): Promise<void> {
    try {
      // Those that are just being claimed still stand among the rows.
      const limit = windowSize + this.claiming.size;
      const rows = await this.world.store.heads(group, limit);
      lane.backlog.loaded(group, rows, limit);
      this.dispatch(lane);
    } catch {
      lane.backlog.notLoaded(group);
      this.wakeBy(this.world.clock.now() + troubleRetryMs);
    }
  }

  private async claim(record: RequestRecord, slot: Slot): Promise<void> {
    const { store, clock } = this.world;
    this.claiming.add(record.id);
    try {
      const content = this.contents.take(record.id) ?? (await this.contentOf(record.id));
      const now = clock.now();
      const overdue = record.deadlineAt <= now;
      if (overdue) await this.giveUp(record, failures.deadline(), "deadline");
      if (overdue || !this.lanes.stillOpen(slot, now)) {
        this.claiming.delete(record.id);
        if (!overdue) slot.lane.backlog.add(record);
        this.release(slot);
        return;
      }
      const started = transition(record, { type: "started", now, owner: this.settings.owner });
      const result = started && (await store.commit({ kind: "change", transition: started }));
      this.claiming.delete(record.id);
      if (started && result?.status === "applied") this.run(started.record, slot, content);
      else this.release(slot);
    } catch {
      this.claiming.delete(record.id);
      slot.lane.backlog.add({ ...record, dueAt: Math.max(record.dueAt, clock.now() + troubleRetryMs) });
      this.release(slot);
      this.arm();
    }
  }

  private async contentOf(id: string): Promise<Content> {
    const parts = await this.world.store.parts(id, ["head", "body"]);
    const head = parts.find(({ kind }) => kind === "head");
    const body = parts.find(({ kind }) => kind === "body");
    if (!head || !body) throw new StorageError("failed", `The body of ${id} is missing.`);
    return { head: JSON.parse(decoder.decode(head.bytes)), body: body.bytes };
  }

  /** Fails a request that waits. False where it does not wait any more. */
  async giveUp(record: RequestRecord, failure: Failure, reason: Reason): Promise<boolean> {
    const { store, clock, observer } = this.world;
    const now = clock.now();
    const moved = transition(record, { type: "gave_up", now, failure, reason });
    if (!moved) return false;
    const { status } = await store.commit({ kind: "change", transition: moved });
    if (status !== "applied") return false;
    this.forget(record);
    const { id, state, attempt: attempts, createdAt, lastErrorCode: code } = moved.record;
    observer.tell({ event: "ended", id, state, attempts, durationMs: now - createdAt, code });
    return true;
  }

  /** Sets the one timer of the loop to the next instant at which something can happen by itself. */
  private arm(): void {
    if (!this.begun || this.stopping) return;
    let next = this.expiry.nextAt;
    for (const lane of this.lanes.all()) {
      if (lane.backlog.isEmpty) continue;
      const dueAt = lane.backlog.nextDueAt();
      const at = dueAt === undefined ? never : Math.max(dueAt, this.lanes.opening(lane.key).opensAt);
      const busy = lane.upstream.inFlight >= lane.upstream.maxConcurrency;
      if (!busy && at < next) next = at;
    }
    this.wakeBy(next);
  }

  private wakeBy(at: number): void {
    if (!this.begun || this.stopping || at >= this.wakeAt || at === never) return;
    this.cancelWake?.();
    this.wakeAt = at;
    const { clock } = this.world;
    const sleepMs = Math.min(longestSleepMs, Math.max(0, at - clock.now()));
    this.cancelWake = clock.timer(sleepMs, () => this.wake());
  }

  private wake(): void {
    this.wakeAt = never;
    if (this.stopping) return;
    void this.expiry.sweep().then(() => this.arm());
    for (const lane of this.lanes.all()) this.dispatch(lane);
    this.arm();
  }

  private checkIdle(): void {
    if (this.stopping && this.lanes.inFlight === 0) this.onIdle?.();
  }
}

function interruption(record: RequestRecord, now: number): ChangeSet {
  const moved = transition(record, { type: "interrupted", now, ...decideInterrupted(record, now) });
  if (!moved) throw new Error(`${record.id} is ${record.state}, not processing`);
  return { kind: "change", transition: moved };
}
