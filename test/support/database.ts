import Database from "better-sqlite3";
import type { Part, PartKind } from "../../src/core/ports.ts";
import { keep } from "../../src/store/sqlite/keep.ts";
import { unpacked } from "../../src/store/sqlite/pack.ts";
import { partsIn } from "../../src/store/sqlite/parts.ts";

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

/** Reads a part of a request, however its parts are stored; null where there is none. */
export function partReader(db: KeptDatabase): (requestSeq: number, kind: PartKind) => Uint8Array | null {
  const loose = db.prepare("SELECT kind, seq, codec, bytes FROM parts WHERE request_seq = ?");
  const packs = db.prepare("SELECT bytes FROM packs WHERE request_seq = ?").pluck();
  return (requestSeq, kind) => {
    const pack = packs.get(requestSeq) as Uint8Array | undefined;
    const parts = pack ? unpacked(pack) : partsIn<Part>(loose.all(requestSeq));
    return parts.find((part) => part.kind === kind)?.bytes ?? null;
  };
}
