import { describe, expect, it, vi } from "vitest";
import { StorageError } from "../../src/core/errors.ts";
import { Ledger } from "../../src/core/ledger/ledger.ts";
import { answer, deltas, fail, gate, type Step, stream } from "../support/fake-upstream.ts";
import { hello, type Outlast } from "../support/outlast.ts";
import { LedgerCalls } from "./ledger-calls.ts";
import { refusalOf, serveGroup, serveTest, WatchedClock } from "./wire.ts";

let outlast: Outlast;
const calls = new LedgerCalls(() => outlast);

describe("erasing", () => {
  serveGroup((one) => {
    outlast = one;
  });

  it("a request takes its record, its attempts, its stream and its key along", async () => {
    outlast.fake.script(stream(deltas("Secret")));
    const id = await calls.finish({ stream: true, idempotency_key: "k-1", user: "ann" });
    await calls.erased(id);
    for (const path of [
      `requests/${id}`,
      `requests/${id}/attempts`,
      `requests/${id}/stream`,
      `chat/completions/${id}`,
    ]) {
      expect(await refusalOf(await outlast.fetch(`/v1/${path}`))).toMatchObject({
        code: "request_not_found",
      });
    }
    expect(await calls.ids("user=ann")).toEqual([]);
    expect(await refusalOf(await calls.erase(id))).toMatchObject({ status: 404, code: "request_not_found" });
    // The key is free again.
    const next = await calls.finish({ idempotency_key: "k-1", model: "other" });
    expect(await calls.record(next)).toMatchObject({ status: "completed", model: "other" });
  });

  it("what goes on ends it first", async () => {
    const held = gate();
    outlast.fake.script(held.step);
    const waiting = calls.finish();
    await held.arrived;
    const [id] = await calls.ids("status=processing");
    await calls.erased(id!);
    expect(await waiting).toBe(id);
    await outlast.fake.idle();
    expect(await refusalOf(await outlast.fetch(`/v1/requests/${id}`))).toMatchObject({ status: 404 });
  });

  it("by the answer's own id is possible", async () => {
    outlast.fake.script(answer({ id: "chatcmpl-erase" }));
    const id = await calls.finish();
    const response = await calls.erase("chatcmpl-erase");
    expect(await response.json()).toMatchObject({ id, deleted: true });
  });

  it("the last one of a page leaves the cursor good", async () => {
    const ids: string[] = [];
    for (let i = 0; i < 5; i++) ids.push(await calls.submit({ user: "page", outlast: { delay: 600 } }));
    const page = await calls.list("user=page&limit=2&order=asc");
    await calls.erased(page.last_id!);
    expect(await calls.ids(`user=page&order=asc&after=${page.last_id}`)).toEqual(ids.slice(2));
    expect(await calls.ids(`user=page&after=${page.last_id}`)).toEqual([ids[0]]);
  });
});

describe("resolving", () => {
  serveGroup((one) => {
    outlast = one;
  });

  it("marks a failed request, and can be taken back", async () => {
    outlast.fake.script(fail(401, { code: "no_key" }));
    const id = await calls.finish();
    const { resolved_at } = await calls.acted(id, "resolve");
    expect(resolved_at).not.toBeNull();
    expect(await calls.deadLetters()).toEqual([]);
    expect(await calls.counts("by=resolved")).toEqual([{ resolved: true, count: 1 }]);
    expect(await calls.acted(id, "resolve", { resolved: false })).toMatchObject({ resolved_at: null });
    expect(await calls.deadLetters()).toMatchObject([{ last_request_id: id, count: 1 }]);
    expect(await calls.acted(id, "resolve", { resolved: true })).toMatchObject({ status: "failed" });
    // Another round makes it open again.
    expect(await calls.acted(id, "retry")).toMatchObject({ resolved_at: null });
  });

  it("is for failed requests", async () => {
    const id = await calls.finish();
    expect(await refusalOf(await calls.act(id, "resolve"))).toMatchObject({
      status: 400,
      code: "request_not_failed",
    });
    expect(await refusalOf(await calls.act(id, "resolve", { resolved: "yes" }))).toMatchObject({
      param: "resolved",
    });
    expect(await refusalOf(await calls.act("req_none", "resolve"))).toMatchObject({ status: 404 });
  });
});

describe("a request whose bodies are no longer kept", () => {
  async function withoutBodies(body: object, ...steps: Step[]) {
    const clock = new WatchedClock();
    outlast = await serveTest({ clock, luck: 0.5, tables: '[retention]\nbodies = "1h"' });
    outlast.fake.script(...steps);
    const id = await calls.submit(body);
    await calls.ended(id);
    clock.advance(2 * 3_600_000);
    // A sweep goes in steps, with pauses between them.
    for (let steps = 0; outlast.ear.all("erased").length === 0 && steps < 5000; steps++) {
      clock.advance(10_000);
      await outlast.fetch("/healthz");
    }
    return id;
  }
  const gone = { status: 410, code: "bodies_erased", param: null };

  it("is still known, without them", async () => {
    const id = await withoutBodies({ user: "ann" });
    const record = await calls.record(id, "?include=body,attempts");
    expect(record).toMatchObject({ status: "completed", result: null, user: "ann", attempts: 1 });
    expect(record.bodies_erased_at).not.toBeNull();
    expect(record).not.toHaveProperty("body");
    expect(await calls.attempts(id, "?include=bodies")).toMatchObject([{ request: null, response: null }]);
    expect(await refusalOf(await outlast.fetch(`/v1/chat/completions/${id}`))).toEqual(gone);
    expect(await refusalOf(await outlast.fetch(`/v1/requests/${id}/stream`))).toEqual(gone);
    expect(await refusalOf(await calls.act(id, "replay"))).toEqual(gone);
  });

  it("is made again with another body, and only with that", async () => {
    const id = await withoutBodies({}, fail(401, { code: "no_key" }));
    expect(await refusalOf(await calls.act(id, "retry"))).toEqual(gone);
    expect(await refusalOf(await calls.act(id, "retry", { options: { validate: true } }))).toEqual(gone);
    const body = { ...hello, seed: 1 };
    const replay = await calls.act(id, "replay", { body, wait: true });
    expect(replay.status).toBe(200);
    await calls.acted(id, "retry", { body });
    expect(await calls.ended(id)).toMatchObject({ status: "completed", bodies_erased_at: null });
    expect((await calls.record(id)).result).toMatchObject({ object: "chat.completion" });
    for (const call of outlast.fake.seen.slice(1)) {
      expect([call.url, JSON.parse(String(call.body))]).toEqual(["/v1/chat/completions", body]);
    }
  });

  it("is not called again under its key", async () => {
    await withoutBodies({ idempotency_key: "k-1" });
    for (const more of [{}, { stream: true }, { wait: false }]) {
      const body = { ...hello, idempotency_key: "k-1", ...more };
      const response = await outlast.post("/v1/chat/completions", body);
      expect(response.headers.get("x-should-retry")).toBe("false");
      expect(await refusalOf(response)).toEqual(gone);
    }
    expect(outlast.fake.seen).toHaveLength(1);
  });
});

describe("what the disk has no room for, or fails to do", () => {
  serveGroup((one) => {
    outlast = one;
  });

  it.each(["full", "failed"] as const)("is refused for now: %s", async (kind) => {
    outlast.fake.script(fail(401, { code: "no_key" }));
    const id = await calls.finish();
    const trouble = new StorageError(kind, "no room");
    const resolving = vi.spyOn(Ledger.prototype, "resolve").mockRejectedValueOnce(trouble);
    const response = await calls.act(id, "resolve");
    resolving.mockRestore();
    expect(Number(response.headers.get("retry-after"))).toBeGreaterThan(0);
    expect(await refusalOf(response)).toEqual({ status: 503, code: `storage_${kind}`, param: null });
    expect(outlast.ear.all("fault")).toEqual([]);
  });
});
