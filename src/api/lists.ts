/** Many requests at once: pages of them, how many there are, and those that failed by their cause (DESIGN §4.3). */

import { z } from "zod";
import type { CountObject, DeadLetterObject, RequestObject } from "../contract.ts";
import type { Count, CountBy, DeadLetters } from "../core/ledger/ports.ts";
import type { Handler } from "./context.ts";
import { listReply } from "./errors.ts";
import { filterFields, filterOf, listed, readQuery } from "./filter.ts";
import { iso, presentRequest } from "./present.ts";

/** How many a page may have, and has unless told. */
export const limitOf = (most: number, usual: number) =>
  z.coerce.number().int().min(1).max(most).default(usual);
const limitMeaning = (most: number) => `must be a whole number from 1 to ${most}`;
export const pageMeaning = {
  limit: limitMeaning(100),
  after: "must be the id of the last one of an earlier page",
};

const listSchema = z.strictObject({
  ...filterFields,
  limit: limitOf(100, 20),
  after: z.string().min(1).max(100).optional(),
  order: z.enum(["asc", "desc"]).default("desc"),
});
const listMeaning = { ...pageMeaning, order: 'must be "asc" or "desc"' };

export const listRequests: Handler = async (call, { queue }) => {
  const asked = readQuery(listSchema, call.query, listMeaning);
  const { limit, after, order } = asked;
  const { filter, text } = filterOf(call.caller.project, asked);
  // One more than asked for tells whether there are more.
  const found = await queue.ledger.list({ ...filter, text, after, order, limit: limit + 1 });
  const data: RequestObject[] = found
    .slice(0, limit)
    .map((record) => presentRequest(record, queue.explain(record)));
  return listReply(data, found.length > limit);
};

const countable = ["status", "model", "upstream", "endpoint", "error_code", "caused_by", "resolved"] as const;
/** A text is looked for in pages, not counted. */
const { q: _q, ...countFields } = filterFields;
const countSchema = z.strictObject({ ...countFields, by: listed(z.enum(countable)).default([]) });
const countMeaning = { by: `must be one or more of ${countable.join(", ")}, separated by commas` };

export const countRequests: Handler = async (call, { queue }) => {
  const { by, ...asked } = readQuery(countSchema, call.query, countMeaning);
  const counts = await queue.ledger.counts(filterOf(call.caller.project, asked).filter, by);
  return listReply(counts.map((count) => presentCount(count, by)));
};

function presentCount({ values, count }: Count, by: CountBy[]): CountObject {
  const named = by.map((name) => {
    const value = values[name] ?? null;
    return [name, name === "resolved" && value !== null ? value === "true" : value];
  });
  return { object: "request.count", ...Object.fromEntries(named), count };
}

const { status: _status, ...failedFields } = countFields;
const deadSchema = z.strictObject({
  ...failedFields,
  caused_by: z.enum(["caller", "upstream", "any"]).default("upstream"),
  resolved: z.enum(["true", "false", "any"]).default("false"),
  limit: limitOf(1000, 100),
});
const deadMeaning = {
  limit: limitMeaning(1000),
  caused_by: 'must be "caller", "upstream" or "any"',
  resolved: 'must be "true", "false" or "any"',
};

export const listDeadLetters: Handler = async (call, { queue }) => {
  const { limit, caused_by, resolved, ...asked } = readQuery(deadSchema, call.query, deadMeaning);
  const { filter } = filterOf(call.caller.project, {
    ...asked,
    status: ["failed"],
    caused_by: caused_by === "any" ? undefined : caused_by,
    resolved: resolved === "any" ? undefined : resolved === "true",
  });
  const found = await queue.ledger.deadLetters(filter, limit + 1);
  return listReply(found.slice(0, limit).map(presentDeadLetters), found.length > limit);
};

const presentDeadLetters = (letters: DeadLetters): DeadLetterObject => ({
  object: "dead_letter",
  error_code: letters.errorCode,
  model: letters.model,
  upstream: letters.upstream,
  endpoint: letters.endpoint,
  caused_by: letters.causedBy,
  count: letters.count,
  resolved: letters.resolved,
  first_at: iso(letters.first.createdAt),
  last_at: iso(letters.last.createdAt),
  last_request_id: letters.last.id,
  last_error_message: letters.last.error?.message ?? null,
});
