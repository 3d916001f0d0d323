import fc from "fast-check";
import { ChatCompletionStream } from "openai/lib/ChatCompletionStream";
import type { ChatCompletion, ChatCompletionChunk } from "openai/resources/chat/completions";
import { describe, expect, test } from "vitest";
import { chunksOf, usageChunkOf } from "../../src/core/restream.ts";

/** What the SDK makes of a stream of these events, without what it adds for those who have it parse the content. */
async function assembled(events: string[]): Promise<ChatCompletion> {
  const bytes = new TextEncoder().encode(events.map((event) => `${event}\n`).join(""));
  const stream = new ReadableStream({
    start(controller) {
      controller.enqueue(bytes);
      controller.close();
    },
  });
  const answer = await ChatCompletionStream.fromReadableStream(stream).finalChatCompletion();
  for (const { message } of answer.choices) {
    delete (message as { parsed?: unknown }).parsed;
    for (const call of message.tool_calls ?? []) {
      if (call.type === "function") delete (call.function as { parsed_arguments?: unknown }).parsed_arguments;
    }
  }
  return answer;
}

const parsed = (events: string[] | undefined): ChatCompletionChunk[] =>
  events!.map((event) => JSON.parse(event));

const completionOf = (choices: unknown[], more: Record<string, unknown> = {}) => ({
  id: "chatcmpl-1",
  object: "chat.completion",
  created: 1_700_000_000,
  model: "m-2",
  choices,
  ...more,
});

const choiceOf = (message: Record<string, unknown>, more: Record<string, unknown> = {}) => ({
  index: 0,
  message: { role: "assistant", content: null, refusal: null, ...message },
  logprobs: null,
  finish_reason: "stop",
  ...more,
});

const usage = { prompt_tokens: 9, completion_tokens: 3, total_tokens: 12 };
const answer = completionOf([choiceOf({ content: "Hello!" })]);
const hello = { ...answer, usage };

const someText = fc.string({ unit: "grapheme", minLength: 1, maxLength: 60 });
const word = fc.string({ unit: fc.constantFrom("a", "b", "_", "-", "1"), minLength: 1, maxLength: 12 });
const toolCall = fc.record({
  id: word,
  type: fc.constant("function"),
  function: fc.record({ name: word, arguments: fc.oneof(fc.json(), fc.string({ unit: "grapheme" })) }),
});
const token = fc.record({
  token: someText,
  logprob: fc.double({ min: -50, max: -0.001, noNaN: true }),
  bytes: fc.option(fc.array(fc.nat(255), { maxLength: 4 })),
  top_logprobs: fc.constant([]),
});
const message = fc
  .record(
    {
      content: fc.option(someText),
      refusal: fc.option(someText),
      tool_calls: fc.array(toolCall, { minLength: 1, maxLength: 4 }),
      reasoning: someText,
      reasoning_content: someText,
      annotations: fc.array(fc.record({ type: fc.constant("url_citation"), n: fc.nat() }), { maxLength: 2 }),
      x_new: fc.jsonValue(),
    },
    { requiredKeys: ["content", "refusal"] },
  )
  .map((some) => ({ role: "assistant", ...some }));
/** Adds up deltas as strictly as an SDK may: what is told twice is there twice. */
function addedUp(deltas: Record<string, unknown>[]): Record<string, unknown> {
  const sum: Record<string, unknown> = {};
  for (const [name, value] of deltas.flatMap((delta) => Object.entries(delta))) {
    const before = sum[name] ?? undefined;
    if (before === undefined) sum[name] = value;
    else if (typeof before === "string" && typeof value === "string") sum[name] = before + value;
    else if (Array.isArray(before) && Array.isArray(value)) sum[name] = [...before, ...value];
    else throw new Error(`${name} is told twice`);
  }
  return sum;
}

const choices = fc
  .array(
    fc.record({
      message,
      logprobs: fc.option(
        fc.record({ content: fc.array(token, { maxLength: 5 }), refusal: fc.constant(null) }),
      ),
      finish_reason: fc.constantFrom("stop", "length", "tool_calls", "content_filter"),
      x_filter: fc.option(fc.constant({ hate: { filtered: false } })),
    }),
    { minLength: 1, maxLength: 3 },
  )
  .map((all) => all.map((choice, index) => ({ index, ...choice })));

describe("an answer told as a stream", () => {
  test("is the same answer to an SDK that puts it together, whatever it says", async () => {
    await fc.assert(
      fc.asyncProperty(choices, fc.boolean(), async (choices, withTier) => {
        const more = withTier ? { service_tier: "default", system_fingerprint: "fp_1", x_provider: "P" } : {};
        const answer = completionOf(choices, more);
        // Through JSON, as it is recorded: numbers such as -0 are lost there and not here.
        const told = chunksOf(JSON.stringify({ ...answer, usage }));
        expect(await assembled(told!)).toEqual(JSON.parse(JSON.stringify(answer)));
      }),
      { numRuns: 300 },
    );
  });

  test("tells nothing twice", () => {
    fc.assert(
      fc.property(choices, (choices) => {
        const chunks = parsed(chunksOf(JSON.stringify(completionOf(choices)))).flatMap(
          ({ choices }) => choices,
        );
        for (const { index, message, ...rest } of JSON.parse(JSON.stringify(choices))) {
          const own = chunks.filter((chunk) => chunk.index === index);
          const { refusal = null, tool_calls, ...told } = addedUp(own.map(({ delta }) => ({ ...delta })));
          const calls = (tool_calls as { index: number }[] | undefined)?.map(({ index: _, ...call }) => call);
          expect({ ...told, refusal, ...(calls && { tool_calls: calls }) }).toEqual(message);
          const logprobs = own.flatMap((chunk) => chunk.logprobs ?? []);
          expect(logprobs).toEqual(rest.logprobs ? [rest.logprobs] : []);
          expect(own.map((chunk) => chunk.finish_reason).filter(Boolean)).toEqual([rest.finish_reason]);
        }
      }),
    );
  });

  test("begins with the role, ends with the reason, and names itself in every event", () => {
    const chunks = parsed(
      chunksOf(JSON.stringify({ ...hello, system_fingerprint: "fp_1", service_tier: "flex" })),
    );
    const { id, created, model } = hello;
    for (const { choices: _, ...head } of chunks) {
      const names = { system_fingerprint: "fp_1", service_tier: "flex" };
      expect(head).toEqual({ id, object: "chat.completion.chunk", created, model, ...names });
    }
    expect(
      chunks.map(({ choices: [choice] }) => [choice!.index, choice!.delta, choice!.finish_reason]),
    ).toEqual([
      [0, { role: "assistant", content: "" }, null],
      [0, { content: "Hello!" }, null],
      [0, {}, "stop"],
    ]);
  });

  test("has the same events every time, none of them with the usage or a line break", () => {
    const text = JSON.stringify(hello, null, 2);
    const events = chunksOf(text)!;
    expect(chunksOf(text)).toEqual(events);
    expect(events.join("")).not.toMatch(/usage|[\r\n]/);
  });

  test("cuts long content, but no character in halves", async () => {
    const content = `${"x".repeat(65_535)}${"😀".repeat(65_536)}`;
    const events = chunksOf(JSON.stringify(completionOf([choiceOf({ content })])))!;
    const pieces = parsed(events).flatMap(({ choices: [choice] }) => choice!.delta.content || []);
    expect(pieces.length).toBe(3);
    expect(pieces.join("")).toBe(content);
    expect(pieces.every((piece) => piece.length <= 65_536 && !/\p{Cs}/u.test(piece))).toBe(true);
    expect((await assembled(events)).choices[0]!.message.content).toBe(content);
  });

  test("has log probabilities where their text is, and what only the answer as a whole says once", () => {
    const logprobs = {
      content: [{ token: "Hi", logprob: -1, bytes: null, top_logprobs: [] }],
      refusal: null,
    };
    const choices = [1, 0].map((index) => choiceOf({ content: "Hi" }, { index, logprobs }));
    const chunks = parsed(chunksOf(JSON.stringify(completionOf(choices, { x_provider: "P" }))));
    expect(chunks.map(({ choices: [choice] }) => [choice!.index, choice!.logprobs ?? null])).toEqual(
      [1, 0].flatMap((index) => [
        [index, null],
        [index, logprobs],
        [index, null],
      ]),
    );
    expect(chunks.map((chunk) => "x_provider" in chunk)).toEqual([true, false, false, false, false, false]);
  });

  test("tells one tool call after the other, with a number for each", () => {
    const call = (id: string) => ({ id, type: "function", function: { name: "look", arguments: '{"a":1}' } });
    const answer = completionOf([
      choiceOf({ tool_calls: [call("a"), call("b")] }, { finish_reason: "tool_calls" }),
    ]);
    const deltas = parsed(chunksOf(JSON.stringify(answer))).map(({ choices: [choice] }) => choice!.delta);
    expect(deltas).toEqual([
      { role: "assistant", content: null },
      { tool_calls: [{ index: 0, ...call("a") }] },
      { tool_calls: [{ index: 1, ...call("b") }] },
      {},
    ]);
  });

  test("tells a call of a function in the old form", async () => {
    const function_call = { name: "look", arguments: '{"a":1}' };
    const answer = completionOf([choiceOf({ function_call }, { finish_reason: "function_call" })]);
    expect(await assembled(chunksOf(JSON.stringify(answer))!)).toEqual(answer);
  });

  test("tells sound", async () => {
    const audio = { id: "audio_1", data: "AAAA", transcript: "Hi", expires_at: 5 };
    const answer = completionOf([choiceOf({ audio })]);
    expect(await assembled(chunksOf(JSON.stringify(answer))!)).toEqual(answer);
  });

  test("tells content in parts as it is", () => {
    const content = [{ type: "text", text: "Hi" }];
    const deltas = parsed(chunksOf(JSON.stringify(completionOf([choiceOf({ content })])))).map(
      ({ choices: [choice] }) => choice!.delta,
    );
    expect(deltas).toEqual([{ role: "assistant", content: null }, { content }, {}]);
  });

  test("is an event at least, also without a choice, a role or a number", () => {
    expect(parsed(chunksOf('{"id":"x","choices":[]}'))).toEqual([
      { id: "x", object: "chat.completion.chunk", choices: [] },
    ]);
    const bare = parsed(chunksOf('{"choices":[{"message":{"content":"a"}},{"message":{"content":"b"}}]}'));
    expect(bare.map(({ choices: [choice] }) => choice!.index)).toEqual([0, 0, 0, 1, 1, 1]);
    expect(bare[0]!.choices[0]!.delta.role).toBe("assistant");
  });

  test.each([
    "",
    "{",
    "null",
    "[]",
    '"x"',
    "{}",
    '{"choices":{}}',
    '{"choices":[1]}',
    '{"choices":[{"text":"x"}]}',
  ])("is none where there is no such answer: %s", (text) => {
    expect(chunksOf(text)).toBeUndefined();
  });
});

describe("the usage", () => {
  test("is an event of its own, which leaves the answer as it is", async () => {
    const event = usageChunkOf(
      { id: hello.id, created: hello.created, model: hello.model },
      JSON.stringify(usage),
    );
    expect(JSON.parse(event)).toEqual({ ...answer, object: "chat.completion.chunk", choices: [], usage });
    const whole = await assembled([...chunksOf(JSON.stringify(hello))!, event]);
    expect(whole).toEqual(hello);
  });

  test("is told as it was written, on one line", () => {
    const written = '{\r\n  "total_tokens": 12345678901234567890,\n  "cost": 1.0\n}\n';
    const event = usageChunkOf({ id: "x" }, written);
    expect(event).toContain('"total_tokens": 12345678901234567890');
    expect(event).toContain('"cost": 1.0');
    expect(event).not.toMatch(/[\r\n]/);
    expect(JSON.parse(event)).toMatchObject({ id: "x", choices: [], usage: { cost: 1 } });
  });
});
