#!/usr/bin/env node
/** Outlast, which stores every call, beside proxies that store nothing. See README.md. */

import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { answers, freePort, start } from "./lib/children.mjs";
import { chatBody, probe } from "./lib/load.mjs";
import { runRounds } from "./lib/measure.mjs";
import { CannotRun, chosen, conclude, main, need, versionOf } from "./lib/program.mjs";
import { ratioColumn, ratioOf } from "./lib/report.mjs";
import { callHeaders, startOutlast, startOwn, startPortkey, startUpstream } from "./lib/servers.mjs";

const outlast = "Outlast";
const accept = "Outlast (accept)";
const bare = "bare hop";
const portkey = "Portkey";
const portkey24 = "Portkey (Node 24)";

const completions = "/v1/chat/completions";

async function startProxy(name, setting) {
  const server = await startOwn(name, { dir: setting.dir, args: ["--upstream", setting.upstream] });
  return { ...server, url: server.found + completions, headers: callHeaders };
}

const nginxConfig = (port, upstream, dir) => `
daemon off;
worker_processes 1;
${process.getuid() === 0 ? "user root;" : ""}
pid ${dir}/nginx.pid;
error_log ${dir}/nginx-error.log;
events { worker_connections 4096; }
http {
  access_log off;
  keepalive_requests 1000000000;
  client_body_temp_path ${dir}/body;
  proxy_temp_path ${dir}/proxy;
  fastcgi_temp_path ${dir}/fastcgi;
  uwsgi_temp_path ${dir}/uwsgi;
  scgi_temp_path ${dir}/scgi;
  upstream provider { server ${new URL(upstream).host}; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:${port} backlog=4096;
    location / { proxy_pass http://provider; proxy_http_version 1.1; proxy_set_header Connection ""; }
  }
}
`;

async function startNginx({ dir: parent, upstream }) {
  const dir = join(parent, "nginx");
  mkdirSync(dir);
  const port = await freePort();
  const config = join(dir, "nginx.conf");
  writeFileSync(config, nginxConfig(port, upstream, dir));
  const url = `http://127.0.0.1:${port}`;
  const args = ["-c", config, "-e", join(dir, "nginx-error.log"), "-p", dir];
  const server = await start({ name: "nginx", dir, command: "nginx", args, ready: () => answers(url) });
  return { ...server, url: url + completions, headers: callHeaders };
}

/** The program itself, so that npx is not part of what is measured. */
function node24() {
  try {
    const args = ["-y", "node@24", "-p", "process.execPath"];
    return execFileSync("npx", args, { encoding: "utf8", stdio: "pipe" }).trim();
  } catch {
    throw new CannotRun(`npx could not fetch Node 24; leave "${portkey24}" out with --only.`);
  }
}

const peers = {
  [outlast]: (setting) => startOutlast({ ...setting, name: "outlast" }),
  [accept]: (setting) => startOutlast({ ...setting, name: "outlast-accept", wait: false }),
  [bare]: (setting) => startProxy("bare", setting),
  "Hono + undici": (setting) => startProxy("hono", setting),
  [portkey]: (setting) => startPortkey(setting),
  [portkey24]: (setting) => startPortkey(setting, node24()),
  nginx: startNginx,
};

function targets(samples, concurrency) {
  const ratio = (peer, base) => ratioOf(samples, [peer, "perSecond"], [base, "perSecond"], concurrency);
  const at = `at c=${concurrency}`;
  const least = (what, spread, atLeast) => ({
    what: `${what} ${at}`,
    value: spread?.median,
    spread,
    atLeast,
  });
  const memory = (peer) => {
    const mb = samples[peer]?.[concurrency]?.map(({ rssMb }) => rssMb);
    return { what: `${peer}: RSS in MB ${at}`, value: mb && Math.max(...mb), atMost: 250 };
  };
  return [
    least("durable / Portkey on the same Node", ratio(outlast, portkey), 5),
    least("durable / bare hop", ratio(outlast, bare), 0.33),
    least("accepted / bare hop", ratio(accept, bare), 0.5),
    memory(outlast),
    memory(accept),
  ];
}

async function run({ options, dir, machine, started, say }) {
  need({ wrk: "apt-get install wrk", nginx: "apt-get install nginx-light" }, options);
  const upstream = await started(startUpstream(dir, options.delayMs));
  const { bodyBytes, product } = options;
  const setting = { dir, product, upstream: upstream.url, bodyBytes };
  const names = chosen(peers, options);
  const running = [];
  for (const name of names) {
    const server = await started(peers[name](setting));
    const peer = { name, dir, body: chatBody(bodyBytes), status: 200, ...server, pids: [server.pid] };
    await probe(name, peer, peer.status);
    running.push(peer);
  }
  const measured = await runRounds(running, upstream, { ...options, say });
  for (const { check } of running) await check?.();
  const { samples } = measured;
  const result = {
    ...measured,
    reference: names.includes(bare) ? bare : names[0],
    columns: {
      "× bare hop": ratioColumn(samples, bare),
      "× Portkey": ratioColumn(samples, portkey),
      "finished/s": ({ lifecyclesPerSecond }) => lifecyclesPerSecond,
    },
    targets: targets(samples, Math.max(...options.concurrencies)),
    versions: {
      portkey: versionOf("@portkey-ai/gateway"),
      hono: versionOf("hono"),
      undici: versionOf("undici"),
    },
  };
  return conclude("proxy", result, options, machine);
}

await main({ rounds: "5", seconds: "3", concurrency: "1,32,128" }, run);
