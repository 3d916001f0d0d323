/**
 * Core, unchanged, in a simulated world: hundreds of seeds, each with its own faults.
 * SEED=n replays one seed and prints what it saw; SEEDS=n runs that many.
 */

import { describe, expect, test } from "vitest";
import { outage } from "./outage.ts";
import { tell } from "./scenario.ts";

const only = process.env.SEED === undefined ? undefined : Number(process.env.SEED);
const seeds = Number(process.env.SEEDS ?? 150);

describe("the simulation", () => {
  test("keeps every promise, whatever goes wrong", { timeout: 600_000 }, async () => {
    let calls = 0;
    let crashes = 0;
    let adopted = 0;
    let echoed = 0;
    let opened = 0;
    let parked = 0;
    let invalid = 0;
    const streams = { completed: 0, restarted: 0, audience: 0 };
    for (let seed = only ?? 1; seed <= (only ?? seeds); seed++) {
      const report = await tell(seed);
      if (only !== undefined) console.log(report);
      expect(report.violations, `replay with SEED=${seed} npm run sim`).toEqual([]);
      calls += report.calls;
      crashes += report.crashes;
      adopted += report.adopted;
      echoed += report.echoed;
      opened += report.opened;
      parked += report.parked;
      invalid += report.invalid;
      streams.completed += report.streams.completed;
      streams.restarted += report.streams.restarted;
      streams.audience += report.streams.audience;
    }
    // Silence would also keep every promise.
    if (only === undefined) expect(calls).toBeGreaterThan(seeds * 10);
    if (only === undefined) expect(crashes).toBeGreaterThan(seeds);
    if (only === undefined) expect(adopted).toBeGreaterThan(seeds * 5);
    if (only === undefined) expect(echoed).toBeGreaterThan(seeds / 15);
    if (only === undefined) expect(opened).toBeGreaterThan(seeds);
    if (only === undefined) expect(parked).toBeGreaterThan(seeds / 25);
    if (only === undefined) expect(invalid).toBeGreaterThan(seeds);
    if (only === undefined) expect(streams.completed).toBeGreaterThan(seeds * 5);
    if (only === undefined) expect(streams.restarted).toBeGreaterThan(seeds / 5);
    if (only === undefined) expect(streams.audience).toBeGreaterThan(seeds * 15);
  });

  test("is the same for the same seed", async () => {
    for (const seed of [3, 1234, 99_999]) expect((await tell(seed)).digest).toBe((await tell(seed)).digest);
  });
});

describe("ten minutes without an upstream, under load", () => {
  test("nothing fails or runs out of attempts: the queue grows, then drains", async () => {
    const { failed, completed, accepted, deepest, left, mostCounted, violations } = await outage(7);
    expect(violations).toEqual([]);
    expect(failed).toBe(0);
    expect(deepest).toBeGreaterThan(300);
    expect(left).toBe(0);
    expect(completed).toBe(accepted);
    expect(mostCounted).toBeLessThan(25);
  });
});
