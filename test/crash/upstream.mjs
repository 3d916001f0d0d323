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

/** A plain answer says by which call it was made. A stream says the same each time, unless the prompt wants otherwise. */
function textOf({ nonce, call, wantsStream, fickle }, length) {
  const beginning = wantsStream ? `${nonce} ` : `${nonce}/${call} `;
  const lorem = "lorem ".repeat(length / 6);
  return wantsStream && fickle
    ? `${beginning}${lorem.slice(0, length / 3)}${call} ${lorem}`
    : beginning + lorem;
}

const answerOf = ({ nonce, call, model }) => ({ id: `chatcmpl-${nonce}-${call}`, created: 1, model });

function completion(job, content) {
  const choices = [{ index: 0, message: { role: "assistant", content }, finish_reason: "stop" }];
  const usage = { prompt_tokens: 1, completion_tokens: content.length, total_tokens: content.length + 1 };
  return Buffer.from(JSON.stringify({ ...answerOf(job), object: "chat.completion", choices, usage }));
}

/** The work is done, and would be paid for, also when nobody is there any more. */
function execute(job, length) {
  const { nonce, call, wantsStream } = job;
  const text = textOf(job, length);
  const body = completion(job, text);
  const sha = createHash("sha256").update(body).digest("hex");
  write({ nonce, call, did: "executed", sha, text: wantsStream ? text : undefined });
  return { body, text };
}

/** Streams a text, in pieces that are others at each call. */
async function stream(reply, job, text, { gapMs, isCut }) {
  const event = (delta, finish_reason = null) => {
    const choices = [{ index: 0, delta, finish_reason }];
    reply.write(
      `data: ${JSON.stringify({ ...answerOf(job), object: "chat.completion.chunk", choices })}\n\n`,
    );
  };
  reply.writeHead(200, { "content-type": "text/event-stream" });
  event({ role: "assistant", content: "" });
  const length = Math.ceil(text.length / 20) + job.call;
  const end = isCut ? text.length / 2 : text.length;
  for (let from = 0; from < end; from += length) {
    event({ content: text.slice(from, from + length) });
    await after(gapMs);
  }
  if (isCut) return reply.destroy();
  event({}, "stop");
  reply.end("data: [DONE]\n\n");
}

const head = (body) => ({ "content-type": "application/json", "content-length": body.length });

/** What a step of a script does, by the word before its colon; the number behind it is ms or a status. */
const acts = {
  async ok(reply, job) {
    const { body, text } = execute(job, 60);
    if (job.wantsStream) return stream(reply, job, text, { gapMs: 1 });
    reply.writeHead(200, head(body)).end(body);
  },
  async slow(reply, job, ms) {
    if (job.wantsStream) return stream(reply, job, execute(job, 600).text, { gapMs: ms / 20 });
    await after(ms);
    await acts.ok(reply, job);
  },
  async trickle(reply, job, ms) {
    const { body, text } = execute(job, 60_000);
    if (job.wantsStream) return stream(reply, job, text, { gapMs: ms });
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
    const { body, text } = execute(job, 6_000);
    if (job.wantsStream) return stream(reply, job, text, { gapMs: 10, isCut: true });
    reply.writeHead(200, head(body));
    reply.write(body.subarray(0, 1_000), () => reply.destroy());
  },
};

async function serve(incoming, reply) {
  const chunks = [];
  for await (const chunk of incoming) chunks.push(chunk);
  const { model, messages, stream: wantsStream } = JSON.parse(Buffer.concat(chunks).toString());
  const { nonce, script, fickle } = JSON.parse(messages[0].content);
  const call = (calls.get(nonce) ?? 0) + 1;
  calls.set(nonce, call);
  write({ nonce, call, did: "received" });
  const [act, number] = script[Math.min(call, script.length) - 1].split(":");
  await acts[act](reply, { nonce, call, model, wantsStream, fickle }, Number(number));
}

// A caller that goes while its body arrives is no concern of ours: the next one is.
const server = createServer((incoming, reply) => serve(incoming, reply).catch(() => reply.destroy()));
server.keepAliveTimeout = 60_000;
// It goes with the test that started it, however that ends.
process.stdin.on("end", () => process.exit()).resume();
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
