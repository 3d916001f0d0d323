/** The least that a streaming proxy in Node can be: node:http on both sides, each piped into the other, nothing read. */

import { Agent, createServer, request } from "node:http";
import { parseArgs } from "node:util";

const { values } = parseArgs({ options: { upstream: { type: "string" } } });
const { hostname, port } = new URL(values.upstream);
const agent = new Agent({ keepAlive: true, maxFreeSockets: 4096 });

const server = createServer((incoming, outgoing) => {
  const { host: _, connection: __, ...headers } = incoming.headers;
  const options = { method: incoming.method, hostname, port, path: incoming.url, headers, agent };
  const call = request(options, (answer) => {
    outgoing.writeHead(answer.statusCode, { "content-type": answer.headers["content-type"] });
    answer.pipe(outgoing);
  });
  call.on("error", (error) => {
    if (outgoing.headersSent) outgoing.destroy();
    else outgoing.writeHead(502).end(String(error));
  });
  outgoing.on("close", () => {
    if (!outgoing.writableFinished) call.destroy();
  });
  incoming.pipe(call);
});
server.keepAliveTimeout = 75_000;
server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () =>
  console.log(`listens on http://127.0.0.1:${server.address().port}`),
);
