/** Scenarios of flow control, each with one thing to see. Everything else goes well in them. */

import type { QueueSettings } from "../../src/core/queue.ts";
import { isTerminal, type RequestRecord } from "../../src/core/request.ts";
import type { Draft } from "../../src/core/submissions.ts";
import { seeded, start } from "./clock.ts";
import { Broken, Crowded, Metered } from "./providers.ts";
import { watchCalls } from "./scenario.ts";
import type { Fate, Provider } from "./upstream.ts";
import { checkLimits } from "./witness.ts";
import { type Plant, Sim, twoUpstreams } from "./world.ts";

const minuteMs = 60_000;
const encoder = new TextEncoder();

export interface Setup {
  settings?: Partial<QueueSettings>;
  fate?: () => Fate;
  latencyMs?: (luck: () => number) => number;
  provider?: (sim: Sim) => Provider;
  maxConcurrency?: number;
  plant?: Plant;
}

export interface Ask {
  model?: string;
  project?: string;
  priority?: Draft["priority"];
  deadlineMs?: number;
  maxAttempts?: number;
  runAt?: number;
  stream?: boolean;
  held?: boolean;
}

/** A process that serves, and what is asked of it. */
export class Scene {
  readonly sim: Sim;
  readonly ids: string[] = [];
  private asked = 0;
  private steps = 0;

  private constructor(sim: Sim) {
    this.sim = sim;
  }

  static async open(seed: number, setup: Setup = {}): Promise<Scene> {
    const luck = seeded(seed ^ 0xf10);
    const { settings, plant, maxConcurrency = 256 } = setup;
    const weather = {
      fate: setup.fate ?? (() => "answer" as const),
      latencyMs: () => setup.latencyMs?.(luck) ?? 200 + Math.floor(luck() * 1000),
      retryAfterS: () => 1,
      streams: { fate: () => "whole" as const, gapMs: () => 100, variant: () => 0, luck },
      provider: undefined as Provider | undefined,
    };
    const sim = new Sim({ seed, weather, maxConcurrency, settings, plant });
    weather.provider = setup.provider?.(sim);
    await sim.boot();
    watchCalls(sim, []);
    return new Scene(sim);
  }

  async ask(how: Ask = {}): Promise<string> {
    const { project = "p1", priority = "default", model = "alone", deadlineMs = 86_400_000 } = how;
    const { runAt, held = false, stream, maxAttempts = 25 } = how;
    const body = encoder.encode(
      JSON.stringify({ nonce: `a${++this.asked}`, tokens: { prompt: 50, output: 50 } }),
    );
    const { record } = await this.sim.process.queue.submit({
      project,
      endpoint: "chat.completions",
      model,
      content: { head: { method: "POST", path: "/chat/completions", headers: [] }, body },
      terms: {
        maxAttempts,
        deadlineMs,
        onUnknown: "retry",
        onDisconnect: "continue",
        held,
        size: { textBytes: 200, mediaTokens: 0, maxOutput: 50 },
        stream: stream ? { mode: "live", usage: false } : undefined,
      },
      priority,
      runAt,
      tags: [],
      hold: false,
    });
    this.ids.push(record.id);
    return record.id;
  }

  /** Asks at an instant, in ms from the start. */
  askAt(atMs: number, how: Ask = {}): void {
    this.sim.clock.timer(start + atMs - this.sim.clock.now(), () => void this.ask(how));
  }

  /** Lets time pass until an instant, in ms from the start. */
  async passTo(atMs: number): Promise<void> {
    while (await this.step(atMs));
  }

  /** False where nothing is left to happen before an instant; whoever spins is stopped. */
  private async step(atMs: number): Promise<boolean> {
    if (++this.steps < 300_000) return this.sim.clock.step(start + atMs);
    this.sim.violation("somebody spins");
    return false;
  }

  /** Lets time pass until all have ended, or until an instant. */
  async settle(atMs: number): Promise<void> {
    for (;;) {
      if (this.rows().every(({ state }) => isTerminal(state))) return;
      for (let steps = 0; steps < 100; steps++) if (!(await this.step(atMs))) return;
    }
  }

  rows(): RequestRecord[] {
    return this.ids.map((id) => this.sim.memory.engine.get(id)!);
  }

  count(state: RequestRecord["state"]): number {
    return this.rows().filter((row) => row.state === state).length;
  }

  /** When an upstream saw calls, in ms from the start. */
  calls(upstream?: string): number[] {
    const { ledger } = this.sim.upstream;
    return ledger
      .filter((one) => upstream === undefined || one.upstream === upstream)
      .map(({ at }) => at - start);
  }
}

const both = (limits: { requestsPerMinute?: number; tokensPerMinute?: number }, more: object = {}) =>
  twoUpstreams.upstreams.map(({ name }) => ({ name, maxConcurrency: 256, limits, ...more }));

/** A thousand requests in one instant, and a limit. With crashes between. */
export async function burst(seed: number, plant?: Plant) {
  const upstreams = both({ requestsPerMinute: 300, tokensPerMinute: 40_000 });
  const settings = { upstreams, limitGroups: [] };
  const scene = await Scene.open(seed, { settings, plant });
  const { sim } = scene;
  await Promise.all(Array.from({ length: 1000 }, () => scene.ask()).map((one) => sim.until(one, 10_000)));
  for (const atMs of [20_000, 62_000, 62_500, 130_000]) {
    await scene.passTo(atMs);
    sim.crash();
    await sim.boot();
  }
  await scene.settle(30 * minuteMs);
  checkLimits(sim, settings);
  const endMs = Math.max(...scene.rows().map(({ endedAt = 0 }) => endedAt)) - start;
  return {
    completed: scene.count("completed"),
    endMs,
    calls: scene.calls().length,
    violations: sim.violations,
  };
}

/** Nothing is configured, and the provider keeps an account: how often it has to refuse. */
export async function learned(
  seed: number,
  how: { warm: boolean; form: "duration" | "none"; saysWhen: boolean },
) {
  let metered!: Metered;
  const provider = ({ clock }: Sim) => {
    metered = new Metered(clock, { requests: 120, tokens: 12_000 }, how);
    return metered;
  };
  const scene = await Scene.open(seed, { provider });
  if (how.warm) await scene.sim.until(scene.ask(), 5000);
  await scene.passTo(10_000);
  await Promise.all(Array.from({ length: 300 }, () => scene.ask()).map((one) => scene.sim.until(one, 5000)));
  // A steady stream of work beyond what the provider bears.
  for (let i = 0; i < 300; i++) scene.askAt(4 * minuteMs + i * 400);
  await scene.passTo(6 * minuteMs);
  await scene.settle(30 * minuteMs);
  const endMs = Math.max(...scene.rows().map(({ endedAt = 0 }) => endedAt)) - start;
  const { refusedAt } = metered;
  const inBurst = refusedAt.filter((at) => at < 4 * minuteMs).length;
  const states = { completed: scene.count("completed") };
  return {
    refused: inBurst,
    later: refusedAt.length - inBurst,
    endMs,
    ...states,
    violations: scene.sim.violations,
  };
}

/** The upstream bears five calls at once. */
export async function crowded(seed: number, status: 503 | 429, plant?: Plant) {
  let provider!: Crowded;
  const setup: Setup = {
    plant,
    provider: ({ clock }) => {
      provider = new Crowded(clock, 5, status);
      return provider;
    },
  };
  const scene = await Scene.open(seed, setup);
  const { sim } = scene;
  await Promise.all(Array.from({ length: 500 }, () => scene.ask()).map((one) => sim.until(one, 5000)));
  await scene.settle(60 * minuteMs);
  const endMs = Math.max(...scene.rows().map(({ endedAt = 0 }) => endedAt)) - start;
  const late = (times: number[]) => times.filter((at) => at > (endMs * 2) / 3).length;
  return {
    completed: scene.count("completed"),
    endMs,
    refused: provider.refusedAt.length,
    lateRefused: late(provider.refusedAt),
    lateTaken: late(provider.takenAt),
    violations: sim.violations,
  };
}

/** S15: 503 for a minute while a request comes every four seconds, and a fallback. */
export async function primaryOut(seed: number) {
  const outage: [number, number] = [4000, 64_000];
  const scene = await Scene.open(seed, {
    provider: ({ clock }) => new Broken(clock, "alpha", outage),
    latencyMs: (luck) => 50 + Math.floor(luck() * 200),
  });
  const every = 4000;
  for (let i = 0; i < 20; i++)
    scene.askAt(outage[0] + i * every, { model: "both", priority: "interactive", held: true });
  // Traffic goes on, so that there is somebody to find out.
  for (let i = 20; i < 40; i++)
    scene.askAt(outage[0] + i * every, { model: "both", priority: "interactive", held: true });
  await scene.passTo(200_000);
  const primary = scene.calls("alpha");
  const { ledger } = scene.sim.upstream;
  const served = ledger.filter((one) => one.upstream === "alpha" && one.refusedWith === undefined);
  const slowest = Math.max(...scene.rows().map(({ endedAt = 1e15, createdAt }) => endedAt - createdAt));
  return {
    inOutage: primary.filter((at) => at >= outage[0] && at < outage[1]).length,
    backAfterMs: Math.min(...served.map(({ at }) => at - start).filter((at) => at >= outage[1])) - outage[1],
    completed: scene.count("completed"),
    slowestMs: slowest,
    violations: scene.sim.violations,
  };
}

/** One project has queued thousands, another asks for one thing, and batch work waits beside it. */
export async function shared(seed: number, queued: number, plant?: Plant) {
  const scene = await Scene.open(seed, { maxConcurrency: 4, latencyMs: () => 1000, plant });
  const { sim } = scene;
  const work = (project: string, priority: Draft["priority"], n: number) =>
    Array.from({ length: n }, () => scene.ask({ project, priority }));
  for (const one of work("p1", "default", queued)) await sim.until(one, 5000);
  for (const one of work("p1", "batch", 200)) await sim.until(one, 5000);
  const turns = watchTurns(sim);
  const delays: number[] = [];
  let atMs = sim.clock.now() - start;
  for (let i = 0; i < 20; i++) {
    atMs += 3217;
    await scene.passTo(atMs);
    const id = await sim.until(scene.ask({ project: "p2" }), 1000);
    const taken = turns.length;
    atMs += 5000;
    await scene.passTo(atMs);
    const at = turns.indexOf(id!);
    // How many others had a turn between its acceptance and its own.
    delays.push(at < 0 ? Number.POSITIVE_INFINITY : Math.max(0, at - taken));
  }
  const { ledger } = sim.upstream;
  const priorities = new Map(scene.rows().map((row) => [sim.nonces.get(row.id), row.priority]));
  const recent = ledger.slice(-240).map(({ request }) => priorities.get(request));
  return {
    mostBefore: Math.max(...delays),
    batchShare: recent.filter((priority) => priority === "batch").length / recent.length,
    violations: sim.violations,
  };
}

/** The requests that are given slots, in the order of their turns. */
function watchTurns(sim: Sim): string[] {
  const turns: string[] = [];
  // biome-ignore lint/complexity/useLiteralKeys: the way to what is private
  const { lanes } = sim.process.queue["scheduler"];
  const slot = lanes.slot.bind(lanes);
  lanes.slot = (lane, record, now) => {
    const granted = slot(lane, record, now);
    if (granted) turns.push(record.id);
    return granted;
  };
  return turns;
}

/** The first target of a route is at its limit: who goes to the second, and who waits. */
export async function overLimit(seed: number, plant?: Plant) {
  const upstreams = [
    { name: "alpha", maxConcurrency: 256, limits: { requestsPerMinute: 10 } },
    { name: "beta", maxConcurrency: 256 },
  ];
  const settings = { upstreams, limitGroups: [] };
  const scene = await Scene.open(seed, { settings, plant, latencyMs: () => 300 });
  for (let i = 0; i < 30; i++) {
    scene.askAt(1000 + i, { model: "both", priority: "interactive", held: true });
    scene.askAt(1000 + i, { model: "both", priority: "batch" });
  }
  await scene.passTo(10_000);
  await scene.settle(20 * minuteMs);
  checkLimits(scene.sim, settings);
  const rows = scene.rows();
  const of = (priority: string) => rows.filter((row) => row.priority === priority);
  const waited = (row: RequestRecord) => (row.startedAt ?? 1e15) - row.createdAt;
  return {
    slowestInteractiveMs: Math.max(...of("interactive").map(waited)),
    interactiveElsewhere: of("interactive").filter(({ upstream }) => upstream === "beta").length,
    batchElsewhere: of("batch").filter(({ upstream }) => upstream === "beta").length,
    completed: scene.count("completed"),
    violations: scene.sim.violations,
  };
}

/** What is the caller's fault, or his doing, says nothing about the upstream. */
export async function callersFault(seed: number, plant?: Plant) {
  let n = 0;
  const scene = await Scene.open(seed, {
    plant,
    fate: () => (n++ % 2 ? "bad_request" : "silence"),
    maxConcurrency: 64,
  });
  for (let i = 0; i < 60; i++) scene.askAt(i * 500, { deadlineMs: 1500 });
  await scene.passTo(10_000);
  for (const id of scene.ids) void scene.sim.process.queue.cancel("p1", id).catch(() => {});
  await scene.settle(10 * minuteMs);
  return { opened: scene.sim.breakers.opened, violations: scene.sim.violations };
}

/** A probe that streams for a minute has shown with its first content that the upstream is well. */
export async function streamingProbe(seed: number) {
  const outage: [number, number] = [0, 30_000];
  const scene = await Scene.open(seed, {
    provider: ({ clock }) => new Broken(clock, "alpha", outage),
    latencyMs: () => 100,
  });
  scene.sim.upstream.weather.streams.gapMs = () => 5000;
  for (let i = 0; i < 40; i++) scene.askAt(i * 1000, { stream: true });
  await scene.passTo(400_000);
  const closedAt = scene.sim.breakerClosedAt - start;
  const next = scene.calls("alpha").filter((at) => at >= closedAt);
  return { closedAt, nextAfterMs: Math.min(...next) - closedAt, violations: scene.sim.violations };
}

/** Under load, with a limit, a gate and a breaker that are closed, retries and dates: somebody sets the clock. */
export async function clockIsSet(seed: number, byMs: number, plant?: Plant) {
  const upstreams = both({ requestsPerMinute: 30 });
  const luck = seeded(seed ^ 0xc10c);
  const troubles: Fate[] = ["error_503", "throttle", "throttle_told", "silence"];
  let isCalm = false;
  const scene = await Scene.open(seed, {
    settings: { upstreams, limitGroups: [] },
    plant,
    fate: () => (isCalm || luck() < 0.3 ? "answer" : troubles[Math.floor(luck() * troubles.length)]!),
  });
  const { sim } = scene;
  for (let i = 0; i < 40; i++)
    scene.askAt(i * 1500, { stream: i % 3 === 0, model: i % 2 ? "alone" : "other" });
  for (let i = 0; i < 5; i++) scene.askAt(i * 1500, { runAt: start + 80_000 + i * 1000 });
  await scene.passTo(60_000);
  sim.clock.jump(byMs);
  isCalm = true;
  for (let i = 0; i < 20; i++) scene.askAt(61_000 + i * 500, { model: i % 2 ? "both" : "alone" });
  await scene.passTo(75_000);
  await scene.settle(3 * 3_600_000);
  const calls = scene.calls("alpha");
  const inMinute = (from: number) => calls.filter((at) => at >= from && at < from + minuteMs).length;
  // Dates are dates: they come when the clock on the wall says so.
  const dated = new Set(
    scene
      .rows()
      .flatMap((row) =>
        row.dueAt - row.createdAt >= 20_000 && row.attempt < 2 ? [sim.nonces.get(row.id)] : [],
      ),
  );
  const ends = sim.upstream.ledger.filter(({ request }) => !dated.has(request)).map(({ at }) => at - start);
  return {
    asked: scene.ids.length,
    completed: scene.count("completed"),
    mostInMinute: Math.max(...calls.map(inMinute)),
    endMs: Math.max(...ends),
    violations: sim.violations,
  };
}
