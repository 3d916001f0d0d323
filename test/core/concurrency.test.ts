import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import {
  type Concurrency,
  onOverload,
  onSuccess,
  restored,
  startConcurrency,
} from "../../src/core/concurrency.ts";

const now = 1_700_000_000_000;
const hourMs = 3_600_000;

describe("the concurrency of a lane", () => {
  test("begins with a few calls, or as many as it has to bear", () => {
    expect(startConcurrency(1, 256).limit).toBe(32);
    expect(startConcurrency(1, 8).limit).toBe(8);
    expect(startConcurrency(100, 256).limit).toBe(100);
  });

  test("grows with every answer until the first refusal", () => {
    let value = startConcurrency(1, 256);
    for (let call = 0; call < 32; call++) value = onSuccess(value, Math.floor(value.limit), 256, now);
    expect(value.limit).toBe(64);
  });

  test("is never again as wide as when something was refused, within a wave", () => {
    let value = startConcurrency(32, 256);
    for (let inFlight = 32; inFlight > 5; inFlight--) value = onOverload(value, now, now, 1, inFlight);
    expect(value.limit).toBe(5);
  });

  test("is what it was when an answer came last, once it turns out that everything is refused", () => {
    let value = onSuccess({ limit: 40, loweredAt: 0, calm: 40 }, 40, 256, now);
    for (let inFlight = 41; inFlight > 1; inFlight--) value = onOverload(value, now, now, 1, inFlight);
    expect(value.limit).toBe(1);
    expect(restored(value).limit).toBe(41);
  });

  test("falls below what was in flight when that was too much", () => {
    expect(onOverload(startConcurrency(256, 256), now, now + 5, 1, 256).limit).toBeCloseTo(179.2);
    expect(onOverload(startConcurrency(256, 256), now, now + 5, 1, 10).limit).toBeCloseTo(7);
  });

  test("falls once for all calls that were under way then", () => {
    let value = startConcurrency(100, 100);
    for (let call = 0; call < 50; call++) value = onOverload(value, now, now + 5 + call, 1, 100);
    expect(value.limit).toBeCloseTo(70);
    value = onOverload(value, now + 6, now + 1060, 1, 70);
    expect(value.limit).toBeCloseTo(49);
  });

  test("rises by one for as many successes as it is wide, if it was in use", () => {
    let value: Concurrency = { limit: 10, loweredAt: now, calm: 10 };
    for (let call = 0; call < 10; call++) value = onSuccess(value, 10, 256, now + 1);
    expect(value.limit).toBeGreaterThan(10.9);
    expect(value.limit).toBeLessThan(11.1);
    expect(onSuccess(value, 5, 256, now + 1)).toBe(value);
  });

  test("rises from one, and to the most there may be", () => {
    let value: Concurrency = { limit: 1, loweredAt: now, calm: 1 };
    for (let call = 0; call < 200; call++) value = onSuccess(value, Math.floor(value.limit), 8, now + 1);
    expect(value.limit).toBe(8);
  });

  test("is lowered once for a wave of refusals, though calls were granted meanwhile", () => {
    const lowered = onOverload(startConcurrency(100, 100), now, now, 1, 100);
    expect(onOverload(lowered, now + 500, now + 999, 1, 80)).toBe(lowered);
    expect(onOverload(lowered, now + 500, now + 1000, 1, 70).limit).toBeCloseTo(49);
  });

  test("rises with each success when nothing was refused for a minute", () => {
    let value: Concurrency = { limit: 10, loweredAt: now, calm: 10 };
    for (let call = 0; call < 10; call++)
      value = onSuccess(value, Math.floor(value.limit), 256, now + 60_001);
    expect(value.limit).toBe(20);
  });

  test("is lowered also when the clock was set back since it was lowered last", () => {
    const lowered = onOverload(startConcurrency(100, 100), now, now, 1, 100);
    const again = onOverload(lowered, now - hourMs, now - hourMs + 5, 1, 70);
    expect(again.limit).toBeCloseTo(49);
    expect(onOverload(again, now - hourMs, now - hourMs + 6, 1, 70)).toBe(again);
  });

  it("stays between its bounds whatever happens, and only overload lowers it", () => {
    const event = fc.record({
      kind: fc.constantFrom("success", "overload"),
      advance: fc.integer({ min: -5000, max: 5000 }),
      ageMs: fc.nat(10_000),
      inFlight: fc.integer({ min: 0, max: 300 }),
    });
    const bounds = fc.tuple(fc.integer({ min: 1, max: 50 }), fc.nat(200));
    fc.assert(
      fc.property(bounds, fc.array(event, { maxLength: 200 }), ([min, more], events) => {
        const max = min + more;
        let value = startConcurrency(max, max);
        let at = now;
        for (const { kind, advance, ageMs, inFlight } of events) {
          at += advance;
          const before = value.limit;
          if (kind === "success") value = onSuccess(value, inFlight, max, at);
          else value = onOverload(value, at - ageMs, at, min, inFlight);
          if (kind === "success") expect(value.limit).toBeGreaterThanOrEqual(before);
          else expect(value.limit).toBeLessThanOrEqual(before);
          expect(value.limit).toBeGreaterThanOrEqual(min);
          expect(value.limit).toBeLessThanOrEqual(max);
        }
      }),
      { numRuns: 500 },
    );
  });

  it("settles near what an upstream bears, without anybody telling it", () => {
    fc.assert(
      fc.property(fc.integer({ min: 2, max: 200 }), (bears) => {
        let value = startConcurrency(256, 256);
        let at = now;
        const seen: number[] = [];
        for (let round = 0; round < 400; round++) {
          const grantedAt = at;
          at += 1_100;
          const inFlight = Math.floor(value.limit);
          for (let call = 0; call < inFlight; call++) {
            value =
              call < bears
                ? onSuccess(value, inFlight, 256, at)
                : onOverload(value, grantedAt, at, 1, inFlight);
          }
          at++;
          if (round >= 100) seen.push(inFlight);
        }
        expect(Math.max(...seen)).toBeLessThanOrEqual(bears + 2);
        expect(seen.reduce((sum, one) => sum + one, 0) / seen.length).toBeGreaterThan(0.6 * bears);
      }),
      { numRuns: 60 },
    );
  });
});
