import fc from "fast-check";
import { expect, test } from "vitest";
import {
  beginning,
  cursorAt,
  cursorText,
  isValidCursor,
  parseCursor,
  versionOf,
} from "../../src/core/stream-cursor.ts";

/** A stream as it grows: each version shares so many events with the one before, and has so many in the end. */
const history = fc
  .array(fc.record({ shared: fc.nat(12), more: fc.nat(12) }), { maxLength: 6 })
  .chain((steps) => fc.record({ steps: fc.constant(steps), first: fc.nat(12) }))
  .map(({ steps, first }) => {
    let events = Array.from({ length: first }, (_, i) => `1.${i}`);
    const versions = [events];
    const forks: number[] = [];
    for (const [at, { shared, more }] of steps.entries()) {
      const kept = Math.min(shared, events.length);
      forks.push(kept);
      events = [...events.slice(0, kept), ...Array.from({ length: more }, (_, i) => `${at + 2}.${i}`)];
      versions.push(events);
    }
    return { versions, forks, now: events };
  });

test("what is written is read again", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 999_999_999 }), fc.nat(10 ** 9), (version, after) => {
      expect(parseCursor(cursorText({ version, after }))).toEqual({ version, after });
    }),
  );
});

test("a cursor of the first version is a bare number", () => {
  expect(cursorText({ version: 1, after: 12 })).toBe("12");
  expect(cursorText({ version: 2, after: 12 })).toBe("2-12");
  expect(parseCursor("0")).toEqual(beginning);
  expect(parseCursor("1-12")).toEqual({ version: 1, after: 12 });
});

test.each([
  "",
  " ",
  "-1",
  "1.5",
  "1e3",
  "0x1",
  "a",
  "1-",
  "-",
  "0-1",
  "01-1",
  "1-2-3",
  "1 2",
  "1234567890123456",
])("%j is no cursor", (text) => {
  expect(parseCursor(text)).toBeUndefined();
});

test("a cursor is valid exactly where what was read is what the stream begins with, as far as versions tell", () => {
  fc.assert(
    fc.property(history, fc.nat(7), fc.nat(24), ({ versions, forks, now }, at, length) => {
      const version = 1 + (at % versions.length);
      const read = versions[version - 1]!.slice(0, length);
      const cursor = { version, after: read.length };
      if (isValidCursor(cursor, forks)) expect(now.slice(0, read.length)).toEqual(read);
      else expect(read.length).toBeGreaterThan(Math.min(...forks.slice(version - 1)));
    }),
  );
});

test("a version that there is not yet has no valid cursor", () => {
  expect(isValidCursor({ version: 2, after: 0 }, [])).toBe(false);
  expect(isValidCursor({ version: 2, after: 0 }, [3])).toBe(true);
});

test("the cursor of so many events is valid, and stays so as long as they are what the stream begins with", () => {
  fc.assert(
    fc.property(history, fc.nat(7), fc.nat(24), ({ versions, forks }, at, length) => {
      const upTo = at % versions.length;
      const after = Math.min(length, versions[upTo]!.length);
      const cursor = cursorAt(after, forks.slice(0, upTo));
      expect(cursor.version).toBeLessThanOrEqual(versionOf(forks.slice(0, upTo)));
      expect(isValidCursor(cursor, forks.slice(0, upTo))).toBe(true);
      const isShared = forks.slice(upTo).every((shared) => after <= shared);
      expect(isValidCursor(cursor, forks)).toBe(isShared);
    }),
  );
});

test("a number that was given in one version is given again in the next one for what they share", () => {
  expect(cursorAt(5, [5])).toEqual({ version: 1, after: 5 });
  expect(cursorAt(6, [5])).toEqual({ version: 2, after: 6 });
  expect(cursorAt(6, [5, 6])).toEqual({ version: 2, after: 6 });
  expect(cursorAt(4, [5, 0])).toEqual({ version: 3, after: 4 });
});
