import OpenAI from "openai";
import { afterAll, beforeEach, describe, expect, it } from "vitest";
import { answer, fail, gate, hang } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick } from "../support/outlast.ts";
import {
  errorOf,
  openSocket,
  rawCall,
  refusalOf,
  serveGroup,
  serveTest,
  strictAsync,
  strictRequest,
  WatchedClock,
} from "./wire.ts";

let outlast: Outlast;

async function start(options: OutlastOptions = {}) {
  outlast = await serveTest(options);
  return outlast;
}

const group = (options?: OutlastOptions) =>
  serveGroup((one) => {
    outlast = one;
  }, options);

type Headers_ = Record<string, string>;
let key = { "idempotency-key": "k-1" };

function post(body: unknown = hello, headers: Headers_ = key): Promise<Response> {
  return outlast.post("/v1/chat/completions", body, headers);
}

/** What of a reply says which request and which answer it is. */
async function seen(response: Response) {
  return {
    status: response.status,
    id: response.headers.get("outlast-request-id"),
    replayed: response.headers.get("idempotent-replayed"),
    text: await response.text(),
  };
}

async function record(id: string | null) {
  return strictRequest.parse(await (await outlast.fetch(`/v1/requests/${id}?include=attempts`)).json());
}

const reused = { status: 400, code: "idempotency_key_reused", param: "idempotency_key" };
const invalid = { status: 400, code: "invalid_idempotency_key", param: "idempotency_key" };

describe("a key", () => {
  const places: [string, object, Headers_][] = [
    ["in the header", {}, { "idempotency-key": "k-1" }],
    ["in the header, in quotes", {}, { "idempotency-key": '"k-1"' }],
    ["in the header, with space around it", {}, { "Idempotency-Key": "  k-1 " }],
    ["in the body", { idempotency_key: "k-1" }, {}],
    ["in both", { idempotency_key: "k-1" }, { "idempotency-key": "k-1" }],
    ["in both, in quotes in the header", { idempotency_key: "k-1" }, { "idempotency-key": '"k-1"' }],
  ];

  it("is the same wherever it stands", async () => {
    const { fake } = await start();
    const first = await seen(await post(hello));
    for (const [, body, headers] of places) {
      expect(await seen(await post({ ...hello, ...body }, headers))).toEqual({ ...first, replayed: "true" });
    }
    expect(fake.seen).toHaveLength(1);
    expect((await record(first.id)).idempotency_key).toBe("k-1");
  });

  it("that differs between header and body is refused, and binds nothing", async () => {
    const { fake } = await start();
    expect(await refusalOf(await post({ ...hello, idempotency_key: "k-2" }, key))).toEqual(invalid);
    expect(fake.seen).toHaveLength(0);
    for (const one of ["k-1", "k-2"]) {
      expect((await seen(await post(hello, { "idempotency-key": one }))).replayed).toBeNull();
    }
  });

  it.each(["x".repeat(256), "a b", "", "schl\u00fcssel"])("of wrong form is refused: %s", async (wrong) => {
    const { fake } = await start();
    expect(await refusalOf(await post({ ...hello, idempotency_key: wrong }, {}))).toEqual(invalid);
    expect(await refusalOf(await post(hello, { "idempotency-key": wrong }))).toEqual(invalid);
    expect(fake.seen).toHaveLength(0);
  });

  it("may have 255 visible characters, of every kind", async () => {
    await start();
    const every = Array.from({ length: 94 }, (_, i) => String.fromCharCode(33 + i)).join("");
    for (const right of ["x".repeat(255), every, "'; DROP TABLE requests; --".replaceAll(" ", "_")]) {
      const first = await seen(await post({ ...hello, idempotency_key: right }, {}));
      const second = await seen(await post({ ...hello, idempotency_key: right }, {}));
      expect(second).toEqual({ ...first, replayed: "true" });
    }
  });
});

describe("a replay", () => {
  it("is the answer again, byte for byte, without what was only true then", async () => {
    const { fake } = await start();
    const body = '{ "id":"chatcmpl-1","n":9007199254740993,\n"choices":[] }';
    const headers = {
      "x-request-id": "prov-1",
      "x-ratelimit-remaining-requests": "9",
      "x-ratelimit-reset-tokens": "1s",
      "openai-processing-ms": "12",
    };
    fake.script(answer({ body, headers }));
    const first = await post();
    expect(first.headers.get("x-ratelimit-remaining-requests")).toBe("9");
    const second = await post();
    expect(await second.text()).toBe(body);
    expect([...second.headers.keys()].filter((name) => name.startsWith("x-ratelimit"))).toEqual([]);
    expect(Object.fromEntries(second.headers)).toMatchObject({
      "content-type": "application/json",
      "idempotent-replayed": "true",
      "outlast-request-id": first.headers.get("outlast-request-id"),
      "outlast-attempts": "1",
      "outlast-upstream": "fake",
      "openai-processing-ms": "12",
      "x-request-id": "prov-1",
    });
    expect(fake.seen).toHaveLength(1);
  });

  it("is the same for those who wait, who do not, and who come back for it", async () => {
    const { fake } = await start();
    const first = await seen(await post());
    for (const ours of [
      { wait: true },
      { wait: false },
      { wait: 3 },
      { outlast: { tags: ["x"], deadline: 9 } },
    ]) {
      expect(await seen(await post({ ...hello, ...ours }))).toEqual({ ...first, replayed: "true" });
    }
    expect(fake.seen).toHaveLength(1);
  });

  it("is the error, where the request failed for good", async () => {
    const { fake } = await start();
    fake.script(
      fail(400, { code: "bad", message: "No." }, { "retry-after": "5", "x-ratelimit-limit-requests": "1" }),
    );
    const first = await seen(await post());
    const second = await post();
    expect(second.headers.get("x-should-retry")).toBe("false");
    expect(second.headers.get("retry-after")).toBeNull();
    expect(second.headers.get("x-ratelimit-limit-requests")).toBeNull();
    expect(await seen(second)).toEqual({ ...first, status: 400, replayed: "true" });
    expect(fake.seen).toHaveLength(1);
  });

  it.each([401, 403, 404, 413, 422])("is the error %d", async (status) => {
    const { fake } = await start();
    fake.script(fail(status, { code: "bad" }));
    await post();
    const second = await seen(await post());
    expect(second).toMatchObject({ status, replayed: "true" });
    expect(fake.seen).toHaveLength(1);
  });

  it("is 400 request_cancelled, where the request was cancelled", async () => {
    const { fake, fetch } = await start();
    const async_ = { ...hello, wait: false, outlast: { delay: 60 } };
    const { id } = strictAsync.parse(await (await post(async_)).json());
    await fetch(`/v1/requests/${id}/cancel`, { method: "POST" });
    for (const again of [async_, hello]) {
      const response = await post(again);
      expect(response.headers.get("idempotent-replayed")).toBe("true");
      expect(response.headers.get("outlast-request-id")).toBe(id);
      expect(await refusalOf(response)).toEqual({ status: 400, code: "request_cancelled", param: null });
    }
    expect(fake.seen).toHaveLength(0);
  });

  it("works after a restart on the same directory, for answers and for errors", async () => {
    const first = await start();
    first.fake.script(answer({ text: "once" }), fail(422, { code: "bad" }));
    const good = await seen(await post());
    const bad = await seen(await post(hello, { "idempotency-key": "k-2" }));
    await first.stop();
    await start({ dir: first.dir, upstreams: first.fakes });
    expect(await seen(await post())).toEqual({ ...good, replayed: "true" });
    expect(await seen(await post(hello, { "idempotency-key": "k-2" }))).toEqual({ ...bad, replayed: "true" });
    expect(await refusalOf(await post({ ...hello, seed: 1 }))).toEqual(reused);
    expect(first.fake.seen).toHaveLength(2);
  });
});

describe("the same key while the request is under way", () => {
  it("joins it: fifty at once make one call, and all get its answer", async () => {
    const clock = new WatchedClock();
    const { fake, ear } = await start({ clock });
    const held = gate();
    fake.script(held.step);
    const calling = Array.from({ length: 50 }, () => post());
    await clock.armed(280_000, 50);
    held.release(answer({ text: "for all" }));
    const replies = await Promise.all(calling.map(async (one) => seen(await one)));
    expect(new Set(replies.map((reply) => JSON.stringify(reply))).size).toBe(1);
    expect(replies[0]).toMatchObject({ status: 200, replayed: null });
    expect(replies[0]!.text).toContain("for all");
    expect(fake.seen).toHaveLength(1);
    expect(ear.all("accepted")).toHaveLength(1);
  });

  it("joins it through its retries, and its failure is everyone's", async () => {
    const { fake } = await start({ env: { ...quick, OUTLAST_DEFAULTS_HELD_MAX_ATTEMPTS: "2" } });
    const held = gate();
    fake.script(held.step, fail(500, { message: "Still broken." }));
    const calling = [post(), post()];
    await held.arrived;
    held.release(fail(500));
    const replies = await Promise.all(calling.map(async (one) => seen(await one)));
    expect(replies[0]).toMatchObject({ status: 500, text: expect.stringContaining("Still broken.") });
    expect(fake.seen).toHaveLength(2);
  });

  it("gives the same id to those who do not wait, and a place on the line to those who do", async () => {
    const clock = new WatchedClock();
    const { fake } = await start({ clock });
    const held = gate();
    fake.script(held.step);
    const ids = await Promise.all(
      Array.from({ length: 5 }, async () => {
        const response = await post({ ...hello, wait: false });
        expect(response.status).toBe(202);
        return strictAsync.parse(await response.json()).id;
      }),
    );
    expect(new Set(ids).size).toBe(1);
    const waiting = post({ ...hello, wait: 7 });
    const plain = post();
    await Promise.all([clock.armed(7000), clock.armed(280_000)]);
    clock.advance(7000);
    expect(strictAsync.parse(await (await waiting).json())).toMatchObject({
      id: ids[0],
      status: "processing",
    });
    held.release();
    expect(await seen(await plain)).toMatchObject({ status: 200, id: ids[0] });
    expect(fake.seen).toHaveLength(1);
  });

  it("refuses another body", async () => {
    const { fake } = await start();
    fake.script(hang());
    await post({ ...hello, wait: false });
    await fake.calls(1);
    expect(await refusalOf(await post({ ...hello, seed: 1 }))).toEqual(reused);
    expect(fake.seen).toHaveLength(1);
  });

  it("is found again after a 504 still_running: the SDK's own retry gets the answer", async () => {
    class Client extends OpenAI {
      protected override idempotencyHeader = "Idempotency-Key";
    }
    const clock = new WatchedClock();
    const { fake, baseURL } = await start({ clock });
    const held = gate();
    fake.script(held.step);
    const client = new Client({ baseURL, apiKey: "k", maxRetries: 1 });
    const calling = client.chat.completions.create(hello);
    await fake.calls(1);
    clock.advance(280_000);
    await clock.armed(280_000, 2);
    held.release(answer({ text: "at last" }));
    expect((await calling).choices[0]?.message.content).toBe("at last");
    expect(fake.seen).toHaveLength(1);
  });
});

describe("the same key with another body", () => {
  group();
  let keys = 0;
  const usual = key;
  beforeEach(() => {
    key = { "idempotency-key": `body-${++keys}` };
  });
  afterAll(() => {
    key = usual;
  });

  const base = '{"model":"gpt-test","messages":[{"role":"user","content":"Hello"}],"seed":1,"user":"A"}';
  const others: [string, string][] = [
    ["another model", base.replace("gpt-test", "gpt-other")],
    ["another message", base.replace("Hello", "hello")],
    ["a field more", base.replace('"seed"', '"top_p":1,"seed"')],
    ["a field less", base.replace('"seed":1,', "")],
    ["1.0 for 1", base.replace('"seed":1', '"seed":1.0')],
    ["another spelling of the same text", base.replace('"A"', '"\\u0041"')],
    ["null for nothing", base.replace('"seed"', '"stop":null,"seed"')],
    ["messages in another order", base.replace("[{", '[{"role":"system","content":"x"},{')],
    ["a key twice", base.replace('"seed":1', '"seed":1,"seed":1')],
    ["our names where they are not ours", base.replace('"role"', '"wait":true,"role"')],
  ];

  it.each(others)("is refused: %s", async (_name, other) => {
    const { fake } = outlast;
    const first = await seen(await post(base));
    const response = await post(other);
    expect(response.headers.get("outlast-request-id")).toBe(first.id);
    const error = await errorOf(response);
    expect({ status: response.status, code: error.code, param: error.param }).toEqual(reused);
    expect(fake.seen).toHaveLength(1);
  });

  it.each([
    ["9007199254740993", "9007199254740994"],
    ["1e2", "100"],
    ["0.1", "0.10"],
    ["-0", "0"],
  ])("is refused where only the text of a number differs: %s and %s", async (one, two) => {
    await post(base.replace('"seed":1', `"seed":${one}`));
    expect(await refusalOf(await post(base.replace('"seed":1', `"seed":${two}`)))).toEqual(reused);
  });

  it("is refused where only bytes differ that are no UTF-8", async () => {
    const { baseURL } = outlast;
    const send = (byte: number) => {
      const body = Buffer.concat([
        Buffer.from('{"model":"m","messages":["'),
        Buffer.from([byte]),
        Buffer.from('"]}'),
      ]);
      return fetch(`${baseURL}/chat/completions`, {
        method: "POST",
        headers: { ...key, "content-type": "application/json" },
        body,
      });
    };
    expect((await send(0xff)).status).toBe(200);
    expect((await send(0xff)).headers.get("idempotent-replayed")).toBe("true");
    expect(await refusalOf(await send(0xfe))).toEqual(reused);
  });

  const sames: [string, string][] = [
    [
      "keys in another order",
      '{"user":"A","seed":1,"messages":[{"content":"Hello","role":"user"}],"model":"gpt-test"}',
    ],
    ["other white space", JSON.stringify(JSON.parse(base), null, 4)],
    ["escaped keys", base.replace('"seed"', '"\\u0073eed"')],
    ["our fields", base.replace("{", '{"wait":3,"outlast":{"tags":["x"]},')],
    ["stream: false", base.replace('"seed"', '"stream":false,"stream_options":null,"seed"')],
  ];

  it.each(sames)("is the same where it differs in nothing but %s", async (_name, same) => {
    const { fake } = outlast;
    const first = await seen(await post(base));
    expect(await seen(await post(same))).toEqual({ ...first, replayed: "true" });
    expect(fake.seen).toHaveLength(1);
  });

  it("of duplicate keys is the same byte for byte only", async () => {
    const twice = '{"model":"m","messages":[],"seed":1,"seed":2}';
    await post(twice);
    expect((await seen(await post(twice))).replayed).toBe("true");
    expect(await refusalOf(await post(twice.replace(",", ", ")))).toEqual(reused);
  });
});

describe("the scope of a key", () => {
  it("is the project", async () => {
    const tables = ["a", "b"]
      .map((name) => `[[api_keys]]\nkey = "key-of-${name}"\nproject = "${name}"\n`)
      .join("");
    const more = '[[api_keys]]\nkey = "key-two-of-a"\nproject = "a"\n';
    const { fake } = await start({ tables: tables + more });
    const as = (apiKey: string) => ({ ...key, authorization: `Bearer ${apiKey}` });
    const ofA = await seen(await post(hello, as("key-of-a")));
    const ofB = await seen(await post({ ...hello, seed: 1 }, as("key-of-b")));
    expect(ofB).toMatchObject({ status: 200, replayed: null });
    expect(ofB.id).not.toBe(ofA.id);
    expect(await seen(await post(hello, as("key-two-of-a")))).toEqual({ ...ofA, replayed: "true" });
    expect(fake.seen).toHaveLength(2);
  });

  it("is the endpoint, and what is only let through has none", async () => {
    const { fake } = await start();
    await post();
    for (let i = 0; i < 2; i++) {
      const response = await outlast.post("/v1/moderations", { model: "e", input: "x" }, key);
      expect(response.headers.get("idempotent-replayed")).toBeNull();
    }
    const streamed = { model: "m", prompt: "x", stream: true };
    const response = await outlast.post("/v1/completions", streamed, key);
    expect(response.headers.get("idempotent-replayed")).toBeNull();
    expect(fake.seen).toHaveLength(4);
    expect(fake.seen.every(({ headers }) => headers["idempotency-key"] === undefined)).toBe(true);
  });

  it("is one request each: other keys and no key make calls of their own", async () => {
    const { fake } = await start();
    for (const headers of [
      key,
      { "idempotency-key": "k-2" },
      { "idempotency-key": "K-1" },
      {},
      {},
    ] as Headers_[]) {
      expect((await seen(await post(hello, headers))).replayed).toBeNull();
    }
    expect(fake.seen).toHaveLength(5);
  });
});

describe("a refusal never binds the key:", () => {
  const refusals: [string, unknown, number][] = [
    ["a wrong option", { ...hello, outlast: { deadline: "soon" } }, 400],
    ["an unknown upstream", { ...hello, outlast: { upstream: "nowhere" } }, 400],
    ["no messages", { model: "gpt-test" }, 400],
    ["no JSON", "{", 400],
    ["a model that nobody serves", { ...hello, model: "claude" }, 404],
    ["a body above the limit", { ...hello, user: "x".repeat(5000) }, 413],
  ];

  it.each(refusals)("%s", async (_name, wrong, status) => {
    const { fake } = await start({
      upstreamToml: 'models = ["gpt-*"]',
      env: { OUTLAST_MAX_BODY_SIZE: "4KB" },
    });
    expect((await post(wrong)).status).toBe(status);
    expect(await seen(await post())).toMatchObject({ status: 200, replayed: null });
    expect(fake.seen).toHaveLength(1);
  });

  it("a missing API key", async () => {
    await start({ env: { OUTLAST_API_KEYS: "key-number-one" } });
    expect((await post()).status).toBe(401);
    const right = { ...key, authorization: "Bearer key-number-one" };
    expect((await seen(await post(hello, right))).replayed).toBeNull();
  });
});

describe("the key of a request that failed in vain", () => {
  const env = { ...quick, OUTLAST_DEFAULTS_HELD_MAX_ATTEMPTS: "2" };

  it("starts a new round on the same record, whose attempts go on counting", async () => {
    const { fake } = await start({ env });
    fake.script(fail(500), fail(500, { message: "Round one is over." }), fail(500));
    const first = await seen(await post());
    expect(first).toMatchObject({ status: 500, replayed: null });
    const second = await post();
    expect(second.headers.get("outlast-attempts")).toBe("4");
    expect(await seen(second)).toMatchObject({ status: 200, id: first.id, replayed: null });
    const found = await record(first.id);
    expect(found).toMatchObject({ status: "completed", attempts: 4, error: null });
    const rounds = found.attempt_list?.map(({ number, round, verdict }) => [number, round, verdict]);
    expect(rounds).toEqual([
      [1, 1, "transient"],
      [2, 1, "transient"],
      [3, 2, "transient"],
      [4, 2, "success"],
    ]);
    expect(await seen(await post())).toMatchObject({ status: 200, id: first.id, replayed: "true" });
    expect(fake.seen).toHaveLength(4);
  });

  it("does so again and again, and never shows an old round's error as the new one's", async () => {
    const { fake } = await start({ env });
    for (const round of [1, 2, 3]) {
      fake.script(fail(500), fail(503, { message: `Round ${round} is over.` }));
      const reply = await seen(await post());
      expect(reply).toMatchObject({
        status: 503,
        replayed: null,
        text: expect.stringContaining(`Round ${round} is over.`),
      });
    }
    expect(fake.seen).toHaveLength(6);
  });

  it("starts one round for twenty who ask at once", async () => {
    const clock = new WatchedClock();
    const { fake } = await start({ clock, env: { OUTLAST_DEFAULTS_HELD_MAX_ATTEMPTS: "1" } });
    fake.script(fail(500));
    const first = await seen(await post());
    const held = gate();
    fake.script(held.step);
    const calling = Array.from({ length: 20 }, () => post());
    await clock.armed(280_000, 21);
    held.release();
    const replies = await Promise.all(calling.map(async (one) => seen(await one)));
    expect(new Set(replies.map(({ status, id }) => `${status} ${id}`))).toEqual(new Set([`200 ${first.id}`]));
    expect(fake.seen).toHaveLength(2);
  });

  it("starts a round for one who does not wait, which then is queued", async () => {
    const { fake } = await start({ env });
    fake.script(fail(500), fail(500));
    const first = await seen(await post());
    const response = await post({ ...hello, wait: false });
    expect(response.status).toBe(202);
    expect(strictAsync.parse(await response.json()).id).toBe(first.id);
    const ended = await outlast.fetch(`/v1/requests/${first.id}?wait=30`);
    expect(await ended.json()).toMatchObject({ status: "completed", attempts: 3 });
  });

  it("starts a round after its deadline too, with a deadline of its own", async () => {
    const clock = new WatchedClock();
    const { fake } = await start({ clock });
    fake.script(hang());
    const calling = post({ ...hello, outlast: { deadline: 5 } });
    await fake.calls(1);
    clock.advance(5000);
    const first = await seen(await calling);
    expect(first.status).toBe(504);
    expect(await seen(await post({ ...hello, outlast: { deadline: 60 } }))).toMatchObject({
      status: 200,
      id: first.id,
    });
    const found = await record(first.id);
    expect(found.deadline_at).toBe(new Date(clock.now() + 60_000).toISOString());
  });

  it("still refuses another body", async () => {
    const { fake } = await start({ env });
    fake.script(fail(500), fail(500));
    await post();
    expect(await refusalOf(await post({ ...hello, seed: 1 }))).toEqual(reused);
  });
});

describe("with the SDK", () => {
  class Client extends OpenAI {
    protected override idempotencyHeader = "Idempotency-Key";
  }

  it("the idiomatic subclass sends a key of its own for each call", async () => {
    const { fake, baseURL, ear, fetch } = await start();
    const client = new Client({ baseURL, apiKey: "k", maxRetries: 0 });
    await client.chat.completions.create(hello);
    await client.chat.completions.create(hello);
    expect(fake.seen).toHaveLength(2);
    const keys = await Promise.all(
      ear.all("accepted").map(async ({ id }) => {
        return ((await (await fetch(`/v1/requests/${id}`)).json()) as { idempotency_key: string })
          .idempotency_key;
      }),
    );
    expect(new Set(keys).size).toBe(2);
    expect(keys[0]).toMatch(/^stainless-node-retry-/);
  });

  it("the caller's own key replays", async () => {
    const { fake, baseURL } = await start();
    const client = new Client({ baseURL, apiKey: "k", maxRetries: 0 });
    const first = await client.chat.completions.create(hello, { idempotencyKey: "mine" });
    const second = await client.chat.completions.create(hello, { idempotencyKey: "mine" });
    expect(second).toEqual(first);
    await expect(
      client.chat.completions.create({ ...hello, seed: 1 }, { idempotencyKey: "mine" }),
    ).rejects.toMatchObject({
      status: 400,
      code: "idempotency_key_reused",
    });
    expect(fake.seen).toHaveLength(1);
  });

  it("a retry after a broken connection finds the request that the first try began", async () => {
    const { fake, baseURL } = await start();
    const held = gate();
    fake.script(held.step);
    let tries = 0;
    const client = new Client({
      baseURL,
      apiKey: "k",
      maxRetries: 1,
      fetch: async (url, init) => {
        if (++tries > 1) return fetch(url as string, init as RequestInit);
        const stop = new AbortController();
        const first = fetch(url as string, { ...(init as RequestInit), signal: stop.signal });
        await held.arrived;
        stop.abort();
        return first;
      },
    });
    const calling = client.chat.completions.create(hello).catch((caught) => caught);
    await held.arrived;
    held.release(answer({ text: "only once" }));
    expect((await calling).choices?.[0]?.message.content).toBe("only once");
    expect(fake.seen).toHaveLength(1);
  });
});

describe("a key that is known", () => {
  it("is replayed also where no new work is accepted", async () => {
    const { dir, fake } = await start();
    const first = await seen(await post());
    await outlast.stop();
    outlast = await start({ dir, upstreams: { fake }, env: { OUTLAST_STORE_MIN_FREE_DISK: "1000000GB" } });
    expect((await post(hello, { "idempotency-key": "new" })).status).toBe(503);
    expect(await seen(await post())).toEqual({ ...first, replayed: "true" });
  });

  it("is replayed also where its model is served no more", async () => {
    const { dir, fake } = await start();
    const first = await seen(await post());
    await outlast.stop();
    outlast = await start({ dir, upstreams: { fake }, upstreamToml: 'models = ["another"]' });
    expect((await post(hello, { "idempotency-key": "new" })).status).toBe(404);
    expect(await seen(await post())).toEqual({ ...first, replayed: "true" });
  });
});

describe("callers who share a request", () => {
  it("do not cancel it for one who was told to come back", async () => {
    const clock = new WatchedClock();
    const { url, fake, ear } = await start({ clock });
    const held = gate();
    fake.script(held.step);
    const cancelling = { ...hello, outlast: { on_disconnect: "cancel" } };
    const { id } = (await (await post({ ...cancelling, wait: false })).json()) as { id: string };
    const joiner = await openSocket(url);
    const headers = { ...key, "Content-Type": "application/json" };
    joiner.write(rawCall("POST /v1/chat/completions", headers, JSON.stringify(cancelling)));
    await clock.armed(280_000, 1);
    joiner.destroy();
    await outlast.fetch("/healthz");
    held.release();
    expect((await ear.event("ended")).state).toBe("completed");
    expect((await record(id)).status).toBe("completed");
  });

  it("do not lose it because one of them hangs up", async () => {
    const clock = new WatchedClock();
    const { url, fake, ear } = await start({ clock });
    const held = gate();
    fake.script(held.step);
    const body = JSON.stringify({ ...hello, outlast: { on_disconnect: "cancel" } });
    const call = rawCall("POST /v1/chat/completions", { ...key, "Content-Type": "application/json" }, body);
    const first = await openSocket(url);
    first.write(call);
    await clock.armed(280_000, 1);
    const second = post({ ...hello, outlast: { on_disconnect: "cancel" } });
    await clock.armed(280_000, 2);
    first.destroy();
    // The server has seen the hang-up when it answers this, which came later.
    await outlast.fetch("/healthz");
    expect(ear.all("ended")).toEqual([]);
    held.release();
    expect((await second).status).toBe(200);
  });
});
