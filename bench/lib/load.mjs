/** The load: wrk in a process of its own, because it costs a fifth of what a generator in Node does. */

import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";

const script = join(import.meta.dirname, "post.lua");
/** Longer than any answer here takes: what is slow is to be measured, not counted as an error. */
const timeoutSeconds = 60;

/** Where the number of each request goes; post.lua knows it too. */
export const numberPlace = "#".repeat(16);

/** @returns a chat completion of exactly `bytes` bytes, with the members of `more` */
export function chatBody(bytes, more = {}) {
  const bodyOf = (content) =>
    JSON.stringify({
      model: "bench-model",
      ...more,
      messages: [
        { role: "system", content: `Answer in one sentence. ${numberPlace}` },
        { role: "user", content },
      ],
      temperature: 0.2,
    });
  const words = "The quick brown fox jumps over the lazy dog and wonders what it will cost. ";
  const missing = bytes - bodyOf("").length;
  if (missing < 0) throw new Error(`A body has at least ${bodyOf("").length} bytes.`);
  return bodyOf(words.repeat(Math.ceil(missing / words.length)).slice(0, missing));
}

/**
 * Sends POST requests as fast as the answers come.
 *
 * @param target `url`, `headers`, `body` and the directory `dir` for the body's file
 * @returns answers per second without the errors, latencies in ms, the number of answers and of errors
 */
export async function load(target, { concurrency, seconds }) {
  const bodyFile = join(target.dir, "body.json");
  writeFileSync(bodyFile, target.body);
  const headers = Object.entries(target.headers).map(([name, value]) => `${name}: ${value}`);
  const args = [
    ["-t", "1", "-c", concurrency, "-d", seconds, "--timeout", timeoutSeconds, "--latency", "-s", script],
    [target.url, "--", randomBytes(4).toString("hex"), bodyFile, ...headers],
  ];
  const { stdout } = await promisify(execFile)("wrk", args.flat().map(String));
  const result = JSON.parse(stdout.slice(stdout.indexOf('{"requests"')));
  const good = Math.max(0, result.requests - result.errors);
  return { ...result, perSecond: good / result.seconds };
}

/** One call before the load: a server that answers wrongly is not worth measuring. */
export async function probe(name, { url, headers, body }, status) {
  const once = body.replace(numberPlace, randomBytes(8).toString("hex"));
  const answer = await fetch(url, { method: "POST", headers, body: once });
  const text = await answer.text();
  if (answer.status !== status || text.length < 10) {
    throw new Error(`${name} answered ${answer.status} to the first call:\n${text}`);
  }
  if (status === 200 && JSON.parse(text).object !== "chat.completion") {
    throw new Error(`${name} does not give back the upstream's answer:\n${text}`);
  }
}
