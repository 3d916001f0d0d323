/** A disk that fails: the server stops at the first error, exits, and its next start has all that was promised. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type FakeUpstream, hang, startFake } from "../support/fake-upstream.ts";
import { call, callUntilGone, drained, inspect, Ledger, moody } from "./callers.ts";
import { Luck } from "./luck.ts";
import { Server } from "./server.ts";

let fake: FakeUpstream;
let dir: string;
let ledger: Ledger;
let servers: Server[];

beforeEach(async () => {
  fake = await startFake();
  fake.otherwise(moody(new Luck(1)));
  dir = mkdtempSync(join(tmpdir(), "outlast-errors-"));
  ledger = new Ledger();
  servers = [];
});

afterEach(async () => {
  await Promise.all(servers.map((server) => server.stop("SIGKILL")));
  await fake.close();
  rmSync(dir, { recursive: true, force: true });
});

function start(fault?: string): Server {
  const power = fault === undefined ? undefined : { fault };
  const server = new Server({ dir, upstream: fake.baseUrl, power });
  servers.push(server);
  return server;
}

/** Starts on a disk that is well again, lets everything end, and finds all that was promised in the file. */
async function expectNothingLost(): Promise<void> {
  const server = start();
  await drained(await server.url());
  expect(await server.stop(), server.output).toBe(0);
  const found = inspect(dir, ledger);
  expect(found).toMatchObject({ lost: [], altered: [], unfinished: [], corrupt: [] });
}

describe("a disk that fails while requests are served", () => {
  test.each([
    ["a commit cannot be synced", "sync:wal:10"],
    ["a later commit cannot be synced", "sync:wal:60"],
    ["a page cannot be written to the log", "write:wal:400"],
    ["nothing can be written to the log any more", "write:wal:700+"],
    ["the database cannot be synced when the log is copied into it", "sync:db:5"],
    ["a page of the log cannot be copied into the database", "write:db:20"],
    ["nothing can be copied into the database any more", "write:db:20+"],
    ["a page of the log cannot be read", "read:wal:40"],
    ["a page of the database cannot be read", "read:db:20"],
  ])("stops the server where %s (%s), and nothing is lost", async (_, fault) => {
    const server = start(fault);
    const url = await server.url();
    const lucks = Array.from({ length: 8 }, (_, n) => new Luck(n));
    await Promise.all(lucks.map((luck) => callUntilGone(url, ledger, luck)));
    expect(await server.ended, server.output).toBe(1);
    expect(server.output).toMatch(/"kind":"failed","message":"The database \S+: .*","msg":"storage_trouble"/);
    await expectNothingLost();
    expect(ledger.accepted.size).toBeGreaterThan(0);
  });
});

describe("a disk that fails at the start", () => {
  test.each([
    ["a new database cannot be written", "write:db:1", false],
    ["a new database cannot be synced", "sync:db:1", false],
    ["the schema cannot be written", "write:wal:5", false],
    ["the schema cannot be synced", "sync:wal:2", false],
    ["the database cannot be read", "read:db:1", true],
    ["the log cannot be read", "read:wal:1", true],
    ["the count of starts cannot be written", "write:wal:1", true],
    ["the count of starts cannot be synced", "sync:wal:1", true],
    ["what a crash interrupted cannot be written", "sync:wal:2", true],
  ])("refuses the start where %s (%s), and nothing is lost", async (_, fault, used) => {
    if (used) await leaveWork();
    const server = start(fault);
    expect(await server.listening, server.output).toBeUndefined();
    expect(await server.ended).toBe(1);
    expect(server.output).toMatch(/^The database \S+/m);
    await expectNothingLost();
  });

  /** A server that was killed with calls under way. */
  async function leaveWork(): Promise<void> {
    fake.otherwise(hang());
    const server = start();
    const url = await server.url();
    for (let n = 0; n < 5; n++) await call(url, ledger, { size: 30_000, wait: false });
    await fake.calls(5);
    await server.stop("SIGKILL");
    fake.otherwise(moody(new Luck(1)));
  }
});
