/** What is refused when there is too much of it: callers, bytes in memory, requests that wait. */

import type { Socket } from "node:net";
import OpenAI from "openai";
import { describe, expect, test } from "vitest";
import { HandClock } from "../support/clock.ts";
import { answer, fail, gate, hang, stream } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions } from "../support/outlast.ts";
import { errorOf, openSocket, parseReply, type RawReply, rawCall, serveTest, talk } from "./wire.ts";

const path = "/v1/chat/completions";
const kept = { "Content-Type": "application/json", Connection: "keep-alive" };

function serve(limits: Record<string, string | number>, more: OutlastOptions = {}): Promise<Outlast> {
  const env = Object.fromEntries(
    Object.entries(limits).map(([name, value]) => [`OUTLAST_LIMITS_${name.toUpperCase()}`, String(value)]),
  );
  return serveTest({ luck: 0.5, ...more, env: { ...env, ...more.env } });
}

async function expectRefused(
  response: Response,
  status: number,
  type: string,
  code: string,
): Promise<number> {
  expect(response.status).toBe(status);
  expect(response.headers.get("x-should-retry")).toBe("true");
  const seconds = Number(response.headers.get("retry-after"));
  const ms = Number(response.headers.get("retry-after-ms"));
  expect(seconds).toBe(Math.ceil(ms / 1000));
  expect(ms).toBeGreaterThan(0);
  expect(ms).toBeLessThanOrEqual(60_000);
  expect(await errorOf(response)).toMatchObject({ type, code, param: null });
  return ms;
}
const overloaded = (response: Response) =>
  expectRefused(response, 503, "service_unavailable_error", "overloaded");
const queueFull = (response: Response) => expectRefused(response, 429, "rate_limit_error", "queue_full");

/** Reads one reply off a connection that stays open. */
function nextReply(socket: Socket): Promise<RawReply> {
  return new Promise((resolve, reject) => {
    let text = "";
    const onClose = () => reject(new Error(`closed behind ${JSON.stringify(text)}`));
    const onData = (piece: Buffer) => {
      text += piece.toString("latin1");
      const reply = parseReply(text);
      if (reply.body.length < Number(reply.headers["content-length"] ?? Number.POSITIVE_INFINITY)) return;
      socket.off("data", onData).off("close", onClose);
      resolve(reply);
    };
    socket.on("data", onData).on("close", onClose);
  });
}

/** A call whose reply is outstanding, on a connection of its own. */
async function held(outlast: Outlast, more: object = {}): Promise<Socket> {
  const calls = outlast.fake.seen.length + 1;
  const socket = await openSocket(outlast.url);
  socket.write(rawCall(`POST ${path}`, kept, JSON.stringify({ ...hello, ...more })));
  await outlast.fake.calls(calls);
  return socket;
}

const recordsOf = async (outlast: Outlast) =>
  ((await (await outlast.fetch("/v1/requests")).json()) as { data: unknown[] }).data;

describe("when as many callers are held as may be", () => {
  test("the next is refused, unread and unrecorded, and let in when somebody has left", async () => {
    const outlast = await serve({ max_held: 2 });
    const first = gate();
    outlast.fake.script(first.step, hang());
    const one = outlast.post(path, hello);
    await first.arrived;
    const other = await held(outlast);
    const refused = [
      outlast.post(path, hello),
      outlast.post(`${path}/`, hello),
      outlast.post("/v1/requestsFoo", {}),
      outlast.post("/v1/embeddings", { model: "m", input: "x" }),
      outlast.fetch("/v1/models"),
    ];
    for (const response of await Promise.all(refused)) await overloaded(response);
    expect(await recordsOf(outlast)).toHaveLength(2);
    expect(outlast.fake.seen).toHaveLength(2);

    first.release();
    expect((await one).status).toBe(200);
    expect((await outlast.post(path, hello)).status).toBe(200);
    other.destroy();
  });

  test("a body that has not been sent is not waited for", async () => {
    const outlast = await serve({ max_held: 1 });
    outlast.fake.otherwise(hang());
    const other = await held(outlast);
    const socket = await openSocket(outlast.url);
    socket.write(rawCall(`POST ${path}`, { ...kept, "Content-Length": "20000000" }));
    const reply = await nextReply(socket);
    expect(reply.status).toBe(503);
    expect(JSON.parse(reply.body)).toMatchObject({ error: { code: "overloaded" } });
    for (const one of [socket, other]) one.destroy();
  });

  test("look-ups and cancellations that end at once still work; those that wait do not", async () => {
    const outlast = await serve({ max_held: 1 });
    outlast.fake.otherwise(hang());
    const socket = await held(outlast);
    const [record] = (await recordsOf(outlast)) as { id: string }[];
    const { id } = record!;
    for (const where of [`requests/${id}`, `requests/${id}/attempts`, `chat/completions/${id}`]) {
      expect((await outlast.fetch(`/v1/${where}`)).status).toBeLessThan(300);
      const waiting = await talk(outlast.url, rawCall(`GET /v1/${where}?include=body&wait=5`));
      expect(waiting).toMatchObject({ status: 503, headers: { "x-should-retry": "true" } });
    }
    expect((await outlast.fetch("/healthz")).status).toBe(200);
    expect((await outlast.fetch("/readyz")).status).toBe(200);
    for (const where of ["requests/counts", "requests/dead_letters", "bulks", "usage"]) {
      expect((await outlast.fetch(`/v1/${where}`)).status).toBe(200);
    }
    const filter = { user: "nobody" };
    expect((await outlast.post("/v1/requests/cancel", { filter })).status).toBe(202);
    expect((await outlast.post("/v1/requests/erase", { filter })).status).toBe(202);
    expect((await outlast.post(`/v1/requests/${id}/replay`, {})).status).toBe(503);
    expect((await outlast.fetch("/v1/requests/req_x", { method: "DELETE" })).status).toBe(404);
    expect((await outlast.post(`/v1/requests/${id}/cancel`, {})).status).toBe(200);
    expect((await nextReply(socket)).status).toBe(400);
    outlast.fake.otherwise(answer());
    expect((await outlast.post(path, hello)).status).toBe(200);
    socket.destroy();
  });

  test("a refusal binds no idempotency key", async () => {
    const outlast = await serve({ max_held: 1 });
    outlast.fake.script(hang());
    const socket = await held(outlast);
    await overloaded(await outlast.post(path, hello, { "idempotency-key": "k" }));
    socket.destroy();
    await outlast.ear.event("accepted");
    const client = outlast.client({ maxRetries: 9 });
    const other = { ...hello, messages: [{ role: "user" as const, content: "another body" }] };
    const done = await client.chat.completions.create(other, { headers: { "Idempotency-Key": "k" } });
    expect(done.choices[0]!.message.content).toBe("ok");
  });

  test("a stock SDK that is refused gets its answer after a while", async () => {
    const outlast = await serve({ max_held: 1 });
    const first = gate();
    outlast.fake.script(first.step);
    const one = outlast.post(path, hello);
    await first.arrived;
    let refusals = 0;
    const stock = new OpenAI({
      baseURL: outlast.baseURL,
      apiKey: "caller-key",
      fetch: async (url, init) => {
        const response = await fetch(url, init);
        if (response.status === 503 && refusals++ === 0) first.release();
        return response;
      },
    });
    expect((await stock.chat.completions.create(hello)).choices[0]!.message.content).toBe("ok");
    expect(refusals).toBe(1);
    expect((await one).status).toBe(200);
  });
});

describe("the more are refused", () => {
  test("the later they are told to come back", async () => {
    const outlast = await serve({ max_queued: 1 }, { clock: new HandClock() });
    const body = JSON.stringify({ ...hello, wait: false, outlast: { delay: "1h" } });
    const call = rawCall(`POST ${path}`, { "Content-Type": "application/json" }, body);
    expect((await talk(outlast.url, call)).status).toBe(202);
    const told: number[] = [];
    for (let i = 0; i < 6; i++) told.push(Number((await talk(outlast.url, call)).headers["retry-after-ms"]));
    // A second for the share that is refused, and a little for the number.
    expect(told).toEqual([2001, 3003, 4004, 5006, 6007, 7008]);
  });

  test("those who come again too early on their connection are kept waiting for as long as they were told", async () => {
    const clock = new HandClock();
    const outlast = await serve({ max_held: 1 }, { clock });
    outlast.fake.otherwise(hang());
    const other = await held(outlast);
    const socket = await openSocket(outlast.url);
    const call = rawCall(`POST ${path}`, kept, JSON.stringify(hello));
    socket.write(call);
    const first = await nextReply(socket);
    let second: RawReply | undefined;
    const answered = nextReply(socket).then((reply) => {
      second = reply;
    });
    socket.write(call);
    // Answered on another connection, which was opened later.
    await overloaded(await outlast.post(path, hello));
    clock.advance(Number(first.headers["retry-after-ms"]) - 1);
    expect((await outlast.fetch("/healthz")).status).toBe(200);
    expect(second).toBeUndefined();
    clock.advance(1);
    await answered;
    expect(second!.status).toBe(503);
    for (const one of [socket, other]) one.destroy();
  });
});

describe("when as many bytes are in memory as may be", () => {
  const limits = { max_body_memory: "64KB" };
  const env = { OUTLAST_MAX_BODY_SIZE: "60KB" };
  const says = (bytes: number) => ({
    ...hello,
    messages: [{ role: "user" as const, content: "x".repeat(bytes) }],
  });

  test("a body that would not fit is refused by its length, and taken when there is room", async () => {
    const outlast = await serve(limits, { env });
    outlast.fake.otherwise(hang());
    const socket = await held(outlast, says(40_000));
    await overloaded(await outlast.post(path, says(40_000)));
    expect(outlast.fake.seen).toHaveLength(1);
    expect(await recordsOf(outlast)).toHaveLength(1);
    outlast.fake.otherwise(answer());
    expect((await outlast.post(path, says(1000))).status).toBe(200);

    const [record] = ((await recordsOf(outlast)) as { id: string; status: string }[]).slice(-1);
    await outlast.post(`/v1/requests/${record!.id}/cancel`, {});
    await nextReply(socket);
    expect((await outlast.post(path, says(40_000))).status).toBe(200);
    socket.destroy();
  });

  test("a body without a length is counted as it comes, and its connection goes on", async () => {
    const outlast = await serve(limits, { env });
    outlast.fake.otherwise(hang());
    const other = await held(outlast, says(40_000));
    const socket = await openSocket(outlast.url);
    socket.write(rawCall(`POST ${path}`, { ...kept, "Transfer-Encoding": "chunked" }));
    const chunk = `2000\r\n${"x".repeat(0x2000)}\r\n`;
    const reply = nextReply(socket);
    socket.write(chunk.repeat(6));
    expect((await reply).status).toBe(503);
    socket.write(`${chunk}0\r\n\r\n`);
    const next = nextReply(socket);
    socket.write(rawCall("GET /v1/requests", kept));
    expect((await next).status).toBe(200);
    expect(await recordsOf(outlast)).toHaveLength(1);
    for (const one of [socket, other]) one.destroy();
  });

  test("an answer that nobody reads counts until its caller goes", async () => {
    const outlast = await serve({ max_body_memory: "10MB" }, { env: { OUTLAST_MAX_BODY_SIZE: "1MB" } });
    const body = JSON.stringify({ id: "large", choices: [], text: "y".repeat(12 * 1024 * 1024) });
    outlast.fake.script(answer({ body }));
    const socket = await held(outlast);
    socket.pause();
    await outlast.ear.event("ended");
    // The reply is written in the turn in which its end is told, or the next.
    await outlast.fetch("/healthz");
    await overloaded(await outlast.post(path, hello));
    const closed = new Promise((resolve) => socket.once("close", resolve));
    socket.destroy();
    await closed;
    const client = outlast.client({ maxRetries: 9 });
    expect((await client.chat.completions.create(hello)).choices[0]!.message.content).toBe("ok");
  });
});

describe("when as many requests wait as may", () => {
  const later = { wait: false, outlast: { delay: "1h" } };

  test("the next is refused with 429; what starts at once is not, nor what the key of a known one names", async () => {
    const outlast = await serve({ max_queued: 2 });
    for (const key of ["a", "b"]) {
      const response = await outlast.post(path, { ...hello, ...later }, { "idempotency-key": key });
      expect(response.status).toBe(202);
    }
    await queueFull(await outlast.post(path, { ...hello, ...later }));
    await queueFull(await outlast.post(path, { ...hello, ...later }, { "idempotency-key": "c" }));
    expect((await outlast.post(path, { ...hello, ...later }, { "idempotency-key": "a" })).status).toBe(202);
    expect((await outlast.post(path, hello)).status).toBe(200);
    expect(await recordsOf(outlast)).toHaveLength(3);

    const [, record] = (await recordsOf(outlast)) as { id: string }[];
    await outlast.post(`/v1/requests/${record!.id}/cancel`, {});
    const other = { ...hello, ...later, temperature: 1 };
    expect((await outlast.post(path, other, { "idempotency-key": "c" })).status).toBe(202);
  });

  test("a retry without a key still finds the request that it has made before", async () => {
    const outlast = await serve({ max_queued: 1 }, { upstreamToml: "max_concurrency = 1" });
    const first = gate();
    outlast.fake.script(first.step);
    const socket = await held(outlast);
    await outlast.post(path, { ...hello, ...later });
    await queueFull(await outlast.post(path, hello, { "x-stainless-retry-count": "1" }));
    socket.resetAndDestroy();
    await outlast.ear.event("orphaned");
    const retry = outlast.post(path, hello, { "x-stainless-retry-count": "1" });
    await outlast.ear.event("adopted");
    first.release();
    expect((await retry).status).toBe(200);
    expect(outlast.fake.seen).toHaveLength(1);
  });

  test("no more are taken, however many come at once", async () => {
    const outlast = await serve({ max_queued: 5 });
    const calls = Array.from({ length: 40 }, () => outlast.post(path, { ...hello, ...later }));
    const statuses = (await Promise.all(calls)).map(({ status }) => status);
    expect(statuses.filter((status) => status === 202)).toHaveLength(5);
    expect(statuses.filter((status) => status === 429)).toHaveLength(35);
    expect(await recordsOf(outlast)).toHaveLength(5);
  });

  test("it is the same after a restart", async () => {
    const before = await serve({ max_queued: 1 });
    await before.post(path, { ...hello, ...later });
    await before.stop();
    const outlast = await serve({ max_queued: 1 }, { dir: before.dir, upstreams: before.fakes });
    await queueFull(await outlast.post(path, { ...hello, ...later }));
  });
});

test("after everything that can happen to callers, nothing is held and nothing is counted", async () => {
  const env = {
    OUTLAST_MAX_BODY_SIZE: "64KB",
    OUTLAST_DEFAULTS_HELD_MAX_ATTEMPTS: "1",
    // So much goes wrong here that it would open.
    OUTLAST_BREAKER_ENABLED: "false",
  };
  const upstreamToml = "min_concurrency = 256";
  const outlast = await serve({ max_held: 40, max_body_memory: "64KB" }, { env, luck: 0, upstreamToml });
  const { fake } = outlast;
  const body = (size: number, more: object = {}) => ({ ...hello, ...more, user: "x".repeat(size) });
  const raw = (headers: object, text: string, leave: "reset" | "end") => async () => {
    const socket = await openSocket(outlast.url);
    const closed = new Promise((resolve) => socket.once("close", resolve));
    socket.resume();
    socket.write(rawCall(`POST ${path}`, { ...kept, ...headers }));
    socket.write(text);
    await outlast.fetch("/healthz");
    if (leave === "reset") socket.resetAndDestroy();
    else socket.end();
    await closed;
  };
  const whole = JSON.stringify(body(3000));
  const length = { "Content-Length": String(whole.length) };
  const chunked = { "Transfer-Encoding": "chunked" };
  const ways: (() => Promise<unknown>)[] = [
    () => outlast.post(path, body(5000)),
    () => outlast.post(path, body(5000, { wait: false })),
    () => outlast.post(path, body(5000, { stream: true })),
    () => outlast.post("/v1/embeddings", body(5000)),
    () => outlast.post(path, body(70_000)),
    () => outlast.post(path, `{"model": ${"x".repeat(5000)}`),
    () => outlast.post(path, body(5000, { messages: 1 })),
    () => outlast.post(path, body(5000), { "idempotency-key": "the same" }),
    () => outlast.post("/v1/nowhere", body(5000)),
    () => outlast.post(path, body(5000), { host: "evil.example", origin: "http://evil.example" }),
    () => outlast.fetch("/v1/requests?limit=0"),
    raw(length, whole.slice(0, 1000), "reset"),
    raw(length, whole.slice(0, 1000), "end"),
    raw(length, whole, "reset"),
    raw(chunked, "400\r\nxxx", "reset"),
    raw(chunked, `7000\r\n${"x".repeat(0x7000)}\r\n`, "end"),
  ];
  fake.otherwise((call, res) => {
    const steps = [answer(), fail(500), stream(["{}"]), answer({ body: { text: "z".repeat(40_000) } })];
    return steps[call.n % steps.length]!(call, res);
  });
  for (let round = 0; round < 4; round++) {
    const calls = Array.from({ length: 4 }, () => ways.map((way) => way())).flat();
    const settled = await Promise.all(calls);
    await Promise.all(settled.map((one) => (one instanceof Response ? one.arrayBuffer() : one)));
  }

  // Fits if, and only if, nothing else is counted.
  const largest = JSON.stringify(hello).padEnd(64 * 1024, " ");
  fake.otherwise(answer());
  while ((await outlast.post(path, largest)).status !== 200);
  fake.otherwise(hang());
  const already = fake.seen.length;
  const sockets = await Promise.all(Array.from({ length: 40 }, () => openSocket(outlast.url)));
  for (const socket of sockets) socket.write(rawCall(`POST ${path}`, kept, JSON.stringify(hello)));
  await fake.calls(already + 40);
  expect((await talk(outlast.url, rawCall("GET /v1/models"))).status).toBe(503);
  for (const socket of sockets) socket.destroy();
});
