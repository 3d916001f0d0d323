import { describe, expect, it } from "vitest";
import { answer, fail, gate } from "../support/fake-upstream.ts";
import type { Outlast } from "../support/outlast.ts";
import { LedgerCalls } from "./ledger-calls.ts";
import { errorOf, refusalOf, serveGroup, serveTest, WatchedClock } from "./wire.ts";

let outlast: Outlast;
const calls = new LedgerCalls(() => outlast);
const dayMs = 86_400_000;

const price = `
[prices."gpt-test"]
input = 1000000
output = 2000000
`;

const usage = (prompt: number, completion: number, cached = 0, reasoning = 0) => ({
  prompt_tokens: prompt,
  completion_tokens: completion,
  total_tokens: prompt + completion,
  prompt_tokens_details: { cached_tokens: cached },
  completion_tokens_details: { reasoning_tokens: reasoning },
});
const says = (text: string, used: object, finish_reason = "stop") =>
  answer({
    body: {
      id: "chatcmpl-1",
      object: "chat.completion",
      created: 1,
      model: "gpt-test",
      choices: [{ index: 0, message: { role: "assistant", content: text, refusal: null }, finish_reason }],
      usage: used,
    },
  });

const none = {
  object: "usage",
  requests: 0,
  completed: 0,
  failed: 0,
  cancelled: 0,
  cached: 0,
  attempts: 0,
  input_tokens: 0,
  cached_tokens: 0,
  output_tokens: 0,
  reasoning_tokens: 0,
  total_tokens: 0,
  cost: 0,
  estimated_attempts: 0,
  unpriced_attempts: 0,
  mean_duration_ms: null,
  problems: { refusal: 0, content_filter: 0, length: 0, empty: 0, invalid_json: 0, schema_mismatch: 0 },
};

describe("what was used", () => {
  it("is nothing at first, in one row", async () => {
    outlast = await serveTest();
    expect(await calls.usage()).toEqual([none]);
    expect(await calls.usage("group_by=model")).toEqual([]);
  });

  it("adds up by model, tag, prompt and day, with cost, time and quality", async () => {
    const clock = new WatchedClock();
    outlast = await serveTest({ clock, luck: 0.5 });
    const day = (at: number) => new Date(at).toISOString().slice(0, 10);
    const first = day(clock.now());
    const brief = { messages: [{ role: "system", content: "Be brief." }] };
    outlast.fake.script(
      says("Hi", usage(10, 5, 4, 2)),
      says("", usage(20, 1), "length"),
      fail(401, { code: "no_key" }),
    );
    const id = await calls.finish({ ...brief, outlast: { tags: ["a", "b"] } });
    const { prompt_hash } = await calls.record(id);
    await calls.finish({ model: "gpt-other", outlast: { tags: ["a"] } });
    await calls.finish();
    const stopped = await calls.submit({ outlast: { delay: 600 } });
    await calls.acted(stopped, "cancel");
    clock.advance(dayMs);
    const second = day(clock.now());
    outlast.fake.script(says("Hi", usage(1, 1)));
    await calls.finish(brief);

    const all = { requests: 5, completed: 3, failed: 1, cancelled: 1, attempts: 4, cached: 0 };
    const tokens = {
      input_tokens: 31,
      cached_tokens: 4,
      output_tokens: 7,
      reasoning_tokens: 2,
      total_tokens: 38,
    };
    const problems = { ...none.problems, length: 1, empty: 1 };
    expect(await calls.usage()).toEqual([
      { ...none, ...all, ...tokens, problems, unpriced_attempts: 3, mean_duration_ms: 0 },
    ]);
    expect(await calls.usage("group_by=day")).toMatchObject([
      { day: first, requests: 4, input_tokens: 30 },
      { day: second, requests: 1, input_tokens: 1 },
    ]);
    expect(await calls.usage(`from=${second}&to=${second}`)).toMatchObject([{ requests: 1 }]);
    expect(await calls.usage(`to=${first}&group_by=model`)).toEqual(
      expect.arrayContaining([
        expect.objectContaining({ model: "gpt-test", requests: 3, failed: 1 }),
        expect.objectContaining({ model: "gpt-other", requests: 1, problems }),
      ]),
    );
    const tagged = await calls.usage("group_by=tag");
    expect(tagged).toHaveLength(2);
    expect(tagged).toEqual(
      expect.arrayContaining([
        expect.objectContaining({ tag: "a", requests: 2, input_tokens: 30 }),
        expect.objectContaining({ tag: "b", requests: 1, input_tokens: 10 }),
      ]),
    );
    expect(await calls.usage("tag=b")).toMatchObject([{ requests: 1, total_tokens: 15 }]);
    expect(await calls.usage(`prompt_hash=${prompt_hash}&group_by=day,prompt_hash`)).toMatchObject([
      { day: first, prompt_hash, requests: 1 },
      { day: second, prompt_hash, requests: 1 },
    ]);
    expect(await calls.usage("model=gpt-other&upstream=fake&endpoint=chat.completions")).toMatchObject([
      { requests: 1 },
    ]);
    expect(await calls.usage("group_by=endpoint,upstream&model=gpt-other")).toMatchObject([
      { endpoint: "chat.completions", upstream: "fake" },
    ]);
    expect(await calls.usage("model=nobody")).toEqual([none]);
  });

  it("has its cost by the prices of the configuration, and tells hits of the cache apart", async () => {
    outlast = await serveTest({ tables: price });
    const cache = { outlast: { cache: { ttl: "1h" } } };
    outlast.fake.script(says("Hi", usage(2, 1)));
    await calls.finish(cache);
    await calls.finish(cache);
    expect(await calls.usage("group_by=model")).toMatchObject([
      { model: "gpt-test", requests: 2, completed: 2, cached: 1, attempts: 1, cost: 4, unpriced_attempts: 0 },
    ]);
  });

  it("counts a call that was cancelled under way, by an estimate", async () => {
    outlast = await serveTest({ tables: price });
    const held = gate();
    outlast.fake.script(held.step);
    const id = await calls.submit();
    await held.arrived;
    await outlast.post(`/v1/requests/${id}/cancel`, {});
    const [row] = await calls.usage();
    expect(row).toMatchObject({ cancelled: 1, attempts: 1, output_tokens: 0, estimated_attempts: 1 });
    expect(row!.input_tokens).toBeGreaterThan(0);
    expect(row!.cost).toBe(row!.input_tokens);
    expect(await calls.record(id)).toMatchObject({ usage: { estimated: true }, cost: row!.cost });
  });

  it("is the caller's own project's alone", async () => {
    const keys = ["a", "b"].map((name) => `[[api_keys]]\nkey = "key-of-${name}"\nproject = "${name}"\n`);
    outlast = await serveTest({ tables: keys.join("") });
    const [a, b] = ["a", "b"].map((name) => ({ authorization: `Bearer key-of-${name}` }));
    await calls.finish({}, a);
    expect(await calls.usage("", a)).toMatchObject([{ requests: 1 }]);
    expect(await calls.usage("", b)).toEqual([none]);
    const refused = await outlast.fetch("/v1/usage?project=a", { headers: b });
    expect(await refusalOf(refused)).toMatchObject({ param: "project" });
  });
});

describe("usage that cannot be", () => {
  serveGroup((one) => {
    outlast = one;
  });

  it.each([
    ["group_by=colour", "group_by"],
    ["group_by=project", "group_by"],
    ["group_by=", "group_by"],
    ["from=yesterday", "from"],
    ["from=2026-02-30", "from"],
    ["to=2026-01-01T00:00:00Z", "to"],
    ["from=2026-01-02&to=2026-01-01", "to"],
    ["limit=0", "limit"],
    ["limit=10001", "limit"],
    ["q=x", "q"],
  ])("is refused: %s", async (query, param) => {
    const response = await outlast.fetch(`/v1/usage?${query}`);
    expect(response.status).toBe(400);
    const error = await errorOf(response);
    expect(error).toMatchObject({ code: "invalid_parameter", param });
    expect(error.message).not.toMatch(/invalid input|expected|received|NaN/i);
  });
});
