/** What a change of a request adds to the sums of what was used: of its attempt that ended, and of its own end. Pure. */

import {
  type AttemptRecord,
  isTerminal,
  laneParts,
  type Problem,
  type RequestRecord,
  type Transition,
} from "../request.ts";
import { type Usage, usageOf } from "../token-estimate.ts";
import type { Sums, Tally, UsageKey } from "./ports.ts";

const dayMs = 86_400_000;

/** The day (UTC) of an instant: days since 1970-01-01. */
export const dayOf = (at: number): number => Math.floor(at / dayMs);

const sumOf: Record<Problem, keyof Sums> = {
  refusal: "refusal",
  content_filter: "contentFilter",
  length: "length",
  empty: "empty",
  invalid_json: "invalidJson",
  schema_mismatch: "schemaMismatch",
};

/**
 * What to add with a transition. The model is the one that was called, whatever the caller named it; a round that ends
 * without an attempt counts where it waited. `used`: what the attempt's `usage` says, where that is known already.
 */
export function talliesOf({ record, attempt, expect }: Transition, used?: Usage): Tally[] {
  const ended = isTerminal(record.state) && !isTerminal(expect.state) ? endSums(record) : undefined;
  if (!attempt && !ended) return [];
  const at = attempt?.endedAt ?? record.updatedAt;
  const lane = attempt ?? { ...laneParts(record.lane), upstream: record.upstream ?? "" };
  return [
    {
      key: keyOf(record, lane, at),
      tags: record.tags,
      sums: attempt ? Object.assign(attemptSums(attempt, used), ended) : (ended ?? {}),
    },
  ];
}

/** What to add for a request that was answered as it was accepted, without a call. */
export function talliesOfHit(record: RequestRecord): Tally[] {
  const lane = { ...laneParts(record.lane), upstream: record.upstream ?? "" };
  const sums = { completed: 1, cached: 1 };
  return [{ key: keyOf(record, lane, record.createdAt), tags: record.tags, sums }];
}

function keyOf(
  { project, endpoint, promptHash = "" }: RequestRecord,
  { upstream, model }: { upstream: string; model: string },
  at: number,
): UsageKey {
  return { day: dayOf(at), project, endpoint, model, upstream, promptHash };
}

function endSums(record: RequestRecord): Partial<Sums> {
  switch (record.state) {
    case "completed":
      return { completed: 1, durationMs: Math.max(0, (record.endedAt ?? 0) - askedAt(record)) };
    case "failed":
      return { failed: 1 };
    default:
      return { cancelled: 1 };
  }
}

/** When the round was to begin. */
const askedAt = ({ deadlineAt, terms }: RequestRecord): number => deadlineAt - terms.deadlineMs;

function attemptSums({ usage, cost, findings }: AttemptRecord, known?: Usage): Partial<Sums> {
  const used = known ?? (usage === undefined ? {} : usageOf(usage));
  const tokens = used.total ?? (used.prompt ?? 0) + (used.output ?? 0);
  const sums: Partial<Sums> = { attempts: 1 };
  const add = (name: keyof Sums, value: number | undefined) => {
    if (value) sums[name] = value;
  };
  add("inputTokens", used.prompt);
  add("cachedTokens", used.cached);
  add("outputTokens", used.output);
  add("reasoningTokens", used.reasoning);
  add("estimated", used.estimated ? 1 : 0);
  add("cost", cost);
  add("unpriced", tokens > 0 && cost === undefined ? 1 : 0);
  for (const problem of findings?.problems ?? []) add(sumOf[problem], 1);
  return sums;
}
