import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import {
  canonical,
  cutMembers,
  members,
  rawMember,
  replaceMember,
  setMember,
} from "../../src/core/json-text.ts";

/** JSON as it is written: scalars are raw tokens, keys are raw strings with their quotes. */
type Written = string | { array: Written[] } | { object: [rawKey: string, value: Written][] };

const none: ReadonlySet<string> = new Set();
const ours = ["wait", "idempotency_key", "outlast"];

const numberToken = fc.oneof(
  fc.constantFrom("0", "-0", "1", "1.0", "1e2", "1E+2", "9007199254740992", "9007199254740993", "0.10"),
  fc.integer().map(String),
  fc.double({ noNaN: true, noDefaultInfinity: true }).map((value) => JSON.stringify(value)),
);

/** The string as JSON, with some characters spelled as escapes that JSON.stringify would not use. */
const stringToken = fc
  .tuple(
    fc.oneof(
      fc.string({ unit: "grapheme", maxLength: 12 }),
      fc.string({ unit: fc.constantFrom('"', "\\", "{", "}", "[", "]", ",", ":", " ", "\n", "a", "é") }),
    ),
    fc.nat(7),
  )
  .map(([value, every]) =>
    JSON.stringify(value).replace(/(?<!\\)(?:\\\\)*[a-z]/g, (match, offset: number) =>
      every > 0 && offset % every === 0 ? `${match.slice(0, -1)}${escaped(match.slice(-1))}` : match,
    ),
  )
  .filter(isJson);

const scalarToken = fc.oneof(numberToken, stringToken, fc.constantFrom("true", "false", "null"));

const { value: written } = fc.letrec<{ value: Written }>((tie) => ({
  value: fc.oneof(
    { depthSize: "small", withCrossShrink: true },
    scalarToken,
    fc.array(tie("value"), { maxLength: 4 }).map((array) => ({ array })),
    writtenObject(stringToken, tie("value")),
  ),
}));

/** An object with keys that differ from one another, ours among them at any place and in any spelling. */
const body = writtenObject(
  fc.oneof(
    stringToken,
    fc.constantFrom('"wait"', '"w\\u0061it"', '"outlast"', '"idempotency_key"', '"model"'),
  ),
  written,
);

const spaces = fc.infiniteStream(fc.constantFrom("", "", " ", "\n", "\t", "\r\n", "   "));

function writtenObject(key: fc.Arbitrary<string>, value: fc.Arbitrary<Written>) {
  return fc
    .uniqueArray(fc.tuple(key, value), { maxLength: 6, selector: ([rawKey]) => JSON.parse(rawKey) })
    .map((object) => ({ object }));
}

function escaped(character: string): string {
  return `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
}

function isJson(text: string): boolean {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

function print(value: Written, space: () => string): string {
  const pad = (text: string) => space() + text + space();
  if (typeof value === "string") return pad(value);
  if ("array" in value) return pad(`[${value.array.map((item) => print(item, space)).join(",") || space()}]`);
  const entries = value.object.map(([key, item]) => `${pad(key)}:${print(item, space)}`);
  return pad(`{${entries.join(",") || space()}}`);
}

const compact = (value: Written) => print(value, () => "");
const spaced = (value: Written, stream: fc.Stream<string>) => print(value, () => stream.next().value);

/** The same value with the members of every object in another order. */
function shuffled(value: Written, next: () => number): Written {
  if (typeof value === "string") return value;
  if ("array" in value) return { array: value.array.map((item) => shuffled(item, next)) };
  return {
    object: value.object
      .map(([key, item]) => ({ key, item: shuffled(item, next), rank: next() }))
      .sort((a, b) => a.rank - b.rank)
      .map(({ key, item }) => [key, item]),
  };
}

function countTokens(value: Written): number {
  if (typeof value === "string") return 1;
  const children = "array" in value ? value.array : value.object.map(([, item]) => item);
  return children.reduce((sum, child) => sum + countTokens(child), 0);
}

/** The value with its n-th scalar replaced by `change` of it. */
function changeToken(value: Written, n: number, change: (token: string) => string): Written {
  let left = n;
  const visit = (node: Written): Written => {
    if (typeof node === "string") return left-- === 0 ? change(node) : node;
    if ("array" in node) return { array: node.array.map(visit) };
    return { object: node.object.map(([key, item]) => [key, visit(item)]) };
  };
  return visit(value);
}

function without(text: string, names: string[]): Record<string, unknown> {
  const entries = Object.entries(JSON.parse(text)).filter(([key]) => !names.includes(key));
  return Object.fromEntries(entries);
}

const keyAndValue = (text: string) =>
  members(text)?.map(({ key, valueStart, valueEnd }) => [key, text.slice(valueStart, valueEnd)]);

describe("members", () => {
  const cases: [string, string, [string, string][] | undefined][] = [
    ["an empty object", " { } ", []],
    [
      "scalars of every kind",
      '{"a":1.0,"b":"x","c":null,"d":-1e5}',
      [
        ["a", "1.0"],
        ["b", '"x"'],
        ["c", "null"],
        ["d", "-1e5"],
      ],
    ],
    [
      "values with brackets in strings",
      '{"a":["}","\\"]"],"b":{"c":"{"}}',
      [
        ["a", '["}","\\"]"]'],
        ["b", '{"c":"{"}'],
      ],
    ],
    [
      "strings that end in backslashes",
      '{"a":"\\\\","b":"\\\\\\""}',
      [
        ["a", '"\\\\"'],
        ["b", '"\\\\\\""'],
      ],
    ],
    [
      "escaped keys",
      '{"w\\u0061it":1,"\\"":2}',
      [
        ["wait", "1"],
        ['"', "2"],
      ],
    ],
    [
      "duplicate keys",
      '{"a":1,"a":2}',
      [
        ["a", "1"],
        ["a", "2"],
      ],
    ],
    [
      "keys of Object.prototype",
      '{"__proto__":1,"constructor":2}',
      [
        ["__proto__", "1"],
        ["constructor", "2"],
      ],
    ],
    ["no object", '[{"a":1}]', undefined],
    ["a scalar", '"{}"', undefined],
    ["nothing", "", undefined],
  ];
  test.each(cases)("of %s", (_, text, expected) => {
    expect(keyAndValue(text)).toEqual(expected);
  });

  it("finds in any object the keys and values that JSON.parse finds", () => {
    fc.assert(
      fc.property(body, spaces, (object, stream) => {
        const text = spaced(object, stream);
        const found = members(text)!;
        expect(found.map(({ key }) => key)).toEqual(object.object.map(([rawKey]) => JSON.parse(rawKey)));
        for (const { key, keyStart, valueStart, valueEnd } of found) {
          const raw = text.slice(valueStart, valueEnd);
          expect(raw).toBe(raw.trim());
          expect(JSON.parse(raw)).toEqual(JSON.parse(text)[key]);
          expect(JSON.parse(`{${text.slice(keyStart, valueEnd)}}`)).toHaveProperty([key]);
        }
      }),
    );
  });
});

describe("cutMembers", () => {
  const cases: [string, string, string][] = [
    ["the first member", '{"wait":true,"a":1}', '{"a":1}'],
    ["the last member", '{"a":1,"wait":true}', '{"a":1}'],
    ["a member between others", '{ "a": 1, "wait": true, "b": 2 }', '{ "a": 1, "b": 2 }'],
    ["the only member", '{ "wait": 30 }', "{  }"],
    ["all of several", '{"wait":1,"outlast":{"wait":2},"idempotency_key":"k"}', "{}"],
    ["neighbours at the front", '{"wait":1, "outlast":2, "a":3}', '{"a":3}'],
    ["neighbours at the end", '{"a":3, "wait":1, "outlast":2}', '{"a":3}'],
    ["both ends", '{"wait":1,"a":9007199254740993,"outlast":2}', '{"a":9007199254740993}'],
    ["every occurrence", '{"wait":1,"a":1,"wait":2,"b":2,"wait":3}', '{"a":1,"b":2}'],
    ["escaped spellings", '{"\\u0077ait":1,"a":"\\u0041"}', '{"a":"\\u0041"}'],
    ["nothing below the top", '{"a":{"wait":1},"b":[{"wait":2}]}', '{"a":{"wait":1},"b":[{"wait":2}]}'],
    ["nothing from an array", '["wait"]', '["wait"]'],
  ];
  test.each(cases)("cuts %s", (_, text, expected) => {
    expect(cutMembers(text, ours)).toBe(expected);
    expect(cutMembers(text, new Set(ours))).toBe(expected);
  });

  it("leaves in any object exactly the other members, their text unchanged", () => {
    fc.assert(
      fc.property(body, spaces, (object, stream) => {
        const text = spaced(object, stream);
        const cut = cutMembers(text, ours);
        expect(Object.fromEntries(Object.entries(JSON.parse(cut)))).toEqual(without(text, ours));
        expect(keyAndValue(cut)).toEqual(keyAndValue(text)!.filter(([key]) => !ours.includes(key!)));
      }),
    );
  });

  it("gives back the very text when there is nothing to cut", () => {
    fc.assert(
      fc.property(written, spaces, (value, stream) => {
        const text = spaced(value, stream);
        expect(cutMembers(text, [])).toBe(text);
      }),
    );
  });
});

describe("replaceMember", () => {
  const cases: [string, string, string][] = [
    ["a value in place", '{ "a" : 1 , "model" : "x" }', '{ "a" : 1 , "model" : "NEW" }'],
    [
      "every occurrence",
      '{"model":1,"a":{"model":2},"model":[3]}',
      '{"model":"NEW","a":{"model":2},"model":"NEW"}',
    ],
    ["an escaped key's value", '{"mo\\u0064el":null}', '{"mo\\u0064el":"NEW"}'],
    ["nothing where the name is absent", '{"a":"model"}', '{"a":"model"}'],
    ["nothing in an array", '["model",1]', '["model",1]'],
  ];
  test.each(cases)("replaces %s", (_, text, expected) => {
    expect(replaceMember(text, "model", '"NEW"')).toBe(expected);
  });

  it("changes in any object the one value and no other byte", () => {
    fc.assert(
      fc.property(body, spaces, scalarToken, (object, stream, token) => {
        const text = spaced(object, stream);
        const replaced = replaceMember(text, "model", token);
        expect(replaceMember(replaced, "model", rawMember(text, "model") ?? "")).toBe(text);
        expect(rawMember(replaced, "model")).toBe(rawMember(text, "model") === undefined ? undefined : token);
      }),
    );
  });
});

describe("setMember", () => {
  const cases: [string, string, string][] = [
    ["replaces what is there", '{"a":1, "n" : null}', '{"a":1, "n" : {"x":1}}'],
    ["replaces every occurrence", '{"n":1,"a":2,"\\u006e":3}', '{"n":{"x":1},"a":2,"\\u006e":{"x":1}}'],
    ["puts in front what is not there", '{ "a" : {"n":1} }', '{ "n":{"x":1},"a" : {"n":1} }'],
    ["fills an empty object", " { } ", ' {"n":{"x":1} } '],
    ["leaves an array alone", '["n"]', '["n"]'],
  ];
  test.each(cases)("%s", (_, text, expected) => {
    expect(setMember(text, "n", '{"x":1}')).toBe(expected);
  });

  it("changes in any object the one member only", () => {
    fc.assert(
      fc.property(body, spaces, stringToken, scalarToken, (object, stream, name, token) => {
        const text = spaced(object, stream);
        const key = JSON.parse(name) as string;
        const set = setMember(text, key, token);
        expect(rawMember(set, key)).toBe(token);
        expect(cutMembers(set, [key]).trim()).toBe(cutMembers(text, [key]).trim());
      }),
    );
  });
});

describe("rawMember", () => {
  test.each([
    ['{"a":{"n":1},"n": 1.0 }', "1.0"],
    ['{"n":1,"\\u006e":2}', "2"],
    ['{"a":1}', undefined],
    ["[1]", undefined],
  ])("of %s is %s", (text, expected) => {
    expect(rawMember(text, "n")).toBe(expected);
  });
});

describe("canonical", () => {
  test.each<[string, string, string | undefined]>([
    [
      "sorts keys at every depth",
      '{"b":{"d":1,"c":2},"a":[{"z":1,"y":2}]}',
      '{"a":[{"y":2,"z":1}],"b":{"c":2,"d":1}}',
    ],
    ["drops white space between tokens only", ' { "a b" : [ 1 , " x " ] } ', '{"a b":[1," x "]}'],
    ["keeps numbers as written", "[1.0, 1, 1e0, 9007199254740993]", "[1.0,1,1e0,9007199254740993]"],
    ["keeps strings as written", '["\\u0041", "A", "\\/"]', '["\\u0041","A","\\/"]'],
    ["spells keys in one way", '{"\\u0062":1,"\\/":2,"a":3}', '{"/":2,"a":3,"b":1}'],
    ["keeps empty containers", '{"a":{ },"b":[ ]}', '{"a":{},"b":[]}'],
    ["takes scalars", " null ", "null"],
    ["refuses duplicate keys", '{"a":1,"b":2,"a":1}', undefined],
    ["refuses duplicate keys in two spellings", '{"a":1,"\\u0061":1}', undefined],
    ["refuses duplicate keys below arrays", '[[{"x":[{"a":1,"a":1}]}]]', undefined],
    ["refuses duplicate keys that are left out", '{"wait":1,"wait":2}', undefined],
    ["refuses text without a value", "  ", undefined],
  ])("%s", (_, text, expected) => {
    expect(canonical(text, new Set(["wait"]))).toBe(expected);
  });

  it("leaves out names at the top level only", () => {
    const names = new Set(["wait", "stream"]);
    expect(canonical('{"stream":true,"a":{"wait":1},"w\\u0061it":2}', names)).toBe('{"a":{"wait":1}}');
    expect(canonical('[{"wait":1}]', names)).toBe('[{"wait":1}]');
    expect(canonical('{"wait":1}', names)).toBe("{}");
  });

  it("is the same whatever the white space and the order of members", () => {
    fc.assert(
      fc.property(fc.oneof(body, written), spaces, fc.infiniteStream(fc.nat()), (value, stream, ranks) => {
        const other = spaced(
          shuffled(value, () => ranks.next().value),
          stream,
        );
        expect(canonical(other, none)).toBe(canonical(compact(value), none));
      }),
    );
  });

  it("means the same as the text and is a fixed point", () => {
    fc.assert(
      fc.property(written, spaces, (value, stream) => {
        const text = spaced(value, stream);
        const form = canonical(text, none)!;
        expect(JSON.parse(form)).toEqual(JSON.parse(text));
        expect(canonical(form, none)).toBe(form);
      }),
    );
  });

  it("without some names is that of the text from which they are cut", () => {
    fc.assert(
      fc.property(body, spaces, (object, stream) => {
        const text = spaced(object, stream);
        expect(canonical(text, new Set(ours))).toBe(canonical(cutMembers(text, ours), none));
      }),
    );
  });

  it("differs when any one token differs, even where the values are equal", () => {
    const respelled = (token: string) => {
      if (/^-?\d+$/.test(token)) return `${token}.0`;
      if (/^-?\d/.test(token)) return token.includes("e") ? token.replace("e", "E") : `${token}e0`;
      return token.startsWith('"') ? `"${escaped("A")}${token.slice(1)}` : `[${token}]`;
    };
    fc.assert(
      fc.property(fc.oneof(body, written), fc.nat(), scalarToken, (value, pick, token) => {
        const count = countTokens(value);
        fc.pre(count > 0);
        const n = pick % count;
        const form = canonical(compact(value), none);
        expect(canonical(compact(changeToken(value, n, respelled)), none)).not.toBe(form);
        const replaced = changeToken(value, n, () => token);
        if (compact(replaced) !== compact(value)) expect(canonical(compact(replaced), none)).not.toBe(form);
      }),
    );
  });

  test.each([
    ["arrays", "[", "]", "[", "]"],
    ["objects", '{"a": ', "}", '{"a":', "}"],
    ["objects whose last member goes first", '{"b":2, "a":[{}, ', "]}", '{"a":[{},', '],"b":2}'],
    [
      "objects whose first member goes last",
      '{"b":',
      ',"a":"a longer text"}',
      '{"a":"a longer text","b":',
      "}",
    ],
  ])("copes with 100,000 nested %s", (_, open, close, canonicalOpen, canonicalClose) => {
    const nested = (before: string, behind: string) => `${before.repeat(100_000)}1${behind.repeat(100_000)}`;
    const text = nested(open, close);
    // A plain comparison, as a diff of such texts takes minutes to print.
    expect(isJson(text) && canonical(text, none) === nested(canonicalOpen, canonicalClose)).toBe(true);
    expect(members(`{"x":${text}}`)).toHaveLength(1);
  });
});

describe("on any text at all", () => {
  const garbage = fc.oneof(
    fc.string(),
    fc.string({ unit: fc.constantFrom(...'{}[]",:\\ \nau0019-.tn') }),
    // JSON that is cut off or has a part missing.
    fc.tuple(written, spaces, fc.nat(), fc.nat(5)).map(([value, stream, at, gap]) => {
      const text = spaced(value, stream);
      const start = at % (text.length + 1);
      return gap === 0 ? text.slice(0, start) : text.slice(0, start) + text.slice(start + gap);
    }),
  );

  it("every function returns without an error", () => {
    fc.assert(
      fc.property(garbage, (text) => {
        members(text);
        cutMembers(text, ours);
        replaceMember(text, "a", "1");
        canonical(text, none);
      }),
      { numRuns: 2000 },
    );
  });

  test.each([
    '{"a":',
    '{"a',
    '"',
    '{"a":"\\',
    "{,",
    '{"a":1',
    '{"a":1]',
    "]",
    "}",
    '{"a" 1}',
    '{"\\x":1}',
    '{"a":[}',
  ])("members and canonical make nothing of %s", (text) => {
    expect(members(text) ?? []).toEqual(text === '{"a":[}' ? expect.anything() : []);
    expect(canonical(text, none)).toBeUndefined();
  });
});
