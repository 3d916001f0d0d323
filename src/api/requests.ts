/** /v1/requests: look up, list, wait, cancel (DESIGN §4.3). */

import { z } from "zod";
import type { AttemptObject, RequestObject } from "../contract.ts";
import { AppError } from "../core/errors.ts";
import type { HeaderList } from "../core/headers.ts";
import type { ListQuery } from "../core/ports.ts";
import { isTerminal, type RequestRecord, type State } from "../core/request.ts";
import type { ApiOptions, Call, Handler } from "./context.ts";
import { jsonReply } from "./errors.ts";
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

const states: State[] = ["queued", "processing", "retrying", "completed", "failed", "cancelled"];
const includable = ["body", "attempts"];

const instant = z.union([
  z
    .string()
    .regex(/^\d{1,12}(\.\d+)?$/)
    .transform((seconds) => Math.round(Number(seconds) * 1000)),
  z.iso.datetime({ offset: true }).transform((text) => Date.parse(text)),
]);

const listSchema = z.strictObject({
  limit: z.coerce.number().int().min(1).max(100).default(20),
  after: z.string().min(1).max(100).optional(),
  order: z.enum(["asc", "desc"]).default("desc"),
  status: z
    .string()
    .transform((list) => list.split(","))
    .pipe(z.array(z.enum(states)))
    .optional(),
  model: z.string().optional(),
  upstream: z.string().optional(),
  error_code: z.string().optional(),
  endpoint: z.string().optional(),
  tag: z.string().optional(),
  idempotency_key: z.string().optional(),
  created_after: instant.optional(),
  created_before: instant.optional(),
});

const meaning: Record<string, string> = {
  limit: "must be a whole number from 1 to 100",
  after: "must be the id of a request of an earlier page",
  order: 'must be "asc" or "desc"',
  status: `must be one or more of ${states.join(", ")}, separated by commas`,
  created_after: "must be Unix seconds or an ISO 8601 instant",
  created_before: "must be Unix seconds or an ISO 8601 instant",
};

/** @throws AppError `invalid_parameter`, naming the field and what is allowed */
function readQuery(call: Call): ListQuery {
  const parsed = listSchema.safeParse(Object.fromEntries(call.query));
  if (!parsed.success) {
    const issue = parsed.error.issues[0]!;
    const unknown = issue.code === "unrecognized_keys" ? issue.keys[0] : undefined;
    const param = unknown ?? String(issue.path[0]);
    const allowed = `is not a parameter. Allowed: ${Object.keys(listSchema.shape).join(", ")}`;
    const what = unknown ? allowed : (meaning[param] ?? issue.message);
    throw new AppError("invalid_parameter", `\`${param}\`: ${what}.`, { param });
  }
  const { status, error_code, idempotency_key, created_after, created_before, ...same } = parsed.data;
  return {
    ...same,
    project: call.caller.project,
    states: status,
    errorCode: error_code,
    idempotencyKey: idempotency_key,
    createdAfter: created_after,
    createdBefore: created_before,
  };
}

export const listRequests: Handler = async (call, { queue }) => {
  const query = readQuery(call);
  // One more than asked for tells whether there are more.
  const found = await queue.list({ ...query, limit: query.limit + 1 });
  const data: RequestObject[] = found
    .slice(0, query.limit)
    .map((record) => presentRequest(record, queue.explain(record)));
  return jsonReply(200, {
    object: "list",
    data,
    first_id: data[0]?.id ?? null,
    last_id: data.at(-1)?.id ?? null,
    has_more: found.length > query.limit,
  });
};

export const getRequest: Handler = async (call, options) => {
  const { queue } = options;
  const include = readInclude(call);
  const waitMs = readWaitMs(call, options);
  const record = await queue.get(call.caller.project, call.params.id ?? "");
  if (!isTerminal(record.state) && waitMs > 0) {
    const line = await queue.listen(record.id, { caller: false });
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
  const record = await queue.get(call.caller.project, call.params.id ?? "");
  const data: AttemptObject[] = (await queue.attempts(record.id)).map(presentAttempt);
  const number = (attempt: AttemptObject | undefined) => (attempt ? String(attempt.number) : null);
  const ends = { first_id: number(data[0]), last_id: number(data.at(-1)) };
  return jsonReply(200, { object: "list", data, ...ends, has_more: false }, requestHeaders(record));
};

export const cancelRequest: Handler = async (call, { queue }) => {
  const record = await queue.cancel(call.caller.project, call.params.id ?? "");
  return jsonReply(200, presentRequest(record, undefined), requestHeaders(record));
};

function readInclude(call: Call): Set<string> {
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
