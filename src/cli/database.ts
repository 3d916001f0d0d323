/** A database file, read through the API that a server would have on it: the same filters, the same JSON. */

import type { ApiOptions } from "../api/context.ts";
import { Deliveries } from "../api/delivery.ts";
import { createGuard } from "../api/guard.ts";
import { createHttpServer } from "../api/http-server.ts";
import { Rests } from "../api/rests.ts";
import type { SearchIndex } from "../core/ledger/ports.ts";
import type { Clock, Random, Upstream, World } from "../core/ports.ts";
import { Queue, type QueueSettings } from "../core/queue.ts";
import { openToRead } from "../store/sqlite/inspection.ts";
import { openMemory } from "../store/sqlite/memory.ts";
import { Api } from "./api.ts";

const observer = { tell() {} };
const refuse = () => {
  throw new Error("What only reads a file calls nobody.");
};
const upstream: Upstream = {
  call: refuse,
  stream: refuse,
  forward: refuse,
  models: async () => undefined,
  schemaProblem: () => undefined,
};
const search: SearchIndex = {
  isOn: false,
  find: async () => [],
  forget: async () => {},
  behind: async () => 0,
};

/** Nothing is ever accepted or called: all that matters is that there is something of each. */
const settings: QueueSettings = {
  owner: { node: "reader", epoch: 0 },
  table: { upstreams: [], routes: [] },
  upstreams: [],
  limitGroups: [],
  prices: [],
  breaker: {
    enabled: false,
    consecutiveFailures: 1,
    failureRate: 1,
    minCalls: 1,
    windowMs: 1,
    cooldownMs: 1,
    maxCooldownMs: 1,
  },
  retryBudget: { ratio: 0, perSecond: 0 },
  failoverAfterMs: 0,
  heldBackoff: { baseMs: 1, maxMs: 1 },
  backoff: { baseMs: 1, maxMs: 1 },
  laneBackoff: { baseMs: 1, maxMs: 1 },
  unreachableAfterMs: 0,
  attemptMs: 1,
  firstTokenMs: 1,
  idleMs: 1,
  comeBack: { maxAttempts: 1, deadlineMs: 1 },
  adoptWindowMs: 0,
  failureEchoMs: 0,
  limits: { maxQueued: 0, maxHeld: 0, maxBodyMemoryBytes: 0 },
};

const defaults: ApiOptions["defaults"] = {
  wait: undefined,
  waitTimeoutMs: 0,
  holdTimeoutMs: 0,
  deadlineMs: 0,
  heldDeadlineMs: 0,
  maxAttempts: 1,
  heldMaxAttempts: 1,
  onUnknown: "fail",
  onDisconnect: "cancel",
  priority: undefined,
};

/** @throws Error where the file cannot be read */
export async function openDatabase(
  path: string,
  project: string,
  { clock, random }: { clock: Clock; random: Random },
): Promise<Api> {
  const store = openMemory(openToRead(path));
  const world: World = {
    clock,
    random,
    store,
    flow: store,
    cache: store,
    ledger: store,
    search,
    upstream,
    observer,
  };
  // Others on this machine can reach the port as well, and have no key.
  const key = random.id();
  const queue = new Queue(world, settings);
  const options: ApiOptions = {
    queue,
    deliveries: new Deliveries(clock),
    rests: new Rests(queue, clock),
    upstream,
    clock,
    observer,
    guard: createGuard({ apiKeys: [{ key, project, role: "user" }], allowedHosts: [] }),
    jsonOnly: false,
    table: settings.table,
    defaults,
    maxBodyBytes: 0,
    heartbeatMs: 1000,
    passthrough: "off",
    accountPathsOpen: false,
  };
  const server = createHttpServer(options, clock, 1000);
  const url = await server.listen("127.0.0.1", 0);
  return new Api(url, key, async () => {
    await server.stopListening();
    await server.close(0);
    await store.close();
  });
}
