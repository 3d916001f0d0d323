/** Errors that reach a caller, and errors of the store. Everything else is a fault of ours and becomes `internal_error`. */

import type { Failure } from "./request.ts";

/** Codes of the errors that we raise ourselves. `api/errors.ts` maps each to its HTTP status and OpenAI type. */
export type ErrorCode =
  | "invalid_json"
  | "invalid_body"
  | "missing_required_parameter"
  | "invalid_parameter"
  | "invalid_idempotency_key"
  | "idempotency_key_reused"
  | "request_cancelled"
  | "request_ended"
  | "request_active"
  | "request_completed"
  | "request_not_failed"
  | "bodies_erased"
  | "bulk_not_found"
  | "request_not_found"
  | "model_not_found"
  | "upstream_not_found"
  | "invalid_cursor"
  | "invalid_api_key"
  | "foreign_host"
  | "foreign_origin"
  | "operator_only"
  | "passthrough_off"
  | "not_found"
  | "body_too_large"
  | "unsupported_content_type"
  | "queue_full"
  | "rate_limited"
  | "overloaded"
  | "still_running"
  | "shutting_down"
  | "storage_full"
  | "storage_failed"
  | "stream_interrupted"
  | "stream_restarted"
  | "internal_error";

/** A refusal with a code of ours. `param` names the field at fault; the message says what is allowed. */
export class AppError extends Error {
  readonly code: ErrorCode;
  readonly param: string | undefined;
  /** The request that this is about, where there is one. */
  readonly requestId: string | undefined;
  /** When to come back, where that is known better than by the code alone. */
  readonly retryAfterMs: number | undefined;

  constructor(
    code: ErrorCode,
    message: string,
    more: { param?: string; requestId?: string; retryAfterMs?: number } = {},
  ) {
    // Nobody asks where a refusal comes from, and to note that is a good part of what it costs.
    const { stackTraceLimit } = Error;
    Error.stackTraceLimit = 0;
    super(message);
    Error.stackTraceLimit = stackTraceLimit;
    this.code = code;
    this.param = more.param;
    this.requestId = more.requestId;
    this.retryAfterMs = more.retryAfterMs;
  }
}

/**
 * The store could not write or read. `full`: no space, nothing was written, try later.
 * `failed`: the disk or the file is in doubt; the process must stop and recover on its next start.
 */
export class StorageError extends Error {
  readonly kind: "full" | "failed";

  constructor(kind: "full" | "failed", message: string) {
    super(message);
    this.kind = kind;
  }
}

/** Failures that no upstream sent, with their HTTP status. */
export const failures = {
  deadline: (): Failure => ({
    code: "deadline_exceeded",
    message: "The request did not finish before its deadline.",
    type: "timeout_error",
    status: 504,
  }),
  unreachable: (upstream: string): Failure => ({
    code: "upstream_unreachable",
    message: `The upstream "${upstream}" could not be reached.`,
    type: "api_connection_error",
    status: 502,
  }),
  timeout: (upstream: string): Failure => ({
    code: "upstream_timeout",
    message: `The upstream "${upstream}" did not answer in time.`,
    type: "timeout_error",
    status: 504,
  }),
  lost: (upstream: string): Failure => ({
    code: "upstream_connection_lost",
    message: `The connection to the upstream "${upstream}" broke before its answer was complete.`,
    type: "api_connection_error",
    status: 502,
  }),
  unknown: (upstream: string): Failure => ({
    code: "upstream_outcome_unknown",
    message: `It is not known whether the upstream "${upstream}" ran this request, and it is not tried again.`,
    type: "api_connection_error",
    status: 502,
  }),
  unstorable: (upstream: string): Failure => ({
    code: "answer_not_stored",
    message: `The upstream "${upstream}" was called, and its answer could not be stored.`,
    type: "api_error",
    status: 502,
  }),
  badAnswer: (upstream: string): Failure => ({
    code: "upstream_bad_answer",
    message: `The upstream "${upstream}" answered 200 with a body that is not valid JSON.`,
    type: "api_error",
    status: 502,
  }),
  erased: (): Failure => ({
    code: "bodies_erased",
    message: "The prompt of the request is no longer stored.",
    type: "invalid_request_error",
    status: 410,
  }),
  invalidOutput: (reasons: string[]): Failure => ({
    code: "invalid_output",
    message: `The answer is not valid: ${reasons.join("; ").slice(0, 1000)}.`,
    type: "invalid_output_error",
    status: 502,
  }),
} as const;

/** Where a fault of ours happened, for the log. Without the error's own words: those may quote a prompt. */
export function faultText(error: unknown): string {
  if (error instanceof StorageError) return `storage ${error.kind}: ${error.message}`;
  if (!(error instanceof Error)) return typeof error;
  const frames = (error.stack ?? "").split("\n").filter((line) => line.trimStart().startsWith("at "));
  return [error.name, ...frames.slice(0, 4).map((frame) => frame.trim())].join(" ");
}
