import { join } from "node:path";
import { stringify } from "smol-toml";
import type { core } from "zod";
import {
  breakerAsWritten,
  buildBreaker,
  buildLimitGroups,
  buildPrices,
  buildUpstreamFlow,
  type LaneConfig,
  type LimitGroupConfig,
  limitGroupAsWritten,
  priceAsWritten,
  upstreamFlowAsWritten,
} from "./config/flow.ts";
import { buildRetention, type Retention, retentionAsWritten } from "./config/retention.ts";
import { buildRoute, routeAsWritten } from "./config/route.ts";
import { checkRules } from "./config/rules.ts";
import { allowedKeys, type ConfigFile, configSchema, schemaKeys } from "./config/schema.ts";
import { formatSize } from "./config/size.ts";
import { ConfigError, type Draft, type Environment, gather, pathText, report } from "./config/source.ts";
import { didYouMean } from "./config/suggestion.ts";
import { buildWishes, type Wishes, wishesAsWritten } from "./config/wishes.ts";
import type { BreakerSettings } from "./core/breaker.ts";
import { formatDuration } from "./core/duration.ts";
import type { PaceLimits } from "./core/pace.ts";
import type { Price } from "./core/price.ts";
import type { Route } from "./core/routing.ts";

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
    /** How long a lane may hold a request that somebody waits for, before another target has it. */
    failoverAfterMs: number;
    /** What is kept of the calls of a request; undefined = the prompt and the last answer. */
    store?: "all" | "none";
  } & Wishes;
  retention: Retention;
  /** Whether prompts and answers can be searched. */
  search: boolean;
  retry: {
    heldBackoffBaseMs: number;
    heldBackoffMaxMs: number;
    backoffBaseMs: number;
    backoffMaxMs: number;
    laneBackoffBaseMs: number;
    laneBackoffMaxMs: number;
    unreachableAfterMs: number;
    /** retries that each first attempt at an upstream adds to what it gets */
    budgetRatio: number;
    /** retries that it gets in any case */
    budgetPerSecond: number;
  };
  breaker: BreakerSettings;
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
  limitGroups: LimitGroupConfig[];
  routes: Route[];
  /** in order: those of the file, then those of its list of prices */
  prices: Price[];
  source: {
    /** the file that was read, as it was named */
    file?: string;
    /** the list of prices that was read */
    pricesFile?: string;
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
  /** what overload lowers it to */
  minConcurrency: number;
  maxConcurrency: number;
  limits: PaceLimits;
  limitGroup?: string;
  /** in order */
  lanes: LaneConfig[];
  /** Whether it is asked for the usage of streams. */
  streamUsage: boolean;
  headers: Record<string, string>;
  origin: "file" | "environment" | "demo";
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
    ...(config.source.pricesFile === undefined ? [] : [`# list of prices: ${config.source.pricesFile}`]),
    ...(fromEnvironment.length > 0
      ? [`# upstreams from the environment: ${fromEnvironment.map((upstream) => upstream.name).join(", ")}`]
      : []),
  ];
  return `${notes.join("\n")}\n\n${stringify({ ...scalarsAsWritten(config), ...namesAsWritten(config) }).trim()}\n`;
}

function reportIssue(draft: Draft, issue: core.$ZodIssue): void {
  if (issue.code === "invalid_union") {
    const form = issue.errors.find((issues) => issues.length > 0 && !issues.some(isOtherForm));
    for (const inner of form ?? []) reportIssue(draft, { ...inner, path: [...issue.path, ...inner.path] });
    if (!form) report(draft, issue.path, issue.message, { hidden: false });
    return;
  }
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

/** Whether the value is not even of the kind that this form of its key begins with. */
function isOtherForm({ path, code }: core.$ZodIssue): boolean {
  return path.length === 0 && (code === "invalid_type" || code === "invalid_value");
}

/** What can be read although another section is wrong, so that the rules between sections speak up in the same run. */
function validSections(draft: Draft): Partial<ConfigFile> {
  const sections = Object.entries(configSchema.shape).map(([key, schema]) => [
    key,
    schema.safeParse(draft.values[key]).data,
  ]);
  return Object.fromEntries(sections);
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
    retention: buildRetention(file.retention),
    search: file.search.enabled,
    timeouts: buildTimeouts(file),
    heartbeatMs: file.stream.heartbeat,
    log: { level: file.log.level },
    apiKeys: file.api_keys,
    upstreams: buildUpstreams(file, draft.environmentUpstreams),
    limitGroups: buildLimitGroups(file.limit_groups),
    routes: Object.entries(file.routes).map(([model, route]) => buildRoute(model, route)),
    prices: buildPrices(file.prices),
    source: {
      ...(draft.file !== undefined && { file: draft.file }),
      ...(draft.pricesFile !== undefined && { pricesFile: draft.pricesFile }),
    },
  };
}

/** Unless told otherwise. */
const bodyMemoryBytes = 256 * 1024 * 1024;

const patience: Record<Profile, { attemptMs: number; firstTokenMs: number; idleMs: number }> = {
  default: { attemptMs: 600_000, firstTokenMs: 120_000, idleMs: 60_000 },
  interactive: { attemptMs: 60_000, firstTokenMs: 10_000, idleMs: 10_000 },
};

function buildTimeouts({ profile, timeouts }: ConfigFile) {
  return {
    connectMs: timeouts.connect,
    attemptMs: timeouts.attempt ?? patience[profile].attemptMs,
    firstTokenMs: timeouts.first_token ?? patience[profile].firstTokenMs,
    idleMs: timeouts.idle ?? patience[profile].idleMs,
  };
}

function buildPolicies({ defaults, retry, breaker, limits, max_body_size: largestBodyBytes }: ConfigFile) {
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
      failoverAfterMs: defaults.failover_after,
      ...(defaults.store !== undefined && defaults.store !== "last" && { store: defaults.store }),
      ...buildWishes(defaults),
    },
    retry: {
      heldBackoffBaseMs: retry.held_backoff_base,
      heldBackoffMaxMs: retry.held_backoff_max,
      backoffBaseMs: retry.backoff_base,
      backoffMaxMs: retry.backoff_max,
      laneBackoffBaseMs: retry.lane_backoff_base,
      laneBackoffMaxMs: retry.lane_backoff_max,
      unreachableAfterMs: retry.unreachable_after,
      budgetRatio: retry.budget_ratio,
      budgetPerSecond: retry.budget_per_second,
    },
    breaker: buildBreaker(breaker),
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
    ...buildUpstreamFlow(upstream),
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
    retention: retentionAsWritten(config.retention),
    search: { enabled: config.search },
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

function policiesAsWritten({ defaults, retry, breaker, limits }: Config) {
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
      failover_after: formatDuration(defaults.failoverAfterMs),
      store: defaults.store,
      ...wishesAsWritten(defaults),
    },
    retry: {
      held_backoff_base: formatDuration(retry.heldBackoffBaseMs),
      held_backoff_max: formatDuration(retry.heldBackoffMaxMs),
      backoff_base: formatDuration(retry.backoffBaseMs),
      backoff_max: formatDuration(retry.backoffMaxMs),
      lane_backoff_base: formatDuration(retry.laneBackoffBaseMs),
      lane_backoff_max: formatDuration(retry.laneBackoffMaxMs),
      unreachable_after: formatDuration(retry.unreachableAfterMs),
      budget_ratio: retry.budgetRatio,
      budget_per_second: retry.budgetPerSecond,
    },
    breaker: breakerAsWritten(breaker),
    limits: {
      max_queued: limits.maxQueued,
      max_held: limits.maxHeld,
      max_body_memory: formatSize(limits.maxBodyMemoryBytes),
    },
  };
}

const mask = "****";

function namesAsWritten({ apiKeys, upstreams, limitGroups, routes, prices }: Config) {
  const upstreamAsWritten = (upstream: UpstreamConfig) => ({
    base_url: upstream.baseUrl,
    api_key: upstream.apiKey === undefined ? undefined : mask,
    models: upstream.models,
    ...upstreamFlowAsWritten(upstream),
    stream_usage: upstream.streamUsage,
    headers: unlessEmpty(Object.keys(upstream.headers).map((name) => [name, mask])),
  });
  return {
    api_keys: apiKeys.map(({ project, role }) => ({ key: mask, project, role })),
    upstreams: unlessEmpty(upstreams.map((upstream) => [upstream.name, upstreamAsWritten(upstream)])),
    limit_groups: unlessEmpty(limitGroups.map(limitGroupAsWritten)),
    routes: unlessEmpty(routes.map((route) => [route.model, routeAsWritten(route)])),
    prices: unlessEmpty(prices.map(priceAsWritten)),
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
