import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { split } from "../../src/core/embeddings.ts";
import type { CacheStore, Outcome, Vector } from "../../src/core/ports.ts";
import { Recall } from "../../src/core/vectors.ts";

const now = 1_700_000_000_000;
const ttlMs = 60_000;
const place = { project: "acme", lane: "a/m" };
const encode = (text: string) => new TextEncoder().encode(text);
const decode = (bytes: Uint8Array) => new TextDecoder().decode(bytes);

/** What is known, by hash; it notes what it was asked. */
class Known implements CacheStore {
  readonly asked: { project: string; hashes: string[]; createdAfter: number }[] = [];
  readonly byHash: Record<string, string>;

  constructor(byHash: Record<string, string> = {}) {
    this.byHash = byHash;
  }

  newest = async () => undefined;

  async vectors(project: string, hashes: string[], createdAfter: number): Promise<Vector[]> {
    this.asked.push({ project, hashes, createdAfter });
    // In an order that is nobody's.
    return hashes
      .filter((hash) => this.byHash[hash] !== undefined)
      .reverse()
      .map((hash) => ({ project, hash, bytes: encode(this.byHash[hash]!), createdAt: now }));
  }
}

const recallOf = (hashes: string[], known: Record<string, string> = {}) =>
  Recall.of(new Known(known), place, { hashes, ttlMs }, now);
const bodyOf = (inputs: string[]) => JSON.stringify({ model: "m", input: inputs, dimensions: 2 });
const itemsOf = (vectors: string[]) =>
  vectors.map((vector, index) => `{"object":"embedding","index":${index},"embedding":${vector}}`);
const answerOf = (vectors: string[]) =>
  `{"object":"list","data":[${itemsOf(vectors).join(",")}],"model":"m-1","usage":{"prompt_tokens":5,"total_tokens":5}}`;
const outcomeOf = (body: string, some: Partial<Extract<Outcome, { kind: "response" }>> = {}): Outcome => ({
  kind: "response",
  status: 200,
  headers: [],
  body: encode(body),
  facts: { wellFormed: true },
  firstByteAt: now,
  ...some,
});
const textOf = (outcome: Outcome) => {
  if (outcome.kind !== "response") throw new Error("no answer");
  return decode(outcome.body);
};
const vectorsOf = (outcome: Outcome, inputs: number) => split(textOf(outcome), inputs);

describe("what is known of a call's inputs", () => {
  test("is asked for once for each, and as long as it is young enough", async () => {
    const known = new Known();
    await Recall.of(known, place, { hashes: ["a", "b", "a"], ttlMs }, now);
    expect(known.asked).toEqual([
      { project: expect.stringContaining("acme"), hashes: ["a", "b"], createdAfter: now - ttlMs },
    ]);
  });

  test("is what was learned for that project in that lane", async () => {
    const places = [
      place,
      { ...place, lane: "b/m" },
      { ...place, lane: "a/n" },
      { ...place, project: "other" },
    ];
    const scopes = places.map(async (one) => {
      const known = new Known();
      const recall = await Recall.of(known, one, { hashes: ["a"], ttlMs }, now);
      recall.wholeOf(outcomeOf(answerOf(["[1]"])));
      const [learned] = recall.learned(one, now);
      expect(learned!.project).toBe(known.asked[0]!.project);
      return learned!.project;
    });
    expect(new Set(await Promise.all(scopes)).size).toBe(places.length);
  });

  test("is not asked of the upstream", async () => {
    const recall = await recallOf(["a", "b", "c"], { b: "[2]" });
    expect(recall.isWhole).toBe(false);
    expect(JSON.parse(decode(recall.bodyOf(encode(bodyOf(["A", "B", "C"])))))).toEqual({
      model: "m",
      input: ["A", "C"],
      dimensions: 2,
    });
  });

  test("leaves the call as it came, byte for byte, where it is nothing", async () => {
    const recall = await recallOf(["a", "b"]);
    const body = encode('{ "input" : ["A", "B"] }');
    expect(recall.bodyOf(body)).toBe(body);
    const outcome = outcomeOf(answerOf(["[1]", "[2]"]));
    expect(recall.wholeOf(outcome)).toBe(outcome);
  });
});

describe("the answer to a call of which something is known", () => {
  test("has the vectors of all inputs in their order, and is the upstream's otherwise", async () => {
    const recall = await recallOf(["a", "b", "c"], { b: "[2.50]" });
    const whole = recall.wholeOf(outcomeOf(answerOf(["[1e-3]", '"AAAA"'])));
    expect(vectorsOf(whole, 3)).toEqual(["[1e-3]", "[2.50]", '"AAAA"']);
    const { model, usage, object } = JSON.parse(textOf(whole));
    expect({ model, usage, object }).toEqual({
      object: "list",
      model: "m-1",
      usage: { prompt_tokens: 5, total_tokens: 5 },
    });
  });

  test("is learned from what the call has brought, not from what was known", async () => {
    const recall = await recallOf(["a", "b", "c"], { b: "[2]" });
    recall.wholeOf(outcomeOf(answerOf(["[1]", "[3]"])));
    const learned = recall.learned(place, now + 5);
    expect(learned.map(({ hash, bytes, createdAt }) => [hash, decode(bytes), createdAt])).toEqual([
      ["a", "[1]", now + 5],
      ["c", "[3]", now + 5],
    ]);
  });

  test.each<[string, string]>([
    ["too few vectors", answerOf(["[1]"])],
    ["too many vectors", answerOf(["[1]", "[2]", "[3]"])],
    ["no list of vectors", '{"object":"list"}'],
    ["no JSON", "oops"],
  ])("is the upstream's mistake where it has %s, and nothing is learned", async (_, body) => {
    const recall = await recallOf(["a", "b", "c"], { b: "[2]" });
    expect(recall.wholeOf(outcomeOf(body))).toMatchObject({ facts: { wellFormed: false } });
    expect(recall.learned(place, now)).toEqual([]);
  });

  test("is left alone where it is none, and nothing is learned", async () => {
    const recall = await recallOf(["a", "b"], { b: "[2]" });
    const outcomes: Outcome[] = [
      { kind: "network_error", code: "ECONNRESET", sent: true },
      { kind: "timeout", phase: "attempt" },
      outcomeOf("{}", { status: 500 }),
      outcomeOf(answerOf(["[1]"]), { facts: { wellFormed: true, error: { message: "no" } } }),
    ];
    for (const outcome of outcomes) expect(recall.wholeOf(outcome)).toBe(outcome);
    expect(recall.learned(place, now)).toEqual([]);
  });
});

describe("where everything is known", () => {
  const known = { a: "[1.0]", b: '"BBBB"' };

  test("the answer is there without a call", async () => {
    const recall = await recallOf(["b", "a", "b"], known);
    expect(recall.isWhole).toBe(true);
    const [head, answer] = recall.answer("m");
    expect(head).toMatchObject({ kind: "answer_head", seq: 0 });
    expect(JSON.parse(decode(head!.bytes))).toMatchObject({ status: 200 });
    expect(answer).toMatchObject({ kind: "answer", seq: 0 });
    expect(split(decode(answer!.bytes), 3)).toEqual(['"BBBB"', "[1.0]", '"BBBB"']);
    expect(JSON.parse(decode(answer!.bytes))).toMatchObject({
      object: "list",
      model: "m",
      usage: { prompt_tokens: 0, total_tokens: 0 },
    });
  });

  test("a call that is made all the same asks for all of it, and what it brings is learned", async () => {
    const recall = await recallOf(["a", "b"], known);
    const body = encode(bodyOf(["A", "B"]));
    expect(recall.bodyOf(body)).toBe(body);
    const outcome = outcomeOf(answerOf(["[7]", "[8]"]));
    expect(recall.wholeOf(outcome)).toBe(outcome);
    expect(recall.learned(place, now).map(({ hash, bytes }) => [hash, decode(bytes)])).toEqual([
      ["a", "[7]"],
      ["b", "[8]"],
    ]);
  });
});

it("gives every input its own vector, whatever is known, and learns what lets the next call go unasked", async () => {
  const names = ["a", "b", "c", "d", "e"];
  const calls = fc.array(fc.constantFrom(...names), { minLength: 1, maxLength: 8 });
  const vectorFor = (name: string) => `[${names.indexOf(name)}.50,1e-9]`;
  await fc.assert(
    fc.asyncProperty(calls, fc.subarray(names), async (inputs, knownNames) => {
      const known = Object.fromEntries(knownNames.map((name) => [name, vectorFor(name)]));
      const recall = await recallOf(inputs, known);
      expect(recall.isWhole).toBe(inputs.every((name) => knownNames.includes(name)));
      const { input: asked } = JSON.parse(decode(recall.bodyOf(encode(bodyOf(inputs)))));
      if (!recall.isWhole) {
        expect(asked).toEqual(inputs.filter((name) => !knownNames.includes(name)));
      }
      const whole = recall.wholeOf(outcomeOf(answerOf(asked.map(vectorFor))));
      expect(vectorsOf(whole, inputs.length)).toEqual(inputs.map(vectorFor));
      const learned = recall.learned(place, now).map(({ hash, bytes }) => [hash, decode(bytes)]);
      const next = await recallOf(inputs, { ...known, ...Object.fromEntries(learned) });
      expect(next.isWhole).toBe(true);
      expect(split(decode(next.answer("m")[1]!.bytes), inputs.length)).toEqual(inputs.map(vectorFor));
    }),
  );
});
