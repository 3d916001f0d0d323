/** What is done with many requests, with crashes in between; and what is erased. */

import type { BulkAction } from "../../src/core/ledger/ports.ts";
import { isTerminal } from "../../src/core/request.ts";
import { start } from "./clock.ts";
import { Scene } from "./flow.ts";
import type { Plant } from "./world.ts";

const minuteMs = 60_000;
const project = "p1";

/** An hour of refusals, then one call that retries all that failed, by a process that is killed again and again. */
export async function bulkOverCrashes(
  seed: number,
  {
    action,
    requests,
    crashes,
    plant,
  }: { action: BulkAction; requests: number; crashes: number; plant?: Plant },
) {
  let isBroken = true;
  const scene = await Scene.open(seed, {
    plant,
    maxConcurrency: 64,
    fate: () => (isBroken ? "bad_request" : "answer"),
  });
  const { sim } = scene;
  await Promise.all(Array.from({ length: requests }, () => scene.ask()).map((one) => sim.until(one, 10_000)));
  await scene.settle(10 * minuteMs);
  isBroken = false;
  const failed = scene.count("failed");
  const draft = {
    project,
    action,
    filter: { project, states: ["failed" as const] },
    idempotencyKey: "once",
    fingerprint: "0a".repeat(32),
  };
  const ask = () => sim.until(sim.process.queue.ledger.ask(draft), minuteMs);
  const asked = await ask();
  const id = asked!.bulk.id;
  for (let i = 0; i < crashes; i++) {
    await scene.passTo(sim.clock.now() - start + 5 + ((seed * 31 + i * 17) % 40));
    sim.crash();
    await sim.boot();
    const again = await ask();
    if (again?.bulk.id !== id || !again.isKnown) sim.violation("a key was taken for another bulk");
  }
  await scene.passTo(sim.clock.now() - start + 10 * minuteMs);
  const bulk = sim.memory.engine.bulk(id)!;
  const left = scene.ids.map((one) => sim.memory.engine.get(one));
  return {
    failed,
    bulk,
    rounds: left.map((record) => record?.round),
    states: left.map((record) => record?.state),
    unended: left.filter((record) => record && !isTerminal(record.state)).length,
    violations: sim.violations,
  };
}

/** Requests are kept for an hour, their bodies for a minute; with crashes between. */
export async function retained(seed: number, plant?: Plant) {
  const retention = { completedMs: 60 * minuteMs, failedMs: 60 * minuteMs, bodiesMs: minuteMs };
  const scene = await Scene.open(seed, { plant, settings: { retention }, latencyMs: () => 500 });
  const { sim } = scene;
  const bodies = () =>
    scene.ids.filter((id) => sim.memory.engine.parts(id, ["body", "answer"]).length > 0).length;
  const rows = () => scene.ids.filter((id) => sim.memory.engine.get(id)).length;
  for (let i = 0; i < 200; i++) scene.askAt(i * 20);
  // One that runs for longer than everything is kept.
  scene.askAt(1, { runAt: start + 120 * minuteMs, deadlineMs: 240 * minuteMs });
  await scene.passTo(0.5 * minuteMs);
  const young = { bodies: bodies(), rows: rows() };
  sim.crash();
  await sim.boot();
  await scene.passTo(5 * minuteMs);
  const middle = { bodies: bodies(), rows: rows() };
  sim.crash();
  await sim.boot();
  await scene.passTo(70 * minuteMs);
  const old = { bodies: bodies(), rows: rows() };
  await scene.passTo(121 * minuteMs);
  return {
    young,
    middle,
    old,
    late: { rows: rows(), completed: lastState(scene) },
    violations: sim.violations,
  };
}

/** Somebody sets the wall clock by a year, by mistake or not. */
export async function clockSetByAYear(seed: number) {
  const retention = { completedMs: 24 * 60 * minuteMs };
  const scene = await Scene.open(seed, { settings: { retention }, latencyMs: () => 500 });
  const { sim } = scene;
  const rows = () => scene.ids.filter((id) => sim.memory.engine.get(id)).length;
  for (let i = 0; i < 20; i++) scene.askAt(i * 20);
  await scene.passTo(minuteMs);
  sim.clock.jump(365 * 24 * 60 * minuteMs);
  await scene.passTo(50 * minuteMs);
  const soon = rows();
  await scene.passTo(70 * minuteMs);
  return { soon, late: rows(), violations: sim.violations };
}

function lastState(scene: Scene): string | undefined {
  return scene.ids.map((id) => scene.sim.memory.engine.get(id)?.state).find((state) => state !== undefined);
}
