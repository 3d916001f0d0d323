import { isIPv6 } from "node:net";
import { z } from "zod";
import { parseDuration } from "../core/duration.ts";
import { probePatienceMs } from "../core/gate.ts";
import { perConnection } from "../core/headers.ts";
import {
  choice,
  dayMs,
  duration,
  field,
  list,
  named,
  secret,
  size,
  table,
  text,
  wholeNumber,
  yesOrNo,
} from "./field.ts";
import { breaker, limitGroups, plainName, prices, retryBudget, upstreamFlow } from "./flow.ts";
import { retention } from "./retention.ts";
import { failoverAfter, kept, route } from "./route.ts";
import { wishes } from "./wishes.ts";

/* The configuration as it is written: its keys, what each may say, its defaults. */

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

const apiKey = table({
  key: secret("at least 8 visible ASCII characters", /^[\x21-\x7e]{8,}$/),
  project: text("1 to 64 letters, digits, dots, - or _", /^[\w.-]{1,64}$/).prefault("default"),
  role: choice("user", "operator").prefault("user"),
});

const upstream = table({
  base_url: baseUrl,
  api_key: secret("visible ASCII characters without spaces", /^[\x21-\x7e]+$/).optional(),
  models: list(text('the name of a model, or a glob such as "gpt-*"')).prefault([]),
  ...upstreamFlow,
  stream_usage: yesOrNo.prefault(true),
  headers: named(
    "a header's name, but not one that belongs to the connection",
    new RegExp(`^(?!(${[...perConnection].join("|")})$)[!#$%&'*+.^_\`|~0-9a-z-]+$`, "i"),
    secret("a header's value: text on one line", /^[\t\x20-\x7e\x80-\xff]*$/),
  ).prefault({}),
});

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
  prices_file: text("the path of a file").optional(),
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
    failover_after: failoverAfter.prefault("1s"),
    store: kept,
    ...wishes,
  }).prefault({}),
  retention,
  search: table({ enabled: yesOrNo.prefault(true) }).prefault({}),
  retry: table({
    held_backoff_base: duration().prefault("250ms"),
    held_backoff_max: duration().prefault("8s"),
    backoff_base: duration().prefault("1s"),
    backoff_max: duration().prefault("10m"),
    lane_backoff_base: duration().prefault("1s"),
    lane_backoff_max: duration().prefault("60s"),
    unreachable_after: duration().prefault("30s"),
    ...retryBudget,
  }).prefault({}),
  breaker,
  limits: table({
    max_queued: wholeNumber(1, 1_000_000_000).prefault(1_000_000),
    max_held: wholeNumber(1, 1_000_000).prefault(10_000),
    max_body_memory: size(1).optional(),
  }).prefault({}),
  timeouts: table({
    connect: duration(1, probePatienceMs).prefault("5s"),
    // The defaults of these are the profile's.
    attempt: duration().optional(),
    first_token: duration().optional(),
    idle: duration().optional(),
  }).prefault({}),
  stream: table({ heartbeat: duration().prefault("20s") }).prefault({}),
  log: table({
    level: choice("fatal", "error", "warn", "info", "debug", "silent").prefault("info"),
  }).prefault({}),
  api_keys: list(apiKey).prefault([]),
  upstreams: named(plainName.expected, plainName.pattern, upstream).prefault({}),
  limit_groups: limitGroups,
  routes: named("the name of a model, or a glob", /\S/, route).prefault({}),
  prices,
});

export type ConfigFile = z.output<typeof configSchema>;

/** A key of the schema. `NAME` stands for a name that the user chooses; lists of tables have no segment of their own. */
export interface SchemaKey {
  path: string[];
  kind: "scalar" | "list" | "table";
}

/**
 * All keys that the file may have, in the schema's order, tables left out unless their keys are free values or they may
 * be `true` or `false` instead.
 */
export function schemaKeys(schema: z.core.$ZodType = configSchema, path: string[] = []): SchemaKey[] {
  const inner = unwrap(schema);
  if (inner instanceof z.ZodUnion) return inner.options.flatMap((option) => schemaKeys(option, path));
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
    if (schema instanceof z.ZodUnion)
      schema = option(schema, typeof segment === "number" ? z.ZodArray : z.ZodObject);
    if (schema instanceof z.ZodObject) schema = unwrap(schema.shape[segment as string]);
    else if (schema instanceof z.ZodArray) schema = unwrap(schema.element);
    else if (schema instanceof z.ZodRecord) schema = unwrap(schema.valueType);
  }
  if (schema instanceof z.ZodUnion) schema = option(schema, z.ZodObject);
  return schema instanceof z.ZodObject ? Object.keys(schema.shape) : [];
}

/** The form of this kind, of a key that has several. */
function option(union: z.ZodUnion, kind: typeof z.ZodArray | typeof z.ZodObject): z.core.$ZodType {
  return union.options.map(unwrap).find((schema) => schema instanceof kind) ?? union;
}

/** What is left without defaults, optionality and conversions of the input. */
function unwrap(schema: z.core.$ZodType): z.core.$ZodType {
  if (schema instanceof z.ZodOptional || schema instanceof z.ZodPrefault) return unwrap(schema.def.innerType);
  return schema instanceof z.ZodPipe ? unwrap(schema.def.out) : schema;
}
