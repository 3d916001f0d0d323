/**
 * What a call teaches about its lane and its upstream: whether they let anybody through, whether they are well, how
 * many calls at once are good for them, what is left of their limits, what a text has of tokens. Instants are steady,
 * see `lanes.ts`.
 */

import * as breakers from "./breaker.ts";
import { onOverload, onSuccess, restored } from "./concurrency.ts";
import type { LaneFlow, UpstreamFlow } from "./flow.ts";
import { close, type Gate, type GateBackoff, probeAbandoned, probePassed } from "./gate.ts";
import {
  type Lane,
  nothing,
  probesLane,
  probesUpstream,
  type Slot,
  triesLane,
  triesUpstream,
  unreckoned,
} from "./lane.ts";
import type { Observer } from "./ports.ts";
import type { RequestRecord } from "./request.ts";
import type { Reading } from "./retry.ts";
import { calibrated } from "./token-estimate.ts";

/** An upstream that has answered so short a while ago is busy, not broken. */
const servingMs = 1_000;

interface LearningSettings {
  laneBackoff: GateBackoff;
  breaker: breakers.BreakerSettings;
}

export class Learning {
  private readonly settings: LearningSettings;
  private readonly observer: Observer;
  private hasNews = false;

  constructor(settings: LearningSettings, observer: Observer) {
    this.settings = settings;
    this.observer = observer;
  }

  /** `isWhole`: what was sent is what was reckoned. */
  learn(
    slot: Slot,
    record: RequestRecord,
    reading: Reading,
    { now, luck, isWhole }: { now: number; luck: number; isWhole: boolean },
  ): void {
    this.learnGates(slot, reading, now, luck);
    // Too much for it, while it works on others, is no fault.
    const isFault = reading.isFault && !(reading.isOverload && this.isServing(slot, now));
    this.learnBreakers(slot, record, { ...reading, isFault }, now, luck);
    this.learnLimits(slot, record, reading, now, isWhole);
    this.learnConcurrency(slot, reading, now);
    slot.isOver = true;
  }

  /**
   * A stream has said something. True where the question was whether its upstream is well, or there is room for more
   * calls: who has begun to answer bears the call, and may go on for minutes.
   */
  alive(slot: Slot, now: number): boolean {
    const { lane } = slot;
    slot.hasSpoken = true;
    const hasGrown = this.borne(lane, now);
    const byLane = triesLane(slot);
    const byUpstream = triesUpstream(slot);
    if (byLane) this.succeeded(lane.flow, lane.key, now, true);
    if (byUpstream) this.succeeded(lane.upstream.flow, lane.upstream.name, now, true);
    return byLane || byUpstream || hasGrown;
  }

  /** A call says nothing: if it was a probe, of a gate or a breaker, the next one may try. */
  forgetProbe(slot: Slot, now: number): void {
    const { lane } = slot;
    const { upstream } = lane;
    if (probesLane(slot)) lane.gate = probeAbandoned(lane.gate, now);
    if (probesUpstream(slot)) upstream.gate = probeAbandoned(upstream.gate, now);
    this.forgetTrial(slot, now);
  }

  /** Whether a breaker has opened since this was asked last. */
  takeNews(): boolean {
    const { hasNews } = this;
    this.hasNews = false;
    return hasNews;
  }

  setGate(of: { gate: Gate }, name: string, gate: Gate): void {
    const was = of.gate;
    of.gate = gate;
    if (gate.kind === "closed" && (was.kind !== "closed" || gate.until !== was.until)) {
      const { why, until, strikes } = gate;
      this.observer.tell({ event: "gate_closed", gate: name, why, until, strikes });
    }
    if (gate.kind === "open" && was.kind !== "open") this.observer.tell({ event: "gate_opened", gate: name });
  }

  private learnGates(slot: Slot, reading: Reading, now: number, luck: number): void {
    const { lane } = slot;
    const { upstream } = lane;
    const { laneBackoff } = this.settings;
    const laneProbe = probesLane(slot);
    const upstreamProbe = probesUpstream(slot);
    const { retryAfterMs } = reading;
    // Whoever is told to wait waits, also after an ordinary error.
    if (reading.verdict === "throttled" || (reading.verdict === "transient" && retryAfterMs !== undefined)) {
      const told = { now, luck, why: "rate_limit" as const, retryAfterMs, probe: laneProbe };
      lane.refusal = reading.result.failure;
      this.setGate(lane, lane.key, close(lane.gate, told, laneBackoff));
    } else if (laneProbe) {
      // A probe that could not be sent says nothing about the lane: the next one may try.
      const gate =
        reading.verdict === "not_sent" ? probeAbandoned(lane.gate, now) : probePassed(lane.gate, now);
      this.setGate(lane, lane.key, gate);
    }
    if (reading.verdict === "not_sent") {
      const told = { now, luck, why: "unreachable" as const, probe: upstreamProbe };
      this.setGate(upstream, upstream.name, close(upstream.gate, told, laneBackoff));
    } else if (upstreamProbe) {
      this.setGate(upstream, upstream.name, probePassed(upstream.gate, now));
    }
  }

  private learnBreakers(
    slot: Slot,
    record: RequestRecord,
    reading: Reading,
    now: number,
    luck: number,
  ): void {
    const { lane } = slot;
    const { upstream, flow, key } = lane;
    if (reading.isFault) {
      const told = { now, luck, grantedAt: slot.grantedAt };
      this.failed(flow, key, { ...told, source: record.id, probe: triesLane(slot) });
      // One model that fails is not the upstream that fails.
      this.failed(upstream.flow, upstream.name, { ...told, source: key, probe: triesUpstream(slot) });
      return;
    }
    const says = reading.verdict === "success" || reading.verdict === "invalid_output";
    if (says || (reading.verdict === "permanent" && reading.result.status !== undefined)) {
      this.succeeded(flow, key, now, triesLane(slot));
      this.succeeded(upstream.flow, upstream.name, now, triesUpstream(slot));
    } else {
      this.forgetTrial(slot, now);
    }
  }

  private failed(
    of: LaneFlow | UpstreamFlow,
    name: string,
    told: Parameters<typeof breakers.failed>[1],
  ): void {
    const was = of.breaker;
    of.breaker = breakers.failed(was, told, this.settings.breaker);
    if (of.breaker.kind !== "open" || was.kind === "open") return;
    of.isDirty = true;
    this.hasNews = true;
    // It was not the number of calls.
    if ("concurrency" in of) of.concurrency = restored(of.concurrency);
    const { until, opens } = of.breaker;
    const why = was.kind === "half_open" ? "probe_failed" : "failures";
    this.observer.tell({ event: "breaker_opened", breaker: name, why, until, opens });
  }

  private succeeded(of: LaneFlow | UpstreamFlow, name: string, now: number, probe: boolean): void {
    const was = of.breaker;
    of.breaker = breakers.succeeded(was, now, probe, this.settings.breaker);
    if (was.kind === "closed" || of.breaker.kind !== "closed") return;
    of.isDirty = true;
    this.observer.tell({ event: "breaker_closed", breaker: name });
  }

  private learnLimits(
    slot: Slot,
    { terms: { size } }: RequestRecord,
    { verdict, result: { status = 0 }, used: usage, limits }: Reading,
    now: number,
    isWhole: boolean,
  ): void {
    const { flow } = slot.lane;
    // Whatever was answered with success was worked for, also where nobody can read it.
    const wasDone = verdict === "ambiguous" || (status >= 200 && status < 300);
    const used = usage?.total ?? (wasDone ? slot.taken.amounts.tokens : 0);
    const actual = verdict === "not_sent" ? nothing : { requests: 1, tokens: used };
    if (slot.taken.amounts !== unreckoned) flow.metering.settle(slot.taken, actual, now);
    if (limits) flow.metering.read(limits, slot.taken);
    if (usage && verdict === "success" && isWhole)
      flow.calibration = calibrated(flow.calibration, size, usage);
    if (limits || usage) flow.isDirty = true;
  }

  /** The call says nothing about its upstream: if it was to try a breaker, the next one may. */
  private forgetTrial(slot: Slot, now: number): void {
    const { upstream, flow } = slot.lane;
    if (triesLane(slot)) flow.breaker = breakers.probeAbandoned(flow.breaker, now);
    if (triesUpstream(slot)) upstream.flow.breaker = breakers.probeAbandoned(upstream.flow.breaker, now);
  }

  private learnConcurrency(slot: Slot, { isOverload, verdict }: Reading, now: number): void {
    const { flow, slots, key } = slot.lane;
    if (verdict === "success") {
      flow.succeededAt = now;
      if (!slot.hasSpoken) this.borne(slot.lane, now);
    }
    if (!isOverload || slot.laneProbe || slot.laneTrial) return;
    const before = Math.floor(flow.concurrency.limit);
    // Many refusals are written at once: those before this one are no longer at the upstream.
    const inFlight = [...slots].filter(({ isOver }) => !isOver).length;
    flow.concurrency = onOverload(flow.concurrency, slot.grantedAt, now, flow.minConcurrency, inFlight);
    const limit = Math.floor(flow.concurrency.limit);
    if (limit < before) this.observer.tell({ event: "concurrency_lowered", lane: key, limit });
  }

  /** So many calls at once are borne. True where there may be more now. */
  private borne({ flow, slots }: Lane, now: number): boolean {
    const before = Math.floor(flow.concurrency.limit);
    flow.concurrency = onSuccess(flow.concurrency, slots.size, flow.maxConcurrency, now);
    return Math.floor(flow.concurrency.limit) > before;
  }

  /** Whether the upstream works, for others than this call. */
  private isServing({ lane: { flow, slots } }: Slot, now: number): boolean {
    return slots.size > 1 || now - flow.succeededAt < servingMs;
  }
}
