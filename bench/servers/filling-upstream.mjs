/**
 * The provider of one Outlast, and the one who fills its queue: it submits requests (`wait: false`) so that about as
 * many wait as it is told, and answers their calls while it is open; calls that come while it is closed are held.
 *
 * PUT: the members of `wanted` that change. GET: what has happened so far.
 */

import { randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { Pool } from "undici";
import { answer, answerHeaders } from "../lib/answer.mjs";

const { body, numberPlace, headers, connections } = JSON.parse(process.argv[2]);
const [before, after] = body.split(numberPlace);
const mark = randomBytes(4).toString("hex");

/** `waiting`: how many are kept waiting; undefined: nothing is submitted. */
const wanted = { server: undefined, isOpen: false, waiting: undefined };
const count = { submitted: 0, accepted: 0, atOnce: 0, begun: 0, answered: 0 };
let failure;
const held = [];

/** How often the server is asked how many wait there. */
const lookMs = 50;
/** How much `ahead` changes at one look at most. */
const stepsPerLook = 10;
const mostAhead = 1024;
/**
 * How many requests may be between their submission and their call over those that are to wait: they are on their way
 * into the queue, or just being claimed. How many these are, only the server's own account of its queue tells.
 */
let ahead = 0;
let pool;

function fill() {
  if (wanted.waiting === undefined || !pool || failure) return;
  while (
    count.submitted - count.begun < wanted.waiting + ahead &&
    count.submitted - count.accepted < connections
  ) {
    void submit();
  }
}

async function submit() {
  const number = mark + String(++count.submitted).padStart(8, "0");
  const call = { method: "POST", path: "/v1/chat/completions", headers, body: before + number + after };
  try {
    const reply = await pool.request(call);
    const text = await reply.body.text();
    if (reply.statusCode !== 202) throw new Error(`answered ${reply.statusCode}: ${text}`);
    count.accepted++;
    if (JSON.parse(text).status !== "queued") count.atOnce++;
  } catch (error) {
    failure ??= `A submission failed: ${error.message}`;
  }
  fill();
}

async function look() {
  if (!wanted.isOpen || wanted.waiting === undefined) return;
  const waiting = await waitingAtServer();
  // Meanwhile it may have been told something else.
  if (wanted.waiting === undefined) return;
  const step = Math.round((wanted.waiting - waiting) / 2);
  ahead += Math.max(-stepsPerLook, Math.min(stepsPerLook, step));
  ahead = Math.max(0, Math.min(mostAhead, ahead));
  fill();
}

async function waitingAtServer() {
  const { body } = await pool.request({ method: "GET", path: "/v1/upstreams", headers });
  const { data } = await body.json();
  return data.flatMap(({ lanes }) => lanes).reduce((sum, { queued }) => sum + queued, 0);
}

function reply(outgoing) {
  count.answered++;
  outgoing.writeHead(200, answerHeaders).end(answer);
}

function call(outgoing) {
  count.begun++;
  if (wanted.isOpen) reply(outgoing);
  else held.push(outgoing);
  fill();
}

function change(text) {
  Object.assign(wanted, { waiting: undefined }, JSON.parse(text));
  if (wanted.server && !pool) pool = new Pool(wanted.server, { connections: connections + 1 });
  if (wanted.isOpen) for (const outgoing of held.splice(0)) reply(outgoing);
  fill();
}

async function state() {
  return { ...count, held: held.length, failure, waiting: pool ? await waitingAtServer() : 0 };
}

const server = createServer((incoming, outgoing) => {
  const pieces = [];
  incoming.on("data", (piece) => pieces.push(piece));
  incoming.on("end", async () => {
    if (incoming.method === "POST") return call(outgoing);
    if (incoming.method === "PUT") change(Buffer.concat(pieces).toString());
    outgoing.end(JSON.stringify(await state()));
  });
});
server.keepAliveTimeout = 75_000;
server.listen(0, "127.0.0.1", () => console.log(`listens on http://127.0.0.1:${server.address().port}`));
setInterval(
  () => look().catch((error) => (failure ??= `The queue could not be looked at: ${error.message}`)),
  lookMs,
);
