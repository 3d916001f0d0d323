import { z } from "zod";
import { formatDuration, parseDuration } from "../core/duration.ts";
import { formatSize, parseSize } from "./size.ts";

/*
 * What the keys of the configuration are made of. Every scalar may also be given as text, because environment variables
 * and `${NAME}` only give text.
 */

/** What a schema says about a refused value beside its message. */
export interface RefusalNotes {
  /** the value must not be shown: it may be a secret, or the message already says enough */
  hidden: boolean;
}

type Refuse = (why: string) => undefined;

/** @param read gives undefined for a value that it cannot read; `refuse` says why in other words than `expected` */
export function field<T>(
  expected: string,
  read: (value: unknown, refuse: Refuse) => T | undefined,
  secret = false,
) {
  return z.unknown().transform((value, context): T => {
    let why: string | undefined;
    const result =
      value === undefined
        ? undefined
        : read(value, (text) => {
            why = text;
          });
    if (result !== undefined) return result;
    why ??= value === undefined ? `is missing; it must be ${expected}` : undefined;
    const notes: RefusalNotes = { hidden: secret || why !== undefined };
    context.addIssue({ code: "custom", message: why ?? `must be ${expected}`, params: { ...notes } });
    return z.NEVER;
  });
}

export function text(expected = "text that is not empty", pattern = /\S/) {
  return field(expected, (value) => (typeof value === "string" && pattern.test(value) ? value : undefined));
}

/** Text that is never shown. */
export function secret(expected: string, pattern: RegExp) {
  const read = (value: unknown) => (typeof value === "string" && pattern.test(value) ? value : undefined);
  return field(expected, read, true);
}

export function choice<const T extends string>(...choices: T[]) {
  const expected = `one of ${choices.map((name) => `"${name}"`).join(", ")}`;
  return field(expected, (value) => choices.find((name) => name === value));
}

export function wholeNumber(min: number, max: number) {
  return field(`a whole number from ${min} to ${max}`, (value) => {
    const number = typeof value === "string" && /^\d+$/.test(value) ? Number(value) : value;
    if (typeof number !== "number" || !Number.isInteger(number)) return undefined;
    return number >= min && number <= max ? number : undefined;
  });
}

/** @param expected says which numbers `fits` lets through */
export function decimal(expected: string, fits: (number: number) => boolean) {
  return field(expected, (value) => {
    const number =
      typeof value === "string" && /^\d+(\.\d+)?(e[+-]?\d+)?$/i.test(value) ? Number(value) : value;
    return typeof number === "number" && Number.isFinite(number) && fits(number) ? number : undefined;
  });
}

export const hourMs = 3_600_000;
export const dayMs = 24 * hourMs;
/** Node's timers wrap around after 24.8 days. */
const timerMaxMs = 24 * dayMs;

/** Gives milliseconds. */
export function duration(minMs = 1, maxMs = timerMaxMs) {
  const least = minMs > 1 ? `at least ${formatDuration(minMs)}` : "longer than 0";
  const range = `${minMs > 0 ? `${least} and ` : ""}at most ${formatDuration(maxMs)}`;
  return field(`a number of seconds or a time such as "250ms", "10s", "5m", "24h", ${range}`, (value) => {
    const ms = typeof value === "string" || typeof value === "number" ? parseDuration(value) : undefined;
    return ms !== undefined && ms >= minMs && ms <= maxMs ? ms : undefined;
  });
}

/** Gives bytes. */
export function size(min: number) {
  const least = min > 1 ? `, ${formatSize(min)} at least` : "";
  const range = min === 1 ? " above 0" : "";
  return field(`a number of bytes${range} or a size such as "32MB", "1GB"${least}`, (value) => {
    const bytes = typeof value === "string" || typeof value === "number" ? parseSize(value) : undefined;
    return bytes !== undefined && bytes >= min ? bytes : undefined;
  });
}

export const yesOrNo = field("true or false", (value) => {
  if (value === true || value === "true") return true;
  return value === false || value === "false" ? false : undefined;
});

export function isTable(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date);
}

export const tableProblem = (issue: { code?: string }) =>
  issue.code === "invalid_type" ? "must be a table" : undefined;

export function table<S extends z.ZodRawShape>(shape: S) {
  return z.strictObject(shape, { error: tableProblem });
}

/** A table whose keys the user chooses. */
export function named<V extends z.ZodType>(keyExpected: string, keyPattern: RegExp, value: V) {
  const key = z.string().regex(keyPattern);
  const error = (issue: { code?: string }) =>
    issue.code === "invalid_key" ? `the name must be ${keyExpected}` : tableProblem(issue);
  return z.record(key, value, { error });
}

export function list<V extends z.ZodType>(item: V) {
  return z.array(item, { error: "must be a list" });
}

/** A table, or one of `switches` in its place; an environment variable gives these as text. */
export function switchable<S extends boolean, T extends z.ZodType>(
  switches: readonly S[],
  inner: T,
  expected: string,
) {
  const written = [...switches, ...switches.map(String)];
  const onOff = z.literal(written).transform((value) => (value === true || value === "true") as S);
  return z.union([onOff, inner], { error: `must be ${expected}` });
}
