import { isIPv6 } from "node:net";
import { z } from "zod";
import { formatDuration, parseDuration } from "../core/duration.ts";
import { probePatienceMs } from "../core/gate.ts";
import { perConnection } from "../core/headers.ts";
import { parseSize } from "./size.ts";

/*
 * The configuration as it is written: its keys, what each may say, its defaults. Every scalar may also be given as
 * text, because environment variables and `${NAME}` only give text.
 */

/** What a schema says about a refused value beside its message. */
export interface RefusalNotes {
  /** the value must not be shown: it may be a secret, or the message already says enough */
  hidden: boolean;
}

type Refuse = (why: string) => undefined;

/** @param read gives undefined for a value that it cannot read; `refuse` says why in other words than `expected` */
function field<T>(expected: string, read: (value: unknown, refuse: Refuse) => T | undefined, secret = false) {
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

function text(expected = "text that is not empty", pattern = /\S/) {
  return field(expected, (value) => (typeof value === "string" && pattern.test(value) ? value : undefined));
}

/** Text that is never shown. */
function secret(expected: string, pattern: RegExp) {
  const read = (value: unknown) => (typeof value === "string" && pattern.test(value) ? value : undefined);
  return field(expected, read, true);
}

function choice<const T extends string>(...choices: T[]) {
  const expected = `one of ${choices.map((name) => `"${name}"`).join(", ")}`;
  return field(expected, (value) => choices.find((name) => name === value));
}

function wholeNumber(min: number, max: number) {
  return field(`a whole number from ${min} to ${max}`, (value) => {
    const number = typeof value === "string" && /^\d+$/.test(value) ? Number(value) : value;
    if (typeof number !== "number" || !Number.isInteger(number)) return undefined;
    return number >= min && number <= max ? number : undefined;
  });
}

const dayMs = 86_400_000;
/** Node's timers wrap around after 24.8 days. */
const timerMaxMs = 24 * dayMs;

/** Gives milliseconds. */
function duration(minMs = 1, maxMs = timerMaxMs) {
  const range = `${minMs > 0 ? "longer than 0 and " : ""}at most ${formatDuration(maxMs)}`;
  return field(`a number of seconds or a time such as "250ms", "10s", "5m", "24h", ${range}`, (value) => {
    const ms = typeof value === "string" || typeof value === "number" ? parseDuration(value) : undefined;
    return ms !== undefined && ms >= minMs && ms <= maxMs ? ms : undefined;
  });
}

/** Gives bytes. */
function size(min: number) {
  return field(`a number of bytes${min > 0 ? " above 0" : ""} or a size such as "32MB", "1GB"`, (value) => {
    const bytes = typeof value === "string" || typeof value === "number" ? parseSize(value) : undefined;
    return bytes !== undefined && bytes >= min ? bytes : undefined;
  });
}

const yesOrNo = field("true or false", (value) => {
  if (value === true || value === "true") return true;
  return value === false || value === "false" ? false : undefined;
});

/** A base URL comes without a trailing slash. */
const baseUrl = field("an http(s) URL", (value, refuse) => {
  if (typeof value !== "string") return undefined;
  // What looks like a password is not shown, even if the rest makes no sense.
  if (!URL.canParse(value)) return value.includes("@") ? refuse("must be an http(s) URL") : undefined;
  const url = new URL(value);
  if (url.protocol !== "http:" && url.protocol !== "https:") return undefined;
  if (url.username || url.password) {
    return refuse("must be an http(s) URL without a user name or a password: use api_key or headers");
  }
  if (url.search || url.hash) return refuse('must be an http(s) URL without "?" and "#"');
  return url.origin + url.pathname.replace(/\/+$/, "");
});

/** A store comes as `sqlite:<path>`. */
const storeUrl = field('"sqlite:<path>" or the path of a file', (value, refuse) => {
  if (typeof value !== "string") return undefined;
  const scheme = /^([a-z][a-z0-9+.-]+):/i.exec(value)?.[1]?.toLowerCase();
  if (scheme === "postgres" || scheme === "postgresql") {
    return refuse('a Postgres store is not supported yet in this version; use "sqlite:<path>"');
  }
  if (scheme !== undefined && scheme !== "sqlite") {
    return refuse('names a kind of store that this version does not know; use "sqlite:<path>"');
  }
  const path = scheme === undefined ? value : value.slice("sqlite:".length).replace(/^\/\/\/+/, "/");
  if (path.startsWith("//")) return refuse('must be "sqlite:<path>", without "//" before a relative path');
  if (path.startsWith(":memory:")) return refuse("must be a file: a store in memory would lose its requests");
  return path.trim() === "" ? undefined : `sqlite:${path}`;
});

const host = field("a host name or an IP address to listen on", (value) => {
  if (typeof value !== "string") return undefined;
  const bare = value.replace(/^\[(.*)\]$/, "$1");
  return isIPv6(bare) || /^[a-z0-9._-]+$/i.test(bare) ? bare : undefined;
});

const hostName = field("a host name without scheme and port", (value) =>
  typeof value === "string" && /^(\[[0-9a-f:.]+\]|[a-z0-9._-]+)$/i.test(value)
    ? value.toLowerCase()
    : undefined,
);

const waitMaxSeconds = 3_600;
const wait = field(`true, false or a number of seconds from 0 to ${waitMaxSeconds}`, (value) => {
  if (value === true || value === "true") return true;
  if (value === false || value === "false") return false;
  const ms = typeof value === "string" || typeof value === "number" ? parseDuration(value) : undefined;
  return ms !== undefined && ms <= waitMaxSeconds * 1_000 ? ms / 1_000 : undefined;
});

const tableProblem = (issue: { code?: string }) =>
  issue.code === "invalid_type" ? "must be a table" : undefined;

function table<S extends z.ZodRawShape>(shape: S) {
  return z.strictObject(shape, { error: tableProblem });
}

/** A table whose keys the user chooses. */
function named<V extends z.ZodType>(keyExpected: string, keyPattern: RegExp, value: V) {
  const key = z.string().regex(keyPattern);
  const error = (issue: { code?: string }) =>
    issue.code === "invalid_key" ? `the name must be ${keyExpected}` : tableProblem(issue);
  return z.record(key, value, { error });
}

function list<V extends z.ZodType>(item: V) {
  return z.array(item, { error: "must be a list" });
}

const apiKey = table({
  key: secret("at least 8 visible ASCII characters", /^[\x21-\x7e]{8,}$/),
  project: text("1 to 64 letters, digits, dots, - or _", /^[\w.-]{1,64}$/).prefault("default"),
  role: choice("user", "operator").prefault("user"),
});

const upstream = table({
  base_url: baseUrl,
  api_key: secret("visible ASCII characters without spaces", /^[\x21-\x7e]+$/).optional(),
  models: list(text('the name of a model, or a glob such as "gpt-*"')).prefault([]),
  max_concurrency: wholeNumber(1, 100_000).prefault(256),
  stream_usage: yesOrNo.prefault(true),
  headers: named(
    "a header's name, but not one that belongs to the connection",
    new RegExp(`^(?!(${[...perConnection].join("|")})$)[!#$%&'*+.^_\`|~0-9a-z-]+$`, "i"),
    secret("a header's value: text on one line", /^[\t\x20-\x7e\x80-\xff]*$/),
  ).prefault({}),
});

/** A target is a table, or short: "upstream" or "upstream/model", split at the first slash. */
const target = z.preprocess(
  (value) => {
    if (typeof value !== "string") return value;
    const slash = value.indexOf("/");
    return slash < 0
      ? { upstream: value }
      : { upstream: value.slice(0, slash), model: value.slice(slash + 1) };
  },
  table({ upstream: text(), model: text().optional() }),
);

/** The whole file. Its output has the file's names, with durations in milliseconds and sizes in bytes. */
export const configSchema = table({
  host: host.prefault("127.0.0.1"),
  port: wholeNumber(0, 65_535).prefault(4080),
  data_dir: text().prefault("."),
  allowed_hosts: list(hostName).prefault([]),
  max_body_size: size(1).prefault("32MB"),
  hold_timeout: duration().prefault("280s"),
  adopt_window: duration(0).prefault("10m"),
  failure_echo: duration(0).prefault("10s"),
  drain_timeout: duration(0).prefault("30s"),
  drain_delay: duration(0).prefault("250ms"),
  keep_alive_timeout: duration().prefault("75s"),
  passthrough: choice("inference", "all", "off").prefault("all"),
  profile: choice("default", "interactive").prefault("default"),
  store: table({ url: storeUrl.optional(), min_free_disk: size(0).prefault("256MB") }).prefault({}),
  defaults: table({
    wait: wait.optional(),
    wait_timeout: duration().prefault("50s"),
    deadline: duration(1, 365 * dayMs).prefault("24h"),
    held_deadline: duration(1, 365 * dayMs).prefault("10m"),
    max_attempts: wholeNumber(1, 1_000).prefault(25),
    held_max_attempts: wholeNumber(1, 1_000).prefault(5),
    on_unknown: choice("retry", "fail").prefault("retry"),
    on_disconnect: choice("continue", "cancel").prefault("continue"),
    priority: choice("interactive", "default", "batch").optional(),
  }).prefault({}),
  retry: table({
    held_backoff_base: duration().prefault("250ms"),
    held_backoff_max: duration().prefault("8s"),
    backoff_base: duration().prefault("1s"),
    backoff_max: duration().prefault("10m"),
    lane_backoff_base: duration().prefault("1s"),
    lane_backoff_max: duration().prefault("60s"),
    unreachable_after: duration().prefault("30s"),
  }).prefault({}),
  limits: table({
    max_queued: wholeNumber(1, 1_000_000_000).prefault(1_000_000),
    max_held: wholeNumber(1, 1_000_000).prefault(10_000),
    max_body_memory: size(1).optional(),
  }).prefault({}),
  timeouts: table({
    connect: duration(1, probePatienceMs).prefault("5s"),
    attempt: duration().prefault("600s"),
    // The defaults of these are the profile's.
    first_token: duration().optional(),
    idle: duration().optional(),
  }).prefault({}),
  stream: table({ heartbeat: duration().prefault("20s") }).prefault({}),
  log: table({
    level: choice("fatal", "error", "warn", "info", "debug", "silent").prefault("info"),
  }).prefault({}),
  api_keys: list(apiKey).prefault([]),
  upstreams: named(
    "letters, digits, - or _, beginning with a letter or a digit",
    /^[a-z0-9][a-z0-9_-]*$/i,
    upstream,
  ).prefault({}),
  routes: named(
    "the name of a model, or a glob",
    /\S/,
    list(target).min(1, "must name at least one upstream"),
  ).prefault({}),
});

export type ConfigFile = z.output<typeof configSchema>;

/** A key of the schema. `NAME` stands for a name that the user chooses; lists of tables have no segment of their own. */
export interface SchemaKey {
  path: string[];
  kind: "scalar" | "list" | "table";
}

/** All keys that the file may have, in the schema's order, tables left out unless their keys are free values. */
export function schemaKeys(schema: z.core.$ZodType = configSchema, path: string[] = []): SchemaKey[] {
  const inner = unwrap(schema);
  if (inner instanceof z.ZodObject) {
    return Object.entries<z.core.$ZodType>(inner.shape).flatMap(([key, value]) =>
      schemaKeys(value, [...path, key]),
    );
  }
  if (inner instanceof z.ZodArray) {
    const keys = schemaKeys(inner.element, path);
    return keys.length === 1 && keys[0]!.path.length === path.length ? [{ path, kind: "list" }] : keys;
  }
  if (inner instanceof z.ZodRecord) {
    const keys = schemaKeys(inner.valueType, [...path, "NAME"]);
    return keys.length === 1 && keys[0]!.path.length === path.length + 1 ? [{ path, kind: "table" }] : keys;
  }
  return [{ path, kind: "scalar" }];
}

/** The keys that the table at this place of a document may have; none if there is no such table. */
export function allowedKeys(path: readonly PropertyKey[]): string[] {
  let schema = unwrap(configSchema);
  for (const segment of path) {
    if (schema instanceof z.ZodObject) schema = unwrap(schema.shape[segment as string]);
    else if (schema instanceof z.ZodArray) schema = unwrap(schema.element);
    else if (schema instanceof z.ZodRecord) schema = unwrap(schema.valueType);
  }
  return schema instanceof z.ZodObject ? Object.keys(schema.shape) : [];
}

/** What is left without defaults, optionality and conversions of the input. */
function unwrap(schema: z.core.$ZodType): z.core.$ZodType {
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodPrefault) return unwrap(schema.def.innerType);
  return schema instanceof z.ZodPipe ? unwrap(schema.def.out) : schema;
}
