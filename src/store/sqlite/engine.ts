/** SQLite itself: one connection, everything synchronous. Runs in a worker thread, or in process for `:memory:`. */

import Database from "better-sqlite3";
import type { ChangeSet, CommitResult, ListQuery, Part, PartKind, ReadyGroup } from "../../core/ports.ts";
import type { AttemptRecord, Expectation, Owner, Priority, RequestRecord } from "../../core/request.ts";
import { keep } from "./keep.ts";
import { assertOurs, migrate } from "./migrations.ts";
import * as rows from "./rows.ts";

/** The WAL-reset bug of 3.7.0–3.51.2 can corrupt a file (research: sqlite.org/wal.html, fixed in 3.51.3). */
const oldestVersion = "3.51.3";

const marks = (count: number): string => Array(count).fill("?").join(", ");
const isReady = "state IN ('queued', 'retrying')";

/** What reads offer, by name: the reader thread is asked by these names. */
export type Reads = Pick<
  Engine,
  | "get"
  | "byKey"
  | "byResponse"
  | "parts"
  | "attempts"
  | "list"
  | "groups"
  | "heads"
  | "expiring"
  | "toldToWait"
  | "interrupted"
>;

export class Engine {
  private readonly db: Database.Database;
  private readonly statements = new Map<string, Database.Statement>();

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
      this.db.exec("PRAGMA journal_mode = WAL");
      this.db.exec("PRAGMA wal_autocheckpoint = 1000");
      this.db.exec(`PRAGMA journal_size_limit = ${64 * 1024 * 1024}`);
    }
    // better-sqlite3 is compiled with NORMAL for WAL, which loses acknowledged commits on a power cut.
    this.db.exec(`PRAGMA synchronous = ${synchronous}`);
    this.db.exec("PRAGMA fullfsync = 1");
    this.db.exec("PRAGMA checkpoint_fullfsync = 1");
    this.db.exec("PRAGMA foreign_keys = ON");
    this.db.exec("PRAGMA trusted_schema = OFF");
    this.db.exec("PRAGMA temp_store = MEMORY");
    this.db.exec("PRAGMA cache_size = -32768");
  }

  /** Counts a start of this node: whatever an earlier one left in `processing` is nobody's. */
  nextEpoch(node: string, now: number): number {
    const sql = `INSERT INTO nodes (node, epoch, started_at) VALUES (?, 1, ?)
      ON CONFLICT (node) DO UPDATE SET epoch = epoch + 1, started_at = excluded.started_at RETURNING epoch`;
    return this.statement(sql).pluck().get(node, now) as number;
  }

  /**
   * Applies changes in one transaction, in order. A change whose expectation fails is a conflict and writes
   * nothing; the others are not affected. Should a statement throw, the changes are applied one by one, so
   * that a fault takes down only its own change; where the disk is at fault, all are refused.
   */
  commitAll(changes: ChangeSet[]): (CommitResult | Error)[] {
    try {
      return this.inTransaction(changes);
    } catch (error) {
      if (isDiskError(error)) return changes.map(() => error as Error);
      return changes.map((change) => {
        try {
          return this.inTransaction([change])[0]!;
        } catch (own) {
          return own as Error;
        }
      });
    }
  }

  private inTransaction(changes: ChangeSet[]): CommitResult[] {
    this.statement("BEGIN IMMEDIATE").run();
    try {
      const results = changes.map((change) => this.apply(change));
      this.statement("COMMIT").run();
      return results;
    } catch (error) {
      // A full disk rolls back by itself.
      if (this.db.inTransaction) this.statement("ROLLBACK").run();
      throw error;
    }
  }

  private apply(change: ChangeSet): CommitResult {
    return change.kind === "accept" ? this.accept(change) : this.change(change);
  }

  private accept({ record, attempt, parts, key }: Extract<ChangeSet, { kind: "accept" }>): CommitResult {
    if (key) {
      const current = this.byKey(key.project, key.endpoint, key.key);
      if (current) return { status: "conflict", current };
    }
    const sql = `INSERT INTO requests (${[...rows.fixedColumns, ...rows.changingColumns].join(", ")})
      VALUES (${marks(rows.fixedColumns.length + rows.changingColumns.length)})`;
    const values = [...rows.fixedValues(record), ...rows.changingValues(record)];
    const seq = this.statement(sql).run(...values).lastInsertRowid as number;
    if (key) {
      this.statement(
        "INSERT INTO idempotency_keys (project, endpoint, key, request_seq) VALUES (?, ?, ?, ?)",
      ).run(key.project, key.endpoint, key.key, seq);
    }
    if (attempt) this.insertAttempt(seq, attempt);
    this.insertParts(seq, parts);
    return { status: "applied" };
  }

  private change({ transition, parts, dropAnswer }: Extract<ChangeSet, { kind: "change" }>): CommitResult {
    const { expect, record, attempt, keepThrottled } = transition;
    const seq = this.compareAndSet(expect, record);
    if (seq === undefined) return { status: "conflict", current: this.get(record.id) };
    if (attempt?.endedAt !== undefined) this.endAttempt(seq, attempt);
    else if (attempt) this.insertAttempt(seq, attempt);
    if (keepThrottled !== undefined) this.pruneThrottled(seq, keepThrottled);
    if (dropAnswer) {
      this.statement("DELETE FROM parts WHERE request_seq = ? AND kind IN ('answer_head', 'answer')").run(
        seq,
      );
    }
    if (parts) this.insertParts(seq, parts);
    return { status: "applied" };
  }

  private compareAndSet(expect: Expectation, record: RequestRecord): number | undefined {
    const sql = `UPDATE requests SET ${rows.changingColumns.map((column) => `${column} = ?`).join(", ")}
      WHERE id = ? AND state = ? AND attempt = ? AND round = ? AND owner_node IS ? AND owner_epoch IS ?
      RETURNING seq`;
    const { state, attempt, round, owner } = expect;
    const fence = [record.id, state, attempt, round, owner?.node ?? null, owner?.epoch ?? null];
    return this.statement(sql)
      .pluck()
      .get(...rows.changingValues(record), ...fence) as number | undefined;
  }

  private insertAttempt(seq: number, attempt: AttemptRecord): void {
    const sql = `INSERT INTO attempts (request_seq, ${rows.attemptColumns.join(", ")})
      VALUES (${marks(rows.attemptColumns.length + 1)})`;
    this.statement(sql).run(seq, ...rows.attemptValues(attempt));
  }

  private endAttempt(seq: number, attempt: AttemptRecord): void {
    const columns = rows.attemptColumns.slice(5);
    const sql = `UPDATE attempts SET ${columns.map((column) => `${column} = ?`).join(", ")}
      WHERE request_seq = ? AND number = ?`;
    this.statement(sql).run(...rows.attemptValues(attempt).slice(5), seq, attempt.number);
  }

  private pruneThrottled(seq: number, kept: number): void {
    const sql = `DELETE FROM attempts WHERE request_seq = ?1 AND verdict = 'throttled' AND number <=
      (SELECT number FROM attempts WHERE request_seq = ?1 AND verdict = 'throttled'
        ORDER BY number DESC LIMIT 1 OFFSET ?2)`;
    this.statement(sql).run({ 1: seq, 2: kept });
  }

  private insertParts(seq: number, parts: Part[]): void {
    const insert = this.statement("INSERT INTO parts (request_seq, kind, seq, bytes) VALUES (?, ?, ?, ?)");
    for (const part of parts) insert.run(seq, part.kind, part.seq, part.bytes);
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

  attempts(id: string): AttemptRecord[] {
    const sql = `SELECT attempts.* FROM attempts JOIN requests ON requests.seq = request_seq
      WHERE id = ? ORDER BY number`;
    return (this.statement(sql).all(id) as rows.RequestRow[]).map((row) => rows.toAttempt(id, row));
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

/** Errors after which nothing of a transaction can be trusted to be on disk. */
export function isDiskError(error: unknown): boolean {
  return diskErrorKind(error) !== undefined;
}

/** `full`: no space, try later. `failed`: the disk or the file is in doubt. Undefined: a fault of a statement. */
export function diskErrorKind(error: unknown): "full" | "failed" | undefined {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  if (code === "SQLITE_FULL") return "full";
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
