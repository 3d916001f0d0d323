import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { type Amounts, Metering, meterOf } from "../../src/core/meter.ts";
import { Pace, type PaceLimits } from "../../src/core/pace.ts";

const now = 1_700_000_000_000;
const one = (tokens: number): Amounts => ({ requests: 1, tokens });
const nothing: Amounts = { requests: 0, tokens: 0 };
const meteringOf = (...limits: PaceLimits[]) => new Metering(limits.map((some) => meterOf(some)));
const usedOf = (metering: Metering, at = now) => ({
  requests: metering.limitOf("requests", at)?.used,
  tokens: metering.limitOf("tokens", at)?.used,
});

describe("where nothing is configured, and the provider has said nothing,", () => {
  const metering = meteringOf({}, {});
  metering.take(one(1_000_000), now);

  test("nothing limits", () => {
    expect(metering.limits).toBe(false);
    expect(metering.opensAt(one(1_000_000), now)).toBeLessThanOrEqual(now);
    expect(metering.limitOf("requests", now)).toBeUndefined();
    expect(metering.limitOf("tokens", now)).toBeUndefined();
  });
});

describe("the limits of several places", () => {
  test("all have to let a call through, by requests and by tokens", () => {
    const lane = meterOf({ tokensPerMinute: 1000 });
    const upstream = meterOf({ requestsPerMinute: 10 });
    const metering = new Metering([lane, upstream]);
    expect(metering.opensAt(one(200), now)).toBe(now);
    lane.tokens!.take(250, now);
    expect(metering.opensAt(one(1), now)).toBeGreaterThan(now);
    expect(metering.opensAt({ requests: 1, tokens: 0 }, now)).toBe(now);
    upstream.requests!.take(10, now);
    expect(metering.opensAt({ requests: 1, tokens: 0 }, now)).toBeGreaterThanOrEqual(now + 60_000);
  });

  test("what one lane takes of an upstream, another cannot", () => {
    const upstream = meterOf({ requestsPerMinute: 2 });
    const [first, second] = [new Metering([meterOf(), upstream]), new Metering([meterOf(), upstream])];
    first.take(one(1), now);
    second.take(one(1), now);
    for (const metering of [first, second]) {
      expect(metering.opensAt(one(1), now)).toBeGreaterThanOrEqual(now + 60_000);
      expect(metering.limitOf("requests", now)).toEqual({ perMinute: 2, used: 2, source: "config" });
    }
  });

  test("are told by the narrowest", () => {
    const metering = meteringOf({ requestsPerMinute: 50 }, { requestsPerMinute: 20, tokensPerMinute: 7 }, {});
    expect(metering.limitOf("requests", now)).toMatchObject({ perMinute: 20 });
    expect(metering.limitOf("tokens", now)).toMatchObject({ perMinute: 7 });
  });

  it("open together when the last of them does", () => {
    const limit = fc.option(fc.integer({ min: 1, max: 500 }), { nil: undefined });
    const limits = fc.record({ requestsPerMinute: limit, tokensPerMinute: limit });
    const calls = fc.array(fc.tuple(fc.nat(5000), fc.nat(300)), { maxLength: 40 });
    fc.assert(
      fc.property(fc.array(limits, { minLength: 1, maxLength: 3 }), calls, (places, all) => {
        const metering = meteringOf(...places);
        const paces = places.flatMap(({ requestsPerMinute, tokensPerMinute }) => [
          ...(requestsPerMinute ? [{ kind: "requests" as const, pace: new Pace(requestsPerMinute) }] : []),
          ...(tokensPerMinute ? [{ kind: "tokens" as const, pace: new Pace(tokensPerMinute) }] : []),
        ]);
        expect(metering.limits).toBe(paces.length > 0);
        let at = now;
        for (const [ms, tokens] of all) {
          at += ms;
          const amounts = one(tokens);
          const latest = Math.max(at, ...paces.map(({ kind, pace }) => pace.opensAt(amounts[kind], at)));
          expect(Math.max(at, metering.opensAt(amounts, at))).toBe(latest);
          metering.take(amounts, at);
          for (const { kind, pace } of paces) pace.take(amounts[kind], at);
        }
      }),
    );
  });
});

describe("what was taken", () => {
  const metering = () => meteringOf({ requestsPerMinute: 100 }, { tokensPerMinute: 10_000 });

  test("is set right when it is known what was used, be it more or less", () => {
    for (const used of [10, 900]) {
      const some = metering();
      const taken = some.take(one(500), now);
      expect(usedOf(some)).toEqual({ requests: 1, tokens: 500 });
      some.settle(taken, one(used), now + 1000);
      expect(usedOf(some, now + 1000)).toEqual({ requests: 1, tokens: used });
    }
  });

  test("is given back where nothing was sent", () => {
    const some = metering();
    some.settle(some.take(one(500), now), nothing, now);
    expect(usedOf(some)).toEqual({ requests: 0, tokens: 0 });
  });

  test("counts for a minute from when it was taken, not from when it was set right", () => {
    const some = metering();
    some.settle(some.take(one(500), now), one(700), now + 50_000);
    expect(usedOf(some, now + 59_999)).toEqual({ requests: 1, tokens: 700 });
    expect(usedOf(some, now + 61_000)).toEqual({ requests: 0, tokens: 0 });
  });

  test("by an earlier start counts as if it had been taken by this one", () => {
    const some = metering();
    some.recall(one(400), now - 30_000);
    some.recall(one(300), now - 1000);
    expect(usedOf(some)).toEqual({ requests: 2, tokens: 700 });
    expect(usedOf(some, now + 31_000)).toEqual({ requests: 1, tokens: 300 });
  });

  it("is the sum of what is known of each call, whichever end first", () => {
    const call = fc.record({
      tokens: fc.nat(1000),
      actual: fc.option(fc.nat(1000), { nil: undefined }),
      endsMs: fc.nat(20_000),
    });
    fc.assert(
      fc.property(fc.array(call, { maxLength: 30 }), (calls) => {
        const upstream = meterOf({ requestsPerMinute: 1000, tokensPerMinute: 1_000_000 });
        const lanes = [new Metering([meterOf(), upstream]), new Metering([upstream])];
        const taken = calls.map(({ tokens }, i) => lanes[i % 2]!.take(one(tokens), now + i * 100));
        const ends = calls.map(({ actual, endsMs }, i) => ({ i, actual, at: now + 3000 + endsMs }));
        for (const { i, actual, at } of ends.sort((a, b) => a.at - b.at)) {
          if (actual !== undefined) lanes[i % 2]!.settle(taken[i]!, one(actual), at);
        }
        const tokens = calls.reduce((sum, one) => sum + (one.actual ?? one.tokens), 0);
        for (const lane of lanes) {
          expect(usedOf(lane, now + 30_000)).toEqual({ requests: calls.length, tokens });
        }
      }),
    );
  });
});

describe("the provider's own account", () => {
  const full = { limit: 1000, remaining: 1000 };
  const level = (metering: Metering) => metering.mirrors.tokens!.level;

  test("limits where nothing is configured", () => {
    const metering = meteringOf({}, {});
    const call = metering.take(one(10), now);
    metering.read({ tokens: { limit: 1000, remaining: 100, resetMs: 9000 } }, call);
    expect(metering.limits).toBe(true);
    expect(metering.opensAt(one(100), now)).toBe(now);
    // 900 in 9 s.
    expect(metering.opensAt(one(101), now)).toBe(now + 10);
    expect(metering.limitOf("tokens", now)).toEqual({ perMinute: 1000, used: 900, source: "learned" });
    expect(metering.limitOf("tokens", now + 4500)).toMatchObject({ used: 450 });
    expect(metering.limitOf("tokens", now + 90_000)).toMatchObject({ used: 0 });
    expect(metering.limitOf("requests", now)).toBeUndefined();
  });

  test("does not where that kind of limit is configured anywhere, and does for the other", () => {
    const metering = meteringOf({}, { requestsPerMinute: 100 });
    const call = metering.take(one(10), now);
    const empty = { limit: 50, remaining: 0, resetMs: 60_000 };
    metering.read({ requests: empty, tokens: empty }, call);
    expect(metering.mirrorOf("requests")).toBeUndefined();
    expect(metering.mirrorOf("tokens")).toBeDefined();
    expect(metering.opensAt({ requests: 1, tokens: 0 }, now)).toBe(now);
    expect(metering.opensAt(one(1), now)).toBeGreaterThan(now);
    expect(metering.limitOf("requests", now)).toEqual({ perMinute: 100, used: 1, source: "config" });
    expect(metering.limitOf("tokens", now)).toEqual({ perMinute: 50, used: 50, source: "learned" });
  });

  test("has what was taken since the call behind which it was told", () => {
    const metering = meteringOf();
    const first = metering.take(one(100), now);
    metering.take(one(30), now);
    metering.take(one(5), now);
    metering.read({ tokens: { limit: 1000, remaining: 900 } }, first);
    expect(level(metering)).toBe(865);
    metering.take(one(65), now);
    expect(level(metering)).toBe(800);
  });

  test("has what a call that was let through later turned out to use", () => {
    const metering = meteringOf();
    const first = metering.take(one(100), now);
    const second = metering.take(one(500), now);
    metering.settle(second, one(20), now);
    metering.read({ tokens: { limit: 1000, remaining: 900 } }, first);
    expect(level(metering)).toBe(880);
    const third = metering.take(one(300), now);
    metering.settle(third, nothing, now);
    expect(level(metering)).toBe(880);
  });

  test("has its own call already, however much that turned out to use", () => {
    for (const used of [1, 100, 400]) {
      const metering = meteringOf();
      const first = metering.take(one(100), now);
      metering.settle(first, one(used), now);
      metering.read({ tokens: { limit: 1000, remaining: 900 } }, first);
      expect(level(metering)).toBe(900);
    }
  });

  test("is not set back by the answer to an earlier call", () => {
    const metering = meteringOf();
    const first = metering.take(one(1), now);
    const second = metering.take(one(1), now + 2000);
    metering.read({ tokens: { limit: 1000, remaining: 400 } }, second);
    metering.read({ tokens: full }, first);
    expect(level(metering)).toBe(400);
  });

  test("has what an earlier start has sent: it is not taken again", () => {
    const metering = meteringOf();
    metering.mirrors = { tokens: { limit: 1000, level: 700, at: now, perMs: 1, readAt: now } };
    metering.recall(one(500), now);
    expect(level(metering)).toBe(700);
  });

  it("is what is left, less all calls since, whichever of these have ended", () => {
    const call = fc.record({
      tokens: fc.nat(200),
      actual: fc.option(fc.nat(200), { nil: undefined }),
    });
    const calls = fc.array(call, { minLength: 1, maxLength: 12 });
    fc.assert(
      fc.property(calls, fc.integer({ min: 0, max: 5000 }), fc.boolean(), (all, remaining, endsFirst) => {
        const metering = meteringOf();
        const taken = all.map(({ tokens }) => metering.take(one(tokens), now));
        for (const [i, { actual }] of all.entries()) {
          if (actual !== undefined && (i > 0 || endsFirst)) metering.settle(taken[i]!, one(actual), now);
        }
        metering.read({ tokens: { limit: 5000, remaining } }, taken[0]!);
        const since = all.slice(1).reduce((sum, { tokens, actual = tokens }) => sum + actual, 0);
        expect(level(metering)).toBe(remaining - since);
      }),
    );
  });
});
