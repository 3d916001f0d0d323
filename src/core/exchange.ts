/** What is kept of an attempt: what it has sent, and what it got, each a line of JSON and the body byte for byte. */

import type { CallEnd, Exchange, ExchangeHead, Outcome, Part } from "./ports.ts";
import { visibleAnswerHeaders } from "./redact.ts";
import { isTerminal, type RequestRecord, type Transition } from "./request.ts";
import type { Reading } from "./retry.ts";
import { utf8 } from "./utf8.ts";

const decoder = new TextDecoder();
const newline = 10;

type Response = Extract<Outcome, { kind: "response" }>;

/** @param attempt the number of the attempt */
export function exchangePart(kind: "sent" | "received", attempt: number, { head, body }: Exchange): Part {
  // JSON has no line breaks but those that it is laid out with.
  const line = utf8(`${JSON.stringify(head)}\n`);
  const bytes = new Uint8Array(line.byteLength + body.byteLength);
  bytes.set(line);
  bytes.set(body, line.byteLength);
  return { kind, seq: attempt, bytes };
}

/** What `exchangePart` has put into a part. @throws SyntaxError where it was not that */
export function exchangeOf(bytes: Uint8Array): Exchange {
  const end = bytes.indexOf(newline);
  const head = JSON.parse(decoder.decode(bytes.subarray(0, Math.max(0, end)))) as ExchangeHead;
  return { head, body: bytes.subarray(end + 1) };
}

/** What is kept of a call: the answer, where it is the last one, or what the next attempt is told of it. */
export function partsOf(called: CallEnd, { feedback }: Reading, { record }: Transition): Part[] | undefined {
  const parts = record.terms.store === "all" ? exchangeParts(called, record) : [];
  const { outcome } = called;
  if (isTerminal(record.state)) {
    if (outcome.kind === "response") parts.push(...answerParts(outcome));
  } else if (feedback) {
    parts.push({ kind: "head", seq: record.attempt, bytes: utf8(JSON.stringify(feedback)) });
  }
  return parts.length > 0 ? parts : undefined;
}

/** What was sent, and what came: an answer that completes its request is kept as that, and nobody drops it. */
function exchangeParts({ sent, received, outcome }: CallEnd, { state, attempt }: RequestRecord): Part[] {
  const parts: Part[] = [];
  if (sent) parts.push(exchangePart("sent", attempt, sent));
  if (state === "completed") return parts;
  const came = outcome.kind === "response" ? responseOf(outcome) : received;
  if (came) parts.push(exchangePart("received", attempt, came));
  return parts;
}

const responseOf = ({ status, headers, body }: Response): Exchange => ({
  head: { status, headers: visibleAnswerHeaders(headers) },
  body,
});

/** The upstream's answer as it came: status and headers as JSON, the body byte for byte. */
function answerParts({ status, headers, body }: Response): Part[] {
  const head = utf8(JSON.stringify({ status, headers }));
  return [
    { kind: "answer_head", seq: 0, bytes: head },
    { kind: "answer", seq: 0, bytes: body },
  ];
}
