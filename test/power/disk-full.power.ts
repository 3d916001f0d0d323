/** A disk that is really full: what is refused, what is kept, and that the service comes back by itself. */

import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { SqliteStore } from "../../src/store/sqlite/store.ts";
import { aRecord } from "../support/builders.ts";
import { HandClock } from "../support/clock.ts";
import { answer, type FakeUpstream, type Seen, startFake } from "../support/fake-upstream.ts";
import { call, drained, inspect, Ledger } from "./callers.ts";
import { Disk } from "./disk.ts";
import { Server, type ServerOptions } from "./server.ts";

const megabyte = 2 ** 20;

/** An upstream that has not answered yet gets so many calls at once. */
const firstCalls = 32;

/** A clock for a store, whose one timer looks at the free space and is set again when that is known. */
class LookClock extends HandClock {
  private onTimer = () => {};

  override timer(delayMs: number, run: () => void): () => void {
    this.onTimer();
    return super.timer(delayMs, run);
  }

  /** Has the store look at the free space. */
  look(): Promise<void> {
    const looked = new Promise<void>((resolve) => {
      this.onTimer = resolve;
    });
    this.advance(1000);
    return looked;
  }
}

let fake: FakeUpstream;
let disk: Disk;
let ledger: Ledger;
let cleanups: (() => unknown)[];

beforeEach(async () => {
  cleanups = [];
  ledger = new Ledger();
  disk = mount(24);
  fake = await startFake();
  cleanups.push(() => fake.close());
});

afterEach(async () => {
  for (const cleanup of cleanups.reverse()) await cleanup();
});

function mount(megabytes: number): Disk {
  const mounted = new Disk(megabytes);
  cleanups.push(() => mounted.remove());
  return mounted;
}

function start(more: Partial<ServerOptions> = {}): Server {
  const server = new Server({ dir: disk.dir, upstream: fake.baseUrl, ...more });
  cleanups.push(() => server.stop("SIGKILL"));
  return server;
}

/** Has the upstream wait with its answers, of so many bytes, until the returned function is called. */
function holdAnswers(size: (seen: Seen) => number = () => 2000): () => void {
  let release = () => {};
  const released = new Promise<void>((resolve) => {
    release = resolve;
  });
  fake.otherwise(async (seen, res) => {
    await released;
    await answer({ text: "y".repeat(size(seen)) })(seen, res);
  });
  return release;
}

/** Hands in requests until one is refused, at most `most`; resolves with the refusal. */
async function callUntilRefused(url: string, size: number, most = 1000): Promise<Response> {
  for (let n = 0; n < most; n++) {
    const response = await call(url, ledger, { size, wait: false });
    if (response.status !== 202) return response;
  }
  throw new Error("nothing was refused");
}

async function expectRefusal(response: Response): Promise<void> {
  expect(response.status).toBe(503);
  const { error } = (await response.json()) as { error: { code: string } };
  expect(error).toEqual({
    message: expect.any(String),
    type: "service_unavailable_error",
    param: null,
    code: "storage_full",
  });
  const seconds = Number(response.headers.get("retry-after"));
  expect(seconds).toBeGreaterThan(0);
  expect(seconds).toBeLessThanOrEqual(60);
  expect(Number(response.headers.get("retry-after-ms"))).toBeGreaterThan(0);
  expect(response.headers.get("x-should-retry")).toBe("true");
}

const ready = (url: string) => fetch(`${url}/readyz`);
const count = (server: Server, event: string) => server.output.split(`"msg":"${event}"`).length - 1;

async function recordOf(url: string, id: string) {
  const response = await fetch(`${url}/v1/requests/${id}`);
  return (await response.json()) as { status: string; attempts: number; duplicate_possible: boolean };
}

/** Stops the server, and finds all that was promised in the file. */
async function expectNothingLost(server: Server): Promise<void> {
  expect(await server.stop(), server.output).toBe(0);
  const found = inspect(disk.dir, ledger);
  expect(found).toMatchObject({ lost: [], altered: [], unfinished: [], corrupt: [] });
}

describe("without a floor, a disk that fills to the last byte", () => {
  test("refuses new work, keeps what is under way, and goes on by itself when there is room", async () => {
    const server = start();
    const url = await server.url();
    const release = holdAnswers();
    const held = [1, 2, 3].map(() => call(url, ledger));
    await fake.calls(3);
    disk.fill(3 * megabyte);
    await expectRefusal(await callUntilRefused(url, 20_000));
    disk.fill(0);
    await expectRefusal(await callUntilRefused(url, 10));
    await expectRefusal(await ready(url));
    const accepted = [...ledger.accepted];
    expect(accepted.length).toBeGreaterThan(20);
    await fake.calls(Math.min(firstCalls, accepted.length + held.length));

    // The answers come, and there is no room for them.
    release();
    await fake.idle();
    const keyed = () => call(url, ledger, { key: "k", wait: false });
    await expectRefusal(await keyed());
    await expectRefusal(await ready(url));
    expect(await recordOf(url, accepted[0]!)).toMatchObject({ status: "processing" });
    expect(count(server, "storage_recovered")).toBe(0);

    disk.clear();
    const results = await Promise.all(held);
    expect(results.map(({ status }) => status)).toEqual([200, 200, 200]);
    await drained(url);
    for (const id of accepted)
      expect(await recordOf(url, id)).toMatchObject({
        status: "completed",
        attempts: 1,
        duplicate_possible: false,
      });
    expect(fake.seen).toHaveLength(accepted.length + held.length);
    await server.tells("storage_recovered");
    expect((await ready(url)).status).toBe(200);
    expect((await keyed()).status).toBe(202);
    expect((await call(url, ledger)).status).toBe(200);
    await expectNothingLost(server);
  });

  test("refuses to start with a clear word, and has everything when there is room", async () => {
    const fresh = start();
    await fresh.url();
    await fresh.stop();
    disk.fill(0);
    const refused = start();
    expect(await refused.listening).toBeUndefined();
    expect(await refused.ended).toBe(1);
    expect(refused.output).toMatch(/The database \S+ .*database or disk is full/);
    disk.clear();
    await start().url();
  });

  test("refuses a first start with a clear word", async () => {
    disk.fill(0);
    const refused = start();
    expect(await refused.listening).toBeUndefined();
    expect(await refused.ended).toBe(1);
    expect(refused.output).toMatch(/The database \S+ .*database or disk is full/);
    disk.clear();
    await start().url();
  });

  test("refuses a start after a crash with a clear word, and loses nothing", async () => {
    const server = start();
    const url = await server.url();
    const release = holdAnswers();
    disk.fill(2 * megabyte);
    await callUntilRefused(url, 20_000);
    disk.fill(0);
    await server.stop("SIGKILL");
    release();
    const refused = start();
    expect(await refused.listening).toBeUndefined();
    expect(await refused.ended).toBe(1);
    expect(refused.output).toMatch(/The database \S+ .*database or disk is full/);
    disk.clear();
    const again = start();
    await drained(await again.url());
    await expectNothingLost(again);
  });

  test("stays full until there is room, however often it is looked at", async () => {
    const clock = new LookClock();
    const told: string[] = [];
    const store = await SqliteStore.open({
      path: join(disk.dir, "outlast.db"),
      node: "local",
      minFreeDiskBytes: 0,
      search: false,
      clock,
      observer: { tell: ({ event }) => told.push(event) },
      onFailed: (error) => told.push(error.message),
    });
    const accept = (size: number) =>
      store.commit({
        kind: "accept",
        record: aRecord(),
        parts: [{ kind: "body", seq: 0, bytes: Buffer.alloc(size) }],
      });
    try {
      await accept(10);
      disk.fill(0);
      await expect(accept(megabyte)).rejects.toMatchObject({ kind: "full" });
      for (let n = 0; n < 3; n++) await clock.look();
      expect(store.hasSpace()).toBe(false);
      expect(told).toEqual(["storage_trouble"]);
      disk.clear();
      await clock.look();
      expect(store.hasSpace()).toBe(true);
      expect(told).toEqual(["storage_trouble", "storage_recovered"]);
      await accept(megabyte);
    } finally {
      await store.close();
    }
  });

  test("keeps the results for which there is room, though another is too large", async () => {
    const server = start();
    const url = await server.url();
    const release = holdAnswers(({ n }) => (n === 5 ? 4 * megabyte : 2000));
    for (let n = 1; n <= 10; n++) {
      await call(url, ledger, { wait: false });
      await fake.calls(n);
    }
    const ids = [...ledger.accepted];
    const [large] = ids.splice(4, 1);
    disk.fill(0);
    await callUntilRefused(url, 10);
    release();
    await fake.idle();
    disk.giveBack(2 * megabyte);
    const ended = (id: string) => fetch(`${url}/v1/requests/${id}?wait=30`);
    for (const end of await Promise.all(ids.map(ended)))
      expect(await end.json()).toMatchObject({ status: "completed" });
    expect(await recordOf(url, large!)).toMatchObject({ status: "processing" });
    disk.clear();
    expect(await (await ended(large!)).json()).toMatchObject({ status: "completed", attempts: 1 });
    await drained(url);
    await expectNothingLost(server);
  });

  test("does not keep the server from stopping, and what it could not write is done again", async () => {
    const server = start({ env: { OUTLAST_DRAIN_TIMEOUT: "1s" } });
    const url = await server.url();
    const release = holdAnswers();
    disk.fill(2 * megabyte);
    await callUntilRefused(url, 20_000);
    disk.fill(0);
    await callUntilRefused(url, 10);
    release();
    await fake.idle();
    expect(await server.stop(), server.output).toBe(0);
    disk.clear();
    const again = start();
    await drained(await again.url());
    await expectNothingLost(again);
  });
});

describe("with a floor, a disk that is nearly full", () => {
  test("refuses new work, finishes what is under way, and goes on by itself", async () => {
    const server = start({ env: { OUTLAST_STORE_MIN_FREE_DISK: "8MB" } });
    const url = await server.url();
    const release = holdAnswers(() => 20_000);
    const held = call(url, ledger);
    for (let n = 0; n < 20; n++) expect((await call(url, ledger, { wait: false })).status).toBe(202);
    disk.fill(7 * megabyte);
    await server.tells("storage_trouble");
    await expectRefusal(await call(url, ledger, { wait: false }));
    await expectRefusal(await call(url, ledger));
    await expectRefusal(await ready(url));

    release();
    expect((await held).status).toBe(200);
    await drained(url);
    expect(disk.freeBytes).toBeLessThan(8 * megabyte);
    expect(server.output).toContain('"kind":"low"');
    expect(server.output).not.toContain('"kind":"full"');

    disk.clear();
    await server.tells("storage_recovered");
    expect((await ready(url)).status).toBe(200);
    expect((await call(url, ledger)).status).toBe(200);
    await expectNothingLost(server);
  });

  test("accepts nothing from the start, and finishes what it has", async () => {
    const before = start();
    const url = await before.url();
    const release = holdAnswers();
    for (let n = 0; n < 5; n++) await call(url, ledger, { wait: false });
    await before.stop("SIGKILL");
    release();
    disk.fill(7 * megabyte);
    const server = start({ env: { OUTLAST_STORE_MIN_FREE_DISK: "8MB" } });
    const again = await server.url();
    await expectRefusal(await call(again, ledger, { wait: false }));
    await drained(again);
    disk.clear();
    await server.tells("storage_recovered");
    expect((await call(again, ledger)).status).toBe(200);
    await expectNothingLost(server);
  });
});

describe("a disk on which the log's shared memory finds no room", () => {
  test("is a full disk: the write is refused, and the next one goes through", async () => {
    // The first eight writes are made when the file is opened; a transaction of more than 32 MB needs more.
    disk = mount(200);
    const env = { OUTLAST_MAX_BODY_SIZE: "64MB" };
    // It is tried twice: among others, and by itself.
    const server = start({ env, power: { fault: "write:shm:9-10" } });
    const url = await server.url();
    expect((await call(url, ledger, { wait: false })).status).toBe(202);
    await expectRefusal(await call(url, ledger, { size: 36 * megabyte, wait: false }));
    await server.tells("storage_recovered");
    expect((await call(url, ledger, { size: 36 * megabyte })).status).toBe(200);
    await drained(url);
    await expectNothingLost(server);
  });
});
