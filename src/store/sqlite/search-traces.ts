/**
 * FTS5's `secure-delete` takes a word out of the pages of the index, and leaves it in the list of pages (`texts_idx`)
 * where the word was the first of its page. Here such a page is listed under the first word that it still has.
 *
 * The format is that of SQLite's fts5_index.c: a page's key is its segment and number; it begins with two 16-bit numbers,
 * of which the second says where its own list of words begins; that list's first number is where the first word is.
 */

import type { Database, Statement } from "better-sqlite3";
import { keep } from "./keep.ts";

const words = "words";
const segmentBits = 37;

const segments = `WITH RECURSIVE segment (id) AS (SELECT min(segid) FROM texts_idx UNION ALL
    SELECT (SELECT min(segid) FROM texts_idx WHERE segid > id) FROM segment WHERE id IS NOT NULL)
  SELECT id FROM segment WHERE id IS NOT NULL`;
const pageOf =
  "SELECT term, pgno >> 1 AS page FROM texts_idx WHERE segid = ? AND term <= ? ORDER BY term DESC LIMIT 1";

export class Traces {
  private readonly prepared: Record<
    "insert" | "terms" | "clear" | "segments" | "page" | "block" | "list" | "drop",
    Statement
  >;

  /** @param tokenizer as that of the index */
  constructor(db: Database, tokenizer: string) {
    // Else nobody but FTS5 may write to its tables.
    db.unsafeMode();
    db.exec(`CREATE VIRTUAL TABLE temp.${words} USING fts5 (text, content='', columnsize=0, tokenize="${tokenizer}");
      CREATE VIRTUAL TABLE temp.terms USING fts5vocab (temp, ${words}, row)`);
    const statement = (sql: string): Statement<unknown[]> => keep(db.prepare(sql));
    this.prepared = {
      insert: statement(`INSERT INTO ${words} (rowid, text) VALUES (1, ?)`),
      terms: statement("SELECT '0' || term FROM terms").pluck(),
      clear: statement(`INSERT INTO ${words} (${words}) VALUES ('delete-all')`),
      segments: statement(segments).pluck(),
      page: statement(pageOf),
      block: statement("SELECT block FROM texts_data WHERE id = ?").pluck(),
      drop: statement("DELETE FROM texts_idx WHERE segid = ? AND term = ?"),
      list: statement("UPDATE texts_idx SET term = ? WHERE segid = ? AND term = ?"),
    };
  }

  /** Clears what is left of the words of texts that have just been taken out of the index. */
  clear(texts: string[]): void {
    const { insert, terms, clear, segments } = this.prepared;
    for (const text of texts) insert.run(text);
    const gone = (terms.all() as string[]).map((term) => Buffer.from(term));
    clear.run();
    for (const segment of segments.all() as number[]) for (const term of gone) this.relist(segment, term);
  }

  private relist(segment: number, gone: Buffer): void {
    const { page, block, list, drop } = this.prepared;
    const entry = page.get(segment, gone) as { term: Buffer; page: number } | undefined;
    // A page is listed under as much of its first word as tells it from the word before.
    if (!entry || entry.term.length < 2 || !gone.subarray(0, entry.term.length).equals(entry.term)) return;
    const first = firstWord(block.get(segment * 2 ** segmentBits + entry.page) as Buffer | undefined);
    // Pages that a merge has used up are listed until it has ended; then nobody asks for them.
    if (!first) drop.run(segment, entry.term);
    else if (!first.subarray(0, entry.term.length).equals(entry.term)) list.run(first, segment, entry.term);
  }
}

function firstWord(page: Buffer | undefined): Buffer | undefined {
  const words = page?.readUInt16BE(2);
  if (!page || !words || words >= page.length) return undefined;
  const [at] = varint(page, words);
  const [length, begin] = varint(page, at);
  return page.subarray(begin, begin + length);
}

/** A number of SQLite's variable length, and where it ends. */
function varint(bytes: Buffer, from: number): [value: number, end: number] {
  let value = 0;
  let at = from;
  for (;;) {
    const byte = bytes[at++]!;
    value = value * 128 + (byte & 0x7f);
    if (byte < 0x80) return [value, at];
  }
}
