/**
 * A server that is stopped (SIGSTOP) while it works: it holds its file, nobody can take its place, and when it
 * goes on (SIGCONT) it does so from what has happened meanwhile. One that lost its file changes nothing any more.
 */

import { createHash } from "node:crypto";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterEach, beforeEach, expect, test } from "vitest";
import type { AttemptObject, RequestObject } from "../../src/contract.ts";
import { transition } from "../../src/core/request.ts";
import { decideInterrupted } from "../../src/core/retry.ts";
import { Engine } from "../../src/store/sqlite/engine.ts";
import { type FakeUpstream, gate, hang, type Step, startFake } from "../support/fake-upstream.ts";
import { hello } from "../support/outlast.ts";
import { type Life, startLife } from "./processes.ts";

let dir: string;
let fake: FakeUpstream;
let lives: Life[];

beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), "outlast-zombie-"));
  fake = await startFake();
  lives = [];
});

afterEach(async () => {
  for (const { child, exited } of lives) {
    child.kill("SIGKILL");
    await exited;
  }
  await fake.close();
  rmSync(dir, { recursive: true, force: true });
});

function start(): Life {
  const life = startLife(dir, fake.baseUrl);
  lives.push(life);
  return life;
}

async function serving(): Promise<{ life: Life; url: string }> {
  const life = start();
  const url = await life.listening;
  if (url === undefined) throw new Error(life.errors());
  return { life, url };
}

function post(url: string, more: object): Promise<Response> {
  return fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...hello, ...more }),
  });
}

async function submit(url: string, outlast: object = {}): Promise<string> {
  const response = await post(url, { wait: false, outlast });
  expect(response.status).toBe(202);
  return ((await response.json()) as { id: string }).id;
}

async function endOf(url: string, id: string): Promise<RequestObject> {
  return (await (await fetch(`${url}/v1/requests/${id}?wait=30`)).json()) as RequestObject;
}

async function attemptsOf(url: string, id: string): Promise<AttemptObject[]> {
  const response = await fetch(`${url}/v1/requests/${id}/attempts`);
  return ((await response.json()) as { data: AttemptObject[] }).data;
}

const contents = () =>
  ["outlast.db", "outlast.db-wal"].map((name) =>
    createHash("sha256")
      .update(readFileSync(join(dir, name)))
      .digest("hex"),
  );

test("nobody takes the place of a stopped server, and it finishes its calls when it goes on", async () => {
  const called = gate();
  fake.script(called.step);
  const { life, url } = await serving();
  const held = post(url, {});
  await called.arrived;
  life.child.kill("SIGSTOP");
  const before = contents();

  const second = start();
  expect(await second.exited).toBe(1);
  expect(second.errors()).toMatch(/outlast\.db is in use by another Outlast process/);
  expect(contents()).toEqual(before);
  // The answer comes while nobody reads.
  called.release();
  await fake.idle();
  life.child.kill("SIGCONT");

  const response = await held;
  expect(response.status).toBe(200);
  const id = response.headers.get("outlast-request-id")!;
  expect(await endOf(url, id)).toMatchObject({
    status: "completed",
    attempts: 1,
    duplicate_possible: false,
  });
});

test("a deadline that passed while the server was stopped is kept", async () => {
  fake.script(hang());
  const { life, url } = await serving();
  const id = await submit(url, { deadline: "500ms" });
  const acceptedAt = performance.now();
  await fake.calls(1);
  life.child.kill("SIGSTOP");
  // The second server takes its time to find out that there is a first one.
  while (performance.now() < acceptedAt + 600) await start().exited;
  life.child.kill("SIGCONT");
  expect(await endOf(url, id)).toMatchObject({ status: "failed", error: { code: "deadline_exceeded" } });
  expect(fake.seen).toHaveLength(1);
});

test("a call whose connection broke while the server was stopped is made again, and the record says so", async () => {
  let breaks = () => {};
  const breakable: Step = (_call, res) => {
    breaks = () => res.req.socket.resetAndDestroy();
  };
  fake.script(breakable);
  const { life, url } = await serving();
  const retried = await submit(url);
  await fake.calls(1);
  life.child.kill("SIGSTOP");
  breaks();
  await fake.idle();
  life.child.kill("SIGCONT");
  expect(await endOf(url, retried)).toMatchObject({ status: "completed", duplicate_possible: true });
  expect(await attemptsOf(url, retried)).toMatchObject([
    { verdict: "ambiguous", error_code: "upstream_connection_lost" },
    { verdict: "success" },
  ]);
});

test("one that is killed while it is stopped leaves its file to the next at once", async () => {
  fake.script(hang());
  const { life, url } = await serving();
  const id = await submit(url);
  await fake.calls(1);
  life.child.kill("SIGSTOP");
  life.child.kill("SIGKILL");
  expect(await life.exited).toBe("SIGKILL");
  const next = await serving();
  expect(await endOf(next.url, id)).toMatchObject({
    status: "completed",
    attempts: 2,
    duplicate_possible: true,
  });
});

/** How many unaccepted connections the system holds for a process, whatever that asks for. */
const somaxconn = () => {
  const file = "/proc/sys/net/core/somaxconn";
  return existsSync(file) ? Number(readFileSync(file, "utf8")) : 0;
};

// Old systems hold 128 for everybody.
test.skipIf(somaxconn() < 1000)(
  "a crowd that arrives while the server is stopped is not turned away",
  async () => {
    const { life, url } = await serving();
    const { hostname, port } = new URL(url);
    life.child.kill("SIGSTOP");
    const sockets = Array.from({ length: 700 }, () => connect(Number(port), hostname));
    // The system of a server that asks for no more room ignores most of those that come on top of 511.
    await Promise.all(sockets.map((socket) => once(socket, "connect")));
    life.child.kill("SIGCONT");
    await Promise.all(
      sockets.map(async (socket) => {
        socket.write("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        expect(await text(socket)).toMatch(/^HTTP\/1\.1 200 /);
      }),
    );
  },
);

test("should a lock ever fail, what the former owner of a request writes is refused", async () => {
  const second = gate();
  fake.script(hang(), second.step);
  const { life, url } = await serving();
  const id = await submit(url);
  await fake.calls(1);
  life.child.kill("SIGKILL");
  await life.exited;
  // What the former owner knows of its request, and would write from it.
  const zombie = new Engine(join(dir, "outlast.db"), { readonly: false });
  const known = zombie.get(id)!;
  expect(known).toMatchObject({ state: "processing", attempt: 1, owner: { epoch: 1 } });

  const next = await serving();
  await second.arrived;
  const now = Date.now();
  const done = {
    type: "ended",
    now,
    result: { verdict: "success", status: 200 },
    step: { kind: "complete" },
  } as const;
  const late = [
    transition(known, done)!,
    transition(known, { type: "interrupted", now, ...decideInterrupted(known, now) })!,
    transition(known, { type: "cancelled", now })!,
  ];
  const current = zombie.get(id);
  expect(current).toMatchObject({ state: "processing", attempt: 2, owner: { epoch: 2 } });
  const parts = [{ kind: "answer" as const, seq: 0, bytes: Buffer.from("not the answer") }];
  for (const moved of late)
    expect(zombie.commitAll([{ kind: "change", transition: moved, parts }])).toEqual([
      { status: "conflict", current },
    ]);
  zombie.close();
  second.release();
  expect(await endOf(next.url, id)).toMatchObject({ status: "completed", attempts: 2 });
  expect(await (await fetch(`${next.url}/v1/chat/completions/${id}`)).text()).not.toMatch(/not the answer/);
});
