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
async function served(options: { crowd?: object; before?: string[] } = {}) {
  const clock = new WatchedClock();
  const outlast = await serveTest({ clock, upstreamToml: "max_concurrency = 1" });
  const { fake, ear } = outlast;
  const open = async () => {
    const peer = await Peer.open(outlast.url);
    onTestFinished(() => peer.close());
    return peer;
  };
  const [first, second] = [gate(), gate()];
  const caller = await open();
  for (const content of options.before ?? ["before"]) {
    await caller.say(asking(content));
    expect((await caller.reply()).status).toBe(200);
  }
  fake.script(first.step, second.step);
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
    expect(contents()).toHaveLength(2 + crowdSize);
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
    const all = ["before", "first", "again"].length + crowdSize;
    await ear.event("accepted", () => ear.all("accepted").length === all);
  });

  const whole = asking("again");
  it.each([
    ["", whole],
    [" in the middle of its body", whole.subarray(0, whole.length - 20)],
  ])("gets a reply where the server stops%s", async (_when, said) => {
    const { outlast, caller, turn, crowdServed } = await served();
    await caller.say(said);
    await turn();
    await crowdServed();
    void outlast.stop();
    const { status, headers, body } = await caller.reply();
    expect(status).toBe(503);
    expect(headers["retry-after"]).toMatch(/^\d+$/);
    expect(JSON.parse(body.toString()).error.code).toBe("shutting_down");
  });

  it("is seen to have gone without its answer when it tries again", async () => {
    const { outlast, caller, reply } = await served();
    await caller.reset();
    const id = reply.headers["outlast-request-id"];
    const call = { ...hello, messages: [{ role: "user", content: "first" }], outlast: {} };
    const again = await outlast.post("/v1/chat/completions", call, { "x-stainless-retry-count": "1" });
    expect(again.headers.get("outlast-request-id")).toBe(id);
  });

  it("is read at once where it used its connection for the first time", async () => {
    const { caller, contents, turn, crowdServed } = await served({ before: [] });
    await caller.say(asking("again"));
    await turn();
    await crowdServed();
    expect((await caller.reply()).status).toBe(200);
    expect(contents().at(-1)).toBe("again");
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
