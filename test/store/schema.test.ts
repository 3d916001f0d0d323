import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type Database from "better-sqlite3";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Engine } from "../../src/store/sqlite/engine.ts";
import { schemaVersion } from "../../src/store/sqlite/migrations.ts";
import { aRecord, completes, start, starts, walk } from "../support/builders.ts";
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

const owner = { node: "local", epoch: 1 };
const lane = "fake/gpt-test";

let dir: string;
let path: string;
let engine: Engine;
let db: Database.Database;
let tables: string[];

const rows = <T = Row>(sql: string, ...values: unknown[]): T[] => db.prepare(sql).all(...values) as T[];
const count = (table: string): number => rows<{ n: number }>(`SELECT count(*) AS n FROM ${table}`)[0]!.n;
const columns = (table: string): string[] =>
  rows<Column>(`SELECT name FROM pragma_table_info(?)`, table).map(({ name }) => name);
const foreignKeys = (table: string): ForeignKey[] =>
  rows<ForeignKey>(`SELECT * FROM pragma_foreign_key_list(?)`, table);

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

/** A row in every table. */
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), "outlast-schema-"));
  path = join(dir, "outlast.db");
  engine = new Engine(path, { readonly: false });
  engine.nextEpoch(owner.node, start);
  const record = aRecord({ tags: ["t"], idempotencyKey: "k" });
  const key = { project: record.project, endpoint: record.endpoint, key: "k" };
  const parts = [{ kind: "body" as const, seq: 0, bytes: Buffer.from("b") }];
  const [begun, ended] = walk(record, starts(owner), completes());
  const results = engine.commitAll([
    { kind: "accept", record, parts, key },
    { kind: "change", transition: begun! },
    { kind: "change", transition: ended! },
  ]);
  expect(results).toEqual(Array(3).fill({ status: "applied" }));
  db = new KeptDatabase(path);
  db.pragma("foreign_keys = ON");
  tables = rows<{ name: string }>(
    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'",
  ).map(({ name }) => name);
});

afterAll(() => {
  db.close();
  engine.close();
  rmSync(dir, { recursive: true, force: true });
});

const children = (): string[] => tables.filter((table) => table !== "nodes" && table !== "requests");

describe("every table", () => {
  test("is filled by these tests", () => {
    expect(tables).toEqual(
      expect.arrayContaining(["nodes", "requests", "idempotency_keys", "parts", "attempts"]),
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
        expect(leading.length, `${table}.${from}`).toBeGreaterThan(0);
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
  const closed = ["state", "verdict", "kind", "codec"];
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
    ["an attempt before the first", { attempt: -1 }],
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
  ["attempts", ["request_seq", "number"]],
])("there is one row in %s for each %j", (table, expected) => {
  const unique = indexes(table).filter((index) => index.unique && !index.partial);
  expect(unique.map((index) => index.columns)).toContainEqual(expected);
});

describe("a query of the scheduler", () => {
  const group = { lane, priority: "default", project: "default" } as const;

  /** The plan of the statement that the engine prepares for a read. */
  function plan(read: (engine: Engine) => void): string[] {
    const fresh = new Engine(path, { readonly: true });
    const { statements } = fresh as unknown as { statements: Map<string, unknown> };
    read(fresh);
    const [sql, ...others] = statements.keys();
    fresh.close();
    expect(others).toEqual([]);
    const values = Array(sql!.split("?").length - 1).fill(null);
    return rows<{ detail: string }>(`EXPLAIN QUERY PLAN ${sql}`, ...values).map(({ detail }) => detail);
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
    ["attempts", (it) => it.attempts("req_1")],
    ["a page of a list", (it) => it.list({ project: "default", order: "desc", limit: 10 })],
  ])("for %s scans no table, and sorts nothing", (_, read) => {
    const details = plan(read);
    expect(details.length).toBeGreaterThan(0);
    expect(details.filter((detail) => !detail.startsWith("SEARCH"))).toEqual([]);
  });

  test("keeps requests that have ended out of the indexes of those that wait", () => {
    const partial = indexes("requests").filter((index) => index.partial);
    const names = partial.map(({ name }) => name);
    expect(names).toEqual(
      expect.arrayContaining(["requests_ready", "requests_deadline", "requests_processing"]),
    );
  });
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
  const kept = aRecord();
  const key = { project: kept.project, endpoint: kept.endpoint, key: "kept" };
  const parts = [{ kind: "body" as const, seq: 0, bytes: Buffer.from("b") }];
  const [transition] = walk(kept, starts(owner));
  engine.commitAll([
    { kind: "accept", record: kept, parts, key },
    { kind: "change", transition: transition! },
  ]);
  for (const table of children()) expect(count(table), table).toBe(2);
  db.prepare("DELETE FROM requests WHERE id <> ?").run(kept.id);
  for (const table of children()) expect(count(table), table).toBe(1);
  expect(engine.byKey(key.project, key.endpoint, "kept")?.id).toBe(kept.id);
  db.prepare("DELETE FROM requests").run();
  for (const table of children()) expect(count(table), table).toBe(0);
});
