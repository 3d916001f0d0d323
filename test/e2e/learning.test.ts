/** What is learned of a provider of which nothing is configured: its limits, and what its tokens are. */

import { afterEach, describe, expect, test } from "vitest";
import { HandClock } from "../support/clock.ts";
import { answer, fail, type Seen, type Step } from "../support/fake-upstream.ts";
import { type Outlast, type OutlastOptions, startOutlast } from "../support/outlast.ts";
import { laneOf, logged, passTime, settled, submit } from "../support/steady-time.ts";

const minute = 60_000;
const running: Outlast[] = [];

async function start(options: OutlastOptions): Promise<Outlast> {
  const outlast = await startOutlast({ luck: 0.5, ...options });
  running.push(outlast);
  return outlast;
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((outlast) => outlast.close()));
});

const submitMany = (outlast: Outlast, count: number) =>
  Promise.all(Array.from({ length: count }, () => submit(outlast)));
async function complete(outlast: Outlast, body: object = {}): Promise<void> {
  const id = await submit(outlast, body);
  await outlast.ear.event("ended", (told) => told.id === id);
}
const allEnded = (outlast: Outlast, count: number) => () => outlast.ear.all("ended").length >= count;

/** As OpenAI writes them. */
function duration(ms: number): string {
  if (ms < 1000) return `${Math.ceil(ms)}ms`;
  const seconds = `${Number(((ms % minute) / 1000).toFixed(3))}s`;
  return ms < minute ? seconds : `${Math.floor(ms / minute)}m${seconds}`;
}

/** A provider's own token bucket for requests, by the hand clock: who comes too soon gets a 429. */
function bucket(clock: HandClock, limit: number) {
  let level = limit;
  let at = clock.now();
  const seen = { refused: [] as number[], served: [] as number[] };
  const step: Step = (call, res) => {
    const now = clock.now();
    level = Math.min(limit, level + ((now - at) * limit) / minute);
    at = now;
    const isServed = level >= 1;
    if (isServed) level--;
    seen[isServed ? "served" : "refused"].push(now);
    const headers = {
      "x-ratelimit-limit-requests": String(limit),
      "x-ratelimit-remaining-requests": String(Math.floor(level)),
      "x-ratelimit-reset-requests": duration(((limit - level) * minute) / limit),
    };
    return (isServed ? answer({ headers }) : fail(429, {}, headers))(call, res);
  };
  return { seen, step };
}

describe("an upstream that tells what is left of its limits", () => {
  test("refuses no more of a burst than were on their way when it first said so, and none after that", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreamToml: "max_concurrency = 100" });
    const provider = bucket(clock, 60);
    outlast.fake.otherwise(provider.step);
    await submitMany(outlast, 300);
    await settled(outlast);
    const atFirst = provider.seen.refused.length;
    expect(atFirst).toBeLessThanOrEqual(32);
    await passTime(outlast, clock, 8 * minute, allEnded(outlast, 300));
    expect(provider.seen.served).toHaveLength(300);
    expect(provider.seen.refused).toHaveLength(atFirst);
    expect(outlast.ear.all("ended").every(({ state }) => state === "completed")).toBe(true);
  });

  test("refuses hardly any of a burst once it has been called at all, and none after that", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    const provider = bucket(clock, 60);
    outlast.fake.otherwise(provider.step);
    await complete(outlast);
    await settled(outlast);
    await submitMany(outlast, 119);
    await settled(outlast);
    // Calls of one instant may reach it in another order than that in which they were granted.
    const atFirst = provider.seen.refused.length;
    expect(atFirst).toBeLessThanOrEqual(5);
    await passTime(outlast, clock, 8 * minute, allEnded(outlast, 120));
    expect(provider.seen.served).toHaveLength(120);
    expect(provider.seen.refused).toHaveLength(atFirst);
  });

  test("holds its lane when nothing is left, until something is there again", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    const log = logged(
      clock,
      answer({
        headers: {
          "x-ratelimit-limit-requests": "20",
          "x-ratelimit-remaining-requests": "0",
          "x-ratelimit-reset-requests": "20s",
        },
      }),
    );
    outlast.fake.otherwise(log.step);
    const began = clock.now();
    await complete(outlast);
    await settled(outlast);
    await submit(outlast);
    expect(await laneOf(outlast)).toMatchObject({
      queued: 1,
      waiting_for: "rate_limit",
      until: new Date(began + 1000).toISOString(),
      requests: {
        per_minute: 20,
        used: 20,
        source: "learned",
        opens_at: new Date(began + 1000).toISOString(),
        refilled_at: new Date(began + 20_000).toISOString(),
      },
    });
    clock.advance(999);
    await settled(outlast);
    expect(log.calls).toHaveLength(1);
    clock.advance(1);
    await outlast.fake.calls(2);
  });

  test("is heard on refusals and on tokens, too", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    const headers = {
      "x-ratelimit-limit-tokens": "10000",
      "x-ratelimit-remaining-tokens": "0",
      "x-ratelimit-reset-tokens": "6m0s",
    };
    outlast.fake.script(fail(429, {}, headers));
    await submit(outlast, { max_tokens: 500 });
    await settled(outlast);
    expect(await laneOf(outlast)).toMatchObject({
      waiting_for: "rate_limit",
      requests: null,
      tokens: { per_minute: 10_000, used: 10_000, source: "learned" },
    });
  });

  test.each([
    ["-1", { limit: "-1", remaining: "-1", reset: "-1" }],
    ["nothing but 0", { limit: "0", remaining: "0", reset: "0" }],
    ["garbage", { limit: "many", remaining: "few", reset: "soon" }],
    ["a limit alone", { limit: "10" }],
    ["more than all of it", { limit: "10", remaining: "11", reset: "1s" }],
    ["a reset that is none", { limit: "10", remaining: "0", reset: "1s;drop" }],
  ])("teaches nothing by %s", async (_, says: Record<string, string>) => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    const headers = Object.fromEntries(
      ["requests", "tokens"].flatMap((kind) =>
        Object.entries(says).map(([name, value]) => [`x-ratelimit-${name}-${kind}`, value]),
      ),
    );
    outlast.fake.otherwise(answer({ headers }));
    for (let i = 0; i < 20; i++) await complete(outlast);
    expect(await laneOf(outlast)).toMatchObject({ requests: null, tokens: null, waiting_for: null });
  });

  test("has nothing to say where limits are configured", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreamToml: "requests_per_minute = 100" });
    const headers = {
      "x-ratelimit-limit-requests": "1",
      "x-ratelimit-remaining-requests": "0",
      "x-ratelimit-reset-requests": "1h0m0s",
    };
    outlast.fake.otherwise(answer({ headers }));
    for (let i = 0; i < 5; i++) await complete(outlast);
    expect(await laneOf(outlast)).toMatchObject({
      requests: { per_minute: 100, used: 5, source: "config" },
      waiting_for: null,
    });
  });
});

test("what was learned of limits survives a restart", async () => {
  const clock = new HandClock();
  const first = await start({ clock });
  const provider = bucket(clock, 60);
  first.fake.otherwise(provider.step);
  await complete(first);
  await submitMany(first, 100);
  await passTime(first, clock, 3000);
  const before = await laneOf(first);
  const refused = provider.seen.refused.length;
  expect(refused).toBeLessThanOrEqual(5);
  await first.stop();
  const second = await start({ clock, dir: first.dir, upstreams: first.fakes });
  await settled(second);
  expect(await laneOf(second)).toMatchObject({ requests: before.requests, estimate: before.estimate });
  await passTime(second, clock, 3 * minute, () => provider.seen.served.length >= 101);
  expect(provider.seen.served).toHaveLength(101);
  expect(provider.seen.refused).toHaveLength(refused);
});

describe("how many tokens a text has", () => {
  const twoBytesEach = (call: Seen) => {
    const { messages } = JSON.parse(call.body.toString()) as { messages: { content: string }[] };
    const prompt_tokens = Math.ceil(messages[0]!.content.length / 2);
    const usage = { prompt_tokens, completion_tokens: 50, total_tokens: prompt_tokens + 50 };
    const choice = { index: 0, message: { role: "assistant", content: "ok" }, finish_reason: "stop" };
    return answer({ body: { id: `c${call.n}`, object: "chat.completion", choices: [choice], usage } });
  };

  test("is learned from usage, and so the error of the estimates falls", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreamToml: "tokens_per_minute = 100000000" });
    outlast.fake.otherwise((call, res) => twoBytesEach(call)(call, res));
    const say = (i: number) => ({ messages: [{ role: "user", content: "x".repeat(3000 + 10 * i) }] });
    await complete(outlast, say(0));
    const atFirst = (await laneOf(outlast)).estimate!;
    expect(atFirst.error).toBeGreaterThan(0.45);
    for (let i = 1; i < 60; i++) await complete(outlast, say(i));
    const atLast = (await laneOf(outlast)).estimate!;
    expect(atLast.samples).toBe(60);
    expect(atLast.tokens_per_byte).toBeGreaterThan(0.49);
    expect(atLast.tokens_per_byte).toBeLessThan(0.51);
    expect(atLast.output_tokens).toBe(50);
    expect(atLast.error).toBeLessThan(0.1);
  });
});
