import type { z } from "zod";
import type { BreakerSettings } from "../core/breaker.ts";
import { formatDuration } from "../core/duration.ts";
import type { PaceLimits } from "../core/pace.ts";
import type { Price } from "../core/price.ts";
import { decimal, duration, named, table, text, wholeNumber, yesOrNo } from "./field.ts";

/* How much is sent to whom: limits, what breaks, what retries may cost, prices. */

/** What holds for the models of an upstream that match. */
export interface LaneConfig {
  /** a name, or a glob with * */
  model: string;
  limits: PaceLimits;
  /** undefined = the upstream's */
  maxConcurrency?: number;
}

/** Limits that several upstreams share. */
export interface LimitGroupConfig {
  name: string;
  limits: PaceLimits;
}

export const mostConcurrent = 100_000;

/** How upstreams and limit groups are called. */
export const plainName = {
  expected: "letters, digits, - or _, beginning with a letter or a digit",
  pattern: /^[a-z0-9][a-z0-9_-]*$/i,
};

const paceLimits = {
  requests_per_minute: wholeNumber(1, 1_000_000_000).optional(),
  tokens_per_minute: wholeNumber(1, 1_000_000_000_000).optional(),
};

const lanes = named(
  "the name of a model, or a glob",
  /\S/,
  table({ ...paceLimits, max_concurrency: wholeNumber(1, mostConcurrent).optional() }),
).prefault({});

/** The keys of an upstream that say how much it is sent. */
export const upstreamFlow = {
  min_concurrency: wholeNumber(1, mostConcurrent).prefault(1),
  max_concurrency: wholeNumber(1, mostConcurrent).prefault(256),
  ...paceLimits,
  limit_group: text("the name of one of limit_groups").optional(),
  lanes,
};

export const limitGroups = named(
  plainName.expected,
  plainName.pattern,
  table(paceLimits).refine(
    (limits) => limits.requests_per_minute !== undefined || limits.tokens_per_minute !== undefined,
    "must have requests_per_minute, tokens_per_minute or both",
  ),
).prefault({});

export const breaker = table({
  enabled: yesOrNo.prefault(true),
  consecutive_failures: wholeNumber(1, 1_000_000).prefault(3),
  failure_rate: decimal("a number above 0 and at most 1", (rate) => rate > 0 && rate <= 1).prefault(0.5),
  min_calls: wholeNumber(1, 1_000_000).prefault(10),
  window: duration().prefault("60s"),
  cooldown: duration().prefault("20s"),
  cooldown_max: duration().prefault("60s"),
}).prefault({});

/** The keys of `[retry]` that say how many retries an upstream gets. */
export const retryBudget = {
  budget_ratio: decimal("a number from 0 to 100", (ratio) => ratio >= 0 && ratio <= 100).prefault(0.2),
  // Without any, a retry that is over the budget would wait for ever.
  budget_per_second: decimal(
    "a number from 0.01 to 10000",
    (rate) => rate >= 0.01 && rate <= 10_000,
  ).prefault(2),
};

const money = decimal("a number of US dollars per 1,000,000 tokens, 0 or more", (price) => price >= 0);

export const prices = named(
  "the name of a model, upstream/model, or a glob",
  /\S/,
  table({ input: money, output: money, cached_input: money.optional() }),
).prefault({});

type WrittenLimits = z.output<z.ZodObject<typeof paceLimits>>;
type WrittenUpstream = z.output<z.ZodObject<typeof upstreamFlow>>;

function buildLimits(written: WrittenLimits): PaceLimits {
  const { requests_per_minute: requestsPerMinute, tokens_per_minute: tokensPerMinute } = written;
  return {
    ...(requestsPerMinute !== undefined && { requestsPerMinute }),
    ...(tokensPerMinute !== undefined && { tokensPerMinute }),
  };
}

function limitsAsWritten({ requestsPerMinute, tokensPerMinute }: PaceLimits) {
  return { requests_per_minute: requestsPerMinute, tokens_per_minute: tokensPerMinute };
}

export function buildUpstreamFlow(written: WrittenUpstream) {
  const { limit_group: limitGroup } = written;
  return {
    minConcurrency: written.min_concurrency,
    maxConcurrency: written.max_concurrency,
    limits: buildLimits(written),
    ...(limitGroup !== undefined && { limitGroup }),
    lanes: Object.entries(written.lanes).map(([model, { max_concurrency: maxConcurrency, ...limits }]) => ({
      model,
      limits: buildLimits(limits),
      ...(maxConcurrency !== undefined && { maxConcurrency }),
    })),
  };
}

export function upstreamFlowAsWritten(flow: {
  minConcurrency: number;
  maxConcurrency: number;
  limits: PaceLimits;
  limitGroup?: string;
  lanes: LaneConfig[];
}) {
  const lanes = flow.lanes.map(({ model, limits, maxConcurrency }) => {
    return [model, { ...limitsAsWritten(limits), max_concurrency: maxConcurrency }];
  });
  return {
    min_concurrency: flow.minConcurrency,
    max_concurrency: flow.maxConcurrency,
    ...limitsAsWritten(flow.limits),
    limit_group: flow.limitGroup,
    lanes: lanes.length > 0 ? Object.fromEntries(lanes) : undefined,
  };
}

export function buildLimitGroups(written: z.output<typeof limitGroups>): LimitGroupConfig[] {
  return Object.entries(written).map(([name, limits]) => ({ name, limits: buildLimits(limits) }));
}

export function limitGroupAsWritten({ name, limits }: LimitGroupConfig): [string, unknown] {
  return [name, limitsAsWritten(limits)];
}

export function buildBreaker(written: z.output<typeof breaker>): BreakerSettings {
  return {
    enabled: written.enabled,
    consecutiveFailures: written.consecutive_failures,
    failureRate: written.failure_rate,
    minCalls: written.min_calls,
    windowMs: written.window,
    cooldownMs: written.cooldown,
    maxCooldownMs: written.cooldown_max,
  };
}

export function breakerAsWritten(settings: BreakerSettings) {
  return {
    enabled: settings.enabled,
    consecutive_failures: settings.consecutiveFailures,
    failure_rate: settings.failureRate,
    min_calls: settings.minCalls,
    window: formatDuration(settings.windowMs),
    cooldown: formatDuration(settings.cooldownMs),
    cooldown_max: formatDuration(settings.maxCooldownMs),
  };
}

export function buildPrices(written: z.output<typeof prices>): Price[] {
  return Object.entries(written).map(([model, { input, output, cached_input: cachedInput }]) => ({
    model,
    input,
    output,
    ...(cachedInput !== undefined && { cachedInput }),
  }));
}

export function priceAsWritten({ model, input, output, cachedInput }: Price): [string, unknown] {
  return [model, { input, output, cached_input: cachedInput }];
}
