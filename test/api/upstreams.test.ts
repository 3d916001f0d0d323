/** GET /v1/upstreams: what holds each lane, and until when. */

import { describe, expect, test } from "vitest";
import { z } from "zod";
import { listOf, upstreamSchema } from "../../src/contract.ts";
import { HandClock } from "../support/clock.ts";
import { closedPort, type FakeUpstream, fail, gate } from "../support/fake-upstream.ts";
import { hello, type Outlast } from "../support/outlast.ts";
import { settled } from "../support/steady-time.ts";
import { errorOf, serveTest, strictList } from "./wire.ts";

const path = "/v1/chat/completions";
const laneSchema = upstreamSchema.shape.lanes.element;
const strictUpstream = z.strictObject({
  ...upstreamSchema.shape,
  lanes: z.array(z.strictObject(laneSchema.shape)),
});

async function upstreams(outlast: Outlast, headers?: Record<string, string>) {
  const response = await outlast.fetch("/v1/upstreams", headers && { headers });
  expect(response.status).toBe(200);
  expect(response.headers.get("content-type")).toBe("application/json");
  return strictList(strictUpstream).parse(await response.json()).data;
}
async function submit(outlast: Outlast, body: object = {}, headers?: Record<string, string>) {
  const response = await outlast.post(path, { ...hello, ...body, wait: false }, headers);
  expect(response.status).toBe(202);
  return ((await response.json()) as { id: string }).id;
}

describe("an upstream is shown", () => {
  test("idle, before it was ever called", async () => {
    const outlast = await serveTest({ upstreams: ["one", "two"] });
    const response = await outlast.fetch("/v1/upstreams");
    const list = listOf(upstreamSchema).parse(await response.json());
    expect(list).toMatchObject({ first_id: "one", last_id: "two", has_more: false });
    expect(await upstreams(outlast)).toMatchObject([
      { id: "one", in_flight: 0, reachable: true, breaker: { state: "closed", until: null }, lanes: [] },
      { id: "two", in_flight: 0, max_concurrency: 256, limit_group: null, lanes: [] },
    ]);
  });

  test("limited", async () => {
    const clock = new HandClock();
    const outlast = await serveTest({
      clock,
      upstreamToml: 'requests_per_minute = 2\nlimit_group = "all"',
      tables: "[limit_groups.all]\ntokens_per_minute = 100000",
    });
    for (let i = 0; i < 3; i++) await submit(outlast);
    await settled(outlast);
    const until = new Date(clock.now() + 60_250).toISOString();
    expect(await upstreams(outlast)).toMatchObject([
      {
        limit_group: "all",
        lanes: [
          {
            model: "gpt-test",
            queued: 1,
            requests: { per_minute: 2, used: 2, source: "config", opens_at: until, refilled_at: until },
            tokens: { per_minute: 100_000, used: 12, source: "config", opens_at: null },
            estimate: { samples: 2 },
            waiting_for: "rate_limit",
            until,
          },
        ],
      },
    ]);
  });

  test("with an open breaker", async () => {
    const clock = new HandClock();
    const outlast = await serveTest({ clock, luck: 0 });
    outlast.fake.otherwise(fail(500));
    for (let i = 0; i < 3; i++) await submit(outlast);
    for (let i = 0; i < 20 && outlast.ear.all("breaker_opened").length === 0; i++) {
      await settled(outlast);
      clock.advance(1000);
    }
    await settled(outlast);
    const [upstream] = await upstreams(outlast);
    expect(upstream!.lanes[0]).toMatchObject({
      breaker: { state: "open", opens: 1 },
      waiting_for: "breaker",
    });
    expect(Date.parse(upstream!.lanes[0]!.until!)).toBeGreaterThanOrEqual(clock.now() + 15_000);
  });

  test("that cannot be reached", async () => {
    const clock = new HandClock();
    const one = { baseUrl: await closedPort(), close: async () => {} } as unknown as FakeUpstream;
    const outlast = await serveTest({ clock, upstreams: { one } });
    await submit(outlast);
    await outlast.ear.event("gate_closed");
    await settled(outlast);
    expect(await upstreams(outlast)).toMatchObject([
      { reachable: false, lanes: [{ queued: 1, waiting_for: "backoff", until: expect.any(String) }] },
    ]);
  });

  test("full", async () => {
    const outlast = await serveTest({ clock: new HandClock(), upstreamToml: "max_concurrency = 1" });
    const held = gate();
    outlast.fake.script(held.step);
    const first = await submit(outlast);
    await held.arrived;
    const second = await submit(outlast);
    expect(await upstreams(outlast)).toMatchObject([
      {
        in_flight: 1,
        max_concurrency: 1,
        lanes: [{ queued: 1, in_flight: 1, waiting_for: "capacity", until: null }],
      },
    ]);
    held.release();
    for (const id of [first, second]) await outlast.ear.event("ended", (told) => told.id === id);
  });
});

describe("who may see them", () => {
  const tables = ["alpha", "beta"]
    .map((name) => `[[api_keys]]\nkey = "key-of-${name}"\nproject = "${name}"\n`)
    .join("");

  test("needs an API key, where there are any", async () => {
    const outlast = await serveTest({ tables });
    const refused = await outlast.fetch("/v1/upstreams");
    expect(refused.status).toBe(401);
    await errorOf(refused);
    const wrong = await outlast.fetch("/v1/upstreams", { headers: { authorization: "Bearer wrong" } });
    expect(wrong.status).toBe(401);
    expect(await upstreams(outlast, { authorization: "Bearer key-of-alpha" })).toHaveLength(1);
  });

  test("sees no secret, and nothing of other projects' requests", async () => {
    const outlast = await serveTest({ tables });
    const id = await submit(
      outlast,
      { messages: [{ role: "user", content: "a private question" }] },
      { authorization: "Bearer key-of-beta" },
    );
    await outlast.ear.event("ended", (told) => told.id === id);
    const response = await outlast.fetch("/v1/upstreams", {
      headers: { authorization: "Bearer key-of-alpha" },
    });
    const text = await response.text();
    expect(text).toContain("gpt-test");
    for (const secret of ["sk-upstream", "key-of", "alpha", "beta", id, "private", "127.0.0.1"]) {
      expect(text).not.toContain(secret);
    }
  });
});

test.each(["POST", "PUT", "PATCH", "DELETE"])("%s is not there", async (method) => {
  const outlast = await serveTest({ env: { OUTLAST_PASSTHROUGH: "all" } });
  const response = await outlast.fetch("/v1/upstreams", { method });
  expect(response.status).toBe(404);
  expect(await errorOf(response)).toMatchObject({ code: "not_found" });
  expect(outlast.fake.seen).toEqual([]);
});

test("callers that make up names of models do not make it grow without end", async () => {
  const outlast = await serveTest({
    clock: new HandClock(),
    upstreams: ["one", "two"],
    tables: '[routes]\n"*" = ["one", "two"]',
  });
  for (let block = 0; block < 4; block++) {
    await Promise.all(
      Array.from({ length: 300 }, (_, i) => submit(outlast, { model: `made-up-${block}-${i}` })),
    );
    await settled(outlast);
  }
  outlast.fakes.one!.otherwise(fail(404));
  outlast.fakes.two!.otherwise(fail(404));
  await Promise.all(
    Array.from({ length: 300 }, (_, i) => outlast.post(path, { ...hello, model: `wrong-${i}` })),
  );
  const [one, two] = await upstreams(outlast);
  expect(one!.lanes.length).toBeLessThanOrEqual(1100);
  expect(two!.lanes.length).toBeLessThanOrEqual(300);
});
