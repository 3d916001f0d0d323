/** Attempts tell the whole story: what was sent where, what came back, when, and what was waited for in between. */

import { afterEach, describe, expect, test } from "vitest";
import type { AttemptObject } from "../../src/contract.ts";
import { HandClock } from "../support/clock.ts";
import {
  answer,
  closedPort,
  deltas,
  fail,
  gate,
  hang,
  html,
  reset,
  type Step,
  stream,
} from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick, startOutlast } from "../support/outlast.ts";
import { passTime, settled, submit } from "../support/steady-time.ts";

const path = "/v1/chat/completions";
const minuteMs = 60_000;
const running: Outlast[] = [];

async function start(options: OutlastOptions = {}): Promise<Outlast> {
  const outlast = await startOutlast({ luck: 0, env: quick, ...options });
  running.push(outlast);
  return outlast;
}

afterEach(async () => {
  await Promise.all(running.splice(0).map((outlast) => outlast.close()));
});

const keepAll = { outlast: { store: "all" } };

async function attemptsOf(outlast: Outlast, id: string, query = ""): Promise<AttemptObject[]> {
  const response = await outlast.fetch(`/v1/requests/${id}/attempts${query}`);
  return ((await response.json()) as { data: AttemptObject[] }).data;
}

const withBodies = (outlast: Outlast, id: string) => attemptsOf(outlast, id, "?include=bodies");

/** Posts a call whose answer is waited for, and returns its attempts with their bodies. */
async function story(outlast: Outlast, body: object, headers?: Record<string, string>) {
  const response = await outlast.post(path, { ...hello, ...keepAll, ...body }, headers);
  const text = await response.text();
  const id = response.headers.get("outlast-request-id")!;
  await outlast.ear.event("ended", (told) => told.id === id);
  return { id, text, attempts: await withBodies(outlast, id) };
}

const sentBodies = (attempts: AttemptObject[]) => attempts.map(({ request }) => request?.body);
const received = (attempts: AttemptObject[]) =>
  attempts.map(({ response }) => response && [response.status, response.body]);
const seenBodies = (outlast: Outlast, name = "fake") =>
  outlast.fakes[name]!.seen.map(({ body }) => JSON.parse(body.toString()));
const errorBody = (status: number) => ({
  error: expect.objectContaining({ message: `the fake upstream says ${status}` }),
});
const says = (content: string) => ({
  choices: [expect.objectContaining({ message: expect.objectContaining({ content }) })],
});

describe("with store = all every attempt has what it sent and what it got", () => {
  test("a 429, a 500, and the answer", async () => {
    const outlast = await start();
    outlast.fake.script(fail(429), fail(500), html(502, "<h1>bad gateway</h1>"), answer({ text: "Hi" }));
    const { attempts } = await story(outlast, {});
    expect(attempts.map(({ number, status }) => [number, status])).toEqual([
      [1, 429],
      [2, 500],
      [3, 502],
      [4, 200],
    ]);
    expect(received(attempts)).toEqual([
      [429, errorBody(429)],
      [500, errorBody(500)],
      [502, "<h1>bad gateway</h1>"],
      [200, expect.objectContaining(says("Hi"))],
    ]);
    expect(sentBodies(attempts)).toEqual([hello, hello, hello, hello]);
    expect(attempts[0]!.request).toMatchObject({
      method: "POST",
      url: `${outlast.fake.baseUrl}/chat/completions`,
    });
    expect(attempts[0]!.response!.headers).toContainEqual(["x-request-id", "fake-req-1"]);
  });

  test("an answer that was not valid, and what the next attempt was told of it", async () => {
    const outlast = await start();
    outlast.fake.script(answer({ text: "no JSON" }), answer({ text: "{}" }));
    const validate = { validate: { schema: { type: "object" }, feedback: true } };
    const { attempts } = await story(outlast, { outlast: { store: "all", ...validate } });
    expect(attempts.map(({ verdict }) => verdict)).toEqual(["invalid_output", "success"]);
    expect(received(attempts)).toEqual([
      [200, expect.objectContaining(says("no JSON"))],
      [200, expect.objectContaining(says("{}"))],
    ]);
    const bodies = sentBodies(attempts) as { messages: unknown[] }[];
    expect(bodies).toEqual(seenBodies(outlast));
    expect(bodies.map(({ messages }) => messages.length)).toEqual([1, 3]);
  });

  test("a target that knows the model by another name", async () => {
    const tables = '[routes]\nm = ["one/first", "two/second"]';
    const outlast = await start({ upstreams: ["one", "two"], tables });
    outlast.fakes.one!.script(fail(500));
    const { attempts } = await story(outlast, { model: "m" });
    expect(attempts.map(({ request }) => request!.url)).toEqual(
      ["one", "two"].map((name) => `${outlast.fakes[name]!.baseUrl}/chat/completions`),
    );
    expect(sentBodies(attempts)).toEqual([
      { ...hello, model: "first" },
      { ...hello, model: "second" },
    ]);
  });

  test("a stream that broke off has what had come of it, and the next one the wish for usage", async () => {
    const outlast = await start();
    const [role, hel] = deltas("Hel") as [string, string];
    outlast.fake.script(stream([role, hel], { end: "reset" }), reset(), stream(deltas("Hel", "lo")));
    const { attempts, text } = await story(outlast, { stream: true });
    expect(text).toContain("[DONE]");
    expect(received(attempts)).toEqual([
      [200, expect.objectContaining(says("Hel"))],
      null,
      [200, expect.objectContaining(says("Hello"))],
    ]);
    expect(sentBodies(attempts)).toEqual(seenBodies(outlast));
    expect(attempts[2]!.request!.body).toMatchObject({
      stream: true,
      stream_options: { include_usage: true },
    });
  });

  test("a request that failed keeps its last answer as the others, also through another round", async () => {
    const outlast = await start();
    outlast.fake.script(fail(500), fail(400));
    const { id, attempts } = await story(outlast, {});
    expect(received(attempts)).toEqual([
      [500, errorBody(500)],
      [400, errorBody(400)],
    ]);
    outlast.fake.script(answer({ text: "Hi" }));
    await outlast.post(`/v1/requests/${id}/retry`, {});
    await outlast.ear.event("ended", (told) => told.id === id && told.state === "completed");
    expect(received(await withBodies(outlast, id))).toEqual([
      [500, errorBody(500)],
      [400, errorBody(400)],
      [200, expect.objectContaining(says("Hi"))],
    ]);
  });

  test("one that reached nobody has neither", async () => {
    const tables = `[upstreams.gone]\nbase_url = "${await closedPort()}"\n[routes]\nm = ["gone", "fake"]`;
    const outlast = await start({ tables });
    const { attempts } = await story(outlast, { model: "m" });
    expect(attempts.map(({ verdict }) => verdict)).toEqual(["not_sent", "success"]);
    expect([attempts[0]!.request, attempts[0]!.response]).toEqual([null, null]);
  });
});

test("unless that is asked for, only what was asked and answered last is kept", async () => {
  const outlast = await start();
  outlast.fake.script(fail(500), answer({ text: "Hi" }));
  const { attempts } = await story(outlast, { outlast: {} });
  expect(attempts[0]).toMatchObject({ request: null, response: null });
  expect(received(attempts)[1]).toEqual([200, expect.objectContaining(says("Hi"))]);
});

test("no secret of the caller's or ours is in what was sent, wherever it was", async () => {
  const outlast = await start({
    upstreamToml: 'headers = { "x-team" = "team-secret", "api-key" = "other-secret" }',
  });
  const query = "?api-version=1&key=query-secret";
  const response = await outlast.post(
    `${path}${query}`,
    { ...hello, ...keepAll },
    {
      authorization: "Bearer caller-secret",
      cookie: "session=cookie-secret",
      "x-service-token": "token-secret",
      "x-note": "plain",
    },
  );
  const id = response.headers.get("outlast-request-id")!;
  const [attempt] = await withBodies(outlast, id);
  const { url, headers } = attempt!.request!;
  expect(url).toBe(`${outlast.fake.baseUrl}/chat/completions?api-version=1&key=[redacted]`);
  const named = Object.fromEntries(headers);
  expect(named).toMatchObject({ "x-note": "plain", "content-type": "application/json" });
  for (const name of ["authorization", "x-team", "api-key", "x-service-token"])
    expect(named[name], name).toBe("[redacted]");
  expect(JSON.stringify(attempt)).not.toMatch(/(team|other|query|caller|cookie|token)-secret|sk-upstream/);
  const [seen] = outlast.fake.seen;
  expect(seen!.headers).toMatchObject({ "x-team": "team-secret", "x-service-token": "token-secret" });
});

describe("an attempt tells how long", () => {
  const plain: [string, object, Step][] = [
    ["a plain call", {}, answer()],
    ["a stream", { stream: true }, stream(deltas("Hi"))],
  ];

  test.each(plain)("%s took to connect, to begin and to end", async (_, body, step) => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    const held = gate();
    outlast.fake.script(held.step);
    const asked = outlast.post(path, { ...hello, ...body });
    await held.arrived;
    clock.advance(1500);
    held.release(step);
    const response = await asked;
    await response.text();
    const [attempt] = await attemptsOf(outlast, response.headers.get("outlast-request-id")!);
    expect(attempt).toMatchObject({ connect_ms: 0, first_byte_ms: 1500, latency_ms: 1500 });
  });

  test("it took to connect, where it was silent until its time was over", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    outlast.fake.script(hang());
    const id = await submit(outlast, { outlast: { deadline: 5 } });
    await outlast.fake.calls(1);
    clock.advance(5000);
    await outlast.ear.event("ended");
    const [attempt] = await attemptsOf(outlast, id);
    expect(attempt).toMatchObject({ connect_ms: 0, first_byte_ms: null, latency_ms: 5000 });
  });

  test("nothing of that where it never had a connection", async () => {
    const tables = `[upstreams.gone]\nbase_url = "${await closedPort()}"\n[routes]\nm = ["gone", "fake"]`;
    const outlast = await start({ tables });
    const { attempts } = await story(outlast, { model: "m" });
    expect(attempts[0]).toMatchObject({ verdict: "not_sent", connect_ms: null, first_byte_ms: null });
  });
});

describe("an attempt tells what was waited for before it", () => {
  async function startByHand(options: OutlastOptions = {}) {
    const clock = new HandClock();
    const outlast = await start({ clock, env: { OUTLAST_RETRY_BACKOFF_BASE: "1s" }, luck: 0.5, ...options });
    const pass = (requests: number) =>
      passTime(outlast, clock, 10 * minuteMs, () => outlast.ear.all("ended").length >= requests);
    return { clock, outlast, pass };
  }
  const waits = async (outlast: Outlast, id: string) =>
    (await attemptsOf(outlast, id)).map(({ waited_for }) => waited_for);

  test("nothing where it started at once, a backoff where that followed a fault", async () => {
    const { outlast, pass, clock } = await startByHand();
    const acceptedAt = clock.now();
    outlast.fake.script(fail(500));
    const id = await submit(outlast);
    await pass(1);
    const [first, second] = await attemptsOf(outlast, id);
    expect(first).toMatchObject({ waited_for: [], due_at: new Date(acceptedAt).toISOString() });
    expect(second).toMatchObject({ waited_for: ["backoff"], due_at: first!.retry_at });
  });

  test("its date, and that its upstream was full then", async () => {
    const { clock, outlast, pass } = await startByHand({ upstreamToml: "max_concurrency = 1" });
    const held = gate();
    outlast.fake.script(held.step);
    const dated = await submit(outlast, { outlast: { delay: 60 } });
    clock.advance(50_000);
    await submit(outlast);
    await held.arrived;
    clock.advance(30_000);
    held.release();
    await pass(2);
    const dueInTime = await submit(outlast, { outlast: { delay: 60 } });
    await pass(3);
    expect(await waits(outlast, dated)).toEqual([["scheduled", "capacity"]]);
    expect(await waits(outlast, dueInTime)).toEqual([["scheduled"]]);
  });

  test("a lane that was told to wait, and a limit", async () => {
    const { outlast, pass } = await startByHand({ upstreamToml: "requests_per_minute = 40" });
    outlast.fake.script(fail(429, {}, { "retry-after": "30" }));
    await submit(outlast);
    await outlast.ear.event("attempt_ended");
    const behind = await submit(outlast);
    await pass(2);
    expect(await waits(outlast, behind)).toEqual([["rate_limit"]]);
    const many: string[] = [];
    for (let i = 0; i < 45; i++) many.push(await submit(outlast));
    await pass(47);
    expect(await waits(outlast, many.at(-1)!)).toEqual([["rate_limit"]]);
  });

  test("a breaker", async () => {
    const { outlast, clock, pass } = await startByHand({
      toml: '[breaker]\nconsecutive_failures = 2\ncooldown = "60s"\n',
    });
    outlast.fake.script(fail(500), fail(500), fail(500));
    for (let i = 0; i < 3; i++) {
      await submit(outlast, { outlast: { max_attempts: 1 } });
      await settled(outlast);
      clock.advance(1000);
    }
    await outlast.ear.event("breaker_opened");
    const behind = await submit(outlast);
    await pass(4);
    expect(await waits(outlast, behind)).toEqual([["breaker"]]);
  });
});
