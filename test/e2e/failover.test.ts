/** Where a request goes when its lane closes, and what a lane that was told to wait is spared. */

import { afterEach, expect, test } from "vitest";
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
