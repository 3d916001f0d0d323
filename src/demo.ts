/**
 * The built-in demo upstream: a small OpenAI-compatible server on loopback, so that the first minute works
 * offline and without a key. Each model fails in a way of its own, so that retries can be watched.
 */

import { createHash } from "node:crypto";
import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import type { Clock, Random } from "./core/ports.ts";

/** What the demo needs of the world: the time and luck. */
export interface DemoWorld {
  clock: Pick<Clock, "now" | "timer">;
  random: Pick<Random, "next" | "id">;
}

/** A running demo upstream. */
export interface Demo {
  /** Ends in `/v1`, as OpenAI's own base URL does. */
  baseUrl: string;
  models: string[];
  /** Hangs up on everyone and frees the port. */
  close(): Promise<void>;
}

type Json = Record<string, unknown>;

/** One HTTP answer; a stream has several parts, anything else has one. */
type Reply = { status: number; headers: Record<string, string>; parts: string[] };

/** How a model behaves. */
interface Mood {
  /** The least and the most time it takes to answer. */
  waitMs: [number, number];
  /** The share of calls that fail. */
  failing: number;
  /** Equally likely; `reset` hangs up before the answer, `cut` in the middle of it. */
  faults: (Reply | "reset" | "cut")[];
}

const chunkGapMs = 40;
/** Longer than a client's pool idles, so that no call meets our hang-up. */
const keepAliveMs = 75_000;

const onPurpose = "The demo upstream fails on purpose now and then.";
const limited = { type: "requests", code: "rate_limit_exceeded" };
const serverError = failure(500, onPurpose, { type: "server_error" });
const overloaded = failure(503, onPurpose, { type: "service_unavailable_error" });
const retryInMs = failure(429, onPurpose, limited, { "retry-after-ms": "400" });
const retryInSeconds = failure(429, onPurpose, limited, { "retry-after": "1" });
const flakyFaults: Mood["faults"] = [serverError, overloaded, retryInSeconds, "reset", "cut"];

const moods = new Map<unknown, Mood>([
  ["demo", { waitMs: [200, 800], failing: 0.2, faults: [serverError, retryInMs] }],
  ["demo-flaky", { waitMs: [200, 800], failing: 0.6, faults: flakyFaults }],
  ["demo-slow", { waitMs: [20_000, 20_000], failing: 0, faults: [] }],
  ["demo-down", { waitMs: [0, 0], failing: 1, faults: [overloaded] }],
]);
const models = [...moods.keys()].map(String);

/** Starts the demo upstream on a port of 127.0.0.1 that the system picks. */
export async function startDemo(world: DemoWorld): Promise<Demo> {
  const server = createServer((req, res) => {
    serve(world, req, res).catch(() => res.destroy()); // the caller hung up
  });
  server.keepAliveTimeout = keepAliveMs;
  await once(server.listen(0, "127.0.0.1"), "listening");
  const { port } = server.address() as AddressInfo;
  const close = () =>
    new Promise<void>((resolve) => {
      server.close(() => resolve());
      server.closeAllConnections();
    });
  return { baseUrl: `http://127.0.0.1:${port}/v1`, models: [...models], close };
}

async function serve(world: DemoWorld, req: IncomingMessage, res: ServerResponse): Promise<void> {
  const body = await text(req);
  // Without the prefix of Outlast's own ids, so that nobody takes one for the other.
  const id = `demo-${world.random.id().replace("req_", "")}`;
  res.setHeader("x-request-id", id);
  const chat = (asked: Json) => chatReply(asked, `chatcmpl-${id}`, world.clock.now());
  const endpoint = `${req.method} ${req.url?.replace(/\?.*/, "")}`;
  if (endpoint === "POST /v1/chat/completions") return infer(world, res, body, chat);
  if (endpoint === "POST /v1/embeddings") return infer(world, res, body, embeddingsReply);
  return send(world, res, modelsReply(endpoint));
}

/** Answers a call to a model, or fails it as the model's mood and luck will have it. */
async function infer(world: DemoWorld, res: ServerResponse, body: string, answer: (asked: Json) => Reply) {
  const asked = parsed(body);
  if (!asked) return send(world, res, failure(400, "We could not parse the JSON body of your request."));
  const mood = moods.get(asked.model);
  if (!mood) return send(world, res, unknownModel(asked.model));
  const reply = answer(asked);
  if (reply.status !== 200) return send(world, res, reply);

  // Nothing is metered: these only look like the real thing.
  res.setHeader("x-ratelimit-limit-requests", "10000").setHeader("x-ratelimit-remaining-requests", "9999");
  const luck = world.random.next();
  const fault = luck < mood.failing && mood.faults[Math.floor((luck / mood.failing) * mood.faults.length)];
  if (typeof fault === "object") return send(world, res, fault);
  if (fault === "reset") return hangUp(res);
  const [least, most] = mood.waitMs;
  await pause(world, Math.round(least + world.random.next() * (most - least)));
  return fault === "cut" ? sendHalf(world, res, reply) : send(world, res, reply);
}

function parsed(body: string): Json | undefined {
  try {
    return Object(JSON.parse(body)); // a null or a number names no model, as {} does not
  } catch {
    return undefined;
  }
}

function chatReply({ model, messages, stream, stream_options }: Json, id: string, now: number): Reply {
  if (!Array.isArray(messages)) return failure(400, "'messages' must be an array.", { param: "messages" });
  const content = greeting(messages.length);
  const usage = usageOf(JSON.stringify(messages), content);
  const common = { id, created: Math.floor(now / 1000), model };
  if (stream !== true) {
    const message = { role: "assistant", content, refusal: null };
    const choices = [{ index: 0, message, logprobs: null, finish_reason: "stop" }];
    return json(200, { ...common, object: "chat.completion", choices, usage });
  }
  const event = (choices: Json[], more: Json = {}) =>
    `data: ${JSON.stringify({ ...common, object: "chat.completion.chunk", choices, ...more })}\n\n`;
  const chunk = (delta: Json, finish_reason: string | null = null) =>
    event([{ index: 0, delta, logprobs: null, finish_reason }]);
  const phrases = content.match(/(?:\S+\s*){1,5}/g) ?? [];
  const withUsage = (stream_options as Json | null | undefined)?.include_usage === true;
  const parts = [
    chunk({ role: "assistant", content: "" }),
    ...phrases.map((phrase) => chunk({ content: phrase })),
    chunk({}, "stop"),
    ...(withUsage ? [event([], { usage })] : []),
    "data: [DONE]\n\n",
  ];
  return { status: 200, headers: { "content-type": "text/event-stream; charset=utf-8" }, parts };
}

/** The same for everyone: nothing of the prompt is repeated. */
function greeting(count: number): string {
  const came = count === 1 ? "One message" : `${count} messages`;
  return [
    `Hello! ${came} came through Outlast and reached me, its built-in demo upstream.`,
    "No language model is behind me, and now and then I fail on purpose, so that you can watch Outlast retry.",
    "To get real answers, stop Outlast, set your key with `export OPENAI_API_KEY=sk-...`, and start it again.",
  ].join(" ");
}

/** About four characters make a token. */
function usageOf(prompt: string, completion: string): Json {
  const [prompt_tokens, completion_tokens] = [Math.ceil(prompt.length / 4), Math.ceil(completion.length / 4)];
  return { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens };
}

/** The input is one text, texts, one list of tokens, or lists of tokens. */
function embeddingsReply({ model, input = "", encoding_format }: Json): Reply {
  const inputs = Array.isArray(input) && typeof input[0] !== "number" ? input : [input];
  const data = inputs.map((item, index) => {
    const vector = vectorOf(JSON.stringify(item));
    const base64 = () => Buffer.from(vector.buffer).toString("base64");
    return { object: "embedding", index, embedding: encoding_format === "base64" ? base64() : [...vector] };
  });
  return json(200, { object: "list", data, model, usage: usageOf(JSON.stringify(inputs), "") });
}

/** 32 dimensions, of length 1, the same for the same text. */
function vectorOf(input: string): Float32Array {
  const values = Float32Array.from(createHash("sha256").update(input).digest(), (byte) => byte - 127.5);
  const length = Math.hypot(...values);
  return values.map((value) => value / length);
}

/** The list of models, one of them, or 404. */
function modelsReply(endpoint: string): Reply {
  const described = (id: unknown) => ({ id, object: "model", created: 0, owned_by: "outlast-demo" });
  if (endpoint === "GET /v1/models") return json(200, { object: "list", data: models.map(described) });
  const id = /^GET \/v1\/models\/(.+)$/.exec(endpoint)?.[1];
  if (!id) return failure(404, `Unknown request URL: ${endpoint}.`, { code: "unknown_url" });
  return moods.has(id) ? json(200, described(id)) : unknownModel(id);
}

function unknownModel(model: unknown): Reply {
  const message = `The model ${JSON.stringify(model)} does not exist here. The demo has ${models.join(", ")}.`;
  return failure(404, message, { param: "model", code: "model_not_found" });
}

function failure(status: number, message: string, details: Json = {}, headers = {}): Reply {
  const error = { message, type: "invalid_request_error", param: null, code: null, ...details };
  return json(status, { error }, headers);
}

function json(status: number, value: Json, headers = {}): Reply {
  const parts = [JSON.stringify(value)];
  return { status, headers: { "content-type": "application/json", ...headers }, parts };
}

/** Sends a whole reply, a stream at the pace of one that is being made up. */
async function send(world: DemoWorld, res: ServerResponse, { status, headers, parts }: Reply): Promise<void> {
  res.writeHead(status, headers);
  for (const part of parts.slice(0, -1)) {
    res.write(part);
    await pause(world, chunkGapMs);
  }
  res.end(parts.at(-1));
}

async function sendHalf(world: DemoWorld, res: ServerResponse, { status, headers, parts }: Reply) {
  const whole = parts.join("");
  res.writeHead(status, headers).write(whole.slice(0, whole.length / 2));
  // Bytes and a reset that arrive together look like a proper end: the caller gets the time to read.
  await pause(world, chunkGapMs);
  hangUp(res);
}

function hangUp(res: ServerResponse): void {
  res.req.socket.resetAndDestroy();
}

/** A caller may be gone when it ends: Node drops what is written to nobody. */
function pause({ clock }: DemoWorld, delayMs: number): Promise<void> {
  return new Promise((resolve) => {
    clock.timer(delayMs, resolve);
  });
}
