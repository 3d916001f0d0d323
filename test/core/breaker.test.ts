import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import {
  admits,
  type Breaker,
  type BreakerSettings,
  breakerOpensAt,
  closed,
  type FailedCall,
  failed,
  forRestart,
  passed,
  probeAbandoned,
  revive,
  shortestRunMs,
  succeeded,
} from "../../src/core/breaker.ts";

const now = 1_800_000_000_000;
const defaults: BreakerSettings = {
  enabled: true,
  consecutiveFailures: 3,
  failureRate: 0.5,
  minCalls: 10,
  windowMs: 60_000,
  cooldownMs: 20_000,
  maxCooldownMs: 60_000,
};
const hourMs = 3_600_000;

const failure = (at: number, source: string, some: Partial<FailedCall> = {}): FailedCall => ({
  now: at,
  luck: 0,
  source,
  probe: false,
  grantedAt: at,
  ...some,
});

/** A breaker after failures of these sources, so many ms after each other. */
function afterFailuresOf(
  sources: string[],
  stepMs: number,
  settings = defaults,
  from: Breaker = closed,
): Breaker {
  return sources.reduce(
    (breaker, source, i) => failed(breaker, failure(now + i * stepMs, source), settings),
    from,
  );
}
/** Open since `now + 1000`, until `now + 21_000`. */
const opened = (): Breaker => afterFailuresOf(["a", "b", "c"], 500);
const until = (breaker: Breaker): number => (breaker.kind === "open" ? breaker.until : Number.NaN);
const halfOpen = (): Breaker => passed(opened(), now + 21_000);
const probeFailed = (breaker: Breaker, at: number, luck = 0): Breaker =>
  failed(passed(breaker, at), failure(at, "probe", { probe: true, luck }), defaults);

/** Numbers in [0, 1) that are the same in every run (mulberry32). */
function lucky(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let bits = Math.imul(state ^ (state >>> 15), 1 | state);
    bits = (bits + Math.imul(bits ^ (bits >>> 7), 61 | bits)) ^ bits;
    return ((bits ^ (bits >>> 14)) >>> 0) / 4_294_967_296;
  };
}

describe("a closed breaker", () => {
  test("admits everybody", () => {
    expect(admits(closed, now)).toBe("yes");
    expect(breakerOpensAt(closed, now)).toBe(0);
    expect(passed(closed, now)).toBe(closed);
  });

  test("opens by failures in a row that last a second", () => {
    expect(afterFailuresOf(["a", "b"], shortestRunMs).kind).toBe("closed");
    expect(opened()).toMatchObject({ kind: "open", since: now + 1000, until: now + 21_000, opens: 1 });
  });

  test("stays closed when the failures in a row come in one instant", () => {
    expect(afterFailuresOf(["a", "b", "c", "d"], 0).kind).toBe("closed");
    expect(afterFailuresOf(["a", "b", "c"], shortestRunMs / 2 - 1).kind).toBe("closed");
  });

  test("does not count failures as a row that a success has broken", () => {
    let breaker = afterFailuresOf(["a", "b"], 1000);
    breaker = succeeded(breaker, now + 2000, false, defaults);
    breaker = failed(breaker, failure(now + 3000, "c"), defaults);
    breaker = failed(breaker, failure(now + 4000, "d"), defaults);
    expect(breaker.kind).toBe("closed");
    expect(failed(breaker, failure(now + 5000, "e"), defaults).kind).toBe("open");
  });

  test("opens by the share of failures, as soon as there are enough calls", () => {
    let breaker: Breaker = closed;
    for (let i = 0; i < 5; i++) {
      breaker = succeeded(breaker, now, false, defaults);
      expect(breaker.kind).toBe("closed");
      breaker = failed(breaker, failure(now, `r${i}`), defaults);
    }
    expect(breaker.kind).toBe("open");
  });

  test("stays closed while less than the share fails", () => {
    let breaker: Breaker = closed;
    for (let i = 0; i < 500; i++) {
      breaker = succeeded(breaker, now + i, false, defaults);
      breaker = succeeded(breaker, now + i, false, defaults);
      breaker = failed(breaker, failure(now + i, `r${i}`), defaults);
    }
    expect(breaker.kind).toBe("closed");
  });

  test("forgets calls that are older than the window, and none that is younger than eleven twelfths of it", () => {
    const calls = (breaker: Breaker, at: number) =>
      Array.from({ length: 50 }).reduce<Breaker>((one) => succeeded(one, at, false, defaults), breaker);
    const tenFailuresAt = (breaker: Breaker, at: number) =>
      Array.from({ length: 10 }).reduce<Breaker>(
        (one, _, i) => failed(one, failure(at, `r${i}`), defaults),
        breaker,
      );
    expect(tenFailuresAt(calls(closed, now + 4999), now + 59_999).kind).toBe("closed");
    expect(tenFailuresAt(calls(closed, now), now + 60_000).kind).toBe("open");
  });

  test("with 5 failures, 50 %, 5 calls and 60 s opens at the fifth failure, also when all come in one instant", () => {
    const settings = { ...defaults, consecutiveFailures: 5, minCalls: 5 };
    const sources = ["a", "b", "c", "d", "e"];
    for (const stepMs of [0, 1, 1000, 13_000]) {
      expect(afterFailuresOf(sources.slice(0, 4), stepMs, settings).kind).toBe("closed");
      expect(afterFailuresOf(sources, stepMs, settings).kind).toBe("open");
    }
  });

  it("never opens by one request alone, however often and however long it fails", () => {
    const steps = fc.array(fc.nat(100_000), { maxLength: 100, size: "max" });
    fc.assert(
      fc.property(steps, (waits) => {
        let at = now;
        let breaker: Breaker = closed;
        for (const wait of waits) {
          at += wait;
          breaker = failed(breaker, failure(at, "poison"), defaults);
          expect(breaker.kind).toBe("closed");
        }
      }),
    );
  });

  test("never opens while one call in twenty fails at random, in ten minutes of 100 calls a second", () => {
    for (let seed = 1; seed <= 12; seed++) {
      const next = lucky(seed);
      let breaker: Breaker = closed;
      let failures = 0;
      for (let i = 0; i < 60_000; i++) {
        const at = now + i * 10;
        const isFailure = next() < 0.05;
        breaker = isFailure
          ? failed(breaker, failure(at, `r${i}`), defaults)
          : succeeded(breaker, at, false, defaults);
        if (isFailure) failures++;
        if (breaker.kind !== "closed") break;
      }
      expect(breaker.kind, `seed ${seed}`).toBe("closed");
      expect(failures).toBeGreaterThan(2000);
    }
  });

  test("never opens where breakers are switched off", () => {
    const settings = { ...defaults, enabled: false };
    expect(afterFailuresOf(["a", "b", "c", "d"], 1000, settings)).toBe(closed);
    expect(succeeded(closed, now, false, settings)).toBe(closed);
  });
});

describe("an open breaker", () => {
  test("admits nobody before its time, then one, and nobody until that one has ended, however long it takes", () => {
    const breaker = opened();
    expect(breakerOpensAt(breaker, now + 5000)).toBe(now + 21_000);
    expect(admits(breaker, now + 20_999)).toBe("no");
    expect(admits(breaker, now + 21_000)).toBe("probe");
    expect(admits(halfOpen(), now + 21_000)).toBe("no");
    expect(admits(halfOpen(), now + 21_000 + 24 * hourMs)).toBe("no");
    expect(breakerOpensAt(halfOpen(), now + hourMs)).toBeGreaterThan(now + hourMs);
  });

  test("closes when its probe succeeds, and remembers nothing", () => {
    const breaker = succeeded(halfOpen(), now + 22_000, true, defaults);
    expect(breaker.kind).toBe("closed");
    expect(afterFailuresOf(["x", "y"], 1000, defaults, breaker).kind).toBe("closed");
  });

  test("is open twice as long after each failed probe, up to the longest", () => {
    let breaker = opened();
    for (const [opens, cooldownMs] of [
      [2, 40_000],
      [3, 60_000],
      [4, 60_000],
    ]) {
      const at = breakerOpensAt(breaker, now);
      breaker = probeFailed(breaker, at);
      expect(breaker).toMatchObject({ kind: "open", opens, until: at + cooldownMs!, since: now + 1000 });
    }
  });

  test("is open longer by a twentieth at most, as luck has it", () => {
    expect(until(probeFailed(opened(), now + 21_000, 0.5))).toBe(now + 62_000);
    expect(until(probeFailed(opened(), now + 21_000, 1 - 2 ** -53))).toBeLessThanOrEqual(now + 63_000);
  });

  test("lets the next one try at once after a probe that says nothing", () => {
    const breaker = probeAbandoned(halfOpen(), now + 22_000);
    expect(admits(breaker, now + 22_000)).toBe("probe");
    expect(probeFailed(breaker, now + 22_000)).toMatchObject({ opens: 2, since: now + 1000 });
    expect(probeAbandoned(opened(), now + 2000)).toEqual(opened());
  });

  test("takes no notice of calls that were granted before", () => {
    for (const breaker of [opened(), halfOpen()]) {
      expect(failed(breaker, failure(now + 22_000, "late", { grantedAt: now }), defaults)).toBe(breaker);
      expect(succeeded(breaker, now + 22_000, false, defaults)).toBe(breaker);
    }
  });

  test("nor does it when it is closed again", () => {
    let breaker = succeeded(halfOpen(), now + 22_000, true, defaults);
    for (let i = 0; i < 50; i++) {
      const late = failure(now + 30_000 + i * 1000, `r${i}`, { grantedAt: now + i });
      breaker = failed(breaker, late, defaults);
    }
    expect(breaker.kind).toBe("closed");
  });
});

// ---- any history ----

type Step = { waitMs: number } & (
  | { kind: "call" }
  | { kind: "end"; nth: number; how: "fails" | "succeeds" | "says nothing" }
);
const waitMs = fc.oneof({ weight: 5, arbitrary: fc.nat(2000) }, { weight: 1, arbitrary: fc.nat(30_000) });
const quick = { ...defaults, consecutiveFailures: 2, minCalls: 4, cooldownMs: 3000, maxCooldownMs: 10_000 };
const anyStep: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ waitMs, kind: fc.constant("call" as const) }),
  fc.record({
    waitMs,
    kind: fc.constant("end" as const),
    nth: fc.nat(20),
    how: fc.constantFrom("fails" as const, "fails" as const, "succeeds" as const, "says nothing" as const),
  }),
);

it("admits nobody between its opening and its time, and never a second one before its probe has ended", () => {
  let probes = 0;
  fc.assert(
    fc.property(fc.array(anyStep, { maxLength: 200, size: "max" }), fc.nat(), (steps, seed) => {
      const next = lucky(seed);
      let breaker: Breaker = closed;
      const kindOf = (one: Breaker) => one.kind;
      let at = now;
      let ids = 0;
      let shutUntil = 0;
      const calls: { id: number; grantedAt: number; probe: boolean }[] = [];
      for (const step of steps) {
        at += step.waitMs;
        if (step.kind === "call") {
          const admitted = admits(breaker, at);
          const isProbed = calls.some(({ probe }) => probe);
          if (isProbed || at < shutUntil) expect(admitted).toBe("no");
          if (admitted === "no") continue;
          if (admitted === "probe") probes++;
          expect(breakerOpensAt(breaker, at)).toBeLessThanOrEqual(at);
          breaker = passed(breaker, at);
          calls.push({ id: ids++, grantedAt: at, probe: admitted === "probe" });
          continue;
        }
        const [call] = calls.splice(step.nth % Math.max(1, calls.length), 1);
        if (!call) continue;
        const { probe, grantedAt, id } = call;
        const wasOpen = breaker.kind === "open";
        const told = { now: at, luck: next(), source: `r${id}`, probe, grantedAt };
        if (step.how === "fails") breaker = failed(breaker, told, quick);
        else if (step.how === "succeeds") breaker = succeeded(breaker, at, probe, quick);
        else if (probe) breaker = probeAbandoned(breaker, at);
        if (wasOpen || kindOf(breaker) !== "open") continue;
        shutUntil = until(breaker);
        expect(shutUntil - at).toBeLessThanOrEqual(10_500);
        expect(breakerOpensAt(breaker, at)).toBe(shutUntil);
      }
    }),
    { numRuns: 500 },
  );
  expect(probes).toBeGreaterThan(500);
});

describe("a clock that is set back", () => {
  it("makes nobody wait longer than a cooldown", () => {
    fc.assert(
      fc.property(fc.integer({ min: -2 * hourMs, max: 120_000 }), (step) => {
        const at = now + 1000 + step;
        expect(breakerOpensAt(opened(), at) - at).toBeLessThanOrEqual(21_000);
      }),
    );
  });

  test("does not keep a closed one from opening, nor from forgetting", () => {
    const before = failed(closed, failure(now + hourMs, "a"), defaults);
    expect(afterFailuresOf(["c", "d", "e"], 500, defaults, before).kind).toBe("open");
    let breaker: Breaker = closed;
    for (let i = 0; i < 20; i++) {
      breaker = failed(breaker, failure(now + hourMs, "only"), defaults);
    }
    for (let i = 0; i < 30; i++) breaker = succeeded(breaker, now, false, defaults);
    for (let i = 0; i < 20; i++) breaker = failed(breaker, failure(now, `r${i}`), defaults);
    expect(breaker.kind).toBe("closed");
  });

  test("does not make it deaf to failures after it was closed", () => {
    const breaker = succeeded(halfOpen(), now + hourMs, true, defaults);
    expect(afterFailuresOf(["a", "b", "c"], 500, defaults, breaker).kind).toBe("open");
  });
});

describe("a start", () => {
  const restarted = (breaker: Breaker, at: number) =>
    revive(JSON.parse(JSON.stringify(forRestart(breaker))), at, defaults);

  test("finds a breaker open that was, for the rest of its time", () => {
    expect(restarted(opened(), now + 5000)).toEqual(opened());
    expect(admits(restarted(opened(), now + 30_000), now + 30_000)).toBe("probe");
    const twice = probeFailed(opened(), now + 21_000);
    expect(probeFailed(restarted(twice, now + 22_000), now + 61_000)).toMatchObject({ opens: 3 });
  });

  test("lets the next one try where a probe was under way", () => {
    const breaker = restarted(halfOpen(), now + 25_000);
    expect(breaker).toMatchObject({ kind: "open", until: now + 25_000, opens: 1 });
    expect(admits(breaker, now + 25_000)).toBe("probe");
  });

  test("finds a closed one closed, and does not wait for long where the clock was set back", () => {
    expect(restarted(afterFailuresOf(["a", "b"], 1000), now + 5000)).toEqual(closed);
    expect(breakerOpensAt(restarted(opened(), now - hourMs), now - hourMs)).toBeLessThanOrEqual(
      now - hourMs + 21_000,
    );
  });

  test("finds it closed where breakers are switched off, or the cooldown shorter where it has been set so", () => {
    const kept = forRestart(opened());
    expect(revive(kept, now, { ...defaults, enabled: false })).toBe(closed);
    expect(breakerOpensAt(revive(kept, now + 1000, { ...defaults, cooldownMs: 1000 }), now + 1000)).toBe(
      now + 2050,
    );
  });

  test("takes a breaker that never opened for a closed one", () => {
    expect(revive({ ...(forRestart(opened()) as object), opens: 0 }, now, defaults)).toBe(closed);
  });

  it("takes whatever it cannot read for a closed one, and never waits longer than the longest cooldown", () => {
    const parts = fc.record(
      {
        kind: fc.constantFrom<unknown>("open", "half_open", "closed", 1),
        until: fc.oneof(fc.anything(), fc.nat(), fc.constant(now + 1e9)),
        since: fc.oneof(fc.anything(), fc.nat()),
        opens: fc.oneof(fc.anything(), fc.nat()),
      },
      { requiredKeys: [] },
    );
    fc.assert(
      fc.property(fc.oneof(fc.anything(), parts), (kept) => {
        const breaker = revive(kept, now, defaults);
        expect(["closed", "open"]).toContain(breaker.kind);
        expect(breakerOpensAt(breaker, now)).toBeLessThanOrEqual(now + 63_000);
      }),
      { numRuns: 1000 },
    );
  });
});

// ---- S15: 503 for 60 s, while a request arrives every 4 s and a fallback takes over each failed call ----

interface Day {
  /** When the first request arrives after the beginning of the outage, in ms. */
  firstMs: number;
  latencyMs: () => number;
  luck: () => number;
}

/** How many calls reach the primary during the outage, and how long after it the first one is answered. */
function outage({ firstMs, latencyMs, luck }: Day): { calls: number; backAfterMs: number } {
  const outageMs = 60_000;
  const ends: { at: number; end: () => void }[] = [];
  let breaker: Breaker = closed;
  let calls = 0;
  for (let i = -5; i < 60; i++) {
    const at = now + firstMs + i * 4000;
    for (const { end } of ends.filter((one) => one.at <= at)) end();
    ends.splice(0, ends.length, ...ends.filter((one) => one.at > at));
    const admitted = admits(breaker, at);
    if (admitted === "no") continue;
    breaker = passed(breaker, at);
    const probe = admitted === "probe";
    const isOut = at >= now && at < now + outageMs;
    if (isOut) calls++;
    if (at >= now + outageMs) return { calls, backAfterMs: at - now - outageMs };
    const endAt = at + latencyMs();
    const told = { now: endAt, luck: luck(), source: `r${i}`, probe, grantedAt: at };
    ends.push({
      at: endAt,
      end: () => {
        breaker = isOut ? failed(breaker, told, defaults) : succeeded(breaker, endAt, probe, defaults);
      },
    });
  }
  return { calls, backAfterMs: Number.POSITIVE_INFINITY };
}

test("an outage of a minute lets 4 calls through at most, and the upstream is used again within 30 s", () => {
  for (let seed = 0; seed < 2000; seed++) {
    const next = lucky(seed);
    const steadyMs = seed % 3 === 0 ? (seed * 7) % 501 : undefined;
    const day: Day = {
      firstMs: Math.floor(next() * 4000),
      latencyMs: () => steadyMs ?? Math.floor(next() * 501),
      luck: seed % 5 === 0 ? () => 0 : seed % 5 === 1 ? () => 1 - 2 ** -53 : next,
    };
    const { calls, backAfterMs } = outage(day);
    expect(calls, `seed ${seed}`).toBeLessThanOrEqual(4);
    expect(calls, `seed ${seed}`).toBeGreaterThanOrEqual(3);
    expect(backAfterMs, `seed ${seed}`).toBeLessThanOrEqual(30_000);
  }
});
