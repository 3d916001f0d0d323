/** `outlast backup`, and what comes of putting the copy in the place of the database. */

import { copyFileSync, existsSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, expect, test, vi } from "vitest";
import { KeptDatabase } from "../support/database.ts";
import { answer, hang } from "../support/fake-upstream.ts";
import { startOutlast } from "../support/outlast.ts";
import { ended, serverAndCli, submit } from "./command.ts";

// Each command is a process of its own, and some tests need several.
vi.setConfig({ testTimeout: 60_000 });

const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function start() {
  const both = await serverAndCli();
  cleanups.push(() => both.outlast.close());
  const folder = mkdtempSync(join(tmpdir(), "outlast-backup-"));
  cleanups.push(() => rmSync(folder, { recursive: true, force: true }));
  return { ...both, folder, copy: join(folder, "copy.db") };
}

test("of a database under load has everything that was acknowledged before; a server goes on with it", async () => {
  const { outlast, cli, copy } = await start();
  const padding = "x".repeat(100_000);
  outlast.fake.script(hang());
  const inFlight = await submit(outlast);
  await outlast.fake.calls(1);
  const acknowledged: string[] = [];
  const accept = async () => {
    acknowledged.push(await submit(outlast, { messages: [{ role: "user", content: padding }] }));
  };
  for (let i = 0; i < 60; i++) await accept();
  const before = [...acknowledged];
  let isOver = false;
  const load = (async () => {
    while (!isOver) await accept();
  })();
  const { code, output, errors } = await cli("backup", copy);
  isOver = true;
  await load;
  expect({ code, output }).toMatchObject({
    code: 0,
    output: expect.stringMatching(/requests, .*, checked\.\n$/),
  });
  expect(errors).toContain("copy 100 %");
  expect(acknowledged.length).toBeGreaterThan(before.length);

  const restored = mkdtempSync(join(tmpdir(), "outlast-restored-"));
  copyFileSync(copy, join(restored, "outlast.db"));
  const again = await startOutlast({ dir: restored, upstreams: { fake: outlast.fake } });
  cleanups.push(async () => {
    await again.stop();
    rmSync(restored, { recursive: true, force: true });
  });
  for (const id of before) expect((await ended(again, id)).status).toBe("completed");
  expect(await ended(again, inFlight)).toMatchObject({ status: "completed", duplicate_possible: true });
});

test("is one file, which is read where no log is", async () => {
  const { outlast, cli, copy, folder } = await start();
  const id = await submit(outlast);
  await ended(outlast, id);
  expect(JSON.parse((await cli("backup", copy, "--json")).output)).toMatchObject({
    object: "backup",
    requests: 1,
    bytes: statSync(copy).size,
  });
  expect(readdirSync(folder)).toEqual(["copy.db"]);
  expect((await cli("requests", "list", "--db", copy)).output).toContain(id);
  expect(readdirSync(folder)).toEqual(["copy.db"]);
});

test("is stopped by Ctrl-C also while it is checked, and then there is none", async () => {
  const { outlast, beginCli, copy } = await start();
  await outlast.stop();
  const db = new KeptDatabase(join(outlast.dir, "outlast.db"));
  // To check these few rows takes many seconds.
  db.exec(`PRAGMA ignore_check_constraints = ON;
    CREATE TABLE slow (size INTEGER CHECK (length(replace(hex(zeroblob(size)), '0', 'x')) > 0));
    INSERT INTO slow SELECT 10000000 FROM (${Array(200).fill("SELECT 1").join(" UNION ALL ")});`);
  db.close();
  const { child, ended: over } = beginCli("backup", copy);
  await new Promise<void>((resolve) => {
    let said = "";
    child.stderr.on("data", (bytes) => {
      said += bytes;
      if (said.includes("being checked")) resolve();
    });
  });
  child.kill("SIGINT");
  await over;
  expect(child.signalCode).toBe("SIGINT");
  expect(existsSync(copy)).toBe(false);
});

test("never takes the place of a file unless told to, nor that of a database in use", async () => {
  const { outlast, cli, copy, folder } = await start();
  writeFileSync(copy, "mine");
  const refused = await cli("backup", copy);
  expect(refused.code).toBe(1);
  expect(refused.errors).toMatch(/copy\.db exists already: name another file, or use --force\.\n$/);
  expect(statSync(copy).size).toBe(4);
  expect((await cli("backup", copy, "--force")).code).toBe(0);
  writeFileSync(`${copy}-wal`, "");
  expect((await cli("backup", copy, "--force")).errors).toMatch(/copy\.db-wal exists/);
  const itself = await cli("backup", join(outlast.dir, "outlast.db"), "--force");
  expect(itself.errors).toMatch(/is the database itself\.\n$/);
  expect((await cli("backup", folder)).errors).toMatch(/is a directory/);
  expect((await cli("backup", join(folder, "none/copy.db"))).code).toBe(1);
  expect((await cli("backup", join(folder, "new.db"), "--db", "missing.db")).errors).toMatch(
    /^There is no database/,
  );
  expect(existsSync(join(folder, "new.db"))).toBe(false);
  outlast.fake.script(answer());
  await ended(outlast, await submit(outlast));
});
