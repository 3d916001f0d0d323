import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import {
  type LimitReading,
  type Mirror,
  mirrored,
  mirrorOpensAt,
  readMirror,
  readRateHeaders,
  taken,
} from "../../src/core/provider-limits.ts";

const now = 1_700_000_000_000;
const minuteMs = 60_000;
const hourMs = 3_600_000;
const dayMs = 86_400_000;

const headersOf = (limit?: string, remaining?: string, reset?: string, kind = "requests") => {
  const headers: Record<string, string | undefined> = {
    [`x-ratelimit-limit-${kind}`]: limit,
    [`x-ratelimit-remaining-${kind}`]: remaining,
    [`x-ratelimit-reset-${kind}`]: reset,
  };
  return (name: string) => headers[name];
};
const resetOf = (reset: string) => readRateHeaders(headersOf("100", "40", reset), now).requests?.resetMs;

describe("the rate limit headers of an answer", () => {
  test("tell what there may be, what is left, and when all of it is there again", () => {
    const headers: Record<string, string> = {
      "x-ratelimit-limit-requests": "5000",
      "x-ratelimit-remaining-requests": "4999",
      "x-ratelimit-reset-requests": "12ms",
      "x-ratelimit-limit-tokens": "160000",
      "x-ratelimit-remaining-tokens": "0",
      "x-ratelimit-reset-tokens": "6m0s",
      "x-ratelimit-limit-tokens_usage_based": "1",
      "x-ratelimit-remaining-tokens_usage_based": "1",
    };
    expect(readRateHeaders((name) => headers[name], now)).toEqual({
      requests: { limit: 5000, remaining: 4999, resetMs: 12 },
      tokens: { limit: 160_000, remaining: 0, resetMs: 360_000 },
    });
  });

  test.each<[string, number]>([
    ["12ms", 12],
    ["1s", 1000],
    ["0s", 0],
    ["6m0s", 360_000],
    ["2m59.56s", 179_560],
    ["1h2m", 3_720_000],
    ["1h0m0.5s", 3_600_500],
    ["250µs", 1],
    ["250us", 1],
    ["900000ns", 1],
    ["59.7", 59_700],
    ["60", 60_000],
    ["0", 0],
    [" 7 ", 7000],
    [`${now / 1000 + 30}`, 30_000],
    [`${now + 1234}`, 1234],
    [`${now - 500}`, 0],
    [new Date(now + 45_000).toISOString(), 45_000],
    ["2023-11-14T23:13:50+01:00", 30_000],
    ["2023-11-14T22:13:19Z", 0],
  ])("give the reset as %s, which is in %i ms", (reset, resetMs) => {
    expect(resetOf(reset)).toBe(resetMs);
  });

  test("may leave out when it is full again", () => {
    expect(readRateHeaders(headersOf("100", "40"), now).requests).toEqual({ limit: 100, remaining: 40 });
  });

  test.each<[string, string | undefined, string | undefined, string | undefined]>([
    ["a limit of 0", "0", "0", "1s"],
    ["a limit of -1", "-1", "5", "1s"],
    ["a rest of -1", "100", "-1", "1s"],
    ["a limit without a rest", "100", undefined, "1s"],
    ["a rest without a limit", undefined, "100", "1s"],
    ["more left than there is", "100", "101", "1s"],
    ["a word for the limit", "unlimited", "5", "1s"],
    ["an empty limit", "", "5", "1s"],
    ["a fraction", "100.5", "5", "1s"],
    ["two limits", "100, 200", "5", "1s"],
    ["not a number", "NaN", "NaN", "NaN"],
    ["an absurd limit", "1000000000001", "5", "1s"],
    ["a limit of many digits", "9".repeat(400), "5", "1s"],
    ["a negative reset", "100", "5", "-1"],
    ["a negative duration", "100", "5", "-1s"],
    ["a reset in 33 days", "100", "5", `${33 * 24}h`],
    ["seconds beyond 32 days", "100", "5", "3000000"],
    ["an instant in 33 days", "100", "5", `${now + 33 * dayMs}`],
    ["an instant in the middle ages", "100", "5", "1100-01-01T00:00:00Z"],
    ["a day that there is not", "100", "5", "2023-13-45T00:00:00Z"],
    ["a word for the reset", "100", "5", "soon"],
    ["a unit without a number", "100", "5", "ms"],
  ])("teach nothing by %s", (_, limit, remaining, reset) => {
    expect(readRateHeaders(headersOf(limit, remaining, reset), now).requests).toBeUndefined();
  });

  it("are read without ever throwing, and what is read is sound", () => {
    const digits = fc.oneof(fc.nat(), fc.integer(), fc.double()).map(String);
    const durations = fc
      .array(
        fc.tuple(fc.double({ min: 0, max: 1e6 }), fc.constantFrom("h", "m", "s", "ms", "us", "ns", "x")),
        {
          maxLength: 5,
        },
      )
      .map((parts) => parts.map(([value, unit]) => `${value}${unit}`).join(""));
    const text = fc.option(fc.oneof(digits, durations, fc.string(), fc.date().map(String)), {
      nil: undefined,
    });
    fc.assert(
      fc.property(text, text, text, (limit, remaining, reset) => {
        const { requests, tokens } = readRateHeaders(headersOf(limit, remaining, reset), now);
        expect(tokens).toBeUndefined();
        if (requests === undefined) return;
        expect(requests.limit).toBeGreaterThan(0);
        expect(requests.remaining).toBeGreaterThanOrEqual(0);
        expect(requests.remaining).toBeLessThanOrEqual(requests.limit);
        if (requests.resetMs === undefined) return;
        expect(Number.isInteger(requests.resetMs)).toBe(true);
        expect(requests.resetMs).toBeGreaterThanOrEqual(0);
        expect(requests.resetMs).toBeLessThanOrEqual(32 * dayMs);
      }),
      { numRuns: 2000 },
    );
  });

  it("mean what Go's durations mean", () => {
    const parts = fc.record({ h: fc.nat(700), m: fc.nat(59), s: fc.nat(59), ms: fc.nat(999) });
    fc.assert(
      fc.property(parts, ({ h, m, s, ms }) => {
        expect(resetOf(`${h}h${m}m${s}s${ms}ms`)).toBe(h * hourMs + m * minuteMs + s * 1000 + ms);
        expect(resetOf(`${h}h${m}m${s}.${String(ms).padStart(3, "0")}s`)).toBe(
          Math.ceil(h * hourMs + m * minuteMs + Number(`${s}.${String(ms).padStart(3, "0")}`) * 1000),
        );
      }),
    );
  });
});

const read = (limit: number, remaining: number, resetMs?: number): LimitReading => ({
  limit,
  remaining,
  resetMs,
});

describe("the account of a provider's limit", () => {
  test("opens at once for what is left, and for more when it has filled up", () => {
    const mirror = mirrored(undefined, read(60, 30, 30_000), now, 0);
    expect(mirrorOpensAt(mirror, 30, now)).toBe(now);
    expect(mirrorOpensAt(mirror, 31, now)).toBe(now + 1000);
    expect(mirrorOpensAt(mirror, 60, now)).toBe(now + 30_000);
    expect(mirrorOpensAt(mirror, 60, now + 45_000)).toBe(now + 45_000);
  });

  test("leaves out what was granted since the call that told of it", () => {
    const mirror = mirrored(undefined, read(60, 30, 30_000), now, 25);
    expect(mirrorOpensAt(mirror, 5, now)).toBe(now);
    expect(mirrorOpensAt(mirror, 6, now)).toBe(now + 1000);
  });

  test("is not misled by the answer to an earlier call that comes late", () => {
    const mirror = mirrored(undefined, read(60, 0, 60_000), now, 0);
    expect(mirrored(mirror, read(60, 50, 10_000), now - 1, 0)).toBe(mirror);
    expect(mirrorOpensAt(mirrored(mirror, read(60, 50, 10_000), now, 0), 50, now)).toBe(now);
  });

  test("takes the newest answer also when others were granted since it was read last", () => {
    const first = mirrored(undefined, read(60, 60), now, 0);
    const mirror = taken(taken(first, 20, now + 100), 20, now + 200);
    expect(mirrorOpensAt(mirrored(mirror, read(60, 3, 57_000), now + 1150, 1), 3, now + 1200)).toBe(
      now + 2150,
    );
  });

  test("believes the best of what is said of calls that were made together, and each second anew", () => {
    // Three calls at once, of which the provider counted the last one first.
    const first = mirrored(undefined, read(60, 57), now, 2);
    expect(first.level).toBe(55);
    const second = mirrored(first, read(60, 59), now, 2);
    expect(second.level).toBe(57);
    expect(mirrored(second, read(60, 58), now + 900, 2).level).toBeGreaterThanOrEqual(57);
    expect(mirrored(second, read(60, 20), now + 1001, 0).level).toBe(20);
  });

  test("fills within a minute where nothing says how fast, or so little is used that it says nothing", () => {
    expect(mirrored(undefined, read(600, 0), now, 0).perMs).toBe(0.01);
    expect(mirrored(undefined, read(600, 0, 0), now, 0).perMs).toBe(0.01);
    expect(mirrored(undefined, read(600, 600, 5000), now, 0).perMs).toBe(0.01);
    // A fixed window of a minute, of which one request is used: not one request a minute.
    expect(mirrored(undefined, read(600, 599, minuteMs), now, 0).perMs).toBe(0.01);
    expect(mirrored(undefined, read(600, 540, minuteMs), now, 0).perMs).toBe(0.001);
  });

  test("keeps how fast it fills where an answer does not say, also when the limit is another", () => {
    const daily = mirrored(undefined, read(14_400, 0, dayMs), now, 0);
    expect(mirrored(daily, read(14_400, 14_399, 6000), now + 1, 0).perMs).toBe(14_400 / dayMs);
    expect(mirrored(daily, read(1440, 0), now + 1, 0).perMs).toBeCloseTo(1440 / dayMs, 12);
  });

  test("lets an amount beyond the limit go when it is full, which it then is not for a while", () => {
    const mirror = mirrored(undefined, read(60, 30, 30_000), now, 0);
    expect(mirrorOpensAt(mirror, 90, now)).toBe(now + 30_000);
    const after = taken(mirror, 90, now + 30_000);
    expect(mirrorOpensAt(after, 1, now + 30_000)).toBe(now + 61_000);
    expect(mirrorOpensAt(taken(after, -80, now + 30_000), 50, now + 30_000)).toBe(now + 30_000);
  });

  const readings = fc
    .tuple(fc.integer({ min: 1, max: 1_000_000 }), fc.double({ min: 0, max: 1, noNaN: true }), fc.nat(hourMs))
    .map(([limit, part, resetMs]) => read(limit, Math.floor(limit * part), resetMs));
  const some = fc.record({
    advance: fc.oneof(fc.constantFrom(0, 1), fc.nat(5000), fc.nat(10 * minuteMs)),
    share: fc.double({ min: 0, max: 1.3, noNaN: true }),
    back: fc.boolean(),
  });

  it("grants no more in any time than was left and has filled up meanwhile", () => {
    fc.assert(
      fc.property(readings, fc.array(some, { maxLength: 60 }), (reading, walk) => {
        let mirror = mirrored(undefined, reading, now, 0);
        let at = now;
        let granted = 0;
        for (const { advance, share, back } of walk) {
          at += advance;
          const amount = Math.ceil(share * reading.limit);
          if (amount > reading.limit || mirrorOpensAt(mirror, amount, at) > at) continue;
          mirror = taken(mirror, amount, at);
          if (back) mirror = taken(mirror, -amount, at);
          else granted += amount;
          const most = reading.remaining + (at - now) * mirror.perMs;
          expect(granted).toBeLessThanOrEqual(most + 1e-6 * reading.limit);
        }
      }),
      { numRuns: 500 },
    );
  });

  it("never refuses one who waits until it said it would open, nor opens when there is too little", () => {
    fc.assert(
      fc.property(readings, fc.array(some, { maxLength: 30 }), some, (reading, walk, last) => {
        let mirror = mirrored(undefined, reading, now, 0);
        let at = now;
        for (const { advance, share } of walk) {
          at += advance;
          mirror = taken(mirror, Math.ceil(share * reading.limit), at);
        }
        const amount = Math.ceil(last.share * reading.limit);
        const opensAt = mirrorOpensAt(mirror, amount, at);
        expect(opensAt).toBeGreaterThanOrEqual(at);
        expect(mirrorOpensAt(mirror, amount, opensAt)).toBe(opensAt);
        if (opensAt > at) expect(mirrorOpensAt(mirror, amount, opensAt - 1)).toBe(opensAt);
        // From the deepest debt there is.
        expect(opensAt).toBeLessThanOrEqual(at + Math.ceil((2 * reading.limit) / mirror.perMs) + 1);
      }),
      { numRuns: 500 },
    );
  });

  it("keeps nobody waiting for longer than it takes to fill when the clock was set back", () => {
    const backs = fc.oneof(
      fc.constantFrom(1, 999, 1000, 1001, hourMs),
      fc.integer({ min: 1, max: 2 * hourMs }),
    );
    fc.assert(
      fc.property(readings, backs, some, (reading, backMs, { share }) => {
        const mirror = mirrored(undefined, reading, now, 0);
        const amount = Math.ceil(share * reading.limit);
        const back = now - backMs;
        const fullMs = Math.ceil(reading.limit / mirror.perMs);
        expect(mirrorOpensAt(mirror, amount, back)).toBeLessThanOrEqual(back + fullMs + 1000);
        const after = taken(mirror, amount, back);
        expect(mirrorOpensAt(after, reading.limit, back)).toBeLessThanOrEqual(back + 2 * fullMs + 1000);
        // And it listens to what is said now.
        if (backMs <= 1000) return;
        expect(mirrored(after, read(reading.limit, 0), back, 0)).not.toBe(after);
      }),
      { numRuns: 500 },
    );
  });

  test("holds no more than the limit, however long it fills and whatever is given back", () => {
    const mirror = mirrored(undefined, read(60, 0, minuteMs), now, 0);
    const late = now + hourMs;
    expect(mirrorOpensAt(taken(mirror, 60, late), 1, late)).toBe(late + 1000);
    expect(mirrorOpensAt(taken(taken(mirror, -100, late), 60, late), 1, late)).toBe(late + 1000);
    const refunded = taken(mirrored(undefined, read(60, 60), now, 0), -30, now);
    expect(mirrorOpensAt(taken(refunded, 60, now), 1, now)).toBe(now + 1000);
    expect(refunded.level).toBe(60);
  });

  test("counts as full when the clock was set back by more than a second, and as it was by less", () => {
    const empty = mirrored(undefined, read(60, 0, minuteMs), now, 0);
    expect(mirrorOpensAt(taken(empty, 50, now - hourMs), 10, now - hourMs)).toBe(now - hourMs);
    expect(mirrorOpensAt(taken(empty, 50, now - hourMs), 11, now - hourMs)).toBe(now - hourMs + 1000);
    expect(mirrorOpensAt(taken(empty, 0, now - 500), 1, now - 500)).toBe(now + 1000);
  });

  test("does not believe a debt that is deeper than the limit", () => {
    const mirror = mirrored(undefined, read(60, 0, minuteMs), now, 100_000);
    expect(mirrorOpensAt(mirror, 60, now)).toBe(now + 2 * minuteMs);
    // Nor that there is more than the provider said, where calls from before turned out to be smaller.
    expect(mirrorOpensAt(mirrored(undefined, read(60, 10, 50_000), now, -500), 11, now)).toBe(now + 1000);
  });

  it("is the same after a restart", () => {
    fc.assert(
      fc.property(readings, fc.array(some, { maxLength: 10 }), readings, (reading, walk, later) => {
        let mirror: Mirror = mirrored(undefined, reading, now, 0);
        let at = now;
        for (const { advance, share } of walk) {
          at += advance;
          mirror = taken(mirror, Math.ceil(share * reading.limit), at);
        }
        mirror = mirrored(mirror, later, at, 3);
        expect(readMirror(JSON.parse(JSON.stringify(mirror)))).toEqual(mirror);
      }),
      { numRuns: 500 },
    );
  });

  const sound = mirrored(undefined, read(60, 30, 30_000), now, 0);
  test.each<[string, unknown]>([
    ["nothing", undefined],
    ["null", null],
    ["text", "mirror"],
    ["a list", [1, 2, 3]],
    ["an empty object", {}],
    ["no limit", { ...sound, limit: 0 }],
    ["a limit that is no number", { ...sound, limit: "60" }],
    ["a level above the limit", { ...sound, level: 61 }],
    ["a level that is no number", { ...sound, level: null }],
    ["an instant that is none", { ...sound, at: -1 }],
    ["an instant beyond time", { ...sound, readAt: 1e300 }],
    ["no refill", { ...sound, perMs: 0 }],
    ["a refill that never ends", { ...sound, perMs: 1e-300 }],
  ])("is not read from %s", (_, json) => {
    expect(readMirror(json)).toBeUndefined();
  });

  it("is read from nothing that JSON can be without being sound", () => {
    const number = fc.oneof(fc.double(), fc.nat(), fc.constant(now));
    const like = fc.record({ limit: number, level: number, at: number, perMs: number, readAt: number });
    fc.assert(
      fc.property(fc.oneof(fc.jsonValue(), like), (json) => {
        const mirror = readMirror(json);
        if (mirror === undefined) return;
        const opensAt = mirrorOpensAt(mirror, mirror.limit, now);
        expect(opensAt).toBeGreaterThanOrEqual(now);
        expect(Number.isFinite(opensAt)).toBe(true);
      }),
      { numRuns: 1000 },
    );
  });
});
