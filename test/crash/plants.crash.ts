/** The test of the test: a server that breaks a promise on purpose is found out. */

import { expect, test } from "vitest";
import { crashRun, type Death } from "./run.ts";

/** A few deaths do not always hit on what is broken. */
const runs = 6;
const deaths: Death[] = [
  { point: "after-reply", hit: 20, ms: 2_000 },
  { point: "after-send", hit: 20, ms: 2_000 },
  { point: "answer-whole", hit: 10, ms: 2_000 },
  { point: "before-reply", hit: 20, ms: 2_000 },
];
/** For what goes wrong only in the midst of streams. */
const streamDeaths: Death[] = [
  { point: "stream-flowing", hit: 60, ms: 2_000 },
  { point: "events-known", hit: 20, ms: 2_000 },
  { point: "events-known", hit: 40, ms: 2_000 },
];

async function isFoundOut(plant: string, broken: RegExp, deaths: Death[]): Promise<void> {
  const found: string[] = [];
  for (let seed = 1; seed <= runs && !found.some((fault) => broken.test(fault)); seed++)
    found.push(...(await crashRun({ seed, deaths, plant, drainMs: 2_000 })).faults);
  expect(found.join("\n")).toMatch(broken);
}

test.each([
  ["acknowledges-too-early", /was acknowledged .* and is lost/],
  ["forgets-the-interrupted", /never ended: it is processing/],
  ["hides-duplicates", /executed \d+ calls, the records admit/],
  ["calls-again-what-must-not-be", /although on_unknown is "fail"/],
  ["ignores-keys", /has \d+ requests/],
  ["adopts-nothing", /the retries of a stock SDK were paid \d+ times/],
  ["calls-twice", /the upstream got \d+ calls, \d+ are recorded/],
  ["delivers-something-else", /a result was delivered that is not the recorded one/],
])("a server that %s is found out", (plant, broken) => isFoundOut(plant, broken, deaths));

test.each([
  ["loses-events", /events are missing in its stream|not that of the recorded answer/],
  ["forgets-where-readers-were", /event \d+ came behind event \d+/],
  ["compares-nothing", /was streamed what the upstream never said|not that of the recorded answer/],
])("a server that %s is found out", (plant, broken) => isFoundOut(plant, broken, streamDeaths));
