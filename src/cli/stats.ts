/** `outlast stats`: how many requests there are, what they used, how the upstreams are. */

import { statSync } from "node:fs";
import type { Command } from "commander";
import { countSchema, listOf, type UpstreamObject, upstreamSchema, usageSchema } from "../contract.ts";
import type { Api } from "./api.ts";
import { wholeNumber } from "./filters.ts";
import { type Cli, databaseOf, readConfig, type SourceFlags, withApi, withSource } from "./source.ts";
import type { Column } from "./terminal.ts";
import * as words from "./words.ts";

type StatsFlags = SourceFlags & { days: string };

const dayMs = 86_400_000;
const countedBy = ["status", "model,status", "error_code,status"];

export function addStats(program: Command, cli: Cli): void {
  withSource(program.command("stats").description("counts, usage, upstreams, size"))
    .option("--days <n>", "days of usage", "7")
    .action((flags) => stats(flags, cli));
}

async function stats(flags: StatsFlags, cli: Cli): Promise<void> {
  const days = wholeNumber("--days", flags.days);
  const since = new Date(cli.clock.now() - (days - 1) * dayMs).toISOString().slice(0, 10);
  const found = await withApi(flags, cli, (api) => gather(api, since, flags, cli));
  if (flags.json) cli.terminal.print(JSON.stringify(found));
  else print(found, cli);
}

type Stats = Awaited<ReturnType<typeof gather>>;

async function gather(api: Api, since: string, flags: StatsFlags, cli: Cli) {
  const [byStatus, byModel, byError] = await Promise.all(
    countedBy.map(async (by) => {
      const query = new URLSearchParams({ by });
      return (await api.json(listOf(countSchema), "GET", "/v1/requests/counts", { query })).data;
    }),
  );
  const query = new URLSearchParams({ group_by: "day", from: since });
  const usage = (await api.json(listOf(usageSchema), "GET", "/v1/usage", { query })).data;
  const upstreams =
    flags.db === undefined
      ? ((await api.json(listOf(upstreamSchema), "GET", "/v1/upstreams")).data as UpstreamObject[])
      : null;
  return {
    object: "stats",
    counts: {
      status: byStatus!,
      model: byModel!,
      error_code: byError!.filter(({ status }) => status === "failed"),
    },
    usage,
    upstreams,
    database: sizeOf(flags, cli),
  };
}

/** Of a file that is at hand: named, or that of the configuration whose server was asked. */
function sizeOf(flags: StatsFlags, cli: Cli) {
  if (flags.db === undefined && flags.url !== undefined) return null;
  const path = flags.db ?? databaseOf(readConfig(flags, cli));
  const bytes = (file: string) => statSync(file, { throwIfNoEntry: false })?.size ?? 0;
  return { bytes: bytes(path), log_bytes: bytes(`${path}-wal`) };
}

const right = (title: string): Column => ({ title, right: true, whole: true });

function print({ counts, usage, upstreams, database }: Stats, { terminal }: Cli): void {
  const total = counts.status.reduce((sum, { count }) => sum + count, 0);
  const sizes =
    database && `, database ${words.size(database.bytes)} and a log of ${words.size(database.log_bytes)}`;
  terminal.print(`${words.requests(total)}${sizes ?? ""}`);
  if (total === 0) return;
  const status: Column = { title: "STATUS", whole: true, colour: words.colourOf };
  terminal.print("");
  terminal.table(
    [right("COUNT"), status, { title: "MODEL" }],
    counts.model.map((one) => [words.number(one.count), one.status ?? "", one.model ?? ""]),
  );
  if (counts.error_code.length > 0) {
    terminal.print("");
    terminal.table(
      [right("FAILED"), { title: "ERROR" }],
      counts.error_code.map((one) => [words.number(one.count), one.error_code ?? ""]),
    );
  }
  if (usage.length > 0) {
    terminal.print("");
    terminal.table(usageColumns, usage.map(usageRow));
  }
  if (upstreams && upstreams.length > 0) {
    terminal.print("");
    terminal.table(upstreamColumns, upstreams.map(upstreamRow));
  }
}

const usageColumns: Column[] = [
  { title: "DAY (UTC)", whole: true },
  ...["ENDED", "FAILED", "CACHED", "ATTEMPTS", "TOKENS IN", "CACHED IN", "TOKENS OUT", "COST", "MEAN"].map(
    right,
  ),
];

const usageRow = (day: Stats["usage"][number]): string[] => [
  day.day ?? "",
  words.number(day.requests),
  words.number(day.failed),
  words.number(day.cached),
  words.number(day.attempts),
  words.number(day.input_tokens),
  words.number(day.cached_tokens),
  words.number(day.output_tokens),
  // A sum that leaves something out is marked.
  `${words.money(day.cost)}${day.unpriced_attempts > 0 ? "+" : ""}`,
  words.length(day.mean_duration_ms),
];

const upstreamColumns: Column[] = [
  { title: "UPSTREAM" },
  { title: "STATE", whole: true, colour: words.colourOf },
  ...["IN FLIGHT", "OF", "QUEUED"].map(right),
  { title: "HELD BACK" },
];

function upstreamRow({
  id,
  reachable,
  breaker,
  in_flight,
  max_concurrency,
  lanes,
}: UpstreamObject): string[] {
  const held = lanes.filter(({ waiting_for }) => waiting_for !== null);
  const isOpen = breaker.state !== "closed";
  return [
    id,
    reachable ? (isOpen ? `breaker ${breaker.state}` : "ok") : "unreachable",
    words.number(in_flight),
    words.number(max_concurrency),
    words.number(lanes.reduce((sum, { queued }) => sum + queued, 0)),
    held.map(({ model, waiting_for: why }) => `${model}: ${why}`).join(", "),
  ];
}
