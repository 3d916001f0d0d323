/** Streamed answers over real sockets: what of them reaches core, and how each of them ends. */

import { once } from "node:events";
import type { Socket } from "node:net";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, it, test } from "vitest";
import type { Abort, Chunk, Outcome, StreamWish, UpstreamEvent } from "../../src/core/ports.ts";
import { createUpstream, type UpstreamOptions } from "../../src/outbound/upstream.ts";
import { HandClock } from "../support/clock.ts";
import {
  answer,
  deltas,
  type FakeUpstream,
  fail,
  hang,
  raw,
  reset,
  type Step,
  startFake,
  stream,
} from "../support/fake-upstream.ts";

let fake: FakeUpstream;
let clock: HandClock;
const opened: { close(): Promise<void> }[] = [];

beforeEach(async () => {
  fake = await startFake();
  clock = new HandClock();
});

afterEach(async () => {
  for (const one of opened.splice(0)) await one.close();
  await fake.close();
});

function open(options: Partial<UpstreamOptions> = {}) {
  const upstream = createUpstream(
    [{ name: "up", baseUrl: fake.baseUrl, headers: {}, maxConcurrency: 2, ...options }],
    { connectMs: 5000, attemptMs: 5000 },
    clock,
  );
  opened.push(upstream);
  return upstream;
}

const plainBody = '{"model":"fake","messages":[],"stream":true}';

/** Starts a call; nothing is pulled yet. */
function start(
  upstream: ReturnType<typeof open>,
  { body = plainBody, wish = { usage: false } }: { body?: string; wish?: StreamWish } = {},
) {
  const abort: Abort = { aborted: false, onAbort: undefined };
  const stop = () => {
    abort.aborted = true;
    abort.onAbort?.();
  };
  const events = upstream.stream(
    {
      upstream: "up",
      model: "fake",
      askedModel: "fake",
      method: "POST",
      path: "/chat/completions",
      headers: [["content-type", "application/json"]],
      body: Buffer.from(body),
    },
    wish,
    abort,
  );
  return { events, stop };
}

interface Taken {
  kinds: UpstreamEvent["kind"][];
  head: [string, string][] | undefined;
  chunks: Chunk[];
  outcome: Outcome;
}

async function all(events: AsyncIterable<UpstreamEvent>): Promise<Taken> {
  const taken: Taken = { kinds: [], head: undefined, chunks: [], outcome: { kind: "aborted", sent: false } };
  for await (const event of events) {
    taken.kinds.push(event.kind);
    if (event.kind === "head") taken.head = event.headers;
    if (event.kind === "chunks") taken.chunks.push(...event.chunks);
    if (event.kind === "ended") taken.outcome = event.outcome;
  }
  return taken;
}

const called = (step: Step, options: Parameters<typeof start>[1] = {}) => {
  fake.script(step);
  return all(start(open(), options).events);
};

const data = (chunks: Chunk[]) => chunks.map((chunk) => chunk.data);
const textOf = (chunks: Chunk[]) => chunks.map(({ text }) => text).join("");

function response(outcome: Outcome) {
  if (outcome.kind !== "response") throw new Error(`the outcome is ${JSON.stringify(outcome)}`);
  return { ...outcome, json: JSON.parse(Buffer.from(outcome.body).toString() || "null") };
}

/** The next event of a kind that matters; signs of life are passed over. */
async function next(iterator: AsyncIterator<UpstreamEvent>): Promise<UpstreamEvent | undefined> {
  for (;;) {
    const { done, value } = await iterator.next();
    if (done) return undefined;
    if (value.kind !== "chunks" || value.chunks.length > 0) return value;
  }
}

const chunk = (choices: object[], more: object = {}) =>
  JSON.stringify({
    id: "chatcmpl-fake",
    object: "chat.completion.chunk",
    created: 1_700_000_000,
    model: "fake",
    choices,
    ...more,
  });
const usage = { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 };
const usageOnly = chunk([], { usage });
/** As upstreams say it that give every chunk a finish_reason. */
const ending = (content: string) => chunk([{ index: 0, delta: { content }, finish_reason: "stop" }]);
const sse = (text: string | Buffer) => stream([Buffer.from(text)], { done: false });
const events = (...texts: string[]) => texts.map((text) => `data: ${text}\n\n`).join("");

/** The chunks of "Grüße 👋" and what they make. */
const greeting = deltas("Grü", "ße", " 👋");
const greetingIsWhole = (taken: Taken) => {
  expect(data(taken.chunks)).toEqual(greeting);
  expect(textOf(taken.chunks)).toBe("Grüße 👋");
  expect(response(taken.outcome).json.choices[0].message.content).toBe("Grüße 👋");
};

describe("a whole stream", () => {
  it("is a head, its chunks as they came, and the answer that they make", async () => {
    const taken = await called(stream(greeting, { headers: { "X-Ratelimit-Limit-Requests": "7" } }));
    expect(taken.kinds[0]).toBe("head");
    expect(taken.kinds.at(-1)).toBe("ended");
    expect(taken.head).toContainEqual(["content-type", "text/event-stream"]);
    expect(taken.head).toContainEqual(["x-ratelimit-limit-requests", "7"]);
    expect(taken.head!.map(([name]) => name)).not.toContain("transfer-encoding");
    greetingIsWhole(taken);
    const outcome = response(taken.outcome);
    expect(outcome.status).toBe(200);
    expect(outcome.firstByteAt).toBe(clock.now());
    expect(outcome.headers).toContainEqual(["content-type", "application/json"]);
    expect(outcome.headers.filter(([name]) => name === "content-type")).toHaveLength(1);
    expect(outcome.headers).toContainEqual(["x-request-id", "fake-req-1"]);
    expect(outcome.facts).toEqual({
      wellFormed: true,
      id: "chatcmpl-fake",
      model: "fake",
      usage: undefined,
      findings: { finishReason: "stop", problems: [] },
    });
    expect(outcome.json).toEqual({
      id: "chatcmpl-fake",
      object: "chat.completion",
      created: 1_700_000_000,
      model: "fake",
      choices: [
        {
          index: 0,
          message: { role: "assistant", content: "Grüße 👋", refusal: null },
          logprobs: null,
          finish_reason: "stop",
        },
      ],
    });
  });

  it("tells which chunks say something", async () => {
    const { chunks } = await called(stream(deltas("a", "bc")));
    expect(chunks.map(({ isContent, text, chars }) => [isContent, text, chars])).toEqual([
      [false, "", 0],
      [true, "a", 1],
      [true, "bc", 2],
      [true, "", 0],
    ]);
  });

  it("says when its first content came", async () => {
    let goOn = () => {};
    const waited = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    const [role, ...rest] = deltas("a");
    fake.script(stream([role!, waited, ...rest]));
    const { events } = start(open());
    const iterator = events[Symbol.asyncIterator]();
    await next(iterator);
    await next(iterator);
    clock.advance(700);
    goOn();
    const { outcome } = await all({ [Symbol.asyncIterator]: () => iterator });
    expect(response(outcome).firstByteAt).toBe(clock.now());
  });

  it("reaches core chunk by chunk, not at its end", async () => {
    let goOn = () => {};
    const waited = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    fake.script(stream([greeting[0]!, greeting[1]!, waited, ...greeting.slice(2)]));
    const iterator = start(open()).events[Symbol.asyncIterator]();
    expect((await next(iterator))?.kind).toBe("head");
    const seen: string[] = [];
    while (seen.length < 2) {
      const event = await next(iterator);
      if (event?.kind === "chunks") seen.push(...data(event.chunks));
    }
    expect(seen).toEqual(greeting.slice(0, 2));
    goOn();
    const rest = await all({ [Symbol.asyncIterator]: () => iterator });
    expect(data(rest.chunks)).toEqual(greeting.slice(2));
  });

  test.each<[string, Step]>([
    ["without [DONE], cleanly ended", stream(greeting, { done: false })],
    ["without [DONE], then a reset", stream(greeting, { end: "reset" })],
    ["with CRLF", sse(events(...greeting, "[DONE]").replaceAll("\n", "\r\n"))],
    ["with lone CRs", sse(events(...greeting, "[DONE]").replaceAll("\n", "\r"))],
    ["with a byte order mark", sse(`\ufeff${events(...greeting, "[DONE]")}`)],
    [
      "with ids, retry times and event names",
      sse(`retry: 5\n\nid: 1\nevent: message\n${events(...greeting)}`),
    ],
    ["with pings", sse(`event: ping\ndata: {"type": "ping"}\n\n${events(...greeting, "[DONE]")}`)],
    ["with empty events", sse(`data:\n\n${events(...greeting, "[DONE]")}`)],
    ["without a blank line at its end", sse(`${events(...greeting).trimEnd()}`)],
    ["without spaces behind colons", sse(events(...greeting, "[DONE]").replaceAll("data: ", "data:"))],
    [
      "with comments",
      sse(`: hello\n\n${greeting.map((one) => `: keep-alive\n\ndata: ${one}\n\n`).join(": x\n")}`),
    ],
    [
      "under another spelling of its type",
      stream(greeting, { headers: { "content-type": "Text/Event-Stream; charset=utf-8" } }),
    ],
  ])("%s is read", async (_, step) => {
    greetingIsWhole(await called(step));
  });

  it("is read from one byte a packet", async () => {
    const bytes = [...Buffer.from(events(...greeting, "[DONE]"))].map((byte) => Buffer.from([byte]));
    greetingIsWhole(await called(stream(bytes, { done: false })));
  });

  it("is read with data on several lines, which become one", async () => {
    const several = greeting.map((one) => JSON.stringify(JSON.parse(one), null, 2));
    const text = several.map((one) => `${one.replaceAll(/^/gm, "data: ")}\n\n`).join("");
    const taken = await called(sse(`${text}data: [DONE]\n\n`));
    expect(data(taken.chunks).some((one) => one.includes("\n"))).toBe(false);
    expect(data(taken.chunks).map((one) => JSON.parse(one))).toEqual(greeting.map((one) => JSON.parse(one)));
  });

  it("is read with chunks of 64 KB and more", async () => {
    const texts = ["x".repeat(65_536), "ü".repeat(200_000)];
    const taken = await called(stream(deltas(...texts)));
    expect(textOf(taken.chunks)).toBe(texts.join(""));
    expect(response(taken.outcome).json.choices[0].message.content).toBe(texts.join(""));
  });

  test.each([["gzip", gzipSync] as const])("is decoded where it comes in %s", async (encoding, encode) => {
    const bytes = encode(Buffer.from(events(...greeting, "[DONE]")));
    const pieces = [bytes.subarray(0, 15), bytes.subarray(15)];
    const taken = await called(stream(pieces, { done: false, headers: { "content-encoding": encoding } }));
    greetingIsWhole(taken);
    expect(response(taken.outcome).headers.map(([name]) => name)).not.toContain("content-encoding");
  });

  it("may have no finish_reason if it has [DONE]", async () => {
    const { outcome } = await called(stream([...greeting.slice(0, -1), "[DONE]"], { end: "reset" }));
    expect(response(outcome).json.choices[0]).toMatchObject({
      message: { content: "Grüße 👋" },
      finish_reason: null,
    });
  });

  it("may say its last text and its end in one chunk", async () => {
    const chunks = [...greeting.slice(0, -2), ending(" 👋")];
    const taken = await called(stream(chunks, { done: false }));
    expect(data(taken.chunks)).toEqual(chunks);
    expect(response(taken.outcome).json.choices[0]).toMatchObject({
      message: { content: "Grüße 👋" },
      finish_reason: "stop",
    });
  });

  test.each([
    ["with text", "a"],
    ["that only names a role", ""],
  ])("may have a finish_reason in every chunk: silence behind one %s is not its end", async (_, first) => {
    let goOn = () => {};
    const waited = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    fake.script(stream([ending(first), waited, ending("b")]));
    const iterator = start(open()).events[Symbol.asyncIterator]();
    expect((await next(iterator))?.kind).toBe("head");
    expect((await next(iterator))?.kind).toBe("chunks");
    clock.advance(10_000);
    goOn();
    const { chunks, outcome } = await all({ [Symbol.asyncIterator]: () => iterator });
    expect(textOf(chunks)).toBe("b");
    expect(response(outcome).json.choices[0].message.content).toBe(`${first}b`);
  });

  it("may have several choices, one after the other", async () => {
    const texts = (index: number, ...all: string[]) => [
      ...all.map((content) => chunk([{ index, delta: { role: "assistant", content }, finish_reason: null }])),
      chunk([{ index, delta: {}, finish_reason: "stop" }]),
    ];
    let goOn = () => {};
    const waited = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    fake.script(stream([...texts(1, "a", "b"), waited, ...texts(0, "c")]));
    const { events } = start(open(), { body: '{"model":"fake","n":2,"stream":true}' });
    const iterator = events[Symbol.asyncIterator]();
    const seen: Chunk[] = [];
    while (seen.length < 3) {
      const event = await next(iterator);
      if (event?.kind === "chunks") seen.push(...event.chunks);
    }
    expect(seen.map(({ text }) => text)).toEqual([undefined, undefined, undefined]);
    clock.advance(10_000);
    goOn();
    const { outcome } = await all({ [Symbol.asyncIterator]: () => iterator });
    expect(response(outcome).json.choices).toMatchObject([
      { index: 0, message: { content: "c" } },
      { index: 1, message: { content: "ab" } },
    ]);
  });

  it("may call tools", async () => {
    const delta = (delta: object, finish_reason: string | null = null) =>
      chunk([{ index: 0, delta, finish_reason }]);
    const taken = await called(
      stream([
        delta({ role: "assistant", content: null }),
        delta({
          tool_calls: [{ index: 0, id: "c1", type: "function", function: { name: "f", arguments: "" } }],
        }),
        delta({ tool_calls: [{ index: 0, function: { arguments: '{"a":' } }] }),
        delta({ tool_calls: [{ index: 0, function: { arguments: "1}" } }] }),
        delta({}, "tool_calls"),
      ]),
    );
    expect(taken.chunks.map(({ isContent, text }) => [isContent, text])).toEqual([
      [false, ""],
      [true, undefined],
      [true, undefined],
      [true, undefined],
      [true, ""],
    ]);
    expect(response(taken.outcome).json.choices[0].message).toEqual({
      role: "assistant",
      content: null,
      refusal: null,
      tool_calls: [{ id: "c1", type: "function", function: { name: "f", arguments: '{"a":1}' } }],
    });
  });

  it("gives its connection to the next call", async () => {
    const upstream = open({ maxConcurrency: 1 });
    const ports = new Set<number | undefined>();
    fake.otherwise(async (call, res) => {
      ports.add(res.req.socket.remotePort);
      await stream(greeting)(call, res);
    });
    for (let i = 0; i < 3; i++) greetingIsWhole(await all(start(upstream).events));
    expect(fake.seen).toHaveLength(3);
    expect(ports.size).toBe(1);
  });

  it("that is not over behind its [DONE] is a success, and its connection is closed a second later", async () => {
    fake.script(stream([...greeting, "[DONE]"], { end: "hang" }));
    greetingIsWhole(await all(start(open()).events));
    expect(fake.inFlight).toBe(1);
    clock.advance(999);
    expect(fake.inFlight).toBe(1);
    clock.advance(1);
    await fake.idle();
  });

  it("that nobody wants any more stays whole", async () => {
    fake.script(stream(greeting, { end: "hang" }));
    const call = start(open());
    const iterator = call.events[Symbol.asyncIterator]();
    const chunks: Chunk[] = [];
    while (chunks.length < greeting.length) {
      const event = await next(iterator);
      if (event?.kind === "chunks") chunks.push(...event.chunks);
    }
    call.stop();
    const { outcome } = await all({ [Symbol.asyncIterator]: () => iterator });
    greetingIsWhole({ kinds: [], head: undefined, chunks, outcome });
    await fake.idle();
  });

  test.each([
    ["what is no chunk", "{oops"],
    ["an error", '{"error":{"message":"too late"}}'],
  ])("that is followed by %s stays whole", async (_, text) => {
    fake.script(stream([...greeting, text, new Promise(() => {})], { end: "hang" }));
    greetingIsWhole(await all(start(open()).events));
  });

  test.each([
    ["its end", greeting],
    ["its usage behind an end with text", [...greeting.slice(0, -2), ending(" 👋"), usageOnly]],
  ])("that is silent behind %s, without [DONE], is a success a second later", async (_, said) => {
    fake.script(stream(said, { end: "hang" }));
    const iterator = start(open(), { wish: { usage: true } }).events[Symbol.asyncIterator]();
    const chunks: Chunk[] = [];
    while (chunks.length < said.length) {
      const event = await next(iterator);
      if (event?.kind === "chunks") chunks.push(...event.chunks);
    }
    clock.advance(1000);
    const { outcome } = await all({ [Symbol.asyncIterator]: () => iterator });
    expect(data(chunks)).toEqual(said);
    expect(response(outcome).json.choices[0].message.content).toBe("Grüße 👋");
    await fake.idle();
  });
});

describe("a stream that goes wrong", () => {
  const begun = greeting.slice(0, 2);

  test.each<[string, Step, string]>([
    ["ends cleanly before its time", stream(begun, { done: false }), "STREAM_CUT"],
    ["ends before anything", stream([], { done: false }), "STREAM_CUT"],
    [
      "ends in the midst of a chunk",
      stream([...begun, Buffer.from('data: {"id":"x","cho')], { done: false }),
      "STREAM_CUT",
    ],
    ["is reset", stream(begun, { end: "reset" }), "ECONNRESET"],
    [
      "ends cleanly behind chunks of which each has a finish_reason",
      stream([ending("a"), ending("b")], { done: false }),
      "STREAM_CUT",
    ],
    [
      "is reset behind chunks of which each has a finish_reason",
      stream([ending("a"), ending("b")], { end: "reset" }),
      "ECONNRESET",
    ],
    [
      "breaks off behind an unfinished piece of its transfer coding",
      raw(
        `HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\nfff\r\n${events(...begun)}`,
      ),
      "UND_ERR_SOCKET",
    ],
    [
      "has two choices of which one is unfinished",
      stream(
        [
          chunk([{ index: 0, delta: { content: "a" }, finish_reason: "stop" }]),
          chunk([{ index: 1, delta: { content: "b" }, finish_reason: null }]),
        ],
        { done: false },
      ),
      "STREAM_CUT",
    ],
  ])("and %s is a network error", async (_, step, code) => {
    const { outcome } = await called(step);
    expect(outcome).toEqual({ kind: "network_error", code, sent: true });
  });

  it("yields the chunks that came before the fault in the same packet", async () => {
    const { chunks, outcome } = await called(sse(events(...begun, "{oops", ...greeting)));
    expect(data(chunks)).toEqual(begun);
    expect(response({ ...outcome, body: new Uint8Array() } as Outcome).facts).toEqual({ wellFormed: false });
  });

  test.each(["{oops", "[1]", "null", '"text"', "3", "[DONE]"])(
    "ends at once where it has %s as its first chunk",
    async (text) => {
      fake.script(stream([text, new Promise(() => {})], { end: "hang" }));
      const { chunks, outcome } = await all(start(open()).events);
      expect(chunks).toEqual([]);
      expect(outcome).toMatchObject({ kind: "response", status: 200, facts: { wellFormed: false } });
      await fake.idle();
    },
  );

  const error = { message: "Bad key sk-verysecret1234", type: "server_error", code: "overloaded" };
  test.each<[string, string, object]>([
    [
      "an error as a chunk",
      events(JSON.stringify({ error })),
      { message: "Bad key [redacted]", type: "server_error", code: "overloaded" },
    ],
    ["an error event", `event: error\n${events(JSON.stringify({ error }))}`, { code: "overloaded" }],
    ["a bare error event", `event: error\n${events(JSON.stringify(error))}`, { code: "overloaded" }],
    ["an error event that is plain text", `event: error\n${events("too busy")}`, { message: "too busy" }],
    ["an error in a list", events(JSON.stringify([{ error }])), { code: "overloaded" }],
    [
      "an error beside a choice",
      events(chunk([{ index: 0, delta: { content: "" }, finish_reason: "error" }], { error })),
      { code: "overloaded" },
    ],
  ])("ends at once where it has %s, without our keys in it", async (_, text, facts) => {
    const secret = "my-own-upstream-key";
    const bytes = Buffer.from(events(...begun) + text);
    fake.script(
      stream([bytes, new Promise(() => {})], { end: "hang", headers: { "openai-organization": "org-1" } }),
    );
    const { chunks, outcome } = await all(start(open({ apiKey: secret })).events);
    expect(data(chunks)).toEqual(begun);
    const { status, facts: found, headers, body } = response(outcome);
    expect(status).toBe(200);
    expect(found).toMatchObject({ wellFormed: true, error: facts });
    expect(headers.map(([name]) => name)).not.toContain("openai-organization");
    expect(Buffer.from(body).toString()).not.toContain("verysecret");
    await fake.idle();
  });

  it("does not repeat our own key", async () => {
    const apiKey = "my-own-upstream-key";
    fake.script(sse(events(JSON.stringify({ error: { message: `no such key: ${apiKey}` } }))));
    const { outcome } = await all(start(open({ apiKey })).events);
    expect(response(outcome).facts.error?.message).toBe("no such key: [redacted]");
    expect(JSON.stringify(response(outcome).json)).not.toContain(apiKey);
  });

  it("does not read on where one event is larger than 16 MB", async () => {
    const piece = Buffer.alloc(1024 * 1024, "x");
    fake.script(
      stream([Buffer.from("data: "), ...Array(17).fill(piece), new Promise(() => {})], { end: "hang" }),
    );
    const { outcome } = await all(start(open()).events);
    expect(outcome).toMatchObject({ kind: "response", facts: { wellFormed: false } });
    await fake.idle();
  });
});

describe("an answer that is no stream", () => {
  it("is a plain answer", async () => {
    const taken = await called(answer({ text: "whole" }));
    expect(taken.kinds).toEqual(["ended"]);
    expect(response(taken.outcome)).toMatchObject({ status: 200, facts: { wellFormed: true } });
    expect(response(taken.outcome).json.choices[0].message.content).toBe("whole");
  });

  test.each<[string, Step, object]>([
    [
      "an error",
      fail(503, { message: "busy" }),
      { kind: "response", status: 503, facts: { error: { message: "busy" } } },
    ],
    [
      "an error that calls itself a stream",
      answer({ status: 500, headers: { "content-type": "text/event-stream" }, body: "data: x\n\n" }),
      { kind: "response", status: 500, facts: { wellFormed: false } },
    ],
    ...["{}", '{"detail":"overloaded"}', '{"choices":[{"text":"a"}]}', "[]", '"text"'].map(
      (body): [string, Step, object] => [
        `JSON that is no completion: ${body}`,
        answer({ body }),
        { kind: "response", status: 200, facts: { wellFormed: false } },
      ],
    ),
    ["a reset", reset(), { kind: "network_error", sent: true }],
    [
      "a connection that closes without an answer",
      (_call, res) => void res.req.socket.destroy(),
      { kind: "network_error", code: "UND_ERR_SOCKET", sent: true },
    ],
  ])("ends as %s", async (_, step, outcome) => {
    const taken = await called(step);
    expect(taken.kinds).toEqual(["ended"]);
    expect(taken.outcome).toMatchObject(outcome);
  });
});

describe("usage", () => {
  const withUsage = [
    ...greeting.map((one) => JSON.stringify({ ...JSON.parse(one), usage: null })),
    usageOnly,
  ];
  const sent = (n: number) => fake.seen[n - 1]!.body.toString();

  it("is asked for and recorded, but kept from a caller who did not ask", async () => {
    const { chunks, outcome } = await called(stream(withUsage), {
      body: '{"model":"fake", "seed": 9007199254740993,"stream":true}',
    });
    expect(sent(1)).toBe(
      '{"stream_options":{"include_usage":true},"model":"fake", "seed": 9007199254740993,"stream":true}',
    );
    expect(data(chunks)).toEqual(greeting);
    expect(response(outcome).json.usage).toEqual(usage);
    expect(response(outcome).facts.usage).toBe(JSON.stringify(usage));
  });

  it("is cut out wherever it stands, and only where it is null", async () => {
    const finish = chunk([{ index: 0, delta: { content: '"usage":null' }, finish_reason: "stop" }], {
      usage,
    });
    const padded = '{"id":"a", "usage" : null, "choices":[{"index":0,"delta":{"content":"x"}}]}';
    const { chunks } = await called(stream([padded, finish]));
    expect(data(chunks)).toEqual(['{"id":"a", "choices":[{"index":0,"delta":{"content":"x"}}]}', finish]);
  });

  it("is passed on to a caller who asked", async () => {
    const body = '{"model":"fake","stream":true,"stream_options":{"include_usage":true}}';
    const { chunks, outcome } = await called(stream(withUsage), { body, wish: { usage: true } });
    expect(sent(1)).toBe(body);
    expect(data(chunks)).toEqual(withUsage);
    expect(chunks.at(-1)).toMatchObject({ isContent: false, text: "" });
    expect(response(outcome).facts.usage).toBe(JSON.stringify(usage));
  });

  test.each([
    ['{"stream_options":{"include_usage":false,"x":1}}', '{"stream_options":{"include_usage":true,"x":1}}'],
    ['{"stream_options": {"x":1.0}}', '{"stream_options": {"include_usage":true,"x":1.0}}'],
    ['{"stream_options":null}', '{"stream_options":{"include_usage":true}}'],
    ['{"stream_options":{}}', '{"stream_options":{"include_usage":true}}'],
    ['{ "a":"ü" }', '{ "stream_options":{"include_usage":true},"a":"ü" }'],
  ])("is asked for in %s", async (body, expected) => {
    await called(stream(greeting), { body });
    expect(sent(1)).toBe(expected);
  });

  test.each([400, 422])("is not asked for again once it is refused with %i", async (status) => {
    const upstream = open();
    fake.script(
      fail(status, { message: "Unknown field: stream_options" }),
      stream(greeting),
      stream(greeting),
    );
    greetingIsWhole(await all(start(upstream).events));
    expect(sent(1)).toContain("include_usage");
    expect(sent(2)).toBe(plainBody);
    greetingIsWhole(await all(start(upstream).events));
    expect(sent(3)).toBe(plainBody);
  });

  it("is asked for again where the call without it came to nothing", async () => {
    const upstream = open();
    fake.script(fail(400, { message: "Unknown field: stream_options" }), fail(503), stream(greeting));
    const { outcome } = await all(start(upstream).events);
    expect(outcome).toMatchObject({ kind: "response", status: 503 });
    expect(sent(2)).toBe(plainBody);
    greetingIsWhole(await all(start(upstream).events));
    expect(sent(3)).toContain("include_usage");
  });

  it("is asked for again where what was refused was the caller's own", async () => {
    const upstream = open();
    const body = '{"stream":true,"stream_options":{"colour":1}}';
    const refusal = fail(400, { message: "stream_options.colour is unknown" });
    fake.script(refusal, refusal, stream(greeting));
    const { kinds, outcome } = await all(start(upstream, { body }).events);
    expect(kinds).toEqual(["ended"]);
    expect(outcome).toMatchObject({ kind: "response", status: 400 });
    expect(sent(2)).toBe(body);
    await all(start(upstream).events);
    expect(sent(3)).toContain("include_usage");
  });

  it("is no reason to call again where the error is another one", async () => {
    const { outcome } = await called(fail(400, { message: "messages is empty" }));
    expect(outcome).toMatchObject({ kind: "response", status: 400 });
    expect(fake.seen).toHaveLength(1);
  });

  it("is no reason to call again where we did not ask", async () => {
    fake.script(fail(400, { message: "Unknown field: stream_options" }));
    const { outcome } = await all(start(open({ streamUsage: false })).events);
    expect(outcome).toMatchObject({ kind: "response", status: 400 });
    expect(sent(1)).toBe(plainBody);
    expect(fake.seen).toHaveLength(1);
  });
});

describe("identity", () => {
  it("is another one's in every chunk and in the answer, where that is wished", async () => {
    const wish = { usage: true, identity: { id: 'first"one', created: 17 } };
    const { chunks, outcome } = await called(stream([...greeting, usageOnly]), { wish });
    for (const [i, one] of data(chunks).entries()) {
      const original = JSON.parse([...greeting, usageOnly][i]!);
      expect(JSON.parse(one)).toEqual({ ...original, id: 'first"one', created: 17 });
    }
    expect(chunks).toHaveLength(greeting.length + 1);
    expect(response(outcome).json).toMatchObject({ id: 'first"one', created: 17 });
    expect(response(outcome).facts.id).toBe('first"one');
  });
});

describe("a sign of life", () => {
  it("is given where only comments come", async () => {
    let goOn = () => {};
    const waited = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    fake.script(stream([Buffer.from(": keep-alive\n\n"), waited, ...greeting]));
    const iterator = start(open()).events[Symbol.asyncIterator]();
    expect((await iterator.next()).value.kind).toBe("head");
    expect((await iterator.next()).value).toEqual({ kind: "chunks", chunks: [] });
    goOn();
    expect(textOf((await all({ [Symbol.asyncIterator]: () => iterator })).chunks)).toBe("Grüße 👋");
  });
});

describe("a consumer that does not pull", () => {
  const piece = `data: ${deltas("x".repeat(16_000))[1]}\n\n`;

  /** Writes without end, as fast as it is read. `stalled` resolves when nobody reads any more. */
  function endless(headers: Record<string, string>) {
    const state = { written: 0 };
    let tell = () => {};
    const stalled = new Promise<void>((resolve) => {
      tell = resolve;
    });
    const step: Step = async (_call, res) => {
      res.writeHead(200, { "content-type": "text/event-stream", ...headers });
      const closed = once(res, "close");
      while (!res.destroyed && state.written < 256 * 1024 * 1024) {
        state.written += piece.length;
        if (res.write(piece)) continue;
        let isDrained = false;
        const drained = Promise.race([once(res, "drain"), closed]).then(() => {
          isDrained = true;
        });
        await turns(() => isDrained);
        if (!isDrained) tell();
        await drained;
      }
    };
    return { state, stalled, step };
  }

  /** Lets everything happen that can happen by itself. */
  async function turns(isEnough = () => false): Promise<void> {
    for (let turn = 0; turn < 500 && !isEnough(); turn++)
      await new Promise((resolve) => setImmediate(resolve));
  }

  test.each([
    ["that may be kept", {}],
    ["that is to be closed", { connection: "close" }],
  ])("makes the upstream wait, on a connection %s, and loses nothing", async (_, headers) => {
    const { state, stalled, step } = endless(headers as Record<string, string>);
    fake.script(step);
    const { events, stop } = start(open());
    const iterator = events[Symbol.asyncIterator]();
    await stalled;
    // What is on its way is in buffers of the system, which are some MB.
    expect(state.written).toBeLessThan(32 * 1024 * 1024);
    const wanted = 2 * state.written;
    let seen = 0;
    while (seen < wanted) {
      const event = await next(iterator);
      if (event?.kind !== "chunks") continue;
      const size = event.chunks.reduce((sum, { data }) => sum + data.length, 0);
      expect(size).toBeLessThan(512 * 1024);
      seen += event.chunks.length * piece.length;
    }
    stop();
    const { outcome } = await all({ [Symbol.asyncIterator]: () => iterator });
    expect(outcome).toEqual({ kind: "aborted", sent: true });
    await fake.idle();
  });

  it("may still stop the call", async () => {
    const { stalled, step } = endless({});
    fake.script(step);
    const { events, stop } = start(open());
    await stalled;
    stop();
    await fake.idle();
    const { kinds, outcome } = await all(events);
    expect(kinds).toEqual(["head", "chunks", "ended"]);
    expect(outcome).toEqual({ kind: "aborted", sent: true });
  });

  /** An answer that ends with its connection, and that connection. */
  function untilTheEnd(bytes: string) {
    let socket: Socket | undefined;
    const step: Step = async (call, res) => {
      socket = res.req.socket;
      await raw(`HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n${bytes}`, "hang")(call, res);
    };
    return { step, end: () => socket?.end(), reset: () => socket?.resetAndDestroy() };
  }

  // More than what pauses a call, little enough to be read until the connection's end is seen.
  const pieces = 17;

  it("has the rest of an answer that ended meanwhile with its connection", async () => {
    const answer = untilTheEnd(piece.repeat(pieces));
    fake.script(answer.step);
    const { events } = start(open());
    await fake.calls(1);
    await turns();
    answer.end();
    await turns();
    const { chunks, outcome } = await all(events);
    expect(chunks).toHaveLength(pieces);
    expect(outcome).toEqual({ kind: "network_error", code: "STREAM_CUT", sent: true });
  });

  it("learns of a reset meanwhile", async () => {
    const answer = untilTheEnd(piece.repeat(pieces));
    fake.script(answer.step);
    const { events } = start(open());
    await fake.calls(1);
    await turns();
    answer.reset();
    await turns();
    const { outcome } = await all(events);
    expect(outcome).toMatchObject({ kind: "network_error", sent: true });
  });

  test.each(["end", "reset"] as const)("of a call that is let through outlives its %s", async (end) => {
    const answer = untilTheEnd(piece.repeat(pieces));
    fake.script(answer.step, stream(greeting));
    const upstream = open();
    const call = { upstream: "up", method: "GET", path: "/x", headers: [], body: undefined };
    const reply = await upstream.forward(call, { aborted: false, onAbort: undefined });
    await turns();
    answer[end]();
    await turns();
    let size = 0;
    const read = async () => {
      if (reply.kind !== "response") throw new Error(reply.kind);
      for await (const bytes of reply.body) size += bytes.length;
    };
    const [{ status }] = await Promise.allSettled([read()]);
    if (end === "end") expect([status, size]).toEqual(["fulfilled", piece.length * pieces]);
    greetingIsWhole(await all(start(upstream).events));
  });
});

describe("an abort", () => {
  const ended = (events: AsyncIterable<UpstreamEvent>) => all(events).then(({ outcome }) => outcome);

  it("before the call makes none", async () => {
    const abort: Abort = { aborted: true, onAbort: undefined };
    const call = {
      upstream: "up",
      model: "m",
      askedModel: "m",
      method: "POST",
      path: "/x",
      headers: [] as [string, string][],
      body: Buffer.from(plainBody),
    };
    expect(await ended(open().stream(call, { usage: false }, abort))).toEqual({
      kind: "aborted",
      sent: false,
    });
    expect(fake.seen).toHaveLength(0);
  });

  it("before the head ends the call at once", async () => {
    fake.script(hang());
    const { events, stop } = start(open());
    await fake.calls(1);
    stop();
    expect(await ended(events)).toEqual({ kind: "aborted", sent: true });
    await fake.idle();
  });

  test.each([
    ["behind the head", []],
    ["behind the first chunk", greeting.slice(0, 1)],
    ["between chunks", greeting.slice(0, 2)],
    ["behind a chunk of those that all have a finish_reason", [ending("a")]],
    ["in the midst of a chunk", [...greeting.slice(0, 2), Buffer.from("data: {")]],
  ])("%s ends the call at once", async (_, chunks) => {
    fake.script(stream(chunks, { end: "hang" }));
    const { events, stop } = start(open());
    const iterator = events[Symbol.asyncIterator]();
    await next(iterator);
    let seen = 0;
    const whole = chunks.filter((one) => typeof one === "string").length;
    while (seen < whole) {
      const event = await next(iterator);
      if (event?.kind === "chunks") seen += event.chunks.length;
    }
    stop();
    expect(await ended({ [Symbol.asyncIterator]: () => iterator })).toEqual({ kind: "aborted", sent: true });
    await fake.idle();
    clock.advance(10_000);
  });

  it("of a consumer that leaves closes the connection", async () => {
    fake.script(stream(greeting.slice(0, 2), { end: "hang" }));
    for await (const event of start(open()).events) if (event.kind === "chunks") break;
    await fake.idle();
  });

  it("behind the end changes nothing", async () => {
    fake.script(stream(greeting));
    const { events, stop } = start(open());
    const taken = await all(events);
    stop();
    greetingIsWhole(taken);
  });
});

it("lists models although calls have several events", async () => {
  fake.script(answer({ body: { data: [{ id: "a" }, { id: "b" }] } }));
  expect(await open().models("up")).toEqual(["a", "b"]);
});
