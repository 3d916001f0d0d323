/** What is remembered of lanes, of which callers may make as many as they like, and of what they held. */

import { describe, expect, test } from "vitest";
import type { Outcome } from "../../src/core/ports.ts";
import type { RequestRecord, WaitReason } from "../../src/core/request.ts";
import { Loop, type LoopOptions, minuteMs, mostIn, response } from "../support/loop.ts";

const junk = 1200;

/** Calls ever so many models that nobody has heard of, in no time to speak of. */
async function callJunk(loop: Loop): Promise<void> {
  for (let i = 0; i < junk; i++) {
    await loop.submit(`junk-${i}`);
    await loop.pass(4);
  }
  await loop.pass(100);
}

test("a lane whose limit is in use is not forgotten, however many others are called", async () => {
  const loop = await Loop.begun({
    settings: {
      upstreams: [
        { name: "u", maxConcurrency: 256, lanes: [{ model: "hot", limits: { requestsPerMinute: 10 } }] },
      ],
    },
    answer: () => ({ ms: 1, outcome: response(200) }),
  });
  await loop.submitMany(10, "hot");
  await loop.pass(100);
  await callJunk(loop);
  await loop.submitMany(10, "hot");
  await loop.pass(100_000);
  expect(loop.callsOf("hot")).toHaveLength(20);
  expect(mostIn(loop.callsOf("hot"), 60_000)).toBe(10);
  expect(known(loop)).toBeLessThanOrEqual(1101);
});

test("a breaker that is open stays so, however many others are called", async () => {
  const loop = await Loop.begun({
    settings: { upstreams: [{ name: "u", maxConcurrency: 256 }] },
    answer: ({ model }) => ({ ms: 1, outcome: response(model === "broken" ? 500 : 200) }),
  });
  for (let i = 0; i < 3; i++) {
    await loop.submit("broken", { terms: { maxAttempts: 1 } });
    await loop.pass(700);
  }
  const calls = loop.callsOf("broken").length;
  await callJunk(loop);
  const waiting = await loop.submit("broken");
  await loop.pass(100);
  expect(loop.queue.explain(waiting)?.why).toBe("breaker");
  expect(loop.callsOf("broken")).toHaveLength(calls);
});

describe("an attempt tells what its request waited for", () => {
  const one = { upstreams: [{ name: "u", maxConcurrency: 1 }] };
  const many = { upstreams: [{ name: "u", maxConcurrency: 256 }] };
  const throttled = (seconds: number): Outcome => ({
    ...(response(429) as Extract<Outcome, { kind: "response" }>),
    headers: [["retry-after", String(seconds)]],
  });
  const unreachable: Outcome = { kind: "network_error", code: "ECONNREFUSED", sent: false };
  /** Calls that take this long, and come to one after the other of these; then to an answer. */
  const begun = (settings: LoopOptions["settings"], ms: number, ...outcomes: Outcome[]) =>
    Loop.begun({ settings, answer: () => ({ ms, outcome: outcomes.shift() ?? response(200) }) });

  async function waits(loop: Loop, { id }: RequestRecord): Promise<(WaitReason[] | undefined)[]> {
    return (await loop.queue.attempts(id)).map(({ waitedFor }) => waitedFor);
  }
  const inRunAt = (loop: Loop, ms: number) => ({ runAt: loop.clock.now() + ms });

  test("nothing, where it started at once", async () => {
    const loop = await begun(one, 100);
    const first = await loop.submit("m");
    await loop.pass(100);
    const second = await loop.submit("m");
    await loop.pass(100);
    expect(await waits(loop, first)).toEqual([[]]);
    expect(await waits(loop, second)).toEqual([[]]);
  });

  test("capacity, of its lane or of its upstream", async () => {
    const loop = await begun(one, 100);
    const [first, second, third] = await loop.submitMany(3, "m");
    const other = await loop.submit("n");
    await loop.pass(1000);
    expect(await waits(loop, first!)).toEqual([[]]);
    for (const record of [second!, third!, other]) expect(await waits(loop, record)).toEqual([["capacity"]]);
    const late = await loop.submit("m");
    await loop.pass(1000);
    expect(await waits(loop, late)).toEqual([[]]);
  });

  test("its own date, and nothing else where its lane was free then", async () => {
    const loop = await begun(one, 100);
    const dated = await loop.submit("m", inRunAt(loop, 5000));
    await loop.submit("m");
    await loop.pass(10_000);
    expect(await waits(loop, dated)).toEqual([["scheduled"]]);
  });

  test("its own date and capacity, where its lane was full then", async () => {
    const loop = await begun(one, 3000);
    const dated = await loop.submit("m", inRunAt(loop, 1000));
    await loop.submit("m");
    await loop.pass(10_000);
    expect(await waits(loop, dated)).toEqual([["scheduled", "capacity"]]);
  });

  test.each([
    ["behind a fault", response(500)],
    ["as long as it was told to", throttled(30)],
  ])("its backoff, %s", async (_, outcome) => {
    const loop = await begun(many, 100, outcome);
    const record = await loop.submit("m");
    await loop.pass(minuteMs);
    expect(await waits(loop, record)).toEqual([[], ["backoff"]]);
  });

  test("a limit that is configured", async () => {
    const limits = { requestsPerMinute: 40 };
    const loop = await begun({ upstreams: [{ name: "u", maxConcurrency: 256, limits }] }, 100);
    const records = await loop.submitMany(20, "m");
    const other = await loop.submit("n");
    await loop.pass(2 * minuteMs);
    for (const record of records.slice(0, 10)) expect(await waits(loop, record)).toEqual([[]]);
    for (const record of [...records.slice(10), other])
      expect(await waits(loop, record)).toEqual([["rate_limit"]]);
  });

  test("a limit that another lane waits for", async () => {
    const limits = { requestsPerMinute: 40 };
    const loop = await begun({ upstreams: [{ name: "u", maxConcurrency: 256, limits }] }, 100);
    const dated = await loop.submit("n", inRunAt(loop, 5000));
    await loop.submitMany(20, "m");
    await loop.pass(2 * minuteMs);
    expect(await waits(loop, dated)).toEqual([["scheduled", "rate_limit"]]);
  });

  test("a lane that was told to wait, also where it comes to be due meanwhile", async () => {
    const loop = await begun(many, 100, throttled(30));
    const told = await loop.submit("m");
    const dated = await loop.submit("m", inRunAt(loop, 5000));
    await loop.pass(1000);
    const late = await loop.submit("m");
    await loop.pass(minuteMs);
    expect(await waits(loop, dated)).toEqual([["scheduled", "rate_limit"]]);
    // Another one goes first, and nobody follows before that has got through.
    expect(await waits(loop, told)).toEqual([[], ["backoff", "rate_limit"]]);
    expect(await waits(loop, late)).toEqual([["rate_limit"]]);
  });

  test("an upstream that could not be reached", async () => {
    const loop = await begun(many, 100, unreachable);
    await loop.submit("m");
    await loop.pass(200);
    const late = await loop.submit("n");
    await loop.pass(minuteMs);
    expect(await waits(loop, late)).toEqual([["backoff"]]);
  });

  test("a breaker that is open", async () => {
    const loop = await begun(many, 1, ...Array.from({ length: 3 }, () => response(500)));
    for (let i = 0; i < 3; i++) {
      await loop.submit("m", { terms: { maxAttempts: 1 } });
      await loop.pass(700);
    }
    const late = await loop.submit("m");
    await loop.pass(minuteMs);
    expect(await waits(loop, late)).toEqual([["breaker"]]);
  });

  test("one thing after the other", async () => {
    const loop = await begun(one, 5000, throttled(20));
    const told = await loop.submit("m");
    await loop.pass(1000);
    const late = await loop.submit("m");
    await loop.pass(minuteMs);
    expect(await waits(loop, late)).toEqual([["capacity", "rate_limit"]]);
    expect((await waits(loop, told))[0]).toEqual([]);
  });
});

function known(loop: Loop): number {
  return [...loop.lanes.flow.known()].length;
}
