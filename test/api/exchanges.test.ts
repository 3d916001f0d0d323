import { describe, expect, it } from "vitest";
import { answer, fail, html, reset } from "../support/fake-upstream.ts";
import { type Outlast, quick } from "../support/outlast.ts";
import { LedgerCalls } from "./ledger-calls.ts";
import { refusalOf, serveGroup, serveTest } from "./wire.ts";

let outlast: Outlast;
const calls = new LedgerCalls(() => outlast);
const body = '{"model":"gpt-test", "messages":[],"seed":9007199254740993,"x":1.0}';

describe("the bodies of attempts", () => {
  serveGroup(
    (one) => {
      outlast = one;
    },
    { env: quick },
  );

  const made = async (store: string) => {
    const headers = { "outlast-options": JSON.stringify({ store }), authorization: "Bearer sk-caller" };
    const response = await outlast.post("/v1/chat/completions", body, headers);
    await response.arrayBuffer();
    return response.headers.get("outlast-request-id")!;
  };

  it("are not told unless asked", async () => {
    const id = await made("all");
    for (const attempt of await calls.attempts(id)) expect(Object.keys(attempt)).not.toContain("request");
    const refused = await outlast.fetch(`/v1/requests/${id}/attempts?include=body`);
    expect(await refusalOf(refused)).toMatchObject({ code: "invalid_parameter", param: "include" });
  });

  it("with store all are those of every attempt, with numbers as they were written", async () => {
    const big = '{"id":"chatcmpl-big","n":9007199254740993,"choices":[]}';
    outlast.fake.script(fail(500, { code: "oops" }), html(502, "<p>Bad</p>"), reset(), answer({ body: big }));
    const id = await made("all");
    const text = await (await outlast.fetch(`/v1/requests/${id}/attempts?include=bodies`)).text();
    const attempts = await calls.attempts(id, "?include=bodies");
    expect(attempts.map(({ response }) => response?.status ?? null)).toEqual([500, 502, null, 200]);
    expect(attempts[0]!.response!.body).toMatchObject({ error: { code: "oops" } });
    expect(attempts[1]!.response!.body).toBe("<p>Bad</p>");
    for (const { request } of attempts) {
      expect(request).toMatchObject({ method: "POST", body: { x: 1 } });
      expect(request!.url).toContain("/chat/completions");
    }
    expect(text.split(`"body":${body}`)).toHaveLength(5);
    expect(text).toContain(`"body":${big}`);
    expect(text).not.toMatch(/sk-caller|sk-upstream/);
  });

  it.each(["last", "none"])("with store %s are those of the last attempt", async (store) => {
    outlast.fake.script(fail(500));
    const id = await made(store);
    expect(await calls.attempts(id, "?include=bodies")).toMatchObject([
      { number: 1, status: 500, request: null, response: null },
      { number: 2, request: { method: "POST" }, response: { status: 200 } },
    ]);
  });

  it.each(["all", "last"])("with store %s show no secret", async (store) => {
    const told = {
      "x-vault-token": "hush-1",
      "x-app-pwd": "hush-2",
      dpop: "hush-3",
      "x-client-cert": "hush-4",
      "helicone-auth": "hush-5",
      "x-note": "it is sk-live-hush6789",
      "x-trace": "abc",
    };
    const path = "/v1/chat/completions?code=hush-7&v=1";
    const headers = { "openai-organization": "hush-8", "x-debug": "key sk-live-hush9999", "x-other": "def" };
    outlast.fake.script(answer({ headers }));
    const made = await outlast.post(path, body, { ...told, "outlast-options": JSON.stringify({ store }) });
    await made.arrayBuffer();
    const id = made.headers.get("outlast-request-id");
    const text = await (await outlast.fetch(`/v1/requests/${id}/attempts?include=bodies`)).text();
    expect(text).not.toContain("hush");
    expect(text).toContain("completions?code=[redacted]&v=1");
    for (const pair of ['"x-trace","abc"', '"x-other","def"', '"dpop","[redacted]"'])
      expect(text).toContain(pair);
  });

  it("of a failed request are those of its last attempt", async () => {
    outlast.fake.script(fail(400, { code: "bad" }));
    const [only] = await calls.attempts(await made("last"), "?include=bodies");
    expect(only).toMatchObject({ response: { status: 400, body: { error: { code: "bad" } } } });
  });
});

describe("the bodies of an attempt that sent nothing", () => {
  it.each(["all", "last"])("are none with store %s", async (store) => {
    outlast = await serveTest({ env: { ...quick, OUTLAST_RETRY_UNREACHABLE_AFTER: "1ms" } });
    await outlast.fake.close();
    const id = await calls.finish({ outlast: { store } });
    for (const attempt of await calls.attempts(id, "?include=bodies")) {
      expect(attempt).toMatchObject({ verdict: "not_sent", request: null, response: null });
    }
  });
});

describe("what is stored where the configuration says so", () => {
  serveGroup(
    (one) => {
      outlast = one;
    },
    {
      env: quick,
      toml: '[defaults]\nstore = "all"',
      tables: '[routes."gpt-brief"]\ntargets = ["fake"]\nstore = "last"',
    },
  );

  it.each([
    ["gpt-test", undefined, true],
    ["gpt-test", "last", false],
    ["gpt-brief", undefined, false],
    ["gpt-brief", "all", true],
  ])("of %s, which asks for %s", async (model, store, isAll) => {
    outlast.fake.script(fail(500));
    const id = await calls.finish({ model, outlast: { store } });
    const [first, last] = await calls.attempts(id, "?include=bodies");
    expect([first!.request !== null, first!.response !== null]).toEqual([isAll, isAll]);
    expect([last!.request !== null, last!.response !== null]).toEqual([true, true]);
  });
});

describe("what is to be stored", () => {
  serveGroup((one) => {
    outlast = one;
  });

  it("is one of three", async () => {
    const refused = await outlast.post("/v1/chat/completions", {
      model: "m",
      messages: [],
      outlast: { store: true },
    });
    expect(await refusalOf(refused)).toMatchObject({ status: 400, param: "outlast.store" });
  });
});
