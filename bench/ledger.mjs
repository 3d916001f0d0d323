#!/usr/bin/env node
/** What a long history costs: finding things in it, the calls beside it, the disk. See README.md. */

import { mkdirSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { fillHistory, outage, upstreamModels } from "./lib/history.mjs";
import { chatBody, load, probe } from "./lib/load.mjs";
import { lookRows, looksInto, lookUp } from "./lib/looks.mjs";
import { runRounds } from "./lib/measure.mjs";
import { chosen, main, need, report } from "./lib/program.mjs";
import { aligned, limits, noise, ratioColumn, ratioOf, tables } from "./lib/report.mjs";
import { callHeaders, drained, startOutlast, startUpstream } from "./lib/servers.mjs";
import { median, round, spread } from "./lib/statistics.mjs";

const empty = "empty database";

const configOf = (store, { upstream, paced }) =>
  [
    `[store]\nurl = "sqlite:${store}"`,
    ...Object.entries(upstreamModels).map(
      ([name, models]) =>
        `[upstreams.${name}]\nbase_url = "${upstream.url}/v1"\nmodels = ${JSON.stringify(models)}`,
    ),
    `[upstreams.paced]\nbase_url = "${paced.url}/v1"\nmodels = ["paced-model"]`,
    `[upstreams.bench]\nbase_url = "${upstream.url}/v1"`,
  ].join("\n");

/** How long the number of those that are to be filed may stay the same. */
const stallLimitMs = 60_000;
/** The product keeps some free pages for what comes next. */
const sparePages = 4096;

/**
 * Waits until a server that has nothing else to do has filed every request, and has given back to the disk what packing
 * left free; then the files are what they stay.
 */
async function filed(main, store, say) {
  const Database = createRequire(main)("better-sqlite3");
  const database = new Database(store, { readonly: true });
  const unfiled = database.prepare("SELECT count(*) FROM unfiled").pluck();
  const freePages = database.prepare("PRAGMA freelist_count").pluck();
  const leftOf = () => unfiled.get() + Math.max(0, freePages.get() - sparePages);
  const startedAt = performance.now();
  let changedAt = startedAt;
  let saidAt = startedAt;
  try {
    for (let left = leftOf(); left > 0; ) {
      await pause(200);
      const now = performance.now();
      const before = left;
      left = leftOf();
      if (left !== before) changedAt = now;
      if (now - changedAt > stallLimitMs)
        throw new Error(`${left} requests and free pages are not being dealt with.`);
      if (now - saidAt > 10_000) {
        say(`${left} requests and free pages are left`);
        saidAt = now;
      }
    }
  } finally {
    database.close();
  }
  return (performance.now() - startedAt) / 1000;
}

/** A database with its past, and what it takes up. */
async function prepare({ options, dir, started, say }, upstreams) {
  const { requests, failed, product } = options;
  const stored = join(dir, "stored");
  mkdirSync(stored);
  const path = join(stored, "outlast.db");
  const history = await fillHistory({ main: product.main, path, requests, failed, say });
  const server = await started(serverOn(path, "filing", { options, dir }, upstreams));
  const filedSeconds = await filed(product.main, path, say);
  await server.stop();
  const { Engine } = await import(join(dirname(product.main), "store/sqlite/engine.js"));
  const engine = new Engine(path, { readonly: true });
  const { bytes, freeBytes } = engine.size();
  engine.close();
  const searchBytes = statSync(join(stored, "outlast.search.db")).size;
  return { ...history, path, filedSeconds, bytes, freeBytes, searchBytes };
}

const serverOn = (path, name, { options, dir }, upstreams) => {
  const { bodyBytes, product } = options;
  return startOutlast({ dir, product, bodyBytes, name, config: configOf(path, upstreams) });
};

const atMost = (what, value, most) => ({ what, value, atMost: most });

function sizeReport(history) {
  const { bytes, freeBytes, bodyBytes, searchBytes, requests, filedSeconds } = history;
  const each = (size) => Math.round(size / requests);
  const rows = [
    ["", "MB", "bytes per request", "× bodies"],
    ...[
      ["prompts and answers", bodyBytes],
      ["database", bytes],
      ["free pages in it", freeBytes],
      ["search index", searchBytes],
    ].map(([name, size]) => [name, Math.round(size / 2 ** 20), each(size), round(size / bodyBytes, 2)]),
  ];
  return {
    table: `${aligned(rows)}\n\nFiled and packed in ${Math.round(filedSeconds)} s, with nothing else to do.`,
    targets: [atMost("database / bytes of prompts and answers", bytes / bodyBytes, 1.3)],
    noise: { found: {}, complaints: [] },
    samples: { bytes, freeBytes, bodyBytes, searchBytes, requests, filedSeconds },
  };
}

const callers = 32;
const loadSeconds = 5;

/** Calls go on all the while, as many as the delay of their upstream lets through. */
async function runLooks({ options, say }, history, { full }) {
  const target = { ...full, body: chatBody(options.bodyBytes, { model: "paced-model" }) };
  const calls = () => load(target, { concurrency: callers, seconds: loadSeconds });
  const alone = await calls();
  const beside = [];
  let isOver = false;
  const loading = (async () => {
    while (!isOver) beside.push(await calls());
  })();
  const looks = looksInto(history);
  const found = await lookUp(full.base, looks, { times: options.looks, say }).finally(() => {
    isOver = true;
  });
  await loading;
  const groups = ["list", "search"].map((group) => [group, lookRows(looks, found.samples, group)]);
  const head = ["rows", "p50 ms", "p95 ms", "max ms"];
  const [slowestList, slowestSearch] = groups.map(([, [slowest]]) => slowest);
  const rate = (name) => Math.round(median(beside.map((sample) => sample[name])));
  return {
    table: [
      ...groups.map(([group, rows]) => aligned([[group, ...head], ...rows])),
      `Calls beside it: ${rate("perSecond")}/s, p99 ${rate("p99Ms")} ms; without looks ${Math.round(alone.perSecond)}/s, p99 ${Math.round(alone.p99Ms)} ms.`,
    ].join("\n\n"),
    targets: [
      atMost(`p95 of the slowest list (${slowestList[0]}), ms`, slowestList[3], 50),
      atMost(`p95 of the slowest search (${slowestSearch[0]}), ms`, slowestSearch[3], 300),
    ],
    noise: looksNoise(found),
    samples: { looks: found.samples, alone, beside },
    calibrationsMs: found.calibrationsMs,
  };
}

function looksNoise({ foreign, steal, calibrationsMs }) {
  const found = { foreign, steal, calibrationSpread: spread(calibrationsMs) };
  const complaints = Object.entries(found)
    .filter(([name, value]) => !(value <= limits[name]))
    .map(([name, value]) => `${name} was ${round(100 * value, 1)} % (limit ${100 * limits[name]} %).`);
  return { found, complaints };
}

async function runThroughput({ options, say }, { requests }, { full, bare, upstream }) {
  const { concurrencies } = options;
  const stored = `${requests} stored`;
  const peers = [
    { ...bare, name: empty, pids: [bare.pid] },
    { ...full, name: stored, pids: [full.pid] },
  ];
  for (const peer of peers) await probe(peer.name, peer, peer.status);
  const measured = await runRounds(peers, upstream, { ...options, say });
  await bare.check();
  const { samples, calibrationsMs } = measured;
  const highest = Math.max(...concurrencies);
  const speed = ratioOf(samples, [stored, "perSecond"], [empty, "perSecond"], highest);
  const columns = {
    "× empty": ratioColumn(samples, empty),
    "CPU × empty": ratioColumn(samples, empty, "cpuMicros"),
  };
  const what = `throughput with ${requests} stored / with none at c=${highest}`;
  return {
    table: tables(samples, concurrencies, columns),
    targets: [{ what, value: speed.median, spread: speed, atLeast: 0.9 }],
    noise: noise(measured, empty, highest),
    samples,
    calibrationsMs,
  };
}

/** All that died in the outage, again, with one call. */
async function runBulk({ options }, { untilAt }, { full, upstream }) {
  const startsAt = untilAt - outage.startsMs;
  const filter = {
    ...{ status: ["failed"], upstream: outage.upstream, error_code: outage.code },
    created_after: new Date(startsAt - 1).toISOString(),
    created_before: new Date(startsAt + 3_600_000).toISOString(),
  };
  const before = await upstream.answered();
  const startedAt = performance.now();
  const passed = () => performance.now() - startedAt;
  const asked = await fetch(`${full.base}/v1/requests/retry`, {
    method: "POST",
    headers: { ...callHeaders, "idempotency-key": "after-the-outage" },
    body: JSON.stringify({ filter }),
  });
  const bulk = await asked.json();
  if (asked.status !== 202) throw new Error(`The bulk was refused: ${JSON.stringify(bulk)}`);
  const acceptedMs = passed();
  while ((await upstream.answered()) === before) {
    if (passed() > stallLimitMs) throw new Error("Nothing is being retried.");
    await pause(2);
  }
  const firstMs = passed();
  const ended = await bulkEnded(full.base, bulk.id);
  const enqueuedMs = passed();
  if (ended.status !== "completed" || ended.done !== options.failed) {
    throw new Error(`Not all were retried: ${JSON.stringify(ended)}`);
  }
  await drained(async () => (await upstream.answered()) >= before + options.failed);
  const samples = { acceptedMs, firstMs, enqueuedMs, calledMs: passed() };
  const rows = Object.entries(samples).map(([name, ms]) => [name.slice(0, -2), Math.round(ms)]);
  return {
    table: aligned([[`retry of ${options.failed}`, "ms"], ...rows]),
    targets: [atMost("ms from the bulk retry to the first call", firstMs, 1000)],
    noise: { found: {}, complaints: [] },
    samples,
  };
}

async function bulkEnded(base, id) {
  for (;;) {
    const bulk = await (await fetch(`${base}/v1/bulks/${id}`)).json();
    if (bulk.status !== "in_progress") return bulk;
    await pause(50);
  }
}

const parts = { looks: runLooks, throughput: runThroughput, bulk: runBulk };

async function run(program) {
  const { options, dir, machine, started } = program;
  const names = chosen(parts, options);
  need({ wrk: "apt-get install wrk" }, options);
  const pacedDir = join(dir, "paced");
  mkdirSync(pacedDir);
  const upstream = await started(startUpstream(dir, 0));
  const paced = await started(startUpstream(pacedDir, options.delayMs));
  const upstreams = { upstream, paced };
  const history = await prepare(program, upstreams);
  const full = await started(serverOn(history.path, "full", program, upstreams));
  const bare = await started(serverOn(join(dir, "bare.db"), "bare", program, upstreams));
  const results = { size: sizeReport(history) };
  for (const name of names) results[name] = await parts[name](program, history, { full, bare, upstream });
  const all = Object.entries(results);
  const outcome = {
    name: "ledger",
    complaints: all.flatMap(([name, part]) => part.noise.complaints.map((text) => `${name}: ${text}`)),
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

const defaults = { rounds: "10", seconds: "6", concurrency: "128", delay: "50" };
await main({ ...defaults, requests: "1000000", failed: "100000", looks: "60" }, run);
