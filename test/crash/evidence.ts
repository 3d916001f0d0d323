/** Three logs that know nothing of each other (callers', database, upstream's ledger), and what must hold between them. */

import { createHash } from "node:crypto";
import { KeptDatabase } from "../support/database.ts";
import type { Reply, Wish } from "./callers.ts";
import type { Line } from "./processes.ts";

export interface Stored {
  id: string;
  nonce: string;
  key: string | null;
  state: string;
  round: number;
  /** How many attempts were started. */
  attempt: number;
  duplicatePossible: boolean;
  errorCode: string | null;
  /** SHA-256 of the recorded answer. */
  sha?: string;
  /** In their order. Without `endedAt` nobody has ended it. */
  attempts: { number: number; verdict: string | null; endedAt: number | null }[];
}

export interface Evidence {
  wishes: Map<string, Wish>;
  replies: Reply[];
  records: Stored[];
  ledger: Line[];
  /** What SQLite's own checks say. */
  soundness: string[];
}

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** Reads the file of a server that has stopped. */
export function readDatabase(path: string): Pick<Evidence, "records" | "soundness"> {
  const db = new KeptDatabase(path, { readonly: true });
  try {
    const integrity = db.prepare("PRAGMA integrity_check").pluck().all() as string[];
    const strays = db.prepare("PRAGMA foreign_key_check").all() as unknown[];
    const part = (kind: string) =>
      `(SELECT bytes FROM parts WHERE request_seq = requests.seq AND kind = '${kind}')`;
    const rows = db.prepare(
      `SELECT seq, id, state, round, attempt, idempotency_key, duplicate_possible, error,
        ${part("body")} AS body, ${part("answer")} AS answer FROM requests ORDER BY seq`,
    );
    const attempts = db.prepare(
      "SELECT number, verdict, ended_at AS endedAt FROM attempts WHERE request_seq = ? ORDER BY number",
    );
    const records: Stored[] = [];
    for (const row of rows.iterate() as Iterable<Row>) records.push(stored(row, attempts.all(row.seq)));
    return {
      records,
      soundness: [
        ...integrity.filter((line) => line !== "ok"),
        ...strays.map((stray) => `a row without its request: ${JSON.stringify(stray)}`),
      ],
    };
  } finally {
    db.close();
  }
}

interface Row {
  seq: number;
  id: string;
  state: string;
  round: number;
  attempt: number;
  idempotency_key: string | null;
  duplicate_possible: number;
  error: string | null;
  body: Uint8Array;
  answer: Uint8Array | null;
}

function stored(row: Row, attempts: Stored["attempts"]): Stored {
  const { messages } = JSON.parse(Buffer.from(row.body).toString()) as { messages: { content: string }[] };
  return {
    id: row.id,
    nonce: (JSON.parse(messages[0]!.content) as { nonce: string }).nonce,
    key: row.idempotency_key,
    state: row.state,
    round: row.round,
    attempt: row.attempt,
    duplicatePossible: row.duplicate_possible === 1,
    errorCode: row.error === null ? null : (JSON.parse(row.error) as { code: string }).code,
    sha: row.answer ? sha256(row.answer) : undefined,
    attempts,
  };
}

const ended = new Set(["completed", "failed", "cancelled"]);

function grouped<T>(all: T[], key: (one: T) => string | null): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const one of all) {
    const name = key(one);
    if (name === null) continue;
    const group = groups.get(name);
    if (group) group.push(one);
    else groups.set(name, [one]);
  }
  return groups;
}

/** Every promise that was broken, in words. */
export function faultsIn(evidence: Evidence): string[] {
  const byId = new Map(evidence.records.map((record) => [record.id, record]));
  const byNonce = grouped(evidence.records, ({ nonce }) => nonce);
  const calls = grouped(evidence.ledger, ({ nonce }) => nonce);
  return [
    ...evidence.soundness.map((what) => `the file is damaged: ${what}`),
    ...evidence.replies.flatMap((reply) => replyFaults(reply, byId)),
    ...evidence.records.flatMap((record) =>
      recordFaults(record, calls.get(record.nonce) ?? [], evidence.wishes.get(record.nonce)),
    ),
    ...keyFaults(evidence),
    ...adoptionFaults(evidence, byNonce),
    ...[...calls].flatMap(([nonce, lines]) => callFaults(nonce, lines, byNonce.get(nonce) ?? [])),
  ];
}

/** Nothing that was acknowledged is missing; what was delivered is what is recorded. */
function replyFaults(reply: Reply, byId: Map<string, Stored>): string[] {
  const { id, nonce, call, status } = reply;
  if (id === undefined) {
    if (status === 404) return [`${nonce}: what was accepted is not found any more`];
    return status === 500 ? [`${nonce}: something went wrong inside (${call})`] : [];
  }
  const record = byId.get(id);
  if (!record) return [`${id} was acknowledged (${call}, ${status}) and is lost`];
  if (record.nonce !== nonce) return [`${id} belongs to ${record.nonce}, and ${nonce} was told of it`];
  if (call === "cancel")
    return reply.state === "cancelled" && record.state !== "cancelled"
      ? [`${id} was cancelled, and is ${record.state}`]
      : [];
  if (status === 200) {
    return record.state === "completed" && record.sha === reply.sha
      ? []
      : [`${id}: a result was delivered that is not the recorded one (${record.state})`];
  }
  // A key may have revived what failed: then the failure that was told is one of an earlier round.
  if (!reply.final || record.round > 1) return [];
  const told = reply.sha === record.sha || reply.code === record.errorCode || record.state === "cancelled";
  return record.state !== "completed" && told
    ? []
    : [
        `${id}: a failure was delivered (${status} ${reply.code}) that is not the recorded one (${record.state})`,
      ];
}

function recordFaults(record: Stored, lines: Line[], wish: Wish | undefined): string[] {
  const { id, state, attempts, sha } = record;
  const found: string[] = [];
  if (!wish) found.push(`${id} is nobody's`);
  if (!ended.has(state)) found.push(`${id} never ended: it is ${state}`);
  if (attempts.some(({ endedAt, verdict }) => endedAt === null || verdict === null))
    found.push(`${id} has an attempt without an end`);
  if (state === "completed" && !lines.some((line) => line.did === "executed" && line.sha === sha))
    found.push(`${id}: the recorded answer was never given by the upstream`);
  const unsure = attempts.findIndex(({ verdict }) => verdict === "ambiguous");
  if (wish?.onUnknown === "fail" && unsure >= 0 && unsure < attempts.length - 1)
    found.push(`${id} was called again after a call of unknown outcome, although on_unknown is "fail"`);
  return found;
}

function keyFaults({ records, replies, wishes }: Evidence): string[] {
  const twice = [...grouped(records, ({ key }) => key)].filter(([, those]) => those.length > 1);
  const ids = grouped(
    replies.filter(({ nonce, id }) => wishes.get(nonce)?.key !== undefined && id !== undefined),
    ({ nonce }) => nonce,
  );
  const told = [...ids].filter(([, those]) => new Set(those.map(({ id }) => id)).size > 1);
  return [
    ...twice.map(([key, those]) => `${key} has ${those.length} requests`),
    ...told.map(([nonce]) => `${nonce} was told of several requests for its one key`),
  ];
}

/** The repetitions of a stock SDK find the request that is there: only one of them ever comes to an answer. */
function adoptionFaults({ wishes }: Evidence, byNonce: Map<string, Stored[]>): string[] {
  return [...wishes.values()]
    .filter(({ repeats, nonce }) => repeats === "patient" && answers(byNonce.get(nonce)) > 1)
    .map(
      ({ nonce }) => `${nonce}: the retries of a stock SDK were paid ${answers(byNonce.get(nonce))} times`,
    );
}

const answers = (records: Stored[] = []): number =>
  records.filter(({ state }) => state === "completed").length;

/** How many executed calls the record of a request accounts for. */
function accountedFor({ duplicatePossible, attempts }: Stored): number {
  const mayHaveRun = attempts.filter(
    ({ verdict }) => verdict === "ambiguous" || verdict === "success",
  ).length;
  return duplicatePossible ? mayHaveRun : Math.min(1, mayHaveRun);
}

const sum = (numbers: number[]): number => numbers.reduce((total, one) => total + one, 0);

/** No call without its attempt on disk, and no second execution that no record admits. */
function callFaults(nonce: string, lines: Line[], records: Stored[]): string[] {
  const received = lines.filter(({ did }) => did === "received").length;
  const executed = lines.filter(({ did }) => did === "executed").length;
  const started = sum(records.map(({ attempt }) => attempt));
  const allowed = sum(records.map(accountedFor));
  const answered = records.flatMap(({ attempts }) =>
    attempts.filter(({ verdict }) => verdict !== "ambiguous" && verdict !== "not_sent"),
  );
  const found: string[] = [];
  if (received > started) found.push(`${nonce}: the upstream got ${received} calls, ${started} are recorded`);
  if (executed > allowed)
    found.push(`${nonce}: the upstream executed ${executed} calls, the records admit ${allowed}`);
  if (answered.length > received)
    found.push(`${nonce}: ${answered.length} answers are recorded, the upstream got ${received} calls`);
  return found;
}

/** What happened, in numbers. */
export function summary({ wishes, replies, records, ledger }: Evidence) {
  const byNonce = grouped(records, ({ nonce }) => nonce);
  const calls = grouped(ledger, ({ nonce }) => nonce);
  const executions = [...calls].map(([nonce, lines]) => ({
    nonce,
    executed: lines.filter(({ did }) => did === "executed").length,
  }));
  return {
    wishes: wishes.size,
    requests: records.length,
    acknowledged: new Set(replies.flatMap(({ id }) => id ?? [])).size,
    replies: replies.length,
    delivered: replies.filter(({ status, call }) => status === 200 && call !== "cancel").length,
    completed: records.filter(({ state }) => state === "completed").length,
    failed: records.filter(({ state }) => state === "failed").length,
    cancelled: records.filter(({ state }) => state === "cancelled").length,
    upstreamCalls: ledger.filter(({ did }) => did === "received").length,
    /** Wishes whose work was done more than once; each one is marked, or was asked for more than once. */
    executedTwice: executions.filter(({ executed }) => executed > 1).length,
    duplicatePossible: records.filter(({ duplicatePossible }) => duplicatePossible).length,
    /** Stock SDKs that hung up on a running call and paid for another one: adoption is a best effort. */
    impatientPaidTwice: [...wishes.values()].filter(
      ({ nonce, repeats }) => repeats === "impatient" && answers(byNonce.get(nonce)) > 1,
    ).length,
  };
}
