/** Requests that are made again: POST /v1/requests/{id}/retry (another round) and /replay (a new request). */

import { z } from "zod";
import { rawMember } from "../core/json-text.ts";
import type { RequestRecord } from "../core/request.ts";
import type { ChangedContent } from "../core/rounds.ts";
import { routeFor } from "../core/routing.ts";
import type { ValidateWish } from "../core/wishes.ts";
import { readAsk } from "./ask.ts";
import { type JsonBody, parseBody, withoutOurs } from "./body.ts";
import { give, type Taken } from "./completions.ts";
import type { ApiOptions, Call, Handler } from "./context.ts";
import { checkBody, draftFrom, endpointOf, measureOf } from "./draft.ts";
import { jsonReply } from "./errors.ts";
import { sizeOf } from "./measure.ts";
import { invalid, ourFields, readChange, readStream } from "./options.ts";
import { promptHashOf } from "./origin.ts";
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
  const isChanged = body !== undefined || validate !== undefined;
  const changed = isChanged ? await changedContent(before, body, validate, options) : undefined;
  const record = await queue.retry(before.project, before.id, change, changed);
  return jsonReply(200, presentRequest(record, queue.explain(record)), requestHeaders(record));
};

/** What the next round asks for: another body, or the same one with an answer that is held to something else. */
async function changedContent(
  record: RequestRecord,
  given: JsonBody | undefined,
  validate: ValidateWish | false | undefined,
  { queue, upstream, table, defaults }: ApiOptions,
): Promise<ChangedContent> {
  const { head, body: stored } = await queue.ledger.content(record);
  const endpoint = endpointOf(record);
  const body = given ?? parseBody(Buffer.from(stored));
  checkBody(body.value, endpoint);
  const model = body.value.model as string;
  const wish = wishesOf({ validate }, routeFor(table, model), defaults).validate;
  const { checks, maxInvalid } = measureOf(endpoint, body, wish, Boolean(validate), upstream);
  const stream = endpoint.isChat ? readStream(body.value, record.terms.stream?.mode) : undefined;
  return {
    content: { head: { ...head, checks, vectors: undefined }, body: withoutOurs(body) },
    model,
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
  const { head, body: stored } = await queue.ledger.content(record);
  const body = given ?? parseBody(Buffer.from(stored));
  const { checks, vectors: _vectors, ...sent } = head;
  const isMeasured = given === undefined && wanted.options?.validate === undefined;
  const { draft, asked } = draftFrom(
    {
      ...sent,
      endpoint: endpointOf(record),
      body,
      fields: {
        ...body.value,
        wait: wanted.wait ?? false,
        idempotency_key: wanted.idempotency_key,
        outlast: { ...inherited(record), ...wanted.options },
      },
      header: (name) => (name === "idempotency-key" ? call.header(name) : undefined),
      measure: isMeasured ? { checks, maxInvalid: record.terms.maxInvalid } : undefined,
      replayOf: record.id,
    },
    call,
    options,
  );
  return { submission: await queue.submit(draft), asked };
}

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
