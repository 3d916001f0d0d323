import { expect, test } from "vitest";
import { Feed } from "../../src/core/feed.ts";
import { Line } from "../../src/core/line.ts";
import { StreamReader } from "../../src/core/reader.ts";
import { beginning } from "../../src/core/stream-cursor.ts";
import { openMemory } from "../../src/store/sqlite/memory.ts";
import { aRecord, completes, someTerms, starts, walk } from "../support/builders.ts";

const stream = { mode: "live" as const, usage: false };

test("who joins a stream just as it ends is given the events that were recorded, not others made from the answer", async () => {
  const store = openMemory();
  const owner = { node: "local", epoch: store.nextEpoch("local", 1) };
  const accepted = aRecord({ terms: { ...someTerms, stream } });
  const [started, ended] = walk(accepted, starts(owner), completes());
  const recorded = ['{"one":1}', '{"two":2}', '{"three":3}'];
  const answer = '{"id":"a","object":"chat.completion","choices":[{"index":0,"message":{"content":"All"}}]}';
  const bytes = (text: string) => Buffer.from(text);
  await store.commit({ kind: "accept", record: accepted, parts: [] });
  await store.commit({ kind: "change", transition: started! });
  const line = new Line(store, accepted.id, () => {});
  // Opened when the request had ended: nobody publishes to it any more.
  const feed = new Feed(accepted.id, [], () => {});
  await store.commit({
    kind: "change",
    transition: ended!,
    parts: [{ kind: "answer", seq: 0, bytes: bytes(answer) }],
    events: { after: 0, bytes: bytes(recorded.join("\n")), anew: false },
  });
  const taken: string[] = [];
  const over = await new Promise((resolve) => {
    const sink = { take: (data: string[]) => taken.push(...data) > 0, end: resolve };
    const from = { cursor: beginning, committedOnly: false, forks: [] };
    new StreamReader(store, line, feed, from, sink).start();
  });
  expect(over).toMatchObject({ kind: "ended", ended: { record: { state: "completed" } } });
  expect(taken).toEqual(recorded);
});
