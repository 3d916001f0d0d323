/** The rules of the house, read from docs/architecture.md and applied to src/; and a test of that test. */

import { readdirSync, readFileSync } from "node:fs";
import { join, posix } from "node:path";
import { describe, expect, test } from "vitest";
import { chart, type RequestEvent } from "../src/core/request.ts";

const root = join(import.meta.dirname, "..");
const page = readFileSync(join(root, "docs/architecture.md"), "utf8");

interface Source {
  /** Below src/, with slashes. */
  path: string;
  text: string;
}

interface Rule {
  imports: string[];
  packages: string[];
}

function sources(): Source[] {
  const all = readdirSync(join(root, "src"), { recursive: true, encoding: "utf8" });
  return all
    .filter((path) => path.endsWith(".ts"))
    .map((path) => ({
      path: path.replaceAll("\\", "/"),
      text: readFileSync(join(root, "src", path), "utf8"),
    }));
}

function importTable(): Map<string, Rule> {
  const rows = page.split("| part |")[1]!.split("\n\n")[0]!.split("\n").slice(2);
  const names = (cell: string) =>
    cell
      .split(",")
      .map((name) => name.trim())
      .filter(Boolean);
  const rules = new Map<string, Rule>();
  for (const row of rows) {
    const [, parts, imports, packages] = row.split("|");
    for (const part of names(parts!))
      rules.set(part, { imports: names(imports!), packages: names(packages!) });
  }
  return rules;
}

/** The part of the house that a file belongs to: its folder, or the file itself. */
const partOf = (path: string): string => path.split("/")[0]!;

const withoutComments = (text: string): string =>
  text.replaceAll(/\/\*[\s\S]*?\*\//g, "").replaceAll(/(^|[^:"'`])\/\/.*$/gm, "$1");

function specifiers({ text }: Source): string[] {
  const found = withoutComments(text).matchAll(/(?:\bfrom|\bimport)\s*\(?\s*"([^"]+)"/g);
  return [...found].map(([, specifier]) => specifier!);
}

const resolved = (path: string, specifier: string): string => posix.join(posix.dirname(path), specifier);

const ambient: [pattern: RegExp, allowed: string[], what: string][] = [
  [/\bDate\.now\b|\bnew Date\(\)|\bperformance\.now\b/, ["system.ts"], "reads the clock"],
  [/\bset(Timeout|Interval|Immediate)\b|\bAbortSignal\.timeout\b/, ["system.ts"], "sets a timer"],
  [/\bMath\.random\b|\brandom(UUID|Int|Bytes)\b/, ["system.ts"], "draws a random number"],
  [/\bprocess\.env\b/, ["config.ts"], "reads the environment"],
  [/(?<![.\w])fetch\(/, [], "uses the global fetch"],
  [/\.pragma\(|(?<!keep\((this\.)?db)\.prepare\(/, [], "leaves a statement to the collector (see keep.ts)"],
  [
    /CURRENT_TIMESTAMP|datetime\('now|unixepoch\(|julianday\(|\brandom\(\)/i,
    [],
    "asks SQL for the time or for luck",
  ],
];

function ambientFaults(source: Source): string[] {
  const code = withoutComments(source.text);
  return ambient
    .filter(([pattern, allowed]) => pattern.test(code) && !allowed.includes(source.path))
    .map(([, , what]) => `${source.path} ${what}`);
}

function importFaults(source: Source, rules: Map<string, Rule>): string[] {
  const part = partOf(source.path);
  const rule = rules.get(part);
  if (!rule) return [`${source.path} is in no row of the import table`];
  return specifiers(source).flatMap((specifier) => {
    if (specifier.startsWith(".")) {
      const other = partOf(resolved(source.path, specifier));
      return other === part || rule.imports.includes(other) ? [] : [`${source.path} imports ${other}`];
    }
    const name = specifier.startsWith("node:")
      ? "node"
      : specifier
          .split("/")
          .slice(0, specifier.startsWith("@") ? 2 : 1)
          .join("/");
    return rule.packages.includes(name) ? [] : [`${source.path} imports the package ${name}`];
  });
}

function cycles(files: Source[]): string[] {
  const edges = new Map(
    files.map((file) => [
      file.path,
      specifiers(file)
        .filter((s) => s.startsWith("."))
        .map((s) => resolved(file.path, s)),
    ]),
  );
  const found: string[] = [];
  const done = new Set<string>();
  const visit = (path: string, trail: string[]) => {
    if (trail.includes(path)) found.push([...trail.slice(trail.indexOf(path)), path].join(" → "));
    if (trail.includes(path) || done.has(path)) return;
    for (const next of edges.get(path) ?? []) visit(next, [...trail, path]);
    done.add(path);
  };
  for (const { path } of files) visit(path, []);
  return found;
}

function faults(files: Source[]): string[] {
  const rules = importTable();
  const barrels = files
    .filter(({ path }) => /(^|\/)index\.ts$/.test(path))
    .map(({ path }) => `${path} is a barrel`);
  return [
    ...files.flatMap((file) => [...importFaults(file, rules), ...ambientFaults(file)]),
    ...cycles(files),
    ...barrels,
  ];
}

describe("the house", () => {
  test("keeps its rules", () => {
    const files = sources();
    expect(files.length).toBeGreaterThan(30);
    expect(faults(files)).toEqual([]);
  });

  test("has no row in its import table for a part that does not exist", () => {
    const parts = new Set(sources().map(({ path }) => partOf(path)));
    expect([...importTable().keys()].filter((part) => !parts.has(part))).toEqual([]);
  });

  test.each([
    ["core/retry.ts", 'import { z } from "zod";', "core/retry.ts imports the package zod"],
    ["core/retry.ts", 'import { readFileSync } from "node:fs";', "core/retry.ts imports the package node"],
    [
      "core/retry.ts",
      'import type { Engine } from "../store/sqlite/engine.ts";',
      "core/retry.ts imports store",
    ],
    ["api/app.ts", 'const { Pool } = await import("undici");', "api/app.ts imports the package undici"],
    [
      "store/sqlite/store.ts",
      'export * from "../../outbound/upstream.ts";',
      "store/sqlite/store.ts imports outbound",
    ],
    ["outbound/upstream.ts", "const at = Date.now();", "outbound/upstream.ts reads the clock"],
    ["core/gate.ts", "const at = new Date();", "core/gate.ts reads the clock"],
    ["core/gate.ts", "setTimeout(run, 5);", "core/gate.ts sets a timer"],
    ["core/gate.ts", "const luck = Math.random();", "core/gate.ts draws a random number"],
    ["api/guard.ts", "const key = process.env.KEY;", "api/guard.ts reads the environment"],
    ["outbound/upstream.ts", "await fetch(url);", "outbound/upstream.ts uses the global fetch"],
    [
      "store/sqlite/engine.ts",
      "const sql = `SELECT datetime('now')`;",
      "store/sqlite/engine.ts asks SQL for the time or for luck",
    ],
    [
      "store/sqlite/engine.ts",
      'db.prepare("SELECT 1").get();',
      "store/sqlite/engine.ts leaves a statement to the collector (see keep.ts)",
    ],
    ["core/index.ts", "export {};", "core/index.ts is a barrel"],
    ["plugins/one.ts", "export {};", "plugins/one.ts is in no row of the import table"],
  ])("a fault planted in %s is found: %s", (path, text, fault) => {
    expect(faults([{ path, text }])).toContain(fault);
  });

  test("a planted cycle is found", () => {
    const files = [
      { path: "core/a.ts", text: 'import type { B } from "./b.ts";' },
      { path: "core/b.ts", text: 'import { a } from "./a.ts";' },
    ];
    expect(faults(files)).toEqual(["core/a.ts → core/b.ts → core/a.ts"]);
  });

  test("a mention in a comment is no fault", () => {
    expect(faults([{ path: "core/gate.ts", text: "// not Date.now()\n/** nor Math.random() */\n" }])).toEqual(
      [],
    );
  });
});

test("the state chart of the page is the one of the code", () => {
  const drawn = [...page.matchAll(/^ {2}(\w+) --> (\w+): (\w+)$/gm)].map(
    ([, from, to, event]) => `${from} ${event} ${to}`,
  );
  const built = (Object.keys(chart) as RequestEvent["type"][]).flatMap((event) =>
    chart[event].from.flatMap((from) =>
      // Rerouting moves a request to another lane and leaves its state alone.
      (event === "rerouted" ? [from] : chart[event].to).map((to) => `${from} ${event} ${to}`),
    ),
  );
  expect(drawn.sort()).toEqual(built.sort());
});
