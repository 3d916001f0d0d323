import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { cutInputs, hashInputs, join, readInputs, split } from "../../src/core/embeddings.ts";

const asIs = (text: string) => text;

describe("reading the inputs of a call", () => {
  test.each([
    ['{"model":"m","input":"a b"}', ['"a b"']],
    ['{"input":["a","","a"],"model":"m"}', ['"a"', '""', '"a"']],
    ['{"input":[ "a ]," , "\\"[,\\\\" ]}', ['"a ],"', '"\\"[,\\\\"']],
    ['{"input":[1, 2,3]}', ["[1,2,3]"]],
    ['{"input":[[1, 2],[ 3 ]]}', ["[1,2]", "[3]"]],
  ])("%s", (body, inputs) => expect(readInputs(body)).toEqual(inputs));

  test.each([
    '{"model":"m"}',
    '{"input":[]}',
    '{"input":null}',
    '{"input":{"text":"a"}}',
    '{"input":["a",1]}',
    '{"input":["a",[1]]}',
    '{"input":[[]]}',
    '{"input":[[1,"a"]]}',
    '{"input":[1.5]}',
    '{"input":[{"type":"image_url"}]}',
    '{"input":"a","input":"b"}',
    '["a"]',
  ])("leaves %s alone", (body) => {
    expect(readInputs(body)).toBeUndefined();
    expect(hashInputs(body, asIs)).toBeUndefined();
  });
});

describe("the hash of an input", () => {
  const of = (body: object) => hashInputs(JSON.stringify(body), asIs);
  const body = { model: "m", input: ["a", "b"] };

  it("is that of the same text in another call, at another place, by another user", () => {
    const [, b] = of(body)!;
    expect(of({ input: "b", user: "somebody", model: "m" })).toEqual([b]);
  });

  it("differs by input, and by whatever else a vector may depend on", () => {
    const others = [
      { ...body, model: "n" },
      { ...body, dimensions: 256 },
      { ...body, dimensions: 512 },
      { ...body, encoding_format: "base64" },
      { ...body, input_type: "query" },
    ];
    const all = [body, ...others].flatMap((one) => of(one)!);
    expect(new Set(all).size).toBe(all.length);
  });

  it("tells a list of tokens from lists of one token each", () => {
    expect(of({ input: [1, 2] })).toHaveLength(1);
    expect(of({ input: [[1], [2]] })).toHaveLength(2);
  });

  it("is not there where a key is there twice", () =>
    expect(hashInputs('{"model":"a","model":"b","input":"x"}', asIs)).toBeUndefined());
});

describe("an answer", () => {
  const item = (index: unknown, embedding = "[1]") =>
    `{"object":"embedding","index":${index},"embedding":${embedding}}`;

  it("is split in the order of its indexes, every number as it is written", () => {
    const first = "[0.10, -1E-7,9007199254740993]";
    const answer = `{ "object":"list","data": [ ${item(1, '"AAA="')} , ${item(0, first)} ],"model":"m"}`;
    expect(split(answer, 2)).toEqual([first, '"AAA="']);
  });

  test.each([
    ["one vector too few", `{"data":[${item(0)}]}`],
    ["one too many", `{"data":[${item(0)},${item(1)},${item(2)}]}`],
    ["an index twice", `{"data":[${item(0)},${item(0)}]}`],
    ["an index beyond", `{"data":[${item(0)},${item(2)}]}`],
    ["an index that is none", `{"data":[${item(0)},${item('"1"')}]}`],
    ["no index", '{"data":[{"embedding":[1]},{"embedding":[1]}]}'],
    ["a vector that is none", `{"data":[${item(0)},${item(1, "null")}]}`],
    ["two vectors in one place", `{"data":[${item(0)},{"index":1,"embedding":[1],"embedding":[2]}]}`],
    ["no list", '{"data":{}}'],
    ["an error", '{"error":{"message":"no"}}'],
  ])("is not split with %s", (_, answer) => expect(split(answer, 2)).toBeUndefined());

  it("keeps all that the upstream said beside the vectors", () => {
    const usage = '"usage": {"prompt_tokens":3.0,"total_tokens":3}';
    const answer = `{"id":"e1","data":[${item(0)}], "model":"m-1",${usage}}`;
    expect(join(answer, ["[1]", "[2]"], "m")).toBe(
      `{"id":"e1","data":[${item(0, "[1]")},${item(1, "[2]")}], "model":"m-1",${usage}}`,
    );
  });

  it("of no call has used nothing", () =>
    expect(JSON.parse(join(undefined, ["[0.5]"], "m"))).toEqual({
      object: "list",
      data: [{ object: "embedding", index: 0, embedding: [0.5] }],
      model: "m",
      usage: { prompt_tokens: 0, total_tokens: 0 },
    }));
});

const numberToken = fc.oneof(
  fc.constantFrom("0", "-0.0", "1e-7", "0.10", "9007199254740993", "-1E+2"),
  fc.double({ noNaN: true, noDefaultInfinity: true }).map((value) => JSON.stringify(value)),
);
const vector = fc.oneof(
  fc.array(numberToken, { minLength: 1, maxLength: 4 }).map((numbers) => `[${numbers.join(", ")}]`),
  fc.base64String({ maxLength: 16 }).map((text) => JSON.stringify(text)),
);
const text = fc.string({ unit: fc.constantFrom('"', "\\", "[", "]", "{", "}", ",", " ", "\n", "a", "é") });
const input = fc.oneof(
  fc.array(text, { minLength: 1, maxLength: 8 }),
  fc.array(fc.array(fc.nat(1e5), { minLength: 1, maxLength: 4 }), { minLength: 1, maxLength: 8 }),
);

test("what was joined is split into the same vectors", () => {
  const template = fc.constantFrom(
    undefined,
    '{"data":[],"usage":{"prompt_tokens":1}}',
    ' { "data" : [ ] } ',
  );
  fc.assert(
    fc.property(template, fc.array(vector, { maxLength: 8 }), (answer, vectors) => {
      expect(split(join(answer, vectors, "m"), vectors.length)).toEqual(vectors);
    }),
  );
});

/** Answers a call with a vector that depends on nothing but the input, in an order of its own. */
function upstream(body: string, vectorOf: Map<string, string>): string {
  const items = readInputs(body)!.map(
    (one, index) => `{"index":${index},"embedding":${vectorOf.get(one)},"object":"embedding"}`,
  );
  return `{"object":"list","data":[${items.reverse().join(", ")}],"usage":{"prompt_tokens":${items.length}}}`;
}

test("whatever is known before, the answer has the vectors of the whole call", () => {
  fc.assert(
    fc.property(
      input,
      fc.array(vector, { minLength: 8, maxLength: 8 }),
      fc.nat(255),
      (inputs, some, hits) => {
        const body = JSON.stringify({ model: "m", input: inputs, dimensions: 2 }, null, 1);
        const texts = readInputs(body)!;
        expect(texts).toEqual(inputs.map((one) => JSON.stringify(one)));
        const vectorOf = new Map(texts.map((one, at) => [one, some[at]!]));
        const whole = split(upstream(body, vectorOf), texts.length);
        const missing = texts.map((_, at) => at).filter((at) => !((hits >> at) & 1));
        const cut = cutInputs(body, missing);
        expect({ ...JSON.parse(cut), input: inputs }).toEqual(JSON.parse(body));
        const answer = missing.length > 0 ? upstream(cut, vectorOf) : undefined;
        const fetched = answer === undefined ? [] : split(answer, missing.length)!;
        const all = texts.map((one, at) => fetched[missing.indexOf(at)] ?? vectorOf.get(one)!);
        expect(split(join(answer, all, "m"), texts.length)).toEqual(whole);
      },
    ),
  );
});

test("a call keeps its very text where nothing is known", () => {
  const body = '{ "input" : [ "a" , "b" ] }';
  expect(cutInputs(body, [0, 1])).toBe(body);
  expect(cutInputs(body, [1])).toBe('{ "input" : ["b"] }');
  expect(cutInputs('{"input":[1,2]}', [0])).toBe('{"input":[1,2]}');
});

test("reading large calls and answers takes time in proportion to their size", () => {
  const tall = `{"input":["${'\\"'.repeat(1_000_000)}","b"]}`;
  expect(readInputs(tall)?.map(({ length }) => length)).toEqual([2_000_002, 3]);
  const long = `[${"0.123456789,".repeat(1000)}1]`;
  const vectors = Array.from({ length: 500 }, () => long);
  expect(split(join(undefined, vectors, "m"), 500)).toEqual(vectors);
});
