/** Records as the JSON of contract.ts. */

import type { AsyncObject, AttemptObject, RequestObject } from "../contract.ts";
import type { HeaderList } from "../core/headers.ts";
import type { Waiting } from "../core/lanes.ts";
import type { Ended, Part } from "../core/ports.ts";
import {
  type AttemptRecord,
  causeOf,
  type Findings,
  isReady,
  laneParts,
  type RequestRecord,
} from "../core/request.ts";

export const iso = (at: number): string => new Date(at).toISOString();
export const isoOrNull = (at: number | undefined): string | null => (at === undefined ? null : iso(at));
export const textOf = (bytes: Uint8Array): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("utf8");

export const pollUrl = (id: string): string => `/v1/requests/${id}`;

/** Headers of ours that every reply about a request carries. */
export function requestHeaders(record: RequestRecord): HeaderList {
  const headers: HeaderList = [
    ["outlast-request-id", record.id],
    ["outlast-attempts", String(record.attempt)],
  ];
  const called = record.attempt > 0 ? laneParts(record.lane).upstream : undefined;
  const upstream = record.upstream ?? called;
  if (upstream !== undefined) headers.push(["outlast-upstream", upstream]);
  // What the provider calls it may not be fit for a header.
  const { servedModel, cachedFrom } = record;
  if (servedModel && /^[\x21-\x7e]{1,200}$/.test(servedModel))
    headers.push(["outlast-served-model", servedModel]);
  if (cachedFrom !== undefined) headers.push(["outlast-cache", "hit"]);
  return headers;
}

const findingsOf = (findings: Findings | undefined) =>
  findings
    ? {
        finish_reason: findings.finishReason ?? null,
        problems: findings.problems,
        ...(findings.details && { details: findings.details }),
      }
    : null;

export function presentAsync(record: RequestRecord): AsyncObject {
  return {
    id: record.id,
    object: record.endpoint === "embeddings" ? "embedding.async" : "chat.completion.async",
    status: record.state as AsyncObject["status"],
    created: Math.floor(record.createdAt / 1000),
    model: record.model,
    poll_url: pollUrl(record.id),
  };
}

export function presentAttempt(attempt: AttemptRecord): AttemptObject {
  const since = (at: number | undefined) => (at === undefined ? null : Math.max(0, at - attempt.startedAt));
  return {
    object: "attempt",
    number: attempt.number,
    round: attempt.round,
    upstream: attempt.upstream,
    model: attempt.model,
    due_at: isoOrNull(attempt.dueAt),
    waited_for: attempt.waitedFor ?? null,
    started_at: iso(attempt.startedAt),
    ended_at: isoOrNull(attempt.endedAt),
    latency_ms: since(attempt.endedAt),
    connect_ms: since(attempt.connectedAt),
    first_byte_ms: since(attempt.firstByteAt),
    status: attempt.status ?? null,
    verdict: attempt.verdict ?? null,
    counted: attempt.counted,
    reason: attempt.reason ?? null,
    retry_at: isoOrNull(attempt.retryAt),
    error_code: attempt.errorCode ?? null,
    error_message: attempt.errorMessage ?? null,
    provider_request_id: attempt.providerRequestId ?? null,
    usage: attempt.usage === undefined ? null : JSON.parse(attempt.usage),
    cost: attempt.cost ?? null,
    findings: findingsOf(attempt.findings),
  };
}

/** Everything but `result`, which is joined as text so that numbers stay as the upstream wrote them. */
export function presentRequest(record: RequestRecord, waiting: Waiting | undefined): RequestObject {
  const { error, origin = {} } = record;
  return {
    id: record.id,
    object: "request",
    status: record.state,
    endpoint: record.endpoint,
    model: record.model,
    attempts: record.attempt,
    created_at: iso(record.createdAt),
    updated_at: iso(record.updatedAt),
    last_error_code: record.lastErrorCode ?? null,
    result: null,
    started_at: isoOrNull(record.startedAt),
    ended_at: isoOrNull(record.endedAt),
    next_attempt_at: isReady(record.state) ? isoOrNull(waiting?.until) : null,
    deadline_at: iso(record.deadlineAt),
    idempotency_key: record.idempotencyKey ?? null,
    upstream: record.upstream ?? null,
    served_model: record.servedModel ?? null,
    usage: record.usage === undefined ? null : JSON.parse(record.usage),
    cost: record.cost ?? null,
    findings: findingsOf(record.findings),
    degraded: record.degraded ?? null,
    cached_from: record.cachedFrom ?? null,
    error: error
      ? {
          message: error.message,
          type: error.type,
          param: error.param ?? null,
          code: error.code,
          status: error.status,
        }
      : null,
    waiting_for: waiting?.why ?? null,
    duplicate_possible: record.duplicatePossible,
    tags: record.tags,
    replay_of: record.replayOf ?? null,
    priority: record.priority,
    user: origin.user ?? null,
    safety_identifier: origin.safetyIdentifier ?? null,
    metadata: origin.metadata ?? null,
    trace_id: origin.traceId ?? null,
    client_request_id: origin.clientRequestId ?? null,
    prompt_hash: record.promptHash ?? null,
    caused_by: causeOf(record) ?? null,
    resolved_at: isoOrNull(record.resolvedAt),
    bodies_erased_at: isoOrNull(record.bodiesErasedAt),
  };
}

/** An object as JSON text, with raw JSON texts (an answer, a body) as further or other members. */
export function withRawMembers(object: object, raw: Record<string, string | undefined>): string {
  const given = Object.entries(raw).filter(([, json]) => json !== undefined);
  const own = { ...object, ...Object.fromEntries(given.map(([name]) => [name, undefined])) };
  const members = given.map(([name, json]) => `,"${name}":${json}`);
  return `${JSON.stringify(own).slice(0, -1)}${members.join("")}}`;
}

export interface StoredAnswer {
  status: number;
  headers: HeaderList;
  body: Uint8Array;
}

/** The upstream's answer as it was stored; undefined where none was. */
export function answerOf({ answer }: Ended): StoredAnswer | undefined {
  const head = answer.find(({ kind }) => kind === "answer_head");
  const bodies = answer.filter(({ kind }) => kind === "answer");
  if (!head || bodies.length === 0) return undefined;
  const { status, headers } = JSON.parse(textOf(head.bytes)) as Omit<StoredAnswer, "body">;
  return { status, headers, body: joined(bodies) };
}

function joined(parts: Part[]): Uint8Array {
  const [only] = parts;
  return parts.length === 1 && only ? only.bytes : Buffer.concat(parts.map(({ bytes }) => bytes));
}

/** The result as JSON text, where the request completed, or failed because that was not valid. */
export function resultText(ended: Ended): string | undefined {
  const { state, endReason } = ended.record;
  const answer = state === "completed" || endReason === "invalid_output" ? answerOf(ended) : undefined;
  return answer && textOf(answer.body);
}
