/** `outlast doctor` and `outlast stats`. */

import { closeSync, openSync, statSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, test, vi } from "vitest";
import { systemClock } from "../../src/system.ts";
import { answer, closedPort, fail } from "../support/fake-upstream.ts";
import type { OutlastOptions } from "../support/outlast.ts";
import { done, run, serverAndCli } from "./command.ts";

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

interface Finding {
  check: string;
  status: string;
  message: string;
  advice: string | null;
}
const found = (output: string, check: string): Finding[] =>
  (JSON.parse(output) as { checks: Finding[] }).checks.filter((one) => one.check === check);
const models = answer({ body: { object: "list", data: [] } });

describe("doctor", () => {
  test("finds nothing wrong with a server that is well", async () => {
    const { outlast, cli } = await start();
    await done(outlast);
    outlast.fake.script(models);
    const { code, output, errors } = await cli("doctor", "--full");
    expect({ code, errors }).toEqual({ code: 0, errors: "" });
    expect(output).toMatch(/^ok {4}configuration: valid, of outlast\.toml$/m);
    expect(output).toMatch(/^ok {4}database: .*outlast\.db: 1 request, .*every page and index is sound$/m);
    expect(output).toMatch(/^ok {4}upstream fake: http:\S+ answers, and accepts the key$/m);
    expect(output).toMatch(/^ok {4}server: runs at http:\S+, and is ready$/m);
    expect(output).not.toMatch(/^(warn|fail)/m);
    expect(outlast.fake.seen.at(-1)).toMatchObject({ method: "GET", url: "/v1/models" });
    expect(outlast.fake.seen.at(-1)!.headers.authorization).toBe("Bearer sk-upstream-fake");
    expect(output).not.toContain("sk-upstream-fake");
  });

  test("its exit code is right also where nobody reads on", async () => {
    const { beginCli } = await start();
    const doctor = beginCli("doctor", "--db", "missing.db");
    doctor.child.stdout.destroy();
    expect((await doctor.ended).code).toBe(1);
  });

  test("says which upstream refuses its key, has no models, or cannot be reached", async () => {
    const { outlast, cli } = await start({
      upstreams: ["fake", "bare"],
      tables: `[upstreams.gone]\nbase_url = "${await closedPort()}"\n`,
    });
    outlast.fakes.fake!.script(fail(401));
    outlast.fakes.bare!.script(fail(404));
    const { code, output } = await cli("doctor", "--json");
    expect(code).toBe(1);
    expect(JSON.parse(output)).toMatchObject({ object: "doctor", ok: false });
    expect(found(output, "upstream fake")).toMatchObject([
      { status: "fail", message: expect.stringContaining("refuses the key (HTTP 401)") },
    ]);
    expect(found(output, "upstream bare")).toMatchObject([{ status: "warn" }]);
    expect(found(output, "upstream gone")).toMatchObject([
      { status: "fail", message: expect.stringContaining("ECONNREFUSED") },
    ]);
  });

  test("compares the clock with that of the upstreams, and with the newest request", async () => {
    const hourMs = 3_600_000;
    const { outlast, cli } = await start({
      clock: { ...systemClock, now: () => systemClock.now() + hourMs },
    });
    await done(outlast);
    const date = new Date(Date.now() - hourMs).toUTCString();
    outlast.fake.script(answer({ body: { data: [] }, headers: { date } }));
    const { code, output } = await cli("doctor", "--json");
    expect(code).toBe(0);
    expect(found(output, "upstream fake")).toMatchObject([
      { status: "ok" },
      { status: "warn", message: expect.stringMatching(/ahead of its own$/) },
    ]);
    expect(found(output, "clock")).toMatchObject([
      { status: "warn", message: expect.stringMatching(/^the newest request is .* ahead of this clock/) },
    ]);
  });

  test("fails where the disk has less than its floor, and where no server is warns only", async () => {
    const { outlast } = await start();
    outlast.fake.script(models);
    await outlast.stop();
    const port = new URL(await closedPort()).port;
    const env = { OUTLAST_PORT: port, OUTLAST_STORE_MIN_FREE_DISK: "1000000GB" };
    const { code, output } = await run(["doctor", "--json"], outlast.dir, env);
    expect(code).toBe(1);
    expect(found(output, "disk")).toMatchObject([{ status: "fail", advice: expect.any(String) }]);
    expect(found(output, "server")).toMatchObject([{ status: "warn" }]);
  });

  test("finds a file that is damaged, is none of ours, or is not there", async () => {
    const { outlast, cli } = await start();
    for (let i = 0; i < 20; i++)
      await done(outlast, { messages: [{ role: "user", content: "x".repeat(9000) }] });
    await outlast.stop();
    const path = join(outlast.dir, "outlast.db");
    const file = openSync(path, "r+");
    const garbage = Buffer.alloc(8192 * 8, 0xa5);
    writeSync(file, garbage, 0, garbage.length, Math.floor(statSync(path).size / 2 / 8192) * 8192);
    closeSync(file);
    const damaged = await cli("doctor", "--json", "--full");
    expect(damaged.code).toBe(1);
    expect(found(damaged.output, "database")).toMatchObject([{ status: "fail", advice: expect.any(String) }]);
    expect((await cli("backup", "copy.db")).code).toBe(1);
    writeFileSync(join(outlast.dir, "text.db"), "no database".repeat(1000));
    const text = await cli("doctor", "--json", "--db", "text.db");
    expect(found(text.output, "database")).toMatchObject([{ status: "fail" }]);
    const missing = await cli("doctor", "--json", "--db", "missing.db");
    expect(found(missing.output, "database")).toMatchObject([{ status: "fail" }]);
  });

  test("tells every problem of the configuration, and looks at a file all the same", async () => {
    const { outlast, cli } = await start();
    writeFileSync(join(outlast.dir, "bad.toml"), 'nonsense = 1\nport = "x"\n');
    const bad = ["doctor", "--json", "--config", "bad.toml"];
    const { code, output } = await cli(...bad);
    expect(code).toBe(1);
    expect(found(output, "configuration").map(({ status }) => status)).toContain("fail");
    expect(found(output, "database")).toEqual([]);
    expect(found((await cli(...bad, "--db", "outlast.db")).output, "database")).toMatchObject([
      { status: "ok" },
    ]);
  });
});

describe("stats", () => {
  test("counts requests by status, model and error, and what they used", async () => {
    const { outlast, cli } = await start({
      tables: '[prices."gpt-test"]\ninput = 1000\noutput = 2000\n',
    });
    await done(outlast);
    await done(outlast, { model: "other" });
    outlast.fake.script(fail(500));
    await done(outlast, { outlast: { max_attempts: 1 } });
    const { code, output } = await cli("stats");
    expect(code).toBe(0);
    expect(output).toMatch(/^3 requests, database [\d.]+ kB and a log of /);
    expect(output).toMatch(/^ +1 +completed +other$/m);
    expect(output).toMatch(/^ +1 +server_error$/m);
    expect(output).toMatch(/^\d{4}-\d\d-\d\d +3 +1 +0 +3 +10 +0 +2 +\$0\.007000\+/m);
    expect(output).toMatch(/^fake +ok +0 +\d+ +0$/m);
    const { object, counts, usage, upstreams, database } = JSON.parse((await cli("stats", "--json")).output);
    expect({ object, usage: usage.length, upstreams: upstreams.length }).toEqual({
      object: "stats",
      usage: 1,
      upstreams: 1,
    });
    expect(counts.status).toEqual([
      { object: "request.count", status: "completed", count: 2 },
      { object: "request.count", status: "failed", count: 1 },
    ]);
    expect(database.bytes).toBeGreaterThan(0);
  });
});
