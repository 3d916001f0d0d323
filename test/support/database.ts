import Database from "better-sqlite3";
import { keep } from "../../src/store/sqlite/keep.ts";

/** The value of a pragma, or of its setting. See src/store/sqlite/keep.ts for why the statement is kept. */
export function pragmaOf(db: Database.Database, text: string): unknown {
  const statement = keep(db.prepare(`PRAGMA ${text}`));
  if (statement.reader) return statement.pluck().get();
  statement.run();
  return undefined;
}

/** A connection of a test's own, none of whose statements is ever collected. */
export class KeptDatabase extends Database {
  constructor(path: string, options?: Database.Options) {
    super(path, options);
    keep(this);
  }

  // biome-ignore lint/suspicious/noExplicitAny: the library's own signature is generic in the bound values
  override prepare(source: string): any {
    return keep(super.prepare(source));
  }

  override pragma(text: string): unknown {
    return pragmaOf(this as never, text);
  }
}
