import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { Assembly, readChunk } from "../../src/core/chunk.ts";
import { Stencil } from "../../src/core/stencil.ts";

type Json = Record<string, unknown>;

const head = { id: "chatcmpl-1", object: "chat.completion.chunk", created: 1_700_000_000, model: "m" };
const chunkOf = (delta: Json, more: Json = {}, choice: Json = {}): Json => ({
  ...head,
  choices: [{ index: 0, delta, finish_reason: null, ...choice }],
  ...more,
});
const textChunk = (content: string, more: Json = {}): string => JSON.stringify(chunkOf({ content }, more));

/** What is known of each chunk, and what they are together: every one parsed, or only those that have to be. */
function readAll(lines: string[], withStencil: boolean) {
  const assembly = new Assembly();
  let stencil: Stencil | undefined;
  let parsed = 0;
  const said = lines.map((line) => {
    const text = withStencil ? stencil?.textOf(line) : undefined;
    if (text !== undefined && assembly.append(text))
      return { isContent: true, isEnd: false, text, chars: text.length, usage: stencil!.hasNullUsage };
    const read = readChunk(line)!;
    parsed++;
    assembly.add(read.json);
    stencil = Stencil.of(read);
    const { isContent, isEnd, chars, json } = read;
    return { isContent, isEnd, text: read.text, chars, usage: json.usage === null };
  });
  return { said, parsed, finished: assembly.finished, completion: assembly.completion() };
}

const parsedOf = (...lines: string[]): number => readAll(lines, true).parsed;

describe("a stencil", () => {
  it("reads the chunks that follow the first text of an answer without parsing them", () => {
    const lines = ["Hel", "lo", ", wör", "ld 🌍", "."].map((text) => textChunk(text));
    const { said, parsed, completion } = readAll(
      [JSON.stringify(chunkOf({ role: "assistant" })), ...lines],
      true,
    );
    expect(parsed).toBe(2);
    expect(said.map(({ text }) => text).join("")).toBe("Hello, wörld 🌍.");
    expect(JSON.parse(completion).choices[0].message.content).toBe("Hello, wörld 🌍.");
  });

  it("does so where there is white space, usage that is null, or padding that differs", () => {
    const spaced = (text: string) => textChunk(text).replaceAll('":', '": ').replaceAll(',"', ', "');
    expect(parsedOf(spaced("a"), spaced("b"), spaced("c"))).toBe(1);
    expect(parsedOf(...["a", "b", "c"].map((text) => textChunk(text, { usage: null })))).toBe(1);
    const padded = (text: string, padding: string) => textChunk(text, { obfuscation: padding });
    expect(parsedOf(padded("a", "x8"), padded("bc", ""), padded("d", "longer"))).toBe(1);
  });

  test.each<[string, string]>([
    ["an escape", textChunk('"')],
    ["no text", textChunk("")],
    ["an end", JSON.stringify(chunkOf({}, {}, { finish_reason: "stop" }))],
    ["another id", textChunk("b", { id: "chatcmpl-2" })],
    ["a member more", textChunk("b", { error: { message: "no" } })],
    ["less than a chunk", textChunk("b").slice(0, -1)],
    ["more than a chunk", `${textChunk("b")}}`],
    ["a control character, which JSON does not allow", textChunk("b\u0000").replace("\\u0000", "\u0000")],
    ["a string that goes on", textChunk("b").replace('"b"', '"b","c":"d"')],
  ])("does not take %s for a text", (_, line) => {
    expect(Stencil.of(readChunk(textChunk("a"))!)!.textOf(line)).toBeUndefined();
  });

  test.each<[string, Json]>([
    [
      "a second choice",
      { ...head, choices: [chunkOf({ content: "a" }), chunkOf({ content: "b" })].map(choiceIn) },
    ],
    ["another choice than the first", chunkOf({ content: "a" }, {}, { index: 1 })],
    ["a call of a tool", chunkOf({ content: "a", tool_calls: [{ index: 0, id: "x" }] })],
    ["probabilities", chunkOf({ content: "a" }, {}, { logprobs: { content: [] } })],
    ["its text twice", chunkOf({ content: "a" }, { content: "a" })],
    ["a text in parts", chunkOf({ content: [{ type: "text", text: "a" }] })],
    ["an end", chunkOf({ content: "a" }, {}, { finish_reason: "stop" })],
    ["a padding within what it says", chunkOf({ content: "a", obfuscation: "b" })],
  ])("is not made of a chunk that has %s", (_, chunk) => {
    expect(Stencil.of(readChunk(JSON.stringify(chunk))!)).toBeUndefined();
  });

  it("takes no other string for padding than the chunk's own", () => {
    const line = (said: string) =>
      JSON.stringify({ obfuscation: "x", ...chunkOf({ content: "a", obfuscation: said }) });
    expect(Stencil.of(readChunk(line(""))!)!.textOf(line("zz"))).toBeUndefined();
  });

  it("says of any chunks what parsing says", () => {
    const piece = fc.oneof(
      fc.string({ unit: "grapheme", maxLength: 20 }),
      fc.constantFrom("", "a", '"', "\\", "content"),
    );
    const more = fc.record(
      {
        usage: fc.constantFrom(null, { total_tokens: 3 }),
        obfuscation: fc.string({ maxLength: 5 }),
        content: piece,
        id: fc.constantFrom("chatcmpl-1", "chatcmpl-2"),
        x: fc.jsonValue({ maxDepth: 1 }),
      },
      { requiredKeys: [] },
    );
    const delta = fc.record(
      {
        role: fc.constant("assistant"),
        content: piece,
        refusal: fc.constantFrom(null, "", "no"),
        reasoning: piece,
      },
      { requiredKeys: [] },
    );
    const choice = fc.record(
      {
        index: fc.constantFrom(0, 1),
        finish_reason: fc.constantFrom(null, "stop"),
        filter: fc.constantFrom({}, { a: 1 }),
      },
      { requiredKeys: [] },
    );
    const odd = fc.tuple(delta, more, choice).map((parts) => chunkOf(...parts));
    const usual = fc.tuple(
      piece,
      fc.constantFrom({}, { usage: null }, { obfuscation: "ab" }, { obfuscation: "c" }),
    );
    const chunk = fc.oneof(
      { weight: 4, arbitrary: usual.map(([content, rest]) => chunkOf({ content }, rest)) },
      { weight: 1, arbitrary: odd },
    );
    const indent = fc.constantFrom(undefined, 1);
    fc.assert(
      fc.property(fc.array(chunk, { maxLength: 150 }), indent, (chunks, space) => {
        const lines = chunks.map((one) => JSON.stringify(one, null, space));
        const { parsed: _, ...whole } = readAll(lines, false);
        expect(readAll(lines, true)).toMatchObject(whole);
      }),
    );
  });
});

function choiceIn(chunk: Json): unknown {
  return (chunk.choices as unknown[])[0];
}
