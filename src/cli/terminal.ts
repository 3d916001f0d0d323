/** What people see: tables, colours, a question, how far something is. */

import { createInterface } from "node:readline/promises";
import type { Environment } from "../config/source.ts";

export type Colour = "red" | "green" | "yellow" | "grey";
const codes: Record<Colour, number> = { red: 31, green: 32, yellow: 33, grey: 90 };

export interface Column {
  title: string;
  /** Numbers stand at the right. */
  right?: boolean;
  /** Is never cut. */
  whole?: boolean;
  colour?: (text: string) => Colour | undefined;
}

/** Those of a process; the properties are those of terminals. */
export type Streams = Record<
  "stdin" | "stdout" | "stderr",
  NodeJS.ReadWriteStream & { isTTY?: boolean; columns?: number }
>;

const gap = "  ";
const narrowest = 6;
const barWidth = 30;

export class Terminal {
  /** Columns that there are; without an end where the output is no terminal. */
  readonly width: number;
  /** Whether somebody is there to answer. */
  readonly isAttended: boolean;
  private readonly hasColour: boolean;
  /** Whoever read the output has gone: `outlast requests list | head`. */
  private isUnread = false;

  private readonly streams: Streams;

  constructor(env: Environment, streams: Streams) {
    const { stdin, stdout, stderr } = streams;
    this.streams = streams;
    this.width = (stdout.isTTY && stdout.columns) || Number.POSITIVE_INFINITY;
    this.isAttended = stdin.isTTY === true && stderr.isTTY === true;
    this.hasColour = stdout.isTTY === true && !env.NO_COLOR && env.TERM !== "dumb";
    stdout.on("error", () => {
      this.isUnread = true;
    });
    // What cannot be told must not stop what is being done.
    stderr.on("error", () => {});
  }

  /** Ends a command that does nothing else, where nobody reads any more. */
  print(text: string): void {
    if (this.isUnread) process.exit(0);
    this.report(text);
  }

  /** Prints what a command has done or found, which goes on in any case: somebody may wait for its exit code. */
  report(text: string): void {
    // JSON leaves them as they are, and there an escape means the same.
    this.streams.stdout.write(`${text.replaceAll(/[\u007f-\u009f]/g, escaped)}\n`);
  }

  /** To people only: what programs read goes elsewhere. */
  note(text: string): void {
    this.streams.stderr.write(`${text}\n`);
  }

  paint(colour: Colour | undefined, text: string): string {
    return colour && this.hasColour ? `\x1b[${codes[colour]}m${text}\x1b[0m` : text;
  }

  /**
   * Prints rows below their titles, cut to the width that there is; or below those of before.
   * @returns the widths of the columns, for rows that go on
   */
  table(columns: Column[], rows: string[][], before?: number[]): number[] {
    const clean = rows.map((row) => row.map(visible));
    const widths = columns.map(({ title }, i) =>
      clean.reduce((most, row) => Math.max(most, widthOf(row[i]!)), before?.[i] ?? widthOf(title)),
    );
    this.squeeze(columns, widths);
    const print = (cells: string[], colour: (i: number) => Colour | undefined) => {
      const sized = (cell: string, i: number) => fitted(cell, widths[i]!, columns[i]!.right === true);
      this.print(
        cells
          .map((cell, i) => this.paint(colour(i), sized(cell, i)))
          .join(gap)
          .trimEnd(),
      );
    };
    if (!before) {
      print(
        columns.map(({ title }) => title),
        () => "grey",
      );
    }
    for (const row of clean) print(row, (i) => columns[i]!.colour?.(row[i]!));
    return widths;
  }

  /** Takes from the widest column that may be cut until the line fits, or nothing is left to take. */
  private squeeze(columns: Column[], widths: number[]): void {
    const total = () => widths.reduce((sum, width) => sum + width, gap.length * (widths.length - 1));
    while (total() > this.width) {
      const cuttable = widths.map((width, i) => (columns[i]!.whole || width <= narrowest ? 0 : width));
      const widest = Math.max(...cuttable);
      if (widest === 0) return;
      widths[cuttable.indexOf(widest)]!--;
    }
  }

  async confirm(question: string): Promise<boolean> {
    const { stdin: input, stderr: output } = this.streams;
    const lines = createInterface({ input, output });
    try {
      return /^y(es)?$/i.test((await lines.question(`${question} [y/N] `)).trim());
    } finally {
      lines.close();
    }
  }

  /** Shows how far something is: a bar on a terminal, else a line for each tenth. */
  progress(what: string): (share: number, detail?: string) => void {
    let shown = -1;
    return (share, detail = "") => {
      const isBar = this.streams.stderr.isTTY === true;
      const step = Math.floor(share * (isBar ? 1000 : 10));
      if (step === shown) return;
      shown = step;
      const percent = `${Math.floor(share * 100)} %`.padStart(5);
      if (!isBar) return this.note(`${what} ${percent.trim()} ${detail}`.trimEnd());
      const full = Math.round(share * barWidth);
      const bar = "█".repeat(full) + "░".repeat(barWidth - full);
      this.streams.stderr.write(`\r\x1b[K${what} ${bar} ${percent} ${detail}${share >= 1 ? "\n" : ""}`);
    };
  }
}

const escaped = (control: string): string => `\\u${control.charCodeAt(0).toString(16).padStart(4, "0")}`;

/** Text of others must not move the cursor or ring the bell. */
export const visible = (text: string): string =>
  text.replaceAll(/[\p{Cc}\p{Cf}\u2028\u2029]+/gu, " ").trimEnd();

/** The same over several lines. */
export const visibleLines = (text: string): string => text.split("\n").map(visible).join("\n");

const wide = /[\p{Script=Han}\p{Script=Hangul}\p{Script=Hiragana}\p{Script=Katakana}\p{Emoji_Presentation}]/u;
const widthOf = (text: string): number => [...text].reduce((sum, one) => sum + (wide.test(one) ? 2 : 1), 0);

function fitted(text: string, width: number, right: boolean): string {
  const padding = width - widthOf(text);
  if (padding >= 0) return right ? " ".repeat(padding) + text : text + " ".repeat(padding);
  let cut = "";
  for (const one of text) {
    if (widthOf(cut + one) >= width) break;
    cut += one;
  }
  return `${cut}…`.padEnd(width);
}
