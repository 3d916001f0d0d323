import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { hello, type Outlast, type OutlastOptions, startOutlast } from "../support/outlast.ts";
import { errorOf, rawCall, refusalOf, talk } from "./wire.ts";

let outlast: Outlast;

/** One server for a group of tests; each of them sees only its own calls. */
function serveWith(options: OutlastOptions): void {
  beforeAll(async () => {
    outlast = await startOutlast(options);
  });
  beforeEach(() => {
    outlast.fake.seen.length = 0;
    outlast.ear.heard.length = 0;
  });
  afterAll(() => outlast.close());
}

function expectUntouched(): void {
  expect(outlast.fake.seen).toEqual([]);
  expect(outlast.ear.all("accepted")).toEqual([]);
}

const json = { "Content-Type": "application/json" };
const paths = [
  "/v1/requests",
  "/v1/requests/req_x",
  "/v1/requests/counts",
  "/v1/requests/dead_letters",
  "/v1/bulks",
  "/v1/usage",
  "/v1/models",
  "/v1/models/m",
  "/v1/files",
  "/v1/x",
  "/v1",
  "/x",
];

describe("with API keys", () => {
  serveWith({ env: { OUTLAST_API_KEYS: "key-number-one, key-number-two" } });

  it.each([
    { authorization: "Bearer key-number-one" },
    { authorization: "Bearer key-number-two" },
    { authorization: "bearer   key-number-one " },
    { "api-key": "key-number-one" },
    { "x-api-key": "key-number-two" },
  ] as Record<string, string>[])("whoever shows one may call: %j", async (headers) => {
    const { post, fake } = outlast;
    expect((await post("/v1/chat/completions", hello, headers)).status).toBe(200);
    expect(JSON.stringify(fake.seen[0]!.rawHeaders)).not.toContain("key-number");
  });

  it("the SDK shows it as ever", async () => {
    const { client } = outlast;
    expect((await client({ apiKey: "key-number-one" }).chat.completions.create(hello)).object).toBe(
      "chat.completion",
    );
    const refused = await client({ apiKey: "wrong" })
      .chat.completions.create(hello)
      .catch((caught) => caught);
    expect(refused).toMatchObject({ status: 401, code: "invalid_api_key", type: "invalid_request_error" });
  });

  it.each([
    {},
    { authorization: "Bearer key-number-three" },
    { authorization: "Bearer key-number-on" },
    { authorization: "Bearer key-number-onee" },
    { authorization: "Bearer KEY-NUMBER-ONE" },
    { authorization: "Bearer" },
    { authorization: "Bearer " },
    { authorization: "Bearer key-number-one key-number-two" },
    { authorization: "Basic key-number-one" },
    { authorization: "key-number-one" },
    { "api-key": "key-number" },
    { "api-key": "" },
    { "x-api-key": "undefined" },
    { cookie: "api-key=key-number-one" },
  ] as Record<string, string>[])("nobody else may call anything: %j", async (headers) => {
    const { post, fetch } = outlast;
    const refusal = { status: 401, code: "invalid_api_key", param: null };
    expect(await refusalOf(await post("/v1/chat/completions", hello, headers))).toEqual(refusal);
    expect(await refusalOf(await post("/v1/chat/completions", { ...hello, stream: true }, headers))).toEqual(
      refusal,
    );
    expect(await refusalOf(await post("/v1/requests/req_x/cancel", {}, headers))).toEqual(refusal);
    for (const path of paths) expect(await refusalOf(await fetch(path, { headers }))).toEqual(refusal);
    expectUntouched();
  });

  it("a refusal does not say what was shown", async () => {
    const { post } = outlast;
    const response = await post("/v1/chat/completions", hello, { authorization: "Bearer key-that-is-wrong" });
    expect(JSON.stringify(await errorOf(response))).not.toContain("key-that-is-wrong");
  });

  it("health is for everyone", async () => {
    const { fetch } = outlast;
    for (const path of ["/healthz", "/readyz"]) expect((await fetch(path)).status).toBe(200);
  });

  it("hosts, origins and content types do not matter", async () => {
    const { url } = outlast;
    const key = { Authorization: "Bearer key-number-one" };
    const page = {
      Host: "proxy.example.test",
      Origin: "https://app.example.test",
      "Sec-Fetch-Site": "cross-site",
    };
    for (const type of [json, { "Content-Type": "text/plain" }, {}]) {
      const bytes = rawCall("POST /v1/chat/completions", { ...page, ...key, ...type }, JSON.stringify(hello));
      expect((await talk(url, bytes)).status).toBe(200);
    }
  });
});

const callAs = (headers: Record<string, string>) =>
  talk(outlast.url, rawCall("POST /v1/chat/completions", { ...json, ...headers }, JSON.stringify(hello)));

describe("without API keys, where the configuration names hosts", () => {
  serveWith({ env: { OUTLAST_ALLOWED_HOSTS: "box.local,Proxy.Test" } });

  it.each(["box.local:4080", "box.local", "proxy.test", "PROXY.test", "localhost"])(
    "%s is served",
    async (host) => {
      expect((await callAs({ Host: host })).status).toBe(200);
    },
  );

  it("others are not", async () => {
    expect((await callAs({ Host: "other.local" })).status).toBe(403);
    expectUntouched();
  });
});

describe("without API keys", () => {
  serveWith({});

  async function expectRefused(headers: Record<string, string>, code: string): Promise<void> {
    const { status, body } = await callAs(headers);
    expect(status).toBe(403);
    expect(JSON.parse(body)).toMatchObject({ error: { code, type: "invalid_request_error", param: null } });
    for (const path of paths)
      expect((await talk(outlast.url, rawCall(`GET ${path}`, headers))).status).toBe(403);
    expectUntouched();
  }

  it.each([
    "localhost",
    "localhost:4080",
    "LocalHost:80",
    "127.0.0.1",
    "127.0.0.1:4080",
    "127.8.9.10",
    "[::1]",
    "[::1]:4080",
  ])("the host %s is this machine", async (host) => {
    expect((await callAs({ Host: host })).status).toBe(200);
  });

  it.each([
    "evil.test",
    "evil.test:4080",
    "localhost.evil.test",
    "127.0.0.1.evil.test",
    "evil.test.127.0.0.1.nip.io",
    "10.0.0.1",
    "0.0.0.0",
    "[::2]",
    "localhost.",
  ])("the host %s is foreign: DNS rebinding reaches nothing", async (host) => {
    await expectRefused({ Host: host }, "foreign_host");
  });

  it("no host at all is foreign too", async () => {
    const { url, fake } = outlast;
    const body = JSON.stringify(hello);
    const head = `POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: ${body.length}`;
    expect((await talk(url, `${head}\r\n\r\n${body}`)).status).toBeGreaterThanOrEqual(400);
    expect(fake.seen).toEqual([]);
  });

  it.each([
    "evil.test:99999",
    "local host",
    "localhost/x",
    "user@localhost",
    "localhost#",
    "%",
    "[::1",
    "a\\b",
  ])("a host that is none gets an error in our words: %s", async (host) => {
    const { url, fake, fetch } = outlast;
    const { status, body } = await talk(url, rawCall("GET /v1/models", { Host: host }));
    expect([403, 404]).toContain(status);
    expect(["foreign_host", "not_found"]).toContain(JSON.parse(body).error.code);
    expect(fake.seen).toEqual([]);
    expect((await fetch("/healthz")).status).toBe(200);
  });

  it.each([
    { Origin: "https://evil.test" },
    { Origin: "null" },
    { Origin: "http://localhost:3000" },
    { Origin: "https://localhost" },
    { Origin: "" },
    { "Sec-Fetch-Site": "cross-site" },
    { "Sec-Fetch-Site": "same-site" },
  ] as Record<string, string>[])(
    "web pages of other origins may neither spend nor read: %j",
    async (headers) => {
      await expectRefused(headers, "foreign_origin");
    },
  );

  it.each([
    { Origin: "http://localhost:4080", Host: "localhost:4080" },
    { "Sec-Fetch-Site": "same-origin" },
    { "Sec-Fetch-Site": "none" },
  ] as Record<string, string>[])(
    "our own pages, and what is typed into the address bar, may: %j",
    async (headers) => {
      expect((await callAs(headers)).status).toBe(200);
    },
  );

  it.each([
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "",
    "application/jsonp",
    "text/json",
  ])("a body of type %j is refused, since any web page can send it", async (type) => {
    const { post } = outlast;
    for (const path of [
      "chat/completions",
      "embeddings",
      "responses",
      "completions",
      "moderations",
      "messages",
      ...["retry", "cancel", "resolve", "erase"].map((action) => `requests/${action}`),
      ...["retry", "replay", "resolve"].map((action) => `requests/req_x/${action}`),
    ]) {
      const response = await post(`/v1/${path}`, hello, { "content-type": type });
      expect(await refusalOf(response)).toEqual({
        status: 415,
        code: "unsupported_content_type",
        param: null,
      });
    }
    expectUntouched();
  });

  it("what has no body needs no type, and may not come from another page either", async () => {
    const { fetch } = outlast;
    for (const [method, path] of [
      ["POST", "requests/req_x/retry"],
      ["POST", "requests/req_x/replay"],
      ["POST", "requests/req_x/resolve"],
      ["DELETE", "requests/req_x"],
    ] as const) {
      expect((await refusalOf(await fetch(`/v1/${path}`, { method }))).code).toBe("request_not_found");
      const headers = { origin: "https://evil.test" };
      const foreign = await fetch(`/v1/${path}`, { method, headers });
      expect((await refusalOf(foreign)).code).toBe("foreign_origin");
    }
  });

  it("a body of another type goes where such bodies are taken", async () => {
    const { post, fake } = outlast;
    const type = "multipart/form-data; boundary=x";
    expect((await post("/v1/audio/transcriptions", "--x--", { "content-type": type })).status).toBe(200);
    expect(fake.seen[0]!.headers["content-type"]).toBe(type);
  });

  it.each([
    "application/json",
    "application/json; charset=utf-8",
    "Application/JSON",
    "application/problem+json",
  ])("a body of type %j is JSON", async (type) => {
    const { post } = outlast;
    expect((await post("/v1/chat/completions", hello, { "content-type": type })).status).toBe(200);
  });
});
