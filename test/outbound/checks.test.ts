/** What recorded calls are told about their answers, over real sockets: findings, verdicts, and the way back. */

import { afterEach, beforeEach, describe, expect, it, test } from "vitest";
import type { Checks } from "../../src/core/ports.ts";
import type { Problem } from "../../src/core/request.ts";
import { createUpstream } from "../../src/outbound/upstream.ts";
import { type EitherCall, endOfCall } from "../support/call-end.ts";
import { HandClock } from "../support/clock.ts";
import { answer, deltas, type FakeUpstream, fail, startFake, stream } from "../support/fake-upstream.ts";

let fake: FakeUpstream;
let upstream: ReturnType<typeof createUpstream>;

beforeEach(async () => {
  fake = await startFake();
  const options = { name: "up", baseUrl: fake.baseUrl, headers: {}, maxConcurrency: 4, streamUsage: false };
  upstream = createUpstream([options], { connectMs: 5000, attemptMs: 5000 }, new HandClock());
});
afterEach(async () => {
  await upstream.close();
  await fake.close();
});

const chatBody = '{"model":"fake","messages":[{"role":"user","content":"hi"}]}';

async function called(call: Partial<EitherCall> & { text?: string } = {}) {
  const { text = chatBody, ...more } = call;
  const whole: EitherCall = {
    upstream: "up",
    model: "fake",
    askedModel: "fake",
    method: "POST",
    path: "/chat/completions",
    headers: [["content-type", "application/json"]],
    body: Buffer.from(text),
    ...more,
  };
  const { outcome } = await endOfCall(upstream, whole, { aborted: false, onAbort: undefined });
  if (outcome?.kind !== "response") throw new Error(`the outcome is ${JSON.stringify(outcome)}`);
  return { ...outcome, text: Buffer.from(outcome.body).toString() };
}

const all: Problem[] = ["refusal", "content_filter", "length", "empty", "invalid_json", "schema_mismatch"];
const schema = { type: "object", properties: { age: { type: "number" } }, required: ["age"] };
const checks: Checks = { json: true, schema, invalidIf: all, feedback: true };

const chunk = (delta: object, finish_reason: string | null = null) =>
  JSON.stringify({
    id: "chatcmpl-1",
    object: "chat.completion.chunk",
    created: 1,
    model: "fake",
    choices: [{ index: 0, delta, finish_reason }],
  });
const streamed = { stream: { usage: false } };

describe.each([
  ["a plain answer", {}, (text: string) => answer({ text })],
  ["an answer in place of a stream", streamed, (text: string) => answer({ text })],
  ["a stream", streamed, (text: string) => stream(deltas(text.slice(0, 3), text.slice(3)))],
])("%s", (_, how, says) => {
  const facts = async (text: string, more: Partial<EitherCall> = {}) => {
    fake.script(says(text));
    return (await called({ ...how, ...more })).facts;
  };

  it("is read for what it is, though nobody asked", async () => {
    const read = await facts("Hello");
    expect(read.findings).toEqual({ finishReason: "stop", problems: [] });
    expect(read).not.toHaveProperty("invalid");
  });

  it("is valid where it follows the schema", async () => {
    const read = await facts('{"age":7}', { checks });
    expect(read.findings).toEqual({ finishReason: "stop", problems: [] });
    expect(read).not.toHaveProperty("invalid");
  });

  it("is invalid where it does not, and says why without a word of its own", async () => {
    const read = await facts('{"age":"seven"}', { checks });
    expect(read.findings).toEqual({
      finishReason: "stop",
      problems: ["schema_mismatch"],
      details: ["/age must be number"],
    });
    expect(read.invalid).toEqual(["the content does not follow the schema: /age must be number"]);
    expect(read.feedback?.map((message) => JSON.parse(message))).toEqual([
      { role: "assistant", content: '{"age":"seven"}' },
      { role: "user", content: expect.stringContaining("/age must be number") },
    ]);
  });

  it("is only noted where nothing makes it invalid", async () => {
    const read = await facts("Hello", { checks: { ...checks, invalidIf: [] } });
    expect(read.findings?.problems).toEqual(["invalid_json"]);
    expect(read).not.toHaveProperty("invalid");
    expect(read).not.toHaveProperty("feedback");
  });
});

describe("a stream", () => {
  test.each<[string, string[], Problem[]]>([
    ["a refusal", [chunk({ role: "assistant" }), chunk({ refusal: "No" }), chunk({}, "stop")], ["refusal"]],
    ["a cut text", [chunk({ content: "He" }), chunk({}, "length")], ["length"]],
    ["nothing", [chunk({ role: "assistant", content: "" }), chunk({}, "stop")], ["empty"]],
    ["a filtered text", [chunk({ content: "He" }), chunk({}, "content_filter")], ["content_filter"]],
    [
      "a broken tool call",
      [
        chunk({ tool_calls: [{ index: 0, id: "c", function: { name: "f", arguments: '{"a"' } }] }),
        chunk({ tool_calls: [{ index: 0, function: { arguments: ":" } }] }),
        chunk({}, "tool_calls"),
      ],
      ["invalid_json"],
    ],
  ])("of %s is read whole", async (_, chunks, problems) => {
    fake.script(stream(chunks));
    const { facts } = await called({ ...streamed, checks: { ...checks, json: false, schema: undefined } });
    expect(facts.findings?.problems).toEqual(problems);
    expect(facts.invalid).toHaveLength(1);
  });

  it("that ends with an error has no findings", async () => {
    fake.script(stream([chunk({ content: "He" }), JSON.stringify({ error: { message: "overloaded" } })]));
    const { facts } = await called({ ...streamed, checks });
    expect(facts.error?.message).toBe("overloaded");
    expect(facts).not.toHaveProperty("findings");
  });

  it("that is answered with what cannot be told as one has none", async () => {
    fake.script(answer({ body: { object: "text_completion", choices: [{ text: "" }] } }));
    const { facts } = await called({ ...streamed, checks });
    expect(facts).toMatchObject({ wellFormed: false });
    expect(facts).not.toHaveProperty("invalid");
  });
});

test("an error has no findings, whatever else is in it", async () => {
  const choices = [{ message: { content: "" }, finish_reason: "stop" }];
  fake.script(
    fail(400),
    answer({ body: { error: { message: "no" }, choices } }),
    answer({ status: 500, body: { choices } }),
  );
  for (let i = 0; i < 3; i++) expect((await called({ checks })).facts).not.toHaveProperty("findings");
});

describe("what a model is told of its last answer", () => {
  const said = [
    JSON.stringify({ role: "assistant", content: "Größe “1” 😀" }),
    JSON.stringify({ role: "user", content: "Näher!" }),
  ];
  const body =
    '{ "messages" : [ {"role":"user","content":"na\\u00efve ü 日"} ] , "seed": 9007199254740993, "model":"fake"}';
  const sent = (at: number) => fake.seen[at]!.body.toString();

  it("stands behind the messages, and every other byte stays", async () => {
    const expected = body.replace('日"} ]', `日"} ,${said.join(",")}]`);
    fake.script(answer(), stream(deltas("ok")));
    await called({ text: body, feedback: said });
    await called({ text: body, feedback: said, ...streamed });
    expect(sent(0)).toBe(expected);
    expect(sent(1)).toBe(expected);
  });

  it("goes together with another name of the model", async () => {
    await called({ text: body, feedback: said, model: "größer" });
    expect(JSON.parse(sent(0))).toEqual({
      messages: [{ role: "user", content: "naïve ü 日" }, ...said.map((message) => JSON.parse(message))],
      seed: JSON.parse("9007199254740993"),
      model: "größer",
    });
    expect(sent(0)).toContain("9007199254740993");
  });

  it("is the first message where there was none", async () => {
    await called({ text: '{"messages":[ ],"model":"fake"}', feedback: said });
    expect(sent(0)).toBe(`{"messages":[ ${said.join(",")}],"model":"fake"}`);
  });

  test.each(['{"model":"fake","prompt":"a"}', '{"messages":"a"}', "no JSON"])(
    "has no place in %s",
    async (text) => {
      await called({ text, feedback: said });
      expect(sent(0)).toBe(text);
    },
  );
});

test("an answer with embeddings is told with its model and usage, and has no findings", async () => {
  const item = { object: "embedding", index: 0, embedding: [0.25] };
  const usage = { prompt_tokens: 2, total_tokens: 2 };
  fake.script(answer({ body: { object: "list", data: [item], model: "emb-1", usage } }));
  const { facts } = await called({ path: "/embeddings", text: '{"model":"fake","input":"a"}', checks });
  expect(fake.seen[0]!.url).toBe("/v1/embeddings");
  expect(facts).toEqual({ wellFormed: true, model: "emb-1", usage: JSON.stringify(usage) });
});

test("a schema is refused before anything is measured by it", () => {
  expect(upstream.schemaProblem(schema)).toBeUndefined();
  expect(upstream.schemaProblem({ type: "strng" })).toBe("/type must be equal to one of the allowed values");
});
