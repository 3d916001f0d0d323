/** When, where and how often requests are tried, and whose turn it is, through the front door. */

import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { afterEach, describe, expect, test } from "vitest";
import type { AttemptObject, RequestObject } from "../../src/contract.ts";
import type { Part } from "../../src/core/ports.ts";
import { SqliteStore } from "../../src/store/sqlite/store.ts";
import { systemClock } from "../../src/system.ts";
import { WatchedClock } from "../api/wire.ts";
import { HandClock } from "../support/clock.ts";
import {
  answer,
  cut,
  type FakeUpstream,
  fail,
  gate,
  hang,
  type Seen,
  type Step,
} from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick, startOutlast } from "../support/outlast.ts";
import { record, terms } from "../support/records.ts";

const path = "/v1/chat/completions";
const running: Outlast[] = [];

async function start(options: OutlastOptions = {}): Promise<Outlast> {
  const outlast = await startOutlast({ luck: 0.5, ...options });
  running.push(outlast);
  return outlast;
}
const startQuick = (options: OutlastOptions = {}) => start({ ...options, env: { ...quick, ...options.env } });

afterEach(async () => {
  await Promise.all(running.splice(0).map((outlast) => outlast.close()));
});

async function submit(outlast: Outlast, options: object = {}, body: object = {}): Promise<string> {
  const response = await outlast.post(path, { ...hello, ...body, wait: false, outlast: options });
  expect(response.status).toBe(202);
  return ((await response.json()) as { id: string }).id;
}
async function attemptsOf(outlast: Outlast, id: string | null): Promise<AttemptObject[]> {
  const response = await outlast.fetch(`/v1/requests/${id}/attempts`);
  return ((await response.json()) as { data: AttemptObject[] }).data;
}
async function recordOf(outlast: Outlast, id: string, query = ""): Promise<RequestObject> {
  return (await (await outlast.fetch(`/v1/requests/${id}${query}`)).json()) as RequestObject;
}
const codeOf = async (response: Response) =>
  ((await response.json()) as { error: { code: string } }).error.code;
const requestId = (response: Response) => response.headers.get("outlast-request-id");
const ended = (outlast: Outlast, id: string) => outlast.ear.event("ended", (told) => told.id === id);
const attemptEnded = (outlast: Outlast, id: string, attempt: number) =>
  outlast.ear.event("attempt_ended", (told) => told.id === id && told.attempt === attempt);
const started = (outlast: Outlast) => outlast.ear.all("attempt_started").length;
const tagOf = ({ body }: Seen) =>
  (JSON.parse(body.toString()) as { messages: { content: string }[] }).messages[0]!.content;
const says = (content: string) => ({ messages: [{ role: "user", content }] });
const limit = (max: number) => ({ upstreamToml: `max_concurrency = ${max}` });

/** Lets what has been set off come to rest: each of these goes through the server and its reader. */
async function settle(outlast: Outlast): Promise<void> {
  for (let i = 0; i < 4; i++) await (await outlast.fetch("/v1/requests?limit=1")).text();
}

describe("a route", () => {
  const tables = '[routes]\n"gpt-test" = ["one/big-model", "two/meta/llama-3", "three"]\n';
  const upstreams = ["one", "two", "three"];

  test("is followed in its order, each target under its own name for the model", async () => {
    const outlast = await startQuick({ upstreams, tables });
    const { one, two, three } = outlast.fakes as Record<"one" | "two" | "three", FakeUpstream>;
    one.script(fail(500));
    two.script(cut({ after: 5 }));
    const response = await outlast.post(
      path,
      '{ "model" : "gpt-test", "n":9007199254740993,\n "messages":[] }',
    );
    expect(response.status).toBe(200);
    expect(response.headers.get("outlast-upstream")).toBe("three");
    expect(one.seen[0]!.body.toString()).toBe(
      '{ "model" : "big-model", "n":9007199254740993,\n "messages":[] }',
    );
    expect(two.seen[0]!.body.toString()).toBe(
      '{ "model" : "meta/llama-3", "n":9007199254740993,\n "messages":[] }',
    );
    expect(three.seen[0]!.body.toString()).toBe(
      '{ "model" : "gpt-test", "n":9007199254740993,\n "messages":[] }',
    );
    expect(await attemptsOf(outlast, requestId(response))).toMatchObject([
      { upstream: "one", model: "big-model", reason: "next_target" },
      { upstream: "two", model: "meta/llama-3", reason: "next_target" },
      { upstream: "three", model: "gpt-test", reason: "answered" },
    ]);
    expect(await recordOf(outlast, requestId(response)!)).toMatchObject({
      model: "gpt-test",
      upstream: "three",
    });
  });

  test("is followed round and round until the attempts are used up", async () => {
    const outlast = await startQuick({ upstreams, tables });
    for (const fake of Object.values(outlast.fakes)) fake.otherwise(fail(503));
    const response = await outlast.post(path, { ...hello, outlast: { max_attempts: 7 } });
    expect(response.status).toBe(503);
    const attempts = await attemptsOf(outlast, requestId(response));
    expect(attempts.map(({ upstream }) => upstream)).toEqual([
      "one",
      "two",
      "three",
      "one",
      "two",
      "three",
      "one",
    ]);
  });

  test("is left where the caller names an upstream", async () => {
    const outlast = await startQuick({ upstreams, tables });
    outlast.fakes.two!.script(fail(500), fail(500));
    const response = await outlast.post(path, { ...hello, outlast: { upstream: "two" } });
    const attempts = await attemptsOf(outlast, requestId(response));
    expect(attempts.map(({ upstream, model }) => `${upstream}/${model}`)).toEqual(
      Array(3).fill("two/meta/llama-3"),
    );
  });
});

describe("the attempts", () => {
  test("are 5 for a plain held call, 25 for one that can come back, and as many as the caller wants", async () => {
    const outlast = await startQuick();
    outlast.fake.otherwise(fail(500));
    const held = await outlast.post(path, hello);
    expect(held.headers.get("outlast-attempts")).toBe("5");
    const id = await submit(outlast);
    await ended(outlast, id);
    expect(await recordOf(outlast, id)).toMatchObject({
      status: "failed",
      attempts: 25,
      last_error_code: "server_error",
    });
    const few = await submit(outlast, { max_attempts: 2 });
    await ended(outlast, few);
    expect(await recordOf(outlast, few)).toMatchObject({ status: "failed", attempts: 2 });
    const one = await outlast.post(path, { ...hello, outlast: { max_attempts: 1 } });
    expect(one.headers.get("outlast-attempts")).toBe("1");
  });

  test("are as many as the configuration says", async () => {
    const env = { OUTLAST_DEFAULTS_MAX_ATTEMPTS: "3", OUTLAST_DEFAULTS_HELD_MAX_ATTEMPTS: "2" };
    const outlast = await startQuick({ env });
    outlast.fake.otherwise(fail(500));
    expect((await outlast.post(path, hello)).headers.get("outlast-attempts")).toBe("2");
    const id = await submit(outlast);
    await ended(outlast, id);
    expect(await recordOf(outlast, id)).toMatchObject({ attempts: 3 });
  });

  test("are spaced by full jitter, quickly while a caller is connected and slowly otherwise", async () => {
    const clock = new HandClock();
    const env = { OUTLAST_BREAKER_ENABLED: "false" };
    const outlast = await start({ clock, luck: 0.999_999_999_9, env });
    outlast.fake.otherwise(fail(500));
    const waits = async (id: string, count: number) => {
      const found: number[] = [];
      for (let attempt = 1; attempt <= count; attempt++) {
        const { retryAt } = await attemptEnded(outlast, id, attempt);
        found.push(retryAt! - clock.now());
        clock.advance(retryAt! - clock.now());
      }
      return found;
    };
    const call = outlast.post(path, { ...hello, outlast: { max_attempts: 8 } });
    const { id } = await outlast.ear.event("accepted");
    expect(await waits(id, 7)).toEqual([250, 500, 1000, 2000, 4000, 8000, 8000]);
    expect((await call).status).toBe(500);
    const alone = await submit(outlast, { max_attempts: 13 });
    expect(await waits(alone, 12)).toEqual(
      [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600].map((seconds) => seconds * 1000),
    );
    await ended(outlast, alone);
  });
});

describe("a caller who waits where only capacity is wanting", () => {
  /** A server with one slot, which is taken. */
  async function full(clock = new WatchedClock()) {
    const outlast = await start({ clock, ...limit(1) });
    const held = gate();
    outlast.fake.script(held.step);
    const first = outlast.post(path, hello);
    await held.arrived;
    return { clock, outlast, held, first, patience: () => clock.armed(1000, 2) };
  }
  const states = ({ ear }: Outlast) => ear.all("accepted").map(({ state }) => state);

  test("is accepted when its turn comes, and starts in the same step", async () => {
    const { outlast, held, first, patience } = await full();
    const second = outlast.post(path, { ...hello, ...says("second") });
    await patience();
    expect(states(outlast)).toEqual(["processing"]);
    held.release();
    expect([(await first).status, (await second).status]).toEqual([200, 200]);
    expect(states(outlast)).toEqual(["processing", "processing"]);
  });

  test("is queued after a second, and then waits as everybody does", async () => {
    const { clock, outlast, held, first, patience } = await full();
    const second = outlast.post(path, { ...hello, ...says("second") });
    await patience();
    clock.advance(1000);
    await outlast.ear.event("accepted", ({ state }) => state === "queued");
    held.release();
    expect([(await first).status, (await second).status]).toEqual([200, 200]);
  });

  test("and goes before its turn is never called", async () => {
    const { outlast, held, first, patience } = await full();
    const gone = new AbortController();
    const init = { method: "POST", headers: { "content-type": "application/json" }, signal: gone.signal };
    const second = outlast.fetch(path, { ...init, body: JSON.stringify({ ...hello, ...says("second") }) });
    await patience();
    gone.abort();
    await expect(second).rejects.toThrow();
    // Its connection was closed before this one was opened.
    expect((await outlast.fetch("/healthz")).status).toBe(200);
    held.release();
    expect((await first).status).toBe(200);
    expect((await outlast.post(path, { ...hello, ...says("third") })).status).toBe(200);
    expect(outlast.fake.seen.map(tagOf)).toEqual(["Hello", "third"]);
    expect(states(outlast)).toHaveLength(2);
  });

  test("is sent away when the server stops", async () => {
    const { outlast, held, first, patience } = await full();
    const second = outlast.post(path, { ...hello, ...says("second") });
    await patience();
    const stopped = outlast.stop();
    const reply = await second;
    expect(reply.status).toBe(503);
    expect(await codeOf(reply)).toBe("shutting_down");
    held.release();
    expect((await first).status).toBe(200);
    await stopped;
    expect(states(outlast)).toHaveLength(1);
  });
});

describe("the deadline", () => {
  test("ends a request that waits for its next attempt", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    outlast.fake.otherwise(hang());
    const busy = await start({ clock, ...limit(1) });
    const waiting = gate();
    busy.fake.script(waiting.step);
    const first = busy.post(path, hello);
    await waiting.arrived;
    const call = busy.post(path, { ...hello, outlast: { deadline: "10s" } }, { "idempotency-key": "k" });
    await busy.ear.event("accepted", ({ state }) => state === "queued");
    clock.advance(9_999);
    await settle(busy);
    expect(busy.ear.all("ended")).toEqual([]);
    clock.advance(1);
    const response = await call;
    expect(response.status).toBe(504);
    expect(await codeOf(response)).toBe("deadline_exceeded");
    expect(response.headers.get("x-should-retry")).toBe("false");
    waiting.release();
    expect((await first).status).toBe(200);
    expect(busy.fake.seen).toHaveLength(1);
  });

  test("ends a request in the middle of a call, and hangs up on the upstream", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    outlast.fake.script(hang());
    const call = outlast.post(path, { ...hello, outlast: { deadline: 30 } });
    await outlast.fake.calls(1);
    clock.advance(30_000);
    const response = await call;
    expect(response.status).toBe(504);
    expect(await codeOf(response)).toBe("deadline_exceeded");
    await outlast.fake.idle();
    expect(await attemptsOf(outlast, requestId(response))).toMatchObject([
      { verdict: "ambiguous", reason: "deadline", retry_at: null, error_code: "deadline_exceeded" },
    ]);
  });

  test("lets no attempt begin at or behind it", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, luck: 0.999_999 });
    outlast.fake.otherwise(fail(500, { message: "their trouble" }));
    const id = await submit(outlast, { deadline: "3s" });
    await attemptEnded(outlast, id, 1);
    clock.advance(1000);
    await attemptEnded(outlast, id, 2);
    // The next backoff would be 2 s, just to the deadline: it is drawn from what is left.
    clock.advance(1999);
    await ended(outlast, id);
    expect(await recordOf(outlast, id)).toMatchObject({
      status: "failed",
      attempts: 3,
      error: { message: "their trouble", status: 500 },
    });
    expect((await attemptsOf(outlast, id))[2]).toMatchObject({ reason: "deadline" });
  });

  test("counts from run_at", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    outlast.fake.script(hang());
    const runAt = clock.now() + 3_600_000;
    const id = await submit(outlast, { run_at: new Date(runAt).toISOString(), deadline: "10s" });
    expect(Date.parse((await recordOf(outlast, id)).deadline_at)).toBe(runAt + 10_000);
    clock.advance(3_600_000);
    await outlast.fake.calls(1);
    clock.advance(9_999);
    await settle(outlast);
    expect(await recordOf(outlast, id)).toMatchObject({ status: "processing" });
    clock.advance(1);
    await ended(outlast, id);
    expect(await recordOf(outlast, id)).toMatchObject({
      status: "failed",
      error: { code: "deadline_exceeded" },
    });
  });
});

describe("a request for later", () => {
  test.each<[string, (clock: HandClock) => object]>([
    ["a delay", () => ({ delay: "1h" })],
    ["a delay in seconds", () => ({ delay: 3600 })],
    ["an instant", (clock) => ({ run_at: new Date(clock.now() + 3_600_000).toISOString() })],
    ["an instant in Unix seconds", (clock) => ({ run_at: (clock.now() + 3_600_000) / 1000 })],
  ])("is not early and not late: %s", async (_, options) => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    const began = clock.now();
    const id = await submit(outlast, options(clock));
    expect(await recordOf(outlast, id)).toMatchObject({
      status: "queued",
      waiting_for: "scheduled",
      attempts: 0,
    });
    clock.advance(3_599_999);
    await settle(outlast);
    expect(started(outlast)).toBe(0);
    clock.advance(1);
    await ended(outlast, id);
    const [attempt] = await attemptsOf(outlast, id);
    expect(Date.parse(attempt!.started_at)).toBe(began + 3_600_000);
  });

  test("runs at once where its instant has passed", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    const id = await submit(outlast, { run_at: new Date(clock.now() - 1000).toISOString() });
    await ended(outlast, id);
  });

  test("holds nobody up that is due before it", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    const late = await submit(outlast, { delay: "2h" });
    const early = await submit(outlast, { delay: "1h" });
    expect((await outlast.post(path, hello)).status).toBe(200);
    clock.advance(3_600_000);
    await ended(outlast, early);
    expect(await recordOf(outlast, late)).toMatchObject({ status: "queued" });
  });

  test("months ahead is not due at once, though no timer runs so long", async () => {
    const outlast = await start();
    const id = await submit(outlast, { delay: "100d" });
    await settle(outlast);
    expect(await recordOf(outlast, id)).toMatchObject({ status: "queued" });
    expect(started(outlast)).toBe(0);
  });
});

describe("an upstream", () => {
  test("never has more calls in flight than it may have, and all come through", async () => {
    const outlast = await startQuick(limit(4));
    const slowly: Step = async (call, res) => {
      await pause(2);
      await (call.n % 9 === 0 ? fail(500) : answer())(call, res);
    };
    outlast.fake.otherwise(slowly);
    const calls = Array.from({ length: 50 }, (_, i) =>
      i % 2 === 0
        ? outlast.post(path, { ...hello, model: `m${i % 5}` }).then((response) => response.status)
        : submit(outlast, {}, { model: `m${i % 5}` })
            .then((id) => ended(outlast, id))
            .then(({ state }) => state),
    );
    const results = await Promise.all(calls);
    expect(results.filter((result) => result === 200)).toHaveLength(25);
    expect(results.filter((result) => result === "completed")).toHaveLength(25);
    expect(outlast.fake.maxInFlight).toBe(4);
  });

  test("that is closed holds nobody back who waits for another", async () => {
    const outlast = await start({
      clock: new HandClock(),
      upstreams: ["one", "two"],
      tables: '[routes]\n"m1" = ["one"]\n"m2" = ["two"]\n',
    });
    outlast.fakes.one!.script(fail(429, {}, { "retry-after": "600" }));
    const stuck = await submit(outlast, {}, { model: "m1" });
    await attemptEnded(outlast, stuck, 1);
    await Promise.all(Array.from({ length: 10 }, () => submit(outlast, {}, { model: "m1" })));
    const response = await outlast.post(path, { ...hello, model: "m2" });
    expect(response.status).toBe(200);
  });

  test("gives its models their turns, whatever becomes of their calls", async () => {
    const outlast = await start({ clock: new HandClock(), ...limit(1) });
    const first = gate();
    outlast.fake.script(first.step);
    outlast.fake.otherwise((call, res) => {
      const { model } = JSON.parse(call.body.toString()) as { model: string };
      return (model === "broken" ? fail(500) : answer())(call, res);
    });
    const ahead = await submit(outlast, {}, { model: "broken" });
    await first.arrived;
    for (let i = 0; i < 10; i++) await submit(outlast, {}, { model: "broken" });
    const healthy = await Promise.all([1, 2, 3].map(() => submit(outlast, {}, { model: "healthy" })));
    first.release(fail(500));
    await attemptEnded(outlast, ahead, 1);
    await Promise.all(healthy.map((id) => ended(outlast, id)));
    const models = outlast.fake.seen.map(
      ({ body }) => (JSON.parse(body.toString()) as { model: string }).model,
    );
    expect(models.lastIndexOf("healthy")).toBeLessThanOrEqual(7);
  });

  test("serves who waits for it after a call that came to nothing gave its place back", async () => {
    const outlast = await start(limit(1));
    const key = { "idempotency-key": "once" };
    expect((await outlast.post(path, hello, key)).status).toBe(200);
    // A repetition takes a place until the store knows its key; whoever comes in between has to wait for it.
    for (let i = 0; i < 30; i++) {
      const repetition = outlast.post(path, hello, key);
      const others = [1, 2].map((n) => outlast.post(path, { ...hello, model: `other-${n}` }));
      const statuses = (await Promise.all([repetition, ...others])).map(({ status }) => status);
      expect(statuses).toEqual([200, 200, 200]);
    }
  });
});

describe("whose turn it is", () => {
  test("the interactive overtake the others, and nobody starves", async () => {
    const outlast = await start({ clock: new HandClock(), ...limit(1) });
    const first = gate();
    outlast.fake.script(first.step);
    const ids = [await submit(outlast)];
    await first.arrived;
    for (const priority of ["batch", "default", "interactive"]) {
      for (let i = 0; i < 12; i++) ids.push(await submit(outlast, { priority }, says(priority)));
    }
    first.release();
    await Promise.all(ids.map((id) => ended(outlast, id)));
    const order = outlast.fake.seen.slice(1).map(tagOf);
    const served = (from: number, to: number, priority: string) =>
      order.slice(from, to).filter((one) => one === priority).length;
    expect(order[0]).toBe("interactive");
    expect([served(0, 12, "interactive"), served(0, 12, "default"), served(0, 12, "batch")]).toEqual([
      8, 3, 1,
    ]);
    expect(served(12, 36, "batch")).toBe(11);
  });

  test("a caller who waits on the line is interactive, one who does not is not", async () => {
    const outlast = await start({ clock: new HandClock(), ...limit(1) });
    const first = gate();
    outlast.fake.script(first.step);
    const ids = [await submit(outlast)];
    await first.arrived;
    for (let i = 0; i < 3; i++) ids.push(await submit(outlast, {}, says("async")));
    // With a key it is queued, and so heard of, before it has its turn.
    const call = outlast.post(path, { ...hello, ...says("held") }, { "idempotency-key": "k" });
    await outlast.ear.event("accepted", ({ id }) => !ids.includes(id));
    first.release();
    expect((await call).status).toBe(200);
    await Promise.all(ids.map((id) => ended(outlast, id)));
    expect(outlast.fake.seen.map(tagOf)[1]).toBe("held");
  });

  test("projects take turns, however much one of them has asked for", async () => {
    const toml = ["a", "b"]
      .map((name) => `[[api_keys]]\nkey = "key-of-${name}"\nproject = "${name}"\n`)
      .join("");
    const outlast = await start({ clock: new HandClock(), tables: toml, ...limit(1) });
    const as = (project: string, content: string) =>
      outlast.post(
        path,
        { ...hello, ...says(content), wait: false },
        { authorization: `Bearer key-of-${project}` },
      );
    const first = gate();
    outlast.fake.script(first.step);
    await as("a", "first");
    await first.arrived;
    for (let i = 0; i < 20; i++) expect((await as("a", "a")).status).toBe(202);
    for (let i = 0; i < 5; i++) expect((await as("b", "b")).status).toBe(202);
    first.release();
    await outlast.fake.calls(26);
    expect(
      outlast.fake.seen
        .slice(1, 11)
        .map(tagOf)
        .filter((one) => one === "b"),
    ).toHaveLength(5);
  });

  test("those of one project and priority are served in the order in which they came", async () => {
    const outlast = await start({ clock: new HandClock(), ...limit(1) });
    const first = gate();
    outlast.fake.script(first.step);
    await submit(outlast, {}, says("0"));
    await first.arrived;
    for (let i = 1; i <= 150; i++) await submit(outlast, {}, says(String(i)));
    first.release();
    await outlast.fake.calls(151);
    expect(outlast.fake.seen.map(tagOf)).toEqual(Array.from({ length: 151 }, (_, i) => String(i)));
  });
});

describe("a request that was cancelled", () => {
  test.each([
    ["of its model", "gpt-test"],
    ["of another model of the upstream", "gpt-other"],
  ])("while it waited never starts, and holds up nobody %s", async (_, model) => {
    const outlast = await start({ clock: new HandClock(), ...limit(1) });
    for (let round = 0; round < 20; round++) {
      const first = gate();
      outlast.fake.script(first.step);
      const ahead = await submit(outlast);
      await first.arrived;
      const cancelled = await submit(outlast, {}, says(`cancelled ${round}`));
      const others = await Promise.all([1, 2].map(() => submit(outlast, {}, { model })));
      const cancel = () => outlast.post(`/v1/requests/${cancelled}/cancel`, {});
      // At once, or while it is just being claimed.
      const cancelling = round % 2 === 0 ? cancel() : ended(outlast, ahead).then(cancel);
      first.release();
      const { status } = await cancelling;
      await Promise.all([ahead, ...others].map((id) => ended(outlast, id)));
      const { status: state } = await recordOf(outlast, cancelled);
      expect([`200 cancelled`, `400 completed`]).toContain(`${status} ${state}`);
    }
  });

  test("while it was called is let go by the upstream, and gives its place to the next", async () => {
    const outlast = await start({ clock: new HandClock(), ...limit(1) });
    outlast.fake.script(hang());
    const id = await submit(outlast);
    await outlast.fake.calls(1);
    const next = await submit(outlast);
    expect((await outlast.post(`/v1/requests/${id}/cancel`, {})).status).toBe(200);
    await ended(outlast, next);
    expect(await recordOf(outlast, id)).toMatchObject({ status: "cancelled" });
    expect(await recordOf(outlast, next)).toMatchObject({ status: "completed" });
    expect(await attemptsOf(outlast, id)).toMatchObject([{ verdict: "ambiguous", reason: "cancelled" }]);
  });
});

describe("twenty thousand requests in the store", () => {
  /** As if they had been accepted by an earlier start. */
  async function fill(
    dir: string,
    clock: HandClock,
    count: number,
    dueInMs: (i: number) => number,
  ): Promise<void> {
    const store = await SqliteStore.open({
      path: join(dir, "outlast.db"),
      node: "local",
      minFreeDiskBytes: 0,
      search: false,
      clock: systemClock,
      observer: { tell: () => {} },
      onFailed: (error) => {
        throw error;
      },
    });
    const bytes = (value: object): Uint8Array => Buffer.from(JSON.stringify(value));
    const head = {
      method: "POST",
      path: "/chat/completions",
      headers: [["content-type", "application/json"]],
    };
    const accept = (i: number) => {
      const dueAt = clock.now() + dueInMs(i);
      const parts: Part[] = [
        { kind: "head", seq: 0, bytes: bytes(head) },
        { kind: "body", seq: 0, bytes: bytes({ ...hello, ...says(String(i)) }) },
      ];
      const row = record({
        id: `req_${String(i).padStart(26, "0")}`,
        project: "default",
        state: "queued",
        model: hello.model,
        lane: `fake/${hello.model}`,
        attempt: 0,
        dueAt,
        deadlineAt: dueAt + 86_400_000,
        terms: terms({ held: false, maxAttempts: 25 }),
      });
      return store.commit({ kind: "accept", record: row, parts });
    };
    const batch = 2000;
    for (let from = 0; from < count; from += batch) {
      await Promise.all(Array.from({ length: batch }, (_, i) => accept(from + i)));
    }
    await store.close();
  }

  test("are found at the start, stay there while they are not due, and hold up nobody who is", async () => {
    const clock = new HandClock();
    const empty = await start({ clock });
    await empty.stop();
    // Every thousandth is due; they stand at the far end of the ids.
    await fill(empty.dir, clock, 20_000, (i) => (i % 1000 === 999 ? 0 : 30 * 86_400_000 + i));
    const outlast = await start({ clock, dir: empty.dir, upstreams: empty.fakes });
    expect(outlast.ear.all("recovered")).toMatchObject([{ waiting: 20_000 }]);
    await outlast.fake.calls(20);
    const due = outlast.fake.seen.map(tagOf).map(Number);
    expect(due.sort((a, b) => a - b)).toEqual(Array.from({ length: 20 }, (_, i) => i * 1000 + 999));
    expect((await outlast.post(path, hello)).status).toBe(200);
    const id = await submit(outlast, { delay: "1h" });
    clock.advance(3_600_000);
    await ended(outlast, id);
    expect(outlast.fake.seen).toHaveLength(22);
    const waiting = await outlast.fetch("/v1/requests?status=queued&limit=1");
    expect(((await waiting.json()) as { has_more: boolean }).has_more).toBe(true);
  });

  test("that are all due are worked off in their order, window by window", async () => {
    const clock = new HandClock();
    const empty = await start({ clock });
    await empty.stop();
    const count = 2000;
    await fill(empty.dir, clock, count, () => 0);
    const outlast = await start({ clock, dir: empty.dir, upstreams: empty.fakes, ...limit(1) });
    await outlast.fake.calls(count);
    expect(outlast.fake.seen.map(tagOf).map(Number)).toEqual(Array.from({ length: count }, (_, i) => i));
    await outlast.fake.idle();
  });
});
