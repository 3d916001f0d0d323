/**
 * The simulation: core unchanged, on simulated time, seeded luck, a faulty upstream, and a real SQLite
 * database in memory that outlives crashes. A crash leaves zombies: calls of the dead process go on, and
 * what they bring is written late, as by a process that was only paused.
 */

import { createHash } from "node:crypto";
import { StorageError } from "../../src/core/errors.ts";
import type { ChangeSet, CommitResult, FlowStore, Store, Told, World } from "../../src/core/ports.ts";
import { Queue, type QueueSettings } from "../../src/core/queue.ts";
import { openMemory } from "../../src/store/sqlite/memory.ts";
import { Watchers } from "../../src/store/watchers.ts";
import { noSearch } from "../support/no-search.ts";
import { SimClock, seeded, settle } from "./clock.ts";
import { Recordings } from "./streams.ts";
import { SimUpstream, type Weather } from "./upstream.ts";
import { BreakerWitness, RetryWitness } from "./witness.ts";

export interface Plant {
  /** Changes what the store does with a change; undefined = as it should be. */
  commit?: (change: ChangeSet, next: (change: ChangeSet) => CommitResult) => CommitResult | undefined;
  store?: (store: Store) => Store;
  flow?: (flow: FlowStore) => FlowStore;
  settings?: (settings: QueueSettings) => QueueSettings;
}

export interface SimOptions {
  seed: number;
  weather: Weather;
  maxConcurrency?: number;
  /** Chance that a commit finds the disk full. */
  diskFull?: number;
  /** What differs from `usual`. */
  settings?: Partial<QueueSettings>;
  plant?: Plant;
}

export interface Process {
  number: number;
  queue: Queue;
  alive: boolean;
  /** It has recovered, and listens. */
  serves: boolean;
  /** Resolves when it is killed: whoever is connected to it sees that. */
  died: Promise<void>;
  die(): void;
}

export const twoUpstreams = {
  upstreams: [
    { name: "alpha", models: [] },
    { name: "beta", models: ["beta-*"] },
  ],
  routes: [
    { model: "both", targets: [{ upstream: "alpha" }, { upstream: "beta" }] },
    { model: "alone", targets: [{ upstream: "alpha" }] },
  ],
};

/** The settings that a server has by default, on two upstreams. */
export const usual: Omit<QueueSettings, "owner" | "upstreams"> = {
  table: twoUpstreams,
  limitGroups: [],
  breaker: {
    enabled: true,
    consecutiveFailures: 3,
    failureRate: 0.5,
    minCalls: 10,
    windowMs: 60_000,
    cooldownMs: 20_000,
    maxCooldownMs: 60_000,
  },
  retryBudget: { ratio: 0.2, perSecond: 2 },
  prices: [],
  failoverAfterMs: 1000,
  heldBackoff: { baseMs: 250, maxMs: 8000 },
  backoff: { baseMs: 1000, maxMs: 600_000 },
  laneBackoff: { baseMs: 1000, maxMs: 60_000 },
  unreachableAfterMs: 30_000,
  firstTokenMs: 120_000,
  idleMs: 60_000,
  attemptMs: 120_000,
  adoptWindowMs: 600_000,
  failureEchoMs: 10_000,
  comeBack: { maxAttempts: 25, deadlineMs: 86_400_000 },
  limits: { maxQueued: 1_000_000, maxHeld: 10_000, maxBodyMemoryBytes: 2 ** 28 },
};

export class Sim {
  readonly clock = new SimClock();
  readonly luck: () => number;
  readonly memory = openMemory();
  readonly upstream: SimUpstream;
  readonly violations: string[] = [];
  readonly told: Told[] = [];
  readonly recordings = new Recordings(this);
  readonly breakers: BreakerWitness;
  readonly retries: RetryWitness;
  /** The requests whose body carries a nonce. */
  readonly byNonce = new Map<string, string[]>();
  /** The nonce in the body of a request. */
  readonly nonces = new Map<string, string>();
  /** The requests of which it is on disk that their callers have the answers. */
  readonly answered = new Set<string>();
  process!: Process;
  diskFull: number;
  /** When a breaker was told last to have closed. */
  breakerClosedAt = 0;
  /** How many writes of events are on their way to the disk. */
  eventsUnderWay = 0;
  private processes = 0;
  private ids = 0;
  private readonly trace = createHash("sha256");
  private readonly plant: Plant;
  private readonly upstreams: QueueSettings["upstreams"];
  private readonly changed: Partial<QueueSettings>;

  constructor(options: SimOptions) {
    this.luck = seeded(options.seed);
    this.plant = options.plant ?? {};
    this.diskFull = options.diskFull ?? 0;
    const maxConcurrency = options.maxConcurrency ?? 8;
    this.upstreams = twoUpstreams.upstreams.map(({ name }) => ({ name, maxConcurrency }));
    this.changed = options.settings ?? {};
    this.witness();
    const violation = (text: string) => this.violation(text);
    this.breakers = new BreakerWitness(this.clock, this.changed.breaker ?? usual.breaker, violation);
    this.retries = new RetryWitness(this, this.changed.retryBudget ?? usual.retryBudget);
    this.upstream = new SimUpstream(this.clock, options.weather, maxConcurrency, violation);
    this.upstream.onBegin = (entry, startedAt) => this.breakers.began(entry, startedAt);
    this.upstream.onEnd = (entry, outcome) => this.breakers.ended(entry, outcome);
  }

  /** Sees what is written before anybody is told of it. */
  private witness(): void {
    const { engine } = this.memory;
    const commitAll = engine.commitAll.bind(engine);
    engine.commitAll = (changes) => {
      const results = commitAll(changes);
      for (const [i, result] of results.entries())
        if ("status" in result && result.status === "applied") this.recordings.applied(changes[i]!);
      return results;
    };
  }

  violation(text: string): void {
    if (this.violations.length < 20) this.violations.push(`${this.clock.now()}: ${text}`);
  }

  /** A hash over everything that was told: equal for equal seeds. */
  digest(): string {
    return this.trace.copy().digest("hex");
  }

  /** Starts a process on the database as it is. */
  async boot(): Promise<void> {
    const number = ++this.processes;
    const epoch = this.memory.nextEpoch("local", this.clock.wall());
    let die = () => {};
    const died = new Promise<void>((resolve) => {
      die = resolve;
    });
    const process: Process = {
      number,
      alive: true,
      serves: false,
      queue: undefined as unknown as Queue,
      died,
      die,
    };
    const world: World = {
      clock: {
        now: () => this.clock.wall(),
        ticks: () => this.clock.now(),
        timer: (ms, run) => this.clock.timer(ms, () => process.alive && run()),
      },
      random: { next: this.luck, id: () => `req_${String(++this.ids).padStart(8, "0")}` },
      ...this.storesFor(process),
      upstream: this.upstream.forProcess(number),
      observer: {
        tell: (event) => {
          this.trace.update(JSON.stringify([this.clock.now(), event]));
          this.told.push(event);
          if (process.alive) this.hear(event, number);
          if (event.event === "fault") this.violation(`fault: ${event.message}`);
        },
      },
    };
    const settings = this.settings(epoch);
    process.queue = new Queue(world, this.plant.settings?.(settings) ?? settings);
    this.process = process;
    const started = process.queue.recover().then(() => true);
    // A process that cannot start, because the disk is full, is started again.
    if (await this.until(started, 60_000)) {
      process.queue.begin();
      process.serves = true;
      return;
    }
    this.crash();
    await this.boot();
  }

  /** The process that serves, as soon as there is one. */
  async serving(): Promise<Process> {
    while (!this.process.serves || !this.process.alive) await this.pause(5);
    return this.process;
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => this.clock.timer(ms, resolve));
  }

  /** kill -9: nothing of the process goes on but the calls that it has under way. */
  crash(): void {
    this.process.alive = false;
    this.process.die();
    this.upstream.weather.provider?.crashed?.();
    this.breakers.crashed(this.diskFull === 0);
  }

  /** What a process tells while it lives. */
  private hear(event: Told, process: number): void {
    if (event.event === "breaker_closed") this.breakerClosedAt = this.clock.now();
    this.breakers.heard(event);
    this.retries.heard(event, process);
  }

  /** Runs simulated time until a promise settles. */
  async until<T>(promise: Promise<T>, withinMs: number): Promise<T | undefined> {
    let done = false;
    let value: T | undefined;
    promise.then(
      (result) => {
        value = result;
        done = true;
      },
      () => {
        done = true;
      },
    );
    const limit = this.clock.now() + withinMs;
    await settle();
    while (!done && (await this.clock.step(limit)));
    return value;
  }

  private settings(epoch: number): QueueSettings {
    return { ...usual, owner: { node: "local", epoch }, upstreams: this.upstreams, ...this.changed };
  }

  /** The store as a process sees it: slow, sometimes full, and after its death deaf but for late results. */
  private storesFor(process: Process): Pick<World, "store" | "flow" | "cache" | "ledger" | "search"> {
    const store = openMemory(this.memory.engine);
    // Also what a planted bug writes is told.
    const watchers = new Watchers();
    const never = new Promise<never>(() => {});
    const pause = () => {
      const ms = Math.floor(this.luck() * 4);
      return ms === 0 ? undefined : this.pause(ms);
    };
    const read = <A extends unknown[], R>(name: (...args: A) => Promise<R>) => {
      return async (...args: A): Promise<R> => {
        await pause();
        return process.alive ? name(...args) : never;
      };
    };
    const faulty: Store = {
      ...store,
      commit: async (change) => {
        const isEvents = change.kind === "events";
        const endsAttempt = change.kind === "change" && change.transition.attempt?.endedAt !== undefined;
        const late = isEvents || endsAttempt;
        if (isEvents) this.eventsUnderWay++;
        await pause();
        if (isEvents) this.eventsUnderWay--;
        if (!process.alive && !late) return never;
        if (!process.alive && isEvents) await this.pause(this.luck() * 5000);
        if (this.luck() < this.diskFull) throw new StorageError("full", "the disk is full");
        const result = await this.commit(store, change);
        if (result.status === "applied") watchers.tell(change);
        await pause();
        return process.alive || late ? result : never;
      },
      // Written lazily: a crash may be faster.
      answered: (id) => {
        this.clock.timer(this.luck() * 1000, () => {
          if (!process.alive) return;
          store.answered(id);
          this.answered.add(id);
        });
      },
      watch: (id, onEnded) => watchers.watch(id, onEnded),
      get: read(store.get),
      byKey: read(store.byKey),
      parts: read(store.parts),
      events: read(store.events),
      groups: read(store.groups),
      heads: read(store.heads),
      expiring: read(store.expiring),
      toldToWait: read(store.toldToWait),
      interrupted: read(store.interrupted),
    };
    const flow = { flow: read(store.flow), calledSince: read(store.calledSince) };
    const cache = { newest: read(store.newest), vectors: read(store.vectors) };
    return {
      store: this.plant.store?.(faulty) ?? faulty,
      flow: this.plant.flow?.(flow) ?? flow,
      cache,
      ledger: store,
      search: noSearch,
    };
  }

  /** Commits, and checks from the outside what no commit may do. */
  private async commit(store: Store, change: ChangeSet): Promise<CommitResult> {
    const { engine } = this.memory;
    const before = change.kind === "change" ? engine.get(change.transition.record.id) : undefined;
    const planted = this.plant.commit?.(change, (instead) => engine.commitAll([instead])[0] as CommitResult);
    const result = planted ?? (await store.commit(change));
    if (change.kind === "accept" && result.status === "applied") {
      const body = change.parts.find(({ kind }) => kind === "body")!;
      const { nonce } = JSON.parse(new TextDecoder().decode(body.bytes)) as { nonce: string };
      this.byNonce.set(nonce, [...(this.byNonce.get(nonce) ?? []), change.record.id]);
      this.nonces.set(change.record.id, nonce);
    }
    if (change.kind === "change" && result.status === "applied" && before) {
      const { expect, record } = change.transition;
      const { state, attempt, round, owner } = before;
      const fence = JSON.stringify([state, attempt, round, owner]);
      if (fence !== JSON.stringify([expect.state, expect.attempt, expect.round, expect.owner])) {
        this.violation(`a stale writer changed ${record.id} from ${fence}`);
      }
      const wasOver = ["completed", "failed", "cancelled"].includes(state);
      if (wasOver && record.round === round) this.violation(`${record.id} left the terminal state ${state}`);
    }
    return result;
  }
}
