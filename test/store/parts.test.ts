import fc from "fast-check";
import { expect, test } from "vitest";
import type { Part, PartKind } from "../../src/core/ports.ts";
import { type PartRow, partRows, partsIn, rowKinds, sharedRow } from "../../src/store/sqlite/parts.ts";

const kinds: PartKind[] = ["head", "body", "answer_head", "answer", "sent", "received"];
const part = fc.record({
  kind: fc.constantFrom(...kinds),
  seq: fc.integer({ min: 0, max: 2 }),
  bytes: fc.oneof(fc.uint8Array({ maxLength: 200 }), fc.constant(new Uint8Array(64 * 1024))),
});
const parts = fc.uniqueArray(part, { selector: ({ kind, seq }) => `${kind} ${seq}` });

const rowsOf = (rows: PartRow[]) => rows.map(([kind, seq, codec, bytes]) => ({ kind, seq, codec, bytes }));
const plain = (those: Part[]) =>
  those.map(({ kind, seq, bytes }) => `${kind} ${seq} ${Buffer.from(bytes).toString("hex")}`).sort();

test("parts come back from their rows as they were", () => {
  fc.assert(
    fc.property(parts, (those) => {
      expect(plain(partsIn(rowsOf(partRows(those))))).toEqual(plain(those));
    }),
  );
});

test("every part is in a row whose kind is looked for with its own, and no two rows are of one kind and number", () => {
  fc.assert(
    fc.property(parts, (those) => {
      const rows = partRows(those);
      expect(new Set(rows.map(([kind, seq]) => `${kind} ${seq}`)).size).toBe(rows.length);
      for (const one of those) {
        const looked = rows.filter(([kind]) => rowKinds([one.kind]).includes(kind));
        expect(plain(partsIn(rowsOf(looked)))).toEqual(expect.arrayContaining(plain([one])));
      }
    }),
  );
});

test("only a small head shares the row of what it is the head of", () => {
  const bytes = new Uint8Array(100);
  const codecs = (...those: Part[]) => partRows(those).map(([kind, , codec]) => `${kind} ${codec}`);
  expect(codecs({ kind: "head", seq: 0, bytes }, { kind: "body", seq: 0, bytes })).toEqual(["body headed"]);
  const large = new Uint8Array(64 * 1024);
  const apart = ["answer_head identity", "answer identity"];
  expect(codecs({ kind: "answer_head", seq: 0, bytes }, { kind: "answer", seq: 0, bytes: large })).toEqual(
    apart,
  );
  expect(codecs({ kind: "head", seq: 1, bytes }, { kind: "body", seq: 0, bytes })).toHaveLength(2);
  expect(kinds.map(sharedRow)).toEqual(["body", "body", "answer", "answer", undefined, undefined]);
});
