import { describe, expect, it } from "vitest";
import { answer, fail, gate } from "../support/fake-upstream.ts";
import { hello, type Outlast } from "../support/outlast.ts";
import { LedgerCalls } from "./ledger-calls.ts";
import { errorOf, refusalOf, serveGroup, serveTest } from "./wire.ts";

let outlast: Outlast;
const calls = new LedgerCalls(() => outlast);
const permanent = fail(401, { code: "no_key" });

/** Failed requests; their ids. */
async function failed(count: number, more: object = {}): Promise<string[]> {
  outlast.fake.otherwise(permanent);
  const ids = await Promise.all(Array.from({ length: count }, () => calls.finish(more)));
  outlast.fake.otherwise(answer());
  return ids.sort();
}

/** A tag that no other test has. */
let tags = 0;
const aTag = () => `tag-${++tags}`;

describe("bulks", () => {
  serveGroup((one) => {
    outlast = one;
  });

  it("retry all that match, and tell how far they are", async () => {
    const tag = aTag();
    const ids = await failed(70, { outlast: { tags: [tag] } });
    const [other] = await failed(1);
    const bulk = await calls.asked("retry", { filter: { tag } });
    expect(bulk).toMatchObject({
      object: "bulk",
      action: "retry",
      filter: { tag: [tag], status: ["failed"], resolved: false },
      total: 70,
      failed: 0,
      error_code: null,
      idempotency_key: null,
    });
    await outlast.ear.event("bulk_ended", ({ id }) => id === bulk.id);
    expect(await calls.bulk(bulk.id)).toMatchObject({ status: "completed", done: 70, skipped: 0, failed: 0 });
    for (const id of ids) expect(await calls.ended(id)).toMatchObject({ status: "completed", attempts: 2 });
    expect(await calls.record(other!)).toMatchObject({ status: "failed", attempts: 1 });
  });

  it("retry failed ones that nobody has resolved, and cancelled ones only if asked", async () => {
    const tag = aTag();
    const [open, resolved] = await failed(2, { outlast: { tags: [tag] } });
    await calls.acted(resolved!, "resolve");
    const stopped = await calls.submit({ outlast: { delay: 600, tags: [tag] } });
    await calls.acted(stopped, "cancel");
    expect(await calls.done("retry", { filter: { tag } })).toMatchObject({ total: 1, done: 1 });
    expect(await calls.ended(open!)).toMatchObject({ status: "completed" });
    expect(await calls.record(resolved!)).toMatchObject({ status: "failed" });
    const all = await calls.done("retry", { filter: { tag, status: ["failed", "cancelled"] } });
    expect(all).toMatchObject({ total: 2, done: 2 });
    expect(await calls.ended(stopped)).toMatchObject({ status: "completed" });
    expect(await calls.ended(resolved!)).toMatchObject({ status: "completed", resolved_at: null });
  });

  it("retry with options", async () => {
    const tag = aTag();
    const [id] = await failed(1, { outlast: { tags: [tag] } });
    await calls.done("retry", { filter: { tag }, options: { priority: "batch", delay: "10m" } });
    expect(await calls.record(id!)).toMatchObject({
      status: "queued",
      priority: "batch",
      waiting_for: "scheduled",
    });
  });

  it("cancel what has not ended", async () => {
    const tag = aTag();
    const held = gate();
    outlast.fake.script(held.step);
    const running = await calls.submit({ outlast: { tags: [tag] } });
    await held.arrived;
    const waiting = await calls.submit({ outlast: { tags: [tag], delay: 600 } });
    const done = await calls.finish({ outlast: { tags: [tag] } });
    const bulk = await calls.done("cancel", { filter: { tag } });
    expect(bulk).toMatchObject({ action: "cancel", status: "completed", total: 2, done: 2 });
    expect(bulk.filter.status).toEqual(["queued", "processing", "retrying"]);
    held.release();
    expect(await calls.record(running)).toMatchObject({ status: "cancelled" });
    expect(await calls.record(waiting)).toMatchObject({ status: "cancelled" });
    expect(await calls.record(done)).toMatchObject({ status: "completed" });
  });

  it("erase whatever matches, also what goes on", async () => {
    const user = `user-${aTag()}`;
    const kept = await calls.finish({ user: "somebody" });
    const gone = [await calls.finish({ user }), await calls.submit({ user, outlast: { delay: 600 } })];
    expect(await calls.done("erase", { filter: { user } })).toMatchObject({ total: 2, done: 2 });
    for (const id of gone) {
      expect(await refusalOf(await outlast.fetch(`/v1/requests/${id}`))).toMatchObject({ status: 404 });
    }
    expect(await calls.ids(`user=${user}`)).toEqual([]);
    expect(await calls.counts(`user=${user}`)).toEqual([]);
    expect(await calls.record(kept)).toMatchObject({ user: "somebody" });
  });

  it("mark failures as resolved, which leave the dead letters", async () => {
    const tag = aTag();
    const ids = await failed(3, { outlast: { tags: [tag] } });
    await calls.finish({ outlast: { tags: [tag] } });
    expect(await calls.deadLetters(`tag=${tag}`)).toMatchObject([{ count: 3, resolved: 0 }]);
    expect(await calls.done("resolve", { filter: { tag } })).toMatchObject({ total: 3, done: 3 });
    expect(await calls.deadLetters(`tag=${tag}`)).toEqual([]);
    expect(await calls.deadLetters(`tag=${tag}&resolved=any`)).toMatchObject([{ count: 3, resolved: 3 }]);
    expect((await calls.ids(`tag=${tag}&resolved=true&order=asc`)).sort()).toEqual(ids);
  });

  it("mark only failures that are not resolved yet, unless asked", async () => {
    const tag = aTag();
    const [first] = await failed(2, { outlast: { tags: [tag] } });
    const { resolved_at } = await calls.acted(first!, "resolve");
    const bulk = await calls.done("resolve", { filter: { tag } });
    expect(bulk).toMatchObject({ filter: { status: ["failed"], resolved: false }, total: 1, done: 1 });
    expect(await calls.record(first!)).toMatchObject({ resolved_at });
    expect(await calls.done("resolve", { filter: { tag, resolved: true } })).toMatchObject({ total: 2 });
  });

  it("take every filter of the list, and say it back", async () => {
    const filter = {
      status: ["failed"],
      model: "m",
      upstream: "fake",
      endpoint: "chat.completions",
      error_code: "e",
      caused_by: "caller",
      resolved: true,
      tag: ["a", "b"],
      user: "u",
      safety_identifier: "s",
      metadata: { k: "v", "user.x": "y" },
      trace_id: "t",
      client_request_id: "c",
      idempotency_key: "i",
      created_after: "2026-01-02T03:04:05.000Z",
      created_before: "2026-01-02T03:04:06.500Z",
    };
    const bulk = await calls.asked("retry", { filter });
    expect(bulk).toMatchObject({ status: "completed", total: 0, done: 0, filter });
    expect(Object.keys(bulk.filter).sort()).toEqual(Object.keys(filter).sort());
    const loose = { status: "failed", tag: "a", created_after: 1_767_323_045 };
    expect((await calls.asked("retry", { filter: loose })).filter).toMatchObject({
      status: ["failed"],
      tag: ["a"],
      created_after: "2026-01-02T03:04:05.000Z",
    });
  });

  it("that mean everything have to say so", async () => {
    for (const [ask, param] of [
      [{}, "filter"],
      [{ filter: {} }, "filter"],
      [{ filter: {}, all: false }, "filter"],
      [{ filter: { tag: [] } }, "filter.tag"],
      [{ filter: { metadata: {} } }, "filter.metadata"],
      ['{"filter":{"metadata":{"__proto__":"x"}}}', "filter.metadata"],
      [{ filter: { status: [] } }, "filter.status"],
    ] as const) {
      const refused = await outlast.post("/v1/requests/erase", ask);
      expect(await refusalOf(refused)).toMatchObject({ status: 400, param });
    }
    expect((await errorOf(await outlast.post("/v1/requests/cancel", {}))).message).toContain('"all": true');
    const waiting = await calls.submit({ outlast: { delay: 600 } });
    expect(await calls.done("cancel", { all: true })).toMatchObject({ status: "completed" });
    expect(await calls.record(waiting)).toMatchObject({ status: "cancelled" });
  });

  it("under a key are done once, and not mistaken for others", async () => {
    const tag = aTag();
    await failed(2, { outlast: { tags: [tag] } });
    const key = `key-of-${tag}`;
    const ask = { filter: { tag, status: "failed" } };
    const bulk = await calls.asked("retry", ask, { "idempotency-key": key });
    await outlast.ear.event("bulk_ended", ({ id }) => id === bulk.id);
    const text = ` { "idempotency_key": "${key}", "filter" : {"status":"failed","tag":"${tag}"} } `;
    const again = await outlast.post("/v1/requests/retry", text);
    expect(again.status).toBe(200);
    expect(again.headers.get("idempotent-replayed")).toBe("true");
    expect(await again.json()).toMatchObject({ id: bulk.id, done: 2, idempotency_key: key });
    for (const [action, other] of [
      ["retry", { filter: { tag } }],
      ["retry", { ...ask, options: { priority: "batch" } }],
      ["cancel", { filter: { tag } }],
    ] as const) {
      const refused = await outlast.post(`/v1/requests/${action}`, { ...other, idempotency_key: key });
      expect(await refusalOf(refused)).toEqual({
        status: 400,
        code: "idempotency_key_reused",
        param: "idempotency_key",
      });
    }
  });

  it("are listed with the newest first, by pages", async () => {
    const made = [];
    for (let i = 0; i < 3; i++) made.unshift((await calls.asked("retry", { filter: { tag: aTag() } })).id);
    const page = await calls.bulks("limit=2");
    expect(page.data.map(({ id }) => id)).toEqual(made.slice(0, 2));
    expect(page).toMatchObject({ has_more: true, last_id: made[1] });
    expect((await calls.bulks(`limit=1&after=${made[1]}`)).data.map(({ id }) => id)).toEqual([made[2]]);
    const refused = await outlast.fetch("/v1/bulks?after=bulk_none");
    expect(await refusalOf(refused)).toMatchObject({ code: "invalid_cursor", param: "after" });
    expect(await refusalOf(await outlast.fetch("/v1/bulks?colour=red"))).toMatchObject({ param: "colour" });
  });

  it("that have ended stay as they are when they are cancelled", async () => {
    const { id } = await calls.asked("retry", { filter: { tag: aTag() } });
    const response = await outlast.fetch(`/v1/bulks/${id}/cancel`, { method: "POST" });
    expect(await response.json()).toMatchObject({ id, status: "completed" });
  });

  it.each([
    ["retry", { filter: { colour: "red" } }, "filter.colour"],
    ["retry", { filter: { status: "done" } }, "filter.status"],
    ["retry", { filter: { status: ["completed"] } }, "filter.status"],
    ["cancel", { filter: { status: ["failed"] } }, "filter.status"],
    ["resolve", { filter: { status: ["cancelled"] } }, "filter.status"],
    ["retry", { filter: "all" }, "filter"],
    ["retry", { filter: { metadata: { a: 1 } } }, "filter.metadata.a"],
    ["retry", { filter: { limit: 5 } }, "filter.limit"],
    ["retry", { filter: { user: 5 } }, "filter.user"],
    ["retry", { filter: { tag: "a" }, options: { validate: true } }, "options.validate"],
    ["retry", { filter: { tag: "a" }, options: { deadline: "soon" } }, "options.deadline"],
    ["cancel", { filter: { tag: "a" }, options: { priority: "batch" } }, "options"],
    ["erase", { filter: { tag: "a" }, all: "yes" }, "all"],
    ["erase", { tag: "a" }, "tag"],
  ])("cannot %s %j", async (action, ask, param) => {
    const response = await outlast.post(`/v1/requests/${action}`, ask);
    expect(response.status).toBe(400);
    const error = await errorOf(response);
    expect(error).toMatchObject({ code: "invalid_parameter", param });
    expect(error.message).not.toMatch(/invalid input|expected|received/i);
  });

  it("of no JSON, or of an upstream that is not there, are refused", async () => {
    const text = await outlast.post("/v1/requests/erase", "x", { "content-type": "text/plain" });
    expect(await refusalOf(text)).toMatchObject({ status: 415 });
    expect(await refusalOf(await outlast.post("/v1/requests/erase", "{"))).toMatchObject({
      code: "invalid_json",
    });
    const ask = { filter: { tag: "a" }, options: { upstream: "nowhere" } };
    const nowhere = await outlast.post("/v1/requests/retry", ask);
    expect(await refusalOf(nowhere)).toMatchObject({ code: "upstream_not_found" });
    expect(await refusalOf(await outlast.fetch("/v1/bulks/bulk_none"))).toEqual({
      status: 404,
      code: "bulk_not_found",
      param: "id",
    });
  });
});

describe("a bulk of many pages", () => {
  it("can be cancelled, and what is done stays done", async () => {
    outlast = await serveTest({ upstreamToml: "max_concurrency = 1" });
    const held = gate();
    outlast.fake.script(held.step);
    const ids: string[] = [];
    for (let i = 0; i < 200; i++) ids.push(await calls.submit({ outlast: { tags: ["t"] } }));
    const { id } = await calls.asked("cancel", { filter: { tag: "t" } });
    const response = await outlast.fetch(`/v1/bulks/${id}/cancel`, { method: "POST" });
    const ended = (await response.json()) as { status: string; done: number };
    expect(["cancelled", "completed"]).toContain(ended.status);
    const [cancelled] = await calls.counts("status=cancelled");
    expect(cancelled?.count ?? 0).toBe(ended.done);
    held.release();
  });

  it("belongs to its project", async () => {
    const keys = ["a", "b"].map((name) => `[[api_keys]]\nkey = "key-of-${name}"\nproject = "${name}"\n`);
    outlast = await serveTest({ tables: keys.join("") });
    const [a, b] = ["a", "b"].map((name) => ({ authorization: `Bearer key-of-${name}` }));
    outlast.fake.otherwise(permanent);
    for (const headers of [a, b]) await calls.finish({ user: "ann" }, headers);
    const bulk = await calls.asked("erase", { filter: { user: "ann" } }, { ...a, "idempotency-key": "k" });
    if (bulk.status === "in_progress") await outlast.ear.event("bulk_ended", ({ id }) => id === bulk.id);
    expect(bulk.total).toBe(1);
    expect(await calls.ids("", a)).toEqual([]);
    expect(await calls.ids("", b)).toHaveLength(1);
    expect((await calls.bulks("", b)).data).toEqual([]);
    expect((await calls.bulk(bulk.id, a)).done).toBe(1);
    for (const [path, method] of [
      [`/v1/bulks/${bulk.id}`, "GET"],
      [`/v1/bulks/${bulk.id}/cancel`, "POST"],
    ] as const) {
      const refused = await outlast.fetch(path, { method, headers: b });
      expect(await refusalOf(refused)).toMatchObject({ code: "bulk_not_found" });
    }
    const other = await outlast.post(
      "/v1/requests/erase",
      { filter: { user: "x" }, idempotency_key: "k" },
      b,
    );
    expect(other.status).toBe(202);
  });
});

describe("retrying what an outage has left", () => {
  it("needs one call", async () => {
    outlast = await serveTest();
    const ids = await failed(10);
    const text = { filter: { error_code: "no_key", created_after: "2020-01-01T00:00:00Z" } };
    expect(await calls.deadLetters()).toMatchObject([{ error_code: "no_key", count: 10 }]);
    expect(await calls.done("retry", text)).toMatchObject({ total: 10, done: 10 });
    for (const id of ids) expect(await calls.ended(id)).toMatchObject({ status: "completed" });
    expect(await calls.deadLetters()).toEqual([]);
    expect(JSON.parse(String(outlast.fake.seen.at(-1)!.body))).toEqual(hello);
  });
});
