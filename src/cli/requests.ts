/** `outlast requests list | show | dead-letters`: what was asked, and what became of it. */

import type { Command } from "commander";
import {
  type AttemptObject,
  deadLetterSchema,
  listOf,
  type RequestObject,
  requestSchema,
} from "../contract.ts";
import { rawMember, setMember } from "../core/json-text.ts";
import type { Api } from "./api.ts";
import { UsageError } from "./failure.ts";
import { type FilterFlags, queryOf, wholeNumber, withFilters } from "./filters.ts";
import { type Cli, type SourceFlags, withApi, withSource } from "./source.ts";
import { type Column, type Terminal, visible, visibleLines } from "./terminal.ts";
import * as words from "./words.ts";

/** The most that the API gives at once. */
const pageMax = 100;

export function addReading(requests: Command, cli: Cli): void {
  withFilters(withSource(requests.command("list").description("requests, the newest first")))
    .option("--limit <n>", "how many", "20")
    .option("--all", "all that match")
    .option("--order <order>", "asc or desc, by acceptance", "desc")
    .action((flags) => list(flags, cli));
  withSource(requests.command("show").description("one request: its record, its attempts, its result"))
    .argument("<id>", "its id, or that of its answer")
    .option("--bodies", "also what was sent and received")
    .action((id, flags) => show(id, flags, cli));
  const dead = withSource(requests.command("dead-letters").description("failed requests, by their cause"));
  withFilters(dead, ["status", "q"])
    .option("--limit <n>", "how many causes", "20")
    .action((flags) => deadLetters(flags, cli));
}

interface Page {
  data: RequestObject[];
  has_more: boolean;
}

/** Pages of a list, until it ends or `most` are there. */
export async function* pages(
  api: Api,
  query: URLSearchParams,
  most = Number.POSITIVE_INFINITY,
): AsyncGenerator<Page> {
  const page = new URLSearchParams(query);
  for (let left = most; left > 0; ) {
    page.set("limit", String(Math.min(left, pageMax)));
    const found = await api.json(listOf(requestSchema), "GET", "/v1/requests", { query: page });
    yield found as Page;
    left -= found.data.length;
    if (!found.has_more || found.last_id === null) return;
    page.set("after", found.last_id);
  }
}

type ListFlags = SourceFlags & FilterFlags & { limit: string; all?: boolean; order: string };

/** Printed page by page: there may be more than the memory holds. */
async function list(flags: ListFlags, cli: Cli): Promise<void> {
  const query = queryOf(flags, cli.clock.now());
  const most = flags.all ? undefined : wholeNumber("--limit", flags.limit);
  query.set("order", flags.order);
  refuseSearchIn(flags);
  await withApi(flags, cli, (api) => {
    const found = pages(api, query, most);
    return flags.json ? printJson(found, cli.terminal) : printTable(found, cli.terminal);
  });
}

async function printTable(found: AsyncIterable<Page>, terminal: Terminal): Promise<void> {
  let widths: number[] | undefined;
  for await (const { data } of found) {
    if (data.length > 0) widths = terminal.table(listColumns, data.map(listRow), widths);
  }
  if (!widths) terminal.note("There is no such request.");
}

async function printJson(found: AsyncIterable<Page>, terminal: Terminal): Promise<void> {
  let first: string | null = null;
  let last: string | null = null;
  let hasMore = false;
  for await (const { data, has_more } of found) {
    const items = data.map((one) => JSON.stringify(one)).join(",\n");
    if (first === null) terminal.print(`{"object":"list","data":[${items}`);
    else if (items !== "") terminal.print(`,${items}`);
    first ??= data[0]?.id ?? null;
    last = data.at(-1)?.id ?? last;
    hasMore = has_more;
  }
  const ends = JSON.stringify({ first_id: first, last_id: last, has_more: hasMore });
  terminal.print(`],${ends.slice(1)}`);
}

/** The index of texts belongs to the server. */
function refuseSearchIn({ db, search }: SourceFlags & FilterFlags): void {
  if (db !== undefined && search !== undefined) {
    throw new UsageError("--search needs a running server: leave out --db.");
  }
}

const listColumns: Column[] = [
  { title: "ID", whole: true },
  { title: "STATUS", whole: true, colour: words.colourOf },
  { title: "MODEL" },
  { title: "UPSTREAM" },
  { title: "TRIES", right: true, whole: true },
  { title: "ACCEPTED (UTC)", whole: true },
  { title: "TOOK", right: true, whole: true },
  { title: "COST", right: true, whole: true },
  { title: "WHY" },
];

const listRow = (request: RequestObject): string[] => [
  request.id,
  request.status,
  request.model,
  request.upstream ?? "",
  String(request.attempts),
  words.time(request.created_at),
  words.length(words.duration(request)),
  words.money(request.cost),
  words.trouble(request),
];

type ShowFlags = SourceFlags & { bodies?: boolean };

async function show(id: string, flags: ShowFlags, cli: Cli): Promise<void> {
  await withApi(flags, cli, async (api) => {
    const text = await whole(api, id, flags.bodies === true);
    const request = api.read(requestSchema, text) as RequestObject;
    if (flags.json) cli.terminal.print(text);
    else printRequest(request, cli.terminal);
  });
}

/** The record with its attempts, as it came: numbers in bodies stay as they were written. */
async function whole(api: Api, id: string, bodies: boolean): Promise<string> {
  const path = `/v1/requests/${encodeURIComponent(id)}`;
  const include = (what: string) => ({ query: new URLSearchParams({ include: what }) });
  if (!bodies) return api.text("GET", path, include("attempts"));
  const record = await api.text("GET", path, include("body,attempts"));
  const attempts = await api.text("GET", `${path}/attempts`, include("bodies"));
  return setMember(record, "attempt_list", rawMember(attempts, "data") ?? "[]");
}

function printRequest(request: RequestObject, terminal: Terminal): void {
  const { body, result, attempt_list: attempts = [] } = request;
  for (const [name, value] of Object.entries(request)) {
    const text = apart.has(name) ? "" : fieldText(value);
    if (text === "") continue;
    terminal.print(`${terminal.paint("grey", visible(name).padEnd(20))} ${painted(name, text, terminal)}`);
  }
  if (attempts.length > 0) {
    terminal.print("");
    terminal.table(attemptColumns, attempts.map(attemptRow));
  }
  for (const attempt of attempts) printBodies(attempt, terminal);
  printPart("body", body, terminal);
  printPart("result", answerText(result) ?? result, terminal);
}

const apart = new Set(["object", "body", "result", "attempt_list"]);
const painted = (name: string, text: string, terminal: Terminal) =>
  name === "status" ? terminal.paint(words.colourOf(text), text) : text;

/** Empty where there is nothing to say. */
function fieldText(value: unknown): string {
  if (value === null || value === undefined || value === false) return "";
  if (Array.isArray(value)) return visible(value.map(fieldText).join(", "));
  if (typeof value === "string")
    return visible(/^\d{4}-\d\d-\d\dT.*Z$/.test(value) ? words.time(value) : value);
  if (typeof value !== "object") return String(value);
  const { code, message } = value as { code?: unknown; message?: unknown };
  return visible(typeof message === "string" ? `${code ?? "error"}: ${message}` : JSON.stringify(value));
}

const attemptColumns: Column[] = [
  { title: "#", right: true, whole: true },
  { title: "TARGET" },
  { title: "STARTED (UTC)", whole: true },
  { title: "WAITED" },
  { title: "CONNECT", right: true, whole: true },
  { title: "1ST BYTE", right: true, whole: true },
  { title: "TOOK", right: true, whole: true },
  { title: "HTTP", right: true, whole: true },
  { title: "VERDICT", whole: true, colour: words.colourOf },
  { title: "THEN" },
  { title: "ERROR" },
];

function attemptRow(attempt: AttemptObject): string[] {
  const { due_at: due, waited_for: reasons, started_at: started, retry_at: until } = attempt;
  const waitedMs = due === null ? 0 : Math.max(0, Date.parse(started) - Date.parse(due));
  const waited = reasons?.length || waitedMs > 0 ? [words.length(waitedMs), ...(reasons ?? [])] : [];
  const error = [attempt.error_code, attempt.error_message].filter(Boolean).join(": ");
  return [
    String(attempt.number),
    `${attempt.upstream}/${attempt.model}`,
    words.time(started),
    waited.join(" "),
    words.length(attempt.connect_ms),
    words.length(attempt.first_byte_ms),
    words.length(attempt.latency_ms),
    String(attempt.status ?? ""),
    attempt.verdict ?? "under way",
    [attempt.reason, until && `until ${words.time(until).slice(11)}`].filter(Boolean).join(" "),
    error,
  ];
}

function printBodies({ number, request, response }: AttemptObject, terminal: Terminal): void {
  if (request) {
    const line = `${request.method ?? ""} ${request.url ?? ""}\n${headerLines(request.headers)}`;
    printPart(`attempt ${number}, sent`, line, terminal);
    printPart("", request.body, terminal);
  }
  if (response) {
    printPart(
      `attempt ${number}, received`,
      `${response.status ?? ""}\n${headerLines(response.headers)}`,
      terminal,
    );
    printPart("", response.body, terminal);
  }
}

const headerLines = (headers: [string, string][]): string =>
  headers.map(([name, value]) => `${name}: ${value}`).join("\n");

function printPart(title: string, part: unknown, terminal: Terminal): void {
  if (part === null || part === undefined) return;
  terminal.print(title === "" ? "" : `\n${terminal.paint("grey", title)}`);
  terminal.print(visibleLines(typeof part === "string" ? part : JSON.stringify(part, null, 2)));
}

/** What the model said, where it said nothing but text. */
function answerText(result: unknown): string | undefined {
  const choices = (result as { choices?: { message?: { content?: unknown } }[] } | null)?.choices;
  const texts = Array.isArray(choices) ? choices.map((choice) => choice?.message?.content) : [];
  const isText = texts.length > 0 && texts.every((text) => typeof text === "string" && text !== "");
  return isText ? texts.join("\n\n") : undefined;
}

async function deadLetters(flags: ListFlags, cli: Cli): Promise<void> {
  const query = queryOf(flags, cli.clock.now());
  query.set("limit", String(wholeNumber("--limit", flags.limit)));
  const path = "/v1/requests/dead_letters";
  await withApi(flags, cli, async (api) => {
    const text = await api.text("GET", path, { query });
    const { data } = api.read(listOf(deadLetterSchema), text);
    if (flags.json) return cli.terminal.print(text);
    if (data.length === 0) return cli.terminal.note("Nothing has failed that nobody has seen to.");
    cli.terminal.table(
      deadLetterColumns,
      data.map((one) => [
        words.number(one.count),
        one.error_code,
        one.model,
        one.upstream ?? "",
        one.caused_by,
        words.time(one.first_at),
        words.time(one.last_at),
        one.last_request_id,
        one.last_error_message ?? "",
      ]),
    );
  });
}

const deadLetterColumns: Column[] = [
  { title: "COUNT", right: true, whole: true },
  { title: "ERROR" },
  { title: "MODEL" },
  { title: "UPSTREAM" },
  { title: "CAUSED BY", whole: true },
  { title: "FIRST (UTC)", whole: true },
  { title: "LAST (UTC)", whole: true },
  { title: "NEWEST", whole: true },
  { title: "ITS MESSAGE" },
];
