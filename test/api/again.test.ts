import { describe, expect, it } from "vitest";
import { answer, deltas, fail, gate, hang, stream } from "../support/fake-upstream.ts";
import { hello, type Outlast, type OutlastOptions, quick } from "../support/outlast.ts";
import { LedgerCalls } from "./ledger-calls.ts";
import { errorOf, refusalOf, serveGroup, serveTest, strictAsync, WatchedClock } from "./wire.ts";

let outlast: Outlast;
const calls = new LedgerCalls(() => outlast);
const start = async (options: OutlastOptions = {}) => {
  outlast = await serveTest(options);
  return outlast;
};
const bodies = () => outlast.fake.seen.map(({ body }) => String(body));
const permanent = fail(400, { code: "bad" });

describe("retrying", () => {
  serveGroup((one) => {
    outlast = one;
  });

  it("a failed request is another round of it, with its history", async () => {
    outlast.fake.script(permanent);
    const id = await calls.finish();
    const retried = await calls.acted(id, "retry");
    expect(retried).toMatchObject({ id, attempts: 1, ended_at: null, error: null, caused_by: null });
    expect(await calls.ended(id)).toMatchObject({ status: "completed", attempts: 2, error: null });
    expect(await calls.attempts(id)).toMatchObject([
      { round: 1, verdict: "permanent" },
      { round: 2, verdict: "success" },
    ]);
    expect(new Set(bodies()).size).toBe(1);
  });

  it("a cancelled request makes it go on", async () => {
    const id = await calls.submit({ outlast: { delay: 600 } });
    await calls.acted(id, "cancel");
    await calls.acted(id, "retry");
    expect(await calls.ended(id)).toMatchObject({ status: "completed", attempts: 1 });
  });

  it("with another body asks for that, and keeps what is not ours in it as it was written", async () => {
    outlast.fake.script(permanent);
    const id = await calls.finish({ messages: [{ role: "system", content: "A" }] });
    const { prompt_hash } = await calls.record(id);
    const body =
      '{"model":"gpt-other", "messages":[{"role":"system","content":"B"}],"seed":9007199254740993,"x":1.0}';
    const response = await outlast.post(`/v1/requests/${id}/retry`, `{"body": ${body} }`);
    expect(response.status).toBe(200);
    const record = await calls.ended(id);
    expect(record).toMatchObject({ status: "completed", model: "gpt-other" });
    expect(record.prompt_hash).not.toBe(prompt_hash);
    expect(bodies()[1]).toBe(body);
    expect((await calls.record(id, "?include=body")).body).toMatchObject({ model: "gpt-other" });
  });

  it("with options has them for the new round", async () => {
    outlast.fake.script(permanent);
    const id = await calls.finish();
    const options = { priority: "batch", deadline: "1h", delay: "10m", max_attempts: 3, on_unknown: "fail" };
    const retried = await calls.acted(id, "retry", { options });
    expect(retried).toMatchObject({ status: "queued", priority: "batch", waiting_for: "scheduled" });
    const aheadMs = Date.parse(retried.deadline_at) - Date.parse(retried.next_attempt_at!);
    expect(aheadMs).toBe(3_600_000);
  });

  it("may ask that answers are no longer validated", async () => {
    outlast.fake.script(answer({ text: "" }));
    const id = await calls.finish({ outlast: { validate: { max_retries: 0 } } });
    expect(await calls.record(id)).toMatchObject({ status: "failed", last_error_code: "invalid_output" });
    outlast.fake.script(answer({ text: "" }));
    await calls.acted(id, "retry", { options: { validate: false } });
    expect(await calls.ended(id)).toMatchObject({ status: "completed", findings: { problems: ["empty"] } });
  });

  it("with another body holds its answer to what the caller wished", async () => {
    const schema = { type: "object", required: ["a"] };
    outlast.fake.script(permanent, answer({ text: "{}" }), answer({ text: '{"a":1}' }));
    const id = await calls.finish({ outlast: { validate: { schema, max_retries: 1 } } });
    await calls.acted(id, "retry", { body: { ...hello, seed: 1 } });
    expect(await calls.ended(id)).toMatchObject({ status: "completed", attempts: 3 });
    expect((await calls.attempts(id)).map(({ verdict }) => verdict)).toEqual([
      "permanent",
      "invalid_output",
      "success",
    ]);
  });

  it("with another body is held to that one's own schema, where the old one's was its own", async () => {
    const format = (required: string[]) => ({
      response_format: { type: "json_schema", json_schema: { name: "s", schema: { required } } },
    });
    outlast.fake.script(permanent, answer({ text: '{"a":1}' }));
    const id = await calls.finish({ ...format(["a"]), outlast: { validate: { max_retries: 0 } } });
    await calls.acted(id, "retry", { body: { ...hello, ...format(["b"]) } });
    expect(await calls.ended(id)).toMatchObject({ status: "failed", last_error_code: "invalid_output" });
  });

  it("what goes on, or has completed, is refused", async () => {
    const done = await calls.finish();
    expect(await refusalOf(await calls.act(done, "retry"))).toMatchObject({
      status: 400,
      code: "request_completed",
    });
    expect((await errorOf(await calls.act(done, "retry"))).message).toContain("replay");
    const waiting = await calls.submit({ outlast: { delay: 600 } });
    expect(await refusalOf(await calls.act(waiting, "retry"))).toMatchObject({ code: "request_active" });
    expect(await refusalOf(await calls.act("req_none", "retry"))).toMatchObject({ status: 404 });
  });

  it("a failed stream with a body that is none is answered plainly, and the other way round", async () => {
    outlast.fake.script(permanent, answer({ text: "Plain" }));
    const id = await calls.finish({ stream: true });
    await calls.acted(id, "retry", { body: hello });
    expect((await calls.ended(id)).result).toMatchObject({ choices: [{ message: { content: "Plain" } }] });
    outlast.fake.script(permanent, stream(deltas("Str", "eam")));
    const other = await calls.finish();
    await calls.acted(other, "retry", { body: { ...hello, stream: true } });
    expect((await calls.ended(other)).result).toMatchObject({
      choices: [{ message: { content: "Stream" } }],
    });
    expect(await (await outlast.fetch(`/v1/requests/${other}/stream`)).text()).toContain("Str");
  });

  it.each([
    [{ options: { colour: "red" } }, "options.colour"],
    [{ options: { tags: ["a"] } }, "options.tags"],
    [{ options: { deadline: -1 } }, "options.deadline"],
    [{ options: { priority: "high" } }, "options.priority"],
    [{ options: { delay: 1, run_at: 1 } }, "options.delay"],
    [{ options: { validate: "yes" } }, "options.validate"],
    [{ options: { validate: { schema: { type: "nonsense" } } } }, "options.validate.schema"],
    [{ options: 7 }, "options"],
    [{ body: "x" }, "body"],
    [{ body: { ...hello, wait: true } }, "body.wait"],
    [{ body: { ...hello, outlast: {} } }, "body.outlast"],
    [{ body: { ...hello, messages: "x" } }, "messages"],
    [{ body: { ...hello, user: "somebody else" } }, "body.user"],
    [{ body: { ...hello, metadata: { of: "somebody else" } } }, "body.metadata"],
    [{ wait: true }, "wait"],
    [{ deadline: 7 }, "deadline"],
  ])("refuses %j", async (ask, param) => {
    outlast.fake.script(permanent);
    const id = await calls.finish();
    const response = await calls.act(id, "retry", ask);
    expect(response.status).toBe(400);
    const error = await errorOf(response);
    expect(error).toMatchObject({ code: "invalid_parameter", param });
    expect(error.message).not.toMatch(/invalid input|expected|received/i);
    expect(await calls.record(id)).toMatchObject({ status: "failed", attempts: 1 });
  });

  it("with an upstream or a model that is not there is refused", async () => {
    outlast.fake.script(permanent);
    const id = await calls.finish();
    const upstream = await calls.act(id, "retry", { options: { upstream: "nowhere" } });
    expect(await refusalOf(upstream)).toMatchObject({ code: "upstream_not_found" });
    const missing = await calls.act(id, "retry", { body: { messages: [] } });
    expect(await refusalOf(missing)).toMatchObject({ code: "missing_required_parameter", param: "model" });
    expect(await refusalOf(await calls.act(id, "retry", {}, { "content-type": "text/plain" }))).toMatchObject(
      {
        status: 415,
      },
    );
  });
});

describe("retrying with another body", () => {
  it("gives its answer to nobody who asks what was asked before", async () => {
    const { fake } = await start();
    const cached = { outlast: { cache: { ttl: "1h" } } };
    fake.script(permanent, answer({ text: "Other" }), answer({ text: "Own" }));
    const id = await calls.finish(cached);
    await calls.acted(id, "retry", { body: { ...hello, messages: [] } });
    await calls.ended(id);
    expect((await calls.record(await calls.finish(cached))).result).toMatchObject({
      choices: [{ message: { content: "Own" } }],
    });
  });
});

describe("retrying at another upstream", () => {
  it("goes there", async () => {
    const { fakes } = await start({ upstreams: ["one", "two"] });
    fakes.one!.script(permanent);
    const id = await calls.finish();
    await calls.acted(id, "retry", { options: { upstream: "two" } });
    expect(await calls.ended(id)).toMatchObject({ status: "completed", upstream: "two" });
    expect([fakes.one!.seen.length, fakes.two!.seen.length]).toEqual([1, 1]);
  });
});

describe("replaying", () => {
  serveGroup((one) => {
    outlast = one;
  });

  const replayed = async (id: string, ask?: object) => {
    const response = await calls.act(id, "replay", ask);
    expect(response.status).toBe(202);
    return strictAsync.parse(await response.json()).id;
  };

  it("makes a new request of the same bytes, and leaves the old one alone", async () => {
    const body = '{"model":"gpt-test","messages":[ ] ,"seed":9007199254740993,"user":"ann"}';
    const first = await outlast.post(
      "/v1/chat/completions",
      body.replace("{", '{"outlast":{"tags":["t"]},'),
      {
        "openai-beta": "x=1",
      },
    );
    const id = first.headers.get("outlast-request-id")!;
    const before = await calls.record(id);
    const copy = await replayed(id);
    expect(await calls.ended(copy)).toMatchObject({
      status: "completed",
      replay_of: id,
      tags: ["t"],
      user: "ann",
      idempotency_key: null,
      priority: "default",
    });
    expect(await calls.record(id)).toEqual(before);
    expect(bodies()[1]).toBe(bodies()[0]);
    expect(outlast.fake.seen[1]!.headers).toMatchObject({ "openai-beta": "x=1" });
  });

  it.each([true, 30])("with wait: %s is answered as a call is", async (wait) => {
    const id = await calls.finish();
    outlast.fake.script(answer({ text: "Again" }));
    const response = await calls.act(id, "replay", { wait });
    expect(response.status).toBe(200);
    expect(response.headers.get("outlast-request-id")).not.toBe(id);
    expect(await response.json()).toMatchObject({ choices: [{ message: { content: "Again" } }] });
  });

  it("of a stream that is waited for is a stream", async () => {
    outlast.fake.script(stream(deltas("one")), stream(deltas("two")));
    const id = await calls.finish({ stream: true });
    const response = await calls.act(id, "replay", { wait: true });
    expect(response.headers.get("content-type")).toContain("text/event-stream");
    expect(await response.text()).toContain("two");
  });

  it("of a request that goes on, or failed, or was cancelled, is a request of its own", async () => {
    const waiting = await calls.submit({ outlast: { delay: 600 } });
    expect(await calls.ended(await replayed(waiting))).toMatchObject({
      status: "completed",
      replay_of: waiting,
    });
    expect(await calls.record(waiting)).toMatchObject({ status: "queued" });
    await calls.acted(waiting, "cancel");
    expect(await calls.ended(await replayed(waiting))).toMatchObject({ status: "completed" });
    outlast.fake.script(permanent);
    const failed = await calls.finish();
    expect(await calls.ended(await replayed(failed))).toMatchObject({ status: "completed" });
    expect(await calls.record(failed)).toMatchObject({ status: "failed" });
  });

  it("with another body and options has those", async () => {
    const id = await calls.finish({ outlast: { tags: ["old"] } });
    const ask = { body: { ...hello, model: "gpt-other" }, options: { tags: ["new"], priority: "batch" } };
    const copy = await replayed(id, ask);
    expect(await calls.ended(copy)).toMatchObject({ model: "gpt-other", tags: ["new"], priority: "batch" });
    expect(JSON.parse(bodies()[1]!)).toEqual(ask.body);
  });

  it("keeps validating what was validated", async () => {
    const id = await calls.finish({ outlast: { validate: { max_retries: 0 } } });
    outlast.fake.script(answer({ text: "" }));
    const copy = await replayed(id);
    expect(await calls.ended(copy)).toMatchObject({ status: "failed", last_error_code: "invalid_output" });
    outlast.fake.script(answer({ text: "" }));
    const lenient = await replayed(id, { options: { validate: false } });
    expect(await calls.ended(lenient)).toMatchObject({ status: "completed" });
    outlast.fake.script(answer({ text: "" }));
    const other = await replayed(id, { body: { ...hello, seed: 1 } });
    expect(await calls.ended(other)).toMatchObject({ status: "failed", last_error_code: "invalid_output" });
  });

  it("follows Prefer, and waits for nobody where it says nothing of that", async () => {
    const id = await calls.finish();
    const waited = await calls.act(id, "replay", undefined, { prefer: "wait=30" });
    expect([waited.status, waited.headers.get("preference-applied")]).toEqual([200, "wait=30"]);
    for (const [ask, prefer] of [
      [undefined, "respond-async"],
      [undefined, "handling=lenient"],
      [{ wait: false }, "wait=30"],
    ] as const) {
      expect((await calls.act(id, "replay", ask, { prefer })).status).toBe(202);
    }
  });

  it("is never answered from what is known, unless asked", async () => {
    const cache = { ttl: "1h" };
    const id = await calls.finish({ outlast: { cache } });
    expect(await calls.ended(await replayed(id))).toMatchObject({ attempts: 1, cached_from: null });
    const hit = await replayed(id, { options: { cache } });
    expect(await calls.ended(hit)).toMatchObject({ attempts: 0, status: "completed" });
  });

  it("under a key is one replay, of one request", async () => {
    const [one, two] = [await calls.finish({ idempotency_key: "k-0" }), await calls.finish()];
    const held = gate();
    outlast.fake.script(held.step);
    const ask = { idempotency_key: "k-1" };
    const copy = await replayed(one, ask);
    const joined = await outlast.post(`/v1/requests/${one}/replay`, {}, { "idempotency-key": "k-1" });
    expect(strictAsync.parse(await joined.json()).id).toBe(copy);
    held.release();
    await calls.ended(copy);
    const again = await calls.act(one, "replay", { ...ask, wait: true });
    expect(again.headers.get("idempotent-replayed")).toBe("true");
    const refused = await calls.act(two, "replay", ask);
    expect(await refusalOf(refused)).toMatchObject({ code: "idempotency_key_reused" });
    const original = await calls.act(one, "replay", { idempotency_key: "k-0" });
    expect(await refusalOf(original)).toMatchObject({ code: "idempotency_key_reused" });
  });

  it.each([
    [{ wait: "long" }, "wait"],
    [{ idempotency_key: "a b" }, "idempotency_key"],
    [{ options: { colour: 1 } }, "options.colour"],
    [{ options: { delay: 1, run_at: 1 } }, "options.delay"],
    [{ options: { validate: { schema: { type: "nonsense" } } } }, "options.validate.schema"],
    [{ body: { messages: [] } }, "model"],
    [{ body: { ...hello, idempotency_key: "x" } }, "body.idempotency_key"],
    [{ filter: {} }, "filter"],
  ])("refuses %j", async (ask, param) => {
    const id = await calls.finish();
    const response = await calls.act(id, "replay", ask);
    expect(await refusalOf(response)).toMatchObject({ status: 400, param });
    expect(await calls.counts(`created_after=0`)).toEqual(await calls.counts(""));
    expect(outlast.fake.seen).toHaveLength(1);
  });

  it("what is not there is 404", async () => {
    expect(await refusalOf(await calls.act("req_none", "replay"))).toMatchObject({
      code: "request_not_found",
    });
  });
});

describe("a retry by hand and a retry by its key", () => {
  it("at once are one round", async () => {
    const clock = new WatchedClock();
    const { fake, ear } = await start({ clock, luck: 0.5, env: quick });
    fake.script(fail(500));
    const id = await calls.submit({ idempotency_key: "k", outlast: { max_attempts: 1 } });
    await ear.event("ended", (told) => told.id === id);
    fake.otherwise(hang());
    const [byHand, byKey] = await Promise.all([
      calls.act(id, "retry"),
      outlast.post("/v1/chat/completions", { ...hello, wait: false, idempotency_key: "k" }),
    ]);
    expect([200, 400]).toContain(byHand.status);
    expect(byKey.status).toBe(202);
    await fake.calls(2);
    expect((await calls.attempts(id)).map(({ round }) => round)).toEqual([1, 2]);
  });
});
