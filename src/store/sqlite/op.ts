/**
 * Changes as plain values in the order of the statements that write them. Values cross a thread several times
 * faster than records do, and the thread that writes has nothing left to work out.
 */

import type { ChangeSet, Part, PartKind, Repeats } from "../../core/ports.ts";
import * as rows from "./rows.ts";

/** Kind, number and bytes; while they are on their way between threads, how many bytes. */
type PartRow<B> = [kind: PartKind, seq: number, bytes: B];

interface AcceptOp<B> {
  kind: "accept";
  id: string;
  /** Values of `fixedColumns`, `roundColumns` and `changingColumns`. */
  row: rows.Value[];
  key?: { project: string; endpoint: string; key: string };
  callHash?: string;
  repeats?: Repeats;
  /** The request starts at once. */
  isLive: boolean;
  parts: PartRow<B>[];
}

interface ChangeOp<B> {
  kind: "change";
  id: string;
  /** Values of `changingColumns`. */
  row: rows.Value[];
  /** Values of `roundColumns`, where a new round begins. */
  round?: rows.Value[];
  /** What must hold: id, state, attempt, round, owner's node and epoch. */
  fence: rows.Value[];
  isLive: boolean;
  /** Values of `attemptColumns`, of an attempt that has ended. */
  attempt?: rows.Value[];
  keepThrottled?: number;
  dropAnswer?: boolean;
  parts: PartRow<B>[];
}

type Mark = Exclude<ChangeSet, { kind: "accept" | "change" }>;

export type Op<B = Uint8Array> = AcceptOp<B> | ChangeOp<B> | Mark;

export function opOf(change: ChangeSet): Op {
  switch (change.kind) {
    case "accept":
      return acceptOp(change);
    case "change":
      return changeOp(change);
    default:
      return change;
  }
}

function acceptOp({
  record,
  parts,
  key,
  repeats,
}: Extract<ChangeSet, { kind: "accept" }>): AcceptOp<Uint8Array> {
  const row = [...rows.fixedValues(record), ...rows.roundValues(record), ...rows.changingValues(record)];
  const isLive = record.state === "processing";
  const { id, callHash } = record;
  return { kind: "accept", id, row, key, callHash, repeats, isLive, parts: parts.map(partRow) };
}

function changeOp({
  transition,
  parts,
  dropAnswer,
}: Extract<ChangeSet, { kind: "change" }>): ChangeOp<Uint8Array> {
  const { expect, record, attempt, keepThrottled } = transition;
  const { state, round, owner } = expect;
  return {
    kind: "change",
    id: record.id,
    row: rows.changingValues(record),
    round: record.round === round ? undefined : rows.roundValues(record),
    fence: [record.id, state, expect.attempt, round, owner?.node ?? null, owner?.epoch ?? null],
    isLive: record.state === "processing",
    attempt: attempt && rows.attemptValues(attempt),
    keepThrottled,
    dropAnswer,
    parts: parts?.map(partRow) ?? [],
  };
}

const partRow = ({ kind, seq, bytes }: Part): PartRow<Uint8Array> => [kind, seq, bytes];

/** Operations on their way, with all their bytes in one buffer that is handed over and not copied. */
export interface Parcel {
  ops: Op<number>[];
  bytes: ArrayBuffer;
}

export function pack(ops: Op[]): Parcel {
  const all = new Uint8Array(ops.reduce((sum, op) => sum + sizeOf(op), 0));
  let at = 0;
  const packed = ops.map((op): Op<number> => {
    if (!("parts" in op)) return op;
    const parts = op.parts.map(([kind, seq, bytes]): PartRow<number> => {
      all.set(bytes, at);
      at += bytes.byteLength;
      return [kind, seq, bytes.byteLength];
    });
    return { ...op, parts };
  });
  return { ops: packed, bytes: all.buffer };
}

export function unpack({ ops, bytes }: Parcel): Op[] {
  let at = 0;
  return ops.map((op): Op => {
    if (!("parts" in op)) return op;
    const parts = op.parts.map(([kind, seq, size]): PartRow<Uint8Array> => {
      at += size;
      return [kind, seq, new Uint8Array(bytes, at - size, size)];
    });
    return { ...op, parts };
  });
}

/** How many bytes the parts of an operation have. */
export function sizeOf(op: Op): number {
  let size = 0;
  if ("parts" in op) for (const [, , bytes] of op.parts) size += bytes.byteLength;
  return size;
}
