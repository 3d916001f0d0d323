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

export const attemptSchema = z.object({
  object: z.literal("attempt"),
  number: z.int(),
  round: z.int(),
  upstream: z.string(),
  model: z.string(),
  started_at: z.iso.datetime(),
  ended_at: instant,
  latency_ms: z.int().nullable(),
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
});

export const requestSchema = z.object({
  id: z.string().startsWith("req_"),
  object: z.literal("request"),
  status: z.enum(["queued", "processing", "retrying", "completed", "failed", "cancelled"]),
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
  waiting_for: z.enum(["rate_limit", "breaker", "backoff", "scheduled", "capacity"]).nullable(),
  duplicate_possible: z.boolean(),
  tags: z.array(z.string()),
  replay_of: z.string().nullable(),
  /** With `include=body`. */
  body: z.unknown().optional(),
  /** With `include=attempts`. */
  attempt_list: z.array(attemptSchema).optional(),
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
      waiting_for: z.enum(["rate_limit", "breaker", "backoff", "scheduled", "capacity"]).nullable(),
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
export type AttemptObject = z.infer<typeof attemptSchema>;
export type RequestObject = z.infer<typeof requestSchema>;
export type UpstreamObject = z.infer<typeof upstreamSchema>;
export type ErrorObject = z.infer<typeof errorSchema>;
