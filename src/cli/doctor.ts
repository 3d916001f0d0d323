/** `outlast doctor`: whether what Outlast needs is as it should be, and what to do where it is not. */

import { accessSync, constants, existsSync, statfsSync } from "node:fs";
import { dirname, resolve } from "node:path";
import type { Command } from "commander";
import { type Config, ConfigError, type UpstreamConfig } from "../config.ts";
import { type Inspection, inspect } from "../store/sqlite/inspection.ts";
import { Api, probe } from "./api.ts";
import { Unsuccessful } from "./failure.ts";
import {
  addressOf,
  type Cli,
  databaseOf,
  readConfig,
  rootOf,
  type SourceFlags,
  withServer,
} from "./source.ts";
import { type Colour, visible } from "./terminal.ts";
import * as words from "./words.ts";

type DoctorFlags = SourceFlags & { full?: boolean };

interface Finding {
  /** What was looked at. */
  check: string;
  status: "ok" | "warn" | "fail";
  message: string;
  /** What to do; null where nothing is. */
  advice: string | null;
}

const ok = (check: string, message: string): Finding => ({ check, status: "ok", message, advice: null });
const warn = (check: string, message: string, advice: string): Finding => ({
  check,
  status: "warn",
  message,
  advice,
});
const fail = (check: string, message: string, advice: string): Finding => ({
  check,
  status: "fail",
  message,
  advice,
});

/** Clocks that differ by less agree. */
const clockToleranceMs = 10_000;
/** A log is copied into its database long before it has grown so large. */
const longLogBytes = 256 * 1024 * 1024;
const manyUnfiled = 10_000;
const keptByNtp = "Let the clock of this machine be kept by NTP.";

export function addDoctor(program: Command, cli: Cli): void {
  withServer(program.command("doctor").description("look for what is wrong, and say what to do"))
    .option("--db <file>", "the database (default: the one of the configuration)")
    .option("--full", "check every page and index of the database, which reads all of it")
    .action((flags) => doctor(flags, cli));
}

async function doctor(flags: DoctorFlags, cli: Cli): Promise<void> {
  const { terminal } = cli;
  const colours: Record<Finding["status"], Colour> = { ok: "green", warn: "yellow", fail: "red" };
  const findings: Finding[] = [];
  for await (const finding of examine(flags, cli)) {
    findings.push(finding);
    if (flags.json) continue;
    const { check, status, message, advice } = finding;
    terminal.report(`${terminal.paint(colours[status], status.padEnd(5))} ${check}: ${visible(message)}`);
    if (advice !== null) terminal.report(`      ${visible(advice)}`);
  }
  const isWell = findings.every(({ status }) => status !== "fail");
  if (flags.json) terminal.report(JSON.stringify({ object: "doctor", ok: isWell, checks: findings }));
  if (!isWell) throw new Unsuccessful();
}

/** The database comes last: to read all of a large one takes long. */
async function* examine(flags: DoctorFlags, cli: Cli): AsyncGenerator<Finding> {
  const config = configOf(flags, cli);
  if (config instanceof ConfigError) {
    for (const problem of config.problems)
      yield fail("configuration", problem, "Correct it: see config.example.toml.");
    if (flags.db !== undefined) yield* database(flags.db, flags, cli, true);
    return;
  }
  const { file } = config.source;
  const from = file === undefined ? "; there is no file, defaults and environment apply" : `, of ${file}`;
  yield ok("configuration", `valid${from}`);
  yield await server(config, flags, cli);
  if (config.upstreams.length === 0) {
    const advice = "Set OPENAI_API_KEY, or name one in [upstreams].";
    yield warn("upstreams", "none is configured: the built-in demo answers", advice);
  }
  const asked = config.upstreams.map((one) => upstream(one, config, cli));
  for (const findings of asked) yield* await findings;
  const path = flags.db ?? databaseOf(config);
  yield disk(path, config);
  yield* database(path, flags, cli, config.search);
}

function configOf(flags: DoctorFlags, cli: Cli): Config | ConfigError {
  try {
    return readConfig(flags, cli);
  } catch (error) {
    if (error instanceof ConfigError) return error;
    throw error;
  }
}

function database(path: string, flags: DoctorFlags, cli: Cli, isSearched: boolean): Finding[] {
  const check = "database";
  if (!existsSync(path)) {
    const isMeant = flags.db !== undefined;
    if (isMeant) return [fail(check, `there is no file ${path}`, "Name another one with --db.")];
    return [...writable(path), ok(check, `${path} is not there yet: the first start makes it`)];
  }
  try {
    const found = inspect(path, { full: flags.full === true });
    return [
      ...writable(path),
      soundness(path, found, flags),
      schema(found),
      log(found),
      ...clocks(found, cli),
      ...(isSearched ? search(found) : [ok("search", "turned off in the configuration")]),
    ];
  } catch (error) {
    const advice = "Put a backup in its place, or let store.url name another file.";
    return [fail(check, `${path} cannot be read: ${(error as Error).message}`, advice)];
  }
}

function writable(path: string): Finding[] {
  const folder = nearestFolder(path);
  try {
    for (const one of [folder, path]) if (existsSync(one)) accessSync(one, constants.W_OK);
    return [];
  } catch {
    return [
      fail("database", `${path} cannot be written`, "Let the user that runs Outlast own it and its folder."),
    ];
  }
}

/** The first start makes those that are missing. */
function nearestFolder(path: string): string {
  let folder = dirname(resolve(path));
  while (!existsSync(folder)) folder = dirname(folder);
  return folder;
}

function soundness(path: string, { faults, requests, bytes }: Inspection, { full }: DoctorFlags): Finding {
  if (faults.length > 0) {
    const advice =
      "Stop the server and put a backup in its place; `sqlite3 FILE .recover` saves what can be read.";
    return fail("database", `${path} is damaged: ${faults.join("; ")}`, advice);
  }
  const many = requests === undefined ? "" : `${words.requests(requests)}, `;
  return ok(
    "database",
    `${path}: ${many}${words.size(bytes)}, ${full ? "every page and index" : "every page"} is sound`,
  );
}

function schema({ schema: own, knownSchema }: Inspection): Finding {
  if (own === knownSchema) return ok("schema", `${own}, this version's own`);
  if (own > knownSchema) {
    return fail(
      "schema",
      `${own} is of a newer Outlast; this one knows ${knownSchema}`,
      "Use the newer Outlast.",
    );
  }
  const advice = "The next start upgrades it; make a backup before.";
  return warn("schema", `${own} is older than this version's ${knownSchema}`, advice);
}

function log({ logBytes }: Inspection): Finding {
  if (logBytes < longLogBytes) return ok("log", `${words.size(logBytes)} beside the database`);
  const advice = "Something reads the database for very long (a backup?), or the disk is too slow.";
  return warn("log", `${words.size(logBytes)} wait to be copied into the database`, advice);
}

function clocks({ newestAt }: Inspection, { clock }: Cli): Finding[] {
  if (newestAt === undefined) return [];
  const aheadMs = newestAt - clock.now();
  if (aheadMs <= clockToleranceMs) return [ok("clock", "not behind the newest request")];
  const message = `the newest request is ${words.length(aheadMs)} ahead of this clock, which was set back`;
  return [warn("clock", message, keptByNtp)];
}

function search({ unfiled }: Inspection): Finding[] {
  if (unfiled === undefined) return [];
  const message = `${words.requests(unfiled)} wait for the index of texts`;
  const advice = "A running server catches up by itself when it has less to do.";
  return [unfiled > manyUnfiled ? warn("search", message, advice) : ok("search", message)];
}

function disk(path: string, { store: { minFreeDiskBytes: floor } }: Config): Finding {
  const { bavail, bsize } = statfsSync(nearestFolder(path));
  const free = bavail * bsize;
  const message = `${words.size(free)} free, ${floor === 0 ? "no floor is set" : `the floor is ${words.size(floor)}`}`;
  const advice = "Free some space, set [retention], or lower store.min_free_disk.";
  if (free < floor) return fail("disk", `${message}: no requests are accepted`, advice);
  return free < 2 * floor ? warn("disk", message, advice) : ok("disk", message);
}

/** Never throws. */
async function upstream(one: UpstreamConfig, { timeouts }: Config, { clock }: Cli): Promise<Finding[]> {
  const check = `upstream ${one.name}`;
  const headers = {
    ...(one.apiKey !== undefined && { authorization: `Bearer ${one.apiKey}` }),
    ...Object.fromEntries(Object.entries(one.headers).map(([name, value]) => [name.toLowerCase(), value])),
  };
  const reply = await probe(`${one.baseUrl}/models`, headers, timeouts.connectMs);
  if ("code" in reply) {
    const advice = "Look at its base_url, at DNS, the firewall and certificates.";
    return [fail(check, `${one.baseUrl} cannot be reached (${reply.code})`, advice)];
  }
  return [answered(check, one, reply.status), ...skew(check, reply.date, clock.now())];
}

function answered(check: string, one: UpstreamConfig, status: number): Finding {
  if (status === 401 || status === 403) {
    const what = one.apiKey === undefined ? "asks for a key, and none is configured" : "refuses the key";
    return fail(check, `${one.baseUrl} ${what} (HTTP ${status})`, "Set its api_key to one that it accepts.");
  }
  if (status < 400)
    return ok(
      check,
      `${one.baseUrl} answers, and accepts ${one.apiKey === undefined ? "calls without a key" : "the key"}`,
    );
  if (status === 404 || status === 405) {
    const advice = "Look at its base_url, which ends in /v1 for most; some providers list no models.";
    return warn(check, `${one.baseUrl} answers, but has no list of models (HTTP ${status})`, advice);
  }
  return warn(
    check,
    `${one.baseUrl} answers HTTP ${status}`,
    "Try again later; look at the provider's status page.",
  );
}

/** Its answers have the time to the second. */
function skew(check: string, date: string | undefined, now: number): Finding[] {
  const behindMs = date === undefined ? Number.NaN : Date.parse(date) - now;
  if (!(Math.abs(behindMs) > clockToleranceMs)) return [];
  const what = `this clock is ${words.length(Math.abs(behindMs))} ${behindMs > 0 ? "behind" : "ahead of"} its own`;
  return [warn(check, what, keptByNtp)];
}

async function server(config: Config, flags: DoctorFlags, { key }: Cli): Promise<Finding> {
  const check = "server";
  if (flags.url === undefined && config.port === 0) {
    return warn(check, "the system picks its port, so it cannot be looked for", "Name it with --url.");
  }
  const url = flags.url === undefined ? addressOf(config) : rootOf(flags.url);
  const api = new Api(url, flags.key ?? key);
  try {
    const { status, text } = await api.reply("GET", "/readyz");
    if (status === 200) return ok(check, `runs at ${url}, and is ready`);
    const said = /"message":"([^"]*)"/.exec(text)?.[1] ?? `HTTP ${status}`;
    return fail(check, `${url} is not ready: ${said}`, "Wait, or look into its log.");
  } catch {
    return warn(check, `nothing answers at ${url}`, "Start it with `outlast serve`.");
  } finally {
    await api.close();
  }
}
