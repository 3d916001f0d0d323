/**
 * Preloaded into every thread of the server: breaks one of its promises on purpose, so that the suite can show
 * that it would notice. CRASH_PLAN names the promise.
 */

import { ServerResponse } from "node:http";
import { isMainThread } from "node:worker_threads";
import Database from "better-sqlite3";
import { Pool } from "undici";

const { plant, dist } = JSON.parse(process.env.CRASH_PLAN ?? "{}");
const ofReader = async () => (await import(`${dist}/store/sqlite/reader.js`)).Reader.prototype;

/** Puts something around every statement that is run, or asked for one row. */
function aroundStatements(around) {
  // Kept alive: an object of SQLite that is collected aborts some versions of Node.
  globalThis.plantDatabase = new Database(":memory:");
  globalThis.plantStatement = globalThis.plantDatabase.prepare("SELECT 1");
  const statement = Object.getPrototypeOf(globalThis.plantStatement);
  for (const name of ["run", "get"]) {
    const inner = statement[name];
    statement[name] = function (...values) {
      return around(this, () => inner.apply(this, values));
    };
  }
}

/** Adds a trigger of the connection's own, which is no part of the file, as soon as its table is there. */
function addTrigger(sql) {
  const done = new WeakSet();
  aroundStatements(({ source, database }, run) => {
    const result = run();
    if (!source.startsWith("BEGIN") || done.has(database)) return result;
    try {
      database.exec(`CREATE TEMP TRIGGER planted ${sql}`);
      done.add(database);
    } catch (error) {
      if (!/no such table/.test(error.message)) throw error;
    }
    return result;
  });
}

const inWriter = {
  /** Says that requests are accepted, and commits that a few transactions later. */
  "acknowledges-too-early"() {
    const patience = 10;
    let accepts = false;
    let commit;
    let age = 0;
    aroundStatements(({ source }, run) => {
      if (source.startsWith("INSERT INTO requests ")) accepts = true;
      if (commit && source.startsWith("PRAGMA wal_checkpoint")) return { log: 0 };
      if (commit && source.startsWith("BEGIN")) {
        if (++age < patience) return { changes: 0 };
        commit();
        commit = undefined;
      }
      if (source !== "COMMIT" || !(commit || accepts)) return run();
      if (!commit) age = 0;
      commit ??= run;
      accepts = false;
      return { changes: 0 };
    });
  },
  /** Never says that a call may have been made twice. */
  "hides-duplicates"() {
    addTrigger(`AFTER UPDATE ON main.requests WHEN NEW.duplicate_possible = 1
      BEGIN UPDATE requests SET duplicate_possible = 0 WHERE seq = NEW.seq; END`);
  },
  /** Lets every call with a key be a request of its own. */
  "ignores-keys"() {
    addTrigger(`AFTER INSERT ON main.idempotency_keys
      BEGIN DELETE FROM idempotency_keys WHERE request_seq = NEW.request_seq; END`);
  },
  /** Forgets whose callers have gone, so that nobody's retry finds what is there. */
  "adopts-nothing"() {
    addTrigger(`AFTER INSERT ON main.held
      BEGIN DELETE FROM held WHERE request_seq = NEW.request_seq; END`);
  },
  /** Loses now and then the events that were just recorded. */
  "loses-events"() {
    addTrigger(`AFTER INSERT ON main.events WHEN NEW.seq % 7 = 3
      BEGIN DELETE FROM events WHERE request_seq = NEW.request_seq AND seq = NEW.seq; END`);
  },
  /** Leaves what a crash interrupted as it is. */
  async "forgets-the-interrupted"() {
    const reader = await ofReader();
    reader.interrupted = () => [];
  },
  /** Calls again although the caller said never to. */
  async "calls-again-what-must-not-be"() {
    const reader = await ofReader();
    const { interrupted } = reader;
    reader.interrupted = function (...args) {
      const rows = interrupted.apply(this, args);
      for (const { terms } of rows) terms.onUnknown = "retry";
      return rows;
    };
  },
};

const inMain = {
  /** Makes now and then a second call of which no record knows. */
  "calls-twice"() {
    const { dispatch } = Pool.prototype;
    let calls = 0;
    const deaf = Object.fromEntries(
      ["Request", "Response"].flatMap((part) =>
        ["Start", "Data", "End", "Error"].map((what) => [`on${part}${what}`, () => {}]),
      ),
    );
    Pool.prototype.dispatch = function (options, handler) {
      if (++calls % 5 === 0) dispatch.call(this, options, { ...deaf });
      return dispatch.call(this, options, handler);
    };
  },
  /** Tells who comes back the last event again. */
  async "forgets-where-readers-were"() {
    const { StreamReader } = await import(`${dist}/core/reader.js`);
    const { start } = StreamReader.prototype;
    StreamReader.prototype.start = function () {
      this.after = Math.max(0, this.after - 1);
      start.call(this);
    };
  },
  /** Takes whatever a second call says for the continuation of the first answer. */
  async "compares-nothing"() {
    const { Splice } = await import(`${dist}/core/splice.js`);
    Splice.prototype.take = (chunk) => ({ kind: "joined", chunks: [chunk] });
  },
  /** Delivers now and then something else than what is recorded. */
  "delivers-something-else"() {
    const { end } = ServerResponse.prototype;
    let ends = 0;
    ServerResponse.prototype.end = function (body, ...more) {
      const at = body instanceof Uint8Array ? Buffer.from(body).indexOf("lorem") : -1;
      if (at >= 0 && ++ends % 5 === 0) body.set([0x4c], at);
      return end.call(this, body, ...more);
    };
  },
};

if (plant) await (isMainThread ? inMain : inWriter)[plant]?.();
