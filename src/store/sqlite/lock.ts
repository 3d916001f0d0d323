/**
 * One process owns a database file. The lock is SQLite's own, on a file beside it: the operating system
 * drops it when the process dies, however it dies, so a crash never leaves a stale one.
 */

import Database from "better-sqlite3";
import { keep } from "./keep.ts";

/** Takes the lock of the database at `path`; the returned function gives it back. @throws Error when it is taken. */
export function lockFile(path: string): () => void {
  const lock = keep(new Database(`${path}.lock`, { timeout: 0 }));
  try {
    lock.exec("BEGIN EXCLUSIVE");
  } catch (error) {
    lock.close();
    const busy = error instanceof Error && "code" in error && error.code === "SQLITE_BUSY";
    if (!busy) throw error;
    throw new Error(`The database ${path} is in use by another Outlast process; one process owns a file.`);
  }
  return () => lock.close();
}
