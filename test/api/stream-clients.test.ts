/** Streams through the clients that people use: they see what they would see of the upstream itself. */

import { Socket } from "node:net";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import type { AIMessageChunk } from "@langchain/core/messages";
import { concat } from "@langchain/core/utils/stream";
import { ChatOpenAI } from "@langchain/openai";
import { APICallError, type LanguageModel, streamText, tool } from "ai";
import OpenAI from "openai";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { z } from "zod";
import { fail, type Step, type StreamChunk, stream } from "../support/fake-upstream.ts";
import { begun, chunkOf, cutShort, roleChunk, stopChunk, textChunk, whole } from "../support/live-streams.ts";
import { hello, type Outlast, type OutlastOptions, quick } from "../support/outlast.ts";
import { serveTest } from "./wire.ts";

const usage = { prompt_tokens: 5, completion_tokens: 2, total_tokens: 7 };
const usageChunk = chunkOf([], {}, { usage });
const toolDelta = (tool_calls: object[]) =>
  chunkOf([{ index: 0, delta: { tool_calls }, finish_reason: null }]);
const toolChunks = [
  roleChunk(),
  toolDelta([{ index: 0, id: "call_1", type: "function", function: { name: "weather", arguments: "" } }]),
  toolDelta([{ index: 0, function: { arguments: '{"ci' } }]),
  toolDelta([{ index: 0, function: { arguments: 'ty":"Rome"}' } }]),
  toolDelta([{ index: 1, id: "call_2", type: "function", function: { name: "weather", arguments: "" } }]),
  toolDelta([{ index: 1, function: { arguments: '{"city":"Oslo"}' } }]),
  chunkOf([{ index: 0, delta: {}, finish_reason: "tool_calls" }]),
];
const choiceChunks = [
  chunkOf([{ index: 0, delta: { role: "assistant", content: "a" }, finish_reason: null }]),
  chunkOf([{ index: 1, delta: { role: "assistant", content: "x" }, finish_reason: null }]),
  chunkOf([{ index: 0, delta: { content: "b" }, finish_reason: null }]),
  chunkOf([{ index: 0, delta: {}, finish_reason: "stop" }]),
  chunkOf([{ index: 1, delta: { content: "y" }, finish_reason: "length" }]),
];
const text = whole(["Hel", "lo ", "wörld 😀"]);
const parameters = { type: "object", properties: { city: { type: "string" } } };
const weather = { type: "function" as const, function: { name: "weather", parameters } };

/** Everything that a client made of one stream. */
type Reads = (baseURL: string) => Promise<unknown>;

/** What each way of using a client needs to be told of: the upstream sends usage to those who ask for it. */
interface Way {
  name: string;
  chunks: string[];
  asksUsage?: boolean;
  read: Reads;
}

const sdkOf = (baseURL: string) => new OpenAI({ baseURL, apiKey: "caller-key", maxRetries: 0 });

type Params = Partial<OpenAI.ChatCompletionCreateParamsStreaming>;

const created =
  (more: Params = {}): Reads =>
  async (baseURL) => {
    const chunks: unknown[] = [];
    for await (const chunk of await sdkOf(baseURL).chat.completions.create({
      ...hello,
      stream: true,
      ...more,
    })) {
      chunks.push(chunk);
    }
    return chunks;
  };

/** The helper, with all its events in their order. */
const helped =
  (more: Params = {}): Reads =>
  async (baseURL) => {
    const told: unknown[] = [];
    const runner = sdkOf(baseURL).chat.completions.stream({ ...hello, ...more } as never);
    for (const name of ["chunk", "content", "content.delta", "content.done", "message"] as const) {
      runner.on(name, (...given: unknown[]) => told.push([name, ...structuredClone(given)]));
    }
    runner.on("tool_calls.function.arguments.done", (given) =>
      told.push(["arguments", structuredClone(given)]),
    );
    return { final: await runner.finalChatCompletion(), told };
  };

type Provider = (baseURL: string) => LanguageModel;
const chat: Provider = (baseURL) => createOpenAI({ baseURL, apiKey: "caller-key" }).chat("gpt-test");
const compatible =
  (includeUsage: boolean): Provider =>
  (baseURL) =>
    createOpenAICompatible({ name: "any", baseURL, apiKey: "caller-key", includeUsage })("gpt-test");

const weatherTool = tool({ description: "Weather", inputSchema: z.object({ city: z.string() }) });

/** All parts of the full stream, without what names the connection or the moment. */
const streamedText =
  (provider: Provider, tools = false): Reads =>
  async (baseURL) => {
    const { parts, errors, broken } = await partsOf(provider(baseURL), tools);
    expect(broken).toBeUndefined();
    return { parts, errors };
  };

interface Part {
  type: string;
  error?: unknown;
  finishReason?: string;
}

async function partsOf(model: LanguageModel, tools = false) {
  const errors: unknown[] = [];
  const result = streamText({
    model,
    prompt: "Hello",
    maxRetries: 0,
    ...(tools ? { tools: { weather: weatherTool } } : {}),
    onError: ({ error }) => void errors.push(error),
  });
  const parts: Part[] = [];
  let broken: unknown;
  try {
    for await (const part of result.fullStream) parts.push(plainly(part) as Part);
  } catch (error) {
    broken = error;
  }
  return { parts, errors, broken };
}

function plainly(part: object): unknown {
  if (!("response" in part)) return part;
  const { response, ...rest } = part as { response: { headers?: unknown; timestamp?: unknown } };
  const { headers: _headers, timestamp: _timestamp, ...known } = response;
  return { ...rest, response: known };
}

const chatOpenAI = (baseURL: string, streamUsage: boolean) =>
  new ChatOpenAI({
    model: "gpt-test",
    apiKey: "caller-key",
    configuration: { baseURL },
    maxRetries: 0,
    streamUsage,
  });

const langchain =
  (streamUsage: boolean, tools = false): Reads =>
  async (baseURL) => {
    const model = chatOpenAI(baseURL, streamUsage);
    const chunks: AIMessageChunk[] = [];
    const bound = tools ? model.bindTools([weather]) : model;
    for await (const chunk of await bound.stream("Hello")) chunks.push(chunk);
    const all = chunks.reduce((one, other) => concat(one, other));
    const said = ({ content, tool_call_chunks, usage_metadata, response_metadata }: typeof all) => ({
      content,
      tool_call_chunks,
      usage_metadata,
      response_metadata,
    });
    return { chunks: chunks.map(said), final: { ...said(all), tool_calls: all.tool_calls } };
  };

const ways: Way[] = [
  { name: "openai, create", chunks: text, read: created() },
  {
    name: "openai, create with usage",
    chunks: text,
    asksUsage: true,
    read: created({ stream_options: { include_usage: true } }),
  },
  { name: "openai, create with tools", chunks: toolChunks, read: created({ tools: [weather] }) },
  { name: "openai, create with n: 2", chunks: choiceChunks, read: created({ n: 2 }) },
  { name: "openai, stream()", chunks: text, read: helped() },
  {
    name: "openai, stream() with usage",
    chunks: text,
    asksUsage: true,
    read: helped({ stream_options: { include_usage: true } }),
  },
  { name: "openai, stream() with tools", chunks: toolChunks, read: helped({ tools: [weather] }) },
  { name: "openai, stream() with n: 2", chunks: choiceChunks, read: helped({ n: 2 }) },
  { name: "AI SDK, openai chat", chunks: text, asksUsage: true, read: streamedText(chat) },
  {
    name: "AI SDK, openai chat with tools",
    chunks: toolChunks,
    asksUsage: true,
    read: streamedText(chat, true),
  },
  { name: "AI SDK, compatible", chunks: text, read: streamedText(compatible(false)) },
  {
    name: "AI SDK, compatible with usage",
    chunks: text,
    asksUsage: true,
    read: streamedText(compatible(true)),
  },
  { name: "AI SDK, compatible with tools", chunks: toolChunks, read: streamedText(compatible(false), true) },
  { name: "LangChain", chunks: text, read: langchain(false) },
  { name: "LangChain with usage", chunks: text, asksUsage: true, read: langchain(true) },
  { name: "LangChain with tools", chunks: toolChunks, read: langchain(false, true) },
];

let outlast: Outlast;

async function start(options: OutlastOptions = {}): Promise<Outlast> {
  outlast = await serveTest({ env: quick, ...options });
  return outlast;
}

/** As OpenAI does it: who asks for usage has a null in every chunk, and a last one that has it. */
const answering =
  (chunks: readonly StreamChunk[]): Step =>
  (call, res) => {
    const { stream_options: options } = JSON.parse(call.body.toString()) as {
      stream_options?: { include_usage?: boolean };
    };
    if (!options?.include_usage) return stream(chunks)(call, res);
    const marked = chunks.map((chunk) =>
      typeof chunk === "string" ? `${chunk.slice(0, -1)},"usage":null}` : chunk,
    );
    return stream([...marked, usageChunk])(call, res);
  };

describe("what a client makes of a stream is what it makes of the upstream's own", () => {
  it.each(ways)("$name", async ({ chunks, asksUsage = false, read }) => {
    const { fake, baseURL } = await start();
    fake.otherwise(answering(chunks));
    const direct = await read(fake.baseUrl);
    const through = await read(baseURL);
    expect(through).toEqual(direct);
    // What it asks for it has, and nothing else.
    expect(JSON.stringify(through).includes(":7")).toBe(asksUsage);
    expect(fake.seen).toHaveLength(2);
    const [told, toldByUs] = fake.seen.map(({ body }) => JSON.parse(body.toString()) as object);
    expect(toldByUs).toEqual({ ...told, stream_options: { include_usage: true } });
  });

  it.each(ways)(
    "$name, with comments before the first event and between events",
    async ({ chunks, read }) => {
      const { fake, baseURL } = await start({ toml: '[stream]\nheartbeat = "10ms"' });
      const comments = watchComments();
      fake.script(answering(chunks));
      const direct = await read(fake.baseUrl);
      const [role, content, ...rest] = chunks;
      fake.script(answering([comments.more(2), role!, content!, comments.more(4), ...rest]));
      const through = await read(baseURL);
      expect(through).toEqual(direct);
      expect(comments.count).toBeGreaterThanOrEqual(4);
    },
  );
});

interface Comments {
  count: number;
  /** Resolves when so many were sent in all. */
  more(count: number): Promise<void>;
}

/** The comments that we send; those of the test's own upstream are not among them. */
function watchComments(): Comments {
  const waiting: { count: number; resolve: () => void }[] = [];
  const comments: Comments = {
    count: 0,
    more: (count) =>
      new Promise((resolve) => {
        waiting.push({ count, resolve });
      }),
  };
  const { write } = Socket.prototype;
  const spy = vi.spyOn(Socket.prototype, "write").mockImplementation(function (
    this: Socket,
    ...given: unknown[]
  ) {
    if (String(given[0]).includes(": keep-alive\n\n")) comments.count++;
    for (const one of waiting) if (comments.count >= one.count) one.resolve();
    return Reflect.apply(write, this, given) as boolean;
  });
  onTestFinished(() => spy.mockRestore());
  return comments;
}

/** What became of it, in the client's own terms. */
interface Failing {
  name: string;
  /** Resolves with the error; fails the test where the client takes the stream for a whole one. */
  fails(baseURL: string): Promise<unknown>;
}

const thrown = (reads: Reads) => async (baseURL: string) => {
  const caught = await reads(baseURL).then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(caught, "the client took it for a success").toBeDefined();
  return caught;
};

/** The AI SDK has an error part, throws where the connection breaks, and in no case an end that is one. */
const errorPart = (provider: Provider) => async (baseURL: string) => {
  const { parts, errors } = await partsOf(provider(baseURL));
  const [error] = parts.filter(({ type }) => type === "error");
  expect(error, "the client took it for a success").toBeDefined();
  expect(errors.length).toBeGreaterThan(0);
  const finishes = parts.filter(({ type }) => type.startsWith("finish"));
  expect(finishes.filter(({ finishReason }) => finishReason !== "error")).toEqual([]);
  return error!.error;
};

const failing: Failing[] = [
  { name: "openai, create", fails: thrown(created()) },
  { name: "openai, stream()", fails: thrown(helped()) },
  { name: "AI SDK, openai chat", fails: errorPart(chat) },
  { name: "AI SDK, compatible", fails: errorPart(compatible(false)) },
  { name: "LangChain", fails: thrown(langchain(false)) },
];

/** The text of an error and of all that it is about. */
function tellingOf(error: unknown): string {
  if (!(error instanceof Error)) return typeof error === "string" ? error : JSON.stringify(error);
  return `${error.name} ${error.message} ${JSON.stringify(error)} ${error.cause ? tellingOf(error.cause) : ""}`;
}

describe("a stream that breaks behind its first content is a failure for every client", () => {
  it.each(failing)("$name: the answer began anew", async ({ fails }) => {
    const { fake, baseURL, ear } = await start();
    fake.script(cutShort(begun(["Hel"])), stream(whole(["quite another"])));
    const telling = tellingOf(await fails(baseURL));
    const { id } = await ear.event("ended", ({ state }) => state === "completed");
    expect(telling).toContain(id);
    expect(fake.seen).toHaveLength(2);
  });

  it.each(failing)("$name: no attempt is left", async ({ fails }) => {
    const { fake, baseURL, ear } = await start({
      env: { ...quick, OUTLAST_DEFAULTS_HELD_MAX_ATTEMPTS: "2" },
    });
    fake.otherwise(cutShort(begun(["Hel", "lo"])));
    await fails(baseURL);
    await ear.event("ended", ({ state }) => state === "failed");
    expect(fake.seen).toHaveLength(2);
  });

  it("openai: with the code and all that the error has to say", async () => {
    const { fake, client, ear } = await start();
    fake.script(cutShort(begun(["Hel"])), stream(whole(["quite another"])));
    const texts: (string | null | undefined)[] = [];
    const reading = async () => {
      for await (const { choices } of await client().chat.completions.create({ ...hello, stream: true })) {
        texts.push(choices[0]?.delta.content);
      }
    };
    const error = await reading().catch((caught: unknown) => caught);
    const { id } = await ear.event("ended");
    expect(error).toBeInstanceOf(OpenAI.APIError);
    expect(error).toMatchObject({ code: "stream_interrupted", param: null, error: { request_id: id } });
    expect(texts.join("")).toBe("Hel");
  });
});

describe("an error before the first content is the HTTP error that it is for a plain call", () => {
  it.each(failing)("$name", async ({ name, fails }) => {
    const { fake, baseURL } = await start();
    fake.otherwise(fail(400, { code: "bad_tool", message: "No such tool." }));
    const error = await fails(baseURL);
    expect(tellingOf(error)).toContain("No such tool.");
    if (name.startsWith("AI SDK")) {
      expect(APICallError.isInstance(error)).toBe(true);
      expect(error).toMatchObject({ statusCode: 400, isRetryable: false });
    } else {
      expect(error).toMatchObject({ status: 400, code: "bad_tool" });
    }
    expect(fake.seen).toHaveLength(1);
  });
});

describe("a fault that is mended is nothing to any client", () => {
  const faults: [string, Step[]][] = [
    ["before the first content", [fail(503), cutShort([roleChunk()])]],
    ["behind it, where the new answer begins alike", [cutShort(begun(["Hel", "lo"]))]],
  ];
  for (const { name, read } of ways.filter(({ chunks, asksUsage }) => chunks === text && !asksUsage)) {
    it.each(faults)(`${name}: %s`, async (_name, steps) => {
      const { fake, baseURL } = await start();
      const chunks = [roleChunk(), textChunk("Hel"), textChunk("lo"), textChunk(" you"), stopChunk()];
      fake.script(stream(chunks));
      const direct = await read(fake.baseUrl);
      fake.script(...steps, stream(chunks));
      expect(await read(baseURL)).toEqual(direct);
      expect(fake.seen).toHaveLength(2 + steps.length);
    });
  }
});
