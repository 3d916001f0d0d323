/**
 * Which requests a filter means, found without walking through all of them: the values of a request are a facet, which
 * has an index and a count; what its caller told of it are labels, which have one, too; and blocks of requests know when
 * they were accepted.
 */

import { labelsOf } from "../../core/ledger/labels.ts";
import type { Filter } from "../../core/ledger/ports.ts";
import type { FindStatement } from "./connection.ts";
import { labelNumber } from "./label-number.ts";
import type { Value } from "./rows.ts";
import { type Stretch, stretches } from "./spans.ts";
import { common, ListWalk, Stretches, Union, type Walk } from "./walk.ts";

/** A combination of values, as it stands in its table. */
export interface FacetRow {
  id: number;
  project: string;
  endpoint: string;
  model: string;
  upstream: string | null;
  state: string;
  error_code: string | null;
  caused_by: string | null;
  resolved: number;
  n: number;
}

/** How many requests of a facet there are, and the rows of the first and the last one, where those are known. */
export interface FacetCount {
  facet: FacetRow;
  count: number;
  first?: number;
  last?: number;
}

/** To look at a row costs as much as so many steps along an index. */
const rowCost = 8;
/** Beyond this length the list of a label is taken to be long. */
const longList = 100_000;

const marks = (count: number): string => Array(count).fill("?").join(", ");

const checked = "SELECT facet, created_at, tags, origin FROM requests WHERE seq = ?";
interface Checked {
  facet: number;
  created_at: number;
  tags: string | null;
  origin: string | null;
}

export class Selection {
  private readonly statement: FindStatement;
  private readonly filter: Filter;
  private readonly facets: Map<number, FacetRow>;
  private readonly hasDates: boolean;
  private readonly labels: NonNullable<Filter["labels"]>;

  constructor(statement: FindStatement, filter: Filter) {
    this.statement = statement;
    this.filter = filter;
    this.facets = new Map(facetsOf(statement, filter).map((facet) => [facet.id, facet]));
    this.hasDates = filter.createdAfter !== undefined || filter.createdBefore !== undefined;
    this.labels = filter.labels ?? [];
  }

  /** Rows of the requests in their order, those beyond `after` only. */
  *seqs(order: "asc" | "desc", after?: number): Generator<number> {
    const isOpen = this.labels.length > 0 || this.hasDates || this.filter.idempotencyKey !== undefined;
    for (const seq of this.candidates(order, after)) {
      if (!isOpen || this.facetOf(seq) !== undefined) yield seq;
    }
  }

  /** What the lists have in common. */
  private *candidates(order: "asc" | "desc", after?: number): Generator<number> {
    if (this.facets.size === 0) return;
    const sign = order === "asc" ? 1 : -1;
    const from = after === undefined ? Number.MIN_SAFE_INTEGER : sign * after + 1;
    for (const place of common(this.walks(order), from)) yield sign * place;
  }

  /** How many there are, by facet. */
  counts(): FacetCount[] {
    if (this.labels.length > 0 || this.filter.idempotencyKey !== undefined) return this.countEach();
    if (this.hasDates) return this.countStretches();
    return [...this.facets.values()].map((facet) => ({ facet, count: facet.n }));
  }

  private countEach(): FacetCount[] {
    const counts = new Map<number, Required<FacetCount>>();
    for (const seq of this.candidates("asc")) {
      const id = this.facetOf(seq);
      if (id === undefined) continue;
      const known = counts.get(id);
      if (known) {
        known.count++;
        known.last = seq;
      } else counts.set(id, { facet: this.facets.get(id)!, count: 1, first: seq, last: seq });
    }
    return [...counts.values()];
  }

  private countStretches(): FacetCount[] {
    const within = this.stretches();
    const counts: FacetCount[] = [];
    for (const facet of this.facets.values()) {
      const found = within.map((stretch) => this.countIn(facet.id, stretch)).filter(({ count }) => count > 0);
      if (found.length === 0) continue;
      const count = found.reduce((sum, one) => sum + one.count, 0);
      counts.push({ facet, count, first: found[0]!.first, last: found.at(-1)!.last });
    }
    return counts;
  }

  private countIn(facet: number, { first, last, isWhole }: Stretch) {
    const sql = `SELECT count(*) AS count, min(seq) AS first, max(seq) AS last
      FROM requests INDEXED BY requests_facet WHERE facet = ? AND seq BETWEEN ? AND ?`;
    const dates = isWhole
      ? []
      : [this.filter.createdAfter ?? -1, this.filter.createdBefore ?? Number.MAX_SAFE_INTEGER];
    const statement = this.statement(isWhole ? sql : `${sql} AND created_at > ? AND created_at < ?`);
    return statement.get(facet, first, last, ...dates) as { count: number; first: number; last: number };
  }

  private stretches(): Stretch[] {
    return stretches(this.statement, this.filter.createdAfter, this.filter.createdBefore);
  }

  /** The lists that are gone through, shortest first. Where a label is rare, its requests are looked at one by one. */
  private walks(order: "asc" | "desc"): Walk[] {
    const { idempotencyKey: key } = this.filter;
    if (key !== undefined) return [this.keyed(key, order)];
    const labels = this.labels
      .map((label) => labelNumber(this.filter.project, label))
      .map((number) => ({ number, length: this.lengthOf(number) }))
      .sort((a, b) => a.length - b.length);
    const ofFacets = [...this.facets.values()].reduce((sum, { n }) => sum + n, 0);
    const rarest = labels[0]?.length ?? Number.POSITIVE_INFINITY;
    const walks: Walk[] = labels
      .filter(({ length }) => length <= ofFacets * rowCost)
      .map(({ number }) => this.walk("request_seq", "labels WHERE label", number, order));
    if (ofFacets <= rarest * rowCost) {
      const lists = [...this.facets.keys()].map((id) =>
        this.walk("seq", "requests INDEXED BY requests_facet WHERE facet", id, order),
      );
      if (ofFacets < rarest) walks.unshift(new Union(lists));
      else walks.push(new Union(lists));
    }
    if (this.hasDates) walks.push(this.withinDates(order));
    return walks;
  }

  private withinDates(order: "asc" | "desc"): Walk {
    const found = this.stretches();
    if (order === "asc") return new Stretches(found);
    return new Stretches(found.reverse().map(({ first, last }) => ({ first: -last, last: -first })));
  }

  private walk(column: string, list: string, value: number, order: "asc" | "desc"): Walk {
    const isUp = order === "asc";
    const sql = `SELECT ${isUp ? column : `-${column}`} FROM ${list} = ? AND ${column} ${isUp ? ">=" : "<="} ?
      ORDER BY ${column} ${order} LIMIT ?`;
    const statement = this.statement(sql).pluck();
    return new ListWalk((from, limit) => statement.all(value, isUp ? from : -from, limit) as number[]);
  }

  /** A key belongs to one request of each endpoint. */
  private keyed(key: string, order: "asc" | "desc"): Walk {
    const sql = "SELECT request_seq FROM idempotency_keys WHERE project = ? AND endpoint = ? AND key = ?";
    const endpoints = new Set([...this.facets.values()].map(({ endpoint }) => endpoint));
    const found = [...endpoints]
      .map(
        (endpoint) =>
          this.statement(sql).pluck().get(this.filter.project, endpoint, key) as number | undefined,
      )
      .filter((seq) => seq !== undefined)
      .map((seq) => (order === "asc" ? seq : -seq))
      .sort((a, b) => a - b);
    return new Stretches(found.map((seq) => ({ first: seq, last: seq })));
  }

  private lengthOf(label: number): number {
    const sql = "SELECT count(*) FROM (SELECT 1 FROM labels WHERE label = ? LIMIT ?)";
    return this.statement(sql).pluck().get(label, longList) as number;
  }

  /**
   * The facet of a request that is meant, undefined of any other. Lists leave that open: labels share numbers, blocks
   * begin before an instant and end behind it, and not every list was gone through.
   */
  private facetOf(seq: number): number | undefined {
    const { createdAfter = -1, createdBefore = Number.MAX_SAFE_INTEGER } = this.filter;
    const row = this.statement(checked).get(seq) as Checked | undefined;
    if (!row || !this.facets.has(row.facet)) return undefined;
    if (row.created_at <= createdAfter || row.created_at >= createdBefore) return undefined;
    return this.hasLabels(row) ? row.facet : undefined;
  }

  private hasLabels(row: Checked): boolean {
    if (this.labels.length === 0) return true;
    const own = labelsOf({
      tags: row.tags === null ? [] : JSON.parse(row.tags),
      origin: row.origin === null ? undefined : JSON.parse(row.origin),
    });
    return this.labels.every(({ name, value }) =>
      own.some((one) => one.name === name && one.value === value),
    );
  }
}

/** The facets of a project that a filter means, of those that requests have. */
function facetsOf(statement: FindStatement, filter: Filter): FacetRow[] {
  const where = ["project = ?", "n > 0"];
  const values: Value[] = [filter.project];
  const and = (condition: string, value: Value | undefined) => {
    if (value === undefined) return;
    where.push(condition);
    values.push(value);
  };
  and("model = ?", filter.model);
  and("upstream = ?", filter.upstream);
  and("error_code = ?", filter.errorCode);
  and("endpoint = ?", filter.endpoint);
  and("caused_by = ?", filter.causedBy);
  if (filter.resolved !== undefined) and("state = 'failed' AND resolved = ?", filter.resolved ? 1 : 0);
  if (filter.states) {
    where.push(`state IN (${marks(filter.states.length)})`);
    values.push(...filter.states);
  }
  return statement(`SELECT * FROM facets WHERE ${where.join(" AND ")}`).all(...values) as FacetRow[];
}
