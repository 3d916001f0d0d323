/** Live streams through the front door: what comes when, byte for byte; what is recorded; and how they fail. */

import { once } from "node:events";
import { type IncomingMessage, request } from "node:http";
import { Socket } from "node:net";
import { gzipSync } from "node:zlib";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { answer, deltas, fail, gate, hang, reset, type Step, stream } from "../support/fake-upstream.ts";
import {
  begun,
  chunkOf,
  cutShort,
  Faucet,
  roleChunk,
  SseCaller,
  stopChunk,
  textChunk,
  whole,
} from "../support/live-streams.ts";
import { hello, type Outlast, type OutlastOptions, quick } from "../support/outlast.ts";
import {
  openSocket,
  rawCall,
  refusalOf,
  serveTest,
  strictAsync,
  strictRequest,
  talk,
  WatchedClock,
} from "./wire.ts";

const path = "/v1/chat/completions";
const streamed = { ...hello, stream: true };
const asksUsage = { ...streamed, stream_options: { include_usage: true } };
const usage = { prompt_tokens: 5, completion_tokens: 2, total_tokens: 7 };
const usageChunk = chunkOf([], {}, { usage });
const key = { "idempotency-key": "k-1" };

let outlast: Outlast;

async function start(options: OutlastOptions = {}): Promise<Outlast> {
  outlast = await serveTest({ env: quick, ...options });
  return outlast;
}

/** A server whose clock stands still. */
async function startStill(options: OutlastOptions = {}) {
  const clock = new WatchedClock();
  return { ...(await start({ env: {}, clock, ...options })), clock };
}

const ask = (body: object = streamed, headers?: Record<string, string>) => outlast.post(path, body, headers);
const listen = (body?: object, headers?: Record<string, string>) => SseCaller.of(ask(body, headers));
const listenToEnd = (body?: object, headers?: Record<string, string>) => SseCaller.whole(ask(body, headers));
const plain = (body: object = hello, headers?: Record<string, string>) => outlast.post(path, body, headers);

const wire = (...data: string[]) => data.map((one) => `data: ${one}\n\n`).join("");
const dataOf = ({ events }: SseCaller) => events.map(({ data }) => data);

async function recordOf(id: string, query = "?wait=20") {
  return strictRequest.parse(await (await outlast.fetch(`/v1/requests/${id}${query}`)).json());
}

const resultOf = async (id: string) => (await recordOf(id)).result as Record<string, unknown>;

/** Enough to know the answer by. */
const saying = (content: string) => ({
  object: "chat.completion",
  choices: [{ index: 0, message: { role: "assistant", content }, finish_reason: "stop" }],
});

describe("a live stream", () => {
  it("comes event by event: each is there before the upstream says the next", async () => {
    const { fake } = await start();
    const faucet = new Faucet();
    fake.script(faucet.step);
    faucet.say(roleChunk(), textChunk("t0 "));
    const caller = await listen();
    expect(caller.status).toBe(200);
    await caller.until(({ events }) => events.length === 2);
    for (let i = 1; i <= 100; i++) {
      faucet.say(textChunk(`t${i} `));
      await caller.until(({ events }) => events.length === 2 + i);
    }
    faucet.say(stopChunk());
    await caller.until(({ events }) => events.length === 103);
    faucet.end();
    await caller.end();
    expect([caller.ended, caller.isDone]).toEqual(["clean", true]);
    expect(caller.text).toBe(Array.from({ length: 101 }, (_, i) => `t${i} `).join(""));
  });

  it("is held back only until the first content: before that it could still come from elsewhere", async () => {
    const { fake } = await start();
    const faucet = new Faucet();
    fake.script(faucet.step);
    faucet.say(roleChunk());
    const calling = ask();
    await faucet.called;
    let replied = false;
    void calling.then(() => {
      replied = true;
    });
    for (let i = 0; i < 3; i++) await outlast.fetch("/healthz");
    expect(replied).toBe(false);
    faucet.say(textChunk("Hi"));
    const caller = await SseCaller.of(calling);
    await caller.until(({ events }) => events.length === 2);
    faucet.end();
    await caller.end();
  });

  it("has the upstream's data byte for byte, and nothing else of its stream", async () => {
    const { fake } = await start();
    const odd = [
      '{"id":"c-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}',
      '{ "id" : "c-1", "seed":9007199254740993,  "x_more":{"a":[1.0,1e3]},"choices":[{"index":0,"delta":{"content":"\\u00e9é😀 \\u2028"},"finish_reason":null}] }',
      '{"id":"c-1","choices":[{"index":0,"delta":{"content":"data: [DONE]\\n\\nid: 3\\n"},"finish_reason":null}],"obfuscation":"xYz"}',
      '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"total_tokens":3.0}}',
    ];
    const [first, second, ...rest] = odd;
    fake.script(
      stream([
        Buffer.from(": ping\r\n\r\nretry: 5\r\n\r\n"),
        Buffer.from(`id: 7\r\nevent: chunk\r\ndata: ${first}\r\n\r\n`),
        Buffer.from(`: ping\n\nid: 8\ndata:${second}\n\n`),
        ...rest,
      ]),
    );
    const response = await ask();
    expect(await response.text()).toBe(wire(...odd, "[DONE]"));
  });

  it("has headers that say what it is, ask balancers not to wait, and name the request", async () => {
    const { fake } = await start();
    const headers = { "x-ratelimit-remaining-requests": "3", "content-type": "text/event-stream; x=1" };
    const theirs = { "outlast-request-id": "req_theirs", "cache-control": "public", "set-cookie": "a=b" };
    fake.script(fail(500), stream(deltas("Hi"), { headers: { ...headers, ...theirs } }));
    const response = await ask();
    const { date: _date, ...given } = Object.fromEntries(response.headers);
    expect(given).toEqual({
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache",
      "x-accel-buffering": "no",
      "x-request-id": "fake-req-2",
      "x-ratelimit-remaining-requests": "3",
      "outlast-request-id": expect.stringMatching(/^req_[0-9a-z]{26}$/),
      "outlast-attempts": "2",
      "outlast-upstream": "fake",
      connection: "keep-alive",
      "keep-alive": "timeout=75",
      "transfer-encoding": "chunked",
    });
    await response.text();
  });

  it("is readable where the upstream encodes it against our wish", async () => {
    const { fake } = await start();
    const encoded = gzipSync(wire(...whole(["Hel", "lo"]), "[DONE]"));
    fake.script(stream([encoded], { done: false, headers: { "content-encoding": "gzip" } }));
    const response = await ask();
    expect(response.headers.get("content-encoding")).toBeNull();
    expect(await response.text()).toBe(wire(...whole(["Hel", "lo"]), "[DONE]"));
  });

  it("is what the caller gets of an upstream that answers plainly", async () => {
    const { fake } = await start();
    fake.script(answer({ text: "Hello" }));
    const caller = await listenToEnd();
    expect([caller.text, caller.isDone, caller.ended]).toEqual(["Hello", true, "clean"]);
    expect(await resultOf(caller.requestId)).toMatchObject(saying("Hello"));
  });

  it("names who answers also where that is told plainly, and by a second attempt", async () => {
    const { fakes } = await start({
      upstreams: ["one", "two"],
      tables: '[routes]\n"gpt-test" = ["one", "two"]',
    });
    fakes.one!.script(fail(500));
    const caller = await listenToEnd();
    expect([caller.text, caller.isDone]).toEqual(["ok", true]);
    const names = ["outlast-attempts", "outlast-upstream"];
    expect(names.map((name) => caller.headers.get(name))).toEqual(["2", "two"]);
  });

  it("is whole without the upstream's [DONE]", async () => {
    const { fake } = await start();
    fake.script(stream(whole(["Hello"]), { done: false }));
    const caller = await listenToEnd();
    expect(dataOf(caller)).toEqual([...whole(["Hello"]), "[DONE]"]);
  });
});

describe("the usage of a stream", () => {
  const withUsage = [
    chunkOf(
      [{ index: 0, delta: { role: "assistant", content: "Hi" }, finish_reason: null }],
      {},
      { usage: null },
    ),
    chunkOf([{ index: 0, delta: {}, finish_reason: "stop" }], {}, { usage: null }),
    usageChunk,
  ];

  it("is asked for, recorded, and kept from a caller who did not ask", async () => {
    const { fake } = await start();
    fake.script(stream(withUsage));
    const caller = await listenToEnd();
    expect(JSON.parse(fake.seen[0]!.body.toString())).toEqual(asksUsage);
    expect(dataOf(caller)).toEqual([
      chunkOf([{ index: 0, delta: { role: "assistant", content: "Hi" }, finish_reason: null }]),
      stopChunk(),
      "[DONE]",
    ]);
    expect(await recordOf(caller.requestId)).toMatchObject({ usage, result: { usage } });
  });

  it("comes to a caller who asked, as the upstream says it", async () => {
    const { fake } = await start();
    fake.script(stream(withUsage));
    const caller = await listenToEnd(asksUsage);
    expect(fake.seen[0]!.body.toString()).toBe(JSON.stringify(asksUsage));
    expect(dataOf(caller)).toEqual([...withUsage, "[DONE]"]);
    expect((await recordOf(caller.requestId)).usage).toEqual(usage);
  });

  it("is not asked for where the configuration says that the upstream does not know the question", async () => {
    const { fake } = await start({ upstreamToml: "stream_usage = false" });
    fake.script(stream(whole(["Hi"])));
    await listenToEnd();
    expect(fake.seen[0]!.body.toString()).toBe(JSON.stringify(streamed));
  });

  it.each([null, {}, { include_usage: false, include_obfuscation: false }])(
    "is not wanted by a caller whose options are %j",
    async (stream_options) => {
      const { fake } = await start();
      fake.script(stream(withUsage));
      const caller = await listenToEnd({ ...streamed, stream_options });
      expect(JSON.parse(fake.seen[0]!.body.toString())).toEqual({
        ...streamed,
        stream_options: { ...stream_options, include_usage: true },
      });
      expect(dataOf(caller).filter((data) => data.includes("usage"))).toEqual([]);
      expect((await recordOf(caller.requestId)).usage).toEqual(usage);
    },
  );

  it("is estimated and marked where the upstream does not tell it", async () => {
    const { fake } = await start();
    fake.script(stream(whole(["12345678", "90"])));
    const caller = await listenToEnd();
    const { usage: estimate } = await recordOf(caller.requestId);
    expect(estimate).toMatchObject({ completion_tokens: 3, estimated: true });
  });

  it("comes to each who shares a request by its key and asked, and to nobody else", async () => {
    const { fake } = await start();
    fake.script(stream(withUsage));
    const without = await listenToEnd(streamed, key);
    const asked = await listenToEnd(asksUsage, key);
    expect(dataOf(without).filter((data) => data.includes("usage"))).toEqual([]);
    const last = dataOf(asked).at(-2)!;
    expect(JSON.parse(last)).toMatchObject({ choices: [], usage, id: "chatcmpl-first" });
    expect(asked.isDone).toBe(true);
    expect(fake.seen).toHaveLength(1);
  });

  it("that was recorded for one who asked is kept from the one who did not", async () => {
    const { fake } = await start();
    fake.script(stream(withUsage));
    await listenToEnd(asksUsage, key);
    const other = await listenToEnd(streamed, key);
    expect(dataOf(other).filter((data) => data.includes("total_tokens"))).toEqual([]);
    expect([other.text, other.isDone]).toEqual(["Hi", true]);
  });

  it("that comes alone is nothing at all to who did not ask, and no end of the answer", async () => {
    const { fake } = await start();
    const faucet = new Faucet();
    fake.script(faucet.step);
    faucet.say(...begun(["a"]));
    const asked = await listen(asksUsage, key);
    await asked.until(({ events }) => events.length === 2);
    const other = await listen(streamed, key);
    await other.until(({ events }) => events.length === 2);
    faucet.say(stopChunk());
    for (const caller of [asked, other]) await caller.until(({ events }) => events.length === 3);
    faucet.say(usageChunk);
    await asked.until(({ events }) => events.length === 4);
    faucet.end();
    await Promise.all([asked.end(), other.end()]);
    expect([other.text, other.isDone]).toEqual(["a", true]);
    expect(dataOf(other).filter((data) => data.includes("total_tokens"))).toEqual([]);
  });
});

describe("the head of a stream", () => {
  it("comes without a body where it is asked for alone, while the stream runs", async () => {
    const { fake } = await start();
    const faucet = new Faucet();
    fake.script(faucet.step);
    faucet.say(...begun(["a"]));
    const caller = await listen();
    await caller.until(({ text }) => text === "a");
    const heading = talk(outlast.url, rawCall(`HEAD /v1/requests/${caller.requestId}/stream`));
    for (let i = 0; i < 3; i++) await outlast.fetch("/healthz");
    const reader = await SseCaller.of(outlast.fetch(`/v1/requests/${caller.requestId}/stream`));
    for (const text of ["ab", "abc", "abcd"]) {
      faucet.say(textChunk(text.at(-1)!));
      await reader.until((one) => one.text === text);
    }
    faucet.say(stopChunk());
    faucet.end();
    await Promise.all([caller.end(), reader.end()]);
    const { status, body } = await heading;
    expect([status, body]).toEqual([200, ""]);
  });

  it("says what the upstream's said, byte for byte, also beyond ASCII", async () => {
    const { fake } = await start();
    fake.script((_call, res) => {
      res.writeHead(200, { "content-type": "text/event-stream", "x-note": "caf\u00e9" });
      res.end(wire(...whole(["w\u00f6rld"]), "[DONE]"));
    });
    const call = rawCall(`POST ${path}`, { "content-type": "application/json" }, JSON.stringify(streamed));
    const { headers, body } = await talk(outlast.url, call);
    expect(headers["x-note"]).toBe("caf\u00e9");
    expect(Buffer.from(body, "latin1").toString()).toContain("w\u00f6rld");
  });
});

describe("a slow reader", () => {
  it("of 30 MB holds up neither the record nor others, piles nothing up, and gets everything in order", async () => {
    const { fake, ear } = await start();
    const piece = "x".repeat(64 * 1024);
    const pieces = Array.from({ length: 480 }, (_, i) => textChunk(`${i}:${piece}`));
    const all = [roleChunk(), ...pieces, stopChunk()];
    fake.script(stream(all));
    let mostBuffered = 0;
    const { write } = Socket.prototype;
    const spy = vi.spyOn(Socket.prototype, "write").mockImplementation(function (
      this: Socket,
      ...given: unknown[]
    ) {
      const went: boolean = Reflect.apply(write, this, given);
      if (this.localPort === Number(new URL(outlast.url).port)) {
        mostBuffered = Math.max(mostBuffered, this.writableLength);
      }
      return went;
    });
    onTestFinished(() => spy.mockRestore());
    const incoming = await unread(streamed);
    await ear.event("ended", ({ state }) => state === "completed");
    fake.script(stream(whole(["quick"])));
    expect((await listenToEnd({ ...streamed, seed: 1 })).text).toBe("quick");
    expect(mostBuffered).toBeGreaterThan(0);
    expect(mostBuffered).toBeLessThan(3 * 1024 * 1024);
    const got: Buffer[] = [];
    for await (const part of incoming) got.push(part as Buffer);
    expect(incoming.complete).toBe(true);
    // Not by toBe, which would print 30 MB.
    expect(Buffer.concat(got).equals(Buffer.from(wire(...all, "[DONE]")))).toBe(true);
    expect(mostBuffered).toBeLessThan(3 * 1024 * 1024);
  });
});

it("who reads slowly what has ended reads it to its end, also from a server that stops", async () => {
  const { fake, ear } = await start();
  const all = whole(Array.from({ length: 400 }, (_, i) => `${i}:${"x".repeat(32 * 1024)}`));
  fake.script(stream(all));
  const incoming = await unread(streamed);
  await ear.event("ended", ({ state }) => state === "completed");
  const stopped = outlast.stop();
  // When it listens no more, all others have been told that it stops.
  while (await outlast.fetch("/readyz").then(Boolean, () => false));
  const got: Buffer[] = [];
  for await (const part of incoming) got.push(part as Buffer);
  expect(incoming.complete).toBe(true);
  // Not by toBe, which would print 13 MB.
  expect(Buffer.concat(got).equals(Buffer.from(wire(...all, "[DONE]")))).toBe(true);
  await stopped;
});

/** A call whose reply's body nobody reads until it is iterated over. */
async function unread(body: object, headers: Record<string, string> = {}): Promise<IncomingMessage> {
  const calling = request(outlast.url + path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    agent: false,
  });
  calling.end(JSON.stringify(body));
  const [incoming] = (await once(calling, "response")) as [IncomingMessage];
  onTestFinished(() => void incoming.destroy());
  return incoming;
}

describe("the record of a stream", () => {
  it("is the answer that a plain call would have had", async () => {
    const { fake, fetch, client } = await start();
    fake.script(stream([...whole(["Hel", "lo"]), usageChunk]));
    const caller = await listenToEnd();
    const record = await recordOf(caller.requestId);
    const expected = {
      id: "chatcmpl-first",
      object: "chat.completion",
      created: 1_700_000_000,
      model: "fake",
      choices: [
        {
          index: 0,
          message: { role: "assistant", content: "Hello", refusal: null },
          logprobs: null,
          finish_reason: "stop",
        },
      ],
      usage,
    };
    expect(record).toMatchObject({
      status: "completed",
      attempts: 1,
      served_model: "fake",
      usage,
      result: expected,
    });
    for (const id of [caller.requestId, "chatcmpl-first"]) {
      expect((await recordOf(id)).result).toEqual(expected);
    }
    const response = await fetch(`${path}/${caller.requestId}`);
    expect([response.status, response.headers.get("content-type")]).toEqual([200, "application/json"]);
    expect(await response.json()).toEqual(expected);
    expect(await client().chat.completions.retrieve(caller.requestId)).toEqual(expected);
  });

  it("has the calls of tools, put together", async () => {
    const { fake } = await start();
    const delta = (tool_calls: object[]) =>
      chunkOf([{ index: 0, delta: { tool_calls }, finish_reason: null }]);
    const chunks = [
      roleChunk(),
      delta([{ index: 0, id: "call_1", type: "function", function: { name: "weather", arguments: "" } }]),
      delta([{ index: 0, function: { arguments: '{"city":' } }]),
      delta([{ index: 1, id: "call_2", type: "function", function: { name: "time", arguments: "{" } }]),
      delta([{ index: 0, function: { arguments: '"Rome"}' } }]),
      delta([{ index: 1, function: { arguments: "}" } }]),
      chunkOf([{ index: 0, delta: {}, finish_reason: "tool_calls" }]),
    ];
    fake.script(stream(chunks));
    const caller = await listenToEnd();
    expect(dataOf(caller)).toEqual([...chunks, "[DONE]"]);
    const calls = [
      { id: "call_1", type: "function", function: { name: "weather", arguments: '{"city":"Rome"}' } },
      { id: "call_2", type: "function", function: { name: "time", arguments: "{}" } },
    ];
    expect((await resultOf(caller.requestId)).choices).toMatchObject([
      { message: { content: null, tool_calls: calls }, finish_reason: "tool_calls" },
    ]);
  });

  it("has every choice", async () => {
    const { fake } = await start();
    const say = (index: number, content: string) =>
      chunkOf([{ index, delta: { content }, finish_reason: null }]);
    const stop = (index: number) => chunkOf([{ index, delta: {}, finish_reason: "stop" }]);
    const chunks = [say(0, "a"), say(1, "x"), say(0, "b"), stop(0), say(1, "y"), stop(1)];
    fake.script(stream(chunks));
    const caller = await listenToEnd({ ...streamed, n: 2 });
    expect(dataOf(caller)).toEqual([...chunks, "[DONE]"]);
    expect((await resultOf(caller.requestId)).choices).toMatchObject([
      { index: 0, message: { content: "ab" } },
      { index: 1, message: { content: "xy" } },
    ]);
  });

  it("is there as soon as the stream has its end", async () => {
    const { fake } = await start();
    fake.otherwise(stream(whole(["Hi"])));
    for (let i = 0; i < 20; i++) {
      const caller = await listenToEnd({ ...streamed, seed: i });
      expect((await recordOf(caller.requestId, "")).status).toBe("completed");
    }
  });
});

describe("an idempotency key", () => {
  const identified = (text: string[]) => [...whole(text), usageChunk];

  it("of a stream that has ended gives a stream again, and a plain answer to a plain call", async () => {
    const { fake } = await start();
    fake.script(stream(identified(["Hel", "lo"]), { headers: { "x-ratelimit-remaining-requests": "3" } }));
    const first = await listenToEnd(streamed, key);
    expect(first.headers.get("idempotent-replayed")).toBeNull();
    const again = await listenToEnd(streamed, key);
    expect(dataOf(again)).toEqual(dataOf(first));
    expect(Object.fromEntries(again.headers)).toMatchObject({
      "idempotent-replayed": "true",
      "outlast-request-id": first.requestId,
      "outlast-attempts": "1",
      "outlast-upstream": "fake",
      "x-request-id": "fake-req-1",
      "content-type": "text/event-stream; charset=utf-8",
    });
    expect(again.headers.get("x-ratelimit-remaining-requests")).toBeNull();
    const whole = await plain(hello, key);
    expect(whole.headers.get("idempotent-replayed")).toBe("true");
    expect(whole.headers.get("content-type")).toBe("application/json");
    expect(await whole.json()).toMatchObject({ ...saying("Hello"), usage });
    expect(fake.seen).toHaveLength(1);
  });

  it("of a plain answer gives a stream of it", async () => {
    const { fake } = await start();
    fake.script(answer({ text: "Hello", id: "chatcmpl-plain" }));
    await plain(hello, key);
    const caller = await listenToEnd(asksUsage, key);
    expect([caller.text, caller.isDone, caller.ended]).toEqual(["Hello", true, "clean"]);
    const last = JSON.parse(dataOf(caller).at(-2)!);
    expect(last).toMatchObject({ id: "chatcmpl-plain", choices: [], usage: { total_tokens: 6 } });
    expect(caller.headers.get("idempotent-replayed")).toBe("true");
    expect(fake.seen).toHaveLength(1);
  });

  it("of a plain answer that is no completion gives it as it is", async () => {
    const { fake } = await start();
    const odd = '{"detail": "not of this world"}';
    fake.script(answer({ body: odd }));
    const first = await plain(hello, key);
    expect([first.status, await first.text()]).toEqual([200, odd]);
    const again = await ask(streamed, key);
    const stream = await outlast.fetch(`/v1/requests/${first.headers.get("outlast-request-id")}/stream`);
    for (const reply of [again, stream]) {
      expect([reply.status, await reply.text()]).toEqual([200, odd]);
      expect(reply.headers.get("content-type")).toBe("application/json");
    }
    expect(again.headers.get("idempotent-replayed")).toBe("true");
    expect(fake.seen).toHaveLength(1);
  });

  it("joins a stream while it runs: from its start, live, and plainly", async () => {
    const { fake } = await start();
    const faucet = new Faucet();
    fake.script(faucet.step);
    faucet.say(...begun(["a", "b"]));
    const first = await listen(streamed, key);
    await first.until(({ events }) => events.length === 3);
    const joiner = await listen(streamed, key);
    await joiner.until(({ events }) => events.length === 3);
    const plainly = plain(hello, key);
    faucet.say(textChunk("c"));
    await joiner.until(({ text }) => text === "abc");
    faucet.say(stopChunk());
    faucet.end();
    await Promise.all([first.end(), joiner.end()]);
    expect(dataOf(joiner)).toEqual(dataOf(first));
    expect(joiner.requestId).toBe(first.requestId);
    expect(await (await plainly).json()).toMatchObject(saying("abc"));
    expect(fake.seen).toHaveLength(1);
  });

  it("of a plain call that runs gives the stream of its answer when it comes", async () => {
    const { fake, ear } = await start();
    const held = gate();
    fake.script(held.step);
    const first = plain(hello, key);
    await held.arrived;
    const joining = listenToEnd(streamed, key);
    await outlast.fetch("/healthz");
    held.release(answer({ text: "Hello" }));
    const joiner = await joining;
    expect([joiner.text, joiner.isDone]).toEqual(["Hello", true]);
    expect(await (await first).json()).toMatchObject(saying("Hello"));
    expect(ear.all("accepted")).toHaveLength(1);
  });

  it("is refused with another body, stream or not", async () => {
    const { fake } = await start();
    fake.script(stream(whole(["Hi"])));
    await listenToEnd(streamed, key);
    const reused = { status: 400, code: "idempotency_key_reused", param: "idempotency_key" };
    expect(await refusalOf(await ask({ ...streamed, seed: 2 }, key))).toEqual(reused);
    expect(await refusalOf(await plain({ ...hello, seed: 2 }, key))).toEqual(reused);
    expect(fake.seen).toHaveLength(1);
  });

  it("of a stream that failed in vain begins it anew, with nothing of what came before", async () => {
    const { fake } = await start({ env: { ...quick, OUTLAST_DEFAULTS_HELD_MAX_ATTEMPTS: "2" } });
    fake.script(cutShort(begun(["Hel"])), cutShort(begun(["Hel"])), stream(whole(["Another"])));
    const first = await listenToEnd(streamed, key);
    expect(first.error).toMatchObject({ code: "upstream_connection_lost", request_id: first.requestId });
    expect([first.text, first.isDone, first.ended]).toEqual(["Hel", false, "broken"]);
    for (let i = 0; i < 2; i++) {
      const again = await listenToEnd(streamed, key);
      expect(dataOf(again)).toEqual([...whole(["Another"]), "[DONE]"]);
      expect(again.requestId).toBe(first.requestId);
    }
    expect(fake.seen).toHaveLength(3);
  });

  it("of a stream that failed gives its failure, as HTTP", async () => {
    const { fake } = await start();
    fake.script(fail(400, { code: "bad_tool" }));
    for (let i = 0; i < 2; i++) {
      const response = await ask(streamed, key);
      expect(response.headers.get("content-type")).toBe("application/json");
      expect([response.status, await response.json()]).toMatchObject([400, { error: { code: "bad_tool" } }]);
    }
    expect(fake.seen).toHaveLength(1);
  });
});

describe("a stream that fails before its first content", () => {
  it("is told as HTTP, as for a plain call", async () => {
    const { fake, post } = await start();
    fake.otherwise(fail(400, { code: "bad_tool", message: "No such tool." }));
    const [streamedReply, plainReply] = [await ask(), await post(path, hello)];
    expect(streamedReply.status).toBe(400);
    expect(streamedReply.headers.get("x-should-retry")).toBe("false");
    expect(await streamedReply.json()).toEqual(await plainReply.json());
    expect(streamedReply.headers.get("content-type")).toBe(plainReply.headers.get("content-type"));
  });

  const faults: [string, Step][] = [
    ["a status", fail(503)],
    ["a reset", reset()],
    ["a cut behind the role", cutShort([roleChunk()])],
    ["a first chunk that is no JSON", stream(['{"id":'])],
    ["an error object", stream([JSON.stringify({ error: { message: "Oops", type: "server_error" } })])],
    ["nothing but [DONE]", stream([])],
    ["JSON that is no answer", answer({ body: { detail: "overloaded" } })],
    ["a page instead of events", answer({ body: "<h1>Hi</h1>", headers: { "content-type": "text/html" } })],
  ];
  it.each(faults)("(%s) is tried again, and nobody notices", async (_name, step) => {
    const { fake } = await start();
    fake.script(step, stream(whole(["Hello"])));
    const caller = await listenToEnd();
    expect(dataOf(caller)).toEqual([...whole(["Hello"]), "[DONE]"]);
    expect(caller.headers.get("outlast-attempts")).toBe("2");
  });

  it.each(faults)("(%s) is an error with its HTTP status when no attempt is left", async (_name, step) => {
    const { fake } = await start({ env: { ...quick, OUTLAST_DEFAULTS_HELD_MAX_ATTEMPTS: "2" } });
    fake.otherwise(step);
    const response = await ask();
    expect(response.status).toBeGreaterThanOrEqual(500);
    expect(response.headers.get("x-should-retry")).toBe("false");
    expect(await response.json()).toMatchObject({ error: { message: expect.any(String) } });
    expect(fake.seen).toHaveLength(2);
  });
});

const heartbeatMs = 20_000;

describe("a silent stream", () => {
  it("gets headers and a comment at the heartbeat, and a comment at each that follows", async () => {
    const { fake, clock } = await startStill();
    const faucet = new Faucet();
    fake.script(faucet.step);
    const calling = listen();
    await faucet.called;
    clock.advance(heartbeatMs);
    const caller = await calling;
    expect(caller.status).toBe(200);
    expect(caller.headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
    expect(caller.requestId).toMatch(/^req_/);
    for (let i = 1; i <= 3; i++) {
      await caller.until(({ comments }) => comments.length === i);
      clock.advance(heartbeatMs);
    }
    await caller.until(({ comments }) => comments.length === 4);
    faucet.say(...whole(["Hello"]));
    faucet.end();
    await caller.end();
    expect(caller.comments).toEqual(Array.from({ length: 4 }, () => "keep-alive"));
    expect(dataOf(caller)).toEqual([...whole(["Hello"]), "[DONE]"]);
    expect(caller.ended).toBe("clean");
  });

  it("gets comments between its events as well, counted from the last event", async () => {
    const { fake, clock } = await startStill();
    const faucet = new Faucet();
    fake.script(faucet.step);
    faucet.say(...begun(["a"]));
    const caller = await listen();
    await caller.until(({ text }) => text === "a");
    clock.advance(heartbeatMs - 1);
    faucet.say(textChunk("b"));
    await caller.until(({ text }) => text === "ab");
    clock.advance(heartbeatMs - 1);
    faucet.say(textChunk("c"));
    await caller.until(({ text }) => text === "abc");
    expect(caller.comments).toEqual([]);
    clock.advance(heartbeatMs);
    await caller.until(({ comments }) => comments.length === 1);
    faucet.say(stopChunk());
    faucet.end();
    expect((await caller.end()).isDone).toBe(true);
  });

  it("has its heartbeat where the configuration says so", async () => {
    const { fake, clock } = await startStill({ toml: '[stream]\nheartbeat = "3s"' });
    const faucet = new Faucet();
    fake.script(faucet.step);
    const calling = listen();
    await faucet.called;
    clock.advance(3000);
    const caller = await calling;
    await caller.until(({ comments }) => comments.length === 1);
    faucet.say(...whole(["Hello"]));
    faucet.end();
    await caller.end();
  });

  it("that fails behind its headers is told by an event, and never looks whole", async () => {
    const { fake, clock } = await startStill();
    const held = gate();
    fake.script(held.step);
    const calling = listen();
    await held.arrived;
    clock.advance(heartbeatMs);
    const caller = await calling;
    held.release(fail(400, { code: "bad_tool", message: "No such tool.", param: "tools" }));
    await caller.end();
    expect(caller.error).toEqual({
      message: "No such tool.",
      type: "invalid_request_error",
      param: "tools",
      code: "bad_tool",
      request_id: caller.requestId,
    });
    expect([caller.events.length, caller.isDone]).toEqual([1, false]);
  });

  it("that a stop ends behind its comments has said nothing: whoever asks again after it adopts it", async () => {
    const options = { toml: '[stream]\nheartbeat = "50ms"', env: { ...quick, OUTLAST_DRAIN_TIMEOUT: "0" } };
    const { fake, fakes, dir, stop } = await start(options);
    const faucet = new Faucet("hang");
    fake.script(faucet.step);
    const caller = await listen();
    await caller.until(({ comments }) => comments.length > 0);
    await Promise.all([stop(), caller.end()]);
    expect(caller.error).toMatchObject({ code: "shutting_down", request_id: caller.requestId });
    expect([caller.chunks, caller.isDone]).toEqual([[], false]);
    fake.otherwise(stream(whole(["Hello"])));
    await start({ ...options, dir, upstreams: fakes });
    const again = await listenToEnd();
    expect([again.requestId, again.text, again.isDone]).toEqual([caller.requestId, "Hello", true]);
    expect(fake.seen).toHaveLength(2);
  });

  it("that fails before its headers is told as HTTP, however late", async () => {
    const { fake, clock } = await startStill();
    const held = gate();
    fake.script(held.step);
    const calling = ask();
    await held.arrived;
    clock.advance(heartbeatMs - 1);
    held.release(fail(400, { code: "bad_tool" }));
    const response = await calling;
    expect([response.status, await response.json()]).toMatchObject([400, { error: { code: "bad_tool" } }]);
  });

  it("ends at its deadline with an error event", async () => {
    const { fake, clock } = await startStill({ env: { OUTLAST_DEFAULTS_HELD_DEADLINE: "50s" } });
    const faucet = new Faucet("hang");
    fake.script(faucet.step);
    faucet.say(...begun(["a"]));
    const caller = await listen();
    await caller.until(({ text }) => text === "a");
    for (const at of [20_000, 40_000]) {
      clock.advance(at === 20_000 ? at : 20_000);
      await caller.until(({ comments }) => comments.length === at / 20_000);
      faucet.say(Buffer.from(": alive\n\n"));
    }
    clock.advance(10_000);
    // The connection breaks a moment behind the error.
    await clock.armed(250);
    clock.advance(250);
    await caller.end();
    expect(caller.error).toMatchObject({ code: "deadline_exceeded", request_id: caller.requestId });
    expect([caller.isDone, caller.ended]).toEqual([false, "broken"]);
  });
});

describe("a stream that its caller waits for only so long", () => {
  it("is told to come back when nothing has come by then", async () => {
    const { fake, clock } = await startStill();
    const faucet = new Faucet();
    fake.script(faucet.step);
    const calling = ask({ ...streamed, wait: 2 });
    await faucet.called;
    await clock.armed(2000);
    clock.advance(2000);
    const response = await calling;
    expect(response.status).toBe(202);
    const object = strictAsync.parse(await response.json());
    expect(object).toMatchObject({ status: "processing", poll_url: `/v1/requests/${object.id}` });
    expect(response.headers.get("location")).toBe(object.poll_url);
    faucet.say(...whole(["Hello"]));
    faucet.end();
    expect(await resultOf(object.id)).toMatchObject(saying("Hello"));
    const later = await SseCaller.whole(outlast.fetch(`${object.poll_url}/stream`));
    expect([later.text, later.isDone]).toEqual(["Hello", true]);
  });

  it("is the stream where it has begun by then, however long it takes", async () => {
    const { fake, clock } = await startStill();
    const faucet = new Faucet();
    fake.script(faucet.step);
    faucet.say(...begun(["a"]));
    const caller = await listen({ ...streamed, wait: 2 });
    await caller.until(({ text }) => text === "a");
    clock.advance(heartbeatMs);
    await caller.until(({ comments }) => comments.length === 1);
    faucet.say(textChunk("b"), stopChunk());
    faucet.end();
    await caller.end();
    expect([caller.text, caller.isDone]).toEqual(["ab", true]);
  });

  it("is asynchronous with wait: false, and can be read later", async () => {
    const { fake } = await start();
    fake.script(stream(whole(["Hel", "lo"])));
    const response = await ask({ ...streamed, wait: false });
    expect(response.status).toBe(202);
    const { id } = strictAsync.parse(await response.json());
    expect(await resultOf(id)).toMatchObject(saying("Hello"));
    const later = await SseCaller.whole(outlast.fetch(`/v1/requests/${id}/stream`));
    expect(dataOf(later)).toEqual([...whole(["Hel", "lo"]), "[DONE]"]);
    expect(fake.seen).toHaveLength(1);
  });

  it("says which preference it followed", async () => {
    const { fake } = await start();
    fake.otherwise(stream(whole(["Hi"])));
    const waited = await listenToEnd(streamed, { prefer: "wait=7" });
    expect(waited.headers.get("preference-applied")).toBe("wait=7");
    const async = await listenToEnd(streamed, { prefer: "respond-async" });
    expect(async.status).toBe(202);
    expect(async.headers.get("preference-applied")).toBe("respond-async");
  });
});

describe("a buffered stream", () => {
  const buffered = { ...streamed, outlast: { stream_mode: "buffered" } };

  it("says nothing before the answer is whole, and then all of it", async () => {
    const { fake, clock } = await startStill();
    const faucet = new Faucet();
    fake.script(faucet.step);
    faucet.say(...begun(["a", "b"]));
    const calling = listen(buffered);
    await faucet.called;
    clock.advance(heartbeatMs);
    const caller = await calling;
    await caller.until(({ comments }) => comments.length === 1);
    expect(caller.events).toEqual([]);
    faucet.say(textChunk("c"), stopChunk());
    faucet.end();
    await caller.end();
    expect(dataOf(caller)).toEqual([...whole(["a", "b", "c"]), "[DONE]"]);
    expect(JSON.parse(fake.seen[0]!.body.toString())).toEqual(asksUsage);
  });

  it("shows nothing of a cut, nor of the answer that it cut", async () => {
    const { fake } = await start();
    fake.script(cutShort(begun(["quite ", "another"])), stream(whole(["Hello"])));
    const caller = await listenToEnd(buffered);
    expect(dataOf(caller)).toEqual([...whole(["Hello"]), "[DONE]"]);
    expect(caller.headers.get("outlast-attempts")).toBe("2");
    expect(await resultOf(caller.requestId)).toMatchObject(saying("Hello"));
  });

  it("that joins a live one by its key says nothing before the answer is whole", async () => {
    const { fake } = await start();
    const faucet = new Faucet("cut");
    fake.script(faucet.step, stream(whole(["Another"])));
    faucet.say(...begun(["a", "b"]));
    const live = await listen(streamed, key);
    await live.until(({ text }) => text === "ab");
    const joining = listenToEnd(buffered, key);
    for (let i = 0; i < 3; i++) await outlast.fetch("/healthz");
    faucet.end();
    const joiner = await joining;
    expect(dataOf(joiner)).toEqual([...whole(["Another"]), "[DONE]"]);
    expect(joiner.ended).toBe("clean");
    expect((await live.end()).error?.code).toBe("stream_interrupted");
    expect(joiner.requestId).toBe(live.requestId);
    expect(fake.seen).toHaveLength(2);
  });

  it("is an error with its HTTP status where the live one that it shares by its key fails", async () => {
    const { fake } = await start();
    const faucet = new Faucet();
    fake.script(faucet.step);
    faucet.say(...begun(["a", "b"]));
    const terms = { outlast: { max_attempts: 1, on_unknown: "fail" } };
    const live = await listen({ ...streamed, ...terms }, key);
    await live.until(({ text }) => text === "ab");
    const joining = ask(buffered, key);
    for (let i = 0; i < 3; i++) await outlast.fetch("/healthz");
    faucet.say('{"error":{"message":"No such tool.","code":"bad_tool"}}');
    const reply = await joining;
    expect(reply.status).toBeGreaterThanOrEqual(400);
    expect(await reply.json()).toMatchObject({ error: { code: "bad_tool" } });
    expect((await live.end()).error?.code).toBe("bad_tool");
    expect(fake.seen).toHaveLength(1);
  });

  it("whose attempts are used up is an error with its HTTP status, although content came", async () => {
    const { fake } = await start({ env: { ...quick, OUTLAST_DEFAULTS_HELD_MAX_ATTEMPTS: "2" } });
    fake.otherwise(cutShort(begun(["Hel"])));
    const response = await ask(buffered);
    expect(response.status).toBe(502);
    expect(response.headers.get("content-type")).toBe("application/json");
    await response.text();
  });
});

describe("a stream that is cancelled", () => {
  it("by somebody else ends with an error event, and upstream too", async () => {
    const { fake } = await start();
    const faucet = new Faucet("hang");
    fake.script(faucet.step);
    faucet.say(...begun(["a"]));
    const caller = await listen();
    await caller.until(({ text }) => text === "a");
    const cancelled = await outlast.fetch(`/v1/requests/${caller.requestId}/cancel`, { method: "POST" });
    expect(cancelled.status).toBe(200);
    await Promise.all([caller.end(), fake.idle()]);
    expect(caller.error).toMatchObject({ code: "request_cancelled", request_id: caller.requestId });
    expect([caller.text, caller.isDone, caller.ended]).toEqual(["a", false, "broken"]);
  });

  it("before its first content is told as HTTP", async () => {
    const { fake, ear } = await start();
    fake.script(hang());
    const calling = ask();
    await fake.calls(1);
    const { id } = await ear.event("accepted");
    await outlast.fetch(`/v1/requests/${id}/cancel`, { method: "POST" });
    expect((await refusalOf(await calling)).code).toBe("request_cancelled");
  });

  it("writes nothing more to a caller who leaves while a chunk is on its way to it", async () => {
    const { fake, url } = await start();
    const { write } = Socket.prototype;
    let writes = 0;
    let tooLate = 0;
    const spy = vi.spyOn(Socket.prototype, "write").mockImplementation(function (
      this: Socket,
      ...given: unknown[]
    ) {
      writes++;
      // Of a socket that has ended nobody knows the port any more; nobody here does such a thing.
      if (this.writableEnded) tooLate++;
      return Reflect.apply(write, this, given) as boolean;
    });
    onTestFinished(() => spy.mockRestore());
    for (let seed = 0; seed < 10; seed++) {
      const faucet = new Faucet();
      fake.script(faucet.step);
      faucet.say(...begun(["a", "b"]));
      const socket = await openSocket(url);
      let heard = "";
      const hasHeard = new Promise<void>((resolve) => {
        socket.on("data", (piece) => {
          heard += piece;
          if (heard.includes('"b"')) resolve();
        });
      });
      const body = JSON.stringify({ ...streamed, seed });
      const headers = { "Content-Type": "application/json", Connection: "keep-alive" };
      socket.write(rawCall(`POST ${path}`, headers, body));
      await hasHeard;
      // Both arrive in the same turn of the event loop.
      faucet.say(textChunk("c"));
      socket.end();
      await once(socket, "close");
      faucet.say(stopChunk());
      faucet.end();
    }
    expect(writes).toBeGreaterThan(10);
    expect(tooLate).toBe(0);
  });
});
