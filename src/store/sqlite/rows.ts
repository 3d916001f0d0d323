/** Records as rows and back. Absent is `undefined` in core and NULL here. */

import type { RecentCall } from "../../core/ports.ts";
import type { AttemptRecord, Priority, RequestRecord } from "../../core/request.ts";

export type Value = string | number | Uint8Array | null;

export const priorities: Priority[] = ["interactive", "default", "batch"];
export const priorityNumber = (priority: Priority): number => priorities.indexOf(priority);

/** Columns that are written once. */
export const fixedColumns = [
  "id",
  "project",
  "endpoint",
  "model",
  "priority",
  "created_at",
  "idempotency_key",
  "fingerprint",
  "call_hash",
  "tags",
  "body_hash",
  "cached_from",
];

/** Columns that change with a round only. */
export const roundColumns = ["round", "terms", "deadline_at"];

/** Columns that every transition may change. */
export const changingColumns = [
  "state",
  "lane",
  "due_at",
  "updated_at",
  "started_at",
  "ended_at",
  "attempt",
  "counted",
  "throttled",
  "excluded",
  "unreachable_since",
  "owner_node",
  "owner_epoch",
  "duplicate_possible",
  "upstream",
  "served_model",
  "response_id",
  "usage",
  "error",
  "last_error_code",
  "end_reason",
  "forks",
  "invalid",
  "cost",
  "findings",
  "degraded",
];

export type RequestRow = Record<string, Value>;

const json = (value: unknown): string | null => (value === undefined ? null : JSON.stringify(value));
export const listOrNull = (list: (string | number)[]): string | null =>
  list.length === 0 ? null : JSON.stringify(list);
const hex = (bytes: Value): string | undefined =>
  bytes instanceof Uint8Array ? Buffer.from(bytes).toString("hex") : undefined;

/** Values of `fixedColumns`; hashes as hex. */
export function fixedValues(record: RequestRecord): Value[] {
  return [
    record.id,
    record.project,
    record.endpoint,
    record.model,
    priorityNumber(record.priority),
    record.createdAt,
    record.idempotencyKey ?? null,
    record.fingerprint ?? null,
    record.callHash ?? null,
    listOrNull(record.tags),
    record.bodyHash ?? null,
    record.cachedFrom ?? null,
  ];
}

/** Values of `roundColumns`. */
export function roundValues(record: RequestRecord): Value[] {
  return [record.round, JSON.stringify(record.terms), record.deadlineAt];
}

/** Values of `changingColumns`. */
export function changingValues(record: RequestRecord): Value[] {
  return [
    record.state,
    record.lane,
    record.dueAt,
    record.updatedAt,
    record.startedAt ?? null,
    record.endedAt ?? null,
    record.attempt,
    record.counted,
    record.throttled,
    listOrNull(record.excluded),
    record.unreachableSince ?? null,
    record.owner?.node ?? null,
    record.owner?.epoch ?? null,
    record.duplicatePossible ? 1 : 0,
    record.upstream ?? null,
    record.servedModel ?? null,
    record.responseId ?? null,
    record.usage ?? null,
    json(record.error),
    record.lastErrorCode ?? null,
    record.endReason ?? null,
    listOrNull(record.forks),
    record.invalid,
    record.cost ?? null,
    json(record.findings),
    record.degraded ?? null,
  ];
}

export function toRecord(row: RequestRow): RequestRecord {
  const text = (name: string) => row[name] as string;
  const number = (name: string) => row[name] as number;
  const parsed = <T>(name: string, absent: T): T => (row[name] === null ? absent : JSON.parse(text(name)));
  const maybe = <T>(name: string): T | undefined => (row[name] ?? undefined) as T | undefined;
  return {
    id: text("id"),
    project: text("project"),
    endpoint: text("endpoint"),
    model: text("model"),
    state: text("state") as RequestRecord["state"],
    lane: text("lane"),
    priority: priorities[number("priority")]!,
    dueAt: number("due_at"),
    createdAt: number("created_at"),
    updatedAt: number("updated_at"),
    startedAt: maybe("started_at"),
    endedAt: maybe("ended_at"),
    deadlineAt: number("deadline_at"),
    attempt: number("attempt"),
    round: number("round"),
    counted: number("counted"),
    throttled: number("throttled"),
    invalid: number("invalid"),
    excluded: parsed("excluded", []),
    unreachableSince: maybe("unreachable_since"),
    owner: row.owner_node === null ? undefined : { node: text("owner_node"), epoch: number("owner_epoch") },
    terms: JSON.parse(text("terms")),
    idempotencyKey: maybe("idempotency_key"),
    fingerprint: hex(row.fingerprint!),
    callHash: hex(row.call_hash!),
    duplicatePossible: row.duplicate_possible === 1,
    tags: parsed("tags", []),
    upstream: maybe("upstream"),
    servedModel: maybe("served_model"),
    responseId: maybe("response_id"),
    usage: maybe("usage"),
    cost: maybe("cost"),
    findings: parsed("findings", undefined),
    degraded: maybe("degraded"),
    bodyHash: hex(row.body_hash!),
    cachedFrom: maybe("cached_from"),
    error: parsed("error", undefined),
    lastErrorCode: maybe("last_error_code"),
    endReason: maybe("end_reason"),
    forks: parsed("forks", []),
  };
}

export const attemptColumns = [
  "number",
  "round",
  "upstream",
  "model",
  "started_at",
  "first_byte_at",
  "ended_at",
  "status",
  "verdict",
  "counted",
  "error_code",
  "error_message",
  "reason",
  "retry_at",
  "provider_request_id",
  "usage",
  "cost",
  "findings",
];

export function attemptValues(attempt: AttemptRecord): Value[] {
  return [
    attempt.number,
    attempt.round,
    attempt.upstream,
    attempt.model,
    attempt.startedAt,
    attempt.firstByteAt ?? null,
    attempt.endedAt ?? null,
    attempt.status ?? null,
    attempt.verdict ?? null,
    attempt.counted ? 1 : 0,
    attempt.errorCode ?? null,
    attempt.errorMessage ?? null,
    attempt.reason ?? null,
    attempt.retryAt ?? null,
    attempt.providerRequestId ?? null,
    attempt.usage ?? null,
    attempt.cost ?? null,
    json(attempt.findings),
  ];
}

export function toAttempt(requestId: string, row: RequestRow): AttemptRecord {
  const maybe = <T>(name: string): T | undefined => (row[name] ?? undefined) as T | undefined;
  return {
    requestId,
    number: row.number as number,
    round: row.round as number,
    upstream: row.upstream as string,
    model: row.model as string,
    startedAt: row.started_at as number,
    firstByteAt: maybe("first_byte_at"),
    endedAt: maybe("ended_at"),
    status: maybe("status"),
    verdict: maybe("verdict"),
    counted: row.counted === 1,
    errorCode: maybe("error_code"),
    errorMessage: maybe("error_message"),
    reason: maybe("reason"),
    retryAt: maybe("retry_at"),
    providerRequestId: maybe("provider_request_id"),
    usage: maybe("usage"),
    cost: maybe("cost"),
    findings: row.findings === null ? undefined : JSON.parse(row.findings as string),
  };
}

/** Of a row that joins an ended attempt with the size of its request. */
export function toRecentCall(row: RequestRow): RecentCall {
  return {
    upstream: row.upstream as string,
    model: row.model as string,
    startedAt: row.started_at as number,
    usage: (row.usage ?? undefined) as string | undefined,
    size: row.size === null ? undefined : JSON.parse(row.size as string),
    verdict: row.verdict as RecentCall["verdict"],
  };
}
