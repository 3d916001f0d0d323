/** What a caller may wish for an answer (`validate`, `cache`, `on_failure`), read and checked; and whose wish holds. */

import { z } from "zod";
import { parseDuration } from "../core/duration.ts";
import type { Route } from "../core/routing.ts";
import { type CacheWish, type FailureWish, type ValidateWish, validateAll } from "../core/wishes.ts";

const yearMs = 365 * 86_400_000;

/** In ms, more than 0 and at most a year. */
export const age = z.union([z.string(), z.number()]).transform((value, context) => {
  const ms = parseDuration(value);
  if (ms !== undefined && ms > 0 && ms <= yearMs) return ms;
  context.addIssue({ code: "custom" });
  return z.NEVER;
});

const validate = z
  .strictObject({
    json: z.boolean().default(validateAll.json),
    schema: z.record(z.string(), z.unknown()).optional(),
    refusal: z.boolean().default(validateAll.refusal),
    length: z.boolean().default(validateAll.length),
    empty: z.boolean().default(validateAll.empty),
    max_retries: z.int().min(0).max(10).default(validateAll.maxRetries),
    feedback: z.boolean().default(validateAll.feedback),
  })
  .transform(({ max_retries: maxRetries, ...same }): ValidateWish => ({ ...same, maxRetries }));

const answer = z.union([z.string().regex(/\S/), z.looseObject({ choices: z.array(z.unknown()).min(1) })]);

/** `false` takes back what a route or the configuration wishes. */
export const wishFields = {
  validate: z.union([z.boolean(), validate]).transform((wish) => (wish === true ? validateAll : wish)),
  cache: z.union([
    z.literal(false),
    z.strictObject({ ttl: age }).transform(({ ttl }): CacheWish => ({ ttlMs: ttl })),
  ]),
  on_failure: z.union([
    z.literal(false),
    z
      .strictObject({ stale: age.optional(), answer: answer.optional() })
      .refine((wish) => wish.stale !== undefined || wish.answer !== undefined)
      .transform((wish): FailureWish => ({ staleMs: wish.stale, answer: wish.answer })),
  ]),
};

export const wishMeaning = {
  validate:
    "must be true, false or an object of `json`, `refusal`, `length`, `empty`, `feedback` (true or false), `schema` (a JSON Schema) and `max_retries` (0 to 10)",
  cache: 'must be false or {"ttl": …}, a time of at most 365 days such as "10m" or "24h"',
  on_failure:
    'must be false or an object with `stale` (a time of at most 365 days such as "24h"), `answer` (a text or a whole answer), or both',
};

export interface Wishes {
  validate?: ValidateWish;
  cache?: CacheWish;
  onFailure?: FailureWish;
}

/** The wishes of a request, of its route, or of the configuration: whoever says anything holds. */
export function wishesOf(
  asked: { validate?: ValidateWish | false; cache?: CacheWish | false; on_failure?: FailureWish | false },
  route: Pick<Route, "validate" | "cache" | "onFailure"> | undefined,
  defaults: Pick<Route, "validate" | "cache" | "onFailure">,
): Wishes {
  return {
    validate: (asked.validate ?? route?.validate ?? defaults.validate) || undefined,
    cache: (asked.cache ?? route?.cache ?? defaults.cache) || undefined,
    onFailure: (asked.on_failure ?? route?.onFailure ?? defaults.onFailure) || undefined,
  };
}
