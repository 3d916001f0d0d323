/** What an outcome means (`classify`) and what follows from it (`decide`). Both are pure. */

import { failures } from "./errors.ts";
import type { Outcome } from "./ports.ts";
import { type LimitReading, readRateHeaders } from "./provider-limits.ts";
import {
  type AttemptResult,
  type Failure,
  laneParts,
  type RequestRecord,
  type Step,
  type Verdict,
} from "./request.ts";
import { retryAfterMs } from "./retry-after.ts";
import { nextTarget, type Opening } from "./routing.ts";
import { type Usage, usageOf } from "./token-estimate.ts";

/** An outcome, read: its verdict, and what the verdict rests on. */
export interface Reading {
  verdict: Verdict;
  result: AttemptResult;
  /**
   * `upstream`: another target may still serve the request. `request`: the request itself is at fault. `context`: it
   * is too long for this target.
   */
  scope: "upstream" | "request" | "context";
  /** It says that the upstream is broken: too many of these, and nothing is sent to it for a while. */
  isFault: boolean;
  /** It says that the upstream has too much to do, and not by an account of it that is kept per minute. */
  isOverload: boolean;
  /** The upstream was silent for too long. */
  timedOut: boolean;
  /** Somebody should look at the configuration: a key, a quota, an address. */
  alert: boolean;
  retryAfterMs?: number;
  /** The upstream's own account of what is left. */
  limits?: { requests?: LimitReading; tokens?: LimitReading };
  /** For the attempt that follows an invalid answer. */
  feedback?: string[];
  /** What the upstream says that it used. */
  used?: Usage;
}

/** Codes of a 429 (or 402) that no waiting cures: research/gateways.md §7.1, Anthropic's spend limit among them. */
const quotaCodes = new Set([
  "insufficient_quota",
  "credit_balance_exhausted",
  "organization_spend_limit_exceeded",
  "project_spend_limit_exceeded",
  "organization_usage_limit_exceeded",
  "enforced_spend_limit_reached",
  "billing_hard_limit_reached",
  "billing_not_active",
]);

/** The verdict table of DESIGN §5. `now` in epoch ms; `lane` names the upstream in messages. */
export function classify(outcome: Outcome, lane: string, now: number): Reading {
  const { upstream } = laneParts(lane);
  switch (outcome.kind) {
    case "network_error":
      return outcome.sent ? lost(upstream) : read("not_sent", failures.unreachable(upstream));
    case "timeout":
      if (outcome.phase === "connect") return read("not_sent", failures.unreachable(upstream));
      // The deadline is the caller's: it says nothing about the upstream.
      if (outcome.phase === "deadline") return read("ambiguous", failures.deadline());
      // So does a share of the time that he left it.
      return {
        ...read("ambiguous", failures.timeout(upstream)),
        isFault: outcome.phase !== "share",
        timedOut: true,
      };
    case "aborted":
      return outcome.sent ? lost(upstream) : read("not_sent", failures.lost(upstream));
    case "response":
      return classifyResponse(outcome, upstream, now);
  }
}

const lost = (upstream: string): Reading => ({
  ...read("ambiguous", failures.lost(upstream)),
  isFault: true,
});

function read(verdict: Verdict, failure: Failure): Reading {
  const result = { verdict, failure };
  return {
    verdict,
    result,
    scope: "upstream",
    isFault: false,
    isOverload: false,
    timedOut: false,
    alert: false,
  };
}

type Response = Extract<Outcome, { kind: "response" }>;

function classifyResponse(response: Response, upstream: string, now: number): Reading {
  const header = (name: string) => response.headers.find(([key]) => key === name)?.[1];
  const told = retryAfterMs(header, now);
  const { verdict, scope, alert } = judge(response, told !== undefined);
  const { facts, status } = response;
  const result: AttemptResult = {
    verdict,
    status,
    firstByteAt: response.firstByteAt,
    providerRequestId: header("x-request-id") ?? header("request-id"),
    usage: facts.usage,
    responseId: facts.id,
    servedModel: facts.model,
    findings: facts.findings,
    failure: verdict === "success" ? undefined : failureOf(response, upstream),
  };
  const tellsLimits = response.headers.some(([name]) => name.startsWith("x-ratelimit-"));
  return {
    verdict,
    result,
    scope,
    alert,
    isFault: verdict === "transient" && (status >= 500 || status < 300),
    // A rate limit is not cured by fewer calls at once. Whoever tells when to come back means one.
    isOverload:
      status === 529 || status === 503 || (verdict === "throttled" && told === undefined && !tellsLimits),
    timedOut: false,
    retryAfterMs: verdict === "success" ? undefined : told,
    limits: tellsLimits ? readRateHeaders(header, now) : undefined,
    feedback: facts.feedback,
    used: facts.usage === undefined ? undefined : usageOf(facts.usage),
  };
}

type Judgement = Pick<Reading, "verdict" | "scope" | "alert">;
const transient: Judgement = { verdict: "transient", scope: "upstream", alert: false };
const throttled: Judgement = { verdict: "throttled", scope: "upstream", alert: false };
const refused: Judgement = { verdict: "permanent", scope: "upstream", alert: false };
const refusedAlert: Judgement = { verdict: "permanent", scope: "upstream", alert: true };
const callersFault: Judgement = { verdict: "permanent", scope: "request", alert: false };
const tooLong: Judgement = { verdict: "permanent", scope: "context", alert: false };

/** How providers other than OpenAI say that a prompt is too long: Anthropic, vLLM, Gemini, Mistral, Bedrock, Ollama, xAI. */
const saysTooLong =
  /maximum (context|prompt|model|input) length|context (length|window|size)[^.]{0,40}(exceed|too|large)|(longer|greater|larger) than[^.]{0,20} context (length|window|size)|exceed[^.]{0,60}(context|model token limit|maximum (number of )?tokens)|prompt is too long|input is too long|too many (input )?tokens/i;

function isTooLong({ status, facts: { error } }: Response): boolean {
  if (status !== 400 && status !== 413 && status !== 422) return false;
  if (error?.code === "context_length_exceeded" || error?.type === "exceed_context_size_error") return true;
  return saysTooLong.test(error?.message.slice(0, 1000) ?? "");
}

function judge(response: Response, toldToWait: boolean): Judgement {
  const { status, facts } = response;
  const quota = [facts.error?.code, facts.error?.type].some((code) => code && quotaCodes.has(code));
  if (status >= 200 && status < 300) {
    if (!facts.wellFormed || facts.error) return transient;
    if (facts.invalid?.length) return { verdict: "invalid_output", scope: "upstream", alert: false };
    return { verdict: "success", scope: "request", alert: false };
  }
  switch (status) {
    case 429:
      return quota ? refusedAlert : throttled;
    case 529:
      return throttled;
    case 503:
      return toldToWait ? throttled : transient;
    case 408:
    case 409:
    case 425:
      return transient;
    case 401:
    case 402:
    case 403:
      return refusedAlert;
    case 404:
      return refused;
  }
  if (status >= 500) return transient;
  if (isTooLong(response)) return tooLong;
  // A redirect or an informational status means that the address is wrong, not the request.
  return status < 400 ? refusedAlert : callersFault;
}

function failureOf(response: Response, upstream: string): Failure {
  const { status, facts } = response;
  if (status < 300 && !facts.wellFormed) return failures.badAnswer(upstream);
  if (status < 300 && facts.invalid) return failures.invalidOutput(facts.invalid);
  const error = facts.error;
  return {
    code: error?.code ?? error?.type ?? `http_${status}`,
    message: error?.message ?? `The upstream "${upstream}" answered with status ${status}.`,
    type: error?.type ?? "upstream_error",
    param: error?.param,
    status: status < 400 ? 502 : status,
  };
}

export interface Backoff {
  baseMs: number;
  maxMs: number;
}

/** AWS "full jitter": uniform in [0, min(max, base·2ⁿ)], at least 1 ms. `n` counts from 0, `luck` is in [0, 1). */
export function fullJitterMs({ baseMs, maxMs }: Backoff, n: number, luck: number): number {
  return Math.max(1, Math.round(luck * Math.min(maxMs, baseMs * 2 ** Math.min(n, 40))));
}

export interface Circumstances {
  now: number;
  luck: number;
  /** The targets in the order of the route, with when each lets somebody through. */
  targets: Opening[];
  backoff: Backoff;
  /** How long a plain held call may wait for an upstream that cannot be reached. */
  unreachableAfterMs: number;
  /** Since when that is so, if it is. */
  unreachableSince?: number;
  /** Nobody waits for the answer: limits are waited for rather than gone round. */
  isPatient: boolean;
}

/** What follows a reading, for a request in `processing`. */
export function decide(record: RequestRecord, reading: Reading, at: Circumstances): Step {
  const failure = reading.result.failure;
  if (reading.verdict === "success" || !failure) return { kind: "complete" };
  // Where there is a status, the code is the upstream's own word (another Outlast says the same).
  const ourDeadline = reading.result.status === undefined && failure.code === "deadline_exceeded";
  if (ourDeadline || at.now >= record.deadlineAt) {
    const counted = !["not_sent", "throttled", "invalid_output"].includes(reading.verdict);
    return { kind: "fail", failure: overdue(reading, failure), counted, reason: "deadline" };
  }
  switch (reading.verdict) {
    case "throttled":
      return elsewhere(record, reading, failure, at);
    case "not_sent":
      return afterNotSent(record, reading, failure, at);
    case "permanent":
      return afterRefusal(record, reading, failure, at);
    case "invalid_output":
      return afterInvalid(record, failure, at);
    case "ambiguous":
      if (record.terms.onUnknown === "fail") {
        const unknown = failures.unknown(laneParts(record.lane).upstream);
        return { kind: "fail", failure: unknown, counted: true, reason: "outcome_unknown" };
      }
      return again(record, reading, failure, at);
    default:
      return again(record, reading, failure, at);
  }
}

/** At the deadline, what an upstream answered is told as it is; where nothing came, the deadline is the reason. */
const overdue = (reading: Reading, failure: Failure): Failure =>
  reading.result.status === undefined ? failures.deadline() : failure;

/** Throttled: no budget is used; the first open target, else the one that opens soonest. */
function elsewhere(record: RequestRecord, reading: Reading, failure: Failure, at: Circumstances): Step {
  const patientUntil = at.isPatient ? record.deadlineAt : 0;
  const target = nextTarget(at.targets, record, { rule: "soonest", at: at.now, patientUntil });
  const stays = target?.lane === record.lane;
  const toldAt = stays ? at.now + (reading.retryAfterMs ?? 0) : 0;
  const dueAt = Math.max(at.now, toldAt, target?.closedUntil ?? 0);
  if (!target || dueAt >= record.deadlineAt)
    return { kind: "fail", failure, counted: false, reason: "deadline" };
  const why = reading.verdict === "throttled" ? "retry_after" : "upstream_closed";
  const reason = stays ? why : "next_target";
  return { kind: "retry", dueAt, lane: target.lane, counted: false, reason, excluded: record.excluded };
}

function afterNotSent(record: RequestRecord, reading: Reading, failure: Failure, at: Circumstances): Step {
  const step = elsewhere(record, reading, failure, at);
  if (step.kind !== "retry" || step.reason === "next_target" || !record.terms.held) return step;
  const noticedAt = Math.min(record.unreachableSince ?? at.now, at.unreachableSince ?? at.now);
  const since = Math.max(noticedAt, record.deadlineAt - record.terms.deadlineMs);
  // Where the lane opens too late, the scheduler ends it while it waits: until then another probe may get through.
  if (at.now - since < at.unreachableAfterMs) return step;
  return { kind: "fail", failure, counted: false, reason: "unreachable" };
}

function afterRefusal(record: RequestRecord, reading: Reading, failure: Failure, at: Circumstances): Step {
  const fail: Step = { kind: "fail", failure, counted: true, reason: "permanent" };
  if (reading.scope === "request" || record.counted + 1 >= record.terms.maxAttempts) return fail;
  const isContext = reading.scope === "context";
  const tooSmall = isContext ? at.targets.filter(({ largerContext }) => !largerContext) : [];
  const excluded = [...new Set([...record.excluded, record.lane, ...tooSmall.map(({ lane }) => lane)])];
  const rule = isContext ? "larger" : "soonest";
  const target = nextTarget(at.targets, { lane: record.lane, excluded }, { rule, at: at.now });
  if (!target) return fail;
  const dueAt = Math.max(at.now, target.closedUntil);
  if (dueAt >= record.deadlineAt) return fail;
  return { kind: "retry", dueAt, lane: target.lane, counted: true, reason: "next_target", excluded };
}

/** An answer that is not what was asked for: the same target may do better, as often as its own budget lets it. */
function afterInvalid(record: RequestRecord, failure: Failure, at: Circumstances): Step {
  if (record.invalid >= (record.terms.maxInvalid ?? 0))
    return { kind: "fail", failure, counted: false, reason: "invalid_output" };
  const { lane, excluded } = record;
  return { kind: "retry", dueAt: at.now, lane, counted: false, reason: "invalid_output", excluded };
}

/**
 * Transient and ambiguous: counts. The next target of the route is tried at once; when all had their
 * turn, a backoff with full jitter, never earlier than the upstream told, and from the first target again.
 */
function again(record: RequestRecord, reading: Reading, failure: Failure, at: Circumstances): Step {
  const counted = record.counted + 1;
  if (counted >= record.terms.maxAttempts)
    return { kind: "fail", failure, counted: true, reason: "exhausted" };
  const { excluded } = record;
  const onward = nextTarget(at.targets, record, { rule: "onward", at: at.now });
  if (onward) {
    return {
      kind: "retry",
      dueAt: at.now,
      lane: onward.lane,
      counted: true,
      reason: "next_target",
      excluded,
    };
  }
  const usable = at.targets.filter(({ lane }) => !excluded.includes(lane)).length || 1;
  const pass = Math.floor((counted - 1) / usable);
  const backoffAt = at.now + backoffBefore(record.deadlineAt, pass, at);
  // Who was silent is rather not asked again at once.
  const rule = reading.timedOut ? "soonest" : "first";
  const first = nextTarget(at.targets, record, { rule, at: backoffAt }) ?? {
    lane: record.lane,
    closedUntil: 0,
  };
  const toldAt = first.lane === record.lane ? at.now + (reading.retryAfterMs ?? 0) : 0;
  const dueAt = Math.max(backoffAt, toldAt, first.closedUntil);
  if (dueAt >= record.deadlineAt) return { kind: "fail", failure, counted: true, reason: "deadline" };
  const reason = toldAt > backoffAt ? "retry_after" : "backoff";
  return { kind: "retry", dueAt, lane: first.lane, counted: true, reason, excluded };
}

/** A backoff that would reach beyond the deadline is drawn anew from what is left, unless that is too short for one. */
function backoffBefore(deadlineAt: number, pass: number, { now, luck, backoff }: Circumstances): number {
  const ms = fullJitterMs(backoff, pass, luck);
  const leftMs = deadlineAt - now;
  return ms < leftMs || leftMs <= backoff.baseMs ? ms : Math.max(1, Math.floor(luck * leftMs));
}

/**
 * What follows an attempt whose process died, or was told to stop, while it was under way. It counts, so
 * that a request which kills its process does not do so for ever.
 */
export function decideInterrupted(record: RequestRecord, now: number): { result: AttemptResult; step: Step } {
  const failure = failures.unknown(laneParts(record.lane).upstream);
  const result: AttemptResult = { verdict: "ambiguous", failure: { ...failure, code: "interrupted" } };
  const unsure = record.terms.onUnknown === "fail";
  if (unsure || record.counted + 1 >= record.terms.maxAttempts) {
    // The reason decides whether the same key may run it again.
    const reason = unsure ? "outcome_unknown" : "exhausted";
    return { result, step: { kind: "fail", failure, counted: true, reason } };
  }
  const { lane, excluded } = record;
  return {
    result,
    step: { kind: "retry", dueAt: now, lane, counted: true, reason: "interrupted", excluded },
  };
}
