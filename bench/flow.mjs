#!/usr/bin/env node
/** What flow control costs, and whether a long queue makes a lane slow. See README.md. */

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { filled, runBacklogRounds } from "./lib/backlog.mjs";
import { chatBody, numberPlace, probe } from "./lib/load.mjs";
import { runRounds } from "./lib/measure.mjs";
import { chosen, main, need, report } from "./lib/program.mjs";
import { aligned, noise, ratioColumn, ratioOf, ratioText, tables } from "./lib/report.mjs";
import {
  callHeaders,
  drained,
  oneUpstream,
  startFillingUpstream,
  startOutlast,
  startUpstream,
} from "./lib/servers.mjs";
import { median, ratios, round, signTest } from "./lib/statistics.mjs";

const without = "without";
const withFlow = "with flow control";

/** Without a breaker, limits and a route; what a retry may cost cannot be switched off, but nothing is retried. */
const plainConfig = (upstream) => `
[breaker]
enabled = false
[upstreams.first]
base_url = "${upstream}/v1"
api_key = "bench-key-of-upstream"
`;

/** Far above what this machine can send, so that they are counted at each call and never reached. */
const unreachedLimits = "requests_per_minute = 100_000_000\ntokens_per_minute = 1_000_000_000_000";

const upstreamWithLimits = (name, upstream) => `
[upstreams.${name}]
base_url = "${upstream}/v1"
api_key = "bench-key-of-upstream"
limit_group = "account"
${unreachedLimits}
[upstreams.${name}.lanes."bench-*"]
${unreachedLimits}
`;

const flowConfig = (upstream) => `
[defaults]
failover_after = "1s"
[breaker]
enabled = true
[limit_groups.account]
${unreachedLimits}
${upstreamWithLimits("first", upstream)}
${upstreamWithLimits("second", upstream)}
[routes."bench-*"]
failover_after = "1s"
targets = [{ upstream = "first", weight = 1 }, { upstream = "second", weight = 1, larger_context = true }]
[prices."first/bench-model"]
input = 2.5
output = 10
cached_input = 1.25
[prices."bench-*"]
input = 2.5
output = 10
`;

const configs = { [without]: plainConfig, [withFlow]: flowConfig };

/** The load of proxy.mjs, on the same build with and without flow control. */
async function runProxy({ options, dir, started, say }) {
  const upstream = await started(startUpstream(dir, options.delayMs));
  const { bodyBytes, product, concurrencies } = options;
  const running = [];
  for (const [name, configOf] of Object.entries(configs)) {
    const setting = {
      dir,
      product,
      bodyBytes,
      name: name.replaceAll(" ", "-"),
      config: configOf(upstream.url),
    };
    const server = await started(startOutlast(setting));
    await probe(name, server, server.status);
    running.push({ ...server, name, pids: [server.pid] });
  }
  const measured = await runRounds(running, upstream, { ...options, say });
  for (const { check } of running) await check();
  await haveCounted(running);
  const { samples } = measured;
  const columns = {
    "× without": ratioColumn(samples, without),
    "CPU × without": ratioColumn(samples, without, "cpuMicros"),
  };
  const highest = Math.max(...concurrencies);
  const speed = ratioOf(samples, [withFlow, "perSecond"], [without, "perSecond"], highest);
  const verdicts = ["perSecond", "cpuMicros"].map((what) => verdict(samples, what, highest));
  return {
    ...measured,
    noise: noise(measured, without, highest),
    table: [tables(samples, concurrencies, columns), ...verdicts].join("\n\n"),
    targets: [least(`throughput with flow control / without at c=${highest}`, speed, 0.85)],
  };
}

const least = (what, spread, atLeast) => ({ what, value: spread?.median, spread, atLeast });

/** Whether flow control was really at work in the one server and not in the other. */
async function haveCounted(running) {
  for (const { name, base } of running) {
    const { data } = await (await fetch(`${base}/v1/upstreams`)).json();
    const limits = data.flatMap(({ lanes }) => lanes).flatMap(({ requests, tokens }) => [requests, tokens]);
    const isCounting = limits.length === 4 && limits.every((limit) => limit?.used > 0);
    const isPlain = limits.every((limit) => limit === null);
    if (name === withFlow ? !isCounting : !isPlain) {
      throw new Error(`Outlast ${name} has other limits than it should: ${JSON.stringify(data)}`);
    }
  }
}

/** Whether the rounds tell the two apart. */
function verdict(samples, what, concurrency) {
  const of = (name) => samples[name][concurrency].map((sample) => sample[what]);
  const [above, below] = [of(withFlow), of(without)];
  const larger = above.filter((value, round) => value > below[round]).length;
  const chance = signTest(above, below);
  const title = what === "perSecond" ? "requests/s" : "CPU per request";
  const found = `${title} at c=${concurrency}: larger with flow control in ${larger} of ${above.length} rounds`;
  // With five rounds even five of a kind come by chance once in 16 runs.
  if (above.length < 6) return `${found}; too few rounds to tell them apart.`;
  const told = chance < 0.05 ? "the two differ" : "the two cannot be told apart";
  return `${found}; ${told} (sign test, p = ${chance.toFixed(3)}).`;
}

const fewWaiting = 10;

/** The dispatch speed of a lane in which many wait, and of one in which few do, each in a server of its own. */
async function runBacklog({ options, dir, started, say }) {
  const { rounds, seconds, waiting, concurrencies } = options;
  const concurrency = Math.max(...concurrencies);
  const many = `${waiting} waiting`;
  const few = `${fewWaiting} waiting`;
  const alone = `${many}, none submitted`;
  const lanes = [
    await startLane({ name: few, waiting: fewWaiting }, { options, dir, started }),
    await startLane({ name: many, waiting, drained: alone }, { options, dir, started }),
  ];
  for (const lane of lanes) {
    say(`filling the lane with ${lane.waiting}`);
    await filled(lane);
  }
  const measured = await runBacklogRounds(lanes, { rounds, seconds, concurrency, say });
  for (const lane of lanes) await checkLane(lane);
  const { samples } = measured;
  const found = noise(measured, few, concurrency);
  found.complaints.push(...ranDry(samples, concurrency));
  const speed = ratioOf(samples, [many, "perSecond"], [few, "perSecond"], concurrency);
  return {
    ...measured,
    noise: found,
    table: backlogTable(samples, few, concurrency),
    targets: [
      least(`completions/s with ${waiting} waiting / with ${fewWaiting}`, speed, 0.85),
      least("the same for the dispatch alone", dispatchAlone(samples, few, many, alone, concurrency), 0.85),
    ],
  };
}

async function startLane(lane, { options, dir, started }) {
  const { bodyBytes, product, workers, concurrencies } = options;
  const connections = Math.max(...concurrencies);
  const body = chatBody(bodyBytes, { wait: false });
  const submissions = { body, numberPlace, headers: callHeaders, connections };
  const name = `lane-${lane.waiting}`;
  const providerDir = join(dir, `provider-of-${name}`);
  mkdirSync(providerDir);
  const upstream = await started(startFillingUpstream(providerDir, submissions));
  // Calls that are held while the other lane is measured must not time out.
  const config = `[timeouts]\nattempt = "6h"\n${oneUpstream(upstream.url, workers)}`;
  const server = await started(startOutlast({ dir, product, name, bodyBytes, config, wait: false }));
  await upstream.set({ server: server.base });
  return { ...lane, upstream, pids: [server.pid], check: server.check };
}

/** Every request was called once at most, none failed, and all of the short lane are called in the end. */
async function checkLane({ name, waiting, upstream, check }) {
  const { accepted, begun } = await upstream.state();
  if (begun > accepted) throw new Error(`${name}: ${accepted} requests were called ${begun} times.`);
  if (waiting === fewWaiting) {
    await upstream.set({ isOpen: true });
    await drained(async () => {
      const state = await upstream.state();
      return state.answered >= state.accepted;
    });
  }
  await check();
}

/** Where more than this share of the accepted requests did not wait, the lane was not one in which requests wait. */
const mostAtOnce = 0.1;

/** @returns why the figures would not be those of lanes in which requests wait */
function ranDry(samples, concurrency) {
  return Object.entries(samples).flatMap(([name, byConcurrency]) => {
    const share = median(byConcurrency[concurrency].map(({ atOnce }) => atOnce));
    if (share <= mostAtOnce) return [];
    return [
      `The lane with ${name} was often empty: ${round(100 * share, 1)} % of its requests never waited.`,
    ];
  });
}

/**
 * The speed of a long lane by that of a short one, if nothing were submitted meanwhile: what a request takes longer in
 * the long lane, out of what it takes there while nothing is submitted. Round by round.
 */
function dispatchAlone(samples, few, many, unfed, concurrency) {
  const each = (name) => samples[name][concurrency].map(({ perSecond }) => 1 / perSecond);
  const [short, long, alone] = [each(few), each(many), each(unfed)];
  const withFew = alone.map((seconds, round) => seconds - (long[round] - short[round]));
  return ratios(withFew, alone);
}

function backlogTable(samples, few, concurrency) {
  const head = ["waiting", "(least–most)", "completed/s", `× ${few}`, "accepted/s", "at once %", "CPU µs"];
  const rows = Object.entries(samples).map(([name, byConcurrency]) => {
    const list = byConcurrency[concurrency];
    const middle = (what) => median(list.map((sample) => sample[what]));
    const leastWaiting = Math.min(...list.map((sample) => sample.leastWaiting));
    const mostWaiting = Math.max(...list.map((sample) => sample.mostWaiting));
    const memory = Math.round(Math.max(...list.map(({ rssMb }) => rssMb)));
    const ratio = (what) => ratioText(ratioOf(samples, [name, what], [few, what], concurrency));
    return [
      [name, Math.round(middle("waiting")), `${leastWaiting}–${mostWaiting}`],
      [Math.round(middle("perSecond")), ratio("perSecond"), Math.round(middle("acceptedPerSecond"))],
      [round(100 * middle("atOnce"), 1), Math.round(middle("cpuMicros")), ratio("cpuMicros"), memory],
    ].flat();
  });
  return aligned([["lane", ...head, `× ${few}`, "RSS MB"], ...rows]);
}

const parts = { proxy: runProxy, backlog: runBacklog };

async function run(program) {
  const { options, machine } = program;
  const names = chosen(parts, options);
  need(names.includes("proxy") ? { wrk: "apt-get install wrk" } : {}, options);
  const results = {};
  for (const name of names) results[name] = await parts[name](program);
  const all = Object.entries(results);
  const complaints = all.flatMap(([name, part]) => part.noise.complaints.map((text) => `${name}: ${text}`));
  const outcome = {
    name: "flow",
    complaints,
    table: all.map(([name, { table }]) => `${name}\n\n${table}`).join("\n\n"),
    targets: all.flatMap(([, { targets }]) => targets),
    result: Object.fromEntries(
      all.map(([name, { noise: found, calibrationsMs, samples }]) => [
        name,
        { noise: found, calibrationsMs, samples },
      ]),
    ),
  };
  return report(outcome, options, machine);
}

await main({ rounds: "10", seconds: "6", concurrency: "128", workers: "64", waiting: "100000" }, run);
