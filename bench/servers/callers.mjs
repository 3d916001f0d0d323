/**
 * Callers, each with a connection of its own and one call after the other, for `seconds`; then it says what they met.
 *
 * `patient` callers wait for their next call until the answer is there, `sdk` ones retry a refusal twice, as late as
 * they were told, `rude` ones ask again at once. Raw sockets: a client library would cost more than the server.
 */

import { connect } from "node:net";

const { url, headers, body, callers, manners, seconds, warmUpSeconds } = JSON.parse(process.argv[2]);
const { hostname, port, pathname } = new URL(url);
const fields = Object.entries({
  host: `${hostname}:${port}`,
  ...headers,
  "content-length": Buffer.byteLength(body),
});
const call = `POST ${pathname} HTTP/1.1\r\n${fields.map((field) => field.join(": ")).join("\r\n")}\r\n\r\n${body}`;

const retries = manners === "sdk" ? 2 : 0;
const startedAt = performance.now();
const countFrom = startedAt + warmUpSeconds * 1000;
const until = startedAt + seconds * 1000;
const met = { good: 0, refused: 0, withoutRetryAfter: 0, otherStatus: {}, broken: {}, gaveUp: 0 };
const latenciesMs = [];
const retryAfterMs = [];
let busy = callers;

function caller() {
  const one = { socket: undefined, pieces: "", tries: 0, askedAt: 0 };
  open(one);
}

function open(one) {
  one.socket = connect(Number(port), hostname);
  one.socket.setNoDelay(true);
  one.socket.setEncoding("latin1");
  one.socket.on("data", (piece) => read(one, piece));
  one.socket.on("error", (error) => {
    one.failure = error.code;
  });
  const { socket } = one;
  socket.on("close", () => {
    if (one.socket !== socket) return;
    one.pieces = "";
    if (one.asked) count(met.broken, one.failure ?? "closed without an answer");
    one.failure = undefined;
    if (one.asked && performance.now() < until) setTimeout(open, 100, one);
    else one.socket = undefined;
    if (one.asked && performance.now() >= until) leave(one);
    one.asked = one.asked && one.socket !== undefined;
  });
  ask(one);
}

function ask(one) {
  if (performance.now() >= until) return leave(one);
  if (!one.socket) return open(one);
  one.asked = true;
  one.askedAt = performance.now();
  one.socket.write(call);
}

function read(one, piece) {
  one.pieces += piece;
  const end = one.pieces.indexOf("\r\n\r\n");
  if (end < 0) return;
  const head = one.pieces.slice(0, end).toLowerCase();
  const length = Number(/\ncontent-length: (\d+)/.exec(head)?.[1] ?? 0);
  if (one.pieces.length < end + 4 + length) return;
  one.pieces = one.pieces.slice(end + 4 + length);
  one.asked = false;
  const status = Number(head.slice(9, 12));
  const now = performance.now();
  const counts = now >= countFrom && now < until;
  if (/\nconnection: close/.test(head)) {
    one.socket.destroy();
    one.socket = undefined;
  }
  if (status === 200) {
    if (counts) {
      met.good++;
      latenciesMs.push(now - one.askedAt);
    }
    one.tries = 0;
    return ask(one);
  }
  if (status !== 429 && status !== 503) count(met.otherStatus, status);
  const told = Number(/\nretry-after-ms: (\d+)/.exec(head)?.[1] ?? Number.NaN);
  if (counts) {
    met.refused++;
    if (!(told > 0) || !/\nretry-after: \d+/.test(head)) met.withoutRetryAfter++;
    else if (retryAfterMs.length < 100_000) retryAfterMs.push(told);
  }
  refused(one, told);
}

function refused(one, told) {
  if (manners === "rude") return ask(one);
  if (one.tries++ >= retries) {
    met.gaveUp++;
    one.tries = 0;
    return ask(one);
  }
  setTimeout(ask, Number.isNaN(told) || told > 60_000 ? 500 * 2 ** one.tries : told, one);
}

function leave(one) {
  one.asked = false;
  one.socket?.destroy();
  if (--busy === 0) report();
}

function count(where, what) {
  where[what] = (where[what] ?? 0) + 1;
}

function at(sorted, share) {
  return Math.round(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0);
}

function report() {
  const sorted = latenciesMs.sort((a, b) => a - b);
  const told = retryAfterMs.sort((a, b) => a - b);
  const perSecond = met.good / (seconds - warmUpSeconds);
  const toldMs = { p10: at(told, 0.1), p50: at(told, 0.5), p90: at(told, 0.9) };
  console.log(JSON.stringify({ ...met, perSecond, p50Ms: at(sorted, 0.5), p99Ms: at(sorted, 0.99), toldMs }));
  process.exit(0);
}

// Whoever still waits for an answer, or for the time to come back, when the time is over does not matter.
setTimeout(report, seconds * 1000 + 200);
// Not all in the same moment, which only a benchmark would do.
for (let i = 0; i < callers; i++) setTimeout(caller, (i / callers) * Math.min(1000, warmUpSeconds * 500));
