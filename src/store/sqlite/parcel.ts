/**
 * Operations on their way between threads: lists of their values, for names would cost as much again on both sides, and
 * all their bytes in one buffer, which is handed over and not copied.
 */

import {
  type AcceptOp,
  type ChangeOp,
  type EventsOp,
  type EventsRow,
  type FiledOp,
  type Mark,
  type Op,
  sizeOf,
  type VectorRow,
} from "./op.ts";
import type { PartRow } from "./parts.ts";

export interface Parcel {
  ops: (Listed | Mark)[];
  bytes: ArrayBuffer;
}

type Listed =
  | ReturnType<typeof listedAccept>
  | ReturnType<typeof listedChange>
  | ReturnType<typeof listedEvents>
  | ReturnType<typeof listedFiled>;

/** Puts bytes into the buffer; in their place goes how many they are. */
type Put = (bytes: Uint8Array) => number;
/** Takes so many bytes out again, in the order in which they were put. */
type Take = (size: number) => Uint8Array;

export function pack(ops: readonly Op[]): Parcel {
  let size = 0;
  for (const op of ops) size += sizeOf(op);
  const all = new Uint8Array(size);
  let at = 0;
  const put: Put = (bytes) => {
    all.set(bytes, at);
    at += bytes.byteLength;
    return bytes.byteLength;
  };
  return { ops: each(ops, (op) => listed(op, put)), bytes: all.buffer };
}

export function unpack({ ops, bytes }: Parcel): Op[] {
  let at = 0;
  const take: Take = (size) => {
    at += size;
    return new Uint8Array(bytes, at - size, size);
  };
  return each(ops, (op) => (isListed(op) ? unlisted(op, take) : op));
}

const isListed = (op: Listed | Mark): op is Listed => Array.isArray(op);

function listed(op: Op, put: Put): Listed | Mark {
  switch (op.kind) {
    case "accept":
      return listedAccept(op, put);
    case "change":
      return listedChange(op, put);
    case "events":
      return listedEvents(op, put);
    case "filed":
      return listedFiled(op, put);
    default:
      return op;
  }
}

function unlisted(list: Listed, take: Take): Op {
  switch (list[0]) {
    case "accept":
      return acceptOf(list, take);
    case "change":
      return changeOf(list, take);
    case "events":
      return eventsOf(list, take);
    case "filed":
      return filedOf(list, take);
  }
}

/** All members by name, so that none is forgotten because it may be undefined. */
type Whole<T> = { [K in keyof Required<T>]: T[K] };

// The members of each operation are listed and read in one order. So are its bytes: parts, events, vectors.

function listedAccept(op: AcceptOp, put: Put) {
  const { id, createdAt, labels, row, key, callHash, repeats } = op;
  const sizes = partsAs(op.parts, put);
  return ["accept", id, createdAt, labels, row, key, callHash, repeats, sizes, accountsOf(op)] as const;
}

function acceptOf(list: ReturnType<typeof listedAccept>, take: Take): Whole<AcceptOp> {
  const [kind, id, createdAt, labels, row, key, callHash, repeats, sizes, accounts] = list;
  const [facet, isLive, isEnded, tallies] = accounts;
  const parts = partsAs(sizes, take);
  return { kind, id, createdAt, labels, row, key, callHash, repeats, parts, facet, isLive, isEnded, tallies };
}

function listedChange(op: ChangeOp, put: Put) {
  const { id, row, round, fence, attempt, keepThrottled, dropAnswer } = op;
  const sizes = [
    partsAs(op.parts, put),
    op.events && eventsAs(op.events, put),
    op.vectors && vectorsAs(op.vectors, put),
  ] as const;
  const rows = [row, round, fence, attempt] as const;
  return ["change", id, rows, keepThrottled, dropAnswer, sizes, accountsOf(op)] as const;
}

function changeOf(list: ReturnType<typeof listedChange>, take: Take): Whole<ChangeOp> {
  const [kind, id, [row, round, fence, attempt], keepThrottled, dropAnswer, sizes, accounts] = list;
  const [facet, isLive, isEnded, tallies] = accounts;
  const parts = partsAs(sizes[0], take);
  const events = sizes[1] && eventsAs(sizes[1], take);
  const vectors = sizes[2] && vectorsAs(sizes[2], take);
  const written = { parts, events, vectors, facet, isLive, isEnded, tallies };
  return { kind, id, row, round, fence, attempt, keepThrottled, dropAnswer, ...written };
}

function listedEvents({ id, fence, forks, events }: EventsOp, put: Put) {
  return ["events", id, fence, forks, eventsAs(events, put)] as const;
}

function eventsOf([kind, id, fence, forks, events]: ReturnType<typeof listedEvents>, take: Take): EventsOp {
  return { kind, id, fence, forks, events: eventsAs(events, take) };
}

function listedFiled({ seqs, packs }: FiledOp, put: Put) {
  return ["filed", seqs, packsAs(packs, put)] as const;
}

function filedOf([kind, seqs, packs]: ReturnType<typeof listedFiled>, take: Take): FiledOp {
  return { kind, seqs, packs: packsAs(packs, take) };
}

const accountsOf = ({ facet, isLive, isEnded, tallies }: AcceptOp | ChangeOp) =>
  [facet, isLive, isEnded, tallies] as const;

const partsAs = <A, B>(parts: readonly PartRow<A>[], form: (bytes: A) => B): PartRow<B>[] =>
  each(parts, ([kind, seq, codec, bytes]) => [kind, seq, codec, form(bytes)]);
const eventsAs = <A, B>([after, bytes, anew]: EventsRow<A>, form: (bytes: A) => B): EventsRow<B> => [
  after,
  form(bytes),
  anew,
];
const vectorsAs = <A, B>(vectors: readonly VectorRow<A>[], form: (bytes: A) => B): VectorRow<B>[] =>
  each(vectors, ([project, hash, createdAt, bytes]) => [project, hash, createdAt, form(bytes)]);
const packsAs = <A, B>(packs: readonly [number, A][], form: (bytes: A) => B): [number, B][] =>
  each(packs, ([seq, bytes]) => [seq, form(bytes)]);

/** As `map`, whose results optimised code marks as lists with holes, which cross a thread at half the speed. */
function each<A, B>(list: readonly A[], form: (one: A) => B): B[] {
  const formed: B[] = [];
  for (const one of list) formed.push(form(one));
  return formed;
}
