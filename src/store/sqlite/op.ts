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
export type EventsRow<B = Uint8Array> = [after: number, bytes: B, anew: boolean];

/** Project, hash as hex, when it was created, and bytes. */
export type VectorRow<B = Uint8Array> = [project: string, hash: string, createdAt: number, bytes: B];

/** What a transaction has to add up for a request as it is from now on. */
interface Accounts {
  facet: Facet;
  /** The request starts, or goes on. */
  isLive: boolean;
  /** It has ended with this change, or was accepted so. */
  isEnded: boolean;
  tallies: TallyRow[];
}

export interface AcceptOp extends Accounts {
  kind: "accept";
  id: string;
  createdAt: number;
  labels: number[];
  /** Values of `fixedColumns`, `roundColumns` and `changingColumns`. */
  row: rows.Value[];
  key?: { project: string; endpoint: string; key: string };
  callHash?: string;
  repeats?: Repeats;
  parts: PartRow[];
}

export interface ChangeOp extends Accounts {
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
  parts: PartRow[];
  events?: EventsRow;
  vectors?: VectorRow[];
}

export interface EventsOp {
  kind: "events";
  id: string;
  /** As in `ChangeOp` without a round. */
  fence: rows.Value[];
  /** Value of its column. */
  forks: rows.Value;
  events: EventsRow;
}

/** The librarian has looked through these requests as their rounds left them. `packs`: their parts, see pack.ts. */
export interface FiledOp {
  kind: "filed";
  seqs: [requestSeq: number, round: number][];
  packs: [requestSeq: number, bytes: Uint8Array][];
}

export type Mark = Exclude<ChangeSet, { kind: "accept" | "change" | "events" }>;

export type Op = AcceptOp | ChangeOp | EventsOp | FiledOp | Mark;

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
}: Extract<ChangeSet, { kind: "accept" }>): AcceptOp {
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
}: Extract<ChangeSet, { kind: "change" }>): ChangeOp {
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

function eventsOp({ id, expect, forks, events }: Extract<ChangeSet, { kind: "events" }>): EventsOp {
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

const eventsRow = ({ after, bytes, anew }: EventsWritten): EventsRow => [after, bytes, anew];
const vectorRow = ({ project, hash, createdAt, bytes }: Vector): VectorRow => [
  project,
  hash,
  createdAt,
  bytes,
];

/** How many bytes an operation has beside its values. */
export function sizeOf(op: Op): number {
  switch (op.kind) {
    case "accept":
      return bytesIn(op.parts);
    case "change":
      return bytesIn(op.parts) + (op.events?.[1].byteLength ?? 0) + bytesIn(op.vectors ?? []);
    case "events":
      return op.events[1].byteLength;
    case "filed":
      return op.packs.reduce((sum, [, bytes]) => sum + bytes.byteLength, 0);
    default:
      return 0;
  }
}

/** The bytes stand fourth, in parts as in vectors. */
function bytesIn(rows: readonly (PartRow | VectorRow)[]): number {
  let size = 0;
  for (const row of rows) size += row[3].byteLength;
  return size;
}
