import OpenAI, { APIError } from "openai";
import { describe, expect, it } from "vitest";
import { fail, gate, hang } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick } from "../support/outlast.ts";
import {
  errorOf,
  openSocket,
  parseReply,
  rawCall,
  refusalOf,
  serveTest,
  strictAsync,
  WatchedClock,
} from "./wire.ts";

let outlast: Outlast;

async function start(options: OutlastOptions = {}) {
  outlast = await serveTest(options);
  return outlast;
}

const holdMs = 280_000;
const waitMs = 50_000;

/** A server whose clock stands still, with an upstream that answers when it is told to. */
async function startHeld(options: OutlastOptions = {}) {
  const clock = new WatchedClock();
  const held = gate();
  const started = await start({ clock, ...options });
  started.fake.script(held.step);
  return { ...started, clock, held };
}

async function asyncOf(response: Response) {
  expect(response.status).toBe(202);
  return strictAsync.parse(await response.json());
}

describe("a plain call", () => {
  it("is held for as long as it takes, and gets the result", async () => {
    const { client, clock, held, fake } = await startHeld();
    const calling = client().chat.completions.create(hello);
    await fake.calls(1);
    clock.advance(holdMs - 1);
    held.release();
    expect((await calling).choices[0]?.message.content).toBe("ok");
  });

  it("gets 504 still_running at the hold timeout, is told to come back, and the work goes on", async () => {
    const { post, fetch, clock, held, fake } = await startHeld();
    const calling = post("/v1/chat/completions", hello);
    await fake.calls(1);
    clock.advance(holdMs);
    const response = await calling;
    expect(response.status).toBe(504);
    expect(response.headers.get("x-should-retry")).toBe("true");
    expect(response.headers.get("outlast-attempts")).toBe("1");
    expect(response.headers.get("outlast-upstream")).toBe("fake");
    const id = response.headers.get("outlast-request-id");
    const error = await errorOf(response);
    expect(error).toMatchObject({ code: "still_running", type: "timeout_error", param: null });
    expect(error.message).toContain(`/v1/requests/${id}`);
    expect(fake.inFlight).toBe(1);
    held.release();
    const record = await fetch(`/v1/requests/${id}?wait=30`);
    expect(await record.json()).toMatchObject({ status: "completed", attempts: 1 });
    expect(fake.seen).toHaveLength(1);
  });

  it("of a stock SDK never meets a foreign object: it gets a completion or an APIError", async () => {
    const { client, clock, fake } = await startHeld();
    const calling = client()
      .chat.completions.create(hello)
      .catch((caught) => caught);
    await fake.calls(1);
    clock.advance(holdMs);
    const error = await calling;
    expect(error).toBeInstanceOf(APIError);
    expect(error).toMatchObject({ status: 504, code: "still_running" });
  });

  it("gets 504 deadline_exceeded at its deadline, for good", async () => {
    const { post, clock, fake, ear } = await startHeld({ env: { OUTLAST_DEFAULTS_HELD_DEADLINE: "60s" } });
    const calling = post("/v1/chat/completions", hello);
    await fake.calls(1);
    clock.advance(60_000);
    const response = await calling;
    expect(response.headers.get("x-should-retry")).toBe("false");
    expect(await refusalOf(response)).toEqual({ status: 504, code: "deadline_exceeded", param: null });
    expect(await ear.event("ended")).toMatchObject({ state: "failed", code: "deadline_exceeded" });
    await fake.idle();
  });

  it("has its own hold timeout where the configuration says so", async () => {
    const { post, clock, fake } = await startHeld({ env: { OUTLAST_HOLD_TIMEOUT: "5s" } });
    const calling = post("/v1/chat/completions", hello);
    await fake.calls(1);
    clock.advance(5000);
    expect((await refusalOf(await calling)).code).toBe("still_running");
  });
});

describe("a call that asks to wait", () => {
  const ways: [string, Record<string, unknown>, Record<string, string>, number, string | null][] = [
    ["wait: true", { wait: true }, {}, waitMs, null],
    ["wait: 7", { wait: 7 }, {}, 7000, null],
    ["wait: 0.25", { wait: 0.25 }, {}, 250, null],
    ["Prefer: wait=7", {}, { prefer: "wait=7" }, 7000, "wait=7"],
    ['Prefer: wait="7"', {}, { prefer: 'Wait="7"' }, 7000, "wait=7"],
    ["Prefer: respond-async, wait=7", {}, { prefer: "respond-async, wait=7" }, 7000, "respond-async, wait=7"],
    [
      "Prefer: wait=7; respond-async",
      {},
      { prefer: "handling=lenient, wait=7; respond-async" },
      7000,
      "respond-async, wait=7",
    ],
    ["wait: 9 against Prefer: wait=7", { wait: 9 }, { prefer: "wait=7" }, 9000, null],
    ["wait: 9 against Prefer: respond-async", { wait: 9 }, { prefer: "respond-async" }, 9000, null],
    ["wait: null and Prefer: wait=7", { wait: null }, { prefer: "wait=7" }, 7000, "wait=7"],
    ["wait: 86400, which is longer than any hold", { wait: 86_400 }, {}, holdMs, null],
    ["Prefer: wait=1000, which is longer than any hold", {}, { prefer: "wait=1000" }, holdMs, "wait=280"],
  ];

  it.each(ways)(
    "%s: gets the async object then, and the result later",
    async (_name, more, headers, ms, applied) => {
      const { post, fetch, clock, held, fake } = await startHeld();
      const calling = post("/v1/chat/completions", { ...hello, ...more }, headers);
      await fake.calls(1);
      await clock.armed(ms);
      clock.advance(ms);
      const response = await calling;
      const object = await asyncOf(response);
      expect(object).toMatchObject({
        status: "processing",
        model: "gpt-test",
        poll_url: `/v1/requests/${object.id}`,
      });
      expect(object.created).toBe(Math.floor((clock.now() - ms) / 1000));
      expect(response.headers.get("location")).toBe(object.poll_url);
      expect(response.headers.get("outlast-request-id")).toBe(object.id);
      expect(response.headers.get("preference-applied")).toBe(applied);
      expect(Number(response.headers.get("retry-after"))).toBeGreaterThan(0);
      held.release();
      const record = await fetch(`${object.poll_url}?wait=30`);
      expect(await record.json()).toMatchObject({
        status: "completed",
        result: { object: "chat.completion" },
      });
      expect(fake.seen).toHaveLength(1);
    },
  );

  it.each(ways)("%s: gets the result where it comes in time", async (_name, more, headers, ms, applied) => {
    const { post, held, fake, clock } = await startHeld();
    const calling = post("/v1/chat/completions", { ...hello, ...more }, headers);
    await fake.calls(1);
    clock.advance(ms - 1);
    held.release();
    const response = await calling;
    expect(response.status).toBe(200);
    expect(response.headers.get("preference-applied")).toBe(applied);
    expect(await response.json()).toMatchObject({ object: "chat.completion" });
  });

  it("gets the upstream's error where it fails in time", async () => {
    const { post, fake } = await start();
    fake.script(fail(400, { code: "bad", message: "No." }));
    const response = await post("/v1/chat/completions", { ...hello, wait: true });
    expect(response.headers.get("x-should-retry")).toBe("false");
    expect(await refusalOf(response)).toEqual({ status: 400, code: "bad", param: null });
  });

  it("is told about a request that waits for its next attempt", async () => {
    const clock = new WatchedClock();
    const env = { OUTLAST_RETRY_HELD_BACKOFF_BASE: "40s", OUTLAST_RETRY_HELD_BACKOFF_MAX: "40s" };
    const { post, fake, ear } = await start({ clock, luck: 0.5, env });
    fake.script(fail(503));
    const calling = post("/v1/chat/completions", { ...hello, wait: 15 });
    await ear.event("attempt_ended");
    await clock.armed(15_000);
    clock.advance(15_000);
    const response = await calling;
    expect((await asyncOf(response)).status).toBe("retrying");
    // The next attempt is 20 s after the first, which was 15 s ago.
    expect(response.headers.get("retry-after")).toBe("5");
    expect(response.headers.get("outlast-attempts")).toBe("1");
  });
});

describe("a call that does not wait", () => {
  const ways: [string, Record<string, unknown>, Record<string, string>, string | null][] = [
    ["wait: false", { wait: false }, {}, null],
    ["wait: 0", { wait: 0 }, {}, null],
    ["Prefer: respond-async", {}, { prefer: "respond-async" }, "respond-async"],
    ["Prefer: wait=0", {}, { prefer: "wait=0" }, "wait=0"],
    ["wait: false against Prefer: wait=7", { wait: false }, { prefer: "wait=7" }, null],
  ];

  it.each(ways)("%s: gets the async object at once", async (_name, more, headers, applied) => {
    const { post, fetch, held } = await startHeld();
    const response = await post("/v1/chat/completions", { ...hello, ...more }, headers);
    const object = await asyncOf(response);
    expect(object.status).toBe("processing");
    expect(response.headers.get("location")).toBe(`/v1/requests/${object.id}`);
    expect(response.headers.get("content-type")).toBe("application/json");
    expect(response.headers.get("preference-applied")).toBe(applied);
    held.release();
    const record = await (await fetch(`/v1/requests/${object.id}?wait=30`)).json();
    expect(record).toMatchObject({ id: object.id, status: "completed" });
  });

  it("is queued until its time has come", async () => {
    const { post, clock, fake } = await startHeld();
    const response = await post("/v1/chat/completions", { ...hello, wait: false, outlast: { delay: "5m" } });
    expect((await asyncOf(response)).status).toBe("queued");
    expect(response.headers.get("retry-after")).toBe("60");
    expect(response.headers.get("outlast-attempts")).toBe("0");
    expect(response.headers.get("outlast-upstream")).toBeNull();
    clock.advance(299_999);
    expect(fake.seen).toHaveLength(0);
    clock.advance(1);
    await fake.calls(1);
  });

  it("is on disk when the reply comes: it survives a stop before its first attempt", async () => {
    const clock = new WatchedClock();
    const first = await start({ clock });
    const delayed = { ...hello, wait: false, outlast: { delay: 60 } };
    const { id } = await asyncOf(await first.post("/v1/chat/completions", delayed));
    await first.stop();
    await start({ dir: first.dir, upstreams: first.fakes, clock });
    clock.advance(60_000);
    const record = await outlast.fetch(`/v1/requests/${id}?wait=30`);
    expect(await record.json()).toMatchObject({ id, status: "completed" });
  });
});

describe("the default of the configuration", () => {
  it("wait = false: a plain call gets the async object", async () => {
    const { post } = await startHeld({ env: { OUTLAST_DEFAULTS_WAIT: "false" } });
    expect((await asyncOf(await post("/v1/chat/completions", hello))).status).toBe("processing");
  });

  it.each([
    ["true", waitMs],
    ["20", 20_000],
  ])("wait = %s: a plain call waits, then gets the async object", async (wait, ms) => {
    const { post, clock, fake } = await startHeld({ env: { OUTLAST_DEFAULTS_WAIT: wait } });
    const calling = post("/v1/chat/completions", hello);
    await fake.calls(1);
    clock.advance(ms);
    await asyncOf(await calling);
  });

  it("wait_timeout is what wait: true means", async () => {
    const { post, clock, fake } = await startHeld({ env: { OUTLAST_DEFAULTS_WAIT_TIMEOUT: "3s" } });
    const calling = post("/v1/chat/completions", { ...hello, wait: true });
    await fake.calls(1);
    clock.advance(3000);
    await asyncOf(await calling);
  });

  it("is overruled by what a call asks for", async () => {
    const { post, held } = await startHeld({ env: { OUTLAST_DEFAULTS_WAIT: "false" } });
    held.release();
    expect((await post("/v1/chat/completions", { ...hello, wait: true })).status).toBe(200);
    expect((await post("/v1/chat/completions", hello, { prefer: "wait=9" })).status).toBe(200);
  });
});

describe("what a call may say beside waiting", () => {
  it("is the same in the header Outlast-Options as in the body, and the body goes first", async () => {
    const { post, fetch } = await start({ env: quick });
    const options = { tags: ["header"], max_attempts: 3, priority: "batch" };
    const response = await post(
      "/v1/chat/completions",
      { ...hello, outlast: { tags: ["body", "two"] } },
      { "outlast-options": JSON.stringify(options) },
    );
    const record = await fetch(`/v1/requests/${response.headers.get("outlast-request-id")}`);
    expect(await record.json()).toMatchObject({ tags: ["body", "two"] });
  });

  it("max_attempts limits the attempts, from either place", async () => {
    const { post, fake } = await start({ env: quick });
    fake.otherwise(fail(500));
    await post("/v1/chat/completions", { ...hello, outlast: { max_attempts: 2 } });
    expect(fake.seen).toHaveLength(2);
    await post("/v1/chat/completions", hello, { "outlast-options": '{"max_attempts":1}' });
    expect(fake.seen).toHaveLength(3);
  });

  it("deadline ends the request, run_at and delay say from when", async () => {
    const { post, fetch, clock } = await startHeld();
    const runAt = new Date(clock.now() + 10_000).toISOString();
    for (const when of [{ run_at: runAt }, { delay: "10s" }, { run_at: (clock.now() + 10_000) / 1000 }]) {
      const response = await post("/v1/chat/completions", {
        ...hello,
        wait: false,
        outlast: { ...when, deadline: "5s" },
      });
      const record = await (await fetch(`/v1/requests/${(await asyncOf(response)).id}`)).json();
      expect(record).toMatchObject({ next_attempt_at: runAt, waiting_for: "scheduled" });
      expect(record).toMatchObject({ deadline_at: new Date(clock.now() + 15_000).toISOString() });
    }
  });

  it("run_at in the past means now", async () => {
    const { post, fake } = await start();
    const response = await post("/v1/chat/completions", {
      ...hello,
      outlast: { run_at: "2020-01-01T00:00:00+02:00" },
    });
    expect(response.status).toBe(200);
    expect(fake.seen).toHaveLength(1);
  });

  it("upstream names who serves", async () => {
    const { post, fakes } = await start({ upstreams: ["one", "two"] });
    const response = await post("/v1/chat/completions", { ...hello, outlast: { upstream: "two" } });
    expect(response.headers.get("outlast-upstream")).toBe("two");
    expect(fakes.two?.seen).toHaveLength(1);
  });
});

describe("a caller who hangs up", () => {
  const body = (more: object = {}) => JSON.stringify({ ...hello, ...more });
  const json = { "Content-Type": "application/json" };

  it("leaves the work going on, which is recorded", async () => {
    const { url, fake, held, ear, fetch } = await startHeld();
    const socket = await openSocket(url);
    socket.write(rawCall("POST /v1/chat/completions", json, body()));
    await fake.calls(1);
    socket.destroy();
    const { id } = await ear.event("accepted");
    held.release();
    expect((await ear.event("ended")).state).toBe("completed");
    expect(await (await fetch(`/v1/requests/${id}`)).json()).toMatchObject({ status: "completed" });
  });

  const ways: [string, object, Record<string, string>, Record<string, string>][] = [
    ["in the body", { outlast: { on_disconnect: "cancel" } }, {}, {}],
    ["in the header", {}, { "Outlast-Options": '{"on_disconnect":"cancel"}' }, {}],
    ["in the configuration", {}, {}, { OUTLAST_DEFAULTS_ON_DISCONNECT: "cancel" }],
    ["and waits", { wait: true, outlast: { on_disconnect: "cancel" } }, {}, {}],
  ];

  it.each(ways)("takes the work along who asked for that %s", async (_name, more, headers, env) => {
    const { url, fake, ear, fetch } = await start({ env });
    fake.script(hang());
    const socket = await openSocket(url);
    socket.write(rawCall("POST /v1/chat/completions", { ...json, ...headers }, body(more)));
    await fake.calls(1);
    socket.destroy();
    const { id, state } = await ear.event("ended");
    expect(state).toBe("cancelled");
    await fake.idle();
    const record = await (await fetch(`/v1/requests/${id}?include=attempts`)).json();
    expect(record).toMatchObject({ status: "cancelled", attempt_list: [{ reason: "cancelled" }] });
  });

  it("takes the work along also with an AbortController of the SDK", async () => {
    const { client, fake, ear } = await start({ env: { OUTLAST_DEFAULTS_ON_DISCONNECT: "cancel" } });
    fake.script(hang());
    const stop = new AbortController();
    const calling = client()
      .chat.completions.create(hello, { signal: stop.signal })
      .catch((caught) => caught);
    await fake.calls(1);
    stop.abort();
    expect(await calling).toBeInstanceOf(OpenAI.APIUserAbortError);
    expect((await ear.event("ended")).state).toBe("cancelled");
    await fake.idle();
  });

  it("before the request is on disk takes it along just the same", async () => {
    const { url, fake, ear } = await start({ env: { OUTLAST_DEFAULTS_ON_DISCONNECT: "cancel" } });
    fake.otherwise(hang());
    for (let i = 0; i < 20; i++) {
      const socket = await openSocket(url);
      await new Promise<void>((resolve) =>
        socket.write(rawCall("POST /v1/chat/completions", json, body()), () => resolve()),
      );
      if (i % 2 === 0) socket.destroy();
      else socket.end();
      const { id } = await ear.event("accepted", (told) => ear.all("accepted").indexOf(told) === i);
      expect((await ear.event("ended", (told) => told.id === id)).state).toBe("cancelled");
    }
    await fake.idle();
  });

  it("takes a pipelined call along as well", async () => {
    const { url, fake, ear } = await start({ env: { OUTLAST_DEFAULTS_ON_DISCONNECT: "cancel" } });
    fake.otherwise(hang());
    const socket = await openSocket(url);
    const call = rawCall("POST /v1/chat/completions", { ...json, Connection: "keep-alive" }, body());
    socket.write(Buffer.concat([call, call]));
    await fake.calls(2);
    socket.destroy();
    for (const { id } of ear.all("accepted")) {
      expect((await ear.event("ended", (told) => told.id === id)).state).toBe("cancelled");
    }
    await fake.idle();
  });

  it("after the answer changes nothing, also where the connection lives on", async () => {
    const { url, fake, ear, fetch } = await start({ env: { OUTLAST_DEFAULTS_ON_DISCONNECT: "cancel" } });
    const held = gate();
    fake.script(hang(), held.step);
    const socket = await openSocket(url);
    const said: Buffer[] = [];
    const replied = new Promise<void>((resolve) => {
      socket.on("data", (piece) => {
        said.push(piece);
        resolve();
      });
    });
    socket.write(
      rawCall("POST /v1/chat/completions", { ...json, Connection: "keep-alive" }, body({ wait: false })),
    );
    await replied;
    expect(parseReply(Buffer.concat(said).toString()).status).toBe(202);
    socket.write(rawCall("POST /v1/chat/completions", json, body()));
    await fake.calls(2);
    socket.destroy();
    const [first, second] = ear.all("accepted");
    expect(await ear.event("ended")).toMatchObject({ id: second!.id, state: "cancelled" });
    expect(await (await fetch(`/v1/requests/${first!.id}`)).json()).toMatchObject({ status: "processing" });
  });
});
