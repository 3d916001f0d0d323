/**
 * The lanes and upstreams of this process: who is in flight and who waits. Grants slots (the right to make one call)
 * where gates, breakers, limits and capacity let it through.
 */

import { Backlog } from "./backlog.ts";
import * as breakers from "./breaker.ts";
import { Flow, type FlowSettings, type LaneFlow } from "./flow.ts";
import { admits, type Gate, type GateBackoff, open, opensAt, passed } from "./gate.ts";
import { type Hold, Holds, ownWait } from "./holds.ts";
import {
  type Lane,
  nothing,
  probesLane,
  probesUpstream,
  type Shared,
  type Slot,
  triesLane,
  triesUpstream,
  type UpstreamState,
  unreckoned,
} from "./lane.ts";
import { Learning } from "./learning.ts";
import type { Amounts } from "./meter.ts";
import type { Observer } from "./ports.ts";
import { type CallSize, laneParts, type RequestRecord, type WaitReason } from "./request.ts";
import type { Reading } from "./retry.ts";
import { draw, earn } from "./retry-budget.ts";
import type { Opening } from "./routing.ts";
import { Members } from "./table.ts";

export interface LaneSettings extends FlowSettings {
  laneBackoff: GateBackoff;
}

/** Why a request waits. Computed when asked, never stored. */
export interface Waiting {
  why: WaitReason;
  until?: number;
}

/** A request, or one that is about to be, as far as it matters how much it asks for. */
type Asking = Pick<RequestRecord, "terms">;

/** When a call that must not overtake others is told to come back, at the earliest. */
const comeBackMs = 1_000;
const smallest: Amounts = { requests: 1, tokens: 1 };
/** Nobody is waited for longer than this: two windows of the limits that are shared. */
const longestOwedMs = 120_000;
const waitReasons = { breaker: "breaker", unreachable: "backoff", rate_limit: "rate_limit" } as const;
/** Until whoever waits is tried again. */
const full: Hold = { why: "capacity", until: Number.POSITIVE_INFINITY };

/** Nothing is known of a lane that is slower, and need not be. */
const longestGapMs = 1000;
const longestTurnMs = 30;
/** The gap of late is that of about so many answers. */
const gapsMeant = 32;

function noteAnswer(lane: Lane, now: number): void {
  const gapMs = Math.min(longestGapMs, Math.abs(now - lane.answeredAt));
  lane.answerGapMs += (gapMs - lane.answerGapMs) / gapsMeant;
  lane.answeredAt = now;
}

export class Lanes {
  readonly flow: Flow;
  private readonly lanes = new Map<string, Lane>();
  private readonly upstreams = new Map<string, UpstreamState>();
  private readonly learning: Learning;
  /** By how much the wall clock was set since the start. In here time goes by as if it had not been. */
  private setByMs = 0;

  constructor(settings: LaneSettings, observer: Observer) {
    this.learning = new Learning(settings, observer);
    this.flow = new Flow(settings);
    for (const flow of this.flow.knownUpstreams()) {
      const { name } = flow;
      const { maxConcurrency, limitGroup } = flow.settings;
      const [sibling] = this.siblings(limitGroup);
      const shared: Shared[] = limitGroup === undefined ? [{}] : [{}, sibling?.shared[1] ?? {}];
      const lanes: Lane[] = [];
      this.upstreams.set(name, {
        name,
        gate: open,
        inFlight: 0,
        maxConcurrency,
        lanes,
        turn: 0,
        flow,
        shared,
      });
    }
  }

  /** The wall clock was set: what is closed for a while stays so for that while, no more and no less. */
  clockSet(byMs: number): void {
    this.setByMs += byMs;
  }

  /** An instant of the wall clock as one in here. */
  steady(now: number): number {
    return now - this.setByMs;
  }

  /** And back. Always (0) and never (Infinity) stay. */
  wall(at: number): number {
    return at === 0 ? 0 : at + this.setByMs;
  }

  all(): Iterable<Lane> {
    return this.lanes.values();
  }

  /** The upstreams with their lanes in use, in the order of the configuration. */
  states(): Iterable<UpstreamState> {
    return this.upstreams.values();
  }

  /** The lane, made on first use; undefined where its upstream is not configured (any more). */
  get(key: string, wallNow: number): Lane | undefined {
    let lane = this.lanes.get(key);
    if (lane) return lane;
    const upstream = this.upstreams.get(laneParts(key).upstream);
    const flow = this.flow.lane(key, this.steady(wallNow));
    if (!upstream || !flow) return undefined;
    lane = {
      key,
      upstream,
      gate: open,
      backlog: new Backlog(key),
      flow,
      slots: new Members(),
      answeredAt: Number.NEGATIVE_INFINITY,
      answerGapMs: longestGapMs,
      holds: new Holds(),
    };
    this.lanes.set(key, lane);
    upstream.lanes.push(lane);
    return lane;
  }

  /** The lane if anybody uses it. */
  find(key: string): Lane | undefined {
    return this.lanes.get(key);
  }

  private readonly isInUse = (key: string): boolean => this.lanes.has(key);

  /** Forgets a lane, if it is there, that nobody uses. */
  tidy(key: string, wallNow: number): void {
    const lane = this.lanes.get(key);
    if (lane) this.forgetIdle(lane);
    else this.flow.tidy(key, this.steady(wallNow), this.isInUse);
  }

  /** The upstreams of a limit group, in the order of the configuration. */
  private siblings(limitGroup: string | undefined): UpstreamState[] {
    if (limitGroup === undefined) return [];
    return [...this.upstreams.values()].filter(({ flow }) => flow.settings.limitGroup === limitGroup);
  }

  /**
   * The lanes that may be waiting for what a lane gives back, in the order of their turns: each time another one of
   * its upstream is first. Those of upstreams that share its limits come last.
   */
  inTurn({ upstream }: Lane): Lane[] {
    const { lanes } = upstream;
    const { limitGroup } = upstream.flow.settings;
    if (lanes.length === 1 && limitGroup === undefined) return lanes;
    upstream.turn = (upstream.turn + 1) % Math.max(1, lanes.length);
    const own = [...lanes.slice(upstream.turn), ...lanes.slice(0, upstream.turn)];
    const others = this.siblings(limitGroup).filter((other) => other !== upstream);
    return [...own, ...others.flatMap((other) => other.lanes)];
  }

  /** A slot, if there is capacity and gates, breakers and limits let such a request through now. */
  slot(lane: Lane, record: RequestRecord, wallNow: number): Slot | undefined {
    const now = this.steady(wallNow);
    const admitted = this.admitted(lane, now);
    // Where nothing is limited, what a call asks for need not be worked out.
    const { flow } = lane;
    const amounts = flow.metering.limits ? this.flow.amounts(flow, record.terms.size) : unreckoned;
    if (!admitted || !this.fits(lane, amounts, now)) {
      // Who could not go anyhow is not waited for.
      if (!admitted) this.forgo(lane);
      return undefined;
    }
    this.forgo(lane);
    return this.granted(lane, record, amounts, admitted, now);
  }

  /** How gates and breakers let somebody through now; undefined where they do not, or where there is no capacity. */
  private admitted(lane: Lane, now: number) {
    const { upstream, flow } = lane;
    if (this.isBusy(lane)) return undefined;
    const byLane = admits(lane.gate, now);
    const byUpstream = admits(upstream.gate, now);
    if (byLane === "no" || byUpstream === "no") return undefined;
    const laneTrial = breakers.admits(flow.breaker, now);
    const upstreamTrial = breakers.admits(upstream.flow.breaker, now);
    if (laneTrial === "no" || upstreamTrial === "no") return undefined;
    return { byLane, byUpstream, laneTrial, upstreamTrial };
  }

  /** Whether the limits allow it, and nobody else was refused before by those that are shared. */
  private fits(lane: Lane, amounts: Amounts, now: number): boolean {
    const { metering } = lane.flow;
    if (!metering.limits) return true;
    if (this.owedToAnother(lane, now) !== undefined) {
      // Who waits for one must not keep back another one.
      this.forgo(lane);
      return false;
    }
    const place = metering.heldAt(amounts, now);
    if (place === undefined) return true;
    for (const [i, shared] of lane.upstream.shared.entries()) {
      const isMine = shared.owed?.lane === lane.key;
      // Whom narrower limits keep back need not keep others back.
      if (i + 1 !== place) shared.owed = isMine ? undefined : shared.owed;
      else {
        const since = shared.owed?.since ?? now;
        shared.owed = { lane: lane.key, opensAt: metering.opensAt(amounts, now), since };
      }
    }
    return false;
  }

  /** Until when a lane waits for another one to get what it was refused before, epoch ms; undefined where it does not. */
  owedUntil(lane: Lane, wallNow: number): number | undefined {
    if (!lane.flow.metering.limits) return undefined;
    const until = this.owedToAnother(lane, this.steady(wallNow));
    return until === undefined ? undefined : this.wall(until);
  }

  private owedToAnother({ key, upstream }: Lane, now: number): number | undefined {
    let until: number | undefined;
    for (const shared of upstream.shared) {
      const { owed } = shared;
      if (!owed || owed.lane === key) continue;
      const other = this.lanes.get(owed.lane);
      const stillWaits = other && !other.backlog.isEmpty;
      if (stillWaits && now - owed.since < longestOwedMs && now >= owed.since)
        until = Math.max(until ?? 0, owed.opensAt, now + 1);
      else shared.owed = undefined;
    }
    return until;
  }

  /** A lane need not be waited for. */
  forgo({ key, upstream }: Lane): void {
    for (const shared of upstream.shared) if (shared.owed?.lane === key) shared.owed = undefined;
  }

  private granted(
    lane: Lane,
    record: RequestRecord,
    amounts: Amounts,
    by: NonNullable<ReturnType<Lanes["admitted"]>>,
    now: number,
  ): Slot {
    const { upstream, flow } = lane;
    flow.usedAt = now;
    upstream.inFlight++;
    if (record.attempt === 0) upstream.flow.budget = earn(upstream.flow.budget, now);
    this.learning.setGate(lane, lane.key, passed(lane.gate, now));
    this.learning.setGate(upstream, upstream.name, passed(upstream.gate, now));
    flow.breaker = breakers.passed(flow.breaker, now);
    upstream.flow.breaker = breakers.passed(upstream.flow.breaker, now);
    const slot: Slot = {
      lane,
      grantedAt: now,
      waitedFor: this.waitedFor(lane, record, now),
      taken: flow.metering.take(amounts, now),
      laneProbe: by.byLane === "probe",
      upstreamProbe: by.byUpstream === "probe",
      laneTrial: by.laneTrial === "probe",
      upstreamTrial: by.upstreamTrial === "probe",
      hasSpoken: false,
      isOver: false,
    };
    slot.member = lane.slots.add(slot);
    return slot;
  }

  private waitedFor({ holds }: Lane, record: RequestRecord, now: number): WaitReason[] {
    const reasons = holds.passed(this.steady(Math.max(record.dueAt, record.createdAt)), now);
    const own = ownWait(record);
    if (own && !reasons.includes(own)) reasons.unshift(own);
    return reasons;
  }

  /**
   * A call that is not ours to schedule goes to a lane at once, if limits let it: then it counts as any other.
   * Undefined where it may, else from when on, in epoch ms.
   */
  letThrough(key: string, size: CallSize, wallNow: number): number | undefined {
    const now = this.steady(wallNow);
    const flow = this.lanes.get(key)?.flow ?? this.flow.lane(key, now);
    this.tidy(key, wallNow);
    if (!flow?.metering.limits) return undefined;
    const amounts = this.flow.amounts(flow, size);
    const opensAt = flow.metering.opensAt(amounts, now);
    // Who has waited for the same limits goes first.
    const othersWait = this.lanes.get(key)?.backlog.next(wallNow) !== undefined;
    if (opensAt > now || othersWait) return this.wall(Math.max(opensAt, now + comeBackMs));
    flow.metering.take(amounts, now);
    return undefined;
  }

  /** Whether there is no capacity: for all of the upstream, or for as many of this lane at once as are good for it. */
  isBusy({ upstream, slots, flow }: Lane): boolean {
    return upstream.inFlight >= upstream.maxConcurrency || slots.size >= Math.floor(flow.concurrency.limit);
  }

  /** How long it takes from one answer to the next, in ms; roughly, and at least as long as nothing has been answered. */
  answerGapMs({ answeredAt, answerGapMs }: Lane, wallNow: number): number {
    const silentMs = Math.abs(this.steady(wallNow) - answeredAt);
    // Many come in one turn of the event loop, which takes some ms itself.
    return silentMs > longestTurnMs ? Math.max(silentMs, answerGapMs) : answerGapMs;
  }

  /** The tokens that a request is reckoned at. */
  tokensOf(lane: Lane, { terms: { size } }: RequestRecord): number {
    return this.flow.amounts(lane.flow, size).tokens;
  }

  /** Whether nothing but capacity is wanting: a slot comes as soon as a call ends. */
  isOnlyBusy(lane: Lane, now: number): boolean {
    return this.isBusy(lane) && this.openingOf(lane, now).opensAt <= now;
  }

  /** Whether a slot is still worth its claim: nobody has been told to wait since it was granted. */
  stillOpen(slot: Slot, wallNow: number): boolean {
    const now = this.steady(wallNow);
    const { gate, upstream, flow } = slot.lane;
    const byLane = gate.kind === "open" || (probesLane(slot) && gate.kind === "probing" && gate.until <= now);
    const byUpstream = upstream.gate.kind === "open" || (probesUpstream(slot) && upstream.gate.until <= now);
    const byLaneBreaker = flow.breaker.kind === "closed" || triesLane(slot);
    const byUpstreamBreaker = upstream.flow.breaker.kind === "closed" || triesUpstream(slot);
    return byLane && byUpstream && byLaneBreaker && byUpstreamBreaker;
  }

  /** Gives back a slot whose call was never made. */
  abandon(slot: Slot, wallNow: number): void {
    const now = this.steady(wallNow);
    if (slot.taken.amounts !== unreckoned) slot.lane.flow.metering.settle(slot.taken, nothing, now);
    this.forgetProbe(slot, wallNow);
    this.free(slot);
  }

  /** A call was stopped by us: if it was a probe, the next one may try. */
  forgetProbe(slot: Slot, wallNow: number): void {
    this.learning.forgetProbe(slot, this.steady(wallNow));
  }

  /** Learns from a call. The slot itself is given back by `free`, when the result is on disk. */
  learn(
    slot: Slot,
    record: RequestRecord,
    reading: Reading,
    { now: wallNow, luck, isWhole }: { now: number; luck: number; isWhole: boolean },
  ): void {
    const now = this.steady(wallNow);
    if (reading.verdict === "success") noteAnswer(slot.lane, now);
    this.learning.learn(slot, record, reading, { now, luck, isWhole });
  }

  /**
   * The call of a slot is sent, some writing after it was granted: limits count it from now on. Told is from when on it
   * may be (epoch ms): now, unless that took so long that others have taken its place.
   */
  sending({ lane, taken }: Slot, wallNow: number): number {
    return this.wall(lane.flow.metering.move(taken, this.steady(wallNow)));
  }

  /** Whether a breaker has opened since this was asked last. */
  takeNews(): boolean {
    return this.learning.takeNews();
  }

  /** A stream has said something: its upstream is well, however long it goes on. True where more may be called now. */
  alive(slot: Slot, wallNow: number): boolean {
    return this.learning.alive(slot, this.steady(wallNow));
  }

  /** From when on another attempt of a request that failed there may be made at an upstream: its retry budget. */
  retryAt(upstreamName: string, wallNow: number): number {
    const flow = this.flow.upstream(upstreamName);
    if (!flow) return wallNow;
    const { budget, at } = draw(flow.budget, this.steady(wallNow));
    flow.budget = budget;
    return this.wall(at);
  }

  /** Gives back a slot. */
  free(slot: Slot): void {
    const { lane } = slot;
    const { upstream } = lane;
    if (slot.member) lane.slots.delete(slot.member);
    upstream.inFlight--;
    this.forgetIdle(lane);
  }

  /** Forgets a lane that nobody uses: callers choose the names of models. */
  forgetIdle(lane: Lane): void {
    if (lane.slots.size > 0 || lane.gate.kind !== "open" || !lane.backlog.isEmpty) return;
    this.lanes.delete(lane.key);
    lane.upstream.lanes = lane.upstream.lanes.filter((other) => other !== lane);
    this.flow.tidy(lane.key, lane.flow.usedAt, this.isInUse);
  }

  /** Closes a lane that was told to wait before this process was started. */
  closeUntil(lane: Lane, until: number, now: number): void {
    const [at, since] = [this.steady(until), this.steady(now)];
    this.learning.setGate(lane, lane.key, {
      kind: "closed",
      until: at,
      since,
      strikes: 1,
      why: "rate_limit",
    });
  }

  /** Slots that have been granted and not been given back. */
  get inFlight(): number {
    let sum = 0;
    for (const { inFlight } of this.upstreams.values()) sum += inFlight;
    return sum;
  }

  /** How many requests wait, due or not. */
  get waiting(): number {
    let sum = 0;
    for (const { backlog } of this.lanes.values()) sum += backlog.size;
    return sum;
  }

  /** From when a request may get through in a lane, as far as is known; never where there is no such upstream. */
  opening(key: string, now: number, record?: Asking): Opening {
    const upstream = this.upstreams.get(laneParts(key).upstream);
    if (!upstream) return { lane: key, opensAt: Number.POSITIVE_INFINITY, closedUntil: 0 };
    const at = this.steady(now);
    const flow = this.lanes.get(key)?.flow ?? this.flow.look(key, at)!;
    return this.openingFor(key, this.lanes.get(key)?.gate ?? open, upstream, flow, at, record);
  }

  /** Without a record: for the smallest request. Whoever waits in the lane waits for what is found here. */
  openingOf(lane: Lane, now: number, record?: Asking): Opening {
    const at = this.steady(now);
    const opening = this.openingFor(lane.key, lane.gate, lane.upstream, lane.flow, at, record);
    const owedUntil = this.owedUntil(lane, now);
    if (owedUntil !== undefined) {
      opening.opensAt = Math.max(opening.opensAt, owedUntil);
      opening.heldBy ??= "rate_limit";
    }
    const holds: Hold[] = this.isBusy(lane) ? [full] : [];
    if (opening.heldBy) holds.push({ why: waitReasons[opening.heldBy], until: this.steady(opening.opensAt) });
    lane.holds.see(holds, at);
    return opening;
  }

  private openingFor(
    lane: string,
    gate: Gate,
    upstream: UpstreamState,
    flow: LaneFlow,
    now: number,
    record: Asking | undefined,
  ): Opening {
    const { metering } = flow;
    const gateOpensAt = opensAt(gate);
    const upstreamOpensAt = opensAt(upstream.gate);
    const breakerOpensAt = Math.max(
      breakers.breakerOpensAt(flow.breaker, now),
      breakers.breakerOpensAt(upstream.flow.breaker, now),
    );
    const amounts = record ? this.flow.amounts(flow, record.terms.size) : smallest;
    const paceOpensAt = metering.limits ? metering.opensAt(amounts, now) : 0;
    const limitOpensAt = Math.max(gateOpensAt, paceOpensAt > now ? paceOpensAt : 0);
    let heldBy: Opening["heldBy"];
    if (limitOpensAt > now) heldBy = "rate_limit";
    if (upstreamOpensAt > now) heldBy = "unreachable";
    if (breakerOpensAt > now) heldBy = "breaker";
    return {
      lane,
      opensAt: this.wall(Math.max(limitOpensAt, upstreamOpensAt, breakerOpensAt)),
      heldBy,
      closedUntil: this.wall(Math.max(gateOpensAt, upstreamOpensAt)),
    };
  }

  /** Since when the upstream of a lane could not be reached; undefined while it can. */
  unreachableSince(key: string): number | undefined {
    const gate = this.upstreams.get(laneParts(key).upstream)?.gate;
    return gate && gate.kind !== "open" ? this.wall(gate.since) : undefined;
  }

  /** Why a waiting request waits, and until when, as far as that is known. */
  explain(record: RequestRecord, now: number): Waiting {
    const { dueAt, state } = record;
    if (state === "queued" && dueAt > now) return { why: "scheduled", until: dueAt };
    const lane = this.lanes.get(record.lane);
    const opening = lane ? this.openingOf(lane, now, record) : this.opening(record.lane, now, record);
    const until = Math.max(opening.opensAt, dueAt);
    if (opening.heldBy === "rate_limit") return { why: "rate_limit", until: this.turnAt(record, until, now) };
    if (opening.heldBy) return { why: waitReasons[opening.heldBy], until };
    if (dueAt > now) return { why: "backoff", until: dueAt };
    return { why: "capacity" };
  }

  /** When limits will have let through all who go before a request, if nobody comes in between. */
  private turnAt(record: RequestRecord, opensAt: number, now: number): number {
    const lane = this.lanes.get(record.lane);
    if (!lane) return opensAt;
    const ahead = lane.backlog.ahead(record);
    const { metering } = lane.flow;
    const amounts = this.flow.amounts(lane.flow, record.terms.size);
    return Math.max(opensAt, this.wall(metering.turnAt(ahead, amounts, this.steady(now))));
  }
}
