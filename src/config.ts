import { isIPv4, isIPv6 } from "node:net";
import { join } from "node:path";
import { stringify } from "smol-toml";
import type { core } from "zod";
import { allowedKeys, type ConfigFile, configSchema, schemaKeys } from "./config/schema.ts";
import { formatSize } from "./config/size.ts";
import {
  ConfigError,
  type Draft,
  type Environment,
  gather,
  isTable,
  pathText,
  report,
} from "./config/source.ts";
import { didYouMean } from "./config/suggestion.ts";
import { formatDuration } from "./core/duration.ts";

export { ConfigError } from "./config/source.ts";

/** Everything that can be set, checked and complete. Deeply frozen; config.example.toml says what each value is for. */
export interface Config {
  /** where to listen */
  host: string;
  /** 0 = the system picks one */
  port: number;
  dataDir: string;
  /** further Host names that are accepted on loopback without API keys, in lower case */
  allowedHosts: string[];
  maxBodyBytes: number;
  holdTimeoutMs: number;
  /** How long the request of a caller who went away can be adopted; 0 = not at all. */
  adoptWindowMs: number;
  /** How long a failure in vain is echoed; 0 = not at all. */
  failureEchoMs: number;
  drainTimeoutMs: number;
  drainDelayMs: number;
  keepAliveTimeoutMs: number;
  passthrough: "inference" | "all" | "off";
  /** The defaults of some keys; what they are in the end stands with them. */
  profile: Profile;
  store: {
    /** `sqlite:<path>` */
    url: string;
    /** 0 = no floor */
    minFreeDiskBytes: number;
  };
  defaults: {
    /** undefined = held until the request ends; false = async; true, or a number of seconds */
    wait: boolean | number | undefined;
    waitTimeoutMs: number;
    /** for a caller that can come back */
    deadlineMs: number;
    /** for a plain held call */
    heldDeadlineMs: number;
    maxAttempts: number;
    heldMaxAttempts: number;
    onUnknown: "retry" | "fail";
    onDisconnect: "continue" | "cancel";
    /** undefined = interactive when a caller waits, else default */
    priority: "interactive" | "default" | "batch" | undefined;
  };
  retry: {
    heldBackoffBaseMs: number;
    heldBackoffMaxMs: number;
    backoffBaseMs: number;
    backoffMaxMs: number;
    laneBackoffBaseMs: number;
    laneBackoffMaxMs: number;
    unreachableAfterMs: number;
  };
  limits: { maxQueued: number; maxHeld: number; maxBodyMemoryBytes: number };
  timeouts: {
    connectMs: number;
    attemptMs: number;
    /** from the call of the upstream to the first content of a stream */
    firstTokenMs: number;
    /** between two signs of life of a stream, after its first content */
    idleMs: number;
  };
  /** How long a caller of a stream waits in silence before it is sent a comment. */
  heartbeatMs: number;
  log: { level: "fatal" | "error" | "warn" | "info" | "debug" | "silent" };
  apiKeys: ApiKeyConfig[];
  /** in order; empty if nothing names one */
  upstreams: UpstreamConfig[];
  routes: RouteConfig[];
  source: {
    /** the file that was read, as it was named */
    file?: string;
  };
}

type Profile = "default" | "interactive";

export interface ApiKeyConfig {
  key: string;
  project: string;
  role: "user" | "operator";
}

export interface UpstreamConfig {
  name: string;
  /** includes /v1 or the provider's equivalent; no trailing slash */
  baseUrl: string;
  apiKey?: string;
  /** names or globs; [] = lists none */
  models: string[];
  maxConcurrency: number;
  /** Whether it is asked for the usage of streams. */
  streamUsage: boolean;
  headers: Record<string, string>;
  origin: "file" | "environment" | "demo";
}

export interface RouteConfig {
  /** a name, or a glob with * */
  model: string;
  targets: { upstream: string; model?: string }[];
}

/** The process's environment. Nothing else in the project reads it. */
export function environment(): Environment {
  return process.env;
}

/**
 * Reads the configuration: flags win over the environment, the environment over the file, the file over the defaults.
 * @param options.file the path given by --config; else OUTLAST_CONFIG, else `outlast.toml` in the working directory if there is one
 * @throws ConfigError with everything that is wrong
 */
export function loadConfig(options: {
  env: Environment;
  file?: string;
  flags?: { host?: string; port?: string };
}): Config {
  const draft = gather(options.env, options.file, { ...options.flags });
  const parsed = configSchema.safeParse(draft.values);
  for (const issue of parsed.error?.issues ?? []) reportIssue(draft, issue);
  checkRules(draft, parsed.data ?? validSections(draft));
  if (draft.problems.length > 0) throw new ConfigError(draft.problems);
  return freeze(build(parsed.data!, draft));
}

/** The effective configuration as TOML. API keys and the values of headers are masked. */
export function describeConfig(config: Config): string {
  const fromEnvironment = config.upstreams.filter((upstream) => upstream.origin === "environment");
  const notes = [
    `# file: ${config.source.file ?? "none"}`,
    ...(fromEnvironment.length > 0
      ? [`# upstreams from the environment: ${fromEnvironment.map((upstream) => upstream.name).join(", ")}`]
      : []),
  ];
  return `${notes.join("\n")}\n\n${stringify({ ...scalarsAsWritten(config), ...namesAsWritten(config) }).trim()}\n`;
}

function reportIssue(draft: Draft, issue: core.$ZodIssue): void {
  if (issue.code === "unrecognized_keys") {
    const allowed = allowedKeys(issue.path);
    for (const key of issue.keys) {
      const elsewhere = schemaKeys().find(({ path }) => path.at(-1) === key && !path.includes("NAME"));
      const moved = elsewhere && `; did you mean ${pathText(elsewhere.path)}?`;
      const hint = moved ?? didYouMean(key, allowed);
      const message = `unknown key${hint}${hint ? " Allowed" : "; allowed"} here: ${allowed.join(", ")}`;
      report(draft, [...issue.path, key], message, { hidden: true });
    }
    return;
  }
  // Only our own fields know whether a value may be shown.
  const hidden = issue.code === "custom" ? issue.params?.hidden !== false : true;
  report(draft, issue.path, issue.message, { hidden });
}

/** What can be read although another section is wrong, so that the rules between sections speak up in the same run. */
function validSections(draft: Draft): Partial<ConfigFile> {
  const sections = Object.entries(configSchema.shape).map(([key, schema]) => [
    key,
    schema.safeParse(draft.values[key]).data,
  ]);
  return Object.fromEntries(sections);
}

function checkRules(draft: Draft, file: Partial<ConfigFile>): void {
  const { host, api_keys: apiKeys, retry, routes, limits, max_body_size: maxBodySize } = file;
  if (host !== undefined && apiKeys?.length === 0 && !isLoopback(host)) {
    const why = "listening beyond this machine needs an API key, or anyone could spend your providers' money";
    const what = "set OUTLAST_API_KEYS or [[api_keys]], or listen on 127.0.0.1";
    report(draft, ["host"], `${why}; ${what}`, { hidden: false });
  }
  apiKeys?.forEach(({ key }, index) => {
    const first = apiKeys.findIndex((other) => other.key === key);
    if (first < index) {
      report(draft, ["api_keys", index, "key"], `is the same as api_keys[${first}].key`, { hidden: true });
    }
  });
  for (const kind of ["held_backoff", "backoff", "lane_backoff"] as const) {
    if (retry && retry[`${kind}_max`] < retry[`${kind}_base`]) {
      const least = `retry.${kind}_base, which is ${formatDuration(retry[`${kind}_base`])}`;
      report(draft, ["retry", `${kind}_max`], `must be at least ${least}`, { hidden: true });
    }
  }
  if (maxBodySize !== undefined && (limits?.max_body_memory ?? maxBodySize) < maxBodySize) {
    const least = `max_body_size, which is ${formatSize(maxBodySize)}`;
    report(draft, ["limits", "max_body_memory"], `must be at least ${least}`, { hidden: true });
  }
  checkNames(draft, routes ?? {});
}

/** Upstreams that are named but wrong count as known: the routes to them are fine. */
function checkNames(draft: Draft, routes: ConfigFile["routes"]): void {
  if (draft.values.upstreams !== undefined && !isTable(draft.values.upstreams)) return;
  const known = Object.keys(draft.values.upstreams ?? {});
  known.forEach((name, index) => {
    const first = known.findIndex((other) => other.toLowerCase() === name.toLowerCase());
    if (first < index) {
      const message = `the name is taken by upstreams.${known[first]}: case does not tell names apart`;
      report(draft, ["upstreams", name], message, { hidden: true });
    }
  });
  for (const [model, targets] of Object.entries(routes)) {
    targets.forEach(({ upstream }, index) => {
      if (known.includes(upstream)) return;
      const hint = didYouMean(upstream, known);
      const names = known.length > 0 ? `upstreams: ${known.join(", ")}` : "there are no upstreams";
      const message = `names an unknown upstream${hint}${hint ? " " : "; "}${names}`;
      report(draft, ["routes", model, index], message, { hidden: false });
    });
  }
}

function isLoopback(host: string): boolean {
  if (host.toLowerCase() === "localhost") return true;
  if (isIPv4(host)) return host.startsWith("127.");
  const bracketed = `http://[${host}]/`;
  return isIPv6(host) && URL.canParse(bracketed) && new URL(bracketed).hostname === "[::1]";
}

function build(file: ConfigFile, draft: Draft): Config {
  return {
    host: file.host,
    port: file.port,
    dataDir: file.data_dir,
    allowedHosts: file.allowed_hosts,
    maxBodyBytes: file.max_body_size,
    holdTimeoutMs: file.hold_timeout,
    adoptWindowMs: file.adopt_window,
    failureEchoMs: file.failure_echo,
    drainTimeoutMs: file.drain_timeout,
    drainDelayMs: file.drain_delay,
    keepAliveTimeoutMs: file.keep_alive_timeout,
    passthrough: file.passthrough,
    profile: file.profile,
    store: {
      url: file.store.url ?? `sqlite:${join(file.data_dir, "outlast.db")}`,
      minFreeDiskBytes: file.store.min_free_disk,
    },
    ...buildPolicies(file),
    timeouts: buildTimeouts(file),
    heartbeatMs: file.stream.heartbeat,
    log: { level: file.log.level },
    apiKeys: file.api_keys,
    upstreams: buildUpstreams(file, draft.environmentUpstreams),
    routes: Object.entries(file.routes).map(([model, targets]) => ({ model, targets })),
    source: { ...(draft.file !== undefined && { file: draft.file }) },
  };
}

/** Unless told otherwise. */
const bodyMemoryBytes = 256 * 1024 * 1024;

const patience: Record<Profile, { firstTokenMs: number; idleMs: number }> = {
  default: { firstTokenMs: 120_000, idleMs: 60_000 },
  interactive: { firstTokenMs: 10_000, idleMs: 10_000 },
};

function buildTimeouts({ profile, timeouts }: ConfigFile) {
  return {
    connectMs: timeouts.connect,
    attemptMs: timeouts.attempt,
    firstTokenMs: timeouts.first_token ?? patience[profile].firstTokenMs,
    idleMs: timeouts.idle ?? patience[profile].idleMs,
  };
}

function buildPolicies({ defaults, retry, limits, max_body_size: largestBodyBytes }: ConfigFile) {
  return {
    defaults: {
      wait: defaults.wait,
      waitTimeoutMs: defaults.wait_timeout,
      deadlineMs: defaults.deadline,
      heldDeadlineMs: defaults.held_deadline,
      maxAttempts: defaults.max_attempts,
      heldMaxAttempts: defaults.held_max_attempts,
      onUnknown: defaults.on_unknown,
      onDisconnect: defaults.on_disconnect,
      priority: defaults.priority,
    },
    retry: {
      heldBackoffBaseMs: retry.held_backoff_base,
      heldBackoffMaxMs: retry.held_backoff_max,
      backoffBaseMs: retry.backoff_base,
      backoffMaxMs: retry.backoff_max,
      laneBackoffBaseMs: retry.lane_backoff_base,
      laneBackoffMaxMs: retry.lane_backoff_max,
      unreachableAfterMs: retry.unreachable_after,
    },
    limits: {
      maxQueued: limits.max_queued,
      maxHeld: limits.max_held,
      maxBodyMemoryBytes: limits.max_body_memory ?? Math.max(bodyMemoryBytes, largestBodyBytes),
    },
  };
}

function buildUpstreams(file: ConfigFile, fromEnvironment: readonly string[]): UpstreamConfig[] {
  return Object.entries(file.upstreams).map(([name, upstream]) => ({
    name,
    baseUrl: upstream.base_url,
    ...(upstream.api_key !== undefined && { apiKey: upstream.api_key }),
    models: upstream.models,
    maxConcurrency: upstream.max_concurrency,
    streamUsage: upstream.stream_usage,
    headers: upstream.headers,
    origin: fromEnvironment.includes(name) ? "environment" : "file",
  }));
}

function scalarsAsWritten(config: Config) {
  const { store, timeouts, log } = config;
  return {
    host: config.host,
    port: config.port,
    data_dir: config.dataDir,
    allowed_hosts: config.allowedHosts,
    max_body_size: formatSize(config.maxBodyBytes),
    hold_timeout: formatDuration(config.holdTimeoutMs),
    adopt_window: formatDuration(config.adoptWindowMs),
    failure_echo: formatDuration(config.failureEchoMs),
    drain_timeout: formatDuration(config.drainTimeoutMs),
    drain_delay: formatDuration(config.drainDelayMs),
    keep_alive_timeout: formatDuration(config.keepAliveTimeoutMs),
    passthrough: config.passthrough,
    profile: config.profile,
    store: { url: store.url, min_free_disk: formatSize(store.minFreeDiskBytes) },
    ...policiesAsWritten(config),
    timeouts: {
      connect: formatDuration(timeouts.connectMs),
      attempt: formatDuration(timeouts.attemptMs),
      first_token: formatDuration(timeouts.firstTokenMs),
      idle: formatDuration(timeouts.idleMs),
    },
    stream: { heartbeat: formatDuration(config.heartbeatMs) },
    log: { level: log.level },
  };
}

function policiesAsWritten({ defaults, retry, limits }: Config) {
  return {
    defaults: {
      wait: defaults.wait,
      wait_timeout: formatDuration(defaults.waitTimeoutMs),
      deadline: formatDuration(defaults.deadlineMs),
      held_deadline: formatDuration(defaults.heldDeadlineMs),
      max_attempts: defaults.maxAttempts,
      held_max_attempts: defaults.heldMaxAttempts,
      on_unknown: defaults.onUnknown,
      on_disconnect: defaults.onDisconnect,
      priority: defaults.priority,
    },
    retry: {
      held_backoff_base: formatDuration(retry.heldBackoffBaseMs),
      held_backoff_max: formatDuration(retry.heldBackoffMaxMs),
      backoff_base: formatDuration(retry.backoffBaseMs),
      backoff_max: formatDuration(retry.backoffMaxMs),
      lane_backoff_base: formatDuration(retry.laneBackoffBaseMs),
      lane_backoff_max: formatDuration(retry.laneBackoffMaxMs),
      unreachable_after: formatDuration(retry.unreachableAfterMs),
    },
    limits: {
      max_queued: limits.maxQueued,
      max_held: limits.maxHeld,
      max_body_memory: formatSize(limits.maxBodyMemoryBytes),
    },
  };
}

const mask = "****";

function namesAsWritten({ apiKeys, upstreams, routes }: Config) {
  const upstreamAsWritten = (upstream: UpstreamConfig) => ({
    base_url: upstream.baseUrl,
    api_key: upstream.apiKey === undefined ? undefined : mask,
    models: upstream.models,
    max_concurrency: upstream.maxConcurrency,
    stream_usage: upstream.streamUsage,
    headers: unlessEmpty(Object.keys(upstream.headers).map((name) => [name, mask])),
  });
  return {
    api_keys: apiKeys.map(({ project, role }) => ({ key: mask, project, role })),
    upstreams: unlessEmpty(upstreams.map((upstream) => [upstream.name, upstreamAsWritten(upstream)])),
    routes: unlessEmpty(routes.map(({ model, targets }) => [model, targets])),
  };
}

function unlessEmpty(entries: [string, unknown][]) {
  return entries.length > 0 ? Object.fromEntries(entries) : undefined;
}

function freeze<T>(value: T): T {
  if (typeof value === "object" && value !== null) {
    Object.values(value).forEach(freeze);
    Object.freeze(value);
  }
  return value;
}
