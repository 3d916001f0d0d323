import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { type HeaderList, toCaller, toUpstream } from "../../src/core/headers.ts";

const names = (headers: HeaderList) => headers.map(([name]) => name);
const sent = (name: string, recorded = true) => names(toUpstream([[name, "x"]], recorded)).includes(name);
const answered = (name: string) => names(toCaller([[name, "x"]])).includes(name);

const hopByHop = [
  "connection",
  "keep-alive",
  "proxy-authenticate",
  "proxy-authorization",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "content-length",
];

describe("to an upstream", () => {
  test.each([
    ...hopByHop,
    "host",
    "expect",
    "authorization",
    "api-key",
    "x-api-key",
    "x-goog-api-key",
    "cookie",
    "idempotency-key",
    "prefer",
    "outlast-options",
    "outlast-request-id",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-real-ip",
    "forwarded",
    "via",
    "origin",
    "referer",
    "sec-fetch-mode",
    "cf-connecting-ip",
  ])("%s stays behind", (name) => {
    expect(sent(name)).toBe(false);
    expect(sent(name, false)).toBe(false);
  });

  test.each([
    "content-type",
    "accept",
    "user-agent",
    "x-stainless-lang",
    "openai-beta",
    "traceparent",
    "x-custom",
  ])("%s travels on", (name) => {
    expect(sent(name)).toBe(true);
  });

  test("a recorded call does not ask for an encoding, any other asks for what its caller can read", () => {
    expect(sent("accept-encoding")).toBe(false);
    expect(sent("accept-encoding", false)).toBe(true);
  });
});

describe("to a caller", () => {
  test.each([...hopByHop, "set-cookie", "alt-svc", "strict-transport-security", "nel", "report-to"])(
    "%s stays behind",
    (name) => {
      expect(answered(name)).toBe(false);
    },
  );

  test.each([
    "x-request-id",
    "x-ratelimit-remaining-requests",
    "retry-after",
    "openai-processing-ms",
    "content-type",
    "date",
    "x-custom",
  ])("%s travels on", (name) => {
    expect(answered(name)).toBe(true);
  });
});

test("what the connection header names stays behind, in both directions", () => {
  const headers: HeaderList = [
    ["connection", "close, X-Secret ,x-other"],
    ["connection", "x-third"],
    ["x-secret", "1"],
    ["x-other", "2"],
    ["x-third", "3"],
    ["x-kept", "4"],
  ];
  expect(toUpstream(headers, true)).toEqual([["x-kept", "4"]]);
  expect(toCaller(headers)).toEqual([["x-kept", "4"]]);
});

it("keeps order, repetitions and values as they came", () => {
  const name = fc.constantFrom("x-a", "x-b", "accept", "authorization", "te", "cookie", "x-forwarded-for");
  fc.assert(
    fc.property(fc.array(fc.tuple(name, fc.string()), { maxLength: 20 }), (headers) => {
      const kept = headers.filter(([one]) => ["x-a", "x-b", "accept"].includes(one));
      expect(toUpstream(headers, true)).toEqual(kept);
    }),
  );
});
