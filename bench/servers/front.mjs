/** The HTTP front and the call of the upstream, the same for every queue. */

import { Pool } from "undici";

/** @returns a function that sends a body to the upstream and gives back the answer's text */
export function createCaller(upstream) {
  const pool = new Pool(upstream, { connections: 256 });
  const headers = { "content-type": "application/json", authorization: "Bearer bench-key-of-upstream" };
  return async (body) => {
    const call = { method: "POST", path: "/v1/chat/completions", headers, body: JSON.stringify(body) };
    const answer = await pool.request(call);
    const text = await answer.body.text();
    if (answer.statusCode !== 200) throw new Error(`the upstream answered ${answer.statusCode}`);
    return text;
  };
}

/**
 * POST: `add` the parsed body, then 202 with the id. GET: how many were accepted, stored with their result, and lost.
 */
export function createFront(add) {
  const count = { accepted: 0, stored: 0, lost: 0 };

  async function accept(text, outgoing) {
    const id = await add(JSON.parse(text));
    count.accepted++;
    reply(outgoing, 202, { id, object: "chat.completion.async", status: "queued" });
  }

  function handle(incoming, outgoing) {
    if (incoming.method === "GET") return reply(outgoing, 200, count);
    const chunks = [];
    incoming.on("data", (chunk) => chunks.push(chunk));
    incoming.on("end", () => {
      accept(Buffer.concat(chunks).toString(), outgoing).catch((error) =>
        reply(outgoing, 500, { error: { message: String(error) } }),
      );
    });
  }

  return {
    handle,
    stored: () => count.stored++,
    lost(error) {
      count.lost++;
      console.error(error);
    },
  };
}

function reply(outgoing, status, value) {
  const text = JSON.stringify(value);
  const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(text) };
  outgoing.writeHead(status, headers).end(text);
}
