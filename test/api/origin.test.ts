import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { originOf, promptHashOf } from "../../src/api/origin.ts";
import type { Outlast } from "../support/outlast.ts";
import { LedgerCalls } from "./ledger-calls.ts";
import { serveGroup } from "./wire.ts";

const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
const parent = `00-${traceId}-00f067aa0ba902b7-01`;
const told = (headers: Record<string, string>) => originOf({}, (name) => headers[name]);

describe("the trace of a call", () => {
  it.each([
    [parent, traceId],
    [` ${parent} `, traceId],
    [`cc-${traceId}-00f067aa0ba902b7-01-what-comes-later`, traceId],
    [`${parent}-more`, undefined],
    [`ff-${traceId}-00f067aa0ba902b7-01`, undefined],
    [`00-${"0".repeat(32)}-00f067aa0ba902b7-01`, undefined],
    [`00-${traceId}-${"0".repeat(16)}-01`, undefined],
    [parent.toUpperCase(), undefined],
    [parent.slice(1), undefined],
    [`${parent}, ${parent}`, undefined],
    ["garbage", undefined],
    ["", undefined],
  ])("of traceparent %j is %s", (traceparent, expected) => {
    expect(told({ traceparent })?.traceId).toBe(expected);
  });

  it("is never anything but 32 hex digits, whatever is sent", () => {
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.stringMatching(/^0?0?-?[0-9a-f]{31,33}-.*$/)), (traceparent) => {
        const id = told({ traceparent })?.traceId;
        expect(id === undefined || /^[\da-f]{32}$/.test(id)).toBe(true);
      }),
    );
  });
});

describe("what is no text", () => {
  it.each([
    [{ user: 7 }],
    [{ user: "" }],
    [{ user: "x".repeat(513) }],
    [{ user: null, safety_identifier: ["a"] }],
    [{ metadata: "a" }],
    [{ metadata: ["a"] }],
    [{ metadata: { a: 1, b: null, c: { d: "e" }, f: "", "": "g", ["n".repeat(65)]: "h" } }],
    [{}],
  ])("is nothing to be found by: %j", (body) => {
    expect(originOf(body as Record<string, unknown>, () => undefined)).toBeUndefined();
  });

  it("does not keep what is a text from being found by", () => {
    const metadata = { a: 1, b: "x", __proto__: null } as Record<string, unknown>;
    expect(originOf({ user: 7, safety_identifier: "s", metadata }, () => undefined)).toEqual({
      safetyIdentifier: "s",
      metadata: { b: "x" },
    });
  });

  it("is not among the sixteen pairs that metadata may have", () => {
    const metadata = Object.fromEntries(Array.from({ length: 40 }, (_, i) => [`k${i}`, i < 20 ? i : "v"]));
    const found = originOf({ metadata }, () => undefined)?.metadata;
    expect(Object.keys(found ?? {})).toEqual(Array.from({ length: 16 }, (_, i) => `k${i + 20}`));
  });
});

describe("the caller's own request id", () => {
  it.each([
    ["abc-1", "abc-1"],
    ["x".repeat(200), "x".repeat(200)],
    ["x".repeat(201), undefined],
    ["with space", undefined],
    ["ümlaut", undefined],
    ["", undefined],
  ])("%j is %j", (id, expected) => {
    expect(told({ "x-request-id": id })?.clientRequestId).toBe(expected);
  });
});

describe("the hash of the instructions", () => {
  const user = { role: "user", content: "Hello" };
  const system = { role: "system", content: "Be brief." };
  const tools = [
    { type: "function", function: { name: "f", parameters: { type: "object", properties: {} } } },
  ];

  it("is there only where there are any", () => {
    for (const body of [
      {},
      { messages: [user] },
      { messages: "x" },
      { messages: [null, 1] },
      { tools: null },
    ]) {
      expect(promptHashOf(body)).toBeUndefined();
    }
    const some = [{ messages: [system] }, { instructions: "Be brief." }, { tools }, { response_format: {} }];
    for (const body of some) expect(promptHashOf(body)).toMatch(/^[\da-f]{64}$/);
  });

  it("does not depend on what users say, nor on other members", () => {
    const one = promptHashOf({ messages: [system, user], tools, temperature: 1 });
    const other = { role: "user", content: "Something else" };
    expect(promptHashOf({ tools, model: "m", messages: [other, system, other] })).toBe(one);
  });

  it("differs where an instruction does", () => {
    const bodies = [
      { messages: [system] },
      { messages: [{ ...system, role: "developer" }] },
      { messages: [{ ...system, content: "Be brief!" }] },
      { messages: [system, system] },
      { messages: [system], tools },
      { messages: [system], response_format: { type: "json_object" } },
      { instructions: "Be brief." },
      { tools },
      { functions: tools },
    ];
    expect(new Set(bodies.map(promptHashOf)).size).toBe(bodies.length);
  });

  it("is none of what is too deep to be written", () => {
    const deep = JSON.parse(`${"[".repeat(200_000)}${"]".repeat(200_000)}`);
    expect(promptHashOf({ tools: deep })).toBeUndefined();
  });
});

describe("what callers tell of themselves", () => {
  let outlast: Outlast;
  const calls = new LedgerCalls(() => outlast);
  serveGroup((one) => {
    outlast = one;
  });

  it("is on the record, and reaches the upstream untouched", async () => {
    const body = {
      user: "user-1",
      safety_identifier: "hash-1",
      metadata: { team: "blue", n: 1 },
      messages: [{ role: "system", content: "Be brief." }],
    };
    const id = await calls.finish(body, { traceparent: parent, "x-request-id": "mine-1" });
    expect(await calls.record(id)).toMatchObject({
      user: "user-1",
      safety_identifier: "hash-1",
      metadata: { team: "blue" },
      trace_id: traceId,
      client_request_id: "mine-1",
      prompt_hash: promptHashOf(body),
    });
    expect(JSON.parse(String(outlast.fake.seen[0]!.body))).toEqual({ model: "gpt-test", ...body });
  });

  it("and is garbage changes nothing", async () => {
    const id = await calls.finish({ user: 7, metadata: "x" }, { traceparent: "x", "x-request-id": "a b" });
    const record = await calls.record(id);
    expect(record).toMatchObject({ status: "completed", user: null, metadata: null });
    expect(record).toMatchObject({ trace_id: null, client_request_id: null, prompt_hash: null });
  });
});
