/** A clock moved by hand under a whole server: what each instant set off is done before the next one comes. */

import { expect } from "vitest";
import type { UpstreamObject } from "../../src/contract.ts";
import type { HandClock } from "./clock.ts";
import { answer, type Seen, type Step } from "./fake-upstream.ts";
import { hello, type Outlast } from "./outlast.ts";

/** Submits work that nobody waits for. Returns its id. */
export async function submit(outlast: Outlast, body: object = {}): Promise<string> {
  const response = await outlast.post("/v1/chat/completions", { ...hello, ...body, wait: false });
  expect(response.status).toBe(202);
  return ((await response.json()) as { id: string }).id;
}

export async function upstreamsOf(outlast: Outlast): Promise<UpstreamObject[]> {
  const response = await outlast.fetch("/v1/upstreams");
  return ((await response.json()) as { data: UpstreamObject[] }).data;
}

/** The only lane of an upstream, or that of a model. */
export async function laneOf(outlast: Outlast, model = "gpt-test", upstream = "fake") {
  const all = await upstreamsOf(outlast);
  return all.find(({ id }) => id === upstream)!.lanes.find((lane) => lane.model === model)!;
}

/** Waits until no call is under way, each of which the fakes answer at once. */
export async function settled(outlast: Outlast): Promise<void> {
  for (let looks = 0, quiet = 0; quiet < 2; looks++) {
    if (looks > 20_000) throw new Error("calls do not come to an end");
    const busy = (await upstreamsOf(outlast)).some((upstream) => upstream.in_flight > 0);
    quiet = busy ? 0 : quiet + 1;
  }
}

/**
 * Lets time pass, until `done` or for `mostMs`: from one instant at which a lane that is held opens to the next, a
 * quarter of a second otherwise. Calls that an instant sets off end before the next one.
 */
export async function passTime(
  outlast: Outlast,
  clock: HandClock,
  mostMs: number,
  done: () => boolean = () => false,
): Promise<void> {
  const until = clock.now() + mostMs;
  await settled(outlast);
  while (clock.now() < until && !done()) {
    const stepMs = stepOf(await upstreamsOf(outlast), clock.now());
    clock.advance(Math.min(stepMs, until - clock.now()));
    await settled(outlast);
  }
}

function stepOf(upstreams: UpstreamObject[], now: number): number {
  const opening = upstreams
    .flatMap(({ lanes }) => lanes)
    .filter(({ queued }) => queued > 0)
    .map((lane) => (lane.until === null ? 0 : Date.parse(lane.until) - now));
  return Math.max(shortestStepMs, Math.min(longestStepMs, ...opening));
}

const shortestStepMs = 250;
const longestStepMs = 5000;

/** Writes down when each call came, by the hand clock. */
export interface Log {
  calls: { at: number; tokens: number; call: Seen }[];
  step: Step;
}

export function logged(
  clock: HandClock,
  step: Step = answer(),
  tokensOf: (call: Seen) => number = () => 0,
): Log {
  const calls: Log["calls"] = [];
  return {
    calls,
    step: (call, res) => {
      calls.push({ at: clock.now(), tokens: tokensOf(call), call });
      return step(call, res);
    },
  };
}

/** The most that came in any window of so many ms, wherever it begins (half open). */
export function mostIn(calls: { at: number; amount?: number }[], windowMs: number): number {
  const sorted = [...calls].sort((a, b) => a.at - b.at);
  let most = 0;
  let sum = 0;
  let first = 0;
  for (const { at, amount = 1 } of sorted) {
    sum += amount;
    while (sorted[first]!.at <= at - windowMs) sum -= sorted[first++]!.amount ?? 1;
    most = Math.max(most, sum);
  }
  return most;
}
