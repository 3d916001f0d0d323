import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { Pace } from "../../src/core/pace.ts";

const start = 1_700_000_000_000;
const minuteMs = 60_000;
const burstMs = 10_000;
const bucketMs = 250;
const hourMs = 3_600_000;

interface Taken {
  at: number;
  amount: number;
}

/** The most that any half-open window of this length holds, where everything in it fits the limit by itself. */
function fullest(taken: Taken[], windowMs: number): number {
  let most = 0;
  let sum = 0;
  let first = 0;
  for (const { at, amount } of taken) {
    sum += amount;
    while (taken[first]!.at <= at - windowMs) sum -= taken[first++]!.amount;
    most = Math.max(most, sum);
  }
  return most;
}

const burstOf = (perMinute: number) => Math.max(10, Math.ceil(perMinute / 4));
const limits = fc.oneof(fc.integer({ min: 1, max: 60 }), fc.integer({ min: 1, max: 100_000 }));
const advances = fc.oneof(
  fc.constantFrom(0, 1, 249, 250, 251, burstMs, minuteMs - 1, minuteMs, minuteMs + bucketMs),
  fc.integer({ min: 0, max: 3000 }),
  fc.integer({ min: 0, max: 200_000 }),
);
const share = fc.oneof(
  fc.constant(0),
  fc.double({ min: 0, max: 0.3, noNaN: true }),
  fc.double({ min: 0, max: 1.5, noNaN: true }),
);
const steps = fc.array(fc.record({ advance: advances, share, waits: fc.boolean() }), { maxLength: 150 });
const amountOf = (limit: number, part: number) => Math.max(1, Math.round(limit * part));

describe("a pace", () => {
  it("lets no window of a minute, and none of 10 s, have more than its limit", () => {
    fc.assert(
      fc.property(limits, steps, (limit, walk) => {
        const pace = new Pace(limit);
        const taken: Taken[] = [];
        let now = start;
        for (const { advance, share: part, waits } of walk) {
          now += advance;
          const amount = amountOf(limit, part);
          const opensAt = pace.opensAt(amount, now);
          if (opensAt > now && waits) now = opensAt;
          if (opensAt > now) continue;
          pace.take(amount, now);
          taken.push({ at: now, amount });
        }
        const largest = Math.max(0, ...taken.map(({ amount }) => amount));
        expect(fullest(taken, minuteMs)).toBeLessThanOrEqual(Math.max(limit, largest));
        expect(fullest(taken, burstMs)).toBeLessThanOrEqual(Math.max(burstOf(limit), largest));
        // A single amount beyond a limit has its window for itself.
        for (const [windowMs, most] of [
          [minuteMs, limit],
          [burstMs, burstOf(limit)],
        ] as const) {
          taken.forEach(({ at, amount }, index) => {
            if (amount > most) expect(taken[index - 1]?.at ?? 0).toBeLessThanOrEqual(at - windowMs);
            if (amount > most)
              expect(taken[index + 1]?.at ?? at + windowMs).toBeGreaterThanOrEqual(at + windowMs);
          });
        }
      }),
      { numRuns: 600 },
    );
  });

  it("never refuses one who waits until it said it would open, and does not open earlier", () => {
    fc.assert(
      fc.property(limits, steps, share, (limit, walk, part) => {
        const pace = new Pace(limit);
        let now = start;
        for (const step of walk) {
          now += step.advance;
          const amount = amountOf(limit, step.share);
          if (pace.opensAt(amount, now) <= now) pace.take(amount, now);
        }
        const amount = amountOf(limit, part);
        const opensAt = pace.opensAt(amount, now);
        expect(opensAt).toBeGreaterThanOrEqual(now);
        expect(opensAt).toBeLessThanOrEqual(now + minuteMs + bucketMs);
        if (opensAt > now) expect(pace.opensAt(amount, opensAt - 1)).toBe(opensAt);
        expect(pace.opensAt(amount, opensAt)).toBe(opensAt);
      }),
      { numRuns: 600 },
    );
  });

  it("gives at least 98 % of the limit over ten minutes to those who always have something to send", () => {
    const amounts = fc.array(fc.double({ min: 0, max: 0.01, noNaN: true }), { minLength: 1, maxLength: 20 });
    fc.assert(
      fc.property(limits, amounts, fc.integer({ min: 0, max: 100_000 }), (limit, parts, offset) => {
        const pace = new Pace(limit);
        let now = start + offset;
        const endAt = now + 10 * minuteMs;
        let sum = 0;
        for (let turn = 0; ; turn++) {
          const amount = amountOf(limit, parts[turn % parts.length]!);
          now = pace.opensAt(amount, now);
          if (now >= endAt) break;
          pace.take(amount, now);
          sum += amount;
        }
        expect(sum).toBeGreaterThanOrEqual(0.98 * 10 * limit);
      }),
      { numRuns: 40 },
    );
  });

  it("harms nobody for more than a window when the clock is set back, and still lets none have too much", () => {
    const back = fc.oneof(
      fc.constantFrom(1, 250, 5000, minuteMs, hourMs),
      fc.integer({ min: 1, max: hourMs }),
    );
    fc.assert(
      fc.property(
        limits,
        steps,
        back,
        fc.double({ min: 0, max: 1, noNaN: true }),
        (limit, walk, backMs, part) => {
          const pace = new Pace(limit);
          let taken: Taken[] = [];
          let now = start;
          for (const step of walk) {
            now += step.advance;
            const amount = amountOf(limit, step.share);
            if (pace.opensAt(amount, now) > now) continue;
            pace.take(amount, now);
            taken.push({ at: now, amount });
          }
          taken = taken.filter(({ at }) => at > now - minuteMs);
          const before = pace.used(now);
          now -= backMs;
          expect(pace.used(now)).toBe(before);
          for (const one of taken) one.at = Math.min(one.at, now);
          const untilAt = now + 2 * minuteMs;
          const amount = Math.min(limit, amountOf(limit, part));
          expect(pace.opensAt(amount, now)).toBeLessThanOrEqual(now + minuteMs + bucketMs);
          const old = taken.length;
          while (taken.length < old + 300) {
            now = pace.opensAt(amount, now);
            if (now > untilAt) break;
            pace.take(amount, now);
            taken.push({ at: now, amount });
          }
          expect(taken.length).toBeGreaterThan(old);
          const sinceBack = taken.filter((_, index) => index >= old);
          for (const { at } of sinceBack) {
            const inWindow = taken.filter((one) => one.at > at - minuteMs && one.at <= at);
            const largest = Math.max(...inWindow.map((one) => one.amount));
            const sum = inWindow.reduce((all, one) => all + one.amount, 0);
            expect(sum).toBeLessThanOrEqual(Math.max(limit, largest));
          }
        },
      ),
      { numRuns: 300 },
    );
  });

  it("counts what calls have really used, wherever the clock went meanwhile", () => {
    const moves = fc.oneof(advances, fc.integer({ min: -20_000, max: -1 }), fc.constant(-hourMs));
    const call = fc.record({ move: moves, amount: fc.nat(500), actual: fc.nat(800), settles: fc.nat(5) });
    fc.assert(
      fc.property(fc.array(call, { maxLength: 80 }), (calls) => {
        const pace = new Pace(1000);
        // In time that only goes forward: what a move back takes away is not given back by it.
        const open: { at: number; sinceMs: number; taken: number; actual: number; counts: number }[] = [];
        let now = start;
        for (const { move, amount, actual, settles } of calls) {
          now += move;
          for (const one of open) one.sinceMs += Math.max(0, move);
          pace.take(amount, now);
          open.push({ at: now, sinceMs: 0, taken: amount, actual, counts: amount });
          const index = open.length - 1 - settles;
          const one = open[index];
          // Once each, and none that outlived a window: that one may have been let go.
          if (one && one.counts === one.taken && one.sinceMs < minuteMs) {
            pace.settle(one.at, one.taken, one.actual);
            one.counts = one.actual;
          }
          const least = open.reduce((sum, it) => sum + (it.sinceMs < minuteMs ? it.counts : 0), 0);
          expect(pace.used(now)).toBeGreaterThanOrEqual(least);
        }
      }),
      { numRuns: 600 },
    );
  });

  test("counts exactly what was used while the clock only goes forward", () => {
    const pace = new Pace(1000);
    pace.take(200, start);
    pace.take(100, start + 5000);
    pace.settle(start, 200, 50);
    expect(pace.used(start + 6000)).toBe(150);
    pace.settle(start + 5000, 100, 130);
    expect(pace.used(start + 6000)).toBe(180);
    expect(pace.used(start + 60_250)).toBe(130);
    expect(pace.used(start + 65_250)).toBe(0);
    pace.settle(start + 5000, 130, 900);
    expect(pace.used(start + 65_250)).toBe(0);
  });

  test("spreads a minute's requests over it, in quarters", () => {
    const pace = new Pace(100);
    let now = start;
    const granted = Array.from({ length: 101 }, () => {
      now = pace.opensAt(1, now);
      pace.take(1, now);
      return now - start;
    });
    expect(granted[24]).toBe(0);
    expect(granted[25]).toBe(10_250);
    expect(granted[50]).toBe(20_500);
    expect(granted[99]).toBe(30_750);
    expect(granted[100]).toBe(60_250);
  });

  test.each([
    [1, 1],
    [7, 7],
    [10, 10],
    [30, 10],
    [40, 10],
    [41, 11],
  ])("of %i a minute lets %i go at once", (perMinute, atOnce) => {
    const pace = new Pace(perMinute);
    let count = 0;
    for (; pace.opensAt(1, start) <= start && count < 100; count++) pace.take(1, start);
    expect(count).toBe(atOnce);
  });

  test("lets an amount beyond the limit go when nothing else counts, and nothing else beside it", () => {
    const pace = new Pace(1000);
    pace.take(1, start);
    expect(pace.opensAt(5000, start + 100)).toBe(start + 60_250);
    pace.take(5000, start + 60_250);
    expect(pace.opensAt(1, start + 60_250)).toBe(start + 120_500);
  });

  test("lets nothing go for nothing, and takes what is no number for nothing", () => {
    const pace = new Pace(10);
    pace.take(10, start);
    expect(pace.opensAt(0, start)).toBe(start);
    pace.take(Number.NaN, start);
    pace.take(-5, start);
    expect(pace.used(start)).toBe(10);
    pace.settle(start, 10, Number.NaN);
    expect(pace.used(start)).toBe(0);
  });

  test("gives nothing back that may lie elsewhere since the clock was set back, until a minute later", () => {
    const pace = new Pace(1000);
    pace.take(100, start);
    pace.take(100, start - hourMs);
    pace.settle(start, 100, 0);
    expect(pace.used(start - hourMs)).toBe(200);
    const later = start - hourMs + minuteMs + 2 * bucketMs;
    pace.take(100, later);
    pace.settle(later, 100, 0);
    expect(pace.used(later)).toBe(0);
  });

  test("does not take the call of a later time for one of the same instant before the clock was set back", () => {
    const pace = new Pace(1000);
    pace.take(100, start);
    expect(pace.used(start - 5000)).toBe(100);
    pace.take(300, start);
    pace.settle(start, 100, 0);
    expect(pace.used(start + 55_250)).toBe(300);
  });

  test("counts late news of an earlier call against the minute, and not against the 10 s it is no part of", () => {
    const pace = new Pace(1000);
    pace.take(100, start);
    pace.settle(start, 100, 600);
    pace.take(100, start + 20_000);
    pace.settle(start, 600, 800);
    expect(pace.used(start + 20_000)).toBe(900);
    expect(pace.opensAt(100, start + 20_000)).toBe(start + 20_000);
    expect(pace.opensAt(200, start + 20_000)).toBe(start + 60_250);
  });

  test("gives nothing back twice", () => {
    const pace = new Pace(1000);
    pace.take(100, start);
    pace.take(50, start + bucketMs);
    pace.settle(start, 100, 0);
    pace.settle(start, 100, 0);
    expect(pace.used(start + bucketMs)).toBe(50);
  });
});
