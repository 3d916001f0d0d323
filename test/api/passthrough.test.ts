import { createHash, randomBytes } from "node:crypto";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { Readable } from "node:stream";
import OpenAI from "openai";
import { Agent, request } from "undici";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { answer, closedPort, cut, deltas, fail, hang, type Step, stream } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions } from "../support/outlast.ts";
import { errorOf, openSocket, rawCall, refusalOf, serveGroup, serveTest, talk } from "./wire.ts";

let outlast: Outlast;

let agent: Agent;

beforeEach(() => {
  agent = new Agent();
});

afterEach(async () => {
  await agent.destroy();
});

async function start(options: OutlastOptions = {}) {
  outlast = await serveTest(options);
  return outlast;
}

const group = (options?: OutlastOptions) =>
  serveGroup((one) => {
    outlast = one;
  }, options);

async function recorded(): Promise<unknown[]> {
  return ((await (await outlast.fetch("/v1/requests")).json()) as { data: unknown[] }).data;
}

/** POST of bytes that nobody reads for us, piece by piece. */
function upload(path: string, pieces: Iterable<Buffer> | AsyncIterable<Buffer>) {
  return request(`${outlast.baseURL}${path}`, {
    method: "POST",
    headers: { "content-type": "application/octet-stream" },
    body: Readable.from(pieces, { objectMode: false }),
    dispatcher: agent,
  });
}

function promise() {
  let resolve = () => {};
  const settled = new Promise<void>((done) => {
    resolve = done;
  });
  return { settled, resolve };
}

describe("a stream of an endpoint that is only let through", () => {
  const path = "/v1/completions";
  const streamed = { model: "gpt-test", prompt: "Hello", stream: true as const };

  it("comes chunk by chunk: the first is there before the last is sent", async () => {
    const { fake, client } = await start();
    const last = promise();
    const [role, ...rest] = deltas("Hel", "lo");
    fake.script(stream([role!, last.settled, ...rest]));
    const chunks = (await client().completions.create(streamed))[Symbol.asyncIterator]();
    expect(JSON.stringify((await chunks.next()).value)).toBe(role);
    last.resolve();
    const others: string[] = [];
    for (let one = await chunks.next(); !one.done; one = await chunks.next()) {
      others.push(JSON.stringify(one.value));
    }
    expect(others).toEqual(rest);
    expect(fake.seen[0]!.body.toString()).toBe(JSON.stringify(streamed));
  });

  it("is what the upstream sends byte for byte, marked as not recorded", async () => {
    const { fake, post } = await start();
    const odd = Buffer.from(': ping\r\n\r\nid: 7\nevent: x\ndata: {"n":9007199254740993}\n\n');
    fake.script(stream([odd, ...deltas("Hi")], { headers: { "x-ratelimit-remaining-requests": "3" } }));
    const response = await post(path, streamed);
    expect(response.status).toBe(200);
    expect(Object.fromEntries(response.headers)).toMatchObject({
      "content-type": "text/event-stream",
      "outlast-recorded": "false",
      "outlast-upstream": "fake",
      "x-request-id": "fake-req-1",
      "x-ratelimit-remaining-requests": "3",
    });
    const events = [...deltas("Hi"), "[DONE]"].map((data) => `data: ${data}\n\n`);
    expect(await response.text()).toBe(odd.toString() + events.join(""));
    expect(await recorded()).toEqual([]);
  });

  it("carries neither our headers nor the caller's credentials to the upstream", async () => {
    const { fake, post } = await start({ upstreams: ["one", "two"] });
    const two = outlast.fakes.two!;
    two.script(stream(deltas("Hi")));
    const headers = {
      authorization: "Bearer mine",
      "idempotency-key": "k",
      prefer: "wait=3",
      cookie: "a=b",
      "outlast-options": '{"upstream":"two"}',
    };
    const response = await post(path, streamed, headers);
    expect(response.headers.get("outlast-upstream")).toBe("two");
    await response.text();
    expect(fake.seen).toHaveLength(0);
    expect(two.seen[0]!.body.toString()).toBe(JSON.stringify(streamed));
    expect(two.seen[0]!.headers.authorization).toBe("Bearer sk-upstream-two");
    expect(Object.keys(two.seen[0]!.headers)).not.toEqual(
      expect.arrayContaining([expect.stringMatching(/idempotency|prefer|cookie|outlast/)]),
    );
  });

  it("goes to the route's first target, under the name that the model has there", async () => {
    const { fakes, post } = await start({
      upstreams: ["one", "two"],
      toml: '[routes]\n"smart" = ["two/llama-70b", "one/gpt"]',
    });
    fakes.two!.script(stream(deltas("Hi")));
    await (await post(path, '{"stream":true, "model":"smart","prompt":"x","seed":9007199254740993}')).text();
    expect(fakes.two!.seen[0]!.body.toString()).toBe(
      '{"stream":true, "model":"llama-70b","prompt":"x","seed":9007199254740993}',
    );
  });

  it("that the upstream refuses is refused with its words", async () => {
    const { fake, client } = await start();
    fake.script(fail(429, { message: "Slow down." }, { "retry-after": "7" }));
    const error = await client()
      .completions.create(streamed)
      .catch((caught) => caught);
    expect(error).toBeInstanceOf(OpenAI.RateLimitError);
    expect(error).toMatchObject({ code: "rate_limit_exceeded", message: "429 Slow down." });
    expect(error.headers.get("retry-after")).toBe("7");
  });

  it.each([
    ["reset", stream(deltas("Hi").slice(0, 2), { end: "reset" })],
    ["cut before its length", cut({ after: 40 })],
  ])("that breaks off upstream (%s) breaks off for the caller: never a clean end", async (_name, step) => {
    const { fake, post } = await start();
    fake.script(step);
    const response = await post(path, streamed);
    expect(response.status).toBe(200);
    await expect(response.text()).rejects.toThrow("terminated");
  });

  it("that breaks off upstream is an error for the SDK too", async () => {
    const { fake, client } = await start();
    fake.script(stream(deltas("Hi").slice(0, 2), { end: "reset" }));
    const chunks = await client().completions.create(streamed);
    const read = async () => {
      for await (const _ of chunks);
    };
    await expect(read()).rejects.toThrow();
  });

  it("ends upstream when the caller hangs up", async () => {
    const { fake, client } = await start();
    fake.script(stream(deltas("Hi").slice(0, 2), { end: "hang" }));
    const chunks = await client().completions.create(streamed);
    for await (const _ of chunks) break;
    await fake.idle();
    expect(fake.seen).toHaveLength(1);
  });

  it("ends upstream when the caller hangs up before the first byte", async () => {
    const { fake, url } = await start();
    fake.script(hang());
    const socket = await openSocket(url);
    const json = { "Content-Type": "application/json" };
    socket.write(rawCall(`POST ${path}`, json, JSON.stringify(streamed)));
    await fake.calls(1);
    socket.destroy();
    await fake.idle();
  });

  it("that ends while the server stops does not keep it from stopping", async () => {
    const { fake, url, stop } = await start();
    const last = promise();
    fake.script(stream(["first", last.settled, "last"]));
    const socket = await openSocket(url);
    const closed = new Promise((resolve) => socket.once("close", resolve));
    const first = new Promise((resolve) => socket.once("data", resolve));
    const alive = { "Content-Type": "application/json", Connection: "keep-alive" };
    socket.write(rawCall(`POST ${path}`, alive, JSON.stringify(streamed)));
    await first;
    let said = "";
    socket.on("data", (piece) => {
      said += piece;
    });
    const stopping = stop();
    last.resolve();
    await Promise.all([stopping, closed]);
    expect(said).toContain("data: [DONE]");
  });

  it("is told that the upstream cannot be reached", async () => {
    const { post } = await start({ upstreams: { fake: await unreachable() } });
    const response = await post(path, streamed);
    expect(response.headers.get("outlast-recorded")).toBe("false");
    expect(await refusalOf(response)).toEqual({ status: 502, code: "upstream_unreachable", param: null });
  });
});

/** An upstream on whose port nobody listens. */
const unreachable = async () => at(await closedPort());

const at = (baseUrl: string) => ({ baseUrl, close: async () => {} }) as Outlast["fake"];

/** An upstream that acts before it has read the whole call. */
async function listening(onCall: RequestListener) {
  const server = createServer(onCall);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const close = () => {
    server.close();
    server.closeAllConnections();
  };
  return { fake: at(`http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`), close };
}

describe("other endpoints", () => {
  group();

  it("moderations and responses work as with the upstream itself", async () => {
    const { fake, client } = outlast;
    const verdict = { id: "modr-1", model: "m", results: [{ flagged: false }] };
    fake.script(
      answer({ body: verdict }),
      answer({ body: { id: "resp_1", object: "response", output: [] } }),
    );
    expect(await client().moderations.create({ model: "m", input: "x" })).toEqual(verdict);
    const response = await client().responses.create({ model: "gpt-test", input: "Hi" });
    expect(response).toMatchObject({ id: "resp_1", object: "response" });
    expect(fake.seen.map(({ url }) => url)).toEqual(["/v1/moderations", "/v1/responses"]);
    expect(await recorded()).toEqual([]);
  });

  it("take uploads byte for byte, with their length", async () => {
    const { fake, client } = outlast;
    fake.script(answer({ body: { text: "hello" } }));
    const bytes = randomBytes(300_000);
    const file = await OpenAI.toFile(bytes, "speech.wav");
    expect(await client().audio.transcriptions.create({ model: "whisper-1", file })).toEqual({
      text: "hello",
    });
    const { body, headers } = fake.seen[0]!;
    expect(body.includes(bytes)).toBe(true);
    expect(headers["content-type"]).toMatch(/^multipart\/form-data; boundary=/);
    expect(headers["content-length"]).toBe(String(body.length));
    expect(headers["transfer-encoding"]).toBeUndefined();
  });

  it("take uploads whose length nobody knows", async () => {
    const { fake } = outlast;
    const pieces = [Buffer.from("one "), Buffer.from([0, 255]), Buffer.from(" three")];
    const { statusCode, body } = await upload("/files", pieces);
    await body.dump();
    expect(statusCode).toBe(200);
    expect(fake.seen[0]!.body).toEqual(Buffer.concat(pieces));
  });

  it("give binary answers byte for byte", async () => {
    const { fake, client } = outlast;
    const bytes = randomBytes(200_000);
    fake.script(answer({ body: bytes, headers: { "content-type": "audio/mpeg" } }));
    const speech = await client().audio.speech.create({ model: "tts-1", voice: "alloy", input: "Hi" });
    expect(speech.headers.get("content-type")).toBe("audio/mpeg");
    expect(speech.headers.get("content-length")).toBe("200000");
    expect(Buffer.from(await speech.arrayBuffer())).toEqual(bytes);
  });

  it.each([
    ["GET", "/v1/files?limit=2&after=a%2Fb&x="],
    ["DELETE", "/v1/files/file-1"],
    ["PUT", "/v1/what/ever%20you%2Fwant"],
    ["PATCH", "/v1/x"],
    ["POST", "/v1/responses/resp_1/cancel"],
    ["OPTIONS", "/v1/x"],
    ["GET", "/v1/chat/completions/chatcmpl-1"],
    ["GET", "/v1/chat/completions?model=x"],
    ["POST", "/v1/chat/completions/chatcmpl-1"],
    ["DELETE", "/v1/chat/completions/chatcmpl-1"],
    ["GET", "/v1/"],
  ])("%s %s: the upstream's path, query and answer", async (method, path) => {
    const { fake, fetch } = outlast;
    fake.script(answer({ status: 203, body: `${method} done`, headers: { "content-type": "text/plain" } }));
    const response = await fetch(path, { method });
    expect([response.status, await response.text()]).toEqual([203, `${method} done`]);
    expect(fake.seen[0]).toMatchObject({ method, url: path });
    expect(fake.seen[0]!.body).toHaveLength(0);
    expect(fake.seen[0]!.headers.authorization).toBe("Bearer sk-upstream-fake");
    expect(response.headers.get("outlast-recorded")).toBe("false");
  });

  it("HEAD has the head of the answer and no body", async () => {
    const { fake, url } = outlast;
    fake.script((_call, res) => {
      res.writeHead(200, { "content-type": "audio/mpeg", "content-length": "123456", "x-odd": "1" });
      res.end();
    });
    const reply = await talk(url, rawCall("HEAD /v1/files/file-1/content"));
    expect(reply).toMatchObject({
      status: 200,
      body: "",
      headers: { "content-length": "123456", "x-odd": "1" },
    });
    expect(fake.seen[0]!.method).toBe("HEAD");
  });

  it.each([
    ["a 404", fail(404, { message: "No such file.", code: "not_found" }), 404],
    [
      "a redirect, which is not followed",
      answer({ status: 302, body: "", headers: { location: "https://elsewhere.test/x" } }),
      302,
    ],
    ["304", (_call, res) => void res.writeHead(304, { etag: '"1"' }).end(), 304],
    ["204", (_call, res) => void res.writeHead(204).end(), 204],
    ["500", fail(500, { message: "Oh." }), 500],
  ] as [string, Step, number][])("hand on %s", async (_name, step, status) => {
    const { fake, fetch } = outlast;
    fake.script(step);
    const response = await fetch("/v1/files/file-1", { redirect: "manual" });
    expect(response.status).toBe(status);
    if (status === 302) expect(response.headers.get("location")).toBe("https://elsewhere.test/x");
    if (status === 404) expect((await errorOf(response)).message).toBe("No such file.");
    expect(fake.seen).toHaveLength(1);
  });

  it("hand on encoded answers as they are", async () => {
    const { fake, url } = outlast;
    fake.script(answer({ body: "not really gzip", headers: { "content-encoding": "gzip" } }));
    const reply = await talk(url, rawCall("GET /v1/files", { "Accept-Encoding": "gzip" }));
    expect(reply).toMatchObject({ headers: { "content-encoding": "gzip" }, body: "not really gzip" });
    expect(fake.seen[0]!.headers["accept-encoding"]).toBe("gzip");
  });

  it("take JSON without our fields, and go to the upstream that serves its model", async () => {
    const { fakes, post } = await start({
      upstreams: ["one", "two"],
      toml: '[routes]\n"embed" = ["two/text-embedding-3"]',
    });
    const body = '{ "model":"embed", "input":"x" , "wait":true,"idempotency_key":"k","outlast":{"tags":[]}}';
    expect((await post("/v1/moderations", body)).headers.get("outlast-upstream")).toBe("two");
    expect(fakes.two!.seen[0]!.body.toString()).toBe('{ "model":"text-embedding-3", "input":"x"}');
    expect((await post("/v1/moderations", { input: "x" })).headers.get("outlast-upstream")).toBe("one");
    const named = { "outlast-options": '{"upstream":"two"}' };
    expect((await post("/v1/moderations", { input: "x" }, named)).headers.get("outlast-upstream")).toBe(
      "two",
    );
    expect((await post("/v1/completions", { model: "two/x" })).headers.get("outlast-upstream")).toBe("two");
    expect(fakes.two!.seen[2]!.body.toString()).toBe('{"model":"x"}');
  });

  it("refuse models and upstreams that nobody knows", async () => {
    const { post } = await start({ upstreamToml: 'models = ["gpt-*"]' });
    expect(await refusalOf(await post("/v1/moderations", { model: "embed" }))).toMatchObject({
      status: 404,
      code: "model_not_found",
      param: "model",
    });
    const nowhere = { "outlast-options": '{"upstream":"nowhere"}' };
    expect(await refusalOf(await post("/v1/moderations", { model: "gpt-4" }, nowhere))).toMatchObject({
      status: 400,
      code: "upstream_not_found",
      param: "outlast.upstream",
    });
    expect(await refusalOf(await post("/v1/moderations", { input: "x" }, nowhere))).toMatchObject({
      status: 400,
      code: "upstream_not_found",
    });
    expect(
      await refusalOf(await post("/v1/moderations", { input: "x" }, { "outlast-options": "{" })),
    ).toEqual({
      status: 400,
      code: "invalid_parameter",
      param: "Outlast-Options",
    });
  });

  it("leave JSON that does not parse to the upstream to refuse", async () => {
    const { fake, post } = outlast;
    fake.script(fail(400, { message: "Bad JSON." }));
    const response = await post("/v1/moderations", '{"model":');
    expect((await errorOf(response)).message).toBe("Bad JSON.");
    expect(fake.seen[0]!.body.toString()).toBe('{"model":');
  });

  it("leave no record", async () => {
    const { post, fetch, ear } = outlast;
    await post("/v1/moderations", { model: "e", input: "x", idempotency_key: "k" });
    await fetch("/v1/files");
    await post("/v1/responses", { model: "m", input: "x", wait: false });
    expect(await recorded()).toEqual([]);
    expect(ear.all("accepted")).toEqual([]);
  });
});

describe("large bodies", () => {
  const mib = 1024 * 1024;

  it("stream through in both directions, much larger than what may be held", async () => {
    const { fake } = await start({ env: { OUTLAST_MAX_BODY_SIZE: "64KB" } });
    fake.otherwise((call, res) => void res.end(call.body));
    const piece = randomBytes(mib);
    const sent = createHash("sha256");
    const pieces = function* () {
      for (let i = 0; i < 48; i++) {
        sent.update(piece);
        yield piece;
      }
    };
    const { body } = await upload("/files", pieces());
    const got = createHash("sha256");
    for await (const chunk of body) got.update(chunk);
    expect(got.digest("hex")).toBe(sent.digest("hex"));
  });

  it("wait for a slow reader instead of piling up, and warn of nothing", async () => {
    const { fake, baseURL } = await start();
    const piece = Buffer.alloc(mib, "x");
    let handedOver = 0;
    fake.script(async (_call, res) => {
      for (let i = 0; i < 200 && !res.destroyed; i++) {
        if (!res.write(piece))
          await new Promise((resolve) => res.once("drain", resolve).once("close", resolve));
        res.removeAllListeners("close");
        handedOver++;
      }
      res.end();
    });
    const warnings: Error[] = [];
    const onWarning = (warning: Error) => warnings.push(warning);
    process.on("warning", onWarning);
    const { body } = await request(`${baseURL}/files/file-1/content`, { dispatcher: agent });
    const reading = body[Symbol.asyncIterator]();
    let size = ((await reading.next()).value as Buffer).length;
    for (let turn = 0; turn < 500; turn++) await new Promise((resolve) => setImmediate(resolve));
    // Socket buffers hold some MiB; the other 180 wait upstream.
    expect(handedOver).toBeLessThan(60);
    for (let one = await reading.next(); !one.done; one = await reading.next()) size += one.value.length;
    expect(size).toBe(200 * mib);
    process.off("warning", onWarning);
    expect(warnings.map(({ message }) => message)).toEqual([]);
  });

  it("that the upstream refuses before it has read them are refused with its words", async () => {
    const early = await listening((_req, res) => {
      res.writeHead(413, { "content-type": "application/json", connection: "close" });
      res.end('{"error":{"message":"Too large.","type":"t","param":null,"code":"c"}}');
    });
    const { fetch } = await start({ upstreams: { fake: early.fake } });
    const endless = promise();
    const pieces = async function* () {
      yield Buffer.alloc(100_000);
      await endless.settled;
    };
    const { statusCode, body } = await upload("/files", pieces());
    expect([statusCode, await body.json()]).toMatchObject([413, { error: { message: "Too large." } }]);
    endless.resolve();
    early.close();
    expect((await fetch("/healthz")).status).toBe(200);
  });

  it("to an upstream that cannot be reached get an answer, not a broken connection", async () => {
    await start({ upstreams: { fake: await unreachable() } });
    for (const size of [10, 3 * mib]) {
      const { statusCode, body } = await upload("/files", [Buffer.alloc(size)]);
      expect([statusCode, await body.json()]).toMatchObject([
        502,
        { error: { code: "upstream_unreachable" } },
      ]);
    }
  });

  it("that their sender gives up on end upstream as well", async () => {
    const arrived = promise();
    const left = promise();
    const slow = await listening((req) => {
      req.on("error", () => {});
      req.once("close", left.resolve);
      req.once("data", arrived.resolve);
    });
    const { url } = await start({ upstreams: { fake: slow.fake } });
    const socket = await openSocket(url);
    const type = { "Content-Type": "application/octet-stream", "Content-Length": "1000000" };
    socket.write(Buffer.concat([rawCall("POST /v1/files", type), Buffer.alloc(1000)]));
    await arrived.settled;
    socket.destroy();
    await left.settled;
    slow.close();
  });

  it("of JSON keep to the limit", async () => {
    const { fake, post } = await start({ env: { OUTLAST_MAX_BODY_SIZE: "1KB" } });
    const response = await post("/v1/moderations", { model: "e", input: "x".repeat(2000) });
    expect(await refusalOf(response)).toEqual({ status: 413, code: "body_too_large", param: null });
    expect(fake.seen).toHaveLength(0);
  });
});

const keys =
  '[[api_keys]]\nkey = "key-of-user"\nproject = "a"\n[[api_keys]]\nkey = "key-of-operator"\nproject = "b"\nrole = "operator"\n';

describe("a path that climbs", () => {
  group({ tables: keys });

  it.each([
    "/v1/models/../files",
    "/v1/models/%2e%2e/files",
    "/v1/models/..%2ffiles",
    "/v1/models/x/%2E./..%2Ffiles",
    "/v1/models/..\\files",
    "/v1/models/..%5cfiles",
    "/v1/moderations/../files",
    "/v1/./files",
    "/v1/../v1/files",
    "/v1/../../admin",
    "/../v1/files",
  ])("never leads anywhere: %s", async (path) => {
    const { url, fake } = outlast;
    for (const who of ["user", "operator"]) {
      const reply = await talk(url, rawCall(`GET ${path}`, { Authorization: `Bearer key-of-${who}` }));
      expect(reply.status).toBe(404);
      expect(JSON.parse(reply.body)).toMatchObject({ error: { code: "not_found" } });
    }
    expect(fake.seen.filter(({ url: asked }) => asked !== "/v1/models")).toEqual([]);
  });
});

describe("what may pass", () => {
  const as = (who: string) => ({
    headers: { authorization: `Bearer key-of-${who}`, "content-type": "application/json" },
  });
  const body = JSON.stringify({ model: "m", input: "x" });

  it("with passthrough = off: nothing but what is recorded", async () => {
    const { fetch, post, fake } = await start({ env: { OUTLAST_PASSTHROUGH: "off" } });
    for (const path of ["/v1/files", "/v1/chat/completions/chatcmpl-1", "/v1/responses/resp_1"]) {
      expect(await refusalOf(await fetch(path))).toEqual({
        status: 404,
        code: "passthrough_off",
        param: null,
      });
    }
    expect((await refusalOf(await post("/v1/moderations", { model: "m" }))).code).toBe("passthrough_off");
    expect(fake.seen).toHaveLength(0);
    fake.script(stream(deltas("Hi")));
    const streamed = await post("/v1/chat/completions", { ...hello, stream: true });
    expect([streamed.status, await streamed.text()]).toEqual([200, expect.stringContaining("[DONE]")]);
    expect((await post("/v1/chat/completions", hello)).status).toBe(200);
    expect((await post("/v1/embeddings", { model: "m", input: "x" })).status).toBe(200);
  });

  it("with passthrough = inference: calls that spend tokens, and no path of the account", async () => {
    const { fetch, post, fake } = await start({ env: { OUTLAST_PASSTHROUGH: "inference" } });
    for (const path of [
      "/responses",
      "/moderations",
      "/completions",
      "/images/generations",
      "/audio/speech",
      "/messages",
      "/responses/compact",
    ]) {
      expect((await post(`/v1${path}`, { model: "m" })).status).toBe(200);
    }
    const before = fake.seen.length;
    for (const path of [
      "/v1/files",
      "/v1/responses/resp_1",
      "/v1/fine_tuning/jobs",
      "/v1/chat/completions/chatcmpl-1",
    ]) {
      expect(await refusalOf(await fetch(path))).toEqual({
        status: 404,
        code: "passthrough_off",
        param: null,
      });
    }
    expect((await refusalOf(await fetch("/v1/moderations", { method: "DELETE" }))).code).toBe(
      "passthrough_off",
    );
    expect(fake.seen).toHaveLength(before);
  });

  it("with several projects: paths of the account only for operators", async () => {
    const { fetch, fake } = await start({ tables: keys });
    for (const path of ["/v1/files", "/v1/responses/resp_1", "/v1/organization/admin_api_keys"]) {
      expect(await refusalOf(await fetch(path, as("user")))).toEqual({
        status: 403,
        code: "operator_only",
        param: null,
      });
      expect((await fetch(path, as("operator"))).status).toBe(200);
    }
    expect((await fetch("/v1/moderations", { method: "POST", body, ...as("user") })).status).toBe(200);
    expect(fake.seen).toHaveLength(4);
    expect(JSON.stringify(fake.seen.map(({ rawHeaders }) => rawHeaders))).not.toContain("key-of-");
  });

  it("with a single project: everything, for everyone with a key", async () => {
    const { fetch } = await start({ env: { OUTLAST_API_KEYS: "key-of-user,key-of-other" } });
    expect((await fetch("/v1/files", as("user"))).status).toBe(200);
    expect((await fetch("/v1/files")).status).toBe(401);
  });

  it("is also what names us by the whole URL, as calls to a proxy do", async () => {
    const { url, fake } = await start();
    const reply = await talk(url, rawCall(`GET ${url}/v1/files?x=1`));
    expect(reply.status).toBe(200);
    expect(fake.seen[0]!.url).toBe("/v1/files?x=1");
    const chat = rawCall(
      `POST ${url}/v1/chat/completions?y=2`,
      { "Content-Type": "application/json" },
      JSON.stringify(hello),
    );
    expect((await talk(url, chat)).status).toBe(200);
    expect(fake.seen[1]!.url).toBe("/v1/chat/completions?y=2");
  });
});
