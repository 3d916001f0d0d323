/** Bugs of flow control, planted one at a time: each must be seen. */

import { afterEach, describe, expect, test, vi } from "vitest";
import type { Breaker } from "../../src/core/breaker.ts";
import type { RequestRecord } from "../../src/core/request.ts";
import type { Circumstances, Reading } from "../../src/core/retry.ts";
import type { RetryBudget } from "../../src/core/retry-budget.ts";
import { caught } from "./caught.ts";
import type { Plant } from "./world.ts";

const planted = new Set<string>();

afterEach(() => {
  for (const name of planted) vi.doUnmock(`../../src/core/${name}.ts`);
  planted.clear();
  vi.resetModules();
});

/** Changes what a module of core is, each time that it is loaded. */
function plantIn<Module extends object>(name: string, plant: (real: Module) => object): void {
  planted.add(name);
  vi.doMock(`../../src/core/${name}.ts`, async (original) => {
    const real = await original<Module>();
    return { ...real, ...plant(real) };
  });
}

/** The scenarios, with what is planted. */
async function scenarios(): Promise<typeof import("./flow.ts")> {
  vi.resetModules();
  return import("./flow.ts");
}

/** The scenarios as they are. */
async function soundScenarios(): Promise<typeof import("./flow.ts")> {
  for (const name of planted) vi.doUnmock(`../../src/core/${name}.ts`);
  return scenarios();
}

type PaceModule = typeof import("../../src/core/pace.ts");
type BreakerModule = typeof import("../../src/core/breaker.ts");
type RetryModule = typeof import("../../src/core/retry.ts");
type FairnessModule = typeof import("../../src/core/fairness.ts");

describe("a planted bug in limits is seen:", () => {
  test("a limit that holds nobody", async () => {
    plantIn<PaceModule>("pace", ({ Pace }) => {
      Pace.prototype.opensAt = (_, now) => now;
      return {};
    });
    expect(await caught()).toMatch(/saw \d+ (calls|tokens) in a minute/);
  });

  test("a minute that is over too soon", async () => {
    plantIn<PaceModule>("pace", ({ Pace }) => {
      const { opensAt } = Pace.prototype;
      Pace.prototype.opensAt = function (amount, now) {
        return Math.max(now, opensAt.call(this, amount, now) - 1000);
      };
      return {};
    });
    expect(await caught()).toMatch(/saw \d+ (calls|tokens) in a minute/);
  });

  test("tokens that are not reserved", async () => {
    plantIn("token-estimate", () => ({ estimate: () => ({ prompt: 0, output: 1 }) }));
    expect(await caught()).toMatch(/saw \d+ tokens in a minute/);
  });

  test("a start that does not know what was called in the last minute", async () => {
    const flow: Plant["flow"] = (real) => ({ ...real, calledSince: async () => [] });
    expect(await caught({ flow })).toMatch(/saw \d+ (calls|tokens) in a minute/);
  });

  test("what the provider tells is not read", async () => {
    plantIn("provider-limits", () => ({ readRateHeaders: () => ({}) }));
    const { learned } = await scenarios();
    const { refused, later } = await learned(1, { warm: true, form: "duration", saysWhen: false });
    expect(refused + later).toBeGreaterThan(120);
  });

  test("somebody who waits, and is left in a lane that is at its limit", async () => {
    const { overLimit } = await scenarios();
    const settings: Plant["settings"] = (real) => ({ ...real, failoverAfterMs: 1e9 });
    expect((await overLimit(1, { settings })).slowestInteractiveMs).toBeGreaterThan(10_000);
  });
});

describe("a planted bug in breakers is seen:", () => {
  test("one that lets everybody through", async () => {
    plantIn("breaker", () => ({ admits: ({ kind }: Breaker) => (kind === "closed" ? "yes" : "probe") }));
    expect(await caught()).toMatch(/before its breaker lets it through|open breaker is being probed/);
  });

  test("more than one probe", async () => {
    plantIn<BreakerModule>("breaker", ({ admits }) => ({
      admits: (breaker: Breaker, now: number) =>
        breaker.kind === "half_open" ? "probe" : admits(breaker, now),
    }));
    expect(await caught()).toMatch(/open breaker is being probed/);
  });

  test("one that never opens", async () => {
    plantIn("breaker", () => ({ failed: (breaker: Breaker) => breaker }));
    expect(await caught()).toMatch(/in a row, and its breaker is closed/);
  });

  test("one that opens too soon", async () => {
    const settings: Plant["settings"] = (real) => ({
      ...real,
      breaker: { ...real.breaker, consecutiveFailures: 1, minCalls: 1, failureRate: 0.01 },
    });
    expect(await caught({ settings })).toMatch(/opened for \d failures/);
  });

  test("one that opens for what callers do", async () => {
    plantIn<RetryModule>("retry", ({ classify }) => ({
      classify: (...of: Parameters<typeof classify>) => ({ ...classify(...of), isFault: true }),
    }));
    const { callersFault } = await scenarios();
    expect((await callersFault(1)).opened).toBeGreaterThan(0);
  });

  test("one that is closed after a start", async () => {
    const commit: Plant["commit"] = ({ kind }) => (kind === "flow" ? { status: "applied" } : undefined);
    expect(await caught({ commit }, { from: 17 })).toMatch(
      /before its breaker lets it through|open breaker is being probed/,
    );
  });
});

describe("a planted bug in budgets and shares is seen:", () => {
  test("retries that are not counted", async () => {
    plantIn("retry-budget", () => ({ draw: (budget: RetryBudget, at: number) => ({ budget, at }) }));
    expect(await caught({}, { from: 88 })).toMatch(/\d+ retries in \d+ ms, of/);
  });

  test("invalid answers without a budget", async () => {
    plantIn<RetryModule>("retry", ({ decide }) => ({
      decide: (record: RequestRecord, reading: Reading, at: Circumstances) =>
        decide({ ...record, invalid: 0, terms: { ...record.terms, maxInvalid: 1 } }, reading, at),
    }));
    expect(await caught({}, { from: 13 })).toMatch(/invalid answers, of/);
  });

  test("invalid answers that use up the budget of failures", async () => {
    plantIn<RetryModule>("retry", ({ decide }) => ({
      decide: (...of: Parameters<typeof decide>) => {
        const step = decide(...of);
        return step.kind === "complete" ? step : { ...step, counted: true };
      },
    }));
    expect(await caught({}, { from: 8 })).toMatch(/counted (an invalid answer|\d+ attempts)/);
  });

  test("a concurrency that no refusal lowers", async () => {
    plantIn("concurrency", () => ({ onOverload: <T>(before: T) => before }));
    const { crowded } = await scenarios();
    const { refused } = await crowded(1, 429);
    const { crowded: sound } = await soundScenarios();
    expect(refused).toBeGreaterThan(1.3 * (await sound(1, 429)).refused);
  });

  test("turns in the order of arrival", async () => {
    plantIn<FairnessModule>("fairness", ({ Turns }) => {
      Turns.prototype.next = (due) => due[0];
      return {};
    });
    const { shared } = await scenarios();
    const { mostBefore, batchShare } = await shared(1, 1000);
    expect(mostBefore).toBeGreaterThan(1);
    expect(batchShare).toBe(0);
  });
});
