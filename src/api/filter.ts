/** Which requests are meant: one reader for the queries of lists and counts, and for the JSON of bulks. */

import { z } from "zod";
import type { FilterObject } from "../contract.ts";
import type { Filter, Label } from "../core/ledger/ports.ts";
import type { State } from "../core/request.ts";
import { invalid } from "./options.ts";

export const states: State[] = ["queued", "processing", "retrying", "completed", "failed", "cancelled"];

const secondsText = z
  .string()
  .regex(/^\d{1,12}(\.\d+)?$/)
  .transform(Number);
const seconds = z.union([z.number().min(0).max(1e12), secondsText]);
/** Epoch ms, of Unix seconds or ISO 8601. */
const instant = z.union([
  seconds.transform((value) => Math.round(value * 1000)),
  z.iso.datetime({ offset: true }).transform((text) => Date.parse(text)),
]);

const text = z.string();
/** A map without any name would mean everything. */
const pairs = z.record(text, text).refine((map) => Object.keys(map).length > 0);
const truth = z.union([z.boolean(), z.enum(["true", "false"]).transform((value) => value === "true")]);
/** A list of such; in a query, and in JSON where it is a text, separated by commas. */
export const listed = <T extends z.ZodType>(item: T) =>
  z.preprocess((value) => (typeof value === "string" ? value.split(",") : value), z.array(item).min(1));

/** The fields of a filter, by the names that they have everywhere. */
export const filterFields = {
  status: listed(z.enum(states)).optional(),
  model: text.optional(),
  upstream: text.optional(),
  endpoint: text.optional(),
  error_code: text.optional(),
  caused_by: z.enum(["caller", "upstream"]).optional(),
  resolved: truth.optional(),
  tag: z
    .preprocess((value) => (typeof value === "string" ? [value] : value), z.array(text).min(1))
    .optional(),
  user: text.optional(),
  safety_identifier: text.optional(),
  metadata: pairs.optional(),
  trace_id: text.optional(),
  client_request_id: text.optional(),
  idempotency_key: text.optional(),
  created_after: instant.optional(),
  created_before: instant.optional(),
  q: z.string().regex(/\S/).max(1000).optional(),
};
const filterSchema = z.strictObject(filterFields);
export type FilterAsked = z.infer<typeof filterSchema>;

const isText = "must be a text";
const when = "must be Unix seconds or an ISO 8601 instant";
const filterMeaning: Record<string, string> = {
  status: `must be one or more of ${states.join(", ")}, separated by commas`,
  caused_by: 'must be "caller" or "upstream"',
  resolved: "must be true or false",
  tag: "must be a text, or a list of one or more",
  metadata: "must be one or more texts by their names: `metadata[name]=text`",
  created_after: when,
  created_before: when,
  q: "must be what to look for, at most 1000 characters",
};

/** @throws AppError `invalid_parameter`, naming the field (behind `where`) and what is allowed */
export function parse<T extends z.ZodRawShape>(
  schema: z.ZodObject<T>,
  value: unknown,
  meaning: Record<string, string> = {},
  where = "",
): z.infer<z.ZodObject<T>> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  if (issue.code === "unrecognized_keys" && issue.path.length === 0) {
    const pair = where === "" ? "metadata[name]" : "metadata";
    const names = Object.keys(schema.shape).map((name) => (name === "metadata" ? pair : name));
    throw invalid(where + issue.keys[0], `is not a parameter. Allowed: ${names.join(", ")}`);
  }
  const [name] = issue.path;
  if (name === undefined) throw invalid(where.replace(/\.$/, "") || "body", "must be a JSON object");
  // Which of a list it is does not matter: all of them are named.
  const path = issue.path.filter((step) => typeof step === "string").join(".");
  throw invalid(where + path, meaning[String(name)] ?? filterMeaning[String(name)] ?? isText);
}

/** What stands in a query, as the JSON of a bulk would say it. @throws AppError `invalid_parameter` */
export function readQuery<T extends z.ZodRawShape>(
  schema: z.ZodObject<T>,
  query: URLSearchParams,
  meaning: Record<string, string> = {},
): z.infer<z.ZodObject<T>> {
  const fields = new Map<string, unknown>();
  const metadata = new Map<string, string>();
  for (const name of new Set(query.keys())) {
    const values = query.getAll(name);
    const key = /^metadata\[(.+)\]$/s.exec(name)?.[1];
    if (lists.has(name)) fields.set(name, values.join(","));
    else if (name === "tag" && values.length > 1) fields.set(name, values);
    else if (values.length > 1) throw invalid(name, "is given more than once");
    else if (key !== undefined) metadata.set(key, values[0]!);
    else fields.set(name, values[0]);
  }
  if (metadata.size > 0) fields.set("metadata", Object.fromEntries(metadata));
  return parse(schema, Object.fromEntries(fields), meaning);
}
const lists = new Set(["status", "by", "group_by"]);

/** The `filter` of a bulk. @throws AppError `invalid_parameter` */
export const readFilter = (value: unknown): FilterAsked => parse(filterSchema, value ?? {}, {}, "filter.");

/** What the text search has to find is apart: it is in another place. */
interface Meant {
  filter: Filter;
  text?: string;
}

export function filterOf(project: string, asked: FilterAsked): Meant {
  const labels: Label[] = (asked.tag ?? []).map((value) => ({ name: "tag", value }));
  for (const name of told) {
    const value = asked[name];
    if (value !== undefined) labels.push({ name, value });
  }
  for (const [name, value] of Object.entries(asked.metadata ?? {})) {
    labels.push({ name: `metadata.${name}`, value });
  }
  const filter: Filter = {
    project,
    states: asked.status,
    model: asked.model,
    upstream: asked.upstream,
    errorCode: asked.error_code,
    endpoint: asked.endpoint,
    causedBy: asked.caused_by,
    resolved: asked.resolved,
    labels: labels.length > 0 ? labels : undefined,
    idempotencyKey: asked.idempotency_key,
    createdAfter: asked.created_after,
    createdBefore: asked.created_before,
  };
  return { filter, text: asked.q };
}

/** Whether it means less than all that the project has. */
export function hasCondition({ filter: { project: _project, ...conditions }, text }: Meant): boolean {
  return text !== undefined || Object.values(conditions).some((condition) => condition !== undefined);
}

const told = ["user", "safety_identifier", "trace_id", "client_request_id"] as const;

/** A filter as it was asked for. */
export function presentFilter(filter: Filter, text: string | undefined): FilterObject {
  const labels = filter.labels ?? [];
  const tags = labels.filter(({ name }) => name === "tag").map(({ value }) => value);
  const metadata = labels.filter(({ name }) => name.startsWith("metadata."));
  const iso = (at: number | undefined) => (at === undefined ? undefined : new Date(at).toISOString());
  return {
    status: filter.states,
    model: filter.model,
    upstream: filter.upstream,
    endpoint: filter.endpoint,
    error_code: filter.errorCode,
    caused_by: filter.causedBy,
    resolved: filter.resolved,
    tag: tags.length > 0 ? tags : undefined,
    ...Object.fromEntries(labels.filter(({ name }) => isTold(name)).map(({ name, value }) => [name, value])),
    metadata:
      metadata.length > 0
        ? Object.fromEntries(metadata.map(({ name, value }) => [name.slice("metadata.".length), value]))
        : undefined,
    idempotency_key: filter.idempotencyKey,
    created_after: iso(filter.createdAfter),
    created_before: iso(filter.createdBefore),
    q: text,
  };
}

const isTold = (name: string): boolean => told.some((one) => one === name);
