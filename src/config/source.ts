import { existsSync, readFileSync } from "node:fs";
import { dirname, isAbsolute, join } from "node:path";
import { parse, TomlError } from "smol-toml";
import { isTable } from "./field.ts";
import { environmentUpstreams } from "./providers.ts";
import { type SchemaKey, schemaKeys } from "./schema.ts";
import { nearest } from "./suggestion.ts";

/*
 * The configuration before it is checked: the file, under what the environment says, under the flags, with a note of
 * what came from where.
 */

export type Environment = Record<string, string | undefined>;
export type Path = readonly PropertyKey[];
type Table = Record<string, unknown>;

export interface Draft {
  /** the file that was read, as it was named */
  file?: string;
  /** the list of prices that was read */
  pricesFile?: string;
  /** what to check: variables are in place */
  values: Table;
  /** the same as it was written, with `${NAME}`, for messages */
  written: Table;
  /** path → the variable or flag that gave it; everything else is the file's or a default */
  origins: Map<string, string>;
  /** names of the upstreams that the environment made */
  environmentUpstreams: string[];
  /** paths whose `${NAME}` could not be replaced: there is nothing to check there */
  unresolved: Set<string>;
  problems: string[];
}

/** The problems that keep the configuration from being used, each with its key and where that came from. */
export class ConfigError extends Error {
  readonly problems: readonly string[];

  constructor(problems: readonly string[]) {
    const count = problems.length === 1 ? "a problem" : `${problems.length} problems`;
    super(`The configuration has ${count}:\n${problems.map((problem) => `- ${problem}`).join("\n")}`);
    this.name = "ConfigError";
    this.problems = problems;
  }
}

/**
 * Reads the sources and lays them over each other.
 * @param file the path that the command line gave
 * @throws ConfigError if the file cannot be read or is not TOML; every other problem goes into the draft
 */
export function gather(env: Environment, file: string | undefined, flags: Environment): Draft {
  const read = (variable: string) => env[variable]?.trim() || undefined;
  const source = findFile(file, read("OUTLAST_CONFIG"));
  const draft: Draft = {
    file: source?.path,
    values: {},
    written: source ? readFile(source) : {},
    origins: new Map(),
    environmentUpstreams: [],
    unresolved: new Set(),
    problems: [],
  };
  const referenced = new Set<string>();
  draft.values = substitute(draft, read, referenced);
  overlayEnvironment(draft, env, read, referenced);
  addUpstreams(draft, read);
  addPrices(draft);
  for (const [flag, value] of Object.entries(flags)) {
    if (value !== undefined) put(draft, [flag], value, `--${flag}`);
  }
  return draft;
}

/** Adds a problem, unless it only follows from a variable that is not set. */
export function report(draft: Draft, path: Path, message: string, options: { hidden: boolean }): void {
  for (let length = 1; length <= path.length; length++) {
    if (draft.unresolved.has(pathText(path.slice(0, length)))) return;
  }
  const got = options.hidden ? "" : `, got ${show(valueAt(draft.written, path))}`;
  draft.problems.push(`${pathText(path) || "the file"}: ${message}${got} (from ${origin(draft, path)})`);
}

/** A path as TOML writes it, with the positions in lists: `api_keys[0].key`, `routes."gpt-4.1"[1]`. */
export function pathText(path: Path): string {
  return path.reduce<string>((text, segment) => {
    if (typeof segment === "number") return `${text}[${segment}]`;
    const key = String(segment);
    const name = /^[\w-]+$/.test(key) ? key : JSON.stringify(key);
    return text === "" ? name : `${text}.${name}`;
  }, "");
}

/** The environment variable of a scalar key: defaults.max_attempts → OUTLAST_DEFAULTS_MAX_ATTEMPTS. */
export function variableName(path: readonly string[]): string {
  return `OUTLAST_${path.join("_").toUpperCase()}`;
}

function findFile(flag: string | undefined, variable: string | undefined) {
  if (flag !== undefined) return { path: flag, origin: "--config" };
  if (variable !== undefined) return { path: variable, origin: "OUTLAST_CONFIG" };
  return existsSync("outlast.toml") ? { path: "outlast.toml", origin: "the working directory" } : undefined;
}

function readFile({ path, origin }: { path: string; origin: string }): Table {
  const read = readToml(path);
  if ("problem" in read) throw new ConfigError([`${read.problem} (from ${origin})`]);
  return read.table;
}

function readToml(path: string): { table: Table } | { problem: string } {
  try {
    const table = parse(new TextDecoder("utf-8", { fatal: true }).decode(readFileSync(path)));
    return { table };
  } catch (error) {
    if (error instanceof TomlError) {
      // The rest of the message quotes the file, which may hold secrets.
      const what = error.message.split("\n", 1)[0]?.replace(/^Invalid TOML document: /, "");
      return { problem: `${path}:${error.line}:${error.column}: not TOML: ${what}` };
    }
    const code = (error as NodeJS.ErrnoException).code;
    const reasons: Record<string, string> = { ENOENT: "no such file", EISDIR: "it is a directory" };
    const why = reasons[code ?? ""] ?? (error as Error).message;
    return { problem: `${JSON.stringify(path)} cannot be read: ${why}` };
  }
}

/** Copies the document with each `${NAME}` replaced. */
function substitute(
  draft: Draft,
  read: (variable: string) => string | undefined,
  referenced: Set<string>,
): Table {
  const resolve = (text: string, path: Path): string => {
    const missing: string[] = [];
    const result = text.replaceAll(/\$\{([^}]*)\}?/g, (written, name: string) => {
      if (!/^\$\{[a-z_]\w*\}$/i.test(written)) {
        missing.push('"$" and "{" must be followed by the name of an environment variable and "}"');
        return written;
      }
      referenced.add(name);
      const value = read(name);
      if (value === undefined) missing.push(`the environment variable ${name} is not set, or is empty`);
      return value ?? written;
    });
    for (const problem of missing) report(draft, path, problem, { hidden: true });
    if (missing.length > 0) draft.unresolved.add(pathText(path));
    return result;
  };
  const copy = (value: unknown, path: Path): unknown => {
    if (typeof value === "string") return resolve(value, path);
    if (Array.isArray(value)) return value.map((item, index) => copy(item, [...path, index]));
    if (!isTable(value)) return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, copy(item, [...path, key])]));
  };
  return copy(draft.written, []) as Table;
}

function overlayEnvironment(
  draft: Draft,
  env: Environment,
  read: (variable: string) => string | undefined,
  referenced: ReadonlySet<string>,
): void {
  const keys = new Map(
    schemaKeys()
      .filter(hasVariable)
      .map((key) => [variableName(key.path), key]),
  );
  const given = Object.keys(env).filter((name) => name.startsWith("OUTLAST_"));
  for (const variable of given) {
    const value = read(variable);
    if (value === undefined || variable === "OUTLAST_CONFIG" || isServiceLink(variable, value)) continue;
    const key = keys.get(variable);
    const items = value
      .split(",")
      .map((item) => item.trim())
      .filter(Boolean);
    const whole = key && keys.get(variableName(key.path.slice(0, -1)));
    if (whole && read(variableName(whole.path)) !== undefined) {
      draft.problems.push(
        `${variable}: cannot be set beside ${variableName(whole.path)} (from the environment)`,
      );
      continue;
    }
    if (whole && !isTable(valueAt(draft.values, whole.path))) put(draft, whole.path, {}, variable);
    if (key) put(draft, key.path, key.kind === "list" ? items : value, variable);
    else if (variable === "OUTLAST_API_KEYS")
      put(
        draft,
        ["api_keys"],
        items.map((key) => ({ key })),
        variable,
      );
    else if (!referenced.has(variable)) {
      const known = [...keys.keys(), "OUTLAST_API_KEYS", "OUTLAST_CONFIG"];
      // What they all share must not make names look alike.
      const guess = nearest(withoutPrefix(variable), known.map(withoutPrefix));
      const hint = guess
        ? `; did you mean "OUTLAST_${guess}"?`
        : "; config.example.toml lists the keys that there are";
      draft.problems.push(`${variable}: unknown environment variable${hint} (from the environment)`);
    }
  }
}

function withoutPrefix(variable: string): string {
  return variable.slice("OUTLAST_".length);
}

/** Keys in tables that the user names, and in lists of tables, have none. */
function hasVariable(key: SchemaKey): boolean {
  return key.kind !== "table" && !key.path.includes("NAME") && key.path[0] !== "api_keys";
}

/** Kubernetes describes a service called "outlast" to every pod beside it: OUTLAST_PORT=tcp://…, OUTLAST_SERVICE_HOST. */
function isServiceLink(variable: string, value: string): boolean {
  if (/_SERVICE_(HOST|PORT)(_|$)|_PORT_\d+_(TCP|UDP|SCTP)(_|$)/.test(variable)) return true;
  return variable.endsWith("_PORT") && /^(tcp|udp|sctp):\/\//.test(value);
}

function addUpstreams(draft: Draft, read: (variable: string) => string | undefined): void {
  const configured = draft.values.upstreams ?? {};
  if (!isTable(configured)) return;
  const taken = new Set(Object.keys(configured).map((name) => name.toLowerCase()));
  for (const { name, fields, variables } of environmentUpstreams(read)) {
    if (taken.has(name)) continue;
    put(draft, ["upstreams", name], fields, variables.base_url);
    for (const [field, variable] of Object.entries(variables)) {
      draft.origins.set(pathText(["upstreams", name, field]), variable);
    }
    draft.environmentUpstreams.push(name);
  }
}

/** Puts the prices of a list of its own behind those that stand here. It has `[prices]` and nothing else. */
function addPrices(draft: Draft): void {
  const { prices_file: name, prices = {} } = draft.values;
  const isSaid = typeof name === "string" && name.trim() !== "" && !draft.unresolved.has("prices_file");
  if (!isSaid || !isTable(prices)) return;
  // In the file a path begins where that is; a variable's begins where we are.
  const start = draft.origins.has("prices_file") ? "." : dirname(draft.file ?? ".");
  const path = isAbsolute(name) ? name : join(start, name);
  const read = readToml(path);
  if ("problem" in read) return report(draft, ["prices_file"], read.problem, { hidden: true });
  const { prices: listed, ...others } = read.table;
  for (const key of Object.keys(others)) {
    draft.problems.push(`${pathText([key])}: unknown key; allowed here: prices (from ${path})`);
  }
  if (!isTable(listed)) {
    draft.problems.push(`prices: must be a table (from ${path})`);
    return;
  }
  const own = new Set(Object.keys(prices));
  for (const [model, price] of Object.entries(listed)) {
    if (!own.has(model)) put(draft, ["prices", model], price, path);
  }
  draft.pricesFile = path;
}

/** Sets a value in both trees. A table that is no table is left alone, to be refused later. */
function put(draft: Draft, path: readonly string[], value: unknown, from: string): void {
  for (const root of [draft.values, draft.written]) {
    let at: unknown = root;
    for (const key of path.slice(0, -1)) {
      if (isTable(at)) at[key] ??= {};
      at = isTable(at) ? at[key] : undefined;
    }
    if (isTable(at)) at[path.at(-1)!] = value;
  }
  draft.unresolved.delete(pathText(path));
  draft.origins.set(pathText(path), from);
}

function origin(draft: Draft, path: Path): string {
  for (let length = path.length; length > 0; length--) {
    const given = draft.origins.get(pathText(path.slice(0, length)));
    if (given !== undefined) return given;
  }
  const parent = path.length > 1 ? valueAt(draft.written, path.slice(0, -1)) : undefined;
  const present = (valueAt(draft.written, path) ?? parent) !== undefined;
  return present && draft.file !== undefined ? draft.file : "the defaults";
}

function valueAt(root: unknown, path: Path): unknown {
  return path.reduce<unknown>((value, key) => {
    return typeof value === "object" && value !== null
      ? (value as Record<PropertyKey, unknown>)[key]
      : undefined;
  }, root);
}

function show(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value.length > 80 ? `${value.slice(0, 80)}…` : value);
  if (Array.isArray(value)) return "a list";
  if (value instanceof Date) return "a date";
  return isTable(value) ? "a table" : String(value);
}
