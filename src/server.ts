/** Builds the World from the configuration, and starts and stops everything in order. Start reading here. */

import type { ApiOptions } from "./api/context.ts";
import { Deliveries } from "./api/delivery.ts";
import { createGuard } from "./api/guard.ts";
import { createHttpServer } from "./api/http-server.ts";
import { Rests } from "./api/rests.ts";
import type { Config, UpstreamConfig } from "./config.ts";
import type { Clock, Observer, Random, Upstream, World } from "./core/ports.ts";
import { Queue, type QueueSettings } from "./core/queue.ts";
import { startDemo } from "./demo.ts";
import { createUpstream } from "./outbound/upstream.ts";
import { SqliteStore } from "./store/sqlite/store.ts";

export interface Running {
  /** Where it listens: `http://127.0.0.1:4080`. */
  url: string;
  upstreams: UpstreamConfig[];
  /** Resolves when the store can no longer be trusted: the process has to stop, its next start recovers. */
  failed: Promise<Error>;
  /** Graceful: no new work, attempts under way get the drain timeout. Nothing is lost. */
  stop(): Promise<void>;
}

export interface Parts {
  clock: Clock;
  random: Random;
  observer: Observer;
}

/** What is left of the drain goes to calls that are let through; last replies have at least this long to be written. */
const lastRepliesMs = 1000;

/** How long refusals are kept back before the listening ends, and how long connections are kept after it. */
const longestQuietMs = 100;

/** Name of this node in leases. One process owns the file, so one name is enough. */
const node = "local";

/** @throws Error when the store cannot be opened or the port is taken */
export async function startServer(config: Config, { clock, random, observer }: Parts): Promise<Running> {
  let fail: (error: Error) => void = () => {};
  const failed = new Promise<Error>((resolve) => {
    fail = resolve;
  });
  const store = await SqliteStore.open({
    path: config.store.url.replace(/^sqlite:/, ""),
    node,
    minFreeDiskBytes: config.store.minFreeDiskBytes,
    search: config.search,
    clock,
    observer,
    onFailed: fail,
  });
  const demo = config.upstreams.length === 0 ? await startDemo({ clock, random }) : undefined;
  const upstreams = demo ? [demoUpstream(demo)] : config.upstreams;
  const upstream = createUpstream(upstreams, config.timeouts, clock);
  const { search } = store;
  const stores = { store, flow: store, cache: store, ledger: store, search };
  const world: World = { clock, random, ...stores, upstream, observer };
  checkSchemas(config, upstream);
  const settings = queueSettings(config, upstreams, store.epoch);
  const queue = new Queue(world, settings);
  // What a crash left behind is dealt with before the first caller, and nothing is called before we can listen.
  await queue.recover();
  const api = apiOptions(config, world, queue, settings);
  const server = createHttpServer(api, clock, config.keepAliveTimeoutMs);
  const url = await server.listen(config.host, config.port);
  queue.begin();
  const stop = async () => {
    const cutAt = clock.ticks() + config.drainTimeoutMs;
    const quietMs = Math.min(config.drainDelayMs, longestQuietMs);
    await Promise.all([queue.stop(config.drainTimeoutMs), delay(config.drainDelayMs - quietMs, clock)]);
    server.beQuiet();
    await delay(quietMs, clock);
    await server.stopListening();
    // Whoever was connected at the last moment has not asked yet.
    await delay(quietMs, clock);
    await server.close(Math.max(lastRepliesMs, cutAt - clock.ticks()));
    await upstream.close();
    await store.close();
    await demo?.close();
  };
  return { url, upstreams, failed, stop };
}

/** A schema of the configuration that could never be used is a mistake to be told at the start. */
function checkSchemas({ defaults, routes }: Config, upstream: Upstream): void {
  const wishes = [
    { where: "defaults", validate: defaults.validate },
    ...routes.map(({ model, validate }) => ({ where: `routes.${model}`, validate })),
  ];
  for (const { where, validate } of wishes) {
    const problem = validate && validate.schema !== undefined && upstream.schemaProblem(validate.schema);
    if (problem) throw new Error(`${where}.validate.schema cannot be used: ${problem}`);
  }
}

async function delay(ms: number, clock: Clock): Promise<void> {
  if (ms === 0) return;
  await new Promise<void>((resolve) => {
    clock.timer(ms, resolve);
  });
}

function demoUpstream({ baseUrl, models }: { baseUrl: string; models: string[] }): UpstreamConfig {
  return {
    name: "demo",
    baseUrl,
    models,
    maxConcurrency: 256,
    minConcurrency: 1,
    limits: {},
    lanes: [],
    headers: {},
    streamUsage: true,
    origin: "demo",
  };
}

function queueSettings(config: Config, upstreams: UpstreamConfig[], epoch: number): QueueSettings {
  const { retry, timeouts, routes, limitGroups, breaker, prices, defaults } = config;
  return {
    owner: { node, epoch },
    table: { upstreams, routes },
    upstreams,
    limitGroups,
    breaker,
    prices,
    retryBudget: { ratio: retry.budgetRatio, perSecond: retry.budgetPerSecond },
    failoverAfterMs: defaults.failoverAfterMs,
    heldBackoff: { baseMs: retry.heldBackoffBaseMs, maxMs: retry.heldBackoffMaxMs },
    backoff: { baseMs: retry.backoffBaseMs, maxMs: retry.backoffMaxMs },
    laneBackoff: { baseMs: retry.laneBackoffBaseMs, maxMs: retry.laneBackoffMaxMs },
    unreachableAfterMs: retry.unreachableAfterMs,
    attemptMs: timeouts.attemptMs,
    firstTokenMs: timeouts.firstTokenMs,
    idleMs: timeouts.idleMs,
    comeBack: { maxAttempts: defaults.maxAttempts, deadlineMs: defaults.deadlineMs },
    retention: config.retention,
    adoptWindowMs: config.adoptWindowMs,
    failureEchoMs: config.failureEchoMs,
    limits: config.limits,
  };
}

function apiOptions(config: Config, world: World, queue: Queue, { table }: QueueSettings): ApiOptions {
  const { apiKeys, allowedHosts, defaults, heartbeatMs, holdTimeoutMs, maxBodyBytes, passthrough } = config;
  const projects = new Set(apiKeys.map(({ project }) => project));
  return {
    queue,
    deliveries: new Deliveries(world.clock),
    rests: new Rests(queue, world.clock),
    upstream: world.upstream,
    clock: world.clock,
    observer: world.observer,
    guard: createGuard({ apiKeys, allowedHosts }),
    jsonOnly: apiKeys.length === 0,
    table,
    defaults: { ...defaults, holdTimeoutMs },
    maxBodyBytes,
    heartbeatMs,
    passthrough,
    accountPathsOpen: projects.size <= 1,
  };
}
