/** How what was sent and received lies in a part. */

import fc from "fast-check";
import { expect, test } from "vitest";
import { exchangeOf, exchangePart } from "../../src/core/exchange.ts";

const encoder = new TextEncoder();
const header = fc.tuple(fc.string(), fc.string({ unit: "binary" }));
const head = fc.record(
  { method: fc.string(), url: fc.webUrl(), status: fc.nat(599), headers: fc.array(header) },
  { requiredKeys: ["headers"] },
);

test("what was put into a part is what comes out of it, whatever the bytes", () => {
  fc.assert(
    fc.property(head, fc.uint8Array(), fc.nat(), (head, body, attempt) => {
      const part = exchangePart("sent", attempt, { head, body });
      expect(part).toMatchObject({ kind: "sent", seq: attempt });
      const { head: again, body: bytes } = exchangeOf(part.bytes);
      expect(again).toEqual(head);
      expect([...bytes]).toEqual([...body]);
    }),
  );
});

test("a line of JSON, and behind it the body byte for byte", () => {
  const { bytes } = exchangePart("received", 2, {
    head: { status: 500, headers: [["x-note", "two\nlines"]] },
    body: encoder.encode("a\nb\n"),
  });
  expect(new TextDecoder().decode(bytes)).toBe('{"status":500,"headers":[["x-note","two\\nlines"]]}\na\nb\n');
});

test("what is no such part is said to be none", () => {
  expect(() => exchangeOf(encoder.encode("hello"))).toThrow(SyntaxError);
});
