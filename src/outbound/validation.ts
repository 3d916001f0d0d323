/** Measures values by JSON Schemas. These come from callers: none may hold up the process, or reach out of itself. */

import { createContext, Script } from "node:vm";
import {
  Ajv2020,
  type AnySchema,
  type ErrorObject,
  type Options,
  type ValidateFunction,
} from "ajv/dist/2020.js";
import formats from "ajv-formats";

const maxSchemaBytes = 64 * 1024;
const maxDetails = 10;
/** Characters of anything that is told of a schema. */
const maxTold = 200;
const compileMs = 1000;
const measureMs = 200;
/** A schema that has taken too long for so many values is not applied again. */
const maxStalls = 3;
/** What is kept counts as the characters of its schema, and a compiled function is never small. */
const maxKept = 2 * 1024 * 1024;
const leastKept = 8 * 1024;

const tooSlow = "the schema takes too long to apply";
const unread = "it takes too long to read";

interface Compiled {
  validate: ValidateFunction;
  /** Every key in the schema: a key that is not among them is the answer's own. */
  keys: ReadonlySet<string>;
  stalls: number;
}
type Entry = Compiled | { problem: string };

/** Compiled schemas, those used last. */
export class Schemas {
  private readonly kept = new Map<string, Entry>();
  private size = 0;
  private meta: ValidateFunction | undefined;

  /** Why nothing can be measured by this schema; undefined where it can. */
  problem(schema: unknown): string | undefined {
    const entry = this.entry(schema);
    return "problem" in entry ? entry.problem : undefined;
  }

  /** Where the value does not follow the schema: places and rules, never a part of the value. */
  mismatches(schema: unknown, value: unknown): string[] {
    const entry = this.entry(schema);
    if ("problem" in entry) return [`the schema cannot be used: ${entry.problem}`];
    if (entry.stalls >= maxStalls) return [tooSlow];
    // Twice, since the process may have been held up by something else.
    for (let tries = 0; tries < 2; tries++) {
      try {
        return apply(entry, value);
      } catch (error) {
        if (!isTimeout(error)) return ["the schema cannot be applied to this answer"];
      }
    }
    entry.stalls++;
    return [tooSlow];
  }

  private entry(schema: unknown): Entry {
    if (!isSchema(schema)) return { problem: "it is neither an object nor true or false" };
    const text = textOf(schema);
    if (text === undefined) return { problem: "it is nested too deeply" };
    if (Buffer.byteLength(text) > maxSchemaBytes) return { problem: "it is larger than 64 KB" };
    const known = this.kept.get(text);
    this.kept.delete(text);
    const entry = known ?? this.compile(text);
    // Another time there may be more of it.
    if ("problem" in entry && entry.problem === unread) return entry;
    this.kept.set(text, entry);
    if (!known) this.makeRoom(text);
    return entry;
  }

  private makeRoom(added: string): void {
    this.size += weight(added);
    for (const oldest of this.kept.keys()) {
      if (this.size <= maxKept) return;
      this.kept.delete(oldest);
      this.size -= weight(oldest);
    }
  }

  private compile(text: string): Entry {
    this.meta ??= metaSchema();
    const { meta } = this;
    const schema: AnySchema = JSON.parse(text);
    try {
      // Schemas of other drafts are read as what they nearly always are: valid in this one, too.
      if (typeof schema === "object") delete schema.$schema;
      return within(compileMs, () => {
        const isValid: boolean = meta(schema);
        if (!isValid) return { problem: whereItIsWrong(meta.errors ?? []) };
        const validate = instance({ meta: false, validateSchema: false }).compile(schema);
        if ("$async" in validate) return { problem: "$async is no part of JSON Schema" };
        return { validate, keys: keysIn(schema, new Set()), stalls: 0 };
      });
    } catch (error) {
      return { problem: told(error, schema) };
    }
  }
}

function apply({ validate, keys }: Compiled, value: unknown): string[] {
  try {
    if (within(measureMs, () => validate(value))) return [];
    return details(validate.errors ?? [], keys);
  } finally {
    validate.errors = null;
  }
}

/** One of its own for every schema, so that none can refer to another one, or take its name. */
function instance(options: Options): Ajv2020 {
  const ajv = new Ajv2020({
    ...options,
    strict: false,
    allErrors: true,
    inlineRefs: false,
    logger: false,
    code: { regExp },
  });
  formats.default(ajv);
  return ajv;
}

const metaSchema = (): ValidateFunction =>
  instance({}).getSchema("https://json-schema.org/draft/2020-12/schema")!;

/** Escapes that mean nothing are forbidden with the flag "u" only, and schemas are full of them. */
function regExp(pattern: string, flags: string): RegExp {
  try {
    return new RegExp(pattern, flags);
  } catch {
    return new RegExp(pattern);
  }
}
regExp.code = "regExp";

const limited: { run: () => unknown } = { run: () => undefined };
const context = createContext(limited);
const script = new Script("run()");

/**
 * Whatever a schema makes us do, a regular expression that never ends among it, is stopped after so many ms: this is
 * the one way to stop it that needs no thread of its own for the work.
 */
function within<T>(timeout: number, run: () => T): T {
  limited.run = run;
  try {
    return script.runInContext(context, { timeout }) as T;
  } finally {
    limited.run = () => undefined;
  }
}

const isTimeout = (error: unknown): boolean =>
  isObject(error) && error.code === "ERR_SCRIPT_EXECUTION_TIMEOUT";

function told(error: unknown, schema: AnySchema): string {
  if (isTimeout(error)) return unread;
  if (error instanceof RangeError) return "it is nested too deeply";
  if (error instanceof Ajv2020.MissingRefError)
    return `it refers to ${short(error.missingRef)}, which is no part of it`;
  if (error instanceof SyntaxError) {
    const place = placeOfPattern(schema, "");
    if (place !== undefined) return `${short(place)} is no regular expression`;
  }
  return error instanceof Error ? short(error.message) : "it cannot be compiled";
}

/** Where the first pattern stands that is none. */
function placeOfPattern(schema: unknown, place: string): string | undefined {
  if (typeof schema !== "object" || schema === null) return undefined;
  for (const [key, value] of Object.entries(schema)) {
    const patterns =
      key === "pattern" ? [value] : key === "patternProperties" ? Object.keys(value ?? {}) : [];
    if (patterns.some((pattern) => typeof pattern === "string" && !isPattern(pattern)))
      return `${place}/${key}`;
    const found = placeOfPattern(value, `${place}/${key}`);
    if (found !== undefined) return found;
  }
  return undefined;
}

function isPattern(text: string): boolean {
  try {
    regExp(text, "u");
    return true;
  } catch {
    return false;
  }
}

function whereItIsWrong([first]: ErrorObject[]): string {
  return first ? short(`${first.instancePath || "its root"} ${first.message}`) : "it is no JSON Schema";
}

function details(errors: ErrorObject[], keys: ReadonlySet<string>): string[] {
  const found = new Set<string>();
  for (const { instancePath, message } of errors) {
    found.add(`${short(place(instancePath, keys))} ${short(message ?? "is not valid")}`);
    if (found.size === maxDetails) break;
  }
  return [...found];
}

/** A JSON pointer, with `*` for every key that only the value has. */
function place(pointer: string, keys: ReadonlySet<string>): string {
  if (pointer === "") return "the root";
  const parts = pointer.split("/").slice(1);
  const isOurs = (part: string) =>
    /^\d{1,6}$/.test(part) || keys.has(part.replaceAll("~1", "/").replaceAll("~0", "~"));
  return parts.map((part) => `/${isOurs(part) ? part : "*"}`).join("");
}

function keysIn(schema: unknown, found: Set<string>): Set<string> {
  if (typeof schema !== "object" || schema === null) return found;
  for (const [key, value] of Object.entries(schema)) {
    if (!Array.isArray(schema)) found.add(key);
    keysIn(value, found);
  }
  return found;
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const isSchema = (value: unknown): value is object | boolean => typeof value === "boolean" || isObject(value);

function textOf(schema: object | boolean): string | undefined {
  try {
    return JSON.stringify(schema);
  } catch {
    return undefined;
  }
}

const weight = (text: string): number => Math.max(text.length, leastKept);
const short = (text: string): string => (text.length > maxTold ? `${text.slice(0, maxTold)}…` : text);
