/** Callers who ask again while a crowd waits for the same turn: what they say is read later, and nothing of it is lost. */

import { describe, expect, it, onTestFinished } from "vitest";
import { gate } from "../support/fake-upstream.ts";
import { hello } from "../support/outlast.ts";
import { chatCall, Peer } from "../support/peer.ts";
import { serveTest, WatchedClock } from "./wire.ts";

const crowdSize = 150;
/** For so long a caller waits for its turn without being accepted. */
const patienceMs = 1000;

const asking = (content: string, outlast: object = {}) =>
  chatCall({ ...hello, messages: [{ role: "user", content }], outlast });

/** One caller has been served, while a crowd waits behind the one call that the upstream takes at a time. */
async function served(options: { crowd?: object } = {}) {
  const clock = new WatchedClock();
  const outlast = await serveTest({ clock, upstreamToml: "max_concurrency = 1" });
  const { fake, ear } = outlast;
  const open = async () => {
    const peer = await Peer.open(outlast.url);
    onTestFinished(() => peer.close());
    return peer;
  };
  const [first, second] = [gate(), gate()];
  fake.script(first.step, second.step);
  const caller = await open();
  await caller.say(asking("first"));
  await first.arrived;
  const crowd = await Promise.all(Array.from({ length: crowdSize }, open));
  for (const [i, peer] of crowd.entries()) await peer.say(asking(`crowd ${i}`, options.crowd));
  await clock.armed(patienceMs, crowdSize);
  first.release();
  const reply = await caller.reply();
  expect(reply.status).toBe(200);
  await second.arrived;
  const contents = () => fake.seen.map(({ body }) => JSON.parse(body.toString()).messages[0].content);
  /** What the server was sent before this has been read by it. */
  const turn = async () => {
    for (let i = 0; i < 3; i++) expect((await outlast.fetch("/healthz")).status).toBe(200);
  };
  const crowdServed = async () => {
    second.release();
    for (const peer of crowd) expect((await peer.reply()).status).toBe(200);
  };
  return { outlast, fake, ear, clock, caller, reply, contents, turn, crowdServed };
}

describe("a caller who was served while a crowd waits", () => {
  it("is read when the crowd has had its turn, and gets its answer", async () => {
    const { clock, caller, contents, turn, crowdServed } = await served();
    await caller.say(asking("again"));
    await turn();
    await crowdServed();
    expect(contents()).toHaveLength(1 + crowdSize);
    expect(contents()).not.toContain("again");
    clock.advance(5);
    expect((await caller.reply()).status).toBe(200);
    expect(contents().at(-1)).toBe("again");
  });

  it("is read after half a second, however long the crowd is, and is on disk a second later", async () => {
    const { clock, caller, ear, turn } = await served();
    await caller.say(asking("again"));
    await turn();
    clock.advance(500);
    await turn();
    clock.advance(patienceMs);
    // The first, the one under way, the others of the crowd, and the one that was not read.
    const all = 1 + crowdSize + 1;
    await ear.event("accepted", () => ear.all("accepted").length === all);
  });

  it("gets a reply where the server stops", async () => {
    const { outlast, caller, turn, crowdServed } = await served();
    await caller.say(asking("again"));
    await turn();
    await crowdServed();
    void outlast.stop();
    const { status, headers, body } = await caller.reply();
    expect(status).toBe(503);
    expect(headers["retry-after"]).toMatch(/^\d+$/);
    expect(JSON.parse(body.toString()).error.code).toBe("shutting_down");
  });

  it("is known to have its answer or not, although it is not read", async () => {
    const { outlast, clock, caller, reply, ear } = await served();
    await caller.reset();
    clock.advance(500);
    const id = reply.headers["outlast-request-id"];
    await ear.event("orphaned", (told) => told.id === id);
    const call = { ...hello, messages: [{ role: "user", content: "first" }], outlast: {} };
    const again = await outlast.post("/v1/chat/completions", call, { "x-stainless-retry-count": "1" });
    expect(again.headers.get("outlast-request-id")).toBe(id);
  });

  it("does not stand behind a crowd of another priority", async () => {
    const { caller, contents, turn, crowdServed } = await served({ crowd: { priority: "batch" } });
    await caller.say(asking("again"));
    await turn();
    await crowdServed();
    expect((await caller.reply()).status).toBe(200);
    expect(contents().indexOf("again")).toBeLessThan(20);
  });
});
