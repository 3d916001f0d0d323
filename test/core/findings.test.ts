import { describe, expect, it, test } from "vitest";
import { measure } from "../../src/core/findings.ts";
import type { Checks } from "../../src/core/ports.ts";
import type { Problem } from "../../src/core/request.ts";

const all: Problem[] = ["refusal", "content_filter", "length", "empty", "invalid_json", "schema_mismatch"];
const json: Checks = { json: true, invalidIf: all, feedback: true };

/** Follows: the value is a number. */
const isNumber = (_schema: unknown, value: unknown) =>
  typeof value === "number" ? [] : ["the root must be number"];

const choice = (message: object, finish_reason = "stop") => ({ index: 0, message, finish_reason });
const chat = (...choices: object[]) => ({ id: "a", object: "chat.completion", choices });
const says = (content: unknown, finish?: string) => chat(choice({ role: "assistant", content }, finish));
const calls = (text: string) => [{ id: "c", type: "function", function: { name: "f", arguments: text } }];
const measured = (answer: Record<string, unknown>, checks?: Checks) => measure(answer, checks, isNumber);
const problems = (answer: Record<string, unknown>, checks?: Checks) =>
  measured(answer, checks)?.findings?.problems;

describe("problems of an answer", () => {
  test.each<[string, Record<string, unknown>, Problem[]]>([
    ["a text", says("Hello"), []],
    ["a text in parts", says([{ type: "text", text: "Hello" }]), []],
    ["a picture in parts", says([{ type: "image_url", image_url: {} }]), []],
    ["a refusal", chat(choice({ content: null, refusal: "No." })), ["refusal"]],
    ["a refusal in parts", says([{ type: "refusal", refusal: "No." }]), ["refusal"]],
    ["an empty refusal beside a text", chat(choice({ content: "Hello", refusal: "" })), []],
    ["a filtered text", says("He", "content_filter"), ["content_filter"]],
    ["nothing, filtered", says(null, "content_filter: SAFETY"), ["content_filter", "empty"]],
    ["a cut text", says("He", "length"), ["length"]],
    ["a cut text of another provider", says("He", "MAX_TOKENS"), ["length"]],
    ["nothing", says(null), ["empty"]],
    ["white space", says(" \n"), ["empty"]],
    ["no part", says([]), ["empty"]],
    ["only thoughts", says([{ type: "thinking", thinking: "Hm." }]), ["empty"]],
    ["no choice", chat(), ["empty"]],
    ["one empty choice of two", chat(choice({ content: "Hello" }), choice({ content: "" })), ["empty"]],
    ["a sound", chat(choice({ content: null, audio: { id: "a" } })), []],
    ["pictures beside the text", chat(choice({ content: "", images: [{}] })), []],
    ["a tool call", chat(choice({ content: null, tool_calls: calls('{"a":1}') })), []],
    ["a tool call without arguments", chat(choice({ tool_calls: calls("") })), []],
    ["a broken tool call", chat(choice({ tool_calls: calls('{"a":') })), ["invalid_json"]],
    ["a free one", chat(choice({ tool_calls: [{ type: "custom", custom: { input: "{" } }] })), []],
    ["a broken function call", chat(choice({ function_call: { arguments: "{" } })), ["invalid_json"]],
    ["a legacy completion", { object: "text_completion", choices: [{ text: "\n" }] }, []],
    ["an empty one", { object: "text_completion", choices: [{ text: "" }] }, ["empty"]],
  ])("%s", (_, answer, found) => expect(problems(answer)).toEqual(found));

  it("names each problem once, and the reason of the first choice's end", () => {
    const answer = chat(choice({ content: "" }, "length"), choice({ content: "" }, "stop"));
    expect(measured(answer)).toEqual({ findings: { finishReason: "length", problems: ["length", "empty"] } });
  });

  test.each<[string, Record<string, unknown>]>([
    ["embeddings", { object: "list", data: [] }],
    ["a list of nothing", { choices: [] }],
    ["chunks", { object: "chat.completion.chunk", choices: [{ delta: { content: "a" } }] }],
    ["something else", { choices: ["a", "b"] }],
  ])("are not looked for in %s", (_, answer) => expect(measured(answer, json)).toBeUndefined());
});

describe("JSON that was asked for", () => {
  it.each(['{"a":1}', "1", ' "text" '])("is %s", (content) => {
    expect(measured(says(content), json)).toEqual({ findings: { finishReason: "stop", problems: [] } });
  });

  it("is not there in a text", () => expect(problems(says("Hello"), json)).toEqual(["invalid_json"]));

  it("is not looked for where nobody asked", () => expect(problems(says("Hello"))).toEqual([]));

  it("is not expected of who calls a tool, or refuses", () => {
    expect(problems(chat(choice({ content: "Wait", tool_calls: calls("{}") })), json)).toEqual([]);
    expect(problems(chat(choice({ content: null, refusal: "No." })), json)).toEqual(["refusal"]);
  });

  it("is not what stands in a code fence, and the reason says so", () => {
    const { invalid } = measured(says('```json\n{"a":1}\n```'), json)!;
    expect(invalid).toEqual(["the content is not JSON, but Markdown: a code fence stands around it"]);
  });
});

describe("a schema", () => {
  const schema: Checks = { json: false, schema: {}, invalidIf: ["schema_mismatch"], feedback: false };

  it("is followed or not", () => {
    expect(problems(says("1"), schema)).toEqual([]);
    expect(measured(says('"one"'), schema)).toEqual({
      findings: {
        finishReason: "stop",
        problems: ["schema_mismatch"],
        details: ["the root must be number"],
      },
      invalid: ["the content does not follow the schema: the root must be number"],
    });
  });

  it("is not followed by what is no JSON", () => {
    expect(measured(says("one"), schema)).toMatchObject({
      findings: { problems: ["invalid_json"] },
      invalid: ["the content is not JSON"],
    });
  });

  it("has at most ten places where it is not followed, over all choices", () => {
    const many = (_: unknown, value: unknown) => Array.from({ length: 7 }, (_, at) => `/${at} of ${value}`);
    const answer = chat(choice({ content: "1" }), choice({ content: "2" }));
    expect(measure(answer, schema, many)?.findings?.details).toHaveLength(10);
  });
});

describe("an invalid answer", () => {
  it("is one with a problem that makes it one", () => {
    const cut = says("He", "length");
    expect(measured(cut, { ...json, json: false, invalidIf: ["length"] })?.invalid).toEqual([
      "the answer was cut off by its limit of tokens",
    ]);
    expect(measured(cut, { ...json, json: false, invalidIf: ["refusal"] })?.invalid).toBeUndefined();
    expect(measured(cut, { ...json, invalidIf: [] })).toEqual({
      findings: { finishReason: "length", problems: ["length", "invalid_json"] },
    });
  });

  it("has every reason once", () => {
    const answer = chat(choice({ content: "" }), choice({ content: "" }));
    expect(measured(answer, json)?.invalid).toEqual(["the answer is empty", "the content is not JSON"]);
    expect(measured(chat(), json)?.invalid).toEqual(["the answer is empty"]);
  });

  const feedbackOf = (answer: Record<string, unknown>, checks = json) =>
    measured(answer, checks)?.feedback?.map((message) => JSON.parse(message));

  it("goes back to the model as it came, with what is wrong with it", () => {
    const [answer, complaint, ...more] = feedbackOf(says("Größe: “1”\u2028\ud800"))!;
    expect(answer).toEqual({ role: "assistant", content: "Größe: “1”\u2028\ud800" });
    expect(complaint.role).toBe("user");
    expect(complaint.content).toContain("- the content is not JSON\n");
    expect(more).toEqual([]);
  });

  it("that is invalid in a later choice goes back with that one", () => {
    const answer = chat(choice({ content: "1" }), choice({ content: "two" }));
    expect(feedbackOf(answer)?.[0]).toEqual({ role: "assistant", content: "two" });
  });

  it("of parts goes back in parts", () => {
    const parts = [{ type: "text", text: "one" }];
    expect(feedbackOf(says(parts))?.[0]).toEqual({ role: "assistant", content: parts });
  });

  it("without a content leaves only the complaint: an empty message is refused by some", () => {
    const answers = [says(""), chat(), chat(choice({ content: null, tool_calls: calls("{") }))];
    for (const answer of answers) expect(feedbackOf(answer)).toMatchObject([{ role: "user" }]);
  });

  it("does not go back where nobody asked, nor where there are no messages", () => {
    expect(feedbackOf(says("one"), { ...json, feedback: false })).toBeUndefined();
    const legacy = { object: "text_completion", choices: [{ text: "" }] };
    expect(measured(legacy, json)).toMatchObject({
      invalid: ["the answer is empty", "the content is not JSON"],
    });
    expect(feedbackOf(legacy)).toBeUndefined();
  });
});
