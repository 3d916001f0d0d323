import { once } from "node:events";
import { connect, createServer } from "node:net";
import OpenAI from "openai";
import { Agent, request } from "undici";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  answer,
  closedPort,
  cut,
  deltas,
  type FakeUpstream,
  fail,
  gate,
  hang,
  html,
  raw,
  reset,
  startFake,
  stream,
} from "./fake-upstream.ts";

let fake: FakeUpstream;
let agent: Agent;

beforeEach(async () => {
  fake = await startFake();
  agent = new Agent();
});

afterEach(async () => {
  await agent.destroy();
  await fake.close();
});

function call(body: string | Buffer = '{"model":"m"}', signal?: AbortSignal) {
  const url = `${fake.baseUrl}/chat/completions?q=1`;
  return request(url, { method: "POST", body, headers: { "X-Odd-Case": "yes" }, dispatcher: agent, signal });
}

async function textOf(calling = call()): Promise<string> {
  return (await calling).body.text();
}

/** Reads until the stream breaks or ends; what came before counts. */
async function readAll(body: AsyncIterable<Buffer>): Promise<{ text: string; error?: { code?: string } }> {
  const pieces: Buffer[] = [];
  try {
    for await (const piece of body) pieces.push(piece);
    return { text: Buffer.concat(pieces).toString() };
  } catch (error) {
    return { text: Buffer.concat(pieces).toString(), error: error as { code?: string } };
  }
}

describe("the script", () => {
  it("is followed in order, then comes the default, then whatever `otherwise` said", async () => {
    fake.script(answer({ text: "one" }), fail(500));
    fake.script(answer({ body: "three" }));
    expect(await textOf()).toContain('"one"');
    expect((await call()).statusCode).toBe(500);
    expect(await textOf()).toBe("three");
    expect(await textOf()).toContain('"ok"');
    fake.otherwise(fail(503));
    expect((await call()).statusCode).toBe(503);
    expect((await call()).statusCode).toBe(503);
    expect(fake.seen.map(({ n }) => n)).toEqual([1, 2, 3, 4, 5, 6]);
  });

  it("keeps every call as it was sent", async () => {
    const body = Buffer.from([0, 255, 13, 10, 128]);
    await textOf(call(body));
    const [seen] = fake.seen;
    expect(seen).toMatchObject({ n: 1, method: "POST", url: "/v1/chat/completions?q=1", body });
    expect(seen?.headers["x-odd-case"]).toBe("yes");
    expect(seen?.rawHeaders).toContain("X-Odd-Case");
    expect(Number.isInteger(seen?.at)).toBe(true);
  });

  it("does not see a call whose body never came whole", async () => {
    const socket = connect(Number(new URL(fake.origin).port), "127.0.0.1");
    socket.write("POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf");
    socket.end();
    await new Promise((resolve) => socket.resume().once("close", resolve));
    await textOf();
    expect(fake.seen.map(({ url }) => url)).toEqual(["/v1/chat/completions?q=1"]);
  });

  it("resets the call and fails close() when a step throws", async () => {
    const own = await startFake();
    own.script(() => {
      throw new Error("a step broke");
    });
    await expect(request(own.baseUrl, { dispatcher: agent })).rejects.toMatchObject({ code: "ECONNRESET" });
    await expect(own.close()).rejects.toThrow("a step broke");
  });
});

describe("waiting for calls", () => {
  it("resolves as soon as so many were seen, also when they are already there", async () => {
    fake.otherwise(hang());
    const two = fake.calls(2);
    const calling = [call().catch(() => {}), call().catch(() => {})];
    await two;
    expect(fake.seen).toHaveLength(2);
    await fake.calls(1);
    await agent.destroy();
    await Promise.all(calling);
  });

  it("rejects when the upstream closes first, and afterwards", async () => {
    const waiting = fake.calls(2);
    await textOf();
    await fake.close();
    await expect(waiting).rejects.toThrow("closed after 1 calls; 2 were awaited");
    await expect(fake.calls(2)).rejects.toThrow("closed");
    await fake.calls(1);
  });

  it("counts the calls in flight, and the most at once", async () => {
    const held = gate();
    fake.script(held.step, held.step, held.step);
    const calling = [textOf(), textOf(), textOf()];
    await fake.calls(3);
    expect(fake.inFlight).toBe(3);
    held.release();
    await Promise.all(calling);
    await fake.idle();
    expect(fake.inFlight).toBe(0);
    await textOf();
    expect(fake.maxInFlight).toBe(3);
  });

  it("counts a caller who left as no longer in flight", async () => {
    fake.script(hang());
    const abort = new AbortController();
    const calling = call("{}", abort.signal).catch(() => {});
    await fake.calls(1);
    expect(fake.inFlight).toBe(1);
    abort.abort();
    await calling;
    await fake.idle();
    expect(fake.inFlight).toBe(0);
  });
});

describe("an answer", () => {
  it("is by default a chat.completion that the SDK takes", async () => {
    const openai = new OpenAI({ baseURL: fake.baseUrl, apiKey: "any", maxRetries: 0 });
    const messages = [{ role: "user" as const, content: "Hi" }];
    const completion = await openai.chat.completions.create({ model: "asked", messages });
    expect(completion).toMatchObject({ id: "chatcmpl-fake-1", object: "chat.completion", model: "asked" });
    expect(completion.choices[0]).toMatchObject({ message: { content: "ok" }, finish_reason: "stop" });
    expect(completion._request_id).toBe("fake-req-1");
  });

  it("says what the test wants", async () => {
    fake.script(answer({ text: "hello", id: "chatcmpl-7", model: "other", status: 201 }));
    const { statusCode, body } = await call();
    expect(statusCode).toBe(201);
    expect(await body.json()).toMatchObject({
      id: "chatcmpl-7",
      model: "other",
      choices: [{ message: { content: "hello" } }],
    });
  });

  it("sends a body exactly, and headers in place of the defaults", async () => {
    const bytes = Buffer.from([0, 255, 10]);
    const headers = { "X-Request-Id": "mine", "Content-Type": "audio/mpeg", "set-cookie": ["a=1", "b=2"] };
    fake.script(answer({ body: bytes, headers }), answer({ body: { big: "ü" } }));
    fake.script(answer({ headers: { "X-Request-Id": undefined } }));
    const first = await call();
    expect(Buffer.from(await first.body.arrayBuffer())).toEqual(bytes);
    expect(first.headers).toMatchObject({
      "x-request-id": "mine",
      "content-type": "audio/mpeg",
      "set-cookie": ["a=1", "b=2"],
      "content-length": "3",
    });
    expect(await textOf()).toBe('{"big":"ü"}');
    const third = await call();
    expect(third.headers).not.toHaveProperty("x-request-id");
    await third.body.dump();
  });

  it("may be an error in OpenAI's shape", async () => {
    fake.script(fail(429, {}, { "retry-after": "3" }), fail(400, { message: "no", code: "bad", param: "x" }));
    const throttled = await call();
    expect([throttled.statusCode, throttled.headers["retry-after"]]).toEqual([429, "3"]);
    expect(await throttled.body.json()).toEqual({
      error: {
        message: "the fake upstream says 429",
        type: "requests",
        param: null,
        code: "rate_limit_exceeded",
      },
    });
    const refused = await call();
    expect(refused.statusCode).toBe(400);
    expect(await refused.body.json()).toEqual({
      error: { message: "no", type: "invalid_request_error", param: "x", code: "bad" },
    });
  });

  it("may be a page", async () => {
    fake.script(html(502, "<h1>Bad gateway</h1>"));
    const { statusCode, headers, body } = await call();
    expect([statusCode, headers["content-type"]]).toEqual([502, "text/html; charset=utf-8"]);
    expect(await body.text()).toBe("<h1>Bad gateway</h1>");
  });
});

describe("a fault", () => {
  it("reset: a RST before any byte", async () => {
    fake.script(reset());
    await expect(call()).rejects.toMatchObject({ code: "ECONNRESET" });
    expect(await textOf()).toContain("ok");
  });

  it.each([0, 1, 40])("cut: the head, exactly %d bytes of the body, then a RST", async (after) => {
    fake.script(cut({ after }));
    const { statusCode, headers, body } = await call();
    expect(statusCode).toBe(200);
    expect(Number(headers["content-length"])).toBeGreaterThan(100);
    const { text, error } = await readAll(body);
    expect(Buffer.byteLength(text)).toBe(after);
    expect(error?.code).toBe("ECONNRESET");
  });

  it("cut: never whole, whatever the length of the body", async () => {
    fake.script(cut({ after: 9, status: 500, body: "short" }));
    const { statusCode, body } = await call();
    expect(statusCode).toBe(500);
    expect(await readAll(body)).toMatchObject({ text: "short    ", error: { code: "ECONNRESET" } });
  });

  it("hang: no answer until the upstream closes", async () => {
    fake.script(hang());
    const calling = call();
    calling.catch(() => {});
    await fake.calls(1);
    await fake.close();
    await expect(calling).rejects.toMatchObject({ code: "UND_ERR_SOCKET" });
  });

  it("raw: exactly these bytes, then a FIN", async () => {
    fake.script(raw("HTTP/1.1 299 Odd\r\ncontent-length: 5\r\n\r\nab"), raw("no http at all\r\n\r\n"));
    const odd = await call();
    expect(odd.statusCode).toBe(299);
    expect(await readAll(odd.body)).toMatchObject({ text: "ab", error: { code: "UND_ERR_SOCKET" } });
    await expect(call()).rejects.toMatchObject({ name: "HTTPParserError" });
  });

  it("raw: a RST or an open end when told", async () => {
    const head = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab";
    fake.script(raw(head, "reset"), raw(Buffer.from(head), "hang"));
    expect(await readAll((await call()).body)).toMatchObject({ text: "ab", error: { code: "ECONNRESET" } });
    const open = await call();
    expect(fake.inFlight).toBe(1);
    const reading = readAll(open.body);
    await fake.close();
    expect(await reading).toMatchObject({ text: "ab", error: { code: "UND_ERR_SOCKET" } });
  });

  it("a closed port refuses connections, and no server is ever given it", async () => {
    const baseUrl = await closedPort();
    expect(baseUrl).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/v1$/);
    await expect(request(baseUrl, { dispatcher: agent })).rejects.toMatchObject({ code: "ECONNREFUSED" });
    const squatter = createServer().listen(Number(new URL(baseUrl).port), "127.0.0.1");
    const [error] = await once(squatter, "error");
    expect(error).toMatchObject({ code: "EADDRINUSE" });
  });
});

describe("a gate", () => {
  it("holds the call until it is released, with the step that the test chooses", async () => {
    const { step, arrived, release } = gate();
    fake.script(step, answer({ text: "passed by" }));
    const held = call();
    await arrived;
    expect(await textOf()).toContain("passed by");
    expect(fake.inFlight).toBeGreaterThanOrEqual(1);
    release(fail(418));
    expect((await held).statusCode).toBe(418);
  });

  it("answers when released without a step, even before a call came", async () => {
    const { step, release } = gate();
    release();
    fake.script(step);
    expect(await textOf()).toContain('"ok"');
  });

  it("may be released after its caller has left", async () => {
    const left = gate();
    fake.script(left.step);
    const abort = new AbortController();
    const calling = call("{}", abort.signal).catch(() => {});
    await left.arrived;
    abort.abort();
    await calling;
    left.release();
    expect(await textOf()).toContain('"ok"');
  });
});

describe("a stream", () => {
  it("sends each chunk as an event, then [DONE] and a clean end", async () => {
    fake.script(stream(['{"a":1}', Buffer.from(": hello\n\n"), "x"]));
    const { headers, body } = await call();
    expect(headers).toMatchObject({ "content-type": "text/event-stream", "x-request-id": "fake-req-1" });
    expect(await readAll(body)).toEqual({ text: 'data: {"a":1}\n\n: hello\n\ndata: x\n\ndata: [DONE]\n\n' });
  });

  it("ends cleanly without [DONE] when told", async () => {
    fake.script(stream(["x"], { done: false, headers: { "X-Request-Id": "mine" } }));
    const { headers, body } = await call();
    expect(headers["x-request-id"]).toBe("mine");
    expect(await readAll(body)).toEqual({ text: "data: x\n\n" });
  });

  it("breaks off with a RST after its chunks", async () => {
    fake.script(stream(["x", "y"], { end: "reset" }));
    const { text, error } = await readAll((await call()).body);
    expect(text).toBe("data: x\n\ndata: y\n\n");
    expect(error?.code).toBe("ECONNRESET");
  });

  it("stays silent for ever after its chunks", async () => {
    fake.script(stream(["x"], { end: "hang" }));
    const pieces = (await call()).body[Symbol.asyncIterator]();
    expect((await pieces.next()).value.toString()).toBe("data: x\n\n");
    const silence = pieces.next();
    silence.catch(() => {});
    expect(fake.inFlight).toBe(1);
    await fake.close();
    await expect(silence).rejects.toMatchObject({ code: "UND_ERR_SOCKET" });
  });

  it("stops at a promise until the test resolves it", async () => {
    let goOn = () => {};
    const held = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    fake.script(stream(["x", held, "y"], { done: false }));
    const pieces = (await call()).body[Symbol.asyncIterator]();
    expect((await pieces.next()).value.toString()).toBe("data: x\n\n");
    goOn();
    expect((await pieces.next()).value.toString()).toBe("data: y\n\n");
    expect((await pieces.next()).done).toBe(true);
  });

  it("of deltas is a chat stream that the SDK takes", async () => {
    fake.script(stream(deltas("Hel", "lo")));
    const openai = new OpenAI({ baseURL: fake.baseUrl, apiKey: "any", maxRetries: 0 });
    const messages = [{ role: "user" as const, content: "Hi" }];
    const final = await openai.chat.completions.stream({ model: "m", messages }).finalChatCompletion();
    expect(final.choices[0]).toMatchObject({ message: { content: "Hello" }, finish_reason: "stop" });
  });
});
