/** Answers are read for what is wrong with them, and given to nobody where that was asked for (`validate`). */

import OpenAI from "openai";
import { describe, expect, it } from "vitest";
import { HandClock } from "../support/clock.ts";
import { answer, deltas, type FakeUpstream, fail, type Step, stream } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick } from "../support/outlast.ts";
import { errorOf, refusalOf, serveGroup, serveTest, strictAttempt, strictRequest } from "./wire.ts";

const path = "/v1/chat/completions";
let outlast: Outlast;

const group = (options?: OutlastOptions) =>
  serveGroup(
    (one) => {
      outlast = one;
    },
    { env: quick, ...options },
  );

async function start(options: OutlastOptions = {}): Promise<Outlast> {
  outlast = await serveTest({ env: quick, ...options });
  return outlast;
}

type Message = Record<string, unknown>;
const usage = { prompt_tokens: 5, completion_tokens: 1, total_tokens: 6 };
const says = (message: Message | string, finish_reason = "stop"): Step =>
  answer({ body: completionOf(typeof message === "string" ? { content: message } : message, finish_reason) });
const completionOf = (message: Message, finish_reason: string) => ({
  id: "chatcmpl-1",
  object: "chat.completion",
  created: 1_700_000_000,
  model: "fake",
  choices: [{ index: 0, message: { role: "assistant", ...message }, logprobs: null, finish_reason }],
  usage,
});

/** The same as a stream. */
function tells(message: Message, finish_reason = "stop"): Step {
  const event = (delta: object, finish: string | null) =>
    JSON.stringify({
      id: "chatcmpl-1",
      object: "chat.completion.chunk",
      created: 1_700_000_000,
      model: "fake",
      choices: [{ index: 0, delta, finish_reason: finish }],
    });
  return stream([event({ role: "assistant", ...message }, null), event({}, finish_reason)]);
}

async function recordOf(response: Response, query = "?include=attempts") {
  return recordNamed(response.headers.get("outlast-request-id")!, query);
}

async function recordNamed(id: string, query = "?include=attempts") {
  return strictRequest.parse(await (await outlast.fetch(`/v1/requests/${id}${query}`)).json());
}

async function attemptsOf(response: Response) {
  const id = response.headers.get("outlast-request-id");
  const list = (await (await outlast.fetch(`/v1/requests/${id}/attempts`)).json()) as { data: unknown[] };
  return list.data.map((one) => strictAttempt.parse(one));
}

const contentOf = async (response: Response): Promise<unknown> =>
  ((await response.json()) as OpenAI.ChatCompletion).choices[0]?.message.content;
const bodies = (fake: FakeUpstream): string[] => fake.seen.map(({ body }) => body.toString());

const jsonObject = { response_format: { type: "json_object" } };
const wantsYear = { type: "object", properties: { year: { type: "integer" } }, required: ["year"] };
const jsonSchema = (schema: unknown) => ({
  response_format: { type: "json_schema", json_schema: { name: "answer", schema } },
});
const brokenCall = {
  content: null,
  tool_calls: [{ index: 0, id: "c1", type: "function", function: { name: "f", arguments: '{"a":' } }],
};

describe("what is wrong with an answer that nobody validates", () => {
  group();

  it.each<[string, Message, string, object, string[]]>([
    ["nothing", { content: "Hi" }, "stop", {}, []],
    ["that it refuses", { content: null, refusal: "I cannot." }, "stop", {}, ["refusal"]],
    ["that a filter cut it", { content: "So" }, "content_filter", {}, ["content_filter"]],
    ["that it was cut off", { content: "So" }, "length", {}, ["length"]],
    ["that it is empty", { content: "" }, "stop", {}, ["empty"]],
    ["that it is no JSON", { content: "{oops" }, "stop", jsonObject, ["invalid_json"]],
    ["that it calls a tool with no JSON", brokenCall, "tool_calls", {}, ["invalid_json"]],
  ])("stands on record and attempt, and does no harm: %s", async (_, message, finish, more, problems) => {
    const { fake, post } = outlast;
    const findings = { finish_reason: finish, problems };
    fake.script(says(message, finish), tells(message, finish));
    for (const asked of [{}, { stream: true }]) {
      const response = await post(path, { ...hello, ...more, ...asked });
      expect(response.status).toBe(200);
      await response.text();
      expect(await recordOf(response)).toMatchObject({ status: "completed", attempts: 1, findings });
      expect(await attemptsOf(response)).toMatchObject([{ verdict: "success", counted: true, findings }]);
    }
  });

  it("is nothing where the schema that was asked for cannot be used", async () => {
    const { fake, post } = outlast;
    fake.script(says("[]"));
    const response = await post(path, { ...hello, ...jsonSchema({ type: "nonsense" }) });
    expect(response.status).toBe(200);
    expect(await recordOf(response)).toMatchObject({ findings: { finish_reason: "stop", problems: [] } });
  });
});

describe("an answer that is not valid", () => {
  group();

  it.each<[string, unknown, object, Step, string]>([
    ["no JSON", true, jsonObject, says("Sure! {}"), "invalid_json"],
    ["no JSON, where only that counts", { json: true }, jsonObject, says("Sure"), "invalid_json"],
    ["against the schema of response_format", true, jsonSchema(wantsYear), says("{}"), "schema_mismatch"],
    ["against a schema of its own", { schema: wantsYear }, {}, says('{"year":"x"}'), "schema_mismatch"],
    ["no JSON, with a schema of its own", { schema: wantsYear }, {}, says("1990!"), "invalid_json"],
    ["a refusal", true, {}, says({ content: null, refusal: "No." }), "refusal"],
    ["withheld by a filter", true, {}, says("", "content_filter"), "content_filter"],
    ["cut off", true, {}, says("So it", "length"), "length"],
    ["empty", {}, {}, says(" \n"), "empty"],
    ["a tool call that is no JSON", true, {}, says(brokenCall, "tool_calls"), "invalid_json"],
  ])("is tried again at once: %s", async (_, validate, more, bad, problem) => {
    const { fake, post } = outlast;
    fake.script(bad, says('{"year":1990}'));
    const response = await post(path, { ...hello, ...more, outlast: { validate, max_attempts: 1 } });
    expect([response.status, await contentOf(response)]).toEqual([200, '{"year":1990}']);
    expect(response.headers.get("outlast-attempts")).toBe("2");
    const [first, second] = await attemptsOf(response);
    expect(first).toMatchObject({
      verdict: "invalid_output",
      counted: false,
      status: 200,
      reason: "invalid_output",
      error_code: "invalid_output",
      usage,
      findings: { problems: expect.arrayContaining([problem]) },
    });
    expect(second).toMatchObject({ verdict: "success", counted: true, findings: { problems: [] } });
    expect(await recordOf(response)).toMatchObject({
      status: "completed",
      attempts: 2,
      usage,
      findings: { finish_reason: "stop", problems: [] },
    });
    expect(bodies(fake)[1]).toBe(bodies(fake)[0]);
  });

  it.each<[string, unknown, object, Step]>([
    ["a refusal", { refusal: false }, {}, says({ content: null, refusal: "No." })],
    ["cut off", { length: false }, {}, says("So it", "length")],
    ["empty", { empty: false }, {}, says("")],
    ["no JSON", { json: false }, jsonObject, says("no")],
    ["anything, for `false`", false, jsonObject, says("", "length")],
    ["free text, where no JSON was asked for", true, {}, says("no")],
    [
      "one that calls a tool instead of giving JSON",
      true,
      jsonObject,
      says(
        {
          content: null,
          tool_calls: [{ id: "c", type: "function", function: { name: "f", arguments: "{}" } }],
        },
        "tool_calls",
      ),
    ],
  ])("is one only by what was asked for, and not: %s", async (_, validate, more, step) => {
    const { fake, post } = outlast;
    fake.script(step);
    const response = await post(path, { ...hello, ...more, outlast: { validate } });
    expect(response.status).toBe(200);
    expect(fake.seen).toHaveLength(1);
  });

  it("is one where any of its choices is", async () => {
    const { fake, post } = outlast;
    const [choice] = completionOf({ content: "{}" }, "stop").choices;
    const second = { ...choice, index: 1, message: { role: "assistant", content: "{" } };
    fake.script(answer({ body: { ...completionOf({}, "stop"), choices: [choice, second] } }), says("{}"));
    const response = await post(path, { ...hello, ...jsonObject, n: 2, outlast: { validate: true } });
    expect([response.status, fake.seen.length]).toEqual([200, 2]);
  });

  it("says where it does not follow the schema, and quotes nothing of itself", async () => {
    const { fake, post } = outlast;
    fake.script(says('{"year":"hidden words","owner":"hidden words"}'), says('{"year":1}'));
    const schema = { ...wantsYear, additionalProperties: false };
    const response = await post(path, { ...hello, outlast: { validate: { schema } } });
    const [first] = await attemptsOf(response);
    expect(first?.findings?.details).toEqual(
      expect.arrayContaining([expect.stringContaining("/year"), expect.stringContaining("additional")]),
    );
    expect(first?.error_message).toContain("/year");
    expect(JSON.stringify([first, outlast.ear.heard])).not.toContain("hidden words");
  });

  it.each([0, 1, 3])("ends the request with 502 after %i further ones, and is kept", async (most) => {
    const { fake, post, fetch } = outlast;
    fake.otherwise((call, res) => says(`{"try":${call.n}}`)(call, res));
    const validate = { schema: wantsYear, max_retries: most };
    const response = await post(path, { ...hello, seed: most, outlast: { validate, max_attempts: 1 } });
    expect(response.status).toBe(502);
    expect(response.headers.get("x-should-retry")).toBe("false");
    const { code, message, param } = await errorOf(response);
    expect([code, param, message]).toEqual(["invalid_output", null, expect.stringContaining("year")]);
    expect(fake.seen).toHaveLength(most + 1);
    const record = await recordOf(response);
    expect(record).toMatchObject({
      status: "failed",
      attempts: most + 1,
      error: { code: "invalid_output", status: 502 },
      last_error_code: "invalid_output",
      result: { choices: [{ message: { content: `{"try":${most + 1}}` } }] },
      findings: { problems: ["schema_mismatch"] },
    });
    const attempts = await attemptsOf(response);
    expect(attempts).toHaveLength(most + 1);
    expect(attempts.every(({ verdict, counted }) => verdict === "invalid_output" && !counted)).toBe(true);
    const later = await fetch(`${path}/${record.id}`);
    expect(await refusalOf(later)).toEqual({ status: 502, code: "invalid_output", param: null });
  });

  it("has two further attempts unless told otherwise, and leaves those that count alone", async () => {
    const { fake, post } = outlast;
    fake.script(says(""), fail(500), says(""), fail(500), says(""));
    const failed = await post(path, { ...hello, outlast: { validate: true, max_attempts: 3 } });
    expect(await refusalOf(failed)).toEqual({ status: 502, code: "invalid_output", param: null });
    expect(fake.seen).toHaveLength(5);
    expect((await attemptsOf(failed)).map(({ counted }) => counted)).toEqual([
      false,
      true,
      false,
      true,
      false,
    ]);
  });

  it("is an error that the SDK throws, once", async () => {
    const { fake, client } = outlast;
    fake.otherwise(says(""));
    const headers = { "Outlast-Options": '{"validate":{"max_retries":0}}' };
    const call = client({ maxRetries: 3 }).chat.completions.create(hello, { headers });
    const error = await call.then(
      () => undefined,
      (reason) => reason,
    );
    expect(error).toBeInstanceOf(OpenAI.InternalServerError);
    expect(error).toMatchObject({ status: 502, code: "invalid_output" });
    expect(fake.seen).toHaveLength(1);
  });

  it("is waited out by async callers, too", async () => {
    const { fake, post, ear } = outlast;
    fake.script(says(""), says("", "length"));
    const validate = { max_retries: 1 };
    const taken = await post(path, { ...hello, wait: false, outlast: { validate } });
    expect(taken.status).toBe(202);
    const { id } = (await taken.json()) as { id: string };
    await ear.event("ended", (told) => told.id === id);
    expect(await recordNamed(id)).toMatchObject({
      status: "failed",
      result: { choices: [{ finish_reason: "length" }] },
      findings: { finish_reason: "length", problems: ["length", "empty"] },
    });
  });

  it("does not hold its upstream to be broken", async () => {
    const { fake, post } = await start({ env: {} });
    fake.otherwise(says(""));
    for (let i = 0; i < 12; i++) {
      const response = await post(path, { ...hello, seed: i, outlast: { validate: { max_retries: 0 } } });
      expect(response.status).toBe(502);
    }
    expect(fake.seen).toHaveLength(12);
  });

  it("costs what it costs: the record adds up, its usage is that of the answer alone", async () => {
    const { fake, post } = await start({ tables: '[prices."gpt-test"]\ninput = 100000\noutput = 500000' });
    fake.script(says(""), says("Hi"));
    const response = await post(path, { ...hello, outlast: { validate: true } });
    const attempts = await attemptsOf(response);
    expect(attempts.map(({ cost }) => cost)).toEqual([1, 1]);
    expect(await recordOf(response)).toMatchObject({ usage, cost: 2 });
  });
});

describe("the same idempotency key after answers that were not valid", () => {
  it("starts a new round with a budget of its own, told nothing of the last one", async () => {
    const { fake, post } = await start();
    const asked = { ...hello, outlast: { validate: { max_retries: 1, feedback: true } } };
    const key = { "idempotency-key": "k" };
    fake.script(says("a", "length"), says("b", "length"), says("c", "length"), says("whole"));
    const first = await post(path, asked, key);
    expect(await refusalOf(first)).toEqual({ status: 502, code: "invalid_output", param: null });
    const again = await post(path, asked, key);
    expect([again.status, await contentOf(again)]).toEqual([200, "whole"]);
    expect(again.headers.get("outlast-request-id")).toBe(first.headers.get("outlast-request-id"));
    const attempts = await attemptsOf(again);
    expect(attempts.map(({ round, number }) => [round, number])).toEqual([
      [1, 1],
      [1, 2],
      [2, 3],
      [2, 4],
    ]);
    expect(bodies(fake)[2]).toBe(JSON.stringify(hello));
    expect(bodies(fake)[3]).toContain('"content":"c"');
    const replay = await post(path, asked, key);
    expect([replay.headers.get("idempotent-replayed"), await contentOf(replay)]).toEqual(["true", "whole"]);
    expect(fake.seen).toHaveLength(4);
  });
});

describe("who says what is valid", () => {
  const bad = says("So it", "length");
  const callsOf = async (fake: FakeUpstream, call: Promise<Response>): Promise<[number, number]> => {
    const before = fake.seen.length;
    const { status } = await call;
    return [status, fake.seen.length - before];
  };

  it("is the caller in body or header, the body first; else the route; else the configuration", async () => {
    const { fake, post } = await start({
      toml: [
        "[defaults.validate]\nmax_retries = 1",
        '[routes."strict"]\ntargets = ["fake/s"]\nvalidate = { max_retries = 3 }',
        '[routes."lax"]\ntargets = ["fake/l"]\nvalidate = false',
      ].join("\n"),
    });
    fake.otherwise(bad);
    const header = (validate: unknown) => ({ "outlast-options": JSON.stringify({ validate }) });
    const ask = (model: string, options: object, headers = {}) =>
      callsOf(fake, post(path, { ...hello, model, ...options }, headers));
    const none = { outlast: { validate: { max_retries: 0 } } };
    expect(await ask("any", {})).toEqual([502, 2]);
    expect(await ask("strict", {})).toEqual([502, 4]);
    expect(await ask("lax", {})).toEqual([200, 1]);
    expect(await ask("lax", { outlast: { validate: true } })).toEqual([502, 3]);
    expect(await ask("strict", none)).toEqual([502, 1]);
    expect(await ask("strict", {}, header({ max_retries: 2 }))).toEqual([502, 3]);
    expect(await ask("any", none, header({ max_retries: 2 }))).toEqual([502, 1]);
    expect(await ask("any", { outlast: { validate: false } }, header(true))).toEqual([200, 1]);
    expect(await ask("any", { outlast: { tags: ["x"] } }, header(false))).toEqual([200, 1]);
  });

  it("by a configuration that validates, no schema that cannot be used is refused", async () => {
    const { fake, post } = await start({ toml: "[defaults]\nvalidate = true" });
    const asked = { ...hello, ...jsonSchema({ type: "nonsense" }) };
    fake.script(says("{}"), says("no"), says("{}"));
    expect((await post(path, asked)).status).toBe(200);
    expect((await post(path, { ...asked, seed: 1 })).status).toBe(200);
    expect(fake.seen).toHaveLength(3);
  });
});

describe("feedback", () => {
  const feedback = { validate: { schema: wantsYear, feedback: true, max_retries: 5 } };
  const options = { "outlast-options": JSON.stringify(feedback) };
  const before =
    '{ "model":"gpt-test","seed":9007199254740993,\n"messages" : [{"role":"user","content":"Jahr? é😀"} ';
  const after = '], "x":"日本"\t}';
  const whole = `${before}${after}`;

  it("stands behind the messages of the body, which stays as it came", async () => {
    const { fake, post } = await start();
    fake.script(says('{"jahr":"für 日本 😀"}'), says("null"), says('{"year":1}'));
    expect((await post(path, whole, options)).status).toBe(200);
    const [first, second, third] = bodies(fake);
    expect(first).toBe(whole);
    for (const [body, said] of [
      [second, '{"jahr":"für 日本 😀"}'],
      [third, "null"],
    ]) {
      expect(body?.startsWith(before)).toBe(true);
      expect(body?.endsWith(after)).toBe(true);
      const { messages } = JSON.parse(body!) as { messages: Message[] };
      expect(messages).toHaveLength(3);
      expect(messages[1]).toEqual({ role: "assistant", content: said });
      expect(messages[2]).toMatchObject({ role: "user", content: expect.stringMatching(/schema/) });
    }
  });

  it("is told again where the attempt that was told it failed otherwise, and after a restart", async () => {
    const clock = new HandClock();
    const first = await start({ clock, env: {} });
    const { fake, dir, fakes } = first;
    fake.script(says("{}"), fail(500), says('{"year":1}'));
    const taken = await first.post(path, JSON.stringify({ ...JSON.parse(whole), wait: false }), options);
    const { id } = (await taken.json()) as { id: string };
    await first.ear.event("attempt_ended", ({ attempt }) => attempt === 2);
    await first.stop();
    clock.advance(3_600_000);
    const second = await start({ clock, dir, upstreams: fakes, env: {} });
    await second.ear.event("ended", (told) => told.id === id);
    expect(await recordNamed(id)).toMatchObject({ status: "completed", attempts: 3 });
    const told = bodies(fake).slice(1);
    expect(told).toHaveLength(2);
    expect(told[1]).toBe(told[0]);
    expect(told[0]).toContain('"role":"assistant"');
  });

  it("goes to the model under the name that it has there, and to a stream, too", async () => {
    const { fake, post } = await start({ toml: '[routes]\n"gpt-test" = ["fake/other"]' });
    fake.script(stream(deltas("{}")), stream(deltas('{"year":', "1}")));
    const response = await post(path, { ...hello, stream: true }, options);
    expect(response.status).toBe(200);
    expect(await response.text()).not.toContain("{}\\");
    const { model, messages, stream: streamed } = JSON.parse(bodies(fake)[1]!) as Record<string, unknown>;
    expect([model, streamed]).toEqual(["other", true]);
    expect(messages).toEqual([
      ...hello.messages,
      { role: "assistant", content: "{}" },
      { role: "user", content: expect.stringContaining("schema") },
    ]);
  });
});

describe("a stream that is validated", () => {
  group();
  const asked = { ...hello, stream: true as const };
  const validate = (wish: unknown) => ({
    headers: { "outlast-options": JSON.stringify({ validate: wish }) },
  });

  it("is told only when it is whole and valid, with nothing of what was not", async () => {
    const { fake, client } = outlast;
    fake.script(stream(deltas('{"ye', "ars")), stream(deltas('{"ye', 'ar":1}')));
    const chunks = await client().chat.completions.create(asked, validate({ schema: wantsYear }));
    let text = "";
    for await (const chunk of chunks) text += chunk.choices[0]?.delta.content ?? "";
    expect(text).toBe('{"year":1}');
    expect(fake.seen).toHaveLength(2);
  });

  it("fails as a plain answer does where none is valid", async () => {
    const { fake, post } = outlast;
    fake.otherwise(tells({ content: "So it" }, "length"));
    const response = await post(path, asked, validate({ max_retries: 1 }).headers);
    expect(response.status).toBe(502);
    expect(response.headers.get("x-should-retry")).toBe("false");
    expect(await errorOf(response)).toMatchObject({ code: "invalid_output" });
    expect(await recordOf(response)).toMatchObject({
      status: "failed",
      attempts: 2,
      result: { choices: [{ message: { content: "So it" }, finish_reason: "length" }] },
    });
  });

  it("is also one that the upstream answers plainly", async () => {
    const { fake, post } = outlast;
    fake.script(says("", "length"), says("Hi"));
    const response = await post(path, asked, validate(true).headers);
    expect(await response.text()).toContain('"content":"Hi"');
    expect(fake.seen).toHaveLength(2);
  });
});

describe("what cannot be validated by", () => {
  group();

  it.each<[string, unknown, string]>([
    ["a word", "yes", "outlast.validate"],
    ["a number", 1, "outlast.validate"],
    ["null", null, "outlast.validate"],
    ["an unknown name", { jsn: true }, "outlast.validate"],
    ["too many attempts", { max_retries: 11 }, "outlast.validate"],
    ["half an attempt", { max_retries: 0.5 }, "outlast.validate"],
    ["a schema that is a list", { schema: [] }, "outlast.validate"],
    ["a schema that is none", { schema: { type: "nonsense" } }, "outlast.validate.schema"],
    ["a schema that refers to nothing", { schema: { $ref: "#/no" } }, "outlast.validate.schema"],
    ["a pattern that is none", { schema: { pattern: "(" } }, "outlast.validate.schema"],
  ])("is refused, and says why: %s", async (_, validate, param) => {
    const { fake, post } = outlast;
    const response = await post(path, { ...hello, outlast: { validate } });
    expect(response.status).toBe(400);
    const error = await errorOf(response);
    expect(error).toMatchObject({ code: "invalid_parameter", param });
    expect(error.message).toMatch(/^`.{25,}\.$/s);
    expect(fake.seen).toHaveLength(0);
  });

  it("is refused in response_format, too, where the caller asked for validation", async () => {
    const { post } = outlast;
    const asked = { ...hello, ...jsonSchema({ type: "nonsense" }), outlast: { validate: true } };
    expect(await refusalOf(await post(path, asked))).toEqual({
      status: 400,
      code: "invalid_parameter",
      param: "response_format.json_schema.schema",
    });
  });
});
