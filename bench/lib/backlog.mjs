/** Lanes in which requests wait: filled, let go, and measured while they are dispatched. */

import { setTimeout as pause } from "node:timers/promises";
import { calibrate, cpuSecondsOf, disturbance, machineCpu, peakRssMb } from "./machine.mjs";
import { median, shuffled } from "./statistics.mjs";

/** How long nothing may change before a lane is full. */
const stallLimitMs = 30_000;
/** What is thrown away at the beginning of each measurement, where the lane stood still before, and where it did not. */
const warmUpMs = 2000;
const changeMs = 250;
/** How often the queue is looked at. */
const lookMs = 250;

/** Waits until as many wait as the lane is to have, while its upstream answers nobody, and nothing else goes on. */
export async function filled({ name, upstream, waiting }) {
  let state = await upstream.set({ isOpen: false, waiting });
  let changedAt = performance.now();
  for (;;) {
    await pause(lookMs);
    const before = state;
    state = await upstream.state();
    const still = isStill(state, before);
    if (still && state.waiting >= waiting && state.accepted === state.submitted) return;
    if (!still) changedAt = performance.now();
    if (performance.now() - changedAt > stallLimitMs) {
      throw new Error(`The lane with ${name} cannot be filled: ${JSON.stringify(state)}`);
    }
  }
}

const isStill = (state, before) =>
  ["submitted", "accepted", "begun", "waiting"].every((what) => state[what] === before[what]);

/**
 * Lets go what waits in a lane, for `seconds` after a warm-up; where nothing is submitted, until half is left at most.
 *
 * @param keepFull whether as many are submitted as are called; else none
 * @returns rates per second, CPU in µs per completed request, how many waited
 */
async function measure({ upstream, waiting, pids }, keepFull, seconds) {
  await upstream.set({ isOpen: true, ...(keepFull && { waiting }) });
  await pause(keepFull ? warmUpMs : changeMs);
  const machineBefore = machineCpu();
  const cpuBefore = cpuSecondsOf(pids);
  const before = await upstream.state();
  const startedAt = performance.now();
  const waited = [before.waiting];
  let after;
  do {
    await pause(lookMs);
    after = await upstream.state();
    waited.push(after.waiting);
    if (!keepFull && after.waiting < waiting / 2) break;
  } while (performance.now() - startedAt < seconds * 1000);
  const tookSeconds = (performance.now() - startedAt) / 1000;
  const cpuSeconds = cpuSecondsOf(pids) - cpuBefore;
  const disturbed = disturbance(machineBefore, machineCpu());
  const grown = (what) => after[what] - before[what];
  const completed = grown("answered");
  if (completed === 0) throw new Error("Nothing was called although all might have been.");
  return {
    perSecond: completed / tookSeconds,
    acceptedPerSecond: grown("accepted") / tookSeconds,
    /** The share of the accepted ones that did not wait at all: nobody was before them. */
    atOnce: grown("accepted") === 0 ? 0 : grown("atOnce") / grown("accepted"),
    cpuMicros: (cpuSeconds * 1e6) / completed,
    waiting: median(waited),
    leastWaiting: Math.min(...waited),
    mostWaiting: Math.max(...waited),
    rssMb: peakRssMb(pids),
    ...disturbed,
  };
}

/**
 * Measures every lane in each round, in an order of chance, and those that are `drained` once more without submissions.
 *
 * @returns `calibrationsMs`, one per round, and `samples`: by name and `concurrency`, one measurement per round
 */
export async function runBacklogRounds(lanes, { rounds, seconds, concurrency, say }) {
  const calibrationsMs = [];
  const names = lanes.flatMap(({ name, drained }) => [name, drained]).filter(Boolean);
  const samples = Object.fromEntries(names.map((name) => [name, { [concurrency]: [] }]));
  const note = (name, sample, round) => {
    samples[name][concurrency].push(sample);
    const { perSecond, waiting } = sample;
    say(`round ${round}/${rounds}  ${name}: ${Math.round(perSecond)}/s, ${Math.round(waiting)} waiting`);
  };
  // Here the upstreams learn, too, how many requests are on their way.
  for (const lane of lanes) {
    await measure(lane, true, seconds);
    await filled(lane);
  }
  for (let round = 1; round <= rounds; round++) {
    calibrationsMs.push(calibrate());
    for (const lane of shuffled(lanes)) {
      await filled(lane);
      note(lane.name, await measure(lane, true, seconds), round);
      if (lane.drained) note(lane.drained, await measure(lane, false, seconds), round);
      await lane.upstream.set({ isOpen: false });
    }
    // Whoever is not measured stands still: the next round begins with full lanes.
    for (const lane of lanes) await filled(lane);
  }
  return { calibrationsMs, samples };
}
