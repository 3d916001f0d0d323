import OpenAI, { APIConnectionError, type APIError } from "openai";
import { request } from "undici";
import { afterEach, describe, expect, it } from "vitest";
import { type Demo, startDemo } from "../src/demo.ts";

const NOW = 1_800_000_000_000;
const LUCKY = 0.99;

const running: Demo[] = [];

afterEach(async () => {
  await Promise.all(running.splice(0).map((demo) => demo.close()));
});

/** A clock that stands still and whose timers run at once, or only when the test says so. */
function fakeClock(held = false) {
  const delays: number[] = [];
  let onTimer = () => {};
  let onCancel = () => {};
  const firstTimer = new Promise<void>((resolve) => {
    onTimer = resolve;
  });
  const firstCancel = new Promise<void>((resolve) => {
    onCancel = resolve;
  });
  const timer = (delayMs: number, run: () => void) => {
    delays.push(delayMs);
    onTimer();
    const pending = held ? undefined : setImmediate(run);
    return () => {
      onCancel();
      clearImmediate(pending);
    };
  };
  return { clock: { now: () => NOW, timer }, delays, firstTimer, firstCancel };
}

/** `luck`: what the next calls draw, two numbers each: the fate, then the pace. Then good luck for ever. */
async function demoWith(luck: number[] = [], time = fakeClock()) {
  let ids = 0;
  const draws = [...luck];
  const random = { next: () => draws.shift() ?? LUCKY, id: () => `req_${++ids}` };
  const demo = await startDemo({ clock: time.clock, random });
  running.push(demo);
  const openai = new OpenAI({ baseURL: demo.baseUrl, apiKey: "any", maxRetries: 0 });
  return { demo, openai, time };
}

function ask(openai: OpenAI, model: string) {
  return openai.chat.completions.create({ model, messages: [{ role: "user", content: "a secret" }] });
}

async function failureOf(call: PromiseLike<unknown>): Promise<APIError> {
  return call.then(
    () => expect.unreachable("the call should have failed"),
    (error) => error,
  );
}

async function collect<T>(events: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const event of events) all.push(event);
  return all;
}

async function post(demo: Demo, path: string, body: string | Buffer) {
  const { statusCode, body: answer } = await request(`${demo.baseUrl}${path}`, { method: "POST", body });
  return { status: statusCode, error: ((await answer.json()) as { error: Record<string, unknown> }).error };
}

describe("the demo upstream", () => {
  it("listens on loopback and names its models", async () => {
    const { demo, openai } = await demoWith();
    expect(demo.baseUrl).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/v1$/);
    expect(demo.models).toEqual(["demo", "demo-flaky", "demo-slow", "demo-down"]);
    const listed = await openai.models.list();
    expect(listed.data.map((model) => model.id)).toEqual(demo.models);
    expect(await openai.models.retrieve("demo-slow")).toMatchObject({
      id: "demo-slow",
      object: "model",
      created: NOW / 1000,
    });
  });

  it("refuses calls after it was closed", async () => {
    const { demo, openai } = await demoWith();
    await ask(openai, "demo");
    await demo.close();
    expect(await failureOf(ask(openai, "demo"))).toBeInstanceOf(APIConnectionError);
  });

  it("forgets a caller who hangs up while it waits", async () => {
    const time = fakeClock(true);
    const { openai } = await demoWith([], time);
    const abort = new AbortController();
    const body = { model: "demo-slow", messages: [{ role: "user" as const, content: "Hi" }] };
    const call = failureOf(openai.chat.completions.create(body, { signal: abort.signal }));
    await time.firstTimer;
    abort.abort();
    await call;
    await time.firstCancel;
  });

  it("closes at once while a call waits", async () => {
    const time = fakeClock(true);
    const { demo, openai } = await demoWith([], time);
    const call = failureOf(ask(openai, "demo-slow"));
    await time.firstTimer;
    await demo.close();
    expect(await call).toBeInstanceOf(APIConnectionError);
    await time.firstCancel;
  });
});

describe("a plain answer", () => {
  it("is a whole chat.completion that counts the messages, says how to leave the demo, and echoes nothing", async () => {
    const { openai } = await demoWith();
    const messages = [
      { role: "system" as const, content: "a secret" },
      { role: "user" as const, content: [{ type: "text" as const, text: "another secret" }] },
    ];
    const completion = await openai.chat.completions.create({ model: "demo", messages });
    expect(completion).toMatchObject({
      id: "chatcmpl-demo-1",
      object: "chat.completion",
      created: NOW / 1000,
      model: "demo",
      system_fingerprint: "fp_outlast_demo",
    });
    const [choice] = completion.choices;
    expect(choice).toMatchObject({ index: 0, finish_reason: "stop", message: { role: "assistant" } });
    expect(choice?.message.content).toMatch(/2 messages .* demo upstream/);
    expect(choice?.message.content).toContain("OPENAI_API_KEY");
    expect(choice?.message.content).not.toContain("secret");
    const { prompt_tokens, completion_tokens, total_tokens } = completion.usage!;
    expect(prompt_tokens).toBe(4 + 2 + 4 + 4);
    expect(completion_tokens).toBeGreaterThan(50);
    expect(total_tokens).toBe(prompt_tokens + completion_tokens);
  });

  it("is the same text for the same number of messages", async () => {
    const { openai } = await demoWith();
    const [first, second] = [await ask(openai, "demo"), await ask(openai, "demo-flaky")];
    expect(first.choices[0]?.message.content).toBe(second.choices[0]?.message.content);
    expect(first.id).not.toBe(second.id);
  });

  it("carries a request id and rate limits that go down call by call", async () => {
    const { openai } = await demoWith();
    await ask(openai, "demo");
    const { response, request_id } = await ask(openai, "demo").withResponse();
    expect(request_id).toBe("demo-req-4");
    expect(response.headers.get("x-ratelimit-limit-requests")).toBe("10000");
    expect(response.headers.get("x-ratelimit-remaining-requests")).toBe("9998");
    expect(response.headers.get("x-ratelimit-reset-requests")).toBe("12ms");
    expect(Number(response.headers.get("x-ratelimit-remaining-tokens"))).toBeLessThan(2_000_000 - 100);
  });
});

describe("the mood of a model", () => {
  it.each([
    [0, 200],
    [0.5, 500],
    [LUCKY, 794],
  ])("demo answers in 200 to 800 ms (pace %d: %d ms)", async (pace, delayMs) => {
    const { openai, time } = await demoWith([0.2, pace]);
    await ask(openai, "demo");
    expect(time.delays).toEqual([delayMs]);
  });

  it("demo fails one call in ten with a 500", async () => {
    const { openai } = await demoWith([0.09, 0]);
    const error = await failureOf(ask(openai, "demo"));
    expect(error).toMatchObject({ status: 500, type: "server_error", requestID: "demo-req-1" });
  });

  it("demo fails one call in ten with a 429 that says in ms when to come back", async () => {
    const { openai } = await demoWith([0.19, 0]);
    const error = await failureOf(ask(openai, "demo"));
    expect(error).toMatchObject({ status: 429, type: "requests", code: "rate_limit_exceeded" });
    expect(error.headers?.get("retry-after-ms")).toBe("400");
    expect(error.headers?.get("x-ratelimit-remaining-requests")).toBe("0");
    expect(error.headers?.get("x-ratelimit-reset-requests")).toBe("400ms");
  });

  it("demo answers a stock SDK that retries", async () => {
    const { demo } = await demoWith([0.19, 0]);
    const patient = new OpenAI({ baseURL: demo.baseUrl, apiKey: "any", maxRetries: 1 });
    expect((await ask(patient, "demo")).model).toBe("demo");
  });

  it.each([
    [0, 500, null],
    [0.13, 503, null],
    [0.25, 429, "1"],
  ])("demo-flaky fails with luck %d by a %d", async (luck, status, retryAfter) => {
    const { openai } = await demoWith([luck, 0]);
    const error = await failureOf(ask(openai, "demo-flaky"));
    expect(error.status).toBe(status);
    expect(error.headers?.get("retry-after")).toBe(retryAfter);
  });

  it("demo-flaky resets the connection before the answer", async () => {
    const { openai, time } = await demoWith([0.37, 0]);
    expect(await failureOf(ask(openai, "demo-flaky"))).toBeInstanceOf(APIConnectionError);
    expect(time.delays).toEqual([]);
  });

  it("demo-flaky resets the connection in the middle of an answer", async () => {
    const { demo } = await demoWith([0.59, 0]);
    const body = JSON.stringify({ model: "demo-flaky", messages: [{ role: "user", content: "Hi" }] });
    const cut = await request(`${demo.baseUrl}/chat/completions`, { method: "POST", body });
    expect(cut.statusCode).toBe(200);
    await expect(cut.body.text()).rejects.toThrow();
  });

  it("demo-flaky resets the connection in the middle of a stream, after content and before the end", async () => {
    const { openai } = await demoWith([0.59, 0]);
    const texts: string[] = [];
    const reading = async () => {
      const messages = [{ role: "user" as const, content: "Hi" }];
      const stream = await openai.chat.completions.create({ model: "demo-flaky", messages, stream: true });
      for await (const chunk of stream) texts.push(chunk.choices[0]?.delta.content ?? "");
    };
    await expect(reading()).rejects.toThrow();
    expect(texts.join("")).toMatch(/^Hello! One message /);
    expect(texts.join("")).not.toContain("OPENAI_API_KEY");
  });

  it("demo-flaky answers the other four calls in ten", async () => {
    const { openai } = await demoWith([0.6, 0]);
    expect((await ask(openai, "demo-flaky")).choices).toHaveLength(1);
  });

  it("demo-slow answers after 20 s, whatever the luck", async () => {
    const { openai, time } = await demoWith([0, 0]);
    expect((await ask(openai, "demo-slow")).model).toBe("demo-slow");
    expect(time.delays).toEqual([20_000]);
  });

  it("demo-down never answers, whatever the luck", async () => {
    const { openai } = await demoWith([0, 0, LUCKY, LUCKY]);
    expect((await failureOf(ask(openai, "demo-down"))).status).toBe(503);
    expect((await failureOf(ask(openai, "demo-down"))).status).toBe(503);
  });
});

describe("a stream", () => {
  const body = { model: "demo", messages: [{ role: "user" as const, content: "Hi" }], stream: true as const };

  it("says the same as the plain answer, in chunks of one id, and stops properly", async () => {
    const { openai, time } = await demoWith([LUCKY, 0]);
    const chunks = await collect(await openai.chat.completions.create(body));
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    expect(text).toBe((await ask(openai, "demo")).choices[0]?.message.content);
    expect(new Set(chunks.map((chunk) => chunk.id)).size).toBe(1);
    expect(chunks[0]?.choices[0]?.delta.role).toBe("assistant");
    expect(chunks.at(-1)?.choices[0]?.finish_reason).toBe("stop");
    expect(chunks.every((chunk) => chunk.object === "chat.completion.chunk" && !("usage" in chunk))).toBe(
      true,
    );
    expect(time.delays[0]).toBe(200);
  });

  it("ends with a usage chunk when asked to, and with [DONE]", async () => {
    const { demo, openai } = await demoWith();
    const withUsage = { ...body, stream_options: { include_usage: true } };
    const chunks = await collect(await openai.chat.completions.create(withUsage));
    expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { prompt_tokens: 5 } });
    expect(chunks.slice(0, -1).every((chunk) => chunk.usage === null)).toBe(true);
    const url = `${demo.baseUrl}/chat/completions`;
    const wire = await request(url, { method: "POST", body: JSON.stringify(withUsage) });
    expect(wire.headers["content-type"]).toContain("text/event-stream");
    expect(await wire.body.text()).toMatch(/\n\ndata: \[DONE\]\n\n$/);
  });

  it("fails before it starts as a plain answer does", async () => {
    const { openai } = await demoWith([0, 0]);
    expect((await failureOf(openai.chat.completions.create(body))).status).toBe(500);
  });
});

describe("embeddings", () => {
  it("are unit vectors that depend on the text alone", async () => {
    const { openai } = await demoWith();
    const input = ["one", "two", "one"];
    const { data, usage } = await openai.embeddings.create({
      model: "demo",
      input,
      encoding_format: "float",
    });
    expect(data.map((item) => item.index)).toEqual([0, 1, 2]);
    expect(data[0]?.embedding).toEqual(data[2]?.embedding);
    expect(data[0]?.embedding).not.toEqual(data[1]?.embedding);
    expect(Math.hypot(...data[1]!.embedding)).toBeCloseTo(1);
    expect(usage).toEqual({ prompt_tokens: 3, total_tokens: 3 });
  });

  it("are the same in base64, which the SDK asks for by itself", async () => {
    const { openai } = await demoWith();
    const asked = { model: "demo", input: "one", dimensions: 5 };
    const plain = await openai.embeddings.create({ ...asked, encoding_format: "float" });
    const packed = await openai.embeddings.create(asked);
    expect([...packed.data[0]!.embedding]).toEqual(plain.data[0]!.embedding.map(Math.fround));
    expect(packed.data[0]!.embedding).toHaveLength(5);
  });

  it("take lists of tokens", async () => {
    const { openai } = await demoWith();
    const one = await openai.embeddings.create({ model: "demo", input: [1, 2, 3] });
    const two = await openai.embeddings.create({ model: "demo", input: [[1, 2, 3], [4]] });
    expect([one.data.length, one.usage.prompt_tokens]).toEqual([1, 3]);
    expect([two.data.length, two.usage.prompt_tokens]).toEqual([2, 4]);
    expect(two.data[0]?.embedding).toEqual(one.data[0]?.embedding);
  });

  it("have the model's mood", async () => {
    const { openai } = await demoWith();
    const error = await failureOf(openai.embeddings.create({ model: "demo-down", input: "one" }));
    expect(error.status).toBe(503);
  });

  it.each([
    [{}, "input"],
    [{ input: "" }, "input"],
    [{ input: [] }, "input"],
    [{ input: ["one", 2] }, "input"],
    [{ input: "one", encoding_format: "hex" }, "encoding_format"],
    [{ input: "one", dimensions: 0 }, "dimensions"],
    [{ input: "one", dimensions: "8" }, "dimensions"],
  ])("of %j are refused: %s is wrong", async (fields, param) => {
    const { demo } = await demoWith();
    const refused = await post(demo, "/embeddings", JSON.stringify({ model: "demo", ...fields }));
    expect(refused).toMatchObject({ status: 400, error: { type: "invalid_request_error", param } });
  });
});

describe("a wrong call", () => {
  it("for an unknown model gets 404 model_not_found", async () => {
    const { openai } = await demoWith();
    const notFound = { status: 404, code: "model_not_found", type: "invalid_request_error", param: "model" };
    expect(await failureOf(ask(openai, "gpt-9"))).toMatchObject(notFound);
    expect(await failureOf(openai.models.retrieve("gpt-9"))).toMatchObject(notFound);
    expect(await failureOf(openai.models.retrieve("%"))).toMatchObject(notFound);
  });

  it("to any other path gets a 404 in OpenAI's shape", async () => {
    const { openai } = await demoWith();
    const error = await failureOf(openai.responses.create({ model: "demo", input: "Hi" }));
    expect(error).toMatchObject({
      status: 404,
      code: "unknown_url",
      type: "invalid_request_error",
      param: null,
    });
    expect((await failureOf(openai.get("/chat/completions"))).status).toBe(404);
  });

  it.each([
    ["no JSON", "{"],
    ["nothing", ""],
    ["no object", "[1]"],
    ["null", "null"],
    ["bytes that are no UTF-8", Buffer.from([0x22, 0xff, 0x22])],
  ])("with %s in its body gets 400", async (_what, body) => {
    const { demo } = await demoWith();
    const refused = await post(demo, "/chat/completions", body);
    expect(refused.status).toBe(400);
    expect(Object.keys(refused.error)).toEqual(["message", "type", "param", "code"]);
    expect(refused.error).toMatchObject({ type: "invalid_request_error", param: null, code: null });
  });

  const user = { role: "user", content: "Hi" };
  it.each([
    [{ messages: [user] }, "model"],
    [{ model: 5, messages: [user] }, "model"],
    [{ model: "demo" }, "messages"],
    [{ model: "demo", messages: "Hi" }, "messages"],
    [{ model: "demo", messages: [] }, "messages"],
    [{ model: "demo", messages: [user, "Hi"] }, "messages[1]"],
    [{ model: "demo", messages: [{ content: "Hi" }] }, "messages[0].role"],
    [{ model: "demo", messages: [{ role: "robot", content: "Hi" }] }, "messages[0].role"],
    [{ model: "demo", messages: [{ role: "user" }] }, "messages[0].content"],
    [{ model: "demo", messages: [{ role: "user", content: [1] }] }, "messages[0].content"],
    [{ model: "demo", messages: [user], stream: "yes" }, "stream"],
    [{ model: "demo", messages: [user], stream_options: {} }, "stream_options"],
    [{ model: "demo", messages: [user], stream: true, stream_options: 1 }, "stream_options"],
    [
      { model: "demo", messages: [user], stream: true, stream_options: { include_usage: 1 } },
      "stream_options.include_usage",
    ],
  ])("with %j is refused: %s is wrong", async (body, param) => {
    const { demo } = await demoWith();
    const refused = await post(demo, "/chat/completions", JSON.stringify(body));
    expect(refused).toMatchObject({ status: 400, error: { type: "invalid_request_error", param } });
  });

  it("with a body beyond the limit gets 413", async () => {
    const { demo } = await demoWith();
    const refused = await post(demo, "/chat/completions", Buffer.alloc(32 * 1024 * 1024 + 1, " "));
    expect(refused).toMatchObject({ status: 413, error: { code: "request_too_large" } });
  });

  it("is refused whatever the mood, and does not use up luck", async () => {
    const { demo, openai, time } = await demoWith([LUCKY, 0]);
    expect((await post(demo, "/chat/completions", '{"model":"demo-down"}')).status).toBe(400);
    await ask(openai, "demo");
    expect(time.delays).toEqual([200]);
  });

  it("by a body that looks like one of the demo's own replies is still answered or refused as a body", async () => {
    const { demo } = await demoWith();
    const body = JSON.stringify({ status: 200, headers: {}, parts: ["x"], value: 1, reply: 1 });
    expect(await post(demo, "/chat/completions", body)).toMatchObject({
      status: 400,
      error: { param: "model" },
    });
  });
});
