import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import type Database from "better-sqlite3";
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from "vitest";
import { StorageError } from "../../src/core/errors.ts";
import type { ChangeSet, PartKind, Told } from "../../src/core/ports.ts";
import type { RequestRecord } from "../../src/core/request.ts";
import { diskErrorKind } from "../../src/store/sqlite/connection.ts";
import { Engine } from "../../src/store/sqlite/engine.ts";
import { openMemory } from "../../src/store/sqlite/memory.ts";
import { type SqliteOptions, SqliteStore } from "../../src/store/sqlite/store.ts";
import { anId, aRecord, completes, starts, walk } from "../support/builders.ts";
import { HandClock } from "../support/clock.ts";
import { KeptDatabase, pragmaOf } from "../support/database.ts";
import { storeConformance } from "./conformance.ts";

const node = "local";

/** A clock that knows its timers, so that a test can wait until one is set. */
class TimerClock extends HandClock {
  readonly armed = new Set<() => void>();
  private onTimer = () => {};

  override timer(delayMs: number, run: () => void): () => void {
    this.armed.add(run);
    const cancel = super.timer(delayMs, () => {
      this.armed.delete(run);
      run();
    });
    this.onTimer();
    return () => {
      this.armed.delete(run);
      cancel();
    };
  }

  /** Moves on, and waits until what fell due has set its next timer. */
  async round(ms: number): Promise<void> {
    const set = new Promise<void>((resolve) => {
      this.onTimer = resolve;
    });
    this.advance(ms);
    await set;
  }
}

let dir: string;
let path: string;
let clock: TimerClock;
let told: Told[];
let failures: Error[];
let stores: SqliteStore[];

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "outlast-store-"));
  path = join(dir, "outlast.db");
  clock = new TimerClock();
  told = [];
  failures = [];
  stores = [];
});

afterEach(async () => {
  await Promise.all(stores.map((store) => store.close()));
  rmSync(dir, { recursive: true, force: true });
});

function options(more: Partial<SqliteOptions> = {}): SqliteOptions {
  return {
    path,
    node,
    minFreeDiskBytes: 0,
    clock,
    observer: { tell: (event) => told.push(event) },
    search: false,
    onFailed: (error) => failures.push(error),
    ...more,
  };
}

async function open(more: Partial<SqliteOptions> = {}): Promise<SqliteStore> {
  const store = await SqliteStore.open(options(more));
  stores.push(store);
  return store;
}

const accept = (record: RequestRecord, more: Partial<Extract<ChangeSet, { kind: "accept" }>> = {}) =>
  ({ kind: "accept", record, parts: [], ...more }) satisfies ChangeSet;
const body = (text: string) => ({ kind: "body" as const, seq: 0, bytes: Buffer.from(text) });
const applied = { status: "applied" };

/** What a connection was told cannot be seen from another one. */
const connection = (engine: Engine) => (engine as unknown as { db: Database.Database }).db;

storeConformance("SQLite in threads", async () => {
  const own = mkdtempSync(join(tmpdir(), "outlast-store-"));
  const more = { path: join(own, "outlast.db"), clock: new HandClock() };
  let store = await SqliteStore.open(options(more));
  const opened = () => ({ store, owner: { node, epoch: store.epoch } });
  return {
    ...opened(),
    async reopen() {
      await store.close();
      store = await SqliteStore.open(options(more));
      return opened();
    },
    async close() {
      await store.close();
      rmSync(own, { recursive: true, force: true });
    },
  };
});

storeConformance("SQLite in memory", async () => {
  const store = openMemory();
  const start = async () => ({ store, owner: { node, epoch: store.nextEpoch(node, 0) } });
  return { ...(await start()), reopen: start, close: () => store.close() };
});

describe("the file", () => {
  test("has a write-ahead log, large pages, and gives back what is deleted", async () => {
    await open();
    const db = new KeptDatabase(path, { readonly: true });
    expect(db.pragma("journal_mode")).toBe("wal");
    expect(db.pragma("page_size")).toBe(8192);
    expect(db.pragma("auto_vacuum")).toBe(2);
    expect(db.pragma("integrity_check")).toBe("ok");
    db.close();
  });

  test.each(["writes", "reads"] as const)("is synced at every commit by a connection that %s", (what) => {
    const writer = new Engine(path, { readonly: false });
    const engine = what === "writes" ? writer : new Engine(path, { readonly: true });
    const pragma = (name: string) => pragmaOf(connection(engine), name);
    expect(pragma("synchronous")).toBe(2);
    expect(pragma("foreign_keys")).toBe(1);
    expect(pragma("trusted_schema")).toBe(0);
    engine.close();
    writer.close();
  });

  test("is made with the folders above it", async () => {
    path = join(dir, "a", "b", "outlast.db");
    const store = await open();
    expect(await store.commit(accept(aRecord()))).toEqual(applied);
  });

  test("is in the main database file alone once the store is closed", async () => {
    const store = await open();
    const record = aRecord();
    await store.commit(accept(record));
    await store.close();
    const copy = join(dir, "copy.db");
    writeFileSync(copy, readFileSync(path));
    const found = new Engine(copy, { readonly: true });
    expect(found.get(record.id)).toEqual(record);
    found.close();
  });
});

describe("opening", () => {
  test("counts the starts of each node", async () => {
    const epochs: [string, number][] = [];
    for (const name of ["a", "a", "b", "a", "b"]) {
      const store = await open({ node: name });
      epochs.push([name, store.epoch]);
      await store.close();
    }
    expect(epochs).toEqual([
      ["a", 1],
      ["a", 2],
      ["b", 1],
      ["a", 3],
      ["b", 2],
    ]);
  });

  test("does not count a start that was refused", async () => {
    const first = await open();
    await expect(open()).rejects.toThrow();
    await first.close();
    expect((await open()).epoch).toBe(first.epoch + 1);
  });

  test("is refused while another store has the file, which goes on", async () => {
    const first = await open();
    await expect(open()).rejects.toThrow(
      `The database ${path} is in use by another Outlast process; one process owns a file.`,
    );
    const record = aRecord();
    expect(await first.commit(accept(record))).toEqual(applied);
    expect(await first.get(record.id)).toEqual(record);
    // Being refused has not broken the lock.
    await expect(open()).rejects.toThrow("in use");
    const { output } = await ended(child());
    expect(output).toContain("in use by another Outlast process");
    await first.close();
    expect(await (await open()).get(record.id)).toEqual(record);
  });

  test("is possible at once when the process that had the file is killed, and loses nothing", async () => {
    const waiting = aRecord();
    const process = child(waiting);
    await said(process, "open");
    await expect(open()).rejects.toThrow("in use");
    process.kill("SIGKILL");
    await once(process, "exit");
    const store = await open();
    expect(store.epoch).toBe(2);
    expect(await store.get(waiting.id)).toEqual(waiting);
  });

  test("is refused for a file of a newer version, which stays as it is", async () => {
    await (await open()).close();
    const version = bumpVersion(+1);
    await expect(open()).rejects.toThrow(
      `The database has schema ${version}, this version of Outlast knows ${version - 1}: use a newer Outlast.`,
    );
    expect(bumpVersion(-1)).toBe(version - 1);
    expect((await open()).epoch).toBe(2);
  });

  test("is refused for a file that is no database, which stays as it is", async () => {
    const text = "This is not a database, but somebody's notes.\n".repeat(500);
    writeFileSync(path, text);
    await expect(open()).rejects.toThrow(`The database ${path} cannot be opened: file is not a database`);
    expect(readFileSync(path, "utf8")).toBe(text);
  });

  test("is refused for a database of another program, which stays as it is", async () => {
    const db = new KeptDatabase(path);
    db.exec("CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine')");
    db.close();
    const before = readFileSync(path);
    await expect(open()).rejects.toThrow(`${path} is a database of another program`);
    expect(readFileSync(path).equals(before)).toBe(true);
  });

  test("is refused for a database of another program that numbers its schema too", async () => {
    const db = new KeptDatabase(path);
    db.exec("CREATE TABLE notes (text TEXT); PRAGMA user_version = 1; PRAGMA application_id = 1");
    db.close();
    await expect(open()).rejects.toThrow(`${path} is a database of another program`);
  });

  test("is refused for a folder", async () => {
    mkdirSync(path);
    await expect(open()).rejects.toThrow(`The database ${path} cannot be opened`);
  });

  test("accepts a file whose first start was cut off before the schema", async () => {
    const db = new KeptDatabase(path);
    db.pragma("page_size = 8192");
    db.pragma("auto_vacuum = INCREMENTAL");
    db.pragma("journal_mode = WAL");
    db.close();
    const store = await open();
    expect(await store.commit(accept(aRecord()))).toEqual(applied);
  });

  test("accepts a file that is empty", async () => {
    writeFileSync(path, "");
    expect((await open()).epoch).toBe(1);
  });

  function bumpVersion(by: number): number {
    const db = new KeptDatabase(path);
    const version = (db.pragma("user_version") as number) + by;
    db.pragma(`user_version = ${version}`);
    db.close();
    return version;
  }

  /** Another process that opens the file, stores `record`, says "open" and goes on. */
  function child(record?: RequestRecord): ChildProcess {
    const built = new URL("../../dist/store/sqlite/store.js", import.meta.url);
    const script = `
      import { SqliteStore } from ${JSON.stringify(built.href)};
      const clock = { now: () => 0, ticks: () => 0, timer: () => () => {} };
      const given = { path: ${JSON.stringify(path)}, node: "${node}", minFreeDiskBytes: 0, clock };
      const more = { observer: { tell() {} }, search: false, onFailed() {} };
      const store = await SqliteStore.open({ ...given, ...more });
      const record = ${JSON.stringify(record ?? null)};
      if (record) await store.commit({ kind: "accept", record, parts: [] });
      console.log("open");`;
    const file = join(dir, "child.mjs");
    writeFileSync(file, script);
    return spawn(process.execPath, [file], { stdio: "pipe" });
  }

  async function said(process: ChildProcess, word: string): Promise<void> {
    for await (const chunk of process.stdout!) if (String(chunk).includes(word)) return;
    throw new Error(`the child ended without a word: ${word}`);
  }

  async function ended(process: ChildProcess): Promise<{ output: string }> {
    let output = "";
    process.stderr!.on("data", (chunk) => {
      output += chunk;
    });
    await once(process, "close");
    return { output };
  }
});

describe("a fault of one statement", () => {
  test("rejects its own change alone, out of many that are written together", async () => {
    const store = await open();
    const taken = aRecord();
    await store.commit(accept(taken));
    const key = { project: "default", endpoint: "/e", key: "k" };
    const before = aRecord();
    const behind = aRecord();
    const results = await Promise.allSettled([
      store.commit(accept(before, { parts: [body("before")] })),
      store.commit(accept(aRecord({ id: taken.id }), { parts: [body("lost")], key })),
      store.commit(accept(behind, { parts: [body("behind")], key })),
    ]);
    expect(results.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
    expect((results[1] as PromiseRejectedResult).reason).not.toBeInstanceOf(StorageError);
    expect(await store.get(taken.id)).toEqual(taken);
    expect(await store.parts(taken.id, ["body"])).toEqual([]);
    expect(await store.get(before.id)).toEqual(before);
    expect(await store.parts(before.id, ["body"])).toHaveLength(1);
    expect(await store.byKey("default", "/e", "k")).toEqual(behind);
  });

  test("undoes all that its change had written", async () => {
    const store = await open();
    const record = aRecord();
    const key = { project: "default", endpoint: "/e", key: "k" };
    const parts = [body("one"), { ...body("two"), kind: "none" as PartKind }];
    await expect(store.commit(accept(record, { parts, key }))).rejects.toThrow("CHECK");
    expect(await store.get(record.id)).toBeUndefined();
    expect(await store.parts(record.id, ["body"])).toEqual([]);
    expect(await store.byKey("default", "/e", "k")).toBeUndefined();
  });

  test("is no trouble of the disk: the store goes on", async () => {
    const store = await open();
    const record = aRecord();
    await store.commit(accept(record));
    await expect(store.commit(accept(record))).rejects.toThrow("UNIQUE");
    expect(store.hasSpace()).toBe(true);
    expect(told).toEqual([]);
    expect(failures).toEqual([]);
    expect(await store.commit(accept(aRecord()))).toEqual(applied);
  });

  test("rejects its change in memory too", async () => {
    const store = openMemory();
    const record = aRecord();
    await store.commit(accept(record));
    await expect(store.commit(accept(record))).rejects.toThrow("UNIQUE");
    expect(await store.get(record.id)).toEqual(record);
    await store.close();
  });
});

test("many changes of one turn are on their way before it ends, in two batches at most", async () => {
  const store = await open();
  const post = vi.spyOn(Worker.prototype, "postMessage");
  onTestFinished(() => post.mockRestore());
  const commits = Array.from({ length: 200 }, () => store.commit(accept(aRecord())));
  expect(post).toHaveBeenCalledTimes(2);
  expect(await Promise.all(commits)).toEqual(commits.map(() => applied));
});

describe("closing", () => {
  test("waits for what was handed in", async () => {
    const store = await open();
    const records = Array.from({ length: 700 }, () => aRecord());
    const results = Promise.all(records.map((record) => store.commit(accept(record))));
    await store.close();
    expect((await results).every(({ status }) => status === "applied")).toBe(true);
    const again = await open();
    expect(await again.list({ project: "default", order: "asc", limit: 1000 })).toEqual(records);
  });

  test("waits for reads under way", async () => {
    const store = await open();
    const record = aRecord();
    await store.commit(accept(record));
    const found = Promise.all(Array.from({ length: 20 }, () => store.get(record.id)));
    await store.close();
    expect(await found).toEqual(Array(20).fill(record));
  });

  test("may be asked for more than once, also while changes are being written", async () => {
    const store = await open();
    const result = store.commit(accept(aRecord()));
    await Promise.all([store.close(), store.close()]);
    await store.close();
    expect(await result).toEqual(applied);
  });

  test("refuses what comes later, and takes that for no trouble of the disk", async () => {
    const store = await open();
    const record = aRecord();
    await store.close();
    await expect(store.commit(accept(record))).rejects.toThrow(StorageError);
    await expect(store.get(record.id)).rejects.toThrow(StorageError);
    expect(told).toEqual([]);
    expect(failures).toEqual([]);
  });

  test("leaves no timer behind", async () => {
    const store = await open();
    // The look at the disk, and the librarian's first one.
    expect(clock.armed.size).toBe(2);
    await store.close();
    expect(clock.armed.size).toBe(0);
  });

  test("leaves no timer behind where something is handed in afterwards", async () => {
    const store = await open();
    // The librarian finds nothing to do, and rests until something changes.
    while (clock.armed.size > 1) {
      clock.advance(1000);
      await store.search.behind();
    }
    await store.close();
    await expect(store.commit(accept(aRecord()))).rejects.toThrow(StorageError);
    expect(clock.armed.size).toBe(0);
  });

  test("leaves no timer behind while the free space is being looked at", async () => {
    const store = await open();
    clock.advance(1000);
    await store.close();
    expect(clock.armed.size).toBe(0);
  });
});

describe("free space", () => {
  const low = { event: "storage_trouble", kind: "low" };
  const recovered = { event: "storage_recovered" };

  test("below the floor is told once, and told again when it is above", async () => {
    const given = options({ minFreeDiskBytes: Number.MAX_SAFE_INTEGER });
    const store = await SqliteStore.open(given);
    stores.push(store);
    expect(store.hasSpace()).toBe(false);
    expect(told).toMatchObject([low]);
    await clock.round(1000);
    await clock.round(1000);
    expect(told).toMatchObject([low]);

    given.minFreeDiskBytes = 1;
    clock.advance(999);
    expect(store.hasSpace()).toBe(false);
    await clock.round(1);
    expect(store.hasSpace()).toBe(true);
    expect(told).toMatchObject([low, recovered]);

    given.minFreeDiskBytes = Number.MAX_SAFE_INTEGER;
    await clock.round(1000);
    expect(store.hasSpace()).toBe(false);
    expect(told).toMatchObject([low, recovered, low]);
  });

  test("below the floor leaves room for what is under way", async () => {
    const store = await open({ minFreeDiskBytes: Number.MAX_SAFE_INTEGER });
    const record = aRecord();
    expect(await store.commit(accept(record))).toEqual(applied);
    for (const transition of walk(record, starts({ node, epoch: store.epoch }), completes()))
      expect(await store.commit({ kind: "change", transition })).toEqual(applied);
    expect(failures).toEqual([]);
  });

  test("without a floor is never looked for", async () => {
    const store = await open({ minFreeDiskBytes: 0 });
    await clock.round(1000);
    expect(store.hasSpace()).toBe(true);
    expect(told).toEqual([]);
  });

  test("that runs out refuses what does not fit, keeps what does, and goes on when there is room", () => {
    const engine = new Engine(path, { readonly: false });
    const kept = aRecord();
    engine.commitAll([accept(kept)]);
    const pages = pragmaOf(connection(engine), "page_count") as number;
    pragmaOf(connection(engine), `max_page_count = ${pages}`);
    const batch = [aRecord(), aRecord()].map((record) => accept(record, { parts: [body("x".repeat(1e5))] }));
    const fits = aRecord();
    const [first, second, third] = engine.commitAll([batch[0]!, accept(fits), batch[1]!]);
    expect([first, third].map(diskErrorKind)).toEqual(["full", "full"]);
    expect(second).toEqual(applied);
    expect(engine.list({ project: "default", order: "asc", limit: 9 })).toEqual([kept, fits]);
    pragmaOf(connection(engine), `max_page_count = ${2 ** 30}`);
    expect(engine.commitAll(batch)).toEqual([applied, applied]);
    engine.close();
  });
});

describe("a read of several statements", () => {
  let writer: Engine;
  let reader: Engine;
  let waiting: RequestRecord;
  let record: RequestRecord;
  beforeEach(() => {
    writer = new Engine(path, { readonly: false });
    reader = new Engine(path, { readonly: true });
    waiting = aRecord();
    const [begun] = walk(waiting, starts({ node, epoch: 1 }));
    record = begun!.record;
    writer.commitAll([accept(waiting), { kind: "change", transition: begun! }]);
  });
  afterEach(() => {
    reader.close();
    writer.close();
  });

  /** Writes just before the reader runs a statement that it has run before, once. */
  function meanwhile(text: string, ...changes: ChangeSet[]): void {
    const { statements } = reader as unknown as { statements: Map<string, Database.Statement> };
    const [, statement] = [...statements].find(([sql]) => sql.includes(text))!;
    const get = statement.get.bind(statement);
    statement.get = (...values) => {
      statement.get = get;
      expect(writer.commitAll(changes)).toEqual(changes.map(() => applied));
      return get(...values);
    };
  }

  const written = (after: number, text: string, anew = false): ChangeSet => ({
    kind: "events",
    id: record.id,
    expect: record,
    forks: [],
    events: { after, bytes: Buffer.from(text), anew },
  });

  test("does not mix a stream that begins anew with what it was", () => {
    const read = () => reader.events(record.id, 0, 1000).map(({ bytes }) => Buffer.from(bytes).toString());
    writer.commitAll([written(0, "a"), written(1, "b"), written(2, "c")]);
    expect(read()).toEqual(["a", "b", "c"]);
    meanwhile("seq > ?", written(0, "A", true), written(1, "B"));
    expect(read()).toEqual(["a", "b", "c"]);
    expect(read()).toEqual(["A", "B"]);
  });

  test("does not miss an attempt that ends", () => {
    const read = () => reader.attempts(record.id).map(({ number, verdict }) => [number, verdict]);
    expect(read()).toEqual([[1, undefined]]);
    meanwhile("SELECT * FROM requests", { kind: "change", transition: walk(record, completes())[0]! });
    expect(read()).toEqual([[1, undefined]]);
    expect(read()).toEqual([[1, "success"]]);
  });
});

test("a list that could not be read because its thread did not start can be asked for again", async () => {
  const store = await open();
  const record = aRecord();
  await store.commit(accept(record));
  const query = { project: "default", order: "asc" as const, limit: 9 };
  renameSync(path, `${path}.away`);
  await expect(store.list(query)).rejects.toThrow("cannot be opened");
  renameSync(`${path}.away`, path);
  expect(await store.list(query)).toEqual([record]);
});

describe("the log", () => {
  test("is copied into the database when it has grown long, and starts anew", () => {
    const engine = new Engine(path, { readonly: false });
    for (let n = 0; n < 60; n++) {
      expect(engine.commitAll([accept(aRecord(), { parts: [body("x".repeat(400_000))] })])).toEqual([
        applied,
      ]);
    }
    // All together are 24 MB; long is 8 MB.
    expect(statSync(`${path}-wal`).size).toBeLessThan(9e6);
    expect(statSync(path).size).toBeGreaterThan(15e6);
    engine.close();
  });

  test("does not get a page for each of the streams that run at once", () => {
    const engine = new Engine(path, { readonly: false });
    const pageBytes = 8192;
    const streams = Array.from({ length: 100 }, () => walk(aRecord(), starts({ node, epoch: 1 }))[0]!.record);
    const next = (after: number, size: number) =>
      streams.map(
        (record): ChangeSet => ({
          kind: "events",
          id: record.id,
          expect: record,
          forks: [],
          events: { after, bytes: Buffer.from("x".repeat(size)), anew: false },
        }),
      );
    engine.commitAll(streams.map((record) => accept(record)));
    for (let after = 0; after < 10; after++) engine.commitAll(next(after, 1000));
    const before = statSync(`${path}-wal`).size;
    expect(engine.commitAll(next(10, 100))).toEqual(streams.map(() => applied));
    const pages = (statSync(`${path}-wal`).size - before) / pageBytes;
    expect(pages).toBeGreaterThan(1);
    expect(pages).toBeLessThan(20);
    engine.close();
  });
});

describe("a damaged file", () => {
  const failed = { event: "storage_trouble", kind: "failed" };

  /** A file with one request, in which the root page of `table` is overwritten. */
  async function damaged(table: string): Promise<RequestRecord> {
    const store = await open();
    const record = aRecord();
    await store.commit(accept(record, { parts: [body("b")] }));
    await store.close();
    const db = new KeptDatabase(path);
    const root = db.prepare("SELECT rootpage FROM sqlite_master WHERE name = ?").pluck().get(table) as number;
    db.close();
    const bytes = readFileSync(path);
    bytes.fill(0xff, (root - 1) * 8192, root * 8192);
    writeFileSync(path, bytes);
    return record;
  }

  test("that cannot be read stops the process once, and nothing more is acknowledged", async () => {
    const record = await damaged("parts");
    const store = await open();
    expect(await store.get(record.id)).toEqual(record);
    for (const _ of [1, 2]) {
      const read = store.parts(record.id, ["body"]);
      await expect(read).rejects.toMatchObject({ kind: "failed" });
      await expect(read).rejects.toBeInstanceOf(StorageError);
    }
    expect(failures).toMatchObject([{ kind: "failed" }]);
    expect(told).toMatchObject([failed]);
    expect(store.hasSpace()).toBe(false);
    await expect(store.commit(accept(aRecord()))).rejects.toMatchObject({ kind: "failed" });
    expect(failures).toHaveLength(1);
    expect(told).toHaveLength(1);
  });

  test("that cannot be written refuses the whole batch and stops the process once", async () => {
    await damaged("parts");
    const store = await open();
    const [whole, broken] = [aRecord(), aRecord()];
    const results = await Promise.allSettled([
      store.commit(accept(whole)),
      store.commit(accept(broken, { parts: [body("b")] })),
      store.commit(accept(aRecord({ id: anId() }))),
    ]);
    for (const result of results) {
      expect(result).toMatchObject({ status: "rejected", reason: { kind: "failed" } });
      expect((result as PromiseRejectedResult).reason).toBeInstanceOf(StorageError);
    }
    expect(failures).toHaveLength(1);
    expect(told).toMatchObject([failed]);
    expect(await store.get(whole.id)).toBeUndefined();
    expect(await store.get(broken.id)).toBeUndefined();
  });

  test("can still be closed, with changes that are refused", async () => {
    await damaged("parts");
    const store = await open();
    const refused = expect(store.commit(accept(aRecord(), { parts: [body("b")] }))).rejects.toThrow();
    await store.close();
    await refused;
  });
});
