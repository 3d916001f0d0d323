/**
 * The file of the text index: FTS5, and the texts as they were indexed, because nothing else can take an entry out
 * again without a trace. One thread owns it. All of it can be made anew from the database.
 */

import { existsSync, rmSync } from "node:fs";
import { deflateRawSync, inflateRawSync } from "node:zlib";
import Database from "better-sqlite3";
import { keep } from "./keep.ts";
import type { Texts } from "./search-texts.ts";
import { Traces } from "./search-traces.ts";
import { projectWord } from "./search-words.ts";

export interface SearchDoc extends Texts {
  /** Of the request's row: the order of requests. */
  seq: number;
  id: string;
  round: number;
  project: string;
}

/** A request whose texts are not to be known, and the last round of it that this is about. */
export interface Forgotten {
  id: string;
  round: number;
}

/** The number of a start of the database, and whether the index was open in it before. */
interface Start {
  epoch: number;
  isRestart: boolean;
}

/** As in `SearchQuery`; what is looked for as `expressionOf` makes it. */
export interface Lookup {
  expression: string;
  after?: string;
  /** Only these are looked at, in the order in which they are given. */
  among?: string[];
  order: "asc" | "desc";
  limit: number;
}

/** Marks a file as ours: "Outs". */
const applicationId = 0x4f757473;
/** Counts up with anything that makes an older file's entries wrong, the folding of words among it. */
const version = 2;

const tokenizer = "unicode61 remove_diacritics 2 categories 'L* N* Co Mn Mc'";

/**
 * `secure-delete` takes every word of an entry out of the index at once, and the pragma overwrites what is freed: what
 * is forgotten is in none of its bytes. Texts are not kept by FTS5 but packed beside it.
 */
const schema = `
CREATE TABLE docs (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  project TEXT NOT NULL,
  packed BLOB NOT NULL
) STRICT;
-- Forgotten, and perhaps still in the database: not to be indexed again, unless a later round asks something else.
CREATE TABLE forgotten (id TEXT PRIMARY KEY, round INTEGER NOT NULL) STRICT, WITHOUT ROWID;
-- The last start of the database that wrote here, and the last row that was looked at while the index is being made.
CREATE TABLE place (epoch INTEGER NOT NULL, looked_to INTEGER) STRICT;
INSERT INTO place VALUES (0, 0);
CREATE VIRTUAL TABLE texts USING fts5 (project, prompt, answer, content='', columnsize=0,
  tokenize="${tokenizer}");
INSERT INTO texts (texts, rank) VALUES ('secure-delete', 1);
PRAGMA application_id = ${applicationId};
PRAGMA user_version = ${version};
`;

const sql = {
  insertDoc: "INSERT INTO docs (seq, id, project, packed) VALUES (?, ?, ?, ?)",
  forget: `INSERT INTO forgotten (id, round) VALUES (?, ?)
    ON CONFLICT (id) DO UPDATE SET round = max(round, excluded.round)`,
  isForgotten: "SELECT 1 FROM forgotten WHERE id = ? AND round >= ?",
  insertText: "INSERT INTO texts (rowid, project, prompt, answer) VALUES (?, ?, ?, ?)",
  // What a contentless table deletes has to be told as it was inserted.
  deleteText: "INSERT INTO texts (texts, rowid, project, prompt, answer) VALUES ('delete', ?, ?, ?, ?)",
  known: "SELECT seq, project, packed FROM docs WHERE seq = ? OR id = ?",
  newest: `SELECT docs.id FROM texts CROSS JOIN docs ON docs.seq = texts.rowid
    WHERE texts MATCH ? AND texts.rowid < ? ORDER BY texts.rowid DESC LIMIT ?`,
  oldest: `SELECT docs.id FROM texts CROSS JOIN docs ON docs.seq = texts.rowid
    WHERE texts MATCH ? AND texts.rowid > ? ORDER BY texts.rowid LIMIT ?`,
  isFound: `SELECT 1 FROM texts
    WHERE texts MATCH ? AND rowid = (SELECT seq FROM docs WHERE id = ?)`,
  upTo: "SELECT seq, id FROM docs WHERE id <= ? ORDER BY id DESC LIMIT 1",
};

type Known = { seq: number; project: string; packed: Uint8Array };

/** The file that belongs to a database file: `outlast.db` → `outlast.search.db`. */
export const searchPath = (path: string): string => `${path.replace(/\.db$/, "")}.search.db`;

/** Only where no connection is open. */
export function removeSearchFile(path: string): void {
  for (const suffix of ["", "-wal", "-shm", "-journal"])
    rmSync(`${searchPath(path)}${suffix}`, { force: true });
}

export class SearchFile {
  private readonly db: Database.Database;
  private readonly statements = new Map<string, Database.Statement>();
  private traces: Traces | undefined;
  /** Texts that the transaction under way has taken out. */
  private removed: string[] = [];

  private constructor(path: string) {
    this.db = keep(new Database(path));
  }

  /**
   * Opens the index of the database at `path`, or begins a new one where there is none that can be used.
   * @param start the start of the database: each counts one more
   * @returns the file, and why it had to begin anew where there was one
   * @throws where the file cannot be opened now, and nothing says that it is of no use: the disk may be full
   */
  static open(path: string, start: Start): { file: SearchFile; why?: string } {
    const { epoch } = start;
    if (existsSync(searchPath(path))) {
      const file = new SearchFile(searchPath(path));
      try {
        const why = file.unfit(start);
        if (why === undefined) return { file };
        file.close();
        return { file: SearchFile.anew(path, epoch), why };
      } catch (error) {
        file.close();
        if (!isBroken(error) && !isUnlike(error)) throw error;
        return { file: SearchFile.anew(path, epoch), why: "it is damaged" };
      }
    }
    return { file: SearchFile.anew(path, epoch) };
  }

  /** Begins a new file in place of whatever is there. */
  static anew(path: string, epoch: number): SearchFile {
    removeSearchFile(path);
    const file = new SearchFile(searchPath(path));
    try {
      // Has an effect only before the first table is made.
      file.db.exec("PRAGMA page_size = 4096");
      file.prepareConnection();
      file.inTransaction(() => file.db.exec(schema));
      file.statement("UPDATE place SET epoch = ?").run(epoch);
      return file;
    } catch (error) {
      file.close();
      throw error;
    }
  }

  /** Why it is of no use for this start of the database; undefined where it is, and belongs to this start from now on. */
  private unfit({ epoch, isRestart }: Start): string | undefined {
    if (this.number("PRAGMA application_id") !== applicationId) return "it is of another program";
    if (this.number("PRAGMA user_version") !== version) return "it is of another version";
    this.prepareConnection();
    for (const text of Object.values(sql)) this.statement(text);
    const earlier = this.number("SELECT epoch FROM place") ?? epoch;
    if (earlier > epoch || (earlier === epoch && !isRestart)) return "it is of another database";
    this.statement("UPDATE place SET epoch = ?").run(epoch);
    return undefined;
  }

  private prepareConnection(): void {
    this.db.exec("PRAGMA journal_mode = WAL");
    // A request is taken for filed when this says so: it must not be lost with the power.
    this.db.exec("PRAGMA synchronous = FULL");
    this.db.exec("PRAGMA secure_delete = ON");
    this.db.exec("PRAGMA temp_store = MEMORY");
    this.db.exec("PRAGMA cache_size = -4096");
  }

  /** Indexes texts, each in place of what is known of its request; one that is forgotten is left out. */
  add(docs: Iterable<SearchDoc>): void {
    this.change(() => {
      for (const doc of docs) {
        if (!this.makeRoom(doc)) continue;
        const { seq, id, project, prompt, answer } = doc;
        this.statement(sql.insertDoc).run(seq, id, project, packed({ prompt, answer }));
        this.statement(sql.insertText).run(seq, projectWord(project), prompt, answer);
      }
    });
  }

  /** Takes out what was known of a request. False where nothing is to be put in its place. */
  private makeRoom({ seq, id, round, project, prompt, answer }: SearchDoc): boolean {
    for (const known of this.statement(sql.known).all(seq, id) as Known[]) {
      const was = unpacked(known.packed);
      const isSame = known.seq === seq && known.project === project;
      if (isSame && was.prompt === prompt && was.answer === answer) return false;
      this.remove(known);
    }
    const isEmpty = prompt === "" && answer === "";
    return !isEmpty && !this.statement(sql.isForgotten).get(id, round);
  }

  private remove({ seq, project, packed }: Known): void {
    const { prompt, answer } = unpacked(packed);
    this.statement(sql.deleteText).run(seq, projectWord(project), prompt, answer);
    this.statement("DELETE FROM docs WHERE seq = ?").run(seq);
    this.removed.push(prompt, answer);
  }

  /** Takes these requests out, up to these rounds for good. What they said is still in the log until `flush`. */
  forget(requests: Forgotten[]): void {
    this.change(() => {
      for (const { id, round } of requests) {
        this.statement(sql.forget).run(id, round);
        const known = this.statement("SELECT seq, project, packed FROM docs WHERE id = ?").get(id);
        if (known) this.remove(known as Known);
      }
    });
  }

  /** Copies the log into the file, and empties it. */
  flush(): void {
    this.statement("PRAGMA wal_checkpoint(TRUNCATE)").get();
  }

  /** The next of those that are forgotten; those that are gone from the database need not be remembered. */
  forgotten(after: string, limit: number): Forgotten[] {
    const sql = "SELECT id, round FROM forgotten WHERE id > ? ORDER BY id LIMIT ?";
    return this.statement(sql).all(after, limit) as Forgotten[];
  }

  dropForgotten(ids: string[]): void {
    this.inTransaction(() => {
      for (const id of ids) this.statement("DELETE FROM forgotten WHERE id = ?").run(id);
    });
  }

  /** Ids of requests, in their order. */
  find({ expression, after, among, order, limit }: Lookup): string[] {
    if (among) return among.filter((id) => this.statement(sql.isFound).get(expression, id)).slice(0, limit);
    const beyond = this.placeOf(after, order);
    const statement = this.statement(order === "desc" ? sql.newest : sql.oldest);
    return statement.pluck().all(expression, beyond, limit) as string[];
  }

  /** The row beyond which a page begins. Ids sort as requests do: one that is gone still has its place. */
  private placeOf(after: string | undefined, order: "asc" | "desc"): number {
    if (after === undefined) return order === "desc" ? Number.MAX_SAFE_INTEGER : 0;
    const found = this.statement(sql.upTo).get(after) as { seq: number; id: string } | undefined;
    if (!found) return 0;
    return order === "desc" && found.id !== after ? found.seq + 1 : found.seq;
  }

  /** The last row that was looked at while the index is being made; undefined when it is made. */
  get lookedTo(): number | undefined {
    return this.number("SELECT looked_to FROM place") ?? undefined;
  }

  set lookedTo(seq: number | undefined) {
    this.statement("UPDATE place SET looked_to = ?").run(seq ?? null);
  }

  close(): void {
    this.db.close();
  }

  private number(sql: string): number | null {
    return this.statement(sql).pluck().get() as number | null;
  }

  /** A transaction that also clears what would be left of texts that it takes out. */
  private change(work: () => void): void {
    this.traces ??= new Traces(this.db, tokenizer);
    const { traces } = this;
    this.removed = [];
    this.inTransaction(() => {
      work();
      if (this.removed.length === 0) return;
      this.statement("INSERT INTO texts (texts) VALUES ('flush')").run();
      traces.clear(this.removed);
    });
  }

  private inTransaction(work: () => void): void {
    this.statement("BEGIN IMMEDIATE").run();
    try {
      work();
      this.statement("COMMIT").run();
    } catch (error) {
      if (this.db.inTransaction) this.statement("ROLLBACK").run();
      throw error;
    }
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

/** Texts have no NUL: it stands between them. */
const packed = ({ prompt, answer }: Texts): Uint8Array => deflateRawSync(`${prompt}\0${answer}`);

function unpacked(bytes: Uint8Array): Texts {
  const [prompt = "", answer = ""] = inflateRawSync(bytes).toString().split("\0");
  return { prompt, answer };
}

/** Whether an error says that tables are not there, or are not as they should be. */
const isUnlike = (error: unknown): boolean =>
  error instanceof Error && "code" in error && error.code === "SQLITE_ERROR";

/** Whether an error says that the file itself is of no use, and not that the disk is full. */
export function isBroken(error: unknown): boolean {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  return /^(SQLITE_(CORRUPT|NOTADB|IOERR|READONLY|CANTOPEN)|Z_)/.test(code);
}
