/** What both programs share: their options, what they need, how they end. */

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
  workers: "calls of the upstream at once, in every queue",
  delay: "ms that the upstream takes to answer",
  product: "the built main.js of Outlast",
  flags: "flags of Node for Outlast, separated by spaces, as in --flags=--cpu-prof",
  dir: "where the databases go; must be a disk",
  json: "file for the result",
};

function readOptions(defaults) {
  const texts = { only: "", bytes: "1500", delay: "0", flags: "", dir: tmpdir(), json: "", ...defaults };
  texts.product ??= join(root, "dist/main.js");
  const named = Object.entries(texts).map(([name, text]) => [name, { type: "string", default: text }]);
  const flags = { force: { type: "boolean", default: false }, help: { type: "boolean", default: false } };
  const { values } = parsed({ ...Object.fromEntries(named), ...flags });
  if (values.help) {
    for (const [name, text] of Object.entries(optionTexts).filter(([name]) => name in texts)) {
      console.log(`  --${name.padEnd(12)} ${text}${texts[name] ? ` (default: ${texts[name]})` : ""}`);
    }
    console.log("  --force        reports although the machine was too noisy, and says so");
    process.exit(0);
  }
  const list = (text) => text.split(",").filter(Boolean);
  return {
    rounds: wholeNumber("rounds", values.rounds, 1),
    seconds: wholeNumber("seconds", values.seconds, 1),
    concurrencies: list(values.concurrency).map((text) => wholeNumber("concurrency", text, 1)),
    only: list(values.only),
    bodyBytes: wholeNumber("bytes", values.bytes, 1),
    workers: values.workers === undefined ? undefined : wholeNumber("workers", values.workers, 4),
    delayMs: wholeNumber("delay", values.delay, 0),
    product: { main: resolve(values.product), flags: values.flags.split(" ").filter(Boolean) },
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
function commitOf({ main }) {
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
 * @param run what `runRounds` gave, with `reference`, `columns` and `targets`
 * @returns the exit code
 */
export function conclude(name, run, options, machine) {
  const { concurrencies, force, json } = options;
  const highest = Math.max(...concurrencies);
  const { found, complaints } = noise(run, run.reference, highest);
  if (complaints.length > 0 && !force) {
    const advice = "Stop what else runs here and repeat, or report anyway with --force.";
    console.error(["The machine was too noisy; nothing is reported.", ...complaints, advice].join("\n"));
    return exits.tooNoisy;
  }
  const targets = run.targets.map(judged);
  if (complaints.length > 0) {
    const frame = "!".repeat(100);
    console.log([frame, "NOISY: these figures must not be quoted.", ...complaints, frame].join("\n"));
  }
  console.log(`\n${tables(run.samples, concurrencies, run.columns)}\n`);
  console.log(targets.map(({ text }) => text).join("\n"));
  if (json) {
    const { product, dir: _, json: __, ...parameters } = options;
    const { calibrationsMs, samples, versions } = run;
    const date = new Date().toISOString();
    const noiseFound = { ...found, complaints, calibrationsMs };
    writeJson(json, {
      name,
      date,
      commit: commitOf(product),
      machine,
      versions,
      parameters,
      noise: noiseFound,
      targets,
      samples,
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
