import OpenAI, { APIConnectionError, type APIError } from "openai";
import { request } from "undici";
import { afterEach, expect, it } from "vitest";
import { type Demo, startDemo } from "../src/demo.ts";

const now = 1_800_000_000_000;
const lucky = 0.99;
const messages = [{ role: "user" as const, content: "a secret" }];
const running: Demo[] = [];

afterEach(async () => {
  await Promise.all(running.splice(0).map((demo) => demo.close()));
});

/** `luck`: what the next calls draw. Timers run at once; with `hold`, the first is handed to the test instead. */
async function demoWith(luck: number[] = [], hold?: (run: () => void) => void) {
  const delays: number[] = [];
  const timer = (delayMs: number, run: () => void) => {
    if (delays.push(delayMs) === 1 && hold) hold(run);
    else setImmediate(run);
    return () => {};
  };
  let ids = 0;
  const random = { next: () => luck.shift() ?? lucky, id: () => `req_${++ids}` };
  const demo = await startDemo({ clock: { now: () => now, timer }, random });
  running.push(demo);
  const openai = new OpenAI({ baseURL: demo.baseUrl, apiKey: "any", maxRetries: 0 });
  const ask = (model: string) => openai.chat.completions.create({ model, messages });
  const post = (asked: string | object) => {
    const body = typeof asked === "string" ? asked : JSON.stringify(asked);
    return request(`${demo.baseUrl}/chat/completions`, { method: "POST", body });
  };
  return { demo, openai, delays, ask, post };
}

/** What the call fails with. */
async function failureOf(call: PromiseLike<unknown>): Promise<APIError> {
  return call.then(
    () => expect.unreachable("the call should have failed"),
    (error) => error,
  );
}

it("answers with a text that counts the messages, tells how to leave the demo, and echoes nothing", async () => {
  const { ask } = await demoWith();
  const { data, response, request_id } = await ask("demo").withResponse();
  expect(data).toMatchObject({ id: "chatcmpl-demo-1", object: "chat.completion", created: now / 1000 });
  const [choice] = data.choices;
  expect(choice).toMatchObject({ index: 0, finish_reason: "stop", message: { role: "assistant" } });
  expect(choice?.message.content).toMatch(/One message .* demo upstream.* OPENAI_API_KEY/);
  expect(JSON.stringify(data)).not.toContain("secret");
  expect(data.usage!.total_tokens).toBe(data.usage!.prompt_tokens + data.usage!.completion_tokens);
  expect(request_id).toBe("demo-1");
  expect(response.headers.has("x-ratelimit-remaining-requests")).toBe(true);
});

it.each([
  ["demo", 0, 500, {}],
  ["demo", 0.19, 429, { "retry-after-ms": "400" }],
  ["demo-flaky", 0.13, 503, {}],
  ["demo-flaky", 0.25, 429, { "retry-after": "1" }],
  ["demo-down", lucky, 503, {}],
])("%s with luck %d fails at once with %d", async (model, luck, status, headers) => {
  const { ask, delays } = await demoWith([luck]);
  const error = await failureOf(ask(model));
  expect(error).toMatchObject({ status, requestID: "demo-1", type: expect.any(String) });
  expect(Object.fromEntries(error.headers!)).toMatchObject(headers);
  expect(delays).toEqual([]);
});

it.each([
  ["demo", 0.2, 0, 200],
  ["demo-flaky", 0.6, lucky, 794],
  ["demo-slow", 0, 0, 20_000],
])("%s with luck %d and pace %d answers after %d ms", async (model, luck, pace, delayMs) => {
  const { ask, delays } = await demoWith([luck, pace]);
  expect((await ask(model)).model).toBe(model);
  expect(delays).toEqual([delayMs]);
});

it("demo-flaky resets the connection before an answer", async () => {
  const { ask } = await demoWith([0.37]);
  expect(await failureOf(ask("demo-flaky"))).toBeInstanceOf(APIConnectionError);
});

it.each([false, true])("demo-flaky resets the connection in mid-answer (stream: %s)", async (stream) => {
  const { post } = await demoWith([0.59]);
  const { statusCode, body } = await post({ model: "demo-flaky", messages, stream });
  expect(statusCode).toBe(200);
  await expect(body.text()).rejects.toThrow();
});

it("streams the same text in chunks, with a usage chunk at the end", async () => {
  const { openai, ask } = await demoWith();
  const stream_options = { include_usage: true };
  const asked = { model: "demo", messages, stream: true as const, stream_options };
  const chunks = [];
  for await (const chunk of await openai.chat.completions.create(asked)) chunks.push(chunk);
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  expect(text).toBe((await ask("demo")).choices[0]?.message.content);
  expect(chunks.length).toBeGreaterThan(5);
  expect(chunks[0]?.choices[0]?.delta.role).toBe("assistant");
  expect(chunks.at(-2)?.choices[0]?.finish_reason).toBe("stop");
  expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { prompt_tokens: expect.any(Number) } });
});

it("ends a stream with [DONE], and without usage when nobody asked", async () => {
  const { post } = await demoWith();
  const { headers, body } = await post({ model: "demo", messages, stream: true });
  expect(headers["content-type"]).toContain("text/event-stream");
  const wire = await body.text();
  expect(wire).toMatch(/"finish_reason":"stop"[^\n]*\n\ndata: \[DONE\]\n\n$/);
  expect(wire).not.toContain("usage");
});

it("embeds texts and tokens as unit vectors, the same in float and in the SDK's base64", async () => {
  const { openai } = await demoWith();
  const input = ["one", "two", "one"];
  const plain = await openai.embeddings.create({ model: "demo", input, encoding_format: "float" });
  const packed = await openai.embeddings.create({ model: "demo", input });
  const [one, two, again] = plain.data.map((item) => item.embedding);
  expect(one).toEqual(again);
  expect(one).not.toEqual(two);
  expect(Math.hypot(...one!)).toBeCloseTo(1);
  expect(packed.data.map((item) => [...item.embedding])).toEqual([one, two, one]);
  expect((await openai.embeddings.create({ model: "demo", input: [1, 2] })).data).toHaveLength(1);
  expect((await failureOf(openai.embeddings.create({ model: "demo-down", input }))).status).toBe(503);
});

it("knows its models, and refuses what it does not know in OpenAI's shape", async () => {
  const { demo, openai, ask } = await demoWith();
  expect(demo.models).toEqual(["demo", "demo-flaky", "demo-slow", "demo-down"]);
  expect((await openai.models.list()).data.map((model) => model.id)).toEqual(demo.models);
  expect(await openai.models.retrieve("demo-slow")).toMatchObject({ id: "demo-slow", object: "model" });
  const notFound = { status: 404, code: "model_not_found", type: "invalid_request_error", param: "model" };
  expect(await failureOf(ask("gpt-9"))).toMatchObject(notFound);
  expect(await failureOf(openai.models.retrieve("gpt-9"))).toMatchObject(notFound);
  const elsewhere = await failureOf(openai.responses.create({ model: "demo", input: "Hi" }));
  expect(elsewhere).toMatchObject({ status: 404, code: "unknown_url", param: null });
});

it.each(["{", "", { model: "demo" }, { model: "demo", messages: "Hi" }])("refuses %j", async (asked) => {
  const { statusCode, body } = await (await demoWith()).post(asked);
  expect(statusCode).toBe(400);
  expect(await body.json()).toMatchObject({ error: { type: "invalid_request_error", code: null } });
});

it.each([
  ["demo-slow", lucky, false],
  ["demo-slow", lucky, true],
  ["demo-flaky", 0.59, false],
])("survives a caller of %s who hangs up (luck %d, stream: %s)", async (model, luck, stream) => {
  const caller = new AbortController();
  let answerNow = () => {};
  const { openai, ask } = await demoWith([luck], (run) => {
    answerNow = run;
    caller.abort();
  });
  await failureOf(openai.chat.completions.create({ model, messages, stream }, { signal: caller.signal }));
  await openai.models.list();
  answerNow();
  expect((await failureOf(ask("demo-down"))).status).toBe(503);
});

it("closes while a call waits", async () => {
  const { demo, ask } = await demoWith([], () => void demo.close());
  expect(await failureOf(ask("demo-slow"))).toBeInstanceOf(APIConnectionError);
});
