/** What may be sent in a minute, as configured: never more, told honestly, also across a restart. */

import { afterEach, describe, expect, test } from "vitest";
import type { RequestObject } from "../../src/contract.ts";
import { HandClock } from "../support/clock.ts";
import { answer, deltas, fail, type Seen, stream } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, startOutlast } from "../support/outlast.ts";
import { type Log, laneOf, logged, mostIn, passTime, settled, submit } from "../support/steady-time.ts";

const path = "/v1/chat/completions";
const minute = 60_000;
const bucketMs = 250;
const running: Outlast[] = [];

async function start(options: OutlastOptions): Promise<Outlast> {
  const outlast = await startOutlast({ luck: 0.5, ...options });
  running.push(outlast);
  return outlast;
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((outlast) => outlast.close()));
});

const submitMany = (outlast: Outlast, count: number, body: (i: number) => object = () => ({})) =>
  Promise.all(Array.from({ length: count }, (_, i) => submit(outlast, body(i))));
async function recordOf(outlast: Outlast, id: string): Promise<RequestObject> {
  return (await (await outlast.fetch(`/v1/requests/${id}`)).json()) as RequestObject;
}
const bodyOf = ({ body }: Seen) =>
  JSON.parse(body.toString()) as { model: string; stream?: boolean; messages: { content: string }[] };
const tagOf = (call: Seen) => bodyOf(call).messages[0]!.content;
const says = (content: string) => ({ messages: [{ role: "user", content }] });
const endedCount = (outlast: Outlast) => outlast.ear.all("ended").length;
const allEnded = (outlast: Outlast, count: number) => () => endedCount(outlast) >= count;

describe("requests_per_minute is never exceeded, and all of it is used,", () => {
  const places: [string, Partial<OutlastOptions>][] = [
    ["of an upstream", { upstreamToml: "requests_per_minute = 300" }],
    ["of a lane", { tables: '[upstreams.fake.lanes."gpt-test"]\nrequests_per_minute = 300' }],
    [
      "of a group of upstreams",
      {
        upstreams: ["fake", "other"],
        upstreamToml: 'limit_group = "account"',
        tables: "[limit_groups.account]\nrequests_per_minute = 300",
      },
    ],
  ];

  test.each(places)("%s, by 1,000 requests that are submitted at once", async (_, options) => {
    const clock = new HandClock();
    const outlast = await start({ clock, ...options });
    const log = logged(clock);
    const names = Object.keys(outlast.fakes);
    for (const fake of Object.values(outlast.fakes)) fake.otherwise(log.step);
    const began = clock.now();
    await submitMany(outlast, 1000, (i) => ({ outlast: { upstream: names[i % names.length] } }));
    await passTime(outlast, clock, 5 * minute, allEnded(outlast, 1000));
    expect(log.calls).toHaveLength(1000);
    expect(mostIn(log.calls, minute)).toBe(300);
    expect(mostIn(log.calls, 10_000)).toBe(75);
    // Three whole minutes, and what is left in its four parts.
    expect(clock.now() - began).toBeLessThanOrEqual(3 * (minute + bucketMs) + 10_000 + 2 * bucketMs);
  });
});

test("callers on the line, streams and background work share one limit", async () => {
  const clock = new HandClock();
  const outlast = await start({ clock, upstreamToml: "requests_per_minute = 120" });
  const log = logged(clock, (call, res) =>
    (bodyOf(call).stream ? stream(deltas("a", "b")) : answer())(call, res),
  );
  outlast.fake.otherwise(log.step);
  await submitMany(outlast, 200);
  const held = Array.from({ length: 50 }, () => outlast.post(path, hello).then(({ status }) => status));
  const streams = Array.from({ length: 50 }, () =>
    outlast.post(path, { ...hello, stream: true }).then((response) => response.text()),
  );
  await outlast.ear.event("accepted", () => outlast.ear.all("accepted").length === 300);
  await passTime(outlast, clock, 4 * minute, allEnded(outlast, 300));
  expect(log.calls).toHaveLength(300);
  expect(mostIn(log.calls, minute)).toBe(120);
  expect(await Promise.all(held)).toEqual(Array(50).fill(200));
  for (const text of await Promise.all(streams)) expect(text.trimEnd().endsWith("data: [DONE]")).toBe(true);
});

describe("what waits for a limit", () => {
  test("says so, and when its turn comes", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreamToml: "requests_per_minute = 40" });
    const log = logged(clock);
    outlast.fake.otherwise(log.step);
    const ids: string[] = [];
    for (let i = 0; i < 150; i++) ids.push(await submit(outlast, says(String(i))));
    await settled(outlast);
    const shown = await Promise.all(ids.map((id) => recordOf(outlast, id)));
    expect(shown.slice(0, 10).map(({ status }) => status)).toEqual(Array(10).fill("completed"));
    const waiting = shown.slice(10);
    expect(waiting.map(({ waiting_for }) => waiting_for)).toEqual(Array(140).fill("rate_limit"));
    await passTime(outlast, clock, 5 * minute, allEnded(outlast, 150));
    const calledAt = new Map(log.calls.map(({ at, call }) => [tagOf(call), at]));
    const late = waiting.map(({ next_attempt_at }, i) => {
      return calledAt.get(String(i + 10))! - Date.parse(next_attempt_at!);
    });
    expect(Math.max(...late)).toBeLessThanOrEqual(11_000);
    expect(Math.min(...late)).toBeGreaterThanOrEqual(-30_000);
  });
});

describe("tokens_per_minute", () => {
  const used = (total: number) => (call: Seen) =>
    answer({
      body: {
        id: `chatcmpl-${call.n}`,
        object: "chat.completion",
        created: 1,
        model: "m",
        choices: [{ index: 0, message: { role: "assistant", content: "ok" }, finish_reason: "stop" }],
        ...(total > 0 && { usage: { prompt_tokens: 1, completion_tokens: total - 1, total_tokens: total } }),
      },
    });

  test("is never exceeded by what calls were reckoned at or have used", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreamToml: "tokens_per_minute = 10000" });
    const log = logged(clock, (call, res) => used(1000)(call)(call, res));
    outlast.fake.otherwise(log.step);
    await submitMany(outlast, 40, () => ({ max_tokens: 1000 }));
    await passTime(outlast, clock, 6 * minute, allEnded(outlast, 40));
    expect(log.calls).toHaveLength(40);
    expect(mostIn(log.calls, minute)).toBeLessThanOrEqual(10);
    expect(mostIn(log.calls, 10_000)).toBeLessThanOrEqual(2);
  });

  test("counts n answers of a call as n times its max_tokens", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreamToml: "tokens_per_minute = 10000" });
    outlast.fake.otherwise((call, res) => used(0)(call)(call, res));
    await submit(outlast, { max_tokens: 500, n: 4 });
    await settled(outlast);
    const { tokens } = await laneOf(outlast);
    expect(tokens).toMatchObject({ per_minute: 10_000, source: "config" });
    expect(tokens!.used).toBeGreaterThan(2000);
    expect(tokens!.used).toBeLessThan(2010);
  });

  test("has room again at once where a call used less than it was reckoned at", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreamToml: "tokens_per_minute = 8000\nmax_concurrency = 1" });
    outlast.fake.otherwise((call, res) => used(10)(call)(call, res));
    const ids = await submitMany(outlast, 50, () => ({ max_tokens: 1000 }));
    await settled(outlast);
    await Promise.all(ids.map((id) => outlast.ear.event("ended", (told) => told.id === id)));
    expect((await laneOf(outlast)).tokens!.used).toBe(500);
  });

  test("counts a call in full whose answer does not say what it used", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreamToml: "tokens_per_minute = 8000" });
    outlast.fake.otherwise((call, res) => used(0)(call)(call, res));
    await submitMany(outlast, 3, () => ({ max_tokens: 1900 }));
    await settled(outlast);
    expect(endedCount(outlast)).toBe(1);
    expect((await laneOf(outlast)).tokens!.used).toBeGreaterThan(1900);
  });

  test("gets back what a call was reckoned at that was refused", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreamToml: "tokens_per_minute = 8000" });
    outlast.fake.otherwise(fail(400));
    await submitMany(outlast, 20, () => ({ max_tokens: 1900 }));
    await settled(outlast);
    await passTime(outlast, clock, 1000, allEnded(outlast, 20));
    expect(endedCount(outlast)).toBe(20);
    expect((await laneOf(outlast)).tokens!.used).toBe(0);
  });

  test("lets a call through that is larger than the limit, alone", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreamToml: "tokens_per_minute = 100" });
    const log = logged(clock, (call, res) => used(5000)(call)(call, res));
    outlast.fake.otherwise(log.step);
    await submitMany(outlast, 3, () => ({ max_tokens: 5000 }));
    await passTime(outlast, clock, 3 * minute, allEnded(outlast, 3));
    expect(log.calls).toHaveLength(3);
    expect(mostIn(log.calls, minute)).toBe(1);
  });
});

describe("a restart within the minute", () => {
  const places: [string, Partial<OutlastOptions>][] = [
    ["of an upstream", { upstreamToml: "requests_per_minute = 30" }],
    ["of a lane", { tables: '[upstreams.fake.lanes."gpt-*"]\nrequests_per_minute = 30' }],
  ];
  test.each(places)("forgets nothing that was taken of the limit %s", async (_, options) => {
    const clock = new HandClock();
    const first = await start({ clock, ...options });
    const log: Log = logged(clock);
    first.fake.otherwise(log.step);
    const ids = await submitMany(first, 70);
    await passTime(first, clock, 15_000);
    expect(log.calls).toHaveLength(20);
    await first.stop();
    const second = await start({ clock, dir: first.dir, upstreams: first.fakes, ...options });
    await settled(second);
    expect(log.calls).toHaveLength(20);
    expect(await laneOf(second)).toMatchObject({ requests: { used: 20 }, waiting_for: "rate_limit" });
    await passTime(second, clock, 4 * minute, allEnded(second, 50));
    expect(log.calls).toHaveLength(70);
    expect(mostIn(log.calls, minute)).toBe(30);
    expect(mostIn(log.calls, 10_000)).toBe(10);
    expect((await recordOf(second, ids[69]!)).status).toBe("completed");
  });

  test("knows what was used of tokens, and takes what is not known for what it was reckoned at", async () => {
    const clock = new HandClock();
    const options = { clock, upstreamToml: "tokens_per_minute = 40000" };
    const first = await start(options);
    first.fake.script(answer(), answer({ body: { choices: [] } }), fail(400));
    for (let i = 0; i < 3; i++) {
      const id = await submit(first, { max_tokens: 1000 });
      await first.ear.event("ended", (told) => told.id === id);
    }
    const before = (await laneOf(first)).tokens!.used;
    expect(before).toBeGreaterThan(1006);
    expect(before).toBeLessThan(1016);
    await first.stop();
    const second = await start({ ...options, dir: first.dir, upstreams: first.fakes });
    await submit(second, { outlast: { delay: 60 } });
    expect((await laneOf(second)).tokens!.used).toBe(before);
  });
});

describe("calls that are not recorded", () => {
  test("count against the limits of their lane, and are told when to come back beyond them", async () => {
    const clock = new HandClock();
    const outlast = await start({
      clock,
      tables: '[upstreams.fake.lanes."gpt-test"]\nrequests_per_minute = 8',
    });
    const call = () => outlast.post("/v1/completions", { model: "gpt-test", prompt: "Hello" });
    const together = await Promise.all(Array.from({ length: 12 }, call));
    expect(together.filter(({ status }) => status === 200)).toHaveLength(8);
    expect(outlast.fake.seen).toHaveLength(8);
    for (const refused of together.filter(({ status }) => status !== 200)) {
      expect(refused.status).toBe(429);
      expect(refused.headers.get("retry-after")).toBe("60");
      expect(await refused.json()).toMatchObject({ error: { code: "rate_limited" } });
    }
    const id = await submit(outlast);
    expect(await recordOf(outlast, id)).toMatchObject({ status: "queued", waiting_for: "rate_limit" });
    clock.advance(minute + bucketMs);
    await outlast.ear.event("ended", (told) => told.id === id);
    expect((await call()).status).toBe(200);
  });

  test("leave room as recorded ones do, and are refused where those took it", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreamToml: "requests_per_minute = 3" });
    await submitMany(outlast, 3);
    await settled(outlast);
    const refused = await outlast.post("/v1/completions", { model: "another", prompt: "Hello" });
    expect(refused.status).toBe(429);
  });
});

test("embeddings share the limits of their upstream", async () => {
  const clock = new HandClock();
  const outlast = await start({ clock, upstreamToml: "requests_per_minute = 10" });
  const log = logged(clock);
  outlast.fake.otherwise(log.step);
  await submitMany(outlast, 6);
  const texts = Array.from({ length: 6 }, (_, i) =>
    outlast.post("/v1/embeddings", { model: "embed", input: `text ${i}`, wait: false }),
  );
  for (const response of await Promise.all(texts)) expect(response.status).toBe(202);
  await passTime(outlast, clock, 2 * minute, allEnded(outlast, 12));
  expect(log.calls).toHaveLength(12);
  expect(mostIn(log.calls, minute)).toBe(10);
});

test("a limit of a lane is not to be got round by calls of many other models", async () => {
  const clock = new HandClock();
  const outlast = await start({
    clock,
    tables: '[upstreams.fake.lanes."gpt-test"]\nrequests_per_minute = 5',
  });
  const log = logged(clock);
  outlast.fake.otherwise(log.step);
  await submitMany(outlast, 5);
  await settled(outlast);
  clock.advance(1000);
  await submitMany(outlast, 1100, (i) => ({ model: `other-${i}` }));
  await settled(outlast);
  await submitMany(outlast, 5);
  await settled(outlast);
  const own = log.calls.filter(({ call }) => bodyOf(call).model === hello.model);
  expect(own).toHaveLength(5);
});
