/** One connection to a file: how it is set up, its statements, and its transactions. */

import Database from "better-sqlite3";
import type { RequestRecord } from "../../core/request.ts";
import { keep } from "./keep.ts";
import { assertOurs, migrate } from "./migrations.ts";
import * as rows from "./rows.ts";

/** The WAL-reset bug of 3.7.0–3.51.2 can corrupt a file (research: sqlite.org/wal.html, fixed in 3.51.3). */
const oldestVersion = "3.51.3";

/** So long a statement waits for a lock that another connection has. */
export const busyMs = 5000;

/** Finds a statement by its text, or prepares it. */
export type FindStatement = (sql: string) => Database.Statement;

export class Connection {
  protected readonly db: Database.Database;
  private readonly statements = new Map<string, Database.Statement>();

  /** @throws Error when the file cannot be opened, is not a database, or comes from a newer version. */
  constructor(path: string, options: { readonly: boolean; synchronous?: "FULL" | "NORMAL" }) {
    this.db = keep(new Database(path, { readonly: options.readonly, timeout: busyMs }));
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
      // What is deleted is overwritten where that needs no page to be written that would not be.
      this.db.exec("PRAGMA secure_delete = FAST");
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
    this.db.exec("PRAGMA cache_size = -4096");
  }

  close(): void {
    this.db.close();
  }

  protected readonly statement: FindStatement = (sql) => {
    let statement = this.statements.get(sql);
    if (!statement) {
      statement = keep(this.db.prepare(sql));
      this.statements.set(sql, statement);
    }
    return statement;
  };

  protected inTransaction<T>(work: () => T, begin = "BEGIN IMMEDIATE"): T {
    this.statement(begin).run();
    try {
      const result = work();
      this.statement("COMMIT").run();
      return result;
    } catch (error) {
      // A full disk rolls back by itself.
      if (this.db.inTransaction) this.statement("ROLLBACK").run();
      throw error;
    }
  }

  /** Reads that are all of one instant. */
  protected atOnce<T>(read: () => T): T {
    return this.db.inTransaction ? read() : this.inTransaction(read, "BEGIN");
  }

  protected one(sql: string, ...values: rows.Value[]): RequestRecord | undefined {
    const row = this.statement(sql).get(...values) as rows.RequestRow | undefined;
    return row && rows.toRecord(row);
  }

  protected all(sql: string, ...values: rows.Value[]): RequestRecord[] {
    return (this.statement(sql).all(...values) as rows.RequestRow[]).map(rows.toRecord);
  }
}

function compareVersions(a: string, b: string): number {
  const [left, right] = [a, b].map((version) => version.split(".").map(Number));
  for (let i = 0; i < 3; i++) {
    const difference = (left?.[i] ?? 0) - (right?.[i] ?? 0);
    if (difference !== 0) return difference;
  }
  return 0;
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
