/** Where a request goes when its lane closes, and what a lane that was told to wait is spared. */

import { afterEach, expect, test } from "vitest";
import type { RequestObject } from "../../src/contract.ts";
import { HandClock } from "../support/clock.ts";
import { answer, closedPort, deltas, fail, gate, startFake, stream } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, startOutlast } from "../support/outlast.ts";

const path = "/v1/chat/completions";
const running: Outlast[] = [];
const bothTables = '[routes]\n"m" = ["one", "two"]';
const m = { ...hello, model: "m" };

async function start(options: OutlastOptions): Promise<Outlast> {
  const outlast = await startOutlast({ luck: 0.5, ...options });
  running.push(outlast);
  return outlast;
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((outlast) => outlast.close()));
});

/** Lets seconds pass, with whatever they set off, until so many requests have ended; half a minute at most. */
async function passTime(outlast: Outlast, clock: HandClock, requests: number): Promise<void> {
  for (let i = 0; i < 30 && outlast.ear.all("ended").length < requests; i++) {
    clock.advance(1000);
    await outlast.fetch("/healthz");
  }
}

test("callers who wait in a lane that closes are served by the next target, not after the pause", async () => {
  const clock = new HandClock();
  const upstreams = ["one", "two"];
  const outlast = await start({ clock, upstreams, upstreamToml: "max_concurrency = 1", tables: bothTables });
  const held = gate();
  outlast.fakes.one!.script(held.step);
  outlast.fakes.two!.otherwise(answer({ text: "from two" }));
  const calls = [1, 2, 3, 4].map((n) => outlast.post(path, m, { "idempotency-key": `k${n}` }));
  await held.arrived;
  await outlast.ear.event("accepted", () => outlast.ear.all("accepted").length === 4);
  held.release(fail(429, {}, { "retry-after": "3600" }));
  await outlast.ear.event("gate_closed");
  await passTime(outlast, clock, 4);
  const replies = await Promise.all(calls);
  expect(replies.map(({ status }) => status)).toEqual([200, 200, 200, 200]);
  expect(replies.map(({ headers }) => headers.get("outlast-upstream"))).toEqual(Array(4).fill("two"));
});

test("what runs in the background leaves an upstream that cannot be reached", async () => {
  const clock = new HandClock();
  const two = await startFake();
  const one = { baseUrl: await closedPort(), close: async () => {} } as unknown as typeof two;
  const outlast = await start({
    clock,
    upstreams: { one, two },
    upstreamToml: "max_concurrency = 1",
    tables: bothTables,
  });
  const body = { ...m, wait: false, outlast: { delay: 60 } };
  const ids = await Promise.all(
    [1, 2, 3, 4].map(async () => ((await (await outlast.post(path, body)).json()) as { id: string }).id),
  );
  clock.advance(60_000);
  await outlast.ear.event("gate_closed");
  await passTime(outlast, clock, 4);
  await Promise.all(
    ids.map((id) => outlast.ear.event("ended", (told) => told.id === id && told.state === "completed")),
  );
  expect(two.seen).toHaveLength(4);
});

test("a 500 with Retry-After holds its lane, also when another target had a turn", async () => {
  const clock = new HandClock();
  const outlast = await start({ clock, upstreams: ["one", "two"], tables: bothTables });
  outlast.fakes.one!.script(fail(500, {}, { "retry-after": "5" }));
  outlast.fakes.two!.otherwise(fail(500));
  const call = outlast.post(path, { ...m, outlast: { max_attempts: 3 } });
  await outlast.ear.event("attempt_ended", ({ attempt }) => attempt === 2);
  clock.advance(4000);
  const reply = await call;
  expect(reply.status).toBe(500);
  expect(outlast.fakes.one!.seen).toHaveLength(1);
});

test("open streams do not take the connections of recorded calls", async () => {
  const outlast = await start({ upstreamToml: "max_concurrency = 1" });
  const held = gate();
  const streaming = stream([...deltas("a")], { end: "hang" });
  outlast.fake.script(streaming, streaming, streaming, held.step);
  const streams = await Promise.all([1, 2, 3].map(() => outlast.post(path, { ...hello, stream: true })));
  const call = outlast.post(path, hello);
  await held.arrived;
  held.release();
  expect((await call).status).toBe(200);
  await Promise.all(streams.map((one) => one.body?.cancel()));
});

/** Lets time pass to the instant that a request waits for, as long as that is within a second, until a call is over. */
async function over(outlast: Outlast, clock: HandClock, call: Promise<Response>): Promise<Response> {
  let isOver = false;
  const settled = call.finally(() => {
    isOver = true;
  });
  settled.catch(() => {});
  while (!isOver) {
    const list = (await (await outlast.fetch("/v1/requests?limit=5")).json()) as { data: RequestObject[] };
    const waits = list.data.map(({ next_attempt_at: at }) =>
      at === null ? 0 : Date.parse(at) - clock.now(),
    );
    clock.advance(waits.find((ms) => ms > 0 && ms <= 1000) ?? 0);
  }
  return settled;
}

test("three upstreams, each in the words of its provider: 429, overloaded, broken; all are answered, and the first again", async () => {
  const clock = new HandClock();
  const upstreams = ["openai", "anthropic", "google"];
  const tables = '[routes]\n"m" = ["openai", "anthropic/claude", "google/models/gemini"]';
  const outlast = await start({ clock, luck: 0, upstreams, tables });
  const { openai, anthropic, google } = outlast.fakes;
  const limited = {
    message: "Rate limit reached for requests",
    type: "requests",
    code: "rate_limit_exceeded",
  };
  openai!.otherwise(answer({ status: 429, headers: { "retry-after": "20" }, body: { error: limited } }));
  const overloaded = { type: "error", error: { type: "overloaded_error", message: "Overloaded" } };
  anthropic!.otherwise(answer({ status: 529, body: overloaded }));
  const unavailable = { code: 503, message: "The model is overloaded.", status: "UNAVAILABLE" };
  google!.script(answer({ status: 503, body: [{ error: unavailable }] }));
  google!.otherwise(answer({ text: "from google" }));
  const ask = (n: number) => outlast.post(path, { ...m, messages: [{ role: "user", content: `${n}` }] });

  const reply = await over(outlast, clock, ask(0));
  expect([reply.status, reply.headers.get("outlast-upstream")]).toEqual([200, "google"]);
  const id = reply.headers.get("outlast-request-id");
  const { data } = (await (await outlast.fetch(`/v1/requests/${id}/attempts`)).json()) as { data: unknown[] };
  expect(data.slice(0, 3)).toMatchObject([
    {
      upstream: "openai",
      status: 429,
      verdict: "throttled",
      error_code: "rate_limit_exceeded",
      counted: false,
    },
    {
      upstream: "anthropic",
      status: 529,
      verdict: "throttled",
      error_code: "overloaded_error",
      counted: false,
    },
    { upstream: "google", status: 503, verdict: "transient", error_code: "503", counted: true },
  ]);
  expect(data.at(-1)).toMatchObject({ upstream: "google", model: "models/gemini", verdict: "success" });

  const before = [openai!.seen.length, google!.seen.length];
  for (const n of [1, 2, 3, 4, 5]) {
    const other = await over(outlast, clock, ask(n));
    expect(other.headers.get("outlast-upstream")).toBe("google");
  }
  expect([openai!.seen.length, google!.seen.length]).toEqual([before[0], before[1]! + 5]);

  openai!.otherwise(answer({ text: "from openai" }));
  clock.advance(20_000);
  const probe = await ask(6);
  expect(probe.headers.get("outlast-upstream")).toBe("openai");
  expect(outlast.ear.all("gate_opened").map(({ gate }) => gate)).toContain("openai/m");
  const restored = await Promise.all([7, 8, 9].map(ask));
  expect(restored.map(({ headers }) => headers.get("outlast-upstream"))).toEqual(Array(3).fill("openai"));
});
