import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import { loadConfig } from "../../src/config.ts";
import type { Clock, Observer, Told } from "../../src/core/ports.ts";
import { startServer } from "../../src/server.ts";
import { systemClock, systemRandom } from "../../src/system.ts";
import { type FakeUpstream, startFake } from "./fake-upstream.ts";

/** Collects what the server tells, and lets a test wait for it instead of sleeping. */
export class Ear implements Observer {
  readonly heard: Told[] = [];
  private waiting: { matches: (told: Told) => boolean; resolve: (told: Told) => void }[] = [];

  tell(event: Told): void {
    this.heard.push(event);
    const matching = this.waiting.filter(({ matches }) => matches(event));
    this.waiting = this.waiting.filter((one) => !matching.includes(one));
    for (const { resolve } of matching) resolve(event);
  }

  /** The next (or an already heard) event of this name that fits. */
  event<E extends Told["event"]>(
    name: E,
    fits: (told: Extract<Told, { event: E }>) => boolean = () => true,
  ): Promise<Extract<Told, { event: E }>> {
    const matches = (told: Told) => told.event === name && fits(told as Extract<Told, { event: E }>);
    const already = this.heard.find(matches);
    if (already) return Promise.resolve(already as Extract<Told, { event: E }>);
    return new Promise((resolve) => {
      this.waiting.push({ matches, resolve: resolve as (told: Told) => void });
    });
  }

  all<E extends Told["event"]>(name: E): Extract<Told, { event: E }>[] {
    return this.heard.filter((told): told is Extract<Told, { event: E }> => told.event === name);
  }
}

export interface Outlast {
  url: string;
  /** For an SDK. */
  baseURL: string;
  /** Holds the database; survives `stop`, so a second server can be started on it. */
  dir: string;
  ear: Ear;
  /** The fakes by upstream name; `fake` is the first one. */
  fakes: Record<string, FakeUpstream>;
  fake: FakeUpstream;
  /** The real SDK, without retries of its own unless asked. */
  client(options?: ConstructorParameters<typeof OpenAI>[0]): OpenAI;
  fetch(path: string, init?: RequestInit): Promise<Response>;
  /** POST with a JSON body. */
  post(path: string, body: unknown, headers?: Record<string, string>): Promise<Response>;
  /** Stops the server; fakes go on (see `close`). */
  stop(): Promise<void>;
  close(): Promise<void>;
}

export interface OutlastOptions {
  /** More TOML, before the upstreams' tables. */
  toml?: string;
  /** More TOML behind everything. */
  tables?: string;
  env?: Record<string, string>;
  /** Names of fake upstreams to start (default: one, "fake"), or running ones. */
  upstreams?: string[] | Record<string, FakeUpstream>;
  /** More TOML in each upstream's table. */
  upstreamToml?: string;
  dir?: string;
  clock?: Clock;
  /** Luck for jitter: a constant in [0, 1). Default: real randomness. */
  luck?: number;
}

/** Backoffs of a millisecond or two, and no breaker, so that tests with the real clock do not wait, however much fails. */
export const quick = {
  OUTLAST_BREAKER_ENABLED: "false",
  OUTLAST_RETRY_HELD_BACKOFF_BASE: "1ms",
  OUTLAST_RETRY_HELD_BACKOFF_MAX: "2ms",
  OUTLAST_RETRY_BACKOFF_BASE: "1ms",
  OUTLAST_RETRY_BACKOFF_MAX: "2ms",
  OUTLAST_RETRY_LANE_BACKOFF_BASE: "1ms",
  OUTLAST_RETRY_LANE_BACKOFF_MAX: "2ms",
};

/** The whole server, in this process, on a real port, with a real database and fake upstreams. */
export async function startOutlast(options: OutlastOptions = {}): Promise<Outlast> {
  const given = options.upstreams ?? ["fake"];
  const fakes = Array.isArray(given) ? await startFakes(given) : given;
  const dir = options.dir ?? mkdtempSync(join(tmpdir(), "outlast-"));
  const file = join(dir, "outlast.toml");
  writeFileSync(file, tomlOf(options, fakes));
  const ear = new Ear();
  const env = {
    OUTLAST_PORT: "0",
    OUTLAST_DATA_DIR: dir,
    OUTLAST_STORE_MIN_FREE_DISK: "0",
    OUTLAST_DRAIN_DELAY: "0",
    ...options.env,
  };
  const config = loadConfig({ env, file });
  const random = options.luck === undefined ? systemRandom : { ...systemRandom, next: () => options.luck! };
  const running = await startServer(config, { clock: options.clock ?? systemClock, random, observer: ear });
  const { url } = running;
  const baseURL = `${url}/v1`;
  let stopped: Promise<void> | undefined;
  const stop = () => {
    stopped ??= running.stop();
    return stopped;
  };
  return {
    url,
    baseURL,
    dir,
    ear,
    fakes,
    fake: Object.values(fakes)[0]!,
    client: (more) => new OpenAI({ baseURL, apiKey: "caller-key", maxRetries: 0, ...more }),
    fetch: (path, init) => fetch(url + path, init),
    post: (path, body, headers) =>
      fetch(url + path, {
        method: "POST",
        headers: { "content-type": "application/json", ...headers },
        body: typeof body === "string" ? body : JSON.stringify(body),
      }),
    stop,
    async close() {
      await Promise.all(Object.values(fakes).map((fake) => fake.close()));
      await stop();
      rmSync(dir, { recursive: true, force: true });
    },
  };
}

async function startFakes(names: string[]): Promise<Record<string, FakeUpstream>> {
  return Object.fromEntries(await Promise.all(names.map(async (name) => [name, await startFake()] as const)));
}

function tomlOf(options: OutlastOptions, fakes: Record<string, FakeUpstream>): string {
  const upstreams = Object.entries(fakes).map(
    ([name, { baseUrl }]) =>
      `[upstreams.${name}]\nbase_url = "${baseUrl}"\napi_key = "sk-upstream-${name}"\n${options.upstreamToml ?? ""}\n`,
  );
  return [options.toml ?? "", ...upstreams, options.tables ?? ""].join("\n");
}

export const hello = { model: "gpt-test", messages: [{ role: "user" as const, content: "Hello" }] };
