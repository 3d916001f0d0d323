/** What becomes of keyless calls whose callers go, and of those who come back (DESIGN §4.2). */

import type OpenAI from "openai";
import { describe, expect, it } from "vitest";
import { answer, fail, gate, hang, type Step } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick } from "../support/outlast.ts";
import { refusalOf, serveTest, WatchedClock } from "./wire.ts";

const path = "/v1/chat/completions";
const minuteMs = 60_000;
const asking = (content: string) => ({ ...hello, messages: [{ role: "user" as const, content }] });

interface Way {
  body?: unknown;
  headers?: Record<string, string>;
  path?: string;
}

function call(outlast: Outlast, way: Way = {}, signal?: AbortSignal): Promise<Response> {
  const { body = hello, headers = {}, path: where = path } = way;
  return outlast.fetch(where, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
    signal,
  });
}

/** The ids that the upstream gave its answers. */
const answerIds = (responses: Response[]): Promise<string[]> =>
  Promise.all(responses.map(async (response) => ((await response.json()) as { id: string }).id));

const idOf = (response: Response) => response.headers.get("outlast-request-id");
const retry = (count: string) => ({ headers: { "x-stainless-retry-count": count } });

/** Resolves when a request has become an orphan for the `times`-th time. */
async function orphaned({ ear }: Outlast, id: string, times = 1): Promise<void> {
  const those = () => ear.all("orphaned").filter((told) => told.id === id);
  await ear.event("orphaned", (told) => told.id === id && those().indexOf(told) === times - 1);
}

/** A caller whose call is under way upstream, and who can go. */
async function caller(outlast: Outlast, way: Way = {}) {
  const { fake, ear } = outlast;
  const controller = new AbortController();
  const calls = fake.seen.length;
  const calling = call(outlast, way, controller.signal).catch(() => undefined);
  await fake.calls(calls + 1);
  const { id } = ear.all("accepted").at(-1)!;
  return {
    id,
    calling,
    /** Goes; nobody has seen it yet. */
    async go() {
      controller.abort();
      await calling;
    },
  };
}

/** An orphan whose answer is still to come. Its callers have gone without a word. */
async function anOrphan(outlast: Outlast, way: Way = {}): Promise<string> {
  const { id, go } = await caller(outlast, way);
  await go();
  await orphaned(outlast, id);
  return id;
}

/** Whoever went before has been seen to go when this has. */
const allGone = (outlast: Outlast) => anOrphan(outlast, { body: asking(`${Math.random()}`) });

async function adopts(outlast: Outlast, id: string, way: Way = {}): Promise<void> {
  const response = await call(outlast, way);
  expect(response.status).toBe(200);
  expect(idOf(response)).toBe(id);
}

async function isNew(outlast: Outlast, known: string, way: Way = {}): Promise<void> {
  const response = await call(outlast, way);
  expect(response.status).toBe(200);
  expect(idOf(response)).not.toBe(known);
}

/** A server whose clock stands still, and whose upstream answers the first call when it is told to. */
async function startHeld(options: OutlastOptions = {}) {
  const clock = new WatchedClock();
  const held = gate();
  const outlast = await serveTest({ clock, ...options });
  outlast.fake.script(held.step);
  return { outlast, clock, held };
}

describe("the retries of a stock SDK", () => {
  const patient = { maxRetries: 2, timeout: 60_000 };

  it("whose time-out is shorter than the answer cost one call of the upstream", async () => {
    const outlast = await serveTest();
    const held = gate();
    outlast.fake.script(held.step);
    const calling = outlast.client({ maxRetries: 2, timeout: 250 }).chat.completions.create(hello);
    calling.catch(() => {});
    const { id } = await outlast.ear.event("accepted");
    await outlast.ear.event("adopted", () => outlast.ear.all("adopted").length === 2);
    held.release(answer({ text: "at last" }));
    expect((await calling).choices[0]?.message.content).toBe("at last");
    expect(outlast.fake.seen).toHaveLength(1);
    expect(outlast.ear.all("adopted").map((told) => told.id)).toEqual([id, id]);
    expect(outlast.ear.all("accepted")).toHaveLength(1);
  });

  it("find what was still running at the hold timeout", async () => {
    const outlast = await serveTest({ env: { OUTLAST_HOLD_TIMEOUT: "150ms" } });
    const held = gate();
    outlast.fake.script(held.step);
    const calling = outlast.client(patient).chat.completions.create(hello);
    calling.catch(() => {});
    await outlast.ear.event("adopted", () => outlast.ear.all("adopted").length === 2);
    held.release(answer({ text: "at last" }));
    expect((await calling).choices[0]?.message.content).toBe("at last");
    expect(outlast.fake.seen).toHaveLength(1);
    expect(outlast.ear.all("orphaned")).toHaveLength(2);
  });

  it("over a stop and a start show the user nothing but time", async () => {
    const before = await serveTest({ env: { OUTLAST_DRAIN_TIMEOUT: "0" } });
    before.fake.script(hang());
    const calling = before.client(patient).chat.completions.create(hello);
    calling.catch(() => {});
    await before.fake.calls(1);
    const { id } = await before.ear.event("accepted");
    await before.stop();
    const again = {
      dir: before.dir,
      upstreams: before.fakes,
      env: { OUTLAST_PORT: new URL(before.url).port },
    };
    const after = await serveTest(again);
    expect((await calling).choices[0]?.message.content).toBe("ok");
    expect(after.ear.all("adopted")).toEqual([{ event: "adopted", id }]);
    expect(after.ear.all("accepted")).toEqual([]);
    // The call that the stop cut off, and the one that took its place.
    expect(after.fake.seen).toHaveLength(2);
  });
});

describe("an orphan", () => {
  it("is adopted by the next equal call while it runs, and its answer is the only one", async () => {
    const { outlast, held } = await startHeld();
    const id = await anOrphan(outlast);
    const adopting = call(outlast);
    await outlast.ear.event("adopted", (told) => told.id === id);
    held.release();
    const response = await adopting;
    expect(idOf(response)).toBe(id);
    expect(response.headers.get("outlast-attempts")).toBe("1");
    expect(response.headers.get("idempotent-replayed")).toBeNull();
    expect(outlast.fake.seen).toHaveLength(1);
  });

  it("is adopted after it has completed", async () => {
    const { outlast, held } = await startHeld();
    const id = await anOrphan(outlast);
    held.release();
    await outlast.ear.event("ended");
    await adopts(outlast, id);
    expect(outlast.fake.seen).toHaveLength(1);
  });

  it("is adopted while it waits for its next attempt", async () => {
    const { outlast, held, clock } = await startHeld({ luck: 0.5 });
    const id = await anOrphan(outlast);
    held.release(fail(500));
    await outlast.ear.event("attempt_ended");
    const adopting = call(outlast);
    await outlast.ear.event("adopted", (told) => told.id === id);
    clock.advance(minuteMs);
    expect(idOf(await adopting)).toBe(id);
    expect(outlast.fake.seen).toHaveLength(2);
  });

  it("has one adopter at a time: the next equal call is a request of its own", async () => {
    const { outlast, held } = await startHeld();
    const id = await anOrphan(outlast);
    const adopting = call(outlast);
    await outlast.ear.event("adopted", (told) => told.id === id);
    await isNew(outlast, id);
    held.release();
    expect(idOf(await adopting)).toBe(id);
    expect(outlast.fake.seen).toHaveLength(2);
    await isNew(outlast, id);
  });

  it("is given to one of many who come at once", async () => {
    const { outlast, held } = await startHeld();
    const id = await anOrphan(outlast);
    held.release();
    await outlast.ear.event("ended");
    const ids = (await Promise.all(Array.from({ length: 20 }, () => call(outlast)))).map(idOf);
    expect(new Set(ids).size).toBe(20);
    expect(ids.filter((one) => one === id)).toHaveLength(1);
    expect(outlast.fake.seen).toHaveLength(20);
  });

  it("that loses its adopter is an orphan again, and again", async () => {
    const { outlast, held } = await startHeld();
    const id = await anOrphan(outlast);
    for (const times of [1, 2, 3]) {
      const controller = new AbortController();
      const adopting = call(outlast, {}, controller.signal).catch(() => undefined);
      await outlast.ear.event("adopted", (told) => outlast.ear.all("adopted").indexOf(told) === times - 1);
      controller.abort();
      await adopting;
      await orphaned(outlast, id, times + 1);
    }
    held.release();
    await adopts(outlast, id);
    expect(outlast.fake.seen).toHaveLength(1);
  });

  it("that is the oldest is adopted first", async () => {
    const { outlast, clock } = await startHeld();
    outlast.fake.otherwise(hang());
    const [first, second, third] = [await caller(outlast), await caller(outlast), await caller(outlast)];
    for (const one of [second, third, first]) {
      clock.advance(1);
      await one.go();
      await orphaned(outlast, one.id);
    }
    const order: string[] = [];
    for (let i = 0; i < 3; i++) {
      void call(outlast).catch(() => {});
      const told = await outlast.ear.event("adopted", (one) => outlast.ear.all("adopted").indexOf(one) === i);
      order.push(told.id);
    }
    expect(order).toEqual([second.id, third.id, first.id]);
  });

  it("is left alone once it has failed, and so is one that was cancelled", async () => {
    const { outlast, held } = await startHeld();
    const failed = await anOrphan(outlast);
    held.release(fail(400));
    expect(await outlast.ear.event("ended")).toMatchObject({ id: failed, state: "failed" });
    await isNew(outlast, failed);

    outlast.fake.script(hang());
    const cancelled = await anOrphan(outlast);
    await outlast.fetch(`/v1/requests/${cancelled}/cancel`, { method: "POST" });
    await isNew(outlast, cancelled);
  });

  it("is adopted until the adopt window is over, counted from when it became one", async () => {
    const { outlast, clock, held } = await startHeld({ env: { OUTLAST_ADOPT_WINDOW: "10m" } });
    const { id, go } = await caller(outlast);
    clock.advance(5 * minuteMs);
    await go();
    await orphaned(outlast, id);
    held.release();
    await outlast.ear.event("ended");
    clock.advance(10 * minuteMs - 1);
    await adopts(outlast, id);

    const other = { body: asking("something else") };
    const late = gate();
    outlast.fake.script(late.step);
    const forgotten = await anOrphan(outlast, other);
    late.release();
    await outlast.ear.event("ended", (told) => told.id === forgotten);
    clock.advance(10 * minuteMs);
    await isNew(outlast, forgotten, other);
  });

  it("is never made where the adopt window is 0", async () => {
    const { outlast } = await startHeld({ env: { OUTLAST_ADOPT_WINDOW: "0" } });
    const id = await anOrphan(outlast);
    await isNew(outlast, id);
    expect(outlast.fake.seen).toHaveLength(2);
  });
});

describe("equal calls whose callers stay", () => {
  it("are requests of their own, each with an answer of its own", async () => {
    const outlast = await serveTest();
    const held = gate();
    outlast.fake.otherwise(held.step);
    const calls = Array.from({ length: 5 }, () => call(outlast));
    await outlast.fake.calls(5);
    held.release();
    const responses = await Promise.all(calls);
    expect(new Set(responses.map(idOf)).size).toBe(5);
    expect(new Set(await answerIds(responses)).size).toBe(5);
    expect(outlast.ear.all("adopted")).toEqual([]);
  });

  it("get an answer each when they all go away and come back, and nobody the same", async () => {
    const outlast = await serveTest();
    const held = gate();
    outlast.fake.otherwise(held.step);
    const callers = [];
    for (let i = 0; i < 5; i++) callers.push(await caller(outlast));
    await Promise.all(callers.map(({ go }) => go()));
    await Promise.all(callers.map(({ id }) => orphaned(outlast, id)));
    const back = Array.from({ length: 5 }, () => call(outlast));
    await outlast.ear.event("adopted", () => outlast.ear.all("adopted").length === 5);
    held.release();
    const responses = await Promise.all(back);
    expect(new Set(responses.map(idOf))).toEqual(new Set(callers.map(({ id }) => id)));
    expect(new Set(await answerIds(responses)).size).toBe(5);
    expect(outlast.fake.seen).toHaveLength(5);
  });

  it("are not shared once they were answered", async () => {
    const outlast = await serveTest();
    const first = await call(outlast);
    const second = await call(outlast, retry("1"));
    expect(idOf(second)).not.toBe(idOf(first));
    expect(outlast.fake.seen).toHaveLength(2);
  });
});

describe("nothing is adopted across", () => {
  const keys = [
    "[[api_keys]]",
    'key = "caller-key-a"',
    'project = "one"',
    "[[api_keys]]",
    'key = "caller-key-b"',
  ]
    .concat('project = "one"', "[[api_keys]]", 'key = "caller-key-c"', 'project = "two"')
    .join("\n");
  const bearer = (key: string) => ({ authorization: `Bearer ${key}` });
  const base = { headers: { authorization: "Bearer mine" } };
  const also = (headers: Record<string, string>) => ({ headers: { ...base.headers, ...headers } });

  const ways: [string, Way, Way][] = [
    ["another Authorization", base, { headers: { authorization: "Bearer yours" } }],
    ["no Authorization", base, {}],
    ["another api-key", { headers: { "api-key": "mine" } }, { headers: { "api-key": "yours" } }],
    ["another x-api-key", { headers: { "x-api-key": "mine" } }, { headers: { "x-api-key": "yours" } }],
    ["another query", base, { ...base, path: `${path}?api-version=2` }],
    ["another value in the query", { path: `${path}?v=1` }, { path: `${path}?v=2` }],
    ["another organization", base, also({ "openai-organization": "org" })],
    ["another beta header", also({ "openai-beta": "a" }), also({ "openai-beta": "b" })],
    ["another content type", base, also({ "content-type": "application/json; charset=utf-8" })],
    ["one byte of the body", base, { ...base, body: `${JSON.stringify(hello)} ` }],
    ["a word of the body", { body: asking("one") }, { body: asking("two") }],
    ["our field in the body", base, { ...base, body: { ...hello, outlast: { tags: ["a"] } } }],
    ["our options in the header", base, also({ "outlast-options": '{"tags":["a"]}' })],
    [
      "other options in the header",
      also({ "outlast-options": '{"max_attempts":2}' }),
      also({ "outlast-options": '{"max_attempts":3}' }),
    ],
  ];

  it.each(ways)("%s", async (_name, mine, yours) => {
    const { outlast, held } = await startHeld();
    const id = await anOrphan(outlast, mine);
    held.release();
    await isNew(outlast, id, yours);
    await adopts(outlast, id, mine);
    expect(outlast.fake.seen).toHaveLength(2);
  });

  it.each([
    ["keys of one project", bearer("caller-key-a"), bearer("caller-key-b")],
    ["projects", bearer("caller-key-a"), bearer("caller-key-c")],
    ["keys that are shown as api-key", { "api-key": "caller-key-a" }, { "api-key": "caller-key-b" }],
    ["keys that are shown as x-api-key", { "x-api-key": "caller-key-a" }, { "x-api-key": "caller-key-b" }],
  ])("%s", async (_name, mine, yours) => {
    const { outlast, held } = await startHeld({ toml: keys });
    const id = await anOrphan(outlast, { headers: mine });
    held.release();
    await isNew(outlast, id, { headers: yours });
    await adopts(outlast, id, { headers: mine });
  });

  it.each<[string, Record<string, string>]>([
    ["user-agent", { "user-agent": "another" }],
    ["accept", { accept: "application/json", "accept-language": "de", "accept-encoding": "br" }],
    ["what an SDK says of itself", { "x-stainless-retry-count": "2", "x-stainless-timeout": "9" }],
    ["traces", { traceparent: "00-1-2-01", tracestate: "a=1", baggage: "b=2", "x-request-id": "3" }],
    [
      "what a proxy says of a caller",
      { "x-forwarded-for": "1.2.3.4", forwarded: "for=1.2.3.4", via: "1.1 x" },
    ],
  ])("but a retry may differ in %s", async (_name, headers) => {
    const { outlast, held } = await startHeld();
    const id = await anOrphan(outlast);
    held.release();
    await adopts(outlast, id, { headers });
  });
});

describe("no orphan is made by a call", () => {
  const ways: [string, Way, OutlastOptions["env"]][] = [
    ["with an idempotency key", { headers: { "idempotency-key": "k" } }, {}],
    ["with an idempotency key in the body", { body: { ...hello, idempotency_key: "k" } }, {}],
    ["that waits", { body: { ...hello, wait: true } }, {}],
    ["that prefers to wait", { headers: { prefer: "wait=20" } }, {}],
    ["that waits by the configuration", {}, { OUTLAST_DEFAULTS_WAIT: "true" }],
    ["that takes its work along", { body: { ...hello, outlast: { on_disconnect: "cancel" } } }, {}],
    [
      "that takes its work along by a header",
      { headers: { "outlast-options": '{"on_disconnect":"cancel"}' } },
      {},
    ],
    ["that takes its work along by the configuration", {}, { OUTLAST_DEFAULTS_ON_DISCONNECT: "cancel" }],
  ];

  it.each(ways)("%s, when its caller goes", async (_name, way, env) => {
    const { outlast } = await startHeld({ env });
    const { id, go } = await caller(outlast, way);
    await go();
    outlast.fake.script(hang());
    if (env?.OUTLAST_DEFAULTS_ON_DISCONNECT === undefined && env?.OUTLAST_DEFAULTS_WAIT === undefined) {
      await allGone(outlast);
    } else {
      // Here no call makes one, so that none can be waited for.
      const other = await caller(outlast, { body: asking("another") });
      await other.go();
    }
    expect(outlast.ear.all("orphaned").map((told) => told.id)).not.toContain(id);
    const keyless = { ...way, headers: { ...way.headers, "idempotency-key": "another" } };
    const { body = hello } = way;
    const hasKey = typeof body === "object" && "idempotency_key" in (body as object);
    await isNew(
      outlast,
      id,
      hasKey ? { ...way, body: { ...(body as object), idempotency_key: "l" } } : keyless,
    );
    expect(outlast.ear.all("adopted")).toEqual([]);
  });

  it("that is told by a 202 that its work goes on", async () => {
    const { outlast, clock } = await startHeld();
    const waiting = call(outlast, { body: { ...hello, wait: 5 } });
    await outlast.fake.calls(1);
    await clock.armed(5000);
    clock.advance(5000);
    expect((await waiting).status).toBe(202);
    expect((await call(outlast, { body: { ...hello, wait: false } })).status).toBe(202);
    await outlast.fake.calls(2);
    outlast.fake.script(hang());
    await allGone(outlast);
    expect(outlast.ear.all("orphaned")).toHaveLength(1);
    expect((await call(outlast, { body: { ...hello, wait: false } })).status).toBe(202);
    expect(outlast.ear.all("adopted")).toEqual([]);
  });

  it("and none is adopted by a call with a key, or by one that does not hold", async () => {
    const { outlast, held } = await startHeld();
    const id = await anOrphan(outlast);
    held.release();
    await isNew(outlast, id, { headers: { "idempotency-key": "k" } });
    const response = await call(outlast, { headers: { prefer: "respond-async" } });
    expect(response.status).toBe(202);
    expect(idOf(response)).not.toBe(id);
    await adopts(outlast, id);
  });
});

describe("what was still running at the hold timeout", () => {
  it("is an orphan although its caller is there, because it was told to come back", async () => {
    const { outlast, clock, held } = await startHeld();
    const calling = call(outlast);
    await outlast.fake.calls(1);
    clock.advance(280_000);
    const refused = await calling;
    const id = idOf(refused)!;
    expect((await refusalOf(refused)).code).toBe("still_running");
    await orphaned(outlast, id);
    held.release();
    await outlast.ear.event("ended");
    await adopts(outlast, id);
    expect(outlast.fake.seen).toHaveLength(1);
  });
});

describe("over a stop and a start", () => {
  async function again(before: Outlast, options: OutlastOptions = {}): Promise<Outlast> {
    await before.stop();
    return serveTest({ dir: before.dir, upstreams: before.fakes, ...options });
  }

  it("whoever was sent away with 503 finds its request", async () => {
    const { outlast, clock } = await startHeld({ env: { OUTLAST_DRAIN_TIMEOUT: "0" } });
    const calling = call(outlast);
    await outlast.fake.calls(1);
    const stopping = outlast.stop();
    await clock.armed(0);
    clock.advance(0);
    const refused = await calling;
    expect(await refusalOf(refused)).toMatchObject({ status: 503, code: "shutting_down" });
    await stopping;
    const after = await again(outlast, { clock });
    await adopts(after, idOf(refused)!);
    expect(after.fake.seen).toHaveLength(2);
  });

  it("an orphan stays one, as old as it was", async () => {
    const { outlast, clock, held } = await startHeld();
    const id = await anOrphan(outlast);
    held.release();
    await outlast.ear.event("ended");
    clock.advance(10 * minuteMs - 1);
    const after = await again(outlast, { clock });
    await adopts(after, id);

    const late = gate();
    outlast.fake.script(late.step);
    const old = await anOrphan(after, { body: asking("old") });
    late.release();
    await after.ear.event("ended");
    clock.advance(10 * minuteMs);
    const last = await again(after, { clock });
    await isNew(last, old, { body: asking("old") });
  });

  it("what was answered a moment before is answered", async () => {
    const outlast = await serveTest();
    const id = idOf(await call(outlast))!;
    const after = await again(outlast);
    await isNew(after, id, retry("1"));
    expect(after.fake.seen).toHaveLength(2);
  });
});

describe("a failure in vain", () => {
  const once = { ...hello, outlast: { max_attempts: 1 } };
  const echo = (response: Response) => response.headers.get("outlast-echo");
  const fails: Step = fail(500, { message: "No luck." }, { "x-custom": "kept" });

  /** Headers that speak of the request, not of the connection. */
  const said = ({ headers }: Response) =>
    [...headers].filter(([name]) => !["date", "connection", "keep-alive", "outlast-echo"].includes(name));

  it("is echoed to the same call: the same status, body and headers, without a call", async () => {
    const outlast = await serveTest({ env: quick });
    outlast.fake.otherwise(fails);
    const first = await call(outlast);
    expect(echo(first)).toBeNull();
    expect(outlast.fake.seen).toHaveLength(5);
    for (const way of [{}, retry("1"), { headers: { "user-agent": "another" } }]) {
      const second = await call(outlast, way);
      expect(echo(second)).toBe("true");
      expect(second.status).toBe(500);
      expect(said(second)).toEqual(said(first));
      expect(second.headers.get("x-should-retry")).toBe("false");
      expect(await second.json()).toMatchObject({ error: { message: "No luck." } });
    }
    expect(outlast.fake.seen).toHaveLength(5);
    expect(outlast.ear.all("accepted")).toHaveLength(1);
  });

  it("is echoed also where no upstream ever answered", async () => {
    const clock = new WatchedClock();
    const outlast = await serveTest({ clock });
    outlast.fake.script(hang());
    const body = { ...hello, outlast: { deadline: "2s" } };
    const calling = call(outlast, { body });
    await outlast.fake.calls(1);
    clock.advance(2000);
    expect(await refusalOf(await calling)).toMatchObject({ status: 504, code: "deadline_exceeded" });
    const second = await call(outlast, { body });
    expect(echo(second)).toBe("true");
    expect(await refusalOf(second)).toMatchObject({ status: 504, code: "deadline_exceeded" });
    expect(outlast.fake.seen).toHaveLength(1);
  });

  it("is echoed to a client that retries although it is told not to", async () => {
    const outlast = await serveTest({ env: quick });
    outlast.fake.otherwise(fails);
    const client = outlast.client();
    const asked = () => client.chat.completions.create(hello).catch((error: unknown) => error);
    const errors = [await asked(), await asked(), await asked()] as InstanceType<typeof OpenAI.APIError>[];
    expect(errors.map(({ status }) => status)).toEqual([500, 500, 500]);
    expect(errors.map(({ headers }) => headers?.get("outlast-echo"))).toEqual([null, "true", "true"]);
    expect(outlast.fake.seen).toHaveLength(5);
  });

  it("is a new call when the window is over, and an echo does not lengthen it", async () => {
    const clock = new WatchedClock();
    const outlast = await serveTest({ clock, env: { OUTLAST_FAILURE_ECHO: "10s" } });
    outlast.fake.otherwise(fails);
    await call(outlast, { body: once });
    clock.advance(9999);
    expect(echo(await call(outlast, { body: once }))).toBe("true");
    clock.advance(1);
    expect(echo(await call(outlast, { body: once }))).toBeNull();
    expect(outlast.fake.seen).toHaveLength(2);
  });

  it("is not echoed where the window is 0, whatever the clock says", async () => {
    const clock = new WatchedClock();
    const outlast = await serveTest({ clock, env: { OUTLAST_FAILURE_ECHO: "0" } });
    outlast.fake.otherwise(fail(500));
    for (const calls of [1, 2, 3]) {
      expect(echo(await call(outlast, { body: once }))).toBeNull();
      expect(outlast.fake.seen).toHaveLength(calls);
      // Also where the wall clock is set back meanwhile.
      clock.jump(-minuteMs);
    }
  });

  const others: [string, Way, Way][] = [
    ["credentials", { body: once, headers: { authorization: "Bearer a" } }, { body: once }],
    ["a byte", { body: once }, { body: `${JSON.stringify(once)}\n` }],
    ["options", { body: once }, { body: once, headers: { "outlast-options": '{"tags":["a"]}' } }],
    ["a key", { body: once }, { body: once, headers: { "idempotency-key": "k" } }],
    ["patience", { body: { ...once, wait: 9 } }, { body: { ...once, wait: 9 } }],
  ];

  it.each(others)("is not echoed across %s", async (_name, mine, yours) => {
    const outlast = await serveTest();
    outlast.fake.otherwise(fails);
    await call(outlast, mine);
    expect(echo(await call(outlast, yours))).toBeNull();
    expect(outlast.fake.seen).toHaveLength(2);
  });

  it("with a key starts a new round instead", async () => {
    const outlast = await serveTest();
    outlast.fake.otherwise(fails);
    const way = { body: once, headers: { "idempotency-key": "k" } };
    const first = await call(outlast, way);
    const second = await call(outlast, way);
    expect(echo(second)).toBeNull();
    expect(idOf(second)).toBe(idOf(first));
    expect(outlast.fake.seen).toHaveLength(2);
  });

  it.each([400, 401, 403, 404, 422])("is never one of status %i: that is asked again", async (status) => {
    const outlast = await serveTest();
    outlast.fake.otherwise(fail(status));
    for (const calls of [1, 2]) {
      const response = await call(outlast);
      expect(response.status).toBe(status);
      expect(echo(response)).toBeNull();
      expect(outlast.fake.seen).toHaveLength(calls);
    }
  });

  it("gives way to an orphan that is still under way", async () => {
    const { outlast, held } = await startHeld();
    const id = await anOrphan(outlast, { body: once });
    outlast.fake.script(fails);
    const stay = await startFailing(outlast);
    expect(echo(stay)).toBeNull();
    held.release();
    await outlast.ear.event("ended", (told) => told.id === id);
    expect(echo(await call(outlast, { body: once }))).toBe("true");

    async function startFailing(from: Outlast): Promise<Response> {
      // The orphan goes to a caller who stays, so the next call is a request of its own, and fails.
      const adopting = call(from, { body: once });
      await from.ear.event("adopted", (told) => told.id === id);
      const failing = await call(from, { body: once });
      held.release();
      expect(idOf(await adopting)).toBe(id);
      return failing;
    }
  });
});
