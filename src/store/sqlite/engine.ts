/** What is written, and how it gets to disk. Runs in a worker thread, or in process for `:memory:`. */

import { labelsOf } from "../../core/ledger/labels.ts";
import type { ChangeSet, CommitResult } from "../../core/ports.ts";
import { Table } from "../../core/table.ts";
import { diskErrorKind } from "./connection.ts";
import { Facets } from "./facets.ts";
import { HeldTable, notHeld } from "./held.ts";
import { labelNumber } from "./label-number.ts";
import {
  type AcceptOp,
  type ChangeOp,
  type EventsOp,
  type EventsRow,
  type FiledOp,
  type Op,
  opOf,
  type VectorRow,
} from "./op.ts";
import { unpacked } from "./pack.ts";
import { type PartRow, PartTable, partRows } from "./parts.ts";
import { Reader } from "./reader.ts";
import * as rows from "./rows.ts";
import { Spans } from "./spans.ts";
import { Usage } from "./usage.ts";
import { WriteAheadLog } from "./write-ahead-log.ts";

/**
 * Vectors are many, and asked for again at little cost: one that nobody has made anew for this long only takes up
 * the disk, whatever age its readers would put up with. Who writes new ones sweeps out as many that are older, and
 * these many more: so the old ones become fewer with every write, and none of the writes is slow.
 */
const vectorLifeMs = 30 * 24 * 60 * 60 * 1000;
const vectorsSweptBeside = 16;

const applied: CommitResult = { status: "applied" };

const stateAt = rows.changingColumns.indexOf("state");
const endedAtAt = rows.changingColumns.indexOf("ended_at");
const acceptColumns = [...rows.fixedColumns, ...rows.roundColumns, ...rows.changingColumns];
/**
 * Forks only grow: a change that was worked out while the stream had fewer takes none away. Of two lists of which
 * one begins with the other, the longer one comes first as JSON.
 */
const longerForks = "nullif(min(ifnull(?, '[]'), ifnull(forks, '[]')), '[]')";
/** What a caller was given instead is no part of the attempts: a change that does not know of it leaves it. */
const keptDegraded = "coalesce(?, degraded)";
const settings = (columns: string[], kept: Record<string, string>): string =>
  columns
    .map((column) => `${column} = ${kept[column] ?? (rows.isHash(column) ? "unhex(?)" : "?")}`)
    .join(", ");
const fence = "seq = ? AND state = ? AND attempt = ? AND round = ? AND owner_node IS ? AND owner_epoch IS ?";

/** Statements of the writer. Constants, because they are found by their text. */
const sql = {
  insertRequest: `INSERT INTO requests (seq, facet, ${acceptColumns.join(", ")})
    VALUES (?, ?, ${rows.marksFor(acceptColumns)})`,
  insertLabel: "INSERT OR IGNORE INTO labels (label, request_seq) VALUES (?, ?)",
  insertKey: "INSERT INTO idempotency_keys (project, endpoint, key, request_seq) VALUES (?, ?, ?, ?)",
  insertAttempt: `INSERT INTO attempts (request_seq, ${rows.attemptColumns.join(", ")})
    VALUES (?, ${rows.marksFor(rows.attemptColumns)})`,
  update: `UPDATE requests
    SET facet = ?, ${settings(rows.changingColumns, { forks: longerForks, degraded: keptDegraded })} WHERE ${fence}`,
  updateRound: `UPDATE requests
    SET facet = ?, ${settings([...rows.changingColumns, ...rows.roundColumns], { forks: longerForks })}
    WHERE ${fence} AND bodies_erased_at IS ? AND (bodies_erased_at IS NULL OR ?)`,
  place: "SELECT seq, facet FROM requests WHERE id = ?",
  ended: "INSERT OR IGNORE INTO unfiled (request_seq) VALUES (?)",
  revived: "DELETE FROM unfiled WHERE request_seq = ?",
  fenced: `SELECT forks FROM requests WHERE ${fence}`,
  updateForks: "UPDATE requests SET forks = ? WHERE seq = ?",
  insertEvents: "INSERT INTO events (request_seq, seq, bytes) VALUES (?, ?, ?)",
  dropEvents: "DELETE FROM events WHERE request_seq = ?",
  dropParts: "DELETE FROM parts WHERE request_seq = ?",
  dropPack: "DELETE FROM packs WHERE request_seq = ?",
  dropAnswer: `DELETE FROM parts
    WHERE request_seq = ? AND (kind IN ('answer_head', 'answer') OR (kind = 'head' AND seq > 0))`,
  insertVector: `INSERT INTO vectors (project, hash, created_at, bytes) VALUES (?, unhex(?), ?, ?)
    ON CONFLICT (project, hash) DO UPDATE SET created_at = excluded.created_at, bytes = excluded.bytes
    WHERE excluded.created_at > vectors.created_at`,
  forgetSomeVectors: `DELETE FROM vectors WHERE rowid IN
    (SELECT rowid FROM vectors WHERE created_at <= ? ORDER BY created_at LIMIT ?)`,
  hasBodies: `SELECT bodies_erased_at IS NULL FROM requests
    WHERE seq = ? AND round = ? AND ended_at IS NOT NULL`,
  // Where parts shrink in their place, holes are left in pages that nobody fills: packs have pages of their own.
  insertPack: "INSERT OR REPLACE INTO packs (request_seq, bytes) VALUES (?, ?)",
  packOf: "SELECT bytes FROM packs WHERE request_seq = ?",
  erasable: "SELECT * FROM requests WHERE id = ? AND ended_at IS NOT NULL",
  bodiesErased:
    "UPDATE requests SET bodies_erased_at = ?, body_hash = NULL WHERE seq = ? AND bodies_erased_at IS NULL",
  lanesOf: "SELECT DISTINCT upstream || '/' || model FROM attempts WHERE request_seq = ?",
  forgetVector: "DELETE FROM vectors WHERE project = ? AND hash = unhex(?)",
  keepBulk: `INSERT INTO bulks (${rows.bulkColumns.join(", ")}) VALUES (${rows.marksFor(rows.bulkColumns)})
    ON CONFLICT (id) DO UPDATE SET ${rows.bulkColumns.map((name) => `${name} = excluded.${name}`).join(", ")}`,
  degrade: "UPDATE requests SET degraded = ? WHERE id = ?",
  learn: `INSERT INTO flow (name, value) VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value`,
  pruneThrottled: `DELETE FROM attempts WHERE request_seq = ?1 AND verdict = 'throttled' AND number <=
    (SELECT number FROM attempts WHERE request_seq = ?1 AND verdict = 'throttled'
      ORDER BY number DESC LIMIT 1 OFFSET ?2)`,
  shiftDeadlines: `UPDATE requests SET deadline_at = deadline_at + ?
    WHERE state IN ('queued', 'retrying', 'processing')`,
  shiftDue: `UPDATE requests SET due_at = due_at + ?
    WHERE state = 'retrying' OR (state = 'queued' AND due_at <= ?)`,
};

/** The row of a request, and its facet. */
interface Place {
  seq: number;
  facet: number;
}

export class Engine extends Reader {
  /** Places of requests that this connection has seen accepted or started, and that are being processed. */
  private readonly live = new Table<string, Place>();
  private readonly partTable = new PartTable(this.statement);
  private readonly held = new HeldTable(this.statement);
  private readonly facets = new Facets(this.statement);
  private readonly spans = new Spans(this.statement);
  private readonly used = new Usage(this.statement);
  private readonly log = new WriteAheadLog(this.statement);

  /** After a failed sync the next one may succeed without having written anything: nothing is written any more. */
  private doubt: Error | undefined;

  /** Counts a start of this node: whatever an earlier one left in `processing` is nobody's. */
  nextEpoch(node: string, now: number): number {
    const sql = `INSERT INTO nodes (node, epoch, started_at) VALUES (?, 1, ?)
      ON CONFLICT (node) DO UPDATE SET epoch = epoch + 1, started_at = excluded.started_at RETURNING epoch`;
    // By itself the statement would commit where it is reset, and nobody asks whether that went well.
    return this.inTransaction(() => {
      this.facets.sweep();
      return this.statement(sql).pluck().get(node, now) as number;
    });
  }

  /**
   * Applies changes in one transaction, in order. A change whose expectation fails is a conflict and writes
   * nothing; the others are not affected. Should a statement throw, or the disk be too full for all of them,
   * the changes are applied one by one, so that a fault takes down only its own change, and what fits is kept;
   * where the disk is in doubt, all are refused.
   */
  commitAll(changes: ChangeSet[]): (CommitResult | Error)[] {
    return this.writeAll(changes.map(opOf));
  }

  /** `commitAll` for changes that are values already. */
  writeAll(ops: Op[]): (CommitResult | Error)[] {
    const results = this.writeTogether(ops);
    if (ops.some(({ kind }) => kind === "erase")) this.clearTraces();
    return results;
  }

  private writeTogether(ops: Op[]): (CommitResult | Error)[] {
    try {
      if (this.doubt) throw this.doubt;
      this.log.copyIfLong();
      return this.written(() => ops.map((op) => this.apply(op)));
    } catch (error) {
      if (diskErrorKind(error) === "failed") this.doubt = error as Error;
      return ops.map((op) => {
        if (this.doubt) return this.doubt;
        try {
          return this.written(() => this.apply(op));
        } catch (own) {
          if (diskErrorKind(own) === "failed") this.doubt = own as Error;
          return own as Error;
        }
      });
    }
  }

  /** What was committed stays so, whatever becomes of this. */
  private clearTraces(): void {
    if (this.doubt) return;
    try {
      this.log.clear();
    } catch (error) {
      this.doubt = error as Error;
    }
  }

  /** What is counted is written once for all changes of a transaction. */
  private written<T>(work: () => T): T {
    try {
      return this.inTransaction(() => {
        const result = work();
        for (const account of [this.facets, this.spans, this.used]) account.flush();
        return result;
      });
    } catch (error) {
      for (const known of [this.facets, this.spans, this.used, this.held]) known.forget();
      this.live.clear();
      throw error;
    }
  }

  private apply(op: Op): CommitResult {
    switch (op.kind) {
      case "accept":
        return this.accept(op);
      case "change":
        return this.change(op);
      case "events":
        return this.moreEvents(op);
      case "repeat":
        return this.held.repeated(op.callHash, op.repeats) ?? { status: "conflict", current: undefined };
      case "orphaned":
        this.held.orphaned(op);
        return applied;
      case "all_orphaned":
        this.held.allOrphaned(op);
        return applied;
      case "clock_set":
        return this.clockSet(op);
      case "answered":
        this.held.answered(op.ids);
        return applied;
      case "degraded":
        return this.degraded(op);
      case "flow":
        return this.learned(op);
      case "filed":
        return this.filed(op);
      case "erase":
        return this.erased(op);
      case "resolve":
        return this.resolved(op);
      case "bulk":
        return this.keptBulk(op);
      case "vacuum":
        this.db.exec(`PRAGMA incremental_vacuum(${op.pages})`);
        return applied;
    }
  }

  private accept(op: AcceptOp): CommitResult {
    const { id, row, key, callHash, repeats, labels, parts } = op;
    if (key) {
      const current = this.byKey(key.project, key.endpoint, key.key);
      if (current) return { status: "conflict", current };
    }
    const known = callHash !== undefined && repeats && this.held.repeated(callHash, repeats);
    if (known) return known;
    const seq = this.spans.next(op.createdAt);
    const facet = this.facets.enter(op.facet);
    this.statement(sql.insertRequest).run([seq, facet, ...row]);
    if (key) this.statement(sql.insertKey).run(key.project, key.endpoint, key.key, seq);
    if (callHash !== undefined) this.held.insert(id, seq, callHash);
    for (const label of labels) this.statement(sql.insertLabel).run(label, seq);
    if (op.isLive) this.live.set(id, { seq, facet });
    if (op.isEnded) this.statement(sql.ended).run(seq);
    this.partTable.insert(seq, parts);
    for (const tally of op.tallies) this.used.add(tally);
    return applied;
  }

  private degraded({ id, degraded }: Extract<Op, { kind: "degraded" }>): CommitResult {
    const { changes } = this.statement(sql.degrade).run(degraded, id);
    return changes === 0 ? { status: "conflict", current: undefined } : applied;
  }

  private learned({ rows }: Extract<Op, { kind: "flow" }>): CommitResult {
    for (const { name, value } of rows) this.statement(sql.learn).run(name, value);
    return applied;
  }

  /** Instants that somebody named stay as they were named; those that only say how long there is to wait move along. */
  private clockSet({ byMs, before }: Extract<Op, { kind: "clock_set" }>): CommitResult {
    this.statement(sql.shiftDeadlines).run(byMs);
    this.statement(sql.shiftDue).run(byMs, before);
    this.held.shift(byMs);
    return applied;
  }

  private change(op: ChangeOp): CommitResult {
    const { id, row, round = [], fence, attempt, keepThrottled, dropAnswer, parts, events, vectors } = op;
    const place = this.live.get(id) ?? this.placeOf(id);
    if (!place) return { status: "conflict", current: undefined };
    const facet = this.facets.enter(op.facet);
    // The fence is a compare-and-set: whoever lost the request changes nothing.
    const update = this.statement(op.round ? sql.updateRound : sql.update);
    if (update.run([facet, ...row, ...round, place.seq, ...fence]).changes === 0) {
      this.facets.leave(facet);
      return { status: "conflict", current: this.get(id) };
    }
    const { seq } = place;
    this.facets.leave(place.facet);
    if (op.isLive) this.live.set(id, { seq, facet });
    else this.live.delete(id);
    if (op.isEnded) this.ended(seq, row);
    if (attempt) this.statement(sql.insertAttempt).run([seq, ...attempt]);
    if (keepThrottled !== undefined) this.pruneThrottled(seq, keepThrottled);
    const replace = () => {
      if (op.round && !op.isEnded) this.beginAnew(seq, parts);
      if (dropAnswer) this.dropAnswer(seq);
      this.partTable.insert(seq, parts);
    };
    if (op.round || dropAnswer) this.overwriting(replace);
    else this.partTable.insert(seq, parts);
    if (events) this.insertEvents(seq, events);
    if (vectors?.length) this.insertVectors(vectors);
    for (const tally of op.tallies) this.used.add(tally);
    return applied;
  }

  private ended(seq: number, row: rows.Value[]): void {
    this.statement(sql.ended).run(seq);
    if (row[stateAt] === "failed") this.held.failed(row[endedAtAt] as number);
  }

  /** The row of the request is left as it is, but where the stream has begun anew. */
  private moreEvents({ id, fence, forks, events }: EventsOp): CommitResult {
    const seq = this.live.get(id)?.seq ?? this.seqOf(id) ?? null;
    const row = this.statement(sql.fenced).get([seq, ...fence]) as { forks: rows.Value } | undefined;
    if (seq === null || !row) return { status: "conflict", current: this.get(id) };
    if (row.forks !== forks) this.statement(sql.updateForks).run(forks, seq);
    this.insertEvents(seq, events);
    return applied;
  }

  private insertEvents(seq: number, [after, bytes, anew]: EventsRow): void {
    if (anew) this.overwriting(() => this.statement(sql.dropEvents).run(seq));
    // A batch without events would stand where the next one has to.
    if (bytes.byteLength > 0) this.statement(sql.insertEvents).run(seq, after, bytes);
  }

  private insertVectors(vectors: VectorRow[]): void {
    let newestAt = 0;
    for (const vector of vectors) {
      this.statement(sql.insertVector).run(vector);
      newestAt = Math.max(newestAt, vector[2]);
    }
    this.statement(sql.forgetSomeVectors).run(newestAt - vectorLifeMs, vectors.length + vectorsSweptBeside);
  }

  private placeOf(id: string): Place | undefined {
    return this.statement(sql.place).get(id) as Place | undefined;
  }

  private pruneThrottled(seq: number, kept: number): void {
    this.statement(sql.pruneThrottled).run({ 1: seq, 2: kept });
  }

  private dropAnswer(seq: number): void {
    this.statement(sql.dropAnswer).run(seq);
    this.statement(sql.dropEvents).run(seq);
  }

  private filed({ seqs, packs }: FiledOp): CommitResult {
    const current = new Set<number>();
    for (const [seq, round] of seqs) {
      const hasBodies = this.statement(sql.hasBodies).pluck().get(seq, round) as number | undefined;
      // One that was revived meanwhile has another answer, or will have one.
      if (hasBodies === undefined) continue;
      this.statement("DELETE FROM unfiled WHERE request_seq = ?").run(seq);
      // What was erased meanwhile must not come back.
      if (hasBodies) current.add(seq);
    }
    this.overwriting(() => {
      for (const [seq, bytes] of packs) {
        if (!current.has(seq)) continue;
        this.statement(sql.dropParts).run(seq);
        this.statement(sql.insertPack).run(seq, bytes);
      }
    });
    return applied;
  }

  /** The parts of a request that begins anew stand apart again. */
  private beginAnew(seq: number, parts: PartRow[]): void {
    this.statement(sql.revived).run(seq);
    // Whoever asked what was asked before must not adopt what is asked now.
    if (parts.some(([kind]) => kind === "body")) this.held.delete(seq);
    const pack = this.statement(sql.packOf).pluck().get(seq) as Uint8Array | undefined;
    if (!pack) return;
    this.statement(sql.dropPack).run(seq);
    this.partTable.insert(seq, partRows(unpacked(pack)));
  }

  /** What is deleted meanwhile is overwritten on disk, too; as soon as the log is copied, that is. */
  private overwriting(work: () => void): void {
    this.statement("PRAGMA secure_delete = ON").get();
    try {
      work();
    } finally {
      this.statement("PRAGMA secure_delete = FAST").get();
    }
  }

  private erased({ ids, what, at, unlessHeld }: Extract<Op, { kind: "erase" }>): CommitResult {
    this.overwriting(() => {
      for (const id of ids) {
        const row = this.erasableRow(id, unlessHeld);
        if (!row) continue;
        if (row.endpoint === "embeddings") this.forgetVectors(row);
        if (what === "record") this.eraseRecord(row);
        else this.eraseBodies(row.seq as number, at);
      }
    });
    return applied;
  }

  private erasableRow(id: string, unlessHeld: { orphanedBefore: number } | undefined) {
    const row = unlessHeld
      ? this.statement(`${sql.erasable} AND ${notHeld}`).get(id, unlessHeld.orphanedBefore)
      : this.statement(sql.erasable).get(id);
    return row as rows.RequestRow | undefined;
  }

  private eraseRecord(row: rows.RequestRow): void {
    const seq = row.seq as number;
    const { project, ...record } = rows.toRecord(row);
    for (const label of labelsOf(record)) {
      this.statement("DELETE FROM labels WHERE label = ? AND request_seq = ?").run(
        labelNumber(project, label),
        seq,
      );
    }
    this.facets.leave(row.facet as number);
    // Its other rows go with it.
    this.statement("DELETE FROM requests WHERE seq = ?").run(seq);
  }

  private eraseBodies(seq: number, at: number): void {
    this.statement(sql.dropParts).run(seq);
    this.statement(sql.dropPack).run(seq);
    this.statement(sql.dropEvents).run(seq);
    this.statement(sql.bodiesErased).run(at, seq);
  }

  /** Vectors that were learned from its answers are parts of them. */
  private forgetVectors({ id, seq, project }: rows.RequestRow): void {
    const head = this.parts(id as string, ["head"]).find(({ seq: number }) => number === 0);
    const text = head && Buffer.from(head.bytes).toString();
    const hashes: string[] = text?.includes('"vectors"') ? (JSON.parse(text).vectors?.hashes ?? []) : [];
    if (hashes.length === 0) return;
    const lanes = this.statement(sql.lanesOf).pluck().all(seq) as string[];
    for (const lane of lanes) {
      for (const hash of hashes) this.statement(sql.forgetVector).run(`${project} ${lane}`, hash);
    }
  }

  private resolved({ ids, at }: Extract<Op, { kind: "resolve" }>): CommitResult {
    for (const id of ids) {
      const place = this.statement(`${sql.place} AND state = 'failed'`).get(id) as Place | undefined;
      if (!place) continue;
      this.facets.leave(place.facet);
      const facet = this.facets.enter(this.facets.resolved(place.facet, at !== undefined));
      this.statement("UPDATE requests SET resolved_at = ?, facet = ? WHERE seq = ?").run(
        at ?? null,
        facet,
        place.seq,
      );
    }
    return applied;
  }

  private keptBulk({ bulk }: Extract<Op, { kind: "bulk" }>): CommitResult {
    const { id, project, idempotencyKey } = bulk;
    const holder = idempotencyKey === undefined ? undefined : this.bulkByKey(project, idempotencyKey);
    if (holder && holder.id !== id) return { status: "conflict", current: undefined };
    this.statement(sql.keepBulk).run(rows.bulkValues(bulk));
    return applied;
  }
}
