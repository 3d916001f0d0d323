/**
 * The provider that streams: role and first content chunk at once, the others one by one at the pace that the model's
 * name says (see lib/paced.mjs), then finish, usage where it was asked for, and [DONE]. GET says how many streams
 * were begun.
 *
 * Raw sockets, frames made beforehand, and one timer for all streams: it shares the machine with what is measured.
 */

import { createServer } from "node:net";
import { pacedBy, pieces } from "../lib/paced.mjs";

const slots = 8192;
/** Streams by the ms in which their next chunk is due. */
const wheel = Array.from({ length: slots }, () => []);
let turnedTo = Math.floor(performance.now());
let timer;
let running = 0;
let begun = 0;

const base = {
  id: "chatcmpl-BenchBenchBenchBenchBench000",
  object: "chat.completion.chunk",
  created: 1760000000,
  model: "bench-model",
};
const frameOf = (text) => `${text.length.toString(16)}\r\n${text}\r\n`;
const eventOf = (value) => frameOf(`data: ${JSON.stringify(value)}\n\n`);
const chunkOf = (delta, finish_reason = null) =>
  eventOf({ ...base, choices: [{ index: 0, delta, finish_reason }] });

const head =
  "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
const opening = Buffer.from(head + chunkOf({ role: "assistant", content: "" }));
const finish = chunkOf({}, "stop");
const end = `${frameOf("data: [DONE]\n\n")}0\r\n\r\n`;

/** The same bytes for all streams of one length. */
const known = new Map();
function framesFor(chunks) {
  const found = known.get(chunks);
  if (found) return found;
  const usage = { prompt_tokens: 320, completion_tokens: chunks, total_tokens: 320 + chunks };
  const made = {
    content: pieces(chunks).map((content) => Buffer.from(chunkOf({ content }))),
    end: Buffer.from(finish + end),
    endWithUsage: Buffer.from(finish + eventOf({ ...base, choices: [], usage }) + end),
  };
  known.set(chunks, made);
  return made;
}

function begin(connection, { chunks, paceMs, hasUsage }) {
  begun++;
  const { socket } = connection;
  const frames = framesFor(chunks);
  const last = hasUsage ? frames.endWithUsage : frames.end;
  socket.write(opening);
  socket.write(frames.content[0]);
  const stream = { connection, frames: [...frames.content, last], next: 1, paceMs, dueAt: 0 };
  // An offset of its own: streams that begin together do not send together.
  stream.dueAt = Math.floor(performance.now() + 1 + Math.random() * paceMs);
  connection.stream = stream;
  running++;
  if (!timer) {
    turnedTo = Math.floor(performance.now());
    timer = setInterval(turn, 1);
  }
  plan(stream);
}

const plan = (stream) => wheel[Math.max(stream.dueAt, turnedTo + 1) % slots].push(stream);

function turn() {
  const now = Math.floor(performance.now());
  while (turnedTo < now) {
    const slot = ++turnedTo % slots;
    const due = wheel[slot];
    if (due.length === 0) continue;
    wheel[slot] = [];
    for (const stream of due) sendNext(stream);
  }
  if (running > 0) return;
  clearInterval(timer);
  timer = undefined;
}

function sendNext(stream) {
  const { connection, frames } = stream;
  if (!connection.socket.destroyed) {
    connection.socket.write(frames[stream.next++]);
    if (stream.next < frames.length) {
      stream.dueAt += stream.paceMs;
      return plan(stream);
    }
  }
  running--;
  connection.stream = undefined;
  read(connection);
}

function reply(socket, status, text) {
  socket.write(
    `HTTP/1.1 ${status}\r\ncontent-type: text/plain\r\ncontent-length: ${text.length}\r\n\r\n${text}`,
  );
}

/** Where a request's body ends, or undefined while it is not all there. */
function endOfBody(text, head, from) {
  const length = /\ncontent-length: *(\d+)/i.exec(head)?.[1];
  if (length !== undefined) {
    return text.length >= from + Number(length) ? from + Number(length) : undefined;
  }
  if (!/\ntransfer-encoding: *chunked/i.test(head)) return from;
  const found = text.indexOf("0\r\n\r\n", from);
  return found < 0 ? undefined : found + 5;
}

function read(connection) {
  if (connection.stream) return;
  const { socket, pieces: text } = connection;
  const headEnd = text.indexOf("\r\n\r\n");
  if (headEnd < 0) return;
  const head = text.slice(0, headEnd);
  const bodyEnd = endOfBody(text, head, headEnd + 4);
  if (bodyEnd === undefined) return;
  connection.pieces = text.slice(bodyEnd);
  if (head.startsWith("GET ")) return reply(socket, "200 OK", String(begun));
  const asked = pacedBy(text.slice(headEnd + 4, bodyEnd));
  if (!asked) return reply(socket, "400 Bad Request", "the model's name does not say what to stream");
  begin(connection, asked);
}

const server = createServer({ noDelay: true }, (socket) => {
  const connection = { socket, pieces: "", stream: undefined };
  socket.setEncoding("latin1");
  socket.on("data", (piece) => {
    connection.pieces += piece;
    read(connection);
  });
  socket.on("error", () => socket.destroy());
});
server.listen({ port: 0, host: "127.0.0.1", backlog: 4096 }, () =>
  console.log(`listens on http://127.0.0.1:${server.address().port}`),
);
