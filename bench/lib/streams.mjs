/** One measurement of streams, and the rounds of them. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { numberPlace } from "./load.mjs";
import { loopDelay } from "./loop-delay.mjs";
import {
  calibrate,
  cpuSecondsOf,
  disturbance,
  forgetPeakRss,
  machineCpu,
  peakRssMb,
  untilQuiet,
} from "./machine.mjs";
import { shuffled } from "./statistics.mjs";

const callersFile = join(import.meta.dirname, "../servers/stream-callers.mjs");

/**
 * Runs callers of streams in a process of their own.
 *
 * @param load `concurrency`, the number of `streams`, their `chunks`, and `rampMs`, over which the callers begin
 * @param onProgress gets the number of streams that have ended, whenever it is another hundredth
 * @returns what they met, see servers/stream-callers.mjs
 */
export async function callStreams({ url, headers, body }, load, onProgress = () => {}) {
  const settings = JSON.stringify({ url, headers, body, numberPlace, ...load });
  const child = spawn(process.execPath, [callersFile, settings], { stdio: ["ignore", "pipe", "inherit"] });
  const kill = () => child.kill("SIGKILL");
  process.once("exit", kill);
  const gone = once(child, "exit");
  let result;
  for await (const line of createInterface({ input: child.stdout })) {
    const said = JSON.parse(line);
    if (said.ended === undefined) result = said;
    else onProgress(said.ended);
  }
  await gone;
  process.removeListener("exit", kill);
  if (!result) throw new Error("The callers ended without a result.");
  return result;
}

/**
 * How streams are asked for so that all together send `rate` chunks per second, for about `seconds`.
 *
 * @returns what `callStreams` wants, and the ms between two chunks of a stream
 */
export function loadFor(concurrency, { rate, chunks, seconds }) {
  const leastPaceMs = 5;
  const longestRampMs = 4000;
  const paceMs = Math.max(leastPaceMs, Math.round((concurrency * 1000) / rate));
  const streamMs = chunks * paceMs;
  const streamsEach = Math.max(1, Math.round((seconds * 1000) / streamMs));
  const rampMs = Math.min(longestRampMs, streamMs);
  return { concurrency, streams: concurrency * streamsEach, chunks, paceMs, rampMs };
}

/** @returns times to the first content in ms, CPU in ms per 1,000 chunks (`laterMs`: afterwards), event-loop delay in ms, memory in MB */
export async function measureStreams(peer, upstream, load) {
  const { pids } = peer;
  const body = peer.bodyFor(load);
  forgetPeakRss(pids);
  await loopDelay(pids[0]);
  const begunBefore = await upstream.begun();
  const machineBefore = machineCpu();
  const cpuBefore = cpuSecondsOf(pids);
  const met = await callStreams({ ...peer, body }, load);
  const cpuSeconds = cpuSecondsOf(pids) - cpuBefore;
  const disturbed = disturbance(machineBefore, machineCpu());
  const errors = Object.values(met.errors).reduce((sum, count) => sum + count, 0);
  const begun = (await upstream.begun()) - begunBefore;
  if (begun + errors < load.streams)
    throw new Error(`${peer.name} gave streams that the upstream never began.`);
  const { p50Ms: loopP50Ms, p99Ms: loopP99Ms, maxMs: loopMaxMs } = await loopDelay(pids[0]);
  const peakMb = peakRssMb(pids);
  const laterMs = ((await untilQuiet(pids)) * 1e6) / met.chunks;
  return {
    firstP50Ms: met.first.p50Ms,
    firstP99Ms: met.first.p99Ms,
    firstMaxMs: met.first.maxMs,
    cpuMs: (cpuSeconds * 1e6) / met.chunks,
    laterMs,
    loopP50Ms,
    loopP99Ms,
    loopMaxMs,
    errors,
    errorsByKind: met.errors,
    rssMb: peakMb,
    chunksPerSecond: met.chunks / met.seconds,
    mostOpen: met.mostOpen,
    callsPerStream: begun / load.streams,
    callersLateP99Ms: met.callersLateP99Ms,
    ...disturbed,
  };
}

/**
 * Measures every peer at every concurrency in each round, in an order of chance.
 *
 * @param direct the name of the peer that is the upstream itself: what the others add is added to its times
 * @returns `calibrationsMs`, one per round, and `samples`: by peer and concurrency, one measurement per round
 */
export async function runStreamRounds(peers, upstream, direct, { rounds, concurrencies, say, ...options }) {
  const none = () => Object.fromEntries(concurrencies.map((concurrency) => [concurrency, []]));
  const samples = Object.fromEntries(peers.map(({ name }) => [name, none()]));
  const calibrationsMs = [];
  const warmUp = { concurrency: 50, streams: 500, chunks: 50, paceMs: 10, rampMs: 500 };
  for (const peer of peers) await measureStreams(peer, upstream, warmUp);
  for (let round = 1; round <= rounds; round++) {
    calibrationsMs.push(calibrate());
    for (const concurrency of concurrencies) {
      const load = loadFor(concurrency, options);
      for (const peer of shuffled(peers)) {
        const sample = await measureStreams(peer, upstream, load);
        samples[peer.name][concurrency].push(sample);
        say(`round ${round}/${rounds}  c=${concurrency}  ${peer.name}: ${inShort(sample)}`);
      }
      addedOver(samples[direct]?.[concurrency].at(-1), samples, concurrency);
    }
  }
  return { calibrationsMs, samples };
}

const inShort = ({ firstP50Ms, firstP99Ms, cpuMs, errors, errorsByKind }) =>
  `first token ${firstP50Ms?.toFixed(2)} / ${firstP99Ms?.toFixed(1)} ms, CPU ${cpuMs.toFixed(1)} ms` +
  (errors > 0 ? `, errors ${JSON.stringify(errorsByKind)}` : "");

/** Says in this round's samples how much later the first token was than without a server between. */
function addedOver(base, samples, concurrency) {
  if (!base) return;
  for (const list of Object.values(samples)) {
    const sample = list[concurrency].at(-1);
    sample.addedP50Ms = sample.firstP50Ms - base.firstP50Ms;
    sample.addedP99Ms = sample.firstP99Ms - base.firstP99Ms;
  }
}
