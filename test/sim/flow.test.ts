/** What flow control promises, in simulated time: each promise in a story of its own. SEED=n replays one. */

import { describe, expect, test } from "vitest";
import {
  burst,
  callersFault,
  clockIsSet,
  crowded,
  learned,
  overLimit,
  primaryOut,
  shared,
  streamingProbe,
} from "./flow.ts";

const seed = Number(process.env.SEED ?? 1);
/** FAIRNESS=100000 queues so many before the one request that must not wait for them. */
const queued = Number(process.env.FAIRNESS ?? 2000);

describe("limits", () => {
  test("a thousand requests in one instant never pass them, over crashes too", async () => {
    const { completed, endMs, violations } = await burst(seed);
    expect(violations).toEqual([]);
    expect(completed).toBe(1000);
    // 300 a minute: the fourth minute is not needed in full.
    expect(endMs).toBeLessThan(300_000);
  });

  test("that a provider tells are kept by who has configured none", async () => {
    for (const form of ["duration", "none"] as const) {
      const { refused, later, completed, endMs, violations } = await learned(seed, {
        warm: true,
        form,
        saysWhen: form === "duration",
      });
      expect(violations).toEqual([]);
      expect(completed).toBe(601);
      // Which call of a burst the provider saw first nobody knows.
      expect(refused).toBeLessThanOrEqual(5);
      expect(later).toBe(0);
      expect(endMs).toBeLessThan(7 * 60_000);
    }
  });

  test("in the background are waited for, and somebody who waits has the next target", async () => {
    const seen = await overLimit(seed);
    expect(seen.violations).toEqual([]);
    expect(seen.completed).toBe(60);
    expect(seen.slowestInteractiveMs).toBeLessThan(3000);
    expect(seen.interactiveElsewhere).toBeGreaterThan(19);
    expect(seen.batchElsewhere).toBe(0);
  });

  test.each([
    [3_600_000, "forward"],
    [-3_600_000, "back"],
  ])("are kept, and nothing is lost, when the clock is set by %i ms, %s", async (byMs) => {
    const { completed, asked, endMs, mostInMinute, violations } = await clockIsSet(seed, byMs);
    expect(violations).toEqual([]);
    expect(completed).toBe(asked);
    // One window more than is configured at most, where it was forgotten.
    expect(mostInMinute).toBeLessThanOrEqual(2 * 30);
    expect(endMs).toBeLessThan(15 * 60_000);
  });
});

describe("concurrency", () => {
  test.each([503, 429] as const)("finds what an upstream bears that refuses with %i", async (status) => {
    const { completed, lateRefused, lateTaken, violations } = await crowded(seed, status);
    expect(violations).toEqual([]);
    expect(completed).toBe(500);
    expect(lateRefused).toBeLessThan(0.15 * (lateRefused + lateTaken));
  });
});

describe("breakers", () => {
  test("spare a primary that is out of order, and find out that it is well again", async () => {
    const { inOutage, backAfterMs, completed, slowestMs, violations } = await primaryOut(seed);
    expect(violations).toEqual([]);
    expect(completed).toBe(40);
    expect(inOutage).toBeLessThanOrEqual(4);
    expect(backAfterMs).toBeLessThan(30_000);
    expect(slowestMs).toBeLessThan(5000);
  });

  test("do not open for what is the caller's fault, or his doing", async () => {
    const { opened, violations } = await callersFault(seed);
    expect(violations).toEqual([]);
    expect(opened).toBe(0);
  });

  test("close with the first content of a streamed probe, and whoever waits goes on", async () => {
    const { closedAt, nextAfterMs, violations } = await streamingProbe(seed);
    expect(violations).toEqual([]);
    expect(closedAt).toBeGreaterThan(0);
    expect(nextAfterMs).toBeLessThan(1000);
  });
});

describe("turns", () => {
  test(`one request of another project waits for one slot behind ${queued}`, {
    timeout: 600_000,
  }, async () => {
    for (const one of [seed, seed + 1, seed + 2, seed + 3]) {
      const { mostBefore, batchShare, violations } = await shared(one, queued);
      expect(violations).toEqual([]);
      expect(mostBefore).toBeLessThanOrEqual(1);
      expect(batchShare).toBeGreaterThan(0.2);
      expect(batchShare).toBeLessThan(0.3);
    }
  });
});
