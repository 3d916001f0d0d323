/**
 * The durable record of one request, and the only gate through which its state changes.
 *
 * `transition(record, event)` is pure: it returns the record as it will be, the attempt that goes with
 * it, and the expectation that must still hold when it is written. The store applies it as a
 * compare-and-set, so a writer that lost its lease changes nothing.
 */

export type State = "queued" | "processing" | "retrying" | "completed" | "failed" | "cancelled";
export type Priority = "interactive" | "default" | "batch";
export type Verdict =
  | "success"
  | "throttled"
  | "transient"
  | "ambiguous"
  | "not_sent"
  | "invalid_output"
  | "permanent";

/** What an interrupted or timed-out attempt means: call again, or fail because it may have been paid for. */
export type OnUnknown = "retry" | "fail";
export type OnDisconnect = "continue" | "cancel";

/** The right of one process to write a processing request: a node and the number of its start. */
export interface Owner {
  node: string;
  epoch: number;
}

/** An error as it stands on the record and as a caller gets it. `status` is the HTTP status that goes with it. */
export interface Failure {
  code: string;
  message: string;
  type: string;
  param?: string;
  status: number;
}

/** What a caller asked for beside the body; stored with the record, because a retry must keep to it. */
export interface Terms {
  /** Attempts that may count before the request fails. */
  maxAttempts: number;
  /** How long the request may take, from `runAt`. */
  deadlineMs: number;
  /** That is the caller's own wish. */
  ownDeadline?: boolean;
  onUnknown: OnUnknown;
  onDisconnect: OnDisconnect;
  /** A plain SDK call: nobody can come back for the answer, so budgets are short. */
  held: boolean;
  /** Upstream that the caller named; no other one may serve. */
  upstream?: string;
  /** Where the answer is asked for as a stream. */
  stream?: StreamTerms;
  /** What the call is reckoned by where tokens are limited; a record of an earlier version has none. */
  size?: CallSize;
  /** How many attempts of a round may follow one whose answer was not valid. */
  maxInvalid?: number;
  /** What is kept: of every attempt what it sent and got, or nothing beyond the time that callers need. */
  store?: "all" | "none";
}

/** To whom and what a request belongs, in the caller's own words. */
export interface Origin {
  /** OpenAI's `user` and `safety_identifier`. */
  user?: string;
  safetyIdentifier?: string;
  /** OpenAI's `metadata`, as far as it is texts. */
  metadata?: Record<string, string>;
  /** Of the W3C `traceparent`: 32 hex digits. */
  traceId?: string;
  /** The caller's own `x-request-id`. */
  clientRequestId?: string;
}

/** Why a request waits, or waited. */
export type WaitReason = "rate_limit" | "breaker" | "backoff" | "scheduled" | "capacity";

/** How much a call asks for, as far as that can be told without a tokenizer. */
export interface CallSize {
  /** Bytes of text in the prompt, as UTF-8. */
  textBytes: number;
  /** Tokens that its images, sounds and files are reckoned at. */
  mediaTokens: number;
  /** The most tokens that the answer may have, over all its choices; undefined where the caller sets no limit. */
  maxOutput?: number;
}

/** What can be wrong with an answer that came with status 200. */
export type Problem = "refusal" | "content_filter" | "length" | "empty" | "invalid_json" | "schema_mismatch";

/** What an answer was found to be. */
export interface Findings {
  /** Of its first choice. */
  finishReason?: string;
  problems: Problem[];
  /** What does not follow the schema: places and rules, nothing of the answer itself. */
  details?: string[];
}

/** A caller was given something else than the answer: an older one, or a fixed one. */
export type Degraded = "stale" | "fixed";

export interface StreamTerms {
  /** `buffered`: nothing is delivered before the answer is whole. */
  mode: "live" | "buffered";
  /** The caller asked for the usage chunk. */
  usage: boolean;
}

export interface RequestRecord {
  /** `req_…`, time-ordered. */
  id: string;
  project: string;
  endpoint: string;
  /** As the caller named it. */
  model: string;
  state: State;
  /** The lane (`upstream/model`) in whose queue the request stands, or that serves it. */
  lane: string;
  priority: Priority;
  /** Not claimed before this instant. */
  dueAt: number;
  createdAt: number;
  updatedAt: number;
  startedAt?: number;
  endedAt?: number;
  deadlineAt: number;
  /** Attempts started so far, over all rounds; the number of the latest one. */
  attempt: number;
  round: number;
  /** Attempts of this round that used up the budget. */
  counted: number;
  /** Attempts of this round that the upstream throttled. */
  throttled: number;
  /** Attempts of this round whose answer was not valid. */
  invalid: number;
  /** Lanes that refused this request for good in this round. */
  excluded: string[];
  /** Since when the upstream of this request could not be reached, if so. */
  unreachableSince?: number;
  owner?: Owner;
  terms: Terms;
  idempotencyKey?: string;
  /** SHA-256 (hex) of the canonical body; only where there is a key. */
  fingerprint?: string;
  /** SHA-256 (hex) of what must be equal for a keyless call to be taken for a repetition of this one. */
  callHash?: string;
  duplicatePossible: boolean;
  tags: string[];
  origin?: Origin;
  /** SHA-256 (hex) of its instructions (system and developer messages, tools, response format); absent without any. */
  promptHash?: string;
  /** The request of which this is a copy. */
  replayOf?: string;
  /** Failed, and somebody has seen to it. */
  resolvedAt?: number;
  /** From then on its prompt and answer are no longer there. */
  bodiesErasedAt?: number;
  upstream?: string;
  servedModel?: string;
  /** The answer's own id (`chatcmpl-…`). */
  responseId?: string;
  /** The answer's `usage`, as JSON text. */
  usage?: string;
  /** What all attempts have cost so far, in the currency of the price table; undefined where no price is known. */
  cost?: number;
  /** Of the newest answer. */
  findings?: Findings;
  /** What its caller was given while it went on. */
  degraded?: Degraded;
  /** SHA-256 (hex) of the canonical body; only where the request may be answered by an equal one, or answer one. */
  bodyHash?: string;
  /** The request whose answer it got without a call. */
  cachedFrom?: string;
  error?: Failure;
  lastErrorCode?: string;
  /** Why it ended as it did. */
  endReason?: Reason;
  /**
   * Each time that the stream was taken up again by a process that cannot know what its callers have read, or began
   * anew, its version counts up, and this list has the number of events that the new version shares with the one
   * before. Event numbers of an earlier version mean something up to there.
   */
  forks: number[];
}

/** One call to an upstream. Without `endedAt` it is under way, or its process died. */
export interface AttemptRecord {
  requestId: string;
  number: number;
  round: number;
  upstream: string;
  model: string;
  /** From when on it could have started, and what it waited for since; undefined where that is not known. */
  dueAt?: number;
  waitedFor?: WaitReason[];
  startedAt: number;
  connectedAt?: number;
  firstByteAt?: number;
  endedAt?: number;
  status?: number;
  verdict?: Verdict;
  /** Whether it used up one of the request's attempts. */
  counted: boolean;
  errorCode?: string;
  errorMessage?: string;
  /** Why it was, or was not, followed by another attempt. */
  reason?: Reason;
  retryAt?: number;
  providerRequestId?: string;
  usage?: string;
  cost?: number;
  findings?: Findings;
}

export type Reason =
  | "answered"
  | "next_target"
  | "backoff"
  | "retry_after"
  | "upstream_closed"
  | "exhausted"
  | "deadline"
  | "permanent"
  | "outcome_unknown"
  | "unreachable"
  | "interrupted"
  | "invalid_output"
  | "cancelled";

/** What an ended attempt leaves on its record. */
export interface AttemptResult {
  verdict: Verdict;
  status?: number;
  waitedFor?: WaitReason[];
  connectedAt?: number;
  firstByteAt?: number;
  providerRequestId?: string;
  responseId?: string;
  servedModel?: string;
  usage?: string;
  cost?: number;
  findings?: Findings;
  /** Absent on success. */
  failure?: Failure;
}

/** What follows an ended attempt; computed by `retry.ts`. */
export type Step =
  | { kind: "complete" }
  | { kind: "retry"; dueAt: number; lane: string; counted: boolean; reason: Reason; excluded: string[] }
  | { kind: "fail"; failure: Failure; counted: boolean; reason: Reason };

export type RequestEvent =
  | { type: "started"; now: number; owner: Owner }
  | { type: "ended"; now: number; result: AttemptResult; step: Step }
  | { type: "interrupted"; now: number; result: AttemptResult; step: Step }
  /** Of a call that is under way: what is known of its attempt, what it has used and cost, and the forks of a stream. */
  | {
      type: "cancelled";
      now: number;
      waitedFor?: WaitReason[];
      firstByteAt?: number;
      usage?: string;
      cost?: number;
      forks?: number[];
    }
  | { type: "gave_up"; now: number; failure: Failure; reason: Reason }
  | { type: "rerouted"; now: number; lane: string }
  | {
      type: "revived";
      now: number;
      lane: string;
      terms: Terms;
      dueAt: number;
      priority?: Priority;
      /** Of a changed body. */
      model?: string;
      promptHash?: string;
      /** The round before ended with an attempt of which nobody knows whether it ran. */
      lastWasAmbiguous: boolean;
    };

/** What must still hold in the store for a transition to be applied. */
export interface Expectation {
  state: State;
  attempt: number;
  round: number;
  owner?: Owner;
  /** Of a request that begins anew: what it asks for is still there, or is not. */
  bodiesErasedAt?: number;
}

export interface Transition {
  expect: Expectation;
  record: RequestRecord;
  /** The attempt that has ended. One that starts needs no row of its own: it stands in the record. */
  attempt?: AttemptRecord;
  /** Of its throttled attempts the request keeps the newest of these many; older ones make room for this one. */
  keepThrottled?: number;
}

/** From which states an event may come, and to which it leads. docs/architecture.md draws this table. */
export const chart: Record<RequestEvent["type"], { from: State[]; to: State[] }> = {
  started: { from: ["queued", "retrying"], to: ["processing"] },
  ended: { from: ["processing"], to: ["completed", "failed", "retrying"] },
  interrupted: { from: ["processing"], to: ["retrying", "failed"] },
  cancelled: { from: ["queued", "retrying", "processing"], to: ["cancelled"] },
  gave_up: { from: ["queued", "retrying"], to: ["failed"] },
  rerouted: { from: ["queued", "retrying"], to: ["queued", "retrying"] },
  revived: { from: ["failed", "cancelled"], to: ["queued"] },
};

export const isTerminal = (state: State): boolean =>
  state === "completed" || state === "failed" || state === "cancelled";

/** Want of time, of attempts, of a reachable upstream or of a valid answer. */
export const reasonsInVain: readonly Reason[] = ["exhausted", "deadline", "unreachable", "invalid_output"];

/** Failed for want of something, not by a refusal: another round may succeed. */
export const failedInVain = ({ state, endReason }: RequestRecord): boolean =>
  state === "failed" && endReason !== undefined && reasonsInVain.includes(endReason);

export const isReady = (state: State): boolean => state === "queued" || state === "retrying";

/** Statuses by which an upstream finds fault with what the caller sent, and not with us. */
const callersStatuses = [400, 405, 406, 410, 411, 413, 414, 415, 416, 422, 431];

/** Whose fault it is that a request failed; undefined for one that did not. */
export function causeOf({ state, endReason, error }: Pick<RequestRecord, "state" | "endReason" | "error">) {
  if (state !== "failed") return undefined;
  const isCallers = endReason === "permanent" && callersStatuses.includes(error?.status ?? 0);
  return isCallers ? ("caller" as const) : ("upstream" as const);
}

/** Splits a lane into its upstream and model: model names may hold slashes, upstream names do not. */
export function laneParts(lane: string): { upstream: string; model: string } {
  const slash = lane.indexOf("/");
  return { upstream: lane.slice(0, slash), model: lane.slice(slash + 1) };
}

/** At most this many throttled attempts are kept per request; older ones are forgotten, the count is not. */
export const throttledKept = 100;

/**
 * The record as `event` leaves it, or undefined where the event cannot happen in the record's state
 * (a terminal state is never left but by `revived`).
 */
export function transition(record: RequestRecord, event: RequestEvent): Transition | undefined {
  if (!chart[event.type].from.includes(record.state)) return undefined;
  const { state, attempt, round, owner, bodiesErasedAt } = record;
  const expect: Expectation = { state, attempt, round, owner };
  switch (event.type) {
    case "started":
      return {
        expect,
        record: started(record, event),
        keepThrottled: attempt >= throttledKept ? throttledKept - 1 : undefined,
      };
    case "ended":
    case "interrupted":
      return { expect, ...ended(record, event) };
    case "cancelled":
      return { expect, ...cancelled(record, event) };
    case "gave_up":
      return { expect, record: over(record, "failed", event.now, event.reason, event.failure) };
    case "rerouted":
      return { expect, record: { ...record, lane: event.lane, updatedAt: event.now } };
    case "revived":
      return { expect: { ...expect, bodiesErasedAt }, record: revived(record, event) };
  }
}

/** A record that starts its first attempt in the same commit that accepts it. */
export function startAtOnce(record: RequestRecord, event: { now: number; owner: Owner }): RequestRecord {
  return started(record, event);
}

/** The attempt of a processing request: all there is to know of it stands in the record. */
export function attemptUnderWay(record: RequestRecord): AttemptRecord {
  const { upstream, model } = laneParts(record.lane);
  const { id: requestId, attempt: number, round, dueAt, updatedAt: startedAt } = record;
  return { requestId, number, round, upstream, model, dueAt, startedAt, counted: false };
}

function started(record: RequestRecord, event: { now: number; owner: Owner }): RequestRecord {
  return {
    ...record,
    state: "processing",
    attempt: record.attempt + 1,
    owner: event.owner,
    upstream: laneParts(record.lane).upstream,
    startedAt: record.startedAt ?? event.now,
    updatedAt: event.now,
  };
}

function ended(record: RequestRecord, event: { now: number; result: AttemptResult; step: Step }) {
  const { now, result, step } = event;
  const counted = step.kind === "complete" ? true : step.counted;
  const attempt = endedAttempt(record, now, result, step, counted);
  const ambiguousAgain = result.verdict === "ambiguous" && step.kind === "retry";
  const next: RequestRecord = {
    ...record,
    updatedAt: now,
    owner: undefined,
    counted: record.counted + (counted ? 1 : 0),
    throttled: record.throttled + (result.verdict === "throttled" ? 1 : 0),
    invalid: record.invalid + (result.verdict === "invalid_output" ? 1 : 0),
    cost: result.cost === undefined ? record.cost : (record.cost ?? 0) + result.cost,
    findings: result.findings ?? record.findings,
    unreachableSince: result.verdict === "not_sent" ? (record.unreachableSince ?? now) : undefined,
    duplicatePossible: record.duplicatePossible || ambiguousAgain,
    lastErrorCode: result.failure?.code ?? record.lastErrorCode,
  };
  if (step.kind === "retry") {
    next.state = "retrying";
    next.dueAt = step.dueAt;
    next.lane = step.lane;
    next.excluded = step.excluded;
    return { record: next, attempt };
  }
  next.upstream = laneParts(record.lane).upstream;
  if (step.kind === "fail") return { record: over(next, "failed", now, step.reason, step.failure), attempt };
  next.servedModel = result.servedModel;
  next.responseId = result.responseId;
  next.usage = result.usage;
  return { record: over(next, "completed", now, "answered"), attempt };
}

function endedAttempt(
  record: RequestRecord,
  now: number,
  result: AttemptResult,
  step: Step,
  counted: boolean,
): AttemptRecord {
  const { requestId, number, round, upstream, model, dueAt, startedAt } = attemptUnderWay(record);
  // One by one: to spread an object that gets more members is slow, and this is done for every call.
  return {
    requestId,
    number,
    round,
    upstream,
    model,
    dueAt,
    waitedFor: result.waitedFor,
    startedAt,
    connectedAt: result.connectedAt,
    firstByteAt: result.firstByteAt,
    endedAt: now,
    status: result.status,
    verdict: result.verdict,
    counted,
    errorCode: result.failure?.code,
    errorMessage: result.failure?.message,
    reason: step.kind === "complete" ? "answered" : step.reason,
    retryAt: step.kind === "retry" ? step.dueAt : undefined,
    providerRequestId: result.providerRequestId,
    usage: result.usage,
    cost: result.cost,
    findings: result.findings,
  };
}

function cancelled(record: RequestRecord, event: Extract<RequestEvent, { type: "cancelled" }>) {
  const { now, usage = record.usage, forks = record.forks } = event;
  const cost = event.cost === undefined ? record.cost : (record.cost ?? 0) + event.cost;
  const before = { ...record, lastErrorCode: "request_cancelled", usage, cost, forks };
  const next = over(before, "cancelled", now, "cancelled");
  if (record.state !== "processing") return { record: next };
  const attempt: AttemptRecord = {
    ...attemptUnderWay(record),
    waitedFor: event.waitedFor,
    firstByteAt: event.firstByteAt,
    endedAt: now,
    verdict: "ambiguous",
    errorCode: "request_cancelled",
    reason: "cancelled",
    usage: event.usage,
    cost: event.cost,
  };
  return { record: next, attempt };
}

function over(
  record: RequestRecord,
  state: State,
  now: number,
  endReason: Reason,
  failure?: Failure,
): RequestRecord {
  return {
    ...record,
    state,
    endReason,
    endedAt: now,
    updatedAt: now,
    owner: undefined,
    error: failure,
    lastErrorCode: failure?.code ?? record.lastErrorCode,
  };
}

function revived(record: RequestRecord, event: Extract<RequestEvent, { type: "revived" }>): RequestRecord {
  const isSame = event.model === undefined && event.terms.upstream === record.terms.upstream;
  return {
    ...record,
    state: "queued",
    round: record.round + 1,
    counted: 0,
    throttled: 0,
    invalid: 0,
    excluded: [],
    unreachableSince: undefined,
    findings: undefined,
    degraded: undefined,
    lane: event.lane,
    terms: event.terms,
    priority: event.priority ?? record.priority,
    model: event.model ?? record.model,
    promptHash: event.model === undefined ? record.promptHash : event.promptHash,
    // Another body has another answer, and so has another upstream; nor does the next one to ask the old one mean this.
    bodyHash: isSame ? record.bodyHash : undefined,
    callHash: event.model === undefined ? record.callHash : undefined,
    resolvedAt: undefined,
    bodiesErasedAt: event.model === undefined ? record.bodiesErasedAt : undefined,
    dueAt: event.dueAt,
    deadlineAt: event.dueAt + event.terms.deadlineMs,
    updatedAt: event.now,
    endedAt: undefined,
    endReason: undefined,
    error: undefined,
    duplicatePossible: record.duplicatePossible || event.lastWasAmbiguous,
    // Its answer is dropped.
    forks: record.terms.stream ? [...record.forks, 0] : record.forks,
  };
}
