/**
 * Changes as plain values in the order of the statements that write them. Values cross a thread several times
 * faster than records do, and the thread that writes has nothing left to work out.
 */

import { labelsOf } from "../../core/ledger/labels.ts";
import type { Tally } from "../../core/ledger/ports.ts";
import type { ChangeSet, EventsWritten, Repeats, Vector } from "../../core/ports.ts";
import { type Expectation, isTerminal, type RequestRecord } from "../../core/request.ts";
import { type Facet, facetOf } from "./facets.ts";
import { labelNumber } from "./label-number.ts";
import { type PartRow, partRows } from "./parts.ts";
import * as rows from "./rows.ts";
import { type TallyRow, tallyRow } from "./usage.ts";

/** Number of the event before, bytes, and whether what was recorded before is dropped. */
type EventsRow<B> = [after: number, bytes: B, anew: boolean];

/** Project, hash as hex, when it was created, and bytes. */
type VectorRow<B> = [project: string, hash: string, createdAt: number, bytes: B];

/** What a transaction has to add up for a request as it is from now on. */
interface Accounts {
  facet: Facet;
  /** The request starts, or goes on. */
  isLive: boolean;
  /** It has ended with this change, or was accepted so. */
  isEnded: boolean;
  tallies: TallyRow[];
}

interface AcceptOp<B> extends Accounts {
  kind: "accept";
  id: string;
  createdAt: number;
  labels: number[];
  /** Values of `fixedColumns`, `roundColumns` and `changingColumns`. */
  row: rows.Value[];
  key?: { project: string; endpoint: string; key: string };
  callHash?: string;
  repeats?: Repeats;
  parts: PartRow<B>[];
}

interface ChangeOp<B> extends Accounts {
  kind: "change";
  id: string;
  /** Values of `changingColumns`. */
  row: rows.Value[];
  /** Values of `roundColumns`, where a new round begins. */
  round?: rows.Value[];
  /**
   * What must hold: state, attempt, round, owner's node and epoch; where a new round begins, also when bodies were
   * erased, and whether the round brings a body.
   */
  fence: rows.Value[];
  /** Values of `attemptColumns`, of an attempt that has ended. */
  attempt?: rows.Value[];
  keepThrottled?: number;
  dropAnswer?: boolean;
  parts: PartRow<B>[];
  events?: EventsRow<B>;
  vectors?: VectorRow<B>[];
}

interface EventsOp<B> {
  kind: "events";
  id: string;
  /** As in `ChangeOp` without a round. */
  fence: rows.Value[];
  /** Value of its column. */
  forks: rows.Value;
  events: EventsRow<B>;
}

/** The librarian has looked through these requests as their rounds left them. `packs`: their parts, see pack.ts. */
interface FiledOp<B> {
  kind: "filed";
  seqs: [requestSeq: number, round: number][];
  packs: [requestSeq: number, bytes: B][];
}

type Mark = Exclude<ChangeSet, { kind: "accept" | "change" | "events" }>;

export type Op<B = Uint8Array> = AcceptOp<B> | ChangeOp<B> | EventsOp<B> | FiledOp<B> | Mark;

export function opOf(change: ChangeSet): Op {
  switch (change.kind) {
    case "accept":
      return acceptOp(change);
    case "change":
      return changeOp(change);
    case "events":
      return eventsOp(change);
    default:
      return change;
  }
}

function acceptOp({
  record,
  parts,
  tallies,
  key,
  repeats,
}: Extract<ChangeSet, { kind: "accept" }>): AcceptOp<Uint8Array> {
  const { id, project, createdAt, callHash } = record;
  return {
    kind: "accept",
    id,
    createdAt,
    row: [...rows.fixedValues(record), ...rows.roundValues(record), ...rows.changingValues(record)],
    labels: labelsOf(record).map((label) => labelNumber(project, label)),
    key,
    callHash,
    repeats,
    ...accounts(record, tallies),
    parts: partRows(parts),
  };
}

function changeOp({
  transition,
  parts,
  tallies,
  events,
  dropAnswer,
  vectors,
}: Extract<ChangeSet, { kind: "change" }>): ChangeOp<Uint8Array> {
  const { expect, record, attempt, keepThrottled } = transition;
  const isRound = record.round !== expect.round;
  const fence = fenceOf(expect);
  const hasBody = parts?.some(({ kind }) => kind === "body");
  return {
    kind: "change",
    id: record.id,
    row: rows.changingValues(record),
    round: isRound ? rows.roundValues(record) : undefined,
    fence: isRound ? [...fence, expect.bodiesErasedAt ?? null, hasBody ? 1 : 0] : fence,
    ...accounts(record, tallies),
    attempt: attempt && rows.attemptValues(attempt, record),
    keepThrottled,
    dropAnswer,
    parts: parts ? partRows(parts) : [],
    events: events && eventsRow(events),
    vectors: vectors?.map(vectorRow),
  };
}

const accounts = (record: RequestRecord, tallies: Tally[] = []): Accounts => ({
  facet: facetOf(record),
  isLive: record.state === "processing",
  isEnded: isTerminal(record.state),
  tallies: tallies.map(tallyRow),
});

function eventsOp({
  id,
  expect,
  forks,
  events,
}: Extract<ChangeSet, { kind: "events" }>): EventsOp<Uint8Array> {
  return {
    kind: "events",
    id,
    fence: fenceOf(expect),
    forks: rows.listOrNull(forks),
    events: eventsRow(events),
  };
}

const fenceOf = ({ state, attempt, round, owner }: Expectation): rows.Value[] => [
  state,
  attempt,
  round,
  owner?.node ?? null,
  owner?.epoch ?? null,
];

const eventsRow = ({ after, bytes, anew }: EventsWritten): EventsRow<Uint8Array> => [after, bytes, anew];
const vectorRow = ({ project, hash, createdAt, bytes }: Vector): VectorRow<Uint8Array> => [
  project,
  hash,
  createdAt,
  bytes,
];

/** Operations on their way, with all their bytes in one buffer that is handed over and not copied. */
export interface Parcel {
  ops: (Op<number> | Listed)[];
  bytes: ArrayBuffer;
}

/** The members of an operation without their names, which would cost as much again on both sides of a thread. */
type Listed = unknown[];

/** In what order the operations that every request needs are listed, the kind first. */
const members = {
  accept: [
    "kind",
    ...["id", "createdAt", "labels", "row", "key", "callHash", "repeats", "parts"],
    ...["facet", "isLive", "isEnded", "tallies"],
  ],
  change: [
    "kind",
    ...[
      "id",
      "row",
      "round",
      "fence",
      "attempt",
      "keepThrottled",
      "dropAnswer",
      "parts",
      "events",
      "vectors",
    ],
    ...["facet", "isLive", "isEnded", "tallies"],
  ],
  events: ["kind", "id", "fence", "forks", "events"],
};

export function pack(ops: Op[]): Parcel {
  let size = 0;
  for (const op of ops) size += sizeOf(op);
  const all = new Uint8Array(size);
  let at = 0;
  const put = (bytes: Uint8Array): number => {
    all.set(bytes, at);
    at += bytes.byteLength;
    return bytes.byteLength;
  };
  return { ops: each(ops, (op) => listed(withBytes(op, put))), bytes: all.buffer };
}

export function unpack({ ops, bytes }: Parcel): Op[] {
  let at = 0;
  const take = (size: number): Uint8Array => {
    at += size;
    return new Uint8Array(bytes, at - size, size);
  };
  return each(ops, (op) => withBytes(unlisted(op), take));
}

function listed(op: Op<number>): Op<number> | Listed {
  if (op.kind !== "accept" && op.kind !== "change" && op.kind !== "events") return op;
  const values = op as unknown as Record<string, unknown>;
  return each(members[op.kind], (name) => values[name]);
}

function unlisted(op: Op<number> | Listed): Op<number> {
  if (!Array.isArray(op)) return op;
  const values: Record<string, unknown> = {};
  for (const [i, name] of members[op[0] as keyof typeof members].entries()) values[name] = op[i];
  return values as unknown as Op<number>;
}

/** As `map`, whose results optimised code marks as lists with holes, which cross a thread at half the speed. */
function each<A, B>(list: readonly A[], form: (one: A) => B): B[] {
  const formed: B[] = [];
  for (const one of list) formed.push(form(one));
  return formed;
}

/** An operation with its bytes in another form, which are come by in the same order both ways. */
function withBytes<A, B>(op: Op<A>, form: (bytes: A) => B): Op<B> {
  const eventsIn = ([after, bytes, anew]: EventsRow<A>): EventsRow<B> => [after, form(bytes), anew];
  const partsIn = (parts: PartRow<A>[]) =>
    each(parts, ([kind, seq, codec, bytes]): PartRow<B> => [kind, seq, codec, form(bytes)]);
  const vectorsIn = (vectors: VectorRow<A>[]) =>
    each(
      vectors,
      ([project, hash, createdAt, bytes]): VectorRow<B> => [project, hash, createdAt, form(bytes)],
    );
  switch (op.kind) {
    case "events":
      return { ...op, events: eventsIn(op.events) };
    case "change":
      return {
        ...op,
        parts: partsIn(op.parts),
        events: op.events && eventsIn(op.events),
        vectors: op.vectors && vectorsIn(op.vectors),
      };
    case "accept":
      return { ...op, parts: partsIn(op.parts) };
    case "filed":
      return { ...op, packs: each(op.packs, ([seq, bytes]) => [seq, form(bytes)]) };
    default:
      return op;
  }
}

/** How many bytes an operation has beside its values. */
export function sizeOf(op: Op): number {
  let size = 0;
  if ("parts" in op) for (const [, , , bytes] of op.parts) size += bytes.byteLength;
  if ("events" in op && op.events) size += op.events[1].byteLength;
  if ("vectors" in op && op.vectors) for (const [, , , bytes] of op.vectors) size += bytes.byteLength;
  if ("packs" in op) for (const [, bytes] of op.packs) size += bytes.byteLength;
  return size;
}
