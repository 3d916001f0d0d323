/** The JSON that we define, as zod schemas: what a client of ours may rely on. Errors and lists have OpenAI's shape. */

import { z } from "zod";

const instant = z.iso.datetime().nullable();

export const errorSchema = z.object({
  error: z.object({
    message: z.string(),
    type: z.string(),
    param: z.string().nullable(),
    code: z.string().nullable(),
  }),
});

/** What a caller gets that does not wait for the answer, with 202. */
export const asyncSchema = z.object({
  id: z.string().startsWith("req_"),
  object: z.enum(["chat.completion.async", "embedding.async"]),
  /** `completed` at once where the answer was known (`cache`). */
  status: z.enum(["queued", "processing", "retrying", "completed"]),
  /** Unix seconds. */
  created: z.int(),
  model: z.string(),
  poll_url: z.string(),
});

/** What an answer was found to be. */
export const findingsSchema = z.object({
  finish_reason: z.string().nullable(),
  problems: z.array(
    z.enum(["refusal", "content_filter", "length", "empty", "invalid_json", "schema_mismatch"]),
  ),
  /** Where it does not follow its schema. */
  details: z.array(z.string()).optional(),
});

const waitReason = z.enum(["rate_limit", "breaker", "backoff", "scheduled", "capacity"]);

const headerList = z.array(z.tuple([z.string(), z.string()]));
/** JSON as JSON, other text as text, other bytes as `{"base64": …}`; null where there is none. */
const wireBody = z.unknown();

/**
 * What an attempt sent, without secrets. Where not every attempt's is stored (`store: "all"`), it is what the caller
 * asked: with the model's name, the path and the headers that it gave, before the upstream's own.
 */
export const sentSchema = z.object({
  method: z.string().nullable(),
  url: z.string().nullable(),
  headers: headerList,
  body: wireBody,
});
export const receivedSchema = z.object({ status: z.int().nullable(), headers: headerList, body: wireBody });

export const attemptSchema = z.object({
  object: z.literal("attempt"),
  number: z.int(),
  round: z.int(),
  upstream: z.string(),
  model: z.string(),
  /** From when on it could have started, and what it waited for since; null where that is not known. */
  due_at: instant,
  waited_for: z.array(waitReason).nullable(),
  started_at: z.iso.datetime(),
  ended_at: instant,
  latency_ms: z.int().nullable(),
  /** From its start until it had a connection. */
  connect_ms: z.int().nullable(),
  first_byte_ms: z.int().nullable(),
  status: z.int().nullable(),
  verdict: z
    .enum(["success", "throttled", "transient", "ambiguous", "not_sent", "invalid_output", "permanent"])
    .nullable(),
  /** Whether it used up one of the request's attempts. */
  counted: z.boolean(),
  /** Why it was, or was not, followed by another attempt. */
  reason: z.string().nullable(),
  retry_at: instant,
  error_code: z.string().nullable(),
  error_message: z.string().nullable(),
  provider_request_id: z.string().nullable(),
  usage: z.record(z.string(), z.unknown()).nullable(),
  cost: z.number().nullable(),
  findings: findingsSchema.nullable(),
  /** With `include=bodies`; null where it is not stored, or nothing was sent. */
  request: sentSchema.nullable().optional(),
  response: receivedSchema.nullable().optional(),
});

const status = z.enum(["queued", "processing", "retrying", "completed", "failed", "cancelled"]);
const cause = z.enum(["caller", "upstream"]);

export const requestSchema = z.object({
  id: z.string().startsWith("req_"),
  object: z.literal("request"),
  status,
  endpoint: z.string(),
  model: z.string(),
  /** How many were started. */
  attempts: z.int(),
  created_at: z.iso.datetime(),
  updated_at: z.iso.datetime(),
  last_error_code: z.string().nullable(),
  /** The upstream's answer; null until completed, and always null in lists. */
  result: z.unknown(),
  started_at: instant,
  ended_at: instant,
  next_attempt_at: instant,
  deadline_at: z.iso.datetime(),
  idempotency_key: z.string().nullable(),
  upstream: z.string().nullable(),
  served_model: z.string().nullable(),
  usage: z.record(z.string(), z.unknown()).nullable(),
  /** Of all its attempts, in the currency of the price table; `usage` is the serving attempt's alone. */
  cost: z.number().nullable(),
  /** Of the newest answer. */
  findings: findingsSchema.nullable(),
  /** What its caller was given while it went on. */
  degraded: z.enum(["stale", "fixed"]).nullable(),
  /** The request whose answer it got without a call; "inputs" where its parts were known. */
  cached_from: z.string().nullable(),
  error: errorSchema.shape.error.extend({ status: z.int() }).nullable(),
  waiting_for: waitReason.nullable(),
  duplicate_possible: z.boolean(),
  tags: z.array(z.string()),
  replay_of: z.string().nullable(),
  priority: z.enum(["interactive", "default", "batch"]),
  /** As the caller named them. */
  user: z.string().nullable(),
  safety_identifier: z.string().nullable(),
  metadata: z.record(z.string(), z.string()).nullable(),
  trace_id: z.string().nullable(),
  client_request_id: z.string().nullable(),
  /** Equal where system and developer messages, tools and response format are. */
  prompt_hash: z.string().nullable(),
  /** Of failed ones: whose fault it is. */
  caused_by: cause.nullable(),
  resolved_at: instant,
  /** From then on its prompt and its answer are no longer there. */
  bodies_erased_at: instant,
  /** With `include=body`. */
  body: z.unknown().optional(),
  /** With `include=attempts`. */
  attempt_list: z.array(attemptSchema).optional(),
});

export const deletedSchema = z.object({
  id: z.string(),
  object: z.literal("request"),
  deleted: z.literal(true),
});

/** Of the fields that were asked for, those of this group. */
export const countSchema = z.object({
  object: z.literal("request.count"),
  count: z.int(),
  status: status.optional(),
  model: z.string().nullable().optional(),
  upstream: z.string().nullable().optional(),
  endpoint: z.string().nullable().optional(),
  error_code: z.string().nullable().optional(),
  caused_by: cause.nullable().optional(),
  resolved: z.boolean().nullable().optional(),
});

/** Failed requests with one cause. */
export const deadLetterSchema = z.object({
  object: z.literal("dead_letter"),
  error_code: z.string(),
  model: z.string(),
  upstream: z.string().nullable(),
  endpoint: z.string(),
  caused_by: cause,
  count: z.int(),
  /** How many of them are marked as resolved. */
  resolved: z.int(),
  first_at: z.iso.datetime(),
  last_at: z.iso.datetime(),
  last_request_id: z.string(),
  last_error_message: z.string().nullable(),
});

/** Which requests a bulk means. */
export const filterSchema = z.object({
  status: z.array(status).optional(),
  model: z.string().optional(),
  upstream: z.string().optional(),
  endpoint: z.string().optional(),
  error_code: z.string().optional(),
  caused_by: cause.optional(),
  resolved: z.boolean().optional(),
  tag: z.array(z.string()).optional(),
  user: z.string().optional(),
  safety_identifier: z.string().optional(),
  metadata: z.record(z.string(), z.string()).optional(),
  trace_id: z.string().optional(),
  client_request_id: z.string().optional(),
  idempotency_key: z.string().optional(),
  created_after: z.iso.datetime().optional(),
  created_before: z.iso.datetime().optional(),
  q: z.string().optional(),
});

/** Something that is being done with many requests. */
export const bulkSchema = z.object({
  id: z.string().startsWith("bulk_"),
  object: z.literal("bulk"),
  action: z.enum(["retry", "cancel", "erase", "resolve"]),
  status: z.enum(["in_progress", "completed", "cancelled", "failed"]),
  filter: filterSchema,
  /** How many matched when it was asked for; null where they were not counted. */
  total: z.int().nullable(),
  done: z.int(),
  /** Those that were no longer in a state for it. */
  skipped: z.int(),
  failed: z.int(),
  /** Of the newest that failed. */
  error_code: z.string().nullable(),
  idempotency_key: z.string().nullable(),
  created_at: z.iso.datetime(),
  updated_at: z.iso.datetime(),
  ended_at: instant,
});

/** What was used by requests whose rounds ended, and by their attempts; of the fields it was grouped by, this group's. */
export const usageSchema = z.object({
  object: z.literal("usage"),
  day: z.iso.date().optional(),
  model: z.string().optional(),
  /** Null where it never had one. */
  upstream: z.string().nullable().optional(),
  endpoint: z.string().optional(),
  tag: z.string().nullable().optional(),
  prompt_hash: z.string().nullable().optional(),
  requests: z.int(),
  completed: z.int(),
  failed: z.int(),
  cancelled: z.int(),
  /** Of the completed ones: answered without a call. */
  cached: z.int(),
  attempts: z.int(),
  input_tokens: z.int(),
  cached_tokens: z.int(),
  output_tokens: z.int(),
  reasoning_tokens: z.int(),
  total_tokens: z.int(),
  /** US dollars. */
  cost: z.number(),
  /** Attempts whose tokens are estimated, and attempts that used tokens of no known price. */
  estimated_attempts: z.int(),
  unpriced_attempts: z.int(),
  /** From when it was to begin to its end, of those that completed with a call; null without any. */
  mean_duration_ms: z.number().nullable(),
  /** How many answers were found to be so. */
  problems: z.object({
    refusal: z.int(),
    content_filter: z.int(),
    length: z.int(),
    empty: z.int(),
    invalid_json: z.int(),
    schema_mismatch: z.int(),
  }),
});

const breakerSchema = z.object({
  state: z.enum(["closed", "open", "half_open"]),
  /** When it lets somebody through; an estimate while its probe is under way. */
  until: instant,
  /** How often in a row it has opened. */
  opens: z.int(),
});

const limitSchema = z
  .object({
    per_minute: z.number(),
    /** Of it, in the last minute. */
    used: z.number(),
    source: z.enum(["config", "learned"]),
    /** From when on the next smallest call fits; null = now. */
    opens_at: instant,
    /** When all of it is there again, if nothing is sent; null = it is. */
    refilled_at: instant,
  })
  .nullable();

export const upstreamSchema = z.object({
  id: z.string(),
  object: z.literal("upstream"),
  limit_group: z.string().nullable(),
  in_flight: z.int(),
  max_concurrency: z.int(),
  breaker: breakerSchema,
  reachable: z.boolean(),
  /** How many failed requests it may be sent again at once. */
  retry_budget: z.int(),
  lanes: z.array(
    z.object({
      model: z.string(),
      queued: z.int(),
      in_flight: z.int(),
      concurrency: z.object({ limit: z.int(), min: z.int(), max: z.int() }),
      requests: limitSchema,
      tokens: limitSchema,
      /** How its calls are reckoned before their usage is known; `error` is the mean relative error of that. */
      estimate: z
        .object({
          tokens_per_byte: z.number(),
          output_tokens: z.int(),
          error: z.number(),
          samples: z.int(),
        })
        .nullable(),
      breaker: breakerSchema,
      /** Why its next request would wait; null = it would not. */
      waiting_for: waitReason.nullable(),
      until: instant,
    }),
  ),
});

export const listOf = <T extends z.ZodType>(item: T) =>
  z.object({
    object: z.literal("list"),
    data: z.array(item),
    first_id: z.string().nullable(),
    last_id: z.string().nullable(),
    has_more: z.boolean(),
  });

export type AsyncObject = z.infer<typeof asyncSchema>;
export type BulkObject = z.infer<typeof bulkSchema>;
export type CountObject = z.infer<typeof countSchema>;
export type DeadLetterObject = z.infer<typeof deadLetterSchema>;
export type FilterObject = z.infer<typeof filterSchema>;
export type UsageObject = z.infer<typeof usageSchema>;
export type AttemptObject = z.infer<typeof attemptSchema>;
export type RequestObject = z.infer<typeof requestSchema>;
export type UpstreamObject = z.infer<typeof upstreamSchema>;
export type ErrorObject = z.infer<typeof errorSchema>;
