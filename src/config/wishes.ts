import { z } from "zod";
import { formatDuration } from "../core/duration.ts";
import { type CacheWish, type FailureWish, type ValidateWish, validateAll } from "../core/wishes.ts";
import {
  dayMs,
  duration,
  field,
  isTable,
  switchable,
  table,
  tableProblem,
  wholeNumber,
  yesOrNo,
} from "./field.ts";

/*
 * What the configuration may wish for answers, for all requests or those of a route. A request says the same in the same
 * form (api/options.ts).
 */

/** `false` where it is not wished although it is elsewhere; absent where nothing is said. */
export interface Wishes {
  validate?: ValidateWish | false;
  cache?: CacheWish | false;
  onFailure?: FailureWish | false;
}

const jsonOnly = "what JSON can say: without dates, nan, inf, and whole numbers beyond 2^53";

function isJson(value: unknown): boolean {
  // Beyond, what we print could not be read again.
  if (Number.isInteger(value)) return Number.isSafeInteger(value);
  if (Array.isArray(value)) return value.every(isJson);
  if (isTable(value)) return Object.values(value).every(isJson);
  return typeof value === "number" ? Number.isFinite(value) : !(value instanceof Date);
}

const validate = table({
  json: yesOrNo.prefault(validateAll.json),
  schema: z
    .record(z.string(), z.unknown(), { error: tableProblem })
    .refine(isJson, `must be ${jsonOnly}`)
    .optional(),
  refusal: yesOrNo.prefault(validateAll.refusal),
  length: yesOrNo.prefault(validateAll.length),
  empty: yesOrNo.prefault(validateAll.empty),
  max_retries: wholeNumber(0, 10).prefault(validateAll.maxRetries),
  feedback: yesOrNo.prefault(validateAll.feedback),
});

const longestAge = 365 * dayMs;

const cache = table({ ttl: duration(1, longestAge) });

const answerExpected = "text that is not empty, or a table whose `choices` are a list that is not empty";
const answer = field(answerExpected, (value, refuse) => {
  if (typeof value === "string") return /\S/.test(value) ? value : undefined;
  if (!isTable(value) || !Array.isArray(value.choices) || value.choices.length === 0) return undefined;
  return isJson(value) ? value : refuse(`must be ${jsonOnly}`);
});

const onFailure = table({ stale: duration(1, longestAge).optional(), answer: answer.optional() }).refine(
  ({ stale, answer }) => stale !== undefined || answer !== undefined,
  "must have stale, answer or both",
);

/** The keys of `[defaults]` and of a route. */
export const wishes = {
  validate: switchable([true, false], validate, "true, false or a table").optional(),
  cache: switchable([false], cache, "false or a table that has ttl").optional(),
  on_failure: switchable([false], onFailure, "false or a table that has stale, answer or both").optional(),
};

type WrittenWishes = { [Key in keyof typeof wishes]?: z.output<(typeof wishes)[Key]> };

export function buildWishes({ validate, cache, on_failure: onFailure }: WrittenWishes): Wishes {
  return {
    ...(validate !== undefined && { validate: validate && buildValidate(validate) }),
    ...(cache !== undefined && { cache: cache && { ttlMs: cache.ttl } }),
    ...(onFailure !== undefined && { onFailure: onFailure && buildOnFailure(onFailure) }),
  };
}

function buildValidate(written: true | z.output<typeof validate>): ValidateWish {
  if (written === true) return { ...validateAll };
  const { max_retries: maxRetries, ...rest } = written;
  return { ...rest, maxRetries };
}

function buildOnFailure({ stale, answer }: z.output<typeof onFailure>): FailureWish {
  return { ...(stale !== undefined && { staleMs: stale }), ...(answer !== undefined && { answer }) };
}

export function wishesAsWritten({ validate, cache, onFailure }: Wishes) {
  return {
    validate: validate && validateAsWritten(validate),
    cache: cache && { ttl: formatDuration(cache.ttlMs) },
    on_failure: onFailure && {
      stale: onFailure.staleMs === undefined ? undefined : formatDuration(onFailure.staleMs),
      answer: onFailure.answer,
    },
  };
}

function validateAsWritten({ maxRetries, ...rest }: ValidateWish) {
  return { ...rest, max_retries: maxRetries };
}
