/** The least that a proxy in Node can be: node:http in front, a pool of undici behind, nothing stored, nothing read. */

import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { Pool } from "undici";

const { values } = parseArgs({ options: { upstream: { type: "string" } } });
const pool = new Pool(values.upstream, { connections: 256 });

async function pass(path, authorization, body, outgoing) {
  const headers = { "content-type": "application/json", authorization };
  const answer = await pool.request({ method: "POST", path, headers, body });
  const bytes = Buffer.from(await answer.body.arrayBuffer());
  const reply = { "content-type": answer.headers["content-type"], "content-length": bytes.length };
  outgoing.writeHead(answer.statusCode, reply).end(bytes);
}

const server = createServer((incoming, outgoing) => {
  const chunks = [];
  incoming.on("data", (chunk) => chunks.push(chunk));
  incoming.on("end", () => {
    const body = chunks.length === 1 ? chunks[0] : Buffer.concat(chunks);
    pass(incoming.url, incoming.headers.authorization, body, outgoing).catch((error) =>
      outgoing.writeHead(502).end(String(error)),
    );
  });
});
server.listen(0, "127.0.0.1", () => console.log(`listens on http://127.0.0.1:${server.address().port}`));
