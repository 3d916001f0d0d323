/** The processes around the test: the built server, which is killed again and again, and the upstream, which is not. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const dist = process.env.DIST ?? join(import.meta.dirname, "../../dist");
const main = join(dist, "main.js");

/** Where a server dies, in the order of a request's life. `hit`: at which of its hits. */
export const points = [
  "before-transaction",
  "inside-transaction",
  "before-commit",
  "after-commit",
  "before-checkpoint",
  "after-checkpoint",
  "accept-known",
  "before-send",
  "after-send",
  "answer-begun",
  "answer-flowing",
  "events-handed-over",
  "events-inside",
  "events-written",
  "events-known",
  "stream-flowing",
  "answer-whole",
  "change-known",
  "before-reply",
  "after-reply",
] as const;

export interface Plan {
  point?: (typeof points)[number];
  hit?: number;
  /** File to which the name of the point is written when it was hit. */
  journal?: string;
  /** A promise that the server breaks on purpose: a name in plants.mjs. */
  plant?: string;
}

export interface Life {
  child: ChildProcess;
  startedAt: number;
  /** Resolves with its address when it listens, undefined where it dies before. */
  listening: Promise<string | undefined>;
  /** The exit code, or the signal that ended it. */
  exited: Promise<number | string>;
  errors(): string;
}

/** Waits of milliseconds, not of minutes: what is shown does not depend on them. */
const quick = {
  OUTLAST_RETRY_HELD_BACKOFF_BASE: "2ms",
  OUTLAST_RETRY_HELD_BACKOFF_MAX: "50ms",
  OUTLAST_RETRY_BACKOFF_BASE: "2ms",
  OUTLAST_RETRY_BACKOFF_MAX: "50ms",
  OUTLAST_RETRY_LANE_BACKOFF_BASE: "5ms",
  OUTLAST_RETRY_LANE_BACKOFF_MAX: "50ms",
  OUTLAST_RETRY_BUDGET_PER_SECOND: "100",
  OUTLAST_BREAKER_COOLDOWN: "10ms",
  OUTLAST_BREAKER_COOLDOWN_MAX: "40ms",
};

/** Starts the server on a directory. Does not wait for it. */
export function startLife(dir: string, upstreamUrl: string, plan: Plan = {}): Life {
  const toml = `[upstreams.fake]\nbase_url = "${upstreamUrl}"\nmax_concurrency = 32\n`;
  writeFileSync(join(dir, "outlast.toml"), toml);
  const preloads = [plan.point && "failpoints.mjs", plan.plant && "plants.mjs"].filter((one) => one);
  const imports = preloads.flatMap((one) => [
    "--import",
    pathToFileURL(join(import.meta.dirname, one!)).href,
  ]);
  const child = spawn(process.execPath, [...imports, main, "serve"], {
    cwd: dir,
    env: {
      PATH: process.env.PATH,
      OUTLAST_PORT: "0",
      OUTLAST_DATA_DIR: dir,
      OUTLAST_STORE_MIN_FREE_DISK: "0",
      OUTLAST_LOG_LEVEL: "warn",
      ...quick,
      CRASH_PLAN: JSON.stringify({ ...plan, dist: pathToFileURL(dist).href }),
    },
  });
  const startedAt = performance.now();
  let output = "";
  let errors = "";
  child.stderr.on("data", (bytes) => {
    errors += bytes;
  });
  const exited = once(child, "close").then(([code, signal]) => (code ?? signal) as number | string);
  const listening = new Promise<string | undefined>((resolve) => {
    child.stdout.on("data", (bytes) => {
      output += bytes;
      const url = /Outlast listens on (http:\S+)/.exec(output)?.[1];
      if (url) resolve(url);
    });
    exited.then(() => resolve(undefined));
  });
  return { child, startedAt, listening, exited, errors: () => errors };
}

/** One call of the upstream's ledger. */
export interface Line {
  nonce: string;
  call: number;
  did: "received" | "executed" | "refused";
  /** SHA-256 of the answer, where it was executed. */
  sha?: string;
  /** What it said, where that was a stream. */
  text?: string;
}

export interface UpstreamProcess {
  url: string;
  ledger(): Line[];
  stop(): Promise<void>;
}

export async function startUpstream(dir: string): Promise<UpstreamProcess> {
  const path = join(dir, "ledger.jsonl");
  writeFileSync(path, "");
  const child = spawn(process.execPath, [join(import.meta.dirname, "upstream.mjs"), path]);
  let errors = "";
  child.stderr.on("data", (bytes) => {
    errors += bytes;
  });
  const exited = once(child, "close");
  const [port] = await Promise.race([once(child.stdout, "data"), exited]);
  if (child.exitCode !== null) throw new Error(`the upstream ended: ${errors}`);
  return {
    url: `http://127.0.0.1:${Number(port)}/v1`,
    ledger() {
      const lines = readFileSync(path, "utf8").trimEnd().split("\n").filter(Boolean);
      return lines.map((line) => JSON.parse(line) as Line);
    },
    async stop() {
      child.kill("SIGKILL");
      await exited;
    },
  };
}
