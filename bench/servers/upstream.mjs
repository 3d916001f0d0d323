/**
 * The provider: answers every POST with the same chat completion, after `--delay` ms.
 * GET says how many it has answered.
 */

import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { answer, answerHeaders } from "../lib/answer.mjs";

const { values } = parseArgs({ options: { delay: { type: "string", default: "0" } } });
const delayMs = Number(values.delay);

let answered = 0;

const server = createServer((incoming, outgoing) => {
  if (incoming.method === "GET") return outgoing.end(String(answered));
  const reply = () => {
    answered++;
    outgoing.writeHead(200, answerHeaders).end(answer);
  };
  incoming.resume();
  incoming.on("end", delayMs > 0 ? () => setTimeout(reply, delayMs) : reply);
});
server.keepAliveTimeout = 75_000;
server.listen(0, "127.0.0.1", () => console.log(`listens on http://127.0.0.1:${server.address().port}`));
