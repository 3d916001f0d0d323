import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Chunk } from "../../src/core/ports.ts";
import { Splice, type Spliced } from "../../src/core/splice.ts";

interface Choice {
  delta: { content?: string | null; role?: string };
  finish_reason: string | null;
}

function chunk(
  content: string | undefined,
  more: Partial<Chunk> & { finish?: string; role?: string } = {},
): Chunk {
  const { finish, role, ...facts } = more;
  const choice = { index: 0, delta: { role, content }, finish_reason: finish ?? null };
  return {
    data: JSON.stringify({
      id: "chatcmpl-2",
      object: "chat.completion.chunk",
      created: 7,
      choices: [choice],
    }),
    isContent: Boolean(content) || finish !== undefined,
    isEnd: finish !== undefined,
    text: content ?? "",
    chars: content?.length ?? 0,
    ...facts,
  };
}

const role = () => chunk("", { role: "assistant" });
const finish = () => chunk(undefined, { finish: "stop" });
const choiceOf = ({ data }: Chunk): Choice => JSON.parse(data).choices[0];
const contentOf = (one: Chunk): string => choiceOf(one).delta.content ?? "";

/** What came of it, and what callers get after the delivered text or instead of it. */
function run(delivered: string, chunks: Chunk[]): { kind: Spliced["kind"]; chunks: Chunk[]; asked: number } {
  const splice = new Splice(delivered);
  for (const [index, one] of chunks.entries()) {
    const spliced = splice.take(one);
    if (spliced.kind === "comparing") continue;
    return { ...spliced, chunks: [...spliced.chunks, ...chunks.slice(index + 1)], asked: index + 1 };
  }
  const spliced = splice.end();
  return { chunks: [], ...spliced, asked: chunks.length };
}

/** Text with what is awkward in JSON and in UTF-16, lone surrogates too. */
const text = fc.string({
  unit: fc.oneof(
    fc.constantFrom('"', "\\", "\n", "😀", "é", "\u2028", " ", "a", "b"),
    fc.string({ unit: "binary", maxLength: 1 }),
  ),
  maxLength: 40,
});

/** The text in pieces, cut anywhere: inside surrogate pairs too. */
function cut(whole: string, places: number[]): string[] {
  const at = [...new Set(places.map((place) => place % (whole.length + 1)))].sort((a, b) => a - b);
  return [0, ...at].map((start, index) => whole.slice(start, at[index] ?? whole.length)).filter(Boolean);
}

const places = fc.array(fc.nat(1000), { maxLength: 12 });

describe("an answer that was begun anew", () => {
  test("goes on where the delivered text ends, wherever the chunks of either were cut", () => {
    fc.assert(
      fc.property(text, places, places, fc.nat(), fc.boolean(), (whole, first, second, count, withRole) => {
        const before = cut(whole, first);
        const delivered = before.slice(0, count % (before.length + 1)).join("");
        fc.pre(delivered !== "");
        const again = [
          ...(withRole ? [role()] : []),
          ...cut(whole, second).map((piece) => chunk(piece)),
          finish(),
        ];
        const { kind, chunks } = run(delivered, again);
        expect(kind).toBe("joined");
        expect(delivered + chunks.map(contentOf).join("")).toBe(whole);
        expect(delivered + chunks.map((one) => one.text).join("")).toBe(whole);
        expect(choiceOf(chunks.at(-1)!).finish_reason).toBe("stop");
        expect(chunks.every(({ data }) => !/[\r\n]/.test(data))).toBe(true);
      }),
      { numRuns: 1000 },
    );
  });

  test("is another one where its text differs, and then every chunk is there as it came", () => {
    const cases = text.filter((whole) => whole.length > 0);
    fc.assert(
      fc.property(cases, cases, places, fc.nat(), fc.boolean(), (delivered, other, second, at, withRole) => {
        const same = at % delivered.length;
        fc.pre(other[0] !== delivered[same]);
        const changed = delivered.slice(0, same) + other;
        const again = [
          ...(withRole ? [role()] : []),
          ...cut(changed, second).map((piece) => chunk(piece)),
          finish(),
        ];
        const { kind, chunks } = run(delivered, again);
        expect(kind).toBe("diverged");
        expect(chunks).toEqual(again);
      }),
      { numRuns: 1000 },
    );
  });

  test("is another one where it ends before what was delivered, with a reason or without", () => {
    fc.assert(
      fc.property(text.filter(Boolean), places, fc.nat(), fc.boolean(), (delivered, second, at, withEnd) => {
        const shorter = delivered.slice(0, at % delivered.length);
        const again = [...cut(shorter, second).map((piece) => chunk(piece)), ...(withEnd ? [finish()] : [])];
        const { kind, chunks } = run(delivered, again);
        expect(kind).toBe("diverged");
        expect(chunks).toEqual(again);
      }),
    );
  });
});

test("an end before what was delivered is known to be another answer at once, not only when the stream closes", () => {
  const splice = new Splice("Hello");
  expect(splice.take(chunk("Hel")).kind).toBe("comparing");
  expect(splice.take(finish()).kind).toBe("diverged");
});

describe("the chunk that reaches beyond", () => {
  test("keeps every byte but the text that was delivered", () => {
    const data =
      '{"id":"x","created":12345678901234567890,"choices": [ {"delta":{"content":"Hello \\u0077orld","x":1.0},"index":0,"finish_reason":"length"} ],"n":1e2}';
    const came = { ...chunk("Hello world"), data };
    expect(new Splice("Hello").take(came)).toEqual({
      kind: "joined",
      chunks: [{ ...came, data: data.replace('"Hello \\u0077orld"', '" world"'), text: " world", chars: 6 }],
    });
  });

  test("does not tell the role again", () => {
    const { chunks } = run("Hel", [chunk("Hello", { role: "assistant" })]);
    expect(choiceOf(chunks[0]!).delta).toEqual({ content: "lo" });
  });

  test("is left out where nothing of it lies beyond, but not if it ends the answer", () => {
    expect(new Splice("Hello").take(chunk("Hello"))).toEqual({ kind: "joined", chunks: [] });
    const { chunks } = run("Hello", [chunk("Hello", { finish: "stop" })]);
    expect(chunks.map(choiceOf)).toEqual([{ index: 0, delta: { content: "" }, finish_reason: "stop" }]);
    expect(chunks[0]).toMatchObject({ text: "", isContent: true, chars: 0 });
  });

  test("may begin with the second half of a character whose first half was delivered", () => {
    const { kind, chunks } = run("a\ud83d", [chunk("a😀b")]);
    expect(kind).toBe("joined");
    expect(`a\ud83d${contentOf(chunks[0]!)}`).toBe("a😀b");
  });
});

describe("what cannot be compared as text", () => {
  const toolCall = () => chunk(undefined, { isContent: true, text: undefined });

  test("is another answer while it is being compared, with all that came before it", () => {
    const again = [role(), chunk("Hel"), toolCall()];
    const splice = new Splice("Hello");
    expect(again.slice(0, 2).map((one) => splice.take(one).kind)).toEqual(["comparing", "comparing"]);
    expect(splice.take(again[2]!)).toEqual({ kind: "diverged", chunks: again });
  });

  test("matters no more once the delivered text is covered", () => {
    const { kind, chunks, asked } = run("Hello", [role(), chunk("Hello!"), toolCall()]);
    expect({ kind, asked, count: chunks.length }).toEqual({ kind: "joined", asked: 2, count: 2 });
  });
});
