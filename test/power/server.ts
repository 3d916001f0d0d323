/** The built server as a process, with or without the shim that cuts its power. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** What the shim does; see power-cut.c. */
export interface Power {
  /** The number of the operation at which the power goes. */
  cutAt?: number;
  /** Counts operations on the database itself only, not on its log: cuts in the middle of a checkpoint. */
  inDatabase?: boolean;
  seed?: number;
  /** `CALL:FILE:N`, `CALL:FILE:N-M` or `CALL:FILE:N+` */
  fault?: string;
}

export interface ServerOptions {
  /** Where the database is. */
  dir: string;
  /** The base URL of its one upstream. */
  upstream: string;
  power?: Power;
  synchronous?: "FULL" | "NORMAL";
  env?: Record<string, string>;
}

/** What the shim exits with when the power goes. */
export const powerWent = 137;

const main = join(import.meta.dirname, "../../dist/main.js");
const normal = join(import.meta.dirname, "normal.mjs");
const quick = {
  OUTLAST_RETRY_HELD_BACKOFF_BASE: "1ms",
  OUTLAST_RETRY_HELD_BACKOFF_MAX: "2ms",
  OUTLAST_RETRY_BACKOFF_BASE: "1ms",
  OUTLAST_RETRY_BACKOFF_MAX: "2ms",
};

function environmentOf({ dir, upstream, power, env }: ServerOptions): Record<string, string> {
  const file = join(dir, "outlast.db");
  const powered = power && {
    LD_PRELOAD: process.env.POWER_SHIM!,
    POWER_FILE: file,
    POWER_CUT_AT: String(power.cutAt ?? 0),
    POWER_SEED: String(power.seed ?? 0),
    ...(power.inDatabase && { POWER_CUT_IN: "db" }),
    ...(power.fault && { POWER_FAULT: power.fault }),
  };
  return {
    PATH: process.env.PATH ?? "",
    OUTLAST_DATA_DIR: dir,
    OUTLAST_PORT: "0",
    OUTLAST_STORE_MIN_FREE_DISK: "0",
    OPENAI_API_KEY: "sk-fake",
    OPENAI_BASE_URL: upstream,
    ...quick,
    ...env,
    ...powered,
  };
}

/** A server that may end at any moment. */
export class Server {
  /** Resolves with its URL, or with undefined where it ended before it listened. */
  readonly listening: Promise<string | undefined>;
  /** Resolves with its exit code, or with the name of the signal that ended it. */
  readonly ended: Promise<number | string>;
  /** Everything that it has said, log and all. */
  output = "";
  private readonly listeners = new Set<() => void>();
  private readonly process: ChildProcess;

  constructor(options: ServerOptions) {
    const preload = options.synchronous === "NORMAL" ? ["--import", normal] : [];
    this.process = spawn(process.execPath, [...preload, main, "serve"], {
      cwd: tmpdir(),
      env: environmentOf(options),
      stdio: ["ignore", "pipe", "pipe"],
    });
    const hear = (chunk: Buffer) => {
      this.output += chunk;
      for (const listen of this.listeners) listen();
    };
    this.process.stdout!.on("data", hear);
    this.process.stderr!.on("data", hear);
    this.ended = once(this.process, "close").then(([code, signal]) => code ?? signal);
    this.listening = this.hears(/^Outlast listens on (\S+)/m).then((found) => found?.[1]);
  }

  /** What it says that fits, as soon as it does; undefined where it ends without. */
  private hears(pattern: RegExp): Promise<RegExpExecArray | undefined> {
    return new Promise((resolve) => {
      const done = (found: RegExpExecArray | undefined) => {
        this.listeners.delete(listen);
        resolve(found);
      };
      const listen = () => {
        const found = pattern.exec(this.output);
        if (found) done(found);
      };
      this.listeners.add(listen);
      this.ended.then(() => done(undefined));
      listen();
    });
  }

  /** Its URL. @throws Error where it did not start */
  async url(): Promise<string> {
    const url = await this.listening;
    if (url) return url;
    throw new Error(`The server did not start:\n${this.output}`);
  }

  /** Waits until it tells an event. @throws Error where it ends without */
  async tells(event: string): Promise<void> {
    if (await this.hears(new RegExp(`"msg":"${event}"`))) return;
    throw new Error(`The server ended without "${event}":\n${this.output}`);
  }

  /** Asks it to stop, and waits for its end. */
  stop(signal: NodeJS.Signals = "SIGTERM"): Promise<number | string> {
    this.process.kill(signal);
    return this.ended;
  }
}

/** What is in the shared memory of the log after a power cut is anybody's guess; SQLite must not believe it. */
export function garble(dir: string, byte: number): void {
  writeFileSync(join(dir, "outlast.db-shm"), Buffer.alloc(32768, byte));
}
