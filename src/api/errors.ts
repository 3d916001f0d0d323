/**
 * Codes of our refusals, and the HTTP status and OpenAI type that go with each. Failures that end a request
 * bring theirs, because they are recorded with it: see `failures` in core/errors.ts.
 */

import type { ErrorObject } from "../contract.ts";
import type { AppError, ErrorCode } from "../core/errors.ts";
import type { HeaderList } from "../core/headers.ts";
import type { Failure } from "../core/request.ts";
import type { Reply } from "./reply.ts";

const invalid = "invalid_request_error";
const server = "server_error";

const table: Record<ErrorCode, [status: number, type: string]> = {
  invalid_json: [400, invalid],
  invalid_body: [400, invalid],
  missing_required_parameter: [400, invalid],
  invalid_parameter: [400, invalid],
  invalid_idempotency_key: [400, invalid],
  // 400 is the only status that no client retries (research/clients.md §1.2).
  idempotency_key_reused: [400, invalid],
  request_cancelled: [400, invalid],
  request_ended: [400, invalid],
  request_active: [400, invalid],
  request_completed: [400, invalid],
  request_not_failed: [400, invalid],
  bodies_erased: [410, invalid],
  bulk_not_found: [404, invalid],
  request_not_found: [404, invalid],
  model_not_found: [404, invalid],
  upstream_not_found: [400, invalid],
  invalid_cursor: [400, invalid],
  invalid_api_key: [401, invalid],
  foreign_host: [403, invalid],
  foreign_origin: [403, invalid],
  operator_only: [403, invalid],
  passthrough_off: [404, invalid],
  not_found: [404, invalid],
  body_too_large: [413, invalid],
  unsupported_content_type: [415, invalid],
  queue_full: [429, "rate_limit_error"],
  rate_limited: [429, "rate_limit_error"],
  overloaded: [503, "service_unavailable_error"],
  still_running: [504, "timeout_error"],
  shutting_down: [503, "service_unavailable_error"],
  storage_full: [503, "service_unavailable_error"],
  storage_failed: [503, "service_unavailable_error"],
  stream_interrupted: [502, "api_error"],
  stream_restarted: [409, invalid],
  internal_error: [500, server],
};

/** How soon a caller that we refuse should come back. SDKs obey at most 60 s. */
const comeBackMs: Partial<Record<ErrorCode, number>> = {
  shutting_down: 1000,
  storage_full: 10_000,
  storage_failed: 5000,
};

export function errorReply(error: AppError): Reply {
  const { code, requestId } = error;
  const reply = failureReply(failureOf(error), []);
  if (requestId) reply.headers.push(["outlast-request-id", requestId]);
  const waitMs = error.retryAfterMs ?? comeBackMs[code];
  if (waitMs !== undefined) reply.headers.push(...comeBack(waitMs));
  if (code === "still_running") reply.headers.push(["x-should-retry", "true"]);
  // Some clients retry a 409 or a 500 on their own account; nothing would change.
  if (code === "internal_error") reply.headers.push(["x-should-retry", "false"]);
  return reply;
}

/** An error of ours as it is told in a stream that has begun. */
export function failureOf({ code, message, param }: AppError): Failure {
  const [status, type] = table[code];
  return { code, message, param, type, status };
}

/** A refusal that is worth another try. */
export function comeBack(waitMs: number): HeaderList {
  const ms = Math.min(Math.max(1, Math.ceil(waitMs)), 60_000);
  return [
    ["retry-after", String(Math.ceil(ms / 1000))],
    ["retry-after-ms", String(ms)],
    ["x-should-retry", "true"],
  ];
}

export function failureReply(failure: Failure, headers: HeaderList): Reply {
  const { code, message, type, param = null, status } = failure;
  const body: ErrorObject = { error: { message, type, param, code } };
  return jsonReply(status, body, headers);
}

export function jsonReply(status: number, body: unknown, headers: HeaderList = []): Reply {
  return { status, headers: [["content-type", "application/json"], ...headers], body: JSON.stringify(body) };
}

/** A list in OpenAI's shape; what has no id of its own is no cursor. */
export function listReply(data: object[], hasMore = false): Reply {
  const idOf = (item: object | undefined) => (item && "id" in item ? item.id : null);
  const ends = { first_id: idOf(data[0]), last_id: idOf(data.at(-1)), has_more: hasMore };
  return jsonReply(200, { object: "list", data, ...ends });
}
