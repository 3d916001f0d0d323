/** Calls for vectors: recorded and retried as those for completions are, and known by each of their inputs. */

import OpenAI from "openai";
import { describe, expect, it } from "vitest";
import { HandClock } from "../support/clock.ts";
import { answer, fail, gate, type Seen, type Step } from "../support/fake-upstream.ts";
import { type Outlast, type OutlastOptions, quick } from "../support/outlast.ts";
import { laneOf } from "../support/steady-time.ts";
import { refusalOf, serveGroup, serveTest, strictAsync, strictRequest } from "./wire.ts";

const path = "/v1/embeddings";
let outlast: Outlast;

async function start(more: OutlastOptions = {}): Promise<Outlast> {
  outlast = await serveTest({ env: quick, ...more });
  outlast.fake.otherwise(vectors());
  return outlast;
}

interface Asked {
  model: string;
  input: unknown;
  encoding_format?: string;
  dimensions?: number;
}
const askedOf = ({ body }: Seen): Asked => JSON.parse(body.toString()) as Asked;
const isOne = (input: unknown) => !Array.isArray(input) || typeof input[0] === "number";
const inputsOf = ({ input }: Asked): unknown[] => (isOne(input) ? [input] : (input as unknown[]));

/** A vector that tells its input: its length as JSON, and the number of the call that brought it. */
const vectorOf = (input: unknown, n: number) => [JSON.stringify(input).length + 0.5, n];
function coded(vector: number[], format: string | undefined): unknown {
  return format === "base64" ? Buffer.from(new Float32Array(vector).buffer).toString("base64") : vector;
}

/** Answers as OpenAI does; `more` inputs than were asked for, or fewer. */
function vectors(more = 0): Step {
  return (call, res) => {
    const asked = askedOf(call);
    const inputs = inputsOf(asked);
    const all = [...inputs, ...inputs].slice(0, inputs.length + more);
    const data = all.map((input, index) => ({
      object: "embedding",
      index,
      embedding: coded(vectorOf(input, call.n), asked.encoding_format),
    }));
    const usage = { prompt_tokens: inputs.length, total_tokens: inputs.length };
    return answer({ body: { object: "list", data, model: asked.model, usage } })(call, res);
  };
}

const cached = { "outlast-options": '{"cache":{"ttl":"10m"}}' };
const ask = (input: unknown, more: object = {}, headers: Record<string, string> = cached) =>
  outlast.post(path, { model: "e", input, ...more }, headers);

/** The vectors of a good answer, in the order of their inputs. */
async function told(response: Response): Promise<unknown[]> {
  expect(response.status).toBe(200);
  const { data } = (await response.json()) as OpenAI.CreateEmbeddingResponse;
  expect(data.map(({ index, object }) => [index, object])).toEqual(data.map((_, at) => [at, "embedding"]));
  return data.map(({ embedding }) => embedding);
}
const sent = (): unknown[] => outlast.fake.seen.map((call) => askedOf(call).input);
const idOf = (response: Response): string => response.headers.get("outlast-request-id")!;

async function recordOf(id: string) {
  return strictRequest.parse(await (await outlast.fetch(`/v1/requests/${id}?include=body,attempts`)).json());
}

describe("a call for vectors", () => {
  it("is answered as by the upstream itself, byte for byte, and recorded", async () => {
    const { fake, post } = await start();
    const body = '{"model":"e" , "input":["é"],"wait":true}';
    const odd = '{ "object":"list","data":[ {"index":0,"embedding":[1e-9, 0.10]} ],"model":"e-1","usage":{}}';
    fake.script(answer({ body: odd }));
    const response = await post(path, body);
    expect(await response.text()).toBe(odd);
    expect(fake.seen[0]!.body.toString()).toBe('{"model":"e" , "input":["é"]}');
    expect(await recordOf(idOf(response))).toMatchObject({
      status: "completed",
      endpoint: "embeddings",
      model: "e",
      served_model: "e-1",
      upstream: "fake",
      attempts: 1,
      findings: null,
      body: { input: ["é"] },
      result: JSON.parse(odd),
    });
    const listed = await outlast.fetch("/v1/requests?endpoint=embeddings");
    expect(((await listed.json()) as { data: unknown[] }).data).toHaveLength(1);
  });

  it("by the SDK gives numbers, which it asks for in base64", async () => {
    const { fake, client } = await start();
    for (const headers of [{}, cached, cached]) {
      const { data } = await client().embeddings.create({ model: "e", input: ["a", "bcd"] }, { headers });
      expect(data.map(({ embedding }) => embedding[0])).toEqual([3.5, 5.5]);
    }
    expect(fake.seen.map((call) => askedOf(call).encoding_format)).toEqual(["base64", "base64"]);
    const exact = { model: "e", input: "a", encoding_format: "float" as const };
    expect((await client().embeddings.create(exact)).data[0]?.embedding).toEqual([3.5, 3]);
  });

  it("is tried again, fails over and fails as others do", async () => {
    const { fake, post } = await start();
    fake.script(fail(500), fail(429, {}, { "retry-after": "0" }), answer({ body: "no JSON" }));
    const response = await post(path, { model: "e", input: "x" });
    expect(await told(response)).toHaveLength(1);
    expect((await recordOf(idOf(response))).attempts).toBe(4);
    fake.script(fail(400, { code: "bad_input", param: "input" }));
    const refused = await post(path, { model: "e", input: "" });
    expect(await refusalOf(refused)).toEqual({ status: 400, code: "bad_input", param: "input" });
    expect(await recordOf(idOf(refused))).toMatchObject({ status: "failed", error: { code: "bad_input" } });
  });

  it("can be left alone, and fetched later", async () => {
    const { fake, ear, fetch } = await start();
    const first = gate();
    fake.script(first.step);
    const taken = await ask("x", { wait: false }, {});
    expect(taken.status).toBe(202);
    const { id, object, poll_url } = strictAsync.parse(await taken.json());
    expect(object).toBe("embedding.async");
    await first.arrived;
    first.release(vectors());
    await ear.event("ended", (one) => one.id === id);
    expect(await recordOf(id)).toMatchObject({ result: { data: [{ embedding: vectorOf("x", 1) }] } });
    expect((await fetch(poll_url)).status).toBe(200);
  });

  it("takes an idempotency key, and no notice of what is for completions", async () => {
    const { fake } = await start({ toml: "[defaults]\nvalidate = true" });
    const key = { "idempotency-key": "k" };
    const first = await ask("x", { stream: true }, key);
    const again = await ask("x", { stream: true }, key);
    expect(again.headers.get("idempotent-replayed")).toBe("true");
    expect(await told(again)).toEqual(await told(first));
    expect(fake.seen).toHaveLength(1);
  });
});

describe("a body that is no call for vectors", () => {
  serveGroup((one) => {
    outlast = one;
  });

  it.each<[string, string | object, string, string | null]>([
    ["no JSON", "{", "invalid_json", null],
    ["a list", "[]", "invalid_body", null],
    ["no model", { input: "x" }, "missing_required_parameter", "model"],
    ["a number for a model", { model: 1, input: "x" }, "invalid_parameter", "model"],
    ["no input", { model: "e" }, "missing_required_parameter", "input"],
    ["a wait that is none", { model: "e", input: "x", wait: "no" }, "invalid_parameter", "wait"],
  ])("is refused: %s", async (_, body, code, param) => {
    const { post, fake } = outlast;
    expect(await refusalOf(await post(path, body))).toEqual({ status: 400, code, param });
    expect(fake.seen).toHaveLength(0);
  });
});

describe("with a cache", () => {
  it("asks only for the input that is new, and answers with all in their order", async () => {
    await start();
    expect(await told(await ask(["a", "bb", "ccc"]))).toEqual([
      [3.5, 1],
      [4.5, 1],
      [5.5, 1],
    ]);
    const response = await ask(["a", "dddd", "ccc"]);
    expect(response.headers.get("outlast-cache")).toBeNull();
    expect(await told(response)).toEqual([
      [3.5, 1],
      [6.5, 2],
      [5.5, 1],
    ]);
    expect(sent()).toEqual([["a", "bb", "ccc"], ["dddd"]]);
    const record = await recordOf(idOf(response));
    expect(record).toMatchObject({ usage: { prompt_tokens: 1 }, cached_from: null, attempts: 1 });
    expect(record.body).toEqual({ model: "e", input: ["a", "dddd", "ccc"] });
    expect(record.result).toMatchObject({ data: [{ index: 0 }, { index: 1 }, { index: 2 }] });
  });

  it("does not take what a part of the input was billed at for what all of it is", async () => {
    await start({ upstreamToml: "tokens_per_minute = 1000000" });
    const known = ["a".repeat(2000), "b".repeat(2000)];
    await told(await ask(known));
    const { estimate } = await laneOf(outlast, "e");
    expect(estimate?.samples).toBe(1);
    for (const more of ["c", "d", "e"]) await told(await ask([...known, more]));
    expect((await laneOf(outlast, "e")).estimate).toEqual(estimate);
    await told(await ask(["f", "g"]));
    expect((await laneOf(outlast, "e")).estimate?.samples).toBe(2);
    expect(sent().map((input) => (input as string[]).length)).toEqual([2, 1, 1, 1, 2]);
  });

  it("asks for nothing where all are known, alone or together, whatever they came with", async () => {
    await start();
    await told(await ask(["a", "bb"]));
    const response = await ask(["bb", "a", "bb"]);
    expect(response.headers.get("outlast-cache")).toBe("hit");
    expect(await told(response)).toEqual([
      [4.5, 1],
      [3.5, 1],
      [4.5, 1],
    ]);
    expect(await recordOf(idOf(response))).toMatchObject({ attempts: 0, status: "completed", usage: null });
    expect(await told(await ask("a", { user: "u" }))).toEqual([[3.5, 1]]);
    const taken = await ask(["a"], { wait: false });
    expect(taken.status).toBe(202);
    const { id } = strictAsync.parse(await taken.json());
    expect(await recordOf(id)).toMatchObject({ status: "completed", cached_from: expect.any(String) });
    expect(sent()).toHaveLength(1);
  });

  it("gives every one of equal inputs its vector", async () => {
    await start();
    expect(await told(await ask(["a", "bb", "a"]))).toHaveLength(3);
    expect(await told(await ask(["cc", "a", "cc", "ddd"]))).toEqual([
      [4.5, 2],
      [3.5, 1],
      [4.5, 2],
      [5.5, 2],
    ]);
  });

  it("knows lists of tokens: one, or several", async () => {
    await start();
    expect(await told(await ask([1, 2, 30]))).toHaveLength(1);
    expect(
      await told(
        await ask([
          [1, 2],
          [1, 2, 30],
        ]),
      ),
    ).toEqual([
      [5.5, 2],
      [8.5, 1],
    ]);
    expect(await told(await ask([1, 2]))).toEqual([[5.5, 2]]);
    expect(sent()).toEqual([[1, 2, 30], [[1, 2]]]);
  });

  it.each<[string, object, Record<string, string>]>([
    ["another model", { model: "f" }, {}],
    ["other dimensions", { dimensions: 2 }, {}],
    ["another format", { encoding_format: "base64" }, {}],
    ["no wish for it", {}, { "outlast-options": "{}" }],
  ])("is asked for anew with %s", async (_, more, headers) => {
    await start();
    await told(await ask(["a"]));
    await told(await ask(["a"], more, { ...cached, ...headers }));
    expect(sent()).toEqual([["a"], ["a"]]);
  });

  it("is asked for anew by another project", async () => {
    const keys = ["a", "b"].map((name) => `[[api_keys]]\nkey = "key-of-${name}"\nproject = "${name}"`);
    await start({ tables: keys.join("\n") });
    for (const who of ["a", "b", "a"]) {
      await told(await ask(["x"], {}, { ...cached, authorization: `Bearer key-of-${who}` }));
    }
    expect(sent()).toHaveLength(2);
  });

  it("is asked for anew when it is too old, and known after a restart", async () => {
    const clock = new HandClock();
    const { dir, fakes } = await start({ clock });
    await told(await ask(["a"]));
    clock.advance(300_000);
    await outlast.stop();
    await start({ clock, dir, upstreams: fakes });
    expect(await told(await ask(["a", "bb"]))).toEqual([
      [3.5, 1],
      [4.5, 2],
    ]);
    clock.advance(300_000);
    expect(await told(await ask(["a", "bb"]))).toEqual([
      [3.5, 3],
      [4.5, 2],
    ]);
    expect(sent()).toEqual([["a"], ["bb"], ["a"]]);
  });

  it.each([-1, 1])(
    "takes a wrong number of vectors (%i more) for a part of the inputs for a fault",
    async (more) => {
      const { fake } = await start();
      await told(await ask(["a"]));
      fake.script(vectors(more));
      const response = await ask(["a", "bb"]);
      expect(await told(response)).toEqual([
        [3.5, 1],
        [4.5, 3],
      ]);
      expect(await recordOf(idOf(response))).toMatchObject({
        attempts: 2,
        attempt_list: [{ verdict: "transient", status: 200 }, { verdict: "success" }],
      });
    },
  );

  it.each([-1, 1])(
    "gives on a wrong number of vectors (%i more) for all of them, and keeps none",
    async (more) => {
      const { fake } = await start();
      fake.script(vectors(more));
      expect(await told(await ask(["a", "bb"]))).toHaveLength(2 + more);
      expect(await told(await ask(["a", "bb"]))).toEqual([
        [3.5, 2],
        [4.5, 2],
      ]);
    },
  );

  it("keeps nothing of a call that failed", async () => {
    const { fake } = await start();
    fake.script(fail(400));
    expect((await ask(["a"])).status).toBe(400);
    expect(await told(await ask(["a"]))).toEqual([[3.5, 2]]);
  });

  it("leaves what it cannot take apart to the upstream", async () => {
    const { fake } = await start();
    fake.otherwise(fail(400, { code: "bad_input" }));
    for (const input of [[], 7, null, ["a", 1], [[]], [1.5], { a: 1 }]) {
      expect(await refusalOf(await ask(input))).toMatchObject({ status: 400, code: "bad_input" });
    }
    expect(sent()).toHaveLength(7);
  });

  it("keeps numbers as they are written, and the bytes of inputs", async () => {
    const { fake, post } = await start();
    const item = (at: number) =>
      `{"object":"embedding","index":${at},"embedding":[1e-9, 0.10,12345678901234567890]}`;
    const list = (...items: string[]) =>
      `{"object":"list","data":[${items.join(",")}],"model":"e","usage":{}}`;
    fake.script(answer({ body: list(item(0)) }), answer({ body: list(item(0)) }));
    expect((await post(path, '{"model":"e","input":[ "é😀" ]}', cached)).status).toBe(200);
    const body = '{ "model":"e" , "input":[ "é😀" , "日\\n本" ], "user": "ü"}';
    const response = await post(path, body, cached);
    expect(fake.seen[1]!.body.toString()).toBe('{ "model":"e" , "input":["日\\n本"], "user": "ü"}');
    const embedding = "[1e-9, 0.10,12345678901234567890]";
    expect((await response.text()).split(embedding)).toHaveLength(3);
    const known = await (await post(path, body, cached)).text();
    expect([known.split(embedding).length, fake.seen.length]).toEqual([3, 2]);
  });

  it("has the usage of a call alone, and an older answer where the upstream is in trouble", async () => {
    const { fake } = await start();
    const stale = { "outlast-options": '{"on_failure":{"stale":"1h"}}' };
    const first = await told(await ask(["a"], {}, stale));
    fake.script(fail(400));
    const response = await ask(["a"], {}, stale);
    expect(response.headers.get("outlast-degraded")).toBe("stale");
    expect(await told(response)).toEqual(first);
  });
});

it("what the SDK throws is what the upstream has said", async () => {
  const { fake, client } = await start();
  fake.script(fail(401, { code: "invalid_api_key" }));
  const call = client().embeddings.create({ model: "e", input: "x" });
  await expect(call).rejects.toBeInstanceOf(OpenAI.AuthenticationError);
});
