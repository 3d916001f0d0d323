/** What there is to say about lanes and upstreams: what holds them, and until when. */

import { type Breaker, breakerOpensAt } from "./breaker.ts";
import type { LaneFlow } from "./flow.ts";
import type { UpstreamState } from "./lane.ts";
import type { Lanes, Waiting } from "./lanes.ts";
import type { Kind } from "./meter.ts";
import { laneParts } from "./request.ts";
import { available } from "./retry-budget.ts";

export interface UpstreamReport {
  name: string;
  limitGroup?: string;
  inFlight: number;
  maxConcurrency: number;
  breaker: BreakerReport;
  unreachableSince?: number;
  /** How many failed requests it may be sent again at once. */
  retries: number;
  lanes: LaneReport[];
}

export interface BreakerReport {
  state: Breaker["kind"];
  /** Epoch ms; where it is half open, an estimate. */
  until?: number;
  /** How often in a row it has opened. */
  opens: number;
}

export interface LaneReport {
  model: string;
  queued: number;
  inFlight: number;
  /** How many calls at once are good for it. */
  concurrency: number;
  minConcurrency: number;
  maxConcurrency: number;
  requests?: LimitReport;
  tokens?: LimitReport;
  estimate?: { tokensPerByte: number; outputTokens: number; error: number; samples: number };
  breaker: BreakerReport;
  /** Undefined: the next request may start at once. */
  heldBy?: Waiting["why"];
  /** Epoch ms, where it is known. */
  heldUntil?: number;
}

export interface LimitReport {
  perMinute: number;
  used: number;
  source: "config" | "learned";
  /** From when on the smallest call fits; undefined: now. */
  opensAt?: number;
  /** When all of it is there again, if nothing is sent; undefined: it is. */
  refilledAt?: number;
}

/** @param now epoch ms */
export function reportOf(lanes: Lanes, now: number): UpstreamReport[] {
  return [...lanes.states()].map((upstream) => upstreamReport(lanes, upstream, now));
}

function upstreamReport(lanes: Lanes, upstream: UpstreamState, now: number): UpstreamReport {
  const { name, inFlight, maxConcurrency, flow, gate } = upstream;
  const known = [...lanes.flow.known()].filter(({ key }) => laneParts(key).upstream === name);
  return {
    name,
    limitGroup: flow.settings.limitGroup,
    inFlight,
    maxConcurrency,
    breaker: breakerReport(lanes, flow.breaker, now),
    unreachableSince: gate.kind === "open" ? undefined : lanes.wall(gate.since),
    retries: available(flow.budget, lanes.steady(now)),
    lanes: known.map((lane) => laneReport(lanes, lane, now)).sort((a, b) => (a.model < b.model ? -1 : 1)),
  };
}

function breakerReport(lanes: Lanes, breaker: Breaker, now: number): BreakerReport {
  if (breaker.kind === "closed") return { state: "closed", opens: 0 };
  const until = lanes.wall(breakerOpensAt(breaker, lanes.steady(now)));
  return { state: breaker.kind, until, opens: breaker.opens };
}

function laneReport(lanes: Lanes, flow: LaneFlow, now: number): LaneReport {
  const lane = lanes.find(flow.key);
  const { calibration, concurrency, minConcurrency, maxConcurrency } = flow;
  const { opensAt, heldBy } = lanes.opening(flow.key, now);
  const isFull = lane !== undefined && lanes.isBusy(lane);
  const held = heldBy === "unreachable" ? "backoff" : heldBy;
  return {
    model: laneParts(flow.key).model,
    queued: lane?.backlog.size ?? 0,
    inFlight: lane?.slots.size ?? 0,
    concurrency: Math.floor(concurrency.limit),
    minConcurrency,
    maxConcurrency,
    requests: limitReport(lanes, flow, "requests", now),
    tokens: limitReport(lanes, flow, "tokens", now),
    estimate: calibration && {
      tokensPerByte: calibration.ratio,
      outputTokens: calibration.output,
      error: calibration.error,
      samples: calibration.samples,
    },
    breaker: breakerReport(lanes, flow.breaker, now),
    heldBy: held ?? (isFull ? "capacity" : undefined),
    heldUntil: held ? opensAt : undefined,
  };
}

function limitReport(
  lanes: Lanes,
  { metering }: LaneFlow,
  kind: Kind,
  wallNow: number,
): LimitReport | undefined {
  const now = lanes.steady(wallNow);
  const limit = metering.limitOf(kind, now);
  if (!limit) return undefined;
  const opensAt = metering.opensAt({ requests: 0, tokens: 0, [kind]: 1 }, now);
  const refilledAt =
    limit.used > 0 ? metering.opensAt({ requests: 0, tokens: 0, [kind]: limit.perMinute }, now) : now;
  return {
    ...limit,
    opensAt: opensAt > now ? lanes.wall(opensAt) : undefined,
    refilledAt: refilledAt > now ? lanes.wall(refilledAt) : undefined,
  };
}
