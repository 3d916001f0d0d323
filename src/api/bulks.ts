/** The same done with many requests: POST /v1/requests/retry, /cancel, /erase, /resolve, and /v1/bulks. */

import { hash } from "node:crypto";
import { z } from "zod";
import type { BulkObject } from "../contract.ts";
import { AppError } from "../core/errors.ts";
import { canonical } from "../core/json-text.ts";
import type { Bulk, BulkAction } from "../core/ledger/ports.ts";
import type { State } from "../core/request.ts";
import { readAsk } from "./ask.ts";
import type { Handler } from "./context.ts";
import { jsonReply, listReply } from "./errors.ts";
import {
  type FilterAsked,
  filterOf,
  hasCondition,
  presentFilter,
  readFilter,
  readQuery,
  states,
} from "./filter.ts";
import { limitOf, pageMeaning } from "./lists.ts";
import { invalid, readChange, readKey } from "./options.ts";
import { iso, isoOrNull } from "./present.ts";

/** In which states requests can be for it, and which of them are meant where nobody says so. */
const meant: Record<BulkAction, { possible: State[]; usual: State[] | undefined }> = {
  retry: { possible: ["failed", "cancelled"], usual: ["failed"] },
  cancel: { possible: ["queued", "processing", "retrying"], usual: ["queued", "processing", "retrying"] },
  resolve: { possible: ["failed"], usual: ["failed"] },
  erase: { possible: states, usual: undefined },
};

const askSchema = z.strictObject({
  filter: z.unknown().optional(),
  options: z.unknown().optional(),
  all: z.boolean().optional(),
  idempotency_key: z.unknown().optional(),
});
const meaning = { all: "must be true or false" };

export const askBulk =
  (action: BulkAction): Handler =>
  async (call, options) => {
    const { queue, table, clock } = options;
    const { project } = call.caller;
    const { asked, whole } = await readAsk(call, options, askSchema, meaning);
    if (asked.options !== undefined && action !== "retry") throw invalid("options", "goes with `retry` only");
    const { change } = readChange(asked.options, false, table, clock.now());
    const wanted = readFilter(asked.filter);
    if (asked.all !== true && !hasCondition(filterOf(project, wanted))) {
      throw invalid("filter", 'must have a condition; all requests are meant only with `"all": true`');
    }
    const { bulk, isKnown } = await queue.ledger.ask({
      ...filterOf(project, settled(action, wanted)),
      project,
      action,
      options: action === "retry" ? change : undefined,
      idempotencyKey: readKey(asked, call.header),
      fingerprint: hash("sha256", `${action} ${canonical(whole?.text ?? "{}", notAsked) ?? whole?.text}`),
    });
    const headers: [string, string][] = [["location", `/v1/bulks/${bulk.id}`]];
    if (isKnown) headers.push(["idempotent-replayed", "true"]);
    return jsonReply(isKnown ? 200 : 202, present(bulk), headers);
  };
const notAsked: ReadonlySet<string> = new Set(["idempotency_key"]);

function settled(action: BulkAction, { status, resolved, ...asked }: FilterAsked): FilterAsked {
  const { possible, usual } = meant[action];
  if (status && !status.every((state) => possible.includes(state))) {
    throw invalid("filter.status", `must be one or more of ${possible.join(", ")}`);
  }
  const isOpen = action === "resolve" || (action === "retry" && status === undefined);
  return { ...asked, status: status ?? usual, resolved: resolved ?? (isOpen ? false : undefined) };
}

export const getBulk: Handler = async (call, { queue }) =>
  jsonReply(200, present(await queue.ledger.bulk(call.caller.project, call.params.id ?? "")));

export const cancelBulk: Handler = async (call, { queue }) =>
  jsonReply(200, present(await queue.ledger.cancelBulk(call.caller.project, call.params.id ?? "")));

const pageSchema = z.strictObject({ limit: limitOf(100, 20), after: z.string().min(1).max(100).optional() });

export const listBulks: Handler = async (call, { queue }) => {
  const { limit, after } = readQuery(pageSchema, call.query, pageMeaning);
  const { project } = call.caller;
  if (after !== undefined) await queue.ledger.bulk(project, after).catch(asCursor);
  const found = await queue.ledger.bulks({ project, after, limit: limit + 1 });
  return listReply(found.slice(0, limit).map(present), found.length > limit);
};

function asCursor(error: unknown): never {
  if (!(error instanceof AppError) || error.code !== "bulk_not_found") throw error;
  throw new AppError("invalid_cursor", "`after` must be the id of a bulk of an earlier page.", {
    param: "after",
  });
}

const present = (bulk: Bulk): BulkObject => ({
  id: bulk.id,
  object: "bulk",
  action: bulk.action,
  status: bulk.state,
  filter: presentFilter(bulk.filter, bulk.text),
  total: bulk.total ?? null,
  done: bulk.done,
  skipped: bulk.skipped,
  failed: bulk.failed,
  error_code: bulk.errorCode ?? null,
  idempotency_key: bulk.idempotencyKey ?? null,
  created_at: iso(bulk.createdAt),
  updated_at: iso(bulk.updatedAt),
  ended_at: isoOrNull(bulk.endedAt),
});
