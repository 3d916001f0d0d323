/** The circuit breaker through the front door: what opens it, what does not, who probes, and what is told of it. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import type { RequestObject, UpstreamObject } from "../../src/contract.ts";
import { HandClock } from "../support/clock.ts";
import { answer, fail, gate, hang, reset, type Step, startFake } from "../support/fake-upstream.ts";
import { Faucet, roleChunk, stopChunk, textChunk } from "../support/live-streams.ts";
import { hello, type Outlast, type OutlastOptions, startOutlast } from "../support/outlast.ts";

const path = "/v1/chat/completions";
const cleanups: (() => unknown)[] = [];
/** 5 failures, or half of at least 5 calls in a minute; then a minute without calls. */
const asTested = `[breaker]
consecutive_failures = 5
failure_rate = 0.5
min_calls = 5
window = "60s"
cooldown = "60s"
cooldown_max = "200s"
`;
const firstCooldownMs = 60_000;

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

interface Scene {
  clock: HandClock;
  outlast: Outlast;
}
/** Something that answers HTTP: a server in this process or in another. */
type Door = Pick<Outlast, "fetch">;

/** Without jitter. */
async function start(options: OutlastOptions = {}): Promise<Scene> {
  const clock = new HandClock();
  const outlast = await startOutlast({ clock, luck: 0, toml: asTested, ...options });
  cleanups.push(() => outlast.close());
  return { clock, outlast };
}

const says = (content: string) => ({ messages: [{ role: "user", content }] });

function post(door: Door, body: object, init: RequestInit = {}): Promise<Response> {
  return door.fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...hello, ...body }),
    ...init,
  });
}

async function submit(door: Door, body: object = {}): Promise<string> {
  const response = await post(door, { ...body, wait: false });
  expect(response.status).toBe(202);
  return ((await response.json()) as { id: string }).id;
}

async function recordOf(door: Door, id: string): Promise<RequestObject> {
  return (await (await door.fetch(`/v1/requests/${id}`)).json()) as RequestObject;
}

async function upstreamOf(door: Door, name = "fake"): Promise<UpstreamObject> {
  const { data } = (await (await door.fetch("/v1/upstreams")).json()) as { data: UpstreamObject[] };
  return data.find(({ id }) => id === name)!;
}

async function breakerOf(door: Door, model = hello.model, name = "fake") {
  const lane = (await upstreamOf(door, name)).lanes.find((one) => one.model === model);
  return lane?.breaker ?? { state: "closed", until: null, opens: 0 };
}

let asked = 0;
/** So many different requests, one a second, each called once. Returns the statuses that their callers got. */
async function callOneASecond(
  { outlast, clock }: Scene,
  times: number,
  body: object = {},
): Promise<number[]> {
  const statuses: number[] = [];
  for (let n = 0; n < times; n++) {
    clock.advance(1000);
    const response = await post(outlast, {
      ...says(`call ${asked++}`),
      outlast: { max_attempts: 1 },
      ...body,
    });
    statuses.push(response.status);
  }
  return statuses;
}

/** A server whose breaker has just opened. */
async function opened(options: OutlastOptions = {}): Promise<Scene & { openedAt: number }> {
  const scene = await start(options);
  scene.outlast.fake.otherwise(fail(500));
  await callOneASecond(scene, 5);
  expect(await breakerOf(scene.outlast)).toMatchObject({ state: "open" });
  return { ...scene, openedAt: scene.clock.now() };
}

const iso = (at: number) => new Date(at).toISOString();
const called = ({ outlast }: Scene) => outlast.fake.seen.length;
const endedAll = (outlast: Outlast, ids: string[]) =>
  Promise.all(ids.map((id) => outlast.ear.event("ended", (told) => told.id === id)));

/** Lets what has been set off come to rest: each of these goes through the server and its reader. */
async function settle(outlast: Outlast): Promise<void> {
  for (let i = 0; i < 4; i++) await (await outlast.fetch("/v1/requests?limit=1")).text();
}

describe("a breaker opens", () => {
  test("with the fifth failure in a row, each of another request, and says until when", async () => {
    const scene = await start();
    const { outlast, clock } = scene;
    outlast.fake.otherwise(fail(500));
    expect(await callOneASecond(scene, 4)).toEqual([500, 500, 500, 500]);
    expect(await breakerOf(outlast)).toEqual({ state: "closed", until: null, opens: 0 });
    await callOneASecond(scene, 1);
    const until = iso(clock.now() + firstCooldownMs);
    expect(await breakerOf(outlast)).toEqual({ state: "open", until, opens: 1 });
    expect((await upstreamOf(outlast)).lanes[0]).toMatchObject({ waiting_for: "breaker", until });
    expect(outlast.ear.all("breaker_opened")).toMatchObject([
      { breaker: "fake/gpt-test", why: "failures", opens: 1 },
    ]);
  });

  test("when half of at least five calls in a minute failed, though never two in a row", async () => {
    const scene = await start();
    scene.outlast.fake.script(fail(500), answer(), fail(500), answer());
    await callOneASecond(scene, 4);
    expect(await breakerOf(scene.outlast)).toMatchObject({ state: "closed" });
    scene.outlast.fake.script(fail(500));
    await callOneASecond(scene, 1);
    expect(await breakerOf(scene.outlast)).toMatchObject({ state: "open" });
  });

  test("not by less than half of the calls, and not by calls of more than a minute ago", async () => {
    const scene = await start();
    const { fake } = scene.outlast;
    fake.script(fail(500), answer(), answer(), fail(500), answer(), answer(), fail(500));
    await callOneASecond(scene, 7);
    expect(await breakerOf(scene.outlast)).toMatchObject({ state: "closed" });
    scene.clock.advance(66_000);
    fake.script(fail(500), answer(), fail(500), fail(500));
    await callOneASecond(scene, 4);
    expect(await breakerOf(scene.outlast)).toMatchObject({ state: "closed" });
  });

  test.each<[string, Step]>([
    ["resets", reset()],
    ["bodies that are no JSON", answer({ body: "<html>" })],
    ["errors with status 200", answer({ body: { error: { message: "no" } } })],
    ["errors of a proxy", answer({ status: 504, body: "" })],
  ])("by %s", async (_, fault) => {
    const scene = await start();
    scene.outlast.fake.otherwise(fault);
    await callOneASecond(scene, 5);
    expect(await breakerOf(scene.outlast)).toMatchObject({ state: "open" });
  });

  test("not by one request alone, however often it fails", async () => {
    const { outlast, clock } = await start();
    outlast.fake.otherwise(fail(500));
    const id = await submit(outlast, { outlast: { max_attempts: 12, deadline: "30d" } });
    for (let attempt = 1; attempt < 12; attempt++) {
      const { retryAt } = await outlast.ear.event("attempt_ended", (told) => told.attempt === attempt);
      clock.advance(Math.max(0, retryAt! - clock.now()));
    }
    await endedAll(outlast, [id]);
    expect(await breakerOf(outlast)).toMatchObject({ state: "closed" });
  });

  test("never where it is switched off", async () => {
    const scene = await start({ toml: "[breaker]\nenabled = false\n" });
    scene.outlast.fake.otherwise(fail(500));
    await callOneASecond(scene, 20);
    expect(called(scene)).toBe(20);
  });
});

describe("what callers do never opens a breaker", () => {
  test.each([400, 404, 413, 422])("status %i", async (status) => {
    const scene = await start();
    scene.outlast.fake.otherwise(fail(status));
    await callOneASecond(scene, 12);
    expect(called(scene)).toBe(12);
    expect(await breakerOf(scene.outlast)).toMatchObject({ state: "closed" });
  });

  test.each([
    ["plain", {}],
    ["streaming", { stream: true }],
  ])("hanging up (%s)", async (_, body) => {
    const { outlast, clock } = await start();
    outlast.fake.otherwise(hang());
    for (let n = 1; n <= 10; n++) {
      clock.advance(1000);
      const gone = new AbortController();
      const options = { ...says(`gone ${n}`), ...body, outlast: { on_disconnect: "cancel" } };
      const call = post(outlast, options, { signal: gone.signal });
      await outlast.fake.calls(n);
      gone.abort();
      await expect(call).rejects.toThrow();
      await outlast.fake.idle();
    }
    expect(await breakerOf(outlast)).toMatchObject({ state: "closed" });
  });

  test("deadlines", async () => {
    const { outlast, clock } = await start();
    outlast.fake.otherwise(hang());
    for (let n = 1; n <= 10; n++) {
      const call = post(outlast, { ...says(`late ${n}`), outlast: { deadline: "5s" } });
      await outlast.fake.calls(n);
      clock.advance(5000);
      expect((await call).status).toBe(504);
    }
    expect(await breakerOf(outlast)).toMatchObject({ state: "closed" });
  });

  test("deadlines that leave the first of two targets less time than it needs", async () => {
    const upstreams = ["fake", "other"];
    const { outlast, clock } = await start({ upstreams, tables: '[routes]\n"gpt-test" = ["fake", "other"]' });
    outlast.fakes.fake!.otherwise(hang());
    for (let n = 1; n <= 10; n++) {
      const call = post(outlast, { ...says(`late ${n}`), outlast: { deadline: "130s" } });
      await outlast.fake.calls(n);
      clock.advance(65_000);
      expect((await call).headers.get("outlast-upstream")).toBe("other");
    }
    expect(await breakerOf(outlast)).toMatchObject({ state: "closed" });
  });
});

describe("while it is open", () => {
  test("nothing is called; who waits is told for what, and until when", async () => {
    const scene = await opened();
    const { outlast, clock, openedAt } = scene;
    const id = await submit(outlast, says("waits"));
    const held = post(outlast, says("held"));
    await outlast.ear.event("accepted", () => outlast.ear.all("accepted").length === 7);
    clock.advance(firstCooldownMs - 1);
    await settle(outlast);
    expect(called(scene)).toBe(5);
    expect(await recordOf(outlast, id)).toMatchObject({
      status: "queued",
      waiting_for: "breaker",
      next_attempt_at: iso(openedAt + firstCooldownMs),
    });
    outlast.fake.otherwise(answer());
    clock.advance(1);
    expect((await held).status).toBe(200);
    await endedAll(outlast, [id]);
  });

  test("then one request is the probe; the others wait for it, and go when it got through", async () => {
    const scene = await opened();
    const { outlast, clock, openedAt } = scene;
    const ids = await Promise.all(Array.from({ length: 10 }, (_, n) => submit(outlast, says(`waits ${n}`))));
    const probe = gate();
    outlast.fake.script(probe.step);
    outlast.fake.otherwise(answer());
    clock.advance(openedAt + firstCooldownMs - clock.now());
    await probe.arrived;
    // However long it takes: nobody else is sent to what may be broken.
    clock.advance(120_000);
    await settle(outlast);
    expect(called(scene)).toBe(6);
    expect(await breakerOf(outlast)).toMatchObject({ state: "half_open", opens: 1 });
    const records = await Promise.all(ids.map((id) => recordOf(outlast, id)));
    expect(records.filter(({ status }) => status === "processing")).toHaveLength(1);
    for (const { status, waiting_for, next_attempt_at } of records) {
      if (status === "processing") continue;
      expect([status, waiting_for]).toEqual(["queued", "breaker"]);
      expect(Date.parse(next_attempt_at!)).toBeGreaterThan(clock.now());
    }
    probe.release();
    const ended = await endedAll(outlast, ids);
    expect(ended.map(({ state }) => state)).toEqual(Array(10).fill("completed"));
    expect(called(scene)).toBe(15);
    expect(await breakerOf(outlast)).toEqual({ state: "closed", until: null, opens: 0 });
    expect(outlast.ear.all("breaker_closed")).toHaveLength(1);
  });

  test("each probe that fails doubles the time to the next one, up to the maximum", async () => {
    const scene = await opened();
    const { outlast, clock } = scene;
    const ids = await Promise.all(["a", "b", "c"].map((one) => submit(outlast, says(one))));
    const cooldowns = [60_000, 120_000, 200_000, 200_000, 200_000];
    for (const [n, cooldownMs] of cooldowns.entries()) {
      expect(await breakerOf(outlast)).toMatchObject({ until: iso(clock.now() + cooldownMs), opens: n + 1 });
      clock.advance(cooldownMs - 1);
      await settle(outlast);
      expect(called(scene)).toBe(5 + n);
      clock.advance(1);
      await outlast.ear.event("breaker_opened", ({ opens }) => opens === n + 2);
    }
    outlast.fake.otherwise(answer());
    clock.advance(200_000);
    await outlast.ear.event("breaker_closed");
    // Those whose probes failed wait for their own next attempt.
    clock.advance(3_600_000);
    await endedAll(outlast, ids);
    for (const id of ids) expect(await recordOf(outlast, id)).toMatchObject({ status: "completed" });
  });

  test.each<[string, Step, string]>([
    ["is refused as wrong closes it: the upstream works", fail(400), "closed"],
    ["finds no such model closes it", fail(404), "closed"],
    ["is throttled leaves it open, and is no failure", fail(429, {}, { "retry-after": "1" }), "open"],
  ])("a probe that %s", async (_, step, state) => {
    const scene = await opened();
    const { outlast, clock } = scene;
    const id = await submit(outlast, says("probe"));
    outlast.fake.script(step);
    outlast.fake.otherwise(answer());
    clock.advance(firstCooldownMs);
    await outlast.ear.event("attempt_ended", (told) => told.id === id);
    expect(await breakerOf(outlast)).toMatchObject({ state });
    clock.advance(1100);
    await endedAll(outlast, [id]);
    expect((await post(outlast, says("after"))).status).toBe(200);
    expect(await breakerOf(outlast)).toMatchObject({ state: "closed" });
  });

  test("a probe whose caller hangs up says nothing: the next one may try at once", async () => {
    const { outlast, clock } = await opened();
    clock.advance(firstCooldownMs);
    outlast.fake.script(hang());
    outlast.fake.otherwise(answer());
    const gone = new AbortController();
    const probe = post(
      outlast,
      { ...says("probe"), outlast: { on_disconnect: "cancel" } },
      { signal: gone.signal },
    );
    await outlast.fake.calls(6);
    const id = await submit(outlast, says("next"));
    gone.abort();
    await expect(probe).rejects.toThrow();
    await endedAll(outlast, [id]);
    expect(await breakerOf(outlast)).toMatchObject({ state: "closed" });
  });

  test("a stream's first content closes it, though the stream goes on", async () => {
    const { outlast, clock } = await opened();
    clock.advance(firstCooldownMs);
    const faucet = new Faucet();
    outlast.fake.script(faucet.step);
    outlast.fake.otherwise(answer());
    const probe = post(outlast, { ...says("stream"), stream: true });
    await faucet.called;
    const id = await submit(outlast, says("waits"));
    faucet.say(roleChunk());
    await settle(outlast);
    expect(await breakerOf(outlast)).toMatchObject({ state: "half_open" });
    faucet.say(textChunk("content"));
    await outlast.ear.event("breaker_closed");
    expect(await breakerOf(outlast)).toMatchObject({ state: "closed" });
    await endedAll(outlast, [id]);
    expect(outlast.fake.inFlight).toBe(1);
    faucet.say(stopChunk());
    faucet.end();
    expect(await (await probe).text()).toContain("content");
  });

  test("others go elsewhere where there is somewhere to go, also while the probe is under way", async () => {
    const upstreams = ["fake", "other"];
    const { outlast, clock } = await opened({
      upstreams,
      tables: '[routes]\n"gpt-test" = ["fake", "other"]',
    });
    const during = await post(outlast, says("while open"));
    expect(during.headers.get("outlast-upstream")).toBe("other");
    const probe = gate();
    outlast.fake.script(probe.step);
    clock.advance(firstCooldownMs);
    const first = post(outlast, says("probe"));
    await probe.arrived;
    const meanwhile = await post(outlast, says("while half open"));
    expect(meanwhile.headers.get("outlast-upstream")).toBe("other");
    const background = await submit(outlast, says("in the background"));
    await endedAll(outlast, [background]);
    expect(await recordOf(outlast, background)).toMatchObject({ upstream: "other" });
    probe.release(fail(500));
    expect((await first).headers.get("outlast-upstream")).toBe("other");
    expect(await breakerOf(outlast)).toMatchObject({ state: "open", opens: 2 });
  });
});

describe("of an upstream with several models", () => {
  test("only that of the broken one opens, and the others are called", async () => {
    const scene = await start();
    const { outlast } = scene;
    const broken: Step = (call, res) => {
      const { model } = JSON.parse(call.body.toString()) as { model: string };
      return (model === "broken" ? fail(500) : answer())(call, res);
    };
    outlast.fake.otherwise(broken);
    for (let n = 0; n < 6; n++) {
      await callOneASecond(scene, 1, { model: "broken" });
      expect(await callOneASecond(scene, 1, { model: "well" })).toEqual([200]);
      if ((await breakerOf(outlast, "broken")).state === "open") break;
    }
    expect(await breakerOf(outlast, "broken")).toMatchObject({ state: "open" });
    expect(await breakerOf(outlast, "well")).toMatchObject({ state: "closed" });
    expect((await upstreamOf(outlast)).breaker).toMatchObject({ state: "closed" });
    expect(await callOneASecond(scene, 3, { model: "well" })).toEqual([200, 200, 200]);
  });

  test("that of the whole upstream opens when two of them fail, and holds a third one back", async () => {
    const scene = await start();
    const { outlast, clock } = scene;
    outlast.fake.otherwise(fail(500));
    await callOneASecond(scene, 3, { model: "one" });
    expect((await upstreamOf(outlast)).breaker).toMatchObject({ state: "closed" });
    await callOneASecond(scene, 2, { model: "two" });
    const until = iso(clock.now() + firstCooldownMs);
    expect((await upstreamOf(outlast)).breaker).toEqual({ state: "open", until, opens: 1 });
    outlast.fake.otherwise(answer());
    const id = await submit(outlast, { model: "three" });
    expect(await recordOf(outlast, id)).toMatchObject({ waiting_for: "breaker", next_attempt_at: until });
    expect(called(scene)).toBe(5);
    clock.advance(firstCooldownMs);
    await endedAll(outlast, [id]);
    expect((await upstreamOf(outlast)).breaker).toMatchObject({ state: "closed" });
  });
});

describe("an open breaker survives", () => {
  test("a stop: the next start calls nothing before its time, and then one", async () => {
    const scene = await opened();
    const { outlast, clock, openedAt } = scene;
    const ids = await Promise.all(["a", "b", "c"].map((one) => submit(outlast, says(one))));
    await outlast.stop();
    clock.advance(20_000);
    const { dir, fakes } = outlast;
    const after = await startOutlast({ clock, luck: 0, toml: asTested, dir, upstreams: fakes });
    cleanups.push(() => after.stop());
    const until = iso(openedAt + firstCooldownMs);
    expect(await breakerOf(after)).toEqual({ state: "open", until, opens: 1 });
    expect(await recordOf(after, ids[0]!)).toMatchObject({ waiting_for: "breaker", next_attempt_at: until });
    clock.advance(openedAt + firstCooldownMs - 1 - clock.now());
    await settle(after);
    expect(called(scene)).toBe(5);
    const probe = gate();
    outlast.fake.script(probe.step);
    outlast.fake.otherwise(answer());
    clock.advance(1);
    await probe.arrived;
    await settle(after);
    expect(called(scene)).toBe(6);
    probe.release();
    await endedAll(after, ids);
  });

  test("a start behind its time: still only one is called first, and its failure doubles the time", async () => {
    const scene = await opened();
    const { outlast, clock } = scene;
    const ids = await Promise.all(["a", "b", "c"].map((one) => submit(outlast, says(one))));
    await outlast.stop();
    clock.advance(600_000);
    const { dir, fakes } = outlast;
    const after = await startOutlast({ clock, luck: 0, toml: asTested, dir, upstreams: fakes });
    cleanups.push(() => after.stop());
    await after.ear.event("breaker_opened");
    await settle(after);
    expect(called(scene)).toBe(6);
    expect(await breakerOf(after)).toEqual({ state: "open", until: iso(clock.now() + 120_000), opens: 2 });
    expect(ids).toHaveLength(3);
  });

  test("SIGKILL", async () => {
    const fake = await startFake();
    cleanups.push(() => fake.close());
    fake.otherwise(fail(500));
    const dir = mkdtempSync(join(tmpdir(), "outlast-"));
    cleanups.push(() => rmSync(dir, { recursive: true, force: true }));
    writeFileSync(join(dir, "outlast.toml"), `${asTested}[upstreams.fake]\nbase_url = "${fake.baseUrl}"\n`);
    const before = await serve(dir);
    for (let n = 0; n < 5; n++) await post(before, { ...says(`call ${n}`), outlast: { max_attempts: 1 } });
    const breaker = await breakerOf(before);
    expect(breaker).toMatchObject({ state: "open", opens: 1 });
    const id = await submit(before);
    before.child.kill("SIGKILL");
    await before.exited;
    const after = await serve(dir);
    expect(await breakerOf(after)).toEqual(breaker);
    expect(await recordOf(after, id)).toMatchObject({
      waiting_for: "breaker",
      next_attempt_at: breaker.until,
    });
    expect(fake.seen).toHaveLength(5);
  });
});

interface Spawned extends Door {
  child: ChildProcess;
  exited: Promise<unknown>;
}

/** The server as a process of its own, on the real clock. */
async function serve(dir: string): Promise<Spawned> {
  const main = join(import.meta.dirname, "../../dist/main.js");
  const child = spawn(process.execPath, [main, "serve"], {
    cwd: dir,
    env: {
      PATH: process.env.PATH,
      OUTLAST_PORT: "0",
      OUTLAST_DATA_DIR: dir,
      OUTLAST_STORE_MIN_FREE_DISK: "0",
    },
  });
  const exited = once(child, "close");
  cleanups.push(async () => {
    child.kill("SIGKILL");
    await exited;
  });
  let output = "";
  child.stdout.on("data", (bytes) => {
    output += bytes;
  });
  const listening = /Outlast listens on (http:\S+)/;
  while (!listening.test(output)) {
    const next = await Promise.race([once(child.stdout, "data"), exited.then(() => undefined)]);
    if (!next) throw new Error("the server has ended");
  }
  const url = listening.exec(output)![1]!;
  return { child, exited, fetch: (where, init) => fetch(url + where, init) };
}
