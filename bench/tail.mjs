/**
 * Tail independence: how long it takes to accept a call (`wait: false`, 50 a second) while 5,000 callers are held by an
 * upstream that answers in 20 ms, in 20 s, or never.
 *
 *   node bench/tail.mjs [--rounds 3] [--seconds 20] [--held 5000] [--product dist/main.js] [--json FILE]
 *
 * The upstream of those who are held takes two calls at a time where it answers in 20 ms, so that they are held (most
 * of them queued) and about 100 of them per second have their answer and ask again; else 256 at a time.
 */

import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { Agent, request } from "node:http";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { parseArgs } from "node:util";
import { start } from "./lib/children.mjs";
import { chatBody } from "./lib/load.mjs";
import { describeMachine, peakRssMb } from "./lib/machine.mjs";
import { startFlags } from "./lib/program.mjs";
import { callHeaders, startUpstream } from "./lib/servers.mjs";
import { median, round, shuffled } from "./lib/statistics.mjs";

const { values } = parseArgs({
  options: {
    rounds: { type: "string", default: "3" },
    seconds: { type: "string", default: "20" },
    held: { type: "string", default: "5000" },
    product: { type: "string", default: join(import.meta.dirname, "../dist/main.js") },
    json: { type: "string", default: "" },
  },
});
const held = Number(values.held);
const perSecond = 50;
const goal = 1.5;
const never = 3_600_000;
const cases = {
  "20 ms": { delayMs: 20, maxConcurrency: 2 },
  "20 s": { delayMs: 20_000, maxConcurrency: 256 },
  never: { delayMs: never, maxConcurrency: 256 },
};

const listening = (log) => /listens on (http:\S+)/i.exec(log)?.[1];

async function startServer(parent, slowUrl, quickUrl, maxConcurrency) {
  const dir = join(parent, "outlast");
  mkdirSync(dir);
  const toml = [
    'drain_timeout = "0s"\n[log]\nlevel = "warn"',
    `[upstreams.slow]\nbase_url = "${slowUrl}/v1"\nmodels = ["slow"]\nmax_concurrency = ${maxConcurrency}`,
    `[upstreams.quick]\nbase_url = "${quickUrl}/v1"`,
  ];
  writeFileSync(join(dir, "outlast.toml"), toml.join("\n"));
  const args = [...startFlags(), resolve(values.product), "serve", "--port", "0"];
  return start({ name: "outlast", dir, command: process.execPath, args, ready: listening });
}

function holdCallers(url) {
  const body = chatBody(1500, { model: "slow" });
  const settings = {
    url: `${url}/v1/chat/completions`,
    headers: callHeaders,
    body,
    callers: held,
    manners: "patient",
  };
  const file = join(import.meta.dirname, "servers/callers.mjs");
  const child = spawn(
    process.execPath,
    [file, JSON.stringify({ ...settings, seconds: 3600, warmUpSeconds: 10 })],
    {
      stdio: "ignore",
    },
  );
  return { stop: () => child.kill("SIGKILL") };
}

/** Until nearly all are held: each has a request that has not ended, but for those who are just asking again. */
async function untilHeld(url) {
  for (let looks = 0; looks < 60; looks++) {
    let found = 0;
    for (const status of ["queued", "processing"]) found += await count(url, status);
    if (found >= 0.97 * held) return;
    await pause(1000);
  }
  throw new Error("The callers could not all be held.");
}

/** Pages through, because there is no count. */
async function count(url, status) {
  let found = 0;
  let after = "";
  for (;;) {
    const page = await (await fetch(`${url}/v1/requests?status=${status}&limit=100${after}`)).json();
    found += page.data.length;
    if (!page.has_more) return found;
    after = `&after=${page.last_id}`;
  }
}

const agent = new Agent({ keepAlive: true });

function accept(url, body) {
  return new Promise((resolve, reject) => {
    const askedAt = performance.now();
    const outgoing = request(
      `${url}/v1/chat/completions`,
      { method: "POST", agent, headers: callHeaders },
      (reply) => {
        reply.resume();
        reply.on("end", () => {
          if (reply.statusCode === 202) resolve(performance.now() - askedAt);
          else reject(new Error(`answered ${reply.statusCode}`));
        });
      },
    );
    outgoing.on("error", reject);
    outgoing.end(body);
  });
}

async function acceptLatencies(url) {
  const body = chatBody(1500, { wait: false });
  const calls = [];
  const startedAt = performance.now();
  for (let n = 0; n < Number(values.seconds) * perSecond; n++) {
    const waitMs = startedAt + (n * 1000) / perSecond - performance.now();
    if (waitMs > 0) await pause(waitMs);
    calls.push(accept(url, body));
  }
  return (await Promise.all(calls)).sort((a, b) => a - b);
}

async function measure({ delayMs, maxConcurrency }) {
  const dir = mkdtempSync(join(tmpdir(), "outlast-tail-"));
  const dirs = ["slow", "quick"].map((name) => join(dir, name));
  for (const one of dirs) mkdirSync(one);
  const slow = await startUpstream(dirs[0], delayMs);
  const quick = await startUpstream(dirs[1], 0);
  const server = await startServer(dir, slow.url, quick.url, maxConcurrency);
  const callers = holdCallers(server.found);
  try {
    await untilHeld(server.found);
    await pause(1000);
    const latenciesMs = await acceptLatencies(server.found);
    const at = (share) => latenciesMs[Math.floor(latenciesMs.length * share)];
    return {
      p50Ms: at(0.5),
      p90Ms: at(0.9),
      p99Ms: at(0.99),
      maxMs: latenciesMs.at(-1),
      rssMb: peakRssMb([server.pid]),
    };
  } finally {
    callers.stop();
    await Promise.all([server.stop(), slow.stop(), quick.stop()]);
    rmSync(dir, { recursive: true, force: true });
  }
}

const samples = Object.fromEntries(Object.keys(cases).map((name) => [name, []]));
const worst = [];
for (let n = 1; n <= Number(values.rounds); n++) {
  for (const name of shuffled(Object.keys(cases))) {
    const sample = await measure(cases[name]);
    samples[name].push(sample);
    const texts = Object.entries(sample).map(([what, value]) => `${what} ${round(value, 1)}`);
    console.error(`round ${n} ${name}: ${texts.join(", ")}`);
  }
  const p99s = Object.values(samples).map((list) => list.at(-1).p99Ms);
  worst.push(Math.max(...p99s) / Math.min(...p99s));
}

console.log("| upstream answers in | accept p50 ms | p90 ms | p99 ms | peak RSS MB |\n|---|---|---|---|---|");
for (const [name, list] of Object.entries(samples)) {
  const of = (what) => round(median(list.map((sample) => sample[what])), 1);
  console.log(
    `| ${name} | ${of("p50Ms")} | ${of("p90Ms")} | ${of("p99Ms")} | ${round(Math.max(...list.map(({ rssMb }) => rssMb)), 0)} |`,
  );
}
const reached = median(worst) <= goal;
const ratio = `${median(worst).toFixed(2)} [${Math.min(...worst).toFixed(2)}–${Math.max(...worst).toFixed(2)}]`;
console.log(
  `\nLargest p99 / smallest p99 of a round: ${ratio}, goal ${goal}: ${reached ? "reached" : "MISSED"}`,
);
if (values.json) {
  const machine = describeMachine(tmpdir());
  writeFileSync(
    values.json,
    `${JSON.stringify({ date: new Date().toISOString(), machine, samples, worst }, null, 2)}\n`,
  );
}
process.exit(reached ? 0 : 1);
