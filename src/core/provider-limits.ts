/** What providers say of their own limits in the headers of an answer, and an account of what is left of them. Pure. */

export interface LimitReading {
  /** Requests or tokens that there may be at once. */
  limit: number;
  remaining: number;
  /** Until all of the limit is there again, in ms; undefined where the provider does not say. */
  resetMs?: number;
}

/**
 * A token bucket that follows the provider's: a full one holds `limit`, and it fills by `perMs`. JSON-able.
 * Below 0 more was taken than there was.
 */
export interface Mirror {
  limit: number;
  /** What was there at `at`, epoch ms. */
  level: number;
  at: number;
  perMs: number;
  /** When the call was made by which it was read last, epoch ms. */
  readAt: number;
}

type HeaderOf = (name: string) => string | undefined;

const dayMs = 86_400_000;
const longestMs = 32 * dayMs;
const largestLimit = 1e12;
/** Slower than any that can be read. */
const slowestRefillMs = 100 * longestMs;
/** A clock that is set back by more than this makes what was read before worthless. */
const setBackMs = 1000;
/** Where less than this share of a limit is used, how soon it is full again says little about how it fills. */
const tellingShare = 0.1;

/**
 * The limits in `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`. A kind whose headers make no sense is left
 * out: providers send -1 or 0 for what they do not know.
 *
 * @param now epoch ms, for resets that are given as instants
 */
export function readRateHeaders(
  header: HeaderOf,
  now: number,
): { requests?: LimitReading; tokens?: LimitReading } {
  return { requests: readKind(header, "requests", now), tokens: readKind(header, "tokens", now) };
}

function readKind(header: HeaderOf, kind: string, now: number): LimitReading | undefined {
  const limit = wholeNumber(header(`x-ratelimit-limit-${kind}`));
  if (limit === undefined || limit === 0) return undefined;
  const remaining = wholeNumber(header(`x-ratelimit-remaining-${kind}`));
  if (remaining === undefined || remaining > limit) return undefined;
  const reset = (header(`x-ratelimit-reset-${kind}`) ?? "").trim();
  if (reset === "") return { limit, remaining };
  const resetMs = resetOf(reset, now);
  return resetMs === undefined ? undefined : { limit, remaining, resetMs };
}

function wholeNumber(text: string | undefined): number | undefined {
  const value = text !== undefined && /^\s*\d{1,15}\s*$/.test(text) ? Number(text) : Number.NaN;
  return value <= largestLimit ? value : undefined;
}

const unitMs = { h: 3_600_000, m: 60_000, s: 1000, ms: 1, us: 1e-3, µs: 1e-3, μs: 1e-3, ns: 1e-6 };
const goDuration = /^(?:\d{1,15}(?:\.\d{1,15})?(?:h|ms|m|s|us|µs|μs|ns))+$/;
const instant = /^\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:[Zz]|[+-]\d\d:\d\d)$/;

/** A duration as Go writes it, seconds, or an instant: epoch s, epoch ms, RFC 3339. An instant that has passed is 0. */
function resetOf(text: string, now: number): number | undefined {
  if (text.length > 64) return undefined;
  if (/^\d{1,15}(?:\.\d{1,15})?$/.test(text)) return resetOfNumber(Number(text), now);
  if (instant.test(text)) return untilInstant(Date.parse(text), now);
  if (!goDuration.test(text)) return undefined;
  let sum = 0;
  for (const [, value, unit] of text.matchAll(/([\d.]+)([a-zµμ]+)/g)) {
    sum += Number(value) * unitMs[unit as keyof typeof unitMs];
  }
  return sum <= longestMs ? Math.ceil(sum) : undefined;
}

function resetOfNumber(value: number, now: number): number | undefined {
  if (value * 1000 <= longestMs) return Math.ceil(value * 1000);
  return untilInstant(value * 1000, now) ?? untilInstant(value, now);
}

/** NaN is no instant; one that is too far away is none either. */
const untilInstant = (at: number, now: number): number | undefined =>
  Math.abs(at - now) <= longestMs ? Math.max(0, Math.ceil(at - now)) : undefined;

/** Calls that were made within this of each other may reach the provider in any order. */
export const nearMs = 1_000;

/**
 * What a reading says of the account: what the provider knew when the call was made, at `calledAt` (epoch ms), less
 * what was granted since. The answer to a call that was made before the one that was read last says nothing new.
 */
export function mirrored(
  before: Mirror | undefined,
  reading: LimitReading,
  calledAt: number,
  sinceThen: number,
): Mirror {
  if (before !== undefined && calledAt < before.readAt) return before;
  const { limit, remaining } = reading;
  // A debt deeper than a whole limit is not believed: most of it was refused by the provider, and cost nothing.
  const level = Math.max(-limit, remaining - Math.max(0, sinceThen));
  const perMs = refillOf(before, reading);
  if (before === undefined || calledAt - before.readAt > nearMs || before.limit !== limit)
    return { limit, level, at: calledAt, perMs, readAt: calledAt };
  // Of calls made together nobody knows which the provider counted first: the one that says most did.
  const at = Math.max(before.at, calledAt);
  const atLeast = levelAt({ limit, level, at: calledAt, perMs, readAt: calledAt }, at);
  const known = levelAt({ ...before, perMs }, at);
  // The first reading of them stays the one that the next is compared with, so that every second one is believed anew.
  return { limit, level: Math.max(atLeast, known), at, perMs, readAt: before.readAt };
}

function refillOf(before: Mirror | undefined, { limit, remaining, resetMs = 0 }: LimitReading): number {
  const used = limit - remaining;
  if (resetMs > 0 && used > 0 && used >= limit * tellingShare) return used / resetMs;
  return before === undefined ? limit / 60_000 : (before.perMs / before.limit) * limit;
}

/** What is left of an account at an instant, if nothing is taken until then. */
export const levelAt = ({ limit, level, at, perMs }: Mirror, then: number): number =>
  Math.min(limit, level + (then - at) * perMs);

/**
 * The instant from which `amount` is there, epoch ms; `now` if it is already. An amount that is larger than the limit
 * needs it full. Nothing is known after the clock was set back: the account counts as full.
 */
export function mirrorOpensAt(mirror: Mirror, amount: number, now: number): number {
  if (amount <= 0 || mirror.at > now + setBackMs) return now;
  const missing = Math.min(amount, mirror.limit) - mirror.level;
  return missing <= 0 ? now : Math.max(now, mirror.at + Math.ceil(missing / mirror.perMs));
}

/** After `amount` was taken at `now` (epoch ms), or given back where it is negative. */
export function taken(mirror: Mirror, amount: number, now: number): Mirror {
  const { limit, perMs } = mirror;
  const isWorthless = mirror.at > now + setBackMs;
  const at = isWorthless ? now : Math.max(now, mirror.at);
  const there = isWorthless ? limit : levelAt(mirror, at);
  const level = Math.min(limit, Math.max(-limit, there - amount));
  return { limit, level, at, perMs, readAt: Math.min(mirror.readAt, at) };
}

/** Reads what `mirrored` returned and JSON has kept; undefined for anything else. */
export function readMirror(json: unknown): Mirror | undefined {
  if (typeof json !== "object" || json === null) return undefined;
  const { limit, level, at, perMs, readAt } = json as Record<string, unknown>;
  if (!isWithin(limit, 1, largestLimit) || !isWithin(level, -limit, limit)) return undefined;
  if (!isWithin(at, 0, largestInstant) || !isWithin(readAt, 0, largestInstant)) return undefined;
  if (!isWithin(perMs, limit / slowestRefillMs, limit * 1000)) return undefined;
  return { limit, level, at, perMs, readAt };
}

/** The last one of JavaScript's dates. */
const largestInstant = 8.64e15;

function isWithin(value: unknown, least: number, most: number): value is number {
  return typeof value === "number" && value >= least && value <= most;
}
