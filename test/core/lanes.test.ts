/** What is remembered of lanes, of which callers may make as many as they like. */

import { expect, test } from "vitest";
import { Loop, mostIn, response } from "../support/loop.ts";

const junk = 1200;

/** Calls ever so many models that nobody has heard of, in no time to speak of. */
async function callJunk(loop: Loop): Promise<void> {
  for (let i = 0; i < junk; i++) {
    await loop.submit(`junk-${i}`);
    await loop.pass(4);
  }
  await loop.pass(100);
}

test("a lane whose limit is in use is not forgotten, however many others are called", async () => {
  const loop = await Loop.begun({
    settings: {
      upstreams: [
        { name: "u", maxConcurrency: 256, lanes: [{ model: "hot", limits: { requestsPerMinute: 10 } }] },
      ],
    },
    answer: () => ({ ms: 1, outcome: response(200) }),
  });
  await loop.submitMany(10, "hot");
  await loop.pass(100);
  await callJunk(loop);
  await loop.submitMany(10, "hot");
  await loop.pass(100_000);
  expect(loop.callsOf("hot")).toHaveLength(20);
  expect(mostIn(loop.callsOf("hot"), 60_000)).toBe(10);
  expect(known(loop)).toBeLessThanOrEqual(1101);
});

test("a breaker that is open stays so, however many others are called", async () => {
  const loop = await Loop.begun({
    settings: { upstreams: [{ name: "u", maxConcurrency: 256 }] },
    answer: ({ model }) => ({ ms: 1, outcome: response(model === "broken" ? 500 : 200) }),
  });
  for (let i = 0; i < 3; i++) {
    await loop.submit("broken", { terms: { maxAttempts: 1 } });
    await loop.pass(700);
  }
  const calls = loop.callsOf("broken").length;
  await callJunk(loop);
  const waiting = await loop.submit("broken");
  await loop.pass(100);
  expect(loop.queue.explain(waiting)?.why).toBe("breaker");
  expect(loop.callsOf("broken")).toHaveLength(calls);
});

function known(loop: Loop): number {
  return [...loop.lanes.flow.known()].length;
}
