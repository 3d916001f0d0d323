/** Which requests are meant: options of the command line → the parameters of the API. */

import type { Command } from "commander";
import { parseDuration } from "../core/duration.ts";
import { UsageError } from "./failure.ts";

const collect = (value: string, before: string[] = []): string[] => [...before, value];

/** Options whose value is the API's, under the API's name. */
const plain: [flags: string, name: string, description: string][] = [
  [
    "--status <list>",
    "status",
    "queued, processing, retrying, completed, failed, cancelled; separated by commas",
  ],
  ["--model <name>", "model", "as the caller named it"],
  ["--upstream <name>", "upstream", "the upstream that served it"],
  ["--endpoint <name>", "endpoint", "chat.completions, embeddings, …"],
  ["--error-code <code>", "error_code", "its newest error"],
  ["--caused-by <whom>", "caused_by", "whose fault a failure is: caller or upstream"],
  ["--resolved <bool>", "resolved", "failures that somebody has, or has not, seen to: true or false"],
  ["--user <name>", "user", "the `user` of the call"],
  ["--safety-identifier <id>", "safety_identifier", "the `safety_identifier` of the call"],
  ["--trace-id <id>", "trace_id", "of its traceparent"],
  ["--client-request-id <id>", "client_request_id", "the caller's own x-request-id"],
  ["--idempotency-key <key>", "idempotency_key", "its key"],
  ["-q, --search <text>", "q", 'words and "phrases" of its prompt or answer'],
];

export type FilterFlags = Record<string, unknown> & {
  tag?: string[];
  metadata?: string[];
  since?: string;
  until?: string;
};

/** @param without names of those that the command does not have */
export function withFilters(command: Command, without: readonly string[] = []): Command {
  for (const [flags, name, description] of plain) {
    if (!without.includes(name)) command.option(flags, description);
  }
  return command
    .option("--tag <tag>", "has this tag; repeat it for several", collect)
    .option("--metadata <key=value>", "has this metadata; repeat it for several", collect)
    .option("--since <when>", 'accepted after: an instant (2026-11-21T08:00:00Z), or as long ago as "2h"')
    .option("--until <when>", "accepted before: the same");
}

/** What commander calls an option: `--error-code <code>` → errorCode. */
const keyOf = (flags: string): string =>
  /--([\w-]+)/.exec(flags)![1]!.replaceAll(/-(\w)/g, (_, letter: string) => letter.toUpperCase());

/**
 * As the query of a list.
 * @param now epoch ms, for times that are so long ago
 * @throws UsageError
 */
export function queryOf(flags: FilterFlags, now: number): URLSearchParams {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(filterOf(flags, now))) {
    if (name === "metadata") {
      for (const [key, one] of Object.entries(value as Record<string, string>))
        query.append(`metadata[${key}]`, one);
    } else if (name === "tag") for (const tag of value as string[]) query.append("tag", tag);
    else query.append(name, String(value));
  }
  return query;
}

/** As the `filter` of a bulk. @throws UsageError */
export function filterOf(flags: FilterFlags, now: number): Record<string, unknown> {
  const filter: Record<string, unknown> = {};
  for (const [option, name] of plain) {
    const value = flags[keyOf(option)];
    if (value !== undefined) filter[name] = name === "status" ? String(value).split(",") : value;
  }
  if (flags.tag) filter.tag = flags.tag;
  if (flags.metadata) filter.metadata = Object.fromEntries(flags.metadata.map(pairOf));
  if (flags.since !== undefined) filter.created_after = instantOf("--since", flags.since, now);
  if (flags.until !== undefined) filter.created_before = instantOf("--until", flags.until, now);
  return filter;
}

function pairOf(text: string): [string, string] {
  const end = text.indexOf("=");
  if (end > 0) return [text.slice(0, end), text.slice(end + 1)];
  throw new UsageError("--metadata must be key=value.");
}

function instantOf(option: string, text: string, now: number): string {
  const agoMs = /[a-z]$/.test(text) ? parseDuration(text) : undefined;
  const at = agoMs === undefined ? Date.parse(text) : now - agoMs;
  // Years beyond 9999 have another form, and nobody means them.
  if (at >= 0 && at < 253_402_300_800_000) return new Date(at).toISOString();
  throw new UsageError(
    `${option} must be an instant such as 2026-11-21T08:00:00Z, or a duration such as 2h.`,
  );
}

/** A whole number of an option. @throws UsageError */
export function wholeNumber(option: string, text: string, min = 1): number {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  if (value >= min) return value;
  throw new UsageError(`${option} must be a whole number, ${min} or more.`);
}
