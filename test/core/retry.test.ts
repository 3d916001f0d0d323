import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import type { Outcome } from "../../src/core/ports.ts";
import { isTerminal, type RequestRecord, transition, type Verdict } from "../../src/core/request.ts";
import {
  type Backoff,
  type Circumstances,
  classify,
  decide,
  decideInterrupted,
  fullJitterMs,
} from "../../src/core/retry.ts";
import type { Opening } from "../../src/core/routing.ts";
import { now, record, response, terms } from "../support/records.ts";

const lane = "a/m";
const backoff: Backoff = { baseMs: 250, maxMs: 8000 };
const openLanes = (...lanes: string[]): Opening[] => lanes.map((one) => ({ lane: one, opensAt: 0 }));

const circumstances = (some: Partial<Circumstances> = {}): Circumstances => ({
  now,
  luck: 0.5,
  targets: openLanes(lane),
  backoff,
  unreachableAfterMs: 30_000,
  ...some,
});

const lost: Outcome = { kind: "network_error", code: "ECONNRESET", sent: true };
const refused: Outcome = { kind: "network_error", code: "ECONNREFUSED", sent: false };
const throttledFor = (seconds: number) => response(429, { headers: { "retry-after": String(seconds) } });

const step = (outcome: Outcome, of: Partial<RequestRecord> = {}, at: Partial<Circumstances> = {}) =>
  decide(record(of), classify(outcome, of.lane ?? lane, at.now ?? now), circumstances(at));

describe("the verdict", () => {
  const error = (code?: string, type?: string) => ({ message: "no", code, type });
  const soon = { "retry-after": "2" };

  test.each<[string, Outcome, Verdict, "upstream" | "request", boolean]>([
    [
      "a name that does not resolve",
      { kind: "network_error", code: "ENOTFOUND", sent: false },
      "not_sent",
      "upstream",
      false,
    ],
    ["a refused connection", refused, "not_sent", "upstream", false],
    ["a connect time-out", { kind: "timeout", phase: "connect" }, "not_sent", "upstream", false],
    ["a call stopped before it was sent", { kind: "aborted", sent: false }, "not_sent", "upstream", false],
    ["a call stopped on the way", { kind: "aborted", sent: true }, "ambiguous", "upstream", false],
    ["a reset", lost, "ambiguous", "upstream", false],
    ["no headers in time", { kind: "timeout", phase: "headers" }, "ambiguous", "upstream", false],
    ["an attempt that takes too long", { kind: "timeout", phase: "attempt" }, "ambiguous", "upstream", false],
    ["the deadline during a call", { kind: "timeout", phase: "deadline" }, "ambiguous", "upstream", false],
    ["200", response(200), "success", "request", false],
    ["201", response(201), "success", "request", false],
    ["200 with an error inside", response(200, { error: error() }), "transient", "upstream", false],
    ["200 with malformed JSON", response(200, { wellFormed: false }), "transient", "upstream", false],
    ["302", response(302), "permanent", "upstream", true],
    ["400", response(400), "permanent", "request", false],
    [
      "400 for a content filter",
      response(400, { error: error("content_filter") }),
      "permanent",
      "request",
      false,
    ],
    [
      "400 that names a quota",
      response(400, { error: error("insufficient_quota") }),
      "permanent",
      "request",
      false,
    ],
    ["401", response(401), "permanent", "upstream", true],
    ["402", response(402), "permanent", "upstream", true],
    ["403", response(403), "permanent", "upstream", true],
    ["404", response(404), "permanent", "upstream", false],
    ["408", response(408), "transient", "upstream", false],
    ["409", response(409), "transient", "upstream", false],
    ["413", response(413), "permanent", "request", false],
    ["413 with Retry-After", response(413, { headers: soon }), "permanent", "request", false],
    ["422", response(422), "permanent", "request", false],
    ["425", response(425), "transient", "upstream", false],
    ["429", response(429), "throttled", "upstream", false],
    ["429 with Retry-After", response(429, { headers: soon }), "throttled", "upstream", false],
    ["429 that is no JSON", response(429, { wellFormed: false }), "throttled", "upstream", false],
    [
      "429 for want of quota, by code",
      response(429, { error: error("insufficient_quota") }),
      "permanent",
      "upstream",
      true,
    ],
    [
      "429 for want of quota, by type",
      response(429, { error: error(undefined, "insufficient_quota") }),
      "permanent",
      "upstream",
      true,
    ],
    [
      "429 for want of quota with Retry-After",
      response(429, { headers: soon, error: error("insufficient_quota") }),
      "permanent",
      "upstream",
      true,
    ],
    ["500", response(500), "transient", "upstream", false],
    ["500 with Retry-After", response(500, { headers: soon }), "transient", "upstream", false],
    ["500 that is no JSON", response(500, { wellFormed: false }), "transient", "upstream", false],
    ["502", response(502), "transient", "upstream", false],
    ["503", response(503), "transient", "upstream", false],
    ["503 with Retry-After", response(503, { headers: soon }), "throttled", "upstream", false],
    [
      "503 with a Retry-After that says nothing",
      response(503, { headers: { "retry-after": "soon" } }),
      "transient",
      "upstream",
      false,
    ],
    ["504", response(504), "transient", "upstream", false],
    ["529", response(529), "throttled", "upstream", false],
    ["599", response(599), "transient", "upstream", false],
  ])("of %s", (_, outcome, verdict, scope, alert) => {
    const reading = classify(outcome, lane, now);
    expect({ verdict: reading.verdict, scope: reading.scope, alert: reading.alert }).toEqual({
      verdict,
      scope,
      alert,
    });
    expect(reading.result.verdict).toBe(verdict);
    expect(reading.result.failure === undefined).toBe(verdict === "success");
  });

  it("carries the wait that the upstream asks for, in whatever form", () => {
    const date = new Date(now + 7000).toUTCString();
    const told = (headers: Record<string, string>) =>
      classify(response(429, { headers }), lane, now).retryAfterMs;
    expect(told({ "retry-after-ms": "1500" })).toBe(1500);
    expect(told({ "retry-after": "3" })).toBe(3000);
    expect(told({ "retry-after": date })).toBe(7000);
    expect(told({ "retry-after": "0" })).toBe(0);
    expect(told({})).toBeUndefined();
  });

  it("has a failure with an HTTP error status, whatever came back", () => {
    const outcomes = [
      response(200, { wellFormed: false }),
      response(200, { error: { message: "x" } }),
      response(301),
      lost,
    ];
    for (const outcome of outcomes) {
      expect(classify(outcome, lane, now).result.failure!.status).toBeGreaterThanOrEqual(400);
    }
  });
});

describe("what follows", () => {
  test("a success completes", () => {
    expect(step(response(200))).toEqual({ kind: "complete" });
  });

  test("a throttled attempt uses up nothing and waits as long as told", () => {
    const targets = [{ lane, opensAt: now + 1050 }];
    expect(step(throttledFor(3), { counted: 4 }, { targets })).toMatchObject({
      kind: "retry",
      dueAt: now + 3000,
      counted: false,
      reason: "retry_after",
    });
  });

  test("a throttled attempt goes to an open target at once", () => {
    const targets = [{ lane, opensAt: now + 3000 }, ...openLanes("b/m")];
    expect(step(throttledFor(3), {}, { targets })).toMatchObject({
      lane: "b/m",
      dueAt: now,
      reason: "next_target",
    });
  });

  test("a throttled attempt goes to the target that opens soonest where none is open", () => {
    const targets = [
      { lane, opensAt: now + 3000 },
      { lane: "b/m", opensAt: now + 2000 },
      { lane: "c/m", opensAt: now + 2500 },
    ];
    expect(step(throttledFor(3), {}, { targets })).toMatchObject({ lane: "b/m", dueAt: now + 2000 });
  });

  test("a throttled attempt fails at once, as the upstream said, where nothing opens before the deadline", () => {
    const targets = [{ lane, opensAt: now + 600_000 }];
    const error = { message: "slow down", code: "rate_limit_exceeded" };
    const outcome = response(429, { headers: { "retry-after": "600" }, error });
    expect(step(outcome, {}, { targets })).toMatchObject({
      kind: "fail",
      reason: "deadline",
      failure: { status: 429, code: "rate_limit_exceeded", message: "slow down" },
    });
  });

  test("a transient failure counts and backs off", () => {
    expect(step(response(500), {}, { luck: 0.5 })).toMatchObject({
      kind: "retry",
      dueAt: now + 125,
      counted: true,
      reason: "backoff",
    });
  });

  test("a transient failure waits longer than its backoff where the upstream says so", () => {
    const outcome = response(500, { headers: { "retry-after": "9" } });
    expect(step(outcome, {}, { luck: 0.99 })).toMatchObject({ dueAt: now + 9000, reason: "retry_after" });
  });

  test("a transient failure ends the request when its attempts are used up", () => {
    expect(step(response(500), { counted: 3 })).toMatchObject({ kind: "retry" });
    expect(step(response(500), { counted: 4 })).toMatchObject({
      kind: "fail",
      reason: "exhausted",
      counted: true,
    });
  });

  test("targets are tried in their order without a pause, then after a backoff from the first again", () => {
    const targets = openLanes("a/m", "b/m", "c/m");
    const lanes: string[] = [];
    let current = record({ terms: terms({ maxAttempts: 25 }) });
    const pauses: number[] = [];
    for (let i = 0; i < 7; i++) {
      const next = decide(
        current,
        classify(response(500), current.lane, now),
        circumstances({ targets, luck: 0.999 }),
      );
      if (next.kind !== "retry") throw new Error("expected a retry");
      pauses.push(next.dueAt - now);
      current = record({ ...current, lane: next.lane, counted: current.counted + 1 });
      lanes.push(next.lane);
    }
    expect(lanes).toEqual(["b/m", "c/m", "a/m", "b/m", "c/m", "a/m", "b/m"]);
    expect(pauses).toEqual([0, 0, 250, 0, 0, 500, 0]);
  });

  test("a closed target is passed over", () => {
    const targets = [...openLanes("a/m"), { lane: "b/m", opensAt: now + 60_000 }, ...openLanes("c/m")];
    expect(step(response(500), {}, { targets })).toMatchObject({ lane: "c/m", dueAt: now });
  });

  test("an unknown outcome is tried again, elsewhere if possible, or fails if the caller wants that", () => {
    const targets = openLanes("a/m", "b/m");
    expect(step(lost, {}, { targets })).toMatchObject({ kind: "retry", lane: "b/m", counted: true });
    expect(step(lost, { terms: terms({ onUnknown: "fail" }) }, { targets })).toMatchObject({
      kind: "fail",
      reason: "outcome_unknown",
      failure: { code: "upstream_outcome_unknown", status: 502 },
    });
  });

  test("a refusal by an upstream excludes its lane, and fails when no other is left", () => {
    const targets = openLanes("a/m", "b/m");
    const first = step(response(401), {}, { targets });
    expect(first).toMatchObject({ kind: "retry", lane: "b/m", dueAt: now, excluded: ["a/m"] });
    expect(step(response(404), { lane: "b/m", excluded: ["a/m"] }, { targets })).toMatchObject({
      kind: "fail",
      reason: "permanent",
      failure: { status: 404 },
    });
  });

  test("the caller's own fault is never tried again", () => {
    const targets = openLanes("a/m", "b/m");
    for (const status of [400, 413, 422]) {
      expect(step(response(status), {}, { targets })).toMatchObject({ kind: "fail", reason: "permanent" });
    }
  });

  test("an upstream that cannot be reached uses up no attempt, and a held call waits for it only so long", () => {
    const targets = [{ lane, opensAt: now + 1000 }];
    const held = step(refused, { counted: 4 }, { targets });
    expect(held).toMatchObject({
      kind: "retry",
      dueAt: now + 1000,
      counted: false,
      reason: "upstream_closed",
    });
    const since = { unreachableSince: now - 30_000, deadlineAt: now + 570_000 };
    expect(step(refused, since, { targets })).toMatchObject({
      kind: "fail",
      counted: false,
      reason: "unreachable",
      failure: { code: "upstream_unreachable", status: 502 },
    });
    expect(step(refused, { ...since, terms: terms({ held: false }) }, { targets })).toMatchObject({
      kind: "retry",
    });
  });

  test("an upstream's own error code is not taken for our deadline", () => {
    const error = { message: "upstream gave up", code: "deadline_exceeded" };
    expect(step(response(504, { error }))).toMatchObject({ kind: "retry", reason: "backoff" });
  });

  test("at the deadline nothing is tried again", () => {
    const at = { now: now + 600_000 };
    expect(step(response(500), {}, at)).toMatchObject({
      kind: "fail",
      reason: "deadline",
      failure: { status: 500 },
    });
    expect(step(lost, {}, at)).toMatchObject({
      kind: "fail",
      failure: { code: "deadline_exceeded", status: 504 },
    });
    expect(step({ kind: "timeout", phase: "deadline" })).toMatchObject({
      kind: "fail",
      reason: "deadline",
      failure: { code: "deadline_exceeded" },
    });
  });

  test("nothing is tried again at the very deadline, only before it", () => {
    const told = (ms: number) => response(500, { headers: { "retry-after-ms": String(ms) } });
    expect(step(told(600_000))).toMatchObject({ kind: "fail", reason: "deadline", failure: { status: 500 } });
    expect(step(told(599_999))).toMatchObject({ kind: "retry", dueAt: now + 599_999 });
    const targets = [{ lane, opensAt: now + 600_000 }];
    expect(step(response(429), {}, { targets })).toMatchObject({ kind: "fail", reason: "deadline" });
    expect(step(refused, {}, { targets })).toMatchObject({ kind: "fail", reason: "deadline" });
  });

  test("an answer at the deadline is still an answer", () => {
    expect(step(response(200), {}, { now: now + 600_001 })).toEqual({ kind: "complete" });
  });
});

describe("an interrupted attempt", () => {
  test("is tried again in its lane, and counts", () => {
    const { result, step: next } = decideInterrupted(record(), now);
    expect(result).toMatchObject({ verdict: "ambiguous", failure: { code: "interrupted" } });
    expect(next).toMatchObject({ kind: "retry", lane, dueAt: now, counted: true, reason: "interrupted" });
  });

  test("fails when it was the last one", () => {
    expect(decideInterrupted(record({ counted: 4 }), now).step).toMatchObject({
      kind: "fail",
      reason: "exhausted",
    });
  });

  test("fails with an unknown outcome where the caller wants that, even if it was the last one", () => {
    for (const counted of [0, 4]) {
      const unsure = record({ counted, terms: terms({ onUnknown: "fail" }) });
      expect(decideInterrupted(unsure, now).step).toMatchObject({
        kind: "fail",
        reason: "outcome_unknown",
        failure: { code: "upstream_outcome_unknown" },
      });
    }
  });
});

describe("full jitter", () => {
  it("is a whole number from 1 ms to the cap, which doubles up to its maximum", () => {
    const luck = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
    const ms = fc.integer({ min: 1, max: 1_000_000 });
    fc.assert(
      fc.property(ms, ms, fc.nat(2000), luck, (baseMs, maxMs, n, drawn) => {
        const wait = fullJitterMs({ baseMs, maxMs }, n, drawn);
        expect(Number.isInteger(wait)).toBe(true);
        expect(wait).toBeGreaterThanOrEqual(1);
        expect(wait).toBeLessThanOrEqual(Math.max(1, Math.min(maxMs, baseMs * 2 ** n)));
      }),
    );
  });

  it("covers the whole range", () => {
    expect(fullJitterMs(backoff, 3, 0)).toBe(1);
    expect(fullJitterMs(backoff, 3, 0.25)).toBe(500);
    expect(fullJitterMs(backoff, 3, 0.999_999)).toBe(2000);
    expect(fullJitterMs(backoff, 30, 0.999_999)).toBe(8000);
  });
});

// ---- properties over anything that can happen ----

const lanes = ["a/m", "b/m", "c/m"];
const statuses = [200, 302, 400, 401, 404, 408, 409, 413, 425, 429, 500, 502, 503, 504, 529];
const anyHeaders = fc.option(
  fc.oneof(
    fc.nat(100_000).map((ms): Record<string, string> => ({ "retry-after-ms": String(ms) })),
    fc
      .double({ min: 0, max: 900, noNaN: true })
      .map((s): Record<string, string> => ({ "retry-after": s.toFixed(4) })),
  ),
  { nil: {} },
);
const anyResponse = fc
  .record({ status: fc.constantFrom(...statuses), headers: anyHeaders, wellFormed: fc.boolean() })
  .map(({ status, ...more }): Outcome => response(status, more));
const anyOutcome: fc.Arbitrary<Outcome> = fc.oneof(
  { weight: 4, arbitrary: anyResponse },
  { weight: 1, arbitrary: fc.constantFrom<Outcome>(lost, refused, { kind: "timeout", phase: "attempt" }) },
);
const luck = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
const anyRecord = fc
  .record({
    lane: fc.constantFrom(...lanes),
    counted: fc.nat(24),
    leftMs: fc.integer({ min: -1000, max: 100_000 }),
    excluded: fc.subarray(lanes),
    held: fc.boolean(),
    maxAttempts: fc.integer({ min: 1, max: 25 }),
    onUnknown: fc.constantFrom<"retry" | "fail">("retry", "fail"),
    unreachableForMs: fc.option(fc.nat(60_000), { nil: undefined }),
  })
  .map(({ leftMs, excluded, held, maxAttempts, onUnknown, unreachableForMs, ...rest }) =>
    record({
      ...rest,
      deadlineAt: now + leftMs,
      excluded: excluded.filter((one) => one !== rest.lane),
      unreachableSince: unreachableForMs === undefined ? undefined : now - unreachableForMs,
      terms: terms({ held, maxAttempts, onUnknown }),
    }),
  );
const anyTargets = fc
  .tuple(
    fc.shuffledSubarray(lanes, { minLength: 0 }),
    fc.array(fc.integer({ min: -1000, max: 120_000 }), { minLength: 3, maxLength: 3 }),
  )
  .map(([some, opens]) =>
    some.map((one, i): Opening => ({ lane: one, opensAt: Math.max(0, now + opens[i]!) })),
  );

describe("whatever happens,", () => {
  const everything = fc.tuple(anyRecord, anyOutcome, anyTargets, luck);
  const decided = (of: RequestRecord, outcome: Outcome, targets: Opening[], drawn: number) => {
    const reading = classify(outcome, of.lane, now);
    return { reading, next: decide(of, reading, circumstances({ targets, luck: drawn })) };
  };

  it("the next attempt is due at a whole millisecond, not in the past, and before the deadline", () => {
    fc.assert(
      fc.property(everything, ([of, outcome, targets, drawn]) => {
        const { next } = decided(of, outcome, targets, drawn);
        if (next.kind !== "retry") return;
        expect(Number.isSafeInteger(next.dueAt)).toBe(true);
        expect(next.dueAt).toBeGreaterThanOrEqual(now);
        expect(next.dueAt).toBeLessThan(of.deadlineAt);
      }),
      { numRuns: 2000 },
    );
  });

  it("the same lane is never called earlier than it was told, and no lane before it opens", () => {
    fc.assert(
      fc.property(everything, ([of, outcome, targets, drawn]) => {
        const { reading, next } = decided(of, outcome, targets, drawn);
        if (next.kind !== "retry") return;
        if (next.lane === of.lane)
          expect(next.dueAt).toBeGreaterThanOrEqual(now + (reading.retryAfterMs ?? 0));
        const target = targets.find((one) => one.lane === next.lane);
        if (target) expect(next.dueAt).toBeGreaterThanOrEqual(target.opensAt);
      }),
      { numRuns: 2000 },
    );
  });

  it("a lane that refused is never chosen, and what refused is remembered", () => {
    fc.assert(
      fc.property(everything, ([of, outcome, targets, drawn]) => {
        const { next } = decided(of, outcome, targets, drawn);
        if (next.kind !== "retry") return;
        expect(of.excluded).not.toContain(next.lane);
        expect(next.excluded).not.toContain(next.lane);
        expect(next.excluded).toEqual(expect.arrayContaining(of.excluded));
      }),
      { numRuns: 2000 },
    );
  });

  it("no more attempts count than the request may have", () => {
    fc.assert(
      fc.property(everything, ([of, outcome, targets, drawn]) => {
        const { next } = decided(of, outcome, targets, drawn);
        if (next.kind === "retry" && next.counted) expect(of.counted + 1).toBeLessThan(of.terms.maxAttempts);
      }),
      { numRuns: 2000 },
    );
  });

  it("a request ends, or waits for an instant that comes", () => {
    const script = fc.array(fc.tuple(anyOutcome, luck, fc.nat(5000)), { minLength: 30, maxLength: 300 });
    fc.assert(
      fc.property(anyRecord, script, (first, outcomes) => {
        let current = first;
        let at = now;
        let counting = 0;
        const closedUntil = new Map<string, number>();
        for (const [outcome, drawn, tookMs] of outcomes) {
          at += tookMs;
          const reading = classify(outcome, current.lane, at);
          if (reading.verdict === "throttled" || reading.verdict === "not_sent") {
            closedUntil.set(current.lane, at + Math.max(1000, reading.retryAfterMs ?? 0));
          }
          const targets = lanes.map((one) => ({ lane: one, opensAt: closedUntil.get(one) ?? 0 }));
          const next = decide(current, reading, circumstances({ now: at, luck: drawn, targets }));
          const moved = transition(current, { type: "ended", now: at, result: reading.result, step: next });
          counting += moved!.attempt!.counted ? 1 : 0;
          current = moved!.record;
          expect(current.counted).toBe(first.counted + counting);
          if (isTerminal(current.state)) return;
          at = Math.max(at, current.dueAt);
          expect(at).toBeLessThan(current.deadlineAt);
          current = transition(current, {
            type: "started",
            now: at,
            owner: { node: "local", epoch: 1 },
          })!.record;
        }
        // Only what uses up no attempt can go on so long, and each such wait takes a second at least.
        expect(counting).toBeLessThan(current.terms.maxAttempts);
      }),
    );
  });
});
