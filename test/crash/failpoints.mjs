/**
 * Preloaded into every thread of the server (`node --import`): kills the process at a named point, so that the
 * product needs no code for it. CRASH_PLAN holds the plan as JSON: which point, at its how manieth hit, where to
 * write that it was hit, and where the built server is.
 */

import { appendFileSync } from "node:fs";
import { ServerResponse } from "node:http";
import { Socket } from "node:net";
import { isMainThread } from "node:worker_threads";
import Database from "better-sqlite3";
import { Pool } from "undici";

const plan = JSON.parse(process.env.CRASH_PLAN ?? "{}");
let left = plan.hit;

/** Dies here, if this is the point of the plan and its time has come. */
function at(point) {
  if (point !== plan.point || --left > 0) return;
  appendFileSync(plan.journal, `${point}\n`);
  process.kill(process.pid, "SIGKILL");
}

/** Puts something around a method; `around` is given the method, bound, and its arguments. */
function wrap(object, name, around) {
  const inner = object[name];
  object[name] = function (...args) {
    return around.call(this, (...given) => inner.apply(this, given), ...args);
  };
}

function watchStatements() {
  // Kept alive: an object of SQLite that is collected aborts some versions of Node.
  globalThis.kept = new Database(":memory:");
  globalThis.keptStatement = globalThis.kept.prepare("SELECT 1");
  const statement = Object.getPrototypeOf(globalThis.keptStatement);
  wrap(statement, "get", function (get, ...values) {
    const copies = this.source.includes("wal_checkpoint(PASSIVE)");
    if (copies) at("before-checkpoint");
    const row = get(...values);
    if (copies) at("after-checkpoint");
    return row;
  });
  let hasEvents = false;
  wrap(statement, "run", function (run, ...values) {
    const { source } = this;
    if (source.startsWith("BEGIN")) at("before-transaction");
    if (source === "COMMIT") at("before-commit");
    const result = run(...values);
    if (source.startsWith("INSERT INTO")) at("inside-transaction");
    if (source.startsWith("INSERT INTO events")) {
      hasEvents = true;
      at("events-inside");
    }
    if (source === "COMMIT" && hasEvents) {
      hasEvents = false;
      at("events-written");
    }
    if (source === "COMMIT") at("after-commit");
    return result;
  });
}

const known = { accept: "accept-known", events: "events-known" };

async function watchStore() {
  const { SqliteStore } = await import(`${plan.dist}/store/sqlite/store.js`);
  wrap(SqliteStore.prototype, "commit", async (commit, change) => {
    if (change.kind === "events") at("events-handed-over");
    const result = await commit(change);
    at(known[change.kind] ?? "change-known");
    return result;
  });
}

function watchCalls() {
  wrap(Pool.prototype, "dispatch", (dispatch, options, handler) => {
    at("before-send");
    before(handler, "onRequestStart", () => setImmediate(at, "after-send"));
    before(handler, "onResponseStart", () => at("answer-begun"));
    before(handler, "onResponseData", () => at("answer-flowing"));
    before(handler, "onResponseEnd", () => at("answer-whole"));
    return dispatch(options, handler);
  });
}

function before(handler, name, act) {
  wrap(handler, name, (inner, ...args) => {
    act();
    return inner(...args);
  });
}

/** Events on their way to a caller. */
const isEvent = /^[0-9a-f]+\r\ndata: /;

function watchReplies() {
  wrap(ServerResponse.prototype, "writeHead", (writeHead, ...args) => {
    at("before-reply");
    return writeHead(...args);
  });
  wrap(Socket.prototype, "write", (write, text, ...args) => {
    if (isEvent.test(text)) at("stream-flowing");
    return write(text, ...args);
  });
  wrap(ServerResponse.prototype, "end", (end, ...args) => {
    const result = end(...args);
    at("after-reply");
    return result;
  });
}

if (plan.point && !isMainThread) watchStatements();
if (plan.point && isMainThread) {
  await watchStore();
  watchCalls();
  watchReplies();
}
