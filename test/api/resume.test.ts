/** GET /v1/requests/{id}/stream: the stream of a request, from any event on, for whoever comes and as often as they come. */

import { afterEach, describe, expect, test } from "vitest";
import type { RequestObject } from "../../src/contract.ts";
import { fail, gate, stream } from "../support/fake-upstream.ts";
import {
  begun,
  chunkOf,
  cutShort,
  Faucet,
  SseCaller,
  stopChunk,
  textChunk,
  tokens,
  whole,
} from "../support/live-streams.ts";
import { hello, type Outlast, type OutlastOptions, quick, startOutlast } from "../support/outlast.ts";

const path = "/v1/chat/completions";
const running: Outlast[] = [];
const body = { ...hello, stream: true };
const ten = tokens(10);
const text = ten.join("");

afterEach(async () => {
  await Promise.all(running.splice(0).map((outlast) => outlast.close()));
});

async function start(options: OutlastOptions = {}): Promise<Outlast> {
  const outlast = await startOutlast({ env: quick, ...options });
  running.push(outlast);
  return outlast;
}

/** A streamed request for which nobody waits; its id. */
async function submit(outlast: Outlast, more: object = {}): Promise<string> {
  const reply = await outlast.post(path, { ...body, wait: false, ...more });
  expect(reply.status).toBe(202);
  return ((await reply.json()) as { id: string }).id;
}
const open = (outlast: Outlast, id: string, query = "", headers: Record<string, string> = {}) =>
  SseCaller.of(outlast.fetch(`/v1/requests/${id}/stream${query}`, { headers }));
const read = async (...args: Parameters<typeof open>) => (await open(...args)).end();

async function recordOf(outlast: Outlast, id: string): Promise<RequestObject> {
  return (await (await outlast.fetch(`/v1/requests/${id}?wait=20`)).json()) as RequestObject;
}

/** A running stream that says what it is told. */
async function startFlowing(options: OutlastOptions = {}) {
  const outlast = await start(options);
  const faucet = new Faucet();
  outlast.fake.script(faucet.step);
  const id = await submit(outlast);
  await faucet.called;
  return { outlast, faucet, id };
}

const numbers = (from: number, to: number): string[] =>
  Array.from({ length: to - from + 1 }, (_, i) => String(from + i));
const dataOf = (caller: SseCaller): string[] => caller.chunks.map(({ data }) => data);

describe("the stream of a finished request", () => {
  test("is told from its start, or from behind any event", async () => {
    const outlast = await start();
    const chunks = whole(ten);
    outlast.fake.script(stream(chunks));
    const id = await submit(outlast);
    await recordOf(outlast, id);
    const all = await read(outlast, id);
    expect(all.headers.get("content-type")).toBe("text/event-stream; charset=utf-8");
    expect(all.headers.get("outlast-request-id")).toBe(id);
    expect([dataOf(all), all.isDone, all.ended]).toEqual([chunks, true, "clean"]);
    expect(new Set(all.ids)).toEqual(new Set([undefined]));
    for (let after = 0; after <= chunks.length; after++) {
      const rest = await read(outlast, id, `?starting_after=${after}&ids=true`);
      expect([dataOf(rest), rest.isDone]).toEqual([chunks.slice(after), true]);
      expect(rest.ids).toEqual(numbers(after + 1, chunks.length));
    }
  });

  test("is told behind the event of Last-Event-ID, with ids unless they are not wanted", async () => {
    const outlast = await start();
    const chunks = whole(ten);
    outlast.fake.script(stream(chunks));
    const id = await submit(outlast);
    await recordOf(outlast, id);
    const rest = await read(outlast, id, "", { "last-event-id": "7" });
    expect([dataOf(rest), rest.ids]).toEqual([chunks.slice(7), numbers(8, chunks.length)]);
    const bare = await read(outlast, id, "?ids=false&starting_after=2", { "last-event-id": "7" });
    expect([dataOf(bare), bare.ids[0]]).toEqual([chunks.slice(7), undefined]);
    const empty = await read(outlast, id, "", { "last-event-id": "" });
    expect([dataOf(empty), empty.ids[0]]).toEqual([chunks, undefined]);
  });

  test("behind an event that it does not have, it is said to have restarted", async () => {
    const outlast = await start();
    outlast.fake.script(stream(whole(ten)));
    const id = await submit(outlast);
    await recordOf(outlast, id);
    for (const cursor of ["13", "999999", "2-1", "2-0"]) {
      const caller = await read(outlast, id, `?starting_after=${cursor}`);
      expect(caller.chunks).toEqual([]);
      expect(caller.error).toMatchObject({ code: "stream_restarted", request_id: id });
      expect(caller.isDone).toBe(false);
    }
  });

  test("a request that was answered plainly is told as chunks", async () => {
    const outlast = await start();
    const reply = await outlast.post(path, hello);
    const id = reply.headers.get("outlast-request-id")!;
    const caller = await read(outlast, id, "?ids=true");
    expect([caller.text, caller.isDone]).toEqual(["ok", true]);
    expect(caller.ids).toEqual(numbers(1, caller.chunks.length));
    const rest = await read(outlast, id, "?starting_after=1");
    expect(dataOf(rest)).toEqual(dataOf(caller).slice(1));
    const beyond = await read(outlast, id, `?starting_after=${caller.chunks.length + 1}`);
    expect(beyond.error?.code).toBe("stream_restarted");
  });

  test("is found by the id of the answer", async () => {
    const outlast = await start();
    outlast.fake.script(stream(whole(ten, { id: "chatcmpl-known" })));
    await recordOf(outlast, await submit(outlast));
    expect((await read(outlast, "chatcmpl-known")).text).toBe(text);
  });
});

describe("who asks wrongly", () => {
  test.each(["-1", "x", "1.5", "", "1-", "0-1", "1e1", "12345678901234567890"])(
    "starting_after=%s gets 400 that names it",
    async (cursor) => {
      const outlast = await start();
      outlast.fake.script(stream(whole(ten)));
      const id = await submit(outlast);
      const reply = await outlast.fetch(`/v1/requests/${id}/stream?starting_after=${cursor}`);
      expect(reply.status).toBe(400);
      expect(await reply.json()).toMatchObject({
        error: { code: "invalid_parameter", param: "starting_after" },
      });
    },
  );

  test("a bad Last-Event-ID, a bad ids and an unknown parameter get 400", async () => {
    const outlast = await start();
    outlast.fake.script(stream(whole(ten)));
    const id = await submit(outlast);
    const url = `/v1/requests/${id}/stream`;
    const replies = await Promise.all([
      outlast.fetch(url, { headers: { "last-event-id": "seven" } }),
      outlast.fetch(`${url}?ids=yes`),
      outlast.fetch(`${url}?after=1`),
    ]);
    expect(replies.map(({ status }) => status)).toEqual([400, 400, 400]);
    const errors = await Promise.all(replies.map((reply) => reply.json()));
    const params = errors.map((one) => (one as { error: { param: string } }).error.param);
    expect(params).toEqual(["Last-Event-ID", "ids", "after"]);
  });

  test("another project's request is not there, neither is one that never was", async () => {
    const keys = ["mine", "theirs"].map(
      (project) => `[[api_keys]]\nkey = "key-of-${project}"\nproject = "${project}"\n`,
    );
    const outlast = await start({ tables: keys.join("") });
    outlast.fake.script(stream(whole(ten)));
    const as = (project: string) => ({ authorization: `Bearer key-of-${project}` });
    const reply = await outlast.post(path, body, as("mine"));
    const id = reply.headers.get("outlast-request-id")!;
    await reply.text();
    const get = (which: string, project: string) =>
      outlast.fetch(`/v1/requests/${which}/stream`, { headers: as(project) });
    for (const [which, project] of [
      [id, "theirs"],
      ["chatcmpl-first", "theirs"],
      ["req_00000000000000000000000000", "mine"],
    ] as const) {
      const refused = await get(which, project);
      expect(refused.status).toBe(404);
      expect(await refused.json()).toMatchObject({ error: { code: "request_not_found" } });
    }
    expect((await SseCaller.whole(get(id, "mine"))).text).toBe(text);
  });
});

describe("the stream of a running request", () => {
  test("is read as it grows, from several connections, each from where it likes", async () => {
    const { outlast, faucet, id } = await startFlowing();
    const chunks = whole(ten);
    faucet.say(...chunks.slice(0, 5));
    const first = await open(outlast, id, "?ids=true");
    await first.until((caller) => caller.chunks.length === 5);
    const others = await Promise.all(
      [1, 3, 5].map((n) => open(outlast, id, `?ids=true&starting_after=${n - 1}`)),
    );
    await others[0]!.until((caller) => caller.chunks.length === 5);
    for (const chunk of chunks.slice(5)) {
      const before = first.chunks.length;
      faucet.say(chunk);
      await first.until((caller) => caller.chunks.length > before);
    }
    faucet.end();
    const all = await Promise.all([first, ...others].map((caller) => caller.end()));
    for (const [i, after] of [0, 0, 2, 4].entries()) {
      expect(dataOf(all[i]!)).toEqual(chunks.slice(after));
      expect(all[i]!.ids).toEqual(numbers(after + 1, chunks.length));
      expect([all[i]!.isDone, all[i]!.ended]).toEqual([true, "clean"]);
    }
  });

  test("shows to those who count its events only what is on disk, and to its caller everything", async () => {
    const outlast = await start({ toml: '[stream]\nheartbeat = "50ms"' });
    const faucet = new Faucet();
    outlast.fake.script(faucet.step);
    const live = SseCaller.of(outlast.post(path, body));
    await faucet.called;
    faucet.say(...begun(["a"]));
    const caller = await live;
    const id = caller.requestId;
    await caller.until(({ text: said }) => said === "a");
    expect(caller.ids).toEqual([undefined, undefined]);
    const resumed = await open(outlast, id, "?ids=true");
    await resumed.until(({ text: said }) => said === "a");
    // It has read further than the disk may have: it waits, and gets each event once.
    faucet.say(textChunk("b"));
    await caller.until(({ text: said }) => said === "ab");
    const ahead = await open(outlast, id, "?ids=true&starting_after=3");
    faucet.say(textChunk("c"), stopChunk());
    faucet.end();
    expect((await ahead.end()).ids).toEqual(["4", "5"]);
    expect((await resumed.end()).ids).toEqual(numbers(1, 5));
    expect((await caller.end()).text).toBe("abc");
  });

  test("each of many readers who leave and come back at random gets every event once", async () => {
    const { outlast, faucet, id } = await startFlowing();
    const chunks = whole(tokens(150));
    /** Takes a few events, leaves, and comes back with the last id that it has seen. */
    const wanderer = async (seed: number) => {
      const got: string[] = [];
      const ids: string[] = [];
      for (let visit = 0; visit < 400; visit++) {
        const query = `?ids=true${ids.length > 0 ? `&starting_after=${ids.at(-1)}` : ""}`;
        const caller = await open(outlast, id, query);
        const patience = 1 + ((seed * 31 + visit * 17) % 23);
        await caller.until((one) => one.events.length >= patience || one.ended !== undefined).catch(() => {});
        const seen = caller.chunks.slice();
        if (!caller.ended) await caller.leave();
        got.push(...seen.map(({ data }) => data));
        ids.push(...seen.map(({ id: number }) => number!));
        if (caller.isDone && caller.ended && seen.length === caller.chunks.length) return { got, ids };
      }
      throw new Error("it never came to the end");
    };
    const wanderers = Promise.all(Array.from({ length: 12 }, (_, seed) => wanderer(seed)));
    for (const chunk of chunks) {
      faucet.say(chunk);
      await outlast.fetch("/healthz");
    }
    faucet.end();
    for (const { got, ids } of await wanderers) {
      expect(got).toEqual(chunks);
      expect(ids).toEqual(numbers(1, chunks.length));
    }
  });

  test("a request that waits: its reader hears that it is alive, and then the answer", async () => {
    const outlast = await start({
      toml: '[stream]\nheartbeat = "30ms"',
      upstreamToml: "max_concurrency = 1",
    });
    const before = gate();
    outlast.fake.script(before.step, stream(whole(ten)));
    await submit(outlast, { stream: false });
    await before.arrived;
    const id = await submit(outlast);
    const caller = await open(outlast, id, "?ids=true");
    await caller.until(({ comments }) => comments.length >= 3);
    expect(new Set(caller.comments)).toEqual(new Set(["keep-alive"]));
    expect(caller.events).toEqual([]);
    before.release();
    expect((await caller.end()).text).toBe(text);
    expect(caller.ids).toEqual(numbers(1, 12));
  });

  test("its first event is waited for where it is asked for from the start, not where more was read", async () => {
    const { outlast, faucet, id } = await startFlowing();
    expect((await read(outlast, id, "?starting_after=1")).error?.code).toBe("stream_restarted");
    const waiting = open(outlast, id, "?starting_after=0");
    faucet.say(...whole(ten));
    faucet.end();
    expect((await (await waiting).end()).text).toBe(text);
  });

  test("a spliced stream keeps its numbers", async () => {
    const outlast = await start();
    const [one, two] = [new Faucet("cut"), new Faucet()];
    outlast.fake.script(one.step, two.step);
    const id = await submit(outlast);
    one.say(...begun(ten.slice(0, 6)));
    const caller = await open(outlast, id, "?ids=true");
    await caller.until(({ chunks }) => chunks.length === 7);
    one.end();
    await two.called;
    const late = await open(outlast, id, "?ids=true&starting_after=5");
    two.say(...whole(text.match(/[\s\S]{1,4}/g)!, { id: "chatcmpl-second" }));
    two.end();
    await caller.end();
    expect([caller.text, caller.isDone]).toEqual([text, true]);
    expect(caller.ids).toEqual(numbers(1, caller.chunks.length));
    await late.end();
    expect(dataOf(late)).toEqual(dataOf(caller).slice(5));
  });
});

describe("where the answer has begun anew", () => {
  const other = tokens(8, "other");

  test("who is connected is told; its numbers are void; those of the new answer hold", async () => {
    const outlast = await start();
    const [one, two] = [new Faucet("cut"), new Faucet()];
    outlast.fake.script(one.step, two.step);
    const id = await submit(outlast);
    one.say(...begun(ten.slice(0, 6)));
    const caller = await open(outlast, id, "?ids=true");
    await caller.until(({ chunks }) => chunks.length === 7);
    one.end();
    const chunks = whole(other);
    two.say(...chunks.slice(0, 5));
    await caller.end();
    expect(caller.error).toMatchObject({ code: "stream_restarted", request_id: id });
    expect([caller.ended, caller.isDone]).toEqual(["broken", false]);

    const fresh = await open(outlast, id, "?ids=true");
    await fresh.until(({ chunks: got }) => got.length === 5);
    expect(fresh.ids).toEqual(["2-1", "2-2", "2-3", "2-4", "2-5"]);
    for (const cursor of ["7", "1", "3-1", "3-0", "2-99"]) {
      expect((await read(outlast, id, `?starting_after=${cursor}`)).error?.code).toBe("stream_restarted");
    }
    const resumed = await open(outlast, id, "", { "last-event-id": "2-3" });
    two.say(...chunks.slice(5));
    two.end();
    await Promise.all([fresh.end(), resumed.end()]);
    expect([fresh.text, fresh.isDone]).toEqual([other.join(""), true]);
    expect(dataOf(resumed)).toEqual(dataOf(fresh).slice(3));
    expect(resumed.ids[0]).toBe("2-4");

    // The same when it has ended.
    expect((await read(outlast, id, "?starting_after=7")).error?.code).toBe("stream_restarted");
    expect(dataOf(await read(outlast, id, "?starting_after=2-3"))).toEqual(dataOf(fresh).slice(3));
    expect((await read(outlast, id, "?starting_after=0")).text).toBe(other.join(""));
  });

  test("a reader who has read nothing yet gets the new answer and nothing of the old one", async () => {
    const outlast = await start();
    outlast.fake.script(cutShort(begun(ten)), stream(whole(other)));
    const id = await submit(outlast);
    const caller = await open(outlast, id);
    await caller.end();
    // Where it was quick enough to read of the old one, it was told.
    if (caller.error) expect(caller.error.code).toBe("stream_restarted");
    else expect(caller.text).toBe(other.join(""));
    expect((await read(outlast, id)).text).toBe(other.join(""));
  });
});

describe("the stream of a request that has failed or was cancelled", () => {
  test("before the first content: the HTTP error that its caller got", async () => {
    const outlast = await start();
    outlast.fake.otherwise(fail(400, { message: "bad prompt", code: "bad" }));
    const id = await submit(outlast);
    await recordOf(outlast, id);
    const reply = await outlast.fetch(`/v1/requests/${id}/stream`);
    expect(reply.status).toBe(400);
    expect(await reply.json()).toMatchObject({ error: { code: "bad", message: "bad prompt" } });
  });

  test("after it: what there was, the error, and no regular end", async () => {
    const outlast = await start();
    outlast.fake.otherwise(stream([...begun(ten), '{"error":{"message":"gone","code":"gone"}}']));
    const id = await submit(outlast, { outlast: { max_attempts: 2 } });
    expect(await recordOf(outlast, id)).toMatchObject({ status: "failed", attempts: 2 });
    const caller = await read(outlast, id, "?ids=true");
    expect([caller.text, caller.isDone, caller.ended]).toEqual([text, false, "broken"]);
    expect(caller.error).toMatchObject({ code: "gone", message: "gone", request_id: id });
    expect(caller.ids).toEqual(numbers(1, 11));
    const rest = await read(outlast, id, "?starting_after=11");
    expect(rest.status === 200 ? rest.error?.code : "gone").toBe("gone");
  });

  test("cancelled while somebody reads: what there was, and that it was cancelled", async () => {
    const { outlast, faucet, id } = await startFlowing();
    faucet.say(...begun(ten));
    const caller = await open(outlast, id);
    await caller.until(({ text: said }) => said === text);
    const cancelled = await outlast.post(`/v1/requests/${id}/cancel`, {});
    expect(cancelled.status).toBe(200);
    await caller.end();
    expect(caller.error).toMatchObject({ code: "request_cancelled", request_id: id });
    expect([caller.isDone, caller.ended]).toEqual([false, "broken"]);
    const again = await read(outlast, id);
    expect([again.text, again.error?.code]).toEqual([text, "request_cancelled"]);
  });

  test("cancelled while it waits: its reader is told", async () => {
    const outlast = await start();
    const id = await submit(outlast, { outlast: { delay: "1h" } });
    const waiting = outlast.fetch(`/v1/requests/${id}/stream`);
    await outlast.post(`/v1/requests/${id}/cancel`, {});
    const reply = await waiting;
    expect(reply.status).toBe(400);
    expect(await reply.json()).toMatchObject({ error: { code: "request_cancelled" } });
  });

  test("a key whose stream failed starts a new round; numbers of the round before are void", async () => {
    const outlast = await start();
    const key = { "idempotency-key": "twice" };
    outlast.fake.script(cutShort(begun(ten)), stream(whole(ten)));
    const options = { outlast: { max_attempts: 1 } };
    const first = await SseCaller.whole(outlast.post(path, { ...body, ...options }, key));
    const id = first.requestId;
    expect(first.error?.code).toBe("upstream_connection_lost");
    const second = await SseCaller.whole(outlast.post(path, { ...body, ...options }, key));
    expect([second.requestId, second.text, second.isDone]).toEqual([id, text, true]);
    expect((await read(outlast, id, "?starting_after=5")).error?.code).toBe("stream_restarted");
    const again = await read(outlast, id, "?ids=true");
    expect(again.text).toBe(text);
    expect(again.ids[0]).toMatch(/^\d+-1$/);
  });
});

describe("when the server stops", () => {
  test("who reads a stream that goes on later is told so, and where it is", async () => {
    const { outlast, faucet, id } = await startFlowing({ env: { ...quick, OUTLAST_DRAIN_TIMEOUT: "0" } });
    faucet.say(...begun(ten));
    const caller = await open(outlast, id);
    await caller.until(({ text: said }) => said === text);
    const stopped = outlast.stop();
    await caller.end();
    expect(caller.error).toMatchObject({ code: "shutting_down", request_id: id });
    expect(caller.error!.message).toContain(id);
    expect([caller.isDone, caller.ended]).toEqual([false, "broken"]);
    await stopped;
  });

  test("the same for what cannot be continued seamlessly", async () => {
    const { outlast, faucet, id } = await startFlowing({ env: { ...quick, OUTLAST_DRAIN_TIMEOUT: "0" } });
    const call = { index: 0, id: "call_1", type: "function", function: { name: "f", arguments: "{" } };
    faucet.say(chunkOf([{ index: 0, delta: { tool_calls: [call] }, finish_reason: null }]));
    const caller = await open(outlast, id);
    await caller.until(({ chunks }) => chunks.length === 1);
    const stopped = outlast.stop();
    expect((await caller.end()).error).toMatchObject({ code: "shutting_down", request_id: id });
    await stopped;
  });

  test("who reads a request that waits is refused with 503, and told to come back", async () => {
    const outlast = await start();
    const id = await submit(outlast, { outlast: { delay: "1h" } });
    const waiting = outlast.fetch(`/v1/requests/${id}/stream`);
    await outlast.fetch("/healthz");
    const stopped = outlast.stop();
    const reply = await waiting;
    expect(reply.status).toBe(503);
    expect(await reply.json()).toMatchObject({ error: { code: "shutting_down" } });
    expect(Number(reply.headers.get("retry-after-ms"))).toBeGreaterThan(0);
    await stopped;
  });

  test("who reads a stream that ends in time reads it to its end", async () => {
    const { outlast, faucet, id } = await startFlowing();
    faucet.say(...begun(ten));
    const caller = await open(outlast, id);
    await caller.until(({ text: said }) => said === text);
    const stopped = outlast.stop();
    while ((await outlast.fetch("/readyz")).status !== 503);
    faucet.say(stopChunk());
    faucet.end();
    expect([(await caller.end()).isDone, caller.ended]).toEqual([true, "clean"]);
    await stopped;
  });
});
