/**
 * The loop: gate → claim and attempt started (one commit) → call → decide → apply → tell.
 *
 * A request that its lane holds back is never claimed. Everything that is known only here (gates, slots,
 * windows of heads, calls under way) can be lost at any instant: the store has what is needed to go on.
 */

import { type AttemptSettings, Attempts, type Content } from "./attempts.ts";
import { windowSize } from "./backlog.ts";
import { Contents, readContent } from "./contents.ts";
import { failures } from "./errors.ts";
import { Expiry } from "./expiry.ts";
import { Feeds } from "./feed.ts";
import type { Lane, Newcomer, Slot } from "./lane.ts";
import { type LaneSettings, Lanes } from "./lanes.ts";
import { talliesOf } from "./ledger/usage.ts";
import { patienceMs } from "./newcomers.ts";
import type { GroupKey, ReadyGroup, World } from "./ports.ts";
import { recoverInterrupted } from "./recovery.ts";
import { type Failure, isReady, type Owner, type Reason, type RequestRecord, transition } from "./request.ts";
import { type TargetSettings, Targets } from "./targets.ts";

export interface SchedulerSettings extends AttemptSettings, LaneSettings, TargetSettings {
  owner: Owner;
}

/** Those who wait on the line. */
export interface Callers {
  isConnected: (id: string) => boolean;
  /** A request has to wait for another attempt, and this process will not make it: it is stopping. */
  onParked: (id: string) => void;
  /** A request is in trouble: its upstream was silent, or is taken for broken. It goes on. */
  onTrouble: (id: string) => void;
  /** A breaker has opened: whoever waits behind it is in trouble. */
  onBreaker: () => void;
  /** So many bytes more (or less) are in memory for calls under way, and for those whose turn is near. */
  onBody: (bytes: number) => void;
}

const troubleRetryMs = 1000;
const rowsPerRead = 128;
/** A wall clock that is further from where it should be was set; less is set right in passing. */
const smallestJumpMs = 2_000;
/** What was learned of upstreams is written this often at most, but for breakers, which are written at once. */
const flowKeptMs = 5_000;
/** The loop looks around this often at least, so that a wall clock that was set does no lasting harm. */
const longestSleepMs = 60_000;
const never = Number.POSITIVE_INFINITY;

export class Scheduler {
  readonly lanes: Lanes;
  readonly targets: Targets;
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
  /** How far the wall clock is from the ticks. */
  private skewMs: number;
  /** While the rows still have the times of a clock that was set. */
  private settingClock: Promise<void> | undefined;
  /** Rows that were read before this changed have old times. */
  private clockSets = 0;
  private cancelWake: (() => void) | undefined;
  private cancelFlowTimer: (() => void) | undefined;

  constructor(world: World, settings: SchedulerSettings, callers: Callers) {
    this.world = world;
    this.settings = settings;
    this.callers = callers;
    this.skewMs = world.clock.now() - world.clock.ticks();
    this.contents = new Contents(callers.onBody);
    this.lanes = new Lanes(settings, world.observer);
    this.targets = new Targets(settings, this.lanes, world.clock);
    this.feeds = new Feeds(world);
    this.attempts = new Attempts(world, settings, this, callers);
    this.expiry = new Expiry(world, settings, this.lanes, this);
  }

  /** Deals with what an earlier start of this node left behind, and learns who waits. Nothing is called yet. */
  async recover(): Promise<void> {
    const interrupted = await recoverInterrupted(this.world, this.settings.owner);
    await this.lanes.flow.recover(this.world.flow, this.world.clock.now());
    const waiting = await this.loadGroups();
    this.world.observer.tell({ event: "recovered", interrupted, waiting });
  }

  /** Begins to dispatch. */
  begin(): void {
    this.begun = true;
    this.dispatchAll();
    this.wakeBy(this.nextSweepAt);
  }

  /** No new claims; calls under way get `drainMs` to finish, then they are stopped and stand as interrupted. */
  async stop(drainMs: number): Promise<void> {
    this.stopping = true;
    this.cancelWake?.();
    this.cancelFlowTimer?.();
    for (const lane of this.lanes.all()) this.sendToQueue(lane);
    if (this.lanes.inFlight > 0) {
      const idle = new Promise<void>((resolve) => {
        this.onIdle = resolve;
      });
      const cancel = this.world.clock.timer(drainMs, () => this.attempts.shutDown());
      await idle;
      cancel();
    }
    await this.keepFlow();
  }

  /** Writes what was learned of upstreams. Where it cannot be written, it is learned again. */
  private async keepFlow(): Promise<void> {
    this.cancelFlowTimer?.();
    this.cancelFlowTimer = undefined;
    const rows = this.lanes.flow.changes(this.world.clock.now());
    if (rows.length === 0) return;
    await this.world.store.commit({ kind: "flow", rows }).catch(() => this.lanes.flow.keepAgain(rows));
  }

  private keepFlowSoon(delayMs: number): void {
    if (this.stopping || (this.cancelFlowTimer && delayMs > 0)) return;
    this.cancelFlowTimer?.();
    this.cancelFlowTimer = this.world.clock.timer(delayMs, () => void this.keepFlow());
  }

  get isStopping(): boolean {
    return this.stopping;
  }

  isRunning(id: string): boolean {
    return this.attempts.isRunning(id) || this.claiming.has(id);
  }

  /** A slot for a request that is just being accepted, if it may start at once: nobody who waits is overtaken. */
  slotFor(record: RequestRecord): Slot | undefined {
    this.checkClock();
    const now = this.world.clock.now();
    const lane = this.laneFor(record, now);
    if (!lane) return undefined;
    const { backlog } = lane;
    const othersAreDue = backlog.newcomerCount > 0 || (!backlog.isEmpty && (backlog.nextDueAt() ?? 0) <= now);
    return othersAreDue ? undefined : this.lanes.slot(lane, record, now);
  }

  /**
   * The same for a caller who is held up by nothing but others: its turn, if it comes within its patience, see
   * newcomers.ts. Undefined at once where that will take too long, or later where it did.
   *
   * @param hold the caller waits for its answer anyhow; else it wants to be told at once
   */
  slotSoon(record: RequestRecord, hold: boolean): Promise<Slot | undefined> | undefined {
    const { clock } = this.world;
    const now = clock.now();
    const lane = this.laneFor(record, now);
    const waitMs = lane && patienceMs(this.lanes, lane, { record, hold }, now);
    if (!lane || waitMs === undefined) return undefined;
    return new Promise((resolve) => {
      const newcomer: Newcomer = {
        record,
        serve(slot) {
          cancelTimer();
          leave();
          resolve(slot);
        },
      };
      const leave = lane.backlog.arrive(newcomer);
      const cancelTimer = clock.timer(waitMs, () => newcomer.serve(undefined));
      // What has just come free is for those who came before.
      if (!this.lanes.isBusy(lane)) this.dispatch([lane]);
    });
  }

  /** How many callers wait for the same turns unaccepted. */
  crowd(of: GroupKey): number {
    return this.lanes.find(of.lane)?.backlog.crowd(of) ?? 0;
  }

  /** The lane of a request that is due. */
  private laneFor({ lane, dueAt }: RequestRecord, now: number): Lane | undefined {
    return this.stopping || dueAt > now ? undefined : this.lanes.get(lane, now);
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
    this.dispatch([lane]);
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
      this.noteFlow(slot.lane);
      // Its neighbours have their turn, too, before the lane of a request that is tried again.
      this.dispatchUpstream(slot.lane);
      if (next) this.dispatch([next]);
      this.checkIdle();
    });
  }

  /** A stream has said something: whoever may be called now does not wait for its end. */
  heard(slot: Slot): void {
    if (!this.lanes.alive(slot, this.world.clock.now())) return;
    this.noteFlow(slot.lane);
    this.dispatchUpstream(slot.lane);
  }

  private queueUp(record: RequestRecord): Lane | undefined {
    const now = this.world.clock.now();
    const lane = this.lanes.get(record.lane, now);
    if (!lane || this.stopping) return undefined;
    // Who asked for no time is due, also where the clock was set back while it was being written.
    const isUndated = record.state === "queued" && record.dueAt === record.createdAt;
    lane.backlog.add(isUndated && record.dueAt > now ? { ...record, dueAt: now } : record);
    this.expiry.noteDeadline(record);
    this.wakeBy(this.nextSweepAt);
    if (this.lanes.openingOf(lane, now).heldBy === "breaker") this.callers.onTrouble(record.id);
    return lane;
  }

  /** What was learned is to be known by the next start. Whoever waits behind a breaker that has opened is in trouble. */
  private noteFlow({ flow, upstream }: Lane): void {
    const isNews = this.lanes.takeNews();
    if (flow.isDirty || upstream.flow.isDirty)
      this.keepFlowSoon(upstream.flow.isDirty || isNews ? 0 : flowKeptMs);
    if (isNews) this.callers.onBreaker();
  }

  /** Learns who waits. Lanes whose upstream is no longer configured hand their requests to the route of today. */
  private async loadGroups(): Promise<number> {
    const groups = await this.world.store.groups();
    const now = this.world.clock.now();
    const homeless = groups.filter((group) => !this.lanes.get(group.lane, now));
    // All counts are known before anybody is moved on top of them.
    for (const group of groups) this.lanes.get(group.lane, now)?.backlog.know(group);
    for (const { lane: key, until } of await this.world.store.toldToWait(now)) {
      const lane = this.lanes.get(key, now);
      if (lane) this.lanes.closeUntil(lane, until, now);
    }
    for (const group of homeless) await this.rerouteGroup(group);
    return groups.reduce((sum, { count }) => sum + count, 0);
  }

  private async rerouteGroup(group: ReadyGroup): Promise<void> {
    for (let left = group.count; left > 0; left -= rowsPerRead) {
      const rows = await this.world.store.heads(group, rowsPerRead);
      await Promise.all(rows.map((row) => this.reroute(row, this.targets.openingsFor(row)[0]?.lane)));
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

  private forget(record: RequestRecord): void {
    this.contents.take(record.id);
    const lane = this.lanes.find(record.lane);
    if (!lane || this.claiming.has(record.id)) return;
    lane.backlog.remove(record);
    this.lanes.forgetIdle(lane);
  }

  private dispatchUpstream(lane: Lane): void {
    this.dispatch(this.lanes.inTurn(lane));
  }

  private dispatchAll(): void {
    for (const { lanes } of this.lanes.states()) if (lanes[0]) this.dispatch(this.lanes.inTurn(lanes[0]));
  }

  /**
   * Gives slots to as many who wait in these lanes as gates, limits and capacity let through now, one of each in turn:
   * what they share must not all go to the first.
   */
  private dispatch(lanes: readonly Lane[]): void {
    if (!this.begun || this.stopping) return;
    const now = this.world.clock.now();
    let waiting = lanes.filter(({ backlog }) => !backlog.isEmpty);
    const tried = waiting;
    for (let isServed = true; isServed; ) {
      isServed = false;
      waiting = waiting.filter((lane) => {
        const isNext = this.serveNext(lane, now);
        isServed ||= isNext;
        // Whoever only waited for another one may go when that one has gone.
        return isNext || this.lanes.owedUntil(lane, now) !== undefined;
      });
    }
    // Where more than capacity is wanting, nobody's turn comes soon.
    for (const lane of tried)
      if (lane.backlog.newcomerCount > 0 && !this.lanes.isOnlyBusy(lane, now)) this.sendToQueue(lane);
    for (const lane of tried) if (lane.backlog.size > 0) this.lookAhead(lane, now);
  }

  /** False where nobody who waits may go now. */
  private serveNext(lane: Lane, now: number): boolean {
    // To find out whose turn it is costs more, the more projects wait.
    const record = this.lanes.isBusy(lane) ? undefined : lane.backlog.next(now);
    if (!record) this.lanes.forgo(lane);
    const slot = record && this.lanes.slot(lane, record, now);
    if (!slot) return false;
    const newcomer = lane.backlog.take(record, this.lanes.tokensOf(lane, record));
    if (newcomer) newcomer.serve(slot);
    else void this.claim(record, slot);
    return true;
  }

  /** Nobody waits there any longer without being accepted. */
  private sendToQueue({ backlog }: Lane): void {
    for (const newcomer of backlog.newcomers()) newcomer.serve(undefined);
  }

  /** Reads who is next, and sets the timer to when somebody may go. */
  private lookAhead(lane: Lane, now: number): void {
    for (const group of lane.backlog.startLoading(this.claiming)) void this.load(lane, group);
    const dueAt = lane.backlog.nextDueAt();
    if (dueAt === undefined) return;
    // Who waits for another one looks again when that one may go: to work out more would be work for all who wait.
    const opensAt = this.lanes.owedUntil(lane, now) ?? this.headOpensAt(lane, dueAt, now);
    this.expiry.noteHeld(lane, opensAt);
    this.wakeBy(this.nextSweepAt);
    if (!this.lanes.isBusy(lane)) this.wakeBy(Math.max(dueAt, opensAt));
  }

  private headOpensAt(lane: Lane, dueAt: number, now: number): number {
    const head = dueAt <= now ? lane.backlog.next(now) : undefined;
    return this.lanes.openingOf(lane, now, head).opensAt;
  }

  private async load(lane: Lane, group: GroupKey): Promise<void> {
    try {
      // Those that are just being claimed still stand among the rows.
      const limit = windowSize + this.claiming.size;
      const { clockSets } = this;
      const rows = await this.world.store.heads(group, limit);
      if (clockSets !== this.clockSets) throw new Error("the clock was set meanwhile");
      lane.backlog.loaded(group, rows, limit);
      this.dispatch([lane]);
    } catch {
      lane.backlog.notLoaded(group);
      this.wakeBy(this.world.clock.now() + troubleRetryMs);
    }
  }

  private async claim(record: RequestRecord, slot: Slot): Promise<void> {
    const { store, clock } = this.world;
    this.claiming.add(record.id);
    this.checkClock();
    try {
      const content = this.contents.take(record.id) ?? (await readContent(store, record.id));
      const now = clock.now();
      const isOverdue = record.deadlineAt <= now;
      const isLost = content === undefined;
      if (isOverdue) await this.giveUp(record, failures.deadline(), "deadline");
      else if (isLost) await this.giveUp(record, failures.erased(), "permanent");
      if (isOverdue || isLost || !this.lanes.stillOpen(slot, now)) {
        this.claiming.delete(record.id);
        if (!isOverdue && !isLost) slot.lane.backlog.add(record);
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
    }
  }

  /** Fails a request that waits. False where it does not wait any more. */
  async giveUp(record: RequestRecord, failure: Failure, reason: Reason): Promise<boolean> {
    const { store, clock, observer } = this.world;
    const now = clock.now();
    const moved = transition(record, { type: "gave_up", now, failure, reason });
    if (!moved) return false;
    const change = { kind: "change" as const, transition: moved, tallies: talliesOf(moved) };
    const { status } = await store.commit(change);
    if (status !== "applied") return false;
    this.forget(record);
    const { id, state, attempt: attempts, createdAt, lastErrorCode: code } = moved.record;
    observer.tell({ event: "ended", id, state, attempts, durationMs: now - createdAt, code });
    return true;
  }

  /** While the store has the old times of a clock that was set, nothing is over. */
  private get nextSweepAt(): number {
    return this.settingClock ? never : this.expiry.nextAt;
  }

  /** Sets the one timer of the loop to an instant at which something can happen by itself, if that comes first. */
  private wakeBy(at: number): void {
    if (!this.begun || this.stopping || at >= this.wakeAt || at === never) return;
    this.cancelWake?.();
    this.wakeAt = at;
    const { clock } = this.world;
    const sleepMs = Math.min(longestSleepMs, Math.max(0, at - clock.now()));
    this.cancelWake = clock.timer(sleepMs, () => this.wake());
  }

  /**
   * Where somebody has set the wall clock, or the machine was asleep, everything that was to happen in a while happens
   * in that while: nobody's deadline is over before its time, and nobody waits for an hour for what was a second away.
   */
  checkClock(): void {
    const { clock, store, observer } = this.world;
    const skewMs = clock.now() - clock.ticks();
    const byMs = Math.round(skewMs - this.skewMs);
    this.skewMs = skewMs;
    if (Math.abs(byMs) < smallestJumpMs) return;
    observer.tell({ event: "clock_set", byMs });
    this.lanes.clockSet(byMs);
    this.attempts.clockSet(byMs);
    this.expiry.clockSet(byMs);
    const forgetRows = () => {
      this.clockSets++;
      for (const { backlog } of this.lanes.all()) backlog.forgetHeads();
    };
    forgetRows();
    const over = () => {
      forgetRows();
      if (this.settingClock === written) this.settingClock = undefined;
      this.cancelWake?.();
      this.wake();
    };
    const written = store.commit({ kind: "clock_set", byMs, before: clock.now() - byMs }).then(over, over);
    this.settingClock = written;
  }

  private wake(): void {
    this.wakeAt = never;
    if (this.stopping) return;
    this.checkClock();
    // The store has the old times until then; its end wakes us again.
    if (!this.settingClock) void this.expiry.sweep().then(() => this.wakeBy(this.nextSweepAt));
    this.dispatchAll();
  }

  private checkIdle(): void {
    if (this.stopping && this.lanes.inFlight === 0) this.onIdle?.();
  }
}
