/**
 * The provider: answers every POST with the same chat completion of about 600 bytes, after `--delay` ms.
 * GET says how many it has answered.
 */

import { createServer } from "node:http";
import { parseArgs } from "node:util";

const { values } = parseArgs({ options: { delay: { type: "string", default: "0" } } });
const delayMs = Number(values.delay);

const sentence = "It will cost nothing, as the dog is asleep and the fox pays for the jump by itself. ";
const answer = JSON.stringify({
  id: "chatcmpl-BenchBenchBenchBenchBench000",
  object: "chat.completion",
  created: 1760000000,
  model: "bench-model",
  choices: [
    { index: 0, message: { role: "assistant", content: sentence.repeat(4).trim() }, finish_reason: "stop" },
  ],
  usage: { prompt_tokens: 320, completion_tokens: 80, total_tokens: 400 },
});
const headers = { "content-type": "application/json", "content-length": Buffer.byteLength(answer) };
let answered = 0;

const server = createServer((incoming, outgoing) => {
  if (incoming.method === "GET") return outgoing.end(String(answered));
  const reply = () => {
    answered++;
    outgoing.writeHead(200, headers).end(answer);
  };
  incoming.resume();
  incoming.on("end", delayMs > 0 ? () => setTimeout(reply, delayMs) : reply);
});
server.keepAliveTimeout = 75_000;
server.listen(0, "127.0.0.1", () => console.log(`listens on http://127.0.0.1:${server.address().port}`));
