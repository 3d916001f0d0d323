/** What callers get where their request is in trouble, if they asked for that (`on_failure`). */

import type OpenAI from "openai";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { Substitutes } from "../../src/core/substitutes.ts";
import { HandClock } from "../support/clock.ts";
import { answer, deltas, fail, gate, hang, type Step, stream } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick } from "../support/outlast.ts";
import { errorOf, serveTest, strictAsync, strictRequest, WatchedClock } from "./wire.ts";

const path = "/v1/chat/completions";
let outlast: Outlast;

async function start(more: OutlastOptions = {}): Promise<Outlast> {
  outlast = await serveTest({ ...more, env: { ...quick, ...more.env } });
  return outlast;
}

const impatient = { OUTLAST_TIMEOUTS_ATTEMPT: "50ms", OUTLAST_TIMEOUTS_FIRST_TOKEN: "50ms" };
const ask = (onFailure: unknown, more: object = {}, headers: Record<string, string> = {}) =>
  outlast.post(path, { ...hello, ...more, outlast: { on_failure: onFailure, max_attempts: 2 } }, headers);

const idOf = (response: Response): string => response.headers.get("outlast-request-id")!;
const degraded = (response: Response) => [response.status, response.headers.get("outlast-degraded")];
const contentOf = async (response: Response): Promise<unknown> =>
  ((await response.json()) as OpenAI.ChatCompletion).choices[0]?.message.content;
const textOf = (events: string): string =>
  [...events.matchAll(/^data: (\{.*)$/gm)]
    .map(([, data]) => (JSON.parse(data!) as OpenAI.ChatCompletionChunk).choices[0]?.delta?.content ?? "")
    .join("");

async function recordOf(id: string) {
  return strictRequest.parse(await (await outlast.fetch(`/v1/requests/${id}`)).json());
}
/** For how many requests somebody is to be told of trouble. */
const watchersOf = (substitutes: unknown) =>
  (substitutes as { troubled: Map<string, unknown> }).troubled.size;
const ended = (id: string) => outlast.ear.event("ended", (told) => told.id === id);

describe("an attempt that times out and is tried again", () => {
  it("gives its caller the older answer at once, while the work goes on and completes", async () => {
    const clock = new HandClock();
    const { fake } = await start({ clock, env: { OUTLAST_TIMEOUTS_ATTEMPT: "60s" } });
    fake.script(answer({ text: "older", headers: { "x-own": "1", "x-ratelimit-limit-requests": "9" } }));
    const older = await ask({ stale: "24h" });
    expect(degraded(older)).toEqual([200, null]);
    const body = await older.text();
    const second = gate();
    fake.script(hang(), second.step);
    const call = ask({ stale: "24h", answer: "unused" });
    await fake.calls(2);
    clock.advance(60_000);
    const response = await call;
    expect(degraded(response)).toEqual([200, "stale"]);
    expect(response.headers.get("x-own")).toBe("1");
    expect(response.headers.get("x-ratelimit-limit-requests")).toBeNull();
    expect(response.headers.get("outlast-cache")).toBeNull();
    expect(await response.text()).toBe(body);
    const id = idOf(response);
    expect(id).not.toBe(idOf(older));
    expect(await recordOf(id)).toMatchObject({ status: "retrying", degraded: "stale", result: null });
    clock.advance(1000);
    await second.arrived;
    expect(await recordOf(id)).toMatchObject({ status: "processing", degraded: "stale", result: null });
    second.release(answer({ text: "newer" }));
    await ended(id);
    expect(await recordOf(id)).toMatchObject({
      status: "completed",
      degraded: "stale",
      result: { choices: [{ message: { content: "newer" } }] },
    });
    expect((await recordOf(idOf(older))).degraded).toBeNull();
    fake.script(fail(400));
    expect(await contentOf(await ask({ stale: "24h" }))).toBe("newer");
  });

  it("gives a fixed text as a completion", async () => {
    const { fake, client } = await start({ env: impatient });
    fake.script(hang(), answer());
    const headers = { "Outlast-Options": '{"on_failure":{"answer":"Later."},"max_attempts":2}' };
    const { data, response } = await client().chat.completions.create(hello, { headers }).withResponse();
    expect(response.headers.get("outlast-degraded")).toBe("fixed");
    expect(data).toMatchObject({
      object: "chat.completion",
      model: "gpt-test",
      choices: [{ index: 0, finish_reason: "stop", message: { role: "assistant", content: "Later." } }],
      usage: { total_tokens: 0 },
    });
    const id = response.headers.get("outlast-request-id")!;
    await ended(id);
    expect(await recordOf(id)).toMatchObject({ status: "completed", degraded: "fixed", attempts: 2 });
  });

  it("gives a fixed answer as it is, with what it has not", async () => {
    const { fake } = await start({ env: impatient });
    fake.script(hang(), answer());
    const choices = [
      { index: 0, message: { role: "assistant", content: "äh" }, finish_reason: "length", own: 1 },
    ];
    const response = await ask({ answer: { choices, id: "mine" } });
    expect(degraded(response)).toEqual([200, "fixed"]);
    expect(await response.json()).toMatchObject({ id: "mine", choices, object: "chat.completion" });
    await ended(idOf(response));
  });

  it.each<[string, object]>([
    ["who waits for a while", { wait: 60 }],
    ["who wants a stream", { stream: true }],
  ])("does so for a caller %s", async (_, how) => {
    const { fake } = await start({ env: impatient });
    const second = gate();
    fake.script(hang(), second.step);
    const response = await ask({ answer: "Later." }, how);
    expect(degraded(response)).toEqual([200, "fixed"]);
    expect(await response.text()).toContain("Later.");
    second.release();
    await ended(idOf(response));
    expect(await recordOf(idOf(response))).toMatchObject({ status: "completed", degraded: "fixed" });
  });

  it("tells an older answer as a stream, with its usage where that was asked for", async () => {
    const { fake, client } = await start({ env: impatient });
    fake.script(answer({ text: "older" }));
    await (await ask({ stale: "1h" })).text();
    const second = gate();
    fake.script(hang(), second.step);
    const chunks = await client().chat.completions.create(
      { ...hello, stream: true, stream_options: { include_usage: true } },
      { headers: { "outlast-options": '{"on_failure":{"stale":"1h"},"max_attempts":2}' } },
    );
    const all: OpenAI.ChatCompletionChunk[] = [];
    for await (const chunk of chunks) all.push(chunk);
    expect(all.map(({ choices }) => choices[0]?.delta.content ?? "").join("")).toBe("older");
    expect(all.at(-1)).toMatchObject({ choices: [], usage: { total_tokens: 6 } });
  });

  it("lets a stream that has begun go on where the fixed answer cannot be told as one", async () => {
    const clock = new HandClock();
    const { fake, ear } = await start({ clock, env: { OUTLAST_TIMEOUTS_FIRST_TOKEN: "60s" } });
    fake.script(hang(), stream(deltas("good")));
    const call = ask({ answer: { choices: [{ text: "no message" }] } }, { stream: true });
    await fake.calls(1);
    clock.advance(20_000);
    const response = await call;
    expect(degraded(response)).toEqual([200, null]);
    clock.advance(40_000);
    await ear.event("attempt_ended");
    clock.advance(1000);
    expect(textOf(await response.text())).toBe("good");
    expect(await recordOf(idOf(response))).toMatchObject({ status: "completed", degraded: null });
  });

  it("leaves no stream without an end that has begun, where the fixed answer cannot be told as one", async () => {
    const clock = new WatchedClock();
    const { fake, ear } = await start({ clock, env: { OUTLAST_TIMEOUTS_FIRST_TOKEN: "60s" } });
    fake.otherwise(hang());
    const call = ask({ answer: { choices: [{ text: "no message" }] } }, { stream: true });
    await fake.calls(1);
    clock.advance(20_000);
    const response = await call;
    expect(degraded(response)).toEqual([200, null]);
    clock.advance(40_000);
    await ear.event("attempt_ended");
    clock.advance(1000);
    await fake.calls(2);
    await clock.armed(60_000, 2);
    clock.advance(60_000);
    expect(await response.text()).toContain('"code":"upstream_timeout"');
  });

  it("gives one that has not begun the fixed answer as it is, where it cannot be told as a stream", async () => {
    const { fake } = await start({ env: impatient });
    const second = gate();
    fake.script(hang(), second.step);
    const response = await ask({ answer: { choices: [{ text: "no message" }] } }, { stream: true });
    expect(degraded(response)).toEqual([200, "fixed"]);
    expect(await response.json()).toMatchObject({ choices: [{ text: "no message" }] });
    second.release();
    await ended(idOf(response));
  });

  describe("watches its caller's request", () => {
    it.each<[string, object, Step]>([
      ["a stream that comes to its end", { stream: true }, stream(deltas("good"))],
      ["a plain answer", {}, answer()],
      ["a stream that fails", { stream: true }, fail(400)],
      ["a stream that breaks off", { stream: true }, stream(deltas("good").slice(0, 2), { done: false })],
      ["a stream in trouble", { stream: true }, hang()],
      ["a stream for who waits a while", { stream: true, wait: 60 }, stream(deltas("good"))],
    ])("no longer than it lasts: %s", async (_, how, step) => {
      const watched = vi.spyOn(Substitutes.prototype, "onTrouble");
      onTestFinished(() => watched.mockRestore());
      const { fake } = await start({ env: impatient });
      fake.otherwise(step);
      const response = await ask({ answer: "Sorry." }, how);
      await response.text().catch(() => {});
      await ended(idOf(response));
      expect(watched).toHaveBeenCalledTimes(1);
      expect(watchersOf(watched.mock.contexts[0]!)).toBe(0);
    });

    it("no longer than the caller of a stream is there", async () => {
      const watched = vi.spyOn(Substitutes.prototype, "onTrouble");
      onTestFinished(() => watched.mockRestore());
      const { fake, ear, url } = await start();
      const held = gate();
      fake.otherwise(held.step);
      const aborting = new AbortController();
      const body = JSON.stringify({ ...hello, stream: true, outlast: { on_failure: { answer: "Sorry." } } });
      const headers = { "content-type": "application/json" };
      const call = fetch(url + path, { method: "POST", headers, body, signal: aborting.signal });
      await fake.calls(1);
      expect(watchersOf(watched.mock.contexts[0]!)).toBe(1);
      aborting.abort();
      await expect(call).rejects.toThrow();
      held.release(stream(deltas("good")));
      await ear.event("ended");
      expect(watchersOf(watched.mock.contexts[0]!)).toBe(0);
    });
  });

  it("does nothing for who has asked for nothing, or does not wait", async () => {
    const { fake, post } = await start({ env: impatient });
    fake.script(hang(), answer({ text: "late" }), hang(), answer({ text: "late" }));
    const response = await post(path, { ...hello, outlast: { max_attempts: 2 } });
    expect(degraded(response)).toEqual([200, null]);
    expect(await contentOf(response)).toBe("late");
    const taken = await ask({ answer: "Later." }, { wait: false });
    expect(taken.status).toBe(202);
    const { id } = strictAsync.parse(await taken.json());
    await ended(id);
    expect(await recordOf(id)).toMatchObject({ status: "completed", degraded: null });
  });
});

describe("a request that fails", () => {
  it("gives its caller something else, and stays failed", async () => {
    const { fake } = await start();
    fake.otherwise(fail(500));
    const response = await ask({ answer: "Sorry." });
    expect(degraded(response)).toEqual([200, "fixed"]);
    expect(response.headers.get("x-should-retry")).toBeNull();
    expect(await contentOf(response)).toBe("Sorry.");
    expect(await recordOf(idOf(response))).toMatchObject({
      status: "failed",
      degraded: "fixed",
      error: { status: 500 },
      result: null,
    });
    const again = await ask({ answer: "Sorry." });
    expect(degraded(again)).toEqual([200, "fixed"]);
  });

  it("does so whatever it fails by, and for its idempotency key each time", async () => {
    const { fake } = await start();
    fake.otherwise(fail(400));
    const key = { "idempotency-key": "k" };
    const first = await ask({ answer: "Sorry." }, {}, key);
    const second = await ask({ answer: "Sorry." }, {}, key);
    expect([degraded(first), degraded(second)]).toEqual([
      [200, "fixed"],
      [200, "fixed"],
    ]);
    expect(idOf(second)).toBe(idOf(first));
    expect(fake.seen).toHaveLength(1);
  });

  it("does so where no answer was valid", async () => {
    const { fake, post } = await start();
    fake.otherwise(answer({ text: "" }));
    const options = { validate: { max_retries: 0 }, on_failure: { answer: "{}" } };
    const response = await post(path, { ...hello, outlast: options });
    expect(degraded(response)).toEqual([200, "fixed"]);
    expect(await recordOf(idOf(response))).toMatchObject({ error: { code: "invalid_output" } });
  });

  it("as a stream does so before it has told anything, and not after", async () => {
    const { fake } = await start();
    fake.otherwise(fail(400));
    const told = await ask({ answer: "Sorry." }, { stream: true });
    expect(degraded(told)).toEqual([200, "fixed"]);
    const events = await told.text();
    expect([textOf(events), events.endsWith("data: [DONE]\n\n")]).toEqual(["Sorry.", true]);
    const error = JSON.stringify({ error: { message: "broken", type: "server_error", code: "x" } });
    fake.otherwise(stream([...deltas("So ").slice(0, 2), error], { done: false }));
    const begun = await outlast.post(path, {
      ...hello,
      stream: true,
      outlast: { on_failure: { answer: "Sorry." }, max_attempts: 1 },
    });
    expect(degraded(begun)).toEqual([200, null]);
    const text = await begun.text().catch((reason) => String(reason));
    expect(text).not.toContain("Sorry.");
    expect((await recordOf(idOf(begun))).degraded).toBeNull();
  });

  it("is told as such where the older answer is too old, or of another project or body", async () => {
    const clock = new HandClock();
    const { fake } = await start({ clock });
    fake.script(answer({ text: "older" }));
    await (await ask({ stale: "1h" })).text();
    clock.advance(3_599_000);
    fake.otherwise(fail(400));
    expect(degraded(await ask({ stale: "1h" }))).toEqual([200, "stale"]);
    expect((await ask({ stale: "1h" }, { seed: 1 })).status).toBe(400);
    clock.advance(1000);
    const response = await ask({ stale: "1h" });
    expect(degraded(response)).toEqual([400, null]);
    expect((await recordOf(idOf(response))).degraded).toBeNull();
    expect(degraded(await ask({ stale: "1h", answer: "Sorry." }))).toEqual([200, "fixed"]);
    expect(degraded(await ask({ stale: "2h", answer: "Sorry." }))).toEqual([200, "stale"]);
  });

  it("never does so where it succeeds", async () => {
    const { fake } = await start();
    fake.script(fail(500), answer({ text: "good" }));
    const response = await ask({ answer: "Sorry." });
    expect(degraded(response)).toEqual([200, null]);
    expect(await contentOf(response)).toBe("good");
  });

  it("by the configuration does so, too, but gives no completion for vectors", async () => {
    const { fake, post } = await start({ toml: '[defaults]\non_failure = { answer = "Sorry." }' });
    fake.otherwise(fail(400));
    expect(degraded(await post(path, hello))).toEqual([200, "fixed"]);
    const body = { ...hello, outlast: { on_failure: false } };
    expect(degraded(await post(path, body))).toEqual([400, null]);
    expect(degraded(await post("/v1/embeddings", { model: "e", input: "x" }))).toEqual([400, null]);
  });
});

describe("an upstream that is taken for broken", () => {
  it("makes nobody wait who can have something else", async () => {
    const clock = new HandClock();
    const { fake, post, ear } = await serveTest({ clock, toml: "[breaker]\nmin_calls = 2" }).then((one) => {
      outlast = one;
      return one;
    });
    fake.script(fail(500), fail(500));
    for (const seed of [1, 2]) {
      expect((await post(path, { ...hello, seed, outlast: { max_attempts: 1 } })).status).toBe(500);
    }
    for (const how of [{}, { stream: true }, { wait: 5 }]) {
      const response = await ask({ answer: "Later." }, how);
      expect(degraded(response)).toEqual([200, "fixed"]);
      expect(await response.text()).toContain("Later.");
      const id = idOf(response);
      expect(await recordOf(id)).toMatchObject({
        status: "queued",
        degraded: "fixed",
        waiting_for: "breaker",
      });
    }
    expect(fake.seen).toHaveLength(2);
    clock.advance(61_000);
    await ear.event("ended", ({ state }) => state === "completed");
  });
});

it.each<[string, unknown]>([
  ["true", true],
  ["nothing", {}],
  ["an empty text", { answer: " " }],
  ["an answer without choices", { answer: { choices: [] } }],
  ["an age that is none", { stale: "old" }],
  ["an unknown name", { stale: "1h", text: "x" }],
])("a wish of %s is refused", async (_, wish) => {
  const { fake } = await start();
  const response = await ask(wish);
  expect(response.status).toBe(400);
  expect((await errorOf(response)).param).toMatch(/^outlast\.on_failure/);
  expect(fake.seen).toHaveLength(0);
});
