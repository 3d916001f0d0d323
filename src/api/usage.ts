/** GET /v1/usage: tokens, cost, time and quality, by whatever they are to be told apart. */

import { z } from "zod";
import type { UsageObject } from "../contract.ts";
import type { Sums, UsageGroup } from "../core/ledger/ports.ts";
import { dayOf } from "../core/ledger/usage.ts";
import type { Handler } from "./context.ts";
import { listReply } from "./errors.ts";
import { listed, readQuery } from "./filter.ts";
import { limitOf } from "./lists.ts";
import { invalid } from "./options.ts";

const dayMs = 86_400_000;
const usualDays = 30;
const groupable = ["day", "model", "upstream", "endpoint", "tag", "prompt_hash"] as const;

const day = z.iso.date().transform((text) => dayOf(Date.parse(text)));
const text = z.string().optional();
const usageSchema = z.strictObject({
  group_by: listed(z.enum(groupable)).default([]),
  from: day.optional(),
  to: day.optional(),
  model: text,
  upstream: text,
  endpoint: text,
  tag: text,
  prompt_hash: text,
  limit: limitOf(10_000, 1000),
});
const meaning = {
  group_by: `must be one or more of ${groupable.join(", ")}, separated by commas`,
  from: "must be a day (UTC) such as 2026-01-31",
  to: "must be a day (UTC) such as 2026-01-31",
  limit: "must be a whole number from 1 to 10000",
};

export const getUsage: Handler = async (call, { queue, clock }) => {
  const asked = readQuery(usageSchema, call.query, meaning);
  const { group_by: by, model, upstream, endpoint, tag, prompt_hash: promptHash, limit } = asked;
  const toDay = asked.to ?? Math.max(dayOf(clock.now()), asked.from ?? 0);
  const fromDay = asked.from ?? toDay - usualDays + 1;
  if (fromDay > toDay) throw invalid("to", "must not be before `from`");
  const { project } = call.caller;
  const query = { project, fromDay, toDay, by, model, upstream, endpoint, tag, promptHash };
  const groups = await queue.ledger.usage({ ...query, limit: limit + 1 });
  return listReply(groups.slice(0, limit).map(present), groups.length > limit);
};

function present({ values, sums }: UsageGroup): UsageObject {
  const called = sums.completed - sums.cached;
  return {
    object: "usage",
    ...Object.fromEntries(
      Object.entries(values).map(([name, value]) => [name, name === "day" ? dateOf(value) : value || null]),
    ),
    requests: sums.completed + sums.failed + sums.cancelled,
    completed: sums.completed,
    failed: sums.failed,
    cancelled: sums.cancelled,
    cached: sums.cached,
    attempts: sums.attempts,
    input_tokens: sums.inputTokens,
    cached_tokens: sums.cachedTokens,
    output_tokens: sums.outputTokens,
    reasoning_tokens: sums.reasoningTokens,
    total_tokens: sums.inputTokens + sums.outputTokens,
    cost: sums.cost,
    estimated_attempts: sums.estimated,
    unpriced_attempts: sums.unpriced,
    mean_duration_ms: called > 0 ? Math.round(sums.durationMs / called) : null,
    problems: problemsOf(sums),
  };
}

const dateOf = (day: string | number): string => new Date(Number(day) * dayMs).toISOString().slice(0, 10);

const problemsOf = (sums: Sums): UsageObject["problems"] => ({
  refusal: sums.refusal,
  content_filter: sums.contentFilter,
  length: sums.length,
  empty: sums.empty,
  invalid_json: sums.invalidJson,
  schema_mismatch: sums.schemaMismatch,
});
