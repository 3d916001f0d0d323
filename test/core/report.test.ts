import { describe, expect, test } from "vitest";
import type { UpstreamSettings } from "../../src/core/flow.ts";
import { type LaneSettings, Lanes } from "../../src/core/lanes.ts";
import type { Outcome } from "../../src/core/ports.ts";
import { reportOf } from "../../src/core/report.ts";
import type { RequestRecord } from "../../src/core/request.ts";
import { classify } from "../../src/core/retry.ts";
import { now, record, response, terms } from "../support/records.ts";

const size = { textBytes: 400, mediaTokens: 0, maxOutput: 100 };
/** Reckoned at 200 tokens. */
const sized = (some: Partial<RequestRecord> = {}) => record({ terms: terms({ size }), ...some });
const refused: Outcome = { kind: "network_error", code: "ECONNREFUSED", sent: false };

/** Lanes whose clock is moved by hand, and what is said of them. */
class Stage {
  readonly lanes: Lanes;
  at = now;

  constructor(a: Partial<UpstreamSettings> = {}, some: Partial<LaneSettings> = {}) {
    const upstreams = [
      { name: "a", maxConcurrency: 4, ...a },
      { name: "b", maxConcurrency: 2 },
    ];
    const breaker = {
      enabled: true,
      consecutiveFailures: 3,
      failureRate: 0.5,
      minCalls: 10,
      windowMs: 60_000,
      cooldownMs: 20_000,
      maxCooldownMs: 60_000,
    };
    const retryBudget = { ratio: 0.2, perSecond: 2 };
    const laneBackoff = { baseMs: 1000, maxMs: 60_000 };
    const settings = { upstreams, limitGroups: [], breaker, retryBudget, laneBackoff, ...some };
    this.lanes = new Lanes(settings, { tell() {} });
  }

  get upstream() {
    return reportOf(this.lanes, this.at)[0]!;
  }

  get lane() {
    return this.upstream.lanes[0]!;
  }

  begin(of = sized()) {
    const slot = this.lanes.slot(this.lanes.get(of.lane, this.at)!, of, this.at);
    if (!slot) throw new Error("nothing is let through");
    return slot;
  }

  /** A whole call; the lane is used by others, too, so that it is not forgotten. */
  call(outcome: Outcome, of = sized()) {
    const slot = this.begin(of);
    this.lanes.learn(slot, of, classify(outcome, of.lane, this.at), {
      now: this.at,
      luck: 0,
      isWhole: true,
    });
    this.lanes.free(slot);
  }
}

describe("the report", () => {
  test("has every upstream in the order of the configuration, also where nothing was called", () => {
    const { lanes } = new Stage({ limitGroup: "g" }, { limitGroups: [{ name: "g", limits: {} }] });
    const idle = { inFlight: 0, breaker: { state: "closed", opens: 0 }, retries: 120, lanes: [] };
    expect(reportOf(lanes, now)).toEqual([
      { name: "a", limitGroup: "g", maxConcurrency: 4, unreachableSince: undefined, ...idle },
      { name: "b", limitGroup: undefined, maxConcurrency: 2, unreachableSince: undefined, ...idle },
    ]);
  });

  test("has the lanes of each upstream by their models", () => {
    const stage = new Stage();
    for (const lane of ["a/z", "b/m", "a/meta/llama", "a/c"]) stage.begin(sized({ lane }));
    const models = reportOf(stage.lanes, now).map(({ lanes }) => lanes.map(({ model }) => model));
    expect(models).toEqual([["c", "meta/llama", "z"], ["m"]]);
    expect(stage.upstream.inFlight).toBe(3);
  });

  test("tells who waits and who is under way, and what holds a lane that is full", () => {
    const stage = new Stage({ lanes: [{ model: "m", limits: {}, maxConcurrency: 2 }] });
    stage.begin();
    stage.lanes.get("a/m", now)!.backlog.add(record({ state: "queued", id: "req_2" }));
    expect(stage.lane).toMatchObject({ inFlight: 1, queued: 1, concurrency: 2, maxConcurrency: 2 });
    expect(stage.lane.heldBy).toBeUndefined();
    stage.begin();
    expect(stage.lane).toMatchObject({ inFlight: 2, heldBy: "capacity", heldUntil: undefined });
  });

  test("tells until when a lane was told to wait", () => {
    const stage = new Stage();
    stage.begin();
    stage.call(response(429, { headers: { "retry-after": "7" } }));
    expect(stage.lane.heldBy).toBe("rate_limit");
    expect(stage.lane.heldUntil! - now).toBeGreaterThanOrEqual(7000);
    expect(stage.lane.heldUntil! - now).toBeLessThan(9000);
    stage.at = stage.lane.heldUntil!;
    expect(stage.lane).toMatchObject({ heldBy: undefined, heldUntil: undefined });
  });

  test("tells since when an upstream cannot be reached, and until when nobody tries", () => {
    const stage = new Stage();
    stage.begin();
    stage.at += 5;
    stage.call(refused);
    expect(stage.upstream.unreachableSince).toBe(now + 5);
    expect(stage.lane.heldBy).toBe("backoff");
    expect(stage.lane.heldUntil).toBeGreaterThan(stage.at);
    stage.at = stage.lane.heldUntil!;
    stage.call(response(200));
    expect(stage.upstream.unreachableSince).toBeUndefined();
  });

  test("tells how many calls at once are good for a lane", () => {
    const stage = new Stage({ maxConcurrency: 10, minConcurrency: 2 });
    for (let i = 0; i < 5; i++) stage.begin();
    stage.call(response(503));
    expect(stage.lane).toMatchObject({ concurrency: 4, minConcurrency: 2, maxConcurrency: 10 });
  });

  test("tells how many retries there are, and that they come back", () => {
    const stage = new Stage();
    stage.begin();
    for (let i = 0; i < 20; i++) stage.lanes.retryAt("a", now);
    expect(stage.upstream.retries).toBe(100);
    stage.at += 5000;
    expect(stage.upstream.retries).toBe(110);
  });

  test("tells what is known of a model's tokens, once it is", () => {
    const stage = new Stage();
    stage.begin();
    expect(stage.lane.estimate).toBeUndefined();
    const usage = '{"prompt_tokens":100,"completion_tokens":40,"total_tokens":140}';
    stage.call({ ...response(200), facts: { wellFormed: true, usage } });
    expect(stage.lane.estimate).toMatchObject({ outputTokens: 40, error: 0, samples: 1 });
    expect(stage.lane.estimate!.tokensPerByte).toBeCloseTo(0.25);
  });
});

describe("the report of a breaker", () => {
  /** Three calls of different requests that fail, a second apart. */
  const broken = () => {
    const stage = new Stage();
    stage.begin();
    for (const id of ["req_1", "req_2", "req_3"]) {
      stage.call(response(500), sized({ id }));
      stage.at += 1000;
    }
    return stage;
  };

  test("tells until when it is open, and how often in a row it has opened", () => {
    const stage = broken();
    expect(stage.lane.breaker).toEqual({ state: "open", until: now + 22_000, opens: 1 });
    expect(stage.lane).toMatchObject({ heldBy: "breaker", heldUntil: now + 22_000 });
    // One model that fails is not the upstream that fails.
    expect(stage.upstream.breaker).toEqual({ state: "closed", opens: 0 });
  });

  test("tells that it is half open while its probe is under way, and closed behind that", () => {
    const stage = broken();
    stage.at = now + 22_000;
    expect(stage.lane.heldBy).toBeUndefined();
    const probe = stage.begin();
    expect(stage.lane.breaker).toMatchObject({ state: "half_open", opens: 1 });
    expect(stage.lane.breaker.until).toBeGreaterThan(stage.at);
    expect(stage.lane.heldBy).toBe("breaker");
    stage.lanes.learn(probe, sized(), classify(response(200), "a/m", stage.at), {
      now: stage.at,
      luck: 0,
      isWhole: true,
    });
    expect(stage.lane.breaker).toEqual({ state: "closed", opens: 0 });
  });

  test("knows nothing of the caller's own faults", () => {
    const stage = new Stage();
    stage.begin();
    for (let i = 0; i < 20; i++) {
      stage.call(response(i % 2 ? 400 : 404), sized({ id: `req_${i}` }));
      stage.at += 1000;
    }
    expect(stage.lane).toMatchObject({ breaker: { state: "closed" }, concurrency: 4, heldBy: undefined });
  });
});

describe("the report of limits", () => {
  test("has none where none is known", () => {
    const stage = new Stage();
    stage.begin();
    expect([stage.lane.requests, stage.lane.tokens]).toEqual([undefined, undefined]);
  });

  test("tells what is used of those that are configured, when the next call fits, and when all is there again", () => {
    const stage = new Stage({ limits: { requestsPerMinute: 2, tokensPerMinute: 10_000 } });
    stage.begin();
    expect(stage.lane.requests).toMatchObject({
      perMinute: 2,
      used: 1,
      source: "config",
      opensAt: undefined,
    });
    expect(stage.lane.tokens).toMatchObject({
      perMinute: 10_000,
      used: 200,
      source: "config",
      opensAt: undefined,
    });
    expect(stage.lane.heldBy).toBeUndefined();
    stage.begin();
    const { opensAt, refilledAt, used } = stage.lane.requests!;
    expect(used).toBe(2);
    expect(opensAt! - now).toBeGreaterThanOrEqual(60_000);
    expect(opensAt! - now).toBeLessThanOrEqual(60_500);
    expect(refilledAt).toBe(opensAt);
    expect(stage.lane).toMatchObject({ heldBy: "rate_limit", heldUntil: opensAt });
    stage.at = refilledAt!;
    expect(stage.lane.requests).toMatchObject({ used: 0, opensAt: undefined, refilledAt: undefined });
    expect(stage.lane.tokens).toMatchObject({ used: 0, opensAt: undefined, refilledAt: undefined });
  });

  test("tells what a provider says of itself", () => {
    const stage = new Stage();
    const headers = {
      "x-ratelimit-limit-requests": "100",
      "x-ratelimit-remaining-requests": "0",
      "x-ratelimit-reset-requests": "50s",
    };
    stage.call(response(200, { headers }));
    expect(stage.lane.requests).toEqual({
      perMinute: 100,
      used: 100,
      source: "learned",
      opensAt: now + 500,
      refilledAt: now + 50_000,
    });
    expect(stage.lane.tokens).toBeUndefined();
    expect(stage.lane).toMatchObject({ heldBy: "rate_limit", heldUntil: now + 500 });
  });

  test("has those of a group in every upstream of it", () => {
    const limits = { requestsPerMinute: 10 };
    const stage = new Stage({ limitGroup: "g" }, { limitGroups: [{ name: "g", limits }] });
    stage.begin(sized({ lane: "a/m" }));
    stage.begin(sized({ lane: "a/n" }));
    expect(stage.upstream.lanes.map(({ requests }) => requests?.used)).toEqual([2, 2]);
  });
});

describe("after the wall clock was set, the report", () => {
  test.each([3_600_000, -3_600_000])("is what it was, its instants aside (%i ms)", (byMs) => {
    const stage = new Stage({ limits: { requestsPerMinute: 2 } });
    stage.begin();
    stage.call(response(200));
    for (let i = 0; i < 20; i++) stage.lanes.retryAt("a", stage.at);
    stage.at += 1000;
    const before = stage.upstream;
    const limit = stage.lane.requests!;
    stage.lanes.clockSet(byMs);
    stage.at += byMs;
    expect(stage.upstream.retries).toBe(before.retries);
    expect(stage.lane.requests).toEqual({
      ...limit,
      opensAt: limit.opensAt! + byMs,
      refilledAt: limit.refilledAt! + byMs,
    });
    expect(stage.lane).toMatchObject({ heldBy: "rate_limit", heldUntil: limit.opensAt! + byMs });
    // To look at limits does not change them.
    expect(() => stage.begin()).toThrow();
  });

  test.each([3_600_000, -3_600_000])("tells how long a breaker is open from now (%i ms)", (byMs) => {
    const stage = new Stage();
    stage.begin();
    for (const id of ["req_1", "req_2", "req_3"]) {
      stage.call(response(500), sized({ id }));
      stage.at += 1000;
    }
    stage.lanes.clockSet(byMs);
    stage.at += byMs;
    expect(stage.lane.breaker).toEqual({ state: "open", until: now + 22_000 + byMs, opens: 1 });
    expect(stage.lane.heldUntil).toBe(now + 22_000 + byMs);
  });
});
