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
  object: z.literal("chat.completion.async"),
  status: z.enum(["queued", "processing", "retrying"]),
  /** Unix seconds. */
  created: z.int(),
  model: z.string(),
  poll_url: z.string(),
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
  cost: z.number().nullable(),
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
export type ErrorObject = z.infer<typeof errorSchema>;
