import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { formatDuration, parseDuration } from "../../src/core/duration.ts";

describe("reading a length of time", () => {
  test.each<[string | number, number]>([
    [0, 0],
    [1, 1000],
    [0.25, 250],
    [0.0004, 0],
    ["0", 0],
    ["30", 30_000],
    ["250ms", 250],
    ["10s", 10_000],
    ["1.5s", 1500],
    ["5m", 300_000],
    ["24h", 86_400_000],
    ["7d", 604_800_000],
    ["0.5h", 1_800_000],
    [" 10 s ", 10_000],
    ["1.0005s", 1001],
  ])("%j is %d ms", (text, ms) => {
    expect(parseDuration(text)).toBe(ms);
  });

  test.each<string | number>([
    "",
    " ",
    "s",
    "-1",
    "-1s",
    "+1s",
    "1e3",
    "1.s",
    ".5s",
    "1,5s",
    "10S",
    "10  s",
    "1h30m",
    "1w",
    "soon",
    "Infinity",
    "NaN",
    "0x10",
    "9".repeat(400),
    -1,
    Number.NaN,
    Number.POSITIVE_INFINITY,
    1e300,
  ])("%j is none", (text) => {
    expect(parseDuration(text)).toBeUndefined();
  });

  it("gives whole milliseconds or nothing, whatever the text", () => {
    const noise = fc.string({ unit: fc.constantFrom(..."0123456789. msmhd-") });
    fc.assert(
      fc.property(fc.oneof(fc.string(), noise, fc.double()), (text) => {
        const ms = parseDuration(text) ?? 0;
        expect(Number.isSafeInteger(ms) && ms >= 0).toBe(true);
      }),
      { numRuns: 1000 },
    );
  });
});

describe("writing a length of time", () => {
  test.each<[number, string]>([
    [0, "0s"],
    [1, "1ms"],
    [999, "999ms"],
    [1000, "1s"],
    [1500, "1500ms"],
    [280_000, "280s"],
    [600_000, "10m"],
    [86_400_000, "1d"],
    [90_000_000, "25h"],
  ])("%d ms is %s", (ms, text) => {
    expect(formatDuration(ms)).toBe(text);
  });

  it("is read back as the same length", () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), (ms) => {
        expect(parseDuration(formatDuration(ms))).toBe(ms);
      }),
    );
  });
});
