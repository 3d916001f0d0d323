/** Calls upstreams with undici. Whatever happens on the way comes back as an outcome; nothing is thrown. */

import type { Dispatcher, Pool } from "undici";
import { measure } from "../core/findings.ts";
import type { HeaderList } from "../core/headers.ts";
import { replaceMember } from "../core/json-text.ts";
import type {
  Abort,
  CallEnd,
  Clock,
  Exchange,
  ForwardCall,
  ForwardReply,
  StreamWish,
  Upstream,
  UpstreamCall,
  UpstreamEvent,
} from "../core/ports.ts";
import { isSecretName, visibleHeaders, visibleUrl } from "../core/redact.ts";
import { type Reading, readAnswer } from "./answer.ts";
import { withMessages } from "./feedback.ts";
import { codeOf, failed, headerList, PlainAnswer } from "./plain.ts";
import { createPool } from "./pool.ts";
import { callStream } from "./stream.ts";
import { Schemas } from "./validation.ts";

export interface UpstreamOptions {
  name: string;
  /** With the version, without a slash at its end: `https://api.openai.com/v1`. */
  baseUrl: string;
  apiKey?: string;
  headers: Record<string, string>;
  maxConcurrency: number;
  /** False for one that must not be asked for the usage of streams. */
  streamUsage?: boolean;
}

interface Endpoint {
  /** For recorded calls, whose number the scheduler limits; let-through ones must not take their connections. */
  pool: Pool;
  openPool: Pool;
  origin: string;
  basePath: string;
  headers: HeaderList;
  /** Names of `headers`. */
  ownNames: ReadonlySet<string>;
  secrets: string[];
  /** It is asked for the usage of streams; until it refuses. */
  asksUsage: boolean;
}

const connectCodes = new Set([
  "ECONNREFUSED",
  "ENOTFOUND",
  "EAI_AGAIN",
  "EHOSTUNREACH",
  "ENETUNREACH",
  "EADDRNOTAVAIL",
  "ECONNABORTED",
]);

/** @param timeouts ms; `attemptMs` limits how long a let-through call may be silent */
export function createUpstream(
  upstreams: UpstreamOptions[],
  timeouts: { connectMs: number; attemptMs: number },
  clock: Clock,
): Upstream & { close(): Promise<void> } {
  const endpoints = new Map(upstreams.map((one) => [one.name, endpointOf(one, timeouts.connectMs)]));
  const endpoint = (name: string): Endpoint => {
    const found = endpoints.get(name);
    if (!found) throw new Error(`there is no upstream ${name}`);
    return found;
  };
  const schemas = new Schemas();
  const mismatches = schemas.mismatches.bind(schemas);
  const readingOf = ({ secrets }: Endpoint, { checks }: UpstreamCall): Reading => ({
    secrets,
    measure: (answer) => measure(answer, checks, mismatches),
  });
  return {
    call(call, abort) {
      const found = endpoint(call.upstream);
      return callPlain(found, call, readingOf(found, call), abort, clock);
    },
    stream(call, wish, abort) {
      const found = endpoint(call.upstream);
      return streamed(found, call, wish, readingOf(found, call), abort, clock);
    },
    forward: (call, abort) => forward(endpoint(call.upstream), call, abort, timeouts.attemptMs),
    models: (name) => listModels(endpoint(name), clock),
    schemaProblem: (schema) => schemas.problem(schema),
    async close() {
      const pools = [...endpoints.values()].flatMap(({ pool, openPool }) => [pool, openPool]);
      await Promise.all(pools.map((pool) => pool.destroy()));
    },
  };
}

function endpointOf(
  { baseUrl, apiKey, headers, maxConcurrency, streamUsage = true }: UpstreamOptions,
  connectMs: number,
): Endpoint {
  const { origin, pathname } = new URL(baseUrl);
  const configured = Object.entries(headers).map(([name, value]): [string, string] => [
    name.toLowerCase(),
    value,
  ]);
  const authorization: HeaderList = apiKey ? [["authorization", `Bearer ${apiKey}`]] : [];
  const own = [...authorization, ...configured];
  return {
    pool: createPool(origin, connectMs, maxConcurrency),
    openPool: createPool(origin, connectMs),
    origin,
    basePath: pathname.replace(/\/$/, ""),
    headers: own,
    ownNames: new Set(own.map(([name]) => name)),
    secrets: [
      apiKey ?? "",
      ...configured.filter(([name]) => isSecretName(name)).map(([, value]) => value),
    ].filter((secret) => secret.length >= 8),
    asksUsage: streamUsage,
  };
}

/** The upstream's own headers take the place of the caller's. */
function headersFor({ headers: own, ownNames }: Endpoint, headers: HeaderList): HeaderList {
  return [...headers.filter(([name]) => !ownNames.has(name)), ...own];
}

function callPlain(
  endpoint: Endpoint,
  call: UpstreamCall,
  reading: Reading,
  abort: Abort,
  clock: Clock,
): Promise<CallEnd> {
  const body = bodyOf(call.body, call);
  return new Promise((resolve) => {
    const whenEnded = (end: CallEnd) =>
      resolve(
        call.keepSent && end.connectedAt !== undefined ? { ...end, sent: sentBy(endpoint, call, body) } : end,
      );
    dispatch(endpoint, call, body, new PlainAnswer(reading, abort, clock, whenEnded));
  });
}

function streamed(
  endpoint: Endpoint,
  call: UpstreamCall,
  wish: StreamWish,
  reading: Reading,
  abort: Abort,
  clock: Clock,
): AsyncIterable<UpstreamEvent> {
  const body = bodyOf(call.body, call);
  const keep = call.keepSent ? (sent: Uint8Array) => sentBy(endpoint, call, sent) : undefined;
  const send = (text: Uint8Array, handler: Dispatcher.DispatchHandler) =>
    dispatch(endpoint, call, text, handler);
  return callStream(endpoint, { wish, reading, body, send, keep }, abort, clock);
}

/** The recorded answers are wanted as they are. */
const sentHeaders = (endpoint: Endpoint, { headers }: UpstreamCall): HeaderList => [
  ...headersFor(endpoint, headers),
  ["accept-encoding", "identity"],
];

/** What was sent, as it may be kept. */
function sentBy(endpoint: Endpoint, call: UpstreamCall, body: Uint8Array): Exchange {
  const { origin, basePath, ownNames, secrets } = endpoint;
  const { method, path } = call;
  const hidden = { names: ownNames, values: secrets };
  const url = visibleUrl(origin + basePath + path, hidden);
  return { head: { method, url, headers: visibleHeaders(sentHeaders(endpoint, call), hidden) }, body };
}

function dispatch(
  endpoint: Endpoint,
  call: UpstreamCall,
  body: Uint8Array,
  handler: Dispatcher.DispatchHandler,
): void {
  const headers = sentHeaders(endpoint, call).flat();
  const path = endpoint.basePath + call.path;
  // The time limits are the scheduler's; undici's own would only be second ones.
  const limits = { headersTimeout: 0, bodyTimeout: 0 };
  endpoint.pool.dispatch({ method: call.method as "POST", path, headers, body, ...limits }, handler);
}

/**
 * The body with the name that the target knows the model by, and with what the model is told of its last answer; as
 * Latin-1, so that every other byte stays.
 */
function bodyOf(
  body: Uint8Array,
  { model, askedModel, feedback = [] }: Pick<Partial<UpstreamCall>, "model" | "askedModel" | "feedback">,
): Uint8Array {
  const isRenamed = model !== undefined && model !== askedModel;
  if (!isRenamed && feedback.length === 0) return body;
  let text = Buffer.from(body).toString("latin1");
  if (isRenamed) text = replaceMember(text, "model", asLatin1(JSON.stringify(model)));
  if (feedback.length > 0) text = withMessages(text, feedback.map(asLatin1));
  return Buffer.from(text, "latin1");
}

const asLatin1 = (text: string): string => Buffer.from(text).toString("latin1");

async function forward(
  endpoint: Endpoint,
  call: ForwardCall,
  abort: Abort,
  silentMs: number,
): Promise<ForwardReply> {
  const { method, path, headers } = call;
  const body = call.body instanceof Uint8Array ? bodyOf(call.body, call) : call.body;
  const stop = new AbortController();
  abort.onAbort = () => stop.abort();
  if (abort.aborted) stop.abort();
  let started = false;
  try {
    const answer = await endpoint.openPool.request({
      method: method as "POST",
      path: endpoint.basePath + path,
      headers: headersFor(endpoint, headers).flat(),
      body: body as Uint8Array | undefined,
      signal: stop.signal,
      headersTimeout: silentMs,
      bodyTimeout: silentMs,
      responseHeaders: "raw",
      onInfo: () => {},
    });
    started = true;
    const rawHeaders = headerList(answer.headers as unknown as (Buffer | string)[]);
    const { statusCode: status, body: rawBody } = answer;
    const isError = status >= 400 && method !== "HEAD";
    return isError
      ? await readError(endpoint, status, rawHeaders, rawBody)
      : { kind: "response", status, headers: rawHeaders, body: rawBody };
  } catch (error) {
    const outcome = failed(error, started || !connectCodes.has(codeOf(error)));
    if (outcome.kind === "network_error") return outcome;
    return { kind: "timeout", phase: outcome.phase === "connect" ? "connect" : "headers" };
  }
}

/** An error that is let through is short, and may quote our key: it is read whole and cleaned, as a recorded one is. */
async function readError(
  endpoint: Endpoint,
  status: number,
  rawHeaders: HeaderList,
  rawBody: Dispatcher.BodyMixin,
): Promise<ForwardReply> {
  const { headers, body } = await readAnswer(status, rawHeaders, await rawBody.bytes(), endpoint);
  const length: HeaderList = [["content-length", String(body.byteLength)]];
  return { kind: "response", status, headers: [...headers, ...length], body: inOnePiece(body) };
}

async function* inOnePiece(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

/** An upstream that takes longer than this to list its models is left out of the list. */
const listLimitMs = 5000;

async function listModels(endpoint: Endpoint, clock: Clock): Promise<string[] | undefined> {
  const abort: Abort = { aborted: false, onAbort: undefined };
  const cancelTimer = clock.timer(listLimitMs, () => {
    abort.aborted = true;
    abort.onAbort?.();
  });
  const call: UpstreamCall = {
    upstream: "",
    model: "",
    askedModel: "",
    method: "GET",
    path: "/models",
    headers: [],
    body: new Uint8Array(),
  };
  try {
    const { outcome } = await callPlain(endpoint, call, endpoint, abort, clock);
    if (outcome.kind !== "response" || outcome.status !== 200 || !outcome.facts.wellFormed) return undefined;
    const list = JSON.parse(Buffer.from(outcome.body).toString("utf8")) as { data?: unknown };
    if (!Array.isArray(list.data)) return undefined;
    return list.data.map((model) => model?.id).filter((id): id is string => typeof id === "string");
  } finally {
    cancelTimer();
  }
}
