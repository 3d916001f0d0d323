/** `outlast requests`: on a server over HTTP, and on its file. */

import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, test, vi } from "vitest";
import type { RequestObject } from "../../src/contract.ts";
import { KeptDatabase } from "../support/database.ts";
import { answer, closedPort, fail, gate } from "../support/fake-upstream.ts";
import type { OutlastOptions } from "../support/outlast.ts";
import { done, ended, run, serverAndCli, standIn, submit } from "./command.ts";

// Each command is a process of its own, and some tests need several.
vi.setConfig({ testTimeout: 60_000 });

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function start(options: OutlastOptions = {}) {
  const both = await serverAndCli(options);
  cleanups.push(() => both.outlast.close());
  return both;
}

async function startStandIn(...reply: Parameters<typeof standIn>) {
  const { url, close } = await standIn(...reply);
  cleanups.push(close);
  return url;
}

const objects = (text: string): RequestObject[] => (JSON.parse(text) as { data: RequestObject[] }).data;
const idsOf = (text: string): string[] => objects(text).map(({ id }) => id);
const failing = { outlast: { max_attempts: 1 } };

describe("list", () => {
  test("is a table whose columns stand below their titles, the newest first", async () => {
    const { outlast, cli } = await start();
    outlast.fake.script(fail(500));
    const failed = await done(outlast, failing);
    const completed = await done(outlast, { model: "a-model-with-a-longer-name" });
    const { code, lines, errors } = await cli("requests", "list");
    expect({ code, errors }).toEqual({ code: 0, errors: "" });
    expect(lines).toHaveLength(3);
    expect(lines[0]).toMatch(/^ID +STATUS +MODEL +UPSTREAM +TRIES +ACCEPTED \(UTC\) +TOOK +COST +WHY$/);
    expect(lines[1]).toMatch(new RegExp(`^${completed} +completed +a-model-with-a-longer-name +fake +1 +2`));
    expect(lines[2]).toMatch(new RegExp(`^${failed} +failed +gpt-test +fake +1 .*server_error$`));
    expect(new Set(lines.map((line) => line.search(/MODEL|a-model|gpt-test/))).size).toBe(1);
  });

  test("--json is what the API says", async () => {
    const { outlast, cli } = await start();
    await done(outlast);
    await done(outlast);
    const reply = await (await outlast.fetch("/v1/requests")).text();
    const { code, output } = await cli("requests", "list", "--json");
    expect(code).toBe(0);
    expect(objects(output)).toEqual(objects(reply));
  });

  test("goes on beyond a page of the API, as far as it is told", async () => {
    const { outlast, cli } = await start();
    const ids = await Promise.all(Array.from({ length: 103 }, () => submit(outlast)));
    expect(idsOf((await cli("requests", "list", "--all", "--json")).output).sort()).toEqual(ids.sort());
    expect((await cli("requests", "list", "--limit", "101")).lines).toHaveLength(102);
  });

  test("--json is one document also where the last page turns out to be empty", async () => {
    const { outlast, cli } = await start();
    const id = await done(outlast);
    const { data } = JSON.parse(await (await outlast.fetch("/v1/requests")).text()) as { data: object[] };
    const list = { object: "list", first_id: id, last_id: id };
    const url = await startStandIn(({ searchParams }) => ({
      body: searchParams.has("after")
        ? { ...list, data: [], first_id: null, last_id: null, has_more: false }
        : { ...list, data, has_more: true },
    }));
    const { output } = await cli("requests", "list", "--all", "--json", "--url", url);
    expect(JSON.parse(output)).toEqual({ ...list, data, has_more: false });
  });

  test("takes every filter of the API, and all of them have to hold", async () => {
    const { outlast, cli } = await start();
    const told = { user: "ann", metadata: { team: "search", run: "a=b" }, outlast: { tags: ["x", "y"] } };
    const wanted = await done(outlast, told, { "x-request-id": "mine-1", "idempotency-key": "key-1" });
    await done(outlast, { user: "bob", metadata: { team: "search" }, outlast: { tags: ["x"] } });
    outlast.fake.script(fail(500));
    const failed = await done(outlast, { ...failing, model: "other" });
    const found = async (...filter: string[]) =>
      idsOf((await cli("requests", "list", "--json", ...filter)).output);
    const labels = ["--tag", "x", "--tag", "y", "--metadata", "team=search", "--metadata", "run=a=b"];
    expect(await found(...labels, "--user", "ann", "--client-request-id", "mine-1")).toEqual([wanted]);
    expect(await found("--idempotency-key", "key-1", "--status", "completed,failed")).toEqual([wanted]);
    const cause = ["--error-code", "server_error", "--caused-by", "upstream", "--resolved", "false"];
    expect(await found(...cause, "--model", "other", "--upstream", "fake", "--since", "1h")).toEqual([
      failed,
    ]);
    expect(await found("--model", "other", "--user", "ann")).toEqual([]);
    expect(await found("--since", "2020-01-01T00:00:00Z", "--until", "1h")).toEqual([]);
  });

  test("what others wrote moves no cursor and rings no bell", async () => {
    const { outlast, cli } = await start();
    await done(outlast, { model: "gpt\u001b[2J\u0007-evil" });
    const { output } = await cli("requests", "list");
    expect(output).toContain("gpt [2J -evil");
    expect([..."\u0007\u001b"].filter((one) => output.includes(one))).toEqual([]);
  });

  test("--json has no raw control character either, and means the same", async () => {
    const { outlast, cli } = await start();
    const id = await done(outlast, { model: "gpt\u009b2J" });
    for (const command of [["list"], ["show", id]]) {
      const { output } = await cli("requests", ...command, "--json");
      expect(output).toContain('"model":"gpt\\u009b2J"');
      expect(output).not.toContain("\u009b");
      expect(JSON.stringify(JSON.parse(output))).toContain('"model":"gpt\u009b2J"');
    }
  });
});

describe("show", () => {
  test("tells of every attempt, and what the model said", async () => {
    const { outlast, cli } = await start();
    outlast.fake.script(fail(503, { message: "too busy" }), answer({ text: "Forty-two.\nPerhaps." }));
    const id = await done(outlast, { user: "ann" });
    const { code, output, lines } = await cli("requests", "show", id);
    expect(code).toBe(0);
    expect(lines).toEqual(expect.arrayContaining([`id${" ".repeat(19)}${id}`, `user${" ".repeat(17)}ann`]));
    expect(output).toMatch(/^ *1 +fake\/gpt-test .* 503 +transient +backoff until [\d:]+ .*too busy$/m);
    expect(output).toMatch(/^ *2 +fake\/gpt-test .* 200 +success +answered$/m);
    expect(output).toContain("result\nForty-two.\nPerhaps.\n");
    expect(output).not.toContain("Hello");
  });

  test("--bodies has what went over the wire, and no number is changed", async () => {
    const { outlast, cli } = await start();
    const body = '{"id":"c","choices":[],"big":9007199254740993}';
    outlast.fake.script(answer({ body }));
    const id = await done(outlast, { outlast: { store: "all" }, seed: 5 });
    const text = await cli("requests", "show", id, "--bodies");
    expect(text.output).toMatch(/attempt 1, sent\nPOST http:\/\/127.*\/v1\/chat\/completions\n/);
    expect(text.output).toContain('"content": "Hello"');
    expect(text.output).not.toContain("sk-upstream-fake");
    const json = await cli("requests", "show", id, "--bodies", "--json");
    expect(json.output).toContain('"big":9007199254740993');
    const record = JSON.parse(json.output) as RequestObject;
    expect(record).toMatchObject({ id, body: { seed: 5 }, attempt_list: [{ response: { status: 200 } }] });
  });

  test("of an id that is not there says so, in one line", async () => {
    const { cli } = await start();
    const { code, errors, output } = await cli("requests", "show", "req_nothing");
    expect({ code, output }).toEqual({ code: 1, output: "" });
    expect(errors).toMatch(/^There is no request "req_nothing"\. \(request_not_found\)\n$/);
  });
});

describe("tail", () => {
  test("tells of requests that come, and of those that change", async () => {
    const { outlast, cli, beginCli } = await start();
    const slow = gate();
    outlast.fake.script(slow.step);
    const before = await submit(outlast, { user: "ann" });
    await slow.arrived;
    const tail = beginCli("requests", "tail", "--interval", "10ms", "--json", "--status", "completed");
    // It is known to have begun when it has told of something.
    for (let i = 0; !tail.output().includes("req_"); i++) await done(outlast, { user: `later-${i}` });
    expect(tail.output()).not.toContain(before);
    slow.release();
    await tail.says(before);
    tail.child.kill("SIGINT");
    const { code, lines } = await tail.ended;
    expect(code).toBe(0);
    const told = lines.map((line) => JSON.parse(line) as RequestObject);
    expect(new Set(told.map(({ status }) => status))).toEqual(new Set(["completed"]));
    expect(told.filter(({ id }) => id === before)).toMatchObject([{ user: "ann", attempts: 1 }]);
    expect(new Set(told.map(({ id }) => id)).size).toBe(told.length);
    const listed = idsOf((await cli("requests", "list", "--all", "--json")).output);
    expect(listed).toEqual(expect.arrayContaining(told.map(({ id }) => id)));
  });

  test("tells of a request from before that is retried", async () => {
    const { outlast, beginCli } = await start();
    outlast.fake.script(fail(500));
    const id = await done(outlast, failing);
    const tail = beginCli("requests", "tail", "--interval", "10ms");
    while (!tail.output().includes("req_")) await done(outlast);
    expect(tail.output()).not.toContain(id);
    const slow = gate();
    outlast.fake.script(slow.step);
    await outlast.post(`/v1/requests/${id}/retry`, {});
    await tail.says(id);
    slow.release();
    await tail.says(`${id}  completed`);
    tail.child.kill("SIGINT");
    expect((await tail.ended).code).toBe(0);
  });

  test("ends after as many lines as it is told", async () => {
    const { outlast, beginCli } = await start();
    const tail = beginCli("requests", "tail", "--interval", "10ms", "--count", "2");
    let isOver = false;
    const over = tail.ended.then((result) => {
      isOver = true;
      return result;
    });
    while (!isOver) await done(outlast);
    const { code, lines } = await over;
    expect({ code, count: lines.length }).toEqual({ code: 0, count: 2 });
    expect(lines[0]).toMatch(/^\d\d:\d\d:\d\d {2}req_\w+ {2}(queued|processing|completed) +gpt-test/);
  });
});

describe("retry, cancel, erase and resolve", () => {
  async function withFailed(count: number) {
    const both = await start();
    const ids: string[] = [];
    for (let i = 0; i < count; i++) {
      both.outlast.fake.script(fail(500));
      ids.push(await done(both.outlast, failing));
    }
    return { ...both, ids };
  }

  test("by their ids", async () => {
    const { outlast, cli, ids } = await withFailed(2);
    const retried = await cli("requests", "retry", ...ids);
    expect(retried).toMatchObject({ code: 0, lines: ids.map((id) => `${id} retried`) });
    for (const id of ids) expect(await ended(outlast, id)).toMatchObject({ status: "completed" });
    const again = await cli("requests", "retry", ids[0]!, "req_nothing");
    expect(again.code).toBe(1);
    expect(again.errors).toMatch(/not retried: .*\(request_completed\)\n.*\(request_not_found\)/s);
    const erased = await cli("requests", "erase", ids[0]!, "--yes", "--json");
    expect(JSON.parse(erased.output)).toMatchObject({ data: [{ id: ids[0], deleted: true }] });
    expect((await outlast.fetch(`/v1/requests/${ids[0]}`)).status).toBe(404);
  });

  test("go on to the end where nobody reads what they say", async () => {
    const { outlast, beginCli, ids } = await withFailed(3);
    const retry = beginCli("requests", "retry", "req_nothing", ...ids);
    retry.child.stdout.destroy();
    retry.child.stderr.destroy();
    expect((await retry.ended).code).toBe(1);
    for (const id of ids) expect(await ended(outlast, id)).toMatchObject({ status: "completed" });
  });

  test("by a filter, with how far it is", async () => {
    const { outlast, cli, ids } = await withFailed(3);
    const other = await done(outlast);
    const { code, output, errors } = await cli("requests", "retry", "--model", "gpt-test", "--yes");
    expect(code).toBe(0);
    expect(output).toMatch(/^3 requests retried; 0 no longer to be retried, 0 not possible\.\n$/);
    expect(errors).toMatch(/^The server does it as bulk_\w+, also when this command ends\.\n/);
    expect(errors).toMatch(/^retry 100 % 3, completed$/m);
    for (const id of ids) expect(await ended(outlast, id)).toMatchObject({ status: "completed" });
    expect((await ended(outlast, other)).attempts).toBe(1);
    const none = await cli("requests", "retry", "--model", "gpt-test", "--yes");
    expect(none).toMatchObject({ code: 0, errors: "There is no such request.\n" });
  });

  test("with changed options", async () => {
    const { outlast, cli, ids } = await withFailed(1);
    outlast.fake.script(fail(500), fail(500));
    const { code } = await cli("requests", "retry", "--all", "--yes", "--options", '{"max_attempts": 2}');
    expect(code).toBe(0);
    expect(await ended(outlast, ids[0]!)).toMatchObject({ status: "failed", attempts: 3 });
  });

  test("nothing is done by a filter where nobody was asked", async () => {
    const { outlast, cli, ids } = await withFailed(1);
    const { code, errors } = await cli("requests", "erase", "--status", "failed");
    expect(code).toBe(64);
    expect(errors).toBe("This would erase 1 request: say --yes where nobody can be asked.\n");
    expect((await outlast.fetch(`/v1/requests/${ids[0]}`)).status).toBe(200);
    expect((await cli("requests", "erase", "--yes")).code).toBe(64);
    expect((await cli("requests", "erase", "--yes", "--all", ids[0]!)).code).toBe(64);
  });

  test("cancel means those that go on, erase by what their caller told leaves nothing", async () => {
    const { outlast, cli } = await start();
    await done(outlast, { user: "ann" });
    const waiting = await submit(outlast, { user: "ann", outlast: { delay: "1h" } });
    expect((await cli("requests", "cancel", "--user", "ann", "--yes")).output).toMatch(
      /^1 request cancelled/,
    );
    expect(await ended(outlast, waiting)).toMatchObject({ status: "cancelled" });
    const erased = await cli("requests", "erase", "--user", "ann", "--yes", "--json");
    expect(JSON.parse(erased.output)).toMatchObject({ object: "bulk", status: "completed", done: 2 });
    expect(idsOf((await cli("requests", "list", "--json")).output)).toEqual([]);
  });

  test("dead letters are grouped by cause, and go when they are resolved", async () => {
    const { outlast, cli, ids } = await withFailed(2);
    outlast.fake.script(fail(400));
    await done(outlast, failing);
    const { lines } = await cli("requests", "dead-letters");
    expect(lines).toHaveLength(2);
    expect(lines[1]).toMatch(new RegExp(`^ +2 +server_error +gpt-test +fake +upstream .*${ids[1]}`));
    expect((await cli("requests", "dead-letters", "--caused-by", "caller")).lines).toHaveLength(2);
    expect((await cli("requests", "resolve", "--caused-by", "upstream", "--yes")).output).toMatch(
      /^2 requests/,
    );
    const none = await cli("requests", "dead-letters");
    expect(none).toMatchObject({ code: 0, output: "" });
    for (const [option, value] of [
      ["--status", "failed"],
      ["-q", "word"],
    ] as const) {
      expect((await cli("requests", "dead-letters", option, value)).errors).toContain("unknown option");
    }
  });
});

describe("where it asks", () => {
  test("a file is read beside the server that owns it, and when it is copied", async () => {
    const { outlast, cli } = await start();
    outlast.fake.script(fail(500));
    const id = await done(outlast, failing);
    await done(outlast);
    const file = join(outlast.dir, "outlast.db");
    const served = await cli("requests", "list", "--json");
    expect((await cli("requests", "list", "--json", "--db", file)).output).toBe(served.output);
    const waiting = await submit(outlast, { outlast: { delay: "1h" } });
    const queued = ["requests", "list", "--json", "--status", "queued", "--db"];
    expect(idsOf((await cli(...queued, file)).output)).toEqual([waiting]);
    const shown = await cli("requests", "show", id, "--json");
    expect((await cli("requests", "show", id, "--json", "--db", file)).output).toBe(shown.output);
    expect((await cli("requests", "dead-letters", "--db", file)).lines).toHaveLength(2);
    expect((await cli("stats", "--db", file)).output).toMatch(/^3 requests, database /);
    await outlast.stop();
    const copy = join(outlast.dir, "copy.db");
    copyFileSync(file, copy);
    expect(idsOf((await cli(...queued, copy)).output)).toEqual([waiting]);
    expect(idsOf((await cli(...queued, copy, "--project", "other")).output)).toEqual([]);
  });

  test("a file that is missing, or of something else, is refused in one line", async () => {
    const { outlast, cli } = await start();
    const missing = await cli("requests", "list", "--db", "missing.db");
    expect(missing).toMatchObject({ code: 1, errors: "There is no database at missing.db.\n" });
    writeFileSync(join(outlast.dir, "text.db"), "This is no database, and never was one.".repeat(100));
    const text = await cli("requests", "list", "--db", "text.db");
    expect(text).toMatchObject({ code: 1, output: "" });
    expect(text.errors).toMatch(/^[^\n]*not a database[^\n]*\n$/);
    expect((await cli("requests", "list", "--db", "missing.db", "-q", "word")).code).toBe(64);
    const old = new KeptDatabase(join(outlast.dir, "old.db"));
    old.exec(readFileSync(join(import.meta.dirname, "../store/released/schema-1.sql"), "utf8"));
    old.close();
    const older = await cli("stats", "--db", "old.db");
    expect(older.errors).toMatch(
      /^old\.db was written by an older Outlast \(schema 1, .*`outlast serve`.*\n$/,
    );
    expect((await cli("doctor", "--db", "old.db")).output).toMatch(/^warn {2}schema: 1 is older than/m);
  });

  test("without a server it says how to start one, or to read the file", async () => {
    const { cli } = await start();
    const { code, errors } = await cli("requests", "list", "--url", await closedPort());
    expect(code).toBe(1);
    expect(errors).toMatch(
      /^No server can be reached at http:\S+ \(ECONNREFUSED\): .*outlast serve.*--db\.\n$/,
    );
  });

  test("a key is taken from the option, the environment, or the configuration of that server", async () => {
    const { outlast, cli } = await start({
      toml: '[[api_keys]]\nkey = "first-key-0123456789"\n[[api_keys]]\nkey = "second-key-0123456789"\nproject = "other"\n',
    });
    const key = { authorization: "Bearer second-key-0123456789" };
    const id = await submit(outlast, {}, key);
    expect(idsOf((await cli("requests", "list", "--json")).output)).toEqual([]);
    expect(idsOf((await cli("requests", "list", "--json", "--project", "other")).output)).toEqual([id]);
    const url = ["requests", "list", "--json", "--url", outlast.url];
    const refused = await cli(...url);
    expect(refused.code).toBe(1);
    expect(refused.errors).toMatch(/--key or OUTLAST_API_KEY\. \(invalid_api_key\)\n$/);
    expect(idsOf((await cli(...url, "--key", "second-key-0123456789")).output)).toEqual([id]);
    const env = { OUTLAST_API_KEY: "second-key-0123456789" };
    expect(idsOf((await run(url, outlast.dir, env)).output)).toEqual([id]);
  });

  test("a project that no key is of is not taken for another one", async () => {
    const { outlast, cli } = await start();
    const id = await done(outlast);
    const open = ["requests", "list", "--json", "--project"];
    expect(idsOf((await cli(...open, "default")).output)).toEqual([id]);
    const { code, errors } = await cli("requests", "erase", "--all", "--yes", "--project", "other");
    expect({ code, errors }).toEqual({
      code: 64,
      errors: 'The configuration has no key of the project "other".\n',
    });
    expect((await outlast.fetch(`/v1/requests/${id}`)).status).toBe(200);
  });

  test("a configuration may refer to the variable of the key", async () => {
    const env = { OUTLAST_API_KEY: "only-key-0123456789" };
    const { outlast } = await start({ toml: `[[api_keys]]\nkey = "\${OUTLAST_API_KEY}"\n`, env });
    const authorization = `Bearer ${env.OUTLAST_API_KEY}`;
    const id = await submit(outlast, {}, { authorization });
    const told = { ...env, OUTLAST_PORT: new URL(outlast.url).port };
    const { output, errors } = await run(["requests", "list", "--json"], outlast.dir, told);
    expect(errors).toBe("");
    expect(idsOf(output)).toEqual([id]);
  });

  test("what a server says moves no cursor", async () => {
    const { outlast, cli } = await start();
    const record = await ended(outlast, await submit(outlast));
    const evil = "\u001b[2J\u009b2J";
    const now = new Date(0).toISOString();
    const bulk = {
      id: `bulk_${evil}`,
      object: "bulk",
      action: "retry",
      status: "failed",
      filter: {},
      total: 1,
    };
    const counts = { done: 0, skipped: 0, failed: 1, error_code: evil, idempotency_key: null };
    const list = (...data: object[]) => ({
      body: { object: "list", data, first_id: null, last_id: null, has_more: false },
    });
    const error = { message: evil, type: "invalid_request_error", param: null, code: null };
    const url = await startStandIn(({ pathname, searchParams }) => {
      if (pathname.endsWith("/counts")) return list({ object: "request.count", count: 1 });
      if (pathname.endsWith("/retry"))
        return { body: { ...bulk, ...counts, created_at: now, updated_at: now, ended_at: now } };
      if (pathname.endsWith("/req_1")) return { status: 400, body: { error } };
      return searchParams.get("order") === "asc" ? list({ ...record, id: `req_${evil}` }) : list();
    });
    for (const command of [
      ["retry", "--all", "--yes"],
      ["show", "req_1"],
      ["tail", "--count", "1"],
    ]) {
      const { output, errors } = await cli("requests", ...command, "--url", url);
      expect(output + errors).toContain("[2J");
      expect([..."\u001b\u009b"].filter((one) => (output + errors).includes(one))).toEqual([]);
    }
  });

  test("wrong words end with 64, a wrong configuration with 78", async () => {
    const { outlast, cli } = await start();
    expect((await cli("requests", "list", "--nonsense")).code).toBe(64);
    expect((await cli("requests", "list", "--since", "yesterday")).code).toBe(64);
    expect((await cli("requests", "list", "--limit", "0")).code).toBe(64);
    expect((await cli("requests", "list", "--metadata", "nothing")).code).toBe(64);
    expect((await cli("requests", "retry", "req_1", "--options", "[]")).code).toBe(64);
    const unknown = await cli("requests", "list", "--caused-by", "nobody");
    expect(unknown).toMatchObject({ code: 1 });
    expect(unknown.errors).toMatch(/^`caused_by`: must be "caller" or "upstream"\. \(invalid_parameter\)\n$/);
    writeFileSync(join(outlast.dir, "bad.toml"), "nonsense = 1\n");
    expect((await cli("requests", "list", "--config", "bad.toml")).code).toBe(78);
  });
});
