import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { ChangeSet, Part, PartKind } from "../../src/core/ports.ts";
import type { RequestRecord } from "../../src/core/request.ts";
import { Engine } from "../../src/store/sqlite/engine.ts";
import type { Op } from "../../src/store/sqlite/op.ts";
import { packed } from "../../src/store/sqlite/pack.ts";
import { aFailure, aRecord, completes, fails, isRevived, start, starts, walk } from "../support/builders.ts";
import { KeptDatabase, pragmaOf } from "../support/database.ts";

const owner = { node: "local", epoch: 1 };
const secret = "Rumpelstilzchen";

let dir: string;
let path: string;
let engine: Engine;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "outlast-erase-"));
  path = join(dir, "outlast.db");
  engine = open();
});
afterEach(() => {
  engine.close();
  rmSync(dir, { recursive: true, force: true });
});

const open = () => new Engine(path, { readonly: false, synchronous: "NORMAL" });

function write(...ops: Op[]): void {
  expect(engine.writeAll(ops)).toEqual(ops.map(() => ({ status: "applied" })));
}

function commit(...changes: ChangeSet[]): void {
  expect(engine.commitAll(changes)).toEqual(changes.map(() => ({ status: "applied" })));
}

const part = (kind: Part["kind"], text: string, seq = 0): Part => ({ kind, seq, bytes: Buffer.from(text) });

const sorted = (parts: Part[]) =>
  parts.map(({ kind, seq, bytes }) => `${kind} ${seq} ${Buffer.from(bytes)}`).sort();

/** A request with that word in all that can hold one, and with an answer of this length. */
function ended(word: string, length: number): RequestRecord {
  const record = aRecord({ origin: { user: word, metadata: { word } }, tags: [word] });
  const text = `${word} `.repeat(length / word.length);
  const [begun, done] = walk(record, starts(owner), completes());
  const parts = [part("answer", text), part("sent", text, 1)];
  const events = { after: 0, bytes: Buffer.from(text), anew: false };
  commit(
    { kind: "accept", record, parts: [part("head", `{"a":"${word}"}`), part("body", text)] },
    { kind: "change", transition: begun! },
    { kind: "change", transition: done!, parts, events },
  );
  return done!.record;
}

function failedWith(body: string, answer: string) {
  const record = aRecord();
  const [begun, failed] = walk(record, starts(owner), fails());
  commit(
    { kind: "accept", record, parts: [part("body", body)] },
    { kind: "change", transition: begun! },
    { kind: "change", transition: failed!, parts: [part("answer", answer)] },
  );
  return { failed: failed!.record };
}

/** What a connection was told cannot be seen from another one. */
const connection = () => (engine as unknown as { db: KeptDatabase }).db;

/** How often the word is in the file, when the log has been copied. */
function found(word: string): number {
  const db = new KeptDatabase(path);
  db.pragma("wal_checkpoint(TRUNCATE)");
  db.close();
  return readFileSync(path).toString("latin1").split(word).length - 1;
}

const erase = (what: "bodies" | "record", ...ids: string[]): ChangeSet => ({
  kind: "erase",
  what,
  ids,
  at: start,
});

/** In the file or its log, as they are now. */
const isOnDisk = (word: string): boolean =>
  [path, `${path}-wal`].some((name) => existsSync(name) && readFileSync(name).includes(word));

describe("the file of what was erased", () => {
  test.each([100, 3000, 50_000])("has not a byte of it left, among others with %i bytes", (length) => {
    const others = Array.from({ length: 20 }, () => ended("Schneewittchen", length));
    const mine: RequestRecord[] = [];
    for (let i = 0; i < 20; i++) {
      mine.push(ended(secret, length));
      ended("Schneewittchen", length);
    }
    expect(found(secret)).toBeGreaterThan(20);
    commit(erase("record", ...mine.map(({ id }) => id)));
    expect(found(secret)).toBe(0);
    expect(engine.parts(others[0]!.id, ["body", "answer", "sent"])).toHaveLength(3);
    commit(erase("record", ...others.map(({ id }) => id)));
    expect(found("Schneewittchen")).toBeGreaterThan(0);
  });

  test("has none in its log either, without anything else that happens", () => {
    const record = ended(secret, 3000);
    expect(isOnDisk(secret)).toBe(true);
    commit(erase("record", record.id));
    expect(isOnDisk(secret)).toBe(false);
  });

  test("has some in its log for as long as somebody reads it, and the writer does not wait", () => {
    const reader = new KeptDatabase(path, { readonly: true });
    const record = ended(secret, 3000);
    reader.exec("BEGIN");
    reader.prepare("SELECT count(*) FROM requests").get();
    commit(erase("record", record.id));
    expect(pragmaOf(connection(), "busy_timeout")).toBe(5000);
    expect(isOnDisk(secret)).toBe(true);
    reader.exec("COMMIT");
    const large = aRecord();
    const parts = [part("body", "x".repeat(9_000_000))];
    commit({ kind: "accept", record: large, parts });
    commit({ kind: "accept", record: aRecord(), parts: [] });
    expect(isOnDisk(secret)).toBe(false);
    reader.close();
  });

  test.each([3000, 50_000])("has none left of an answer with %i bytes that another round drops", (length) => {
    const { failed } = failedWith("asked", `${secret} `.repeat(length / secret.length));
    const [revived] = walk(failed, isRevived());
    commit({ kind: "change", transition: revived!, dropAnswer: true });
    expect(found(secret)).toBe(0);
  });

  test("has none left of a large body that another one takes the place of, packed or not", () => {
    const { failed } = failedWith(`${secret} `.repeat(5000), "refused");
    const [{ seq, round, parts }] = engine.unfiled(1) as [ReturnType<Engine["unfiled"]>[number]];
    write({ kind: "filed", seqs: [[seq, round]], packs: [[seq, packed(parts)]] });
    const [revived] = walk(failed, isRevived());
    commit({ kind: "change", transition: revived!, dropAnswer: true, parts: [part("body", "other")] });
    expect(found(secret)).toBe(0);
  });

  test("has none left of a stream that begins anew", () => {
    const record = aRecord();
    const [begun] = walk(record, starts(owner));
    commit({ kind: "accept", record, parts: [] }, { kind: "change", transition: begun! });
    for (const anew of [false, true]) {
      const bytes = Buffer.from(anew ? "new" : `${secret} `.repeat(5000));
      commit({
        kind: "events",
        id: record.id,
        expect: begun!.record,
        forks: [],
        events: { after: 0, bytes, anew },
      });
    }
    expect(found(secret)).toBe(0);
  });

  test("has none of the bodies left, where only those go", () => {
    const record = ended(secret, 3000);
    commit(erase("bodies", record.id));
    // Of the record: its user, a tag and metadata.
    expect(found(secret)).toBe(3);
  });

  test("has none left of what was moved within it before: packed, and written again", () => {
    const records = Array.from({ length: 40 }, (_, i) => ended(i % 2 ? secret : "Schneewittchen", 2500));
    const unfiled = engine.unfiled(100);
    write({
      kind: "filed",
      seqs: unfiled.map(({ seq, round }) => [seq, round]),
      packs: unfiled.map(({ seq, parts }) => [seq, packed(parts)]),
    });
    commit(erase("record", ...records.filter((_, i) => i % 2).map(({ id }) => id)));
    expect(found(secret)).toBe(0);
  });
});

test("the number of an erased request is never another one's, also after a start", () => {
  ended("one", 100);
  const last = ended("two", 100);
  const [, before] = engine.unfiled(10);
  expect(before!.id).toBe(last.id);
  commit(erase("record", last.id));
  engine.close();
  engine = open();
  const next = ended("three", 100);
  const found = engine.unfiled(10).find(({ id }) => id === next.id)!;
  expect(found.seq).toBe(before!.seq + 1);
});

test("a label that shares its number with another finds only its own requests", () => {
  const [one, two] = [ended("one", 10), ended("two", 10)];
  const db = new KeptDatabase(path);
  const labels = db.prepare("SELECT label, request_seq FROM labels").all();
  const enter = db.prepare("INSERT OR IGNORE INTO labels VALUES (?, ?)");
  for (const { label } of labels) for (const { request_seq } of labels) enter.run(label, request_seq);
  db.close();
  for (const record of [one, two]) {
    const filter = { project: "default", labels: [{ name: "tag", value: record.tags[0]! }] };
    expect(engine.list({ ...filter, order: "asc", limit: 10 })).toEqual([record]);
    expect(engine.counts(filter, [])).toEqual([{ values: {}, count: 1 }]);
  }
});

describe("a request that has ended", () => {
  const seqsOf = (...records: RequestRecord[]) =>
    engine
      .unfiled(100)
      .filter(({ id }) => records.some((one) => one.id === id))
      .map(({ seq, round }): [number, number] => [seq, round]);

  test("waits for the librarian with all its parts, until it is filed", () => {
    const records = [ended("one", 100), ended("two", 100)];
    expect(engine.unfiled(1).map(({ id }) => id)).toEqual([records[0]!.id]);
    const [, second] = engine.unfiled(10);
    expect(second).toMatchObject({ id: records[1]!.id, round: 1, state: "completed", project: "default" });
    expect(second!.parts.map(({ kind, keyId }) => [kind, keyId])).toEqual(
      ["answer", "body", "head", "sent"].map((kind) => [kind, null]),
    );
    expect(second!.isPacked).toBe(false);
    expect(engine.countUnfiled()).toBe(2);
    write({ kind: "filed", seqs: seqsOf(records[0]!), packs: [] });
    expect(engine.unfiled(10).map(({ id }) => id)).toEqual([records[1]!.id]);
    write({ kind: "filed", seqs: seqsOf(records[1]!), packs: [] });
    expect(engine.countUnfiled()).toBe(0);
  });

  test("has its parts back as they were, packed or not", () => {
    const record = ended("one", 5000);
    const [{ seq, round, parts }] = engine.unfiled(1) as [ReturnType<Engine["unfiled"]>[number]];
    const kinds: PartKind[] = ["head", "body", "answer", "sent"];
    const before = engine.parts(record.id, kinds);
    write({ kind: "filed", seqs: [[seq, round]], packs: [[seq, packed(parts)]] });
    expect(sorted(engine.parts(record.id, kinds))).toEqual(sorted(before));
    expect(engine.parts(record.id, ["answer_head"])).toEqual([]);
    const { requests, lookedTo } = engine.endedFrom(0, 10);
    expect(requests[0]!.isPacked).toBe(true);
    expect(requests[0]!.parts.map((one) => Buffer.from(one.bytes))).toEqual(
      parts.map((one) => Buffer.from(one.bytes)),
    );
    expect(engine.endedFrom(lookedTo, 10)).toEqual({ requests: [], lookedTo });
  });

  test("has its parts apart again when it begins anew, without its answer", () => {
    const record = aRecord();
    const [begun, failed, revived] = walk(record, starts(owner), fails(), isRevived());
    const change = (transition: typeof begun, parts: Part[], dropAnswer = false): ChangeSet => ({
      kind: "change",
      transition: transition!,
      parts,
      dropAnswer,
    });
    const body = part("body", "asked");
    commit({ kind: "accept", record, parts: [body] }, change(begun, []));
    commit(change(failed, [part("answer", "refused")]));
    const [{ seq, round, parts }] = engine.unfiled(1) as [ReturnType<Engine["unfiled"]>[number]];
    write({ kind: "filed", seqs: [[seq, round]], packs: [[seq, packed(parts)]] });
    commit(change(revived, [], true));
    expect(engine.parts(record.id, ["body", "answer"])).toEqual([body]);
    commit(erase("record", record.id));
    expect(engine.get(record.id)).toBeDefined();
  });

  test("and was revived meanwhile is not filed as it was", () => {
    const record = aRecord();
    const [begun, failed, revived, again, done] = walk(
      record,
      starts(owner),
      fails(),
      isRevived(),
      starts(owner),
      completes(),
    );
    const change = (transition: typeof begun, parts: Part[] = []): ChangeSet => ({
      kind: "change",
      transition: transition!,
      parts,
      dropAnswer: transition === revived,
    });
    commit({ kind: "accept", record, parts: [] }, change(begun), change(failed, [part("answer", "old")]));
    const [{ seq, round }] = engine.unfiled(1) as [ReturnType<Engine["unfiled"]>[number]];
    commit(change(revived));
    expect(engine.countUnfiled()).toBe(0);
    commit(change(again), change(done, [part("answer", "new")]));
    write({
      kind: "filed",
      seqs: [[seq, round]],
      packs: [[seq, packed([part("answer", "old")])]],
    });
    expect(engine.unfiled(10)).toMatchObject([{ seq, round: round + 1 }]);
    expect(engine.parts(record.id, ["answer"])).toEqual([part("answer", "new")]);
  });

  test("and was erased meanwhile does not get its bodies back when it is filed", () => {
    const record = ended("one", 3000);
    const [{ seq, round, parts }] = engine.unfiled(1) as [ReturnType<Engine["unfiled"]>[number]];
    commit(erase("bodies", record.id));
    write({ kind: "filed", seqs: [[seq, round]], packs: [[seq, packed(parts)]] });
    expect(engine.parts(record.id, ["head", "body", "answer", "sent"])).toEqual([]);
    expect(engine.countUnfiled()).toBe(0);
  });

  test("is not among those that wait since then", () => {
    ended("one", 10);
    const records = [0, 1000, 2000].map((ms) => aRecord({ createdAt: start + ms }));
    commit(...records.map((record): ChangeSet => ({ kind: "accept", record, parts: [part("body", "b")] })));
    const found = engine.waitingSince(start + 2000, 0, 10);
    expect(found.map(({ id }) => id)).toEqual([records[0]!.id, records[1]!.id]);
    expect(found[0]!.parts).toHaveLength(1);
    expect(engine.waitingSince(start + 9999, found[0]!.seq, 1).map(({ id }) => id)).toEqual([records[1]!.id]);
  });
});

test("a batch that is undone leaves no count, no number and no sum behind", () => {
  const tallies = [
    {
      key: { day: 1, project: "default", endpoint: "/e", model: "m", upstream: "u", promptHash: "p" },
      tags: [],
      sums: { cost: 1 },
    },
  ];
  const good = aRecord();
  // The second one cannot be written: its id is taken.
  const results = engine.commitAll([
    { kind: "accept", record: good, parts: [], tallies },
    { kind: "accept", record: aRecord({ id: good.id, model: "never" }), parts: [], tallies },
  ]);
  expect(results[0]).toEqual({ status: "applied" });
  expect(results[1]).toBeInstanceOf(Error);
  expect(engine.counts({ project: "default" }, ["model"])).toEqual([
    { values: { model: good.model }, count: 1 },
  ]);
  expect(engine.usage({ fromDay: 0, toDay: 9, by: [], limit: 1 })[0]!.sums.cost).toBe(1);
  const next = aRecord({ model: "never" });
  commit({ kind: "accept", record: next, parts: [] });
  expect(engine.counts({ project: "default" }, []).map(({ count }) => count)).toEqual([2]);
  const filter = { project: "default", createdAfter: start - 1, order: "asc" as const, limit: 9 };
  expect(engine.list(filter).map(({ id }) => id)).toEqual([good.id, next.id]);
});

test("half a character in a model's name or an error's code is the same one after a start, and in a batch that is undone", () => {
  const model = "x\ud800";
  const failing = fails(aFailure({ code: "c\udc00" }));
  const accept = (record: RequestRecord): ChangeSet => ({ kind: "accept", record, parts: [] });
  const failed = () => {
    const record = aRecord({ model });
    const moves = walk(record, starts(owner), failing);
    commit(accept(record), ...moves.map((transition): ChangeSet => ({ kind: "change", transition })));
  };
  failed();
  engine.close();
  engine = open();
  failed();
  // The second one cannot be written: its id is taken.
  const good = aRecord({ model });
  const [first, second] = engine.commitAll([accept(good), accept(aRecord({ id: good.id, model }))]);
  expect([first, second instanceof Error]).toEqual([{ status: "applied" }, true]);
  failed();
  const filter = { project: "default", model: "x\ufffd" };
  expect(engine.counts(filter, ["error_code"])).toEqual([
    { values: { error_code: "c\ufffd" }, count: 3 },
    { values: { error_code: null }, count: 1 },
  ]);
  expect(engine.list({ ...filter, order: "asc", limit: 9 }).map((one) => one.model)).toEqual(
    Array(4).fill("x\ufffd"),
  );
});

test("what a change that is undone has used is not among what is kept apart", () => {
  const tally = (i: number) => ({
    key: { day: 1, project: "default", endpoint: "/e", model: "m", upstream: "u", promptHash: `p${i}` },
    tags: [`t${i}`],
    sums: { completed: 1 },
  });
  const accept = (record: RequestRecord, ...tallies: ReturnType<typeof tally>[]): ChangeSet => ({
    kind: "accept",
    record,
    parts: [],
    tallies,
  });
  const good = aRecord();
  commit(accept(good, ...Array.from({ length: 499 }, (_, i) => tally(i))));
  expect(engine.commitAll([accept(aRecord({ id: good.id }), tally(1000))])[0]).toBeInstanceOf(Error);
  commit(accept(aRecord(), tally(499)), accept(aRecord(), tally(500)));
  for (const by of ["prompt_hash", "tag"] as const) {
    const groups = engine.usage({ fromDay: 0, toDay: 9, by: [by], limit: 1000 });
    const names = groups.map(({ values }) => String(values[by]).slice(1));
    expect(names).toContain("499");
    expect(names).not.toContain("500");
  }
});
