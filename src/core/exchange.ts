/** What an attempt has sent, and what it got, as it is kept: a line of JSON, and behind it the body byte for byte. */

import type { Exchange, ExchangeHead, Part } from "./ports.ts";
import { utf8 } from "./utf8.ts";

const decoder = new TextDecoder();
const newline = 10;

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
