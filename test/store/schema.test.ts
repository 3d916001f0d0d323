import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type Database from "better-sqlite3";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { matches } from "../../src/core/ledger/filter.ts";
import type { Bulk, Filter, Tally } from "../../src/core/ledger/ports.ts";
import type { ChangeSet, CommitResult, PartKind } from "../../src/core/ports.ts";
import type { RequestRecord } from "../../src/core/request.ts";
import { Engine } from "../../src/store/sqlite/engine.ts";
import { schemaVersion } from "../../src/store/sqlite/migrations.ts";
import type { Op } from "../../src/store/sqlite/op.ts";
import { packed as packOf } from "../../src/store/sqlite/pack.ts";
import { aRecord, completes, givesUp, retries, start, starts, walk } from "../support/builders.ts";
import { KeptDatabase } from "../support/database.ts";

interface Column {
  name: string;
  notnull: 0 | 1;
}
interface ForeignKey {
  table: string;
  from: string;
  to: string;
  on_delete: string;
}
type Row = Record<string, unknown>;
type Filed = Extract<Op, { kind: "filed" }>;

const owner = { node: "local", epoch: 1 };
const lane = "fake/gpt-test";
const callHash = "ab".repeat(32);
const bodyHash = "ef".repeat(32);
const events = { after: 0, bytes: Buffer.from("{}"), anew: false };
const vector = { project: "default", hash: callHash, createdAt: start, bytes: Buffer.from("[1]") };

const tally: Tally = {
  key: { day: 1, project: "default", endpoint: "/e", model: "m", upstream: "u", promptHash: "" },
  tags: [],
  sums: { completed: 1 },
};
const bulk: Bulk = {
  id: "bulk_1",
  project: "default",
  action: "retry",
  filter: { project: "default" },
  state: "in_progress",
  done: 0,
  skipped: 0,
  failed: 0,
  createdAt: start,
  updatedAt: start,
};

let dir: string;
let path: string;
let engine: Engine;
let db: Database.Database;
let tables: string[];
/** The request that has a row in every table. */
let streamed: string;

const rows = <T = Row>(sql: string, ...values: unknown[]): T[] => db.prepare(sql).all(...values) as T[];
const count = (table: string): number => rows<{ n: number }>(`SELECT count(*) AS n FROM ${table}`)[0]!.n;
const columns = (table: string): string[] =>
  rows<Column>(`SELECT name FROM pragma_table_info(?)`, table).map(({ name }) => name);
const foreignKeys = (table: string): ForeignKey[] =>
  rows<ForeignKey>(`SELECT * FROM pragma_foreign_key_list(?)`, table);

/** The column that numbers the rows of a table, which needs no index of its own. */
const rowKey = (table: string): string | undefined => {
  const keys = rows<{ name: string; type: string }>(
    "SELECT name, type FROM pragma_table_info(?) WHERE pk > 0",
    table,
  );
  return keys.length === 1 && keys[0]!.type === "INTEGER" ? keys[0]!.name : undefined;
};

/** Columns of each index of a table, among them its primary key; whole ones only, unless asked. */
function indexes(table: string): { name: string; unique: boolean; partial: boolean; columns: string[] }[] {
  const found = rows<{ name: string; unique: number; partial: number }>(
    `SELECT name, "unique", partial FROM pragma_index_list(?)`,
    table,
  );
  return found.map(({ name, unique, partial }) => ({
    name,
    unique: unique === 1,
    partial: partial === 1,
    columns: rows<Column>("SELECT name FROM pragma_index_info(?)", name).map((column) => column.name),
  }));
}

/** Beside its parts, which a pack stands in place of in truth. */
const packed = (id: string) =>
  db.prepare("INSERT INTO packs SELECT seq, x'00' FROM requests WHERE id = ?").run(id);

/** A row in every table. */
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "outlast-schema-"));
  path = join(dir, "outlast.db");
  engine = new Engine(path, { readonly: false });
  engine.nextEpoch(owner.node, start);
  const record = aRecord({ tags: ["t"], idempotencyKey: "k", callHash });
  streamed = record.id;
  const key = { project: record.project, endpoint: record.endpoint, key: "k" };
  const parts = [{ kind: "body" as const, seq: 0, bytes: Buffer.from("b") }];
  const [begun, ended] = walk(record, starts(owner), completes());
  const results = engine.commitAll([
    { kind: "accept", record, parts, key },
    { kind: "change", transition: begun! },
    { kind: "change", transition: ended!, events, vectors: [vector], tallies: [tally] },
    { kind: "flow", rows: [{ name: lane, value: "{}" }] },
    { kind: "bulk", bulk },
  ]);
  expect(results).toEqual(Array(5).fill({ status: "applied" }));
  db = new KeptDatabase(path);
  db.pragma("foreign_keys = ON");
  packed(record.id);
  tables = rows<{ name: string }>(
    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
  ).map(({ name }) => name);
});

afterAll(() => {
  db.close();
  engine.close();
  rmSync(dir, { recursive: true, force: true });
});

/** Tables whose rows are of no one request, and labels, which are found again by what they stand for. */
const ownTables = ["nodes", "requests", "flow", "vectors", "facets", "spans", "usage", "bulks", "labels"];
const children = (): string[] => tables.filter((table) => !ownTables.includes(table));

describe("every table", () => {
  test("is filled by these tests", () => {
    expect(tables).toEqual(
      expect.arrayContaining([
        "nodes",
        "requests",
        "idempotency_keys",
        "parts",
        "events",
        "attempts",
        "held",
        "flow",
        "vectors",
        "facets",
        "spans",
        "labels",
        "usage",
        "unfiled",
        "packs",
        "bulks",
      ]),
    );
    expect(tables.filter((table) => count(table) === 0)).toEqual([]);
  });

  test("is strict", () => {
    const list = rows<{ name: string; strict: number }>("SELECT name, strict FROM pragma_table_list");
    const loose = list.filter(({ name, strict }) => tables.includes(name) && strict === 0);
    expect(loose).toEqual([]);
  });

  test("refers to a request that takes its rows along when it is deleted", () => {
    for (const table of children()) {
      const keys = foreignKeys(table).filter((key) => key.table === "requests");
      expect(keys.length, table).toBeGreaterThan(0);
      for (const key of keys) expect(key, table).toMatchObject({ to: "seq", on_delete: "CASCADE" });
    }
  });

  test("finds its rows of a request by an index", () => {
    for (const table of children()) {
      for (const { from } of foreignKeys(table)) {
        const leading = indexes(table).filter((index) => !index.partial && index.columns[0] === from);
        const isRow = rowKey(table) === from;
        expect(leading.length > 0 || isRow, `${table}.${from}`).toBe(true);
      }
    }
  });

  test("has no reference that may be empty", () => {
    for (const table of children()) {
      for (const { from } of foreignKeys(table)) {
        const [column] = rows<Column>("SELECT * FROM pragma_table_info(?) WHERE name = ?", table, from);
        expect(column!.notnull, `${table}.${from}`).toBe(1);
      }
    }
  });
});

describe("a closed set of words", () => {
  const closed = ["state", "verdict", "kind", "codec", "degraded", "action", "caused_by"];
  const holders = () =>
    tables.flatMap((table) =>
      columns(table)
        .filter((column) => closed.includes(column))
        .map((column) => ({ table, column })),
    );

  /** Inserts a copy of the table's first row, with another value in one column. */
  function insertCopy(table: string, column: string, value: unknown): void {
    const row: Row = { ...rows(`SELECT * FROM ${table} LIMIT 1`)[0], [column]: value };
    const names = Object.keys(row);
    db.prepare(`INSERT INTO ${table} (${names.join(", ")}) VALUES (${names.map(() => "?").join(", ")})`).run(
      ...Object.values(row),
    );
  }

  test("is in columns of these names", () => {
    expect(new Set(holders().map(({ column }) => column))).toEqual(new Set(closed));
  });

  test("takes no word from outside", () => {
    for (const { table, column } of holders()) {
      for (const word of ["unknown", "", "QUEUED", "Success", "gzip"]) {
        const insert = () => insertCopy(table, column, word);
        expect(insert, `${table}.${column} = ${word}`).toThrow(
          new RegExp(`CHECK constraint failed.*${column}`),
        );
      }
    }
  });

  test("takes the word that is there: the copy fails for being one", () => {
    for (const { table, column } of holders()) {
      const [row] = rows(`SELECT ${column} FROM ${table} LIMIT 1`);
      expect(() => insertCopy(table, column, row![column]), table).toThrow("UNIQUE constraint failed");
    }
  });

  test.each([
    ["a processing request without an owner", { state: "processing", ended_at: null }],
    ["an owner of a request that is not processing", { owner_node: "local", owner_epoch: 1 }],
    ["a node without an epoch", { state: "processing", ended_at: null, owner_node: "local" }],
    ["an ended request without an end", { ended_at: null }],
    ["a waiting request with an end", { state: "queued" }],
    ["a failed request without an error", { state: "failed" }],
    ["a lane without an upstream", { lane: "/gpt-test" }],
    ["a lane without a model", { lane: "fake" }],
    ["a priority that does not exist", { priority: 3 }],
    ["terms that are no JSON", { terms: "{" }],
    ["forks that are no JSON", { forks: "[1" }],
    ["an attempt before the first", { attempt: -1 }],
    ["less than no invalid answer", { invalid: -1 }],
    ["findings that are no JSON", { findings: "{" }],
    ["a body's hash that is no SHA-256", { body_hash: Buffer.alloc(33) }],
    ["a fingerprint that is no SHA-256", { fingerprint: Buffer.alloc(31) }],
  ])("goes with rules about rows: there is never %s", (_, change) => {
    const set = Object.keys(change).map((name) => `${name} = ?`);
    const update = () => db.prepare(`UPDATE requests SET ${set.join(", ")}`).run(...Object.values(change));
    expect(update).toThrow("CHECK constraint failed");
  });
});

test.each([
  ["requests", ["id"]],
  ["idempotency_keys", ["project", "endpoint", "key"]],
  ["parts", ["request_seq", "kind", "seq"]],
  ["events", ["request_seq", "seq"]],
  ["attempts", ["request_seq", "number"]],
  ["flow", ["name"]],
  ["vectors", ["project", "hash"]],
  ["labels", ["label", "request_seq"]],
  ["bulks", ["id"]],
])("there is one row in %s for each %j", (table, expected) => {
  const unique = indexes(table).filter((index) => index.unique && !index.partial);
  expect(unique.map((index) => index.columns)).toContainEqual(expected);
});

describe("a query of the scheduler", () => {
  const group = { lane, priority: "default", project: "default" } as const;

  /** The plans of the statements that the engine prepares for a read. */
  function plan(read: (engine: Engine) => void): string[] {
    const fresh = new Engine(path, { readonly: true });
    const { statements } = fresh as unknown as { statements: Map<string, unknown> };
    read(fresh);
    const texts = [...statements.keys()];
    fresh.close();
    return texts.flatMap((sql) => {
      const values = Array(sql.split("?").length - 1).fill(null);
      return rows<{ detail: string }>(`EXPLAIN QUERY PLAN ${sql}`, ...values).map(({ detail }) => detail);
    });
  }

  test.each<[string, (engine: Engine) => void, string]>([
    ["the heads of a group", (it) => it.heads(group, 10), "requests_ready"],
    ["what expires", (it) => it.expiring({ limit: 10 }), "requests_deadline"],
    ["what expires in a lane", (it) => it.expiring({ lane, limit: 10 }), "requests_lane_deadline"],
    ["the groups", (it) => it.groups(), "requests_ready"],
    ["what was interrupted", (it) => it.interrupted(owner, 10), "requests_processing"],
  ])("for %s goes along one index, and sorts nothing", (_, read, index) => {
    const details = plan(read);
    expect(details).toHaveLength(1);
    expect(details[0]).toMatch(new RegExp(`^(SEARCH|SCAN) requests USING (COVERING )?INDEX ${index}\\b`));
  });

  test.each<[string, (engine: Engine) => void, string]>([
    ["the heads of a group", (it) => it.heads(group, 10), "lane=? AND priority=? AND project=?"],
    ["what was interrupted", (it) => it.interrupted(owner, 10), "owner_node=? AND owner_epoch<?"],
  ])("for %s reads no row that it does not want", (_, read, terms) => {
    const [detail] = plan(read);
    expect(detail).toMatch(/^SEARCH/);
    expect(detail).toContain(`(${terms})`);
  });

  test.each<[string, (engine: Engine) => void]>([
    ["one request", (it) => it.get("req_1")],
    ["a key", (it) => it.byKey("default", "/e", "k")],
    ["an answer's id", (it) => it.byResponse("default", "chatcmpl-1")],
    ["parts", (it) => it.parts("req_1", ["body"])],
    ["events", (it) => it.events(streamed, 0, 1000)],
    ["attempts", (it) => it.attempts("req_1")],
    ["recent calls", (it) => it.calledSince(0)],
    ["the newest answer to a body", (it) => it.newest("default", bodyHash, 0)],
    ["vectors", (it) => it.vectors("default", [callHash], 0)],
    ["a page of a list", (it) => it.list({ project: "default", order: "desc", limit: 10 })],
  ])("for %s scans no table, and sorts nothing", (_, read) => {
    const details = plan(read);
    expect(details.length).toBeGreaterThan(0);
    expect(details.filter((detail) => !detail.startsWith("SEARCH"))).toEqual([]);
  });

  test("for events goes along their key, and reads no batch that it does not want", () => {
    const details = plan((it) => it.events(streamed, 0, 1000));
    expect(details.filter((detail) => detail.includes("events"))).toEqual([
      "SEARCH events USING INDEX sqlite_autoindex_events_1 (request_seq=? AND seq<?)",
      "SEARCH events USING INDEX sqlite_autoindex_events_1 (request_seq=? AND seq>?)",
    ]);
  });

  test.each<[string, (engine: Engine) => void, string[]]>([
    [
      "recent calls",
      (it) => it.calledSince(0),
      [
        "SEARCH attempts USING INDEX attempts_started (started_at>?)",
        "SEARCH requests USING INTEGER PRIMARY KEY (rowid=?)",
      ],
    ],
    [
      "the newest answer to a body",
      (it) => it.newest("default", bodyHash, 0),
      ["SEARCH requests USING INDEX requests_bodies (project=? AND body_hash=? AND ended_at>?)"],
    ],
    [
      "vectors",
      (it) => it.vectors("default", [callHash], 0),
      ["SEARCH vectors USING INDEX sqlite_autoindex_vectors_1 (project=? AND hash=?)"],
    ],
  ])("for %s reads no row that it does not want, along its own index", (_, read, expected) => {
    expect(plan(read)).toEqual(expected);
  });

  test("keeps requests that have ended out of the indexes of those that wait", () => {
    const partial = indexes("requests").filter((index) => index.partial);
    const names = partial.map(({ name }) => name);
    expect(names).toEqual(
      expect.arrayContaining(["requests_ready", "requests_deadline", "requests_processing"]),
    );
  });
});

describe("a statement of the writer", () => {
  const at = start;
  const forgetBefore = start - 1;
  const repeats = { now: 0, orphanedAfter: 0, isRetry: true, failedAfter: 0 };
  const running = walk(aRecord(), starts(owner))[0]!;
  const changes: [string, ChangeSet, string[]][] = [
    [
      "what a keyless call may get",
      { kind: "accept", record: aRecord({ callHash: "cd".repeat(32) }), parts: [], repeats },
      [
        "SEARCH held USING COVERING INDEX held_age (orphaned_at>?)",
        "SEARCH held USING INDEX held_orphans (call_hash=? AND orphaned_at>?)",
        "SEARCH requests USING INTEGER PRIMARY KEY (rowid=?)",
        "SEARCH requests USING INDEX requests_failed_calls (call_hash=? AND ended_at>?)",
      ],
    ],
    [
      "an orphan, and those that are too old",
      { kind: "orphaned", id: "req_none", at, contentSent: false, forgetBefore },
      [
        "SEARCH held USING INTEGER PRIMARY KEY (rowid=?)",
        "SEARCH held USING COVERING INDEX held_age (orphaned_at<?)",
      ],
    ],
    [
      "an answered call",
      { kind: "answered", ids: ["req_none"] },
      ["SEARCH held USING INTEGER PRIMARY KEY (rowid=?)", "SEARCH requests USING COVERING INDEX"],
    ],
    [
      "the next events of a stream",
      { kind: "events", id: running.record.id, expect: running.record, forks: [], events },
      ["SEARCH requests USING INTEGER PRIMARY KEY (rowid=?)"],
    ],
    [
      "a stream that begins anew",
      {
        kind: "events",
        id: running.record.id,
        expect: running.record,
        forks: [0],
        events: { ...events, anew: true },
      },
      [
        "SEARCH requests USING INTEGER PRIMARY KEY (rowid=?)",
        "SEARCH events USING COVERING INDEX sqlite_autoindex_events_1 (request_seq=?)",
      ],
    ],
    [
      "the end of a stream",
      { kind: "change", transition: walk(running.record, completes())[0]!, events, dropAnswer: true },
      [
        "SEARCH requests USING INTEGER PRIMARY KEY (rowid=?)",
        "SEARCH events USING COVERING INDEX sqlite_autoindex_events_1 (request_seq=?)",
        "SEARCH parts USING COVERING INDEX sqlite_autoindex_parts_1 (request_seq=?)",
      ],
    ],
    [
      "new vectors, and those that are too old",
      { kind: "change", transition: walk(running.record, completes())[0]!, vectors: [vector] },
      [
        "SEARCH vectors USING INTEGER PRIMARY KEY (rowid=?)",
        "SEARCH vectors USING COVERING INDEX vectors_age (created_at<?)",
      ],
    ],
    [
      "what a caller was given instead",
      { kind: "degraded", id: running.record.id, degraded: "stale" },
      ["SEARCH requests USING INDEX sqlite_autoindex_requests_1 (id=?)"],
    ],
  ];

  /** The plans of the statements about held calls, streams and answers that a change takes. */
  function plan(change: ChangeSet): string[] {
    const own = join(dir, "plan.db");
    const fresh = new Engine(own, { readonly: false });
    // Another orphan, and another call that failed: else nothing is looked for.
    const other = aRecord({ callHash: "ef".repeat(32) });
    const [failed] = walk(other, givesUp());
    fresh.commitAll([
      { kind: "accept", record: running.record, parts: [] },
      { kind: "accept", record: other, parts: [] },
      { kind: "change", transition: failed! },
      { kind: "orphaned", id: other.id, at, contentSent: false, forgetBefore },
    ]);
    const { statements } = fresh as unknown as { statements: Map<string, unknown> };
    statements.clear();
    fresh.commitAll([change]);
    const texts = [...statements.keys()].filter((text) =>
      /\bheld\b|call_hash = |\bevents\b|\bforks\b|\bvectors\b|\bdegraded\b|FROM parts/.test(text),
    );
    fresh.close();
    for (const end of ["", "-wal", "-shm"]) rmSync(own + end, { force: true });
    return texts.flatMap((text) => {
      const values = Array(text.split("?").length - 1).fill(null);
      return rows<{ detail: string }>(`EXPLAIN QUERY PLAN ${text}`, ...values).map(({ detail }) => detail);
    });
  }

  test.each(changes)(
    "for %s goes along its indexes, scans nothing and sorts nothing",
    (_, change, expected) => {
      const details = plan(change);
      expect(details.filter((detail) => /SCAN|TEMP B-TREE/.test(detail))).toEqual([]);
      for (const start of expected) {
        expect(
          details.some((detail) => detail.startsWith(start)),
          `${start} in ${details.join("; ")}`,
        ).toBe(true);
      }
    },
  );
});

describe.each([1, 2, 3, 4])("a file of schema %i", (version) => {
  const released = readFileSync(new URL(`./released/schema-${version}.sql`, import.meta.url), "utf8");
  const second = { node: "local", epoch: 2 };
  let own: string;
  let old: Database.Database;
  let today: Engine;

  /** A table as the old file has it, by one of its columns. */
  const inOld = <T = Row>(sql: string): T[] => old.prepare(sql).all() as T[];

  beforeEach(() => {
    own = join(dir, "old.db");
    const file = new KeptDatabase(own);
    file.exec(released);
    file.close();
    old = new KeptDatabase(":memory:");
    old.exec(released);
    today = new Engine(own, { readonly: false });
  });
  afterEach(() => {
    today.close();
    old.close();
    for (const end of ["", "-wal", "-shm"]) rmSync(own + end, { force: true });
  });

  test("has the newest schema when it was opened, the same as a new file", () => {
    const fresh = join(dir, "fresh.db");
    new Engine(fresh, { readonly: false }).close();
    const schemaOf = (file: string) => {
      const one = new KeptDatabase(file, { readonly: true });
      const found = {
        version: one.pragma("user_version"),
        indexes: one.prepare("SELECT name, sql FROM sqlite_master WHERE type = 'index' ORDER BY name").all(),
        columns: one
          .prepare(
            `SELECT t.name AS "table", c.* FROM sqlite_master t, pragma_table_info(t.name) c
              WHERE t.type = 'table' ORDER BY t.name, c.cid`,
          )
          .all(),
        integrity: one.pragma("integrity_check"),
        references: one.prepare("SELECT * FROM pragma_foreign_key_check").all(),
      };
      one.close();
      return found;
    };
    const found = schemaOf(own);
    expect(found).toEqual(schemaOf(fresh));
    expect(found).toMatchObject({ version: schemaVersion, integrity: "ok", references: [] });
  });

  test("still has every row that it had, in every column that there still is", () => {
    const now = new KeptDatabase(own, { readonly: true });
    const gone: Record<number, string[]> = { 1: ["requests.answered"] };
    const lost: string[] = [];
    for (const { name: table } of inOld<{ name: string }>(
      "SELECT name FROM sqlite_master WHERE type = 'table'",
    )) {
      const all = inOld<Column>(`SELECT name FROM pragma_table_info('${table}')`);
      const left = now.prepare("SELECT name FROM pragma_table_info(?)").pluck().all(table);
      const both = all.map(({ name }) => name).filter((name) => left.includes(name));
      lost.push(...all.filter(({ name }) => !both.includes(name)).map(({ name }) => `${table}.${name}`));
      // An attempt that was under way stands in its request's row.
      const where = table === "attempts" ? "WHERE ended_at IS NOT NULL" : "";
      const text = `SELECT ${both.join(", ")} FROM ${table} ${where}`;
      const before = inOld(text);
      expect(before.length, table).toBeGreaterThan(0);
      expect(now.prepare(text).all(), table).toEqual(before);
    }
    expect(lost).toEqual(gone[version] ?? []);
    now.close();
  });

  test("has requests that can be streamed from now on", () => {
    expect(today.get("req_held_processing")!.forks).toEqual([]);
    expect(today.events("req_held_processing", 0, 1000)).toEqual([]);
    const expected = today.get("req_held_processing")!;
    const change: ChangeSet = { kind: "events", id: expected.id, expect: expected, forks: [0], events };
    expect(today.commitAll([change])).toEqual([{ status: "applied" }]);
    expect(today.get(expected.id)).toEqual({ ...expected, forks: [0] });
    expect(today.events(expected.id, 0, 1000)).toEqual([{ after: 0, bytes: events.bytes }]);
  });

  test("has the streams that it had", () => {
    const had = version >= 3;
    const batches = had
      ? inOld(`SELECT id, events.seq AS after, bytes FROM events JOIN requests ON requests.seq = request_seq
          ORDER BY request_seq, after`)
      : [];
    const all = today.list({ project: "default", order: "asc", limit: 100 });
    expect(all.flatMap(({ id }) => today.events(id, 0, 10_000).map((batch) => ({ id, ...batch })))).toEqual(
      batches,
    );
    expect(batches).toHaveLength(had ? 4 : 0);
    const forked = all.filter(({ forks }) => forks.length > 0).map(({ id, forks }) => [id, forks]);
    const expected = ["req_stream_completed", "req_stream_revived"].map((id) => [id, [0]]);
    expect(forked).toEqual(had ? expected : []);
  });

  test("has requests of which nothing was found or paid, and that may be answered otherwise from now on", () => {
    const expected = today.get("req_held_processing")!;
    const none = { cost: undefined, findings: undefined, degraded: undefined };
    expect(expected).toMatchObject({ invalid: 0, bodyHash: undefined, cachedFrom: undefined, ...none });
    const [, attempt] = today.attempts("req_keyed_completed");
    expect(attempt).toMatchObject({ verdict: "success", cost: undefined, findings: undefined });
    expect(today.vectors("default", [callHash], 0)).toEqual([]);
    expect(today.flow()).toEqual(version >= 4 ? inOld("SELECT * FROM flow") : []);
    const changes: ChangeSet[] = [
      { kind: "degraded", id: expected.id, degraded: "stale" },
      { kind: "change", transition: walk(expected, completes({ cost: 1.5 }))[0]!, vectors: [vector] },
      { kind: "flow", rows: [{ name: lane, value: "1" }] },
    ];
    expect(today.commitAll(changes)).toEqual(Array(3).fill({ status: "applied" }));
    expect(today.get(expected.id)).toMatchObject({ state: "completed", degraded: "stale", cost: 1.5 });
    expect(today.attempts(expected.id)).toMatchObject([{ cost: 1.5 }]);
    expect(today.vectors("default", [callHash], 0)).toEqual([vector]);
    expect(today.flow()).toEqual([{ name: lane, value: "1" }]);
  });

  test("has its attempts found by when they began", () => {
    const ended = inOld<{ upstream: string; startedAt: number; verdict: string }>(
      `SELECT upstream, started_at AS startedAt, verdict FROM attempts WHERE ended_at IS NOT NULL
        ORDER BY started_at, request_seq, number`,
    );
    expect(ended.length).toBeGreaterThan(5);
    expect(today.calledSince(0)).toMatchObject(ended);
    const middle = ended[4]!.startedAt;
    expect(today.calledSince(middle + 1)).toMatchObject(ended.filter(({ startedAt }) => startedAt > middle));
    expect(today.newest("default", bodyHash, 0)).toBeUndefined();
  });

  test("still has every request as it was", () => {
    const rowsBefore = inOld<Record<string, unknown>>("SELECT * FROM requests ORDER BY seq");
    expect(new Set(rowsBefore.map(({ state }) => state)).size).toBe(6);
    const listed = today.list({ project: "default", order: "asc", limit: 100 });
    expect(listed.map(({ id }) => id)).toEqual(rowsBefore.map(({ id }) => id));
    for (const [i, record] of listed.entries()) {
      const row = rowsBefore[i]!;
      expect(record).toMatchObject({
        state: row.state,
        lane: row.lane,
        attempt: row.attempt,
        counted: row.counted,
        throttled: row.throttled,
        createdAt: row.created_at,
        updatedAt: row.updated_at,
        deadlineAt: row.deadline_at,
        terms: JSON.parse(row.terms as string),
        tags: row.tags === null ? [] : JSON.parse(row.tags as string),
      });
      expect(record.error).toEqual(row.error === null ? undefined : JSON.parse(row.error as string));
      expect(record.responseId).toBe(row.response_id ?? undefined);
      expect(record.endedAt).toBe(row.ended_at ?? undefined);
      expect(record.owner?.epoch).toBe(row.owner_epoch ?? undefined);
      expect(record.callHash).toBe(hex(row.call_hash));
      expect(record.fingerprint).toBe(hex(row.fingerprint));
    }
  });

  test("still has every attempt, also those under way, and every key and part", () => {
    const attempts = inOld<{
      id: string;
      number: number;
      started_at: number;
      ended_at: number | null;
      verdict: string;
    }>("SELECT id, attempts.* FROM attempts JOIN requests ON seq = request_seq ORDER BY seq, number");
    expect(attempts.some(({ ended_at }) => ended_at === null)).toBe(version === 1);
    for (const { id, state, attempt, updated_at } of inOld("SELECT * FROM requests")) {
      const those = attempts.filter((one) => one.id === id && one.ended_at !== null);
      const underWay = state === "processing" ? [{ number: attempt, startedAt: updated_at }] : [];
      const expected = those.map(({ number, started_at, ended_at, verdict }) => ({
        number,
        startedAt: started_at,
        endedAt: ended_at,
        verdict,
      }));
      expect(today.attempts(id as string)).toMatchObject([...expected, ...underWay]);
      expect(today.attempts(id as string)).toHaveLength(expected.length + underWay.length);
    }
    for (const { key, id } of inOld<{ key: string; id: string }>(
      "SELECT key, id FROM idempotency_keys JOIN requests ON seq = request_seq",
    )) {
      expect(today.byKey("default", "chat.completions", key)?.id).toBe(id);
    }
    for (const { id, kind, bytes } of inOld<{ id: string; kind: PartKind; bytes: Buffer }>(
      "SELECT id, kind, bytes FROM parts JOIN requests ON requests.seq = request_seq",
    )) {
      expect(today.parts(id, [kind]).map((part) => Buffer.from(part.bytes))).toEqual([bytes]);
    }
  });

  test("goes on: what was interrupted is found, and can be finished", () => {
    expect(today.nextEpoch("local", start)).toBe(second.epoch);
    const interrupted = today.interrupted(second, 10).map(({ id }) => id);
    expect(interrupted).toEqual([
      "req_held_processing",
      "req_held_second_attempt",
      "req_keyed_processing",
      ...(version >= 3 ? ["req_stream_processing"] : []),
      ...(version >= 4 ? ["req_degraded"] : []),
    ]);
    const [transition] = walk(today.get("req_held_second_attempt")!, completes());
    expect(today.commitAll([{ kind: "change", transition: transition! }])).toEqual([{ status: "applied" }]);
    expect(today.attempts("req_held_second_attempt")).toMatchObject([
      { number: 1, verdict: "transient" },
      { number: 2, verdict: "success" },
    ]);
  });

  test("has its keyless calls that were under way become orphans; what had ended is nobody's", () => {
    const repeats = { now: 0, orphanedAfter: 0, isRetry: true, failedAfter: Number.MAX_SAFE_INTEGER };
    expect(today.commitAll([{ kind: "all_orphaned", at: start, forgetBefore: 0 }])).toEqual([
      { status: "applied" },
    ]);
    const got = inOld<{ id: string; call_hash: Buffer }>(
      "SELECT id, call_hash FROM requests WHERE call_hash IS NOT NULL ORDER BY seq",
    ).map(({ id, call_hash }) => {
      const call = aRecord({ callHash: call_hash.toString("hex") });
      const [result] = today.commitAll([{ kind: "accept", record: call, parts: [], repeats }]);
      return [id, (result as CommitResult).status];
    });
    expect(Object.fromEntries(got)).toEqual({
      req_held_queued: "adopted",
      req_held_processing: "adopted",
      req_held_retrying: "adopted",
      req_held_second_attempt: "adopted",
      req_held_completed: "applied",
      req_held_failed: "applied",
      req_held_gave_up: "applied",
      req_held_cancelled: "applied",
      ...(version >= 4 ? { req_degraded: "adopted" } : {}),
    });
  });

  test("has its requests counted, and found by what they are, by their tags and by when they came", () => {
    const count = (sql: string) => inOld<{ n: number }>(`SELECT count(*) AS n FROM requests ${sql}`)[0]!.n;
    const filter = { project: "default" };
    const all = today.list({ ...filter, order: "asc", limit: 100 });
    expect(today.size().requests).toBe(all.length);
    for (const { values, count: n } of today.counts(filter, ["status", "caused_by", "error_code"])) {
      const { status, caused_by, error_code } = values;
      const states = [status as RequestRecord["state"]];
      const causedBy = (caused_by ?? undefined) as Filter["causedBy"];
      const query = { ...filter, states, causedBy, errorCode: error_code ?? undefined };
      const expected = all.filter(
        (one) => matches(query, one) && (error_code ?? undefined) === one.lastErrorCode,
      );
      expect(n).toBe(expected.length);
    }
    expect(today.counts(filter, ["status"]).reduce((sum, { count: n }) => sum + n, 0)).toBe(count(""));
    for (const tag of new Set(all.flatMap(({ tags }) => tags))) {
      const query = { ...filter, labels: [{ name: "tag", value: tag }] };
      const found = today.list({ ...query, order: "desc", limit: 100 });
      expect(found).toEqual(all.filter((one) => matches(query, one)).toReversed());
    }
    const [createdAfter, createdBefore] = [all[3]!.createdAt - 1, all[3]!.createdAt + 1];
    const query = { ...filter, createdAfter, createdBefore };
    const expected = all.filter((one) => matches(query, one));
    expect(today.list({ ...query, order: "asc", limit: 100 })).toEqual(expected);
    const ended = all.filter(({ endedAt }) => endedAt !== undefined);
    expect(today.unfiled(100).map(({ id }) => id)).toEqual(ended.map(({ id }) => id));
  });

  test("takes the parts that it did not", () => {
    const record = today.get("req_held_processing")!;
    const sent = { kind: "sent" as const, seq: 1, bytes: Buffer.from("{}\nsent") };
    const [transition] = walk(record, completes());
    const answer = { kind: "answer" as const, seq: 0, bytes: Buffer.alloc(10_000, "a") };
    const end: ChangeSet = { kind: "change", transition: transition!, parts: [sent, answer] };
    expect(today.commitAll([end])).toEqual([{ status: "applied" }]);
    const { seq, round } = today.unfiled(100).find(({ id }) => id === record.id)!;
    const packs: Filed["packs"] = [[seq, packOf([answer, sent])]];
    expect(today.writeAll([{ kind: "filed", seqs: [[seq, round]], packs }])).toEqual([{ status: "applied" }]);
    expect(today.parts(record.id, ["answer", "sent"])).toEqual([answer, sent]);
    const file = new KeptDatabase(own, { readonly: true });
    expect(file.pragma("integrity_check")).toBe("ok");
    expect(file.prepare("SELECT count(*) FROM parts WHERE request_seq = ?").pluck().get(seq)).toBe(0);
    file.close();
  });

  const hex = (bytes: unknown) => (bytes === null ? undefined : (bytes as Buffer).toString("hex"));
});

describe("a file", () => {
  let own: string;
  beforeEach(() => {
    own = join(dir, "own.db");
  });
  afterEach(() => {
    for (const end of ["", "-wal", "-shm"]) rmSync(own + end, { force: true });
  });

  /** What is in the file, of its schema. */
  function schema() {
    const file = new KeptDatabase(own, { readonly: true });
    const pragma = (name: string) => file.pragma(name);
    const found = {
      version: pragma("user_version"),
      application: pragma("application_id"),
      // Counts every change of the schema, also one that is undone.
      cookie: pragma("schema_version"),
      pageSize: pragma("page_size"),
      autoVacuum: pragma("auto_vacuum"),
      everything: file.prepare("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name").all(),
    };
    file.close();
    return found;
  }

  test("that is new has the newest schema, and says so", () => {
    new Engine(own, { readonly: false }).close();
    expect(schema().version).toBe(schemaVersion);
    expect(schema().everything.length).toBeGreaterThan(0);
  });

  test("that has the newest schema is not changed by opening it again", () => {
    new Engine(own, { readonly: false }).close();
    const before = schema();
    new Engine(own, { readonly: false }).close();
    new Engine(own, { readonly: true }).close();
    expect(schema()).toEqual(before);
  });

  test("that could not take a step is as it was before the step", () => {
    const db = new KeptDatabase(own);
    db.exec("CREATE TABLE attempts (mine TEXT); PRAGMA application_id = 0x4f75746c");
    db.close();
    expect(() => new Engine(own, { readonly: false })).toThrow("already exists");
    expect(schema()).toMatchObject({ version: 0, everything: [{ name: "attempts" }] });
  });
});

test("a request that is deleted takes its children along, and no others", () => {
  const kept = aRecord({ callHash });
  const key = { project: kept.project, endpoint: kept.endpoint, key: "kept" };
  const parts = [{ kind: "body" as const, seq: 0, bytes: Buffer.from("b") }];
  const changes = walk(kept, starts(owner), retries(), givesUp()).map((transition) => ({
    kind: "change" as const,
    transition,
  }));
  const event: ChangeSet = {
    kind: "events",
    id: kept.id,
    expect: changes[0]!.transition.record,
    forks: [],
    events,
  };
  engine.commitAll([{ kind: "accept", record: kept, parts, key }, changes[0]!, event, ...changes.slice(1)]);
  packed(kept.id);
  for (const table of children()) expect(count(table), table).toBe(2);
  db.prepare("DELETE FROM requests WHERE id <> ?").run(kept.id);
  for (const table of children()) expect(count(table), table).toBe(1);
  expect(engine.byKey(key.project, key.endpoint, "kept")?.id).toBe(kept.id);
  db.prepare("DELETE FROM requests").run();
  for (const table of children()) expect(count(table), table).toBe(0);
});
