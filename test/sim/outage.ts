/** One upstream, steady load, and ten minutes in which it answers 503, 429, or nothing at all. */

import { isTerminal } from "../../src/core/request.ts";
import { seeded, start } from "./clock.ts";
import { watchCalls } from "./scenario.ts";
import type { Fate, Weather } from "./upstream.ts";
import { checkLimits } from "./witness.ts";
import { Sim, twoUpstreams } from "./world.ts";

const minuteMs = 60_000;
const everyMs = 1000;
const loadMs = 20 * minuteMs;
/** Enough for what has come together, before the first deadlines. */
const limits = { requestsPerMinute: 400 };

export async function outage(seed: number) {
  const luck = seeded(seed);
  const weather: Weather = {
    fate: (now) => (now < start + 5 * minuteMs || now > start + 15 * minuteMs ? "answer" : trouble(luck())),
    latencyMs: () => 200 + Math.floor(luck() * 1000),
    retryAfterS: () => Math.floor(luck() * 30),
    streams: { fate: () => "whole", gapMs: () => 0, variant: () => 0, luck },
  };
  const upstreams = twoUpstreams.upstreams.map(({ name }) => ({ name, maxConcurrency: 64, limits }));
  const settings = { upstreams, limitGroups: [] };
  const sim = new Sim({ seed, weather, maxConcurrency: 64, settings });
  await sim.boot();
  watchCalls(sim, []);
  let accepted = 0;
  for (let at = 0; at < loadMs; at += everyMs)
    sim.clock.timer(at, () => void submit(sim).then(() => accepted++));
  let deepest = 0;
  const measure = () => {
    deepest = Math.max(deepest, waiting(sim));
    if (sim.clock.now() < start + loadMs) sim.clock.timer(10_000, measure);
  };
  measure();
  while (await sim.clock.step(start + loadMs));
  for (let steps = 0; waiting(sim) > 0 && steps < 100_000; steps++)
    await sim.clock.step(start + 24 * 60 * minuteMs);
  while (await sim.clock.step(sim.clock.now() + 5000));
  checkLimits(sim, settings);
  const rows = sim.memory.engine.list({ project: "p1", order: "asc", limit: 10_000 });
  await sim.memory.close();
  const count = (state: string) => rows.filter((row) => row.state === state).length;
  return {
    accepted,
    deepest,
    completed: count("completed"),
    failed: count("failed"),
    left: rows.filter(({ state }) => !isTerminal(state)).length,
    mostCounted: Math.max(...rows.map(({ counted }) => counted)),
    violations: sim.violations,
  };
}

function trouble(draw: number): Fate {
  if (draw < 0.4) return "error_503";
  if (draw < 0.8) return draw < 0.6 ? "throttle" : "throttle_told";
  return "silence";
}

/** Half have a day; half have until some minutes after the trouble, if it is still to come. */
function deadlineMs(sim: Sim): number {
  const draw = sim.luck();
  const leftMs = start + 19 * minuteMs + Math.floor(draw * 6 * minuteMs) - sim.clock.now();
  return draw < 0.5 || leftMs < 5 * minuteMs ? 86_400_000 : leftMs;
}

const waiting = (sim: Sim): number => sim.memory.engine.groups().reduce((sum, { count }) => sum + count, 0);

async function submit(sim: Sim): Promise<void> {
  const body = new TextEncoder().encode(JSON.stringify({ nonce: `n${sim.clock.now()}` }));
  await sim.process.queue.submit({
    project: "p1",
    endpoint: "chat.completions",
    model: "alone",
    content: { head: { method: "POST", path: "/chat/completions", headers: [] }, body },
    terms: {
      maxAttempts: 25,
      deadlineMs: deadlineMs(sim),
      onUnknown: "retry",
      onDisconnect: "continue",
      held: false,
      stream: sim.luck() < 0.5 ? { mode: "live", usage: false } : undefined,
    },
    priority: "default",
    tags: [],
    hold: false,
  });
}
