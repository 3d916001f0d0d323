/** How long it takes from a kill to serving again, with WAITING=n (default 100,000) requests that wait. */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import type { ChangeSet } from "../../src/core/ports.ts";
import { Engine } from "../../src/store/sqlite/engine.ts";
import { anId, aRecord } from "../support/builders.ts";
import { type FakeUpstream, hang, startFake } from "../support/fake-upstream.ts";
import { hello } from "../support/outlast.ts";
import { startLife } from "./processes.ts";

const waiting = Number(process.env.WAITING ?? 100_000);
const rounds = 3;
const limitMs = 2_000;
const batch = 1_000;

const encoder = new TextEncoder();
const head = encoder.encode(JSON.stringify({ method: "POST", path: "/chat/completions", headers: [] }));
const body = encoder.encode(
  JSON.stringify({ ...hello, messages: [{ role: "user", content: "x".repeat(900) }] }),
);

/** Requests of three lanes and two priorities, as they are accepted while an upstream is slow. */
function accepted(i: number): ChangeSet {
  const now = Date.now();
  return {
    kind: "accept",
    record: aRecord({
      id: anId(),
      endpoint: "chat.completions",
      model: `model-${i % 3}`,
      lane: `fake/model-${i % 3}`,
      priority: i % 2 === 0 ? "default" : "batch",
      dueAt: now,
      createdAt: now,
      updatedAt: now,
      deadlineAt: now + 86_400_000,
    }),
    parts: [
      { kind: "head", seq: 0, bytes: head },
      { kind: "body", seq: 0, bytes: body },
    ],
  };
}

function fill(dir: string): void {
  const engine = new Engine(join(dir, "outlast.db"), { readonly: false, synchronous: "NORMAL" });
  for (let from = 0; from < waiting; from += batch) {
    const changes = Array.from({ length: Math.min(batch, waiting - from) }, (_, i) => accepted(from + i));
    expect(engine.commitAll(changes).every((result) => "status" in result)).toBe(true);
  }
  engine.close();
}

/** From the start of a process to its readiness, and to its first 202. */
interface Life {
  readyMs: number;
  acceptedMs: number;
}

/** One life, killed when its calls are under way. */
async function life(dir: string, fake: FakeUpstream): Promise<Life> {
  const seen = fake.seen.length;
  const { child, startedAt, listening, exited, errors } = startLife(dir, fake.baseUrl);
  const url = await listening;
  expect(url, errors()).toBeDefined();
  expect((await fetch(`${url}/readyz`)).status).toBe(200);
  const readyMs = Math.round(performance.now() - startedAt);
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...hello, model: "model-9", wait: false }),
  });
  expect(response.status).toBe(202);
  const acceptedMs = Math.round(performance.now() - startedAt);
  await fake.calls(seen + 1);
  child.kill("SIGKILL");
  await exited;
  return { readyMs, acceptedMs };
}

const median = (numbers: number[]): number => numbers.sort((a, b) => a - b)[numbers.length >> 1]!;

test(`a killed server serves again within ${limitMs} ms, with ${waiting} requests waiting`, async () => {
  const [full, empty] = [0, 1].map(() => mkdtempSync(join(tmpdir(), "outlast-recovery-")));
  const fake = await startFake();
  fake.otherwise(hang());
  try {
    fill(full!);
    // The first lives make the crash that the others recover from.
    for (const dir of [full!, empty!]) await life(dir, fake);
    const lives = { full: [] as Life[], empty: [] as Life[] };
    for (let round = 0; round < rounds; round++) {
      lives.full.push(await life(full!, fake));
      lives.empty.push(await life(empty!, fake));
    }
    const medians = (of: Life[]) => ({
      readyMs: median(of.map(({ readyMs }) => readyMs)),
      acceptedMs: median(of.map(({ acceptedMs }) => acceptedMs)),
    });
    const found = { full: medians(lives.full), empty: medians(lives.empty) };
    console.log(JSON.stringify({ waiting, ...found }));
    expect(found.full.acceptedMs).toBeLessThan(limitMs);
  } finally {
    await fake.close();
    for (const dir of [full!, empty!]) rmSync(dir, { recursive: true, force: true });
  }
});
