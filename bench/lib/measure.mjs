/** One measurement, and the rounds of them. */

import { load } from "./load.mjs";
import {
  calibrate,
  cpuSecondsOf,
  disturbance,
  idleShare,
  machineCpu,
  peakRssMb,
  untilQuiet,
} from "./machine.mjs";
import { shuffled } from "./statistics.mjs";

/**
 * Loads one server, and waits until what it accepted, and what it left for later, is done.
 *
 * @param peer has the target of the load, `pids` of the server, their `idle` share of a core, and `drained` where it accepts before it calls
 * @param upstream counts the calls that reached it
 * @returns rates per second, latencies in ms, CPU in µs per request (`laterMicros`: afterwards), memory in MB
 */
export async function measure(peer, upstream, { concurrency, seconds }) {
  const machineBefore = machineCpu();
  const cpuBefore = cpuSecondsOf(peer.pids);
  const calledBefore = await upstream.answered();
  const startedAt = performance.now();
  const { perSecond, p50Ms, p99Ms, errors, requests } = await load(peer, { concurrency, seconds });
  await peer.drained?.();
  const tookSeconds = (performance.now() - startedAt) / 1000;
  const called = (await upstream.answered()) - calledBefore;
  const cpuMicros = ((cpuSecondsOf(peer.pids) - cpuBefore) * 1e6) / requests;
  const result = { perSecond, p50Ms, p99Ms, errors, cpuMicros, rssMb: peakRssMb(peer.pids) };
  const disturbed = disturbance(machineBefore, machineCpu());
  const laterMicros = ((await untilQuiet(peer.pids, peer.idle)) * 1e6) / requests;
  const lifecycles = peer.drained ? { lifecyclesPerSecond: called / tookSeconds } : {};
  // Whoever waits for the answer has it; whoever does not is called for, too: every accepted request, once.
  const lost = requests - errors - called;
  if (lost > 0) throw new Error(`${peer.name} answered ${lost} requests that never reached the upstream.`);
  return { ...result, laterMicros, ...lifecycles, ...disturbed };
}

/**
 * Measures every peer at every concurrency in each round, in an order of chance.
 *
 * @returns `calibrationsMs`, one per round, and `samples`: by peer and concurrency, one measurement per round
 */
export async function runRounds(peers, upstream, { rounds, seconds, concurrencies, say }) {
  const none = () => Object.fromEntries(concurrencies.map((concurrency) => [concurrency, []]));
  const samples = Object.fromEntries(peers.map(({ name }) => [name, none()]));
  const calibrationsMs = [];
  for (const peer of peers) {
    peer.idle = await idleShare(peer.pids);
    await measure(peer, upstream, { concurrency: 32, seconds: 2 });
  }
  for (let round = 1; round <= rounds; round++) {
    calibrationsMs.push(calibrate());
    for (const concurrency of concurrencies) {
      for (const peer of shuffled(peers)) {
        const sample = await measure(peer, upstream, { concurrency, seconds });
        samples[peer.name][concurrency].push(sample);
        say(`round ${round}/${rounds}  c=${concurrency}  ${peer.name}: ${Math.round(sample.perSecond)}/s`);
      }
    }
  }
  return { calibrationsMs, samples };
}
