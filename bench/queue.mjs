#!/usr/bin/env node
/** Outlast as a queue (`wait: false`) beside BullMQ and pg-boss behind HTTP. See README.md. */

import { execFileSync } from "node:child_process";
import { chmodSync, chownSync, existsSync, mkdirSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { freePort, start } from "./lib/children.mjs";
import { chatBody, probe } from "./lib/load.mjs";
import { runRounds } from "./lib/measure.mjs";
import { CannotRun, chosen, conclude, main, need, versionOf } from "./lib/program.mjs";
import { ratioColumn, ratioOf } from "./lib/report.mjs";
import { callHeaders, drained, startOutlast, startOwn, startUpstream } from "./lib/servers.mjs";

const outlast = "Outlast";
const always = "BullMQ (AOF always)";
const everysec = "BullMQ (AOF everysec)";
const pgBoss = "pg-boss";

async function startRedis(name, { dir: parent, started }, appendfsync) {
  const dir = join(parent, name);
  mkdirSync(dir);
  const port = await freePort();
  const args = ["--port", port, "--bind", "127.0.0.1", "--dir", dir, "--save", ""];
  args.push("--appendonly", "yes", "--appendfsync", appendfsync);
  const ready = (log) => (/ready to accept connections/i.test(log) ? port : undefined);
  return started(start({ name, dir, command: "redis-server", args: args.map(String), ready }));
}

/** Where Debian keeps the servers' programs, or undefined to look them up in PATH. */
function postgresPrograms() {
  const parent = "/usr/lib/postgresql";
  const versions = existsSync(parent) ? readdirSync(parent).sort((a, b) => Number(b) - Number(a)) : [];
  const [bin] = versions
    .map((version) => join(parent, version, "bin"))
    .filter((path) => existsSync(join(path, "initdb")));
  if (!bin) throw new CannotRun("PostgreSQL is missing; it comes with: apt-get install postgresql");
  return bin;
}

/** PostgreSQL refuses to run as root. */
function postgresUser() {
  if (process.getuid() !== 0) return {};
  const idOf = (flag) => Number(execFileSync("id", [flag, "postgres"], { encoding: "utf8" }));
  return { uid: idOf("-u"), gid: idOf("-g") };
}

async function startPostgres({ dir: parent, started }) {
  const bin = postgresPrograms();
  const user = postgresUser();
  const dir = join(parent, "postgres");
  mkdirSync(dir);
  chmodSync(parent, 0o711);
  if (user.uid !== undefined) chownSync(dir, user.uid, user.gid);
  const data = join(dir, "data");
  const initdb = ["-D", data, "-U", "bench", "--auth=trust", "-E", "UTF8", "--no-locale"];
  execFileSync(join(bin, "initdb"), initdb, { cwd: dir, stdio: "pipe", ...user });
  const port = await freePort();
  const args = ["-D", data, "-p", port, "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="];
  const command = join(bin, "postgres");
  const ready = (log) => (/ready to accept connections/.test(log) ? port : undefined);
  // SIGINT is its fast shutdown; SIGTERM waits for the clients.
  const stopSignal = "SIGINT";
  return started(start({ name: "postgres", dir, command, args: args.map(String), user, stopSignal, ready }));
}

/** A queue's own process behind its front; what it accepted and what it stored are counted there. */
async function behindFront(name, server, { dir, upstream, started, workers }, connect) {
  const args = ["--upstream", upstream, "--workers", String(workers), ...connect];
  const front = await started(startOwn(name, { dir, args }));
  const count = async () => (await fetch(front.found)).json();
  const isIdle = async () => {
    const { accepted, stored, lost } = await count();
    return stored + lost >= accepted;
  };
  return {
    url: `${front.found}/v1/chat/completions`,
    headers: callHeaders,
    pids: [front.pid, server.pid],
    drained: () => drained(isIdle),
    async check() {
      const { lost } = await count();
      if (lost > 0) throw new Error(`${name} lost ${lost} jobs.`);
    },
  };
}

async function startBullmq(setting, appendfsync) {
  const redis = await startRedis(`redis-${appendfsync}`, setting, appendfsync);
  return behindFront("bullmq", redis, setting, ["--redis", String(redis.found)]);
}

async function startPgBoss(setting) {
  const postgres = await startPostgres(setting);
  return behindFront("pg-boss", postgres, setting, ["--postgres", String(postgres.found)]);
}

async function startOurs(setting) {
  const server = await setting.started(startOutlast({ ...setting, wait: false }));
  return { ...server, pids: [server.pid] };
}

const peers = {
  [outlast]: startOurs,
  [always]: (setting) => startBullmq(setting, "always"),
  [everysec]: (setting) => startBullmq(setting, "everysec"),
  [pgBoss]: startPgBoss,
};

function targets(samples, concurrency) {
  const rate = "lifecyclesPerSecond";
  const least = (base, atLeast) => {
    const spread = ratioOf(samples, [outlast, rate], [base, rate], concurrency);
    return { what: `lifecycles / ${base} at c=${concurrency}`, value: spread?.median, spread, atLeast };
  };
  return [least(always, 1), least(pgBoss, 3)];
}

function versions(bin) {
  const first = (command, ...args) => execFileSync(command, args, { encoding: "utf8" }).trim();
  return {
    bullmq: versionOf("bullmq"),
    "pg-boss": versionOf("pg-boss"),
    redis: first("redis-server", "--version"),
    postgres: first(join(bin, "postgres"), "--version"),
  };
}

async function run({ options, dir, machine, started, say }) {
  need({ wrk: "apt-get install wrk", "redis-server": "apt-get install redis-server" }, options);
  const bin = postgresPrograms();
  const upstream = await started(startUpstream(dir, options.delayMs));
  const { bodyBytes, product, workers } = options;
  const setting = { dir, product, upstream: upstream.url, bodyBytes, workers, started };
  const names = chosen(peers, options);
  const running = [];
  for (const name of names) {
    const peer = { name, dir, body: chatBody(bodyBytes), ...(await peers[name](setting)) };
    await probe(name, peer, 202);
    running.push(peer);
  }
  const measured = await runRounds(running, upstream, { ...options, say });
  for (const { check } of running) await check();
  const { samples } = measured;
  const result = {
    ...measured,
    reference: names.includes(always) ? always : names[0],
    columns: {
      "lifecycles/s": ({ lifecyclesPerSecond }) => lifecyclesPerSecond,
      "Outlast / this": (sums, peer, concurrency) =>
        ratioColumn(samples, peer, "lifecyclesPerSecond")(sums, outlast, concurrency),
    },
    targets: targets(samples, Math.max(...options.concurrencies)),
    versions: versions(bin),
  };
  return conclude("queue", result, options, machine);
}

// 256 is what Outlast has without being told.
await main({ rounds: "5", seconds: "3", concurrency: "128", workers: "256" }, run);
