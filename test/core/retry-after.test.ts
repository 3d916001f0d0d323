import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { retryAfterMs } from "../../src/core/retry-after.ts";

const dayMs = 86_400_000;
const now = Date.UTC(2026, 6, 29, 12, 0, 0);

const asked = (headers: Record<string, string>, at = now) => retryAfterMs((name) => headers[name], at);
const retryAfter = (value: string, at = now) => asked({ "retry-after": value }, at);

describe("milliseconds", () => {
  test.each<[string, number]>([
    ["0", 0],
    ["1", 1],
    ["250", 250],
    ["12.000", 12],
    ["12.0001", 13],
    [" 40\t", 40],
    ["007", 7],
  ])("%s is %d ms", (value, expected) => {
    expect(asked({ "retry-after-ms": value })).toBe(expected);
    expect(asked({ "x-ms-retry-after-ms": value })).toBe(expected);
  });
});

describe("seconds", () => {
  test.each<[string, number]>([
    ["0", 0],
    ["1", 1000],
    ["0.5", 500],
    ["1.001", 1001],
    ["8.2", 8200],
    ["4.35", 4350],
    ["0.0001", 1],
    ["2.0000000000000000000001", 2001],
    ["86400", dayMs],
    ["2592000", 30 * dayMs],
    ["2592001", 30 * dayMs],
    ["9".repeat(400), 30 * dayMs],
  ])("%s is %d ms", (value, expected) => {
    expect(retryAfter(value)).toBe(expected);
  });

  it("is never shorter than told, and by less than a millisecond longer", () => {
    const digits = fc.string({ unit: fc.constantFrom(..."0123456789"), minLength: 1, maxLength: 6 });
    fc.assert(
      fc.property(digits, digits, (whole, fraction) => {
        const wait = BigInt(retryAfter(`${whole}.${fraction}`)!) * 1000n;
        const told = BigInt(whole + fraction.padEnd(6, "0"));
        expect(wait >= told || wait === BigInt(30 * dayMs) * 1000n).toBe(true);
        expect(wait < told + 1000n).toBe(true);
      }),
    );
  });
});

describe("dates", () => {
  test.each<[string, string, number]>([
    ["an IMF-fixdate", "Wed, 29 Jul 2026 12:00:30 GMT", 30_000],
    ["an RFC 850 date", "Wednesday, 29-Jul-26 12:00:30 GMT", 30_000],
    ["an asctime date", "Wed Jul 29 12:00:30 2026", 30_000],
    ["an asctime date with one digit for the day", "Sat Aug  1 12:00:00 2026", 3 * dayMs],
    ["white space around the date", " Wed, 29 Jul 2026 12:00:30 GMT ", 30_000],
    ["now", "Wed, 29 Jul 2026 12:00:00 GMT", 0],
    ["the past", "Sun, 06 Nov 1994 08:49:37 GMT", 0],
    ["the past in RFC 850's format", "Sunday, 06-Nov-94 08:49:37 GMT", 0],
    ["the past in asctime's format", "Sun Nov  6 08:49:37 1994", 0],
    ["the first century", "Mon, 01 Jan 0094 00:00:00 GMT", 0],
    ["a weekday that does not fit", "Mon, 29 Jul 2026 12:00:30 GMT", 30_000],
    ["a leap second", "Wed, 29 Jul 2026 12:00:60 GMT", 60_000],
    ["a far future", "Fri, 31 Dec 9999 23:59:59 GMT", 30 * dayMs],
  ])("%s", (_, value, expected) => {
    expect(retryAfter(value)).toBe(expected);
  });

  it("takes two digits for the year that is at most 50 years ahead", () => {
    expect(retryAfter("Saturday, 01-Jan-00 00:00:01 GMT", Date.UTC(1999, 11, 31, 23, 59, 59))).toBe(2000);
    expect(retryAfter("Friday, 31-Dec-99 23:59:59 GMT", Date.UTC(2000, 0, 1))).toBe(0);
    expect(retryAfter("Tuesday, 29-Jul-75 12:00:00 GMT")).toBe(30 * dayMs);
    expect(retryAfter("Tuesday, 29-Jul-77 12:00:00 GMT")).toBe(0);
    expect(retryAfter("Tuesday, 29-Feb-00 00:00:00 GMT", Date.UTC(2000, 1, 28))).toBe(dayMs);
  });

  it("rounds up from an instant between milliseconds", () => {
    expect(retryAfter("Wed, 29 Jul 2026 12:00:30 GMT", now + 0.5)).toBe(30_000);
  });

  it("reads back what toUTCString writes", () => {
    const second = fc.integer({ min: -5_000_000_000, max: 30 * 86_400 });
    fc.assert(
      fc.property(second, fc.nat(999), (seconds, ms) => {
        const date = new Date(now + seconds * 1000);
        const expected = Math.max(0, date.getTime() - now - ms);
        expect(retryAfter(date.toUTCString(), now + ms)).toBe(expected);
      }),
    );
  });
});

describe("which header counts", () => {
  it("is the most exact one", () => {
    const all = { "retry-after-ms": "100", "x-ms-retry-after-ms": "200", "retry-after": "1" };
    expect(asked(all)).toBe(100);
    expect(asked({ ...all, "retry-after-ms": "" })).toBe(200);
    expect(asked({ ...all, "retry-after-ms": "-5", "x-ms-retry-after-ms": "NaN" })).toBe(1000);
  });

  it("is none where there is none", () => {
    expect(asked({})).toBeUndefined();
  });

  test.each([
    "",
    " ",
    "-1",
    "+1",
    "NaN",
    "Infinity",
    "1e3",
    "0x10",
    "1,5",
    "5 apples",
    "5s",
    ".",
    "1.",
    ".5",
    "1 2",
    "soon",
    "2026-07-29T12:00:30Z",
    "29 Jul 2026 12:00:30 GMT",
    "Wed, 29 Jul 2026 12:00:30",
    "Wed, 29 Jul 2026 12:00:30 UTC",
    "Wed, 29 Jul 2026 12:00:30 +0000",
    "wed, 29 jul 2026 12:00:30 gmt",
    "Wed, 29 Jul 2026 24:00:00 GMT",
    "Wed, 29 Jul 2026 12:60:00 GMT",
    "Wed, 00 Jul 2026 12:00:00 GMT",
    "Mon, 30 Feb 2026 12:00:00 GMT",
    "Thu, 29 Feb 2100 12:00:00 GMT",
    "Wed, 9 Jul 2026 12:00:30 GMT",
    "Wed Jul 29 12:00:30 2026 GMT",
  ])("is not one that says %j", (value) => {
    expect(retryAfter(value)).toBeUndefined();
    expect(asked({ "retry-after-ms": value, "x-ms-retry-after-ms": value, "retry-after": "2" })).toBe(2000);
  });

  it("gives for any text nothing or a whole number of at most 30 days", () => {
    const noise = fc.string({ unit: fc.constantFrom(..."0123456789.-+eE ,:NaInfGMTWed") });
    fc.assert(
      fc.property(fc.oneof(fc.string(), noise), fc.integer({ min: 0, max: 4e12 }), (value, at) => {
        const wait = retryAfter(value, at) ?? 0;
        expect(Number.isInteger(wait) && wait >= 0 && wait <= 30 * dayMs).toBe(true);
      }),
      { numRuns: 1000 },
    );
  });
});
