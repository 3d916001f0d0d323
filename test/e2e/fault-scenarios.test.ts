/**
 * The published fault scenarios for calls that fail as a whole (for broken streams see stream-scenarios.test.ts), as
 * somebody meets them who uses the stock SDK and has configured nothing but two upstreams and a route. Time is the
 * scenario's own, moved on by hand.
 */

import OpenAI from "openai";
import { afterEach, describe, expect, test } from "vitest";
import type { AttemptObject, RequestObject, UpstreamObject } from "../../src/contract.ts";
import { HandClock } from "../support/clock.ts";
import { answer, fail, hang, reset, type Step, stream } from "../support/fake-upstream.ts";
import { begun, chunkOf, cutShort, roleChunk, tokens, whole } from "../support/live-streams.ts";
import { hello, type Outlast, startOutlast } from "../support/outlast.ts";

const running: Outlast[] = [];
const plainRoute = '[routes]\n"gpt-test" = ["primary", "fallback"]\n';
const largerRoute =
  '[routes]\n"gpt-test" = ["primary", { upstream = "fallback", model = "big", larger_context = true }]\n';

/** The default of failover_after. */
const failoverAfterMs = 1000;

afterEach(async () => {
  await Promise.all(running.splice(0).map((outlast) => outlast.close()));
});

interface Scene {
  clock: HandClock;
  outlast: Outlast;
  primary: Outlast["fake"];
  fallback: Outlast["fake"];
}

/** A server with default values, whose fallback says who it is. */
async function scene(primary: Step, tables = plainRoute, luck = 0.5): Promise<Scene> {
  const clock = new HandClock();
  const outlast = await startOutlast({ clock, luck, upstreams: ["primary", "fallback"], tables });
  running.push(outlast);
  const { primary: first, fallback: second } = outlast.fakes;
  first!.otherwise(primary);
  second!.otherwise(answer({ text: "from the fallback" }));
  return { clock, outlast, primary: first!, fallback: second! };
}

/** As the stock SDK is used: with retries of its own. */
const stock = (outlast: Outlast) => outlast.client({ maxRetries: undefined });

async function ask(outlast: Outlast): Promise<string> {
  const { choices } = await stock(outlast).chat.completions.create(hello);
  return choices[0]!.message.content ?? "";
}

async function askForStream(outlast: Outlast): Promise<string> {
  const chunks = await stock(outlast).chat.completions.create({ ...hello, stream: true });
  let text = "";
  for await (const { choices } of chunks) text += choices[0]?.delta.content ?? "";
  return text;
}

async function listOf<T>(outlast: Outlast, what: string): Promise<{ data: T[] }> {
  return (await (await outlast.fetch(`/v1/${what}`)).json()) as { data: T[] };
}

async function requestsOf(outlast: Outlast): Promise<RequestObject[]> {
  return (await listOf<RequestObject>(outlast, "requests?limit=100")).data;
}

/**
 * Lets time pass to the instant that a request waits for, until the call is over. That is no more than a second ahead:
 * as long as a request waits for its target rather than go to the next one.
 */
async function over<T>({ clock, outlast }: Scene, call: Promise<T>): Promise<T> {
  let isOver = false;
  const settled = call.finally(() => {
    isOver = true;
  });
  settled.catch(() => {});
  while (!isOver) {
    const { data } = await listOf<RequestObject>(outlast, "requests?limit=5");
    const waits = data.map(({ next_attempt_at: at }) => (at === null ? 0 : Date.parse(at) - clock.now()));
    clock.advance(waits.find((ms) => ms > 0 && ms <= failoverAfterMs) ?? 0);
  }
  return settled;
}

async function only(outlast: Outlast): Promise<RequestObject & { attempt_list: AttemptObject[] }> {
  const found = await requestsOf(outlast);
  expect(found).toHaveLength(1);
  const response = await outlast.fetch(`/v1/requests/${found[0]!.id}?include=attempts`);
  return (await response.json()) as RequestObject & { attempt_list: AttemptObject[] };
}

async function breakerOf(outlast: Outlast, upstream: string) {
  const { data } = await listOf<UpstreamObject>(outlast, "upstreams");
  return data.find(({ id }) => id === upstream)!.lanes.find(({ model }) => model === "gpt-test")?.breaker
    .state;
}

describe("S01: 429 with Retry-After 2", () => {
  test("the fallback answers, and the primary is called again when the 2 seconds are over", async () => {
    const { clock, outlast, primary } = await scene(answer({ text: "from the primary" }));
    primary.script(fail(429, {}, { "retry-after": "2" }));
    expect(await ask(outlast)).toBe("from the fallback");
    expect(await only(outlast)).toMatchObject({
      status: "completed",
      upstream: "fallback",
      attempt_list: [
        { upstream: "primary", status: 429, verdict: "throttled", reason: "next_target", counted: false },
        { upstream: "fallback", verdict: "success" },
      ],
    });
    clock.advance(900);
    expect(await ask(outlast)).toBe("from the fallback");
    expect(primary.seen).toHaveLength(1);
    clock.advance(1100);
    expect(await ask(outlast)).toBe("from the primary");
  });

  test("where there is no fallback, the caller has the answer 2 seconds later", async () => {
    const clock = new HandClock();
    const outlast = await startOutlast({ clock, luck: 0.5 });
    running.push(outlast);
    outlast.fake.script(fail(429, {}, { "retry-after": "2" }));
    const call = ask(outlast);
    const { retryAt } = await outlast.ear.event("attempt_ended");
    expect(retryAt! - clock.now()).toBe(2000);
    clock.advance(1999);
    await requestsOf(outlast);
    expect(outlast.fake.seen).toHaveLength(1);
    clock.advance(1);
    expect(await call).toBe("ok");
    expect((await only(outlast)).attempts).toBe(2);
  });
});

test("S02: 429 for good, without a header: the fallback answers all, and the primary is asked ever more rarely", async () => {
  const throughout = await scene(fail(429));
  const { clock, outlast, primary, fallback } = throughout;
  const askedAt: number[] = [];
  const began = clock.now();
  for (let n = 0; n < 60; n++) {
    const before = primary.seen.length;
    const startedAt = clock.now();
    expect(await over(throughout, ask(outlast))).toBe("from the fallback");
    expect(clock.now() - startedAt).toBeLessThanOrEqual(failoverAfterMs);
    if (primary.seen.length > before) askedAt.push((clock.now() - began) / 1000);
    clock.advance(1000);
  }
  expect(fallback.seen).toHaveLength(60);
  expect(askedAt.length).toBeGreaterThan(1);
  expect(askedAt.length).toBeLessThanOrEqual(6);
  const pauses = askedAt.slice(1).map((at, i) => at - askedAt[i]!);
  expect(pauses).toEqual([...pauses].sort((a, b) => a - b));
  for (const { status } of await requestsOf(outlast)) expect(status).toBe("completed");
});

test("S03: 500 once: the fallback answers at once, and the primary answers the next one", async () => {
  const { outlast, primary } = await scene(answer({ text: "from the primary" }));
  primary.script(fail(500));
  expect(await ask(outlast)).toBe("from the fallback");
  expect(await only(outlast)).toMatchObject({
    attempt_list: [
      { status: 500, verdict: "transient", reason: "next_target", counted: true },
      { upstream: "fallback", latency_ms: 0, verdict: "success" },
    ],
  });
  expect(await ask(outlast)).toBe("from the primary");
});

test("S03, without a fallback: the second attempt answers after a pause below 250 ms", async () => {
  const clock = new HandClock();
  const outlast = await startOutlast({ clock });
  running.push(outlast);
  outlast.fake.script(fail(500));
  const call = ask(outlast);
  const { retryAt } = await outlast.ear.event("attempt_ended");
  expect(retryAt! - clock.now()).toBeLessThanOrEqual(250);
  clock.advance(250);
  expect(await call).toBe("ok");
});

test("S04: 503 for good: the fallback answers all, and soon the primary is left alone", async () => {
  const { clock, outlast, primary, fallback } = await scene(fail(503));
  for (let second = 0; second < 20; second++) {
    expect(await ask(outlast)).toBe("from the fallback");
    clock.advance(1000);
  }
  expect(primary.seen).toHaveLength(3);
  expect(fallback.seen).toHaveLength(20);
  expect(await breakerOf(outlast, "primary")).toBe("open");
  expect(await breakerOf(outlast, "fallback")).toBe("closed");
});

test("S05: a reset before the headers: the fallback answers, and the record says that the primary may have, too", async () => {
  const { outlast, primary } = await scene(reset());
  expect(await ask(outlast)).toBe("from the fallback");
  expect(primary.seen).toHaveLength(1);
  expect(await only(outlast)).toMatchObject({
    status: "completed",
    duplicate_possible: true,
    attempt_list: [
      { verdict: "ambiguous", reason: "next_target", status: null },
      { upstream: "fallback", verdict: "success" },
    ],
  });
});

describe("S06: no response", () => {
  test("a plain call: the primary has half of the time, its caller's SDK comes back once, and has the answer", async () => {
    const { clock, outlast, primary, fallback } = await scene(hang());
    const call = ask(outlast);
    await primary.calls(1);
    clock.advance(279_999);
    await requestsOf(outlast);
    expect(outlast.ear.all("adopted")).toEqual([]);
    clock.advance(1);
    await outlast.ear.event("adopted");
    clock.advance(19_999);
    await requestsOf(outlast);
    expect(fallback.seen).toHaveLength(0);
    clock.advance(1);
    expect(await call).toBe("from the fallback");
    await primary.idle();
    expect([primary.seen.length, fallback.seen.length]).toEqual([1, 1]);
    expect(await only(outlast)).toMatchObject({
      status: "completed",
      attempt_list: [
        { verdict: "ambiguous", reason: "next_target", latency_ms: 300_000 },
        { upstream: "fallback", verdict: "success" },
      ],
    });
  });

  test("a stream: the primary has two minutes, during which its caller is told that it goes on", async () => {
    const { clock, outlast, primary, fallback } = await scene(hang());
    fallback.otherwise(stream(whole(["from ", "the fallback"])));
    const call = askForStream(outlast);
    await primary.calls(1);
    clock.advance(119_999);
    await requestsOf(outlast);
    expect(fallback.seen).toHaveLength(0);
    clock.advance(1);
    expect(await call).toBe("from the fallback");
    await primary.idle();
    expect(await only(outlast)).toMatchObject({
      status: "completed",
      attempt_list: [
        { verdict: "ambiguous", reason: "next_target", latency_ms: 120_000, first_byte_ms: null },
        { upstream: "fallback", verdict: "success" },
      ],
    });
  });
});

const oneAnswer = (text: string): Step => answer({ text });

describe("S12: the prompt is too long for the primary", () => {
  const openai = {
    message:
      "This model's maximum context length is 8192 tokens. However, your messages resulted in 9001 tokens.",
    type: "invalid_request_error",
    param: "messages",
    code: "context_length_exceeded",
  };
  const message = "prompt is too long: 208310 tokens > 200000 maximum";
  const anthropic = { type: "error", error: { type: "invalid_request_error", message } };
  const google = [
    {
      error: {
        code: 400,
        message: "The input token count (1300000) exceeds the maximum number of tokens allowed (1048576).",
        status: "INVALID_ARGUMENT",
      },
    },
  ];
  const says = (body: object): Step => answer({ status: 400, body });

  test.each([
    ["OpenAI", { error: openai }],
    ["Anthropic", anthropic],
    ["Google", google],
  ])("the larger model answers, and the same one is not asked again (%s)", async (_, body) => {
    const { outlast, primary, fallback } = await scene(says(body), largerRoute);
    expect(await ask(outlast)).toBe("from the fallback");
    expect([primary.seen.length, fallback.seen.length]).toEqual([1, 1]);
    expect(JSON.parse(fallback.seen[0]!.body.toString())).toEqual({ ...hello, model: "big" });
    expect(await only(outlast)).toMatchObject({
      upstream: "fallback",
      attempt_list: [{ status: 400, verdict: "permanent", reason: "next_target" }, { model: "big" }],
    });
    expect(await breakerOf(outlast, "primary")).not.toBe("open");
  });

  test("as a stream", async () => {
    const { outlast, primary, fallback } = await scene(says({ error: openai }), largerRoute);
    fallback.otherwise(stream(whole(["from the ", "fallback"])));
    expect(await askForStream(outlast)).toBe("from the fallback");
    expect([primary.seen.length, fallback.seen.length]).toEqual([1, 1]);
  });

  test("the larger model fails once: it is tried again, the smaller one is not", async () => {
    const told = await scene(says({ error: openai }), largerRoute);
    const { outlast, primary, fallback } = told;
    fallback.script(fail(500));
    expect(await over(told, ask(outlast))).toBe("from the fallback");
    expect([primary.seen.length, fallback.seen.length]).toEqual([1, 2]);
  });

  test("a fallback that is not marked as larger is not tried: the caller has the primary's word", async () => {
    const { outlast, primary, fallback } = await scene(says({ error: openai }));
    const refused = (await ask(outlast).catch((error: unknown) => error)) as InstanceType<
      typeof OpenAI.APIError
    >;
    expect(refused).toBeInstanceOf(OpenAI.BadRequestError);
    expect(refused).toMatchObject({ error: openai });
    expect([primary.seen.length, fallback.seen.length]).toEqual([1, 0]);
  });
});

describe("S13: a content filter", () => {
  const filtered = {
    message: "The response was filtered due to the prompt triggering our content management policy.",
    type: null,
    param: "prompt",
    code: "content_filter",
    status: 400,
    innererror: { code: "ResponsibleAIPolicyViolation", content_filter_result: { hate: { filtered: true } } },
  };

  test.each([
    ["plain", (outlast: Outlast) => ask(outlast)],
    ["as a stream", askForStream],
  ])(
    "that refuses the prompt: nobody else is asked, and the caller's SDK is told the reason (%s)",
    async (_, call) => {
      const { outlast, primary, fallback } = await scene(answer({ status: 400, body: { error: filtered } }));
      const refused = (await call(outlast).catch((error: unknown) => error)) as InstanceType<
        typeof OpenAI.APIError
      >;
      expect(refused).toBeInstanceOf(OpenAI.BadRequestError);
      expect(refused.error).toEqual(filtered);
      expect([primary.seen.length, fallback.seen.length]).toEqual([1, 0]);
      expect(await only(outlast)).toMatchObject({
        status: "failed",
        error: { code: "content_filter", status: 400, message: filtered.message },
        attempt_list: [{ verdict: "permanent", reason: "permanent" }],
      });
    },
  );

  test("that cuts the answer: it is an answer, with the reason in it and on the record", async () => {
    const cutAnswer = {
      id: "chatcmpl-1",
      object: "chat.completion",
      created: 1,
      model: "m",
      choices: [{ index: 0, message: { role: "assistant", content: "We" }, finish_reason: "content_filter" }],
    };
    const { outlast, fallback } = await scene(answer({ body: cutAnswer }));
    const { choices } = await stock(outlast).chat.completions.create(hello);
    expect(choices[0]!.finish_reason).toBe("content_filter");
    expect(fallback.seen).toEqual([]);
    expect(await only(outlast)).toMatchObject({
      status: "completed",
      findings: { finish_reason: "content_filter", problems: ["content_filter"] },
    });
  });
});

describe("S15: 60 seconds of outage, 20 requests, one every 4 seconds", () => {
  const outages: [string, Step][] = [
    ["503", fail(503)],
    ["500", fail(500)],
    ["502 from a proxy in between", answer({ status: 502, body: "<html>Bad Gateway</html>" })],
    ["resets", reset()],
  ];
  const callers: [string, (outlast: Outlast) => Promise<string>, (text: string) => Step][] = [
    ["plain", ask, oneAnswer],
    ["streaming", askForStream, (text) => stream(whole([text]))],
  ];
  /** The longest jitter puts the probes later: where that matters is tried both ways. */
  const luckOf = (name: string, how: string) => (name === "503" ? [0, 0.999] : [how === "plain" ? 0 : 0.999]);
  const cases = outages.flatMap(([name, fault]) =>
    callers.flatMap(([how, call, says]) =>
      luckOf(name, how).map((luck) => ({ name, fault, how, call, says, luck })),
    ),
  );

  test.each(cases)(
    "$name, $how callers, luck $luck: the fallback answers, at most 4 calls reach the primary",
    async ({ fault, call, says, luck }) => {
      const whenever = await scene(fault, plainRoute, luck);
      const { clock, outlast, primary, fallback } = whenever;
      fallback.otherwise(says("fallback"));
      const began = clock.now();
      const endsAt = began + 60_000;
      let duringOutage = 0;
      let usedAgainAt = 0;
      for (let n = 0; n < 28; n++) {
        if (clock.now() >= endsAt && duringOutage === 0) {
          duringOutage = primary.seen.length;
          primary.otherwise(says("primary"));
        }
        const startedAt = clock.now();
        const text = await over(whenever, call(outlast));
        expect(clock.now() - startedAt).toBeLessThanOrEqual(failoverAfterMs);
        if (startedAt < endsAt) expect(text).toBe("fallback");
        if (text === "primary" && usedAgainAt === 0) usedAgainAt = clock.now();
        if (usedAgainAt > 0) expect(text).toBe("primary");
        clock.advance(4000);
      }
      expect(duringOutage).toBeLessThanOrEqual(4);
      expect(usedAgainAt - endsAt).toBeGreaterThanOrEqual(0);
      expect(usedAgainAt - endsAt).toBeLessThanOrEqual(30_000);
      for (const { status } of await requestsOf(outlast)) expect(status).toBe("completed");
    },
  );
});

describe("S16: what the caller and the record are told of the fallback's answer", () => {
  const prices = `
[prices."primary/gpt-test"]
input = 10
output = 100
[prices."fallback/cheap"]
input = 1
output = 2
`;
  const tables = `[routes]
"gpt-test" = ["primary", "fallback/cheap"]
${prices}`;
  const usage = { prompt_tokens: 1000, completion_tokens: 500, total_tokens: 1500 };
  const served = {
    id: "chatcmpl-served",
    object: "chat.completion",
    created: 1,
    model: "cheap-2026-01-01",
    choices: [{ index: 0, message: { role: "assistant", content: "served" }, finish_reason: "stop" }],
    usage,
  };
  const costOfServing = (1000 * 1 + 500 * 2) / 1_000_000;

  test("its model and usage alone; what the failed attempt used stands on that, and in the cost", async () => {
    const used = { prompt_tokens: 900, completion_tokens: 100, total_tokens: 1000 };
    const costOfFailing = (900 * 10 + 100 * 100) / 1_000_000;
    const broken = {
      error: { message: "It broke on the way.", type: "server_error", code: null },
      usage: used,
    };
    const { outlast, fallback } = await scene(answer({ status: 500, body: broken }), tables);
    fallback.otherwise(answer({ body: served }));
    const { data, response } = await stock(outlast).chat.completions.create(hello).withResponse();
    expect(data).toMatchObject({ model: "cheap-2026-01-01", usage });
    expect(response.headers.get("outlast-upstream")).toBe("fallback");
    expect(response.headers.get("outlast-served-model")).toBe("cheap-2026-01-01");
    expect(response.headers.get("outlast-attempts")).toBe("2");
    const record = await only(outlast);
    expect(record).toMatchObject({
      model: "gpt-test",
      upstream: "fallback",
      served_model: "cheap-2026-01-01",
      usage,
      attempt_list: [
        { usage: used, status: 500 },
        { usage, model: "cheap" },
      ],
    });
    const [failed, answered] = record.attempt_list;
    expect(failed!.cost).toBeCloseTo(costOfFailing, 12);
    expect(answered!.cost).toBeCloseTo(costOfServing, 12);
    expect(record.cost).toBeCloseTo(costOfFailing + costOfServing, 12);
  });

  test("an attempt that failed without an account of it costs nothing", async () => {
    const { outlast, fallback } = await scene(fail(503), tables);
    fallback.otherwise(answer({ body: served }));
    await ask(outlast);
    const record = await only(outlast);
    expect(record.attempt_list[0]).toMatchObject({ usage: null, cost: null });
    expect(record.cost).toBeCloseTo(costOfServing, 12);
  });

  test("a stream that was cut: what it had said is reckoned, and not in the usage", async () => {
    const sixty = tokens(60);
    const { outlast, fallback } = await scene(cutShort(begun(sixty.slice(0, 40))), tables);
    const naming = { model: "cheap-2026-01-01" };
    fallback.otherwise(stream([...whole(sixty, naming), chunkOf([], naming, { usage })]));
    const chunks = await stock(outlast).chat.completions.create({
      ...hello,
      stream: true,
      stream_options: { include_usage: true },
    });
    let text = "";
    let told: OpenAI.CompletionUsage | null | undefined;
    for await (const chunk of chunks) {
      text += chunk.choices[0]?.delta.content ?? "";
      told = chunk.usage ?? told;
    }
    expect(text).toBe(sixty.join(""));
    expect(told).toEqual(usage);
    const record = await only(outlast);
    expect(record).toMatchObject({ upstream: "fallback", served_model: "cheap-2026-01-01", usage });
    const [cut, answered] = record.attempt_list;
    expect(cut!.usage).toMatchObject({ estimated: true });
    expect(cut!.cost).toBeGreaterThan(0);
    expect(answered!.usage).toEqual(usage);
    expect(record.cost).toBeCloseTo(cut!.cost! + costOfServing, 12);
  });

  test("a stream that said nothing before it broke costs nothing", async () => {
    const { outlast, fallback } = await scene(cutShort([roleChunk()]), tables);
    fallback.otherwise(stream([...whole(["served"]), chunkOf([], {}, { usage })]));
    expect(await askForStream(outlast)).toBe("served");
    const record = await only(outlast);
    expect(record.attempt_list[0]!.cost).toBeNull();
    expect(record.cost).toBeCloseTo(costOfServing, 12);
  });
});
