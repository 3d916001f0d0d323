/**
 * The built-in demo upstream: a small server on loopback that speaks the OpenAI API, so that the first
 * minute works without a key and without a network. It is moody on purpose: what it does to a call is
 * chosen by the model's name and by luck, and the whole choice is made before the first byte is sent.
 *
 *   plan    what to reply, after how long, and with which fault (no I/O)
 *   perform puts a plan on the wire
 */
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
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

const MODELS = ["demo", "demo-flaky", "demo-slow", "demo-down"] as const;
type Model = (typeof MODELS)[number];

const REQUESTS_PER_MINUTE = 10_000;
const TOKENS_PER_MINUTE = 2_000_000;
const MINUTE_MS = 60_000;
const CHUNK_GAP_MS = 40;
const SLOW_MS = 20_000;
const RETRY_AFTER_MS = 400;
const MAX_BODY_BYTES = 32 * 1024 * 1024;
const DEFAULT_DIMENSIONS = 16;
const MAX_DIMENSIONS = 3072;
const MAX_INPUTS = 2048;
const FINGERPRINT = "fp_outlast_demo";
const ROLES = ["developer", "system", "user", "assistant", "tool", "function"];

type Json = Record<string, unknown>;

/** One HTTP answer; a stream has several parts, anything else has one. */
interface Reply {
  status: number;
  headers: Record<string, string>;
  parts: Buffer[];
}

/** What happens to a call. A `reset` comes before the first byte of the answer, a `cut` in its middle. */
interface Plan {
  reply: Reply;
  delayMs: number;
  fault: "none" | "reset" | "cut";
}

/** How much of the limits is in use; it drains evenly, as OpenAI's does. */
interface Meter {
  readAt: number;
  requests: number;
  tokens: number;
}

interface Context extends DemoWorld {
  startedAt: number;
  meters: Map<Model, Meter>;
}

interface Call {
  method: string;
  path: string;
  body: Buffer | "too_large";
}

/** A request for an answer that passed every check. */
interface Inference {
  model: Model;
  promptTokens: number;
  answerTokens: number;
  reply(): Reply;
}

/** Starts the demo upstream on a port of 127.0.0.1 that the system picks. */
export async function startDemo(world: DemoWorld): Promise<Demo> {
  const context: Context = { ...world, startedAt: world.clock.now(), meters: new Map() };
  const server = createServer((req, res) => {
    serve(context, req, res).catch(() => res.destroy()); // the caller left while it was sending its body
  });
  server.keepAliveTimeout = 75_000; // longer than a client's pool idles, so that no call meets our hang-up
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(0, "127.0.0.1", resolve);
  });
  const { port } = server.address() as AddressInfo;
  return {
    baseUrl: `http://127.0.0.1:${port}/v1`,
    models: [...MODELS],
    close: () =>
      new Promise<void>((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

async function serve(context: Context, req: IncomingMessage, res: ServerResponse): Promise<void> {
  const path = (req.url ?? "/").split("?", 1)[0] ?? "/";
  const call = { method: req.method ?? "GET", path, body: await readBody(req) };
  await perform(context, res, plan(context, call));
}

async function readBody(req: IncomingMessage): Promise<Buffer | "too_large"> {
  const pieces: Buffer[] = [];
  let bytes = 0;
  // What is too much is read to its end and dropped: a client that is still sending would not see the refusal.
  for await (const piece of req as AsyncIterable<Buffer>) {
    bytes += piece.length;
    if (bytes <= MAX_BODY_BYTES) pieces.push(piece);
  }
  return bytes <= MAX_BODY_BYTES ? Buffer.concat(pieces) : "too_large";
}

// ---- deciding ----

function plan(context: Context, call: Call): Plan {
  if (call.method === "POST" && call.path === "/v1/chat/completions") {
    return planInference(context, call.body, checkChat);
  }
  if (call.method === "POST" && call.path === "/v1/embeddings") {
    return planInference(context, call.body, checkEmbeddings);
  }
  if (call.method === "GET" && call.path === "/v1/models") {
    return atOnce(context, json(200, { object: "list", data: MODELS.map((id) => modelObject(context, id)) }));
  }
  if (call.method === "GET" && call.path.startsWith("/v1/models/")) {
    const id = decoded(call.path.slice("/v1/models/".length));
    return atOnce(context, isModel(id) ? json(200, modelObject(context, id)) : unknownModel(id));
  }
  const message = `Unknown request URL: ${call.method} ${call.path}. The demo upstream serves /v1/chat/completions, /v1/embeddings and /v1/models.`;
  return atOnce(context, failure(404, { message, code: "unknown_url" }));
}

function planInference(
  context: Context,
  body: Buffer | "too_large",
  check: (context: Context, body: Json, model: Model) => Inference | Reply,
): Plan {
  const parsed = parseBody(body);
  if (!("value" in parsed)) return atOnce(context, parsed);
  const model = checkModel(parsed.value.model);
  if (typeof model !== "string") return atOnce(context, model);
  const checked = check(context, parsed.value, model);
  if (!("model" in checked)) return atOnce(context, checked);
  const fated = fate(checked, context.random.next(), context.random.next());
  const limits = spend(context, model, checked.promptTokens + checked.answerTokens);
  const headers = { ...requestId(context), ...limits, ...fated.reply.headers };
  return { ...fated, reply: { ...fated.reply, headers } };
}

/** The mood: what becomes of a good call, given two numbers in [0, 1) - one for its fate, one for its pace. */
function fate(inference: Inference, luck: number, pace: number): Plan {
  const answer = (delayMs: number): Plan => ({ reply: inference.reply(), delayMs, fault: "none" });
  const error = (reply: Reply): Plan => ({ reply, delayMs: 0, fault: "none" });
  const usualMs = Math.round(200 + pace * 600);
  switch (inference.model) {
    case "demo":
      if (luck < 0.1) return error(serverError());
      if (luck < 0.2) return error(rateLimited("demo", { "retry-after-ms": String(RETRY_AFTER_MS) }));
      return answer(usualMs);
    case "demo-flaky":
      if (luck < 0.12) return error(serverError());
      if (luck < 0.24) return error(unavailable("demo-flaky"));
      if (luck < 0.36) return error(rateLimited("demo-flaky", { "retry-after": "1" }));
      if (luck < 0.48) return { ...answer(0), fault: "reset" };
      if (luck < 0.6) return { ...answer(usualMs), fault: "cut" };
      return answer(usualMs);
    case "demo-slow":
      return answer(SLOW_MS);
    case "demo-down":
      return error(unavailable("demo-down"));
  }
}

function atOnce(context: Context, reply: Reply): Plan {
  const headers = { ...requestId(context), ...reply.headers };
  return { reply: { ...reply, headers }, delayMs: 0, fault: "none" };
}

function requestId(context: Context): Record<string, string> {
  return { "x-request-id": `demo-req-${freshId(context)}` };
}

/** The world's ids name requests; an upstream's own must not look like those. */
function freshId(context: Context): string {
  return context.random.id().replace(/^req_/, "");
}

/** Counts a call against the limits and tells the caller where it stands; the demo itself never refuses for them. */
function spend(context: Context, model: Model, tokens: number): Record<string, string> {
  const now = context.clock.now();
  const before = context.meters.get(model) ?? { readAt: now, requests: 0, tokens: 0 };
  const drained = Math.max(0, now - before.readAt) / MINUTE_MS;
  const left = (used: number, limit: number, more: number) =>
    Math.min(limit, Math.max(0, used - limit * drained) + more);
  const meter = {
    readAt: now,
    requests: left(before.requests, REQUESTS_PER_MINUTE, 1),
    tokens: left(before.tokens, TOKENS_PER_MINUTE, tokens),
  };
  context.meters.set(model, meter);
  return {
    "x-ratelimit-limit-requests": String(REQUESTS_PER_MINUTE),
    "x-ratelimit-limit-tokens": String(TOKENS_PER_MINUTE),
    "x-ratelimit-remaining-requests": String(Math.floor(REQUESTS_PER_MINUTE - meter.requests)),
    "x-ratelimit-remaining-tokens": String(Math.floor(TOKENS_PER_MINUTE - meter.tokens)),
    "x-ratelimit-reset-requests": duration((meter.requests / REQUESTS_PER_MINUTE) * MINUTE_MS),
    "x-ratelimit-reset-tokens": duration((meter.tokens / TOKENS_PER_MINUTE) * MINUTE_MS),
  };
}

/** OpenAI writes durations as Go does: `6ms`, `1.5s`, `1m0s`. */
function duration(exactMs: number): string {
  const ms = Math.ceil(exactMs);
  if (ms < 1000) return `${ms}ms`;
  const minutes = Math.floor(ms / MINUTE_MS);
  return `${minutes > 0 ? `${minutes}m` : ""}${(ms % MINUTE_MS) / 1000}s`;
}

// ---- checking ----

function parseBody(body: Buffer | "too_large"): { value: Json } | Reply {
  if (body === "too_large") {
    return failure(413, {
      message: `The body is larger than ${MAX_BODY_BYTES} bytes.`,
      code: "request_too_large",
    });
  }
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(body));
  } catch {
    return failure(400, { message: "We could not parse the JSON body of your request." });
  }
  return isObject(value)
    ? { value }
    : failure(400, { message: "The body of your request must be a JSON object." });
}

function checkModel(model: unknown): Model | Reply {
  if (model === undefined || model === null || model === "") return missing("model");
  if (typeof model !== "string") return wrongType("model", "a string");
  return isModel(model) ? model : unknownModel(model);
}

function checkChat(context: Context, body: Json, model: Model): Inference | Reply {
  const { messages, stream, stream_options: options } = body;
  if (messages === undefined || messages === null) return missing("messages");
  if (!Array.isArray(messages)) return wrongType("messages", "an array of messages");
  if (messages.length === 0) return wrongValue("messages", "expected at least one message", "empty_array");
  for (const [index, message] of messages.entries()) {
    const wrong = checkMessage(message, `messages[${index}]`);
    if (wrong) return wrong;
  }
  if (!isOptionalBoolean(stream)) return wrongType("stream", "a boolean");
  const wrong = checkStreamOptions(options, stream === true);
  if (wrong) return wrong;
  const text = chatText(messages.length);
  const promptTokens = messages.reduce((sum: number, message: Json) => sum + messageTokens(message), 0);
  const answerTokens = tokensOf(text.length);
  const withUsage = isObject(options) && options.include_usage === true;
  const chat: Chat = { model, text, promptTokens, answerTokens };
  const reply = () => (stream === true ? chatStream(context, chat, withUsage) : chatReply(context, chat));
  return { model, promptTokens, answerTokens, reply };
}

function checkMessage(message: unknown, param: string): Reply | undefined {
  if (!isObject(message)) return wrongType(param, "an object");
  const { role, content } = message;
  if (role === undefined) return missing(`${param}.role`);
  if (typeof role !== "string") return wrongType(`${param}.role`, "a string");
  if (!ROLES.includes(role)) {
    return wrongValue(`${param}.role`, `expected one of ${ROLES.join(", ")}`, "invalid_value");
  }
  if (content === undefined || content === null) {
    // Only an assistant may have said nothing: it called tools.
    return role === "assistant" || role === "function" ? undefined : missing(`${param}.content`);
  }
  if (typeof content === "string" || (Array.isArray(content) && content.every(isObject))) return undefined;
  return wrongType(`${param}.content`, "a string or an array of content parts");
}

function checkStreamOptions(options: unknown, stream: boolean): Reply | undefined {
  if (options === undefined || options === null) return undefined;
  if (!isObject(options)) return wrongType("stream_options", "an object");
  if (!stream) {
    return wrongValue("stream_options", "it is only allowed when 'stream' is enabled", "invalid_value");
  }
  if (isOptionalBoolean(options.include_usage)) return undefined;
  return wrongType("stream_options.include_usage", "a boolean");
}

function checkEmbeddings(_context: Context, body: Json, model: Model): Inference | Reply {
  const { encoding_format: format = "float", dimensions = DEFAULT_DIMENSIONS } = body;
  if (body.input === undefined || body.input === null) return missing("input");
  const inputs = embeddingInputs(body.input);
  if (!inputs) return wrongType("input", "a non-empty string, an array of them, or arrays of tokens");
  if (inputs.length > MAX_INPUTS) {
    return wrongValue("input", `expected at most ${MAX_INPUTS} inputs`, "array_above_max_length");
  }
  if (format !== "float" && format !== "base64") {
    return wrongValue("encoding_format", "expected 'float' or 'base64'", "invalid_value");
  }
  if (typeof dimensions !== "number" || !Number.isInteger(dimensions)) {
    return wrongType("dimensions", "an integer");
  }
  if (dimensions < 1 || dimensions > MAX_DIMENSIONS) {
    return wrongValue("dimensions", `expected 1 to ${MAX_DIMENSIONS}`, "invalid_value");
  }
  const promptTokens = inputs.reduce((sum, input) => sum + input.tokens, 0);
  const reply = () => embeddingsReply(model, inputs, format, dimensions, promptTokens);
  return { model, promptTokens, answerTokens: 0, reply };
}

interface EmbeddingInput {
  text: string;
  tokens: number;
}

/** One text, texts, one list of tokens, or lists of tokens; undefined for anything else. */
function embeddingInputs(input: unknown): EmbeddingInput[] | undefined {
  const list = typeof input === "string" || isTokens(input) ? [input] : input;
  if (!Array.isArray(list) || list.length === 0) return undefined;
  const inputs: EmbeddingInput[] = [];
  for (const item of list) {
    if (typeof item === "string" && item !== "") inputs.push({ text: item, tokens: tokensOf(item.length) });
    else if (isTokens(item)) inputs.push({ text: JSON.stringify(item), tokens: item.length });
    else return undefined;
  }
  return inputs;
}

function isTokens(value: unknown): value is number[] {
  return Array.isArray(value) && value.length > 0 && value.every((token) => Number.isInteger(token));
}

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isModel(name: string): name is Model {
  return (MODELS as readonly string[]).includes(name);
}

function isOptionalBoolean(value: unknown): boolean {
  return value === undefined || value === null || typeof value === "boolean";
}

function decoded(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return segment;
  }
}

// ---- answering ----

interface Chat {
  model: Model;
  text: string;
  promptTokens: number;
  answerTokens: number;
}

function chatText(messages: number): string {
  const came = messages === 1 ? "One message" : `${messages} messages`;
  return [
    `Hello! ${came} came through Outlast and reached me, its built-in demo upstream.`,
    "No language model is behind me: I say the same to everyone, and now and then I fail on purpose, so that you can watch Outlast retry.",
    "To get real answers, stop Outlast, set your key with `export OPENAI_API_KEY=sk-...`, and start it again.",
  ].join(" ");
}

/** About four characters make a token. */
function tokensOf(characters: number): number {
  return Math.ceil(characters / 4);
}

function messageTokens({ content }: Json): number {
  const parts: unknown[] = Array.isArray(content) ? content : [{ text: content }];
  const characters = parts.reduce((sum: number, part) => {
    return sum + (isObject(part) && typeof part.text === "string" ? part.text.length : 0);
  }, 0);
  return 4 + tokensOf(characters); // roles and separators cost a few tokens too
}

function usage(promptTokens: number, answerTokens: number): Json {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: answerTokens,
    total_tokens: promptTokens + answerTokens,
  };
}

function chatReply(context: Context, { model, text, promptTokens, answerTokens }: Chat): Reply {
  const message = { role: "assistant", content: text, refusal: null };
  return json(200, {
    id: `chatcmpl-demo-${freshId(context)}`,
    object: "chat.completion",
    created: unixSeconds(context.clock.now()),
    model,
    choices: [{ index: 0, message, logprobs: null, finish_reason: "stop" }],
    usage: usage(promptTokens, answerTokens),
    system_fingerprint: FINGERPRINT,
  });
}

function chatStream(context: Context, chat: Chat, withUsage: boolean): Reply {
  const common = {
    id: `chatcmpl-demo-${freshId(context)}`,
    object: "chat.completion.chunk",
    created: unixSeconds(context.clock.now()),
    model: chat.model,
    system_fingerprint: FINGERPRINT,
  };
  const chunk = (delta: Json, finishReason: "stop" | null = null): Json => ({
    ...common,
    choices: [{ index: 0, delta, logprobs: null, finish_reason: finishReason }],
    ...(withUsage ? { usage: null } : {}),
  });
  const events = [
    chunk({ role: "assistant", content: "", refusal: null }),
    ...phrases(chat.text).map((content) => chunk({ content })),
    chunk({}, "stop"),
  ];
  if (withUsage) {
    events.push({ ...common, choices: [], usage: usage(chat.promptTokens, chat.answerTokens) });
  }
  const lines = [...events.map((event) => JSON.stringify(event)), "[DONE]"];
  return {
    status: 200,
    headers: { "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache" },
    parts: lines.map((line) => Buffer.from(`data: ${line}\n\n`)),
  };
}

/** Cuts a text into pieces of five words that join to exactly the text. */
function phrases(text: string): string[] {
  return text.match(/(?:\S+\s*){1,5}/g) ?? [];
}

function embeddingsReply(
  model: Model,
  inputs: EmbeddingInput[],
  format: "float" | "base64",
  dimensions: number,
  promptTokens: number,
): Reply {
  const data = inputs.map(({ text }, index) => {
    const vector = vectorOf(text, dimensions);
    return { object: "embedding", index, embedding: format === "base64" ? base64(vector) : vector };
  });
  const spent = { prompt_tokens: promptTokens, total_tokens: promptTokens };
  return json(200, { object: "list", data, model, usage: spent });
}

/** A vector of length 1 that depends on the text alone: equal texts are near each other, others are not. */
function vectorOf(text: string, dimensions: number): number[] {
  let state = 0x811c9dc5;
  for (let at = 0; at < text.length; at++) state = Math.imul(state ^ text.charCodeAt(at), 0x01000193);
  const values = Array.from({ length: dimensions }, () => {
    state = (state + 0x6d2b79f5) | 0; // mulberry32
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 31 - 1;
  });
  const length = Math.hypot(...values) || 1;
  return values.map((value) => value / length);
}

function base64(vector: number[]): string {
  const bytes = Buffer.alloc(vector.length * 4);
  for (const [index, value] of vector.entries()) bytes.writeFloatLE(value, index * 4);
  return bytes.toString("base64");
}

function modelObject(context: Context, id: Model): Json {
  return { id, object: "model", created: unixSeconds(context.startedAt), owned_by: "outlast-demo" };
}

function unixSeconds(now: number): number {
  return Math.floor(now / 1000);
}

function json(status: number, value: Json, headers: Record<string, string> = {}): Reply {
  const body = Buffer.from(JSON.stringify(value));
  const length = String(body.length);
  return {
    status,
    headers: { "content-type": "application/json", "content-length": length, ...headers },
    parts: [body],
  };
}

// ---- failing ----

interface Failure {
  message: string;
  type?: string;
  param?: string;
  code?: string;
}

function failure(status: number, error: Failure, headers: Record<string, string> = {}): Reply {
  const { message, type = "invalid_request_error", param = null, code = null } = error;
  return json(status, { error: { message, type, param, code } }, headers);
}

function missing(param: string): Reply {
  const message = `Missing required parameter: '${param}'.`;
  return failure(400, { message, param, code: "missing_required_parameter" });
}

function wrongType(param: string, expected: string): Reply {
  const message = `Invalid type for '${param}': expected ${expected}.`;
  return failure(400, { message, param, code: "invalid_type" });
}

function wrongValue(param: string, why: string, code: string): Reply {
  return failure(400, { message: `Invalid '${param}': ${why}.`, param, code });
}

function unknownModel(model: string): Reply {
  const message = `The model '${model}' does not exist here. The demo upstream has: ${MODELS.join(", ")}.`;
  return failure(404, { message, param: "model", code: "model_not_found" });
}

function serverError(): Reply {
  const message = "The server had an error while processing your request. (The demo does this on purpose.)";
  return failure(500, { message, type: "server_error" });
}

function unavailable(model: Model): Reply {
  const message = `The model '${model}' is overloaded or not ready yet. (The demo does this on purpose.)`;
  return failure(503, { message, type: "service_unavailable_error" });
}

function rateLimited(model: Model, retry: Record<string, string>): Reply {
  const wait = retry["retry-after"] ? `${retry["retry-after"]}s` : `${RETRY_AFTER_MS}ms`;
  const message = `Rate limit reached for ${model} on requests per min. Please try again in ${wait}. (The demo does this on purpose.)`;
  const limits = { "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": wait };
  return failure(429, { message, type: "requests", code: "rate_limit_exceeded" }, { ...limits, ...retry });
}

// ---- doing ----

async function perform(
  context: Context,
  res: ServerResponse,
  { reply, delayMs, fault }: Plan,
): Promise<void> {
  if (fault === "reset") {
    res.req.socket.resetAndDestroy();
    return;
  }
  if (delayMs > 0 && !(await pause(context, res, delayMs))) return;
  res.writeHead(reply.status, reply.headers);
  const parts = fault === "cut" ? firstHalf(reply.parts) : reply.parts;
  for (const [index, part] of parts.entries()) {
    if (index > 0 && !(await pause(context, res, CHUNK_GAP_MS))) return;
    await written(res, part);
  }
  if (fault === "none") res.end();
  // Bytes and a RST that arrive together look like bytes and a FIN: the caller gets the time to read.
  else if (await pause(context, res, CHUNK_GAP_MS)) res.req.socket.resetAndDestroy();
}

/** Waits; false when the caller hung up in the meantime. */
function pause(context: Context, res: ServerResponse, delayMs: number): Promise<boolean> {
  return new Promise((resolve) => {
    if (res.destroyed || res.req.socket.destroyed) {
      resolve(false);
      return;
    }
    let cancel = () => {};
    const onClose = () => {
      cancel();
      resolve(false);
    };
    res.once("close", onClose);
    cancel = context.clock.timer(delayMs, () => {
      res.off("close", onClose);
      resolve(true);
    });
  });
}

/** Resolves when the system has the bytes (a reset would throw away what it does not have) or the caller is gone. */
function written(res: ServerResponse, bytes: Buffer): Promise<void> {
  return new Promise((resolve) => {
    res.write(bytes, () => resolve());
  });
}

function firstHalf(parts: Buffer[]): Buffer[] {
  const [only] = parts;
  if (parts.length === 1 && only) return [only.subarray(0, only.length >> 1)];
  return parts.slice(0, parts.length >> 1);
}
