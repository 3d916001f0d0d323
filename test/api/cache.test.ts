/** An equal call is answered by what was answered before, without a call upstream (`cache`). */

import type OpenAI from "openai";
import { describe, expect, it } from "vitest";
import { HandClock } from "../support/clock.ts";
import { answer, deltas, type FakeUpstream, fail, gate, stream } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick } from "../support/outlast.ts";
import { refusalOf, serveTest, strictAsync, strictRequest } from "./wire.ts";

const path = "/v1/chat/completions";
const options = { "outlast-options": '{"cache":{"ttl":"10m"}}' };
let outlast: Outlast;

async function start(more: OutlastOptions = {}): Promise<Outlast> {
  outlast = await serveTest({ env: quick, ...more });
  return outlast;
}

const ask = (body: object = hello, headers: Record<string, string> = {}) =>
  outlast.post(path, body, { ...options, ...headers });

async function recordOf(id: string | null) {
  return strictRequest.parse(await (await outlast.fetch(`/v1/requests/${id}?include=attempts`)).json());
}

/** What a test sees of a reply. */
async function seen(response: Response) {
  const { headers } = response;
  const id = headers.get("outlast-request-id");
  return { status: response.status, cache: headers.get("outlast-cache"), id, text: await response.text() };
}
const hit = { status: 200, cache: "hit" };
const miss = { status: 200, cache: null };

const contentIn = (text: string): unknown =>
  (JSON.parse(text) as OpenAI.ChatCompletion).choices[0]?.message.content;
const numbered = (fake: FakeUpstream) =>
  fake.otherwise((call, res) => answer({ text: `answer ${call.n}`, headers: { "x-own": "1" } })(call, res));

describe("an exact repeat", () => {
  it("is answered without a call, on a record of its own that says from where", async () => {
    const { fake } = await start();
    numbered(fake);
    const first = await seen(await ask());
    expect(first).toMatchObject(miss);
    const response = await ask({ messages: hello.messages, model: hello.model });
    expect(Object.fromEntries(response.headers)).toMatchObject({
      "content-type": "application/json",
      "outlast-upstream": "fake",
      "outlast-served-model": "gpt-test",
      "outlast-attempts": "0",
      "x-own": "1",
    });
    const second = await seen(response);
    expect(second).toMatchObject({ ...hit, text: first.text });
    expect(second.id).not.toBe(first.id);
    expect(fake.seen).toHaveLength(1);
    expect(await recordOf(second.id)).toMatchObject({
      status: "completed",
      attempts: 0,
      attempt_list: [],
      cached_from: first.id,
      upstream: "fake",
      served_model: "gpt-test",
      usage: null,
      cost: null,
      findings: { finish_reason: "stop", problems: [] },
      result: JSON.parse(first.text),
      error: null,
    });
    expect(await recordOf(first.id)).toMatchObject({ cached_from: null, attempts: 1 });
    const again = await outlast.fetch(`${path}/${second.id}`);
    expect([again.headers.get("outlast-cache"), await again.text()]).toEqual(["hit", first.text]);
  });

  it.each<[string, object, Record<string, string>]>([
    ["another message", { ...hello, messages: [{ role: "user", content: "Hello!" }] }, {}],
    ["another model", { ...hello, model: "gpt-other" }, {}],
    ["another seed", { ...hello, seed: 1 }, {}],
    ["an upstream of its own", hello, { "outlast-options": '{"cache":{"ttl":"10m"},"upstream":"fake"}' }],
    ["no wish for it", hello, { "outlast-options": "{}" }],
    ["the wish against it", hello, { "outlast-options": '{"cache":false}' }],
    ["a query", hello, { query: "?api-version=2" }],
  ])("is none with %s", async (_, body, { query = "", ...headers }) => {
    const { fake, post } = await start();
    await (await ask()).text();
    expect(await seen(await post(path + query, body, { ...options, ...headers }))).toMatchObject(miss);
    expect(fake.seen).toHaveLength(2);
  });

  it("is one only within its project", async () => {
    const keys = ["a", "b"].map((name) => `[[api_keys]]\nkey = "key-of-${name}"\nproject = "${name}"`);
    const { fake } = await start({ tables: keys.join("\n") });
    const as = (who: string) => ask(hello, { authorization: `Bearer key-of-${who}` });
    for (const [who, expected] of [
      ["a", miss],
      ["b", miss],
      ["a", hit],
      ["b", hit],
    ] as const) {
      expect(await seen(await as(who))).toMatchObject(expected);
    }
    expect(fake.seen).toHaveLength(2);
  });

  it("is one for as long as it is asked for: hits do not prolong it, a new answer does", async () => {
    const clock = new HandClock();
    const { fake } = await start({ clock });
    numbered(fake);
    const asked = async () => {
      const { cache, text } = await seen(await ask());
      return [cache, contentIn(text)];
    };
    expect(await asked()).toEqual([null, "answer 1"]);
    clock.advance(599_000);
    expect(await asked()).toEqual(["hit", "answer 1"]);
    clock.advance(1000);
    expect(await asked()).toEqual([null, "answer 2"]);
    clock.advance(300_000);
    expect(await asked()).toEqual(["hit", "answer 2"]);
    const shorter = { "outlast-options": '{"cache":{"ttl":"4m"}}' };
    expect(await seen(await ask(hello, shorter))).toMatchObject(miss);
  });

  it("is one after a restart", async () => {
    const { dir, fakes, fake } = await start();
    const first = await seen(await ask());
    await outlast.stop();
    await start({ dir, upstreams: fakes });
    expect(await seen(await ask())).toMatchObject({ ...hit, text: first.text });
    expect(fake.seen).toHaveLength(1);
  });

  it("by the configuration, or the route, is one without being asked for", async () => {
    const { fake, post } = await start({
      toml: '[defaults]\ncache = { ttl = "1h" }\n[routes."live"]\ntargets = ["fake"]\ncache = false',
    });
    for (const expected of [miss, hit]) expect(await seen(await post(path, hello))).toMatchObject(expected);
    for (let i = 0; i < 2; i++) {
      expect(await seen(await post(path, { ...hello, model: "live" }))).toMatchObject(miss);
    }
    expect(fake.seen).toHaveLength(3);
  });

  it("while the first is under way is a call of its own", async () => {
    const { fake } = await start();
    const first = gate();
    fake.script(first.step);
    const one = ask();
    await first.arrived;
    expect(await seen(await ask())).toMatchObject(miss);
    first.release();
    expect(await seen(await one)).toMatchObject(miss);
  });
});

describe("in another way", () => {
  const textOf = (events: string): string =>
    [...events.matchAll(/^data: (\{.*)$/gm)]
      .map(([, data]) => (JSON.parse(data!) as OpenAI.ChatCompletionChunk).choices[0]?.delta.content ?? "")
      .join("");

  it("what was answered plainly is told as a stream", async () => {
    const { fake, client } = await start();
    numbered(fake);
    const first = await seen(await ask());
    const response = await ask({ ...hello, stream: true });
    expect(response.headers.get("content-type")).toMatch("text/event-stream");
    const told = await seen(response);
    expect(told).toMatchObject(hit);
    expect([textOf(told.text), told.text.endsWith("data: [DONE]\n\n")]).toEqual(["answer 1", true]);
    expect(await recordOf(told.id)).toMatchObject({ cached_from: first.id, status: "completed" });
    const asked = { ...hello, stream: true as const, stream_options: { include_usage: true } };
    const chunks = await client().chat.completions.create(asked, { headers: options });
    const all: OpenAI.ChatCompletionChunk[] = [];
    for await (const chunk of chunks) all.push(chunk);
    expect(all.at(-1)).toMatchObject({ choices: [], usage: { total_tokens: 6 } });
    expect(fake.seen).toHaveLength(1);
  });

  it("what was told as a stream is answered plainly, and as a stream again", async () => {
    const { fake, client } = await start();
    fake.script(stream(deltas("Hel", "lo")));
    const streamed = await seen(await ask({ ...hello, stream: true }));
    expect([streamed.cache, textOf(streamed.text)]).toEqual([null, "Hello"]);
    const plain = await client().chat.completions.create(hello, { headers: options });
    expect(plain.choices[0]?.message.content).toBe("Hello");
    const again = await seen(await ask({ ...hello, stream: true }));
    expect([again.cache, textOf(again.text)]).toEqual(["hit", "Hello"]);
    expect(fake.seen).toHaveLength(1);
  });

  it("who does not wait is told where the answer is, which is there already", async () => {
    const { fake } = await start();
    const first = await seen(await ask());
    const taken = await ask({ ...hello, wait: false });
    expect(taken.status).toBe(202);
    const { id, status } = strictAsync.parse(await taken.json());
    expect(status).toBe("completed");
    expect(await recordOf(id)).toMatchObject({ cached_from: first.id, result: JSON.parse(first.text) });
    expect(fake.seen).toHaveLength(1);
  });

  it("an idempotency key of its own is bound to the hit, and replays it", async () => {
    const { fake, post } = await start();
    const first = await seen(await ask());
    const key = { "idempotency-key": "k" };
    const second = await seen(await ask(hello, key));
    expect(second).toMatchObject({ ...hit, text: first.text });
    const replay = await ask(hello, key);
    expect(replay.headers.get("idempotent-replayed")).toBe("true");
    expect((await seen(replay)).id).toBe(second.id);
    const other = await post(path, { ...hello, seed: 1 }, { ...options, ...key });
    expect(await refusalOf(other)).toMatchObject({ code: "idempotency_key_reused" });
    expect(fake.seen).toHaveLength(1);
  });

  it("a key that is known goes before the cache", async () => {
    const { fake } = await start();
    numbered(fake);
    const key = { "idempotency-key": "k" };
    const first = await seen(await ask(hello, key));
    const replay = await ask(hello, key);
    expect(replay.headers.get("idempotent-replayed")).toBe("true");
    expect((await seen(replay)).id).toBe(first.id);
  });

  it("is answered also where nobody could be called", async () => {
    const { fake } = await start({ env: {} });
    const first = await seen(await ask());
    await fake.close();
    expect(await seen(await ask())).toMatchObject({ ...hit, text: first.text });
  });
});

describe("what is not worth repeating", () => {
  const message = (more: object, finish_reason = "stop") =>
    answer({
      body: {
        id: "c",
        object: "chat.completion",
        model: "m",
        choices: [{ index: 0, finish_reason, message: { role: "assistant", content: null, ...more } }],
      },
    });

  it.each([
    ["a refusal", message({ refusal: "No." })],
    ["what a filter withheld", message({ content: "So" }, "content_filter")],
    ["an empty answer", message({ content: "" })],
  ])("is asked for anew: %s", async (_, step) => {
    const { fake } = await start();
    fake.script(step);
    expect(await seen(await ask())).toMatchObject(miss);
    expect(await seen(await ask())).toMatchObject(miss);
    expect(await seen(await ask())).toMatchObject(hit);
    expect(fake.seen).toHaveLength(2);
  });

  it("is a failure", async () => {
    const { fake } = await start();
    fake.script(fail(400));
    expect((await ask()).status).toBe(400);
    expect(await seen(await ask())).toMatchObject(miss);
    expect(fake.seen).toHaveLength(2);
  });

  it("is what was cut by a limit of tokens, where the caller wants it whole", async () => {
    const { fake, post } = await start();
    fake.script(message({ content: "So" }, "length"), message({ content: "So it is" }));
    expect(await seen(await ask())).toMatchObject(miss);
    expect(await seen(await ask())).toMatchObject(hit);
    const whole = { "outlast-options": '{"cache":{"ttl":"10m"},"validate":true}' };
    for (const expected of [miss, hit]) {
      const { text, ...reply } = await seen(await post(path, hello, whole));
      expect([reply, contentIn(text)]).toEqual([expect.objectContaining(expected), "So it is"]);
    }
  });

  it("is what nobody has held against the schema that the caller gives", async () => {
    const { fake, post } = await start();
    fake.script(answer({ text: "no JSON" }), answer({ text: "{}" }), answer({ text: "[]" }));
    await (await ask()).text();
    for (const [type, content] of [
      ["object", "{}"],
      ["array", "[]"],
      ["object", "{}"],
    ]) {
      const wish = { cache: { ttl: "10m" }, validate: { schema: { type } } };
      const headers = { "outlast-options": JSON.stringify(wish) };
      expect(contentIn((await seen(await post(path, hello, headers))).text)).toBe(content);
    }
    expect(fake.seen).toHaveLength(3);
  });
});

it.each<[string, unknown]>([
  ["true", true],
  ["no ttl", {}],
  ["a ttl of nothing", { ttl: 0 }],
  ["a ttl that is none", { ttl: "soon" }],
  ["a ttl beyond a year", { ttl: "366d" }],
  ["an unknown name", { ttl: "1h", time: 1 }],
])("a wish of %s is refused", async (_, cache) => {
  const { post, fake } = await start();
  const response = await post(path, { ...hello, outlast: { cache } });
  expect(response.status).toBe(400);
  expect(await response.json()).toMatchObject({
    error: { code: "invalid_parameter", param: expect.stringMatching(/^outlast\.cache/) },
  });
  expect(fake.seen).toHaveLength(0);
});
