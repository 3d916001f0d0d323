/** SQLite's write-ahead log: when it is copied into the database, and when it is cut off. */

import { busyMs, diskErrorKind, type FindStatement } from "./connection.ts";

/** It is copied when it holds this many pages. */
const longPages = 1000;

export class WriteAheadLog {
  private readonly statement: FindStatement;
  /** What was erased is still in it. */
  private hasTraces = false;

  constructor(statement: FindStatement) {
    this.statement = statement;
  }

  /** SQLite would do so by itself after a commit, and keep it to itself when the disk fails. @throws where it does */
  copyIfLong(): void {
    const { log } = this.statement("PRAGMA wal_checkpoint(NOOP)").get() as { log: number };
    if (log >= longPages) this.copy();
  }

  /**
   * Something was erased, of which nothing is to stay. Where somebody is just reading the log, or the disk is full, that
   * waits for the next copy. @throws where the disk fails
   */
  clear(): void {
    this.hasTraces = true;
    this.copy();
  }

  /** A full disk is left to the next write to tell. */
  private copy(): void {
    try {
      if (this.hasTraces) this.empty();
      else this.statement("PRAGMA wal_checkpoint(PASSIVE)").get();
    } catch (error) {
      if (diskErrorKind(error) !== "full") throw error;
    }
  }

  /** Copies it and cuts it off. Nobody waits for whoever is just reading it: then it is left to the next time. */
  private empty(): void {
    this.statement("PRAGMA busy_timeout = 0").get();
    try {
      const { busy } = this.statement("PRAGMA wal_checkpoint(TRUNCATE)").get() as { busy: number };
      this.hasTraces = busy !== 0;
    } finally {
      this.statement(`PRAGMA busy_timeout = ${busyMs}`).get();
    }
  }
}
