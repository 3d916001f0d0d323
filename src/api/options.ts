/** What a caller asks of us, beside the body: fields and headers, read and checked (DESIGN §4.1). */

import { z } from "zod";
import { parseDuration } from "../core/duration.ts";
import { AppError } from "../core/errors.ts";
import type { RetryChange } from "../core/ledger/ports.ts";
import type { OnDisconnect, OnUnknown, Priority, StreamTerms, Terms } from "../core/request.ts";
import { type RouteTable, routeFor } from "../core/routing.ts";
import type { CacheWish, FailureWish, ValidateWish } from "../core/wishes.ts";
import type { HeaderOf } from "./guard.ts";
import { type Wishes, wishesOf, wishFields, wishMeaning } from "./wishes.ts";

export interface Defaults {
  /** undefined = hold; false = async; true or seconds = wait, then async. */
  wait: boolean | number | undefined;
  waitTimeoutMs: number;
  holdTimeoutMs: number;
  deadlineMs: number;
  heldDeadlineMs: number;
  maxAttempts: number;
  heldMaxAttempts: number;
  onUnknown: OnUnknown;
  onDisconnect: OnDisconnect;
  priority: Priority | undefined;
  validate?: ValidateWish | false;
  cache?: CacheWish | false;
  onFailure?: FailureWish | false;
  store?: "all" | "none";
}

/** How the caller wants its answer. */
export type Mode = { kind: "held" } | { kind: "wait"; ms: number } | { kind: "async" };

export interface Asked {
  mode: Mode;
  /** For `Preference-Applied`, where a `Prefer` header was followed. */
  preferenceApplied?: string;
  idempotencyKey?: string;
  terms: Terms;
  priority: Priority;
  /** Epoch ms. */
  runAt?: number;
  tags: string[];
  wishes: Wishes;
  /** It was the caller who said how answers are to be validated. */
  validatesItself: boolean;
}

/** Fields of ours at the top of a body; they never reach an upstream. */
export const ourFields: ReadonlySet<string> = new Set(["wait", "idempotency_key", "outlast"]);

const duration = z.union([z.string(), z.number()]).transform((value, context) => {
  const ms = parseDuration(value);
  if (ms !== undefined) return ms;
  context.addIssue({ code: "custom" });
  return z.NEVER;
});

const yearMs = 365 * 86_400_000;

/** `run_at`: ISO 8601, or Unix seconds. */
const instant = z.union([
  z.iso.datetime({ offset: true }).transform((text) => Date.parse(text)),
  z
    .number()
    .nonnegative()
    .transform((seconds) => Math.round(seconds * 1000)),
]);

const optionsSchema = z.strictObject({
  deadline: duration.refine((ms) => ms > 0 && ms <= yearMs).optional(),
  max_attempts: z.int().min(1).max(1000).optional(),
  priority: z.enum(["interactive", "default", "batch"]).optional(),
  run_at: instant.optional(),
  delay: duration.refine((ms) => ms <= yearMs).optional(),
  upstream: z.string().min(1).optional(),
  on_unknown: z.enum(["retry", "fail"]).optional(),
  on_disconnect: z.enum(["continue", "cancel"]).optional(),
  stream_mode: z.enum(["live", "buffered"]).optional(),
  tags: z.array(z.string().min(1).max(64)).max(16).optional(),
  store: z.enum(["all", "last", "none"]).optional(),
  validate: wishFields.validate.optional(),
  cache: wishFields.cache.optional(),
  on_failure: wishFields.on_failure.optional(),
});
type Options = z.infer<typeof optionsSchema>;

/** What another round of a request may have otherwise; of many requests, all but what is read from each one's body. */
const roundsSchema = optionsSchema.pick({
  deadline: true,
  max_attempts: true,
  priority: true,
  run_at: true,
  delay: true,
  upstream: true,
  on_unknown: true,
});
const roundSchema = roundsSchema.extend({ validate: optionsSchema.shape.validate });

const durations = 'as a number of seconds, or as text such as "30s", "10m", "24h"';
const meaning: Record<keyof Options, string> = {
  deadline: `must be more than 0 and at most 365 days, ${durations}`,
  max_attempts: "must be a whole number from 1 to 1000",
  priority: 'must be "interactive", "default" or "batch"',
  run_at: "must be an ISO 8601 instant with its offset, or Unix seconds, and at most 365 days ahead",
  delay: `must be at most 365 days, ${durations}`,
  upstream: "must be the name of an upstream",
  on_unknown: 'must be "retry" or "fail"',
  on_disconnect: 'must be "continue" or "cancel"',
  stream_mode: 'must be "live" or "buffered"',
  tags: "must be a list of at most 16 texts of 1 to 64 characters",
  store: 'must be "all", "last" or "none"',
  ...wishMeaning,
};

const waitSchema = z.union([z.boolean(), z.number().min(0).max(86_400)]);

/**
 * Reads what the caller asked for; a body field goes before its header.
 * @param now epoch ms
 * @param where what errors call the member that our options stand in
 * @throws AppError `invalid_parameter`, `invalid_idempotency_key`, naming the field and what is allowed
 */
export function readAsked(
  body: Record<string, unknown>,
  header: HeaderOf,
  defaults: Defaults,
  table: RouteTable,
  now: number,
  where = "outlast",
): Asked {
  const options = readOptions(body, header, now, where);
  const route = typeof body.model === "string" ? routeFor(table, body.model) : undefined;
  const { mode, preferenceApplied } = readMode(body.wait, header("prefer"), defaults);
  const held = mode.kind === "held";
  checkTimes(options, where);
  const runAt = options.run_at ?? (options.delay === undefined ? undefined : now + options.delay);
  return {
    mode,
    preferenceApplied,
    idempotencyKey: readKey(body, header),
    terms: {
      maxAttempts: options.max_attempts ?? (held ? defaults.heldMaxAttempts : defaults.maxAttempts),
      deadlineMs: options.deadline ?? (held ? defaults.heldDeadlineMs : defaults.deadlineMs),
      ownDeadline: options.deadline === undefined ? undefined : true,
      onUnknown: options.on_unknown ?? defaults.onUnknown,
      onDisconnect: options.on_disconnect ?? defaults.onDisconnect,
      held,
      upstream: options.upstream,
      stream: readStream(body, options.stream_mode),
      store: storeOf(options.store ?? route?.store ?? defaults.store),
    },
    priority: options.priority ?? defaults.priority ?? (mode.kind === "async" ? "default" : "interactive"),
    runAt: runAt !== undefined && runAt > now ? runAt : undefined,
    tags: options.tags ?? [],
    wishes: wishesOf(options, route, defaults),
    validatesItself: Boolean(options.validate),
  };
}

/**
 * What another round of a request is to have otherwise, and how its answer is to be validated.
 * @param isOne of one request; of many, there is no `validate`
 * @param now epoch ms
 * @throws AppError `invalid_parameter`, `upstream_not_found`
 */
export function readChange(
  value: unknown,
  isOne: boolean,
  table: RouteTable,
  now: number,
): { change: RetryChange; validate?: ValidateWish | false } {
  const schema = isOne ? roundSchema : roundsSchema;
  const { validate, ...asked } = parseOptions(value ?? undefined, "options", now, schema) as Options;
  checkTimes(asked, "options");
  if (asked.upstream !== undefined && !table.upstreams.some(({ name }) => name === asked.upstream)) {
    throw new AppError("upstream_not_found", "There is no such upstream.", { param: "options.upstream" });
  }
  const terms: Partial<Terms> = {
    ...(asked.max_attempts !== undefined && { maxAttempts: asked.max_attempts }),
    ...(asked.deadline !== undefined && { deadlineMs: asked.deadline, ownDeadline: true }),
    ...(asked.on_unknown !== undefined && { onUnknown: asked.on_unknown }),
    ...(asked.upstream !== undefined && { upstream: asked.upstream }),
  };
  return { change: { terms, priority: asked.priority, runAt: asked.run_at, delayMs: asked.delay }, validate };
}

function checkTimes({ run_at, delay }: Pick<Options, "run_at" | "delay">, where: string): void {
  if (run_at === undefined || delay === undefined) return;
  throw invalid(`${where}.delay`, "cannot be combined with `run_at`: give one of the two");
}

/** The last attempt's is what is kept where nobody says anything else. */
const storeOf = (store: Options["store"]) => (store === "last" ? undefined : store);

/** How a stream is told says nothing about a plain answer: the option may stand in a header that every call has. */
export function readStream(
  body: Record<string, unknown>,
  mode: StreamTerms["mode"] = "live",
): StreamTerms | undefined {
  const wanted: unknown = body.stream_options ?? {};
  if (typeof wanted !== "object" || Array.isArray(wanted))
    throw invalid("stream_options", "must be an object");
  if (body.stream !== true) return undefined;
  const usage = "include_usage" in wanted! && wanted.include_usage === true;
  return { mode, usage };
}

function readOptions(body: Record<string, unknown>, header: HeaderOf, now: number, where: string): Options {
  const text = header("outlast-options");
  const fromHeader = text === undefined ? {} : parseOptions(parseJson(text), "Outlast-Options", now);
  const fromBody = parseOptions(body.outlast ?? undefined, where, now);
  return { ...fromHeader, ...fromBody };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw invalid("Outlast-Options", "must be a JSON object");
  }
}

function parseOptions(
  value: unknown,
  where: string,
  now: number,
  schema: z.ZodObject = optionsSchema,
): Options {
  // Most calls say nothing.
  if (value === undefined) return {};
  const parsed = schema.safeParse(value) as z.ZodSafeParseResult<Options>;
  if (parsed.success) {
    if ((parsed.data.run_at ?? 0) > now + yearMs) throw invalid(`${where}.run_at`, meaning.run_at);
    return parsed.data;
  }
  const issue = parsed.error.issues[0]!;
  // One in an option is told of with that option.
  if (issue.code === "unrecognized_keys" && issue.path.length === 0) {
    const allowed = Object.keys(schema.shape).join(", ");
    throw invalid(`${where}.${issue.keys[0]}`, `is not an option. Allowed: ${allowed}`);
  }
  const name = issue.path[0] as keyof Options | undefined;
  const what = name === undefined ? "must be a JSON object" : meaning[name];
  throw invalid([where, ...issue.path].join("."), what);
}

function readMode(
  wait: unknown,
  prefer: string | undefined,
  defaults: Defaults,
): { mode: Mode; preferenceApplied?: string } {
  if (wait !== undefined && wait !== null) {
    const parsed = waitSchema.safeParse(wait);
    if (!parsed.success) throw invalid("wait", "must be true, false or a number of seconds (0 to 86400)");
    return { mode: modeOf(parsed.data, defaults) };
  }
  const preferred = readPrefer(prefer);
  if (preferred === undefined)
    return { mode: defaults.wait === undefined ? { kind: "held" } : modeOf(defaults.wait, defaults) };
  const { seconds, async } = preferred;
  const mode = modeOf(seconds ?? false, defaults);
  const waited = mode.kind === "wait" ? Math.floor(mode.ms / 1000) : seconds;
  const applied = [async ? "respond-async" : undefined, waited === undefined ? undefined : `wait=${waited}`];
  return { mode, preferenceApplied: applied.filter(Boolean).join(", ") };
}

/** A wait is never longer than a silent connection is kept: the answer after that is the async object. */
function modeOf(wait: boolean | number, defaults: Defaults): Mode {
  if (wait === false || wait === 0) return { kind: "async" };
  const ms = wait === true ? defaults.waitTimeoutMs : wait * 1000;
  return { kind: "wait", ms: Math.min(ms, defaults.holdTimeoutMs) };
}

/** RFC 7240: `wait=N`, `respond-async`, or both (wait, then answer at once). Preferences unknown to us are ignored. */
export function readPrefer(prefer: string | undefined): { seconds?: number; async: boolean } | undefined {
  if (prefer === undefined) return undefined;
  const wanted = prefer.split(/[,;]/).map((one) => one.trim().toLowerCase());
  const async = wanted.includes("respond-async");
  for (const one of wanted) {
    const seconds = /^wait *= *"?(\d+)"?$/.exec(one)?.[1];
    if (seconds !== undefined) return { seconds: Number(seconds), async };
  }
  return async ? { async } : undefined;
}

/** @throws AppError `invalid_idempotency_key` */
export function readKey(body: Record<string, unknown>, header: HeaderOf): string | undefined {
  const fromHeader = unquoted(header("idempotency-key"));
  const fromBody = body.idempotency_key ?? undefined;
  if (fromBody !== undefined && typeof fromBody !== "string") {
    throw new AppError("invalid_idempotency_key", "`idempotency_key` must be a string.", {
      param: "idempotency_key",
    });
  }
  if (fromBody !== undefined && fromHeader !== undefined && fromBody !== fromHeader) {
    const message = "`idempotency_key` and the header `Idempotency-Key` differ: give one of the two.";
    throw new AppError("invalid_idempotency_key", message, { param: "idempotency_key" });
  }
  const key = fromBody ?? fromHeader;
  if (key === undefined || /^[\x21-\x7e]{1,255}$/.test(key)) return key;
  const message = "An idempotency key has 1 to 255 visible ASCII characters.";
  throw new AppError("invalid_idempotency_key", message, { param: "idempotency_key" });
}

/** The IETF draft has the key in quotes, most clients send it bare: both mean the same. */
function unquoted(key: string | undefined): string | undefined {
  const trimmed = key?.trim();
  return trimmed && /^".*"$/.test(trimmed) && trimmed.length >= 2 ? trimmed.slice(1, -1) : trimmed;
}

export const invalid = (param: string, what: string): AppError =>
  new AppError("invalid_parameter", `\`${param}\`: ${what}.`, { param });
