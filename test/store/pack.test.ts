import fc from "fast-check";
import { expect, test } from "vitest";
import type { Part, PartKind } from "../../src/core/ports.ts";
import { packed, unpacked } from "../../src/store/sqlite/pack.ts";

const kinds: PartKind[] = ["head", "body", "answer_head", "answer", "sent", "received"];
const part = fc.record({
  kind: fc.constantFrom(...kinds),
  seq: fc.integer({ min: 0, max: 2 ** 32 - 1 }),
  bytes: fc.oneof(
    fc.uint8Array({ maxLength: 2000 }),
    fc.string().map((text) => Buffer.from(text)),
  ),
});

test("parts come back from a pack as they were, in their order", () => {
  fc.assert(
    fc.property(fc.array(part, { maxLength: 8 }), (parts) => {
      const plain = (those: Part[]) => those.map((one) => ({ ...one, bytes: [...one.bytes] }));
      expect(plain(unpacked(packed(parts)))).toEqual(plain(parts));
    }),
  );
});

test("a pack that was made by an earlier version can be read: the words never change", () => {
  const made = "636680021d0606064610c39981818105264c42698796144df27124468c14e55e7478cfe1f9a94ab5b1b500";
  const parts = unpacked(Buffer.from(made, "hex"));
  expect(parts.map(({ kind, seq, bytes }) => [kind, seq, Buffer.from(bytes).toString()])).toEqual([
    ["head", 0, '{"method":"POST","path":"/chat/completions"}'],
    ["body", 0, '{"model":"gpt-4o","messages":[{"role":"user","content":"Grüße"}]}'],
    ["sent", 3, ""],
  ]);
});
