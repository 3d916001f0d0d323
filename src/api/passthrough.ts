/** Everything that we do not record: let through to an upstream, both ways as it comes (DESIGN §4.4). */

import type { IncomingMessage } from "node:http";
import { pipeline } from "node:stream/promises";
import { AppError, failures } from "../core/errors.ts";
import { type HeaderList, toCaller, toUpstream } from "../core/headers.ts";
import type { Abort, ForwardCall, ForwardReply } from "../core/ports.ts";
import { laneParts } from "../core/request.ts";
import { laneOf, targetsFor } from "../core/routing.ts";
import { type JsonBody, parseBody, readBody, withoutOurs } from "./body.ts";
import { type ApiOptions, type Call, type Handler, headersOf } from "./context.ts";
import { failureReply } from "./errors.ts";
import { whenGone } from "./hang-up.ts";
import { sizeOf } from "./measure.ts";
import { oursAlone, type Reply } from "./reply.ts";

/** Paths that spend tokens on one call and show nothing of the account. */
const inference =
  /^\/(completions|embeddings|responses(\/input_tokens|\/compact)?|moderations|messages|rerank|images\/\w+|audio\/\w+)$/;

export const passThroughUnread: Handler = async (call, options) => {
  const { incoming } = call;
  const type = call.header("content-type") ?? "";
  const hasBody =
    incoming.headers["content-length"] !== undefined || incoming.headers["transfer-encoding"] !== undefined;
  if (!hasBody || incoming.headers["content-length"] === "0") return passThrough(call, options);
  if (!/\bjson\b/i.test(type)) return passThrough(call, options, uploadOf(incoming));
  const bytes = await readBody(call, options.maxBodyBytes);
  const body = jsonBody(bytes);
  // What does not parse is the upstream's to refuse.
  return body ? passThrough(call, options, withoutOurs(body), body.value) : passThrough(call, options, bytes);
};

/** The body as it comes. Whoever stops reading it leaves the connection alone, since the caller is owed a reply. */
const uploadOf = (incoming: IncomingMessage): AsyncIterable<Uint8Array> => ({
  [Symbol.asyncIterator]: () => incoming.iterator({ destroyOnReturn: false }),
});

function jsonBody(bytes: Buffer): JsonBody | undefined {
  try {
    return parseBody(bytes);
  } catch {
    return undefined;
  }
}

/** @throws AppError `operator_only`, `passthrough_off`, `model_not_found`, `rate_limited`, `shutting_down` */
export async function passThrough(
  call: Call,
  options: ApiOptions,
  body?: Uint8Array | AsyncIterable<Uint8Array>,
  value?: Record<string, unknown>,
): Promise<Reply | undefined> {
  checkAllowed(call, options);
  if (options.queue.isStopping) throw options.queue.refusal()!;
  const target = targetOf(call, options, value);
  const { upstream, model } = laneParts(target);
  if (value && typeof value.model === "string") options.queue.countLetThrough(target, sizeOf(value));
  const abort: Abort = { aborted: false, onAbort: undefined };
  const unwatch = whenGone(call, () => {
    abort.aborted = true;
    abort.onAbort?.();
  });
  const forward: ForwardCall = {
    upstream,
    ...(typeof value?.model === "string" ? { model, askedModel: value.model } : {}),
    method: call.incoming.method ?? "GET",
    path: call.path,
    headers: [...toUpstream(headersOf(call), false), ...lengthOf(call, body)],
    body,
  };
  try {
    const reply = await options.upstream.forward(forward, abort);
    return await answered(call, reply, upstream);
  } finally {
    unwatch();
  }
}

/** The length of an upload that is not read here: many servers take none without. */
function lengthOf(call: Call, body: Uint8Array | AsyncIterable<Uint8Array> | undefined): HeaderList {
  const length = call.header("content-length");
  return body === undefined || body instanceof Uint8Array || length === undefined
    ? []
    : [["content-length", length]];
}

async function answered(call: Call, reply: ForwardReply, upstream: string): Promise<Reply | undefined> {
  if (reply.kind === "response") return relay(call, reply, upstream);
  if (call.outgoing.destroyed) return undefined;
  const failure = reply.kind === "timeout" ? failures.timeout(upstream) : unsent(reply, upstream);
  return failureReply(failure, ours(upstream));
}

function unsent({ sent }: Extract<ForwardReply, { kind: "network_error" }>, upstream: string) {
  return sent ? failures.lost(upstream) : failures.unreachable(upstream);
}

const ours = (upstream: string): HeaderList => [
  ["outlast-recorded", "false"],
  ["outlast-upstream", upstream],
];

function checkAllowed(call: Call, { passthrough, accountPathsOpen }: ApiOptions): void {
  const pathname = call.path.split("?", 1)[0]!;
  if (passthrough === "off") {
    throw new AppError("passthrough_off", "This path is not recorded, and `passthrough` is off.");
  }
  const perCall = call.incoming.method === "POST" && inference.test(pathname);
  if (perCall || (call.incoming.method === "GET" && /^\/models(\/|$)/.test(pathname))) return;
  if (passthrough !== "all") {
    throw new AppError(
      "passthrough_off",
      'This path reaches the provider\'s account; it needs `passthrough = "all"`.',
    );
  }
  if (accountPathsOpen || call.caller.role === "operator") return;
  const message =
    "This path reaches the whole account of the provider: it needs an API key with role `operator`.";
  throw new AppError("operator_only", message);
}

/** The target of a call: by the model it names, else the default upstream. */
function targetOf(call: Call, { table }: ApiOptions, value?: Record<string, unknown>): string {
  const named = readUpstream(call, value);
  if (typeof value?.model === "string") return laneOf(targetsFor(table, value.model, named)[0]!);
  const fallback = table.upstreams.find(({ models }) => models.length === 0) ?? table.upstreams[0];
  const chosen = named === undefined ? fallback : table.upstreams.find(({ name }) => name === named);
  if (!chosen)
    throw new AppError("upstream_not_found", "There is no such upstream.", { param: "outlast.upstream" });
  return `${chosen.name}/`;
}

function readUpstream(call: Call, value?: Record<string, unknown>): string | undefined {
  const fromBody = (value?.outlast as { upstream?: unknown } | undefined)?.upstream;
  if (typeof fromBody === "string") return fromBody;
  try {
    const options = JSON.parse(call.header("outlast-options") ?? "{}") as { upstream?: unknown };
    return typeof options.upstream === "string" ? options.upstream : undefined;
  } catch {
    throw new AppError("invalid_parameter", "`Outlast-Options`: must be a JSON object.", {
      param: "Outlast-Options",
    });
  }
}

/** Hands the answer on as it comes, at the caller's pace. A cut answer is cut for the caller too, never ended cleanly. */
async function relay(
  { outgoing }: Call,
  reply: Extract<ForwardReply, { kind: "response" }>,
  upstream: string,
): Promise<undefined> {
  const length = reply.headers.find(([name]) => name === "content-length");
  const theirs = toCaller(reply.headers).filter(([name]) => !oursAlone.test(name));
  const headers = [...theirs, ...(length ? [length] : []), ...ours(upstream)];
  try {
    outgoing.writeHead(reply.status, headers.flat());
    outgoing.flushHeaders();
    await pipeline(reply.body, outgoing);
  } catch {
    outgoing.destroy();
  }
  return undefined;
}
