/** Three logs that know nothing of each other (callers', database, upstream's ledger), and what must hold between them. */

import { createHash } from "node:crypto";
import { isValidCursor, parseCursor } from "../../src/core/stream-cursor.ts";
import { KeptDatabase, partReader } from "../support/database.ts";
import type { Reply, Wish } from "./callers.ts";
import { type Heard, readEvents } from "./listeners.ts";
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
  /** What it says, if anything. */
  text?: string;
  isStream: boolean;
  forks: number[];
  /** The recorded stream: the data of its events. */
  events: string[];
  /** Whether no event is missing in it, and none there twice. */
  isGapless: boolean;
  /** In their order. Without `endedAt` nobody has ended it. */
  attempts: { number: number; verdict: string | null; endedAt: number | null }[];
}

export interface Evidence {
  wishes: Map<string, Wish>;
  replies: Reply[];
  heard: Heard[];
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
    const part = partReader(db);
    const rows = db.prepare(
      `SELECT seq, id, state, round, attempt, idempotency_key, duplicate_possible, error, forks
        FROM requests ORDER BY seq`,
    );
    const attempts = db.prepare(
      "SELECT number, verdict, ended_at AS endedAt FROM attempts WHERE request_seq = ? ORDER BY number",
    );
    const batches = db.prepare("SELECT seq AS after, bytes FROM events WHERE request_seq = ? ORDER BY seq");
    const records: Stored[] = [];
    for (const row of rows.all() as Omit<Row, "body" | "answer">[]) {
      const bodies = { body: part(row.seq, "body")!, answer: part(row.seq, "answer") };
      records.push(stored({ ...row, ...bodies }, attempts.all(row.seq), batches.all(row.seq) as Batch[]));
    }
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
  forks: string | null;
  body: Uint8Array;
  answer: Uint8Array | null;
}

interface Batch {
  after: number;
  bytes: Uint8Array;
}

function stored(row: Row, attempts: Stored["attempts"], batches: Batch[]): Stored {
  const { messages, stream } = JSON.parse(Buffer.from(row.body).toString()) as {
    messages: { content: string }[];
    stream?: boolean;
  };
  const events: string[] = [];
  let isGapless = true;
  for (const { after, bytes } of batches) {
    isGapless &&= after === events.length;
    events.push(...Buffer.from(bytes).toString().split("\n"));
  }
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
    text: row.answer ? textOf(row.answer) : undefined,
    isStream: stream === true,
    forks: JSON.parse(row.forks ?? "[]") as number[],
    events,
    isGapless,
    attempts,
  };
}

function textOf(answer: Uint8Array): string | undefined {
  const { choices } = JSON.parse(Buffer.from(answer).toString()) as {
    choices?: { message: { content: string } }[];
  };
  return choices?.[0]?.message.content;
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
    ...evidence.heard.flatMap((heard) => heardFaults(heard, byId, calls.get(heard.nonce) ?? [])),
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
  const isOfThis = (line: Line) => (record.isStream ? line.text === record.text : line.sha === sha);
  if (state === "completed" && !lines.some((line) => line.did === "executed" && isOfThis(line)))
    found.push(`${id}: the recorded answer was never given by the upstream`);
  if (record.isStream) found.push(...streamFaults(record));
  const unsure = attempts.findIndex(({ verdict }) => verdict === "ambiguous");
  if (wish?.onUnknown === "fail" && unsure >= 0 && unsure < attempts.length - 1)
    found.push(`${id} was called again after a call of unknown outcome, although on_unknown is "fail"`);
  return found;
}

/** What is recorded as the stream of an answer is that answer. */
function streamFaults({ id, state, text, events, isGapless }: Stored): string[] {
  if (!isGapless) return [`${id}: events are missing in its stream, or twice in it`];
  const recorded = readEvents(events);
  if (recorded.ends > 1) return [`${id}: its stream ends ${recorded.ends} times`];
  if (state !== "completed" || (recorded.text === text && recorded.ends === 1)) return [];
  return [`${id}: the recorded stream is not that of the recorded answer`];
}

/** Whatever was delivered was said by the upstream, is recorded as it was told, and looks whole only if it is. */
function heardFaults(heard: Heard, byId: Map<string, Stored>, lines: Line[]): string[] {
  const { id, nonce, call, end, code, events } = heard;
  const record = byId.get(id);
  if (!record) return [`${id} was streamed (${call}) and is lost`];
  if (record.nonce !== nonce) return [`${id} belongs to ${record.nonce}, and was streamed to ${nonce}`];
  const found = call === "get" ? numberFaults(heard, record) : [];
  const { text } = readEvents(events.map(({ data }) => data));
  const isFromStart = call === "post" || heard.from === "";
  if (isFromStart && record.isStream && !lines.some((line) => line.text?.startsWith(text)))
    found.push(`${id}: was streamed what the upstream never said (${call})`);
  if (end === "ended") found.push(`${id}: a stream (${call}) ended as if it were whole, and did not say so`);
  if (end === "done" && record.state !== "completed")
    found.push(`${id}: was streamed to the end (${call}), and is ${record.state}`);
  if (end === "done" && isFromStart && text !== record.text)
    found.push(`${id}: a whole stream was delivered (${call}) that is not the recorded answer`);
  const goesOn = /^(stream_(restarted|interrupted)|shutting_down)$/.test(code ?? "");
  if (end === "error" && !goesOn && record.round === 1 && record.errorCode !== code)
    found.push(`${id}: its stream failed with ${code}, and the record (${record.state}) does not say so`);
  return found;
}

/** To who counts them, events come one behind the other, and are those that are recorded under their numbers. */
function numberFaults({ id, from, events, end }: Heard, { forks, ...record }: Stored): string[] {
  let last = from ? parseCursor(from)! : { version: 1, after: 0 };
  const found: string[] = [];
  for (const { number, data } of events) {
    const cursor = parseCursor(number ?? "");
    if (!cursor) return [`${id}: an event came without its number`];
    if (cursor.after !== last.after + 1)
      found.push(`${id}: event ${cursor.after} came behind event ${last.after}`);
    const isThere = isValidCursor(cursor, forks);
    // A plain answer is told as a stream, and recorded as it came.
    if (isThere && record.isStream && record.events[cursor.after - 1] !== data)
      found.push(`${id}: event ${number} is not the recorded one`);
    last = cursor;
  }
  if (end === "done" && record.isStream && last.after !== record.events.length)
    found.push(
      `${id}: was read to event ${last.after} of ${record.events.length}, and told that this is all`,
    );
  return found;
}

function keyFaults({ records, replies, heard, wishes }: Evidence): string[] {
  const twice = [...grouped(records, ({ key }) => key)].filter(([, those]) => those.length > 1);
  const ids = grouped(
    [...replies, ...heard].filter(
      ({ nonce, id }) => wishes.get(nonce)?.key !== undefined && id !== undefined,
    ),
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
export function summary({ wishes, replies, heard, records, ledger }: Evidence) {
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
    streams: {
      heard: heard.length,
      whole: heard.filter(({ end }) => end === "done").length,
      broken: heard.filter(({ end, events }) => end === "broken" && events.length > 0).length,
      /** Readers that came back with the number of their last event. */
      resumed: heard.filter(({ from, events }) => from && events.length > 0).length,
      interrupted: heard.filter(({ code }) => code === "stream_interrupted").length,
      restarted: heard.filter(({ code }) => code === "stream_restarted").length,
    },
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
