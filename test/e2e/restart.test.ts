/** What survives a stop, a crash and a deploy: in this process where that is enough, else as a process of its own. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import type { AttemptObject, RequestObject } from "../../src/contract.ts";
import { HandClock } from "../support/clock.ts";
import {
  answer,
  type FakeUpstream,
  fail,
  gate,
  hang,
  type Seen,
  startFake,
} from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, startOutlast } from "../support/outlast.ts";

const path = "/v1/chat/completions";
const main = join(import.meta.dirname, "../../dist/main.js");
const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** Something that answers HTTP: a server in this process or in another. */
type Door = Pick<Outlast, "fetch">;

async function attemptsOf(door: Door, id: string | null): Promise<AttemptObject[]> {
  const response = await door.fetch(`/v1/requests/${id}/attempts`);
  return ((await response.json()) as { data: AttemptObject[] }).data;
}
async function recordOf(door: Door, id: string | null, query = ""): Promise<RequestObject> {
  return (await (await door.fetch(`/v1/requests/${id}${query}`)).json()) as RequestObject;
}
async function listed(door: Door, query: string): Promise<RequestObject[]> {
  const response = await door.fetch(`/v1/requests?${query}`);
  return ((await response.json()) as { data: RequestObject[] }).data;
}
function post(door: Door, body: object, headers: Record<string, string> = {}): Promise<Response> {
  return door.fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify({ ...hello, ...body }),
  });
}
async function submit(door: Door, options: object = {}, body: object = {}): Promise<string> {
  const response = await post(door, { ...body, wait: false, outlast: options });
  expect(response.status).toBe(202);
  return ((await response.json()) as { id: string }).id;
}
const codeOf = async (response: Response) =>
  ((await response.json()) as { error: { code: string } }).error.code;
const says = (content: string) => ({ messages: [{ role: "user", content }] });
const textOf = ({ body }: Seen) =>
  (JSON.parse(body.toString()) as { messages: { content: string }[] }).messages[0]!.content;

/** Asks until the answer fits; each question goes to the server and back. */
async function until<T>(ask: () => Promise<T>, fits: (found: T) => boolean): Promise<T> {
  for (;;) {
    const found = await ask();
    if (fits(found)) return found;
  }
}

// ---- in this process ----

describe("after a stop and a start on the same directory", () => {
  async function first(options: OutlastOptions = {}): Promise<Outlast> {
    const outlast = await startOutlast({ luck: 0.5, clock: new HandClock(), ...options });
    cleanups.push(() => outlast.close());
    return outlast;
  }
  async function again(before: Outlast, options: OutlastOptions): Promise<Outlast> {
    await before.stop();
    const outlast = await startOutlast({ luck: 0.5, dir: before.dir, upstreams: before.fakes, ...options });
    cleanups.push(() => outlast.stop());
    return outlast;
  }
  const ended = (outlast: Outlast, id: string) => outlast.ear.event("ended", (told) => told.id === id);

  test("what was queued, waiting for a retry, or for its time, completes", async () => {
    const clock = new HandClock();
    const before = await first({ clock });
    before.fake.script(fail(500), fail(429, {}, { "retry-after": "60" }));
    const retrying = await submit(before, {}, says("retrying"));
    await before.ear.event("attempt_ended");
    const throttled = await submit(before, {}, says("throttled"));
    await before.ear.event("gate_closed");
    const queued = await submit(before, {}, says("queued"));
    const delayed = await submit(before, { delay: "1h" }, says("delayed"));
    const ids = [retrying, throttled, queued, delayed];
    const states = await Promise.all(ids.map(async (id) => (await recordOf(before, id)).status));
    expect(states).toEqual(["retrying", "retrying", "queued", "queued"]);

    const after = await again(before, { clock });
    expect(after.ear.all("recovered")).toEqual([{ event: "recovered", interrupted: 0, waiting: 4 }]);
    // Their lane was told to wait, and a restart does not make that undone.
    clock.advance(59_999);
    expect(after.fake.seen).toHaveLength(2);
    clock.advance(1);
    await Promise.all([queued, retrying, throttled].map((id) => ended(after, id)));
    expect(after.fake.seen.map(textOf)).not.toContain("delayed");
    clock.advance(3_540_000);
    await ended(after, delayed);
    const records = await Promise.all(ids.map((id) => recordOf(after, id)));
    expect(records.map(({ status }) => status)).toEqual(Array(4).fill("completed"));
    expect(records.map(({ duplicate_possible }) => duplicate_possible)).toEqual(Array(4).fill(false));
    const texts = ["retrying", "throttled", "queued", "retrying", "throttled", "delayed"];
    expect(after.fake.seen.map(textOf).sort()).toEqual(texts.sort());
  });

  test("what was told to wait is not called earlier for it", async () => {
    const clock = new HandClock();
    const before = await first({ clock });
    before.fake.script(fail(429, {}, { "retry-after": "60" }));
    const id = await submit(before);
    await before.ear.event("gate_closed");
    clock.advance(20_000);
    const after = await again(before, { clock });
    clock.advance(39_999);
    await recordOf(after, id);
    await recordOf(after, id);
    expect(after.ear.all("attempt_started")).toEqual([]);
    clock.advance(1);
    await ended(after, id);
  });

  test("what reached its deadline meanwhile fails without a call", async () => {
    const clock = new HandClock();
    const before = await first({ clock });
    const id = await submit(before, { delay: "1h", deadline: "10s" });
    await before.stop();
    clock.advance(3_610_000);
    const after = await again(before, { clock });
    await ended(after, id);
    expect(await recordOf(after, id)).toMatchObject({
      status: "failed",
      error: { code: "deadline_exceeded" },
    });
    expect(after.fake.seen).toEqual([]);
  });

  test("what ended before is still there, and a key still stands for it", async () => {
    const before = await first();
    const key = { "idempotency-key": "once" };
    const done = await post(before, {}, key);
    const text = await done.text();
    const after = await again(before, { clock: new HandClock() });
    const replayed = await post(after, {}, key);
    expect(replayed.headers.get("idempotent-replayed")).toBe("true");
    expect(await replayed.text()).toBe(text);
    expect(after.fake.seen).toHaveLength(1);
  });

  test("what waited for an upstream that is gone goes to the upstream of today, behind nobody's back", async () => {
    const clock = new HandClock();
    const gone = await startFake();
    const stays = await startFake();
    cleanups.push(() => Promise.all([gone.close(), stays.close()]));
    const toml = (...names: string[]) => ({
      upstreams: Object.fromEntries(names.map((name) => [name, name === "gone" ? gone : stays])),
      tables: `[routes]\n"gpt-test" = ["${names[0]}/m"]\n"gpt-other" = ["stays/m"]\n`,
    });
    const before = await first({ clock, ...toml("gone", "stays") });
    for (const fake of [gone, stays]) fake.script(fail(429, {}, { "retry-after": "60" }));
    for (const model of ["gpt-test", "gpt-other"]) {
      await submit(before, {}, { model, ...says(model) });
      await before.ear.event("gate_closed", (told) =>
        told.gate.startsWith(model === "gpt-test" ? "gone" : "stays"),
      );
    }
    for (let i = 0; i < 5; i++) await submit(before, {}, { model: "gpt-test", ...says(`moved ${i}`) });
    for (let i = 0; i < 3; i++) await submit(before, {}, { model: "gpt-other", ...says(`stayed ${i}`) });
    await before.stop();
    clock.advance(60_000);
    const after = await again(before, { clock, ...toml("stays"), upstreamToml: "max_concurrency = 1" });
    expect(after.ear.all("recovered")).toMatchObject([{ waiting: 10 }]);
    const all = await until(
      () => listed(after, "status=completed&limit=100"),
      (found) => found.length === 10,
    );
    expect(all.every(({ upstream }) => upstream === "stays")).toBe(true);
    expect(gone.seen).toHaveLength(1);
  });

  test("nothing is left of callers who come while it stops: they are refused, or their request is kept", async () => {
    const before = await first();
    const calls = Array.from({ length: 40 }, (_, i) => post(before, { wait: false, ...says(String(i)) }));
    await calls[0];
    const stopped = before.stop();
    const answered = await Promise.allSettled(calls);
    await stopped;
    const accepted: string[] = [];
    for (const one of answered) {
      if (one.status === "rejected") continue;
      expect([202, 503]).toContain(one.value.status);
      if (one.value.status === 202) accepted.push(((await one.value.json()) as { id: string }).id);
    }
    const after = await again(before, { clock: new HandClock() });
    for (const id of accepted)
      expect(await recordOf(after, id, "?wait=20")).toMatchObject({ status: "completed" });
    expect([...before.ear.all("fault"), ...before.ear.all("storage_trouble")]).toEqual([]);
  });
});

// ---- as a process ----

interface Spawned extends Door {
  url: string;
  child: ChildProcess;
  output(): string;
  errors(): string;
  /** The exit code, or the signal that ended it. */
  exited: Promise<number | string>;
}

function directory(upstreamUrl?: string, more = "", inUpstream = ""): string {
  const dir = mkdtempSync(join(tmpdir(), "outlast-"));
  cleanups.push(() => rmSync(dir, { recursive: true, force: true }));
  const upstream =
    upstreamUrl === undefined
      ? ""
      : `[upstreams.fake]\nbase_url = "${upstreamUrl}"\napi_key = "sk-secret"\n${inUpstream}\n`;
  writeFileSync(join(dir, "outlast.toml"), `${more}\n${upstream}`);
  return dir;
}

function run(dir: string, args: string[], env: Record<string, string> = {}): Omit<Spawned, "url" | "fetch"> {
  const child = spawn(process.execPath, [main, ...args], {
    cwd: dir,
    env: {
      PATH: process.env.PATH,
      OUTLAST_PORT: "0",
      OUTLAST_DATA_DIR: dir,
      OUTLAST_STORE_MIN_FREE_DISK: "0",
      OUTLAST_RETRY_HELD_BACKOFF_BASE: "1ms",
      OUTLAST_RETRY_BACKOFF_BASE: "1ms",
      ...env,
    },
  });
  let output = "";
  let errors = "";
  child.stdout.on("data", (bytes) => {
    output += bytes;
  });
  child.stderr.on("data", (bytes) => {
    errors += bytes;
  });
  const exited = once(child, "close").then(([code, signal]) => (code ?? signal) as number | string);
  cleanups.push(async () => {
    child.kill("SIGKILL");
    await exited;
  });
  return { child, output: () => output, errors: () => errors, exited };
}

async function serve(dir: string, env: Record<string, string> = {}): Promise<Spawned> {
  const spawned = run(dir, ["serve"], env);
  const listening = /Outlast listens on (http:\S+)/;
  while (!listening.test(spawned.output())) {
    const next = await Promise.race([once(spawned.child.stdout!, "data"), spawned.exited]);
    if (!Array.isArray(next)) throw new Error(`it ended with ${next}: ${spawned.errors()}`);
  }
  const url = listening.exec(spawned.output())![1]!;
  return { ...spawned, url, fetch: (where, init) => fetch(url + where, init) };
}

async function fakeUpstream(): Promise<FakeUpstream> {
  const fake = await startFake();
  cleanups.push(() => fake.close());
  return fake;
}

/** Lines of its log that tell of something that must not happen. */
const faults = ({ errors }: Pick<Spawned, "errors">) =>
  errors()
    .split("\n")
    .filter((line) => /fault|unhandled|uncaught|storage_trouble|TypeError|^\s+at /i.test(line));

describe("after a process was killed in the middle of a call", () => {
  async function killedDuringCall(options: object) {
    const fake = await fakeUpstream();
    fake.script(hang());
    const dir = directory(fake.baseUrl);
    const before = await serve(dir);
    const id = await submit(before, options);
    await fake.calls(1);
    before.child.kill("SIGKILL");
    expect(await before.exited).toBe("SIGKILL");
    return { fake, id, after: await serve(dir) };
  }

  test("the request runs again, and its record says that there may be a duplicate", async () => {
    const { fake, id, after } = await killedDuringCall({});
    const ended = await recordOf(after, id, "?wait=20");
    expect(ended).toMatchObject({ status: "completed", attempts: 2, duplicate_possible: true });
    expect(await attemptsOf(after, id)).toMatchObject([
      { number: 1, verdict: "ambiguous", reason: "interrupted", error_code: "interrupted", counted: true },
      { number: 2, verdict: "success", reason: "answered" },
    ]);
    expect(fake.seen[0]!.body).toEqual(fake.seen[1]!.body);
    expect(faults(after)).toEqual([]);
  });

  test("the request fails where the caller does not want a second call", async () => {
    const { fake, id, after } = await killedDuringCall({ on_unknown: "fail" });
    expect(await recordOf(after, id)).toMatchObject({
      status: "failed",
      attempts: 1,
      error: { code: "upstream_outcome_unknown", status: 502 },
    });
    expect(await attemptsOf(after, id)).toMatchObject([{ verdict: "ambiguous", reason: "outcome_unknown" }]);
    expect(fake.seen).toHaveLength(1);
  });

  test("a request that kills its process every time is not tried for ever", async () => {
    const fake = await fakeUpstream();
    fake.otherwise(hang());
    const dir = directory(fake.baseUrl);
    let id: string | undefined;
    for (let life = 1; life <= 2; life++) {
      const alive = await serve(dir);
      id ??= await submit(alive, { max_attempts: 2 });
      await fake.calls(life);
      alive.child.kill("SIGKILL");
      await alive.exited;
    }
    const after = await serve(dir);
    expect(await recordOf(after, id!)).toMatchObject({ status: "failed", attempts: 2 });
    expect(fake.seen).toHaveLength(2);
  });

  test("everything that was accepted is still there, and nothing else", async () => {
    const fake = await fakeUpstream();
    fake.otherwise(hang());
    const dir = directory(fake.baseUrl);
    const before = await serve(dir);
    const accepted: string[] = [];
    const calls = Array.from({ length: 60 }, async (_, i) => {
      accepted.push(await submit(before, {}, says(String(i))));
      if (accepted.length === 30) before.child.kill("SIGKILL");
    });
    await Promise.allSettled(calls);
    await before.exited;
    expect(accepted.length).toBeGreaterThanOrEqual(30);
    fake.otherwise(answer());
    const after = await serve(dir);
    for (const id of accepted)
      expect(await recordOf(after, id, "?wait=20")).toMatchObject({ status: "completed" });
  });
});

describe("SIGTERM", () => {
  test("finishes what is called, sends everybody else away in good order, and ends with 0", async () => {
    const fake = await fakeUpstream();
    const dir = directory(fake.baseUrl, "", "max_concurrency = 1");
    const called = gate();
    fake.script(called.step);
    const server = await serve(dir);
    const inFlight = post(server, says("in flight"));
    await called.arrived;
    const held = post(server, says("held"));
    const waited = post(server, { wait: true, ...says("waited") });
    const poll = until(
      () => listed(server, "status=queued"),
      (found) => found.length === 2,
    );
    await poll;
    server.child.kill("SIGTERM");

    const refused = await held;
    expect(refused.status).toBe(503);
    expect(refused.headers.get("x-should-retry")).toBe("true");
    expect(Number(refused.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(refused.headers.get("outlast-request-id")).toMatch(/^req_/);
    expect(await codeOf(refused)).toBe("shutting_down");
    const promised = await waited;
    expect(promised.status).toBe(202);
    const { id } = (await promised.json()) as { id: string };

    const ready = await server.fetch("/readyz");
    expect(ready.status).toBe(503);
    expect((await server.fetch("/healthz")).status).toBe(200);
    const late = await post(server, says("late"));
    expect(late.status).toBe(503);
    expect(late.headers.get("x-should-retry")).toBe("true");
    expect(late.headers.get("retry-after")).not.toBeNull();
    expect(await codeOf(late)).toBe("shutting_down");
    expect(await recordOf(server, id)).toMatchObject({ status: "queued" });

    called.release();
    expect((await inFlight).status).toBe(200);
    expect(await server.exited).toBe(0);
    expect(faults(server)).toEqual([]);
    expect(fake.seen.map(textOf)).toEqual(["in flight"]);

    const after = await serve(dir);
    expect(await recordOf(after, id, "?wait=20")).toMatchObject({
      status: "completed",
      duplicate_possible: false,
    });
    const orphan = refused.headers.get("outlast-request-id");
    expect(await recordOf(after, orphan, "?wait=20")).toMatchObject({ status: "completed" });
    expect(fake.seen.map(textOf)).not.toContain("late");
  });

  test("gives a call as long as the drain time-out, then leaves it to the next start", async () => {
    const fake = await fakeUpstream();
    fake.script(hang());
    const dir = directory(fake.baseUrl);
    const server = await serve(dir, { OUTLAST_DRAIN_TIMEOUT: "50ms" });
    const call = post(server, {});
    await fake.calls(1);
    server.child.kill("SIGTERM");
    const response = await call;
    expect(response.status).toBe(503);
    expect(await codeOf(response)).toBe("shutting_down");
    expect(await server.exited).toBe(0);
    expect(faults(server)).toEqual([]);
    await fake.idle();

    const after = await serve(dir);
    const id = response.headers.get("outlast-request-id");
    expect(await recordOf(after, id, "?wait=20")).toMatchObject({
      status: "completed",
      duplicate_possible: true,
    });
    expect(await attemptsOf(after, id)).toMatchObject([
      { verdict: "ambiguous", reason: "interrupted" },
      { verdict: "success" },
    ]);
  });

  test("ends an idle server at once, also where clients keep their connections", async () => {
    const fake = await fakeUpstream();
    const server = await serve(directory(fake.baseUrl));
    expect((await post(server, {})).status).toBe(200);
    server.child.kill("SIGTERM");
    expect(await server.exited).toBe(0);
    expect(faults(server)).toEqual([]);
  });

  test("lets those who follow a running request have its end", async () => {
    const fake = await fakeUpstream();
    const called = gate();
    fake.script(called.step);
    const server = await serve(directory(fake.baseUrl));
    const id = await submit(server);
    await called.arrived;
    const follower = recordOf(server, id, "?wait=30");
    server.child.kill("SIGTERM");
    await until(
      () => server.fetch("/readyz"),
      ({ status }) => status === 503,
    );
    called.release();
    expect(await follower).toMatchObject({ status: "completed" });
    expect(await server.exited).toBe(0);
  });

  test("a second time ends it at once, and nothing is lost", async () => {
    const fake = await fakeUpstream();
    fake.script(hang());
    const dir = directory(fake.baseUrl);
    const server = await serve(dir);
    const id = await submit(server);
    await fake.calls(1);
    server.child.kill("SIGTERM");
    await until(
      () => server.fetch("/readyz"),
      ({ status }) => status === 503,
    );
    server.child.kill("SIGTERM");
    expect(await server.exited).toBe(1);
    const after = await serve(dir);
    expect(await recordOf(after, id, "?wait=20")).toMatchObject({
      status: "completed",
      duplicate_possible: true,
    });
  });

  test("SIGINT does the same", async () => {
    const server = await serve(directory());
    expect((await server.fetch("/readyz")).status).toBe(200);
    server.child.kill("SIGINT");
    expect(await server.exited).toBe(0);
    expect(faults(server)).toEqual([]);
  });
});

describe("a server that cannot start says why and ends", () => {
  test("where another one owns the database", async () => {
    const dir = directory();
    const first = await serve(dir);
    const second = run(dir, ["serve"]);
    expect(await second.exited).toBe(1);
    expect(second.errors()).toMatch(/outlast\.db is in use by another Outlast process/);
    expect(second.errors()).not.toMatch(/^\s+at /m);
    expect((await first.fetch("/readyz")).status).toBe(200);
  });

  test("where its port is taken", async () => {
    const other = createServer();
    await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
    cleanups.push(() => other.close());
    const { port } = other.address() as { port: number };
    const server = run(directory(), ["serve", "--port", String(port)]);
    expect(await server.exited).toBe(1);
    expect(server.errors()).toMatch(/in use/);
    expect(server.errors()).toContain(String(port));
    expect(server.errors()).not.toMatch(/^\s+at /m);
  });

  test("where the database is no database", async () => {
    const dir = directory();
    writeFileSync(
      join(dir, "outlast.db"),
      "this is a text, and it is long enough to be looked at ".repeat(50),
    );
    const server = run(dir, ["serve"]);
    expect(await server.exited).toBe(1);
    expect(server.errors()).toMatch(/not a database/);
  });

  test.each<[string, string, RegExp]>([
    ["an unknown key", 'holdtimeout = "1s"', /holdtimeout.*hold_timeout/s],
    ["a bad value", 'drain_timeout = "soon"', /drain_timeout/],
    ["a variable that is not set", `host = "\${OUTLAST_TEST_NOT_SET}"`, /OUTLAST_TEST_NOT_SET/],
    ["a file that is no TOML", "host = ", /outlast\.toml/],
  ])("with 78 where the configuration is wrong: %s", async (_, toml, message) => {
    for (const command of ["serve", "check"]) {
      const server = run(directory(undefined, toml), [command]);
      expect(await server.exited).toBe(78);
      expect(server.errors()).toMatch(message);
      expect(server.output()).toBe("");
    }
  });

  test("with 64 where the command line is wrong", async () => {
    expect(await run(directory(), ["serve", "--prot", "1"]).exited).toBe(64);
    expect(await run(directory(), ["sreve"]).exited).toBe(64);
  });
});

test("check prints the configuration that counts, without its secrets", async () => {
  const dir = directory(
    "http://127.0.0.1:9/v1",
    'drain_timeout = "7s"\n[[api_keys]]\nkey = "key-of-a-caller"\n',
  );
  const checked = run(dir, ["check"], { OUTLAST_HOLD_TIMEOUT: "99s" });
  expect(await checked.exited).toBe(0);
  expect(checked.output()).toMatch(/drain_timeout = "7s"/);
  expect(checked.output()).toMatch(/hold_timeout = "99s"/);
  expect(checked.output()).toContain("****");
  expect(checked.output() + checked.errors()).not.toMatch(/sk-secret|key-of-a-caller/);
});
