import {
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Worker } from "node:worker_threads";
import { deflateRawSync } from "node:zlib";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { AppError } from "../../src/core/errors.ts";
import type { SearchQuery } from "../../src/core/ledger/ports.ts";
import type { Part, Told } from "../../src/core/ports.ts";
import type { RequestRecord, Transition } from "../../src/core/request.ts";
import { type SqliteOptions, SqliteStore } from "../../src/store/sqlite/store.ts";
import { anId, aRecord, completes, fails, isRevived, starts, walk } from "../support/builders.ts";
import { HandClock } from "../support/clock.ts";
import { KeptDatabase } from "../support/database.ts";

const node = "local";

let dir: string;
let path: string;
let searchFile: string;
let clock: HandClock;
let told: Told[];
let failures: Error[];
let stores: SqliteStore[];

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "outlast-search-"));
  path = join(dir, "outlast.db");
  searchFile = join(dir, "outlast.search.db");
  clock = new HandClock();
  told = [];
  failures = [];
  stores = [];
});

afterEach(async () => {
  await Promise.all(stores.map((store) => store.close()));
  expect(failures).toEqual([]);
  rmSync(dir, { recursive: true, force: true });
});

async function open(more: Partial<SqliteOptions> = {}): Promise<SqliteStore> {
  const store = await SqliteStore.open({
    path,
    node,
    minFreeDiskBytes: 0,
    search: true,
    clock,
    observer: { tell: (event) => told.push(event) },
    onFailed: (error) => failures.push(error),
    ...more,
  });
  stores.push(store);
  return store;
}

const part = (kind: Part["kind"], value: unknown): Part => ({
  kind,
  seq: 0,
  bytes: Buffer.from(typeof value === "string" ? value : JSON.stringify(value)),
});
const chatBody = (content: unknown, more = {}) =>
  part("body", { model: "gpt-test", messages: [{ role: "user", content }], ...more });
const chatAnswer = (message: object) =>
  part("answer", { id: "chatcmpl-1", choices: [{ index: 0, message: { role: "assistant", ...message } }] });

const chat = (overrides: Partial<RequestRecord> = {}) =>
  aRecord({ endpoint: "chat.completions", createdAt: clock.now(), updatedAt: clock.now(), ...overrides });

async function apply(store: SqliteStore, change: Parameters<SqliteStore["commit"]>[0]): Promise<void> {
  expect(await store.commit(change)).toMatchObject({ status: "applied" });
}

async function waits(store: SqliteStore, prompt: string, overrides: Partial<RequestRecord> = {}) {
  const record = chat(overrides);
  await apply(store, { kind: "accept", record, parts: [chatBody(prompt)] });
  return record;
}

async function ends(store: SqliteStore, record: RequestRecord, parts: Part[]): Promise<void> {
  const steps = walk(record, starts({ node, epoch: store.epoch }), completes());
  for (const [i, transition] of steps.entries())
    await apply(store, { kind: "change", transition, parts: i === steps.length - 1 ? parts : [] });
}

/** A request that was answered. */
async function asked(
  store: SqliteStore,
  prompt: string,
  answer = "",
  overrides: Partial<RequestRecord> = {},
) {
  const record = await waits(store, prompt, overrides);
  await ends(store, record, [chatAnswer({ content: answer })]);
  return record.id;
}

/** Whatever has ended is filed. */
async function filed(store: SqliteStore): Promise<void> {
  clock.advance(1000);
  while ((await store.search.behind()) > 0) {
    expect(told.filter(({ event }) => event === "fault")).toEqual([]);
    clock.advance(1000);
  }
}

/** A second passes, and the librarian is done with what it does in it. */
async function round(store: SqliteStore): Promise<void> {
  clock.advance(1000);
  await store.search.behind();
}

const find = (store: SqliteStore, text: string, more: Partial<SearchQuery> = {}) =>
  store.search.find({ project: "default", text, order: "asc", limit: 100, ...more });

/** Everything that is on disk for the index. */
const bytes = () =>
  Buffer.concat(
    readdirSync(dir)
      .filter((name) => name.includes(".search."))
      .map((name) => readFileSync(join(dir, name))),
  );

describe("what is found", () => {
  test("is what prompts and answers say, in any case, with any accents", async () => {
    const store = await open();
    const coffee = await asked(store, "Where is the best Café?", "In ZÜRICH.");
    const tea = await asked(store, "Where is the best tea?", "In London.");
    await filed(store);
    expect(await find(store, "CAFE")).toEqual([coffee]);
    expect(await find(store, "café zurich")).toEqual([coffee]);
    expect(await find(store, "best")).toEqual([coffee, tea]);
    expect(await find(store, "best coffee")).toEqual([]);
    expect(await find(store, "best", { order: "desc" })).toEqual([tea, coffee]);
  });

  test("is a phrase where it stands so, and a beginning with a star behind it", async () => {
    const store = await open();
    const one = await asked(store, "the quick brown fox", "jumps over");
    const other = await asked(store, "the brown quick fox", "international affairs");
    await filed(store);
    expect(await find(store, '"quick brown"')).toEqual([one]);
    expect(await find(store, '"fox jumps"')).toEqual([]);
    expect(await find(store, "internat*")).toEqual([other]);
    expect(await find(store, '"brown qui"*')).toEqual([other]);
    expect(await find(store, "internat")).toEqual([]);
    await expect(find(store, "in*")).rejects.toMatchObject({ code: "invalid_parameter", param: "q" });
  });

  test.each([
    ["Chinese", "我想去北京大学看看", ["北京", "大学", "京大", "北京大学"], ["北大"]],
    ["Japanese", "東京都に住んでいます。データベース", ["東京", "京都", "住んで", "データ"], ["大阪"]],
    ["Thai", "สวัสดีชาวโลก", ["สวัสดี", "ชาวโลก", "โลก"], ["ดาว"]],
    ["Korean", "서울에서 만나요", ["서울에서", "서울에*"], ["부산"]],
    ["Hindi", "नमस्ते दुनिया", ["नमस्ते", "दुनिया"], ["नमक"]],
    ["Greek", "Καλημέρα κόσμε", ["καλημερα", "ΚΟΣΜΕ"], ["καλο"]],
    ["Cyrillic", "Ёлка й дом", ["елка", "ЁЛКА"], ["елки"]],
    ["full-width", "ＡＢＣ１２３", ["abc123"], ["abc"]],
    ["decomposed", "Ame\u0301lie", ["amélie", "Amelie"], ["ame"]],
  ])("is found in %s", async (_, text, there, absent) => {
    const store = await open();
    const id = await asked(store, text);
    await filed(store);
    for (const query of there) expect(await find(store, query), query).toEqual([id]);
    for (const query of absent) expect(await find(store, query), query).toEqual([]);
  });

  test("is of the project that asks, and of no other", async () => {
    const store = await open();
    const mine = await asked(store, "a shared secret");
    const other = await asked(store, "a shared secret", "", { project: "Zoë's" });
    await filed(store);
    expect(await find(store, "secret")).toEqual([mine]);
    expect(await find(store, "secret", { project: "Zoë's" })).toEqual([other]);
    expect(await find(store, "p64656661756c74")).toEqual([]);
    expect(await find(store, "secret", { project: "nobody" })).toEqual([]);
  });

  test("comes in pages, also behind a request that is there no more", async () => {
    const store = await open();
    const ids: string[] = [];
    for (let i = 0; i < 7; i++) ids.push(await asked(store, `number ${i} of some`));
    await filed(store);
    const page = (after: string | undefined, order: "asc" | "desc") =>
      find(store, "some", { after, order, limit: 3 });
    expect(await page(undefined, "desc")).toEqual([ids[6], ids[5], ids[4]]);
    expect(await page(ids[4], "desc")).toEqual([ids[3], ids[2], ids[1]]);
    expect(await page(ids[2], "asc")).toEqual([ids[3], ids[4], ids[5]]);
    await store.search.forget([ids[4]!]);
    expect(await page(ids[4], "desc")).toEqual([ids[3], ids[2], ids[1]]);
    expect(await page(ids[4], "asc")).toEqual([ids[5], ids[6]]);
    expect(await page("req_0", "asc")).toEqual([ids[0], ids[1], ids[2]]);
    expect(await page("req_0", "desc")).toEqual([]);
  });

  test("is in parts of content, tool calls, refusals and names; not in roles, ids, kinds and images", async () => {
    const store = await open();
    const record = chat();
    const body = part("body", {
      model: "gpt-modelname",
      messages: [
        { role: "developer", content: "instructions first", name: "bob" },
        {
          role: "user",
          content: [
            { type: "text", text: "look at this" },
            { type: "image_url", image_url: { url: `data:image/png;base64,${"iVBORw0KGgo".repeat(100)}` } },
          ],
        },
        { role: "tool", tool_call_id: "call_xyz", content: "tool said so" },
      ],
      tools: [{ type: "function", function: { name: "lookup", description: "describes" } }],
    });
    await apply(store, { kind: "accept", record, parts: [body] });
    const call = {
      id: "call_abc",
      type: "function",
      function: { name: "weather", arguments: '{"city":"Oslo"}' },
    };
    await ends(store, record, [chatAnswer({ content: null, refusal: "I refuse", tool_calls: [call] })]);
    await filed(store);
    for (const word of ["instructions", "bob", "look", "said", "weather", "oslo", "refuse"])
      expect(await find(store, word), word).toEqual([record.id]);
    for (const word of ["developer", "call_xyz", "iVBORw0KGgo*", "modelname", "image_url", "call_abc"])
      expect(await find(store, word), word).toEqual([]);
  });

  test("is in the inputs of embeddings and not in their vectors, and in all of what is not known", async () => {
    const store = await open();
    const embeddings = aRecord({ endpoint: "embeddings" });
    const input = part("body", { model: "m", input: ["first words", "second words"] });
    await apply(store, { kind: "accept", record: embeddings, parts: [input] });
    await ends(store, embeddings, [part("answer", { data: [{ object: "embedding", embedding: "c29tZQ" }] })]);
    const other = aRecord({ endpoint: "moderations" });
    await apply(store, {
      kind: "accept",
      record: other,
      parts: [part("body", { deep: { words: ["inside"] } })],
    });
    await ends(store, other, [part("answer", "no JSON but words")]);
    await filed(store);
    expect(await find(store, "words", { limit: 1 })).toEqual([embeddings.id]);
    expect(await find(store, "embedding")).toEqual([]);
    expect(await find(store, "inside json")).toEqual([other.id]);
  });

  test("is no further in than 256 K characters of either side", async () => {
    const store = await open();
    const id = await asked(store, `start ${"filler ".repeat(40_000)} beyond`, "the answer");
    await filed(store);
    expect(await find(store, "start answer")).toEqual([id]);
    expect(await find(store, "beyond")).toEqual([]);
  });

  test("is never what was encrypted", async () => {
    const store = await open();
    const record = await waits(store, "plain words");
    const db = new KeptDatabase(path);
    db.prepare("UPDATE parts SET key_id = 'k1' WHERE kind = 'body'").run();
    db.close();
    await ends(store, record, [chatAnswer({ content: "an open answer" })]);
    await filed(store);
    expect(await find(store, "plain")).toEqual([]);
    expect(await find(store, "open")).toEqual([record.id]);
  });
});

describe("whatever somebody types", () => {
  test("is looked for or refused, and never a fault", async () => {
    const store = await open();
    const id = await asked(store, "some words NEAR others AND not (these) OR: those^2");
    await filed(store);
    const typed = fc.oneof(
      fc.string({ unit: "binary", maxLength: 60 }),
      fc
        .array(
          fc.constantFrom(
            '"',
            "*",
            "(",
            ")",
            "NEAR",
            "AND",
            "NOT",
            "OR",
            ":",
            "^",
            "-",
            "+",
            "{",
            "}",
            "some",
            "'",
            ";",
            "\0",
            " ",
            "東京",
            "prompt :",
            "\ud800",
          ),
          { maxLength: 12 },
        )
        .map((all) => all.join("")),
    );
    await fc.assert(
      fc.asyncProperty(typed, async (text) => {
        try {
          for (const one of await find(store, text)) expect(one).toBe(id);
        } catch (error) {
          expect(error).toMatchObject({ code: "invalid_parameter", param: "q" });
          expect(error).toBeInstanceOf(AppError);
        }
      }),
      { numRuns: 500 },
    );
    expect(told.filter(({ event }) => event === "fault")).toEqual([]);
    expect(await find(store, "some NEAR( AND not")).toEqual([id]);
  });

  test.each([[""], ["  "], ['""'], ["*"], ["?!"], ["-- ,"]])("%j says nothing to look for", async (text) => {
    const store = await open();
    await expect(find(store, text)).rejects.toMatchObject({ code: "invalid_parameter", param: "q" });
  });

  test("finds the text that it was taken from", async () => {
    const store = await open();
    const text = fc
      .string({ unit: "grapheme", minLength: 1, maxLength: 40 })
      .filter((one) => /\p{L}/u.test(one));
    const known: [string, string][] = [];
    for (const one of fc.sample(text, 150)) known.push([await asked(store, one), one]);
    await filed(store);
    for (const [id, one] of known)
      expect(
        await find(store, one.replaceAll("*", " ").replaceAll('"', " "), { limit: 1000 }),
        one,
      ).toContain(id);
  });

  test("is refused where it is too long", async () => {
    const store = await open();
    await expect(find(store, "a".repeat(1001))).rejects.toMatchObject({
      code: "invalid_parameter",
      param: "q",
    });
    expect(await find(store, "ab ".repeat(333))).toEqual([]);
  });
});

describe("a request that waits", () => {
  test("is found by its prompt after five seconds, and by its answer when it has ended", async () => {
    const store = await open();
    await filed(store);
    const record = await waits(store, "a patient prompt");
    clock.advance(3000);
    expect(await find(store, "patient")).toEqual([]);
    while ((await find(store, "patient")).length === 0) clock.advance(1000);
    await ends(store, record, [chatAnswer({ content: "at last" })]);
    await filed(store);
    expect(await find(store, "patient last")).toEqual([record.id]);
  });

  test("again, in another round, is found by its new answer only", async () => {
    const store = await open();
    const record = await waits(store, "try this");
    const owner = { node, epoch: store.epoch };
    const steps = walk(record, starts(owner), fails(), isRevived(), starts(owner), completes());
    for (const [i, transition] of steps.entries()) {
      const parts =
        i === 1 ? [chatAnswer({ content: "first" })] : i === 4 ? [chatAnswer({ content: "second" })] : [];
      await apply(store, { kind: "change", transition, parts, dropAnswer: i === 2 });
      if (i === 1) await filed(store);
      if (i === 1) expect(await find(store, "first")).toEqual([record.id]);
    }
    await filed(store);
    expect(await find(store, "first")).toEqual([]);
    expect(await find(store, "try second")).toEqual([record.id]);
  });
});

describe("what is forgotten", () => {
  test("is not found, and is in no byte of the files", async () => {
    const store = await open();
    const ids: string[] = [];
    const secret = (i: number) => `zq${(i * 7919).toString(36)}xk`;
    for (let i = 0; i < 600; i++)
      ids.push(await asked(store, `public ${secret(i)} words`, `${secret(i + 1000)} said`));
    await filed(store);
    const some = ids.filter((_, i) => i % 3 === 0);
    const packed = deflateRawSync(`public ${secret(0)} words\0${secret(1000)} said`);
    // Words stand in the index without the beginning that they share with the one before.
    await store.search.forget(some);
    const left = bytes();
    expect(left.includes(packed)).toBe(false);
    const found = await find(store, "public", { limit: 1000 });
    expect(found).toEqual(ids.filter((_, i) => i % 3 !== 0));
    expect(await find(store, secret(3))).toEqual([]);
    expect(await find(store, secret(4))).toEqual([ids[4]]);
    await store.search.forget(ids);
    expect(bytes().includes("zq")).toBe(false);
    expect(bytes().includes("xk")).toBe(false);
    expect(await find(store, "public")).toEqual([]);
  });

  test("does not come back, though the database has it still, until it is erased there", async () => {
    let store = await open();
    const record = await waits(store, "a regretted prompt");
    await ends(store, record, [chatAnswer({ content: "an answer" })]);
    await store.search.forget([record.id]);
    await filed(store);
    expect(await find(store, "regretted")).toEqual([]);
    await store.close();
    store = await open();
    await filed(store);
    expect(await find(store, "regretted")).toEqual([]);
    // Nothing else happens for a while.
    for (let i = 0; i < 15; i++) await round(store);
    await apply(store, { kind: "erase", what: "bodies", ids: [record.id], at: clock.now() });
    for (let i = 0; i < 5; i++) await round(store);
    await store.close();
    expect(bytes().includes("regretted")).toBe(false);
    expect(bytes().includes(record.id)).toBe(false);
  });

  test("is found by what it says from then on, where it is tried again with another body", async () => {
    const store = await open();
    const record = await waits(store, "a regretted prompt");
    const change = (transition: Transition, parts: Part[] = []) =>
      apply(store, { kind: "change", transition, parts, dropAnswer: parts.length > 0 });
    const [begun, failed] = walk(record, starts({ node, epoch: store.epoch }), fails());
    await change(begun!);
    await change(failed!);
    await filed(store);
    await store.search.forget([record.id]);
    await apply(store, { kind: "erase", what: "bodies", ids: [record.id], at: clock.now() });
    const [revived] = walk((await store.get(record.id))!, isRevived());
    const { expect: expected, record: next } = revived!;
    const anew = { expect: expected, record: { ...next, bodiesErasedAt: undefined } };
    await change(anew, [chatBody("a better prompt")]);
    await ends(store, anew.record, [chatAnswer({ content: "welcome" })]);
    await filed(store);
    expect(await find(store, "better welcome")).toEqual([record.id]);
    expect(await find(store, "regretted")).toEqual([]);
  });

  test("may be anything", async () => {
    const store = await open();
    await store.search.forget([]);
    await store.search.forget([anId(), "'; DROP TABLE docs; --"]);
    expect(await find(store, "word")).toEqual([]);
  });
});

describe("the index", () => {
  test("knows after a start what it knew before, and what ended unseen", async () => {
    let store = await open();
    const known = await asked(store, "seen before");
    await filed(store);
    const unseen = await asked(store, "seen after");
    await store.close();
    store = await open();
    await filed(store);
    expect(await find(store, "seen")).toEqual([known, unseen]);
    expect(told).toEqual([]);
  });

  const spoil: [string, () => void, string | undefined][] = [
    ["is deleted", () => rmSync(searchFile), undefined],
    ["is no database", () => writeFileSync(searchFile, "nothing of the kind".repeat(1000)), "it is damaged"],
    ["is empty", () => truncateSync(searchFile, 0), "it is of another program"],
    ["is cut off", () => truncateSync(searchFile, 8192), "it is damaged"],
    ["is of an older version", () => edit("PRAGMA user_version = 0"), "it is of another version"],
    ["is of another program", () => edit("PRAGMA application_id = 7"), "it is of another program"],
    ["has lost a table", () => edit("DROP TABLE texts"), "it is damaged"],
    ["belongs to another database", () => edit("UPDATE place SET epoch = 1000"), "it is of another database"],
  ];
  const edit = (sql: string) => {
    const db = new KeptDatabase(searchFile);
    db.exec(sql);
    db.close();
  };

  test.each(spoil)("that %s is made anew", async (_, harm, why) => {
    let store = await open();
    const ids = [await asked(store, "first words"), await asked(store, "second words")];
    await filed(store);
    await store.close();
    harm();
    store = await open();
    await filed(store);
    expect(await find(store, "words")).toEqual(ids);
    expect(told.filter(({ event }) => event === "search_rebuilding")).toEqual(
      why === undefined ? [] : [{ event: "search_rebuilding", why }],
    );
  });

  test("that cannot be opened for another reason stays as it is, and is opened later", async () => {
    let store = await open();
    const id = await asked(store, "some words");
    await filed(store);
    await store.close();
    const size = statSync(searchFile).size;
    edit("CREATE TRIGGER stop BEFORE UPDATE ON place BEGIN SELECT raise(ABORT, 'not now'); END");
    store = await open();
    await expect(find(store, "words")).rejects.toMatchObject({ code: "storage_failed" });
    expect(told).toMatchObject([{ event: "fault", where: "search" }]);
    expect(await store.search.behind()).toBe(1);
    expect(statSync(searchFile).size).toBeGreaterThanOrEqual(size);
    edit("DROP TRIGGER stop");
    told = [];
    expect(await find(store, "words")).toEqual([id]);
    expect(told).toEqual([]);
  });

  test("is made without a request that cannot be read, which is told once", async () => {
    let store = await open();
    const ids: string[] = [];
    for (const word of ["first", "second", "third"]) ids.push(await asked(store, `${word} words`));
    await filed(store);
    await store.close();
    const db = new KeptDatabase(path);
    const spoilt = db.prepare("UPDATE packs SET bytes = x'ffffffff' WHERE request_seq = 2").run();
    expect(spoilt.changes).toBe(1);
    db.close();
    rmSync(searchFile);
    store = await open();
    clock.advance(3000);
    while ((await store.search.behind()) > 0) clock.advance(1000);
    expect(await find(store, "words")).toEqual([ids[0], ids[2]]);
    for (let i = 0; i < 5; i++) await round(store);
    expect(told).toMatchObject([{ event: "fault", where: "search" }]);
    expect(await find(store, "third")).toEqual([ids[2]]);
  });

  const many = (i: number) =>
    Array.from({ length: 300 }, (_, n) => ((i * 300 + n) * 7919).toString(36)).join(" ");

  test("that is found to be damaged while it is used is made anew", async () => {
    let store = await open();
    const ids: string[] = [];
    for (let i = 0; i < 40; i++) ids.push(await asked(store, `number${i} words ${many(i)}`));
    await filed(store);
    await store.close();
    const file = readFileSync(searchFile);
    for (let page = 20; page < file.length / 4096; page++) file.fill(0x5a, page * 4096, (page + 1) * 4096);
    writeFileSync(searchFile, file);
    store = await open();
    await expect(find(store, "number7")).rejects.toMatchObject({ code: "storage_failed" });
    expect(told).toMatchObject([{ event: "fault", where: "search" }]);
    told = [];
    await asked(store, "one more");
    await filed(store);
    expect(await find(store, "words")).toEqual(ids);
    expect(told).toEqual([{ event: "search_rebuilding", why: "it is damaged" }]);
  });

  test("outlives its thread once, and the store does without it after that", async () => {
    let store = await open();
    const id = await asked(store, "some words");
    await filed(store);
    const end = async () => {
      const { thread } = store.search as unknown as { thread: Promise<{ worker: Worker }> };
      await (await thread).worker.terminate();
    };
    await end();
    expect(await find(store, "words")).toEqual([id]);
    expect(told).toMatchObject([{ event: "fault", where: "search" }]);
    told = [];
    const another = await asked(store, "more words");
    await filed(store);
    expect(await find(store, "words")).toEqual([id, another]);

    await end();
    await expect(find(store, "words")).rejects.toMatchObject({ code: "storage_failed" });
    await store.search.forget([another]);
    const last = await asked(store, "last words");
    expect(await store.get(last)).toMatchObject({ state: "completed" });
    expect(existsSync(searchFile)).toBe(false);
    await store.close();
    told = [];
    store = await open();
    await filed(store);
    expect(await find(store, "words")).toEqual([id, another, last]);
  });

  test("is made a few megabytes at a time, and misses nothing", async () => {
    let store = await open();
    const large = "more of the same ".repeat(300_000);
    const ids: string[] = [];
    for (const word of ["first", "second", "third", "fourth", "fifth"])
      ids.push(await asked(store, `${word} ${large}`));
    await filed(store);
    for (const [i, word] of ["first", "second", "third", "fourth", "fifth"].entries())
      expect(await find(store, word)).toEqual([ids[i]]);
    await store.close();
    rmSync(searchFile);
    store = await open();
    await filed(store);
    expect(await find(store, "same")).toEqual(ids);
  });

  test("has no file where it is turned off, and what ends is packed nevertheless", async () => {
    let store = await open();
    await asked(store, "something");
    await filed(store);
    await store.close();
    expect(existsSync(searchFile)).toBe(true);
    store = await open({ search: false });
    expect(store.search.isOn).toBe(false);
    const large = "words that come again and again ".repeat(1000);
    const id = await asked(store, large);
    await filed(store);
    await store.search.forget([id]);
    await store.close();
    expect(readdirSync(dir).filter((name) => name.includes("search"))).toEqual([]);
    const db = new KeptDatabase(path, { readonly: true });
    const packs = db
      .prepare("SELECT id, length(bytes) AS size FROM packs JOIN requests ON seq = request_seq")
      .all();
    expect(packs.at(-1)).toMatchObject({ id });
    expect(packs.at(-1).size).toBeLessThan(1000);
    expect(db.prepare("SELECT count(*) FROM parts WHERE length(bytes) > 1000").pluck().get()).toBe(0);
    db.close();
    store = await open({ search: false });
    const [body] = await store.parts(id, ["body"]);
    expect(JSON.parse(Buffer.from(body!.bytes).toString()).messages[0].content).toBe(large);
  });
});
