/** What waits for limits that several lanes share, and what goes on around it. */

import { describe, expect, test } from "vitest";
import type { ChangeSet, Store } from "../../src/core/ports.ts";
import { Loop, minuteMs, mostIn, response } from "../support/loop.ts";

const upstreamOf = (limits: object, more: object = {}) => ({
  upstreams: [{ name: "u", maxConcurrency: 256, limits, ...more }],
});
const tokens = (count: number) => ({ size: { textBytes: 40, mediaTokens: 0, maxOutput: count - 10 } });
const toV = {
  upstreams: [
    { name: "u", models: [] },
    { name: "v", models: ["x"] },
  ],
  routes: [{ model: "m", targets: [{ upstream: "u" }, { upstream: "v" }] }],
};

describe("lanes that share a limit", () => {
  test("have it in turn, however many wait in one of them", async () => {
    const loop = await Loop.begun({ settings: upstreamOf({ requestsPerMinute: 60 }) });
    await loop.submitMany(600, "big", { priority: "batch" });
    await loop.submit("small", { priority: "interactive" });
    await loop.pass(minuteMs);
    const first = loop.calls.findIndex(({ model }) => model === "small");
    // Fifteen went at once, before it came.
    expect(first - 15).toBeLessThanOrEqual(2);
    expect(first).toBeGreaterThanOrEqual(15);
  });

  test.each([2, 3, 4, 7])("have as much of it each, %i of them", async (count) => {
    const loop = await Loop.begun({ settings: upstreamOf({ requestsPerMinute: 60 }) });
    const models = Array.from({ length: count }, (_, i) => `model-${i}`);
    for (const model of models) await loop.submitMany(120, model);
    await loop.pass(10_000);
    const before = models.map((model) => loop.callsOf(model).length);
    await loop.pass(3 * minuteMs);
    const each = models.map((model, i) => loop.callsOf(model).length - before[i]!);
    const sum = each.reduce((a, b) => a + b, 0);
    expect(sum).toBeGreaterThan(150);
    for (const one of each) expect(Math.abs(one - sum / count), each.join(" ")).toBeLessThanOrEqual(2);
  });

  test.each([3, 4, 5])(
    "have it in turn where it lets through one call at a time, %i of them",
    async (count) => {
      const loop = await Loop.begun({ settings: upstreamOf({ requestsPerMinute: 60 }) });
      for (let i = 0; i < 60; i++) {
        await loop.submit("before");
        await loop.pass(1000);
      }
      const models = Array.from({ length: count }, (_, i) => `model-${i}`);
      for (const model of models) await loop.submitMany(40, model);
      await loop.pass(minuteMs);
      const each = models.map((model) => loop.callsOf(model).length);
      expect(Math.max(...each) - Math.min(...each), each.join(" ")).toBeLessThanOrEqual(2);
    },
  );

  test("have it in turn, too, where some of them share a narrower one", async () => {
    const limitGroup = "account";
    const loop = await Loop.begun({
      settings: {
        limitGroups: [{ name: limitGroup, limits: { requestsPerMinute: 60 } }],
        upstreams: [
          { name: "one", maxConcurrency: 256, limitGroup, limits: { requestsPerMinute: 20 } },
          { name: "two", maxConcurrency: 256, limitGroup },
        ],
      },
    });
    const models = ["one/a", "one/b", "one/c", "two/a", "two/b"];
    for (const model of models) await loop.submitMany(200, model);
    await loop.pass(minuteMs);
    const before = loop.calls.length;
    await loop.pass(5 * minuteMs);
    const later = loop.calls.slice(before);
    const each = models.map(
      (name) => later.filter(({ upstream, model }) => `${upstream}/${model}` === name).length,
    );
    const [a, b, c, d, e] = each as [number, number, number, number, number];
    expect(a + b + c + d + e, each.join(" ")).toBeGreaterThan(270);
    expect(a + b + c).toBeGreaterThan(75);
    expect(Math.max(a, b, c) - Math.min(a, b, c), each.join(" ")).toBeLessThanOrEqual(5);
    expect(Math.abs(d - e), each.join(" ")).toBeLessThanOrEqual(5);
    expect(
      mostIn(
        loop.calls.filter(({ upstream }) => upstream === "one"),
        minuteMs,
      ),
    ).toBeLessThanOrEqual(20);
  });

  test("let a large call through among ever so many small ones", async () => {
    const loop = await Loop.begun({
      settings: upstreamOf({ tokensPerMinute: 10_000 }),
      answer: ({ model }) => ({ ms: 300, outcome: response(200, model === "large" ? 2000 : 100) }),
    });
    const feed = () => {
      void loop.submit("small", { terms: tokens(100) });
      loop.clock.timer(400, feed);
    };
    feed();
    await loop.pass(minuteMs);
    const since = loop.clock.now();
    await loop.submit("large", { priority: "interactive", terms: tokens(2000) });
    await loop.pass(2 * minuteMs);
    expect(loop.callsOf("large").map(({ at }) => at - since)).toEqual([expect.any(Number)]);
    await loop.pass(minuteMs);
    // Those that had to wait for it go on.
    expect(loop.callsOf("small").filter(({ at }) => at > since + 2 * minuteMs).length).toBeGreaterThan(50);
  });

  test("do not wait for one whose own limits hold it", async () => {
    const loop = await Loop.begun({
      settings: upstreamOf(
        { requestsPerMinute: 120 },
        { lanes: [{ model: "slow", limits: { requestsPerMinute: 10 } }] },
      ),
    });
    await loop.submitMany(100, "slow");
    await loop.submitMany(300, "fast");
    await loop.pass(2 * minuteMs);
    expect(loop.callsOf("fast").length).toBeGreaterThan(150);
  });

  test("do not wait for one of another upstream of their group that this upstream's limit holds", async () => {
    const limitGroup = "account";
    const loop = await Loop.begun({
      settings: {
        limitGroups: [{ name: limitGroup, limits: { requestsPerMinute: 240 } }],
        upstreams: [
          { name: "slow", maxConcurrency: 256, limitGroup, limits: { requestsPerMinute: 10 } },
          { name: "fast", maxConcurrency: 256, limitGroup },
        ],
      },
    });
    await loop.submitMany(100, "slow/m");
    await loop.submitMany(600, "fast/m");
    await loop.pass(2 * minuteMs);
    expect(loop.calls.filter(({ upstream }) => upstream === "fast").length).toBeGreaterThan(400);
    expect(mostIn(loop.calls, minuteMs)).toBeLessThanOrEqual(240);
  });

  test.each<[string, (loop: Loop, id: string) => Promise<unknown>]>([
    ["is cancelled", (loop, id) => loop.queue.cancel("acme", id)],
    [
      "is cancelled, and another of its lane is to run later",
      async (loop, id) => {
        await loop.submit("large", { runAt: loop.clock.now() + 3_600_000, terms: tokens(2000) });
        await loop.queue.cancel("acme", id);
      },
    ],
  ])("wait no longer for one that %s, nor look for it all the time", async (_, gone) => {
    const loop = await Loop.begun({ settings: upstreamOf({ tokensPerMinute: 10_000 }) });
    await loop.submitMany(25, "small", { terms: tokens(100) });
    const { id } = await loop.submit("large", { terms: tokens(9000) });
    await loop.submitMany(50, "small", { terms: tokens(100) });
    const before = loop.callsOf("small").length;
    await loop.pass(1000);
    expect(loop.calls.length, "they wait for the large one").toBe(before);
    await gone(loop, id);
    const fired = await loop.pass(minuteMs);
    expect(loop.callsOf("small").length).toBe(75);
    expect(loop.callsOf("large")).toEqual([]);
    expect(fired).toBeLessThan(600);
  });

  test("wait no longer for one that has gone to another target", async () => {
    const routes = [{ model: "large", targets: [{ upstream: "u" }, { upstream: "v" }] }];
    const { upstreams } = upstreamOf({ tokensPerMinute: 10_000 });
    const loop = await Loop.begun({
      settings: { table: { ...toV, routes }, upstreams: [...upstreams, { name: "v", maxConcurrency: 8 }] },
    });
    await loop.submitMany(25, "small", { terms: tokens(100) });
    await loop.submit("large", { priority: "interactive", terms: tokens(9000) });
    await loop.submitMany(25, "small", { terms: tokens(100) });
    expect(loop.callsOf("small")).toHaveLength(25);
    await loop.pass(15_000);
    expect(loop.callsOf("large")).toMatchObject([{ upstream: "v" }]);
    expect(loop.callsOf("small")).toHaveLength(50);
  });

  test("wait no longer for one whose lane is told to wait", async () => {
    const throttled = { ...response(429), headers: [["retry-after", "600"]] as [string, string][] };
    const loop = await Loop.begun({
      settings: upstreamOf({ tokensPerMinute: 10_000 }),
      answer: ({ model }) => ({ ms: 500, outcome: model === "large" ? throttled : response(200, 100) }),
    });
    await loop.submit("large", { terms: tokens(1000) });
    await loop.submitMany(15, "small", { terms: tokens(100) });
    await loop.submit("large", { terms: tokens(9900) });
    await loop.submitMany(40, "small", { terms: tokens(100) });
    await loop.pass(400);
    expect(loop.callsOf("small")).toHaveLength(15);
    expect(await loop.pass(30_000)).toBeLessThan(400);
    expect([loop.callsOf("large").length, loop.callsOf("small").length]).toEqual([1, 55]);
  });

  test("look around hardly ever while they wait for another one", async () => {
    const loop = await Loop.begun({ settings: upstreamOf({ tokensPerMinute: 10_000 }) });
    await loop.submitMany(20, "small", { terms: tokens(100) });
    await loop.submit("large", { terms: tokens(9900) });
    for (let i = 0; i < 10; i++) await loop.submitMany(10, `small-${i}`, { terms: tokens(100) });
    expect(await loop.pass(50_000)).toBeLessThan(200);
    expect(loop.callsOf("large")).toEqual([]);
  });
});

test("a call that ends makes as much work however many lanes wait for their limit", async () => {
  const looks: number[] = [];
  for (const count of [10, 200]) {
    const loop = await Loop.begun({
      settings: upstreamOf({ requestsPerMinute: 100 }),
      answer: () => ({ ms: 2500, outcome: response(200) }),
    });
    await loop.submitMany(20, "ends");
    for (let i = 0; i < count; i++) await loop.submit(`waits-${i}`);
    // Once a second all lanes are looked at: that is not what is counted.
    await loop.pass(2400);
    const { lanes } = loop;
    const real = lanes.openingOf.bind(lanes);
    let asked = 0;
    lanes.openingOf = (...args) => {
      asked++;
      return real(...args);
    };
    const ended = () => loop.told.filter(({ event }) => event === "ended").length;
    const before = ended();
    await loop.pass(200);
    expect(ended() - before).toBe(25);
    looks.push(asked);
  }
  expect(looks[1], String(looks)).toBe(looks[0]);
});

test("a request without a size, as earlier versions wrote it, waits quietly for its tokens", async () => {
  const loop = await Loop.begun({
    settings: upstreamOf({ tokensPerMinute: 3000 }),
    answer: () => ({ ms: 50, outcome: response(200, 1900) }),
  });
  await loop.submitMany(4, "m", { terms: { size: undefined } });
  expect(await loop.pass(minuteMs)).toBeLessThan(300);
  await loop.pass(5 * minuteMs);
  expect(loop.calls).toHaveLength(4);
});

test("calls whose start is written slowly do not reach the upstream together", async () => {
  let slowUntil = 0;
  const loop = await Loop.begun({
    settings: { upstreams: [{ name: "u", maxConcurrency: 1000, limits: { requestsPerMinute: 60 } }] },
    world: (world, clock) => {
      const commit = async (change: ChangeSet) => {
        const starts = change.kind === "change" && change.transition.record.state === "processing";
        const leftMs = slowUntil - clock.now();
        if (starts && leftMs > 0) await new Promise<void>((resolve) => clock.timer(leftMs, resolve));
        return world.store.commit(change);
      };
      return { ...world, store: { ...world.store, commit } };
    },
  });
  await loop.submitMany(300, "m");
  await loop.pass(2 * minuteMs);
  slowUntil = loop.clock.now() + 50_000;
  await loop.pass(3 * minuteMs);
  expect([mostIn(loop.calls, minuteMs), mostIn(loop.calls, 10_000)]).toEqual([60, 15]);
  expect(loop.calls.length).toBeGreaterThan(200);
});

test.each([
  ["at once", 0],
  ["after a look at all lanes", 70_000],
])(
  "a request due later goes on to the next target where others have used up the limit meanwhile, %s",
  async (_, idleMs) => {
    const loop = await Loop.begun({
      settings: {
        table: toV,
        upstreams: [
          { name: "u", maxConcurrency: 100, limits: { requestsPerMinute: 10 } },
          { name: "v", maxConcurrency: 8 },
        ],
      },
    });
    await loop.submit("other", { runAt: loop.clock.now() + 500 });
    await loop.pass(idleMs);
    const since = loop.clock.now();
    await loop.submit("m", { priority: "interactive", runAt: since + 2000 });
    await loop.submitMany(10, "other");
    await loop.pass(30_000);
    expect(loop.callsOf("m")).toMatchObject([{ upstream: "v" }]);
    expect(loop.callsOf("m")[0]!.at - since).toBeLessThanOrEqual(5000);
  },
);

test("a probe that dies in here leaves its breaker to be tried by the next one", async () => {
  let isWell = false;
  let dies = false;
  const loop = await Loop.begun({
    settings: { upstreams: [{ name: "u", maxConcurrency: 8 }] },
    answer: () => ({ ms: 100, outcome: response(isWell ? 200 : 500) }),
    world: (world) => {
      const vectors: typeof world.cache.vectors = (...args) => {
        if (!dies) return world.cache.vectors(...args);
        dies = false;
        throw new Error("the store could not be read");
      };
      return { ...world, cache: { ...world.cache, vectors } };
    },
  });
  for (let i = 0; i < 3; i++) {
    await loop.submit("m", { terms: { maxAttempts: 1 } });
    await loop.pass(700);
  }
  const breaker = () => loop.queue.upstreams()[0]!.lanes[0]!.breaker.state;
  expect(breaker()).toBe("open");
  isWell = true;
  const head = { method: "POST", path: "/embeddings", headers: [], vectors: { hashes: ["a"], ttlMs: 1 } };
  const content = { head: head as never, body: new TextEncoder().encode('{"input":"a"}') };
  const probe = await loop.submit("m", { endpoint: "embeddings", content });
  const next = await loop.submit("m");
  dies = true;
  await loop.pass(2 * minuteMs);
  expect(dies).toBe(false);
  expect([(await loop.get(probe.id)).state, (await loop.get(next.id)).state]).toEqual([
    "failed",
    "completed",
  ]);
  expect(loop.told.filter(({ event }) => event === "breaker_closed")).toHaveLength(1);
});

test("who waits in another lane is told when the breaker of the whole upstream opens", async () => {
  const loop = await Loop.begun({
    settings: { upstreams: [{ name: "u", maxConcurrency: 2 }] },
    answer: () => ({ ms: 600, outcome: response(500) }),
  });
  for (let i = 0; i < 3; i++)
    for (const model of ["a", "b"]) await loop.submit(model, { terms: { maxAttempts: 1 } });
  const waiting = await loop.submit("c", { priority: "batch" });
  const opened = () => loop.told.filter((told) => told.event === "breaker_opened" && told.breaker === "u");
  const toldWith: (string | undefined)[] = [];
  loop.queue.substitutes.onTrouble(waiting.id, () => {
    toldWith.push(loop.queue.explain(waiting)?.why);
  });
  await loop.pass(4000);
  expect(opened()).toHaveLength(1);
  expect(toldWith).toContain("breaker");
});

describe("callers who wait where only capacity is wanting", () => {
  const oneAtATime = { settings: { upstreams: [{ name: "u", maxConcurrency: 1 }] } };
  const queuedOf = ({ told }: Loop) =>
    told.filter((one) => one.event === "accepted" && one.state === "queued").length;

  const interactive = { priority: "interactive" as const };
  const content = (name: string) => ({
    head: { method: "POST", path: "/chat/completions", headers: [] },
    body: new TextEncoder().encode(`{"name":"${name}"}`),
  });
  const namesOf = ({ calls }: Loop) =>
    calls.map(({ body }) => JSON.parse(new TextDecoder().decode(body)).name);

  /** So many callers, each with its next call as soon as it has an answer, for so long. */
  function crowd(loop: Loop, count: number, ms: number): Promise<unknown> {
    const until = loop.clock.now() + ms;
    const caller = async () => {
      while (loop.clock.now() < until) await loop.call("m", interactive);
    };
    return Promise.all(Array.from({ length: count }, caller));
  }

  test("need not go through the queue while what they may have at once grows", async () => {
    const loop = await Loop.begun({ settings: { upstreams: [{ name: "u", maxConcurrency: 64 }] } });
    const crowded = crowd(loop, 200, 10_000);
    await loop.pass(minuteMs);
    await crowded;
    expect(loop.calls.length).toBeGreaterThan(5000);
    expect(queuedOf(loop)).toBe(0);
  });

  test("are not all sent through the queue by those few who are in it", async () => {
    const loop = await Loop.begun({ settings: { upstreams: [{ name: "u", maxConcurrency: 8 }] } });
    const crowded = crowd(loop, 40, 10_000);
    for (let i = 0; i < 9; i++) {
      await loop.pass(1000);
      await loop.submit("m", { idempotencyKey: `key ${i}` });
    }
    await loop.pass(minuteMs);
    await crowded;
    expect(loop.calls.length).toBeGreaterThan(700);
    expect(queuedOf(loop)).toBe(9);
  });

  describe("who only want their requests accepted", () => {
    /** So many, each with its next request as soon as the one before is accepted, for so long. */
    function producers(loop: Loop, count: number, ms: number, over: object = {}): Promise<unknown> {
      const until = loop.clock.now() + ms;
      const producer = async () => {
        while (loop.clock.now() < until) {
          await loop.submit("m", over);
          await new Promise<void>((resolve) => loop.clock.timer(1, resolve));
        }
      };
      return Promise.all(Array.from({ length: count }, producer));
    }

    /** A lane that answers 64 calls every 10 ms, until `answerMs` is set. */
    async function quickLane() {
      const upstream = { answerMs: 10 };
      const loop = await Loop.begun({
        settings: { upstreams: [{ name: "u", maxConcurrency: 64, minConcurrency: 64 }] },
        answer: () => ({ ms: upstream.answerMs, outcome: response(200) }),
      });
      return { loop, upstream };
    }

    test("need not go through the queue as long as slots come quickly", async () => {
      const { loop } = await quickLane();
      const produced = producers(loop, 20, 2000);
      await loop.pass(500);
      // At first nobody knows how quickly they come.
      const atFirst = queuedOf(loop);
      await loop.pass(2000);
      await produced;
      expect(loop.calls.length).toBeGreaterThan(5000);
      expect(queuedOf(loop)).toBe(atFirst);
    });

    test("need not after a stall either, when those who went through it have had their turn", async () => {
      const { loop, upstream } = await quickLane();
      const produced = producers(loop, 8, 4000);
      await loop.pass(1000);
      upstream.answerMs = 40;
      await loop.pass(20);
      upstream.answerMs = 10;
      await loop.pass(1000);
      const before = queuedOf(loop);
      await loop.pass(2500);
      await produced;
      expect(queuedOf(loop)).toBe(before);
    });

    test("wait for a tenth of a second at most", async () => {
      const { loop, upstream } = await quickLane();
      void producers(loop, 20, 1000);
      await loop.pass(995);
      // From now on every slot is taken by a call that is never answered.
      upstream.answerMs = minuteMs;
      await loop.pass(12);
      for (let i = loop.lanes.inFlight; i < 64; i++) await loop.submit("m");
      let isAccepted = false;
      void loop.submit("m").then(() => {
        isAccepted = true;
      });
      await loop.pass(99);
      expect(isAccepted).toBe(false);
      await loop.pass(1);
      expect(isAccepted).toBe(true);
    });

    test.each([
      ["nothing is answered", 60_000, 1],
      ["answers take long", 500, 2],
      ["more of them wait than have their turn soon", 10, 200],
    ])("go to the queue where %s", async (_, ms, callers) => {
      const loop = await Loop.begun({ ...oneAtATime, answer: () => ({ ms, outcome: response(200) }) });
      for (let i = 0; i < callers; i++) void loop.call("m", interactive);
      await loop.pass(700);
      const before = queuedOf(loop);
      await loop.submit("m", interactive);
      expect(queuedOf(loop)).toBe(before + 1);
    });

    test("are not held up by an upstream that takes forty calls a second, one request after the other", async () => {
      const loop = await Loop.begun({
        settings: { upstreams: [{ name: "u", maxConcurrency: 4 }] },
        answer: () => ({ ms: 100, outcome: response(200) }),
      });
      const until = loop.clock.now() + 10_000;
      const caller = async () => {
        while (loop.clock.now() < until) await loop.call("m");
      };
      for (let i = 0; i < 4; i++) {
        void caller();
        await loop.pass(25);
      }
      await loop.pass(8000);
      const before = queuedOf(loop);
      for (let i = 0; i < 100; i++) await loop.submit("m");
      expect(queuedOf(loop)).toBe(before + 100);
    });

    test("have them accepted where they go meanwhile", async () => {
      const { loop } = await quickLane();
      const produced = producers(loop, 80, 300, { isGone: () => true });
      await loop.pass(500);
      await produced;
      const accepted = loop.told.filter(({ event }) => event === "accepted").length;
      expect(accepted).toBeGreaterThan(1000);
    });
  });

  test("overtake nobody who is in the queue, nor are overtaken from there", async () => {
    const loop = await Loop.begun(oneAtATime);
    void loop.call("m", { content: content("first") });
    await loop.pass(10);
    const names = ["held", "queued", "held too", "queued too"];
    for (const name of names) {
      const over = { content: content(name) };
      if (name.startsWith("held")) void loop.call("m", over);
      else await loop.submit("m", over);
      await loop.pass(10);
    }
    await loop.pass(1000);
    expect(namesOf(loop)).toEqual(["first", ...names]);
  });

  test.each([
    ["of less priority", { priority: "batch" as const }],
    ["of another project", { project: "zeta", ...interactive }],
  ])("have their share at once where a hundred %s wait", async (_, others) => {
    const loop = await Loop.begun(oneAtATime);
    await loop.submitMany(100, "m", { ...others, content: content("other") });
    await loop.pass(10);
    void loop.call("m", { ...interactive, content: content("held") });
    await loop.pass(250);
    expect(namesOf(loop)).toHaveLength(3);
    expect(namesOf(loop)).toContain("held");
  });

  test("do not keep back those in the queue who have a share of their own", async () => {
    const loop = await Loop.begun(oneAtATime);
    const callers = Array.from({ length: 8 }, () => loop.call("m", { content: content("held") }));
    await loop.pass(10);
    await loop.submit("m", { project: "zeta", content: content("queued") });
    await loop.submit("m", { ...interactive, content: content("urgent") });
    await loop.pass(350);
    expect(namesOf(loop).sort()).toEqual(["held", "held", "queued", "urgent"]);
    await loop.pass(1000);
    await Promise.all(callers);
  });

  test("are not in the way of a look at those in the queue who may have another target", async () => {
    const looks: Promise<unknown>[] = [];
    const loop = await Loop.begun({
      settings: {
        table: toV,
        upstreams: [
          { name: "u", maxConcurrency: 1 },
          { name: "v", maxConcurrency: 1 },
        ],
      },
      world(world) {
        const heads: Store["heads"] = (...args) => {
          const look = world.store.heads(...args);
          looks.push(look);
          return look;
        };
        return { ...world, store: { ...world.store, heads } };
      },
    });
    const crowded = crowd(loop, 8, 10_000);
    for (let i = 0; i < 40; i++) {
      await loop.pass(250);
      await loop.submit("m", interactive);
    }
    await loop.pass(minuteMs);
    await crowded;
    expect(looks.length).toBeGreaterThan(5);
    await Promise.all(looks);
  });

  test("wait no longer than a second for that", async () => {
    const loop = await Loop.begun(oneAtATime);
    const callers = Array.from({ length: 15 }, () => loop.call("m"));
    await loop.pass(999);
    expect(queuedOf(loop)).toBe(0);
    await loop.pass(2);
    expect(queuedOf(loop)).toBe(5);
    // Those who come now see that it takes longer.
    callers.push(loop.call("m"));
    await loop.pass(0);
    expect(queuedOf(loop)).toBe(6);
    await loop.pass(1000);
    await Promise.all(callers);
  });
});
