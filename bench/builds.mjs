#!/usr/bin/env node
/** Builds of Outlast beside each other: what a change costs or saves, in CPU per request or chunk. See README.md. */

import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { resolve } from "node:path";
import { chatBody, load, probe } from "./lib/load.mjs";
import { calibrate, disturbance, forgetPeakRss, machineCpu, peakRssMb, untilQuiet } from "./lib/machine.mjs";
import { pacedModel } from "./lib/paced.mjs";
import { CannotRun, commitOf, conclude, main, need, startFlags } from "./lib/program.mjs";
import { aligned, ratioText } from "./lib/report.mjs";
import { callHeaders, startOutlast, startOwn, startPacedUpstream, startUpstream } from "./lib/servers.mjs";
import { median, ratios, round, shuffled } from "./lib/statistics.mjs";
import { callStreams, loadFor } from "./lib/streams.mjs";

const completions = "/v1/chat/completions";

/** @returns CPU µs that each thread has used so far, by its id */
function threadsOf(pid) {
  const used = new Map();
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    try {
      const [nanoseconds] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, "utf8").split(" ");
      used.set(Number(thread), Number(nanoseconds) / 1000);
    } catch {
      // It ended while we read.
    }
  }
  return used;
}

/** @returns what the main thread, the busiest other one (the writer), and all the others have used since */
function usedSince(pid, before) {
  const used = [...threadsOf(pid)].map(([thread, micros]) => [thread, micros - (before.get(thread) ?? 0)]);
  const main = used.find(([thread]) => thread === pid)[1];
  const others = used.filter(([thread]) => thread !== pid).map(([, micros]) => micros);
  const writer = Math.max(0, ...others);
  const all = others.reduce((sum, one) => sum + one, main);
  return { main, writer, rest: all - main - writer, all };
}

/** What is called, how, and what is counted. */
const kinds = {
  plain: wrkKind("bare", {}, 200),
  accept: wrkKind("bare", { wait: false }, 202),
  stream: {
    bare: "pipe",
    counted: "chunk",
    times: "first token",
    startUpstream: (dir) => startPacedUpstream(dir, []),
    bodyFor: (bytes, stream) => chatBody(bytes, { model: pacedModel(stream), stream: true }),
    async call(peer, { concurrency, ...options }) {
      const stream = loadFor(concurrency, options);
      const met = await callStreams({ ...peer, body: this.bodyFor(options.bodyBytes, stream) }, stream);
      const errors = Object.values(met.errors).reduce((sum, count) => sum + count, 0);
      const perSecond = met.chunks / met.seconds;
      return { count: met.chunks, errors, perSecond, p50Ms: met.first.p50Ms, p99Ms: met.first.p99Ms };
    },
  },
};

function wrkKind(bare, wish, status) {
  return {
    bare,
    counted: "request",
    times: "reply",
    startUpstream: (dir, delayMs) => startUpstream(dir, delayMs),
    async call(peer, { concurrency, seconds, bodyBytes }) {
      const body = chatBody(bodyBytes, peer.isBare ? {} : wish);
      if (!peer.isProbed) await probe(peer.name, { ...peer, body }, peer.isBare ? 200 : status);
      peer.isProbed = true;
      const { requests, errors, perSecond, p50Ms, p99Ms } = await load(
        { ...peer, body },
        { concurrency, seconds },
      );
      // What was accepted is called for, and belongs to its price.
      if (!peer.isBare && status === 202) await peer.drained();
      return { count: requests, errors, perSecond, p50Ms, p99Ms };
    },
  };
}

/** `NAME=DIR` of a package that is built, which says how it is started; with further flags of Node behind a space. */
function readBuild(text) {
  const [, name, dir, more] = /^([^=]+)=(\S+)(.*)$/.exec(text) ?? [];
  if (!name) throw new CannotRun(`--builds takes NAME=DIR, and not "${text}".`);
  const main = resolve(dir, "dist/main.js");
  return { name, main, flags: [...startFlags(dir), ...more.split(" ").filter(Boolean)] };
}

async function startAll(kind, builds, { options, dir, started }, upstream) {
  const peers = [];
  if (options.bare) {
    const server = await started(startOwn(kind.bare, { dir, args: ["--upstream", upstream.url] }));
    peers.push({
      ...server,
      name: "bare",
      url: server.found + completions,
      headers: callHeaders,
      isBare: true,
    });
  }
  const workers = kind === kinds.stream ? 2 * Math.max(500, ...options.concurrencies) : undefined;
  for (const { name, main, flags } of builds) {
    const product = { main, flags };
    const { bodyBytes } = options;
    const setting = { dir, product, upstream: upstream.url, bodyBytes, name, workers, wait: false };
    peers.push({ ...(await started(startOutlast(setting))), name });
  }
  return peers.map((peer) => ({ ...peer, dir }));
}

/** One slice of load on one server. */
async function measure(kind, peer, options) {
  forgetPeakRss([peer.pid]);
  const machineBefore = machineCpu();
  const before = threadsOf(peer.pid);
  const { count, ...met } = await kind.call(peer, options);
  const used = usedSince(peer.pid, before);
  const perOne = Object.fromEntries(Object.entries(used).map(([name, micros]) => [name, micros / count]));
  const disturbed = disturbance(machineBefore, machineCpu());
  const rssMb = peakRssMb([peer.pid]);
  const later = ((await untilQuiet([peer.pid])) * 1e6) / count;
  return { ...met, ...perOne, later, rssMb, ...disturbed };
}

function tableOf({ counted, times }) {
  return (samples, concurrencies) =>
    concurrencies
      .map((concurrency) => {
        const of = (name, what) => samples[name][concurrency].map((sample) => sample[what]);
        const [first] = Object.keys(samples);
        const head = [
          ...[`CPU µs / ${counted}`, "main", "writer", "others", "later", `× ${first}`],
          ...["per second", `${times} p50 ms`, "p99 ms", "errors", "RSS MB"],
        ];
        const rows = Object.keys(samples).map((name) => [
          name,
          ...["all", "main", "writer", "rest", "later"].map((what) => round(median(of(name, what)), 1)),
          ratioText(ratios(of(name, "all"), of(first, "all"))),
          ...["perSecond", "p50Ms", "p99Ms"].map((what) => round(median(of(name, what)), 1)),
          of(name, "errors").reduce((sum, one) => sum + one, 0),
          Math.round(Math.max(...of(name, "rssMb"))),
        ]);
        return aligned([[`c=${concurrency}`, ...head], ...rows]);
      })
      .join("\n\n");
}

async function run(program) {
  const { options, dir, machine, started, say } = program;
  const kind = kinds[options.load];
  if (!kind) throw new CannotRun(`--load takes one of ${Object.keys(kinds).join(", ")}.`);
  if (options.builds.length === 0) throw new CannotRun("Name builds: --builds old=DIR,new=DIR");
  const programs = {
    ...(kind !== kinds.stream && { wrk: "apt-get install wrk" }),
    ...(options.pin && { taskset: "apt-get install util-linux" }),
  };
  const builds = options.builds.map(readBuild);
  for (const product of builds) need(programs, { product });
  const upstream = await started(kind.startUpstream(dir, options.delayMs ?? 0));
  const peers = await startAll(kind, builds, program, upstream);
  if (options.pin) for (const { pid } of peers) spawnSync("taskset", ["-apc", "0", String(pid)]);
  const samples = Object.fromEntries(peers.map(({ name }) => [name, {}]));
  const calibrationsMs = [];
  for (const concurrency of options.concurrencies) {
    for (const peer of peers) {
      samples[peer.name][concurrency] = [];
      // What is slow at first is the compiler's doing.
      for (let i = 0; i < 2; i++) await measure(kind, peer, { ...options, concurrency });
    }
    for (let n = 1; n <= options.rounds; n++) {
      calibrationsMs.push(calibrate());
      for (const peer of shuffled(peers)) {
        const sample = await measure(kind, peer, { ...options, concurrency });
        samples[peer.name][concurrency].push(sample);
        say(`round ${n}/${options.rounds}  c=${concurrency}  ${peer.name}: ${round(sample.all, 1)} µs`);
      }
    }
  }
  for (const { check } of peers) await check?.();
  const found = {
    samples,
    calibrationsMs,
    reference: peers[0].name,
    steady: { name: "all", called: "CPU times" },
    table: tableOf(kind),
    targets: [],
    versions: Object.fromEntries(builds.map((build) => [build.name, commitOf(build)])),
  };
  return conclude("builds", found, options, machine);
}

await main(
  {
    ...{ builds: "", load: "plain", bare: false, pin: false },
    ...{ rounds: "5", seconds: "4", concurrency: "128", rate: "10000", chunks: "200" },
  },
  run,
);
