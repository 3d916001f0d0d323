/** Records and attempts for tests, and the steps that take a record from state to state. */

import type {
  AttemptRecord,
  AttemptResult,
  Expectation,
  Failure,
  Owner,
  RequestEvent,
  RequestRecord,
  Terms,
  Transition,
} from "../../src/core/request.ts";
import { transition } from "../../src/core/request.ts";

/** An instant that does not fit into 32 bits. */
export const start = Date.UTC(2026, 0, 2, 3, 4, 5);

let built = 0;

/** Ids of one test file, in ascending order. */
export const anId = (): string => `req_${String(++built).padStart(26, "0")}`;

export const someTerms: Terms = {
  maxAttempts: 5,
  deadlineMs: 600_000,
  onUnknown: "retry",
  onDisconnect: "continue",
  held: false,
};

export const aFailure = (overrides: Partial<Failure> = {}): Failure => ({
  code: "server_error",
  message: "The server had an error.",
  type: "server_error",
  status: 500,
  ...overrides,
});

/** A request that waits for its first attempt; no optional field is set. */
export const aRecord = (overrides: Partial<RequestRecord> = {}): RequestRecord => ({
  id: anId(),
  project: "default",
  endpoint: "/v1/chat/completions",
  model: "gpt-test",
  state: "queued",
  lane: "fake/gpt-test",
  priority: "default",
  dueAt: start,
  createdAt: start,
  updatedAt: start,
  deadlineAt: start + 600_000,
  attempt: 0,
  round: 1,
  counted: 0,
  throttled: 0,
  invalid: 0,
  excluded: [],
  terms: someTerms,
  duplicatePossible: false,
  tags: [],
  forks: [],
  ...overrides,
});

/** The first attempt of a request, under way. */
export const anAttempt = (overrides: Partial<AttemptRecord> = {}): AttemptRecord => ({
  requestId: anId(),
  number: 1,
  round: 1,
  upstream: "fake",
  model: "gpt-test",
  startedAt: start,
  counted: false,
  ...overrides,
});

/** A record with every field set, save those that only one who has no owner may have. */
export const aFullRecord = (overrides: Partial<RequestRecord> = {}): RequestRecord => {
  const every: Omit<Required<RequestRecord>, "endedAt"> = {
    id: anId(),
    project: "Zoë's project",
    endpoint: "/v1/embeddings?api-version=1",
    model: 'models/"größte"/日本語-🦉\n',
    state: "processing",
    lane: 'fake/"größte"/日本語-🦉',
    priority: "batch",
    dueAt: start + 1,
    createdAt: start + 2,
    updatedAt: start + 3,
    startedAt: start + 4,
    deadlineAt: start + 6,
    attempt: 7,
    round: 8,
    counted: 9,
    throttled: 10,
    invalid: 11,
    excluded: ["other/gpt", "third/a/b"],
    unreachableSince: start + 11,
    owner: { node: "node-1", epoch: 2 ** 40 },
    terms: {
      maxAttempts: 12,
      deadlineMs: 13,
      onUnknown: "fail",
      onDisconnect: "cancel",
      held: true,
      upstream: "fake",
      stream: { mode: "buffered", usage: true },
      size: { textBytes: 14, mediaTokens: 15, maxOutput: 16 },
      maxInvalid: 17,
      store: "all",
    },
    idempotencyKey: "key-'; DROP TABLE requests; --",
    fingerprint: "0a".repeat(32),
    callHash: "ff".repeat(32),
    duplicatePossible: true,
    tags: ["a", "b,c", 'd"é'],
    origin: {
      user: "Zoë",
      safetyIdentifier: "safe-1",
      metadata: { "größe\n": "'; --", "": "" },
      traceId: "4bf92f3577b34da6a3ce929d0e0e4736",
      clientRequestId: "client-1",
    },
    promptHash: "5c".repeat(32),
    replayOf: "req_replayed",
    resolvedAt: start + 12,
    bodiesErasedAt: start + 13,
    upstream: "fake",
    servedModel: "gpt-test-2026-01-02",
    responseId: "chatcmpl-🦉",
    // Neither the number nor the spaces nor the order may change.
    usage: '{ "total_tokens": 9007199254740993,\n"b":1, "a":1.0 }',
    cost: 0.1 + 0.2,
    findings: { finishReason: "length", problems: ["length", "schema_mismatch"], details: ["/größe: 'x'"] },
    degraded: "stale",
    bodyHash: "7f".repeat(32),
    cachedFrom: "req_original",
    error: { code: "c", message: "m 日本語 \u2028 '\"", type: "t", param: "p", status: 418 },
    lastErrorCode: "rate_limit_exceeded",
    endReason: "exhausted",
    forks: [0, 2 ** 40, 17],
  };
  return { ...every, ...overrides };
};

/** Every field of an attempt, ended. */
export const aFullAttempt = (overrides: Partial<AttemptRecord> = {}): Required<AttemptRecord> => ({
  requestId: anId(),
  number: 7,
  round: 8,
  upstream: "fake",
  model: "größte/🦉",
  dueAt: start - 1,
  waitedFor: ["backoff", "rate_limit"],
  startedAt: start + 1,
  connectedAt: start + 1,
  firstByteAt: start + 2,
  endedAt: start + 3,
  status: 599,
  verdict: "invalid_output",
  counted: true,
  errorCode: "server_error",
  errorMessage: "Something 日本語 '\" went wrong",
  reason: "retry_after",
  retryAt: start + 4,
  providerRequestId: "x-1",
  usage: '{ "total_tokens": 9007199254740993 }',
  cost: 1e-9,
  findings: { finishReason: "stop", problems: ["refusal"], details: ["日本語"] },
  ...overrides,
});

/** A step of a record, as core computes it. */
export type Move = (record: RequestRecord) => Transition;

const move =
  (event: (record: RequestRecord) => RequestEvent): Move =>
  (record) => {
    const moved = transition(record, event(record));
    if (!moved) throw new Error(`${event(record).type} cannot happen to a request that is ${record.state}`);
    return moved;
  };

/** Each one happens a second after the change before it. */
const later = ({ updatedAt }: RequestRecord): number => updatedAt + 1000;

export const starts = (owner: Owner): Move =>
  move((record) => ({ type: "started", now: later(record), owner }));

export const completes = (result: Partial<AttemptResult> = {}): Move =>
  move((record) => ({
    type: "ended",
    now: later(record),
    result: { verdict: "success", status: 200, ...result },
    step: { kind: "complete" },
  }));

export const retries = (result: Partial<AttemptResult> = {}, dueInMs = 500): Move =>
  move((record) => ({
    type: "ended",
    now: later(record),
    result: { verdict: "transient", status: 500, failure: aFailure(), ...result },
    step: {
      kind: "retry",
      dueAt: later(record) + dueInMs,
      lane: record.lane,
      counted: result.verdict !== "throttled",
      reason: result.verdict === "throttled" ? "retry_after" : "backoff",
      excluded: record.excluded,
    },
  }));

export const isThrottled = (): Move =>
  retries({ verdict: "throttled", status: 429, failure: aFailure({ code: "rate_limited", status: 429 }) });

export const fails = (failure = aFailure()): Move =>
  move((record) => ({
    type: "ended",
    now: later(record),
    result: { verdict: "permanent", status: failure.status, failure },
    step: { kind: "fail", failure, counted: true, reason: "permanent" },
  }));

export const givesUp = (failure = aFailure({ code: "deadline_exceeded", status: 504 })): Move =>
  move((record) => ({ type: "gave_up", now: later(record), failure, reason: "deadline" }));

export const isCancelled = (): Move => move((record) => ({ type: "cancelled", now: later(record) }));

export const isRerouted = (lane: string): Move =>
  move((record) => ({ type: "rerouted", now: later(record), lane }));

export const isRevived = (terms: Terms = someTerms): Move =>
  move((record) => ({
    type: "revived",
    now: later(record),
    lane: record.lane,
    terms,
    dueAt: later(record),
    lastWasAmbiguous: false,
  }));

/** What a writer expects of a processing request that is not its own any more, or not yet. */
export const staleExpectations: [string, (expect: Expectation, owner: Owner) => Partial<Expectation>][] = [
  ["state", () => ({ state: "retrying" })],
  ["attempt, one behind", ({ attempt }) => ({ attempt: attempt - 1 })],
  ["attempt, one ahead", ({ attempt }) => ({ attempt: attempt + 1 })],
  ["round", ({ round }) => ({ round: round + 1 })],
  ["owner's node", (_, { epoch }) => ({ owner: { node: "another", epoch } })],
  ["owner's earlier epoch", (_, { node, epoch }) => ({ owner: { node, epoch: epoch - 1 } })],
  ["owner's later epoch", (_, { node, epoch }) => ({ owner: { node, epoch: epoch + 1 } })],
  ["owner, none expected", () => ({ owner: undefined })],
];

/** The transitions that take a record through these steps, in order. */
export function walk(record: RequestRecord, ...moves: Move[]): Transition[] {
  let at = record;
  return moves.map((one) => {
    const moved = one(at);
    at = moved.record;
    return moved;
  });
}
