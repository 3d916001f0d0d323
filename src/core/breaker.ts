/**
 * The circuit breaker of a lane, or of a whole upstream: closed, open until an instant, or half open while one probe
 * is under way. A value; every function returns the next one. It is told what failures say about the upstream and
 * nothing else: a caller's own fault is not told to it at all.
 *
 * It opens by a run of failures, or by their share among the calls of a sliding window. Either way they come from at
 * least two sources: one request that breaks whatever it is sent to is no outage.
 */

export interface BreakerSettings {
  enabled: boolean;
  /** Failures in a row that open it. */
  consecutiveFailures: number;
  /** The share of failed calls in the window that opens it, in (0, 1]. */
  failureRate: number;
  /** With fewer calls in the window their share says nothing. */
  minCalls: number;
  windowMs: number;
  /** How long it is open for the first time; each failed probe doubles it. */
  cooldownMs: number;
  maxCooldownMs: number;
}

/** Calls that ended within one twelfth of the window. */
interface Bucket {
  /** How many twelfths of a window after the epoch. */
  index: number;
  calls: number;
  failed: number;
  /** Of its failures; two different ones at most. */
  sources: readonly string[];
}

/** Failures without a success between them. */
interface Run {
  count: number;
  firstAt: number;
  /** Two different ones at most. */
  sources: readonly string[];
}

export type Breaker =
  | { kind: "closed"; since: number; current: Bucket; past: readonly Bucket[]; run?: Run }
  | OpenBreaker
  /** Until its probe ends: by `succeeded`, `failed` or `probeAbandoned`, whichever is told of it. */
  | { kind: "half_open"; probeAt: number; since: number; opens: number; cooldownMs: number };

/** `since`: when it opened first; `opens`: how often in a row; `cooldownMs`: of this time, without the jitter. */
export interface OpenBreaker {
  kind: "open";
  until: number;
  since: number;
  opens: number;
  cooldownMs: number;
}

type Closed = Extract<Breaker, { kind: "closed" }>;

/** A call that failed. Instants are epoch ms. */
export interface FailedCall {
  now: number;
  /** In [0, 1). */
  luck: number;
  /** Who or what failed: failures of only one source never open a breaker. */
  source: string;
  /** The call was the one that `admits` had called the probe. */
  probe: boolean;
  grantedAt: number;
}

const nothing: Bucket = { index: 0, calls: 0, failed: 0, sources: [] };

export const closed: Breaker = { kind: "closed", since: 0, current: nothing, past: [] };

/** Whether it has nothing to remember. */
export const isBlank = (breaker: Breaker): boolean =>
  breaker.kind === "closed" &&
  breaker.run === undefined &&
  breaker.current.failed === 0 &&
  breaker.past.every(({ failed }) => failed === 0);

const bucketsPerWindow = 12;
/** A burst of unlucky calls in one instant is no outage: a run that opens the breaker lasts so long at least. */
export const shortestRunMs = 1000;
/** Jitter keeps nodes apart: so much of a cooldown is added at most. */
const jitter = 1 / 20;

/** Whether a call may pass now, and whether it would be the one probe of an open breaker. */
export function admits(breaker: Breaker, now: number): "yes" | "probe" | "no" {
  if (breaker.kind === "closed") return "yes";
  return breaker.kind === "open" && opensAt(breaker, now) <= now ? "probe" : "no";
}

/**
 * When the breaker lets somebody through, as far as is known now: 0 for a closed one. How long a probe takes nobody
 * knows; the answer for a half open breaker is an estimate, and always later than now.
 */
export function breakerOpensAt(breaker: Breaker, now: number): number {
  if (breaker.kind === "closed") return 0;
  return breaker.kind === "open" ? opensAt(breaker, now) : now + breaker.cooldownMs;
}

/** The breaker when somebody has passed, whom it had admitted. */
export function passed(breaker: Breaker, now: number): Breaker {
  if (breaker.kind !== "open") return breaker;
  const { since, opens, cooldownMs } = breaker;
  return { kind: "half_open", probeAt: now, since, opens, cooldownMs };
}

/** After a call that shows that the upstream works. That of the probe closes the breaker and forgets the past. */
export function succeeded(breaker: Breaker, now: number, probe: boolean, settings: BreakerSettings): Breaker {
  if (breaker.kind === "half_open" && probe)
    return { kind: "closed", since: now, current: nothing, past: [] };
  if (breaker.kind !== "closed" || !settings.enabled) return breaker;
  const { index, calls, failed, sources } = bucketAt(breaker, now, settings);
  const current = { index, calls: calls + 1, failed, sources };
  return { kind: "closed", since: breaker.since, current, past: pastAt(breaker, index) };
}

/**
 * After a call that shows that something is wrong with the upstream. Calls that had been granted before the breaker
 * opened say nothing new, neither while it is open nor when it is closed again.
 */
export function failed(breaker: Breaker, call: FailedCall, settings: BreakerSettings): Breaker {
  const { now, source, probe, grantedAt } = call;
  if (breaker.kind !== "closed")
    return breaker.kind === "half_open" && probe ? open(call, settings, breaker) : breaker;
  const isLate = grantedAt < breaker.since && breaker.since <= now;
  if (!settings.enabled || isLate) return breaker;
  const bucket = bucketAt(breaker, now, settings);
  const current: Bucket = {
    index: bucket.index,
    calls: bucket.calls + 1,
    failed: bucket.failed + 1,
    sources: joined(bucket.sources, source),
  };
  const run: Run = {
    count: (breaker.run?.count ?? 0) + 1,
    firstAt: Math.min(breaker.run?.firstAt ?? now, now),
    sources: joined(breaker.run?.sources ?? [], source),
  };
  const past = pastAt(breaker, current.index);
  if (isLongRun(run, now, settings) || isHighRate([...past, current], settings)) return open(call, settings);
  return { kind: "closed", since: breaker.since, current, past, run };
}

/** After a probe that was never sent, or says nothing: the next one may try at once. */
export function probeAbandoned(breaker: Breaker, now: number): Breaker {
  if (breaker.kind !== "half_open") return breaker;
  const { since, opens, cooldownMs } = breaker;
  return { kind: "open", until: now, since, opens, cooldownMs };
}

/** What is worth keeping for the next start, as plain JSON: that a breaker is open, not what a closed one has seen. */
export function forRestart(breaker: Breaker): unknown {
  if (breaker.kind === "closed") return { kind: "closed" };
  const { kind, since, opens } = breaker;
  return { kind, until: kind === "open" ? breaker.until : breaker.probeAt, since, opens };
}

/**
 * The breaker that `forRestart` has kept; closed, if that cannot be read. The probe of a half open one has died with
 * its process: the next one may try.
 */
export function revive(kept: unknown, now: number, settings: BreakerSettings): Breaker {
  if (!settings.enabled || typeof kept !== "object" || kept === null) return closed;
  const { kind, until, since, opens } = kept as Record<string, unknown>;
  if (kind !== "open" && kind !== "half_open") return closed;
  if (!isWhole(until) || !isWhole(since) || !isWhole(opens) || opens < 1) return closed;
  const cooldownMs = cooldownOf(opens, settings);
  const reopensAt = kind === "open" ? Math.min(until, now + longest(cooldownMs)) : now;
  return { kind: "open", until: reopensAt, since: Math.min(since, now), opens, cooldownMs };
}

function open(
  { now, luck }: FailedCall,
  settings: BreakerSettings,
  before?: { since: number; opens: number },
): OpenBreaker {
  const opens = (before?.opens ?? 0) + 1;
  const cooldownMs = cooldownOf(opens, settings);
  const until = Math.floor(now + cooldownMs * (1 + luck * jitter));
  return { kind: "open", until, since: before?.since ?? now, opens, cooldownMs };
}

/** A wait longer than any means that the clock was set back: nobody knows how much of it is left. */
function opensAt({ until, cooldownMs }: OpenBreaker, now: number): number {
  return until > now + longest(cooldownMs) ? now : until;
}

const cooldownOf = (opens: number, { cooldownMs, maxCooldownMs }: BreakerSettings): number =>
  Math.min(maxCooldownMs, cooldownMs * 2 ** Math.min(opens - 1, 30));

const longest = (cooldownMs: number): number => Math.ceil(cooldownMs * (1 + jitter));

/** The bucket that a call counts in which ends now. A step of the clock back to the bucket before is none. */
function bucketAt({ current }: Closed, now: number, { windowMs }: BreakerSettings): Bucket {
  const index = Math.floor((now * bucketsPerWindow) / windowMs);
  if (index === current.index || index === current.index - 1) return current;
  return { index, calls: 0, failed: 0, sources: [] };
}

/** The other buckets of the window that ends with this one: none of the future, if the clock was set back. */
function pastAt({ current, past }: Closed, index: number): readonly Bucket[] {
  if (index === current.index) return past;
  return [...past, current].filter((one) => one.index < index && one.index > index - bucketsPerWindow);
}

const joined = (sources: readonly string[], source: string): readonly string[] =>
  sources.length >= 2 || sources.includes(source) ? sources : [...sources, source];

const isLongRun = ({ count, firstAt, sources }: Run, now: number, settings: BreakerSettings): boolean =>
  count >= settings.consecutiveFailures && now - firstAt >= shortestRunMs && sources.length >= 2;

function isHighRate(buckets: Bucket[], { minCalls, failureRate }: BreakerSettings): boolean {
  let calls = 0;
  let failures = 0;
  let sources: readonly string[] = [];
  for (const bucket of buckets) {
    calls += bucket.calls;
    failures += bucket.failed;
    for (const source of bucket.sources) sources = joined(sources, source);
  }
  return calls >= minCalls && failures >= failureRate * calls && sources.length >= 2;
}

const isWhole = (value: unknown): value is number =>
  typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
