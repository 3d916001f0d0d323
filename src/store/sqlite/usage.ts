/** What requests have used, added up by day and by what they have in common. */

import type { Sums, Tally, UsageGroup, UsageQuery } from "../../core/ledger/ports.ts";
import type { FindStatement } from "./connection.ts";

const sumNames = [
  "completed",
  "failed",
  "cancelled",
  "cached",
  "attempts",
  "inputTokens",
  "cachedTokens",
  "outputTokens",
  "reasoningTokens",
  "estimated",
  "unpriced",
  "cost",
  "durationMs",
  "refusal",
  "contentFilter",
  "length",
  "empty",
  "invalidJson",
  "schemaMismatch",
] as const satisfies (keyof Sums)[];

const columnOf = (name: string): string => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
const sumColumns = sumNames.map(columnOf);
const keyColumns = ["day", "project", "endpoint", "model", "upstream", "prompt_hash", "tag"];

const marks = [...keyColumns, ...sumColumns].map(() => "?").join(", ");
const add = `INSERT INTO usage (${[...keyColumns, ...sumColumns].join(", ")}) VALUES (${marks})
  ON CONFLICT DO UPDATE SET ${sumColumns.map((name) => `${name} = ${name} + excluded.${name}`).join(", ")}`;

/**
 * So many different instructions of a project are kept apart in a day, and so many tags. Further instructions are added
 * up together; further tags have no sums of their own.
 */
const apartMax = 500;
/** So often, by day and project, it is in memory which these are. */
const setsMax = 400;

/** A tally as it crosses threads: what it is kept apart by, as JSON, and what is added: the place of a sum, and a number. */
export type TallyRow = [common: string, promptHash: string, tags: string[], added: number[]];

export function tallyRow({ key, tags, sums }: Tally): TallyRow {
  const common = JSON.stringify([key.day, key.project, key.endpoint, key.model, key.upstream]);
  const added: number[] = [];
  for (let i = 0; i < sumNames.length; i++) {
    const n = sums[sumNames[i]!];
    // A number that is none would make the change impossible, and with it the end of a request.
    if (n && Number.isFinite(n)) added.push(i, n);
  }
  return [common, key.promptHash, tags, added];
}

/** The writer's view: it adds up what a transaction brings. */
export class Usage {
  private readonly statement: FindStatement;
  private readonly sums = new Map<
    string,
    { common: string; rest: [promptHash: string, tag: string]; sums: number[] }
  >();
  /** What is kept apart, by column, day and project; and what the transaction has added to it. */
  private readonly apart = new Map<string, Set<string>>();
  private readonly fresh: [Set<string>, string][] = [];

  constructor(statement: FindStatement) {
    this.statement = statement;
  }

  add([common, promptHash, tags, added]: TallyRow): void {
    const hash = this.isApart("prompt_hash", common, promptHash) ? promptHash : "";
    for (const tag of new Set(["", ...tags])) {
      if (!this.isApart("tag", common, tag)) continue;
      const key = `${common}\n${hash}\n${tag}`;
      const known = this.sums.get(key) ?? { common, rest: [hash, tag], sums: sumNames.map(() => 0) };
      for (let i = 0; i < added.length; i += 2) known.sums[added[i]!]! += added[i + 1]!;
      this.sums.set(key, known);
    }
  }

  /** To be called at the end of a transaction. */
  flush(): void {
    for (const { common, rest, sums } of this.sums.values()) {
      this.statement(add).run([...JSON.parse(common), ...rest, ...sums]);
    }
    this.sums.clear();
    this.fresh.length = 0;
  }

  /** After a transaction that was rolled back. */
  forget(): void {
    this.sums.clear();
    for (const [known, value] of this.fresh) known.delete(value);
    this.fresh.length = 0;
  }

  private isApart(column: "prompt_hash" | "tag", common: string, value: string): boolean {
    if (value === "") return true;
    const [day, project] = JSON.parse(common) as [number, string];
    const name = `${column} ${day} ${project}`;
    let known = this.apart.get(name);
    if (!known) {
      if (this.apart.size >= setsMax) this.apart.clear();
      const sql = `SELECT DISTINCT ${column} FROM usage WHERE day = ? AND project = ? AND ${column} <> ''`;
      known = new Set(this.statement(sql).pluck().all(day, project) as string[]);
      this.apart.set(name, known);
    }
    if (known.has(value)) return true;
    if (known.size >= apartMax) return false;
    known.add(value);
    this.fresh.push([known, value]);
    return true;
  }
}

export function readUsage(statement: FindStatement, query: UsageQuery): UsageGroup[] {
  const { by, fromDay, toDay, limit, tag } = query;
  const where = ["day BETWEEN ? AND ?"];
  const values: (string | number)[] = [fromDay, toDay];
  for (const name of ["project", "model", "upstream", "endpoint", "promptHash", "tag"] as const) {
    const value = query[name];
    if (value === undefined) continue;
    where.push(`${columnOf(name)} = ?`);
    values.push(value);
  }
  // Rows of a tag repeat what stands in those of all.
  if (tag === undefined) where.push(by.includes("tag") ? "tag <> ''" : "tag = ''");
  const sums = sumColumns.map((name) => `coalesce(sum(${name}), 0) AS ${name}`);
  const order = [
    ...(by.includes("day") ? ["day"] : []),
    "cost DESC",
    "input_tokens + output_tokens DESC",
    ...by,
  ];
  const sql = `SELECT * FROM (SELECT ${[...by, ...sums].join(", ")} FROM usage WHERE ${where.join(" AND ")}
      ${by.length > 0 ? `GROUP BY ${by.join(", ")}` : ""})
    ORDER BY ${order.join(", ")} LIMIT ?`;
  const rows = statement(sql).all(...values, limit) as Record<string, string | number>[];
  return rows.map((row) => ({
    values: Object.fromEntries(by.map((name) => [name, row[name]!])),
    sums: Object.fromEntries(sumNames.map((name, i) => [name, row[sumColumns[i]!]!])) as unknown as Sums,
  }));
}
