#!/usr/bin/env node
/** Streams through Outlast, which records them, beside servers that hand them on. See README.md. */

import { chatBody } from "./lib/load.mjs";
import { loopDelayFlags } from "./lib/loop-delay.mjs";
import { rssMb } from "./lib/machine.mjs";
import { pacedModel, pieces } from "./lib/paced.mjs";
import { CannotRun, chosen, conclude, main, need, report, versionOf } from "./lib/program.mjs";
import { aligned, ratioOf, ratioText } from "./lib/report.mjs";
import { callHeaders, startOutlast, startOwn, startPacedUpstream, startPortkey } from "./lib/servers.mjs";
import { median, ratios, round } from "./lib/statistics.mjs";
import { callStreams, runStreamRounds } from "./lib/streams.mjs";

const outlast = "Outlast";
const bare = "bare pipe";
const direct = "direct";

const completions = "/v1/chat/completions";

async function startPipe({ dir, upstream, flags }) {
  const server = await startOwn("pipe", { dir, flags, args: ["--upstream", upstream] });
  return { ...server, url: server.found + completions, headers: callHeaders };
}

const peers = {
  [outlast]: ({ product, flags, ...setting }) =>
    startOutlast({ ...setting, product: { ...product, flags: [...product.flags, ...flags] } }),
  [bare]: startPipe,
  [direct]: ({ provider: { pid, url } }) => ({
    pid,
    url: url + completions,
    headers: callHeaders,
    stop() {},
  }),
  Portkey: startPortkey,
};

/** Starts what was chosen, and lets each hand on one stream. */
async function startPeers(names, { options, dir, started }) {
  need({}, options);
  const flags = loopDelayFlags;
  const provider = await started(startPacedUpstream(dir, flags));
  const { bodyBytes, product } = options;
  // One slot for each stream, and some.
  const workers = 2 * Math.max(500, ...options.concurrencies);
  const setting = { dir, product, flags, provider, upstream: provider.url, bodyBytes, workers };
  const running = [];
  const complaints = [];
  for (const name of names) {
    const server = await started(peers[name](setting));
    const bodyFor = (load) => chatBody(bodyBytes, { model: pacedModel(load), stream: true });
    const peer = { ...server, name, bodyFor, pids: [server.pid] };
    await probe(peer);
    running.push(peer);
    const complaint = name === outlast && (await whyNotRecorded(peer, short.chunks));
    if (complaint && !options.force)
      throw new CannotRun(`${complaint} Measure it all the same with --force.`);
    if (complaint) complaints.push(complaint);
  }
  return { provider, running, complaints };
}

const short = { concurrency: 1, streams: 1, chunks: 20, paceMs: 5, rampMs: 0 };

/** One stream before the load: a server that streams wrongly is not worth measuring. */
async function probe(peer) {
  const { errors } = await callStreams({ ...peer, body: peer.bodyFor(short) }, short);
  const found = Object.keys(errors);
  if (found.length > 0) throw new Error(`${peer.name} spoiled the first stream: ${found.join(", ")}`);
}

/** @returns why its figures would not be those of recording; undefined: the newest stream is on record, whole */
async function whyNotRecorded({ base }, chunks) {
  const { data } = await (await fetch(`${base}/v1/requests?limit=1`)).json();
  if (data.length === 0) return `${outlast} handed the streams on without recording them.`;
  const { id, status } = data[0];
  if (status !== "completed") return `${outlast} has the newest stream as ${status}.`;
  const answer = await (await fetch(`${base}${completions}/${id}`)).json();
  const isWhole = answer.choices?.[0]?.message?.content === pieces(chunks).join("");
  return isWhole ? undefined : `${outlast} has another text on record than it has streamed.`;
}

/** @returns what keeps the figures from being quoted, after the load */
async function spoiled(running) {
  const peer = running.find(({ name }) => name === outlast);
  try {
    await peer?.check();
    return [];
  } catch (error) {
    return [error.message];
  }
}

/** The added times are differences of small numbers: below this they are taken as this, in ms. */
const leastAddedMs = 0.05;

/** How often the bare pipe's added p99 goes into a peer's, round by round. */
function addedRatio(samples, peer, concurrency) {
  const of = (name) => samples[name]?.[concurrency]?.map(({ addedP99Ms }) => addedP99Ms);
  const [above, below] = [of(peer), of(bare)];
  if (!above || !below || above[0] === undefined || below[0] === undefined) return undefined;
  return ratios(
    above,
    below.map((ms) => Math.max(leastAddedMs, ms)),
  );
}

const cpuRatio = (samples, peer, concurrency) =>
  ratioOf(samples, [peer, "cpuMs"], [bare, "cpuMs"], concurrency);

function streamTables(samples, concurrencies) {
  const head = [
    ["first token p50 ms", "p99 ms", "added p50 ms", "added p99 ms", "× bare pipe"],
    [
      "CPU ms / 1,000 chunks",
      "later",
      "× bare pipe",
      "loop delay p99 ms",
      "max ms",
      "chunks/s",
      "errors",
      "RSS MB",
    ],
  ].flat();
  return concurrencies
    .map((concurrency) => {
      const rows = Object.entries(samples).map(([peer, byConcurrency]) => [
        peer,
        ...cellsOf(samples, peer, byConcurrency[concurrency], concurrency),
      ]);
      return aligned([[`c=${concurrency}`, ...head], ...rows]);
    })
    .join("\n\n");
}

/** Medians, but for errors (their sum), the largest delay and memory (the largest). */
function cellsOf(samples, peer, list, concurrency) {
  const of = (name) => list.map((sample) => sample[name]);
  const middle = (name, digits) => (list[0][name] === undefined ? "" : round(median(of(name)), digits));
  const ratioCell = (ratio) => (ratio && peer !== direct ? ratioText(ratio) : "");
  return [
    [middle("firstP50Ms", 2), middle("firstP99Ms", 1)],
    peer === direct ? ["", ""] : [middle("addedP50Ms", 2), middle("addedP99Ms", 1)],
    [ratioCell(addedRatio(samples, peer, concurrency)), middle("cpuMs", 1), middle("laterMs", 1)],
    [ratioCell(cpuRatio(samples, peer, concurrency)), middle("loopP99Ms", 1)],
    [round(Math.max(...of("loopMaxMs")), 1), middle("chunksPerSecond", 0)],
    [of("errors").reduce((sum, one) => sum + one, 0), Math.round(Math.max(...of("rssMb")))],
  ].flat();
}

function targets(samples) {
  const most = (what, spread, atMost) => ({ what, value: spread?.median, spread, atMost });
  const many = samples[outlast]?.[1000];
  const largest = (name) => many && Math.max(...many.map((sample) => sample[name]));
  return [
    most("added first-token p99 / bare pipe at c=200", addedRatio(samples, outlast, 200), 3),
    ...[200, 1000].map((concurrency) =>
      most(`CPU per chunk / bare pipe at c=${concurrency}`, cpuRatio(samples, outlast, concurrency), 1.6),
    ),
    { what: "Outlast: errors at c=1000", value: largest("errors"), atMost: 0 },
    { what: "Outlast: RSS in MB at c=1000", value: largest("rssMb"), atMost: 400 },
  ];
}

async function run(program) {
  const { options, machine, say } = program;
  if (options.memory) return runMemory(program);
  const names = chosen(peers, options);
  const { provider, running, complaints } = await startPeers(names, program);
  const measured = await runStreamRounds(running, provider, direct, { ...options, say });
  if (complaints.length === 0) complaints.push(...(await spoiled(running)));
  const { samples } = measured;
  const result = {
    ...measured,
    complaints,
    reference: names.includes(bare) ? bare : names[0],
    steady: { name: "cpuMs", called: "CPU times" },
    table: streamTables,
    targets: targets(samples),
    versions: { portkey: versionOf("@portkey-ai/gateway") },
  };
  return conclude("stream", result, options, machine);
}

/** Streams that are short, so that there are many. */
const memoryLoad = { concurrency: 100, chunks: 20, paceMs: 5, rampMs: 500 };

async function runMemory(program) {
  const { options, machine, say } = program;
  const names = options.only.length > 0 ? chosen(peers, options) : [outlast];
  if (names.length !== 1) throw new CannotRun("--memory measures one server; name it with --only.");
  const { running, complaints } = await startPeers(names, program);
  const [peer] = running;
  const load = { ...memoryLoad, streams: options.streams };
  const looks = [];
  const look = (ended) => {
    looks.push({ ended, rssMb: rssMb(peer.pids) });
    if (looks.length % 10 === 0) say(`${ended} streams: ${Math.round(looks.at(-1).rssMb)} MB`);
  };
  const met = await callStreams({ ...peer, body: peer.bodyFor(load) }, load, look);
  if (complaints.length === 0) complaints.push(...(await spoiled(running)));
  const errors = Object.values(met.errors).reduce((sum, count) => sum + count, 0);
  const after = (share) => rssAfter(looks, options.streams, share);
  const slope = slopeMb(looks.filter(({ ended }) => ended >= options.streams / 10));
  const title = `${peer.name}, ${options.streams} streams`;
  const head = [
    title,
    "RSS MB after 10 %",
    "50 %",
    "100 %",
    "largest",
    "MB / 10,000 streams",
    "streams/s",
    "errors",
  ];
  const megabytes = [after(0.1), after(0.5), after(1), Math.max(...looks.map(({ rssMb }) => rssMb))];
  const perSecond = options.streams / met.seconds;
  const row = ["", ...megabytes.map(Math.round), round(slope * 10_000, 2), Math.round(perSecond), errors];
  const targets = [
    { what: `RSS after all streams / after a tenth`, value: after(1) / after(0.1), atMost: flat },
    { what: "errors", value: errors, atMost: 0 },
  ];
  const outcome = { name: "stream --memory", complaints, table: aligned([head, row]), targets };
  return report({ ...outcome, result: { complaints, looks, met } }, options, machine);
}

/** Garbage is collected when it is: memory goes up and down by some percent without growing. */
const flat = 1.1;

/** MB when that share of the streams had ended: the median of the looks around it, because memory is a saw's edge. */
function rssAfter(looks, streams, share) {
  const near = looks.filter(({ ended }) => Math.abs(ended / streams - share) <= 0.05);
  return median(near.map(({ rssMb }) => rssMb));
}

/** MB per stream, by least squares. */
function slopeMb(looks) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [x, y] = [mean(looks.map(({ ended }) => ended)), mean(looks.map(({ rssMb }) => rssMb))];
  const above = looks.reduce((sum, { ended, rssMb }) => sum + (ended - x) * (rssMb - y), 0);
  return above / looks.reduce((sum, { ended }) => sum + (ended - x) ** 2, 0);
}

await main(
  {
    rounds: "5",
    seconds: "10",
    concurrency: "1,200,1000",
    rate: "10000",
    chunks: "200",
    delay: undefined,
    memory: false,
    streams: "50000",
  },
  run,
);
