/** `outlast requests retry | cancel | erase | resolve`: some requests by their ids, or all that a filter means. */

import type { Command } from "commander";
import { type BulkObject, bulkSchema, countSchema, listOf } from "../contract.ts";
import type { Api } from "./api.ts";
import { Unsuccessful, UsageError } from "./failure.ts";
import { type FilterFlags, filterOf, queryOf, withFilters } from "./filters.ts";
import { type Cli, type SourceFlags, withApi, withServer } from "./source.ts";
import { visible } from "./terminal.ts";
import * as words from "./words.ts";

interface Action {
  name: "retry" | "cancel" | "erase" | "resolve";
  description: string;
  /** In a sentence: "3 requests retried". */
  done: string;
  /** Whom a bulk means unless told otherwise. */
  usual: FilterFlags;
  /** Is not asked for by mistake, even by id. */
  isFinal?: boolean;
}

const actions: Action[] = [
  {
    name: "retry",
    description: "begin another round of failed or cancelled requests",
    done: "retried",
    usual: { status: "failed", resolved: "false" },
  },
  {
    name: "cancel",
    description: "cancel requests that go on",
    done: "cancelled",
    usual: { status: "queued,processing,retrying" },
  },
  {
    name: "erase",
    description: "erase requests and all that was said in them",
    done: "erased",
    usual: {},
    isFinal: true,
  },
  {
    name: "resolve",
    description: "mark failed requests as resolved: they are no dead letters any more",
    done: "resolved",
    usual: { status: "failed", resolved: "false" },
  },
];

type ChangeFlags = SourceFlags & FilterFlags & { yes?: boolean; all?: boolean; options?: string };

const lookAgainMs = 200;

export function addChanges(requests: Command, cli: Cli): void {
  for (const action of actions) {
    const command = withFilters(withServer(requests.command(action.name).description(action.description)))
      .argument("[ids...]", "their ids; without any, all that the options mean")
      .option("--all", "without ids and other options: all that can be meant")
      .option("--yes", "do not ask");
    if (action.name === "retry")
      command.option("--options <json>", "what is to change, as `outlast` in a call");
    command.action((ids, flags) => change(action, ids, flags, cli));
  }
}

async function change(action: Action, ids: string[], flags: ChangeFlags, cli: Cli): Promise<void> {
  const hasFilter = Object.keys(filterOf(flags, cli.clock.now())).length > 0;
  if (ids.length > 0 && (hasFilter || flags.all)) throw new UsageError("Name ids, or options, not both.");
  if (ids.length === 0 && !hasFilter && !flags.all) {
    throw new UsageError(
      `Name ids, or say with options which are meant (--all for all): see ${action.name} --help.`,
    );
  }
  const options = optionsOf(flags);
  await withApi(flags, cli, (api) =>
    ids.length > 0
      ? changeEach(action, ids, options, { api, cli, flags })
      : changeAll(action, options, { api, cli, flags }),
  );
}

function optionsOf({ options }: ChangeFlags): Record<string, unknown> | undefined {
  if (options === undefined) return undefined;
  try {
    const value = JSON.parse(options);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value;
  } catch {
    // Told below.
  }
  throw new UsageError("--options must be a JSON object such as '{\"max_attempts\": 3}'.");
}

interface Parts {
  api: Api;
  cli: Cli;
  flags: ChangeFlags;
}

async function changeEach(
  action: Action,
  ids: string[],
  options: Record<string, unknown> | undefined,
  { api, cli, flags }: Parts,
): Promise<void> {
  const { terminal } = cli;
  if (action.isFinal) await confirm(`${action.name} ${words.requests(ids.length)}`, flags, cli);
  const data: unknown[] = [];
  let failed = 0;
  for (const id of ids) {
    const path = `/v1/requests/${encodeURIComponent(id)}`;
    try {
      const text =
        action.name === "erase"
          ? await api.text("DELETE", path)
          : await api.text("POST", `${path}/${action.name}`, { body: options && { options } });
      data.push(JSON.parse(text));
      if (!flags.json) terminal.report(`${visible(id)} ${action.done}`);
    } catch (error) {
      failed++;
      terminal.note(`${visible(id)} not ${action.done}: ${visible((error as Error).message)}`);
    }
  }
  if (flags.json) terminal.report(JSON.stringify({ object: "list", data }));
  if (failed > 0) throw new Unsuccessful();
}

async function changeAll(
  action: Action,
  options: Record<string, unknown> | undefined,
  { api, cli, flags }: Parts,
): Promise<void> {
  const { terminal } = cli;
  const now = cli.clock.now();
  // What is counted and confirmed is what is asked for, to the letter.
  const meant = flags.status === undefined ? { ...action.usual, ...flags } : flags;
  const count = flags.search === undefined ? await countOf(api, queryOf(meant, now)) : undefined;
  if (count === 0) {
    if (flags.json) terminal.report("null");
    return terminal.note("There is no such request.");
  }
  const which = count === undefined ? "all requests with this text" : words.requests(count);
  await confirm(`${action.name} ${which}`, flags, cli);
  const body = { filter: filterOf(meant, now), ...(options && { options }), ...(flags.all && { all: true }) };
  const asked = await api.json(bulkSchema, "POST", `/v1/requests/${action.name}`, { body });
  terminal.note(`The server does it as ${visible(asked.id)}, also when this command ends.`);
  const bulk = await follow(asked, api, cli);
  const { done, skipped, failed, error_code: code } = bulk;
  if (flags.json) terminal.report(JSON.stringify(bulk));
  else {
    const rest = `${words.number(skipped)} no longer to be ${action.done}, ${words.number(failed)} not possible`;
    terminal.report(
      `${words.requests(done)} ${action.done}; ${rest}${code === null ? "" : ` (${visible(code)})`}.`,
    );
  }
  if (bulk.status !== "completed" || failed > 0) throw new Unsuccessful();
}

/** Shows how far it is, until it has ended. */
async function follow(asked: BulkObject, api: Api, { clock, terminal }: Cli): Promise<BulkObject> {
  const tell = terminal.progress(asked.action);
  let bulk = asked;
  while (bulk.status === "in_progress") {
    const { done, skipped, failed, total } = bulk;
    // It is not over, even where more was found than was counted.
    tell(total ? Math.min(0.99, (done + skipped + failed) / total) : 0, words.number(done));
    await new Promise<void>((resolve) => void clock.timer(lookAgainMs, resolve));
    bulk = await api.json(bulkSchema, "GET", `/v1/bulks/${bulk.id}`);
  }
  tell(1, `${words.number(bulk.done)}, ${bulk.status}`);
  return bulk;
}

async function countOf(api: Api, query: URLSearchParams): Promise<number> {
  query.set("by", "status");
  const { data } = await api.json(listOf(countSchema), "GET", "/v1/requests/counts", { query });
  return data.reduce((sum, { count }) => sum + count, 0);
}

/** @throws Error where nobody is there to answer, or does not want it */
async function confirm(what: string, { yes }: ChangeFlags, { terminal }: Cli): Promise<void> {
  if (yes) return;
  if (!terminal.isAttended) throw new UsageError(`This would ${what}: say --yes where nobody can be asked.`);
  const question = `${what[0]!.toUpperCase()}${what.slice(1)}?`;
  if (!(await terminal.confirm(question))) throw new Error("Nothing was done.");
}
