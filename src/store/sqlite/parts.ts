/** Parts as rows. A small head has no row of its own: a row costs more than the bytes in it. */

import type { Part, PartKind } from "../../core/ports.ts";
import type { FindStatement } from "./connection.ts";

/** `headed`: the length of a head (4 bytes, little-endian), the head, and what it is the head of. */
export type Codec = "identity" | "headed";

/** Kind, number, codec and bytes; while they are on their way between threads, how many bytes. */
export type PartRow<B = Uint8Array> = [kind: PartKind, seq: number, codec: Codec, bytes: B];

/** What a row of the table holds. */
export type StoredPart = Part & { codec: Codec };

/** What goes together, in the row of the second. */
const pairs: [head: PartKind, rest: PartKind][] = [
  ["head", "body"],
  ["answer_head", "answer"],
];
const restOf = new Map(pairs);
const headOf = new Map(pairs.map(([head, rest]) => [rest, head]));

/** More than this is not copied only to save a row, nor read for the sake of its head. */
const togetherMax = 64 * 1024;
const lengthBytes = 4;

const sql = {
  insert: `INSERT INTO parts (request_seq, kind, seq, codec, bytes) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING`,
  replace: `UPDATE parts SET codec = ?, key_id = NULL, bytes = ?
    WHERE request_seq = ? AND kind = ? AND seq = ?`,
  drop: "DELETE FROM parts WHERE request_seq = ? AND kind = ? AND seq = ?",
  shared: `SELECT kind, seq, codec, bytes FROM parts
    WHERE request_seq = ? AND kind = ? AND seq = ? AND codec = 'headed'`,
};

export function partRows(parts: readonly Part[]): PartRow[] {
  const rows: PartRow[] = [];
  for (const part of parts) {
    const { kind, seq, bytes } = part;
    const head = together(part, headOf.get(kind), parts);
    if (head) rows.push([kind, seq, "headed", joined(head.bytes, bytes)]);
    else if (!together(part, restOf.get(kind), parts)) rows.push([kind, seq, "identity", bytes]);
  }
  return rows;
}

/** The part of another kind that a part shares its row with. */
function together(part: Part, kind: PartKind | undefined, parts: readonly Part[]): Part | undefined {
  const other = kind && parts.find((one) => one.kind === kind && one.seq === part.seq);
  return other && part.bytes.byteLength + other.bytes.byteLength <= togetherMax ? other : undefined;
}

function joined(head: Uint8Array, rest: Uint8Array): Uint8Array {
  const all = Buffer.allocUnsafe(lengthBytes + head.byteLength + rest.byteLength);
  all.writeUInt32LE(head.byteLength);
  all.set(head, lengthBytes);
  all.set(rest, lengthBytes + head.byteLength);
  return all;
}

/** The kinds of the rows that parts of these kinds may be in. */
export const rowKinds = (kinds: readonly PartKind[]): PartKind[] => [
  ...new Set(kinds.flatMap((kind) => [kind, restOf.get(kind) ?? kind])),
];

/** The kind of the row that a part may be in with its other half; undefined where it has none. */
export const sharedRow = (kind: PartKind): PartKind | undefined =>
  headOf.has(kind) ? kind : restOf.get(kind);

/** The parts that are in rows, in the order of kind and number. */
export function partsIn<T extends Part>(rows: readonly (T & { codec: Codec })[]): Omit<T, "codec">[] {
  const parts = rows.flatMap(({ codec, ...row }) => (codec === "headed" ? apart(row) : [row]));
  return parts.sort((a, b) => (a.kind === b.kind ? a.seq - b.seq : a.kind < b.kind ? -1 : 1));
}

function apart<T extends Part>(row: T): T[] {
  const { buffer, byteOffset, byteLength } = row.bytes;
  const end = lengthBytes + new DataView(buffer, byteOffset, byteLength).getUint32(0, true);
  const head = { ...row, kind: headOf.get(row.kind)!, bytes: row.bytes.subarray(lengthBytes, end) };
  return [head, { ...row, bytes: row.bytes.subarray(end) }];
}

/** The writer's view of the table. */
export class PartTable {
  private readonly statement: FindStatement;

  constructor(statement: FindStatement) {
    this.statement = statement;
  }

  /** Writes them in place of those of the same kind and number, also where what was there shares its row. */
  insert(request: number, rows: PartRow[]): void {
    for (const [kind, seq, codec, bytes] of rows) {
      if (codec === "identity" && sharedRow(kind) !== kind) this.separate(request, kind, seq);
      const { changes } = this.statement(sql.insert).run(request, kind, seq, codec, bytes);
      if (changes === 0) this.replace(request, [kind, seq, codec, bytes]);
    }
  }

  private replace(request: number, [kind, seq, codec, bytes]: PartRow): void {
    if (codec === "identity") this.separate(request, kind, seq);
    else this.statement(sql.drop).run(request, headOf.get(kind), seq);
    this.statement(sql.replace).run(codec, bytes, request, kind, seq);
  }

  /** Where only one of two parts that share a row is written, each gets a row of its own. */
  private separate(request: number, kind: PartKind, seq: number): void {
    const shared = sharedRow(kind);
    const row = shared && (this.statement(sql.shared).get(request, shared, seq) as StoredPart | undefined);
    if (!row) return;
    this.statement(sql.drop).run(request, shared, seq);
    for (const part of partsIn([row])) {
      this.statement(sql.insert).run(request, part.kind, seq, "identity", part.bytes);
    }
  }
}
