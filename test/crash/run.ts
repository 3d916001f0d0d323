/** One run: a server that dies again and again under its callers, and what can be said afterwards. */

import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as after } from "node:timers/promises";
import { seeded } from "../sim/clock.ts";
import { Callers } from "./callers.ts";
import { type Evidence, faultsIn, readDatabase, summary } from "./evidence.ts";
import { type Life, type Plan, points, startLife, startUpstream, type UpstreamProcess } from "./processes.ts";

/** When a life ends: at a failpoint, or so many ms after its start or after it began to listen. */
export interface Death {
  point?: (typeof points)[number];
  hit?: number;
  from?: "start" | "listening";
  ms: number;
}

export interface Report {
  faults: string[];
  /** Failpoints at which the server died, with how often. */
  hits: Record<string, number>;
  /** From the start of a process on a file that a crash left behind to its readiness. */
  recoveryMs: { median: number; worst: number };
  summary: ReturnType<typeof summary>;
}

/** A point that is not reached within this time is left for a later life. */
const patienceMs = 5_000;
const crowd = { bare: 10, sdk: 40, streamed: 16 };

/** The first deaths fall into the making of the file. */
const births: Death[] = [
  { point: "before-commit", hit: 1, ms: patienceMs },
  { point: "after-commit", hit: 1, ms: patienceMs },
];

/** So many deaths: at every failpoint in turn, then half of them at failpoints and half at random times. */
export function deathsOf(seed: number, kills: number): Death[] {
  const luck = seeded(seed);
  const order = points.map((point) => ({ point, at: luck() })).sort((a, b) => a.at - b.at);
  const later = Array.from({ length: kills }, (_, i): Death => {
    if (i < points.length || luck() < 0.5) {
      const { point } = order[i % order.length]!;
      // A log does not grow long often.
      const most = point.endsWith("checkpoint") ? 1 : 60;
      return { point, hit: 1 + Math.floor(luck() ** 2 * most), ms: patienceMs };
    }
    if (luck() < 0.3) return { from: "start", ms: Math.floor(luck() * 400) };
    return { from: "listening", ms: Math.floor(luck() * 1000) };
  });
  return [...births, ...later].slice(0, kills);
}

export const described = ({ point, hit, from, ms }: Death): string =>
  point ? `${point} ${hit}` : `${from} ${ms} ms`;

class Run {
  readonly dir = mkdtempSync(join(tmpdir(), "outlast-crash-"));
  readonly journal = join(this.dir, "journal");
  readonly recoveriesMs: number[] = [];
  readonly troubles: string[] = [];
  readonly callers: Callers;
  private readonly plant: string | undefined;
  private upstream!: UpstreamProcess;
  private life: Life | undefined;

  constructor(seed: number, plant: string | undefined) {
    this.callers = new Callers(`s${seed}`, seeded(seed ^ 0xca11));
    this.plant = plant;
  }

  async begin(): Promise<void> {
    this.upstream = await startUpstream(this.dir);
    this.callers.come(crowd);
  }

  hits(): Record<string, number> {
    const names = existsSync(this.journal) ? readFileSync(this.journal, "utf8").trimEnd().split("\n") : [];
    const counts: Record<string, number> = Object.fromEntries(points.map((point) => [point, 0]));
    for (const name of names) counts[name]!++;
    return counts;
  }

  private live(plan: Plan = {}): Life {
    this.life = startLife(this.dir, this.upstream.url, { ...plan, plant: this.plant });
    return this.life;
  }

  private async listen(life: Life): Promise<void> {
    const url = await life.listening;
    if (url === undefined) return;
    this.recoveriesMs.push(performance.now() - life.startedAt);
    this.callers.door.open(url);
  }

  async liveAndDie({ point, hit, from, ms }: Death): Promise<void> {
    const life = this.live({ point, hit, journal: this.journal });
    const listening = this.listen(life);
    if (from !== "start") await listening;
    await Promise.race([life.exited, after(ms, undefined, { ref: false })]);
    life.child.kill("SIGKILL");
    const end = await life.exited;
    this.callers.door.shut();
    if (end !== "SIGKILL") this.troubles.push(`a server ended by itself with ${end}: ${life.errors()}`);
    this.noteTroubles(life);
  }

  /** A last life, in which everybody is served and everything ends; it is stopped, not killed. */
  async drain(withinMs: number): Promise<Evidence> {
    const life = this.live();
    await this.listen(life);
    const url = await life.listening;
    if (url !== undefined)
      await this.serveAll(url, withinMs).catch((error) => this.troubles.push(`the last server: ${error}`));
    life.child.kill("SIGTERM");
    const end = await life.exited;
    this.callers.door.shut();
    if (end !== 0) this.troubles.push(`the last server ended with ${end}: ${life.errors()}`);
    this.noteTroubles(life);
    await this.upstream.stop();
    const { wishes, replies, heard } = this.callers;
    return {
      wishes,
      replies,
      heard,
      ledger: this.upstream.ledger(),
      ...readDatabase(join(this.dir, "outlast.db")),
    };
  }

  /** Whatever was accepted ends, and is fetched once more, by its id. */
  private async serveAll(url: string, withinMs: number): Promise<void> {
    const until = performance.now() + withinMs;
    const served = this.callers.leave().then(() => true);
    if (!(await Promise.race([served, after(withinMs, false, { ref: false })])))
      this.troubles.push(
        `after ${withinMs} ms there are callers without their last reply: ${this.callers.unserved.join(", ")}`,
      );
    if (!(await drained(url, until))) {
      this.troubles.push(`after ${withinMs} ms there are requests that have not ended`);
      return;
    }
    for (const [id, nonce] of this.callers.acknowledged()) {
      await this.callers.fetchResult(id, nonce);
      await this.callers.readStream(id, nonce);
    }
  }

  private noteTroubles(life: Life): void {
    const lines = life.errors().split("\n");
    this.troubles.push(
      ...lines.filter((line) => /"msg":"(fault|storage_trouble)"|Error:|^\s+at /.test(line)),
    );
  }

  async end(): Promise<void> {
    this.life?.child.kill("SIGKILL");
    await this.life?.exited;
    await this.upstream.stop();
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Waits until no request is left that has not ended; false where that takes longer than `until`. */
async function drained(url: string, until: number): Promise<boolean> {
  for (;;) {
    const lists = await Promise.all(
      ["queued", "retrying", "processing"].map(async (state) => {
        const response = await fetch(`${url}/v1/requests?limit=1&status=${state}`);
        return ((await response.json()) as { data: { id: string }[] }).data;
      }),
    );
    const [one] = lists.flat();
    if (!one) return true;
    if (performance.now() > until) return false;
    await fetch(`${url}/v1/requests/${one.id}?wait=1`);
  }
}

/**
 * Kills a server again and again under load, lets the last one drain, and compares the three logs.
 * @param options.seed decides what callers want
 * @param options.plant breaks a promise of the server on purpose
 * @param options.drainMs how long the last server has to serve everybody
 */
export async function crashRun(options: {
  seed: number;
  deaths: Death[];
  plant?: string;
  drainMs: number;
}): Promise<Report> {
  const { seed, deaths, plant, drainMs } = options;
  const run = new Run(seed, plant);
  try {
    await run.begin();
    for (const death of deaths) await run.liveAndDie(death);
    // What was not reached in its own life has another chance, at its first hit.
    const planned = points.filter((point) => deaths.some((death) => death.point === point));
    for (const point of planned.filter((one) => run.hits()[one] === 0))
      await run.liveAndDie({ point, hit: 1, ms: patienceMs });
    const evidence = await run.drain(drainMs);
    const sorted = run.recoveriesMs.map(Math.round).sort((a, b) => a - b);
    return {
      faults: [...run.troubles, ...faultsIn(evidence)],
      hits: run.hits(),
      recoveryMs: { median: sorted[sorted.length >> 1] ?? 0, worst: sorted.at(-1) ?? 0 },
      summary: summary(evidence),
    };
  } finally {
    await run.end();
  }
}
