import fc from "fast-check";
import { expect, test } from "vitest";
import { textsOf } from "../../src/store/sqlite/search-texts.ts";

const texts = (endpoint: string, body: string, answer = "{}") =>
  textsOf(endpoint, [
    { kind: "body", seq: 0, bytes: Buffer.from(body), keyId: null },
    { kind: "answer", seq: 0, bytes: Buffer.from(answer), keyId: null },
  ]);

test("a body that is nested too deep to be followed is indexed as far as it goes, and stops nobody", () => {
  const deep = `${"[".repeat(200_000)}${"]".repeat(200_000)}`;
  const body = `{"messages":[{"role":"user","content":"findable"},${deep}]}`;
  expect(texts("chat.completions", body).prompt).toContain("findable");
  expect(texts("unheard.of", deep)).toEqual({ prompt: "", answer: "" });
});

test("there is a text for whatever bytes a body has", () => {
  const body = fc.oneof(fc.json(), fc.string(), fc.string({ unit: "binary" }));
  fc.assert(
    fc.property(
      fc.constantFrom("chat.completions", "embeddings", "x"),
      body,
      body,
      (endpoint, one, other) => {
        const { prompt, answer } = texts(endpoint, one, other);
        expect([typeof prompt, typeof answer]).toEqual(["string", "string"]);
      },
    ),
  );
});
