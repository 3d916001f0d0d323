import type OpenAI from "openai";
import { describe, expect, it } from "vitest";
import type { z } from "zod";
import { answer, closedPort, fail, gate, hang } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick } from "../support/outlast.ts";
import {
  errorOf,
  openSocket,
  rawCall,
  refusalOf,
  serveGroup,
  serveTest,
  strictAsync,
  strictAttempt,
  strictList,
  strictRequest,
  WatchedClock,
} from "./wire.ts";

let outlast: Outlast;

async function start(options: OutlastOptions = {}) {
  outlast = await serveTest(options);
  return outlast;
}

const group = (options?: OutlastOptions) =>
  serveGroup((one) => {
    outlast = one;
  }, options);

async function startStill(options: OutlastOptions = {}) {
  const clock = new WatchedClock();
  return { ...(await start({ clock, luck: 0.5, ...options })), clock };
}

type Record = z.infer<typeof strictRequest>;

/** Submits without waiting; the id. */
async function submit(more: object = {}, headers?: { [name: string]: string }): Promise<string> {
  const response = await outlast.post("/v1/chat/completions", { ...hello, wait: false, ...more }, headers);
  expect(response.status).toBe(202);
  return strictAsync.parse(await response.json()).id;
}

/** Submits and waits for the end; the id. */
async function finish(more: object = {}, headers?: { [name: string]: string }): Promise<string> {
  const response = await outlast.post("/v1/chat/completions", { ...hello, ...more }, headers);
  await response.arrayBuffer();
  return response.headers.get("outlast-request-id") ?? "";
}

async function record(id: string, query = "", headers?: { [name: string]: string }): Promise<Record> {
  const response = await outlast.fetch(`/v1/requests/${id}${query}`, { headers });
  expect(response.status).toBe(200);
  return strictRequest.parse(await response.json());
}

const cancel = (id: string) => outlast.fetch(`/v1/requests/${id}/cancel`, { method: "POST" });

const iso = (at: number) => new Date(at).toISOString();
const nothing = {
  last_error_code: null,
  result: null,
  ended_at: null,
  upstream: null,
  served_model: null,
  usage: null,
  findings: null,
  error: null,
};
const fixed = {
  object: "request",
  endpoint: "chat.completions",
  model: "gpt-test",
  cost: null,
  cached_from: null,
  degraded: null,
  replay_of: null,
  duplicate_possible: false,
  user: null,
  safety_identifier: null,
  metadata: null,
  trace_id: null,
  client_request_id: null,
  prompt_hash: null,
  resolved_at: null,
  bodies_erased_at: null,
};

describe("the record of a request that", () => {
  it("waits for its time is queued, scheduled", async () => {
    const { clock } = await startStill();
    const at = clock.now();
    const id = await submit({ outlast: { delay: "10m", tags: ["a", "b"] }, idempotency_key: "k-1" });
    expect(await record(id)).toEqual({
      ...fixed,
      ...nothing,
      id,
      status: "queued",
      attempts: 0,
      created_at: iso(at),
      updated_at: iso(at),
      started_at: null,
      next_attempt_at: iso(at + 600_000),
      deadline_at: iso(at + 600_000 + 86_400_000),
      idempotency_key: "k-1",
      waiting_for: "scheduled",
      tags: ["a", "b"],
      priority: "default",
      caused_by: null,
    });
  });

  it("waits behind a rate limit is queued, with the instant from which it may go", async () => {
    const { clock, fake, ear } = await startStill();
    fake.script(fail(429, {}, { "retry-after": "40" }));
    const first = await submit();
    await ear.event("attempt_ended");
    const second = await submit();
    const opensAt = iso(clock.now() + 40_000);
    expect(await record(first)).toMatchObject({
      ...fixed,
      ...nothing,
      status: "retrying",
      attempts: 1,
      upstream: "fake",
      last_error_code: "rate_limit_exceeded",
      waiting_for: "rate_limit",
      next_attempt_at: opensAt,
    });
    expect(await record(second)).toMatchObject({
      ...fixed,
      ...nothing,
      status: "queued",
      attempts: 0,
      waiting_for: "rate_limit",
      next_attempt_at: opensAt,
    });
    clock.advance(40_000);
    expect(await record(first, "?wait=60")).toMatchObject({ status: "completed", attempts: 2 });
    expect(await record(second, "?wait=60")).toMatchObject({ status: "completed", attempts: 1 });
  });

  it("waits for an upstream that cannot be reached is in backoff", async () => {
    const baseUrl = await closedPort();
    const fake = { baseUrl, close: async () => {} } as Outlast["fake"];
    const { clock, ear } = await startStill({ upstreams: { fake } });
    const id = await submit();
    await ear.event("attempt_ended");
    const { until } = await ear.event("gate_closed");
    expect(until).toBeGreaterThan(clock.now());
    expect(await record(id)).toMatchObject({
      status: "retrying",
      waiting_for: "backoff",
      next_attempt_at: iso(until),
    });
    expect(await record(await submit())).toMatchObject({
      status: "queued",
      waiting_for: "backoff",
      next_attempt_at: iso(until),
    });
  });

  it("waits for capacity is queued, and nobody knows until when", async () => {
    const { fake } = await startStill({ upstreamToml: "max_concurrency = 1" });
    const held = gate();
    fake.script(held.step);
    const first = await submit();
    await held.arrived;
    const second = await submit();
    expect(await record(second)).toMatchObject({
      ...nothing,
      status: "queued",
      waiting_for: "capacity",
      next_attempt_at: null,
    });
    held.release();
    expect((await record(first, "?wait=9")).status).toBe("completed");
    expect((await record(second, "?wait=9")).status).toBe("completed");
  });

  it("is being served is processing", async () => {
    const { clock, fake } = await startStill();
    fake.script(hang());
    const id = await submit();
    await fake.calls(1);
    expect(await record(id)).toMatchObject({
      ...fixed,
      ...nothing,
      status: "processing",
      attempts: 1,
      upstream: "fake",
      started_at: iso(clock.now()),
      next_attempt_at: null,
      waiting_for: null,
      idempotency_key: null,
      tags: [],
    });
  });

  it("waits for its next attempt is retrying, in backoff", async () => {
    const { clock, fake, ear } = await startStill();
    fake.script(fail(503, { code: "overloaded" }));
    const id = await submit();
    await ear.event("attempt_ended");
    expect(await record(id)).toMatchObject({
      ...fixed,
      ...nothing,
      status: "retrying",
      attempts: 1,
      upstream: "fake",
      last_error_code: "overloaded",
      waiting_for: "backoff",
      next_attempt_at: iso(clock.now() + 500),
      started_at: iso(clock.now()),
    });
  });

  it("has its answer is completed", async () => {
    const { clock, fake } = await startStill();
    const held = gate();
    fake.script(held.step);
    const id = await submit();
    await held.arrived;
    const startedAt = clock.now();
    clock.advance(1500);
    held.release(answer({ id: "chatcmpl-7", model: "gpt-test-2026", text: "Hi" }));
    expect(await record(id, "?wait=9")).toEqual({
      ...fixed,
      id,
      status: "completed",
      attempts: 1,
      created_at: iso(startedAt),
      updated_at: iso(startedAt + 1500),
      last_error_code: null,
      result: expect.objectContaining({ id: "chatcmpl-7", object: "chat.completion" }),
      started_at: iso(startedAt),
      ended_at: iso(startedAt + 1500),
      next_attempt_at: null,
      deadline_at: iso(startedAt + 86_400_000),
      idempotency_key: null,
      upstream: "fake",
      served_model: "gpt-test-2026",
      usage: { prompt_tokens: 5, completion_tokens: 1, total_tokens: 6 },
      findings: { finish_reason: "stop", problems: [] },
      error: null,
      waiting_for: null,
      tags: [],
      priority: "default",
      caused_by: null,
    });
  });

  it("was refused is failed, with the upstream's error", async () => {
    const { fake } = await startStill();
    fake.script(fail(400, { code: "context_length_exceeded", message: "Too long.", param: "messages" }));
    expect(await record(await finish())).toMatchObject({
      ...fixed,
      status: "failed",
      attempts: 1,
      last_error_code: "context_length_exceeded",
      result: null,
      upstream: "fake",
      error: {
        code: "context_length_exceeded",
        message: "Too long.",
        param: "messages",
        type: "invalid_request_error",
        status: 400,
      },
      next_attempt_at: null,
      waiting_for: null,
    });
  });

  it("was cancelled is cancelled", async () => {
    const { clock } = await startStill();
    const id = await submit({ outlast: { delay: 60 } });
    clock.advance(1000);
    await cancel(id);
    expect(await record(id)).toMatchObject({
      ...fixed,
      status: "cancelled",
      attempts: 0,
      last_error_code: "request_cancelled",
      started_at: null,
      ended_at: iso(clock.now()),
      next_attempt_at: null,
      waiting_for: null,
      error: null,
      result: null,
    });
  });

  it("lost its connection and was answered later says that it may have been run twice", async () => {
    const { fake } = await start({ env: quick });
    fake.script((_call, res) => void res.req.socket.resetAndDestroy());
    expect(await record(await finish())).toMatchObject({
      status: "completed",
      attempts: 2,
      duplicate_possible: true,
      last_error_code: "upstream_connection_lost",
    });
  });
});

describe("?wait=", () => {
  it("ends when the request ends", async () => {
    const { fake, clock } = await startStill();
    const held = gate();
    fake.script(held.step);
    const id = await submit();
    const polling = record(id, "?wait=33");
    await clock.armed(33_000);
    held.release();
    expect((await polling).status).toBe("completed");
  });

  it("ends when its time is over, with the record as it is then", async () => {
    const { fake, clock } = await startStill();
    fake.script(hang());
    const id = await submit();
    const polling = record(id, "?wait=0.5");
    await clock.armed(500);
    clock.advance(500);
    expect((await polling).status).toBe("processing");
  });

  it("is at most the hold timeout", async () => {
    const { fake, clock } = await startStill({ env: { OUTLAST_HOLD_TIMEOUT: "7s" } });
    fake.script(hang());
    const polling = record(await submit(), "?wait=3600");
    await clock.armed(7000);
    clock.advance(7000);
    expect((await polling).status).toBe("processing");
  });

  it("goes through retries and cancellation", async () => {
    const { fake, clock, ear } = await startStill();
    fake.script(fail(500));
    const id = await submit();
    await ear.event("attempt_ended");
    const polling = record(id, "?wait=33");
    await clock.armed(33_000);
    clock.advance(500);
    expect((await polling).attempts).toBe(2);
    const other = await submit({ outlast: { delay: 60 } });
    const waiting = record(other, "?wait=44");
    await clock.armed(44_000);
    await cancel(other);
    expect((await waiting).status).toBe("cancelled");
  });

  it("of many ends for all of them, also where some hang up", async () => {
    const { url, fake, clock } = await startStill();
    const held = gate();
    fake.script(held.step);
    const id = await submit();
    const socket = await openSocket(url);
    socket.write(rawCall(`GET /v1/requests/${id}?wait=34`));
    await clock.armed(34_000);
    socket.destroy();
    const polling = Array.from({ length: 20 }, () => record(id, "?wait=33"));
    await clock.armed(33_000, 20);
    held.release();
    expect(new Set((await Promise.all(polling)).map(({ status }) => status))).toEqual(new Set(["completed"]));
  });
});

describe("a ?wait= that is none", () => {
  group();

  it.each(["x", "-1", "true", "1e9", "", " 5", "9999999"])("says what it may be: %s", async (wait) => {
    const { fetch } = outlast;
    const id = await finish();
    for (const path of [`/v1/requests/${id}`, `/v1/chat/completions/${id}`]) {
      const response = await fetch(`${path}?wait=${encodeURIComponent(wait)}`);
      expect(await refusalOf(response)).toEqual({ status: 400, code: "invalid_parameter", param: "wait" });
    }
  });
});

describe("?include=", () => {
  const body = '{"model":"gpt-test","messages":[ ] ,"seed":9007199254740993,"x":1.0 }';

  it("body and result keep numbers beyond 2^53 as they were written", async () => {
    const { fake, post, fetch } = await start();
    fake.script(answer({ body: '{"id":"chatcmpl-big","n":9007199254740993,"f":1.0,"choices":[]}' }));
    const response = await post("/v1/chat/completions", body.replace("{", '{"wait":true,'));
    const id = response.headers.get("outlast-request-id");
    const text = await (await fetch(`/v1/requests/${id}?include=body`)).text();
    expect(strictRequest.parse(JSON.parse(text)).id).toBe(id);
    expect(text).toContain(`"body":${body}`);
    expect(text).toContain('"result":{"id":"chatcmpl-big","n":9007199254740993,"f":1.0,"choices":[]}');
    expect(JSON.parse(await (await fetch(`/v1/requests/${id}`)).text())).not.toHaveProperty("body");
  });

  it.each(["body,attempts", "attempts,body", "body&include=attempts"])("%s", async (include) => {
    const { fake } = await start({ env: quick });
    fake.script(fail(500));
    const found = await record(await finish(), `?include=${include}`);
    expect(found.body).toEqual(hello);
    expect(found.attempt_list?.map(({ verdict }) => verdict)).toEqual(["transient", "success"]);
  });

  it("body is there before the request has ended, attempts may be none", async () => {
    await startStill();
    const id = await submit({ outlast: { delay: 60 } });
    expect(await record(id, "?include=body,attempts")).toMatchObject({ body: hello, attempt_list: [] });
  });
});

describe("an ?include= that is none", () => {
  group();

  it.each(["everything", "body,", "", "Body"])("%j is refused, naming what there is", async (include) => {
    const { fetch } = outlast;
    const response = await fetch(`/v1/requests/${await finish()}?include=${include}`);
    const error = await errorOf(response);
    expect(error).toMatchObject({ code: "invalid_parameter", param: "include" });
    expect(error.message).toContain("body, attempts");
  });
});

describe("the attempts of a request", () => {
  it("are all there, with what was learnt and what followed", async () => {
    const { fake, fetch, clock, ear } = await startStill();
    fake.script(
      fail(503, { code: "overloaded", message: "Busy." }),
      fail(429, { message: "Slow down." }, { "retry-after-ms": "2500", "x-request-id": "prov-2" }),
      (_call, res) => void res.req.socket.resetAndDestroy(),
    );
    const id = await submit();
    const at = [clock.now()];
    for (const [n, pause] of [500, 2500, 1000].entries()) {
      await ear.event("attempt_ended", (told) => told.attempt === n + 1);
      clock.advance(pause);
      await fake.calls(n + 2);
      at.push(clock.now());
    }
    await record(id, "?wait=9");
    const list = strictList(strictAttempt).parse(await (await fetch(`/v1/requests/${id}/attempts`)).json());
    expect(list).toMatchObject({ first_id: "1", last_id: "4", has_more: false });
    const common = { object: "attempt", round: 1, upstream: "fake", model: "gpt-test", latency_ms: 0 };
    expect(list.data).toMatchObject([
      {
        ...common,
        number: 1,
        started_at: iso(at[0]!),
        ended_at: iso(at[0]!),
        status: 503,
        verdict: "transient",
        counted: true,
        reason: "backoff",
        retry_at: iso(at[0]! + 500),
        error_code: "overloaded",
        error_message: "Busy.",
        provider_request_id: "fake-req-1",
        usage: null,
      },
      {
        ...common,
        number: 2,
        status: 429,
        verdict: "throttled",
        counted: false,
        reason: "retry_after",
        retry_at: iso(at[1]! + 2500),
        error_message: "Slow down.",
        provider_request_id: "prov-2",
      },
      {
        ...common,
        number: 3,
        status: null,
        verdict: "ambiguous",
        counted: true,
        first_byte_ms: null,
        reason: "backoff",
        error_code: "upstream_connection_lost",
        provider_request_id: null,
      },
      {
        ...common,
        number: 4,
        status: 200,
        verdict: "success",
        counted: true,
        first_byte_ms: 0,
        reason: "answered",
        retry_at: null,
        error_code: null,
        error_message: null,
        usage: { prompt_tokens: 5, completion_tokens: 1, total_tokens: 6 },
      },
    ]);
  });

  it("include the one that is under way", async () => {
    const { fake, fetch } = await startStill();
    fake.script(hang());
    const id = await submit();
    await fake.calls(1);
    const { data } = strictList(strictAttempt).parse(
      await (await fetch(`/v1/requests/${id}/attempts`)).json(),
    );
    expect(data).toMatchObject([
      { number: 1, ended_at: null, verdict: null, latency_ms: null, reason: null, counted: false },
    ]);
  });

  it("are none where none was made", async () => {
    const { fetch } = await startStill();
    const id = await submit({ outlast: { delay: 60 } });
    const list = strictList(strictAttempt).parse(await (await fetch(`/v1/requests/${id}/attempts`)).json());
    expect(list).toMatchObject({ data: [], first_id: null, last_id: null });
  });
});

describe("the answer's own id", () => {
  it("finds the request, and of several the newest", async () => {
    const { fake, fetch } = await start();
    fake.otherwise(answer({ id: "chatcmpl-same" }));
    await finish();
    const newest = await finish();
    expect((await record("chatcmpl-same")).id).toBe(newest);
    const list = await (await fetch("/v1/requests/chatcmpl-same/attempts")).json();
    expect(list).toMatchObject({ data: [{ number: 1 }] });
    expect((await refusalOf(await cancel("chatcmpl-same"))).code).toBe("request_ended");
  });
});

describe("the list", () => {
  async function list(query: string, headers?: { [name: string]: string }) {
    const response = await outlast.fetch(`/v1/requests?${query}`, { headers });
    expect(response.status).toBe(200);
    return strictList(strictRequest).parse(await response.json());
  }
  const ids = async (query: string) => (await list(query)).data.map(({ id }) => id);

  it("is empty at first", async () => {
    await start();
    expect(await list("")).toEqual({
      object: "list",
      data: [],
      first_id: null,
      last_id: null,
      has_more: false,
    });
  });

  it("has the newest first, twenty at a time, without results", async () => {
    await start();
    const all: string[] = [];
    for (let i = 0; i < 21; i++) all.push(await finish());
    const page = await list("");
    expect(page.data.map(({ id }) => id)).toEqual(all.slice(1).reverse());
    expect(page).toMatchObject({ first_id: all[20], last_id: all[1], has_more: true });
    expect(page.data.every(({ status, result }) => status === "completed" && result === null)).toBe(true);
    expect(await list("order=asc&limit=1")).toMatchObject({ first_id: all[0], has_more: true });
    expect(await list("limit=100")).toMatchObject({ has_more: false });
    expect(await list("limit=21")).toMatchObject({ has_more: false });
  });

  it.each(["desc", "asc"])(
    "goes through all pages without repeats while new ones arrive: %s",
    async (order) => {
      await startStill();
      const before: string[] = [];
      const delayed = { outlast: { delay: 600 } };
      for (let i = 0; i < 17; i++) before.push(await submit(delayed));
      const got: string[] = [];
      let after = "";
      for (let page = 1; ; page++) {
        const { data, last_id, has_more } = await list(`limit=4&order=${order}${after}`);
        got.push(...data.map(({ id }) => id));
        if (page <= 3) before.push(await submit(delayed));
        if (!has_more) break;
        after = `&after=${last_id}`;
      }
      expect(got).toEqual(order === "asc" ? before : before.slice(0, 17).reverse());
    },
  );

  it("is filtered by what the record says, and by several things at once", async () => {
    const { fakes, clock, ear } = await startStill({ upstreams: ["one", "two"] });
    const t0 = clock.now();
    const done = await finish({ outlast: { tags: ["red", "blue"] } });
    clock.advance(10_000);
    fakes.two!.script(fail(400, { code: "bad" }));
    const failed = await finish({ model: "two/x", outlast: { tags: ["red"] }, idempotency_key: "key-1" });
    clock.advance(10_000);
    const queued = await submit({ outlast: { delay: 600, tags: ['odd "tag", %_'] } });
    fakes.one!.script(fail(500, { code: "oops" }));
    const retrying = await submit();
    await ear.event("attempt_ended", (told) => told.id === retrying);
    const filters: [string, string[]][] = [
      ["status=completed", [done]],
      ["status=failed,queued", [queued, failed]],
      ["status=retrying", [retrying]],
      ["status=processing", []],
      ["model=two/x", [failed]],
      ["model=two", []],
      ["upstream=one", [retrying, done]],
      ["upstream=two", [failed]],
      ["error_code=bad", [failed]],
      ["error_code=oops", [retrying]],
      ["endpoint=chat.completions", [retrying, queued, failed, done]],
      ["endpoint=embeddings", []],
      ["tag=red", [failed, done]],
      ["tag=blue", [done]],
      ["tag=re", []],
      [`tag=${encodeURIComponent('odd "tag", %_')}`, [queued]],
      ["idempotency_key=key-1", [failed]],
      [`created_after=${t0 / 1000}`, [retrying, queued, failed]],
      [`created_before=${iso(t0 + 20_000)}`, [failed, done]],
      [
        `created_after=${(t0 + 5000) / 1000}&created_before=${encodeURIComponent("2026-01-02T04:04:20+01:00")}`,
        [failed],
      ],
      ["tag=red&status=completed", [done]],
      ["tag=red&order=asc&limit=1", [done]],
      [`tag=red&after=${failed}`, [done]],
    ];
    for (const [query, expected] of filters) expect([query, await ids(query)]).toEqual([query, expected]);
  });
});

describe("a list that cannot be", () => {
  group();

  it.each([
    ["limit=0", "limit"],
    ["limit=101", "limit"],
    ["limit=1.5", "limit"],
    ["limit=ten", "limit"],
    ["limit=", "limit"],
    ["order=up", "order"],
    ["order=", "order"],
    ["status=done", "status"],
    ["status=queued,,failed", "status"],
    ["status=", "status"],
    ["created_after=yesterday", "created_after"],
    ["created_before=2026-01-01", "created_before"],
    ["created_after=-1", "created_after"],
    ["created_after=1e400", "created_after"],
    ["after=", "after"],
    ["colour=red", "colour"],
    ["Status=queued", "Status"],
    ["__proto__=x", "__proto__"],
    ["project=other", "project"],
  ])("refuses %s, naming the field and what is allowed", async (query, param) => {
    const { fetch } = outlast;
    const response = await fetch(`/v1/requests?${query}`);
    expect(response.status).toBe(400);
    const error = await errorOf(response);
    expect(error).toMatchObject({ code: "invalid_parameter", param, type: "invalid_request_error" });
    expect(error.message).not.toMatch(/invalid input|expected|received|NaN/i);
  });

  it.each(["req_", "nonsense", "chatcmpl-1", "'; DROP TABLE requests; --"])(
    "refuses a cursor that is none: %s",
    async (after) => {
      const { fake, fetch } = outlast;
      fake.otherwise(answer({ id: "chatcmpl-1" }));
      await finish();
      const response = await fetch(`/v1/requests?after=${encodeURIComponent(after)}`);
      expect(await refusalOf(response)).toEqual({ status: 400, code: "invalid_cursor", param: "after" });
    },
  );
});

describe("cancelling", () => {
  it("a queued request: it is never called", async () => {
    const { fake, clock, ear } = await startStill();
    const id = await submit({ outlast: { delay: 60 } });
    const response = await cancel(id);
    expect(response.status).toBe(200);
    expect(strictRequest.parse(await response.json())).toMatchObject({
      id,
      status: "cancelled",
      attempts: 0,
    });
    clock.advance(120_000);
    expect(await record(id, "?wait=5")).toMatchObject({ status: "cancelled" });
    expect(ear.all("ended")).toMatchObject([{ id, state: "cancelled" }]);
    expect(fake.seen).toEqual([]);
  });

  it("a retrying request: it is not called again", async () => {
    const { fake, clock, ear } = await startStill();
    fake.script(fail(500));
    const id = await submit();
    await ear.event("attempt_ended");
    expect(await (await cancel(id)).json()).toMatchObject({ status: "cancelled", attempts: 1 });
    clock.advance(120_000);
    const other = await finish();
    expect(other).not.toBe(id);
    expect(fake.seen).toHaveLength(2);
  });

  it("a request that is being served: the call ends upstream, and whoever waits is told", async () => {
    const { fake, post, ear, client } = await start();
    fake.otherwise(hang());
    const held = post("/v1/chat/completions", hello);
    await fake.calls(1);
    const { id } = await ear.event("accepted");
    const polling = record(id, "?wait=30");
    expect(await (await cancel(id)).json()).toMatchObject({ id, status: "cancelled", attempts: 1 });
    await fake.idle();
    const response = await held;
    expect(response.headers.get("outlast-request-id")).toBe(id);
    expect(response.headers.get("x-should-retry")).toBe("false");
    expect(await refusalOf(response)).toEqual({ status: 400, code: "request_cancelled", param: null });
    expect((await polling).status).toBe("cancelled");
    const list = await record(id, "?include=attempts");
    expect(list.attempt_list).toMatchObject([
      { reason: "cancelled", error_code: "request_cancelled", counted: false },
    ]);
    await expect(client().chat.completions.retrieve(id)).rejects.toMatchObject({
      status: 400,
      code: "request_cancelled",
    });
  });

  it("twice, or ten times at once, is once", async () => {
    const { fake, ear } = await start();
    fake.otherwise(hang());
    const id = await submit();
    await fake.calls(1);
    const replies = await Promise.all(Array.from({ length: 10 }, () => cancel(id)));
    for (const reply of replies) expect(await reply.json()).toMatchObject({ id, status: "cancelled" });
    expect(await (await cancel(id)).json()).toMatchObject({ id, status: "cancelled" });
    expect(ear.all("ended")).toHaveLength(1);
  });

  it.each([
    ["completed", answer()],
    ["failed", fail(400)],
  ])("a request that has %s is refused", async (state, step) => {
    const { fake } = await start();
    fake.script(step);
    const id = await finish();
    const response = await cancel(id);
    expect(response.headers.get("outlast-request-id")).toBe(id);
    expect(await refusalOf(response)).toEqual({ status: 400, code: "request_ended", param: null });
    expect((await record(id)).status).toBe(state);
  });

  it("gives the place to the next one", async () => {
    const { fake } = await start({ upstreamToml: "max_concurrency = 1" });
    fake.script(hang());
    const first = await submit();
    await fake.calls(1);
    const second = await submit();
    await cancel(first);
    expect((await record(second, "?wait=30")).status).toBe("completed");
  });
});

describe("GET /v1/chat/completions/{id of a request}", () => {
  it("is the completion, for a stock SDK too", async () => {
    const { fake, client, fetch } = await start({ env: quick });
    fake.script(fail(500), answer({ id: "chatcmpl-9", text: "Hi", headers: { "x-request-id": "prov-9" } }));
    const id = await finish();
    const { data, response } = await client().chat.completions.retrieve(id).withResponse();
    expect(data).toMatchObject({ id: "chatcmpl-9", choices: [{ message: { content: "Hi" } }] });
    expect(response.headers.get("x-request-id")).toBe("prov-9");
    expect(response.headers.get("outlast-request-id")).toBe(id);
    expect(response.headers.get("outlast-attempts")).toBe("2");
    expect((await fetch(`/v1/chat/completions/${id}`)).status).toBe(200);
    expect(fake.seen).toHaveLength(2);
  });

  it("is 202 with the async object while it runs, and waits if asked", async () => {
    const { fake, client, fetch, clock } = await startStill();
    const held = gate();
    fake.script(held.step);
    const id = await submit();
    const response = await fetch(`/v1/chat/completions/${id}`);
    expect(response.status).toBe(202);
    expect(response.headers.get("location")).toBe(`/v1/requests/${id}`);
    expect(strictAsync.parse(await response.json())).toMatchObject({ id, status: "processing" });
    const running = (await client().chat.completions.retrieve(id)) as OpenAI.ChatCompletion & {
      status?: string;
    };
    expect(running).toMatchObject({ id, object: "chat.completion.async", status: "processing" });
    const waiting = fetch(`/v1/chat/completions/${id}?wait=33`);
    await clock.armed(33_000);
    const tooShort = fetch(`/v1/chat/completions/${id}?wait=3`);
    await clock.armed(3000);
    clock.advance(3000);
    expect((await tooShort).status).toBe(202);
    held.release();
    expect(await (await waiting).json()).toMatchObject({ object: "chat.completion" });
  });

  it("says when to come back, counted from now", async () => {
    const { fetch, clock } = await startStill();
    const id = await submit({ outlast: { delay: 50 } });
    clock.advance(20_000);
    expect((await fetch(`/v1/chat/completions/${id}`)).headers.get("retry-after")).toBe("30");
  });

  it("is the error where the request failed", async () => {
    const { fake, client } = await start();
    fake.script(fail(422, { message: "No.", code: "bad", param: "tools" }));
    const id = await finish();
    await expect(client().chat.completions.retrieve(id)).rejects.toMatchObject({
      status: 422,
      code: "bad",
      param: "tools",
      message: "422 No.",
    });
  });

  it("is our own error where no upstream gave one", async () => {
    const { clock, client } = await startStill();
    const id = await submit({ outlast: { delay: 10, deadline: 5, upstream: "fake" } });
    clock.advance(9_999);
    expect((await record(id)).status).toBe("queued");
    const held = outlast.fake;
    held.script(hang());
    clock.advance(1);
    await held.calls(1);
    clock.advance(5000);
    expect(await record(id, "?wait=9")).toMatchObject({
      status: "failed",
      error: { code: "deadline_exceeded", status: 504 },
    });
    await expect(client().chat.completions.retrieve(id)).rejects.toMatchObject({
      status: 504,
      code: "deadline_exceeded",
    });
  });
});

describe("what is not there", () => {
  group();

  it.each([
    "/v1/requests/req_00000000000000000000000000",
    "/v1/requests/req_",
    "/v1/requests/chatcmpl-unknown",
    "/v1/requests/resp_unknown",
    "/v1/requests/%00",
    "/v1/requests/%E0%A4%A",
    "/v1/requests/req_'%20OR%20'1'='1",
    `/v1/requests/${"x".repeat(5000)}`,
    "/v1/requests/req_unknown/attempts",
    "/v1/chat/completions/req_00000000000000000000000000",
  ])("is 404: GET %s", async (path) => {
    const { fetch, fake } = outlast;
    expect(await refusalOf(await fetch(path))).toEqual({
      status: 404,
      code: "request_not_found",
      param: "id",
    });
    expect(fake.seen).toEqual([]);
  });

  it("is 404 for cancelling", async () => {
    expect(await refusalOf(await cancel("req_unknown"))).toEqual({
      status: 404,
      code: "request_not_found",
      param: "id",
    });
  });

  it.each([
    ["GET", "/v1/requests/"],
    ["GET", "/v1/requests/req_x/nothing"],
    ["GET", "/v1/requests/req_x/attempts/1"],
    ["GET", "/v1/requests/req_x/cancel"],
    ["POST", "/v1/requests/req_x/attempts"],
    ["PUT", "/v1/requests/req_x"],
    ["POST", "/v1/requests"],
    ["GET", "/requests"],
    ["GET", "/"],
    ["GET", "/v1"],
    ["POST", "/chat/completions"],
  ])("is 404, and never the upstream's: %s %s", async (method, path) => {
    const { fetch, fake } = outlast;
    expect(await refusalOf(await fetch(path, { method }))).toEqual({
      status: 404,
      code: "not_found",
      param: null,
    });
    expect(fake.seen).toEqual([]);
  });
});

describe("projects", () => {
  const keys = ["a", "b"]
    .map((name) => `[[api_keys]]\nkey = "key-of-${name}"\nproject = "${name}"\n`)
    .join("");
  const as = (name: string) => ({ authorization: `Bearer key-of-${name}` });

  it("do not see each other's requests, by whatever id", async () => {
    const { fake, fetch } = await start({ tables: keys });
    fake.otherwise(answer({ id: "chatcmpl-same" }));
    const ofA = await finish({}, as("a"));
    for (const path of [
      `requests/${ofA}`,
      `requests/${ofA}/attempts`,
      `chat/completions/${ofA}`,
      "requests/chatcmpl-same",
    ]) {
      const refused = await fetch(`/v1/${path}`, { headers: as("b") });
      expect(await refusalOf(refused)).toEqual({ status: 404, code: "request_not_found", param: "id" });
      expect((await fetch(`/v1/${path}`, { headers: as("a") })).status).toBe(200);
    }
    const cancelling = await fetch(`/v1/requests/${ofA}/cancel`, { method: "POST", headers: as("b") });
    expect((await refusalOf(cancelling)).code).toBe("request_not_found");
    const ofB = await finish({}, as("b"));
    expect((await record("chatcmpl-same", "", as("a"))).id).toBe(ofA);
    expect((await record("chatcmpl-same", "", as("b"))).id).toBe(ofB);
  });

  it("do not see each other's requests in lists, nor by their cursors", async () => {
    const { fetch } = await start({ tables: keys });
    const ofA = [await finish({}, as("a")), await finish({}, as("a"))];
    const ofB = await finish({}, as("b"));
    const list = async (name: string, query = "") =>
      (await (await fetch(`/v1/requests${query}`, { headers: as(name) })).json()) as {
        data: { id: string }[];
      };
    expect((await list("a")).data.map(({ id }) => id)).toEqual([...ofA].reverse());
    expect((await list("b")).data.map(({ id }) => id)).toEqual([ofB]);
    expect((await list("b", "?endpoint=chat.completions")).data).toHaveLength(1);
    const refused = await fetch(`/v1/requests?after=${ofA[1]}`, { headers: as("b") });
    expect(await refusalOf(refused)).toEqual({ status: 400, code: "invalid_cursor", param: "after" });
  });
});
