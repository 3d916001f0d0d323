import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { SearchFile, searchPath } from "../../src/store/sqlite/search-file.ts";
import { KeptDatabase } from "../support/database.ts";

let dir: string;
let path: string;

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "outlast-search-"));
  path = join(dir, "outlast.db");
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

test("what is forgotten is not left in the list of the index's pages either, and the rest is found as before", () => {
  const { file } = SearchFile.open(path, { epoch: 1, isRestart: false });
  const count = 500;
  // Neighbours in the index belong to different requests, and share their beginnings, as numbers of accounts do.
  const words = (i: number) =>
    Array.from({ length: 20 }, (_, n) => `account${String(n * count + i).padStart(12, "0")}`);
  const id = (i: number) => `req_${String(i).padStart(8, "0")}`;
  const all = Array.from({ length: count }, (_, i) => i);
  for (let i = 0; i < count; i += 100) {
    file.add(
      all.slice(i, i + 100).map((n) => ({
        seq: n + 1,
        id: id(n),
        round: 1,
        project: "p",
        prompt: words(n).join(" "),
        answer: "an answer",
      })),
    );
  }
  const gone = all.filter((i) => i % 3 !== 0);
  const left = all.filter((i) => i % 3 === 0);
  for (let i = 0; i < gone.length; i += 8)
    file.forget(gone.slice(i, i + 8).map((n) => ({ id: id(n), round: 1 })));
  file.flush();

  const db = new KeptDatabase(searchPath(path));
  db.prepare("INSERT INTO texts (texts, rank) VALUES ('integrity-check', 0)").run();
  const listed: string[] = db
    .prepare("SELECT substr(CAST(term AS TEXT), 2) FROM texts_idx WHERE pgno > 3")
    .pluck()
    .all();
  db.close();
  expect(listed.length).toBeGreaterThan(20);
  const beginnings = new Set(
    left.flatMap((i) => words(i).flatMap((word) => Array.from(word, (_, n) => word.slice(0, n + 1)))),
  );
  expect(listed.filter((word) => word.startsWith("account") && !beginnings.has(word))).toEqual([]);
  const bytes = readFileSync(searchPath(path));
  expect(gone.flatMap(words).filter((word) => bytes.includes(word))).toEqual([]);
  const found = (word: string) => file.find({ expression: `"${word}"`, order: "asc", limit: 10 });
  for (const i of left) for (const word of words(i)) expect(found(word)).toEqual([id(i)]);
  for (const i of gone) expect(found(words(i)[7]!)).toEqual([]);
  file.close();
});
