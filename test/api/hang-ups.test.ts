/** Every way in which a caller can go, on raw sockets: what is recorded, what is paid for, and who may adopt it. */

import { Worker } from "node:worker_threads";
import { describe, expect, it, onTestFinished, vi } from "vitest";
import { answer, fail, gate, hang } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions } from "../support/outlast.ts";
import { chatCall, Peer, type PeerOptions } from "../support/peer.ts";
import { serveTest, WatchedClock } from "./wire.ts";

const bigText = "x".repeat(30 * 1024 * 1024);
const asking = (content: string) => ({ ...hello, messages: [{ role: "user" as const, content }] });

/** A server whose clock stands still. */
async function start(options: OutlastOptions = {}) {
  const clock = new WatchedClock();
  const outlast = await serveTest({ clock, ...options });
  return { outlast, clock, fake: outlast.fake, ear: outlast.ear };
}

async function peerOf(outlast: Outlast, options?: PeerOptions): Promise<Peer> {
  const peer = await Peer.open(outlast.url, options);
  onTestFinished(() => peer.close());
  return peer;
}

/** An equal call, by somebody who waits for the whole answer. */
function equalCall(outlast: Outlast, retryCount?: string, body: object = hello): Promise<Response> {
  const headers: Record<string, string> =
    retryCount === undefined ? {} : { "x-stainless-retry-count": retryCount };
  return outlast.post("/v1/chat/completions", body, headers);
}

const idOf = (response: Response) => response.headers.get("outlast-request-id");

async function adopts(outlast: Outlast, id: string, retryCount?: string): Promise<Response> {
  const response = await equalCall(outlast, retryCount);
  expect(response.status).toBe(200);
  expect(idOf(response)).toBe(id);
  return response;
}

async function isNew(outlast: Outlast, retryCount?: string): Promise<void> {
  const known = outlast.ear.all("accepted").map(({ id }) => id);
  const response = await equalCall(outlast, retryCount);
  expect(response.status).toBe(200);
  expect(known).not.toContain(idOf(response));
}

const orphaned = ({ ear }: Outlast, id: string) => ear.event("orphaned", (told) => told.id === id);

/** What the server was sent before this has been seen by it: one connection after the other is served. */
async function turn(outlast: Outlast): Promise<void> {
  for (let i = 0; i < 3; i++) expect((await outlast.fetch("/healthz")).status).toBe(200);
}

/** A call on a raw socket that is under way upstream. */
async function underWay(outlast: Outlast, ...[body, headers, version]: Parameters<typeof chatCall> | []) {
  const held = gate();
  outlast.fake.script(held.step);
  const peer = await peerOf(outlast);
  await peer.say(chatCall(body ?? hello, headers, version));
  await held.arrived;
  return { peer, held, id: outlast.ear.all("accepted").at(-1)!.id };
}

describe("a caller who goes before all was said", () => {
  const whole = chatCall(hello);
  const half = whole.subarray(0, whole.length - 20);
  const chunkedHead = { "Content-Length": undefined, "Transfer-Encoding": "chunked" };
  const chunked = chatCall("", chunkedHead);
  const ways: [string, Buffer][] = [
    ["before a byte", Buffer.alloc(0)],
    ["in the middle of the head", whole.subarray(0, 30)],
    ["behind the head", whole.subarray(0, whole.indexOf("\r\n\r\n") + 4)],
    ["in the middle of the body", half],
    ["in the middle of a chunk", Buffer.concat([chunked, Buffer.from('40\r\n{"model":"gpt-test",')])],
    [
      "between two chunks, where what was said would do",
      Buffer.concat([
        chunked,
        Buffer.from(`${JSON.stringify(hello).length.toString(16)}\r\n${JSON.stringify(hello)}\r\n`),
      ]),
    ],
  ];

  for (const going of ["reset", "close", "endHalf"] as const) {
    it.each(ways)(`%s (${going}): nothing is accepted, and nothing is called`, async (_name, said) => {
      const { outlast, fake, ear } = await start();
      const peer = await peerOf(outlast);
      if (said.length > 0) await peer.say(said);
      await turn(outlast);
      await peer[going]();
      await turn(outlast);
      expect(ear.all("accepted")).toEqual([]);
      expect(ear.all("fault")).toEqual([]);
      await isNew(outlast);
      expect(fake.seen).toHaveLength(1);
    });
  }

  it("with an upload that never ends: others are served, and nothing is accepted", async () => {
    const { outlast, ear } = await start();
    const peer = await peerOf(outlast);
    await peer.say(chatCall("{", { "Content-Length": "1000000" }));
    for (let i = 0; i < 5; i++) await peer.say(" ".repeat(1000));
    await isNew(outlast);
    await peer.reset();
    await turn(outlast);
    expect(ear.all("accepted")).toHaveLength(1);
  });

  it("when it was told to continue: nothing is accepted", async () => {
    const { outlast, ear } = await start();
    const peer = await peerOf(outlast);
    const call = chatCall(hello, { Expect: "100-continue" });
    await peer.say(call.subarray(0, call.indexOf("\r\n\r\n") + 4));
    expect((await peer.reply()).status).toBe(100);
    await peer.reset();
    await turn(outlast);
    expect(ear.all("accepted")).toEqual([]);
  });
});

describe("a caller who goes right behind the last byte", () => {
  it.each(["reset", "close", "endHalf"] as const)(
    "(%s) leaves an orphan, if the call arrived",
    async (going) => {
      const { outlast, ear, fake } = await start();
      fake.otherwise(hang());
      for (let i = 0; i < 20; i++) {
        const peer = await peerOf(outlast);
        await peer.say(chatCall(asking(`${i}`)));
        await peer[going]();
      }
      const last = () => ear.all("accepted")[19];
      if (going === "reset") await turn(outlast);
      else await ear.event("accepted", (told) => told === last());
      const accepted = ear.all("accepted");
      // A RST may overtake what was sent before it, and does so on its own account.
      for (const { id } of accepted) await orphaned(outlast, id);
    },
  );
});

describe("a caller who goes while the upstream is at work", () => {
  for (const going of ["reset", "close", "endHalf"] as const) {
    it(`(${going}) leaves an orphan for the next equal call`, async () => {
      const { outlast, fake } = await start();
      const { peer, held, id } = await underWay(outlast);
      await peer[going]();
      await orphaned(outlast, id);
      await peer.closed();
      held.release();
      await adopts(outlast, id);
      expect(fake.seen).toHaveLength(1);
    });

    it(`(${going}) is not counted as connected any more: its retries take their time`, async () => {
      const env = { OUTLAST_RETRY_HELD_BACKOFF_BASE: "1ms", OUTLAST_RETRY_BACKOFF_BASE: "40s" };
      const { outlast, ear, clock } = await start({ env, luck: 0.5 });
      const { peer, held, id } = await underWay(outlast);
      await peer[going]();
      await orphaned(outlast, id);
      held.release(fail(500));
      const { retryAt } = await ear.event("attempt_ended");
      expect(retryAt).toBeGreaterThan(clock.now() + 1000);
    });
  }

  it("and half-closes its connection is gone: it gets nothing, though it would read on", async () => {
    const { outlast } = await start();
    const { peer, held, id } = await underWay(outlast);
    await peer.endHalf();
    await orphaned(outlast, id);
    held.release();
    await expect(peer.reply()).rejects.toThrow("ended after 0 bytes");
    await peer.closed();
    await adopts(outlast, id);
  });

  it.each(["reset", "close"] as const)(
    "(%s) is marked as gone before an equal call that follows at once",
    async (going) => {
      const { outlast, fake, ear } = await start();
      fake.otherwise(hang());
      for (let i = 0; i < 30; i++) {
        const { peer, held, id } = await underWay(outlast, asking(`${i}`));
        const next = await peerOf(outlast);
        // Both are in the server's queue before it looks.
        void peer[going]();
        next.socket.write(chatCall(asking(`${i}`)));
        await ear.event("adopted", (told) => told.id === id);
        held.release();
        expect((await next.reply()).headers["outlast-request-id"]).toBe(id);
      }
      expect(fake.seen).toHaveLength(30);
    },
  );

  it.each(["1.0", "1.1"])("leaves an orphan also with HTTP/%s and Connection: close", async (version) => {
    const { outlast, fake } = await start();
    const { peer, held, id } = await underWay(outlast, hello, { Connection: "close" }, version);
    await peer.close();
    await orphaned(outlast, id);
    held.release();
    await adopts(outlast, id);
    expect(fake.seen).toHaveLength(1);
  });
});

describe("a caller who goes while the answer is on its way", () => {
  const onlyRetriesAdopt = async (outlast: Outlast, id: string) => {
    // It may have read a part, so only one who says that it tries again gets the same answer.
    for (const count of [undefined, "0", "", "x", "-1", "1x", "1.5", "0x1"]) await isNew(outlast, count);
    const adopted = await (await adopts(outlast, id, "1")).text();
    await isNew(outlast, "1");
    return adopted;
  };

  it("and reads none of 30 MB leaves an orphan for retries", async () => {
    const { outlast, fake } = await start();
    fake.script(answer({ text: bigText }));
    const peer = await peerOf(outlast, { unread: true });
    await peer.say(chatCall(hello));
    const { id } = await outlast.ear.event("ended");
    await turn(outlast);
    await peer.reset();
    await orphaned(outlast, id);
    expect((await onlyRetriesAdopt(outlast, id)).length).toBeGreaterThan(bigText.length);
  });

  it.each(["reset", "close"] as const)(
    "and has read a part of it (%s) leaves an orphan for retries",
    async (going) => {
      const { outlast, fake } = await start();
      fake.script(answer({ text: bigText }));
      const peer = await peerOf(outlast, { unread: true });
      await peer.say(chatCall(hello));
      const { id } = await outlast.ear.event("ended");
      peer.read();
      await peer.some(1000);
      peer.socket.pause();
      await peer[going]();
      await orphaned(outlast, id);
      await onlyRetriesAdopt(outlast, id);
    },
  );

  it("but reads all of it late has its answer", async () => {
    const { outlast, fake, clock } = await start();
    fake.script(answer({ text: bigText }));
    const peer = await peerOf(outlast, { unread: true });
    await peer.say(chatCall(hello));
    await outlast.ear.event("ended");
    clock.advance(60_000);
    peer.read();
    expect((await peer.reply()).body.length).toBeGreaterThan(bigText.length);
    await turn(outlast);
    clock.advance(1000);
    await turn(outlast);
    await peer.reset();
    await turn(outlast);
    await isNew(outlast, "1");
    expect(outlast.ear.all("orphaned")).toEqual([]);
  });

  it("with a reset within a second behind it leaves an orphan for retries", async () => {
    const { outlast, clock } = await start();
    const { peer, held, id } = await underWay(outlast);
    held.release();
    expect((await peer.reply()).status).toBe(200);
    await turn(outlast);
    clock.advance(999);
    await peer.reset();
    await orphaned(outlast, id);
    await onlyRetriesAdopt(outlast, id);
  });

  it("with a reset after a second has its answer", async () => {
    const { outlast, clock } = await start();
    const { peer, held } = await underWay(outlast);
    held.release();
    expect((await peer.reply()).status).toBe(200);
    await turn(outlast);
    clock.advance(1000);
    await turn(outlast);
    await peer.reset();
    await turn(outlast);
    await isNew(outlast, "1");
    expect(outlast.ear.all("orphaned")).toEqual([]);
  });

  it.each<[string, Record<string, string>, string]>([
    ["HTTP/1.1 and Connection: close", { Connection: "close" }, "1.1"],
    ["HTTP/1.0", {}, "1.0"],
  ])("with %s has its answer when the server has closed behind it", async (_name, headers, version) => {
    const { outlast } = await start();
    const { peer, held } = await underWay(outlast, hello, headers, version);
    held.release();
    expect((await peer.reply()).status).toBe(200);
    await peer.endHalf();
    await peer.closed();
    await turn(outlast);
    await isNew(outlast, "1");
    expect(outlast.ear.all("orphaned")).toEqual([]);
  });

  it("with HTTP/1.0 and keep-alive is looked after like any other", async () => {
    const { outlast } = await start();
    const { peer, held, id } = await underWay(outlast, hello, { Connection: "keep-alive" }, "1.0");
    held.release();
    const { headers } = await peer.reply();
    expect(headers.connection).toBe("keep-alive");
    await peer.reset();
    await orphaned(outlast, id);
    await isNew(outlast);
    await adopts(outlast, id, "2");
  });

  it("and closes in good order has its answer", async () => {
    const { outlast } = await start();
    const { peer, held } = await underWay(outlast);
    held.release();
    await peer.reply();
    await turn(outlast);
    await peer.close();
    await turn(outlast);
    await isNew(outlast, "1");
    expect(outlast.ear.all("orphaned")).toEqual([]);
  });

  it("and was told to continue first has its answer", async () => {
    const { outlast, fake } = await start();
    const peer = await peerOf(outlast);
    const call = chatCall(hello, { Expect: "100-continue" });
    const end = call.indexOf("\r\n\r\n") + 4;
    await peer.say(call.subarray(0, end));
    expect((await peer.reply()).status).toBe(100);
    await peer.say(call.subarray(end));
    expect((await peer.reply()).status).toBe(200);
    expect(fake.seen).toHaveLength(1);
  });
});

describe("an adopter who goes", () => {
  it.each(["reset", "close", "endHalf"] as const)("(%s) gives the orphan back", async (going) => {
    const { outlast, ear } = await start();
    const { peer, held, id } = await underWay(outlast);
    await peer.reset();
    await orphaned(outlast, id);
    const adopter = await peerOf(outlast);
    await adopter.say(chatCall(hello));
    await ear.event("adopted");
    await adopter[going]();
    await ear.event("orphaned", (told) => ear.all("orphaned").indexOf(told) === 1);
    held.release();
    await adopts(outlast, id);
  });

  it("in the middle of the answer gives it back to retries alone", async () => {
    const { outlast, ear } = await start();
    const { peer, held, id } = await underWay(outlast);
    await peer.reset();
    await orphaned(outlast, id);
    held.release(answer({ text: bigText }));
    await ear.event("ended");
    const adopter = await peerOf(outlast, { unread: true });
    await adopter.say(chatCall(hello));
    await ear.event("adopted");
    adopter.read();
    await adopter.some(1000);
    adopter.socket.pause();
    await adopter.reset();
    await ear.event("orphaned", (told) => ear.all("orphaned").indexOf(told) === 1);
    await isNew(outlast);
    expect((await (await adopts(outlast, id, "1")).text()).length).toBeGreaterThan(bigText.length);
  });
});

describe("calls that share a connection", () => {
  it("are answered in order, also where the second is ready first", async () => {
    const { outlast, fake, ear } = await start();
    const slow = gate();
    fake.script(slow.step, answer({ text: "second" }));
    const peer = await peerOf(outlast);
    await peer.say(chatCall(asking("one")));
    await slow.arrived;
    await peer.say(chatCall(asking("two")));
    await ear.event("ended");
    slow.release(answer({ text: "first" }));
    expect((await peer.reply()).body.toString()).toContain("first");
    expect((await peer.reply()).body.toString()).toContain("second");
  });

  it.each(["reset", "close", "endHalf"] as const)(
    "are all orphans when their caller goes (%s)",
    async (going) => {
      const { outlast, fake, ear } = await start();
      const slow = gate();
      fake.script(slow.step, answer());
      const peer = await peerOf(outlast);
      await peer.say(chatCall(hello));
      await slow.arrived;
      await peer.say(chatCall(hello));
      const { id: second } = await ear.event("ended");
      const first = ear.all("accepted").find(({ id }) => id !== second)!.id;
      await turn(outlast);
      await peer[going]();
      await Promise.all([orphaned(outlast, first), orphaned(outlast, second)]);
      slow.release();
      await ear.event("ended", (told) => told.id === first);
      const ids = [idOf(await equalCall(outlast, "1")), idOf(await equalCall(outlast, "1"))];
      expect(ids.sort()).toEqual([first, second].sort());
      expect(fake.seen).toHaveLength(2);
    },
  );

  it("do not wear out the connection, however many are pipelined", async () => {
    const { outlast, fake, ear } = await start({ upstreamToml: "min_concurrency = 256" });
    const warnings: Error[] = [];
    const note = (warning: Error) => warnings.push(warning);
    process.on("warning", note);
    onTestFinished(() => void process.off("warning", note));
    const held = gate();
    fake.otherwise(held.step);
    const peer = await peerOf(outlast);
    await peer.say(...Array.from({ length: 60 }, () => chatCall(hello)));
    await fake.calls(60);
    held.release();
    const ids = [];
    for (let i = 0; i < 60; i++) ids.push((await peer.reply()).headers["outlast-request-id"]);
    expect(ids).toEqual(ear.all("accepted").map(({ id }) => id));
    expect(warnings).toEqual([]);
    expect(fake.seen).toHaveLength(60);
  });

  it("one behind the other: each later call shows that the earlier one has its answer", async () => {
    const { outlast, ear } = await start();
    const peer = await peerOf(outlast);
    const ids: string[] = [];
    for (let i = 0; i < 20; i++) {
      await peer.say(chatCall(hello));
      ids.push((await peer.reply()).headers["outlast-request-id"]!);
    }
    await peer.reset();
    await orphaned(outlast, ids.at(-1)!);
    await turn(outlast);
    expect(ear.all("orphaned")).toHaveLength(1);
    await adopts(outlast, ids.at(-1)!, "1");
    await isNew(outlast, "1");
  });

  it("pipelined: a later call shows that all earlier ones have their answers", async () => {
    const { outlast, ear } = await start();
    const peer = await peerOf(outlast);
    await peer.say(chatCall(hello), chatCall(hello), chatCall(hello));
    for (let i = 0; i < 3; i++) await peer.reply();
    await peer.say("GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    await peer.reply();
    await peer.reset();
    await turn(outlast);
    await isNew(outlast, "1");
    expect(ear.all("orphaned")).toEqual([]);
  });
});

it("a caller who went in good time, which is only seen after a stall, was not answered", async () => {
  const { outlast, clock } = await start();
  const { peer, held, id } = await underWay(outlast);
  held.release(answer());
  await peer.reply();
  peer.socket.resetAndDestroy();
  // The time to see it is over before anything can be read.
  clock.advance(1000);
  await orphaned(outlast, id);
  await adopts(outlast, id, "1");
  expect(outlast.fake.seen).toHaveLength(1);
});

it("a caller whose hang-up arrives together with its answer, after a stall, was not answered", async () => {
  const { outlast } = await start();
  const { peer, held, id } = await underWay(outlast);
  // When the end of the request has gone to the disk the loop stalls, until its commit and the hang-up are both there.
  const { postMessage } = Worker.prototype;
  const post = vi.spyOn(Worker.prototype, "postMessage").mockImplementationOnce(function (
    this: Worker,
    ...args
  ) {
    Reflect.apply(postMessage, this, args);
    const until = performance.now() + 50;
    while (performance.now() < until);
    peer.socket.destroy();
  });
  onTestFinished(() => post.mockRestore());
  held.release(answer());
  await orphaned(outlast, id);
  await adopts(outlast, id);
  expect(outlast.fake.seen).toHaveLength(1);
});
