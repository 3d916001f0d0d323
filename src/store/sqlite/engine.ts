/** SQLite itself: one connection, everything synchronous. Runs in a worker thread, or in process for `:memory:`. */

import Database from "better-sqlite3";
import type {
  ChangeSet,
  CommitResult,
  EventBatch,
  FlowRow,
  ListQuery,
  Part,
  PartKind,
  ReadyGroup,
  RecentCall,
  Repeats,
  Vector,
} from "../../core/ports.ts";
import {
  type AttemptRecord,
  attemptUnderWay,
  type Owner,
  type Priority,
  type RequestRecord,
  reasonsInVain,
} from "../../core/request.ts";
import { keep } from "./keep.ts";
import { assertOurs, migrate } from "./migrations.ts";
import { type Op, opOf } from "./op.ts";
import * as rows from "./rows.ts";

/** The WAL-reset bug of 3.7.0–3.51.2 can corrupt a file (research: sqlite.org/wal.html, fixed in 3.51.3). */
const oldestVersion = "3.51.3";

/**
 * Vectors are many, and asked for again at little cost: one that nobody has made anew for this long only takes up
 * the disk, whatever age its readers would put up with. Who writes new ones sweeps out as many that are older, and
 * these many more: so the old ones become fewer with every write, and none of the writes is slow.
 */
const vectorLifeMs = 30 * 24 * 60 * 60 * 1000;
const vectorsSweptBeside = 16;

/** The log is copied into the database when it holds this many pages. */
const longLogPages = 1000;

const marks = (count: number): string => Array(count).fill("?").join(", ");
const isReady = "state IN ('queued', 'retrying')";

/** What reads offer, by name: the reader thread is asked by these names. */
export type Reads = Pick<
  Engine,
  | "get"
  | "byKey"
  | "byResponse"
  | "parts"
  | "events"
  | "attempts"
  | "list"
  | "groups"
  | "heads"
  | "expiring"
  | "toldToWait"
  | "interrupted"
  | "flow"
  | "calledSince"
  | "newest"
  | "vectors"
>;

const applied: CommitResult = { status: "applied" };

const acceptColumns = [...rows.fixedColumns, ...rows.roundColumns, ...rows.changingColumns];
const isHash = (column: string): boolean => ["fingerprint", "call_hash", "body_hash"].includes(column);
/**
 * Forks only grow: a change that was worked out while the stream had fewer takes none away. Of two lists of which
 * one begins with the other, the longer one comes first as JSON.
 */
const longerForks = "nullif(min(ifnull(?, '[]'), ifnull(forks, '[]')), '[]')";
/** What a caller was given instead is no part of the attempts: a change that does not know of it leaves it. */
const keptDegraded = "coalesce(?, degraded)";
const settings = (columns: string[], kept: Record<string, string>): string =>
  columns.map((column) => `${column} = ${kept[column] ?? "?"}`).join(", ");
const fence = "id = ? AND state = ? AND attempt = ? AND round = ? AND owner_node IS ? AND owner_epoch IS ?";

/** Statements of the writer, and those for events. Constants, because they are found by their text. */
const sql = {
  insertRequest: `INSERT INTO requests (${acceptColumns.join(", ")})
    VALUES (${acceptColumns.map((column) => (isHash(column) ? "unhex(?)" : "?")).join(", ")})`,
  insertKey: "INSERT INTO idempotency_keys (project, endpoint, key, request_seq) VALUES (?, ?, ?, ?)",
  insertHeld: "INSERT INTO held (request_seq, call_hash) VALUES (?, unhex(?))",
  insertAttempt: `INSERT INTO attempts (request_seq, ${rows.attemptColumns.join(", ")})
    VALUES (${marks(rows.attemptColumns.length + 1)})`,
  insertPart: "INSERT INTO parts (request_seq, kind, seq, bytes) VALUES (?, ?, ?, ?)",
  update: `UPDATE requests
    SET ${settings(rows.changingColumns, { forks: longerForks, degraded: keptDegraded })} WHERE ${fence}`,
  updateRound: `UPDATE requests
    SET ${settings([...rows.changingColumns, ...rows.roundColumns], { forks: longerForks })} WHERE ${fence}`,
  fenced: `SELECT seq, forks FROM requests WHERE ${fence}`,
  updateForks: "UPDATE requests SET forks = ? WHERE seq = ?",
  insertEvents: "INSERT INTO events (request_seq, seq, bytes) VALUES (?, ?, ?)",
  eventsFrom: `SELECT seq AS after, bytes FROM events WHERE request_seq = ? AND seq <= ?
    ORDER BY seq DESC LIMIT 1`,
  nextEvents: "SELECT seq AS after, bytes FROM events WHERE request_seq = ? AND seq > ? ORDER BY seq LIMIT 1",
  dropEvents: "DELETE FROM events WHERE request_seq = ?",
  dropAnswer: `DELETE FROM parts
    WHERE request_seq = ? AND (kind IN ('answer_head', 'answer') OR (kind = 'head' AND seq > 0))`,
  insertVector: `INSERT INTO vectors (project, hash, created_at, bytes) VALUES (?, unhex(?), ?, ?)
    ON CONFLICT (project, hash) DO UPDATE SET created_at = excluded.created_at, bytes = excluded.bytes
    WHERE excluded.created_at > vectors.created_at`,
  forgetSomeVectors: `DELETE FROM vectors WHERE rowid IN
    (SELECT rowid FROM vectors WHERE created_at <= ? ORDER BY created_at LIMIT ?)`,
  degrade: "UPDATE requests SET degraded = ? WHERE id = ?",
  learn: `INSERT INTO flow (name, value) VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value`,
  pruneThrottled: `DELETE FROM attempts WHERE request_seq = ?1 AND verdict = 'throttled' AND number <=
    (SELECT number FROM attempts WHERE request_seq = ?1 AND verdict = 'throttled'
      ORDER BY number DESC LIMIT 1 OFFSET ?2)`,
  orphan: `SELECT requests.* FROM held JOIN requests ON seq = request_seq
    WHERE held.call_hash = unhex(?) AND orphaned_at > ? AND content_sent <= ?
      AND (state = 'completed' OR (state IN ('queued', 'processing', 'retrying') AND deadline_at > ?))
    ORDER BY orphaned_at, request_seq LIMIT 1`,
  failedCall: `SELECT * FROM requests WHERE call_hash = unhex(?) AND state = 'failed' AND ended_at > ?
    AND end_reason IN (${marks(reasonsInVain.length)})
    AND NOT EXISTS (SELECT 1 FROM held WHERE request_seq = seq AND orphaned_at IS NOT NULL)
    ORDER BY ended_at DESC LIMIT 1`,
  orphaned: `UPDATE held SET orphaned_at = ?, content_sent = max(content_sent, ?)
    WHERE request_seq = (SELECT seq FROM requests WHERE id = ?) AND orphaned_at IS NULL`,
  allOrphaned: `UPDATE held SET orphaned_at = ?, content_sent =
      max(content_sent, (SELECT state = 'completed' FROM requests WHERE seq = request_seq),
        EXISTS (SELECT 1 FROM events WHERE events.request_seq = held.request_seq))
    WHERE orphaned_at IS NULL`,
  forgetSomeOrphans: `DELETE FROM held WHERE request_seq IN
    (SELECT request_seq FROM held WHERE orphaned_at <= ? ORDER BY orphaned_at LIMIT 16)`,
  shiftDeadlines: `UPDATE requests SET deadline_at = deadline_at + ?
    WHERE state IN ('queued', 'retrying', 'processing')`,
  shiftDue: `UPDATE requests SET due_at = due_at + ?
    WHERE state = 'retrying' OR (state = 'queued' AND due_at <= ?)`,
  shiftOrphans: "UPDATE held SET orphaned_at = orphaned_at + ? WHERE orphaned_at IS NOT NULL",
  forgetHeld: "DELETE FROM held WHERE request_seq = (SELECT seq FROM requests WHERE id = ?)",
};

export class Engine {
  private readonly db: Database.Database;
  private readonly statements = new Map<string, Database.Statement>();
  /** Rows of requests that were accepted by this connection and are being processed. */
  private readonly liveSeqs = new Map<string, number>();

  /** After a failed sync the next one may succeed without having written anything: nothing is written any more. */
  private doubt: Error | undefined;

  /** @throws Error when the file cannot be opened, is not a database, or comes from a newer version. */
  constructor(path: string, options: { readonly: boolean; synchronous?: "FULL" | "NORMAL" }) {
    this.db = keep(new Database(path, { readonly: options.readonly, timeout: 5000 }));
    try {
      assertOurs(this.db);
      this.prepareConnection(options.readonly, options.synchronous ?? "FULL");
      if (!options.readonly) migrate(this.db);
    } catch (error) {
      this.db.close();
      throw error;
    }
  }

  private prepareConnection(readonly: boolean, synchronous: string): void {
    const version = keep(this.db.prepare("SELECT sqlite_version()")).pluck().get() as string;
    if (compareVersions(version, oldestVersion) < 0) {
      throw new Error(`SQLite ${version} is too old: ${oldestVersion} or newer is needed.`);
    }
    if (!readonly) {
      // Both take effect only before the first table is made.
      this.db.exec("PRAGMA page_size = 8192");
      this.db.exec("PRAGMA auto_vacuum = INCREMENTAL");
      const mode = keep(this.db.prepare("PRAGMA journal_mode = WAL")).pluck().get();
      if (mode !== "wal" && !this.db.memory) {
        throw new Error(
          "The file system of the database cannot share memory, which SQLite's WAL mode needs.",
        );
      }
      this.db.exec("PRAGMA wal_autocheckpoint = 0");
      this.db.exec(`PRAGMA journal_size_limit = ${64 * 1024 * 1024}`);
    }
    // better-sqlite3 is compiled with NORMAL for WAL, which loses acknowledged commits on a power cut.
    this.db.exec(`PRAGMA synchronous = ${synchronous}`);
    this.db.exec("PRAGMA fullfsync = 1");
    this.db.exec("PRAGMA checkpoint_fullfsync = 1");
    this.db.exec("PRAGMA foreign_keys = ON");
    this.db.exec("PRAGMA trusted_schema = OFF");
    this.db.exec("PRAGMA temp_store = MEMORY");
    // The system has the file in its own cache: this one is for the pages that every change touches.
    this.db.exec(`PRAGMA cache_size = ${readonly ? -4096 : -16384}`);
  }

  /** Counts a start of this node: whatever an earlier one left in `processing` is nobody's. */
  nextEpoch(node: string, now: number): number {
    const sql = `INSERT INTO nodes (node, epoch, started_at) VALUES (?, 1, ?)
      ON CONFLICT (node) DO UPDATE SET epoch = epoch + 1, started_at = excluded.started_at RETURNING epoch`;
    // By itself the statement would commit where it is reset, and nobody asks whether that went well.
    return this.inTransaction(() => this.statement(sql).pluck().get(node, now) as number);
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
    try {
      if (this.doubt) throw this.doubt;
      this.checkpoint();
      return this.inTransaction(() => ops.map((op) => this.apply(op)));
    } catch (error) {
      if (diskErrorKind(error) === "failed") this.doubt = error as Error;
      return ops.map((op) => {
        if (this.doubt) return this.doubt;
        try {
          return this.inTransaction(() => this.apply(op));
        } catch (own) {
          if (diskErrorKind(own) === "failed") this.doubt = own as Error;
          return own as Error;
        }
      });
    }
  }

  /**
   * Copies a log that has grown long into the database. SQLite would do so by itself after a commit, and keep it
   * to itself when the disk fails. A full disk is left to the next write to tell.
   */
  private checkpoint(): void {
    const { log } = this.statement("PRAGMA wal_checkpoint(NOOP)").get() as { log: number };
    if (log < longLogPages) return;
    try {
      this.statement("PRAGMA wal_checkpoint(PASSIVE)").get();
    } catch (error) {
      if (diskErrorKind(error) !== "full") throw error;
    }
  }

  private inTransaction<T>(work: () => T, begin = "BEGIN IMMEDIATE"): T {
    this.statement(begin).run();
    try {
      const result = work();
      this.statement("COMMIT").run();
      return result;
    } catch (error) {
      // A full disk rolls back by itself.
      if (this.db.inTransaction) this.statement("ROLLBACK").run();
      this.liveSeqs.clear();
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
        return this.repeated(op.callHash, op.repeats) ?? { status: "conflict", current: undefined };
      case "orphaned":
        return this.orphaned(op);
      case "all_orphaned":
        return this.allOrphaned(op);
      case "clock_set":
        return this.clockSet(op);
      case "answered":
        return this.answered(op);
      case "degraded":
        return this.degraded(op);
      case "flow":
        return this.learned(op);
    }
  }

  private accept({ id, row, key, callHash, repeats, isLive, parts }: Extract<Op, { kind: "accept" }>) {
    if (key) {
      const current = this.byKey(key.project, key.endpoint, key.key);
      if (current) return { status: "conflict" as const, current };
    }
    const known = callHash !== undefined && repeats && this.repeated(callHash, repeats);
    if (known) return known;
    const seq = this.statement(sql.insertRequest).run(row).lastInsertRowid as number;
    if (key) this.statement(sql.insertKey).run(key.project, key.endpoint, key.key, seq);
    if (callHash !== undefined) this.statement(sql.insertHeld).run(seq, callHash);
    if (isLive) this.liveSeqs.set(id, seq);
    this.insertParts(seq, parts);
    return applied;
  }

  /** What an equal call left behind. An orphan is given to this caller in the same transaction, so to one only. */
  private repeated(callHash: string, repeats: Repeats): CommitResult | undefined {
    const { now, orphanedAfter, isRetry, failedAfter } = repeats;
    const orphan = this.statement(sql.orphan).get(callHash, orphanedAfter, isRetry ? 1 : 0, now);
    if (orphan) {
      const row = orphan as rows.RequestRow;
      this.statement("UPDATE held SET orphaned_at = NULL WHERE request_seq = ?").run(row.seq);
      return { status: "adopted", current: rows.toRecord(row) };
    }
    const failed = this.one(sql.failedCall, callHash, failedAfter, ...reasonsInVain);
    return failed && { status: "echoed", current: failed };
  }

  private orphaned(mark: Extract<Op, { kind: "orphaned" }>): CommitResult {
    this.statement(sql.orphaned).run(mark.at, mark.contentSent ? 1 : 0, mark.id);
    // Every new one sweeps out a few old ones: there are never many, and nobody has to think of it.
    this.statement(sql.forgetSomeOrphans).run(mark.forgetBefore);
    return applied;
  }

  private allOrphaned({ at, forgetBefore }: Extract<Op, { kind: "all_orphaned" }>): CommitResult {
    this.statement("DELETE FROM held WHERE orphaned_at <= ?").run(forgetBefore);
    this.statement(sql.allOrphaned).run(at);
    return applied;
  }

  private answered({ ids }: Extract<Op, { kind: "answered" }>): CommitResult {
    const forget = this.statement(sql.forgetHeld);
    for (const id of ids) forget.run(id);
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
    this.statement(sql.shiftOrphans).run(byMs);
    return applied;
  }

  private change(op: Extract<Op, { kind: "change" }>): CommitResult {
    const { id, row, round, fence, isLive, attempt, keepThrottled, dropAnswer, parts, events, vectors } = op;
    // The fence is a compare-and-set: whoever lost the request changes nothing.
    const values = round ? [...row, ...round, ...fence] : [...row, ...fence];
    const { changes } = this.statement(round ? sql.updateRound : sql.update).run(values);
    if (changes === 0) return { status: "conflict", current: this.get(id) };
    const seq = this.liveSeqs.get(id) ?? this.seqOf(id)!;
    if (!isLive) this.liveSeqs.delete(id);
    if (attempt) this.statement(sql.insertAttempt).run([seq, ...attempt]);
    if (keepThrottled !== undefined) this.pruneThrottled(seq, keepThrottled);
    if (dropAnswer) {
      this.statement(sql.dropAnswer).run(seq);
      this.statement(sql.dropEvents).run(seq);
    }
    this.insertParts(seq, parts);
    if (events) this.insertEvents(seq, events);
    if (vectors?.length) this.insertVectors(vectors);
    return applied;
  }

  /** The row of the request is left as it is, but where the stream has begun anew. */
  private moreEvents({ id, fence, forks, events }: Extract<Op, { kind: "events" }>): CommitResult {
    const row = this.statement(sql.fenced).get(fence) as { seq: number; forks: rows.Value } | undefined;
    if (!row) return { status: "conflict", current: this.get(id) };
    if (row.forks !== forks) this.statement(sql.updateForks).run(forks, row.seq);
    this.insertEvents(row.seq, events);
    return applied;
  }

  private insertEvents(seq: number, [after, bytes, anew]: [number, Uint8Array, boolean]): void {
    if (anew) this.statement(sql.dropEvents).run(seq);
    // A batch without events would stand where the next one has to.
    if (bytes.byteLength > 0) this.statement(sql.insertEvents).run(seq, after, bytes);
  }

  private insertVectors(vectors: NonNullable<Extract<Op, { kind: "change" }>["vectors"]>): void {
    let newestAt = 0;
    for (const vector of vectors) {
      this.statement(sql.insertVector).run(vector);
      newestAt = Math.max(newestAt, vector[2]);
    }
    this.statement(sql.forgetSomeVectors).run(newestAt - vectorLifeMs, vectors.length + vectorsSweptBeside);
  }

  private seqOf(id: string): number | undefined {
    return this.statement("SELECT seq FROM requests WHERE id = ?").pluck().get(id) as number | undefined;
  }

  private pruneThrottled(seq: number, kept: number): void {
    this.statement(sql.pruneThrottled).run({ 1: seq, 2: kept });
  }

  private insertParts(seq: number, parts: [PartKind, number, Uint8Array][]): void {
    for (const [kind, number, bytes] of parts) this.statement(sql.insertPart).run(seq, kind, number, bytes);
  }

  get(id: string): RequestRecord | undefined {
    return this.one("SELECT * FROM requests WHERE id = ?", id);
  }

  byKey(project: string, endpoint: string, key: string): RequestRecord | undefined {
    const sql = `SELECT requests.* FROM idempotency_keys JOIN requests ON requests.seq = request_seq
      WHERE idempotency_keys.project = ? AND idempotency_keys.endpoint = ? AND key = ?`;
    return this.one(sql, project, endpoint, key);
  }

  byResponse(project: string, responseId: string): RequestRecord | undefined {
    const sql = "SELECT * FROM requests WHERE project = ? AND response_id = ? ORDER BY seq DESC LIMIT 1";
    return this.one(sql, project, responseId);
  }

  parts(id: string, kinds: PartKind[]): Part[] {
    const sql = `SELECT kind, parts.seq AS seq, bytes FROM parts JOIN requests ON requests.seq = request_seq
      WHERE id = ? AND kind IN (${marks(kinds.length)}) ORDER BY kind, parts.seq`;
    return this.statement(sql).all(id, ...kinds) as Part[];
  }

  events(id: string, after: number, maxBytes: number): EventBatch[] {
    // All of one instant: a stream that begins anew meanwhile must not be mixed with what it was.
    return this.inTransaction(() => {
      const seq = this.seqOf(id);
      return seq === undefined ? [] : this.eventsFrom(seq, after, maxBytes);
    }, "BEGIN");
  }

  private eventsFrom(seq: number, after: number, maxBytes: number): EventBatch[] {
    const batches: EventBatch[] = [];
    let size = 0;
    let batch = this.statement(sql.eventsFrom).get(seq, after) as EventBatch | undefined;
    const next = this.statement(sql.nextEvents);
    while (batch) {
      batches.push(batch);
      size += batch.bytes.byteLength;
      batch = size < maxBytes ? (next.get(seq, batch.after) as EventBatch | undefined) : undefined;
    }
    return batches;
  }

  /** An attempt has a row of its own when it has ended; the one under way stands in its request's row. */
  attempts(id: string): AttemptRecord[] {
    const sql = `SELECT attempts.* FROM attempts JOIN requests ON requests.seq = request_seq
      WHERE id = ? ORDER BY number`;
    // All of one instant: an attempt that ends meanwhile must not be in neither place.
    return this.inTransaction(() => {
      const ended = (this.statement(sql).all(id) as rows.RequestRow[]).map((row) => rows.toAttempt(id, row));
      const record = this.get(id);
      return record?.state === "processing" ? [...ended, attemptUnderWay(record)] : ended;
    }, "BEGIN");
  }

  list(query: ListQuery): RequestRecord[] {
    const { where, values } = conditions(query);
    const sql = `SELECT * FROM requests WHERE ${where.join(" AND ")} ORDER BY seq ${query.order} LIMIT ?`;
    return this.many(sql, ...values, query.limit);
  }

  groups(): ReadyGroup[] {
    const sql = `SELECT lane, priority, project, count(*) AS count FROM requests
      WHERE ${isReady} GROUP BY lane, priority, project`;
    const found = this.statement(sql).all() as (Omit<ReadyGroup, "priority"> & { priority: number })[];
    return found.map((group) => ({ ...group, priority: rows.priorities[group.priority]! }));
  }

  heads({ lane, priority, project }: { lane: string; priority: Priority; project: string }, limit: number) {
    const sql = `SELECT * FROM requests WHERE ${isReady} AND lane = ? AND priority = ? AND project = ?
      ORDER BY due_at, id LIMIT ?`;
    return this.many(sql, lane, rows.priorityNumber(priority), project, limit);
  }

  expiring({ lane, limit }: { lane?: string; limit: number }): RequestRecord[] {
    const inLane = lane === undefined ? "" : "AND lane = ?";
    // Of one lane, the planner would rather read and sort the whole lane.
    const index = lane === undefined ? "requests_deadline" : "requests_lane_deadline";
    const sql = `SELECT * FROM requests INDEXED BY ${index}
      WHERE ${isReady} ${inLane} ORDER BY deadline_at LIMIT ?`;
    return lane === undefined ? this.many(sql, limit) : this.many(sql, lane, limit);
  }

  toldToWait(now: number): { lane: string; until: number }[] {
    const sql = `SELECT lane, max(due_at) AS until FROM requests WHERE ${isReady} AND due_at > ? AND EXISTS (SELECT 1 FROM attempts
        WHERE request_seq = seq AND number = attempt AND reason = 'retry_after') GROUP BY lane`;
    return this.statement(sql).all(now) as { lane: string; until: number }[];
  }

  interrupted(owner: Owner, limit: number): RequestRecord[] {
    const sql = `SELECT * FROM requests
      WHERE state = 'processing' AND owner_node = ? AND owner_epoch < ? LIMIT ?`;
    return this.many(sql, owner.node, owner.epoch, limit);
  }

  flow(): FlowRow[] {
    return this.statement("SELECT name, value FROM flow ORDER BY name").all() as FlowRow[];
  }

  calledSince(at: number): RecentCall[] {
    const sql = `SELECT attempts.upstream, attempts.model, attempts.started_at, attempts.usage, verdict,
        terms ->> '$.size' AS size
      FROM attempts JOIN requests ON seq = request_seq
      WHERE attempts.started_at >= ? AND attempts.ended_at IS NOT NULL
      ORDER BY attempts.started_at, request_seq, number`;
    return (this.statement(sql).all(at) as rows.RequestRow[]).map(rows.toRecentCall);
  }

  newest(project: string, bodyHash: string, endedAfter: number): RequestRecord | undefined {
    const sql = `SELECT * FROM requests
      WHERE project = ? AND body_hash = unhex(?) AND ended_at > ? AND state = 'completed' AND cached_from IS NULL
      ORDER BY ended_at DESC, seq DESC LIMIT 1`;
    return this.one(sql, project, bodyHash, endedAfter);
  }

  vectors(project: string, hashes: string[], createdAfter: number): Vector[] {
    const sql = `SELECT created_at AS createdAt, bytes FROM vectors
      WHERE project = ? AND hash = unhex(?) AND created_at > ?`;
    // In a transaction only because that is faster than to lock the file for each.
    return this.inTransaction(() => {
      const found: Vector[] = [];
      for (const hash of new Set(hashes)) {
        const vector = this.statement(sql).get(project, hash, createdAfter);
        if (vector) found.push({ project, hash, ...(vector as Pick<Vector, "createdAt" | "bytes">) });
      }
      return found;
    }, "BEGIN");
  }

  close(): void {
    this.db.close();
  }

  private one(sql: string, ...values: rows.Value[]): RequestRecord | undefined {
    const row = this.statement(sql).get(...values) as rows.RequestRow | undefined;
    return row && rows.toRecord(row);
  }

  private many(sql: string, ...values: rows.Value[]): RequestRecord[] {
    return (this.statement(sql).all(...values) as rows.RequestRow[]).map(rows.toRecord);
  }

  private statement(sql: string): Database.Statement {
    let statement = this.statements.get(sql);
    if (!statement) {
      statement = keep(this.db.prepare(sql));
      this.statements.set(sql, statement);
    }
    return statement;
  }
}

function conditions(query: ListQuery): { where: string[]; values: rows.Value[] } {
  const where = ["project = ?"];
  const values: rows.Value[] = [query.project];
  const and = (condition: string, ...more: (rows.Value | undefined)[]) => {
    if (more.includes(undefined)) return;
    where.push(condition);
    values.push(...(more as rows.Value[]));
  };
  if (query.states) and(`state IN (${marks(query.states.length)})`, ...query.states);
  and("model = ?", query.model);
  and("upstream = ?", query.upstream);
  and("last_error_code = ?", query.errorCode);
  and("endpoint = ?", query.endpoint);
  and("idempotency_key = ?", query.idempotencyKey);
  and("EXISTS (SELECT 1 FROM json_each(tags) WHERE value = ?)", query.tag);
  and("created_at > ?", query.createdAfter);
  and("created_at < ?", query.createdBefore);
  const beyond = query.order === "asc" ? ">" : "<";
  and(`seq ${beyond} (SELECT seq FROM requests WHERE id = ?)`, query.after);
  return { where, values };
}

/** `full`: no space, try later. `failed`: the disk or the file is in doubt. Undefined: a fault of a statement. */
export function diskErrorKind(error: unknown): "full" | "failed" | undefined {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  // The log's shared memory could not grow: nothing that is on disk is in doubt.
  if (code === "SQLITE_FULL" || code === "SQLITE_IOERR_SHMSIZE") return "full";
  return /^SQLITE_(IOERR|CORRUPT|NOTADB|READONLY|CANTOPEN|BUSY|LOCKED|NOMEM|PROTOCOL)/.test(code)
    ? "failed"
    : undefined;
}

function compareVersions(a: string, b: string): number {
  const [left, right] = [a, b].map((version) => version.split(".").map(Number));
  for (let i = 0; i < 3; i++) {
    const difference = (left?.[i] ?? 0) - (right?.[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
}
