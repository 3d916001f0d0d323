/** Requests that are made again: POST /v1/requests/{id}/retry (another round) and /replay (a new request). */

import { isDeepStrictEqual } from "node:util";
import { z } from "zod";
import type { Content } from "../core/attempts.ts";
import { rawMember } from "../core/json-text.ts";
import type { Queue } from "../core/queue.ts";
import type { RequestRecord } from "../core/request.ts";
import type { ChangedContent } from "../core/rounds.ts";
import { routeFor } from "../core/routing.ts";
import type { ValidateWish } from "../core/wishes.ts";
import { readAsk } from "./ask.ts";
import { type JsonBody, parseBody, withoutOurs } from "./body.ts";
import { give, type Taken } from "./completions.ts";
import type { ApiOptions, Call, Handler } from "./context.ts";
import { checkBody, draftFrom, type Endpoint, endpointOf, type Measure, measureOf } from "./draft.ts";
import { jsonReply } from "./errors.ts";
import { sizeOf, wishOf } from "./measure.ts";
import { invalid, ourFields, readChange, readPrefer, readStream } from "./options.ts";
import { originOf, promptHashOf } from "./origin.ts";
import { presentRequest, requestHeaders } from "./present.ts";
import { wishesOf } from "./wishes.ts";

const json = z.record(z.string(), z.unknown());
const retrySchema = z.strictObject({ options: json.optional(), body: json.optional() });
const replaySchema = retrySchema.extend({
  wait: z.unknown().optional(),
  idempotency_key: z.unknown().optional(),
});
const meaning = { options: "must be an object", body: "must be a whole body: an object" };

/** A body within the body. As Latin-1 every byte is a character, so also bytes that are no UTF-8 stay. */
function bodyIn(whole: JsonBody | undefined): JsonBody | undefined {
  const raw = whole && rawMember(whole.bytes.toString("latin1"), "body");
  const body = raw === undefined ? undefined : parseBody(Buffer.from(raw, "latin1"));
  for (const field of ourFields) {
    if (body && field in body.value) {
      throw invalid(`body.${field}`, "has no place there: what is asked of us stands beside `body`");
    }
  }
  return body;
}

export const retryRequest: Handler = async (call, options) => {
  const { queue, table, clock } = options;
  const { asked, whole } = await readAsk(call, options, retrySchema, meaning);
  const { change, validate } = readChange(asked.options, true, table, clock.now());
  const body = bodyIn(whole);
  const before = await queue.get(call.caller.project, call.params.id ?? "");
  if (body) checkOwner(before, body);
  const isChanged = body !== undefined || validate !== undefined;
  const changed = isChanged ? await changedContent(before, body, validate, options) : undefined;
  const record = await queue.retry(before.project, before.id, change, changed);
  return jsonReply(200, presentRequest(record, queue.explain(record)), requestHeaders(record));
};

/** To whom a request belongs stays: what is found, and erased, by that must not become somebody else's. */
function checkOwner({ origin }: RequestRecord, body: JsonBody): void {
  const asked = originOf(body.value, () => undefined);
  const fields = [
    ["user", asked?.user, origin?.user],
    ["safety_identifier", asked?.safetyIdentifier, origin?.safetyIdentifier],
    ["metadata", asked?.metadata, origin?.metadata],
  ] as const;
  for (const [name, now, before] of fields) {
    if (now === undefined || isDeepStrictEqual(now, before)) continue;
    throw invalid(
      `body.${name}`,
      "must stay as it was, or be left out: `replay` makes a request of somebody else",
    );
  }
}

/** What a request asks for when it is made again. */
interface Again {
  endpoint: Endpoint;
  head: Content["head"];
  body: JsonBody;
  /** What its answer was held to; undefined where that is not known any more. */
  validate: ValidateWish | false | undefined;
}

/** With another body, nothing of what it asked before need be there. @throws AppError `bodies_erased`, … */
async function askedAgain(record: RequestRecord, given: JsonBody | undefined, queue: Queue): Promise<Again> {
  const endpoint = endpointOf(record);
  if (given) checkBody(given.value, endpoint);
  if (given && record.bodiesErasedAt !== undefined) {
    const head = { method: "POST", path: endpoint.path, headers: [] };
    return { endpoint, head, body: given, validate: undefined };
  }
  const { head, body: stored } = await queue.ledger.content(record);
  const before = parseBody(Buffer.from(stored));
  const validate = wishOf(head.checks, record.terms.maxInvalid, before.value) ?? false;
  return { endpoint, head, body: given ?? before, validate };
}

/** @param asked what the answer is to be held to from now on; undefined: what it was held to */
function measureAgain(
  { endpoint, body, validate: before }: Again,
  asked: ValidateWish | false | undefined,
  { upstream, table, defaults }: ApiOptions,
): Measure {
  const route = routeFor(table, body.value.model as string);
  const wish = wishesOf({ validate: asked ?? before }, route, defaults).validate;
  return measureOf(endpoint, body, wish, asked ? "options" : undefined, upstream);
}

/** What the next round asks for: another body, or the same one with an answer that is held to something else. */
async function changedContent(
  record: RequestRecord,
  given: JsonBody | undefined,
  validate: ValidateWish | false | undefined,
  options: ApiOptions,
): Promise<ChangedContent> {
  const again = await askedAgain(record, given, options.queue);
  const { endpoint, head, body } = again;
  const { checks, maxInvalid } = measureAgain(again, validate, options);
  const stream = endpoint.isChat ? readStream(body.value, record.terms.stream?.mode) : undefined;
  return {
    content: { head: { ...head, checks, vectors: undefined }, body: withoutOurs(body) },
    model: body.value.model as string,
    promptHash: endpoint.isChat ? promptHashOf(body.value) : undefined,
    size: sizeOf(body.value),
    maxInvalid,
    stream: stream && { ...stream, mode: maxInvalid === undefined ? stream.mode : "buffered" },
  };
}

export const replayRequest: Handler = async (call, options) =>
  give(await takeReplay(call, options), call, options);

/** A function of its own, so that nothing keeps the body while the caller waits. */
async function takeReplay(call: Call, options: ApiOptions): Promise<Taken> {
  const { queue } = options;
  const { asked: wanted, whole } = await readAsk(call, options, replaySchema, meaning);
  const given = bodyIn(whole);
  const record = await queue.get(call.caller.project, call.params.id ?? "");
  const again = await askedAgain(record, given, queue);
  const { endpoint, body } = again;
  const { checks: _checks, vectors: _vectors, ...sent } = again.head;
  const prefers = readPrefer(call.header("prefer")) !== undefined;
  const { draft, asked } = draftFrom(
    {
      ...sent,
      endpoint,
      body,
      fields: {
        ...body.value,
        wait: wanted.wait ?? (prefers ? undefined : false),
        idempotency_key: wanted.idempotency_key,
        outlast: { ...inherited(record), ...wanted.options },
      },
      header: (name) => (callsOwn.has(name) ? call.header(name) : undefined),
      measure: wanted.options?.validate === undefined ? measureAgain(again, undefined, options) : undefined,
      replayOf: record.id,
    },
    call,
    options,
  );
  return { submission: await queue.submit(draft), asked };
}
/** What a replay is told by headers; its options stand in its body. */
const callsOwn = new Set(["idempotency-key", "prefer"]);

/** What a replay has of its original unless told otherwise. It is made to have another answer: none that is known. */
function inherited({ terms, tags }: RequestRecord): Record<string, unknown> {
  return {
    deadline: terms.ownDeadline ? terms.deadlineMs / 1000 : undefined,
    on_unknown: terms.onUnknown,
    upstream: terms.upstream,
    stream_mode: terms.stream?.mode,
    store: terms.store ?? "last",
    tags,
    cache: false,
    on_failure: false,
  };
}
