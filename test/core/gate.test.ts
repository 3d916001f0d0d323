import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import {
  admits,
  close,
  type Gate,
  type GateBackoff,
  open,
  opensAt,
  passed,
  probeAbandoned,
  probePassed,
  probePatienceMs,
} from "../../src/core/gate.ts";

const now = 1_000_000;
const backoff: GateBackoff = { baseMs: 1000, maxMs: 60_000 };

const told = (some: { at?: number; retryAfterMs?: number; probe?: boolean; luck?: number } = {}) => ({
  now: some.at ?? now,
  luck: some.luck ?? 0,
  why: "rate_limit" as const,
  retryAfterMs: some.retryAfterMs,
  probe: some.probe ?? false,
});
const closed = (some: Parameters<typeof told>[0] = {}) => close(open, told(some), backoff);
const probing = (gate: Gate, at = until(gate)): Gate => passed(gate, at);
const until = (gate: Gate) => (gate.kind === "open" ? 0 : gate.until);

describe("a gate", () => {
  test("that is open lets everybody through", () => {
    expect(admits(open, now)).toBe("yes");
    expect(opensAt(open)).toBe(0);
  });

  test("that is closed lets nobody through before its time, then one", () => {
    const gate = closed({ retryAfterMs: 5000 });
    expect(opensAt(gate)).toBe(now + 5000);
    expect(admits(gate, now + 4999)).toBe("no");
    expect(admits(gate, now + 5000)).toBe("probe");
    expect(admits(probing(gate), now + 5000)).toBe("no");
    expect(admits(probing(gate), now + 5000 + probePatienceMs - 1)).toBe("no");
  });

  test("opens when its probe has not been refused for long", () => {
    const gate = probing(closed({ retryAfterMs: 5000 }));
    const patientAt = now + 5000 + probePatienceMs;
    expect(opensAt(gate)).toBe(patientAt);
    expect(admits(gate, patientAt)).toBe("yes");
    expect(passed(gate, patientAt)).toBe(open);
  });

  test("does not open while a wait that another call was told runs, however patient its probe is", () => {
    const gate = close(probing(closed()), told({ at: now + 1000, retryAfterMs: 60_000 }), backoff);
    expect(admits(gate, now + 60_999)).toBe("no");
    expect(opensAt(gate)).toBe(now + 61_000);
  });

  test("closes for its own backoff where it is told less or nothing, so that Retry-After: 0 does not loop", () => {
    expect(until(closed({ retryAfterMs: 0 }))).toBe(now + 1000);
    expect(until(closed({ retryAfterMs: 999 }))).toBe(now + 1000);
    expect(until(closed())).toBe(now + 1000);
  });

  test("doubles its backoff up to its maximum as probes fail", () => {
    let gate = closed();
    const waits: number[] = [];
    for (let i = 0; i < 9; i++) {
      const at = until(gate);
      gate = close(probing(gate), told({ at, probe: true }), backoff);
      waits.push(until(gate) - at);
    }
    expect(waits).toEqual([2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000, 60_000, 60_000]);
  });

  test("begins anew after a probe that got through", () => {
    const twice = close(probing(closed()), told({ probe: true }), backoff);
    expect(until(close(probePassed(probing(twice), now + 9000), told(), backoff))).toBe(now + 1000);
  });

  test("is not closed longer by failures of calls that were under way when it closed", () => {
    const gate = close(close(closed(), told(), backoff), told(), backoff);
    expect(until(gate)).toBe(now + 1000);
    const failed = close(probing(gate), told({ at: now + 1000, probe: true }), backoff);
    expect(until(failed)).toBe(now + 3000);
  });

  test("keeps the longest wait that it was told, whatever comes later", () => {
    const long = close(closed({ retryAfterMs: 60_000 }), told({ retryAfterMs: 2000 }), backoff);
    expect(until(long)).toBe(now + 60_000);
    const duringProbe = close(probing(closed()), told({ at: now + 1000, retryAfterMs: 60_000 }), backoff);
    const shorter = close(duringProbe, told({ at: now + 1001, retryAfterMs: 1 }), backoff);
    expect(until(shorter)).toBe(now + 61_000);
    expect(until(close(shorter, told({ at: now + 1002, probe: true }), backoff))).toBe(now + 61_000);
  });

  test("stays closed after a good probe where another call was told to wait meanwhile", () => {
    const gate = close(probing(closed()), told({ at: now + 1000, retryAfterMs: 60_000 }), backoff);
    const after = probePassed(gate, now + 2000);
    expect(admits(after, now + 60_999)).toBe("no");
    expect(admits(after, now + 61_000)).toBe("probe");
    expect(probePassed(gate, now + 61_000)).toBe(open);
  });

  test("lets the next one try at once after a probe that was not made", () => {
    const gate = probeAbandoned(probing(closed()), now + 1500);
    expect(admits(gate, now + 1500)).toBe("probe");
    expect(probeAbandoned(open, now)).toBe(open);
  });

  test("remembers since when it has been closed, over failed probes", () => {
    const gate = close(probing(closed()), told({ at: now + 1000, probe: true }), backoff);
    expect(gate).toMatchObject({ since: now, strikes: 2 });
  });
});

// ---- any sequence of events ----

type Event =
  | { kind: "ask" }
  | { kind: "throttled"; retryAfterMs: number | undefined; luck: number; asProbe: boolean }
  | { kind: "probe_ends"; how: "passed" | "abandoned" }
  | { kind: "time"; ms: number };

const anyEvent: fc.Arbitrary<Event> = fc.oneof(
  fc.constant<Event>({ kind: "ask" }),
  fc.record({
    kind: fc.constant("throttled" as const),
    retryAfterMs: fc.option(fc.nat(100_000), { nil: undefined }),
    luck: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
    asProbe: fc.boolean(),
  }),
  fc.record({
    kind: fc.constant("probe_ends" as const),
    how: fc.constantFrom<"passed" | "abandoned">("passed", "abandoned"),
  }),
  fc.record({ kind: fc.constant("time" as const), ms: fc.nat(30_000) }),
);

describe("whatever comes over a gate,", () => {
  it("one probe is under way at most, nobody passes before the longest wait told, and instants are whole", () => {
    fc.assert(
      fc.property(fc.array(anyEvent, { maxLength: 60 }), (events) => {
        let gate: Gate = open;
        let at = now;
        let probes = 0;
        let toldUntil = 0;
        for (const event of events) {
          if (event.kind === "time") at += event.ms;
          if (event.kind === "ask") {
            const admitted = admits(gate, at);
            if (admitted !== "no") expect(at).toBeGreaterThanOrEqual(toldUntil);
            if (admitted === "probe") {
              expect(probes).toBe(0);
              probes++;
            }
            if (admitted !== "no") gate = passed(gate, at);
          }
          if (event.kind === "throttled") {
            const probe = event.asProbe && probes === 1;
            gate = close(gate, { now: at, why: "rate_limit", probe, ...event }, backoff);
            toldUntil = Math.max(toldUntil, at + (event.retryAfterMs ?? 0), at + backoff.baseMs);
            expect(Number.isSafeInteger(until(gate))).toBe(true);
          }
          if (event.kind === "probe_ends" && probes === 1) {
            gate = event.how === "passed" ? probePassed(gate, at) : probeAbandoned(gate, at);
          }
          // A probe that was patient enough is one no more.
          if (gate.kind !== "probing") probes = 0;
          expect(gate.kind === "probing").toBe(probes === 1);
        }
      }),
      { numRuns: 2000 },
    );
  });

  it("its own backoff is never longer than its maximum and a tenth, told waits aside", () => {
    const luck = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
    fc.assert(
      fc.property(fc.array(luck, { minLength: 1, maxLength: 50 }), (drawn) => {
        let gate = closed();
        for (const one of drawn) {
          const at = until(gate);
          gate = close(probing(gate), told({ at, probe: true, luck: one }), backoff);
          expect(until(gate) - at).toBeLessThanOrEqual(backoff.maxMs * 1.1);
        }
      }),
    );
  });
});
