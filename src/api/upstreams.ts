/** GET /v1/upstreams: what holds each lane, and until when. */

import type { UpstreamObject } from "../contract.ts";
import type { LaneReport, UpstreamReport } from "../core/report.ts";
import type { Handler } from "./context.ts";
import { listReply } from "./errors.ts";
import { isoOrNull } from "./present.ts";

export const listUpstreams: Handler = async (_call, { queue }) => {
  return listReply(queue.upstreams().map(present));
};

function present(upstream: UpstreamReport): UpstreamObject {
  return {
    id: upstream.name,
    object: "upstream",
    limit_group: upstream.limitGroup ?? null,
    in_flight: upstream.inFlight,
    max_concurrency: upstream.maxConcurrency,
    breaker: presentBreaker(upstream.breaker),
    reachable: upstream.unreachableSince === undefined,
    retry_budget: Math.floor(upstream.retries),
    lanes: upstream.lanes.map(presentLane),
  };
}

const presentBreaker = ({ state, until, opens }: UpstreamReport["breaker"]) => ({
  state,
  until: isoOrNull(until),
  opens,
});

function presentLane(lane: LaneReport): UpstreamObject["lanes"][number] {
  const limit = (of: LaneReport["requests"]) =>
    of && {
      per_minute: of.perMinute,
      used: of.used,
      source: of.source,
      opens_at: isoOrNull(of.opensAt),
      refilled_at: isoOrNull(of.refilledAt),
    };
  return {
    model: lane.model,
    queued: lane.queued,
    in_flight: lane.inFlight,
    concurrency: { limit: lane.concurrency, min: lane.minConcurrency, max: lane.maxConcurrency },
    requests: limit(lane.requests) ?? null,
    tokens: limit(lane.tokens) ?? null,
    estimate: lane.estimate
      ? {
          tokens_per_byte: round(lane.estimate.tokensPerByte),
          output_tokens: Math.round(lane.estimate.outputTokens),
          error: round(lane.estimate.error),
          samples: lane.estimate.samples,
        }
      : null,
    breaker: presentBreaker(lane.breaker),
    waiting_for: lane.heldBy ?? null,
    until: isoOrNull(lane.heldUntil),
  };
}

const round = (value: number): number => Math.round(value * 1000) / 1000;
