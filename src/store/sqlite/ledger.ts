/** What is read to find, count, erase and file requests, and to tell what they have used. */

import { faultText } from "../../core/errors.ts";
import type {
  Bulk,
  Count,
  CountBy,
  DeadLetters,
  Filter,
  LedgerStore,
  ListQuery,
  Size,
  UsageGroup,
  UsageQuery,
} from "../../core/ledger/ports.ts";
import type { Part } from "../../core/ports.ts";
import type { RequestRecord, State } from "../../core/request.ts";
import { Connection } from "./connection.ts";
import { notHeld } from "./held.ts";
import { unpacked } from "./pack.ts";
import { type Codec, partsIn } from "./parts.ts";
import * as rows from "./rows.ts";
import { type FacetCount, type FacetRow, Selection } from "./selection.ts";
import { readUsage } from "./usage.ts";

/** What the librarian reads of a request; `seq` is its row. */
export interface Shelved {
  seq: number;
  id: string;
  round: number;
  project: string;
  endpoint: string;
  state: State;
  parts: (Part & { keyId: string | null })[];
  /** They stand together in one row. */
  isPacked: boolean;
  /** Why there are none, where they cannot be read. */
  fault?: string;
}

/** No more requests are read at once when their parts have so many bytes together. */
const shelvedMax = 8 * 1024 * 1024;
const sizeOf = ({ parts }: Shelved): number => parts.reduce((sum, { bytes }) => sum + bytes.byteLength, 0);
/** There may be more of them than were read. */
export const isHeavy = (requests: Shelved[]): boolean =>
  requests.reduce((sum, request) => sum + sizeOf(request), 0) >= shelvedMax;

type ErasableQuery = Parameters<LedgerStore["erasable"]>[0];

/** Columns must be named as the index has them. */
const erasable = `SELECT id, ended_at AS endedAt FROM requests INDEXED BY requests_ended
  WHERE state = ? AND (bodies_erased_at IS NOT NULL) = ? AND (idempotency_key IS NOT NULL) = ?
    AND ended_at < ? AND ended_at IS NOT NULL AND ${notHeld} ORDER BY ended_at LIMIT ?`;
const unwanted = `SELECT id FROM requests INDEXED BY requests_unwanted
  WHERE unwanted = 1 AND bodies_erased_at IS NULL AND ended_at < ? AND ended_at IS NOT NULL AND ${notHeld}
  ORDER BY ended_at LIMIT ?`;

const shelvedColumns = "seq, id, round, project, endpoint, state";

export class Ledger extends Connection {
  list(query: ListQuery): RequestRecord[] {
    const { order, limit, after, upTo } = query;
    return this.atOnce(() => {
      const last = upTo === undefined ? Number.MAX_SAFE_INTEGER : this.positionOf(upTo, false);
      const place = after === undefined ? undefined : this.positionOf(after, order === "desc");
      const from = order === "asc" ? place : Math.min(place ?? Number.MAX_SAFE_INTEGER, last + 1);
      const found: RequestRecord[] = [];
      for (const seq of new Selection(this.statement, query).seqs(order, from)) {
        if (seq > last) break;
        found.push(this.at(seq));
        if (found.length >= limit) break;
      }
      return found;
    });
  }

  /** The row of a request. One that was erased had its place behind those with smaller ids, or just before the next. */
  private positionOf(id: string, isBelow: boolean): number {
    const sql = "SELECT seq, id FROM requests WHERE id <= ? ORDER BY id DESC LIMIT 1";
    const nearest = this.statement(sql).get(id) as { seq: number; id: string } | undefined;
    if (!nearest) return 0;
    return nearest.id !== id && isBelow ? nearest.seq + 1 : nearest.seq;
  }

  many(ids: string[]): RequestRecord[] {
    return this.atOnce(() => ids.flatMap((id) => this.one("SELECT * FROM requests WHERE id = ?", id) ?? []));
  }

  counts(filter: Filter, by: CountBy[]): Count[] {
    const groups = new Map<string, Count>();
    for (const { facet, count } of this.atOnce(() => new Selection(this.statement, filter).counts())) {
      const values = Object.fromEntries(by.map((name) => [name, valueIn(facet, name)]));
      const key = JSON.stringify(Object.values(values));
      const group = groups.get(key);
      if (group) group.count += count;
      else groups.set(key, { values, count });
    }
    return [...groups.values()].sort((a, b) => b.count - a.count);
  }

  deadLetters(filter: Filter, limit: number): DeadLetters[] {
    return this.atOnce(() => {
      const groups = new Map<string, FacetCount[]>();
      for (const one of new Selection(this.statement, { ...filter, states: failedOf(filter) }).counts()) {
        const { error_code, model, upstream, endpoint, caused_by } = one.facet;
        const key = JSON.stringify([error_code, model, upstream, endpoint, caused_by]);
        groups.set(key, [...(groups.get(key) ?? []), one]);
      }
      const sorted = [...groups.values()].sort((a, b) => total(b) - total(a));
      return sorted.slice(0, limit).map((group) => this.deadLettersOf(group));
    });
  }

  private deadLettersOf(group: FacetCount[]): DeadLetters {
    const { error_code, model, upstream, endpoint, caused_by } = group[0]!.facet;
    const end = (which: "min" | "max") =>
      this.statement(`SELECT ${which}(seq) FROM requests INDEXED BY requests_facet WHERE facet = ?`).pluck();
    const firsts = group.map(({ facet, first }) => first ?? (end("min").get(facet.id) as number));
    const lasts = group.map(({ facet, last }) => last ?? (end("max").get(facet.id) as number));
    return {
      errorCode: error_code ?? "",
      model,
      upstream,
      endpoint,
      causedBy: caused_by as DeadLetters["causedBy"],
      count: total(group),
      resolved: total(group.filter(({ facet }) => facet.resolved === 1)),
      first: this.at(Math.min(...firsts)),
      last: this.at(Math.max(...lasts)),
    };
  }

  usage(query: UsageQuery): UsageGroup[] {
    return readUsage(this.statement, query);
  }

  erasable({ what, state, endedBefore, keyedBefore, orphanedBefore, limit }: ErasableQuery): string[] {
    const statement = this.statement(erasable);
    const found: { id: string; endedAt: number }[] = [];
    for (const isErased of what === "record" ? [0, 1] : [0]) {
      for (const isKeyed of [0, 1]) {
        // Keys outlive bodies.
        const before = what === "record" && isKeyed ? Math.min(endedBefore, keyedBefore) : endedBefore;
        const values = [state, isErased, isKeyed, before, orphanedBefore, limit];
        found.push(...(statement.all(...values) as typeof found));
      }
    }
    return found
      .sort((a, b) => a.endedAt - b.endedAt)
      .slice(0, limit)
      .map(({ id }) => id);
  }

  unwanted(endedBefore: number, limit: number, orphanedBefore: number): string[] {
    return this.statement(unwanted).pluck().all(endedBefore, orphanedBefore, limit) as string[];
  }

  size(): Size {
    const pragma = (name: string) => this.statement(`PRAGMA ${name}`).pluck().get() as number;
    const pageSize = pragma("page_size");
    return {
      bytes: pragma("page_count") * pageSize,
      freeBytes: pragma("freelist_count") * pageSize,
      requests: this.statement("SELECT coalesce(sum(n), 0) FROM facets").pluck().get() as number,
    };
  }

  bulk(id: string): Bulk | undefined {
    return this.bulksOf("id = ?", [id], 1)[0];
  }

  bulkByKey(project: string, key: string): Bulk | undefined {
    return this.bulksOf("project = ? AND idempotency_key = ?", [project, key], 1)[0];
  }

  bulks({ project, state, after, limit }: Parameters<LedgerStore["bulks"]>[0]): Bulk[] {
    const where = ["1"];
    const values: rows.Value[] = [];
    const and = (condition: string, value: string | undefined) => {
      if (value === undefined) return;
      where.push(condition);
      values.push(value);
    };
    and("project = ?", project);
    and("state = ?", state);
    and("rowid < (SELECT rowid FROM bulks WHERE id = ?)", after);
    return this.bulksOf(where.join(" AND "), values, limit);
  }

  private bulksOf(where: string, values: rows.Value[], limit: number): Bulk[] {
    const sql = `SELECT * FROM bulks WHERE ${where} ORDER BY rowid DESC LIMIT ?`;
    return (this.statement(sql).all(...values, limit) as rows.RequestRow[]).map(rows.toBulk);
  }

  /** Ended requests that the librarian has not looked through, oldest first. */
  unfiled(limit: number): Shelved[] {
    const sql = `SELECT ${shelvedColumns} FROM unfiled JOIN requests ON seq = request_seq
      ORDER BY request_seq LIMIT ?`;
    return this.atOnce(() => this.shelved(sql, limit));
  }

  /** How many those are. */
  countUnfiled(): number {
    return this.statement("SELECT count(*) FROM unfiled").pluck().get() as number;
  }

  /**
   * Those of the next requests that have ended. `lookedTo` is the row of the last one that was looked at.
   * @param after a row: `lookedTo` of the call before
   */
  endedFrom(after: number, limit: number): { requests: Shelved[]; lookedTo: number } {
    return this.atOnce(() => {
      const next = "SELECT seq FROM requests WHERE seq > ? ORDER BY seq LIMIT ?";
      const lookedTo = (this.statement(next).pluck().all(after, limit) as number[]).at(-1) ?? after;
      const sql = `SELECT ${shelvedColumns} FROM requests
        WHERE seq > ? AND seq <= ? AND ended_at IS NOT NULL ORDER BY seq`;
      const requests = this.shelved(sql, after, lookedTo);
      return { requests, lookedTo: isHeavy(requests) ? requests.at(-1)!.seq : lookedTo };
    });
  }

  /** Requests that have not ended and were accepted before an instant, in the order of their rows. @param after a row */
  waitingSince(createdBefore: number, after: number, limit: number): Shelved[] {
    const sql = `SELECT ${shelvedColumns} FROM requests INDEXED BY requests_facet
      WHERE facet IN (SELECT id FROM facets WHERE n > 0 AND state NOT IN ('completed', 'failed', 'cancelled'))
        AND seq > ? AND created_at < ? ORDER BY seq LIMIT ?`;
    return this.atOnce(() => this.shelved(sql, after, createdBefore, limit));
  }

  private shelved(sql: string, ...values: number[]): Shelved[] {
    const loose = this.statement(
      "SELECT kind, seq, codec, bytes, key_id AS keyId FROM parts WHERE request_seq = ?",
    );
    const packs = this.statement("SELECT bytes FROM packs WHERE request_seq = ?").pluck();
    const found = this.statement(sql).all(...values) as Omit<Shelved, "parts" | "isPacked">[];
    const read: Shelved[] = [];
    for (let size = 0; read.length < found.length && size < shelvedMax; size += sizeOf(read.at(-1)!)) {
      const request = found[read.length]!;
      const pack = packs.get(request.seq) as Uint8Array | undefined;
      if (pack) read.push({ ...request, isPacked: true, ...packedParts(pack) });
      else read.push({ ...request, isPacked: false, parts: partsIn(loose.all(request.seq) as LooseRow[]) });
    }
    return read;
  }

  protected seqOf(id: string): number | undefined {
    return this.statement("SELECT seq FROM requests WHERE id = ?").pluck().get(id) as number | undefined;
  }

  private at(seq: number): RequestRecord {
    return this.one("SELECT * FROM requests WHERE seq = ?", seq)!;
  }
}

type LooseRow = Shelved["parts"][number] & { codec: Codec };

function packedParts(pack: Uint8Array): Pick<Shelved, "parts" | "fault"> {
  try {
    return { parts: unpacked(pack).map((part) => ({ keyId: null, ...part })) };
  } catch (error) {
    return { parts: [], fault: faultText(error) };
  }
}

/** Only requests that failed are dead. */
const failedOf = ({ states }: Filter): State[] =>
  states === undefined || states.includes("failed") ? ["failed"] : [];

const total = (group: FacetCount[]): number => group.reduce((sum, { count }) => sum + count, 0);

function valueIn(facet: FacetRow, name: CountBy): string | null {
  if (name === "status") return facet.state;
  if (name !== "resolved") return facet[name];
  return facet.state === "failed" ? String(facet.resolved === 1) : null;
}
