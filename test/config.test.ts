import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { parse, stringify } from "smol-toml";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { providers } from "../src/config/providers.ts";
import { schemaKeys } from "../src/config/schema.ts";
import { formatSize, parseSize } from "../src/config/size.ts";
import { variableName } from "../src/config/source.ts";
import { nearest } from "../src/config/suggestion.ts";
import { wishes } from "../src/config/wishes.ts";
import {
  type Config,
  ConfigError,
  describeConfig,
  environment,
  loadConfig,
  type UpstreamConfig,
} from "../src/config.ts";
import { formatDuration, parseDuration } from "../src/core/duration.ts";
import { costOf } from "../src/core/price.ts";
import { validateAll } from "../src/core/wishes.ts";

const examplePath = new URL("../config.example.toml", import.meta.url).pathname;
const startDirectory = process.cwd();
let directory: string;
let fileCount = 0;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "outlast-config-"));
  process.chdir(directory);
});

afterAll(() => {
  process.chdir(startDirectory);
  rmSync(directory, { recursive: true });
});

type Env = Record<string, string | undefined>;

function written(toml: string): string {
  const path = join(directory, `${++fileCount}.toml`);
  writeFileSync(path, toml);
  return path;
}

function load(toml: string, env: Env = {}, flags: { host?: string; port?: string } = {}): Config {
  return loadConfig({ env, file: written(toml), flags });
}

function problemsOf(action: () => unknown): readonly string[] {
  try {
    action();
  } catch (error) {
    if (error instanceof ConfigError) return error.problems;
    throw error;
  }
  throw new Error("expected a ConfigError");
}

/** The one problem of a configuration. */
function problem(toml: string, env: Env = {}, flags = {}): string {
  const problems = problemsOf(() => load(toml, env, flags));
  expect(problems).toHaveLength(1);
  return problems[0]!;
}

const upstream = (name: string, more = "") =>
  `[upstreams.${name}]\nbase_url = "http://${name}/v1"\n${more}\n`;

/** Each key of it that an upstream called "a" can have beside it, none with its default. */
const everythingOfFlow = `
  lanes = { "m-*" = { requests_per_minute = 7 }, "m-1" = { tokens_per_minute = 8, max_concurrency = 9 }, idle = {} }
  requests_per_minute = 100
  tokens_per_minute = 20000
  min_concurrency = 2
  max_concurrency = 32
  limit_group = "account"
  [limit_groups.account]
  requests_per_minute = 1000
  [limit_groups.other]
  tokens_per_minute = 1000000000000
  [breaker]
  enabled = false
  consecutive_failures = 5
  failure_rate = 1
  min_calls = 5
  window = 90
  cooldown = "45s"
  cooldown_max = "45s"
  [retry]
  budget_ratio = 0
  budget_per_second = 0.5
  [defaults]
  failover_after = 0
  store = "all"
  cache = { ttl = "90m" }
  on_failure = { stale = "7d", answer = { id = "x", choices = [{ index = 0, message = { content = "hi", n = 1e-7 } }] } }
  [defaults.validate]
  json = false
  refusal = false
  max_retries = 0
  feedback = true
  [defaults.validate.schema]
  type = ["object", "null"]
  "$defs" = { "a b" = { enum = [1, 2.5, "three", [], {}, true] } }
  required = []
  [routes]
  short = ["a/x", { upstream = "a", model = "y", weight = 0, larger_context = true }]
  bare = { targets = ["a"], store = "last" }
  off = { targets = ["a"], validate = false, cache = false, on_failure = false }
  [routes."long-*"]
  targets = [{ upstream = "a", weight = 3 }, { upstream = "a", model = "z", larger_context = false }]
  failover_after = "2500ms"
  validate = true
  cache = { ttl = 0.5 }
  on_failure = { answer = "Sorry.\\n\\"Later\\"." }
  [prices]
  "a/m-1" = { input = 2.5, output = 10 }
  "m-*" = { input = 0, output = 0.075, cached_input = 1e-7 }
  [retention]
  completed = "30d"
  failed = 3600
  cancelled = "36500d"
  bodies = "12h"
  max_size = "64MB"
  [search]
  enabled = false
`;

describe("without any configuration", () => {
  it("everything has its documented default", () => {
    expect(loadConfig({ env: {}, flags: {} })).toEqual({
      host: "127.0.0.1",
      port: 4080,
      dataDir: ".",
      allowedHosts: [],
      maxBodyBytes: 32 * 1024 * 1024,
      holdTimeoutMs: 280_000,
      adoptWindowMs: 600_000,
      failureEchoMs: 10_000,
      drainTimeoutMs: 30_000,
      drainDelayMs: 250,
      keepAliveTimeoutMs: 75_000,
      passthrough: "all",
      profile: "default",
      store: { url: "sqlite:outlast.db", minFreeDiskBytes: 256 * 1024 * 1024 },
      defaults: {
        wait: undefined,
        waitTimeoutMs: 50_000,
        deadlineMs: 86_400_000,
        heldDeadlineMs: 600_000,
        maxAttempts: 25,
        heldMaxAttempts: 5,
        onUnknown: "retry",
        onDisconnect: "continue",
        priority: undefined,
        failoverAfterMs: 1_000,
      },
      retention: {},
      search: true,
      retry: {
        heldBackoffBaseMs: 250,
        heldBackoffMaxMs: 8_000,
        backoffBaseMs: 1_000,
        backoffMaxMs: 600_000,
        laneBackoffBaseMs: 1_000,
        laneBackoffMaxMs: 60_000,
        unreachableAfterMs: 30_000,
        budgetRatio: 0.2,
        budgetPerSecond: 2,
      },
      breaker: {
        enabled: true,
        consecutiveFailures: 3,
        failureRate: 0.5,
        minCalls: 10,
        windowMs: 60_000,
        cooldownMs: 20_000,
        maxCooldownMs: 60_000,
      },
      limits: { maxQueued: 1_000_000, maxHeld: 10_000, maxBodyMemoryBytes: 256 * 1024 * 1024 },
      timeouts: { connectMs: 5_000, attemptMs: 600_000, firstTokenMs: 120_000, idleMs: 60_000 },
      heartbeatMs: 20_000,
      log: { level: "info" },
      apiKeys: [],
      upstreams: [],
      limitGroups: [],
      routes: [],
      prices: [],
      source: {},
    });
  });

  it("the whole configuration is frozen", () => {
    const config = load(`${upstream("a", 'models = ["m"]\nheaders = { x = "y" }')}${everythingOfFlow}`, {
      OUTLAST_API_KEYS: "12345678",
    });
    const open: string[] = [];
    const visit = (value: unknown, path: string) => {
      if (typeof value !== "object" || value === null) return;
      if (!Object.isFrozen(value)) open.push(path);
      for (const [key, item] of Object.entries(value)) visit(item, `${path}.${key}`);
    };
    visit(config, "config");
    expect(open).toEqual([]);
    expect(() => {
      config.upstreams[0]!.models.push("n");
    }).toThrow(TypeError);
  });

  it("environment() is the process's environment", () => {
    expect(environment()).toBe(process.env);
  });
});

describe("the example file", () => {
  const text = readFileSync(examplePath, "utf8");
  // A comment without a space after the # is a key with its default.
  const uncommented = text
    .replaceAll(/^#(?=[a-z_"[])/gm, "")
    .replace('"prices.toml"', JSON.stringify(new URL("../examples/prices.toml", import.meta.url).pathname));
  const secrets = { OPENAI_API_KEY: "sk-openai", TEAM_A_KEY: "team-a-key" };

  it("is valid as it stands", () => {
    const config = loadConfig({ env: { OPENAI_API_KEY: "x" }, file: examplePath, flags: {} });
    expect(config.upstreams).toEqual([
      {
        name: "openai",
        baseUrl: "https://api.openai.com/v1",
        apiKey: "x",
        models: [],
        minConcurrency: 1,
        maxConcurrency: 256,
        limits: {},
        lanes: [],
        streamUsage: true,
        headers: {},
        origin: "file",
      },
    ]);
    expect(config.source.file).toBe(examplePath);
  });

  it("is valid with every comment sign removed", () => {
    expect(load(uncommented, secrets).apiKeys).toEqual([
      { key: "team-a-key", project: "default", role: "user" },
    ]);
  });

  it("mentions every key of the schema", () => {
    const document = parse(uncommented);
    const has = (value: unknown, [key, ...rest]: string[]): boolean => {
      if (Array.isArray(value)) return value.some((item) => has(item, [key!, ...rest]));
      if (key === undefined) return value !== undefined;
      if (typeof value !== "object" || value === null) return false;
      const entries = Object.entries(value).filter(([name]) => key === "NAME" || name === key);
      return entries.some(([, item]) => rest.length === 0 || has(item, rest));
    };
    // What answers are wished of a route has the keys that it has in [defaults].
    const repeated = ([table, , key]: string[]) => table === "routes" && key! in wishes;
    const keys = schemaKeys()
      .map(({ path }) => path)
      .filter((path) => path.length < 4 || !repeated(path));
    expect(keys.length).toBeGreaterThan(30);
    expect(keys.filter((path) => !has(document, path)).map((path) => path.join("."))).toEqual([]);
  });

  it("shows the defaults that hold", () => {
    const { source: _, ...shown } = load(uncommented, secrets);
    const { source: __, ...real } = load("", {});
    expect(shown.retention).toEqual({
      completedMs: 30 * 86_400_000,
      failedMs: 90 * 86_400_000,
      cancelledMs: 7 * 86_400_000,
      bodiesMs: 14 * 86_400_000,
      maxBytes: 10 * 1024 ** 3,
    });
    const { wait, priority, validate, cache, onFailure, ...defaults } = shown.defaults;
    expect({ wait, priority }).toEqual({ wait: true, priority: "default" });
    expect(validate).toEqual({ ...validateAll, schema: expect.anything() });
    expect([cache, onFailure]).toEqual([
      { ttlMs: 3_600_000 },
      { staleMs: 86_400_000, answer: expect.any(String) },
    ]);
    expect({ ...shown, defaults: { ...defaults, wait: undefined, priority: undefined } }).toEqual({
      ...real,
      apiKeys: shown.apiKeys,
      upstreams: shown.upstreams,
      limitGroups: shown.limitGroups,
      routes: shown.routes,
      prices: shown.prices,
      retention: shown.retention,
    });
    const limited = { limits: {}, limitGroup: undefined, lanes: [], minConcurrency: 1, maxConcurrency: 256 };
    const [{ origin: _origin, ...bare }] = load(upstream("openai")).upstreams as [UpstreamConfig];
    expect({ ...shown.upstreams[0], ...limited }).toEqual({
      ...bare,
      baseUrl: "https://api.openai.com/v1",
      apiKey: "sk-openai",
      origin: "file",
    });
    expect(shown.upstreams[0]).toMatchObject({ minConcurrency: 1, maxConcurrency: 256 });
  });

  it("explains each key in a comment above it, or above the group it stands in", () => {
    const groups = text.split(/\n\s*\n/).filter((group) => /^#?[a-z_"]+ = /m.test(group));
    expect(groups.length).toBeGreaterThan(30);
    expect(groups.filter((group) => !/^# /m.test(group) && !group.startsWith("[routes]"))).toEqual([]);
  });

  it("names the variable of every known provider", () => {
    for (const { keyVariable } of providers) expect(text).toContain(keyVariable);
    expect(text).toContain("OLLAMA_HOST");
    expect(text).toContain("OPENAI_BASE_URL");
  });
});

describe("precedence", () => {
  it("a flag beats the environment, which beats the file, which beats the default", () => {
    const file = "port = 1001";
    const env = { OUTLAST_PORT: "1002" };
    expect(load("").port).toBe(4080);
    expect(load(file).port).toBe(1001);
    expect(load(file, env).port).toBe(1002);
    expect(load(file, env, { port: "1003" }).port).toBe(1003);
    expect(load(file, env, { port: undefined }).port).toBe(1002);
  });

  it("the file is the flag's, else OUTLAST_CONFIG's, else outlast.toml in the working directory", () => {
    const named = written("port = 1");
    const other = written("port = 2");
    const local = join(directory, "outlast.toml");
    writeFileSync(local, "port = 3");
    try {
      expect(loadConfig({ env: { OUTLAST_CONFIG: other }, file: named, flags: {} }).port).toBe(1);
      expect(loadConfig({ env: { OUTLAST_CONFIG: other }, flags: {} }).port).toBe(2);
      const config = loadConfig({ env: { OUTLAST_CONFIG: "" }, flags: {} });
      expect(config).toMatchObject({ port: 3, source: { file: "outlast.toml" } });
    } finally {
      rmSync(local);
    }
  });

  it("every scalar key can be given by its own environment variable", () => {
    const scalars = schemaKeys().filter(({ path, kind }) => {
      return kind === "scalar" && !path.includes("NAME") && path[0] !== "api_keys";
    });
    const names = scalars.map(({ path }) => variableName(path));
    expect(names).toContain("OUTLAST_STORE_URL");
    expect(names).toContain("OUTLAST_DEFAULTS_MAX_ATTEMPTS");
    expect(new Set(names).size).toBe(names.length);
    // These stand for a table whose keys have variables too.
    const whole = ["OUTLAST_DEFAULTS_VALIDATE", "OUTLAST_DEFAULTS_CACHE", "OUTLAST_DEFAULTS_ON_FAILURE"];
    const others = names.filter((name) => !whole.includes(name));
    expect(names.length - others.length).toBe(3);
    const problemsWith = (names: string[]) => {
      const env = Object.fromEntries(names.map((name) => [name, "?"]));
      return problemsOf(() => load("", env)).join("\n");
    };
    for (const some of [whole, others.filter((name) => !/DATA_DIR|STORE_URL|ANSWER/.test(name))]) {
      const problems = problemsWith(some);
      for (const name of some) expect(problems).toContain(`(from ${name})`);
    }
    expect(problem("", { OUTLAST_STORE_URL: "mysql://x" })).toContain("(from OUTLAST_STORE_URL)");
    expect(load("", { OUTLAST_DATA_DIR: "/data" }).store.url).toBe("sqlite:/data/outlast.db");
  });

  it("text from the environment becomes what the key wants", () => {
    const config = load('passthrough = "off"', {
      OUTLAST_HOLD_TIMEOUT: "90",
      OUTLAST_MAX_BODY_SIZE: "1GB",
      OUTLAST_DEFAULTS_WAIT: "false",
      OUTLAST_DEFAULTS_MAX_ATTEMPTS: "3",
      OUTLAST_LOG_LEVEL: " debug ",
      OUTLAST_ALLOWED_HOSTS: "Box.local, other",
    });
    expect(config).toMatchObject({
      passthrough: "off",
      holdTimeoutMs: 90_000,
      maxBodyBytes: 1024 ** 3,
      defaults: { wait: false, maxAttempts: 3 },
      log: { level: "debug" },
      allowedHosts: ["box.local", "other"],
    });
  });

  it("an empty environment variable counts as unset", () => {
    expect(load("port = 1", { OUTLAST_PORT: "", OPENAI_API_KEY: "" })).toMatchObject({
      port: 1,
      upstreams: [],
    });
  });

  it("what is wished of answers can be switched, and said, by variables", () => {
    const toml =
      "[defaults]\nvalidate = { length = false, max_retries = 5 }\ncache = false\non_failure = false";
    const wished = (env: Env) => {
      const { validate, cache, onFailure } = load(toml, env).defaults;
      return { validate, cache, onFailure };
    };
    const ofFile = {
      validate: { ...validateAll, length: false, maxRetries: 5 },
      cache: false,
      onFailure: false,
    };
    expect(wished({})).toEqual(ofFile);
    expect(wished({ OUTLAST_DEFAULTS_VALIDATE: "false" })).toEqual({ ...ofFile, validate: false });
    expect(wished({ OUTLAST_DEFAULTS_VALIDATE: "true" })).toEqual({ ...ofFile, validate: validateAll });
    expect(wished({ OUTLAST_DEFAULTS_VALIDATE_EMPTY: "false" })).toEqual({
      ...ofFile,
      validate: { ...ofFile.validate, empty: false },
    });
    const env = { OUTLAST_DEFAULTS_CACHE_TTL: "1h", OUTLAST_DEFAULTS_ON_FAILURE_ANSWER: "Later." };
    expect(wished({ ...env, OUTLAST_DEFAULTS_ON_FAILURE_STALE: "2h" })).toEqual({
      ...ofFile,
      cache: { ttlMs: 3_600_000 },
      onFailure: { staleMs: 7_200_000, answer: "Later." },
    });
  });

  it("a variable for a whole table and one for a key of it exclude each other", () => {
    const env = { OUTLAST_DEFAULTS_VALIDATE_EMPTY: "false", OUTLAST_DEFAULTS_VALIDATE: "true" };
    expect(problem("", env)).toBe(
      "OUTLAST_DEFAULTS_VALIDATE_EMPTY: cannot be set beside OUTLAST_DEFAULTS_VALIDATE (from the environment)",
    );
  });

  it("a table that is none is not mended by a variable for one of its keys", () => {
    expect(problem("store = true", { OUTLAST_STORE_URL: "x.db" })).toMatch(/^store: must be a table/);
  });

  it("OUTLAST_API_KEYS takes the place of the file's keys", () => {
    const config = load('[[api_keys]]\nkey = "from-the-file"', {
      OUTLAST_API_KEYS: "first-key, second-key,",
    });
    expect(config.apiKeys).toEqual([
      { key: "first-key", project: "default", role: "user" },
      { key: "second-key", project: "default", role: "user" },
    ]);
  });

  it("what Kubernetes says about a service named outlast is not taken for configuration", () => {
    const env = {
      OUTLAST_PORT: "tcp://10.0.0.1:4080",
      OUTLAST_PORT_4080_TCP_ADDR: "10.0.0.1",
      OUTLAST_SERVICE_HOST: "10.0.0.1",
      OUTLAST_SERVICE_PORT_HTTP: "4080",
    };
    expect(load("", env).port).toBe(4080);
  });
});

describe("the interactive profile", () => {
  it("has less patience with silence, unless told otherwise", () => {
    const interactive = 'profile = "interactive"\n';
    const patience = ({ timeouts }: Config) => [timeouts.attemptMs, timeouts.firstTokenMs, timeouts.idleMs];
    expect(patience(load(interactive))).toEqual([60_000, 10_000, 10_000]);
    expect(patience(load("", { OUTLAST_PROFILE: "interactive" }))).toEqual([60_000, 10_000, 10_000]);
    expect(patience(load(`${interactive}[timeouts]\nidle = "3m"`))).toEqual([60_000, 10_000, 180_000]);
    expect(patience(load(`${interactive}[timeouts]\nattempt = "600s"`))).toEqual([600_000, 10_000, 10_000]);
    const env = { OUTLAST_TIMEOUTS_FIRST_TOKEN: "120s" };
    expect(patience(load(interactive, env))).toEqual([60_000, 120_000, 10_000]);
  });

  it("changes nothing else", () => {
    const { profile, timeouts, source: _, ...config } = load('profile = "interactive"');
    const { profile: before, timeouts: timeoutsBefore, source: __, ...without } = load("");
    expect([before, profile]).toEqual(["default", "interactive"]);
    expect(config).toEqual(without);
    expect({ ...timeouts, attemptMs: 600_000, firstTokenMs: 120_000, idleMs: 60_000 }).toEqual(
      timeoutsBefore,
    );
  });
});

describe("whether an upstream is asked for the usage of streams", () => {
  it.each([
    ["true", true],
    ["false", false],
    ['"false"', false],
    [`"\${ASK}"`, true],
  ])("%s", (written, asked) => {
    const config = load(upstream("a", `stream_usage = ${written}`), { ASK: "true" });
    expect(config.upstreams[0]!.streamUsage).toBe(asked);
  });
});

describe("limits, failures and answers", () => {
  const config = () => load(upstream("a", everythingOfFlow));

  it("limits belong to an upstream, its lanes and its group", () => {
    const { upstreams, limitGroups } = config();
    expect(upstreams[0]).toMatchObject({
      minConcurrency: 2,
      maxConcurrency: 32,
      limits: { requestsPerMinute: 100, tokensPerMinute: 20_000 },
      limitGroup: "account",
    });
    expect(upstreams[0]!.lanes).toEqual([
      { model: "m-*", limits: { requestsPerMinute: 7 } },
      { model: "m-1", limits: { tokensPerMinute: 8 }, maxConcurrency: 9 },
      { model: "idle", limits: {} },
    ]);
    expect(limitGroups).toEqual([
      { name: "account", limits: { requestsPerMinute: 1_000 } },
      { name: "other", limits: { tokensPerMinute: 1_000_000_000_000 } },
    ]);
  });

  it("the breaker and the budget of retries can be set", () => {
    const { breaker, retry } = config();
    expect(breaker).toEqual({
      enabled: false,
      consecutiveFailures: 5,
      failureRate: 1,
      minCalls: 5,
      windowMs: 90_000,
      cooldownMs: 45_000,
      maxCooldownMs: 45_000,
    });
    expect(retry).toMatchObject({ budgetRatio: 0, budgetPerSecond: 0.5 });
  });

  it("what is wished of all answers is completed", () => {
    const { validate, cache, onFailure, failoverAfterMs } = config().defaults;
    expect(validate).toMatchObject({ json: false, refusal: false, length: true, empty: true, maxRetries: 0 });
    expect(validate).toMatchObject({ feedback: true, schema: { type: ["object", "null"], required: [] } });
    expect([cache, failoverAfterMs]).toEqual([{ ttlMs: 5_400_000 }, 0]);
    expect(onFailure).toMatchObject({ staleMs: 604_800_000, answer: { id: "x", choices: [{ index: 0 }] } });
  });

  it("a route is a list of targets, or a table that says more", () => {
    expect(config().routes).toEqual([
      {
        model: "short",
        targets: [
          { upstream: "a", model: "x" },
          { upstream: "a", model: "y", weight: 0, largerContext: true },
        ],
      },
      { model: "bare", targets: [{ upstream: "a" }], store: "last" },
      { model: "off", targets: [{ upstream: "a" }], validate: false, cache: false, onFailure: false },
      {
        model: "long-*",
        targets: [
          { upstream: "a", weight: 3 },
          { upstream: "a", model: "z", largerContext: false },
        ],
        failoverAfterMs: 2_500,
        validate: validateAll,
        cache: { ttlMs: 500 },
        onFailure: { answer: 'Sorry.\n"Later".' },
      },
    ]);
  });

  it("prices keep their order", () => {
    expect(config().prices).toEqual([
      { model: "a/m-1", input: 2.5, output: 10 },
      { model: "m-*", input: 0, output: 0.075, cachedInput: 1e-7 },
    ]);
  });

  it.each(["true", '"true"', "{}"])("validate = %s is all of it", (written) => {
    expect(load(`[defaults]\nvalidate = ${written}`).defaults.validate).toEqual(validateAll);
  });

  it("numbers may come from variables", () => {
    const toml = `[breaker]\nfailure_rate = "\${R}"\n[prices.m]\ninput = "\${P}"\noutput = 1`;
    const { breaker, prices } = load(toml, { R: "0.25", P: "1.5e-1" });
    expect([breaker.failureRate, prices[0]!.input]).toEqual([0.25, 0.15]);
  });
});

describe("what is kept", () => {
  it("is everything, for ever, unless told otherwise", () => {
    expect(load("[retention]\n[search]")).toMatchObject({ retention: {}, search: true });
    expect(load('[defaults]\nstore = "last"').defaults).not.toHaveProperty("store");
  });

  it("can be limited by age and by size, in the file and by variables", () => {
    const { retention, search, defaults } = load(upstream("a", everythingOfFlow));
    expect(retention).toEqual({
      completedMs: 30 * 86_400_000,
      failedMs: 3_600_000,
      cancelledMs: 36_500 * 86_400_000,
      bodiesMs: 12 * 3_600_000,
      maxBytes: 64 * 1024 ** 2,
    });
    expect([search, defaults.store]).toEqual([false, "all"]);
    const env = {
      OUTLAST_RETENTION_FAILED: "90d",
      OUTLAST_RETENTION_MAX_SIZE: "10GB",
      OUTLAST_SEARCH_ENABLED: "false",
      OUTLAST_DEFAULTS_STORE: "none",
    };
    expect(load('[retention]\ncompleted = "30d"', env)).toMatchObject({
      retention: { completedMs: 30 * 86_400_000, failedMs: 90 * 86_400_000, maxBytes: 10 * 1024 ** 3 },
      search: false,
      defaults: { store: "none" },
    });
  });
});

it("the page on the ledger shows a configuration that holds", () => {
  const page = readFileSync(new URL("../docs/ledger.md", import.meta.url), "utf8");
  const [, toml] = /^```toml\n(.*?)^```/ms.exec(page) ?? [];
  expect(load(toml!)).toMatchObject({ retention: { completedMs: 30 * 86_400_000 }, search: true });
});

describe("a list of prices", () => {
  const listed = (toml: string) => JSON.stringify(written(toml));

  it("comes behind the prices of the file, which win", () => {
    const path = listed("[prices.b]\ninput = 3\noutput = 4\n[prices.a]\ninput = 9\noutput = 9");
    const config = load(`prices_file = ${path}\n[prices.a]\ninput = 1\noutput = 2`);
    expect(config.prices).toEqual([
      { model: "a", input: 1, output: 2 },
      { model: "b", input: 3, output: 4 },
    ]);
    expect(config.source.pricesFile).toBe(JSON.parse(path));
    const again = load(describeConfig(config));
    expect(again.prices).toEqual(config.prices);
    expect(describeConfig(config)).toContain(`# list of prices: ${JSON.parse(path)}\n`);
  });

  it("is looked for beside the file that names it, and by a variable in the working directory", () => {
    const prices = "[prices.m]\ninput = 1\noutput = 1";
    const elsewhere = mkdtempSync(join(directory, "elsewhere-"));
    writeFileSync(join(elsewhere, "list.toml"), prices);
    const file = join(elsewhere, "outlast.toml");
    writeFileSync(file, 'prices_file = "list.toml"');
    expect(loadConfig({ env: {}, file, flags: {} }).prices).toHaveLength(1);
    const env = { OUTLAST_PRICES_FILE: "list.toml" };
    expect(problemsOf(() => loadConfig({ env, file, flags: {} }))).toEqual([
      'prices_file: "list.toml" cannot be read: no such file (from OUTLAST_PRICES_FILE)',
    ]);
    writeFileSync(join(directory, "list.toml"), prices);
    expect(loadConfig({ env, file, flags: {} }).prices).toHaveLength(1);
  });

  it.each([
    ["[prices.m]\ninput = 1", /^prices\.m\.output: is missing; it must be .*\(from (.*)\)$/],
    ["[prices.m]\ninput = -1\noutput = 1", /^prices\.m\.input: must be .*, got -1 \(from (.*)\)$/],
    ["[prices.m]\ninput = 1\noutput = 1\nfree = 1", /^prices\.m\.free: unknown key.* \(from (.*)\)$/],
    ["port = 1\n[prices]", /^port: unknown key; allowed here: prices \(from (.*)\)$/],
    ["", /^prices: must be a table \(from (.*)\)$/],
    ["[prices", /^prices_file: (.*):1:\d+: not TOML: .* \(from .*\.toml\)$/],
  ])("that is %j is refused, with its own name", (toml, message) => {
    const path = written(toml);
    const [, named] = message.exec(problem(`prices_file = ${JSON.stringify(path)}`)) ?? [];
    expect(named).toBe(path);
  });

  it("comes with Outlast: public prices, each with what a record needs", () => {
    const path = new URL("../examples/prices.toml", import.meta.url).pathname;
    const { prices } = load(`prices_file = ${JSON.stringify(path)}`);
    expect(prices.length).toBeGreaterThan(40);
    for (const { model, input, output, cachedInput = input } of prices) {
      expect(input, model).toBeGreaterThan(0);
      expect(cachedInput, model).toBeLessThanOrEqual(input);
      // Embeddings have no output.
      if (!model.includes("embed")) expect(output, model).toBeGreaterThan(input);
    }
    const usage = { prompt: 1_000_000, cached: 400_000, output: 1_000_000 };
    expect(costOf(prices, "openai", "gpt-4o", usage)).toBeCloseTo(0.6 * 2.5 + 0.4 * 1.25 + 10);
    expect(costOf(prices, "anthropic", "claude-opus-4-5-20251101", usage)).toBeCloseTo(
      0.6 * 5 + 0.4 * 0.5 + 25,
    );
    expect(costOf(prices, "groq", "openai/gpt-oss-120b", usage)).toBeDefined();
    expect(costOf(prices, "openai", "unheard-of", usage)).toBeUndefined();
  });
});

describe("unknown keys", () => {
  it("are named, with the file, a suggestion and the keys that are allowed", () => {
    const message = problem("[retry]\nbackof_base = 1");
    expect(message).toMatch(/^retry\.backof_base: unknown key; did you mean "backoff_base"\?/);
    expect(message).toContain("lane_backoff_max");
    expect(message).toMatch(/\(from .*\.toml\)$/);
  });

  it("get the allowed keys where nothing is close", () => {
    expect(problem("[log]\nxyzzy = 1")).toContain("log.xyzzy: unknown key; allowed here: level");
  });

  it("are recognised in camelCase", () => {
    expect(problem(upstream("a", "maxConcurrency = 1"))).toContain('did you mean "max_concurrency"?');
  });

  it("are recognised as another table's", () => {
    expect(problem("[retry]\nmax_attempts = 1")).toContain("did you mean defaults.max_attempts?");
  });

  it("are found in lists and targets too", () => {
    expect(problem('[[api_keys]]\nkey = "12345678"\nname = "x"')).toMatch(
      /^api_keys\[0\]\.name: unknown key/,
    );
    expect(problem(`${upstream("a")}[routes]\n"m.1" = ["a", { upstream = "a", modle = "x" }]`)).toMatch(
      /^routes\."m\.1"\[1\]\.modle: unknown key; did you mean "model"\?/,
    );
  });

  it.each([
    ["[defaults.validate]\njsno = true", 'defaults.validate.jsno: unknown key; did you mean "json"?'],
    ["[defaults]\ncache = { tll = 1, ttl = 1 }", 'defaults.cache.tll: unknown key; did you mean "ttl"?'],
    ["[breaker]\nmin_call = 1", 'breaker.min_call: unknown key; did you mean "min_calls"?'],
    [
      upstream("a", "lanes = { m = { request_per_minute = 1 } }"),
      "upstreams.a.lanes.m.request_per_minute: unknown",
    ],
    [`${upstream("a")}[routes.m]\ntargets = ["a"]\nfailover_afetr = 1`, 'did you mean "failover_after"?'],
    [
      `${upstream("a")}[routes.m]\ntargets = [{ upstream = "a", wieght = 1 }]`,
      'routes.m.targets[0].wieght: unknown key; did you mean "weight"?',
    ],
    [
      `${upstream("a")}[routes.m]\ntargets = ["a"]\nvalidate = { lenght = true }`,
      'routes.m.validate.lenght: unknown key; did you mean "length"?',
    ],
    ["[prices.m]\ninput = 1\noutput = 1\ncached = 1", "allowed here: input, output, cached_input"],
    [
      "[limit_groups.g]\nrequests_per_minute = 1\nburst = 1",
      "allowed here: requests_per_minute, tokens_per_minute",
    ],
  ])("are found in what is said of flow: %j", (toml, message) => {
    expect(problem(toml)).toContain(message);
  });

  it("are found in the environment", () => {
    expect(problem("", { OUTLAST_API_KEY: "12345678" })).toBe(
      'OUTLAST_API_KEY: unknown environment variable; did you mean "OUTLAST_API_KEYS"? (from the environment)',
    );
    expect(problem("", { OUTLAST_XYZZY: "1" })).not.toContain("did you mean");
    expect(problem("", { OUTLAST_DEFAULTS_MAX_ATTEMPS: "1" })).toContain('"OUTLAST_DEFAULTS_MAX_ATTEMPTS"');
  });
});

describe("bad values", () => {
  it.each([
    ["port = 65536", "port: must be a whole number from 0 to 65535, got 65536"],
    ["port = 1.5", "port: must be a whole number"],
    ["port = true", "port: must be a whole number from 0 to 65535, got true"],
    ['host = "http://x"', 'host: must be a host name or an IP address to listen on, got "http://x"'],
    ['hold_timeout = "5 minutes"', "hold_timeout: must be a number of seconds or a time such as"],
    ["hold_timeout = 0", "hold_timeout: must be"],
    ["hold_timeout = -1", "hold_timeout: must be"],
    ["hold_timeout = nan", "hold_timeout: must be"],
    ["hold_timeout = 2024-01-01", "got a date"],
    ['keep_alive_timeout = "25d"', "at most 24d"],
    ['[timeouts]\nconnect = "11s"', "at most 10s"],
    ['[upstreams.a]\nbase_url = "http://h"\nheaders = { Upgrade = "x" }', "belongs to the connection"],
    ['max_body_size = "0"', "max_body_size: must be a number of bytes above 0"],
    ['max_body_size = "32 elephants"', 'got "32 elephants"'],
    ['passthrough = "some"', 'passthrough: must be one of "inference", "all", "off", got "some"'],
    ['data_dir = ""', "data_dir: must be text that is not empty"],
    ['allowed_hosts = ["http://a"]', "allowed_hosts[0]: must be a host name without scheme and port"],
    ['allowed_hosts = "a"', "allowed_hosts: must be a list"],
    ["store = 1", "store: must be a table"],
    ["[defaults]\nwait = 3601", "defaults.wait: must be true, false or a number of seconds from 0 to 3600"],
    ['[defaults]\nwait = "maybe"', 'got "maybe"'],
    ["[defaults]\nmax_attempts = 0", "defaults.max_attempts: must be a whole number from 1"],
    ['[defaults]\npriority = "urgent"', "defaults.priority: must be one of"],
    ['[log]\nlevel = "loud"', "log.level: must be one of"],
    ['[defaults]\nstore = "some"', 'defaults.store: must be one of "last", "all", "none", got "some"'],
    [`${upstream("a")}[routes.m]\ntargets = ["a"]\nstore = true`, "routes.m.store: must be one of"],
    ["[retention]\ncompleted = 0", "retention.completed: must be a number of seconds or a time such as"],
    ['[retention]\nbodies = "101 years"', "retention.bodies: must be a number of seconds or a time such as"],
    ['[retention]\nfailed = "36501d"', "at most 36500d"],
    ["[retention]\ncompleted = 30", "at least 1h and at most 36500d, got 30"],
    ['[retention]\nfailed = "59m"', "at least 1h"],
    ['[retention]\ncancelled = "3599999ms"', "at least 1h"],
    ["[retention]\nbodies = 14", "at least 1h"],
    ["[retention]\nmax_size = 10", 'retention.max_size: must be a number of bytes or a size such as "32MB"'],
    ["[retention]\nmax_size = 10", "64MB at least, got 10"],
    [
      "[retention]\ndays = 3",
      "retention.days: unknown key; allowed here: completed, failed, cancelled, bodies",
    ],
    ['[search]\nenabled = "maybe"', 'search.enabled: must be true or false, got "maybe"'],
    ['prices_file = ""', "prices_file: must be the path of a file"],
    ["[[api_keys]]\nkey = 12345678", "api_keys[0].key: must be at least 8 visible ASCII characters"],
    ["[[api_keys]]", "api_keys[0].key: is missing"],
    ['[[api_keys]]\nkey = "12345678"\nrole = "root"', 'api_keys[0].role: must be one of "user", "operator"'],
    ['[upstreams."a b"]\nbase_url = "http://a"', 'upstreams."a b": the name must be letters'],
    ["[upstreams.a]", "upstreams.a.base_url: is missing; it must be an http(s) URL"],
    ['[upstreams.a]\nbase_url = "foo"', 'upstreams.a.base_url: must be an http(s) URL, got "foo"'],
    ['[upstreams.a]\nbase_url = "ftp://a"', 'upstreams.a.base_url: must be an http(s) URL, got "ftp://a"'],
    ['[upstreams.a]\nbase_url = "http://a?b=c"', 'without "?"'],
    [upstream("a", 'models = [""]'), "upstreams.a.models[0]: must be the name of a model"],
    [upstream("a", "max_concurrency = 0"), "upstreams.a.max_concurrency: must be a whole number"],
    [upstream("a", 'stream_usage = "yes"'), 'upstreams.a.stream_usage: must be true or false, got "yes"'],
    [upstream("a", "stream_usage = 1"), "upstreams.a.stream_usage: must be true or false, got 1"],
    ["[timeouts]\nidle = 0", "timeouts.idle: must be a number of seconds"],
    ["[timeouts]\nfirst_token = -1", "timeouts.first_token: must be a number of seconds"],
    ["[stream]\nheartbeat = 0", "stream.heartbeat: must be a number of seconds"],
    ['profile = "batch"', 'profile: must be one of "default", "interactive", got "batch"'],
    [upstream("a", 'headers = { "a b" = "x" }'), 'upstreams.a.headers."a b": the name must be'],
    [upstream("a", 'headers = { a = "x\\ny" }'), "upstreams.a.headers.a: must be a header's value"],
    [`${upstream("a")}[routes]\nm = []`, "routes.m: must name at least one upstream"],
    [
      `${upstream("a")}[routes]\nm = "a"`,
      "routes.m: must be a list of targets, or a table that has such a list",
    ],
    [`${upstream("a")}[routes.m]`, "routes.m.targets: must be a list"],
    [`${upstream("a")}[routes.m]\ntargets = []`, "routes.m.targets: must name at least one upstream"],
    [
      `${upstream("a")}[routes.m]\ntargets = ["a/"]`,
      "routes.m.targets[0].model: must be text that is not empty",
    ],
    [
      `${upstream("a")}[routes]\nm = [{ upstream = "a", weight = 1001 }]`,
      "routes.m[0].weight: must be a whole number from 0 to 1000, got 1001",
    ],
    [
      `${upstream("a")}[routes]\nm = [{ upstream = "a", weight = 0.5 }]`,
      "routes.m[0].weight: must be a whole",
    ],
    [
      `${upstream("a")}[routes]\nm = [{ upstream = "a", weight = 0 }]`,
      "routes.m: must give at least one target a weight above 0",
    ],
    [
      `${upstream("a")}[routes]\nm = [{ upstream = "a", larger_context = 1 }]`,
      "routes.m[0].larger_context: must be true or false, got 1",
    ],
    [
      `${upstream("a")}[routes.m]\ntargets = ["a"]\ncache = true`,
      "routes.m.cache: must be false or a table that",
    ],
    [
      `${upstream("a")}[routes.m]\ntargets = ["a"]\nfailover_after = -1`,
      "routes.m.failover_after: must be a",
    ],
    ["[defaults]\nvalidate = 1", "defaults.validate: must be true, false or a table, got 1"],
    ["[defaults.validate]\njson = 1", "defaults.validate.json: must be true or false, got 1"],
    [
      "[defaults.validate]\nmax_retries = 11",
      "defaults.validate.max_retries: must be a whole number from 0 to 10",
    ],
    ["[defaults.validate]\nschema = true", "defaults.validate.schema: must be a table"],
    [
      "[defaults.validate]\nschema = { const = [nan] }",
      "defaults.validate.schema: must be what JSON can say",
    ],
    ["[defaults]\ncache = {}", "defaults.cache.ttl: is missing; it must be a number of seconds"],
    ['[defaults]\ncache = "1h"', 'defaults.cache: must be false or a table that has ttl, got "1h"'],
    ["[defaults]\ncache = { ttl = 0 }", "defaults.cache.ttl: must be a number of seconds"],
    ['[defaults]\ncache = { ttl = "366d" }', "at most 365d"],
    [
      "[defaults]\non_failure = true",
      "defaults.on_failure: must be false or a table that has stale, answer or both",
    ],
    ["[defaults]\non_failure = {}", "defaults.on_failure: must have stale, answer or both"],
    ["[defaults]\non_failure = { stale = 0 }", "defaults.on_failure.stale: must be a number of seconds"],
    [
      '[defaults]\non_failure = { answer = "" }',
      "defaults.on_failure.answer: must be text that is not empty, or a table",
    ],
    [
      "[defaults]\non_failure = { answer = { choices = [] } }",
      "defaults.on_failure.answer: must be text that is not",
    ],
    ["[defaults]\non_failure = { answer = [1] }", "got a list"],
    [
      "[defaults]\non_failure = { answer = { choices = [1], at = 2024-01-01 } }",
      "defaults.on_failure.answer: must be what JSON can say: without dates",
    ],
    ["[defaults]\nfailover_after = -1", "defaults.failover_after: must be a number of seconds"],
    [
      upstream("a", "requests_per_minute = 0"),
      "upstreams.a.requests_per_minute: must be a whole number from 1",
    ],
    [
      upstream("a", "tokens_per_minute = 1.5"),
      "upstreams.a.tokens_per_minute: must be a whole number from 1",
    ],
    [upstream("a", "lanes = { m = 1 }"), "upstreams.a.lanes.m: must be a table"],
    [
      upstream("a", 'lanes = { " " = {} }'),
      'upstreams.a.lanes." ": the name must be the name of a model, or a glob',
    ],
    [
      upstream("a", "min_concurrency = 5\nmax_concurrency = 4"),
      "upstreams.a.min_concurrency: must be at most max_concurrency of the upstream, which is 4, got 5",
    ],
    [
      upstream("a", 'lanes = { "m-*" = { max_concurrency = 257 } }'),
      'upstreams.a.lanes."m-*".max_concurrency: must be at most max_concurrency of the upstream, which is 256, got 257',
    ],
    ["[limit_groups.g]", "limit_groups.g: must have requests_per_minute, tokens_per_minute or both"],
    ['[limit_groups."a b"]\nrequests_per_minute = 1', 'limit_groups."a b": the name must be letters'],
    ["[breaker]\nfailure_rate = 0", "breaker.failure_rate: must be a number above 0 and at most 1, got 0"],
    [
      "[breaker]\nfailure_rate = 1.01",
      "breaker.failure_rate: must be a number above 0 and at most 1, got 1.01",
    ],
    ['[breaker]\nfailure_rate = "50%"', 'got "50%"'],
    ["[breaker]\nconsecutive_failures = 0", "breaker.consecutive_failures: must be a whole number from 1"],
    ["[breaker]\ncooldown = 61", "breaker.cooldown_max: must be at least breaker.cooldown, which is 61s"],
    ["[retry]\nbudget_ratio = -0.1", "retry.budget_ratio: must be a number from 0 to 100, got -0.1"],
    ["[retry]\nbudget_per_second = 0", "retry.budget_per_second: must be a number from 0.01"],
    [
      "[prices.m]\ninput = 1",
      "prices.m.output: is missing; it must be a number of US dollars per 1,000,000 tokens",
    ],
    ["[prices.m]\ninput = inf\noutput = 1", "prices.m.input: must be a number of US dollars"],
    ["[prices]\nm = 1", "prices.m: must be a table"],
    [`${upstream("a")}[routes]\nm = [1]`, "routes.m[0]: must be a table"],
    [`${upstream("a")}[routes]\nm = ["a/"]`, "routes.m[0].model: must be text that is not empty"],
    ['[retry]\nbackoff_base = "20m"', "retry.backoff_max: must be at least retry.backoff_base, which is 20m"],
  ])("%j is refused", (toml, message) => {
    expect(problem(toml)).toContain(message);
  });

  it.each([
    ["postgres://u:hunter22@h/db", "a Postgres store is not supported yet in this version"],
    ["postgresql://u:hunter22@h/db", "a Postgres store is not supported yet in this version"],
    ["mysql://u:hunter22@h/db", "a kind of store that this version does not know"],
    ["sqlite:", 'must be "sqlite:<path>" or the path of a file'],
    ["sqlite://a.db", 'without "//"'],
    ["sqlite::memory:", "must be a file"],
  ])("the store %s is refused", (url, message) => {
    const text = problem("", { OUTLAST_STORE_URL: url });
    expect(text).toMatch(/^store\.url: /);
    expect(text).toContain(message);
    expect(text).not.toContain("hunter22");
  });

  it("say whether they came from the file, a variable or a flag", () => {
    expect(problem('port = "x"')).toMatch(/\(from .*\.toml\)$/);
    expect(problem("", { OUTLAST_PORT: "x" })).toMatch(/got "x" \(from OUTLAST_PORT\)$/);
    expect(problem("", {}, { port: "x" })).toMatch(/got "x" \(from --port\)$/);
    expect(problem("", { OPENAI_BASE_URL: "x" })).toBe(
      'upstreams.openai.base_url: must be an http(s) URL, got "x" (from OPENAI_BASE_URL)',
    );
  });

  it("are all reported at once, together with what the rules between keys say", () => {
    const toml = `port = "x"\nhost = "0.0.0.0"\nfoo = 1\n[routes]\nm = ["nowhere"]\n[retry]\nbackoff_max = "1ms"`;
    const problems = problemsOf(() => load(toml, { OUTLAST_LOG_LEVEL: "loud", OUTLAST_FOO: "1" }));
    const keys = problems.map((text) => text.split(":")[0]);
    const expected = ["OUTLAST_FOO", "port", "host", "foo", "routes.m[0]", "retry.backoff_max", "log.level"];
    expect(keys.toSorted()).toEqual(expected.toSorted());
    expect(() => load(toml)).toThrow(/The configuration has 5 problems:\n- /);
  });
});

describe("names", () => {
  it("a route to an unknown upstream is refused with a suggestion", () => {
    expect(problem(`${upstream("openai")}[routes]\nm = ["opnai/x"]`)).toMatch(
      /^routes\.m\[0\]: names an unknown upstream; did you mean "openai"\? upstreams: openai, got "opnai\/x"/,
    );
  });

  it("a route may name an upstream that the environment makes", () => {
    const config = load('[routes]\nm = ["groq"]', { GROQ_API_KEY: "k" });
    expect(config.routes).toEqual([{ model: "m", targets: [{ upstream: "groq" }] }]);
  });

  it("a target is split at its first slash", () => {
    const toml = `${upstream("a")}[routes]\n"gpt-*" = ["a", "a/x/y", { upstream = "a", model = "z" }]`;
    expect(load(toml).routes).toEqual([
      {
        model: "gpt-*",
        targets: [{ upstream: "a" }, { upstream: "a", model: "x/y" }, { upstream: "a", model: "z" }],
      },
    ]);
  });

  it("a target in a route that is a table is found where it stands", () => {
    const toml = `${upstream("openai")}[routes.m]\ntargets = ["openai", { upstream = "opnai" }]`;
    expect(problem(toml)).toMatch(
      /^routes\.m\.targets\[1\]: names an unknown upstream; did you mean "openai"\? upstreams: openai, got a table/,
    );
  });

  it("an upstream's limit group must exist", () => {
    const toml = upstream("a", 'limit_group = "acount"');
    expect(problem(`${toml}[limit_groups.account]\ntokens_per_minute = 1`)).toMatch(
      /^upstreams\.a\.limit_group: names an unknown limit group; did you mean "account"\? limit groups: account, got "acount"/,
    );
    expect(problem(toml)).toContain("names an unknown limit group; there are no limit groups");
  });

  it("a limit group that is wrong itself is known all the same", () => {
    const toml = `${upstream("a", 'limit_group = "g"')}[limit_groups.g]\ntokens_per_minute = 0`;
    expect(problem(toml)).toMatch(/^limit_groups\.g\.tokens_per_minute: /);
  });

  it("names of upstreams that differ only in case are refused", () => {
    expect(problem(upstream("a") + upstream("A"))).toMatch(
      /^upstreams\.A: the name is taken by upstreams\.a/,
    );
  });

  it("a table that is there twice is refused", () => {
    expect(problem(upstream("a") + upstream("a"))).toMatch(/\.toml:\d+:\d+: not TOML: trying to redefine/);
  });

  it("an API key that is there twice is refused", () => {
    expect(problem("", { OUTLAST_API_KEYS: "12345678,12345678" })).toBe(
      "api_keys[1].key: is the same as api_keys[0].key (from OUTLAST_API_KEYS)",
    );
  });
});

describe("the file", () => {
  it("must exist if it is named", () => {
    const path = join(directory, "missing.toml");
    expect(problemsOf(() => loadConfig({ env: {}, file: path, flags: {} }))).toEqual([
      `${JSON.stringify(path)} cannot be read: no such file (from --config)`,
    ]);
    const env = { OUTLAST_CONFIG: directory };
    expect(problemsOf(() => loadConfig({ env, flags: {} }))[0]).toMatch(
      /it is a directory \(from OUTLAST_CONFIG\)/,
    );
  });

  it("is not quoted when it is not TOML", () => {
    const message = problem('[upstreams.a]\napi_key = "sk-very-secret\n');
    expect(message).toMatch(/\.toml:2:\d+: not TOML: /);
    expect(message).not.toContain("secret");
  });

  it("accepts durations and sizes in every notation", () => {
    const toml =
      'hold_timeout = 1.5\ndrain_timeout = 0\nmax_body_size = 1000\n[defaults]\nwait = 30\ndeadline = "7d"';
    expect(load(toml)).toMatchObject({
      holdTimeoutMs: 1_500,
      drainTimeoutMs: 0,
      maxBodyBytes: 1_000,
      defaults: { wait: 30, deadlineMs: 7 * 86_400_000 },
    });
  });

  it.each([
    ["sqlite:/var/x.db", "sqlite:/var/x.db"],
    ["sqlite:///var/x.db", "sqlite:/var/x.db"],
    ["x.db", "sqlite:x.db"],
    ["C:\\x.db", "sqlite:C:\\x.db"],
  ])("takes the store %s as %s", (url, normal) => {
    expect(load(`[store]\nurl = '${url}'`).store.url).toBe(normal);
  });

  it("takes base URLs with or without a slash at the end", () => {
    const toml = '[upstreams.a]\nbase_url = "HTTPS://API.example.com/v1//"';
    expect(load(toml).upstreams[0]!.baseUrl).toBe("https://api.example.com/v1");
  });
});

describe("variables in the file", () => {
  const keyFromVariable = upstream("a", `api_key = "\${A_KEY}"\nheaders = { x = "v=\${A_X}." }`);

  it("are replaced anywhere in a text, and numbers may come from them", () => {
    const config = load(`port = "\${P}"\n${keyFromVariable}`, { P: "5", A_KEY: "k", A_X: "1" });
    expect(config.port).toBe(5);
    expect(config.upstreams[0]).toMatchObject({ apiKey: "k", headers: { x: "v=1." } });
  });

  it("that are not set are named together with the key", () => {
    const problems = problemsOf(() => load(keyFromVariable, { A_X: "" }));
    expect(problems).toHaveLength(2);
    expect(problems[0]).toMatch(/^upstreams\.a\.api_key: the environment variable A_KEY is not set/);
    expect(problems[1]).toMatch(
      /^upstreams\.a\.headers\.x: the environment variable A_X is not set, or is empty/,
    );
  });

  it("that are not set make no second problem with their key", () => {
    expect(problem(`port = "\${P}"`)).toMatch(/^port: the environment variable P is not set/);
    expect(problem(`${upstream("a")}[routes]\nm = ["\${U}"]`)).toMatch(/^routes\.m\[0\]: the environment/);
  });

  it("must have a name", () => {
    expect(problem(`data_dir = "\${A-B}"`)).toMatch(/^data_dir: .* must be followed by the name/);
    expect(problem(`data_dir = "\${A"`, { A: "x" })).toMatch(/^data_dir: .* must be followed by the name/);
  });

  it("are not replaced twice", () => {
    expect(load(`data_dir = "\${A}"`, { A: `\${B}`, B: "x" }).dataDir).toBe(`\${B}`);
  });

  it("may begin with OUTLAST_", () => {
    const toml = `[[api_keys]]\nkey = "\${OUTLAST_TEAM_KEY}"`;
    expect(load(toml, { OUTLAST_TEAM_KEY: "12345678" }).apiKeys[0]!.key).toBe("12345678");
  });
});

describe("upstreams from the environment", () => {
  it.each([
    ["OPENAI_API_KEY", "openai", "https://api.openai.com/v1", []],
    ["ANTHROPIC_API_KEY", "anthropic", "https://api.anthropic.com/v1", ["claude-*"]],
    [
      "GEMINI_API_KEY",
      "gemini",
      "https://generativelanguage.googleapis.com/v1beta/openai",
      ["gemini-*", "gemma-*"],
    ],
    ["OPENROUTER_API_KEY", "openrouter", "https://openrouter.ai/api/v1", ["*/*"]],
    ["GROQ_API_KEY", "groq", "https://api.groq.com/openai/v1", []],
    ["XAI_API_KEY", "xai", "https://api.x.ai/v1", ["grok-*"]],
    [
      "MISTRAL_API_KEY",
      "mistral",
      "https://api.mistral.ai/v1",
      [
        "mistral-*",
        "ministral-*",
        "magistral-*",
        "codestral-*",
        "devstral-*",
        "pixtral-*",
        "voxtral-*",
        "open-mistral-*",
      ],
    ],
    ["DEEPSEEK_API_KEY", "deepseek", "https://api.deepseek.com/v1", ["deepseek-*"]],
  ])("%s makes %s", (variable, name, baseUrl, models) => {
    expect(load("", { [variable]: "secret\n" }).upstreams).toEqual([
      {
        name,
        baseUrl,
        apiKey: "secret",
        models,
        minConcurrency: 1,
        maxConcurrency: 256,
        limits: {},
        lanes: [],
        streamUsage: true,
        headers: {},
        origin: "environment",
      },
    ]);
  });

  it("OPENAI_BASE_URL moves the openai upstream, with or without a key", () => {
    const env = { OPENAI_BASE_URL: "http://localhost:8000/v1/" };
    const [bare] = load("", env).upstreams;
    expect(bare).toMatchObject({ name: "openai", baseUrl: "http://localhost:8000/v1", models: [] });
    expect(bare).not.toHaveProperty("apiKey");
    expect(load("", { ...env, OPENAI_API_KEY: "k" }).upstreams[0]).toMatchObject({ ...bare, apiKey: "k" });
  });

  it.each([
    ["box", "http://box:11434/v1"],
    ["box:80", "http://box/v1"],
    ["box:1234", "http://box:1234/v1"],
    ["0.0.0.0", "http://127.0.0.1:11434/v1"],
    [":1234", "http://127.0.0.1:1234/v1"],
    ["::", "http://[::1]:11434/v1"],
    ["[::1]:99", "http://[::1]:99/v1"],
    ["http://box", "http://box/v1"],
    ["https://box:444/ollama/", "https://box:444/ollama/v1"],
    ["http://0.0.0.0:1/v1", "http://127.0.0.1:1/v1"],
  ])("OLLAMA_HOST=%s is %s", (value, baseUrl) => {
    const [ollama] = load("", { OLLAMA_HOST: value }).upstreams;
    expect(ollama).toMatchObject({ name: "ollama", baseUrl, models: [], origin: "environment" });
    expect(ollama).not.toHaveProperty("apiKey");
  });

  it("an OLLAMA_HOST that is no address is refused", () => {
    expect(problem("", { OLLAMA_HOST: "ftp://x" })).toMatch(
      /^upstreams\.ollama\.base_url: .*\(from OLLAMA_HOST\)$/,
    );
  });

  it("come after the file's, whose names win and stay as they are", () => {
    const config = load(upstream("zeta") + upstream("openai"), { OPENAI_API_KEY: "k", XAI_API_KEY: "k" });
    expect(config.upstreams.map(({ name, origin }) => [name, origin])).toEqual([
      ["zeta", "file"],
      ["openai", "file"],
      ["xai", "environment"],
    ]);
    expect(config.upstreams[1]).toMatchObject({ baseUrl: "http://openai/v1" });
    expect(config.upstreams[1]).not.toHaveProperty("apiKey");
  });
});

describe("listening beyond this machine", () => {
  it.each(["0.0.0.0", "::", "192.168.0.1", "example.com", "127.evil.com", "::ffff:1.2.3.4"])(
    "on %s without a key is refused",
    (host) => {
      const message = problem("", {}, { host });
      expect(message).toMatch(/^host: listening beyond this machine needs an API key/);
      expect(message).toContain("OUTLAST_API_KEYS");
      expect(message).toContain(`got ${JSON.stringify(host)} (from --host)`);
    },
  );

  it("is fine with a key", () => {
    expect(load("", { OUTLAST_HOST: "0.0.0.0", OUTLAST_API_KEYS: "12345678" }).host).toBe("0.0.0.0");
    expect(load('host = "::"\n[[api_keys]]\nkey = "12345678"').host).toBe("::");
  });

  it.each([
    ["127.0.0.1", "127.0.0.1"],
    ["127.9.9.9", "127.9.9.9"],
    ["::1", "::1"],
    ["[::1]", "::1"],
    ["0:0:0:0:0:0:0:1", "0:0:0:0:0:0:0:1"],
    ["LocalHost", "LocalHost"],
  ])("does not include %s", (host, listening) => {
    expect(load("", {}, { host }).host).toBe(listening);
  });
});

describe("secrets", () => {
  const toml = `
    host = "0.0.0.0"
    profile = "interactive"
    [[api_keys]]
    key = "hunter2-file-key"
    project = "a"
    role = "operator"
    [upstreams.a]
    base_url = "https://a/v1"
    api_key = "\${A_KEY}"
    models = ["m-*"]
    stream_usage = false
    headers = { Authorization = "Bearer hunter2-header", "X-Y" = "hunter2-\${A_KEY}" }
    [routes]
    "m.1" = ["a", "openai/m"]
    [defaults]
    wait = false`;
  const env = { A_KEY: "hunter2-a", OPENAI_API_KEY: "hunter2-openai" };

  it("are masked in the effective configuration", () => {
    const text = describeConfig(load(toml, env));
    expect(text).not.toContain("hunter2");
    expect(text.match(/"\*{4}"/g)).toHaveLength(5);
    expect(text).toContain("# upstreams from the environment: openai");
  });

  it("the effective configuration is TOML that means the same, but for the masks", () => {
    const config = load(toml, env);
    const { source: _, ...again } = load(describeConfig(config).replaceAll("****", "masked-key"), {});
    const { source: __, ...expected } = config;
    expect(again).toEqual({
      ...expected,
      apiKeys: [{ key: "masked-key", project: "a", role: "operator" }],
      upstreams: config.upstreams.map((upstream) => ({
        ...upstream,
        apiKey: "masked-key",
        headers: Object.fromEntries(Object.keys(upstream.headers).map((name) => [name, "masked-key"])),
        origin: "file",
      })),
    });
  });

  it("so is that of everything that can be said of limits, failures and answers", () => {
    const config = load(upstream("a", everythingOfFlow));
    const text = describeConfig(config);
    const { source: _, ...again } = load(text);
    const { source: __, ...expected } = config;
    expect(again).toEqual(expected);
    expect(describeConfig(load(text)).replace(/^.*\n/, "")).toBe(text.replace(/^.*\n/, ""));
  });

  it("so is that of any JSON Schema and any fixed answer", () => {
    // "${" would begin a variable; and zod leaves out what is called __proto__.
    const string = fc.string({ unit: "binary" }).filter((text) => !/\$\{|^__proto__$/.test(text));
    const fraction = fc.double({ noNaN: true, noDefaultInfinity: true }).filter((n) => !Number.isInteger(n));
    const json = fc.letrec((tie) => ({
      value: fc.oneof(
        { maxDepth: 3 },
        string,
        fc.boolean(),
        fc.maxSafeInteger(),
        fraction,
        tie("list"),
        tie("table"),
      ),
      list: fc.array(tie("value"), { maxLength: 4 }),
      table: fc.dictionary(string, tie("value"), { maxKeys: 4 }),
    }));
    fc.assert(
      fc.property(json.table, fc.array(json.value, { minLength: 1, maxLength: 3 }), (schema, choices) => {
        const wished = { validate: { schema }, on_failure: { answer: { choices } } };
        const { validate, onFailure } = load(stringify({ defaults: wished })).defaults;
        expect([validate, onFailure]).toMatchObject([{ schema }, { answer: { choices } }]);
        const again = load(describeConfig(load(stringify({ defaults: wished })))).defaults;
        expect([again.validate, again.onFailure]).toEqual([validate, onFailure]);
      }),
      { numRuns: 100 },
    );
  });

  it("the effective configuration of nothing at all shows the defaults", () => {
    const text = describeConfig(loadConfig({ env: {}, flags: {} }));
    expect(text).toMatch(/^# file: none\n/);
    expect(text).toContain('hold_timeout = "280s"');
    expect(text).toContain('max_body_size = "32MB"');
    expect(text).not.toContain("wait =");
  });

  it.each([
    ['[[api_keys]]\nkey = "hunter2"', {}],
    ['[[api_keys]]\nkey = "hunter2 hunter2"', {}],
    ['[[api_keys]]\nkey = ["hunter2"]', {}],
    ['api_keys = "hunter2-hunter2"', {}],
    ['api_keys = ["hunter2-hunter2"]', {}],
    ["", { OUTLAST_API_KEYS: "hunter2" }],
    ["", { OUTLAST_API_KEYS: "hunter2-1,hunter2-1" }],
    ["", { OPENAI_API_KEY: "hunter2 hunter2" }],
    ["", { OPENAI_BASE_URL: "https://user:hunter2@host/v1" }],
    ["", { OPENAI_BASE_URL: "https://user:hunter2@ho st/v1" }],
    ["", { OPENAI_BASE_URL: "https://host/v1?key=hunter2" }],
    ["", { OLLAMA_HOST: "http://user:hunter2@host" }],
    ["", { OUTLAST_API_KEY: "hunter2-hunter2" }],
    [upstream("a", 'apikey = "hunter2"'), {}],
    [upstream("a", 'headers = "hunter2"'), {}],
    [upstream("a", 'headers = { a = ["hunter2"] }'), {}],
    ['[upstreams]\na = "hunter2"', {}],
    ['[upstreams.a]\nbase_url = "http://a"\napi_key = "hunter2\\n"', {}],
    [`port = "\${A_KEY}"`, env],
    [`[store]\nurl = "\${A_KEY}:x"`, env],
    [`[routes]\nm = ["\${A_KEY}"]`, env],
  ])("are in no message: %j, %j", (broken, variables) => {
    const error = (() => {
      try {
        return load(broken, variables);
      } catch (thrown) {
        return thrown;
      }
    })();
    expect(error).toBeInstanceOf(ConfigError);
    const { message, problems, stack } = error as ConfigError;
    expect([message, stack, ...problems].join("\n")).not.toContain("hunter2");
  });
});

describe("durations and sizes", () => {
  it.each([
    ["250ms", 250],
    ["10s", 10_000],
    ["5m", 300_000],
    ["24h", 86_400_000],
    ["7d", 604_800_000],
    ["1.5s", 1_500],
    ["30", 30_000],
    [" 30 s ", 30_000],
    [30, 30_000],
    [0.25, 250],
    [0.0000001, 0],
    [0, 0],
  ])("%j lasts %i ms", (text, ms) => {
    expect(parseDuration(text)).toBe(ms);
  });

  it.each(["", "s", "-1s", "1w", "1h30m", "1e3", "5M", -1, Number.NaN, Number.POSITIVE_INFINITY, 1e300])(
    "%j is no length of time",
    (text) => {
      expect(parseDuration(text)).toBeUndefined();
    },
  );

  it("are written so that they read the same", () => {
    for (const ms of [0, 1, 250, 1_500, 50_000, 280_000, 600_000, 86_400_000]) {
      expect(parseDuration(formatDuration(ms))).toBe(ms);
    }
    for (const bytes of [0, 1, 1_000, 1_024, 32 * 1024 ** 2, 1024 ** 3]) {
      expect(parseSize(formatSize(bytes))).toBe(bytes);
    }
    expect([formatDuration(280_000), formatDuration(600_000), formatSize(1024 ** 3)]).toEqual([
      "280s",
      "10m",
      "1GB",
    ]);
  });

  it("sizes count in powers of 1024", () => {
    expect(["1B", "1KB", "1.5 MB", "1gb", "7", 7].map(parseSize)).toEqual([
      1,
      1024,
      1.5 * 1024 ** 2,
      1024 ** 3,
      7,
      7,
    ]);
    expect(["", "MB", "-1", -1, 1.5e300, "1PB"].map(parseSize)).toEqual(Array(6).fill(undefined));
  });
});

describe("suggestions", () => {
  it("are the closest name, or nothing", () => {
    expect(nearest("prot", ["host", "port"])).toBe("port");
    expect(nearest("baseUrl", ["api_key", "base_url"])).toBe("base_url");
    expect(nearest("foo", ["log"])).toBeUndefined();
    expect(nearest("completely different", ["port"])).toBeUndefined();
  });
});
