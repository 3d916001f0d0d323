import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type Database from "better-sqlite3";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { matches } from "../../src/core/ledger/filter.ts";
import { labelsOf } from "../../src/core/ledger/labels.ts";
import type { Bulk, CountBy, Filter, Tally, UsageQuery } from "../../src/core/ledger/ports.ts";
import type { ChangeSet, CommitResult, Part, PartKind } from "../../src/core/ports.ts";
import { causeOf, type RequestRecord, transition } from "../../src/core/request.ts";
import { Engine } from "../../src/store/sqlite/engine.ts";
import { schemaVersion } from "../../src/store/sqlite/migrations.ts";
import type { Op } from "../../src/store/sqlite/op.ts";
import { packed as packOf } from "../../src/store/sqlite/pack.ts";
import {
  aRecord,
  completes,
  givesUp,
  isRevived,
  retries,
  someTerms,
  start,
  starts,
  walk,
} from "../support/builders.ts";
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

/** Parts of those that were accepted, and packed, by schema 5: kind, number and bytes. */
const packedInFive = ((): Record<string, string[]> => {
  const json = '"headers":[["content-type","application/json"]]';
  const head = `head 0 {"method":"POST","path":"/chat/completions",${json}}`;
  const instructed = '"messages":[{"role":"system","content":"Be brief."}]';
  const body = `{"model":"gpt-test",${instructed},"user":"req_kept_packed"}`;
  const sent = `{"method":"POST","url":"https://api.example.com/v1/chat/completions",${json}}\n${body}`;
  return {
    req_kept_packed: [
      'answer 0 {"id":"chatcmpl-req_kept_packed"}',
      `answer_head 0 {"status":200,${json}}`,
      `body 0 ${body}`,
      head,
      String.raw`head 1 ["{\"role\":\"user\",\"content\":\"That is no JSON.\"}"]`,
      `received 1 {"status":200,${json}}\nno JSON`,
      `sent 1 ${sent}`,
      `sent 2 ${sent}`,
    ],
    req_resolved: [
      'answer 0 {"error":{"message":"The server had an error."}}',
      `answer_head 0 {"status":422,${json}}`,
      'body 0 {"model":"gpt-test","messages":[],"user":"req_resolved"}',
      head,
    ],
    req_dead: [`body 0 {"model":"gpt-test",${instructed},"user":"req_dead"}`, head],
  };
})();

const releasedAs = (version: number): string =>
  readFileSync(new URL(`./released/schema-${version}.sql`, import.meta.url), "utf8");

describe.each([1, 2, 3, 4, 5])("a file of schema %i", (version) => {
  const released = releasedAs(version);
  /** Schema 5 brought the ledger: what is told, counted, packed and erased. */
  const hasLedger = version >= 5;
  const everyKind: PartKind[] = ["answer", "answer_head", "body", "head", "received", "sent"];
  const ofDefault = { project: "default" };
  const second = { node: "local", epoch: 2 };
  let own: string;
  let old: Database.Database;
  let today: Engine;

  /** A table as the old file has it, by one of its columns. */
  const inOld = <T = Row>(sql: string): T[] => old.prepare(sql).all() as T[];
  /** The same of the file as it is now. */
  function inFile<T = Row>(sql: string): T[] {
    const file = new KeptDatabase(own, { readonly: true });
    const found = file.prepare(sql).all() as T[];
    file.close();
    return found;
  }

  const everyRequest = () => today.list({ ...ofDefault, order: "asc", limit: 100 });
  const idsOf = (filter: Omit<Filter, "project">) =>
    today.list({ ...ofDefault, ...filter, order: "asc", limit: 100 }).map(({ id }) => id);
  const commit = (...changes: ChangeSet[]) =>
    expect(today.commitAll(changes)).toEqual(changes.map(() => ({ status: "applied" })));

  const text = ({ kind, seq, bytes }: Part) => `${kind} ${seq} ${Buffer.from(bytes).toString("latin1")}`;
  const textsOf = (id: string) => today.parts(id, everyKind).map(text);
  const partsIn = (from: Database.Database) =>
    from
      .prepare(`SELECT id, kind, parts.seq AS seq, bytes FROM parts JOIN requests ON requests.seq = request_seq
        ORDER BY id, kind, parts.seq`)
      .all() as (Part & { id: string })[];

  beforeEach(() => {
    own = join(dir, "old.db");
    const file = new KeptDatabase(own);
    // In one transaction: by itself each row would be synced.
    file.exec(`BEGIN; ${released} COMMIT`);
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
        tables: one.prepare("SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name").all(),
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
    const all = everyRequest();
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
    const listed = everyRequest();
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
      expect(record.promptHash).toBe(hex(row.prompt_hash));
      expect(record.origin).toEqual(row.origin ? JSON.parse(row.origin as string) : undefined);
      expect(record.replayOf).toBe(row.replay_of ?? undefined);
      expect(record.resolvedAt).toBe(row.resolved_at ?? undefined);
      expect(record.bodiesErasedAt).toBe(row.bodies_erased_at ?? undefined);
    }
  });

  test("still has every attempt, also those under way, and every key and part", () => {
    const attempts = inOld<{
      id: string;
      number: number;
      started_at: number;
      ended_at: number | null;
      verdict: string;
      due_at?: number;
      connected_at?: number;
      waited_for?: string;
    }>("SELECT id, attempts.* FROM attempts JOIN requests ON seq = request_seq ORDER BY seq, number");
    expect(attempts.some(({ ended_at }) => ended_at === null)).toBe(version === 1);
    for (const { id, state, attempt, updated_at } of inOld("SELECT * FROM requests")) {
      const those = attempts.filter((one) => one.id === id && one.ended_at !== null);
      const underWay = state === "processing" ? [{ number: attempt, startedAt: updated_at }] : [];
      const expected = those.map(
        ({ number, started_at, ended_at, verdict, due_at, connected_at, waited_for }) => ({
          number,
          startedAt: started_at,
          endedAt: ended_at,
          verdict,
          dueAt: due_at ?? undefined,
          connectedAt: connected_at ?? undefined,
          waitedFor: waited_for ? JSON.parse(waited_for) : undefined,
        }),
      );
      expect(today.attempts(id as string)).toMatchObject([...expected, ...underWay]);
      expect(today.attempts(id as string)).toHaveLength(expected.length + underWay.length);
    }
    for (const { key, id } of inOld<{ key: string; id: string }>(
      "SELECT key, id FROM idempotency_keys JOIN requests ON seq = request_seq",
    )) {
      expect(today.byKey("default", "chat.completions", key)?.id).toBe(id);
    }
    const loose = partsIn(old);
    for (const { id, kind } of loose) {
      const expected = loose.filter((part) => part.id === id && part.kind === kind);
      expect(today.parts(id, [kind]).map(text)).toEqual(expected.map(text));
    }
    const kept = hasLedger ? ["received", "sent"] : [];
    expect(new Set(loose.map(({ kind }) => kind))).toEqual(
      new Set(["answer", "answer_head", "body", "head", ...kept]),
    );
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
      ...(hasLedger ? ["req_kept_processing"] : []),
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
      ...(hasLedger ? { req_kept_processing: "adopted" } : {}),
    });
  });

  test("has its requests counted, and found by what they are, by what was told of them and by when they came", () => {
    const count = (sql: string) => inOld<{ n: number }>(`SELECT count(*) AS n FROM requests ${sql}`)[0]!.n;
    const all = everyRequest();
    expect(today.size().requests).toBe(all.length);
    for (const { values, count: n } of today.counts(ofDefault, ["status", "caused_by", "error_code"])) {
      const { status, caused_by, error_code } = values;
      const states = [status as RequestRecord["state"]];
      const causedBy = (caused_by ?? undefined) as Filter["causedBy"];
      const query = { ...ofDefault, states, causedBy, errorCode: error_code ?? undefined };
      const expected = all.filter(
        (one) => matches(query, one) && (error_code ?? undefined) === one.lastErrorCode,
      );
      expect(n).toBe(expected.length);
    }
    expect(today.counts(ofDefault, ["status"]).reduce((sum, { count: n }) => sum + n, 0)).toBe(count(""));
    for (const label of all.flatMap(labelsOf)) {
      const query = { ...ofDefault, labels: [label] };
      const found = today.list({ ...query, order: "desc", limit: 100 });
      expect(found).toEqual(all.filter((one) => matches(query, one)).toReversed());
    }
    const [createdAfter, createdBefore] = [all[3]!.createdAt - 1, all[3]!.createdAt + 1];
    const query = { ...ofDefault, createdAfter, createdBefore };
    const expected = all.filter((one) => matches(query, one));
    expect(today.list({ ...query, order: "asc", limit: 100 })).toEqual(expected);
  });

  test("counts the requests of each combination of values as its rows are, and goes on to do so", () => {
    const [first] = walk(today.get("req_held_processing")!, completes());
    commit({ kind: "change", transition: first! });
    const all = everyRequest();
    const by: CountBy[] = ["status", "model", "upstream", "endpoint", "error_code", "caused_by", "resolved"];
    const expected = new Map<string, number>();
    for (const record of all) {
      const { state, model, upstream = null, endpoint, lastErrorCode = null, resolvedAt } = record;
      const resolved = state === "failed" ? String(resolvedAt !== undefined) : null;
      const values = [state, model, upstream, endpoint, lastErrorCode, causeOf(record) ?? null, resolved];
      const key = JSON.stringify(values);
      expected.set(key, (expected.get(key) ?? 0) + 1);
    }
    const counted = today
      .counts(ofDefault, by)
      .map(({ values, count }) => [JSON.stringify(by.map((name) => values[name])), count] as const);
    expect(new Map(counted)).toEqual(expected);
    const counts = inFile<{ n: number; really: number }>(
      "SELECT n, (SELECT count(*) FROM requests WHERE facet = facets.id) AS really FROM facets",
    );
    expect(counts.map(({ n }) => n)).toEqual(counts.map(({ really }) => really));
  });

  test("finds a request by each thing that its caller told of it", () => {
    const byLabel = (name: string, value: string) => idsOf({ labels: [{ name, value }] });
    const told = hasLedger ? ["req_told"] : [];
    expect(byLabel("user", "Zoë")).toEqual(hasLedger ? ["req_erased", "req_told"] : []);
    expect(byLabel("safety_identifier", "safe-1")).toEqual(told);
    expect(byLabel("metadata.team", "search")).toEqual(told);
    expect(byLabel("metadata.run", "42")).toEqual(told);
    expect(byLabel("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736")).toEqual(told);
    expect(byLabel("client_request_id", "client-1")).toEqual(told);
    const tagged = inOld<{ id: string }>(
      "SELECT id FROM requests WHERE EXISTS (SELECT 1 FROM json_each(tags) WHERE value = 'b') ORDER BY seq",
    );
    expect(tagged.length).toBeGreaterThan(0);
    expect(byLabel("tag", "b")).toEqual(tagged.map(({ id }) => id));
    const both = ["eu", "nightly"].map((value) => ({ name: "tag", value }));
    expect(idsOf({ labels: both })).toEqual([...(version >= 4 ? ["req_cache_source"] : []), ...told]);
  });

  test("has those unfiled that the librarian has not looked through, with all their parts", () => {
    const ended = everyRequest().filter(({ endedAt }) => endedAt !== undefined);
    const left = inOld<{ id: string }>(
      hasLedger
        ? "SELECT id FROM unfiled JOIN requests ON seq = request_seq ORDER BY seq"
        : "SELECT id FROM requests WHERE ended_at IS NOT NULL ORDER BY seq",
    ).map(({ id }) => id);
    const unfiled = today.unfiled(100);
    expect(unfiled.map(({ id }) => id)).toEqual(left);
    expect(left.length === ended.length).toBe(!hasLedger);
    const before = partsIn(old);
    for (const { id, parts, isPacked } of unfiled) {
      expect(isPacked).toBe(false);
      expect(parts.map(text)).toEqual(before.filter((part) => part.id === id).map(text));
    }
    const texts = left.map(textsOf);
    const packs = unfiled.map(({ seq, parts }): Filed["packs"][number] => [seq, packOf(parts)]);
    const seqs = unfiled.map(({ seq, round }): Filed["seqs"][number] => [seq, round]);
    expect(today.writeAll([{ kind: "filed", seqs, packs }])).toEqual([{ status: "applied" }]);
    expect(today.countUnfiled()).toBe(0);
    expect(left.map(textsOf)).toEqual(texts);
  });

  test("still has what the librarian has packed, byte for byte", () => {
    const packed = inFile<{ id: string }>(
      "SELECT id FROM packs JOIN requests ON seq = request_seq ORDER BY seq",
    ).map(({ id }) => id);
    // What had ended in the file of schema 4 was packed when that had become one of schema 5.
    const four = new KeptDatabase(":memory:");
    four.exec(releasedAs(4));
    const ended: string[] = four
      .prepare("SELECT id FROM requests WHERE ended_at IS NOT NULL ORDER BY seq")
      .pluck()
      .all();
    const ofFour = partsIn(four);
    four.close();
    expect(packed).toEqual(hasLedger ? [...ended, ...Object.keys(packedInFive)] : []);
    for (const id of packed) {
      const expected = packedInFive[id] ?? ofFour.filter((part) => part.id === id).map(text);
      expect(textsOf(id), id).toEqual(expected);
      expect(today.parts(id, ["body"]).map(text)).toEqual(expected.filter((one) => one.startsWith("body")));
    }
  });

  test("lets what failed begin anew, with the body that it had or with another one", () => {
    const [same, other] = [today.get("req_held_failed")!, today.get("req_held_gave_up")!];
    const before = textsOf(same.id);
    expect(before).toHaveLength(2);
    const parts: Part[] = [
      { kind: "head", seq: 0, bytes: Buffer.from('{"path":"/other"}') },
      { kind: "body", seq: 0, bytes: Buffer.from('{"model":"other"}') },
    ];
    const revived = transition(other, {
      type: "revived",
      now: other.updatedAt + 1000,
      lane: "fake/other",
      terms: someTerms,
      dueAt: other.updatedAt + 1000,
      model: "other",
      lastWasAmbiguous: false,
    });
    commit(
      { kind: "change", transition: walk(same, isRevived())[0]!, dropAnswer: true },
      { kind: "change", transition: revived!, dropAnswer: true, parts },
    );
    expect(today.get(same.id)).toMatchObject({ state: "queued", round: 2 });
    expect(textsOf(same.id)).toEqual(before);
    expect(today.get(other.id)).toMatchObject({ state: "queued", round: 2, model: "other" });
    expect(textsOf(other.id)).toEqual(['body 0 {"model":"other"}', 'head 0 {"path":"/other"}']);
    // Head and body of before stood in rows of their own: nothing of them is left.
    const found = `SELECT kind, codec FROM parts WHERE request_seq IN (SELECT seq FROM requests WHERE id = '${other.id}')`;
    expect(inFile(found)).toEqual([{ kind: "body", codec: "headed" }]);
    const ids = `'${same.id}', '${other.id}'`;
    const left = `SELECT request_seq FROM packs UNION ALL SELECT request_seq FROM unfiled`;
    expect(inFile(`SELECT id FROM requests WHERE id IN (${ids}) AND seq IN (${left})`)).toEqual([]);
  });

  test("has nothing of bodies that were erased, and does not get them back", () => {
    const erased = hasLedger ? ["req_erased", "req_erased_unfiled"] : [];
    const all = everyRequest();
    expect(all.filter(({ bodiesErasedAt }) => bodiesErasedAt !== undefined).map(({ id }) => id)).toEqual(
      erased,
    );
    const answer = { kind: "answer" as const, seq: 0, bytes: Buffer.from("late") };
    for (const id of erased) {
      const { seq, round } = inFile<{ seq: number; round: number }>(
        `SELECT seq, round FROM requests WHERE id = '${id}'`,
      )[0]!;
      expect(today.get(id)!.bodyHash).toBeUndefined();
      expect(textsOf(id)).toEqual([]);
      const late: Filed = { kind: "filed", seqs: [[seq, round]], packs: [[seq, packOf([answer])]] };
      expect(today.writeAll([late])).toEqual([{ status: "applied" }]);
      expect(textsOf(id)).toEqual([]);
    }
    const ended = { endedBefore: start * 2, keyedBefore: start * 2, orphanedBefore: start * 2, limit: 100 };
    const completed = all.filter(({ state }) => state === "completed").map(({ id }) => id);
    const bodies = today.erasable({ ...ended, what: "bodies", state: "completed" });
    expect(bodies.toSorted()).toEqual(completed.filter((id) => !erased.includes(id)).toSorted());
    const records = today.erasable({ ...ended, what: "record", state: "completed" });
    expect(records.toSorted()).toEqual(completed.toSorted());
    expect(today.unwanted(start * 2, 100, start * 2)).toEqual(hasLedger ? ["req_unwanted"] : []);
  });

  test("erases what it is told to, also what is packed, and the vectors of its answers", () => {
    const hash = "0e".repeat(32);
    const vectors = () => today.vectors("default fake/gpt-test", [hash], 0);
    const hasVectors = version >= 4;
    expect(vectors()).toHaveLength(hasVectors ? 1 : 0);
    const ids = ["req_keyed_completed", ...(hasVectors ? ["req_embedded"] : [])];
    for (const id of ids) expect(textsOf(id)).toHaveLength(4);
    commit({ kind: "erase", what: "bodies", ids, at: start });
    for (const id of ids) {
      expect(today.get(id)).toMatchObject({ state: "completed", bodiesErasedAt: start });
      expect(textsOf(id)).toEqual([]);
    }
    expect(vectors()).toEqual([]);
    const { requests } = today.size();
    commit({ kind: "erase", what: "record", ids, at: start });
    expect(today.many(ids)).toEqual([]);
    expect(today.size().requests).toBe(requests - ids.length);
  });

  test("gives a new request a number that no other one ever had", () => {
    // The last one of schema 5 is erased.
    const { last } = inOld<{ last: number }>(
      hasLedger ? "SELECT last FROM spans" : "SELECT max(seq) AS last FROM requests",
    )[0]!;
    expect(inOld(`SELECT id FROM requests WHERE seq = ${last}`)).toHaveLength(hasLedger ? 0 : 1);
    const record = aRecord();
    commit({ kind: "accept", record, parts: [] });
    expect(inFile(`SELECT seq FROM requests WHERE id = '${record.id}'`)).toEqual([{ seq: last + 1 }]);
  });

  test("has those resolved that were, and counts them so", () => {
    const failed = everyRequest().filter(({ state }) => state === "failed");
    const resolved = hasLedger ? ["req_resolved"] : [];
    const dead = () => {
      const groups = today.deadLetters(ofDefault, 100);
      const sum = (name: "count" | "resolved") => groups.reduce((all, group) => all + group[name], 0);
      return { count: sum("count"), resolved: sum("resolved") };
    };
    expect(idsOf({ resolved: true })).toEqual(resolved);
    expect(dead()).toEqual({ count: failed.length, resolved: resolved.length });
    commit({ kind: "resolve", ids: ["req_held_failed"], at: start });
    expect(idsOf({ resolved: true })).toEqual(["req_held_failed", ...resolved]);
    commit({ kind: "resolve", ids: ["req_held_failed", ...resolved], at: undefined });
    expect(idsOf({ resolved: true })).toEqual([]);
    expect(dead()).toEqual({ count: failed.length, resolved: 0 });
  });

  test("has the sums of what was used that it had, and adds to them", () => {
    type Asked = Pick<UsageQuery, "by" | "tag" | "promptHash">;
    const ever = { ...ofDefault, fromDay: 0, toDay: 100_000, limit: 100 };
    const used = (query: Asked) =>
      today.usage({ ...ever, ...query }).map(({ values, sums: { completed, failed, attempts, cost } }) => {
        return { ...values, completed, failed, attempts, cost };
      });
    const inRows = (where: string, ...by: string[]) => {
      if (!hasLedger) return by.length > 0 ? [] : [{ completed: 0, failed: 0, attempts: 0, cost: 0 }];
      const sums = ["completed", "failed", "attempts", "cost"].map((name) => `sum(${name}) AS ${name}`);
      const groups = by.length > 0 ? `GROUP BY ${by.join()}` : "";
      return inOld<Record<string, number>>(
        `SELECT ${[...by, ...sums].join()} FROM usage WHERE ${where} ${groups}`,
      );
    };
    const hash = "2a6137b43981f497449cc440fea4982f4e518b3c7409987f0fd5114a77301dd8";
    const asked: [Asked, ReturnType<typeof inRows>][] = [
      [{ by: [] }, inRows("tag = ''")],
      [{ by: ["day"] }, inRows("tag = ''", "day")],
      [{ by: ["tag"] }, inRows("tag <> ''", "tag")],
      [{ by: ["prompt_hash"] }, inRows("tag = ''", "prompt_hash")],
      [{ by: ["model", "upstream"], tag: "eu" }, inRows("tag = 'eu'", "model", "upstream")],
      [{ by: [], tag: "nightly", promptHash: hash }, inRows(`tag = 'nightly' AND prompt_hash = '${hash}'`)],
    ];
    for (const [query, expected] of asked) {
      const found = used(query);
      expect(found).toHaveLength(expected.length);
      expect(found).toEqual(expect.arrayContaining(expected));
    }
    const [all] = used({ by: [] });
    expect(all).toMatchObject(hasLedger ? { completed: 8, failed: 5, attempts: 15 } : { attempts: 0 });
    const record = today.get("req_held_processing")!;
    const { project, endpoint, model } = record;
    const key = { day: 20455, project, endpoint, model, upstream: "fake", promptHash: hash };
    const added = { completed: 1, attempts: 2, cost: 0.5 };
    const [end] = walk(record, completes());
    commit({ kind: "change", transition: end!, tallies: [{ key, tags: ["nightly"], sums: added }] });
    for (const [query, [before]] of [asked[0]!, asked[5]!]) {
      const { completed, failed, attempts, cost } = before!;
      const more = { completed: completed! + 1, attempts: attempts! + 2, cost: expect.closeTo(cost! + 0.5) };
      expect(used(query)).toEqual([{ failed, ...more }]);
    }
  });

  test("has its bulks as they were, and goes on with those that were in progress", () => {
    const all = today.bulks({ limit: 100 });
    const went = all.map(({ id, state, done, skipped, failed }) => [id, state, done, skipped, failed]);
    const had = [
      ["bulk_failed", "failed", 0, 0, 1],
      ["bulk_cancelled", "cancelled", 1, 0, 0],
      ["bulk_erasing", "in_progress", 1, 0, 0],
      ["bulk_retrying", "in_progress", 2, 1, 1],
      ["bulk_resolved", "completed", 1, 0, 0],
    ];
    expect(went).toEqual(hasLedger ? had : []);
    const retrying: Bulk = {
      id: "bulk_retrying",
      project: "default",
      action: "retry",
      filter: { project: "default", states: ["failed"], errorCode: "server_error" },
      text: undefined,
      options: { priority: "batch", terms: { maxAttempts: 20, deadlineMs: 86_400_000 }, delayMs: 500 },
      state: "in_progress",
      total: 5,
      done: 2,
      skipped: 1,
      failed: 1,
      cursor: "req_retried",
      lastId: "req_reworded",
      errorCode: "model_not_found",
      idempotencyKey: "key-bulk",
      fingerprint: "0b".repeat(32),
      createdAt: start + 24_000,
      updatedAt: start + 27_000,
      endedAt: undefined,
    };
    expect(today.bulkByKey("default", "key-bulk")).toEqual(hasLedger ? retrying : undefined);
    expect(today.bulkByKey("other", "key-bulk")?.id).toBe(hasLedger ? "bulk_failed" : undefined);
    expect(today.bulk("bulk_erasing")).toEqual(
      hasLedger
        ? {
            id: "bulk_erasing",
            project: "default",
            action: "erase",
            state: "in_progress",
            filter: { project: "default", states: ["completed"], createdBefore: start + 25_000 },
            text: `Zoë's "first draft"`,
            done: 1,
            skipped: 0,
            failed: 0,
            cursor: "req_kept_packed,req_erased",
            lastId: "req_erased",
            createdAt: start + 24_000,
            updatedAt: start + 28_000,
          }
        : undefined,
    );
    const isOver = {
      state: "completed" as const,
      done: 3,
      updatedAt: start + 30_000,
      endedAt: start + 30_000,
    };
    commit({ kind: "bulk", bulk: { ...retrying, ...isOver } });
    expect(today.bulk("bulk_retrying")).toEqual({ ...retrying, ...isOver });
    expect(today.bulks({ limit: 100 })).toHaveLength(hasLedger ? 5 : 1);
    expect(today.bulks({ state: "in_progress", limit: 100 }).map(({ id }) => id)).toEqual(
      hasLedger ? ["bulk_erasing"] : [],
    );
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

  const hex = (bytes: unknown) => (bytes ? (bytes as Buffer).toString("hex") : undefined);
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
