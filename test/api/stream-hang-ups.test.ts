/** Callers of streams who go, at every stage: what is recorded, what is paid for, and who may adopt it. */

import type { Socket } from "node:net";
import { describe, expect, it, onTestFinished } from "vitest";
import { answer, gate, hang, stream } from "../support/fake-upstream.ts";
import { begun, chunkOf, Faucet, SseCaller, stopChunk, textChunk, whole } from "../support/live-streams.ts";
import { hello, type Outlast, type OutlastOptions } from "../support/outlast.ts";
import { chatCall, Peer } from "../support/peer.ts";
import { serveTest, strictRequest, WatchedClock } from "./wire.ts";

const path = "/v1/chat/completions";
const streamed = { ...hello, stream: true };
const cancels = { outlast: { on_disconnect: "cancel" } };
const retry = { "x-stainless-retry-count": "1" };
const heartbeatMs = 20_000;
const ways = ["reset", "close", "endHalf"] as const;

/** Stands still, and knows how many heartbeats are still to come. */
class BeatingClock extends WatchedClock {
  beats = 0;

  override timer(delayMs: number, run: () => void): () => void {
    if (delayMs !== heartbeatMs) return super.timer(delayMs, run);
    this.beats++;
    let isPending = true;
    const over = () => {
      if (isPending) this.beats--;
      isPending = false;
    };
    const cancel = super.timer(delayMs, () => {
      over();
      run();
    });
    return () => {
      over();
      cancel();
    };
  }
}

async function start(options: OutlastOptions = {}) {
  const clock = new BeatingClock();
  const outlast = await serveTest({ clock, ...options });
  return { outlast, clock, fake: outlast.fake, ear: outlast.ear };
}

async function peerOf(outlast: Outlast, unread = false): Promise<Peer> {
  const peer = await Peer.open(outlast.url, { unread: true });
  if (!unread) peer.socket.resume();
  onTestFinished(() => peer.close());
  return peer;
}

/** All that comes on a socket, as it came. */
class Said {
  text = "";
  /** Resolves when the server says no more on the connection. */
  readonly over: Promise<void>;
  isOver = false;
  private wake = () => {};

  constructor(socket: Socket) {
    socket.setEncoding("utf8");
    socket.on("data", (piece) => {
      this.text += piece;
      this.wake();
    });
    this.over = new Promise((resolve) => {
      const over = () => {
        this.isOver = true;
        resolve();
      };
      for (const event of ["end", "close"]) socket.once(event, over);
    });
  }

  async until(fragment: string): Promise<void> {
    while (!this.text.includes(fragment)) {
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
  }
}

/** A call on a raw socket that hears all that is said on it. */
async function speaker(outlast: Outlast, call: Buffer) {
  const peer = await peerOf(outlast);
  const said = new Said(peer.socket);
  await peer.say(call);
  return { peer, said };
}

/** A stream that is under way, of which its caller has seen as many texts. */
async function underWay(outlast: Outlast, texts: string[], body: object = streamed, headers = {}) {
  const faucet = new Faucet();
  outlast.fake.script(faucet.step);
  if (texts.length > 0) faucet.say(...begun(texts));
  const { peer, said } = await speaker(outlast, chatCall(body, headers));
  await faucet.called;
  const last = texts.at(-1);
  if (last !== undefined) await said.until(`"content":"${last}"`);
  return { peer, said, faucet, id: outlast.ear.all("accepted").at(-1)!.id };
}

const orphaned = ({ ear }: Outlast, id: string) => ear.event("orphaned", (told) => told.id === id);
const cancelled = ({ ear }: Outlast, id: string) =>
  ear.event("ended", (told) => told.id === id && told.state === "cancelled");

const equalCall = (outlast: Outlast, headers: Record<string, string> = {}) =>
  SseCaller.of(outlast.post(path, streamed, headers));

async function isNew(outlast: Outlast, headers: Record<string, string> = {}): Promise<void> {
  const known = outlast.ear.all("accepted").map(({ id }) => id);
  outlast.fake.script(stream(whole(["other"])));
  const caller = await (await equalCall(outlast, headers)).end();
  expect(known).not.toContain(caller.requestId);
  expect([caller.text, caller.isDone]).toEqual(["other", true]);
}

async function recordOf(outlast: Outlast, id: string, query = "") {
  return strictRequest.parse(await (await outlast.fetch(`/v1/requests/${id}${query}`)).json());
}

/** What the server was sent before this has been seen by it. */
async function turn(outlast: Outlast): Promise<void> {
  for (let i = 0; i < 3; i++) expect((await outlast.fetch("/healthz")).status).toBe(200);
}

describe("a caller who goes before the first content", () => {
  it("is an SDK that tries again: it gets the stream, and one call is paid for", async () => {
    const outlast = await serveTest();
    const faucet = new Faucet();
    outlast.fake.script(faucet.step);
    const calling = outlast
      .client({ maxRetries: 2, timeout: 250 })
      .chat.completions.create({ ...hello, stream: true });
    calling.catch(() => {});
    await outlast.ear.event("adopted", () => outlast.ear.all("adopted").length === 2);
    faucet.say(...whole(["Hel", "lo"]));
    faucet.end();
    let text = "";
    for await (const { choices } of await calling) text += choices[0]?.delta.content ?? "";
    expect(text).toBe("Hello");
    expect(outlast.fake.seen).toHaveLength(1);
    expect(outlast.ear.all("accepted")).toHaveLength(1);
  });

  it.each(ways)("(%s) leaves an orphan for the next equal call, while it runs", async (going) => {
    const { outlast, fake, clock } = await start();
    const { peer, faucet, id } = await underWay(outlast, []);
    await peer[going]();
    await orphaned(outlast, id);
    const calling = equalCall(outlast);
    await outlast.ear.event("adopted", (told) => told.id === id);
    faucet.say(...whole(["Hello"]));
    faucet.end();
    const caller = await (await calling).end();
    expect([caller.requestId, caller.text, caller.isDone]).toEqual([id, "Hello", true]);
    expect(fake.seen).toHaveLength(1);
    expect(clock.beats).toBe(0);
  });

  it.each(ways)("(%s) leaves an orphan that is adopted when it has ended", async (going) => {
    const { outlast, fake } = await start();
    const { peer, faucet, id } = await underWay(outlast, []);
    await peer[going]();
    await orphaned(outlast, id);
    faucet.say(...whole(["Hello"]));
    faucet.end();
    await outlast.ear.event("ended", ({ state }) => state === "completed");
    const caller = await (await equalCall(outlast)).end();
    expect([caller.requestId, caller.text, caller.isDone]).toEqual([id, "Hello", true]);
    expect(caller.headers.get("idempotent-replayed")).toBeNull();
    expect(fake.seen).toHaveLength(1);
  });

  it("may have had headers and comments: it is nobody's content", async () => {
    const { outlast, clock } = await start();
    const { peer, said, faucet, id } = await underWay(outlast, []);
    clock.advance(heartbeatMs);
    await said.until(": keep-alive");
    await peer.reset();
    await orphaned(outlast, id);
    const calling = equalCall(outlast);
    await outlast.ear.event("adopted", (told) => told.id === id);
    faucet.say(...whole(["Hello"]));
    faucet.end();
    expect((await (await calling).end()).text).toBe("Hello");
  });

  it.each(["reset", "close"] as const)(
    "(%s) right behind the last byte leaves an orphan, and nothing that beats for it",
    async (going) => {
      const { outlast, ear, fake, clock } = await start();
      fake.otherwise(hang());
      for (let i = 0; i < 20; i++) {
        const peer = await peerOf(outlast, true);
        await peer.say(chatCall({ ...streamed, seed: i }));
        await peer[going]();
      }
      await turn(outlast);
      // A RST may overtake what was sent before it.
      for (const { id } of ear.all("accepted")) await orphaned(outlast, id);
      clock.advance(3 * heartbeatMs);
      await turn(outlast);
      expect(clock.beats).toBe(0);
      expect(ear.all("fault")).toEqual([]);
    },
  );
});

describe("a caller who goes after content", () => {
  it.each(ways)("(%s) leaves the stream to those who say that they try again", async (going) => {
    const { outlast, fake, clock } = await start();
    const { peer, faucet, id } = await underWay(outlast, ["a", "b"]);
    await peer[going]();
    await orphaned(outlast, id);
    await isNew(outlast);
    await isNew(outlast, { "x-stainless-retry-count": "0" });
    const caller = await equalCall(outlast, retry);
    await caller.until(({ text }) => text === "ab");
    expect(caller.requestId).toBe(id);
    faucet.say(textChunk("c"), stopChunk());
    faucet.end();
    await caller.end();
    expect([caller.text, caller.isDone]).toEqual(["abc", true]);
    expect(fake.seen).toHaveLength(3);
    expect(clock.beats).toBe(0);
  });

  it("leaves a stream that goes on to its end, and is recorded", async () => {
    const { outlast, fake } = await start();
    const { peer, faucet, id } = await underWay(outlast, ["a"]);
    await peer.reset();
    await orphaned(outlast, id);
    faucet.say(textChunk("b"), stopChunk());
    faucet.end();
    expect(await recordOf(outlast, id, "?wait=20")).toMatchObject({
      status: "completed",
      result: { choices: [{ message: { content: "ab" }, finish_reason: "stop" }] },
    });
    const caller = await (await equalCall(outlast, retry)).end();
    expect([caller.requestId, caller.text, caller.isDone]).toEqual([id, "ab", true]);
    expect(fake.seen).toHaveLength(1);
  });

  it("and had read none of 30 MB leaves it to retries, whole", async () => {
    const outlast = await serveTest();
    const { fake, ear } = outlast;
    const texts = Array.from({ length: 480 }, (_, i) => `${i}:${"x".repeat(64 * 1024)}`);
    fake.script(stream(whole(texts)));
    const peer = await peerOf(outlast, true);
    peer.socket.pause();
    await peer.say(chatCall(streamed));
    const { id } = await ear.event("ended");
    await turn(outlast);
    await peer.reset();
    await orphaned(outlast, id);
    await isNew(outlast);
    const caller = await (await equalCall(outlast, retry)).end();
    expect(caller.requestId).toBe(id);
    expect(caller.text === texts.join("")).toBe(true);
    expect(caller.isDone).toBe(true);
  });

  it("and whose retry goes, too, leaves it to the next one", async () => {
    const { outlast } = await start();
    const { peer, faucet, id } = await underWay(outlast, ["a"]);
    await peer.reset();
    await orphaned(outlast, id);
    const again = await equalCall(outlast, retry);
    await again.until(({ text }) => text === "a");
    await again.leave();
    await outlast.ear.event("orphaned", (told) => outlast.ear.all("orphaned").indexOf(told) === 1);
    const third = await equalCall(outlast, { "x-stainless-retry-count": "2" });
    faucet.say(stopChunk());
    faucet.end();
    await third.end();
    expect([third.requestId, third.text, third.isDone]).toEqual([id, "a", true]);
  });
});

describe("a caller who has all of a stream", () => {
  async function answered(outlast: Outlast) {
    outlast.fake.script(stream(whole(["Hello"])));
    const { peer, said } = await speaker(outlast, chatCall(streamed));
    await said.until("data: [DONE]");
    await said.until("\r\n0\r\n\r\n");
    return { peer, said, id: outlast.ear.all("accepted").at(-1)!.id };
  }

  it("and goes a second later is answered: nobody adopts it", async () => {
    const { outlast, clock } = await start();
    const { peer } = await answered(outlast);
    clock.advance(1000);
    await turn(outlast);
    await peer.reset();
    await turn(outlast);
    await isNew(outlast, retry);
    expect(outlast.ear.all("orphaned")).toEqual([]);
  });

  it("and closes the connection regularly is answered", async () => {
    const { outlast } = await start();
    const { peer } = await answered(outlast);
    await peer.close();
    await turn(outlast);
    await isNew(outlast, retry);
  });

  it("and asks for more on the connection is answered", async () => {
    const { outlast, fake } = await start();
    const { peer, said } = await answered(outlast);
    fake.script(answer({ text: "second" }));
    await peer.say(chatCall({ ...hello, seed: 2 }));
    await said.until('"second"');
    await peer.reset();
    await turn(outlast);
    await isNew(outlast, retry);
    expect(said.text.match(/HTTP\/1\.1 200/g)).toHaveLength(2);
  });

  it("and resets at once may have missed its end: retries adopt it", async () => {
    const { outlast } = await start();
    const { peer, id } = await answered(outlast);
    await peer.reset();
    await orphaned(outlast, id);
    await isNew(outlast);
    expect((await (await equalCall(outlast, retry)).end()).requestId).toBe(id);
  });

  it("and was told of a failure instead is answered", async () => {
    const { outlast, fake, clock } = await start();
    const held = gate();
    fake.script(held.step);
    const { said } = await speaker(outlast, chatCall(streamed));
    await held.arrived;
    clock.advance(heartbeatMs);
    await said.until(": keep-alive");
    held.release(answer({ status: 400, body: { error: { message: "No.", code: "bad" } } }));
    await said.until('"code":"bad"');
    await said.until("\r\n0\r\n\r\n");
    await turn(outlast);
    await isNew(outlast, retry);
  });
});

describe("a caller who takes the request along", () => {
  const body = { ...streamed, ...cancels };

  it.each(ways)("(%s) after content: the upstream call ends at once", async (going) => {
    const tables = '[prices."gpt-test"]\ninput = 1000000\noutput = 2000000';
    const { outlast, fake, clock } = await start({ tables });
    const { peer, id } = await underWay(outlast, ["12345678", "90"], body);
    await peer[going]();
    await Promise.all([cancelled(outlast, id), fake.idle()]);
    const record = await recordOf(outlast, id, "?include=attempts");
    expect(record).toMatchObject({ status: "cancelled", attempts: 1, result: null });
    const prompt_tokens = (record.usage as { prompt_tokens: number }).prompt_tokens;
    expect(prompt_tokens).toBeGreaterThan(0);
    expect(record.usage).toEqual({
      prompt_tokens,
      completion_tokens: 3,
      total_tokens: prompt_tokens + 3,
      estimated: true,
    });
    expect(record.cost).toBe(prompt_tokens + 6);
    const partial = await SseCaller.of(outlast.fetch(`/v1/requests/${id}/stream`));
    await partial.until(({ error }) => error !== undefined);
    await clock.armed(250);
    clock.advance(250);
    await partial.end();
    expect(partial.text).toBe("1234567890");
    expect([partial.isDone, partial.error?.code]).toEqual([false, "request_cancelled"]);
    expect(clock.beats).toBe(0);
    await isNew(outlast, retry);
  });

  it.each(ways)("(%s) before content: the upstream call ends at once", async (going) => {
    const { outlast, fake } = await start();
    const { peer, id } = await underWay(outlast, [], body);
    await peer[going]();
    await Promise.all([cancelled(outlast, id), fake.idle()]);
    expect((await recordOf(outlast, id)).status).toBe("cancelled");
  });

  it.each(["reset", "close"] as const)("(%s) right behind the last byte of the call", async (going) => {
    const { outlast, fake, ear, clock } = await start();
    fake.otherwise(hang());
    for (let i = 0; i < 20; i++) {
      const peer = await peerOf(outlast, true);
      await peer.say(chatCall({ ...body, seed: i }));
      await peer[going]();
    }
    await turn(outlast);
    for (const { id } of ear.all("accepted")) await cancelled(outlast, id);
    await fake.idle();
    clock.advance(3 * heartbeatMs);
    await turn(outlast);
    expect(clock.beats).toBe(0);
    expect(ear.all("fault")).toEqual([]);
  });

  it("does not take it from another who shares it by its key", async () => {
    const { outlast } = await start();
    const key = { "Idempotency-Key": "k-1" };
    const { peer, faucet, id } = await underWay(outlast, ["a"], body, key);
    const joiner = await SseCaller.of(outlast.post(path, streamed, key));
    await joiner.until(({ text }) => text === "a");
    await peer.reset();
    await turn(outlast);
    faucet.say(textChunk("b"), stopChunk());
    faucet.end();
    await joiner.end();
    expect([joiner.requestId, joiner.text, joiner.isDone]).toEqual([id, "ab", true]);
    expect((await recordOf(outlast, id)).status).toBe("completed");
  });
});

describe("on the wire", () => {
  it("a stream and calls behind it share a connection, one after the other", async () => {
    const { outlast, fake } = await start();
    fake.script(stream(whole(["one"])), answer({ text: "two" }), stream(whole(["three"])));
    const { peer, said } = await speaker(outlast, chatCall(streamed));
    await said.until("data: [DONE]");
    await peer.say(chatCall(hello));
    await said.until('"two"');
    await peer.say(chatCall({ ...streamed, seed: 3 }));
    await said.until('"three"');
    await said.until("\r\n0\r\n\r\n");
    expect(said.text.match(/HTTP\/1\.1 200 OK/g)).toHaveLength(3);
  });

  it("a call pipelined behind a stream has its reply behind all of the stream", async () => {
    const { outlast, fake } = await start();
    const faucet = new Faucet();
    const second = new Faucet();
    fake.script(faucet.step, second.step);
    faucet.say(...begun(["one"]));
    const { peer, said } = await speaker(outlast, chatCall(streamed));
    await said.until('"one"');
    await peer.say(chatCall({ ...streamed, seed: 2 }));
    await second.called;
    second.say(...whole(["two"]));
    second.end();
    await outlast.ear.event("ended");
    faucet.say(textChunk("last of one"), stopChunk());
    faucet.end();
    await said.until('"two"');
    await said.until("data: [DONE]");
    expect(said.text.indexOf('"last of one"')).toBeLessThan(said.text.indexOf("[DONE]"));
    expect(said.text.indexOf("[DONE]")).toBeLessThan(said.text.indexOf('"two"'));
    await peer.close();
  });

  it("a caller who leaves both behind makes orphans of both", async () => {
    const { outlast, fake, ear, clock } = await start();
    const faucet = new Faucet("hang");
    fake.script(faucet.step, hang());
    faucet.say(...begun(["one"]));
    const { peer, said } = await speaker(outlast, chatCall(streamed));
    await said.until('"one"');
    await peer.say(chatCall({ ...streamed, seed: 2 }));
    await fake.calls(2);
    await peer.reset();
    for (const { id } of ear.all("accepted")) await orphaned(outlast, id);
    expect(ear.all("accepted")).toHaveLength(2);
    expect(clock.beats).toBe(0);
  });

  it("HTTP/1.0 has the events as they come, and its end with the connection", async () => {
    const { outlast, fake } = await start();
    const faucet = new Faucet();
    fake.script(faucet.step);
    faucet.say(...begun(["one"]));
    const { said } = await speaker(outlast, chatCall(streamed, {}, "1.0"));
    await said.until('"one"');
    faucet.say(stopChunk());
    faucet.end();
    await said.over;
    const [head, ...body] = said.text.split("\r\n\r\n");
    expect(head).not.toMatch(/transfer-encoding/i);
    expect(head).toMatch(/^connection: close/im);
    const events = [...begun(["one"]), stopChunk(), "[DONE]"].map((data) => `data: ${data}\n\n`);
    expect(body.join("\r\n\r\n")).toBe(events.join(""));
  });

  it.each(["1.1", "1.0"])(
    "(HTTP/%s) an error after content is followed by the break of the connection, a moment later",
    async (version) => {
      const { outlast, fake, clock } = await start();
      const faucet = new Faucet("cut");
      fake.script(faucet.step);
      // What cannot be compared is never taken up again.
      const toolCall = { index: 0, id: "call_1", type: "function", function: { name: "f", arguments: "" } };
      faucet.say(chunkOf([{ index: 0, delta: { tool_calls: [toolCall] }, finish_reason: null }]));
      const { peer, said } = await speaker(outlast, chatCall(streamed, {}, version));
      await said.until('"call_1"');
      faucet.end();
      await said.until('"stream_interrupted"');
      await clock.armed(250);
      expect(said.isOver).toBe(false);
      let wasReset = false;
      peer.socket.once("error", () => {
        wasReset = true;
      });
      clock.advance(250);
      await said.over;
      expect(said.text).not.toContain("[DONE]");
      // Without chunks nothing else tells it from a whole stream.
      if (version === "1.0") expect(wasReset).toBe(true);
      else expect(said.text).not.toContain("\r\n0\r\n\r\n");
      expect(clock.beats).toBe(0);
    },
  );
});
