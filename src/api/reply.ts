/** What we answer with, as a value, and the one function that puts it on the wire. */

import type { ServerResponse } from "node:http";
import type { HeaderList } from "../core/headers.ts";

export interface Reply {
  status: number;
  headers: HeaderList;
  body: string | Uint8Array;
}

/** Headers that speak of a request of ours. An upstream that is such a proxy too says them of its own ones. */
export const oursAlone = /^(outlast-|idempotent-replayed$|preference-applied$)/;

/**
 * Writes a whole reply. A header that occurs more than once stays so. Does nothing where the caller has gone.
 * `last`: the connection is closed after it, because the server is going down.
 */
export function send(outgoing: ServerResponse, reply: Reply, last: boolean): void {
  if (outgoing.destroyed || outgoing.headersSent) return;
  const length = typeof reply.body === "string" ? Buffer.byteLength(reply.body) : reply.body.byteLength;
  const headers = reply.headers.flat();
  if (reply.status !== 204 && reply.status !== 304) headers.push("content-length", String(length));
  if (last) headers.push("connection", "close");
  outgoing.writeHead(reply.status, headers);
  outgoing.end(reply.body);
}
