/** Many requests at once, and what is erased, in simulated time with crashes. SEED=… repeats a run. */

import { describe, expect, test } from "vitest";
import { bulkOverCrashes, clockSetByAYear, retained } from "./ledger.ts";

const seed = Number(process.env.SEED ?? 1);
const seeds = [seed, seed + 1, seed + 2];

describe("a bulk over crashes", () => {
  test.each(seeds)("retries every request that had failed, once (seed %i)", async (one) => {
    const { failed, bulk, rounds, states, violations } = await bulkOverCrashes(one, {
      action: "retry",
      requests: 400,
      crashes: 4,
    });
    expect(violations).toEqual([]);
    expect(failed).toBe(400);
    expect(bulk).toMatchObject({ state: "completed", total: 400, failed: 0 });
    // A page that a crash has cut short is looked at again: what it had done is no longer there to be done.
    expect(bulk.done + bulk.skipped).toBeLessThanOrEqual(400);
    expect(new Set(rounds)).toEqual(new Set([2]));
    expect(new Set(states)).toEqual(new Set(["completed"]));
  });

  test.each(seeds)("erases every one of them (seed %i)", async (one) => {
    const { bulk, states, violations } = await bulkOverCrashes(one, {
      action: "erase",
      requests: 300,
      crashes: 3,
    });
    expect(violations).toEqual([]);
    expect(bulk.state).toBe("completed");
    expect(new Set(states)).toEqual(new Set([undefined]));
  });
});

test("what is old is erased, bodies before records, and nothing that goes on", async () => {
  const { young, middle, old, late, violations } = await retained(seed);
  expect(violations).toEqual([]);
  expect(young).toEqual({ bodies: 201, rows: 201 });
  expect(middle).toEqual({ bodies: 1, rows: 201 });
  expect(old).toEqual({ bodies: 1, rows: 1 });
  expect(late).toEqual({ rows: 1, completed: "completed" });
});

test("a wall clock that was set has an hour to be set right before anything is erased by it", async () => {
  const { soon, late, violations } = await clockSetByAYear(seed);
  expect(violations).toEqual([]);
  expect({ soon, late }).toEqual({ soon: 20, late: 0 });
});
