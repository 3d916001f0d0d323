/** What a command asks: the server of the configuration, another one, or a file. */

import { type Command, Option } from "commander";
import type { Environment } from "../config/source.ts";
import { type Config, loadConfig } from "../config.ts";
import type { Clock, Random } from "../core/ports.ts";
import { Api } from "./api.ts";
import { UsageError } from "./failure.ts";
import { Terminal } from "./terminal.ts";

/** What every command has at hand. */
export interface Cli {
  clock: Clock;
  random: Random;
  /** As a server has it. */
  env: Environment;
  /** OUTLAST_API_KEY */
  key: string | undefined;
  terminal: Terminal;
}

export interface SourceFlags {
  config?: string;
  url?: string;
  key?: string;
  project?: string;
  db?: string;
  json?: boolean;
}

export function createCli(environment: Environment, parts: { clock: Clock; random: Random }): Cli {
  // A server refuses this variable unless its file refers to it. Here it is meant for the command: it can be referred
  // to as well, but is not among those that have to be known.
  const env = Object.defineProperty({ ...environment }, "OUTLAST_API_KEY", { enumerable: false });
  const key = environment.OUTLAST_API_KEY?.trim() || undefined;
  return { ...parts, env, key, terminal: new Terminal(environment, process) };
}

export const withJson = (command: Command): Command => command.option("--json", "print JSON, for programs");

export const withConfig = (command: Command): Command =>
  command.option("--config <file>", "configuration file (default: outlast.toml, if there is one)");

export function withServer(command: Command): Command {
  return withJson(withConfig(command))
    .option("--url <url>", "the server (default: the one of the configuration)")
    .option("--key <key>", "API key (default: OUTLAST_API_KEY, else the configuration's own)")
    .addOption(
      new Option("--project <name>", "use the configuration's key of this project").conflicts(["url", "key"]),
    );
}

export function withSource(command: Command): Command {
  return withServer(command).addOption(
    new Option("--db <file>", "read this database file instead; nothing is changed").conflicts([
      "url",
      "key",
    ]),
  );
}

/** @throws ConfigError, UsageError; Error where a file cannot be read */
export async function openSource(flags: SourceFlags, cli: Cli): Promise<Api> {
  const { db, project, url } = flags;
  if (db !== undefined) {
    // All of the API, which who asks a server need not load.
    const { openDatabase } = await import("./database.ts");
    return openDatabase(db, project ?? "default", cli);
  }
  const key = flags.key ?? (project === undefined ? cli.key : undefined);
  if (url !== undefined) return new Api(rootOf(url), key);
  const config = readConfig(flags, cli);
  return new Api(addressOf(config), key ?? keyOf(config, project));
}

/** @throws ConfigError */
export const readConfig = ({ config: file }: SourceFlags, { env }: Cli): Config => loadConfig({ env, file });

/** Where the database of a configuration lies. */
export const databaseOf = ({ store }: Config): string => store.url.replace(/^sqlite:/, "");

/** With or without the /v1 that SDKs want. @throws UsageError */
export function rootOf(url: string): string {
  if (!/^https?:\/\//.test(url) || !URL.canParse(url)) {
    throw new UsageError("--url must be an address such as http://127.0.0.1:4080.");
  }
  return url.replace(/\/+$/, "").replace(/\/v1$/, "");
}

/** @throws UsageError where only the system knows the port */
export function addressOf({ host, port }: Config): string {
  if (port === 0)
    throw new UsageError("The configuration lets the system pick the port: name it with --url.");
  const everywhere: Record<string, string> = { "0.0.0.0": "127.0.0.1", "::": "::1" };
  const name = everywhere[host] ?? host;
  return `http://${name.includes(":") ? `[${name}]` : name}:${port}`;
}

/** Whoever can read the configuration may use its keys; they go to its own server only. */
function keyOf({ apiKeys }: Config, project: string | undefined): string | undefined {
  const fitting = apiKeys.find((key) => project === undefined || key.project === project);
  // Without keys, all requests are of this one.
  const isOpen = apiKeys.length === 0 && project === "default";
  if (!fitting && project !== undefined && !isOpen) {
    throw new UsageError(`The configuration has no key of the project "${project}".`);
  }
  return fitting?.key;
}

/** Does something with a source, which is closed behind it. */
export async function withApi<T>(flags: SourceFlags, cli: Cli, work: (api: Api) => Promise<T>): Promise<T> {
  const api = await openSource(flags, cli);
  try {
    return await work(api);
  } finally {
    await api.close();
  }
}
