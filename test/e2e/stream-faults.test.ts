/** What can go wrong in a stream, and what its caller gets: the whole answer, or an error that says so. */

import { afterEach, describe, expect, test } from "vitest";
import type { AttemptObject, RequestObject } from "../../src/contract.ts";
import {
  answer,
  closedPort,
  type FakeUpstream,
  fail,
  gate,
  hang,
  raw,
  reset,
  type Step,
  startFake,
  stream,
} from "../support/fake-upstream.ts";
import {
  begun,
  chunkOf,
  contentOf as chunkText,
  cutShort,
  Faucet,
  goesSilent,
  roleChunk,
  SseCaller,
  stopChunk,
  textChunk,
  tokens,
  whole,
} from "../support/live-streams.ts";
import { hello, type Outlast, type OutlastOptions, quick, startOutlast } from "../support/outlast.ts";
import { chatCall, Peer } from "../support/peer.ts";

const path = "/v1/chat/completions";
const running: Outlast[] = [];
const fakes: FakeUpstream[] = [];
const body = { ...hello, stream: true };
const sixty = tokens(60);
const text = sixty.join("");
/** The same text with other token boundaries, as another server may say it. */
const rechunked = text.match(/[\s\S]{1,7}/g)!;
const second = { id: "chatcmpl-second", created: 1_800_000_000, model: "fake" };
const silence = '[timeouts]\nfirst_token = "600ms"\nidle = "600ms"\n';

afterEach(async () => {
  await Promise.all(running.splice(0).map((outlast) => outlast.close()));
  await Promise.all(fakes.splice(0).map((fake) => fake.close()));
});

async function start(options: OutlastOptions = {}): Promise<Outlast> {
  const outlast = await startOutlast({ env: quick, ...options });
  running.push(outlast);
  return outlast;
}

const ask = (outlast: Outlast, more: object = {}, headers: Record<string, string> = {}) =>
  SseCaller.whole(outlast.post(path, { ...body, ...more }, headers));

async function recordOf(outlast: Outlast, id: string, query = "?wait=20"): Promise<RequestObject> {
  return (await (await outlast.fetch(`/v1/requests/${id}${query}`)).json()) as RequestObject;
}
async function attemptsOf(outlast: Outlast, id: string): Promise<AttemptObject[]> {
  const response = await outlast.fetch(`/v1/requests/${id}/attempts`);
  return ((await response.json()) as { data: AttemptObject[] }).data;
}
const streamOf = (outlast: Outlast, id: string, query = "") =>
  SseCaller.whole(outlast.fetch(`/v1/requests/${id}/stream${query}`));

interface Result {
  id: string;
  created: number;
  choices: { message: { content: string; tool_calls?: unknown[] }; finish_reason: string }[];
}
const resultOf = ({ result }: RequestObject) => result as Result;
const contentOf = (record: RequestObject) => resultOf(record).choices[0]!.message.content;
const named = (caller: SseCaller) =>
  new Set(caller.chunks.map(({ data }) => (JSON.parse(data) as { id: string }).id));

/** The whole text, once, as if nothing had happened. */
function expectWhole(caller: SseCaller, expected = text): void {
  expect(caller.status).toBe(200);
  expect(caller.error).toBeUndefined();
  expect(caller.text).toBe(expected);
  expect([caller.ended, caller.isDone]).toEqual(["clean", true]);
  const reasons = caller.chunks.map(
    ({ data }) => (JSON.parse(data) as { choices: { finish_reason: unknown }[] }).choices[0]?.finish_reason,
  );
  expect(reasons.filter(Boolean)).toEqual(["stop"]);
  const roles = caller.chunks.filter(({ data }) => data.includes('"role"'));
  expect(roles).toHaveLength(1);
}

/** An error in OpenAI's shape that names the request, and a connection that breaks. */
function expectBroken(caller: SseCaller, code: string, id: string): void {
  expect(caller.status).toBe(200);
  expect(caller.error).toMatchObject({ code, request_id: id, type: expect.any(String), param: null });
  expect(caller.ended).toBe("broken");
  expect(caller.events.map(({ data }) => data)).not.toContain("[DONE]");
}

describe("before the first content, a fault costs an attempt and nothing else", () => {
  const sse = (bytes: string): Step => stream([Buffer.from(bytes)], { done: false });
  const error = { error: { message: "overloaded", type: "server_error", code: "overloaded" } };
  const faults: [string, Step, object][] = [
    ["status 500", fail(500), { verdict: "transient", status: 500 }],
    ["status 503", fail(503), { verdict: "transient", status: 503 }],
    ["a reset before the headers", reset(), { verdict: "ambiguous" }],
    ["a reset behind the headers", stream([], { end: "reset" }), { verdict: "ambiguous" }],
    ["a clean end behind the headers", stream([], { done: false }), { verdict: "ambiguous" }],
    ["nothing but [DONE]", stream([]), { verdict: "transient", status: 200 }],
    ["a role and a reset", stream([roleChunk()], { end: "reset" }), { verdict: "ambiguous" }],
    ["a role and a clean end", cutShort([roleChunk()]), { verdict: "ambiguous" }],
    ["a first chunk that is no JSON", stream(['{"id": "chatcm']), { verdict: "transient", status: 200 }],
    ["a first chunk that is no object", stream(["7"]), { verdict: "transient", status: 200 }],
    ["an error object in the stream", stream([JSON.stringify(error)]), { error_code: "overloaded" }],
    ["an error behind the role", stream([roleChunk(), JSON.stringify(error)]), { error_code: "overloaded" }],
    [
      "an error event",
      sse(`event: error\ndata: ${JSON.stringify(error.error)}\n\n`),
      { verdict: "transient" },
    ],
    ["an error event in words", sse("event: error\ndata: out of memory\n\n"), { verdict: "transient" }],
    ["an error object as JSON", answer({ body: error }), { verdict: "transient", error_code: "overloaded" }],
    ["JSON that is no completion", answer({ body: '{"detail":"overloaded"}' }), { verdict: "transient" }],
    ["JSON that breaks off", answer({ body: '{"id": "chatc' }), { verdict: "transient", status: 200 }],
  ];

  test.each(faults)("%s", async (_name, fault, attempt) => {
    const outlast = await start();
    outlast.fake.script(fault, stream(whole(sixty, second)));
    const caller = await ask(outlast);
    expectWhole(caller);
    expect([...named(caller)]).toEqual([second.id]);
    const headers = ["outlast-attempts", "x-request-id"].map((name) => caller.headers.get(name));
    expect(headers).toEqual(["2", "fake-req-2"]);
    const id = caller.requestId;
    expect(await attemptsOf(outlast, id)).toMatchObject([{ number: 1, ...attempt }, { verdict: "success" }]);
    expect(contentOf(await recordOf(outlast, id))).toBe(text);
  });

  test.each(faults)("%s, and another target answers", async (_name, fault) => {
    const outlast = await start({
      upstreams: ["one", "two"],
      tables: '[routes]\n"gpt-test" = ["one", "two"]',
    });
    outlast.fakes.one!.otherwise(fault);
    outlast.fakes.two!.otherwise(stream(whole(sixty)));
    const caller = await ask(outlast);
    expectWhole(caller);
    expect(caller.headers.get("outlast-upstream")).toBe("two");
    expect([outlast.fakes.one!.seen.length, outlast.fakes.two!.seen.length]).toEqual([1, 1]);
  });

  test("a refused connection: another target answers", async () => {
    const two = await startFake();
    fakes.push(two);
    const one = { baseUrl: await closedPort(), close: async () => {} } as unknown as FakeUpstream;
    const outlast = await start({ upstreams: { one, two }, tables: '[routes]\n"gpt-test" = ["one", "two"]' });
    two.otherwise(stream(whole(sixty)));
    const caller = await ask(outlast);
    expectWhole(caller);
    expect(await attemptsOf(outlast, caller.requestId)).toMatchObject([
      { verdict: "not_sent", counted: false },
      { verdict: "success" },
    ]);
  });

  test("status 429: the caller waits as long as the upstream says", async () => {
    const outlast = await start();
    outlast.fake.script(fail(429, {}, { "retry-after-ms": "20" }), stream(whole(sixty)));
    const caller = await ask(outlast);
    expectWhole(caller);
    expect(await attemptsOf(outlast, caller.requestId)).toMatchObject([
      { verdict: "throttled", status: 429, counted: false },
      { verdict: "success" },
    ]);
  });

  const slow: [string, Step][] = [
    ["no headers", hang()],
    ["headers alone", goesSilent([])],
    ["a role alone", goesSilent([roleChunk()])],
  ];
  test.each(slow)("no first token in time: %s", async (_name, fault) => {
    const outlast = await start({ toml: '[timeouts]\nfirst_token = "600ms"' });
    outlast.fake.script(fault, stream(whole(sixty)));
    const caller = await ask(outlast);
    expectWhole(caller);
    expect(await attemptsOf(outlast, caller.requestId)).toMatchObject([
      { verdict: "ambiguous", error_code: "upstream_timeout" },
      { verdict: "success" },
    ]);
  });

  test("no first token in time: comments from the upstream do not count", async () => {
    const outlast = await start({ toml: '[timeouts]\nfirst_token = "600ms"' });
    const faucet = new Faucet("hang");
    outlast.fake.script(faucet.step, stream(whole(sixty)));
    const reply = ask(outlast);
    await faucet.called;
    const talking = setInterval(() => faucet.say(Buffer.from(": OPENROUTER PROCESSING\n\n")), 20);
    const caller = await reply;
    clearInterval(talking);
    expectWhole(caller);
    expect(await attemptsOf(outlast, caller.requestId)).toMatchObject([
      { error_code: "upstream_timeout" },
      { verdict: "success" },
    ]);
  });

  test("an answer that is JSON although a stream was asked for is told as a stream", async () => {
    const outlast = await start();
    outlast.fake.script(answer({ text, id: "chatcmpl-plain" }));
    const caller = await ask(outlast);
    expectWhole(caller);
    expect([...named(caller)]).toEqual(["chatcmpl-plain"]);
    const id = caller.requestId;
    expect(await recordOf(outlast, id)).toMatchObject({
      status: "completed",
      attempts: 1,
      usage: { total_tokens: 6 },
    });
    expect((await streamOf(outlast, id)).text).toBe(text);
  });

  test("when no attempt succeeds, the caller gets a plain HTTP error", async () => {
    const outlast = await start();
    outlast.fake.otherwise(fail(500, { message: "no luck", code: "boom" }));
    const reply = await outlast.post(path, { ...body, outlast: { max_attempts: 3 } });
    expect(reply.status).toBe(500);
    expect(reply.headers.get("content-type")).toContain("application/json");
    expect(await reply.json()).toMatchObject({ error: { code: "boom", message: "no luck" } });
    expect(outlast.fake.seen).toHaveLength(3);
  });
});

describe("after content, the answer is begun anew and goes on where it broke off", () => {
  const begunText = begun(sixty.slice(0, 40));
  const sse = (chunks: string[], bytes: string): Step =>
    stream([...chunks, Buffer.from(bytes)], { end: "hang" });
  const breaks: [string, Step, string][] = [
    ["a clean cut", cutShort(begunText), "upstream_connection_lost"],
    ["a reset", stream(begunText, { end: "reset" }), "upstream_connection_lost"],
    ["a chunk that breaks off and a reset", sse(begunText, 'data: {"id": "chat\n\n'), "upstream_bad_answer"],
    [
      "a malformed tenth chunk",
      stream([...begun(sixty.slice(0, 8)), "{oops", ...begunText]),
      "upstream_bad_answer",
    ],
    ["an error event", sse(begunText, 'event: error\ndata: {"message":"gone","code":"gone"}\n\n'), "gone"],
    ["an error object", stream([...begunText, '{"error":{"message":"gone","code":"gone"}}']), "gone"],
    ["silence", goesSilent(begunText), "upstream_timeout"],
  ];

  test.each(breaks)("%s", async (_name, fault, code) => {
    const outlast = await start({ toml: silence });
    outlast.fake.script(fault, stream(whole(rechunked, second)));
    const caller = await ask(outlast);
    expectWhole(caller);
    expect([...named(caller)]).toEqual(["chatcmpl-first"]);
    const created = caller.chunks.map(({ data }) => (JSON.parse(data) as { created: number }).created);
    expect(new Set(created)).toEqual(new Set([1_700_000_000]));
    expect(caller.headers.get("outlast-attempts")).toBe("1");

    const id = caller.requestId;
    const record = await recordOf(outlast, id);
    expect(record).toMatchObject({ status: "completed", attempts: 2, last_error_code: code });
    expect(resultOf(record)).toMatchObject({ id: "chatcmpl-first", created: 1_700_000_000 });
    expect(contentOf(record)).toBe(text);
    const [first, last] = await attemptsOf(outlast, id);
    expect(first).toMatchObject({ error_code: code, counted: true, usage: { estimated: true } });
    expect(first!.usage!.completion_tokens).toBeGreaterThan(0);
    expect(last).toMatchObject({ verdict: "success", reason: "answered" });
    const again = await streamOf(outlast, id, "?ids=true");
    expectWhole(again);
    expect(again.chunks.map(({ data }) => data)).toEqual(caller.chunks.map(({ data }) => data));
    expect(again.ids).toEqual(again.chunks.map((_, i) => String(i + 1)));
    const found = await outlast.fetch("/v1/requests/chatcmpl-first");
    expect(await found.json()).toMatchObject({ id });
  });

  test("cuts in a row, each a little later", async () => {
    const outlast = await start();
    const cuts = [10, 25, 20, 59].map((count) =>
      cutShort(begun(sixty.slice(0, count), { id: `c-${count}` })),
    );
    outlast.fake.script(...cuts, stream(whole(rechunked, second)));
    const caller = await ask(outlast);
    expectWhole(caller);
    expect([...named(caller)]).toEqual(["c-10"]);
    expect(await recordOf(outlast, caller.requestId)).toMatchObject({ attempts: 5, result: { id: "c-10" } });
  });

  test("faults of every other kind between two cuts", async () => {
    const outlast = await start({ toml: silence });
    const broken: Step[] = [cutShort(begunText), fail(500), hang(), cutShort(begun(sixty.slice(0, 5)))];
    outlast.fake.script(...broken, stream(whole(sixty, second)));
    const caller = await ask(outlast, { outlast: { max_attempts: 9 } });
    expectWhole(caller);
    expect(await recordOf(outlast, caller.requestId)).toMatchObject({ attempts: 5 });
  });

  test("a cut, and the next answer comes as JSON and begins otherwise: an error, and the whole is fetched", async () => {
    const outlast = await start();
    outlast.fake.script(cutShort(begunText), answer({ text: "something else", id: "chatcmpl-plain" }));
    const caller = await ask(outlast);
    const id = caller.requestId;
    expectBroken(caller, "stream_interrupted", id);
    const record = await recordOf(outlast, id);
    expect([record.status, contentOf(record)]).toEqual(["completed", "something else"]);
    const again = await streamOf(outlast, id, "?ids=true");
    expectWhole(again, "something else");
  });

  test("a cut behind chunks that all have a finish_reason: an error, and the whole is fetched", async () => {
    const outlast = await start();
    const ending = (content: string) => chunkOf([{ index: 0, delta: { content }, finish_reason: "stop" }]);
    const chunks = sixty.slice(0, 40).map(ending);
    outlast.fake.script(stream(chunks, { end: "reset" }), stream(whole(rechunked, second)));
    const caller = await ask(outlast);
    const id = caller.requestId;
    expectBroken(caller, "stream_interrupted", id);
    const record = await recordOf(outlast, id);
    expect([record.status, record.attempts, contentOf(record)]).toEqual(["completed", 2, text]);
    expectWhole(await streamOf(outlast, id));
  });

  const others: [string, string[]][] = [
    ["another answer", whole(tokens(30, "other"), second)],
    ["a shorter answer", whole(sixty.slice(0, 20), second)],
    ["one that differs in the last delivered token", whole([...sixty.slice(0, 39), "x"], second)],
  ];
  test.each(others)("%s instead: an error, and the whole is fetched", async (_name, chunks) => {
    const outlast = await start();
    outlast.fake.script(cutShort(begunText), stream(chunks));
    const caller = await ask(outlast);
    const id = caller.requestId;
    expect(caller.text).toBe(sixty.slice(0, 40).join(""));
    expectBroken(caller, "stream_interrupted", id);
    expect(caller.error!.message).toContain(id);
    const expected = chunks.map((data) => JSON.parse(data).choices[0].delta.content ?? "").join("");
    const record = await recordOf(outlast, id);
    expect(contentOf(record)).toBe(expected);
    expect(resultOf(record)).toMatchObject({ id: "chatcmpl-first", created: 1_700_000_000 });
    const again = await streamOf(outlast, id, "?ids=true");
    expectWhole(again, expected);
    expect(again.ids).toEqual(chunks.map((_, i) => `2-${i + 1}`));
    expect([...named(again)]).toEqual(["chatcmpl-first"]);
  });

  test("when all attempts fail, the caller gets the record's error", async () => {
    const outlast = await start();
    outlast.fake.script(
      cutShort(begunText),
      cutShort(begun(sixty.slice(0, 20))),
      fail(500, { code: "boom" }),
    );
    const caller = await ask(outlast, { outlast: { max_attempts: 3 } });
    const id = caller.requestId;
    expect(caller.text).toBe(sixty.slice(0, 40).join(""));
    expectBroken(caller, "boom", id);
    const record = await recordOf(outlast, id);
    expect(record).toMatchObject({ status: "failed", attempts: 3, error: { code: "boom" } });
    const attempts = await attemptsOf(outlast, id);
    expect(attempts.map(({ verdict }) => verdict)).toEqual(["ambiguous", "ambiguous", "transient"]);
    const [one, two, three] = attempts.map(({ usage }) => usage);
    expect([one, two]).toMatchObject([{ estimated: true }, { estimated: true }]);
    expect(Number(one!.completion_tokens)).toBeGreaterThan(Number(two!.completion_tokens));
    expect(three).toBeNull();
    const again = await streamOf(outlast, id);
    expect(again.text).toBe(caller.text);
    expectBroken(again, "boom", id);
  });

  test("on_unknown = fail: a cut is not tried again, and its caller is told that nobody knows", async () => {
    const outlast = await start();
    outlast.fake.script(cutShort(begunText));
    const caller = await ask(outlast, { outlast: { on_unknown: "fail" } });
    expectBroken(caller, "upstream_outcome_unknown", caller.requestId);
    expect(outlast.fake.seen).toHaveLength(1);
    expect(await recordOf(outlast, caller.requestId)).toMatchObject({
      status: "failed",
      error: { code: "upstream_outcome_unknown" },
    });
  });

  test("on_unknown = fail: an error that the upstream tells itself is tried again", async () => {
    const outlast = await start();
    outlast.fake.script(stream([...begunText, "{oops"]), stream(whole(sixty, second)));
    expectWhole(await ask(outlast, { outlast: { on_unknown: "fail" } }));
  });
});

describe("what cannot be continued seamlessly ends at once for the caller, and is completed behind its back", () => {
  const choice = (delta: object, finish: string | null = null, index = 0) =>
    chunkOf([{ index, delta, finish_reason: finish }]);
  const tool = (id: string, args: string) => ({
    tool_calls: [{ index: 0, id, type: "function", function: { name: "f", arguments: args } }],
  });
  const more = (args: string) => choice({ tool_calls: [{ index: 0, function: { arguments: args } }] });
  const kinds: [string, object, string[], string[]][] = [
    [
      "a tool call",
      {},
      [roleChunk(), choice(tool("call_1", "")), more('{"a"')],
      [roleChunk(), choice(tool("call_2", "")), more('{"a"'), more(":1}"), choice({}, "tool_calls")],
    ],
    [
      "two choices",
      { n: 2 },
      [roleChunk(), choice({ content: "a" }), choice({ content: "b" }, null, 1)],
      [choice({ content: "aa" }, "stop"), choice({ content: "bb" }, "stop", 1)],
    ],
    [
      "reasoning",
      {},
      [roleChunk(), choice({ reasoning_content: "hm" }), choice({ content: "a" })],
      [roleChunk(), choice({ reasoning_content: "hm, hm" }), choice({ content: "ab" }), stopChunk()],
    ],
  ];

  test.each(kinds)("%s", async (_name, asked, before, after) => {
    const outlast = await start();
    const second = new Faucet();
    outlast.fake.script(cutShort(before), second.step);
    const caller = await ask(outlast, asked);
    const id = caller.requestId;
    // It was told before the second answer had begun.
    expectBroken(caller, "stream_interrupted", id);
    expect(caller.chunks.map(({ data }) => data)).toEqual(before);
    await second.called;
    second.say(...after);
    second.end();
    const record = await recordOf(outlast, id);
    expect(record).toMatchObject({ status: "completed", attempts: 2, result: { id: "chatcmpl-first" } });
    const again = await streamOf(outlast, id, "?ids=true");
    expect([again.isDone, again.error]).toEqual([true, undefined]);
    expect(again.chunks.map(({ data }) => JSON.parse(data))).toEqual(after.map((data) => JSON.parse(data)));
    expect(again.ids).toEqual(after.map((_, i) => `2-${i + 1}`));
    expect(await (await outlast.fetch("/v1/requests/chatcmpl-first")).json()).toMatchObject({ id });
  });

  test.each(kinds)(
    "%s, where that was the last attempt: the record's own error",
    async (_name, asked, before) => {
      const outlast = await start();
      outlast.fake.script(cutShort(before));
      const caller = await ask(outlast, { ...asked, outlast: { max_attempts: 1 } });
      expectBroken(caller, "upstream_connection_lost", caller.requestId);
      expect(await recordOf(outlast, caller.requestId)).toMatchObject({ status: "failed", attempts: 1 });
      expect((await streamOf(outlast, caller.requestId)).chunks.map(({ data }) => data)).toEqual(before);
    },
  );

  test("who comes with the same key after the break gets the new answer, from its start", async () => {
    const outlast = await start({ toml: '[stream]\nheartbeat = "50ms"' });
    const next = new Faucet();
    const [, , before, after] = kinds[0]!;
    outlast.fake.script(cutShort(before), next.step);
    const key = { "idempotency-key": "tools" };
    const first = await ask(outlast, {}, key);
    expectBroken(first, "stream_interrupted", first.requestId);
    await next.called;
    const caller = await SseCaller.of(outlast.post(path, body, key));
    // It hears that it waits before the new answer begins.
    await caller.until(({ comments }) => comments.length > 0);
    next.say(...after);
    next.end();
    await caller.end();
    expect([caller.error, caller.isDone]).toEqual([undefined, true]);
    expect(caller.requestId).toBe(first.requestId);
    expect(caller.chunks.map(({ data }) => data)).toEqual(after);
    expect(outlast.fake.seen).toHaveLength(2);
  });
});

describe("an answer that is whole and lacks only its [DONE] is a success, at once", () => {
  const ends: [string, Step][] = [
    ["a clean end", stream(whole(sixty), { done: false })],
    ["a reset", stream(whole(sixty), { end: "reset" })],
    ["silence", goesSilent(whole(sixty))],
    ["a chunk that breaks off", stream([...whole(sixty), '{"id": "chat'])],
    ["an error", stream([...whole(sixty), '{"error":{"message":"gone"}}'])],
    [
      "a chunked body without its end",
      raw(
        Buffer.from(
          `HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n${whole(sixty)
            .map((data) => `data: ${data}\n\n`)
            .join("")}`,
        ),
      ),
    ],
  ];

  test.each(ends)("%s", async (_name, step) => {
    // Were the idle time waited for, the test would run out of time.
    const outlast = await start({ toml: '[timeouts]\nidle = "10m"\nfirst_token = "10m"' });
    outlast.fake.script(step);
    const caller = await ask(outlast);
    expectWhole(caller);
    expect(await recordOf(outlast, caller.requestId)).toMatchObject({ status: "completed", attempts: 1 });
    expect(outlast.fake.seen).toHaveLength(1);
  });
});

test("comments from the upstream keep a stream alive behind its first content", async () => {
  const outlast = await start({ toml: '[timeouts]\nidle = "800ms"' });
  const faucet = new Faucet();
  outlast.fake.script(faucet.step);
  const reply = SseCaller.of(outlast.post(path, body));
  await faucet.called;
  faucet.say(...begun(["a"]));
  let said = 0;
  await new Promise<void>((resolve) => {
    const talking = setInterval(() => {
      faucet.say(Buffer.from(": still here\n\n"));
      said += 1;
      if (said < 60) return;
      clearInterval(talking);
      resolve();
    }, 20);
  });
  faucet.say(textChunk("b"), stopChunk());
  faucet.end();
  expectWhole(await (await reply).end(), "ab");
  expect(outlast.fake.seen).toHaveLength(1);
});

test("buffered: faults after content cost an attempt, and another answer is no trouble", async () => {
  const outlast = await start({ toml: silence });
  const begunText = begun(sixty.slice(0, 40));
  outlast.fake.script(cutShort(begunText), goesSilent(begunText), stream(whole(tokens(9, "new"), second)));
  const caller = await ask(outlast, { outlast: { stream_mode: "buffered" } });
  expectWhole(caller, tokens(9, "new").join(""));
  expect([...named(caller)]).toEqual([second.id]);
  expect(caller.headers.get("outlast-attempts")).toBe("3");
});

test("a deadline in the midst of a stream ends it with the record's error", async () => {
  const outlast = await start();
  outlast.fake.script(goesSilent(begun(sixty.slice(0, 40))));
  const caller = await ask(outlast, { outlast: { deadline: "1s" } });
  expectBroken(caller, "deadline_exceeded", caller.requestId);
  expect(await recordOf(outlast, caller.requestId)).toMatchObject({
    status: "failed",
    attempts: 1,
    error: { code: "deadline_exceeded", status: 504 },
  });
});

test("where a comment had to be sent before the first content, a failure is an event", async () => {
  const outlast = await start({ toml: '[stream]\nheartbeat = "30ms"' });
  const held = gate();
  outlast.fake.script(held.step);
  const caller = await SseCaller.of(outlast.post(path, { ...body, outlast: { max_attempts: 1 } }));
  await caller.until(({ comments }) => comments.length >= 2);
  held.release(fail(500, { code: "boom", message: "no luck" }));
  await caller.end();
  expect(caller.events).toHaveLength(1);
  expect(caller.error).toMatchObject({ code: "boom", message: "no luck", request_id: caller.requestId });
});

test("where a comment had to be sent before the first content, faults still cost only an attempt", async () => {
  const outlast = await start({ toml: '[stream]\nheartbeat = "30ms"' });
  const held = gate();
  outlast.fake.script(
    held.step,
    cutShort([roleChunk()]),
    cutShort(begun(sixty.slice(0, 40))),
    stream(whole(sixty)),
  );
  const caller = await SseCaller.of(outlast.post(path, body));
  await caller.until(({ comments }) => comments.length >= 2);
  held.release(reset());
  expectWhole(await caller.end());
});

test("a reader who is slow and far behind when the stream is cut gets the whole all the same", async () => {
  const outlast = await start();
  const big = Array.from({ length: 400 }, (_, i) => `${String(i).padEnd(16_000, "abcdefgh")} `);
  const first = new Faucet("cut");
  outlast.fake.script(first.step, stream(whole(big, second)));
  const peer = await Peer.open(outlast.url, { unread: true });
  await peer.say(chatCall(body));
  await first.called;
  first.say(...begun(big.slice(0, 300)));
  first.end();
  const { id } = await outlast.ear.event("ended");
  const received: Buffer[] = [];
  peer.socket.on("data", (piece: Buffer) => received.push(piece));
  while (!Buffer.concat(received.slice(-3)).includes("[DONE]")) {
    await new Promise((resolve) => peer.socket.once("data", resolve));
  }
  const told = Buffer.concat(received).toString();
  const contents = [...told.matchAll(/^data: (\{.*\})$/gm)].map(([, data]) => chunkText(data!));
  expect(contents.join("") === big.join("")).toBe(true);
  expect(await recordOf(outlast, id)).toMatchObject({ status: "completed", attempts: 2 });
  await peer.close();
});
