/**
 * The published scenarios of streaming, as somebody meets them who uses the stock SDK and two upstreams: whatever
 * happens to the first one, the caller has the whole answer.
 */

import type OpenAI from "openai";
import { afterEach, expect, test } from "vitest";
import type { RequestObject } from "../../src/contract.ts";
import { fail, type Step, stream } from "../support/fake-upstream.ts";
import { begun, chunkOf, cutShort, Faucet, goesSilent, tokens, whole } from "../support/live-streams.ts";
import { hello, type Outlast, quick, startOutlast } from "../support/outlast.ts";

const running: Outlast[] = [];
const sixty = tokens(60);
const text = sixty.join("");
const second = { id: "chatcmpl-second", created: 1_800_000_000, model: "fake-two" };
const interactive = 'profile = "interactive"\n';
/** The profile means 10 s for both. */
const inAHurry = `${interactive}[timeouts]\nfirst_token = "700ms"\nidle = "700ms"\n`;

afterEach(async () => {
  await Promise.all(running.splice(0).map((outlast) => outlast.close()));
});

async function start(one: Step, two: Step, toml = inAHurry): Promise<Outlast> {
  const tables = '[routes]\n"gpt-test" = ["one", "two"]';
  const outlast = await startOutlast({ env: quick, toml, upstreams: ["one", "two"], tables });
  running.push(outlast);
  outlast.fakes.one!.otherwise(one);
  outlast.fakes.two!.otherwise(two);
  return outlast;
}

interface Heard {
  text: string;
  ids: Set<string>;
  finish: string | null | undefined;
  usage: OpenAI.CompletionUsage | null | undefined;
  ms: number;
}

/** What the stock SDK makes of it; it throws where the stream does not end well. */
async function listen(outlast: Outlast, client = outlast.client()): Promise<Heard> {
  const heard: Heard = { text: "", ids: new Set(), finish: undefined, usage: undefined, ms: 0 };
  const startedAt = performance.now();
  const chunks = await client.chat.completions.create({
    ...hello,
    stream: true,
    stream_options: { include_usage: true },
  });
  for await (const { id, choices, usage } of chunks) {
    heard.ids.add(id);
    heard.text += choices[0]?.delta.content ?? "";
    heard.finish = choices[0]?.finish_reason ?? heard.finish;
    heard.usage = usage ?? heard.usage;
  }
  heard.ms = performance.now() - startedAt;
  return heard;
}

async function only(outlast: Outlast): Promise<RequestObject> {
  const { data } = (await (await outlast.fetch("/v1/requests")).json()) as { data: RequestObject[] };
  expect(data).toHaveLength(1);
  return data[0]!;
}

/** None of the upstreams was ever given the beginning of an answer to go on with. */
function expectNoPrefill(outlast: Outlast): void {
  const seen = Object.values(outlast.fakes).flatMap((fake) => fake.seen);
  for (const { body } of seen) expect(JSON.parse(body.toString()).messages).toEqual(hello.messages);
}

async function expectRescued(outlast: Outlast, heard: Heard): Promise<void> {
  expect(heard).toMatchObject({ text, finish: "stop" });
  expect(heard.ids.size).toBe(1);
  expect(await only(outlast)).toMatchObject({ status: "completed", attempts: 2, upstream: "two" });
  expect(outlast.fakes.one!.seen).toHaveLength(1);
  expect(outlast.fakes.two!.seen).toHaveLength(1);
  expectNoPrefill(outlast);
}

test("S07: the first token is late, and the second target answers in its place", async () => {
  // In the scenario it comes after 20 s, here never before the test is over.
  const late = new Faucet();
  const outlast = await start(late.step, stream(whole(sixty, second)));
  const heard = await listen(outlast);
  // In the scenario 15 s: first_token, and half as much again for all else.
  expect(heard.ms).toBeGreaterThan(650);
  expect(heard.ms).toBeLessThan(5000);
  await expectRescued(outlast, heard);
  late.say(...whole(tokens(60, "late")));
  late.end();
  expect((await only(outlast)).attempts).toBe(2);
});

test("S08: the stream is cut after 40 of 60 tokens", async () => {
  const outlast = await start(cutShort(begun(sixty.slice(0, 40))), stream(whole(sixty, second)));
  const heard = await listen(outlast);
  await expectRescued(outlast, heard);
  expect([...heard.ids]).toEqual(["chatcmpl-first"]);
});

test("S08, with a reset", async () => {
  const outlast = await start(
    stream(begun(sixty.slice(0, 40)), { end: "reset" }),
    stream(whole(text.match(/[\s\S]{1,5}/g)!, second)),
  );
  await expectRescued(outlast, await listen(outlast));
});

test("S09: the stream stalls, and goes on from the second target; the server is alive afterwards", async () => {
  // In the scenario for 30 s, here for ever.
  const outlast = await start(goesSilent(begun(sixty.slice(0, 30))), stream(whole(sixty, second)));
  const heard = await listen(outlast);
  expect(heard.ms).toBeGreaterThan(650);
  expect(heard.ms).toBeLessThan(15_000);
  await expectRescued(outlast, heard);
  expect((await outlast.fetch("/readyz")).status).toBe(200);
  outlast.fakes.one!.otherwise(stream(whole(["alive"])));
  expect((await listen(outlast)).text).toBe("alive");
});

test.each([0, 1, 9, 39])("S10: chunk %i of the stream is malformed", async (at) => {
  const chunks = whole(sixty);
  chunks[at] = chunks[at]!.slice(0, 25);
  const outlast = await start(stream(chunks), stream(whole(sixty, second)));
  await expectRescued(outlast, await listen(outlast));
});

test.each(["hang", "clean", "reset"] as const)("S11: no [DONE] behind a whole answer (%s)", async (end) => {
  const usage = { prompt_tokens: 5, completion_tokens: 60, total_tokens: 65 };
  const chunks = [...whole(sixty), chunkOf([], {}, { usage })];
  const outlast = await start(stream(chunks, { done: false, end }), fail(500), interactive);
  const heard = await listen(outlast);
  expect(heard).toMatchObject({ text, finish: "stop", usage });
  expect(heard.ms).toBeLessThan(8000);
  expect(await only(outlast)).toMatchObject({ status: "completed", attempts: 1, usage });
  expect(outlast.fakes.two!.seen).toEqual([]);
});

test("S14: the stream is cut, and the second target rejects answers that were begun by others", async () => {
  const rejectsPrefill: Step = (call, res) => {
    const { messages } = JSON.parse(call.body.toString()) as { messages: { role: string }[] };
    const isPrefilled = messages.at(-1)!.role === "assistant";
    const message = "This model does not support assistant message prefill.";
    return (isPrefilled ? fail(400, { message }) : stream(whole(sixty, second)))(call, res);
  };
  const outlast = await start(cutShort(begun(sixty.slice(0, 40))), rejectsPrefill);
  await expectRescued(outlast, await listen(outlast));
});
