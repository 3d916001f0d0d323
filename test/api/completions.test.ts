import { gzipSync } from "node:zlib";
import OpenAI, { APIError } from "openai";
import { describe, expect, it } from "vitest";
import { answer, fail, html, type Step } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick } from "../support/outlast.ts";
import { openSocket, rawCall, serveGroup, serveTest, talk } from "./wire.ts";

let outlast: Outlast;

async function start(options: OutlastOptions = {}) {
  outlast = await serveTest(options);
  return outlast;
}

const group = (options?: OutlastOptions) =>
  serveGroup((one) => {
    outlast = one;
  }, options);

const limits = {
  "x-request-id": "fake-req-same",
  "x-ratelimit-limit-requests": "60",
  "x-ratelimit-remaining-tokens": "149984",
  "x-ratelimit-reset-requests": "6m0s",
};

function seenHeaders(headers: Headers | undefined) {
  const kept = [...(headers ?? [])].filter(
    ([name]) => name === "x-request-id" || name.startsWith("x-ratelimit-"),
  );
  return Object.fromEntries(kept);
}

/** All that a caller of the SDK can see of a call. */
async function whatTheCallerSees(client: OpenAI) {
  try {
    const { data, response, request_id } = await client.chat.completions.create(hello).withResponse();
    return { data, status: response.status, request_id, headers: seenHeaders(response.headers) };
  } catch (error) {
    if (!(error instanceof APIError)) throw error;
    const { status, code, type, param, message, requestID, error: body } = error;
    const seen = { status, code, type, param, message, requestID, body };
    return { ...seen, class: error.constructor.name, headers: seenHeaders(error.headers) };
  }
}

describe("a plain SDK call gets what the upstream itself would have given", () => {
  const cases: [string, Step, string][] = [
    ["200", answer({ text: "Hi", id: "chatcmpl-same", headers: limits }), "completed"],
    [
      "400 context_length_exceeded",
      fail(
        400,
        {
          code: "context_length_exceeded",
          param: "messages",
          message: "This model's maximum is 8192 tokens.",
        },
        limits,
      ),
      "failed",
    ],
    ["401", fail(401, { code: "invalid_api_key", message: "You are not allowed." }, limits), "failed"],
    ["403", fail(403, { code: "unsupported_country", message: "Not here." }, limits), "failed"],
    ["404", fail(404, { code: "model_not_found", message: "There is no such model." }, limits), "failed"],
    ["413", fail(413, { message: "Too large." }, limits), "failed"],
    ["422", fail(422, { message: "Unprocessable.", param: "tools[0]" }, limits), "failed"],
    [
      "429 insufficient_quota",
      fail(429, { code: "insufficient_quota", type: "insufficient_quota" }, limits),
      "failed",
    ],
    ["500, again and again", fail(500, { message: "Broken." }, limits), "failed"],
    ["an error page", html(502, "<html><body><h1>502 Bad Gateway</h1></body></html>"), "failed"],
    ["an error without a body", answer({ status: 500, body: "", headers: limits }), "failed"],
    ["an error whose body is no object", answer({ status: 400, body: '"no"', headers: limits }), "failed"],
    ["an error that is a string", answer({ status: 400, body: '{"error":"no"}', headers: limits }), "failed"],
  ];

  group({ env: { ...quick, OUTLAST_DEFAULTS_HELD_MAX_ATTEMPTS: "3", OUTLAST_FAILURE_ECHO: "0" } });

  it.each(cases)("%s", async (_name, step, state) => {
    const { fake, client, ear } = outlast;
    fake.otherwise(step);
    const direct = await whatTheCallerSees(new OpenAI({ baseURL: fake.baseUrl, apiKey: "k", maxRetries: 0 }));
    const through = await whatTheCallerSees(client());
    expect(through).toEqual(direct);
    expect((await ear.event("ended")).state).toBe(state);
  });

  it("also as raw bytes with every header of the answer that is not about the connection", async () => {
    const { fake, post } = outlast;
    fake.otherwise(
      answer({
        id: "chatcmpl-same",
        headers: { ...limits, "openai-processing-ms": "42", "x-odd": ["a", "b"] },
      }),
    );
    const direct = await fetch(`${fake.baseUrl}/chat/completions`, {
      method: "POST",
      body: JSON.stringify(hello),
    });
    const through = await post("/v1/chat/completions", hello);
    const notOurs = (response: Response) =>
      [...response.headers].filter(([name]) => !/^(outlast-|connection$|keep-alive$|date$)/.test(name));
    expect(notOurs(through)).toEqual(notOurs(direct));
    expect(await through.text()).toBe(await direct.text());
  });
});

describe("what reaches the upstream", () => {
  group();

  const bodies: [string, string][] = [
    ["pretty-printed JSON", JSON.stringify({ ...hello, temperature: 0 }, null, 2)],
    ["odd white space", ' \n{"model" : "gpt-test",\r\n\t"messages":[ ]\t} \n'],
    [
      "unknown fields",
      '{"model":"gpt-test","messages":[],"top_k":5,"x_vendor":{"a":[null]},"enable_thinking":true}',
    ],
    [
      "numbers beyond 2^53",
      '{"model":"gpt-test","messages":[],"seed":9007199254740993,"temperature":1.0,"t":1E2}',
    ],
    [
      "escapes",
      '{"model":"gpt-\\u0074est","messages":[{"role":"user","content":"\\u00e4\\/\\ud83d\\ude00 ä😀"}]}',
    ],
    ["duplicate keys", '{"model":"other","messages":[],"model":"gpt-test","seed":1,"seed":2}'],
    [
      "pictures and sounds",
      '{"model":"gpt-test","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,iVBORw0="}},{"type":"input_audio","input_audio":{"data":"UklGRg==","format":"wav"}}]}]}',
    ],
    [
      "tools and response_format",
      '{"model":"gpt-test","messages":[],"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"wait":{"type":"boolean"}}}}}],"response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{}}}}',
    ],
    [
      "our names where they are not ours",
      '{"model":"gpt-test","messages":[{"wait":true,"outlast":{}}],"metadata":{"idempotency_key":"k"}}',
    ],
    ["stream: false and null", '{"model":"gpt-test","messages":[],"stream":false,"stop":null}'],
  ];

  it.each(bodies)("is byte for byte what was sent: %s", async (_name, body) => {
    const { fake, post } = outlast;
    const response = await post("/v1/chat/completions", body);
    expect(response.status).toBe(200);
    expect(fake.seen[0]!.body.toString()).toBe(body);
    expect(fake.seen[0]!.headers["content-length"]).toBe(String(Buffer.byteLength(body)));
  });

  const cuts: [string, string, string][] = [
    [
      "before what is not ASCII",
      '{"wait":true,"model":"m","messages":[{"content":"é 漢 😀"}]}',
      '{"model":"m","messages":[{"content":"é 漢 😀"}]}',
    ],
    ["at the start", '{"wait":true, "model":"m","messages":[]}', '{"model":"m","messages":[]}'],
    [
      "in the middle",
      '{"model":"m",\n  "idempotency_key":"k",\n  "messages":[]}',
      '{"model":"m",\n  "messages":[]}',
    ],
    [
      "at the end",
      '{"model":"m","messages":[ ] , "outlast":{"tags":["a,}b"]} }',
      '{"model":"m","messages":[ ] }',
    ],
    [
      "everywhere, twice",
      '{"wait":5,"wait":6,"model":"m","outlast":{},"seed":9007199254740993,"idempotency_key":"k-2","messages":[],"w\\u0061it":7}',
      '{"model":"m","seed":9007199254740993,"messages":[]}',
    ],
  ];

  it.each(cuts)("is what was sent with our fields cut out: %s", async (_name, body, sent) => {
    const { fake, post } = outlast;
    const response = await post("/v1/chat/completions", body);
    expect(response.status).toBe(200);
    expect(fake.seen[0]!.body.toString()).toBe(sent);
  });

  it("keeps bytes that are no UTF-8, whether our fields are cut out or the model is renamed", async () => {
    const { fake, baseURL } = await start({ toml: '[routes]\n"alias" = ["fake/müde"]' });
    const body = (members: string) => {
      const [before = "", after = ""] = `{${members}"messages":[{"content":"?"}]}`.split("?");
      return Buffer.concat([Buffer.from(before), Buffer.from([0xff, 0xe4, 0x80]), Buffer.from(after)]);
    };
    const headers = { "content-type": "application/json" };
    for (const members of ['"model":"m","wait":true,', '"model":"alias",']) {
      await fetch(`${baseURL}/chat/completions`, { method: "POST", headers, body: body(members) });
    }
    expect(fake.seen[0]!.body).toEqual(body('"model":"m",'));
    expect(fake.seen[1]!.body).toEqual(body('"model":"müde",'));
  });

  it("is the same bytes on every attempt", async () => {
    const { fake, post } = await start({ env: quick });
    fake.script(fail(500), fail(503));
    const body = '{ "model":"gpt-test", "wait":true, "messages":[], "seed":9007199254740993 }';
    expect((await post("/v1/chat/completions", body)).status).toBe(200);
    const sent = fake.seen.map((call) => call.body.toString());
    expect(sent).toEqual(Array(3).fill('{ "model":"gpt-test", "messages":[], "seed":9007199254740993 }'));
    expect(new Set(fake.seen.map((call) => call.url))).toEqual(new Set(["/v1/chat/completions"]));
  });

  it("is recorded all the same where the path has a slash at its end", async () => {
    const response = await outlast.post("/v1/chat/completions/?a=1", hello);
    expect(response.status).toBe(200);
    expect(response.headers.get("outlast-request-id")).toMatch(/^req_/);
    expect(outlast.fake.seen[0]!.url).toBe("/v1/chat/completions?a=1");
  });

  it("has the query as it was sent", async () => {
    const { fake, post } = outlast;
    await post("/v1/chat/completions?api-version=2024-10-21&x=%20a+b&x=2&empty", hello);
    expect(fake.seen[0]!.url).toBe("/v1/chat/completions?api-version=2024-10-21&x=%20a+b&x=2&empty");
  });

  it("has the upstream's key, and neither the caller's credentials nor what is about the connection", async () => {
    const { fake, url } = outlast;
    const kept = {
      "Content-Type": "application/json",
      "OpenAI-Beta": "assistants=v2",
      "X-Custom": ["one", "two"],
    };
    const dropped = {
      Authorization: "Bearer caller-secret",
      "Api-Key": "caller-secret",
      "X-Api-Key": "caller-secret",
      Cookie: "session=1",
      Prefer: "wait=20",
      "Idempotency-Key": "k-1",
      "Outlast-Options": '{"tags":["a"]}',
      "X-Forwarded-For": "10.0.0.1",
      Forwarded: "for=10.0.0.1",
      Via: "1.1 proxy",
      Connection: "close, X-Hop",
      "X-Hop": "secret",
      TE: "trailers",
      "Proxy-Authorization": "Basic eA==",
      "Accept-Encoding": "gzip, br",
    };
    const bytes = rawCall("POST /v1/chat/completions", { ...kept, ...dropped }, JSON.stringify(hello));
    expect((await talk(url, bytes)).status).toBe(200);
    const { headers, rawHeaders } = fake.seen[0]!;
    expect(headers).toMatchObject({
      authorization: "Bearer sk-upstream-fake",
      "accept-encoding": "identity",
      "content-type": "application/json",
      "openai-beta": "assistants=v2",
      "x-custom": "one, two",
      host: new URL(fake.origin).host,
    });
    const expected = [
      "accept-encoding",
      "authorization",
      "connection",
      "content-length",
      "content-type",
      "host",
      "openai-beta",
    ];
    const names = rawHeaders.filter((_, i) => i % 2 === 0).map((name) => name.toLowerCase());
    expect([...names].sort()).toEqual([...expected, "x-custom", "x-custom"]);
    expect(JSON.stringify(rawHeaders)).not.toContain("secret");
  });

  it("has the headers that the upstream's table sets, in place of the caller's", async () => {
    const { fake, post } = await start({
      upstreamToml: 'headers = { "OpenAI-Organization" = "org-ours-1234", "X-Team" = "core" }',
    });
    await post("/v1/chat/completions", hello, { "openai-organization": "org-theirs", "x-team": "theirs" });
    expect(fake.seen[0]!.headers).toMatchObject({ "openai-organization": "org-ours-1234", "x-team": "core" });
  });
});

describe("a large body", () => {
  it("is asked for before it is sent, where the caller wants that", async () => {
    const { fake, url } = await start();
    const body = JSON.stringify({ ...hello, user: "x".repeat(2_000_000) });
    const socket = await openSocket(url);
    const pieces: Buffer[] = [];
    const told = new Promise<void>((resolve) => {
      socket.on("data", (piece) => {
        pieces.push(piece);
        resolve();
      });
    });
    const closed = new Promise((resolve) => socket.once("close", resolve));
    const head = {
      "Content-Type": "application/json",
      "Content-Length": String(body.length),
      Expect: "100-continue",
    };
    socket.write(rawCall("POST /v1/chat/completions", head));
    await told;
    expect(Buffer.concat(pieces).toString()).toBe("HTTP/1.1 100 Continue\r\n\r\n");
    socket.write(body);
    await closed;
    expect(Buffer.concat(pieces).toString()).toContain("HTTP/1.1 200 OK");
    expect(fake.seen[0]!.body.toString()).toBe(body);
    expect(fake.seen[0]!.headers.expect).toBeUndefined();
  });

  it("may come back too", async () => {
    const { fake, post, fetch } = await start();
    const body = `{"id":"chatcmpl-1","object":"chat.completion","choices":[],"text":"${"ä".repeat(5_000_000)}"}`;
    fake.script(answer({ body }));
    const response = await post("/v1/chat/completions", hello);
    expect((await response.text()) === body).toBe(true);
    const id = response.headers.get("outlast-request-id");
    expect((await (await fetch(`/v1/chat/completions/${id}`)).text()) === body).toBe(true);
  });
});

describe("what the caller gets back", () => {
  it("is the answer byte for byte, now and when it is read from the disk", async () => {
    const { fake, post, fetch } = await start();
    const body =
      '\n{ "id":"chatcmpl-odd","object":"chat.completion",\t"n":9007199254740993,\r\n"x":{"y":[1.0,1e3,"\\u00e4ä\\/"]},"choices":[] }\n\n';
    fake.script(answer({ body, headers: { "content-type": "application/json; charset=utf-8" } }));
    const response = await post("/v1/chat/completions", hello);
    expect(response.headers.get("content-type")).toBe("application/json; charset=utf-8");
    expect(await response.text()).toBe(body);
    const later = await fetch(`/v1/chat/completions/${response.headers.get("outlast-request-id")}`);
    expect(later.headers.get("content-type")).toBe("application/json; charset=utf-8");
    expect(await later.text()).toBe(body);
  });

  it("says which request it was, how often it was tried and who served it", async () => {
    const { fake, post } = await start({ env: quick });
    fake.script(fail(500));
    const { headers } = await post("/v1/chat/completions", hello);
    expect(headers.get("outlast-request-id")).toMatch(/^req_[0-9a-z]{26}$/);
    expect(headers.get("outlast-attempts")).toBe("2");
    expect(headers.get("outlast-upstream")).toBe("fake");
    expect(headers.get("x-should-retry")).toBeNull();
    expect(headers.get("idempotent-replayed")).toBeNull();
  });

  it.each([
    ["a permanent failure", fail(400), 1],
    ["exhaustion", fail(500, {}, { "x-should-retry": "true", "retry-after-ms": "1" }), 2],
  ])("tells SDKs not to retry after %s, and so they do not", async (_name, step, calls) => {
    const { fake, client, ear } = await start({ env: { ...quick, OUTLAST_DEFAULTS_HELD_MAX_ATTEMPTS: "2" } });
    fake.otherwise(step);
    const error = (await client({ maxRetries: 5 })
      .chat.completions.create(hello)
      .catch((caught) => caught)) as APIError;
    expect(error).toBeInstanceOf(APIError);
    expect(error.headers?.get("x-should-retry")).toBe("false");
    expect(error.headers?.get("outlast-request-id")).toMatch(/^req_/);
    expect(error.headers?.get("outlast-attempts")).toBe(String(calls));
    expect(error.headers?.get("outlast-upstream")).toBe("fake");
    expect(fake.seen).toHaveLength(calls);
    expect(ear.all("accepted")).toHaveLength(1);
  });

  it("is readable when the upstream encodes it against our wish", async () => {
    const { fake, client, fetch } = await start();
    const completion = {
      id: "chatcmpl-zip",
      object: "chat.completion",
      choices: [],
      usage: { total_tokens: 3 },
    };
    const headers = { "content-encoding": "gzip" };
    fake.script(answer({ body: gzipSync(JSON.stringify(completion)), headers }));
    const { data, response } = await client().chat.completions.create(hello).withResponse();
    expect(data).toEqual(completion);
    expect(response.headers.get("content-encoding")).toBeNull();
    const record = await (await fetch("/v1/requests/chatcmpl-zip")).json();
    expect(record).toMatchObject({ result: completion, usage: { total_tokens: 3 } });
  });

  it("names its own request, also where the upstream is such a proxy itself", async () => {
    const { fake, post } = await start();
    const theirs = {
      "outlast-request-id": "req_theirs",
      "outlast-attempts": "7",
      "outlast-upstream": "theirs",
      "outlast-recorded": "false",
      "idempotent-replayed": "true",
      "preference-applied": "wait=3",
    };
    fake.otherwise(answer({ headers: theirs }));
    const { headers } = await post("/v1/chat/completions", hello);
    expect(headers.get("outlast-request-id")).toMatch(/^req_[0-9a-z]{26}$/);
    expect([headers.get("outlast-attempts"), headers.get("outlast-upstream")]).toEqual(["1", "fake"]);
    for (const name of ["outlast-recorded", "idempotent-replayed", "preference-applied"]) {
      expect(headers.get(name)).toBeNull();
    }
    const letThrough = await post("/v1/completions", { model: "gpt-test", prompt: "x", stream: true });
    expect(letThrough.headers.get("outlast-upstream")).toBe("fake");
    expect(letThrough.headers.get("outlast-recorded")).toBe("false");
    expect(letThrough.headers.get("outlast-request-id")).toBeNull();
  });

  it("keeps the provider's cookies and site policies to itself", async () => {
    const { fake, post } = await start();
    fake.script(
      answer({
        headers: {
          "set-cookie": "__cf_bm=1",
          "alt-svc": 'h3=":443"',
          "strict-transport-security": "max-age=1",
        },
      }),
    );
    const names = [...(await post("/v1/chat/completions", hello)).headers.keys()];
    expect(names).not.toEqual(expect.arrayContaining(["set-cookie"]));
    expect(names.filter((name) => /cookie|alt-svc|strict/.test(name))).toEqual([]);
  });
});

describe("a provider's error", () => {
  const message =
    "Incorrect API key provided: sk-proj-Ab3***********9xYz for org-Zm9vYmFyMTIzNDU2. Bearer eyJhbGciOiJIUzI1NiJ9.e30.x was sk-upstream-fake.";
  const secrets = ["sk-proj", "9xYz", "org-Zm9v", "eyJhbG", "sk-upstream-fake", "org-QUJDREVG12345"];

  it("is told, stored and delivered without keys and organisation ids", async () => {
    const { fake, post, fetch, ear } = await start();
    fake.otherwise(
      fail(401, { message, code: "invalid_api_key" }, { "openai-organization": "org-QUJDREVG12345" }),
    );
    const response = await post("/v1/chat/completions", hello);
    expect(response.status).toBe(401);
    const id = response.headers.get("outlast-request-id");
    const alert = await ear.event("alert");
    expect(alert).toMatchObject({ status: 401, code: "invalid_api_key", lane: "fake/gpt-test" });
    const everything = [
      await response.text(),
      JSON.stringify([...response.headers]),
      await (await fetch(`/v1/requests/${id}?include=attempts`)).text(),
      await (await fetch(`/v1/requests/${id}/attempts`)).text(),
      await (await fetch(`/v1/chat/completions/${id}`)).text(),
      JSON.stringify(ear.heard),
    ];
    for (const text of everything) for (const secret of secrets) expect(text).not.toContain(secret);
    expect(everything[0]).toContain("Incorrect API key provided: [redacted]");
    expect(everything[3]).toContain("Incorrect API key provided: [redacted]");
  });

  it.each([
    ["streamed", "/v1/chat/completions", { ...hello, stream: true }],
    ["of embeddings", "/v1/embeddings", { model: "e", input: "x" }],
    ["of another endpoint", "/v1/moderations", { model: "e", input: "x" }],
  ])("is delivered without them also where the call is %s", async (_name, path, body) => {
    const { fake, post } = await start();
    const said = JSON.stringify({ error: { message, type: "t", param: null, code: "invalid_api_key" } });
    const headers = { "openai-organization": "org-QUJDREVG12345", "x-request-id": "prov-1" };
    fake.script(
      fail(401, { message, code: "invalid_api_key" }, headers),
      answer({ status: 403, body: gzipSync(said), headers: { ...headers, "content-encoding": "gzip" } }),
    );
    for (const status of [401, 403]) {
      const response = await post(path, body);
      expect([response.status, response.headers.get("x-request-id")]).toEqual([status, "prov-1"]);
      const everything = JSON.stringify([...response.headers]) + (await response.text());
      for (const secret of secrets) expect(everything).not.toContain(secret);
      expect(everything).toContain("Incorrect API key provided: [redacted]");
    }
  });

  it("that is no JSON is cleaned just the same", async () => {
    const { fake, post } = await start();
    fake.otherwise(html(403, `<h1>${message}</h1>`));
    const text = await (await post("/v1/chat/completions", hello)).text();
    for (const secret of secrets) expect(text).not.toContain(secret);
  });

  it("is recorded with its code, message and status", async () => {
    const { fake, post, fetch } = await start();
    fake.script(fail(422, { code: "bad_tool", message: "No such tool.", param: "tools" }));
    const response = await post("/v1/chat/completions", hello);
    const record = await (await fetch(`/v1/requests/${response.headers.get("outlast-request-id")}`)).json();
    const error = { code: "bad_tool", message: "No such tool.", param: "tools", status: 422 };
    expect(record).toMatchObject({ status: "failed", last_error_code: "bad_tool", result: null, error });
  });
});

describe("an answer that is none", () => {
  const env = { ...quick, OUTLAST_DEFAULTS_HELD_MAX_ATTEMPTS: "2" };

  it("with status 200 and an error inside is tried again, then reported as a failure", async () => {
    const { fake, client } = await start({ env });
    fake.script(answer({ body: { error: { message: "overloaded", code: "overloaded" } } }));
    expect((await client().chat.completions.create(hello)).choices[0]?.message.content).toBe("ok");
    fake.otherwise(answer({ body: { error: { message: "overloaded", code: "overloaded" } } }));
    const error = (await client()
      .chat.completions.create(hello)
      .catch((caught) => caught)) as APIError;
    expect(error).toMatchObject({ status: 502, code: "overloaded", message: "502 overloaded" });
  });

  it("with status 200 and broken JSON is tried again, then 502 upstream_bad_answer", async () => {
    const { fake, client } = await start({ env });
    fake.otherwise(answer({ body: '{"id":"chatcmpl-1","choices":[' }));
    const error = (await client()
      .chat.completions.create(hello)
      .catch((caught) => caught)) as APIError;
    expect(error).toMatchObject({ status: 502, code: "upstream_bad_answer" });
    expect(fake.seen).toHaveLength(2);
  });
});
