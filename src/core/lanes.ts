/**
 * The lanes and upstreams of this process: their gates, the calls in flight, the backlogs. Grants slots
 * (the right to make one call) and learns from what came of them.
 */

import { Backlog } from "./backlog.ts";
import {
  admits,
  close,
  type Gate,
  type GateBackoff,
  open,
  opensAt,
  passed,
  probeAbandoned,
  probePassed,
} from "./gate.ts";
import type { Observer } from "./ports.ts";
import { type Failure, laneParts, type RequestRecord } from "./request.ts";
import type { Reading } from "./retry.ts";
import type { Opening } from "./routing.ts";

interface UpstreamState {
  name: string;
  gate: Gate;
  inFlight: number;
  maxConcurrency: number;
  lanes: Lane[];
  /** The lane that was served last: the next turn is its neighbour's. */
  turn: number;
}

/** A caller whose request is not accepted yet, and who waits for a slot; undefined: there is none soon. */
export interface Arrival {
  serve(slot: Slot | undefined): void;
}

export interface Lane {
  key: string;
  upstream: UpstreamState;
  inFlight: number;
  gate: Gate;
  backlog: Backlog;
  /** In the order in which they came. */
  arrivals: Set<Arrival>;
  /** What the upstream said when it closed the lane. */
  refusal?: Failure;
}

/** The right to make one call in a lane; given back by `settle` or `abandon`, once. */
export interface Slot {
  lane: Lane;
  grantedAt: number;
  /** The call was granted as the one probe of the lane's gate, or of the upstream's. */
  laneProbe: boolean;
  upstreamProbe: boolean;
}

/** Why a request waits. Computed when asked, never stored. */
export interface Waiting {
  why: "rate_limit" | "backoff" | "scheduled" | "capacity";
  until?: number;
}

export class Lanes {
  private readonly lanes = new Map<string, Lane>();
  private readonly upstreams = new Map<string, UpstreamState>();
  private readonly backoff: GateBackoff;
  private readonly observer: Observer;

  constructor(
    upstreams: { name: string; maxConcurrency: number }[],
    backoff: GateBackoff,
    observer: Observer,
  ) {
    this.backoff = backoff;
    this.observer = observer;
    for (const { name, maxConcurrency } of upstreams) {
      this.upstreams.set(name, { name, gate: open, inFlight: 0, maxConcurrency, lanes: [], turn: 0 });
    }
  }

  all(): Iterable<Lane> {
    return this.lanes.values();
  }

  /** The lane, made on first use; undefined where its upstream is not configured (any more). */
  get(key: string): Lane | undefined {
    let lane = this.lanes.get(key);
    if (lane) return lane;
    const upstream = this.upstreams.get(laneParts(key).upstream);
    if (!upstream) return undefined;
    lane = { key, upstream, inFlight: 0, gate: open, backlog: new Backlog(key), arrivals: new Set() };
    this.lanes.set(key, lane);
    upstream.lanes.push(lane);
    return lane;
  }

  /** Forgets a lane, if it is there, that nobody uses. */
  tidy(key: string): void {
    const lane = this.lanes.get(key);
    if (lane) this.forgetIdle(lane);
  }

  /** The lanes of an upstream in the order of their turns: each time another one is first. */
  inTurn({ upstream }: Lane): Lane[] {
    const { lanes } = upstream;
    if (lanes.length === 1) return lanes;
    upstream.turn = (upstream.turn + 1) % lanes.length;
    return [...lanes.slice(upstream.turn), ...lanes.slice(0, upstream.turn)];
  }

  /** A slot, if the upstream has capacity and both gates let somebody through now. */
  slot(lane: Lane, now: number): Slot | undefined {
    const { upstream } = lane;
    if (upstream.inFlight >= upstream.maxConcurrency) return undefined;
    const byLane = admits(lane.gate, now);
    const byUpstream = admits(upstream.gate, now);
    if (byLane === "no" || byUpstream === "no") return undefined;
    upstream.inFlight++;
    lane.inFlight++;
    this.setGate(lane, lane.key, passed(lane.gate, now));
    this.setGate(upstream, upstream.name, passed(upstream.gate, now));
    return { lane, grantedAt: now, laneProbe: byLane === "probe", upstreamProbe: byUpstream === "probe" };
  }

  /** Whether nothing but capacity is wanting: a slot comes as soon as a call ends. */
  isOnlyBusy({ gate, upstream }: Lane): boolean {
    const bothOpen = gate.kind === "open" && upstream.gate.kind === "open";
    return bothOpen && upstream.inFlight >= upstream.maxConcurrency;
  }

  /** Whether a slot is still worth its claim: nobody has been told to wait since it was granted. */
  stillOpen(slot: Slot, now: number): boolean {
    const { gate, upstream } = slot.lane;
    const byLane = gate.kind === "open" || (probesLane(slot) && gate.kind === "probing" && gate.until <= now);
    const byUpstream = upstream.gate.kind === "open" || (probesUpstream(slot) && upstream.gate.until <= now);
    return byLane && byUpstream;
  }

  /** Gives back a slot whose call was never made. */
  abandon(slot: Slot, now: number): void {
    this.forgetProbe(slot, now);
    this.free(slot);
  }

  /** A call was stopped by us: if it was a probe, the next one may try. */
  forgetProbe(slot: Slot, now: number): void {
    const { lane } = slot;
    if (probesLane(slot)) lane.gate = probeAbandoned(lane.gate, now);
    if (probesUpstream(slot)) lane.upstream.gate = probeAbandoned(lane.upstream.gate, now);
  }

  /** Learns from a call. The slot itself is given back by `free`, when the result is on disk. */
  learn(slot: Slot, reading: Reading, now: number, luck: number): void {
    const { lane } = slot;
    const { upstream } = lane;
    const laneProbe = probesLane(slot);
    const upstreamProbe = probesUpstream(slot);
    const { retryAfterMs } = reading;
    // Whoever is told to wait waits, also after an ordinary error.
    if (reading.verdict === "throttled" || (reading.verdict === "transient" && retryAfterMs !== undefined)) {
      const told = { now, luck, why: "rate_limit" as const, retryAfterMs, probe: laneProbe };
      lane.refusal = reading.result.failure;
      this.setGate(lane, lane.key, close(lane.gate, told, this.backoff));
    } else if (laneProbe) {
      // A probe that could not be sent says nothing about the lane: the next one may try.
      const gate =
        reading.verdict === "not_sent" ? probeAbandoned(lane.gate, now) : probePassed(lane.gate, now);
      this.setGate(lane, lane.key, gate);
    }
    if (reading.verdict === "not_sent") {
      const told = { now, luck, why: "unreachable" as const, probe: upstreamProbe };
      this.setGate(upstream, upstream.name, close(upstream.gate, told, this.backoff));
    } else if (upstreamProbe) {
      this.setGate(upstream, upstream.name, probePassed(upstream.gate, now));
    }
  }

  /** Gives back a slot. */
  free({ lane }: Slot): void {
    const { upstream } = lane;
    upstream.inFlight--;
    lane.inFlight--;
    this.forgetIdle(lane);
  }

  /** Forgets a lane that nobody uses: callers choose the names of models. */
  forgetIdle(lane: Lane): void {
    if (lane.inFlight > 0 || lane.gate.kind !== "open") return;
    if (!lane.backlog.isEmpty || lane.arrivals.size > 0) return;
    this.lanes.delete(lane.key);
    lane.upstream.lanes = lane.upstream.lanes.filter((other) => other !== lane);
  }

  /** Closes a lane that was told to wait before this process was started. */
  closeUntil(lane: Lane, until: number, now: number): void {
    this.setGate(lane, lane.key, { kind: "closed", until, since: now, strikes: 1, why: "rate_limit" });
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
  opening(key: string): Opening {
    const upstream = this.upstreams.get(laneParts(key).upstream);
    if (!upstream) return { lane: key, opensAt: Number.POSITIVE_INFINITY };
    const gate = this.lanes.get(key)?.gate ?? open;
    return { lane: key, opensAt: Math.max(opensAt(gate), opensAt(upstream.gate)) };
  }

  /** Since when the upstream of a lane could not be reached; undefined while it can. */
  unreachableSince(key: string): number | undefined {
    const gate = this.upstreams.get(laneParts(key).upstream)?.gate;
    return gate && gate.kind !== "open" ? gate.since : undefined;
  }

  /** Why a waiting request waits, and until when, as far as that is known. */
  explain(record: RequestRecord, now: number): Waiting {
    const upstream = this.upstreams.get(laneParts(record.lane).upstream);
    const byUpstream = opensAt(upstream?.gate ?? open);
    const byLane = opensAt(this.lanes.get(record.lane)?.gate ?? open);
    const until = Math.max(byLane, byUpstream, record.dueAt);
    if (byLane > now) return { why: "rate_limit", until };
    if (byUpstream > now) return { why: "backoff", until };
    const scheduled = record.state === "queued";
    if (record.dueAt > now) return { why: scheduled ? "scheduled" : "backoff", until: record.dueAt };
    return { why: "capacity" };
  }

  private setGate(of: { gate: Gate }, name: string, gate: Gate): void {
    const was = of.gate;
    of.gate = gate;
    if (gate.kind === "closed" && (was.kind !== "closed" || gate.until !== was.until)) {
      const { why, until, strikes } = gate;
      this.observer.tell({ event: "gate_closed", gate: name, why, until, strikes });
    }
    if (gate.kind === "open" && was.kind !== "open") this.observer.tell({ event: "gate_opened", gate: name });
  }
}

/** A probe that took so long that the gate opened without it, and perhaps closed again, proves nothing any more. */
const probesLane = ({ lane: { gate }, laneProbe, grantedAt }: Slot): boolean =>
  laneProbe && gate.kind === "probing" && gate.probeAt === grantedAt;
const probesUpstream = ({ lane: { upstream }, upstreamProbe, grantedAt }: Slot): boolean =>
  upstreamProbe && upstream.gate.kind === "probing" && upstream.gate.probeAt === grantedAt;
