/** From a call to what is submitted: the body checked, what is asked of us read, what must be equal hashed. */

import { isUtf8 } from "node:buffer";
import { hash } from "node:crypto";
import { hashInputs } from "../core/embeddings.ts";
import { AppError } from "../core/errors.ts";
import { type HeaderList, toUpstream } from "../core/headers.ts";
import type { Checks, Upstream } from "../core/ports.ts";
import type { Draft } from "../core/submissions.ts";
import type { ValidateWish } from "../core/wishes.ts";
import { callHashOf, fingerprintOf, type JsonBody, withoutOurs } from "./body.ts";
import { type ApiOptions, type Call, headersOf } from "./context.ts";
import type { HeaderOf } from "./guard.ts";
import { whenGone } from "./hang-up.ts";
import { checksOf, sizeOf } from "./measure.ts";
import { type Asked, readAsked } from "./options.ts";
import { originOf, promptHashOf } from "./origin.ts";

/** An endpoint whose calls are recorded. */
export interface Endpoint {
  name: string;
  path: string;
  /** Beside the model, a body has to have this; what is in it is the upstream's to judge. */
  required: string;
  mustBeArray: boolean;
  /** Its answers can be streamed, and validated. */
  isChat: boolean;
}

export const chat: Endpoint = {
  name: "chat.completions",
  path: "/chat/completions",
  required: "messages",
  mustBeArray: true,
  isChat: true,
};
export const embeddings: Endpoint = {
  name: "embeddings",
  path: "/embeddings",
  required: "input",
  mustBeArray: false,
  isChat: false,
};

export const endpointOf = ({ endpoint }: { endpoint: string }): Endpoint =>
  endpoint === embeddings.name ? embeddings : chat;

/** Where a draft comes from: a call, or a request that is made again. */
export interface Source {
  endpoint: Endpoint;
  body: JsonBody;
  /** What is asked of us: members of the body, and headers. */
  fields: Record<string, unknown>;
  header: HeaderOf;
  path: string;
  /** Those that go to an upstream. */
  headers: HeaderList;
  /** What its answer is measured by, where that is known already. */
  measure?: Measure;
  /** The request that is made again. */
  replayOf?: string;
}

/** @throws AppError naming the field and what is allowed */
export function readDraft(
  endpoint: Endpoint,
  call: Call,
  body: JsonBody,
  options: ApiOptions,
): { draft: Draft; asked: Asked } {
  const headers = toUpstream(headersOf(call), true);
  const { header, path } = call;
  return draftFrom({ endpoint, body, fields: body.value, header, path, headers }, call, options);
}

/** @throws AppError naming the field and what is allowed */
export function draftFrom(source: Source, call: Call, options: ApiOptions): { draft: Draft; asked: Asked } {
  const { endpoint, body, fields, header } = source;
  checkBody(body.value, endpoint);
  const { defaults, table, clock, upstream } = options;
  // A stream of vectors there is none: what the body says of it is the upstream's to judge.
  const value = endpoint.isChat ? fields : { ...fields, stream: undefined };
  const where = source.replayOf === undefined ? "outlast" : "options";
  const asked = readAsked(value, header, defaults, table, clock.now(), where);
  const { terms, wishes } = asked;
  const { validate, onFailure } = wishes;
  // A completion is no answer to a call for vectors.
  if (!endpoint.isChat && onFailure)
    wishes.onFailure = onFailure.staleMs ? { staleMs: onFailure.staleMs } : undefined;
  const wishedIn = asked.validatesItself ? where : undefined;
  const { checks, maxInvalid } = source.measure ?? measureOf(endpoint, body, validate, wishedIn, upstream);
  terms.size = sizeOf(body.value);
  if (maxInvalid !== undefined) {
    terms.maxInvalid = maxInvalid;
    // What was told of an invalid answer could not be taken back.
    if (terms.stream) terms.stream.mode = "buffered";
  }
  return { draft: draftOf(source, call, asked, checks), asked };
}

/** What an answer is measured by, and how many further attempts one that is not valid may cause. */
export interface Measure {
  checks?: Checks;
  maxInvalid?: number;
}

/** @throws AppError `invalid_parameter` where it is the caller's own wish (in `where`) and cannot be done */
export function measureOf(
  { isChat }: Endpoint,
  { value }: JsonBody,
  wish: ValidateWish | undefined,
  where: string | undefined,
  upstream: Upstream,
): Measure {
  if (!isChat) return {};
  const checks = checksOf(value, wish, (schema) => upstream.schemaProblem(schema), where);
  return { checks, maxInvalid: checks?.invalidIf.length ? wish?.maxRetries : undefined };
}

/** @throws AppError `missing_required_parameter`, `invalid_parameter` */
export function checkBody(value: Record<string, unknown>, { required, mustBeArray, isChat }: Endpoint): void {
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
const toldToUs = [
  ...["outlast-options", "api-key", "x-api-key", "x-goog-api-key", "cookie", "proxy-authorization"],
  ...["x-forwarded-user", "x-forwarded-email"],
];

function draftOf(source: Source, call: Call, asked: Asked, checks: Checks | undefined): Draft {
  const { endpoint, body, headers, replayOf } = source;
  const { project } = call.caller;
  const { idempotencyKey, terms, priority, runAt, tags, mode, wishes } = asked;
  const repeatable = idempotencyKey === undefined && terms.held && terms.onDisconnect === "continue";
  const path = source.path.replace(/\/(?=\?|$)/, "");
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
    origin: originOf(body.value, call.header),
    promptHash: endpoint.isChat ? promptHashOf(body.value) : undefined,
    replayOf,
    idempotencyKey,
    fingerprint: idempotencyKey === undefined ? undefined : replayedAs(replayOf, fingerprint!),
    bodyHash: mayRepeat
      ? sha256(JSON.stringify([path, terms.upstream, fingerprint, ...rulesOf(checks)]))
      : undefined,
    cache: endpoint.isChat ? wishes.cache : undefined,
    callHash: repeatable ? hashOfCall(call, source) : undefined,
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

function hashOfCall(call: Call, { headers, body }: Source): string {
  const { project } = call.caller;
  const told = [...headers];
  for (const name of toldToUs) {
    const value = call.header(name);
    if (value !== undefined) told.push([name, value]);
  }
  const authorization = call.header("authorization");
  return callHashOf({ project, authorization, path: call.path, headers: told, body: body.bytes });
}

/** Two replays under one key are the same one only if they are of the same request. */
const replayedAs = (replayOf: string | undefined, fingerprint: string): string =>
  replayOf === undefined ? fingerprint : sha256(replayOf + fingerprint);

/** What was never held against these rules may not follow them. */
const rulesOf = (checks: Checks | undefined): unknown[] =>
  checks?.invalidIf.length ? [checks.invalidIf, checks.schema] : [];

const sha256 = (text: string): string => hash("sha256", text);
