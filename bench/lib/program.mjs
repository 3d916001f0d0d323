/** What the programs share: their options, what they need, how they end. */

import { execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { describeMachine, isMemory } from "./machine.mjs";
import { judged, noise, tables, writeJson } from "./report.mjs";

const root = join(import.meta.dirname, "../..");

const exits = { reached: 0, missed: 1, cannotRun: 2, tooNoisy: 3 };

/** A reason not to run, for people. */
export class CannotRun extends Error {}

const optionTexts = {
  rounds: "rounds, each of which measures everything once, in an order of chance",
  seconds: "length of a measurement",
  concurrency: "connections, comma-separated",
  only: "names of what to measure, comma-separated (default: all)",
  bytes: "size of a request's body",
  builds: "builds of Outlast, comma-separated: NAME=DIR, and flags of Node behind a space",
  load: "what is sent: plain, accept or stream",
  bare: "measures a server without any storage, too, as the first",
  pin: "all servers run on the first core only",
  workers: "calls of the upstream at once, in every queue",
  rate: "content chunks per second of all streams together, but none faster than one in 5 ms",
  chunks: "content chunks of a stream",
  memory: "instead of all that: many short streams, and whether memory stays flat",
  streams: "number of streams with --memory",
  waiting: "requests that wait in the long lane",
  requests: "requests that are stored",
  failed: "requests besides that failed in an outage, and are retried",
  looks: "how often everything is looked up",
  delay: "ms that the upstream takes to answer",
  product: "the built main.js of Outlast",
  flags:
    "flags of Node for Outlast beside those of `npm start`, separated by spaces, as in --flags=--cpu-prof",
  dir: "where the databases go; must be a disk",
  json: "file for the result",
};

/** What `npm start` gives to Node in the package of that directory. */
export function startFlags(dir = root) {
  const { scripts } = JSON.parse(readFileSync(join(dir, "package.json"), "utf8"));
  return scripts.start.split(" ").filter((word) => word.startsWith("--"));
}

function readOptions(defaults) {
  const texts = { only: "", bytes: "1500", delay: "0", flags: "", dir: tmpdir(), json: "", ...defaults };
  texts.product ??= join(root, "dist/main.js");
  // What is undefined does not exist for this program.
  const known = Object.entries(texts).filter(([, value]) => value !== undefined);
  const named = known.map(([name, value]) => [name, { type: typeof value, default: value }]);
  const flags = { force: { type: "boolean", default: false }, help: { type: "boolean", default: false } };
  const { values } = parsed({ ...Object.fromEntries(named), ...flags });
  if (values.help) {
    for (const [name, text] of Object.entries(optionTexts).filter(([name]) => texts[name] !== undefined)) {
      console.log(`  --${name.padEnd(12)} ${text}${texts[name] ? ` (default: ${texts[name]})` : ""}`);
    }
    console.log("  --force        reports although the machine was too noisy, and says so");
    process.exit(0);
  }
  const optional = (name, least) =>
    values[name] === undefined ? undefined : wholeNumber(name, values[name], least);
  const list = (text) => text.split(",").filter(Boolean);
  return {
    rounds: wholeNumber("rounds", values.rounds, 1),
    seconds: wholeNumber("seconds", values.seconds, 1),
    concurrencies: list(values.concurrency).map((text) => wholeNumber("concurrency", text, 1)),
    only: list(values.only),
    bodyBytes: wholeNumber("bytes", values.bytes, 1),
    builds: list(values.builds ?? ""),
    load: values.load,
    bare: values.bare,
    pin: values.pin,
    workers: optional("workers", 4),
    rate: optional("rate", 1),
    chunks: optional("chunks", 2),
    memory: values.memory,
    streams: optional("streams", 100),
    waiting: optional("waiting", 1000),
    requests: optional("requests", 1000),
    failed: optional("failed", 100),
    looks: optional("looks", 5),
    delayMs: optional("delay", 0),
    product: {
      main: resolve(values.product),
      flags: [...startFlags(), ...values.flags.split(" ").filter(Boolean)],
    },
    dir: values.dir,
    json: values.json,
    force: values.force,
  };
}

function wholeNumber(name, text, least) {
  const number = Number(text);
  if (Number.isInteger(number) && number >= least) return number;
  console.error(`--${name} takes whole numbers from ${least}.`);
  return process.exit(exits.cannotRun);
}

function parsed(options) {
  try {
    return parseArgs({ options });
  } catch (error) {
    console.error(error.message);
    process.exit(exits.cannotRun);
  }
}

/** @param programs name → where it comes from */
export function need(programs, { product }) {
  const missing = Object.entries(programs).filter(([name]) => spawnSync("which", [name]).status !== 0);
  if (missing.length > 0) {
    const lines = missing.map(([name, source]) => `${name} is missing; it comes with: ${source}`);
    throw new CannotRun(lines.join("\n"));
  }
  if (!existsSync(product.main))
    throw new CannotRun(`${product.main} is missing; it comes with: npm run build`);
  if (!existsSync(join(root, "bench/node_modules"))) {
    throw new CannotRun("The peers are missing; they come with: npm ci --prefix bench");
  }
}

/** Which source the product was built from, where it lies in its work tree. */
export function commitOf({ main }) {
  const git = (...args) =>
    execFileSync("git", ["-C", dirname(main), ...args], { encoding: "utf8", stdio: "pipe" }).trim();
  try {
    const changed = git("status", "--porcelain", "--", ":/src", ":/package-lock.json");
    return git("rev-parse", "--short=12", "HEAD") + (changed ? " + changes" : "");
  } catch {
    return "unknown";
  }
}

/** @returns the names of what is to be measured, in the order of the tables */
export function chosen(peers, { only }) {
  const unknown = only.filter((name) => !(name in peers));
  if (unknown.length > 0) {
    throw new CannotRun(`There is no ${unknown.join(", ")}; there is: ${Object.keys(peers).join(", ")}.`);
  }
  return Object.keys(peers).filter((name) => only.length === 0 || only.includes(name));
}

/** What is installed in bench/. */
export function versionOf(name) {
  return JSON.parse(readFileSync(join(root, "bench/node_modules", name, "package.json"), "utf8")).version;
}

function newDirectory(parent) {
  const dir = mkdtempSync(join(resolve(parent), "outlast-bench-"));
  if (isMemory(dir)) {
    rmSync(dir, { recursive: true });
    throw new CannotRun(
      `${parent} is memory, where commits cost nothing; name a directory on a disk with --dir.`,
    );
  }
  return dir;
}

/**
 * Prints the tables and the targets, or why there are none.
 *
 * @param run what `runRounds` gave, with `reference`, `columns` and `targets`; where other things were measured than by
 * `measure`, also `table` (samples, concurrencies) → text, and `steady`, which says what of the reference must not
 * differ much over the rounds
 * @returns the exit code
 */
export function conclude(name, run, options, machine) {
  const { concurrencies } = options;
  const highest = Math.max(...concurrencies);
  const { found, complaints: noises } = noise(run, run.reference, highest);
  const complaints = [...noises, ...(run.complaints ?? [])];
  const table = (run.table ?? tables)(run.samples, concurrencies, run.columns);
  const { calibrationsMs, samples, versions } = run;
  const result = { versions, noise: { ...found, complaints, calibrationsMs }, samples };
  return report({ name, complaints, table, targets: run.targets, result }, options, machine);
}

/**
 * Prints a table and the targets, and writes the result, unless there are complaints and no --force.
 *
 * @returns the exit code
 */
export function report({ name, complaints, table, targets: aims, result }, options, machine) {
  const { product, dir: _, json, force, ...parameters } = options;
  if (complaints.length > 0 && !force) {
    const advice = "Stop what else runs here and repeat, or report anyway with --force.";
    console.error(
      ["Nothing is reported, because the figures would mislead.", ...complaints, advice].join("\n"),
    );
    return exits.tooNoisy;
  }
  const targets = aims.map(judged);
  if (complaints.length > 0) {
    const frame = "!".repeat(100);
    console.log([frame, "These figures must not be quoted.", ...complaints, frame].join("\n"));
  }
  console.log(`\n${table}\n`);
  console.log(targets.map(({ text }) => text).join("\n"));
  if (json) {
    const date = new Date().toISOString();
    const commit = commitOf(product);
    writeJson(json, {
      name,
      date,
      commit,
      machine,
      parameters: { ...parameters, force },
      targets,
      ...result,
    });
  }
  return targets.some(({ passed }) => passed === false) ? exits.missed : exits.reached;
}

/** Runs a benchmark in a directory of its own, stops everything that it started, and ends the process. */
export async function main(defaults, run) {
  const options = readOptions(defaults);
  const stops = [];
  let dir;
  let code = exits.cannotRun;
  const stopAll = async () => {
    for (const stop of stops.splice(0).reverse()) await stop();
    if (dir) rmSync(dir, { recursive: true, force: true });
  };
  const interrupted = () => stopAll().finally(() => process.exit(exits.cannotRun));
  process.once("SIGINT", interrupted);
  process.once("SIGTERM", interrupted);
  try {
    dir = newDirectory(options.dir);
    const started = async (starting) => {
      const server = await starting;
      stops.push(server.stop);
      return server;
    };
    const machine = describeMachine(dir);
    code = await run({ options, dir, machine, started, say: (text) => console.error(text) });
  } catch (error) {
    console.error(error instanceof CannotRun ? error.message : error);
  } finally {
    await stopAll();
  }
  process.exit(code);
}
