import { describe, expect, it, test } from "vitest";
import { Schemas } from "../../src/outbound/validation.ts";

const schemas = new Schemas();
const person = {
  type: "object",
  properties: { age: { type: "number" }, kind: { enum: ["a", "b"] }, tags: { items: { type: "string" } } },
  required: ["age"],
  additionalProperties: false,
};

describe("a value", () => {
  it("follows its schema", () => expect(schemas.mismatches(person, { age: 1, tags: ["x"] })).toEqual([]));

  it("does not: places and rules are told, nothing of the value", () => {
    const value = { age: "secret", kind: "secret", tags: ["x", 7], secret: 1 };
    const told = schemas.mismatches(person, value);
    expect(told).toEqual([
      "the root must NOT have additional properties",
      "/age must be number",
      "/kind must be equal to one of the allowed values",
      "/tags/1 must be string",
    ]);
    expect(schemas.mismatches(person, [])).toEqual(["the root must be object"]);
  });

  it("has keys of its own, which are not told either", () => {
    const schema = { additionalProperties: { properties: { "a/b~c": { type: "string" } } } };
    expect(
      schemas.mismatches(schema, { secret: { "a/b~c": 1 }, "4111111111111111": { "a/b~c": 1 } }),
    ).toEqual(["/*/a~1b~0c must be string"]);
  });

  it("is told ten places at most", () => {
    const value = Array.from({ length: 50 }, () => 1);
    expect(schemas.mismatches({ items: { type: "string" } }, value)).toHaveLength(10);
  });

  it("is not told long rules whole", () => {
    const [told] = schemas.mismatches({ pattern: `^${"x".repeat(5000)}$` }, "y");
    expect(told!.length).toBeLessThan(300);
  });

  it("may have formats; those that nobody knows are passed over", () => {
    expect(schemas.mismatches({ format: "date" }, "2024-02-30")).toHaveLength(1);
    expect(schemas.mismatches({ format: "date" }, "2024-02-29")).toEqual([]);
    expect(schemas.mismatches({ format: "of-our-house" }, "anything")).toEqual([]);
  });

  it("is measured by references inside the schema, and by draft 2020-12", () => {
    const schema = {
      $schema: "http://json-schema.org/draft-07/schema#",
      $defs: {
        node: { properties: { next: { $ref: "#/$defs/node" }, pair: { prefixItems: [{ type: "null" }] } } },
      },
      $ref: "#/$defs/node",
    };
    expect(schemas.problem(schema)).toBeUndefined();
    expect(schemas.mismatches(schema, { next: { next: { pair: [1] } } })).toEqual([
      "/next/next/pair/0 must be null",
    ]);
  });

  it("is measured by patterns with escapes that mean nothing", () => {
    expect(schemas.mismatches({ pattern: "^[\\w-.]+\\_$" }, "a-b_")).toEqual([]);
    expect(schemas.mismatches({ pattern: "^[\\w-.]+\\_$" }, "a b_")).toHaveLength(1);
  });
});

describe("a schema that cannot be used", () => {
  const nested = (depth: number) => JSON.parse(`${'{"not":'.repeat(depth)}true${"}".repeat(depth)}`);

  test.each<[string, unknown, RegExp]>([
    ["a text", "{}", /neither an object nor/],
    ["null", null, /neither an object nor/],
    ["a list", [], /neither an object nor/],
    ["nothing", undefined, /neither an object nor/],
    ["a type that is none", { properties: { a: { type: "strng" } } }, /^\/properties\/a\/type must be equal/],
    [
      "a pattern that is none",
      { properties: { a: { pattern: "(" } } },
      /^\/properties\/a\/pattern is no regular expression$/,
    ],
    [
      "a pattern of keys that is none",
      { patternProperties: { "[": true } },
      /^\/patternProperties is no regular/,
    ],
    ["a limit that is none", { minLength: "1" }, /^\/minLength must be integer/],
    ["a reference elsewhere", { $ref: "https://example.com/s.json" }, /^it refers to https:\/\/example.com/],
    ["a reference to nothing", { $ref: "#/$defs/a" }, /^it refers to #\/\$defs\/a, which is no part of it$/],
    ["a promise", { $async: true }, /\$async/],
    ["too many bytes", { description: "é".repeat(33_000) }, /larger than 64 KB/],
    ["too many levels", nested(9000), /nested too deeply/],
    ["far too many levels", nested(100_000), /nested too deeply/],
  ])("has %s", (_, schema, problem) => {
    expect(schemas.problem(schema)).toMatch(problem);
    expect(schemas.mismatches(schema, {})).toEqual([expect.stringMatching(/^the schema cannot be used: /)]);
  });

  it("is told in few words", () => {
    const problem = schemas.problem({ $ref: `https://example.com/${"x".repeat(5000)}` });
    expect(problem!.length).toBeLessThan(300);
  });

  test.each([true, false, {}, { type: "object" }])("is not %j", (schema) =>
    expect(schemas.problem(schema)).toBeUndefined(),
  );
});

it("keeps schemas apart that call themselves the same, or refer to each other", () => {
  const one = { $id: "https://example.com/s", type: "string" };
  const other = { $id: "https://example.com/s", type: "number" };
  expect(schemas.mismatches(one, "a")).toEqual([]);
  expect(schemas.mismatches(other, "a")).toEqual(["the root must be number"]);
  expect(schemas.problem({ $ref: "https://example.com/s" })).toMatch(/^it refers to/);
});

it("gives up where a schema leads nowhere", () => {
  expect(schemas.mismatches({ $ref: "#" }, 1)).toEqual(["the schema cannot be applied to this answer"]);
  const double = (at: number) => ({ allOf: [{ $ref: `#/$defs/${at}` }, { $ref: `#/$defs/${at}` }] });
  const steps = Array.from({ length: 40 }, (_, at) => (at < 39 ? double(at + 1) : { type: "number" }));
  const forty = { $defs: Object.fromEntries(steps.entries()), ...double(0) };
  expect(schemas.mismatches(forty, 1)).toEqual(["the schema takes too long to apply"]);
});

it("stops an expression that would never end, and does not try it for ever", () => {
  const schema = { type: "string", pattern: "^(a+)+$" };
  const value = `${"a".repeat(60)}b`;
  expect(schemas.problem(schema)).toBeUndefined();
  expect(schemas.mismatches(schema, "aaa")).toEqual([]);
  for (let i = 0; i < 3; i++)
    expect(schemas.mismatches(schema, value)).toEqual(["the schema takes too long to apply"]);
  expect(schemas.mismatches(schema, "aaa")).toEqual(["the schema takes too long to apply"]);
  expect(schemas.mismatches(person, { age: 1 })).toEqual([]);
});

it("forgets the schemas that were used longest ago, and compiles them anew", () => {
  const slow = { type: "string", pattern: "^(b+)+$" };
  for (let i = 0; i < 3; i++) schemas.mismatches(slow, `${"b".repeat(60)}c`);
  expect(schemas.mismatches(slow, "b")).toEqual(["the schema takes too long to apply"]);
  for (let i = 0; i < 300; i++) expect(schemas.mismatches({ const: i }, i)).toEqual([]);
  expect(schemas.mismatches(slow, "b")).toEqual([]);
  // It does so no sooner than it has to, also when it has forgotten some.
  for (let i = 0; i < 3; i++) schemas.mismatches(slow, `${"b".repeat(60)}c`);
  for (let i = 0; i < 100; i++) expect(schemas.problem({ const: -i })).toBeUndefined();
  expect(schemas.mismatches(slow, "b")).toEqual(["the schema takes too long to apply"]);
});

it("reads a large schema once, however often others of its parts refer to it", () => {
  const keys = (prefix: string, count: number, value: object) =>
    Object.fromEntries(Array.from({ length: count }, (_, at) => [`${prefix}${at}`, value]));
  const part = { properties: keys("p", 500, { type: "string", minLength: 1, maxLength: 9 }) };
  const schema = { $defs: { part }, properties: keys("q", 500, { $ref: "#/$defs/part" }) };
  expect(schemas.problem(schema)).toBeUndefined();
  expect(schemas.mismatches(schema, { q499: { p499: 1 } })).toEqual(["/q499/p499 must be string"]);
});
