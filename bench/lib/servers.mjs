/** The servers that both benchmarks start. Each is told where to write (`dir`) and gives back a target for the load. */

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { answers, freePort, start } from "./children.mjs";
import { chatBody } from "./load.mjs";

const servers = join(import.meta.dirname, "../servers");

/** Not secret: the fake upstream takes everything. */
export const callHeaders = { "content-type": "application/json", authorization: "Bearer bench-key" };

const listening = (log) => /listens on (http:\S+)/i.exec(log)?.[1];

/** One of `servers/`, run by `node` and told more by `args`; `flags` are Node's. */
export async function startOwn(name, { dir, flags = [], args = [], command = process.execPath }) {
  const file = join(servers, `${name}.mjs`);
  return start({ name, dir, command, args: [...flags, file, ...args], ready: listening });
}

/** @param delayMs how long each answer takes */
export async function startUpstream(dir, delayMs) {
  const server = await startOwn("upstream", { dir, args: ["--delay", String(delayMs)] });
  const answered = async () => Number(await (await fetch(server.found)).text());
  return { ...server, url: server.found, answered };
}

/**
 * The upstream that also fills the queue of the server behind which it stands.
 *
 * @param settings what it submits: `body`, `numberPlace`, `headers`, and over how many `connections`
 * @returns `state` says what has happened; `set` tells it what to do from now on, and says the same
 */
export async function startFillingUpstream(dir, settings) {
  const server = await startOwn("filling-upstream", { dir, args: [JSON.stringify(settings)] });
  const ask = async (change) => {
    const how = change ? { method: "PUT", body: JSON.stringify(change) } : {};
    const state = await (await fetch(server.found, how)).json();
    if (state.failure) throw new Error(state.failure);
    return state;
  };
  return { ...server, url: server.found, state: () => ask(), set: ask };
}

/** The upstream that streams, at the pace that each call's model names (see paced.mjs). */
export async function startPacedUpstream(dir, flags) {
  const server = await startOwn("paced-upstream", { dir, flags });
  const begun = async () => Number(await (await fetch(server.found)).text());
  return { ...server, url: server.found, begun };
}

/** @param flags of Node */
export async function startPortkey({ dir, upstream, flags = [] }, node = process.execPath) {
  const main = join(import.meta.dirname, "../node_modules/@portkey-ai/gateway/build/start-server.js");
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const args = [...flags, main, `--port=${port}`, "--headless"];
  const env = { TRUSTED_CUSTOM_HOSTS: "127.0.0.1,localhost" };
  const name = `portkey-${port}`;
  const server = await start({ name, dir, command: node, args, env, ready: () => answers(url) });
  const headers = {
    ...callHeaders,
    "x-portkey-provider": "openai",
    "x-portkey-custom-host": `${upstream}/v1`,
  };
  return { ...server, url: `${url}/v1/chat/completions`, headers };
}

/**
 * Outlast as it is installed, with its defaults (`synchronous=FULL`) and one upstream.
 *
 * @param product the built main.js, and flags for Node
 * @param wait false: each call is answered with 202 and an id
 * @param workers how many calls of the upstream may run at once; the default is Outlast's own
 * @param config the whole configuration, as TOML, where it is to be another
 */
export async function startOutlast({
  dir: parent,
  product,
  upstream,
  bodyBytes,
  name = "outlast",
  wait,
  workers,
  config = oneUpstream(upstream, workers),
}) {
  const dir = join(parent, name);
  mkdirSync(dir);
  writeFileSync(join(dir, "outlast.toml"), config);
  const args = [...product.flags, product.main, "serve", "--port", "0"];
  const server = await start({ name, dir, command: process.execPath, args, ready: listening });
  return {
    ...server,
    base: server.found,
    dir,
    url: `${server.found}/v1/chat/completions`,
    headers: callHeaders,
    body: chatBody(bodyBytes, wait === false ? { wait } : {}),
    status: wait === false ? 202 : 200,
    drained: wait === false ? () => drained(() => outlastIsIdle(server.found)) : undefined,
    check: () => nothingFailed(server.found),
  };
}

/** @returns the configuration of Outlast with one upstream and nothing else */
export function oneUpstream(url, workers) {
  const config = ["[upstreams.bench]", `base_url = "${url}/v1"`, 'api_key = "bench-key-of-upstream"'];
  if (workers !== undefined) config.push(`max_concurrency = ${workers}`);
  return config.join("\n");
}

const listOf = async (url, status) =>
  (await (await fetch(`${url}/v1/requests?limit=1&status=${status}`)).json()).data.length;

async function outlastIsIdle(url) {
  for (const status of ["queued", "processing", "retrying"]) {
    if ((await listOf(url, status)) > 0) return false;
  }
  return true;
}

async function nothingFailed(url) {
  for (const status of ["failed", "cancelled"]) {
    if ((await listOf(url, status)) > 0) throw new Error(`Outlast has ${status} requests.`);
  }
  if ((await listOf(url, "completed")) === 0) throw new Error("Outlast has no completed request.");
}

const drainLimitMs = 300_000;

/** Waits until `isIdle` says so; looks rarely, because looking costs the server, too. */
export async function drained(isIdle) {
  const giveUpAt = performance.now() + drainLimitMs;
  while (!(await isIdle())) {
    if (performance.now() > giveUpAt) throw new Error("The accepted work did not end in time.");
    await pause(50);
  }
}
