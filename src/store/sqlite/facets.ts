/**
 * What requests are counted and listed by: each combination of these values is one row of a small table, which knows
 * how many requests have it. Every request names its own.
 */

import { causeOf, type RequestRecord } from "../../core/request.ts";
import type { FindStatement } from "./connection.ts";
import { wellFormed } from "./rows.ts";

/** A combination of values as JSON text, by which it crosses threads and is looked up. */
export type Facet = string;

const columns = [
  "project",
  "endpoint",
  "model",
  "upstream",
  "state",
  "error_code",
  "caused_by",
  "resolved",
] as const;

const all = `SELECT id, json_array(${columns.join(", ")}) AS facet FROM facets`;
const insert = `INSERT INTO facets (${columns.join(", ")}) VALUES (${columns.map(() => "?").join(", ")})`;

type Values = (string | number | null)[];

export function facetOf(record: RequestRecord): Facet {
  const { project, endpoint, model, upstream = null, state, lastErrorCode } = record;
  const isResolved = state === "failed" && record.resolvedAt !== undefined;
  const errorCode = lastErrorCode === undefined ? null : wellFormed(lastErrorCode);
  // Else it would be another one after a start, when what is known is read back.
  const values: Values = [project, endpoint, wellFormed(model), upstream, state, errorCode];
  return JSON.stringify([...values, causeOf(record) ?? null, isResolved ? 1 : 0]);
}

/** The writer's view: it finds and makes facets, and adds up what a transaction changes of their counts. */
export class Facets {
  private readonly statement: FindStatement;
  private ids: Map<Facet, number> | undefined;
  private readonly changes = new Map<number, number>();

  constructor(statement: FindStatement) {
    this.statement = statement;
  }

  /** The number of a facet, which one request more has from now on. */
  enter(facet: Facet): number {
    const id = this.known().get(facet) ?? this.make(facet);
    this.count(id, 1);
    return id;
  }

  leave(id: number): void {
    this.count(id, -1);
  }

  /** The facet that differs from this one in that its requests are resolved, or not. */
  resolved(id: number, isResolved: boolean): Facet {
    const text = this.statement(`${all} WHERE id = ?`).get(id) as { facet: Facet };
    const values = JSON.parse(text.facet) as Values;
    values[columns.indexOf("resolved")] = isResolved ? 1 : 0;
    return JSON.stringify(values);
  }

  /** To be called at the end of a transaction. */
  flush(): void {
    const add = this.statement("UPDATE facets SET n = n + ? WHERE id = ?");
    for (const [id, change] of this.changes) if (change !== 0) add.run(change, id);
    this.changes.clear();
  }

  /** What was made and counted in a transaction that was rolled back is not there. */
  forget(): void {
    this.ids = undefined;
    this.changes.clear();
  }

  /** Values that no request has any more; only while no transaction counts. */
  sweep(): void {
    this.statement("DELETE FROM facets WHERE n = 0").run();
    this.ids = undefined;
  }

  private known(): Map<Facet, number> {
    if (this.ids) return this.ids;
    const rows = this.statement(all).all() as { id: number; facet: Facet }[];
    // JSON of SQLite escapes otherwise than that of JavaScript.
    this.ids = new Map(rows.map(({ id, facet }) => [JSON.stringify(JSON.parse(facet)), id]));
    return this.ids;
  }

  private make(facet: Facet): number {
    const id = Number(this.statement(insert).run(JSON.parse(facet) as Values).lastInsertRowid);
    this.known().set(facet, id);
    return id;
  }

  private count(id: number, change: number): void {
    this.changes.set(id, (this.changes.get(id) ?? 0) + change);
  }
}
