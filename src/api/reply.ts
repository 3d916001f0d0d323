/** What we answer with, as a value, and the one function that puts it on the wire. */

import type { ServerResponse } from "node:http";
import type { HeaderList } from "../core/headers.ts";
import type { Clock } from "../core/ports.ts";

export interface Reply {
  status: number;
  headers: HeaderList;
  body: string | Uint8Array;
}

/** Headers that speak of a request of ours. An upstream that is such a proxy too says them of its own ones. */
export const oursAlone = /^(outlast-|idempotent-replayed$|preference-applied$)/;

/** How long a caller may go on sending a body that nobody wants before the connection is closed. */
const lingerMs = 5000;

/**
 * Writes a whole reply. A header that occurs more than once stays so. Does nothing where the caller has gone.
 * `last`: the connection is closed after it, because the server is going down. What is left of a body is read
 * and dropped first: closing before would reset the connection, and could take the reply with it.
 */
export function send(outgoing: ServerResponse, reply: Reply, last: boolean, clock: Clock): void {
  if (outgoing.destroyed || outgoing.headersSent) return;
  const length = typeof reply.body === "string" ? Buffer.byteLength(reply.body) : reply.body.byteLength;
  const headers = reply.headers.flat();
  if (reply.status !== 204 && reply.status !== 304) headers.push("content-length", String(length));
  if (last) headers.push("connection", "close");
  outgoing.writeHead(reply.status, headers);
  if (outgoing.req.complete) {
    outgoing.end(reply.body);
    outgoing.req.resume();
  } else {
    outgoing.write(reply.body);
    dropRest(outgoing, clock);
  }
}

function dropRest(outgoing: ServerResponse, clock: Clock): void {
  const { req: incoming } = outgoing;
  const over = () => {
    cancelTimer();
    incoming.off("close", over);
    const { socket } = incoming;
    outgoing.end();
    if (!incoming.complete) socket.destroySoon();
  };
  const cancelTimer = clock.timer(lingerMs, over);
  incoming.once("close", over);
  incoming.resume();
}
