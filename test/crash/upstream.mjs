/**
 * The fake upstream of the crash suite, a process of its own that outlives every kill. It does what each prompt
 * asks for, and writes a line into its ledger before anybody can know of what it did.
 * Arguments: the ledger's path. Prints its port.
 */

import { createHash } from "node:crypto";
import { appendFileSync } from "node:fs";
import { createServer } from "node:http";
import { setTimeout as after } from "node:timers/promises";

const ledger = process.argv[2];
const calls = new Map();

const write = (line) => appendFileSync(ledger, `${JSON.stringify(line)}\n`);

/** The answer of one call: no two calls have the same, so that it tells by which one it was made. */
function completion(nonce, call, model, length) {
  const content = `${nonce}/${call} ${"lorem ".repeat(length / 6)}`;
  const choices = [{ index: 0, message: { role: "assistant", content }, finish_reason: "stop" }];
  const usage = { prompt_tokens: 1, completion_tokens: length, total_tokens: length + 1 };
  return Buffer.from(
    JSON.stringify({
      id: `chatcmpl-${nonce}-${call}`,
      object: "chat.completion",
      created: 1,
      model,
      choices,
      usage,
    }),
  );
}

/** The work is done, and would be paid for, also when nobody is there any more. */
function execute({ nonce, call, model }, length) {
  const body = completion(nonce, call, model, length);
  write({ nonce, call, did: "executed", sha: createHash("sha256").update(body).digest("hex") });
  return body;
}

const head = (body) => ({ "content-type": "application/json", "content-length": body.length });

/** What a step of a script does, by the word before its colon; the number behind it is ms or a status. */
const acts = {
  async ok(reply, job) {
    const body = execute(job, 60);
    reply.writeHead(200, head(body)).end(body);
  },
  async slow(reply, job, ms) {
    await after(ms);
    await acts.ok(reply, job);
  },
  async trickle(reply, job, ms) {
    const body = execute(job, 60_000);
    reply.writeHead(200, head(body));
    const part = Math.ceil(body.length / 4);
    for (let from = 0; from < body.length; from += part) {
      reply.write(body.subarray(from, from + part));
      await after(ms);
    }
    reply.end();
  },
  async error(reply, { nonce, call }, status) {
    write({ nonce, call, did: "refused", status });
    const error = {
      message: `refused with ${status}`,
      type: "test_error",
      code: `code_${status}`,
      param: null,
    };
    const body = Buffer.from(JSON.stringify({ error }));
    reply.writeHead(status, head(body)).end(body);
  },
  async drop(reply) {
    reply.destroy();
  },
  async cut(reply, job) {
    const body = execute(job, 6_000);
    reply.writeHead(200, head(body));
    reply.write(body.subarray(0, 1_000), () => reply.destroy());
  },
};

async function serve(incoming, reply) {
  const chunks = [];
  for await (const chunk of incoming) chunks.push(chunk);
  const { model, messages } = JSON.parse(Buffer.concat(chunks).toString());
  const { nonce, script } = JSON.parse(messages[0].content);
  const call = (calls.get(nonce) ?? 0) + 1;
  calls.set(nonce, call);
  write({ nonce, call, did: "received" });
  const [act, number] = script[Math.min(call, script.length) - 1].split(":");
  await acts[act](reply, { nonce, call, model }, Number(number));
}

// A caller that goes while its body arrives is no concern of ours: the next one is.
const server = createServer((incoming, reply) => serve(incoming, reply).catch(() => reply.destroy()));
server.keepAliveTimeout = 60_000;
// It goes with the test that started it, however that ends.
process.stdin.on("end", () => process.exit()).resume();
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
