/** What goes to disk with the end of an attempt, beside its request. */

import { expect, test } from "vitest";
import { dayOf } from "../../src/core/ledger/usage.ts";
import type { World } from "../../src/core/ports.ts";
import { Loop, type LoopOptions, minuteMs, response } from "../support/loop.ts";

const settings = { upstreams: [{ name: "u", maxConcurrency: 4 }] };

async function usageOf(loop: Loop) {
  const today = dayOf(loop.clock.now());
  const query = { project: "acme", fromDay: 0, toDay: today, by: [], limit: 1 };
  return (await loop.queue.ledger.usage(query))[0]?.sums;
}

test("what every attempt used is added up, and how its request ended", async () => {
  const outcomes = [response(500), response(200, 30)];
  const loop = await Loop.begun({ settings, answer: () => ({ ms: 100, outcome: outcomes.shift()! }) });
  await loop.submit("m");
  await loop.pass(minuteMs);
  expect(await usageOf(loop)).toMatchObject({
    attempts: 2,
    completed: 1,
    failed: 0,
    inputTokens: 10,
    outputTokens: 20,
  });
});

test("an attempt that ends by a fault of ours is counted, too", async () => {
  const broken: LoopOptions["world"] = (world: World) => ({
    ...world,
    upstream: {
      ...world.upstream,
      call: () => {
        throw new Error("a fault");
      },
    },
  });
  const loop = await Loop.begun({ settings, world: broken });
  const { id } = await loop.submit("m");
  await loop.pass(minuteMs);
  expect(await usageOf(loop)).toMatchObject({ attempts: 1, completed: 0, failed: 1 });
  expect(await loop.queue.attempts(id)).toMatchObject([{ verdict: "ambiguous", waitedFor: [] }]);
});
