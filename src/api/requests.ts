/** /v1/requests/{id}: look up, wait, cancel, resolve, erase (DESIGN §4.3). */

import { z } from "zod";
import { AppError } from "../core/errors.ts";
import type { HeaderList } from "../core/headers.ts";
import { type AttemptRecord, isTerminal, type RequestRecord } from "../core/request.ts";
import { readAsk } from "./ask.ts";
import type { ApiOptions, Call, Handler } from "./context.ts";
import { jsonReply } from "./errors.ts";
import { withBodies } from "./exchanges.ts";
import { waitWithCaller } from "./hang-up.ts";
import {
  presentAttempt,
  presentRequest,
  requestHeaders,
  resultText,
  textOf,
  withRawMembers,
} from "./present.ts";
import type { Reply } from "./reply.ts";

export const getRequest: Handler = async (call, options) => {
  const { queue } = options;
  const include = readInclude(call, ["body", "attempts"]);
  const waitMs = readWaitMs(call, options);
  const record = await queue.get(call.caller.project, call.params.id ?? "");
  if (!isTerminal(record.state) && waitMs > 0) {
    const line = await queue.lines.listen(record.id, { caller: false });
    await waitWithCaller(call, queue, line, waitMs);
    return presented(await queue.get(call.caller.project, record.id), include, options);
  }
  return presented(record, include, options);
};

async function presented(record: RequestRecord, include: Set<string>, { queue }: ApiOptions): Promise<Reply> {
  const ended = isTerminal(record.state) ? await queue.withAnswer(record) : undefined;
  const raw: Record<string, string | undefined> = { result: ended && resultText(ended) };
  if (include.has("body")) {
    const body = await queue.body(record.id);
    raw.body = body && textOf(body);
  }
  const object = presentRequest(record, queue.explain(record));
  if (include.has("attempts")) object.attempt_list = (await queue.attempts(record.id)).map(presentAttempt);
  const headers: HeaderList = [["content-type", "application/json"], ...requestHeaders(record)];
  return { status: 200, headers, body: withRawMembers(object, raw) };
}

export const getAttempts: Handler = async (call, { queue }) => {
  const include = readInclude(call, ["bodies"]);
  const record = await queue.get(call.caller.project, call.params.id ?? "");
  const attempts = await queue.attempts(record.id);
  const objects = attempts.map(presentAttempt);
  const texts = include.has("bodies")
    ? await withBodies(record, attempts, objects, queue)
    : objects.map((object) => JSON.stringify(object));
  const number = (attempt: AttemptRecord | undefined) => (attempt ? String(attempt.number) : null);
  const ends = { first_id: number(attempts[0]), last_id: number(attempts.at(-1)), has_more: false };
  const headers: HeaderList = [["content-type", "application/json"], ...requestHeaders(record)];
  return {
    status: 200,
    headers,
    body: withRawMembers({ object: "list", ...ends }, { data: `[${texts.join(",")}]` }),
  };
};

export const cancelRequest: Handler = async (call, { queue }) => {
  const record = await queue.cancel(call.caller.project, call.params.id ?? "");
  return jsonReply(200, presentRequest(record, undefined), requestHeaders(record));
};

const resolveSchema = z.strictObject({ resolved: z.boolean().default(true) });

export const resolveRequest: Handler = async (call, options) => {
  const { queue } = options;
  const { asked } = await readAsk(call, options, resolveSchema, { resolved: "must be true or false" });
  const record = await queue.ledger.resolve(call.caller.project, call.params.id ?? "", asked.resolved);
  return jsonReply(200, presentRequest(record, undefined), requestHeaders(record));
};

export const eraseRequest: Handler = async (call, { queue }) => {
  const { id } = await queue.ledger.erase(call.caller.project, call.params.id ?? "");
  return jsonReply(200, { id, object: "request", deleted: true });
};

function readInclude(call: Call, includable: string[]): Set<string> {
  const include = call.query.getAll("include").flatMap((list) => list.split(","));
  const unknown = include.find((one) => !includable.includes(one));
  if (unknown === undefined) return new Set(include);
  const message = `\`include\`: must be one or more of ${includable.join(", ")}, separated by commas.`;
  throw new AppError("invalid_parameter", message, { param: "include" });
}

/** `?wait=` in seconds, at most the hold timeout. */
export function readWaitMs(call: Call, { defaults }: ApiOptions): number {
  const wait = call.query.get("wait");
  if (wait === null) return 0;
  const seconds = /^\d{1,6}(\.\d{1,3})?$/.test(wait) ? Number(wait) : Number.NaN;
  if (Number.isNaN(seconds)) {
    throw new AppError("invalid_parameter", "`wait` must be a number of seconds.", { param: "wait" });
  }
  return Math.min(seconds * 1000, defaults.holdTimeoutMs);
}
