/** What each outcome of a call to an upstream leads to (DESIGN §5), through the front door. */

import { createServer } from "node:http";
import { type AddressInfo, createServer as createTcpServer } from "node:net";
import { afterEach, describe, expect, test } from "vitest";
import type { AttemptObject, RequestObject } from "../../src/contract.ts";
import { HandClock } from "../support/clock.ts";
import {
  answer,
  closedPort,
  cut,
  type FakeUpstream,
  fail,
  gate,
  hang,
  html,
  raw,
  reset,
  type Step,
  startFake,
} from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick, startOutlast } from "../support/outlast.ts";

const path = "/v1/chat/completions";
const running: Outlast[] = [];

async function start(options: OutlastOptions = {}): Promise<Outlast> {
  const outlast = await startOutlast({ luck: 0.5, ...options });
  running.push(outlast);
  return outlast;
}

/** With backoffs of a millisecond, on the real clock. */
const startQuick = (options: OutlastOptions = {}) => start({ ...options, env: { ...quick, ...options.env } });

afterEach(async () => {
  await Promise.all(running.splice(0).map((outlast) => outlast.close()));
});

interface Body {
  id: string;
  error: { code: string; message: string; type: string; param: string | null };
}
const bodyOf = async (response: Response): Promise<Body> => (await response.json()) as Body;

async function attemptsOf(outlast: Outlast, id: string | null): Promise<AttemptObject[]> {
  const response = await outlast.fetch(`/v1/requests/${id}/attempts`);
  return ((await response.json()) as { data: AttemptObject[] }).data;
}

async function recordOf(outlast: Outlast, id: string, query = ""): Promise<RequestObject> {
  return (await (await outlast.fetch(`/v1/requests/${id}${query}`)).json()) as RequestObject;
}

/** The id of a request that is accepted and not waited for. */
async function submit(outlast: Outlast, options: object = {}, body: object = hello): Promise<string> {
  const response = await outlast.post(path, { ...body, wait: false, outlast: options });
  expect(response.status).toBe(202);
  return (await bodyOf(response)).id;
}

const ended = (outlast: Outlast, id: string) => outlast.ear.event("ended", (told) => told.id === id);
const attemptEnded = (outlast: Outlast, id: string, attempt: number) =>
  outlast.ear.event("attempt_ended", (told) => told.id === id && told.attempt === attempt);
const started = (outlast: Outlast) => outlast.ear.all("attempt_started").length;

/** Lets what has been set off come to rest: each of these goes through the server, its reader and its writer. */
async function settle(outlast: Outlast): Promise<void> {
  for (let i = 0; i < 3; i++) {
    await outlast.post(path, { model: "settling/nothing", messages: [], outlast: { upstream: "nobody" } });
    await (await outlast.fetch("/v1/requests?limit=1")).text();
  }
}

const requestId = (response: Response) => response.headers.get("outlast-request-id");
const down = async (): Promise<FakeUpstream> =>
  ({ baseUrl: await closedPort(), close: async () => {} }) as FakeUpstream;
const bothFor = (...names: string[]) =>
  `[routes]\n"gpt-test" = [${names.map((name) => `"${name}"`).join(", ")}]\n`;

describe("an upstream that cannot be reached", () => {
  test("fails a plain held call with 502 after 30 seconds, not before", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreams: { gone: await down() } });
    const began = clock.now();
    let over = false;
    const call = outlast.post(path, hello).finally(() => {
      over = true;
    });
    await outlast.ear.event("attempt_ended");
    for (let second = 0; second < 40 && !over; second++) {
      clock.advance(1000);
      await settle(outlast);
    }
    const response = await call;
    expect(response.status).toBe(502);
    expect(response.headers.get("x-should-retry")).toBe("false");
    expect((await bodyOf(response)).error).toMatchObject({
      code: "upstream_unreachable",
      message: expect.stringContaining("gone"),
    });
    expect(clock.now() - began).toBeGreaterThanOrEqual(30_000);
    expect(clock.now() - began).toBeLessThanOrEqual(32_000);
    const attempts = await attemptsOf(outlast, requestId(response));
    for (const attempt of attempts) {
      expect(attempt).toMatchObject({ verdict: "not_sent", counted: false, status: null });
    }
  });

  test.each<[string, Record<string, string>, object, number]>([
    ["anew for the next round of a key", { "idempotency-key": "twice" }, {}, 0],
    ["from the instant for which it was asked", {}, { delay: "2m" }, 120_000],
  ])("is waited for %s", async (_, headers, options, delayMs) => {
    const clock = new HandClock();
    const env = { OUTLAST_FAILURE_ECHO: "0" };
    const outlast = await start({ clock, env, upstreams: { gone: await down() } });
    for (let round = 1; round <= 2; round++) {
      const began = clock.now();
      let over = false;
      const call = outlast.post(path, { ...hello, outlast: options }, headers).finally(() => {
        over = true;
      });
      for (await settle(outlast); !over; await settle(outlast)) clock.advance(1000);
      expect((await call).status).toBe(502);
      expect(clock.now() - began).toBeGreaterThanOrEqual(delayMs + 30_000);
    }
  });

  test("holds an async request until it comes back, and uses up none of its attempts", async () => {
    const clock = new HandClock();
    const fake = await startFake();
    await fake.close();
    const outlast = await start({ clock, upstreams: { fake: { ...fake, close: async () => {} } } });
    const id = await submit(outlast, { max_attempts: 1 });
    for (let attempt = 1; attempt <= 4; attempt++) {
      const { retryAt } = await attemptEnded(outlast, id, attempt);
      clock.advance(retryAt! - clock.now());
    }
    const { retryAt } = await attemptEnded(outlast, id, 5);
    expect(await recordOf(outlast, id)).toMatchObject({ status: "retrying", waiting_for: "backoff" });
    const back = createServer((req, res) => {
      req.resume().on("end", () => res.setHeader("content-type", "application/json").end('{"id":"back"}'));
    });
    await new Promise<void>((resolve) =>
      back.listen(Number(new URL(fake.origin).port), "127.0.0.1", resolve),
    );
    clock.advance(retryAt! - clock.now());
    await ended(outlast, id);
    expect(await recordOf(outlast, id)).toMatchObject({ status: "completed", attempts: 6 });
    const attempts = await attemptsOf(outlast, id);
    expect(attempts.map(({ verdict }) => verdict)).toEqual([...Array(5).fill("not_sent"), "success"]);
    expect(attempts.map(({ counted }) => counted)).toEqual([...Array(5).fill(false), true]);
    expect(attempts[0]).toMatchObject({ reason: "upstream_closed", error_code: "upstream_unreachable" });
    back.closeAllConnections();
    await new Promise((resolve) => back.close(resolve));
  });

  test("is tried by one probe at a time, however many wait for it", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreams: { gone: await down() } });
    const first = await submit(outlast);
    await attemptEnded(outlast, first, 1);
    const others = await Promise.all([1, 2, 3, 4, 5].map(() => submit(outlast)));
    for (const probes of [1, 2, 3]) {
      const { until } = outlast.ear.all("gate_closed").at(-1)!;
      clock.advance(until - 1 - clock.now());
      await settle(outlast);
      expect(started(outlast)).toBe(probes);
      clock.advance(1);
      await outlast.ear.event("gate_closed", ({ strikes }) => strikes === probes + 1);
      await settle(outlast);
      expect(started(outlast)).toBe(probes + 1);
    }
    const waiting = await Promise.all(others.map((id) => recordOf(outlast, id)));
    expect(waiting.filter(({ attempts }) => attempts > 0).length).toBeLessThanOrEqual(3);
  });

  test.each<[string, (port: number) => string]>([
    ["does not begin", (port) => `https://127.0.0.1:${port}/v1`],
    ["goes wrong", (port) => `https://127.0.0.1:${port}/v1`],
    ["cannot even look up its address", () => "http://no-such-host.invalid/v1"],
  ])("is one whose connection %s", async (how, baseUrl) => {
    // A server that says nothing, or something that is no TLS.
    const server = createTcpServer((socket) => {
      socket.on("error", () => {});
      if (how === "goes wrong") socket.end("HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const upstream = {
      baseUrl: baseUrl((server.address() as AddressInfo).port),
      close: async () => {},
    } as FakeUpstream;
    const outlast = await start({
      clock: new HandClock(),
      upstreams: { upstream },
      env: { OUTLAST_TIMEOUTS_CONNECT: "50ms" },
    });
    const id = await submit(outlast);
    await attemptEnded(outlast, id, 1);
    expect(await attemptsOf(outlast, id)).toMatchObject([
      { verdict: "not_sent", counted: false, error_code: "upstream_unreachable" },
    ]);
    expect(await recordOf(outlast, id)).toMatchObject({ status: "retrying", duplicate_possible: false });
    server.close();
  });

  test("is left for the next target at once", async () => {
    const up = await startFake();
    const outlast = await start({
      clock: new HandClock(),
      upstreams: { gone: await down(), up },
      tables: bothFor("gone", "up"),
    });
    const response = await outlast.post(path, hello);
    expect(response.status).toBe(200);
    expect(response.headers.get("outlast-upstream")).toBe("up");
    expect(await attemptsOf(outlast, requestId(response))).toMatchObject([
      { upstream: "gone", verdict: "not_sent", counted: false, reason: "next_target" },
      { upstream: "up", verdict: "success", counted: true },
    ]);
    await (await outlast.post(path, hello)).text();
    expect(started(outlast)).toBe(3);
  });
});

describe("a throttled call", () => {
  const date = (clock: HandClock, ms: number) => new Date(clock.now() + ms).toUTCString();
  test.each<[string, (clock: HandClock) => Step, number]>([
    ["429 with Retry-After in seconds", () => fail(429, {}, { "retry-after": "20" }), 20_000],
    ["429 with Retry-After in milliseconds", () => fail(429, {}, { "retry-after-ms": "2500" }), 2500],
    ["429 with a fraction of a second", () => fail(429, {}, { "retry-after": "7.5" }), 7500],
    ["429 with a date", (clock) => fail(429, {}, { "retry-after": date(clock, 30_000) }), 30_000],
    ["429 without a word, for the lane's own backoff", () => fail(429), 1050],
    ["429 that is no JSON", () => html(429, "slow down"), 1050],
    ["529", () => fail(529), 1050],
    ["529 with Retry-After", () => fail(529, {}, { "retry-after": "3" }), 3000],
    ["503 with Retry-After", () => fail(503, {}, { "retry-after": "4" }), 4000],
    ["429 with Retry-After: 0, which does not loop", () => fail(429, {}, { "retry-after": "0" }), 1050],
  ])("is repeated as told and never earlier: %s", async (_, step, waitMs) => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    const began = clock.now();
    outlast.fake.script(step(clock));
    const call = outlast.post(path, hello);
    await outlast.ear.event("attempt_ended");
    await settle(outlast);
    clock.advance(waitMs - 1);
    await settle(outlast);
    expect(started(outlast)).toBe(1);
    clock.advance(1);
    const response = await call;
    expect(response.status).toBe(200);
    const attempts = await attemptsOf(outlast, requestId(response));
    expect(attempts).toMatchObject([
      { verdict: "throttled", counted: false, reason: "retry_after" },
      { verdict: "success", counted: true, reason: "answered" },
    ]);
    expect(Date.parse(attempts[0]!.retry_at!)).toBe(began + waitMs);
    expect(Date.parse(attempts[1]!.started_at)).toBe(began + waitMs);
  });

  test("closes the lane for all who wait; then one goes ahead, and the rest follows", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    outlast.fake.script(fail(429, {}, { "retry-after": "5" }));
    const first = await submit(outlast);
    await attemptEnded(outlast, first, 1);
    const probe = gate();
    outlast.fake.script(probe.step);
    const others = await Promise.all([1, 2, 3, 4, 5, 6].map(() => submit(outlast)));
    expect(await recordOf(outlast, others[0]!)).toMatchObject({
      status: "queued",
      waiting_for: "rate_limit",
    });
    clock.advance(4999);
    await settle(outlast);
    expect(started(outlast)).toBe(1);
    clock.advance(1);
    await probe.arrived;
    await settle(outlast);
    expect(started(outlast)).toBe(2);
    probe.release();
    await Promise.all([first, ...others].map((id) => ended(outlast, id)));
    expect(outlast.fake.seen).toHaveLength(8);
    expect(outlast.ear.all("gate_opened")).toHaveLength(1);
  });

  test("lets the others go on when the one ahead of them is not refused for long", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    outlast.fake.script(fail(429, {}, { "retry-after": "5" }), hang());
    const first = await submit(outlast);
    await attemptEnded(outlast, first, 1);
    const other = await submit(outlast);
    clock.advance(5000);
    await outlast.fake.calls(2);
    clock.advance(9999);
    await settle(outlast);
    expect(started(outlast)).toBe(2);
    clock.advance(1);
    await outlast.fake.calls(3);
    await Promise.race([ended(outlast, first), ended(outlast, other)]);
    expect(outlast.ear.all("gate_opened")).toHaveLength(1);
  });

  test("lets the next one go ahead at once when the one ahead is cancelled", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    outlast.fake.script(fail(429, {}, { "retry-after": "5" }), hang());
    const first = await submit(outlast);
    await attemptEnded(outlast, first, 1);
    const other = await submit(outlast);
    clock.advance(5000);
    await outlast.fake.calls(2);
    const records = await Promise.all([first, other].map((id) => recordOf(outlast, id)));
    const probing = records.find(({ status }) => status === "processing")!.id;
    await (await outlast.post(`/v1/requests/${probing}/cancel`, {})).text();
    const next = probing === first ? other : first;
    await ended(outlast, next);
    expect(await recordOf(outlast, next)).toMatchObject({ status: "completed" });
  });

  test("is asked again after ever longer waits while probes are throttled, and those who wait make no attempt", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, luck: 0 });
    outlast.fake.script(...Array.from({ length: 8 }, () => fail(429)));
    const first = await submit(outlast);
    await attemptEnded(outlast, first, 1);
    const other = await submit(outlast);
    const waits: number[] = [];
    for (let strikes = 1; strikes <= 8; strikes++) {
      const { until } = await outlast.ear.event("gate_closed", (told) => told.strikes === strikes);
      waits.push(until - clock.now());
      await settle(outlast);
      clock.advance(until - clock.now());
    }
    expect(waits).toEqual([1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
    await Promise.all([ended(outlast, first), ended(outlast, other)]);
    const records = await Promise.all([first, other].map((id) => recordOf(outlast, id)));
    expect(records.map(({ status }) => status)).toEqual(["completed", "completed"]);
    expect(outlast.fake.seen).toHaveLength(10);
  });

  test("closes its own lane only", async () => {
    const outlast = await start({ clock: new HandClock() });
    outlast.fake.script(fail(429, {}, { "retry-after": "60" }));
    const id = await submit(outlast);
    await attemptEnded(outlast, id, 1);
    const response = await outlast.post(path, { ...hello, model: "gpt-other" });
    expect(response.status).toBe(200);
    expect(await recordOf(outlast, id)).toMatchObject({ status: "retrying", waiting_for: "rate_limit" });
  });

  test("goes to the next target at once", async () => {
    const outlast = await start({
      clock: new HandClock(),
      upstreams: ["one", "two"],
      tables: bothFor("one", "two"),
    });
    outlast.fakes.one!.script(fail(429, {}, { "retry-after": "60" }));
    for (let i = 0; i < 3; i++) {
      const response = await outlast.post(path, hello);
      expect(response.headers.get("outlast-upstream")).toBe("two");
    }
    expect(outlast.fakes.one!.seen).toHaveLength(1);
  });

  test("fails at once with the upstream's own words where no target opens before the deadline", async () => {
    const outlast = await start({ clock: new HandClock() });
    const refusal = { message: "Come back in an hour.", code: "rate_limit_exceeded", type: "tokens" };
    outlast.fake.script(fail(429, refusal, { "retry-after": "3600", "x-ratelimit-limit-requests": "1" }));
    const response = await outlast.post(path, hello);
    expect(response.status).toBe(429);
    expect((await bodyOf(response)).error).toMatchObject(refusal);
    expect(response.headers.get("x-should-retry")).toBe("false");
    expect(response.headers.get("x-ratelimit-limit-requests")).toBe("1");
    expect(await attemptsOf(outlast, requestId(response))).toMatchObject([
      { verdict: "throttled", counted: false, reason: "deadline", retry_at: null, status: 429 },
    ]);
  });

  test("fails those who wait behind it, too, where their deadline comes first", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    outlast.fake.script(fail(429, {}, { "retry-after": "3600" }));
    const patient = await submit(outlast);
    await attemptEnded(outlast, patient, 1);
    const hurried = await submit(outlast, { deadline: "10m" });
    clock.advance(1000);
    await ended(outlast, hurried);
    expect(await recordOf(outlast, hurried)).toMatchObject({
      status: "failed",
      attempts: 0,
      error: { code: "rate_limit_exceeded", status: 429 },
    });
    expect(await recordOf(outlast, patient)).toMatchObject({ status: "retrying" });
  });

  test("never runs out of attempts", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    outlast.fake.script(...Array.from({ length: 6 }, () => fail(429, {}, { "retry-after": "1" })));
    const id = await submit(outlast, { max_attempts: 1 });
    for (let attempt = 1; attempt <= 6; attempt++) {
      const { retryAt } = await attemptEnded(outlast, id, attempt);
      clock.advance(retryAt! - clock.now());
    }
    await ended(outlast, id);
    expect(await recordOf(outlast, id)).toMatchObject({ status: "completed", attempts: 7 });
  });
});

describe("a quota that is used up", () => {
  const outOfMoney = () =>
    fail(429, { code: "insufficient_quota", type: "insufficient_quota" }, { "retry-after": "1" });

  test("fails with the upstream's words, without another call, and somebody is told", async () => {
    const outlast = await startQuick();
    outlast.fake.script(outOfMoney());
    const response = await outlast.post(path, hello);
    expect(response.status).toBe(429);
    expect((await bodyOf(response)).error.code).toBe("insufficient_quota");
    expect(outlast.fake.seen).toHaveLength(1);
    expect(outlast.ear.all("alert")).toMatchObject([
      { lane: "fake/gpt-test", code: "insufficient_quota", status: 429 },
    ]);
    expect(await attemptsOf(outlast, requestId(response))).toMatchObject([
      { verdict: "permanent", reason: "permanent", retry_at: null },
    ]);
  });

  test("moves on to the next target at once", async () => {
    const outlast = await startQuick({ upstreams: ["one", "two"], tables: bothFor("one", "two") });
    outlast.fakes.one!.script(outOfMoney());
    const response = await outlast.post(path, hello);
    expect(response.headers.get("outlast-upstream")).toBe("two");
    expect(await attemptsOf(outlast, requestId(response))).toMatchObject([
      { upstream: "one", verdict: "permanent", reason: "next_target" },
      { upstream: "two", verdict: "success" },
    ]);
    expect(outlast.ear.all("alert")).toHaveLength(1);
    expect(outlast.ear.all("gate_closed")).toEqual([]);
  });
});

describe("a transient failure", () => {
  const odd = (body: string): Step => answer({ body });
  test.each<[string, Step]>([
    ["408", fail(408)],
    ["409", fail(409)],
    ["425", fail(425)],
    ["500", fail(500)],
    ["502", fail(502)],
    ["503", fail(503)],
    ["504", fail(504)],
    ["520", fail(520)],
    ["a page instead of JSON", html(502, "<h1>Bad Gateway</h1>")],
    ["504 with a code that is ours, too", fail(504, { code: "deadline_exceeded" })],
    ["200 with an error inside", answer({ body: { error: { message: "overloaded", code: 529 } } })],
    ["200 with an error as text", odd('{"error":"overloaded"}')],
    ["200 with malformed JSON", odd('{"id":"chatcmpl-1","choices":[')],
    ["200 without a body", odd("")],
    ["200 with a page instead of JSON", html(200, "<h1>Welcome</h1>")],
  ])("is repeated, and counts: %s", async (_, step) => {
    const outlast = await startQuick();
    outlast.fake.script(step);
    const response = await outlast.post(path, hello);
    expect(response.status).toBe(200);
    expect((await bodyOf(response)).id).toBe("chatcmpl-fake-2");
    expect(response.headers.get("outlast-attempts")).toBe("2");
    const [first, second] = await attemptsOf(outlast, requestId(response));
    expect(first).toMatchObject({ verdict: "transient", counted: true, reason: "backoff", number: 1 });
    expect(Date.parse(first!.retry_at!)).toBeGreaterThan(0);
    expect(second).toMatchObject({
      verdict: "success",
      counted: true,
      reason: "answered",
      retry_at: null,
      status: 200,
    });
    expect(await recordOf(outlast, requestId(response)!)).toMatchObject({ duplicate_possible: false });
  });

  test("ends the request with the last answer when the attempts are used up", async () => {
    const outlast = await startQuick();
    outlast.fake.otherwise(fail(500, { message: "still broken" }, { "x-request-id": "their-id" }));
    const response = await outlast.post(path, hello);
    expect(response.status).toBe(500);
    expect(response.headers.get("x-should-retry")).toBe("false");
    expect(response.headers.get("x-request-id")).toBe("their-id");
    expect((await bodyOf(response)).error.message).toBe("still broken");
    expect(outlast.fake.seen).toHaveLength(5);
    const attempts = await attemptsOf(outlast, requestId(response));
    expect(attempts.map(({ reason }) => reason)).toEqual([
      "backoff",
      "backoff",
      "backoff",
      "backoff",
      "exhausted",
    ]);
    expect(attempts.at(-1)).toMatchObject({ retry_at: null, provider_request_id: "their-id" });
  });

  test("waits for as long as it was told, if that is longer than the backoff", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock });
    outlast.fake.script(fail(500, {}, { "retry-after": "9" }));
    const call = outlast.post(path, hello);
    await outlast.ear.event("attempt_ended");
    await settle(outlast);
    clock.advance(8999);
    await settle(outlast);
    expect(started(outlast)).toBe(1);
    clock.advance(1);
    expect((await call).status).toBe(200);
  });

  test("in an answer that says 200 ends as 502 when the attempts are used up", async () => {
    const outlast = await startQuick();
    outlast.fake.otherwise(answer({ body: '{"broken' }));
    const response = await outlast.post(path, hello);
    expect(response.status).toBe(502);
    expect((await bodyOf(response)).error.code).toBe("upstream_bad_answer");
  });
});

describe("a call whose outcome is unknown", () => {
  const cutHead = raw("HTTP/1.1 200 OK\r\ncontent-type: app");
  test.each<[string, Step]>([
    ["a reset before any answer", reset()],
    ["a connection closed before any answer", raw("")],
    ["a head that is cut", cutHead],
    ["a body that is cut", cut({ after: 20 })],
    ["a body that is cut behind its head", cut({ after: 0 })],
    ["an error whose body is cut", cut({ after: 10, status: 500 })],
    ["an answer that is no HTTP", raw("hello there\r\n\r\n")],
    ["chunks that end early", raw('HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{"id"\r\n')],
  ])("is repeated, and the record says that there may be a duplicate: %s", async (_, step) => {
    const outlast = await startQuick();
    outlast.fake.script(step);
    const response = await outlast.post(path, hello);
    expect(response.status).toBe(200);
    const id = requestId(response)!;
    expect(await attemptsOf(outlast, id)).toMatchObject([
      { verdict: "ambiguous", counted: true, reason: "backoff", error_code: "upstream_connection_lost" },
      { verdict: "success" },
    ]);
    expect(await recordOf(outlast, id)).toMatchObject({ duplicate_possible: true, status: "completed" });
  });

  test.each<[string, Step]>([
    ["a reset", reset()],
    ["a cut body", cut({ after: 20 })],
  ])("fails without another call where the caller wants that: %s", async (_, step) => {
    const outlast = await startQuick();
    outlast.fake.script(step);
    const response = await outlast.post(path, { ...hello, outlast: { on_unknown: "fail" } });
    expect(response.status).toBe(502);
    expect((await bodyOf(response)).error.code).toBe("upstream_outcome_unknown");
    expect(response.headers.get("x-should-retry")).toBe("false");
    expect(outlast.fake.seen).toHaveLength(1);
    expect(await attemptsOf(outlast, requestId(response))).toMatchObject([
      { verdict: "ambiguous", reason: "outcome_unknown", retry_at: null },
    ]);
  });

  test("fails where the configuration wants that", async () => {
    const outlast = await startQuick({ env: { OUTLAST_DEFAULTS_ON_UNKNOWN: "fail" } });
    outlast.fake.script(reset());
    const response = await outlast.post(path, hello);
    expect((await bodyOf(response)).error.code).toBe("upstream_outcome_unknown");
  });

  test("after the attempt's time-out goes to another target, if there is one", async () => {
    const clock = new HandClock();
    const outlast = await start({ clock, upstreams: ["one", "two"], tables: bothFor("one", "two") });
    outlast.fakes.one!.script(hang());
    const id = await submit(outlast);
    await outlast.fakes.one!.calls(1);
    clock.advance(599_999);
    await settle(outlast);
    expect(outlast.fakes.one!.inFlight).toBe(1);
    clock.advance(1);
    await ended(outlast, id);
    await outlast.fakes.one!.idle();
    expect(await attemptsOf(outlast, id)).toMatchObject([
      {
        upstream: "one",
        verdict: "ambiguous",
        counted: true,
        error_code: "upstream_timeout",
        reason: "next_target",
        latency_ms: 600_000,
      },
      { upstream: "two", verdict: "success" },
    ]);
    expect(await recordOf(outlast, id)).toMatchObject({ duplicate_possible: true });
  });

  test("after the attempt's time-out is repeated where there is no other", async () => {
    const outlast = await startQuick({ env: { OUTLAST_TIMEOUTS_ATTEMPT: "50ms" } });
    outlast.fake.script(hang());
    const response = await outlast.post(path, hello);
    expect(response.status).toBe(200);
    expect(await attemptsOf(outlast, requestId(response))).toMatchObject([
      { verdict: "ambiguous", error_code: "upstream_timeout" },
      { verdict: "success" },
    ]);
  });

  test("includes an answer that began and never ends", async () => {
    const outlast = await startQuick({ env: { OUTLAST_TIMEOUTS_ATTEMPT: "50ms" } });
    outlast.fake.script((call, res) => {
      res.writeHead(200, { "content-type": "application/json", "content-length": "1000" });
      res.write(`{"id":"chatcmpl-${call.n}"`);
    });
    const response = await outlast.post(path, hello);
    expect(response.status).toBe(200);
    expect(await attemptsOf(outlast, requestId(response))).toMatchObject([
      { verdict: "ambiguous" },
      { verdict: "success" },
    ]);
  });
});

describe("a refusal by an upstream", () => {
  test.each([401, 402, 403, 404])(
    "fails with its words where there is no other target: %d",
    async (status) => {
      const outlast = await startQuick();
      outlast.fake.script(fail(status, { message: "not you", code: "no_access" }));
      const response = await outlast.post(path, hello);
      expect(response.status).toBe(status);
      expect((await bodyOf(response)).error).toMatchObject({ message: "not you", code: "no_access" });
      expect(response.headers.get("x-should-retry")).toBe("false");
      expect(outlast.fake.seen).toHaveLength(1);
      expect(outlast.ear.all("alert")).toHaveLength(status === 404 ? 0 : 1);
      expect(await attemptsOf(outlast, requestId(response))).toMatchObject([
        { verdict: "permanent", counted: true, reason: "permanent", status },
      ]);
    },
  );

  test.each([401, 403, 404])("moves on to the next target, and does not come back: %d", async (status) => {
    const outlast = await startQuick({ upstreams: ["one", "two"], tables: bothFor("one", "two") });
    outlast.fakes.one!.script(fail(status));
    outlast.fakes.two!.script(fail(500), fail(500));
    const response = await outlast.post(path, hello);
    expect(response.status).toBe(200);
    expect(outlast.fakes.one!.seen).toHaveLength(1);
    expect(await attemptsOf(outlast, requestId(response))).toMatchObject([
      { upstream: "one", verdict: "permanent", reason: "next_target" },
      { upstream: "two", verdict: "transient" },
      { upstream: "two", verdict: "transient" },
      { upstream: "two", verdict: "success" },
    ]);
  });

  test("does not quote our key to the caller", async () => {
    const outlast = await startQuick();
    outlast.fake.script(fail(401, { message: "Incorrect API key provided: sk-upstream-fake." }));
    const text = await (await outlast.post(path, hello)).text();
    expect(text).not.toContain("upstream-fake");
  });
});

describe("a fault of the caller's", () => {
  test.each<[string, number, { code?: string; message?: string; param?: string }]>([
    ["400", 400, { message: "bad temperature", param: "temperature", code: "invalid_value" }],
    ["a content filter", 400, { code: "content_filter" }],
    ["a context that is too long", 400, { code: "context_length_exceeded" }],
    ["405", 405, {}],
    ["413", 413, {}],
    ["422", 422, {}],
  ])("is never repeated, nor tried elsewhere: %s", async (_, status, error) => {
    const outlast = await startQuick({ upstreams: ["one", "two"], tables: bothFor("one", "two") });
    outlast.fakes.one!.script(fail(status, error));
    const response = await outlast.post(path, hello);
    expect(response.status).toBe(status);
    expect((await bodyOf(response)).error).toMatchObject(error);
    expect(response.headers.get("x-should-retry")).toBe("false");
    expect(outlast.fakes.two!.seen).toEqual([]);
    expect(await attemptsOf(outlast, requestId(response))).toMatchObject([
      { verdict: "permanent", reason: "permanent", status, retry_at: null },
    ]);
    expect(outlast.ear.all("alert")).toEqual([]);
  });
});

describe("an answer", () => {
  test("that follows early hints is the answer", async () => {
    const outlast = await startQuick();
    const body = '{"id":"chatcmpl-hinted"}';
    const head = `HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n`;
    outlast.fake.script(raw(`HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n${head}${body}`));
    const response = await outlast.post(path, hello);
    expect((await bodyOf(response)).id).toBe("chatcmpl-hinted");
    expect(response.headers.get("link")).toBeNull();
    expect(outlast.fake.seen).toHaveLength(1);
  });

  test("that is a redirect is not followed: the address is wrong, and somebody is told", async () => {
    const outlast = await startQuick();
    outlast.fake.script(
      answer({ status: 308, headers: { location: "https://elsewhere.example/" }, body: "" }),
    );
    const response = await outlast.post(path, hello);
    expect(response.status).toBe(502);
    expect(outlast.ear.all("alert")).toMatchObject([{ code: "http_308" }]);
    expect(outlast.fake.seen).toHaveLength(1);
  });

  test("on a connection that the upstream closed while it was idle is got over a new one", async () => {
    const outlast = await startQuick();
    const closing: Step = async (call, res) => {
      res.once("finish", () => setImmediate(() => res.req.socket.destroy()));
      await answer()(call, res);
    };
    outlast.fake.script(closing);
    expect((await outlast.post(path, hello)).status).toBe(200);
    await outlast.fake.idle();
    expect((await outlast.post(path, hello)).status).toBe(200);
  });
});
