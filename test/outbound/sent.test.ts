/** What is told of a call beside its outcome: when it had a connection, and what was sent, without its secrets. */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Abort } from "../../src/core/ports.ts";
import { createUpstream, type UpstreamOptions } from "../../src/outbound/upstream.ts";
import { type EitherCall, endOfCall } from "../support/call-end.ts";
import { HandClock } from "../support/clock.ts";
import {
  answer,
  closedPort,
  cut,
  deltas,
  type FakeUpstream,
  fail,
  gate,
  hang,
  reset,
  type Step,
  startFake,
  stream,
} from "../support/fake-upstream.ts";

let fake: FakeUpstream;
let clock: HandClock;
const opened: { close(): Promise<void> }[] = [];

beforeEach(async () => {
  fake = await startFake();
  clock = new HandClock();
});

afterEach(async () => {
  for (const one of opened.splice(0)) await one.close();
  await fake.close();
});

const plain: EitherCall = {
  upstream: "up",
  model: "fake",
  askedModel: "fake",
  method: "POST",
  path: "/chat/completions",
  headers: [["content-type", "application/json"]],
  body: Buffer.from('{"model":"fake","messages":[]}'),
  keepSent: true,
};
const streamed: EitherCall = {
  ...plain,
  body: Buffer.from('{"model":"fake","messages":[],"stream":true}'),
  stream: { usage: false },
};
const kinds: [string, EitherCall][] = [
  ["a plain call", plain],
  ["a stream", streamed],
];

function start(call: EitherCall, options: Partial<UpstreamOptions> = {}) {
  const upstream = createUpstream(
    [{ name: "up", baseUrl: fake.baseUrl, headers: {}, maxConcurrency: 2, ...options }],
    { connectMs: 5000, attemptMs: 5000 },
    clock,
  );
  opened.push(upstream);
  const abort: Abort = { aborted: false, onAbort: undefined };
  const stop = () => {
    abort.aborted = true;
    abort.onAbort?.();
  };
  return { ended: endOfCall(upstream, call, abort), stop };
}

const called = (call: EitherCall, options?: Partial<UpstreamOptions>) => start(call, options).ended;
const textOf = (bytes: Uint8Array | undefined) => bytes && Buffer.from(bytes).toString();
const sentTo = async (call: Partial<EitherCall>, options?: Partial<UpstreamOptions>) =>
  (await called({ ...plain, ...call }, options)).sent!;

describe.each(kinds)("%s", (_, call) => {
  test("had its connection before its answer began", async () => {
    const held = gate();
    fake.script(held.step);
    const connectedAt = clock.now();
    const { ended } = start(call);
    await held.arrived;
    clock.advance(700);
    held.release(call.stream ? stream(deltas("Hi")) : answer());
    const end = await ended;
    expect(end).toMatchObject({ connectedAt, outcome: { kind: "response", firstByteAt: connectedAt + 700 } });
  });

  test("had one also where it was lost, or given up", async () => {
    fake.script(reset(), hang());
    expect(await called(call)).toMatchObject({
      connectedAt: clock.now(),
      outcome: { kind: "network_error", sent: true },
    });
    const { ended, stop } = start(call);
    await fake.calls(2);
    stop();
    expect(await ended).toMatchObject({
      connectedAt: clock.now(),
      outcome: { kind: "aborted", sent: true },
      sent: { body: fake.seen[1]!.body },
    });
  });

  test("that never had one has sent nothing", async () => {
    const end = await called(call, { baseUrl: await closedPort() });
    expect(end.outcome).toMatchObject({ kind: "network_error", sent: false });
    expect([end.connectedAt, end.sent]).toEqual([undefined, undefined]);
  });

  test("that was given up before it began has neither", async () => {
    const { ended, stop } = start(call);
    stop();
    const end = await ended;
    expect(end.outcome).toEqual({ kind: "aborted", sent: false });
    expect([end.connectedAt, end.sent]).toEqual([undefined, undefined]);
  });

  test("tells what it sent where it was asked to, and only there", async () => {
    fake.script(fail(500), fail(500));
    const { sent } = await called({ ...call, model: "big", path: "/chat/completions?api-version=7" });
    const [seen] = fake.seen;
    expect(textOf(sent?.body)).toBe(seen!.body.toString());
    expect(textOf(sent?.body)).toContain('"model":"big"');
    expect(sent?.head).toEqual({
      method: "POST",
      url: `${fake.baseUrl}/chat/completions?api-version=7`,
      headers: [
        ["content-type", "application/json"],
        ["accept-encoding", "identity"],
      ],
    });
    expect(await called({ ...call, keepSent: false })).not.toHaveProperty("sent");
  });
});

describe("what is kept of what was sent", () => {
  test("has every header by its name, and no key, token or cookie", async () => {
    const secrets = [
      "sk-upstream-key",
      "sess=abcdef",
      "hush-hush",
      "sk-live-1234567890",
      "t0ken",
      "org-value",
    ];
    const headers = { "Api-Key": "hush-hush", "X-Team": "org-value" };
    const { head } = await sentTo(
      {
        headers: [
          ["x-trace", "abc"],
          ["x-vault-token", "t0ken"],
          ["x-cookie-jar", "sess=abcdef"],
          ["x-note", "Bearer sk-live-1234567890"],
          ["x-echo", "it is sk-upstream-key"],
        ],
      },
      { apiKey: "sk-upstream-key", headers },
    );
    const hidden = "[redacted]";
    expect(Object.fromEntries(head.headers)).toEqual({
      "x-trace": "abc",
      "x-vault-token": hidden,
      "x-cookie-jar": hidden,
      "x-note": hidden,
      "x-echo": hidden,
      authorization: hidden,
      "api-key": hidden,
      "x-team": hidden,
      "accept-encoding": "identity",
    });
    for (const secret of secrets) expect(JSON.stringify(head)).not.toContain(secret);
    // The upstream had them all.
    expect(fake.seen[0]!.headers).toMatchObject({
      authorization: "Bearer sk-upstream-key",
      "x-team": "org-value",
    });
  });

  test.each([
    ["?key=AIzaSecret&v=1", "?key=[redacted]&v=1"],
    ["?v=1&%6bey=abc", "?v=1&%6bey=[redacted]"],
    ["?v=hush%2Dhush&access_token", "?v=[redacted]&access_token=[redacted]"],
    ["?%zz=1&a=b=c&&", "?%zz=1&a=b=c&&"],
    ["?", "?"],
  ])("has the query %s as %s", async (asked, kept) => {
    const headers = { "x-api-key": "hush-hush" };
    const { head } = await sentTo({ path: `/chat/completions${asked}` }, { headers });
    expect(head.url).toBe(`${fake.baseUrl}/chat/completions${kept}`);
    expect(fake.seen[0]!.url).toBe(`/v1/chat/completions${asked}`);
  });

  test("has neither the name nor the password of the address", async () => {
    const baseUrl = fake.baseUrl.replace("http://", "http://user:password@");
    const { head } = await sentTo({}, { baseUrl });
    expect(head.url).toBe(`${fake.baseUrl}/chat/completions`);
  });

  test("is what was sent last, where the wish for usage was refused", async () => {
    fake.script(fail(400, { message: "unknown field stream_options" }), stream(deltas("Hi")));
    const { sent } = await called(streamed);
    expect(fake.seen.map(({ body }) => body.includes("stream_options"))).toEqual([true, false]);
    expect(textOf(sent?.body)).toBe(fake.seen[1]!.body.toString());
  });
});

describe("what came of a stream that broke off", () => {
  const [role, hel, lo] = deltas("Hel", "lo") as [string, string, string];

  test("is kept as the answer that it would have been", async () => {
    fake.script(stream([role, hel, lo], { end: "reset" }));
    const { outcome, received } = await called(streamed);
    expect(outcome.kind).toBe("network_error");
    expect(received?.head).toMatchObject({ status: 200 });
    expect(received?.head.headers).toContainEqual(["content-type", "application/json"]);
    expect(JSON.parse(textOf(received?.body)!)).toMatchObject({
      object: "chat.completion",
      choices: [{ message: { content: "Hello" }, finish_reason: null }],
    });
  });

  test("is not told where nothing came, nobody asked, or the outcome has it", async () => {
    fake.script(stream([], { end: "reset" }), stream([role, hel], { end: "reset" }), stream(deltas("Hi")));
    expect((await called(streamed)).received).toBeUndefined();
    expect((await called({ ...streamed, keepSent: false })).received).toBeUndefined();
    expect((await called(streamed)).received).toBeUndefined();
  });
});

describe("what is received", () => {
  const secrets = "sk-upstream-key, org-abcdEFGH12345";
  const options = { apiKey: "sk-upstream-key" };
  const headers = { "x-debug": secrets, "x-trace": "abc" };

  test.each<[string, EitherCall, Step]>([
    ["a page with status 200", plain, answer({ body: `<p>${secrets}</p>`, headers })],
    ["a page in place of a stream", streamed, answer({ body: `<p>${secrets}</p>`, headers })],
    ["nonsense in a stream", streamed, stream([`no chunk: ${secrets}`], { headers })],
    ["an error", plain, fail(500, { message: secrets }, headers)],
  ])("has no secret where it is %s", async (_, call, step) => {
    fake.script(step);
    const { outcome } = await called(call, options);
    if (outcome.kind !== "response") throw new Error(outcome.kind);
    expect(textOf(outcome.body)).toContain("[redacted], [redacted]");
    expect(outcome.headers).toContainEqual(["x-debug", "[redacted], [redacted]"]);
    expect(outcome.headers).toContainEqual(["x-trace", "abc"]);
  });

  test("has none in the headers of a stream that broke off", async () => {
    fake.script(stream(deltas("Hel").slice(0, -1), { end: "reset", headers }));
    const { received } = await called(streamed, options);
    expect(received?.head.headers).toContainEqual(["x-debug", "[redacted], [redacted]"]);
  });

  test("is byte for byte what it was where it is an answer", async () => {
    fake.script(answer({ text: secrets, headers }));
    const { outcome } = await called(plain, options);
    expect(outcome).toMatchObject({ headers: expect.arrayContaining([["x-debug", secrets]]) });
    expect(textOf("body" in outcome ? outcome.body : undefined)).toContain(secrets);
  });
});

test("a plain answer that is cut has nothing to show", async () => {
  fake.script(cut({ after: 20 }));
  const end = await called(plain);
  expect(end.outcome.kind).toBe("network_error");
  expect(end.received).toBeUndefined();
});
