import fc from "fast-check";
import OpenAI from "openai";
import { describe, expect, it, test } from "vitest";
import { Assembly, readChunk } from "../../src/core/chunk.ts";

type Json = Record<string, unknown>;

const head = { id: "chatcmpl-1", object: "chat.completion.chunk", created: 1_700_000_000, model: "m" };
const chunkOf = (choices: unknown, more: Json = {}): Json => ({ ...head, choices, ...more });
const delta = (delta: Json, finish_reason: string | null = null, index = 0): Json =>
  chunkOf([{ index, delta, finish_reason }]);

function assembled(chunks: Json[], expected?: number): Assembly {
  const assembly = new Assembly(expected);
  for (const chunk of chunks) assembly.add(JSON.parse(JSON.stringify(chunk)));
  return assembly;
}

const completion = (...chunks: Json[]) => JSON.parse(assembled(chunks).completion());
const message = (...deltas: Json[]) => completion(...deltas.map((one) => delta(one))).choices[0].message;

/** What the openai SDK makes of the same chunks. */
async function bySdk(chunks: Json[]): Promise<unknown> {
  const body = [...chunks.map((one) => JSON.stringify(one)), "[DONE]"]
    .map((one) => `data: ${one}\n\n`)
    .join("");
  const client = new OpenAI({
    apiKey: "x",
    fetch: async () => new Response(body, { headers: { "content-type": "text/event-stream" } }),
  });
  return client.chat.completions.stream({ model: "m", messages: [] }).finalChatCompletion();
}

describe("readChunk", () => {
  test.each<[string, Json, boolean, string | undefined, number]>([
    ["a role", delta({ role: "assistant", content: "" }), false, "", 0],
    ["text", delta({ content: "häl" }), true, "häl", 3],
    [
      "text beside fields without use",
      delta({ content: "x", refusal: null, tool_calls: [], a: "" }),
      true,
      "x",
      1,
    ],
    ["an end", delta({}, "stop"), true, "", 0],
    ["text and an end", delta({ content: "x" }, "stop"), true, "x", 1],
    ["usage alone", chunkOf([], { usage: { total_tokens: 1 } }), false, "", 0],
    ["the result of a filter", chunkOf([], { prompt_filter_results: [{}] }), false, "", 0],
    ["no choices at all", {}, false, "", 0],
    ["a refusal", delta({ refusal: "no" }), true, undefined, 2],
    ["reasoning", delta({ content: "", reasoning_content: "hm" }), true, undefined, 2],
    ["audio", delta({ audio: { id: "a", data: "AAAA" } }), true, undefined, 4],
    ["a field that we do not know", delta({ brand_new: { x: 1 } }), true, undefined, 0],
    [
      "a tool call",
      delta({
        tool_calls: [{ index: 0, id: "call", type: "function", function: { name: "f", arguments: "{}" } }],
      }),
      true,
      undefined,
      3,
    ],
    ["a call of the old kind", delta({ function_call: { name: "fn", arguments: "{" } }), true, undefined, 3],
    ["content in parts", delta({ content: [{ type: "text", text: "abc" }] }), true, undefined, 3],
    ["another choice than the first", delta({ content: "x" }, null, 1), true, undefined, 1],
    [
      "two choices",
      chunkOf([
        { index: 0, delta: { content: "a" } },
        { index: 1, delta: { content: "b" } },
      ]),
      true,
      undefined,
      2,
    ],
    [
      "log probabilities",
      chunkOf([{ index: 0, delta: { content: "x" }, logprobs: { content: [{}] } }]),
      true,
      undefined,
      1,
    ],
    [
      "one choice in two pieces",
      chunkOf([
        { index: 0, delta: { content: "a" } },
        { index: 0, delta: { content: "b" } },
      ]),
      true,
      "ab",
      2,
    ],
    ["a choice without an index", chunkOf([{ delta: { content: "x" } }]), true, "x", 1],
  ])("of %s", (_, json, isContent, text, chars) => {
    const data = JSON.stringify(json);
    expect(readChunk(data)).toMatchObject({ data, isContent, chars, json });
    expect(readChunk(data)!.text).toBe(text);
  });

  test.each(["", "{", "[]", "null", '"x"', "1", "[DONE]"])("makes nothing of %j", (text) => {
    expect(readChunk(text)).toBeUndefined();
  });

  it("tells the bill from everything else", () => {
    const usage = { total_tokens: 1 };
    const isUsageOnly = (json: Json) => readChunk(JSON.stringify(json))!.isUsageOnly;
    expect(isUsageOnly(chunkOf([], { usage }))).toBe(true);
    expect(isUsageOnly(chunkOf([], { usage: null }))).toBe(false);
    expect(isUsageOnly({ ...delta({}, "stop"), usage })).toBe(false);
  });

  it("tells an end from everything else", () => {
    const isEnd = (json: Json) => readChunk(JSON.stringify(json))!.isEnd;
    for (const end of ["stop", "length"]) expect(isEnd(delta({ content: "x" }, end))).toBe(true);
    for (const none of [null, ""]) expect(isEnd(delta({ content: "x" }, none as null))).toBe(false);
    expect(isEnd(chunkOf([{ index: 0, delta: { content: '"finish_reason":"stop"' } }]))).toBe(false);
    expect(isEnd(chunkOf([{ index: 0 }, { index: 1, finish_reason: "stop" }]))).toBe(true);
  });

  it("copes with any JSON", () => {
    fc.assert(
      fc.property(fc.jsonValue(), fc.jsonValue(), (one, other) => {
        for (const json of [
          one,
          { choices: one, usage: other },
          { choices: [one, other] },
          { choices: [{ index: one, delta: other, logprobs: one, finish_reason: other }] },
          { choices: [{ delta: { content: one, tool_calls: [other], x: [one, other] } }] },
        ]) {
          const read = readChunk(JSON.stringify(json));
          if (!read) continue;
          const assembly = new Assembly();
          assembly.add(read.json);
          assembly.add(readChunk(JSON.stringify(json))!.json);
          JSON.parse(assembly.completion());
        }
      }),
    );
  });
});

describe("an assembly", () => {
  it("is the answer that a plain call would have had", () => {
    expect(
      completion(
        chunkOf([{ index: 0, delta: { role: "assistant", content: "", refusal: null } }], { usage: null }),
        chunkOf([{ index: 0, delta: { content: "a" }, logprobs: null, finish_reason: null }], {
          obfuscation: "zz",
        }),
        chunkOf([{ index: 0, delta: { content: "b" } }], { system_fingerprint: "fp", service_tier: "flex" }),
        chunkOf([{ index: 0, delta: {}, finish_reason: "stop", content_filter_results: { hate: 1 } }]),
        chunkOf([], { usage: { total_tokens: 3 }, provider: "P", system_fingerprint: null }),
      ),
    ).toEqual({
      id: "chatcmpl-1",
      object: "chat.completion",
      created: 1_700_000_000,
      model: "m",
      choices: [
        {
          index: 0,
          message: { role: "assistant", content: "ab", refusal: null },
          logprobs: null,
          finish_reason: "stop",
          content_filter_results: { hate: 1 },
        },
      ],
      usage: { total_tokens: 3 },
      system_fingerprint: "fp",
      service_tier: "flex",
      provider: "P",
    });
  });

  test.each<[string, Json[], Json]>([
    [
      "an empty answer",
      [{ role: "assistant", content: "" }],
      { role: "assistant", content: "", refusal: null },
    ],
    ["no content", [{ role: "assistant" }], { role: "assistant", content: null, refusal: null }],
    ["a refusal", [{ refusal: "n" }, { refusal: "o" }], { role: "assistant", content: null, refusal: "no" }],
    [
      "reasoning under whatever name",
      [
        { reasoning: "a", brand: "1" },
        { reasoning: "b", brand: "2", content: "c" },
      ],
      { role: "assistant", content: "c", refusal: null, reasoning: "ab", brand: "12" },
    ],
    [
      "tool calls that come in turns, out of order, with their names repeated or left empty",
      [
        {
          content: "",
          tool_calls: [{ index: 1, id: "c1", type: "function", function: { name: "g", arguments: "" } }],
        },
        {
          tool_calls: [{ index: 0, id: "c0", type: "function", function: { name: "f", arguments: '{"a"' } }],
        },
        { tool_calls: [{ index: 1, id: "", function: { name: "", arguments: "{}" } }] },
        { tool_calls: [{ index: 0, id: "c0", type: "function", function: { name: "f", arguments: ":1}" } }] },
      ],
      {
        role: "assistant",
        content: null,
        refusal: null,
        tool_calls: [
          { id: "c0", type: "function", function: { name: "f", arguments: '{"a":1}' } },
          { id: "c1", type: "function", function: { name: "g", arguments: "{}" } },
        ],
      },
    ],
    [
      "tool calls without indexes",
      [
        {
          tool_calls: [
            { id: "a", function: { name: "f", arguments: "{}" } },
            { id: "b", function: { name: "f" } },
          ],
        },
      ],
      {
        role: "assistant",
        content: null,
        refusal: null,
        tool_calls: [
          { id: "a", type: "function", function: { name: "f", arguments: "{}" } },
          { id: "b", type: "function", function: { name: "f" } },
        ],
      },
    ],
    [
      "a custom tool's call",
      [
        { tool_calls: [{ index: 0, id: "c", type: "custom", custom: { name: "sql", input: "sel" } }] },
        { tool_calls: [{ index: 0, custom: { input: "ect" } }] },
      ],
      {
        role: "assistant",
        content: null,
        refusal: null,
        tool_calls: [{ id: "c", type: "custom", custom: { name: "sql", input: "select" } }],
      },
    ],
    [
      "a call of the old kind",
      [{ function_call: { name: "f", arguments: "{" } }, { function_call: { arguments: "}" } }],
      { role: "assistant", content: null, refusal: null, function_call: { name: "f", arguments: "{}" } },
    ],
    [
      "audio",
      [
        { audio: { id: "a", data: "AA" } },
        { audio: { data: "BB", transcript: "x" } },
        { audio: { expires_at: 9 } },
      ],
      {
        role: "assistant",
        content: null,
        refusal: null,
        audio: { id: "a", data: "AABB", transcript: "x", expires_at: 9 },
      },
    ],
    [
      "details that name their index",
      [
        { reasoning_details: [{ index: 0, type: "reasoning.text", text: "a" }] },
        {
          reasoning_details: [
            { index: 0, type: "reasoning.text", text: "b" },
            { index: 1, data: "d" },
          ],
        },
      ],
      {
        role: "assistant",
        content: null,
        refusal: null,
        reasoning_details: [
          { index: 0, type: "reasoning.text", text: "ab" },
          { index: 1, data: "d" },
        ],
      },
    ],
    [
      "content in parts, then as text",
      [
        { content: "" },
        { content: [{ type: "thinking", thinking: [] }] },
        { content: "a" },
        { content: "b" },
      ],
      {
        role: "assistant",
        content: [
          { type: "thinking", thinking: [] },
          { type: "text", text: "ab" },
        ],
        refusal: null,
      },
    ],
  ])("has %s", (_, deltas, expected) => {
    expect(message(...deltas)).toEqual(expected);
  });

  it("joins log probabilities", () => {
    const with_ = (logprobs: Json) => chunkOf([{ index: 0, delta: { content: "x" }, logprobs }]);
    const { logprobs } = completion(
      with_({ content: [{ token: "a" }], refusal: null }),
      with_({ content: [{ token: "b" }, { token: "b" }] }),
    ).choices[0];
    expect(logprobs).toEqual({ content: [{ token: "a" }, { token: "b" }, { token: "b" }], refusal: null });
  });

  it("is finished when every choice that is expected or was seen has an end", () => {
    const start = [delta({ content: "a" })];
    expect(assembled([]).finished).toBe(false);
    expect(assembled([]).isEmpty).toBe(true);
    expect(assembled([chunkOf([], { usage: {} })]).isEmpty).toBe(true);
    expect(assembled(start).finished).toBe(false);
    expect(assembled([...start, delta({}, "stop")]).finished).toBe(true);
    expect(assembled([...start, delta({}, "stop"), delta({}, "stop")]).finished).toBe(true);
    expect(assembled([...start, delta({}, "stop")], 2).finished).toBe(false);
    expect(assembled([...start, delta({}, "stop"), delta({ content: "b" }, null, 1)]).finished).toBe(false);
    expect(assembled([...start, delta({}, "stop"), delta({ content: "b" }, "stop", 1)], 2).finished).toBe(
      true,
    );
  });

  it("is not finished by an end behind which it goes on: some upstreams give every chunk one", () => {
    const [one, two] = [delta({ content: "a" }, "stop"), delta({ content: "b" }, "stop")];
    const call = delta({ tool_calls: [{ index: 0, id: "call", function: { name: "f" } }] }, "stop");
    expect(assembled([one]).finished).toBe(true);
    expect(assembled([one, delta({ role: "assistant", content: "" }, "stop")]).finished).toBe(true);
    expect(assembled([one, chunkOf([], { usage: {} })]).finished).toBe(true);
    expect(assembled([one, two]).finished).toBe(false);
    expect(assembled([one, delta({ content: "b" })]).finished).toBe(false);
    expect(assembled([one, call]).finished).toBe(false);
    expect(assembled([one, two, delta({}, "stop")]).finished).toBe(false);
    expect(assembled([one, delta({ content: "b" }, "stop", 1)], 2).finished).toBe(true);
    expect(completion(one, two).choices[0].message.content).toBe("ab");
  });

  it("calls itself what it is told", () => {
    const text = assembled([delta({ content: "a" }, "stop")]).completion({ id: "other", created: 5 });
    expect(JSON.parse(text)).toMatchObject({ id: "other", created: 5, model: "m" });
  });

  it("takes no chunk for more than a value", () => {
    const hostile =
      '{"__proto__":{"polluted":1,"refusal":"x"},"constructor":{"prototype":{"polluted":1}},"content":"a"}';
    const text = `{"__proto__":{"polluted":1},"choices":[{"__proto__":{"polluted":1},"index":0,"delta":${hostile}}]}`;
    const assembly = new Assembly();
    for (let i = 0; i < 2; i++) assembly.add(JSON.parse(text));
    expect(({} as Json).polluted).toBeUndefined();
    expect(JSON.parse(assembly.completion()).choices[0].message).toMatchObject({
      content: "aa",
      refusal: null,
    });
  });

  it("takes time in proportion to what it is made of", () => {
    const count = 200_000;
    const assembly = new Assembly();
    const json =
      '{"choices":[{"index":0,"delta":{"content":"token ","tool_calls":[{"index":0,"function":{"arguments":"12345"}}]}}]}';
    for (let i = 0; i < count; i++) assembly.add(JSON.parse(json));
    const { content, tool_calls } = JSON.parse(assembly.completion()).choices[0].message;
    expect(content.length).toBe(6 * count);
    expect(tool_calls[0].function.arguments.length).toBe(5 * count);
  });

  const piece = fc.string({ unit: "grapheme", maxLength: 6 });
  const calls = fc.array(
    fc.record({ name: fc.string({ minLength: 1, maxLength: 5 }), pieces: fc.array(piece, { maxLength: 4 }) }),
    { maxLength: 3 },
  );
  const choice = fc.record({
    texts: fc.array(piece, { minLength: 1, maxLength: 5 }),
    refusal: fc.option(fc.array(piece, { maxLength: 2 })),
    calls,
    finish: fc.constantFrom("stop", "length", "content_filter", "tool_calls"),
    logprobs: fc.boolean(),
  });

  it("equals what the openai SDK makes of the same chunks", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(choice, { minLength: 1, maxLength: 3 }),
        fc.boolean(),
        async (choices, isUsageSent) => {
          const chunks = choices.flatMap(({ texts, refusal, calls, finish, logprobs }, index) => {
            const one = (delta: Json, more: Json = {}) =>
              chunkOf([{ index, delta, logprobs: null, finish_reason: null, ...more }], {
                service_tier: "default",
              });
            return [
              one({ role: "assistant", content: "", refusal: null }),
              ...texts.map((content) =>
                one(
                  { content },
                  logprobs ? { logprobs: { content: [{ token: content }], refusal: null } } : {},
                ),
              ),
              ...(refusal ?? []).map((text) => one({ refusal: text })),
              ...calls.flatMap(({ name, pieces }, at) => [
                one({
                  tool_calls: [
                    { index: at, id: `c${at}`, type: "function", function: { name, arguments: "" } },
                  ],
                }),
                ...pieces.map((text) => one({ tool_calls: [{ index: at, function: { arguments: text } }] })),
              ]),
              one({}, { finish_reason: finish }),
            ];
          });
          if (isUsageSent) chunks.push(chunkOf([], { usage: { total_tokens: 1 } }));
          const theirs = (await bySdk(chunks)) as { choices: { message: Json }[] };
          const ours = completion(...chunks);
          // Where there is no text the SDK has null; a plain answer has an empty one.
          for (const { message } of [...theirs.choices, ...ours.choices]) {
            message.content ||= null;
            message.refusal ||= null;
            delete message.parsed;
            for (const call of message.tool_calls ?? []) delete call.function.parsed_arguments;
          }
          expect(ours).toEqual(JSON.parse(JSON.stringify({ ...theirs, object: "chat.completion" })));
        },
      ),
      { numRuns: 60 },
    );
  });
});
