/** Records as rows and back. Absent is `undefined` in core and NULL here. */

import type { Bulk } from "../../core/ledger/ports.ts";
import type { RecentCall } from "../../core/ports.ts";
import type { AttemptRecord, Priority, RequestRecord } from "../../core/request.ts";

export type Value = string | number | Uint8Array | null;

export const priorities: Priority[] = ["interactive", "default", "batch"];
export const priorityNumber = (priority: Priority): number => priorities.indexOf(priority);

/** Columns that no transition changes. */
export const fixedColumns = [
  "id",
  "project",
  "endpoint",
  "created_at",
  "idempotency_key",
  "fingerprint",
  "tags",
  "cached_from",
  "origin",
  "replay_of",
];

/** Columns that change with a round only. */
export const roundColumns = [
  "round",
  "model",
  "priority",
  "terms",
  "unwanted",
  "deadline_at",
  "prompt_hash",
  "body_hash",
  "call_hash",
  "resolved_at",
  "bodies_erased_at",
];

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
/** Text as the database gives it back: half of a character is none. */
export const wellFormed = (text: string): string => text.toWellFormed();
const hex = (bytes: Value): string | undefined =>
  bytes instanceof Uint8Array ? Buffer.from(bytes).toString("hex") : undefined;

/** Values of `fixedColumns`; hashes as hex. */
export function fixedValues(record: RequestRecord): Value[] {
  return [
    record.id,
    record.project,
    record.endpoint,
    record.createdAt,
    record.idempotencyKey ?? null,
    record.fingerprint ?? null,
    listOrNull(record.tags),
    record.cachedFrom ?? null,
    json(record.origin),
    record.replayOf ?? null,
  ];
}

/** Values of `roundColumns`; hashes as hex. */
export function roundValues(record: RequestRecord): Value[] {
  return [
    record.round,
    wellFormed(record.model),
    priorityNumber(record.priority),
    JSON.stringify(record.terms),
    record.terms.store === "none" ? 1 : null,
    record.deadlineAt,
    record.promptHash ?? null,
    record.bodyHash ?? null,
    record.callHash ?? null,
    record.resolvedAt ?? null,
    record.bodiesErasedAt ?? null,
  ];
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
    record.lastErrorCode === undefined ? null : wellFormed(record.lastErrorCode),
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
    origin: parsed("origin", undefined),
    promptHash: hex(row.prompt_hash!),
    replayOf: maybe("replay_of"),
    resolvedAt: maybe("resolved_at"),
    bodiesErasedAt: maybe("bodies_erased_at"),
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
  "due_at",
  "waited_for",
  "started_at",
  "connected_at",
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

/** Of the attempt that answered, what its request says as well is not written twice: see `ofAnswer`. */
export function attemptValues(attempt: AttemptRecord, record: RequestRecord): Value[] {
  const isAnswer = record.state === "completed" && attempt.number === record.attempt;
  const usage = isAnswer && attempt.usage === record.usage ? undefined : attempt.usage;
  const findings = isAnswer && attempt.findings === record.findings ? undefined : attempt.findings;
  return [
    attempt.number,
    attempt.round,
    attempt.upstream,
    attempt.model,
    attempt.dueAt ?? null,
    json(attempt.waitedFor),
    attempt.startedAt,
    attempt.connectedAt ?? null,
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
    usage ?? null,
    attempt.cost ?? null,
    json(findings),
  ];
}

/** A column of `attempts`, which are joined with their requests; of the attempt that answered, also that of the request. */
export const ofAnswer = (column: "usage" | "findings"): string =>
  `coalesce(attempts.${column}, iif(requests.state = 'completed' AND number = attempt, requests.${column}, NULL))
    AS ${column}`;

export function toAttempt(requestId: string, row: RequestRow): AttemptRecord {
  const maybe = <T>(name: string): T | undefined => (row[name] ?? undefined) as T | undefined;
  return {
    requestId,
    number: row.number as number,
    round: row.round as number,
    upstream: row.upstream as string,
    model: row.model as string,
    dueAt: maybe("due_at"),
    waitedFor: row.waited_for === null ? undefined : JSON.parse(row.waited_for as string),
    startedAt: row.started_at as number,
    connectedAt: maybe("connected_at"),
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

/** Columns of `Bulk`, in the order of `bulkValues`. */
export const bulkColumns = [
  "id",
  "project",
  "action",
  "filter",
  "text",
  "options",
  "state",
  "total",
  "done",
  "skipped",
  "failed",
  "cursor",
  "last_id",
  "error_code",
  "idempotency_key",
  "fingerprint",
  "created_at",
  "updated_at",
  "ended_at",
];

/** The fingerprint as hex. */
export function bulkValues(bulk: Bulk): Value[] {
  return [
    bulk.id,
    bulk.project,
    bulk.action,
    JSON.stringify(bulk.filter),
    bulk.text ?? null,
    json(bulk.options),
    bulk.state,
    bulk.total ?? null,
    bulk.done,
    bulk.skipped,
    bulk.failed,
    bulk.cursor ?? null,
    bulk.lastId ?? null,
    bulk.errorCode ?? null,
    bulk.idempotencyKey ?? null,
    bulk.fingerprint ?? null,
    bulk.createdAt,
    bulk.updatedAt,
    bulk.endedAt ?? null,
  ];
}

export function toBulk(row: RequestRow): Bulk {
  const maybe = <T>(name: string): T | undefined => (row[name] ?? undefined) as T | undefined;
  return {
    id: row.id as string,
    project: row.project as string,
    action: row.action as Bulk["action"],
    filter: JSON.parse(row.filter as string),
    text: maybe("text"),
    options: row.options === null ? undefined : JSON.parse(row.options as string),
    state: row.state as Bulk["state"],
    total: maybe("total"),
    done: row.done as number,
    skipped: row.skipped as number,
    failed: row.failed as number,
    cursor: maybe("cursor"),
    lastId: maybe("last_id"),
    errorCode: maybe("error_code"),
    idempotencyKey: maybe("idempotency_key"),
    fingerprint: hex(row.fingerprint!),
    createdAt: row.created_at as number,
    updatedAt: row.updated_at as number,
    endedAt: maybe("ended_at"),
  };
}

/** Placeholders for the values of columns, of which hashes come as hex. */
export const marksFor = (columns: string[]): string =>
  columns.map((column) => (isHash(column) ? "unhex(?)" : "?")).join(", ");

export const isHash = (column: string): boolean =>
  ["fingerprint", "call_hash", "body_hash", "prompt_hash"].includes(column);
