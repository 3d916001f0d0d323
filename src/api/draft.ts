/** From a call to what is submitted: the body checked, what is asked of us read, what must be equal hashed. */

import { isUtf8 } from "node:buffer";
import { hash } from "node:crypto";
import { hashInputs } from "../core/embeddings.ts";
import { AppError } from "../core/errors.ts";
import { toUpstream } from "../core/headers.ts";
import type { Checks } from "../core/ports.ts";
import type { Draft } from "../core/queue.ts";
import { callHashOf, fingerprintOf, type JsonBody, withoutOurs } from "./body.ts";
import { type ApiOptions, type Call, headersOf } from "./context.ts";
import { whenGone } from "./hang-up.ts";
import { checksOf, sizeOf } from "./measure.ts";
import { type Asked, readAsked } from "./options.ts";

/** An endpoint whose calls are recorded. */
export interface Endpoint {
  name: string;
  /** Beside the model, a body has to have this; what is in it is the upstream's to judge. */
  required: string;
  mustBeArray: boolean;
  /** Its answers can be streamed, and validated. */
  isChat: boolean;
}

export const chat: Endpoint = {
  name: "chat.completions",
  required: "messages",
  mustBeArray: true,
  isChat: true,
};
export const embeddings: Endpoint = {
  name: "embeddings",
  required: "input",
  mustBeArray: false,
  isChat: false,
};

/** @throws AppError naming the field and what is allowed */
export function readDraft(
  endpoint: Endpoint,
  call: Call,
  body: JsonBody,
  options: ApiOptions,
): { draft: Draft; asked: Asked } {
  checkBody(body.value, endpoint);
  const { defaults, table, clock, upstream } = options;
  // A stream of vectors there is none: what the body says of it is the upstream's to judge.
  const value = endpoint.isChat ? body.value : { ...body.value, stream: undefined };
  const asked = readAsked(value, call.header, defaults, table, clock.now());
  const { terms, wishes } = asked;
  const { validate, onFailure } = wishes;
  // A completion is no answer to a call for vectors.
  if (!endpoint.isChat && onFailure)
    wishes.onFailure = onFailure.staleMs ? { staleMs: onFailure.staleMs } : undefined;
  const checks = endpoint.isChat
    ? checksOf(body.value, validate, (schema) => upstream.schemaProblem(schema), asked.validatesItself)
    : undefined;
  terms.size = sizeOf(body.value);
  if (checks?.invalidIf.length) {
    terms.maxInvalid = validate?.maxRetries;
    // What was told of an invalid answer could not be taken back.
    if (terms.stream) terms.stream.mode = "buffered";
  }
  const draft = draftOf(endpoint, call, body, asked, checks);
  return { draft, asked };
}

function checkBody(value: Record<string, unknown>, { required, mustBeArray, isChat }: Endpoint): void {
  const missing = (param: string) =>
    new AppError("missing_required_parameter", `Missing required parameter: \`${param}\`.`, { param });
  if (value.model === undefined) throw missing("model");
  if (typeof value.model !== "string" || value.model === "" || value.model.length > 512) {
    throw new AppError("invalid_parameter", "`model` must be a string of 1 to 512 characters.", {
      param: "model",
    });
  }
  if (value[required] === undefined) throw missing(required);
  if (mustBeArray && !Array.isArray(value[required])) {
    throw new AppError("invalid_parameter", `\`${required}\` must be an array.`, { param: required });
  }
  const { stream } = value;
  if (isChat && stream !== undefined && stream !== null && typeof stream !== "boolean") {
    throw new AppError("invalid_parameter", "`stream` must be true or false.", { param: "stream" });
  }
}

/** What stays with us and yet makes two calls differ: who calls, and what is asked of us. */
const toldToUs =
  /^(outlast-options|api-key|x-api-key|x-goog-api-key|cookie|proxy-authorization|x-forwarded-(user|email))$/;

function draftOf(
  endpoint: Endpoint,
  call: Call,
  body: JsonBody,
  asked: Asked,
  checks: Checks | undefined,
): Draft {
  const { project } = call.caller;
  const all = headersOf(call);
  const headers = toUpstream(all, true);
  const told = [...headers, ...all.filter(([name]) => toldToUs.test(name))];
  const { idempotencyKey, terms, priority, runAt, tags, mode, wishes } = asked;
  const repeatable = idempotencyKey === undefined && terms.held && terms.onDisconnect === "continue";
  const authorization = call.header("authorization");
  const path = call.path.replace(/\/(?=\?|$)/, "");
  const mayRepeat = wishes.onFailure?.staleMs !== undefined || (endpoint.isChat && wishes.cache);
  const needsFingerprint = idempotencyKey !== undefined || mayRepeat;
  const fingerprint = needsFingerprint ? fingerprintOf(body) : undefined;
  const draft: Draft = {
    project,
    endpoint: endpoint.name,
    model: body.value.model as string,
    content: { head: { method: "POST", path, headers, checks }, body: withoutOurs(body) },
    terms,
    priority,
    runAt,
    tags,
    idempotencyKey,
    fingerprint: idempotencyKey === undefined ? undefined : fingerprint,
    bodyHash: mayRepeat
      ? sha256(JSON.stringify([path, terms.upstream, fingerprint, ...rulesOf(checks)]))
      : undefined,
    cache: endpoint.isChat ? wishes.cache : undefined,
    callHash: repeatable
      ? callHashOf({ project, authorization, path: call.path, headers: told, body: body.bytes })
      : undefined,
    isRetry: /^0*[1-9]\d*$/.test(call.header("x-stainless-retry-count") ?? ""),
    takesEcho: wishes.onFailure === undefined,
    hold: mode.kind !== "async",
    isGone: () => call.exchange.connection.isGone,
    onGone: (callback) => whenGone(call, callback),
  };
  if (endpoint === embeddings && wishes.cache && isUtf8(body.bytes)) {
    const text = Buffer.from(draft.content.body).toString("utf8");
    const hashes = hashInputs(text, (input) => sha256(JSON.stringify([path, terms.upstream, input])));
    if (hashes) draft.content.head.vectors = { hashes, ttlMs: wishes.cache.ttlMs };
  }
  return draft;
}

/** What was never held against these rules may not follow them. */
const rulesOf = (checks: Checks | undefined): unknown[] =>
  checks?.invalidIf.length ? [checks.invalidIf, checks.schema] : [];

const sha256 = (text: string): string => hash("sha256", text);
