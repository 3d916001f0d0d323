/** What attempts have sent and received, as JSON. */

import { isUtf8 } from "node:buffer";
import type { AttemptObject } from "../contract.ts";
import type { Exchange } from "../core/ports.ts";
import type { Queue } from "../core/queue.ts";
import { visibleAnswerHeaders, visibleHeaders, visibleUrl } from "../core/redact.ts";
import type { AttemptRecord, RequestRecord } from "../core/request.ts";
import { answerOf, textOf, withRawMembers } from "./present.ts";

/** The attempts of a request as JSON texts, in which bodies stay as they were written. */
export async function withBodies(
  record: RequestRecord,
  attempts: AttemptRecord[],
  objects: AttemptObject[],
  queue: Queue,
): Promise<string[]> {
  const kept = await queue.ledger.exchanges(record);
  const last = await lastExchange(record, attempts.at(-1), queue);
  return objects.map((object, index) => {
    const { sent, received } = kept.get(object.number) ?? {};
    const rest = index === objects.length - 1 ? last : {};
    return withRawMembers(object, {
      request: sentText(sent ?? rest.sent),
      response: receivedText(received ?? rest.received),
    });
  });
}

/**
 * Of the last attempt, what is stored with the request itself: what its caller asked, which is not all that was sent,
 * and the answer.
 */
async function lastExchange(
  record: RequestRecord,
  last: AttemptRecord | undefined,
  queue: Queue,
): Promise<{ sent?: Exchange; received?: Exchange }> {
  if (record.bodiesErasedAt !== undefined || last?.number !== record.attempt) return {};
  const { head, body } = await queue.ledger.content(record);
  const { method, path: url, headers } = head;
  const sent = last.verdict === "not_sent" ? undefined : { head: { method, url, headers }, body };
  const answer = answerOf(await queue.withAnswer(record));
  // Another attempt's answer may be what is stored.
  if (!answer || answer.status !== last.status) return { sent };
  return { sent, received: { head: { status: answer.status, headers: answer.headers }, body: answer.body } };
}

function sentText(sent: Exchange | undefined): string {
  if (!sent) return "null";
  const { method = null, url = null, headers } = sent.head;
  const visible = { method, url: url && visibleUrl(url), headers: visibleHeaders(headers) };
  return withRawMembers(visible, { body: bodyText(sent.body) });
}

function receivedText(received: Exchange | undefined): string {
  if (!received) return "null";
  const { status = null, headers } = received.head;
  return withRawMembers(
    { status, headers: visibleAnswerHeaders(headers) },
    { body: bodyText(received.body) },
  );
}

/** JSON as it is, other text as a text, other bytes as base64. */
function bodyText(bytes: Uint8Array): string {
  if (bytes.length === 0) return "null";
  if (!isUtf8(bytes)) return JSON.stringify({ base64: Buffer.from(bytes).toString("base64") });
  const text = textOf(bytes);
  try {
    JSON.parse(text);
    return text;
  } catch {
    return JSON.stringify(text);
  }
}
