/** How much a body asks for, and what its answer is measured by. */

import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { checksOf, sizeOf, wishOf } from "../../src/api/measure.ts";
import { type ValidateWish, validateAll } from "../../src/core/wishes.ts";
import { serveTest } from "./wire.ts";

const user = (content: unknown) => ({ messages: [{ role: "user", content }] });
/** What the message around a content counts for. */
const around = "user".length;

describe("the size of a call", () => {
  it.each<[string, object, number]>([
    ["nothing", {}, 0],
    ["a text", user("Hello"), around + 5],
    ["Chinese, in bytes", user("日本語"), around + 9],
    ["emoji, in bytes", user("😀"), around + 4],
    ["text in parts", user([{ type: "text", text: "Hello" }]), around + 4 + 5],
    ["a prompt", { prompt: "Hello" }, 5],
    ["inputs", { input: ["Hello", "you"] }, 8],
    [
      "what steers the call",
      { ...user("Hello"), model: "m", user: "u", stop: ["x"], metadata: { a: "b" } },
      around + 5,
    ],
  ])("is that of its text: %s", (_, body, textBytes) => {
    expect(sizeOf({ ...body })).toEqual({ textBytes, mediaTokens: 0 });
  });

  it("has tools and the schema of the answer", () => {
    const tool = { type: "function", function: { name: "f", description: "x".repeat(1000), parameters: {} } };
    const schema = { type: "object", description: "y".repeat(500) };
    expect(sizeOf({ ...user(""), tools: [tool] }).textBytes).toBeGreaterThan(1000);
    const format = { type: "json_schema", json_schema: { name: "n", schema } };
    expect(sizeOf({ ...user(""), response_format: format }).textBytes).toBeGreaterThan(500);
  });

  const data = Buffer.alloc(300_000, 7).toString("base64");
  it.each<[string, object]>([
    ["an image as a data URL", { type: "image_url", image_url: { url: `data:image/png;base64,${data}` } }],
    ["an image at an address", { type: "image_url", image_url: { url: `https://e.org/${"x".repeat(900)}` } }],
    ["an image of another endpoint", { type: "input_image", image_url: `data:image/png;base64,${data}` }],
    ["a sound", { type: "input_audio", input_audio: { data, format: "wav" } }],
    [
      "a file",
      { type: "file", file: { filename: "a.pdf", file_data: `data:application/pdf;base64,${data}` } },
    ],
  ])("reckons a medium for what it is, not for its bytes: %s", (_, part) => {
    const { textBytes, mediaTokens } = sizeOf(user([part, { type: "text", text: "What is it?" }]));
    expect(textBytes).toBeLessThan(100);
    expect(mediaTokens).toBe(1000);
    expect(sizeOf(user([part, part])).mediaTokens).toBe(2000);
  });

  it("takes a long text for a text, whatever its language", () => {
    for (const text of ["word ".repeat(5000), "日本語".repeat(5000), "x = 1;\n".repeat(5000)]) {
      expect(sizeOf(user(text))).toEqual({
        textBytes: around + Buffer.byteLength(text),
        mediaTokens: 0,
      });
    }
  });

  it("reckons tokens as four bytes each, in one list or several", () => {
    expect(sizeOf({ input: [1, 2, 3] }).textBytes).toBe(12);
    expect(sizeOf({ input: [[1, 2, 3], [4]] }).textBytes).toBe(16);
  });

  it.each<[string, object, number | undefined]>([
    ["no limit", {}, undefined],
    ["a limit", { max_tokens: 10 }, 10],
    ["the newer name first", { max_tokens: 10, max_completion_tokens: 20 }, 20],
    ["for each choice", { max_tokens: 10, n: 3 }, 30],
    ["a limit that is none", { max_tokens: "10" }, undefined],
    ["no limit by null", { max_tokens: null }, undefined],
    ["less than nothing", { max_tokens: -1 }, undefined],
    ["half a choice", { max_tokens: 10, n: 0.5 }, 10],
  ])("says how long the answer may be: %s", (_, body, maxOutput) => {
    expect(sizeOf({ ...body }).maxOutput).toBe(maxOutput);
  });

  it("is a number of whatever a caller sends", () => {
    fc.assert(
      fc.property(
        fc.dictionary(fc.constantFrom("messages", "input", "tools", "prompt"), fc.jsonValue()),
        (body) => {
          const { textBytes, mediaTokens } = sizeOf(body);
          expect(Number.isSafeInteger(textBytes) && textBytes >= 0).toBe(true);
          expect(Number.isSafeInteger(mediaTokens) && mediaTokens >= 0).toBe(true);
        },
      ),
    );
  });

  it("of messages nested deeply is no more trouble than any other", async () => {
    const { post, fake } = await serveTest();
    const depth = 50_000;
    const content = `${"[".repeat(depth)}${"]".repeat(depth)}`;
    const body = `{"model":"m","messages":[{"role":"user","content":${content}}]}`;
    const headers = { "outlast-options": '{"cache":{"ttl":"1h"}}' };
    expect((await post("/v1/chat/completions", body, headers)).status).toBe(200);
    const inputs = `{"model":"m","input":${content}}`;
    expect((await post("/v1/embeddings", inputs, headers)).status).toBe(200);
    expect(fake.seen.map((call) => call.body.toString())).toEqual([body, inputs]);
  });
});

describe("what an answer is measured by", () => {
  const usable = () => undefined;
  const wish = (more: Partial<ValidateWish>): ValidateWish => ({ ...validateAll, ...more });
  const json = { response_format: { type: "json_object" } };

  it("is nothing where nobody has asked, and only JSON where JSON was asked for", () => {
    expect(checksOf({}, undefined, usable)).toBeUndefined();
    expect(checksOf(json, undefined, usable)).toEqual({ json: true, invalidIf: [], feedback: false });
    expect(checksOf({ response_format: null }, undefined, usable)).toBeUndefined();
  });

  it("is the caller's schema, else that of response_format", () => {
    const format = { response_format: { type: "json_schema", json_schema: { schema: { a: 1 } } } };
    expect(checksOf(format, wish({}), usable, "outlast")?.schema).toEqual({ a: 1 });
    expect(checksOf(format, wish({ schema: { b: 2 } }), usable, "outlast")?.schema).toEqual({ b: 2 });
    expect(checksOf(format, wish({ json: false }), usable, "outlast")).toMatchObject({
      schema: undefined,
      invalidIf: ["refusal", "content_filter", "length", "empty"],
    });
  });

  it("says what was wished", () => {
    const schemas = [undefined, { a: 1 }, { b: 2 }];
    const formats = [undefined, "text", "json_object", "json_schema"];
    const wishes = fc.record({
      json: fc.boolean(),
      refusal: fc.boolean(),
      length: fc.boolean(),
      empty: fc.boolean(),
      feedback: fc.boolean(),
      schema: fc.constantFrom(...schemas),
      maxRetries: fc.nat(10),
    });
    fc.assert(
      fc.property(
        wishes,
        fc.constantFrom(...formats),
        fc.constantFrom(...schemas),
        (wished, type, schema) => {
          const body = { response_format: { type, json_schema: { schema } } };
          const checks = checksOf(body, wished, usable)!;
          const again = wishOf(checks, wished.maxRetries, body);
          if (again) expect(checksOf(body, again, usable)).toEqual(checks);
          else expect(checks.invalidIf).toEqual([]);
        },
      ),
    );
  });

  it("takes another body's schema where it was that of response_format, and keeps the caller's own", () => {
    const format = (schema: object) => ({
      response_format: { type: "json_schema", json_schema: { schema } },
    });
    const [before, after] = [format({ a: 1 }), format({ c: 3 })];
    for (const [own, schema] of [
      [undefined, { c: 3 }],
      [{ b: 2 }, { b: 2 }],
    ]) {
      const checks = checksOf(before, wish({ schema: own }), usable);
      expect(checksOf(after, wishOf(checks, 2, before), usable)?.schema).toEqual(schema);
    }
  });

  it("leaves a schema that cannot be used to who has not asked, and refuses it otherwise", () => {
    const broken = () => "it is broken";
    const given = wish({ schema: {} });
    expect(checksOf({}, given, broken)?.schema).toBeUndefined();
    expect(() => checksOf({}, given, broken, "options")).toThrow(/options\.validate\.schema.*it is broken/);
  });
});
