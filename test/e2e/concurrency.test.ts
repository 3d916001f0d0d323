/** How many calls at once an upstream bears: found by what it refuses, not by how slow it is. */

import { afterEach, describe, expect, test } from "vitest";
import { HandClock } from "../support/clock.ts";
import { answer, deltas, fail, type Step, stream } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, startOutlast } from "../support/outlast.ts";
import { laneOf, upstreamsOf } from "../support/steady-time.ts";

const running: Outlast[] = [];

async function start(options: OutlastOptions): Promise<Outlast> {
  const outlast = await startOutlast({ luck: 0.5, ...options });
  running.push(outlast);
  return outlast;
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((outlast) => outlast.close()));
});

async function submitMany(outlast: Outlast, count: number): Promise<void> {
  const body = { ...hello, wait: false, outlast: { deadline: "7d", max_attempts: 100 } };
  const responses = await Promise.all(
    Array.from({ length: count }, () => outlast.post("/v1/chat/completions", body)),
  );
  for (const { status } of responses) expect(status).toBe(202);
}

const endedCount = (outlast: Outlast) => outlast.ear.all("ended").length;

/** An upstream that works on so many calls at once, each of which takes until the test says. It refuses others, which takes a ms. */
function worker(clock: HandClock, refusal: Step) {
  const held: (() => void)[] = [];
  const state = { bears: 5, refused: 0 };
  const step: Step = async (call, res) => {
    if (held.length >= state.bears) {
      state.refused++;
      clock.advance(1);
      return refusal(call, res);
    }
    await new Promise<void>((resolve) => held.push(resolve));
    return answer()(call, res);
  };
  return { state, held, step };
}

/** Waits until all calls under way are being worked on, then ends them. Returns how many those were. */
async function round(outlast: Outlast, { held }: ReturnType<typeof worker>): Promise<number> {
  const inFlight = async () => (await upstreamsOf(outlast))[0]!.in_flight;
  for (let looks = 0, quiet = 0; quiet < 2; looks++) {
    if (looks > 5000) throw new Error("calls do not come to rest");
    quiet = (await inFlight()) === held.length ? quiet + 1 : 0;
  }
  const count = held.length;
  for (const release of held.splice(0)) release();
  return count;
}

/** Rounds a quarter of a second apart, or as long as nothing can be called. */
async function work(
  outlast: Outlast,
  clock: HandClock,
  upstream: ReturnType<typeof worker>,
  until: (limit: number) => boolean,
): Promise<number[]> {
  const counts: number[] = [];
  for (let rounds = 0; rounds < 1000; rounds++) {
    const count = await round(outlast, upstream);
    if (count > 0) counts.push(count);
    const lane = await laneOf(outlast);
    if (until(lane?.concurrency.limit ?? 0)) return counts;
    clock.advance(250);
  }
  throw new Error("too many rounds");
}

describe.each([429, 503])(
  "where more than five calls at once are refused by a %i that says nothing else",
  (status) => {
    test("the limit comes to be near that, and all work is done", async () => {
      const clock = new HandClock();
      const outlast = await start({ clock, upstreamToml: "max_concurrency = 32" });
      const upstream = worker(clock, fail(status));
      outlast.fake.otherwise(upstream.step);
      await submitMany(outlast, 300);
      const counts = await work(outlast, clock, upstream, () => endedCount(outlast) === 300);
      expect(outlast.ear.all("ended").every(({ state }) => state === "completed")).toBe(true);
      const later = counts.slice(10, 50);
      const mean = later.reduce((sum, count) => sum + count, 0) / later.length;
      expect(mean).toBeGreaterThan(3);
      // Each round may try one more than is borne.
      expect(upstream.state.refused).toBeLessThan(150);
    });

    test("of a first wave, no more are refused than were sent at once", async () => {
      const clock = new HandClock();
      const outlast = await start({ clock, upstreamToml: "max_concurrency = 32" });
      const upstream = worker(clock, fail(status));
      const wave = outlast.fake.calls(32);
      outlast.fake.otherwise(async (call, res) => {
        await wave;
        return upstream.step(call, res);
      });
      await submitMany(outlast, 100);
      await wave;
      expect(await round(outlast, upstream)).toBe(5);
      expect(upstream.state.refused).toBe(27);
    });

    test("it grows again when more are borne", async () => {
      const clock = new HandClock();
      const outlast = await start({ clock, upstreamToml: "max_concurrency = 16" });
      const upstream = worker(clock, fail(status));
      outlast.fake.otherwise(upstream.step);
      await submitMany(outlast, 600);
      await work(outlast, clock, upstream, (limit) => limit <= 5);
      upstream.state.bears = 1000;
      const counts = await work(outlast, clock, upstream, (limit) => limit === 16);
      expect(counts.length).toBeGreaterThan(5);
      await work(outlast, clock, upstream, () => endedCount(outlast) === 600);
      expect(outlast.fake.maxInFlight).toBeLessThanOrEqual(16);
    });
  },
);

test("503s that open the breaker leave no work undone either", async () => {
  const clock = new HandClock();
  const outlast = await start({ clock, upstreamToml: "max_concurrency = 32" });
  const upstream = worker(clock, fail(503));
  outlast.fake.otherwise(upstream.step);
  await submitMany(outlast, 100);
  await work(outlast, clock, upstream, () => endedCount(outlast) === 100);
  expect(outlast.ear.all("ended").every(({ state }) => state === "completed")).toBe(true);
});

test("streams that have begun make room for more, though none has ended", async () => {
  const clock = new HandClock();
  const outlast = await start({ clock, upstreamToml: "max_concurrency = 256" });
  let end = () => {};
  const isOver = new Promise<void>((resolve) => {
    end = resolve;
  });
  const [role, first, ...rest] = deltas("Hello", " there");
  outlast.fake.otherwise(stream([role!, first!, isOver, ...rest]));
  const all = outlast.fake.calls(200);
  const body = { ...hello, stream: true, wait: false };
  await Promise.all(Array.from({ length: 200 }, () => outlast.post("/v1/chat/completions", body)));
  await all;
  expect(await laneOf(outlast)).toMatchObject({ in_flight: 200 });
  end();
});

test("answers that are slow never lower it", async () => {
  const clock = new HandClock();
  const outlast = await start({ clock, upstreamToml: "max_concurrency = 8" });
  const upstream = worker(clock, fail(503));
  upstream.state.bears = 1000;
  outlast.fake.otherwise(upstream.step);
  await submitMany(outlast, 24);
  for (let i = 0; i < 3; i++) {
    for (let seconds = 0; seconds < 240; seconds += 60) clock.advance(60_000);
    expect(await round(outlast, upstream)).toBe(8);
  }
  expect(outlast.ear.all("concurrency_lowered")).toEqual([]);
});

test("it never falls below min_concurrency", async () => {
  const clock = new HandClock();
  const env = { OUTLAST_BREAKER_ENABLED: "false" };
  const upstreamToml = "max_concurrency = 16\nmin_concurrency = 4";
  const outlast = await start({ clock, env, upstreamToml });
  outlast.fake.otherwise(fail(503));
  await submitMany(outlast, 40);
  const limits: number[] = [];
  for (let i = 0; i < 200; i++) {
    limits.push((await laneOf(outlast)).concurrency.limit);
    clock.advance(1000);
  }
  expect(Math.min(...limits)).toBe(4);
  expect(await laneOf(outlast)).toMatchObject({ concurrency: { limit: 4, min: 4, max: 16 } });
});

test("max_concurrency of a lane holds inside that of its upstream", async () => {
  const clock = new HandClock();
  const outlast = await start({
    clock,
    upstreamToml: "max_concurrency = 10",
    tables: '[upstreams.fake.lanes."gpt-*"]\nmax_concurrency = 3',
  });
  const upstream = worker(clock, fail(503));
  upstream.state.bears = 1000;
  outlast.fake.otherwise(upstream.step);
  await submitMany(outlast, 9);
  const counts = await work(outlast, clock, upstream, () => endedCount(outlast) === 9);
  expect(counts).toEqual([3, 3, 3]);
});

test("a 429 that says when to come back does not lower it", async () => {
  const clock = new HandClock();
  const outlast = await start({ clock, upstreamToml: "max_concurrency = 8" });
  const together = outlast.fake.calls(8);
  const refuse: Step = async (call, res) => {
    await together;
    return fail(429, {}, { "retry-after": "5" })(call, res);
  };
  outlast.fake.script(...Array<Step>(8).fill(refuse));
  await submitMany(outlast, 8);
  await outlast.fake.calls(8);
  await outlast.ear.event("attempt_ended", () => outlast.ear.all("attempt_ended").length === 8);
  expect(await laneOf(outlast)).toMatchObject({ concurrency: { limit: 8 }, waiting_for: "rate_limit" });
  for (let i = 0; i < 100 && endedCount(outlast) < 8; i++) {
    clock.advance(1000);
    await upstreamsOf(outlast);
  }
  expect(endedCount(outlast)).toBe(8);
  expect(outlast.ear.all("concurrency_lowered")).toEqual([]);
});
