/** Answers that end with their connection: a reset is no such end. */

import { afterEach, beforeEach, expect, it } from "vitest";
import type { Outcome } from "../../src/core/ports.ts";
import { createUpstream } from "../../src/outbound/upstream.ts";
import { systemClock } from "../../src/system.ts";
import { type FakeUpstream, raw, startFake } from "../support/fake-upstream.ts";

const head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
const whole = `{"id":"a","text":"${"x".repeat(100_000)}"}`;

let fake: FakeUpstream;
let upstream: ReturnType<typeof createUpstream>;
beforeEach(async () => {
  fake = await startFake();
  const options = { name: "fake", baseUrl: fake.baseUrl, headers: {}, maxConcurrency: 4 };
  upstream = createUpstream([options], { connectMs: 5000, attemptMs: 10_000 }, systemClock);
});
afterEach(async () => {
  await upstream.close();
  await fake.close();
});

async function forwarded(): Promise<string> {
  const call = { upstream: "fake", method: "GET", path: "/files", headers: [], body: undefined };
  const reply = await upstream.forward(call, { aborted: false, onAbort: undefined });
  if (reply.kind !== "response") throw new Error(reply.kind);
  let text = "";
  for await (const bytes of reply.body) text += Buffer.from(bytes).toString();
  return text;
}

async function called(): Promise<Outcome> {
  const call = { upstream: "fake", model: "m", askedModel: "m", method: "POST", path: "/c", headers: [] };
  const body = Buffer.from("{}");
  const abort = { aborted: false, onAbort: undefined };
  return (await upstream.call({ ...call, headers: [], body }, abort)).outcome;
}

it("is whole where its connection ends cleanly", async () => {
  fake.script(raw(head + whole), raw(head + whole));
  expect(await forwarded()).toBe(whole);
  expect(await called()).toMatchObject({ kind: "response", status: 200, facts: { id: "a" } });
});

it("is cut where its connection is reset, however it was called", async () => {
  fake.script(raw(head + whole, "reset"), raw(head + whole, "reset"));
  await expect(forwarded()).rejects.toMatchObject({ code: "ECONNRESET" });
  expect(await called()).toEqual({ kind: "network_error", code: "ECONNRESET", sent: true });
});
