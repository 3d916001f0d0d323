/**
 * Overload: the goodput of a server at its peak, then with ten times as many callers, how soon it has recovered, and
 * the peak once more.
 *
 *   node bench/overload.mjs [--rounds 3] [--seconds 8] [--factor 10] [--only cpu-sdk,…] [--product dist/main.js] [--flags "…"] [--json FILE]
 *
 * `--flags` are Node's, instead of those of `npm start`.
 *
 * Two kinds of capacity: `cpu` (an upstream that answers at once) and `upstream` (64 calls at a time, 200 ms each).
 * Two kinds of callers: `sdk` (two retries, as late as told) and `rude` (again at once). Two kinds of limits: the
 * defaults, which hold everybody, and `tight` ones, which hold twice as many callers as the peak needs.
 */

import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { parseArgs, promisify } from "node:util";
import { start } from "./lib/children.mjs";
import { chatBody } from "./lib/load.mjs";
import { cpuSecondsOf, describeMachine, peakRssMb } from "./lib/machine.mjs";
import { startFlags } from "./lib/program.mjs";
import { callHeaders, startUpstream } from "./lib/servers.mjs";
import { median, round, shuffled } from "./lib/statistics.mjs";

const root = join(import.meta.dirname, "..");
const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "3" },
    seconds: { type: "string", default: "8" },
    factor: { type: "string", default: "10" },
    only: { type: "string", default: "" },
    product: { type: "string", default: join(root, "dist/main.js") },
    flags: { type: "string", default: startFlags().join(" ") },
    json: { type: "string", default: "" },
  },
});
const seconds = Number(values.seconds);
const factor = Number(values.factor);
const goal = 0.85;
const recoveredWithinMs = 5000;

const capacities = {
  cpu: { callers: 128, delayMs: 0, maxConcurrency: 256 },
  upstream: { callers: 64, delayMs: 200, maxConcurrency: 64 },
};
const scenarios = Object.keys(capacities).flatMap((capacity) =>
  ["sdk", "rude"].flatMap((manners) =>
    ["", "tight"].map((limits) => ({
      name: [capacity, manners, limits].filter(Boolean).join("-"),
      ...capacities[capacity],
      manners,
      maxHeld: limits === "tight" ? capacities[capacity].callers * 2 : 10_000,
    })),
  ),
);

const listening = (log) => /listens on (http:\S+)/i.exec(log)?.[1];

async function startServer(parent, { maxHeld, maxConcurrency }, upstreamUrl) {
  const dir = join(parent, "outlast");
  mkdirSync(dir);
  const upstream = `[upstreams.fake]\nbase_url = "${upstreamUrl}/v1"\nmax_concurrency = ${maxConcurrency}\n`;
  writeFileSync(
    join(dir, "outlast.toml"),
    `[limits]\nmax_held = ${maxHeld}\n[log]\nlevel = "warn"\n${upstream}`,
  );
  const flags = values.flags.split(" ").filter(Boolean);
  const args = [...flags, resolve(values.product), "serve", "--port", "0"];
  return start({ name: "outlast", dir, command: process.execPath, args, ready: listening });
}

async function call(url, more) {
  const settings = { url: `${url}/v1/chat/completions`, headers: callHeaders, body: chatBody(1500), ...more };
  const file = join(import.meta.dirname, "servers/callers.mjs");
  const { stdout } = await promisify(execFile)(process.execPath, [file, JSON.stringify(settings)]);
  return JSON.parse(stdout);
}

/** How long after the load a single caller is served within twice the usual time, in ms. */
async function recovery(url, usualMs) {
  const stoppedAt = performance.now();
  for (;;) {
    const askedAt = performance.now();
    const body = chatBody(1500);
    const reply = await fetch(`${url}/v1/chat/completions`, { method: "POST", headers: callHeaders, body });
    await reply.arrayBuffer();
    const now = performance.now();
    if (reply.status === 200 && now - askedAt <= Math.max(2 * usualMs, 50)) return now - stoppedAt;
    if (now - stoppedAt > 60_000) return Number.POSITIVE_INFINITY;
    await pause(50);
  }
}

async function measure(scenario) {
  const dir = mkdtempSync(join(tmpdir(), "outlast-overload-"));
  const upstream = await startUpstream(dir, scenario.delayMs);
  const server = await startServer(dir, scenario, upstream.url);
  try {
    await call(server.found, { callers: 32, manners: "patient", seconds: 2, warmUpSeconds: 1 });
    const usual = { callers: scenario.callers, manners: "patient", seconds, warmUpSeconds: 2 };
    const peak = await call(server.found, usual);
    const cpuBefore = cpuSecondsOf([server.pid]);
    const many = { callers: scenario.callers * factor, manners: scenario.manners, seconds, warmUpSeconds: 2 };
    const over = await call(server.found, many);
    const cpu = (cpuSecondsOf([server.pid]) - cpuBefore) / seconds;
    const recoveredMs = await recovery(server.found, scenario.delayMs + 10);
    // The machine is not the same from one minute to the next: the overload is between two peaks.
    const after = await call(server.found, usual);
    const ratio = (2 * over.perSecond) / (peak.perSecond + after.perSecond);
    return { ratio, peak, over, after, cpu, recoveredMs, rssMb: peakRssMb([server.pid]) };
  } finally {
    await server.stop();
    await upstream.stop();
    rmSync(dir, { recursive: true, force: true });
  }
}

const wanted = scenarios.filter(({ name }) => values.only === "" || values.only.split(",").includes(name));
const samples = Object.fromEntries(wanted.map(({ name }) => [name, []]));
for (let n = 1; n <= Number(values.rounds); n++) {
  for (const scenario of shuffled(wanted)) {
    const sample = await measure(scenario);
    samples[scenario.name].push(sample);
    const { ratio, peak, over, after, cpu, recoveredMs, rssMb } = sample;
    const refused = `${over.refused} refused (${over.withoutRetryAfter} without retry-after, told ${JSON.stringify(over.toldMs)})`;
    const odd = JSON.stringify({ ...over.otherStatus, ...over.broken });
    console.error(
      `round ${n} ${scenario.name}: peak ${round(peak.perSecond, 0)} and ${round(after.perSecond, 0)}/s, over ${round(over.perSecond, 0)}/s = ${round(ratio, 2)}, ` +
        `p99 ${over.p99Ms} ms, ${refused}, gave up ${over.gaveUp}, odd ${odd}, cpu ${round(cpu, 2)}, rss ${round(rssMb, 0)} MB, recovered in ${round(recoveredMs, 0)} ms`,
    );
  }
}

let reached = true;
console.log(
  "| scenario | goodput / peak, median [min–max] | refusals | without retry-after | other failures | peak RSS MB | recovered in ms | |",
);
console.log("|---|---|---|---|---|---|---|---|");
for (const [name, list] of Object.entries(samples)) {
  const each = list.map(({ ratio }) => ratio);
  const sum = (of) => list.reduce((total, sample) => total + of(sample), 0);
  const odd = sum(({ over }) =>
    Object.values({ ...over.otherStatus, ...over.broken }).reduce((a, b) => a + b, 0),
  );
  const blind = sum(({ over }) => over.withoutRetryAfter);
  const recoveredMs = Math.max(...list.map((sample) => sample.recoveredMs));
  const good = median(each) >= goal && odd === 0 && blind === 0 && recoveredMs <= recoveredWithinMs;
  reached &&= good;
  const ratio = `${median(each).toFixed(2)} [${Math.min(...each).toFixed(2)}–${Math.max(...each).toFixed(2)}]`;
  const rss = Math.round(Math.max(...list.map(({ rssMb }) => rssMb)));
  const cells = [name, ratio, sum(({ over }) => over.refused), blind, odd, rss, Math.round(recoveredMs)];
  console.log(`| ${cells.join(" | ")} | ${good ? "reached" : "MISSED"} |`);
}
if (values.json) {
  const machine = describeMachine(tmpdir());
  writeFileSync(
    values.json,
    `${JSON.stringify({ date: new Date().toISOString(), machine, samples }, null, 2)}\n`,
  );
}
process.exit(reached ? 0 : 1);
