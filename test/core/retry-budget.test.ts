import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { draw, earn, type RetryBudget, startBudget } from "../../src/core/retry-budget.ts";

const now = 1_700_000_000_000;
const hourMs = 3_600_000;
const settings = { ratio: 0.2, perSecond: 2 };

/** Draws so many at one instant; when each may be made. */
function drawn(before: RetryBudget, count: number, at: number): { budget: RetryBudget; instants: number[] } {
  let budget = before;
  const instants = Array.from({ length: count }, () => {
    const next = draw(budget, at);
    budget = next.budget;
    return next.at;
  });
  return { budget, instants };
}
const emptied = () => drawn(startBudget(settings), 120, now).budget;

describe("a retry budget", () => {
  test("begins with a minute's floor, and hands out what the floor brings when that is gone", () => {
    const { instants } = drawn(startBudget(settings), 124, now);
    expect(instants.slice(0, 120)).toEqual(Array(120).fill(now));
    expect(instants.slice(120)).toEqual([now + 500, now + 1000, now + 1500, now + 2000]);
  });

  test("grows by a share of the first attempts", () => {
    let budget = emptied();
    for (let call = 0; call < 16; call++) budget = earn(budget, now);
    expect(drawn(budget, 4, now).instants).toEqual([now, now, now, now + 500]);
  });

  test("does not promise the same second twice when first attempts come meanwhile", () => {
    let { budget } = drawn(emptied(), 20, now);
    for (let call = 0; call < 11; call++) budget = earn(budget, now);
    const { instants } = drawn(budget, 3, now);
    expect(instants.slice(0, 2)).toEqual([now, now]);
    expect(instants[2]).toBeGreaterThan(now + 10_000);
  });

  test("spaces its promises as the floor brings them, also where each first attempt earns most of a retry", () => {
    let budget = startBudget({ ratio: 0.9, perSecond: 1 });
    const instants: number[] = [];
    for (let call = 0; call < 1000; call++) {
      const next = draw(earn(budget, now), now);
      budget = next.budget;
      instants.push(next.at);
    }
    const promised = instants.filter((at) => at > now);
    promised.forEach((at, index) => {
      expect(at).toBe(now + 1000 * (index + 1));
    });
    expect(promised.length).toBeLessThan(1000 - 0.9 * 940);
  });

  test("saves up no more than a minute's floor", () => {
    const late = now + 10 * hourMs;
    let budget = earn(emptied(), late);
    for (let call = 0; call < 10_000; call++) budget = earn(budget, late);
    expect(drawn(budget, 121, late).instants.filter((at) => at === late)).toHaveLength(120);
  });

  test("works with a floor of less than one a minute", () => {
    const { instants } = drawn(startBudget({ ratio: 0, perSecond: 0.01 }), 3, now);
    expect(instants).toEqual([now, now + 100_000, now + 200_000]);
  });

  test("keeps its promises as far away as they were when the clock is set back", () => {
    const { budget } = drawn(emptied(), 20, now);
    expect(draw(budget, now - hourMs).at).toBe(now - hourMs + 10_500);
  });

  const event = fc.record({
    kind: fc.constantFrom("first", "retry", "retries"),
    advance: fc.oneof(fc.constant(0), fc.nat(2000), fc.nat(100_000)),
  });
  const rates = fc.record({
    ratio: fc.double({ min: 0, max: 2, noNaN: true }),
    perSecond: fc.double({ min: 0.01, max: 50, noNaN: true }),
  });

  it("grants in no window more than the share, the floor and what may be saved up", () => {
    fc.assert(
      fc.property(rates, fc.array(event, { maxLength: 120 }), fc.nat(200_000), (rate, events, windowMs) => {
        let budget = startBudget(rate);
        let at = now;
        const firsts: number[] = [];
        const retries: number[] = [];
        for (const { kind, advance } of events) {
          at += advance;
          if (kind === "first") {
            budget = earn(budget, at);
            firsts.push(at);
            continue;
          }
          const next = drawn(budget, kind === "retry" ? 1 : 40, at);
          budget = next.budget;
          retries.push(...next.instants);
        }
        const cap = Math.max(1, rate.perSecond * 60);
        for (const from of [...new Set(retries)].slice(0, 60)) {
          const isIn = (instant: number) => instant >= from && instant <= from + windowMs;
          const most = rate.ratio * firsts.filter(isIn).length + (rate.perSecond * windowMs) / 1000 + cap;
          // One more where a retry began to be promised before the window, whose instants are whole ms.
          expect(retries.filter(isIn).length).toBeLessThanOrEqual(most + 1 + rate.perSecond / 1000);
        }
      }),
      { numRuns: 300 },
    );
  });

  it("never refuses: every retry has its instant, in the order of asking where none is earned", () => {
    fc.assert(
      fc.property(rates, fc.array(event, { minLength: 1, maxLength: 100 }), (rate, events) => {
        let budget = startBudget(rate);
        let at = now;
        let last = 0;
        let count = 0;
        for (const { advance } of events) {
          at += advance;
          const next = draw(budget, at);
          budget = next.budget;
          count++;
          expect(next.at).toBeGreaterThanOrEqual(at);
          expect(next.at).toBeGreaterThanOrEqual(last);
          expect(next.at).toBeLessThanOrEqual(at + Math.ceil((count / rate.perSecond) * 1000));
          last = next.at;
        }
      }),
      { numRuns: 300 },
    );
  });
});
