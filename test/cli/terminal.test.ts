/** What people see on a terminal, and what is written where none is. */

import { PassThrough } from "node:stream";
import { describe, expect, test } from "vitest";
import { type Column, Terminal } from "../../src/cli/terminal.ts";

function screen(isTTY: boolean, columns = 40, env: Record<string, string> = {}) {
  const stream = () => Object.assign(new PassThrough(), { isTTY, columns });
  const streams = { stdin: stream(), stdout: stream(), stderr: stream() };
  const text = (name: "stdout" | "stderr") => String(streams[name].read() ?? "");
  return { terminal: new Terminal(env, streams), streams, text };
}

const columns: Column[] = [
  { title: "ID", whole: true },
  { title: "COUNT", right: true, whole: true },
  { title: "STATUS", whole: true, colour: (text) => (text === "failed" ? "red" : undefined) },
  { title: "MESSAGE" },
];
const rows = [
  ["req_1", "5", "failed", "a message that is longer than the line"],
  ["req_22", "1,000", "completed", "short"],
];

describe("a table", () => {
  test("is cut to the width of a terminal, and only where that does least harm", () => {
    const { terminal, text } = screen(true, 40, { NO_COLOR: "1" });
    terminal.table(columns, rows);
    expect(text("stdout").split("\n")).toEqual([
      "ID      COUNT  STATUS     MESSAGE",
      "req_1       5  failed     a message tha…",
      "req_22  1,000  completed  short",
      "",
    ]);
  });

  test("is whole where no terminal is, and without colour", () => {
    const { terminal, text } = screen(false);
    terminal.table(columns, rows);
    expect(text("stdout").split("\n")[1]).toBe(
      "req_1       5  failed     a message that is longer than the line",
    );
  });

  test("goes on below the columns of the page before, which only widen", () => {
    const { terminal, text } = screen(false);
    const widths = terminal.table(columns, [["req_1", "5", "failed", "m"]]);
    terminal.table(columns, [["req_333", "6", "failed", "m"]], widths);
    expect(text("stdout").split("\n")).toEqual([
      "ID     COUNT  STATUS  MESSAGE",
      "req_1      5  failed  m",
      "req_333      6  failed  m",
      "",
    ]);
  });

  test("stays aligned with wide letters, and has colour on a terminal", () => {
    const { terminal, text } = screen(true, 80);
    terminal.table(columns, [["日本", "1", "failed", "m"]]);
    expect(text("stdout").split("\n")[1]).toBe("日本      1  \u001b[31mfailed\u001b[0m  m");
  });
});

describe("progress", () => {
  test("is a bar that is drawn over itself on a terminal", () => {
    const { terminal, text } = screen(true);
    const tell = terminal.progress("copy");
    tell(0.5);
    tell(0.5);
    tell(1);
    const [, half, whole] = text("stderr").split("\r");
    expect(half).toBe(`\u001b[Kcopy ${"█".repeat(15)}${"░".repeat(15)}  50 % `);
    expect(whole).toBe(`\u001b[Kcopy ${"█".repeat(30)} 100 % \n`);
  });

  test("is a line for each tenth elsewhere", () => {
    const { terminal, text } = screen(false);
    const tell = terminal.progress("copy");
    for (let i = 0; i <= 100; i++) tell(i / 100, `${i}`);
    const lines = text("stderr").trimEnd().split("\n");
    expect(lines).toHaveLength(11);
    expect(lines.at(-1)).toBe("copy 100 % 100");
  });
});

test.each([
  ["y", true],
  ["YES", true],
  ["", false],
  ["no", false],
])("a question that is answered %j is taken for %s", async (line, taken) => {
  const { terminal, streams } = screen(true);
  const asked = terminal.confirm("Erase 3 requests?");
  streams.stdin.write(`${line}\n`);
  expect(await asked).toBe(taken);
});
