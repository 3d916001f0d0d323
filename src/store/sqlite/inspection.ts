/** Looks at the file of a database from outside, whether a server owns it or not: nothing of it is changed. */

import { closeSync, existsSync, fsyncSync, openSync, renameSync, rmSync, statSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import Database from "better-sqlite3";
import { Engine } from "./engine.ts";
import { keep } from "./keep.ts";
import { assertOurs, schemaVersion } from "./migrations.ts";

/** What a file was found to be. */
export interface Inspection {
  schema: number;
  /** The one of this version. */
  knownSchema: number;
  /** What SQLite finds wrong with it; empty where it is sound. */
  faults: string[];
  bytes: number;
  /** Of the log that is not yet copied into the file. */
  logBytes: number;
  /** The rest is known of a file with this version's schema only. */
  requests?: number;
  /** Epoch ms of the newest acceptance. */
  newestAt?: number;
  /** How many ended requests the text index has not seen yet. */
  unfiled?: number;
}

/** How many faults are told. */
const faultsMax = 5;

/**
 * @param full also compares every index with its table, which reads the whole file
 * @throws Error where the file is missing, is no database, or one of another program
 */
export function inspect(path: string, { full }: { full: boolean }): Inspection {
  const db = openFile(path);
  try {
    assertOurs(db);
    const one = (sql: string) => keep(db.prepare(sql)).pluck().get() as number | null;
    const check = `PRAGMA ${full ? "integrity_check" : "quick_check"}(${faultsMax})`;
    const found = keep(db.prepare(check)).pluck().all() as string[];
    const schema = one("PRAGMA user_version") ?? 0;
    const about = {
      schema,
      knownSchema: schemaVersion,
      faults: found.filter((line) => line !== "ok"),
      bytes: statSync(path).size,
      logBytes: statSync(`${path}-wal`, { throwIfNoEntry: false })?.size ?? 0,
    };
    if (schema !== schemaVersion || about.faults.length > 0) return about;
    return {
      ...about,
      requests: one("SELECT count(*) FROM requests") ?? 0,
      newestAt: one("SELECT created_at FROM requests ORDER BY seq DESC LIMIT 1") ?? undefined,
      unfiled: one("SELECT count(*) FROM unfiled") ?? 0,
    };
  } finally {
    db.close();
  }
}

/** An engine that only reads. @throws Error where the file is missing, is not ours, or has another schema. */
export function openToRead(path: string): Engine {
  const db = openFile(path);
  try {
    assertOurs(db);
    const schema = keep(db.prepare("PRAGMA user_version")).pluck().get() as number;
    if (schema > schemaVersion) throw new Error(`${path} was written by a newer Outlast: use that one.`);
    if (schema < schemaVersion) {
      throw new Error(
        `${path} was written by an older Outlast (schema ${schema}, this one reads ${schemaVersion}): start \`outlast serve\` on it once, which upgrades it.`,
      );
    }
  } finally {
    db.close();
  }
  return new Engine(path, { readonly: true });
}

/** Pages that are copied in one step; between two steps there is time for other things. */
const pagesPerStep = 512;

/**
 * Writes what the database holds at this instant to `target`, which is a whole database in one file: it has been
 * checked, and is on disk, before it gets its name.
 * @param options.onProgress told the share that is done, from 0 to 1; what it throws ends the copying
 * @throws Error where either file cannot be used, or the copy is not sound
 */
export async function copyDatabase(
  path: string,
  target: string,
  options: { overwrite: boolean; onProgress: (share: number) => void; onCheck: () => void },
): Promise<{ requests: number; bytes: number }> {
  const db = openFile(path);
  assertFree(path, target, options.overwrite);
  const draft = join(dirname(target), `.${basename(target)}.${process.pid}.part`);
  rmSync(draft, { force: true });
  try {
    assertOurs(db);
    // SQLite begins a copy anew whenever somebody else writes, and would never end under load. What one transaction
    // reads does not change.
    db.exec("BEGIN");
    keep(db.prepare("SELECT count(*) FROM sqlite_schema")).get();
    await db.backup(draft, {
      progress({ totalPages, remainingPages }) {
        options.onProgress(totalPages === 0 ? 0 : 1 - remainingPages / totalPages);
        return pagesPerStep;
      },
    });
    db.exec("COMMIT");
    options.onProgress(1);
    options.onCheck();
    const requests = checkCopy(draft);
    sync(draft);
    // Somebody may have taken the name meanwhile.
    assertFree(path, target, options.overwrite);
    renameSync(draft, target);
    sync(dirname(target));
    return { requests, bytes: statSync(target).size };
  } finally {
    db.close();
    rmSync(draft, { force: true });
  }
}

function assertFree(path: string, target: string, overwrite: boolean): void {
  const there = statSync(target, { throwIfNoEntry: false });
  const { ino, dev } = statSync(path);
  if (there?.ino === ino && there.dev === dev) throw new Error(`${target} is the database itself.`);
  if (there?.isDirectory()) throw new Error(`${target} is a directory: name a file in it.`);
  if (there && !overwrite) throw new Error(`${target} exists already: name another file, or use --force.`);
  // SQLite would take the log of another database for that of the copy.
  if (!existsSync(`${target}-wal`)) return;
  throw new Error(`${target}-wal exists: ${target} is in use, or was not closed. Name another file.`);
}

/** @returns how many requests it holds */
function checkCopy(path: string): number {
  const db = keep(new Database(path));
  try {
    // So that it is one file, which can be read where nothing can be written; a server turns it back.
    db.exec("PRAGMA journal_mode = DELETE");
    const [first] = keep(db.prepare("PRAGMA integrity_check(1)")).pluck().all() as string[];
    if (first !== "ok") throw new Error(`The database is damaged, and so would be its copy: ${first}.`);
    return keep(db.prepare("SELECT count(*) FROM requests")).pluck().get() as number;
  } finally {
    db.close();
  }
}

function openFile(path: string): Database.Database {
  if (!existsSync(path)) throw new Error(`There is no database at ${path}.`);
  return keep(new Database(path, { readonly: true, timeout: 5000 }));
}

function sync(path: string): void {
  const handle = openSync(path, "r");
  try {
    fsyncSync(handle);
  } finally {
    closeSync(handle);
  }
}
