import { Agent, request } from "undici";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { errorSchema } from "../../src/contract.ts";
import { hello, type Outlast, startOutlast } from "../support/outlast.ts";
import { errorOf, openSocket, parseReply, rawCall, talk } from "./wire.ts";

let outlast: Outlast;
let agent: Agent;

beforeAll(async () => {
  outlast = await startOutlast({ env: { OUTLAST_MAX_BODY_SIZE: "20KB" } });
  // One connection, so that every call shows that the refusal before it left the connection in order.
  agent = new Agent({ connections: 1, pipelining: 1 });
});

afterAll(async () => {
  await agent.destroy();
  await outlast.close();
});

beforeEach(() => {
  outlast.ear.heard.length = 0;
});

const json = { "content-type": "application/json" };

async function post(body: string | Buffer | object, headers: Record<string, string> = {}) {
  const {
    statusCode,
    headers: replied,
    body: reply,
  } = await request(`${outlast.baseURL}/chat/completions`, {
    method: "POST",
    headers: { ...json, ...headers },
    body: typeof body === "string" || Buffer.isBuffer(body) ? body : JSON.stringify(body),
    dispatcher: agent,
  });
  const text = await reply.text();
  return new Response(text, { status: statusCode, headers: replied as Record<string, string> });
}

async function expectUntouched(): Promise<void> {
  expect(outlast.fake.seen).toEqual([]);
  expect(outlast.ear.heard).toEqual([]);
  expect((await outlast.fetch("/healthz")).status).toBe(200);
  expect(await (await outlast.fetch("/v1/requests")).json()).toMatchObject({ data: [], has_more: false });
}

async function expectRefused(response: Response, status: number, code: string, param: string | null) {
  const error = await errorOf(response);
  expect({ status: response.status, code: error.code, param: error.param }).toEqual({ status, code, param });
  expect(error.type).toBe("invalid_request_error");
  // A refusal says what is allowed, in words of ours.
  expect(error.message).toMatch(/^[A-Z`].{10,}\.$/s);
  expect(error.message).not.toMatch(/Invalid input|Invalid option|expected|received|undefined/);
  expect(response.headers.get("retry-after")).toBeNull();
  expect(response.headers.get("outlast-request-id")).toBeNull();
  await expectUntouched();
}

describe("a body that is no JSON object", () => {
  it.each([
    ["nothing", "", "invalid_json"],
    ["white space", " \n", "invalid_json"],
    ["half of it", '{"model":"m","messages":[', "invalid_json"],
    ["a trailing comma", '{"model":"m","messages":[],}', "invalid_json"],
    ["two of them", "{}{}", "invalid_json"],
    ["a form", "model=m&messages=x", "invalid_json"],
    ["NaN", '{"model":"m","messages":[],"seed":NaN}', "invalid_json"],
    ["bytes", Buffer.from([0, 255, 254, 1]), "invalid_json"],
    ["an array", "[]", "invalid_body"],
    ["a string", '"{}"', "invalid_body"],
    ["a number", "1", "invalid_body"],
    ["null", "null", "invalid_body"],
    ["true", "true", "invalid_body"],
  ])("%s", async (_name, body, code) => {
    await expectRefused(await post(body), 400, code, null);
  });
});

describe("a field of OpenAI's", () => {
  const { model, messages } = hello;
  it.each([
    ["model is missing", { messages }, "missing_required_parameter", "model"],
    ["messages are missing", { model }, "missing_required_parameter", "messages"],
    ["both are missing", {}, "missing_required_parameter", "model"],
    ["model is a number", { model: 4, messages }, "invalid_parameter", "model"],
    ["model is null", { model: null, messages }, "invalid_parameter", "model"],
    ["model is empty", { model: "", messages }, "invalid_parameter", "model"],
    ["model is endless", { model: "m".repeat(513), messages }, "invalid_parameter", "model"],
    ["messages are an object", { model, messages: {} }, "invalid_parameter", "messages"],
    ["messages are text", { model, messages: "Hello" }, "invalid_parameter", "messages"],
    ["messages are null", { model, messages: null }, "invalid_parameter", "messages"],
    ["stream is text", { model, messages, stream: "true" }, "invalid_parameter", "stream"],
    ["stream is a number", { model, messages, stream: 1 }, "invalid_parameter", "stream"],
    ...[true, 1, "include_usage", []].flatMap((stream_options): [string, object, string, string][] => {
      const what = `stream_options are ${JSON.stringify(stream_options)}`;
      const body = { model, messages, stream_options };
      return [
        [what, body, "invalid_parameter", "stream_options"],
        [`${what} of a stream`, { ...body, stream: true }, "invalid_parameter", "stream_options"],
      ];
    }),
  ])("%s", async (_name, body, code, param) => {
    await expectRefused(await post(body), 400, code, param);
  });

  it("is not found in a prototype", async () => {
    const body = '{"__proto__":{"model":"m","messages":[]},"constructor":{"wait":true}}';
    await expectRefused(await post(body), 400, "missing_required_parameter", "model");
  });
});

const long = (count: number) => Array.from({ length: count }, (_, i) => `tag-${i}`);

describe("a field of ours", () => {
  const fields: [Record<string, unknown>, string][] = [
    ...["yes", "true", "10", -1, 86_401, [], {}].map((wait): [Record<string, unknown>, string] => [
      { wait },
      "wait",
    ]),
    ...["x", 5, true, [], [{}]].map((outlast): [Record<string, unknown>, string] => [{ outlast }, "outlast"]),
  ];
  it.each(fields)("%j", async (field, param) => {
    await expectRefused(await post({ ...hello, ...field }), 400, "invalid_parameter", param);
    await expectRefused(await post({ ...hello, ...field, stream: true }), 400, "invalid_parameter", param);
  });

  it.each([5, true, {}, [], "", " ", "a b", "tab\there", "schlüssel", "x".repeat(256), "line\nbreak"])(
    "idempotency_key: %j",
    async (idempotency_key) => {
      const code = "invalid_idempotency_key";
      await expectRefused(await post({ ...hello, idempotency_key }), 400, code, "idempotency_key");
    },
  );

  it.each(["", '""', "a b", "x".repeat(256), "schl\u00fcssel", "a, b", '"a b"'])(
    "Idempotency-Key: %s",
    async (key) => {
      const response = await post(hello, { "idempotency-key": key });
      await expectRefused(response, 400, "invalid_idempotency_key", "idempotency_key");
    },
  );

  const options: [Record<string, unknown>, string][] = [
    [{ deadline: 0 }, "deadline"],
    [{ deadline: -5 }, "deadline"],
    [{ deadline: "soon" }, "deadline"],
    [{ deadline: "5 weeks" }, "deadline"],
    [{ deadline: "366d" }, "deadline"],
    [{ deadline: true }, "deadline"],
    [{ deadline: null }, "deadline"],
    [{ deadline: 1e300 }, "deadline"],
    [{ max_attempts: 0 }, "max_attempts"],
    [{ max_attempts: 1001 }, "max_attempts"],
    [{ max_attempts: 1.5 }, "max_attempts"],
    [{ max_attempts: "3" }, "max_attempts"],
    [{ priority: "high" }, "priority"],
    [{ priority: 1 }, "priority"],
    [{ run_at: "tomorrow" }, "run_at"],
    [{ run_at: "2026-01-01" }, "run_at"],
    [{ run_at: "2026-13-01T00:00:00Z" }, "run_at"],
    [{ run_at: "2026-01-01T00:00:00" }, "run_at"],
    [{ run_at: -1 }, "run_at"],
    [{ run_at: 1e300 }, "run_at"],
    [{ run_at: "9999-01-01T00:00:00Z" }, "run_at"],
    [{ run_at: {} }, "run_at"],
    [{ delay: -1 }, "delay"],
    [{ delay: "a while" }, "delay"],
    [{ delay: "366d" }, "delay"],
    [{ delay: [] }, "delay"],
    [{ delay: 5, run_at: "2020-01-01T00:00:00Z" }, "delay"],
    [{ upstream: "" }, "upstream"],
    [{ upstream: 5 }, "upstream"],
    [{ on_unknown: "maybe" }, "on_unknown"],
    [{ on_disconnect: true }, "on_disconnect"],
    [{ stream_mode: "slow" }, "stream_mode"],
    [{ stream_mode: true }, "stream_mode"],
    [{ stream_mode: null }, "stream_mode"],
    [{ tags: "a" }, "tags"],
    [{ tags: [""] }, "tags.0"],
    [{ tags: ["a", 5] }, "tags.1"],
    [{ tags: ["x".repeat(65)] }, "tags.0"],
    [{ tags: long(17) }, "tags"],
    [{ colour: "red" }, "colour"],
    [{ wait: true }, "wait"],
  ];
  it.each(options)("outlast: %j, in the body and in the header", async (outlast, name) => {
    const code = "invalid_parameter";
    await expectRefused(await post({ ...hello, outlast }), 400, code, `outlast.${name}`);
    const where = name === "delay" && "run_at" in outlast ? "outlast" : "Outlast-Options";
    const response = await post(hello, { "outlast-options": JSON.stringify(outlast) });
    await expectRefused(response, 400, code, `${where}.${name}`);
  });

  it.each(["", "deadline=5", "{", "[]", "5", "null"])("Outlast-Options: %s", async (text) => {
    await expectRefused(
      await post(hello, { "outlast-options": text }),
      400,
      "invalid_parameter",
      "Outlast-Options",
    );
  });

  it("names an upstream that there is not", async () => {
    const response = await post({ ...hello, outlast: { upstream: "nowhere" } });
    await expectRefused(response, 400, "upstream_not_found", "outlast.upstream");
  });

  it("of null is as good as none", async () => {
    const server = await startOutlast();
    const ours = { wait: null, idempotency_key: null, outlast: null };
    expect((await server.post("/v1/chat/completions", { ...hello, ...ours })).status).toBe(200);
    expect(server.fake.seen[0]!.body.toString()).toBe(JSON.stringify(hello));
    await server.close();
  });
});

describe("a body that is too large", () => {
  const large = JSON.stringify({ ...hello, user: "x".repeat(30_000) });

  it("is refused by its length, and the connection goes on", async () => {
    await expectRefused(await post(large), 413, "body_too_large", null);
    await expectRefused(await post("[]"), 400, "invalid_body", null);
  });

  it("is refused without a length too", async () => {
    const socket = await openSocket(outlast.url);
    const chunks = Array.from({ length: 30 }, () => `400\r\n${"x".repeat(1024)}\r\n`);
    const head = rawCall("POST /v1/chat/completions", {
      "Content-Type": "application/json",
      "Transfer-Encoding": "chunked",
      Connection: "keep-alive",
    });
    const first = await ask(socket, Buffer.concat([head, Buffer.from(`${chunks.join("")}0\r\n\r\n`)]));
    expect(first).toMatchObject({ status: 413 });
    expect(JSON.parse(first.body)).toMatchObject({ error: { code: "body_too_large" } });
    const second = await ask(socket, rawCall("GET /v1/requests", { Connection: "keep-alive" }));
    expect(second.status).toBe(200);
    socket.destroy();
    await expectUntouched();
  });

  it("is refused before it was sent, and a caller who does not stop sending is cut off", async () => {
    const head = rawCall("POST /v1/chat/completions", {
      "Content-Type": "application/json",
      "Content-Length": "1000000000",
    });
    const reply = await talk(outlast.url, Buffer.concat([head, Buffer.alloc(100_000, " ")]));
    expect(reply.status).toBe(413);
    await expectUntouched();
  });

  it("is what the limit says: one byte less is taken", async () => {
    const server = await startOutlast({ env: { OUTLAST_MAX_BODY_SIZE: "1000B" } });
    const body = (size: number) => JSON.stringify(hello).padEnd(size, " ");
    expect((await server.post("/v1/chat/completions", body(1001))).status).toBe(413);
    expect((await server.post("/v1/chat/completions", body(1000))).status).toBe(200);
    expect(server.fake.seen.map((call) => call.body.length)).toEqual([1000]);
    await server.close();
  });
});

/** One call on a connection that lives on; its reply has a length. */
function ask(socket: Awaited<ReturnType<typeof openSocket>>, bytes: Buffer) {
  return new Promise<ReturnType<typeof parseReply>>((resolve) => {
    let text = "";
    const onData = (piece: Buffer) => {
      text += piece.toString("latin1");
      const reply = parseReply(text);
      if (!text.includes("\r\n\r\n") || reply.body.length < Number(reply.headers["content-length"])) return;
      socket.off("data", onData);
      resolve(reply);
    };
    socket.on("data", onData);
    socket.write(bytes);
  });
}

describe("a connection that misbehaves", () => {
  it.each([
    ["no HTTP at all", "hello\r\n\r\n", 400],
    ["a method that there is not", "FETCH /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n", 400],
    ["HTTP of another version", "GET /v1/models HTTP/9.9\r\nHost: localhost\r\n\r\n", 400],
    ["no host", "GET /v1/models HTTP/1.1\r\n\r\n", 400],
    ["a header without a colon", "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nnonsense\r\n\r\n", 400],
    ["a length that is none", "POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n", 400],
    [
      "two lengths",
      "POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
      400,
    ],
    [
      "a length and chunks",
      "POST /v1/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
      400,
    ],
    [
      "chunks that are none",
      "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      400,
    ],
    [
      "headers without end",
      `GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: ${"x".repeat(20_000)}\r\n\r\n`,
      431,
    ],
  ])("%s", async (_name, bytes, status) => {
    const reply = await talk(outlast.url, bytes);
    expect(reply.status).toBe(status);
    await expectUntouched();
  });

  it.each([
    ["hello\r\n\r\n", 400, "This is not a valid HTTP request."],
    [
      `GET / HTTP/1.1\r\nHost: localhost\r\nX: ${"x".repeat(20_000)}\r\n\r\n`,
      431,
      "The headers are too long.",
    ],
  ])("and is told so in the shape of every other error", async (bytes, status, message) => {
    const reply = await talk(outlast.url, bytes);
    expect(reply.status).toBe(status);
    expect(errorSchema.parse(JSON.parse(reply.body)).error.message).toBe(message);
  });

  it.each(["OPTIONS *", "GET v1/models", "GET http://", "GET http://[::1/v1/models", "GET /v1/a\\b"])(
    "and asks for what is no address: %s",
    async (start) => {
      const reply = await talk(outlast.url, rawCall(start));
      if (reply.status !== 400) {
        expect(reply.status).toBe(404);
        expect(JSON.parse(reply.body)).toMatchObject({ error: { code: "not_found" } });
      }
      await expectUntouched();
    },
  );

  it.each([
    ["is cut", (socket: Awaited<ReturnType<typeof openSocket>>) => socket.destroy()],
    ["is reset", (socket: Awaited<ReturnType<typeof openSocket>>) => socket.resetAndDestroy()],
    ["is half closed", (socket: Awaited<ReturnType<typeof openSocket>>) => socket.end()],
  ])("and %s in the middle of a body", async (_name, leave) => {
    for (const path of ["/v1/chat/completions", "/v1/embeddings", "/v1/files"]) {
      for (const type of ["application/json", "application/octet-stream"]) {
        const socket = await openSocket(outlast.url);
        const closed = new Promise((resolve) => socket.once("close", resolve));
        const head = rawCall(`POST ${path}`, { "Content-Type": type, "Content-Length": "5000" });
        await new Promise<void>((resolve) =>
          socket.write(Buffer.concat([head, Buffer.alloc(100)]), () => resolve()),
        );
        socket.resume();
        leave(socket);
        await closed;
      }
    }
    await expectUntouched();
  });
});

describe("what is odd but right", () => {
  it("is taken: how to tell a stream, in a call that wants none", async () => {
    const server = await startOutlast();
    const body = { ...hello, stream_options: null, outlast: { stream_mode: "buffered" } };
    const headers = { "outlast-options": '{"stream_mode":"live"}' };
    expect((await server.post("/v1/chat/completions", body, headers)).status).toBe(200);
    const { outlast: _, ...sent } = body;
    expect(server.fake.seen[0]!.body.toString()).toBe(JSON.stringify(sent));
    await server.close();
  });

  it("is taken: a body nested deeply, keys that look like ours inside, empty messages", async () => {
    const server = await startOutlast();
    const deep = `{"model":"m","messages":[],"wait":true,"idempotency_key":"k","x":${"[".repeat(50_000)}${"]".repeat(50_000)}}`;
    const response = await server.post("/v1/chat/completions", deep);
    expect(response.status).toBe(200);
    expect(server.fake.seen[0]!.body.toString()).toBe(deep.replace('"wait":true,"idempotency_key":"k",', ""));
    const id = response.headers.get("outlast-request-id");
    const record = await server.fetch(`/v1/requests/${id}?include=body`);
    expect(await record.text()).toContain('"messages":[],"x":[[');
    await server.close();
  });
});
