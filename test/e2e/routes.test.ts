/** Which targets a request has, which of them is first, and when it leaves one for the next. */

import { afterEach, describe, expect, test } from "vitest";
import type { AttemptObject, RequestObject } from "../../src/contract.ts";
import { HandClock } from "../support/clock.ts";
import { answer, fail, gate, hang, type Seen } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick, startOutlast } from "../support/outlast.ts";

const path = "/v1/chat/completions";
const running: Outlast[] = [];
const bothTables = '[routes]\n"gpt-test" = ["one", "two"]\n';

interface Scene {
  clock: HandClock;
  outlast: Outlast;
  one: Outlast["fake"];
  two: Outlast["fake"];
}

async function start(options: OutlastOptions = {}): Promise<Scene> {
  const clock = new HandClock();
  const given = { clock, luck: 0.5, upstreams: ["one", "two"], tables: bothTables };
  const outlast = await startOutlast({ ...given, ...options });
  running.push(outlast);
  for (const [name, fake] of Object.entries(outlast.fakes)) fake.otherwise(answer({ text: name }));
  return { clock, outlast, one: outlast.fakes.one!, two: outlast.fakes.two! };
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((outlast) => outlast.close()));
});

const says = (content: string) => ({ messages: [{ role: "user", content }] });
const modelOf = ({ body }: Seen): string => (JSON.parse(body.toString()) as { model: string }).model;
const upstreamOf = (response: Response) => response.headers.get("outlast-upstream");
const requestId = (response: Response) => response.headers.get("outlast-request-id")!;

let asked = 0;
const ask = (outlast: Outlast, body: object = {}): Promise<Response> =>
  outlast.post(path, { ...hello, ...says(`question ${asked++}`), ...body });

async function submit(outlast: Outlast, options: object = {}): Promise<string> {
  const response = await ask(outlast, { wait: false, outlast: options });
  expect(response.status).toBe(202);
  return ((await response.json()) as { id: string }).id;
}
async function recordOf(
  outlast: Outlast,
  id: string,
): Promise<RequestObject & { attempt_list: AttemptObject[] }> {
  const response = await outlast.fetch(`/v1/requests/${id}?include=attempts`);
  return (await response.json()) as RequestObject & { attempt_list: AttemptObject[] };
}
const ended = (outlast: Outlast, id: string) => outlast.ear.event("ended", (told) => told.id === id);
const accepted = (outlast: Outlast, times: number) =>
  outlast.ear.event("accepted", () => outlast.ear.all("accepted").length >= times);

/** Lets what has been set off come to rest: each of these goes through the server and its reader. */
async function settle(outlast: Outlast): Promise<void> {
  for (let i = 0; i < 4; i++) await (await outlast.fetch("/v1/requests?limit=1")).text();
}

/** Lets seconds pass, with whatever they set off. */
async function pass({ clock, outlast }: Scene, seconds: number): Promise<void> {
  for (let n = 0; n < seconds; n++) {
    clock.advance(1000);
    await settle(outlast);
  }
}

/** Lets seconds pass until a call is over; two minutes at most. */
async function over<T>(scene: Scene, call: Promise<T>): Promise<T> {
  let isOver = false;
  const settled = call.finally(() => {
    isOver = true;
  });
  settled.catch(() => {});
  for (let seconds = 0; seconds < 120 && !isOver; seconds++) await pass(scene, 1);
  expect(isOver).toBe(true);
  return settled;
}

describe("the route of a model", () => {
  const tables = `[routes]
"gpt-4*" = ["one"]
"gpt-4o" = ["two/gpt-4o-2024"]
"*-mini" = ["two/tiny"]
"claude-*-latest" = ["one/claude", "two/claude"]
`;

  test.each([
    ["gpt-4o", "two", "gpt-4o-2024"],
    ["gpt-4o-mini", "one", "gpt-4o-mini"],
    ["o9-mini", "two", "tiny"],
    ["claude-7-latest", "one", "claude"],
    ["two/whatever", "two", "whatever"],
  ])("%s is served by %s as %s", async (model, upstream, served) => {
    const { outlast } = await start({ tables });
    const response = await ask(outlast, { model });
    expect(response.status).toBe(200);
    expect(upstreamOf(response)).toBe(upstream);
    expect(response.headers.get("outlast-served-model")).toBe(served);
    const [seen] = outlast.fakes[upstream]!.seen;
    expect(modelOf(seen!)).toBe(served);
    expect(await recordOf(outlast, requestId(response))).toMatchObject({
      model,
      upstream,
      served_model: served,
      attempt_list: [{ upstream, model: served }],
    });
  });

  test("names the model that served, not the one that was asked for, when the provider answers with another", async () => {
    const { outlast, one } = await start({ tables });
    one.otherwise(answer({ model: "gpt-4-0613" }));
    const { data, response } = await outlast
      .client()
      .chat.completions.create({ ...hello, model: "gpt-4" })
      .withResponse();
    expect(data.model).toBe("gpt-4-0613");
    expect(response.headers.get("outlast-served-model")).toBe("gpt-4-0613");
    expect(modelOf(one.seen[0]!)).toBe("gpt-4");
  });

  test("is found again for the next round of a key, after a change of what the name means", async () => {
    const { outlast, one, two } = await start({ env: quick, clock: undefined, tables: bothTables });
    one.otherwise(fail(500));
    two.otherwise(fail(500));
    const headers = { "idempotency-key": "k" };
    const body = { ...hello, outlast: { max_attempts: 2 } };
    expect((await outlast.post(path, body, headers)).status).toBe(500);
    expect([one.seen.length, two.seen.length]).toEqual([1, 1]);
    one.otherwise(answer());
    expect(upstreamOf(await outlast.post(path, body, headers))).toBe("one");
  });
});

describe("weights", () => {
  const tables = `[routes."gpt-test"]
targets = [{ upstream = "one", weight = 3 }, "two", { upstream = "three", weight = 0 }]
`;
  const upstreams = ["one", "two", "three"];

  test("spread requests in their proportion; one of weight 0 is only ever a fallback", async () => {
    const { outlast, one, two } = await start({ tables, upstreams });
    const responses = await Promise.all(Array.from({ length: 400 }, () => ask(outlast)));
    expect(responses.every(({ status }) => status === 200)).toBe(true);
    // Of 400 draws with p = 3/4, 6 deviations: it fails by chance once in a billion runs.
    expect(one.seen.length).toBeGreaterThan(300 - 6 * 8.7);
    expect(one.seen.length).toBeLessThan(300 + 6 * 8.7);
    expect(one.seen.length + two.seen.length).toBe(400);
    expect(outlast.fakes.three!.seen).toEqual([]);
  });

  test("and whatever a request begins with, all the others have their turn before it begins again", async () => {
    const { outlast } = await start({ tables, upstreams, env: quick, clock: undefined });
    for (const fake of Object.values(outlast.fakes)) fake.otherwise(fail(500));
    const orders = new Set<string>();
    for (let n = 0; n < 30; n++) {
      const response = await ask(outlast, { outlast: { max_attempts: 4 } });
      const { attempt_list } = await recordOf(outlast, requestId(response));
      const order = attempt_list.map(({ upstream }) => upstream);
      expect(new Set(order.slice(0, 3)).size).toBe(3);
      expect(order[3]).toBe(order[0]);
      orders.add(order.slice(0, 3).join());
    }
    for (const order of orders) expect(["one,two,three", "two,one,three"]).toContain(order);
    expect(orders.size).toBe(2);
  });
});

describe("a request that somebody waits for", () => {
  const closeOne = async ({ outlast, one }: Scene, seconds: number) => {
    one.script(fail(429, {}, { "retry-after": String(seconds) }));
    expect(upstreamOf(await ask(outlast))).toBe("two");
  };

  test.each([
    ["the default", "", 3, 1],
    ["a route's own", '[routes."gpt-test"]\ntargets = ["one", "two"]\nfailover_after = "5s"\n', 10, 5],
  ])(
    "takes the next target where a lane is closed for longer than failover_after (%s)",
    async (_, table, closedS, patienceS) => {
      const scene = await start(table ? { tables: table } : {});
      const { outlast, clock, one } = scene;
      await closeOne(scene, closedS);
      // Any longer than its patience before it opens: elsewhere at once.
      clock.advance((closedS - patienceS) * 1000 - 1);
      expect(upstreamOf(await ask(outlast))).toBe("two");
      // No longer than that: it is waited for.
      clock.advance(1);
      const call = ask(outlast);
      await accepted(outlast, 3);
      clock.advance(patienceS * 1000 - 1);
      await settle(outlast);
      expect(one.seen).toHaveLength(1);
      clock.advance(1);
      expect(upstreamOf(await call)).toBe("one");
    },
  );

  test("leaves a lane that is full when it has waited for so long", async () => {
    const scene = await start({ upstreamToml: "max_concurrency = 1" });
    const { outlast, one } = scene;
    const held = gate();
    one.script(held.step);
    const first = ask(outlast);
    await held.arrived;
    expect(upstreamOf(await over(scene, ask(outlast)))).toBe("two");
    held.release();
    expect(upstreamOf(await first)).toBe("one");
  });

  test("leaves it for the first target that has room, past another one that is full", async () => {
    const scene = await start({
      upstreams: ["one", "two", "three"],
      tables: '[routes]\n"gpt-test" = ["one", "two", "three"]\n',
      upstreamToml: "max_concurrency = 1",
    });
    const { outlast, one, two } = scene;
    const gates = [gate(), gate()];
    one.script(gates[0]!.step);
    two.script(gates[1]!.step);
    const busy = [ask(outlast), ask(outlast, { outlast: { upstream: "two" } })];
    await Promise.all(gates.map(({ arrived }) => arrived));
    expect(upstreamOf(await over(scene, ask(outlast)))).toBe("three");
    for (const { release } of gates) release();
    await Promise.all(busy);
  });

  test("stays where the next target is full, too, until there is room", async () => {
    const scene = await start({ upstreamToml: "max_concurrency = 1" });
    const { outlast, one, two } = scene;
    const gates = [gate(), gate()];
    one.script(gates[0]!.step);
    two.script(gates[1]!.step);
    const busy = [ask(outlast), ask(outlast, { outlast: { upstream: "two" } })];
    await Promise.all(gates.map(({ arrived }) => arrived));
    const call = ask(outlast);
    await pass(scene, 5);
    expect([one.seen.length, two.seen.length]).toEqual([1, 1]);
    gates[1]!.release();
    await busy[1];
    expect(upstreamOf(await over(scene, call))).toBe("two");
    gates[0]!.release();
    await busy[0];
  });

  test("prefers the next target when one was silent, also when all had their turn", async () => {
    const scene = await start();
    const { outlast, clock, one, two } = scene;
    one.otherwise(hang());
    two.script(fail(500));
    two.otherwise(hang());
    const call = ask(outlast, { outlast: { deadline: "270s", max_attempts: 4 } });
    const { id } = await outlast.ear.event("accepted");
    await one.calls(1);
    clock.advance(135_000);
    // The second target fails at once; after a pause the first one has its turn again, silent as it is.
    await two.calls(1);
    await outlast.ear.event("attempt_ended", ({ attempt }) => attempt === 2);
    clock.advance(1000);
    await one.calls(2);
    clock.advance(67_000);
    await two.calls(2);
    const { attempt_list } = await recordOf(outlast, id);
    expect(attempt_list.map(({ upstream }) => upstream)).toEqual(["one", "two", "one", "two"]);
    clock.advance(67_000);
    expect((await call).status).toBe(504);
  });
});

describe("a request in the background", () => {
  test("waits for a rate limit rather than have the next target, and says until when", async () => {
    const scene = await start();
    const { outlast, clock, one, two } = scene;
    one.script(fail(429, {}, { "retry-after": "600" }));
    const throttled = await submit(outlast);
    await outlast.ear.event("gate_closed");
    await outlast.ear.event("attempt_ended");
    const later = await submit(outlast);
    const until = new Date(clock.now() + 600_000).toISOString();
    for (const id of [throttled, later]) {
      expect(await recordOf(outlast, id)).toMatchObject({
        waiting_for: "rate_limit",
        next_attempt_at: until,
      });
    }
    await pass(scene, 5);
    clock.advance(594_000);
    await settle(outlast);
    expect([one.seen.length, two.seen.length]).toEqual([1, 0]);
    clock.advance(1000);
    await Promise.all([throttled, later].map((id) => ended(outlast, id)));
    expect([one.seen.length, two.seen.length]).toEqual([3, 0]);
  });

  test("takes the next target where the limit opens behind its deadline", async () => {
    const { outlast, one, two } = await start();
    one.script(fail(429, {}, { "retry-after": "600" }));
    const id = await submit(outlast, { deadline: "5m" });
    await ended(outlast, id);
    expect(await recordOf(outlast, id)).toMatchObject({ status: "completed", upstream: "two" });
    expect([one.seen.length, two.seen.length]).toEqual([1, 1]);
  });

  test("that is of interactive priority has the next target as one that somebody waits for", async () => {
    const { outlast, one } = await start();
    one.script(fail(429, {}, { "retry-after": "600" }));
    const id = await submit(outlast, { priority: "interactive" });
    await ended(outlast, id);
    expect(await recordOf(outlast, id)).toMatchObject({ status: "completed", upstream: "two" });
  });

  test("takes the next target when one fails", async () => {
    const { outlast, one } = await start();
    one.script(fail(500));
    const id = await submit(outlast);
    await ended(outlast, id);
    expect(await recordOf(outlast, id)).toMatchObject({ status: "completed", upstream: "two" });
  });
});

describe("the retry budget of an upstream", () => {
  const toml = `[breaker]
enabled = false
[retry]
budget_ratio = 0.1
budget_per_second = 0.1
`;

  test("parks what is over it, and fails nothing", async () => {
    const scene = await start({ upstreams: ["one"], tables: "", toml });
    const { outlast, clock, one } = scene;
    one.otherwise(fail(500));
    const began = clock.now();
    const count = 40;
    const ids = await Promise.all(Array.from({ length: count }, () => submit(outlast)));
    await outlast.ear.event("attempt_ended", () => outlast.ear.all("attempt_ended").length >= count);
    expect(outlast.ear.all("parked").length).toBeGreaterThan(count / 2);
    const firsts = count;
    for (let seconds = 0; seconds < 60; seconds++) {
      await pass(scene, 1);
      const elapsedS = (clock.now() - began) / 1000;
      // What was saved, a tenth of the first attempts, and what each second brings.
      expect(one.seen.length - firsts).toBeLessThanOrEqual(6 + 0.1 * firsts + 0.1 * elapsedS);
    }
    expect(outlast.ear.all("ended")).toEqual([]);
    one.otherwise(answer());
    for (let minutes = 0; minutes < 300 && outlast.ear.all("ended").length < count; minutes++) {
      clock.advance(60_000);
      await settle(outlast);
    }
    await Promise.all(ids.map((id) => ended(outlast, id)));
    for (const id of ids) expect(await recordOf(outlast, id)).toMatchObject({ status: "completed" });
  });

  test("does not keep failed requests from the next target", async () => {
    const { outlast, one, two } = await start({ toml });
    one.otherwise(fail(500));
    const responses = await Promise.all(Array.from({ length: 30 }, () => ask(outlast)));
    expect(responses.map(({ status }) => status)).toEqual(Array(30).fill(200));
    expect([one.seen.length, two.seen.length]).toEqual([30, 30]);
    expect(outlast.ear.all("parked")).toEqual([]);
  });

  test("is shown, and what is parked says until when it waits", async () => {
    const { outlast, one, clock } = await start({ upstreams: ["one"], tables: "", toml });
    one.otherwise(fail(500));
    const ids = await Promise.all(Array.from({ length: 20 }, () => submit(outlast)));
    await outlast.ear.event("attempt_ended", () => outlast.ear.all("attempt_ended").length >= 20);
    const { data } = (await (await outlast.fetch("/v1/upstreams")).json()) as {
      data: { retry_budget: number }[];
    };
    expect(data[0]!.retry_budget).toBe(0);
    const records = await Promise.all(ids.map((id) => recordOf(outlast, id)));
    const waits = records.map(({ next_attempt_at }) => Date.parse(next_attempt_at!) - clock.now());
    expect(Math.min(...waits)).toBeGreaterThan(0);
    expect(Math.max(...waits)).toBeGreaterThan(60_000);
    expect(new Set(records.map(({ waiting_for }) => waiting_for))).toEqual(new Set(["backoff"]));
  });
});
