/**
 * Callers of streams, each with a connection of its own and one stream after the other, until `streams` were asked for;
 * then it says what they met. Whenever a hundredth of the streams has ended, it says how many have.
 *
 * A stream is good when its content is the whole expected text, in order, it has a finish_reason, no usage that nobody
 * asked for, no error, and [DONE] as its last event. Raw sockets: a client library would cost more than the server.
 */

import { randomBytes } from "node:crypto";
import { connect } from "node:net";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { pieces } from "../lib/paced.mjs";

const settings = JSON.parse(process.argv[2]);
const { url, headers, body, numberPlace, concurrency, streams, chunks, rampMs } = settings;
const { hostname, port, pathname } = new URL(url);
const expected = pieces(chunks).join("");
const fields = { host: `${hostname}:${port}`, ...headers, "content-length": Buffer.byteLength(body) };
const head = Object.entries(fields).map((field) => field.join(": "));
const [before, after] = `POST ${pathname} HTTP/1.1\r\n${head.join("\r\n")}\r\n\r\n${body}`.split(numberPlace);
const mark = randomBytes(4).toString("hex");
const silenceLimitMs = 30_000;
const delay = monitorEventLoopDelay({ resolution: 10 });
delay.enable();

const firstMs = [];
const errors = {};
const startedAt = performance.now();
let asked = 0;
let ended = 0;
let open = 0;
let mostOpen = 0;
let chunksSeen = 0;
let busy = concurrency;

const callers = Array.from({ length: concurrency }, () => ({ socket: undefined, stream: undefined }));

function dial(caller) {
  const socket = connect({ port: Number(port), host: hostname, noDelay: true });
  caller.socket = socket;
  socket.setEncoding("latin1");
  socket.once("connect", () => ask(caller));
  socket.on("data", (piece) => read(caller, piece));
  socket.on("error", (error) => fail(caller, socket, error.code));
  socket.on("close", () => fail(caller, socket, "closed without an end"));
}

function ask(caller) {
  if (asked === streams) return leave(caller);
  const number = mark + String(++asked).padStart(8, "0");
  const now = performance.now();
  const stream = { raw: "", isBody: false, text: "", length: 0, finished: false, done: false };
  caller.stream = { ...stream, askedAt: now, heardAt: now };
  mostOpen = Math.max(mostOpen, ++open);
  caller.socket.write(before + number + after);
}

function read(caller, piece) {
  const { socket, stream } = caller;
  if (!stream) return;
  const now = performance.now();
  stream.heardAt = now;
  stream.raw += piece;
  try {
    const isEnd = (stream.isBody || readHead(stream)) && readFrames(stream);
    readEvents(stream, now);
    if (!isEnd) return;
    if (stream.length !== expected.length) throw new Error("content is missing");
    if (!stream.finished) throw new Error("no finish_reason");
    if (!stream.done) throw new Error("no [DONE]");
    end(caller);
    ask(caller);
  } catch (error) {
    fail(caller, socket, error.message);
  }
}

function readHead(stream) {
  const headEnd = stream.raw.indexOf("\r\n\r\n");
  if (headEnd < 0) return false;
  const found = stream.raw.slice(0, headEnd);
  if (!found.startsWith("HTTP/1.1 200")) throw new Error(`status ${found.slice(9, 12)}`);
  if (!/\ntransfer-encoding: *chunked/i.test(found)) throw new Error("not chunked");
  stream.raw = stream.raw.slice(headEnd + 4);
  stream.isBody = true;
  return true;
}

/** @returns whether the last one was there */
function readFrames(stream) {
  const { raw } = stream;
  let at = 0;
  let size = -1;
  while (size !== 0) {
    const lineEnd = raw.indexOf("\r\n", at);
    if (lineEnd < 0) break;
    size = Number.parseInt(raw.slice(at, lineEnd), 16);
    const frameEnd = lineEnd + 2 + size + 2;
    if (!(raw.length >= frameEnd)) {
      size = -1;
      break;
    }
    stream.text += raw.slice(lineEnd + 2, frameEnd - 2);
    at = frameEnd;
  }
  stream.raw = raw.slice(at);
  return size === 0;
}

function readEvents(stream, now) {
  for (let to = stream.text.indexOf("\n\n"); to >= 0; to = stream.text.indexOf("\n\n")) {
    const event = stream.text.slice(0, to);
    stream.text = stream.text.slice(to + 2);
    if (event.startsWith(":")) continue;
    if (!event.startsWith("data: ")) throw new Error("a line that is neither data nor a comment");
    if (stream.done) throw new Error("something after [DONE]");
    const data = event.slice(6);
    if (data === "[DONE]") stream.done = true;
    else readChunk(stream, JSON.parse(data), now);
  }
}

function readChunk(stream, chunk, now) {
  if (chunk.error) throw new Error(`error event ${chunk.error.code ?? chunk.error.type}`);
  const choice = chunk.choices[0];
  if (!choice) throw new Error("usage that nobody asked for");
  if (choice.finish_reason) stream.finished = true;
  const { content } = choice.delta;
  if (!content) return;
  if (!expected.startsWith(content, stream.length)) throw new Error("wrong content");
  if (stream.length === 0) firstMs.push(now - stream.askedAt);
  stream.length += content.length;
  chunksSeen++;
}

/** Of a caller's stream, well or not. */
function end(caller) {
  caller.stream = undefined;
  open--;
  ended++;
  if (Math.floor((ended * 100) / streams) > Math.floor(((ended - 1) * 100) / streams)) say({ ended });
}

function fail(caller, socket, why) {
  if (socket !== caller.socket) return;
  caller.socket = undefined;
  socket.destroy();
  errors[why] = (errors[why] ?? 0) + 1;
  if (caller.stream) end(caller);
  else asked++;
  if (asked >= streams) leave(caller);
  else setTimeout(dial, 100, caller);
}

function leave(caller) {
  const { socket } = caller;
  caller.socket = undefined;
  socket?.destroy();
  if (--busy === 0) report();
}

setInterval(() => {
  const now = performance.now();
  for (const caller of callers) {
    if (caller.stream && now - caller.stream.heardAt > silenceLimitMs) {
      fail(caller, caller.socket, "silence");
    }
  }
}, 1000);

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);

function report() {
  const seconds = (performance.now() - startedAt) / 1000;
  const sorted = firstMs.sort((a, b) => a - b);
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))];
  const first = { p50Ms: at(0.5), p99Ms: at(0.99), maxMs: sorted.at(-1), count: sorted.length };
  const lateMs = Math.max(0, delay.percentile(99) / 1e6 - 10);
  process.stdout.write(
    `${JSON.stringify({ seconds, first, errors, chunks: chunksSeen, mostOpen, callersLateP99Ms: lateMs })}\n`,
    () => process.exit(0),
  );
}

for (const [i, caller] of callers.entries()) setTimeout(dial, (i / concurrency) * rampMs, caller);
