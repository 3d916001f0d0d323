import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import type { Outcome } from "../../src/core/ports.ts";
import { isTerminal, type RequestRecord, transition, type Verdict } from "../../src/core/request.ts";
import {
  type Backoff,
  type Circumstances,
  classify,
  decide,
  decideInterrupted,
  fullJitterMs,
  type Reading,
} from "../../src/core/retry.ts";
import type { Opening } from "../../src/core/routing.ts";
import { now, record, response, terms } from "../support/records.ts";

const lane = "a/m";
const backoff: Backoff = { baseMs: 250, maxMs: 8000 };
const openLanes = (...lanes: string[]): Opening[] =>
  lanes.map((one) => ({ lane: one, opensAt: 0, closedUntil: 0 }));
/** A lane that was told to wait. */
const closedLane = (name: string, until: number): Opening => ({
  lane: name,
  opensAt: until,
  closedUntil: until,
  heldBy: "rate_limit",
});

const circumstances = (some: Partial<Circumstances> = {}): Circumstances => ({
  now,
  luck: 0.5,
  targets: openLanes(lane),
  backoff,
  unreachableAfterMs: 30_000,
  isPatient: false,
  ...some,
});

const lost: Outcome = { kind: "network_error", code: "ECONNRESET", sent: true };
const refused: Outcome = { kind: "network_error", code: "ECONNREFUSED", sent: false };
const invalid = (invalidIf: string[], feedback?: string[]): Outcome => ({
  ...response(200),
  facts: { wellFormed: true, invalid: invalidIf, feedback },
});
const tooLong = response(400, { error: { message: "no", code: "context_length_exceeded" } });
const timedOut: Outcome = { kind: "timeout", phase: "attempt" };
const throttledFor = (seconds: number) => response(429, { headers: { "retry-after": String(seconds) } });

const step = (outcome: Outcome, of: Partial<RequestRecord> = {}, at: Partial<Circumstances> = {}) =>
  decide(record(of), classify(outcome, of.lane ?? lane, at.now ?? now), circumstances(at));

describe("the verdict", () => {
  const error = (code?: string, type?: string) => ({ message: "no", code, type });
  const soon = { "retry-after": "2" };

  test.each<[string, Outcome, Verdict, Reading["scope"], boolean]>([
    [
      "a name that does not resolve",
      { kind: "network_error", code: "ENOTFOUND", sent: false },
      "not_sent",
      "upstream",
      false,
    ],
    ["a refused connection", refused, "not_sent", "upstream", false],
    ["a connect time-out", { kind: "timeout", phase: "connect" }, "not_sent", "upstream", false],
    ["a call stopped before it was sent", { kind: "aborted", sent: false }, "not_sent", "upstream", false],
    ["a call stopped on the way", { kind: "aborted", sent: true }, "ambiguous", "upstream", false],
    ["a reset", lost, "ambiguous", "upstream", false],
    ["no headers in time", { kind: "timeout", phase: "headers" }, "ambiguous", "upstream", false],
    ["an attempt that takes too long", { kind: "timeout", phase: "attempt" }, "ambiguous", "upstream", false],
    ["the deadline during a call", { kind: "timeout", phase: "deadline" }, "ambiguous", "upstream", false],
    ["200", response(200), "success", "request", false],
    ["201", response(201), "success", "request", false],
    ["200 with an error inside", response(200, { error: error() }), "transient", "upstream", false],
    ["200 with malformed JSON", response(200, { wellFormed: false }), "transient", "upstream", false],
    ["200 that is not what was asked for", invalid(["It is no JSON."]), "invalid_output", "upstream", false],
    ["200 that is measured, and sound", invalid([]), "success", "request", false],
    ["302", response(302), "permanent", "upstream", true],
    ["400", response(400), "permanent", "request", false],
    [
      "400 for a content filter",
      response(400, { error: error("content_filter") }),
      "permanent",
      "request",
      false,
    ],
    [
      "400 that names a quota",
      response(400, { error: error("insufficient_quota") }),
      "permanent",
      "request",
      false,
    ],
    ["400 for a prompt that is too long", tooLong, "permanent", "context", false],
    ["401", response(401), "permanent", "upstream", true],
    ["402", response(402), "permanent", "upstream", true],
    ["403", response(403), "permanent", "upstream", true],
    ["404", response(404), "permanent", "upstream", false],
    ["408", response(408), "transient", "upstream", false],
    ["409", response(409), "transient", "upstream", false],
    ["413", response(413), "permanent", "request", false],
    ["413 with Retry-After", response(413, { headers: soon }), "permanent", "request", false],
    ["422", response(422), "permanent", "request", false],
    ["425", response(425), "transient", "upstream", false],
    ["429", response(429), "throttled", "upstream", false],
    ["429 with Retry-After", response(429, { headers: soon }), "throttled", "upstream", false],
    ["429 that is no JSON", response(429, { wellFormed: false }), "throttled", "upstream", false],
    [
      "429 for want of quota, by code",
      response(429, { error: error("insufficient_quota") }),
      "permanent",
      "upstream",
      true,
    ],
    [
      "429 for want of quota, by type",
      response(429, { error: error(undefined, "insufficient_quota") }),
      "permanent",
      "upstream",
      true,
    ],
    [
      "429 for want of quota with Retry-After",
      response(429, { headers: soon, error: error("insufficient_quota") }),
      "permanent",
      "upstream",
      true,
    ],
    ["500", response(500), "transient", "upstream", false],
    ["500 with Retry-After", response(500, { headers: soon }), "transient", "upstream", false],
    ["500 that is no JSON", response(500, { wellFormed: false }), "transient", "upstream", false],
    ["502", response(502), "transient", "upstream", false],
    ["503", response(503), "transient", "upstream", false],
    ["503 with Retry-After", response(503, { headers: soon }), "throttled", "upstream", false],
    [
      "503 with a Retry-After that says nothing",
      response(503, { headers: { "retry-after": "soon" } }),
      "transient",
      "upstream",
      false,
    ],
    ["504", response(504), "transient", "upstream", false],
    ["529", response(529), "throttled", "upstream", false],
    ["599", response(599), "transient", "upstream", false],
  ])("of %s", (_, outcome, verdict, scope, alert) => {
    const reading = classify(outcome, lane, now);
    expect({ verdict: reading.verdict, scope: reading.scope, alert: reading.alert }).toEqual({
      verdict,
      scope,
      alert,
    });
    expect(reading.result.verdict).toBe(verdict);
    expect(reading.result.failure === undefined).toBe(verdict === "success");
  });

  it("carries the wait that the upstream asks for, in whatever form", () => {
    const date = new Date(now + 7000).toUTCString();
    const told = (headers: Record<string, string>) =>
      classify(response(429, { headers }), lane, now).retryAfterMs;
    expect(told({ "retry-after-ms": "1500" })).toBe(1500);
    expect(told({ "retry-after": "3" })).toBe(3000);
    expect(told({ "retry-after": date })).toBe(7000);
    expect(told({ "retry-after": "0" })).toBe(0);
    expect(told({})).toBeUndefined();
  });

  it("has a failure with an HTTP error status, whatever came back", () => {
    const outcomes = [
      response(200, { wellFormed: false }),
      response(200, { error: { message: "x" } }),
      response(301),
      lost,
    ];
    for (const outcome of outcomes) {
      expect(classify(outcome, lane, now).result.failure!.status).toBeGreaterThanOrEqual(400);
    }
  });
});

describe("a prompt that is too long", () => {
  const scopeOf = (status: number, message: string, more: { code?: string; type?: string } = {}) =>
    classify(response(status, { error: { message, ...more } }), lane, now).scope;

  test.each<[string, number, string, { code?: string; type?: string }?]>([
    ["OpenAI, by its code", 400, "Your input is too big.", { code: "context_length_exceeded" }],
    [
      "OpenAI, by its words",
      400,
      "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
    ],
    ["Anthropic", 400, "prompt is too long: 210000 tokens > 200000 maximum"],
    [
      "Anthropic, with its answer",
      400,
      "input length and `max_tokens` exceed context limit: 199000 + 4096 > 200000",
    ],
    [
      "Gemini",
      400,
      "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
    ],
    [
      "Mistral",
      422,
      "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    ],
    ["Bedrock", 400, "Input is too long for requested model."],
    [
      "llama.cpp",
      400,
      "the request exceeds the available context size, try increasing it",
      { type: "exceed_context_size_error" },
    ],
    ["Ollama", 400, "the input length exceeds the context length"],
    ["xAI", 400, "This model's maximum prompt length is 131072 but the request contains 136973 tokens."],
    ["vLLM", 400, "The decoder prompt (length 8825) is longer than the maximum model length of 8192."],
    ["Kimi", 400, "Invalid request: Your request exceeded model token limit: 262144 (requested: 291351)"],
    ["SGLang", 400, "Input (9000 tokens) is longer than the model's context length (8192 tokens)"],
    ["LM Studio", 400, "The number of tokens to keep is greater than the context length"],
    ["MiniMax", 400, "invalid params, context window exceeds limit"],
    ["Cohere", 400, "too many tokens: size limit exceeded by 1200 tokens"],
    ["one that calls the body too large", 413, "Too many input tokens"],
  ])("is known by the words of %s", (_, status, message, more) => {
    expect(scopeOf(status, message, more)).toBe("context");
  });

  test.each<[string, number, string]>([
    ["another mistake", 400, "Invalid value for 'temperature'."],
    [
      "too long an answer asked for",
      400,
      "max_tokens is too large: 100000. This model supports at most 4096.",
    ],
    ["too long an answer asked for, in other words", 400, "max_tokens exceeds the limit of 8192"],
    ["too large a body", 413, "Request exceeds the maximum size"],
    ["too long a list of tools", 400, "Array too long. Expected at most 128 tools."],
    ["a limit per minute", 429, "Too many tokens per minute, please slow down."],
    ["an upstream that is broken", 500, "prompt is too long"],
    ["words far behind the beginning", 400, `${"x".repeat(1000)} prompt is too long`],
  ])("is not taken for %s", (_, status, message) => {
    expect(scopeOf(status, message)).not.toBe("context");
  });

  it("takes no longer to be told from others than a message is long", () => {
    const long = `${"context length ".repeat(40_000)}${"exceed ".repeat(40_000)}`;
    expect(scopeOf(400, long)).toBe("request");
  });
});

describe("what an outcome says of its upstream", () => {
  const limitHeaders = {
    "x-ratelimit-limit-requests": "100",
    "x-ratelimit-remaining-requests": "0",
    "x-ratelimit-reset-requests": "6s",
  };
  const soon = { "retry-after": "2" };
  const timeout = (phase: Extract<Outcome, { kind: "timeout" }>["phase"]): Outcome => ({
    kind: "timeout",
    phase,
  });

  test.each<[string, Outcome, { isFault?: true; isOverload?: true; timedOut?: true }]>([
    ["200", response(200), {}],
    ["200 with malformed JSON", response(200, { wellFormed: false }), { isFault: true }],
    ["200 with an error inside", response(200, { error: { message: "no" } }), { isFault: true }],
    ["200 that is not what was asked for", invalid(["no"]), {}],
    ["302", response(302), {}],
    ["400", response(400), {}],
    ["400 for a prompt that is too long", tooLong, {}],
    ["401", response(401), {}],
    ["403", response(403), {}],
    ["404", response(404), {}],
    ["408", response(408), {}],
    ["409", response(409), {}],
    ["425", response(425), {}],
    ["429", response(429), { isOverload: true }],
    ["429 that tells when to come back", response(429, { headers: soon }), {}],
    ["429 with an account of what is left", response(429, { headers: limitHeaders }), {}],
    ["429 for want of quota", response(429, { error: { message: "no", code: "insufficient_quota" } }), {}],
    ["500", response(500), { isFault: true }],
    ["500 that tells when to come back", response(500, { headers: soon }), { isFault: true }],
    ["502", response(502), { isFault: true }],
    ["503", response(503), { isFault: true, isOverload: true }],
    ["503 that tells when to come back", response(503, { headers: soon }), { isOverload: true }],
    ["504", response(504), { isFault: true }],
    ["529", response(529), { isOverload: true }],
    ["a reset", lost, { isFault: true }],
    ["a refused connection", refused, {}],
    ["a connect time-out", timeout("connect"), {}],
    ["no headers in time", timeout("headers"), { isFault: true, timedOut: true }],
    ["an attempt that takes too long", timeout("attempt"), { isFault: true, timedOut: true }],
    ["no first token in time", timeout("first_token"), { isFault: true, timedOut: true }],
    ["a stream that falls silent", timeout("idle"), { isFault: true, timedOut: true }],
    ["the caller's deadline", timeout("deadline"), {}],
  ])("%s", (_, outcome, says) => {
    const { isFault, isOverload, timedOut } = classify(outcome, lane, now);
    expect({ isFault, isOverload, timedOut }).toEqual({
      isFault: says.isFault ?? false,
      isOverload: says.isOverload ?? false,
      timedOut: says.timedOut ?? false,
    });
  });

  it("has no fault of the caller among those of the upstream, whatever the status and the words", () => {
    const anyError = fc.option(
      fc.record({
        message: fc.oneof(fc.string(), fc.constant("prompt is too long")),
        code: fc.option(fc.constantFrom("context_length_exceeded", "insufficient_quota", "x"), {
          nil: undefined,
        }),
      }),
      { nil: undefined },
    );
    fc.assert(
      fc.property(fc.integer({ min: 300, max: 499 }), anyError, (status, error) => {
        const reading = classify(response(status, { error }), lane, now);
        expect(reading.isFault).toBe(false);
        if (status !== 429) expect(reading.isOverload).toBe(false);
      }),
    );
  });

  it("has the upstream's own account, where there is one", () => {
    expect(classify(response(200, { headers: limitHeaders }), lane, now).limits).toEqual({
      requests: { limit: 100, remaining: 0, resetMs: 6000 },
      tokens: undefined,
    });
    expect(classify(response(200), lane, now).limits).toBeUndefined();
  });

  it("has no wait after a success, and what the next attempt is to be told after an answer that is not valid", () => {
    expect(classify(response(200, { headers: soon }), lane, now).retryAfterMs).toBeUndefined();
    expect(classify(invalid(["no"], ['{"role":"user"}']), lane, now).feedback).toEqual(['{"role":"user"}']);
  });
});

describe("what follows", () => {
  test("a success completes", () => {
    expect(step(response(200))).toEqual({ kind: "complete" });
  });

  test("a throttled attempt uses up nothing and waits as long as told", () => {
    const targets = [closedLane(lane, now + 1050)];
    expect(step(throttledFor(3), { counted: 4 }, { targets })).toMatchObject({
      kind: "retry",
      dueAt: now + 3000,
      counted: false,
      reason: "retry_after",
    });
  });

  test("a throttled attempt goes to an open target at once", () => {
    const targets = [closedLane(lane, now + 3000), ...openLanes("b/m")];
    expect(step(throttledFor(3), {}, { targets })).toMatchObject({
      lane: "b/m",
      dueAt: now,
      reason: "next_target",
    });
  });

  test("a throttled attempt goes to the target that opens soonest where none is open", () => {
    const targets = [
      closedLane(lane, now + 3000),
      closedLane("b/m", now + 2000),
      closedLane("c/m", now + 2500),
    ];
    expect(step(throttledFor(3), {}, { targets })).toMatchObject({ lane: "b/m", dueAt: now + 2000 });
  });

  test("a throttled attempt fails at once, as the upstream said, where nothing opens before the deadline", () => {
    const targets = [closedLane(lane, now + 600_000)];
    const error = { message: "slow down", code: "rate_limit_exceeded" };
    const outcome = response(429, { headers: { "retry-after": "600" }, error });
    expect(step(outcome, {}, { targets })).toMatchObject({
      kind: "fail",
      reason: "deadline",
      failure: { status: 429, code: "rate_limit_exceeded", message: "slow down" },
    });
  });

  test("a transient failure counts and backs off", () => {
    expect(step(response(500), {}, { luck: 0.5 })).toMatchObject({
      kind: "retry",
      dueAt: now + 125,
      counted: true,
      reason: "backoff",
    });
  });

  test("a transient failure waits longer than its backoff where the upstream says so", () => {
    const outcome = response(500, { headers: { "retry-after": "9" } });
    expect(step(outcome, {}, { luck: 0.99 })).toMatchObject({ dueAt: now + 9000, reason: "retry_after" });
  });

  test("a transient failure ends the request when its attempts are used up", () => {
    expect(step(response(500), { counted: 3 })).toMatchObject({ kind: "retry" });
    expect(step(response(500), { counted: 4 })).toMatchObject({
      kind: "fail",
      reason: "exhausted",
      counted: true,
    });
  });

  test("targets are tried in their order without a pause, then after a backoff from the first again", () => {
    const targets = openLanes("a/m", "b/m", "c/m");
    const lanes: string[] = [];
    let current = record({ terms: terms({ maxAttempts: 25 }) });
    const pauses: number[] = [];
    for (let i = 0; i < 7; i++) {
      const next = decide(
        current,
        classify(response(500), current.lane, now),
        circumstances({ targets, luck: 0.999 }),
      );
      if (next.kind !== "retry") throw new Error("expected a retry");
      pauses.push(next.dueAt - now);
      current = record({ ...current, lane: next.lane, counted: current.counted + 1 });
      lanes.push(next.lane);
    }
    expect(lanes).toEqual(["b/m", "c/m", "a/m", "b/m", "c/m", "a/m", "b/m"]);
    expect(pauses).toEqual([0, 0, 250, 0, 0, 500, 0]);
  });

  test("a closed target is passed over", () => {
    const targets = [...openLanes("a/m"), closedLane("b/m", now + 60_000), ...openLanes("c/m")];
    expect(step(response(500), {}, { targets })).toMatchObject({ lane: "c/m", dueAt: now });
  });

  test("an unknown outcome is tried again, elsewhere if possible, or fails if the caller wants that", () => {
    const targets = openLanes("a/m", "b/m");
    expect(step(lost, {}, { targets })).toMatchObject({ kind: "retry", lane: "b/m", counted: true });
    expect(step(lost, { terms: terms({ onUnknown: "fail" }) }, { targets })).toMatchObject({
      kind: "fail",
      reason: "outcome_unknown",
      failure: { code: "upstream_outcome_unknown", status: 502 },
    });
  });

  test("a refusal by an upstream excludes its lane, and fails when no other is left", () => {
    const targets = openLanes("a/m", "b/m");
    const first = step(response(401), {}, { targets });
    expect(first).toMatchObject({ kind: "retry", lane: "b/m", dueAt: now, excluded: ["a/m"] });
    expect(step(response(404), { lane: "b/m", excluded: ["a/m"] }, { targets })).toMatchObject({
      kind: "fail",
      reason: "permanent",
      failure: { status: 404 },
    });
  });

  test("the caller's own fault is never tried again", () => {
    const targets = openLanes("a/m", "b/m");
    for (const status of [400, 413, 422]) {
      expect(step(response(status), {}, { targets })).toMatchObject({ kind: "fail", reason: "permanent" });
    }
  });

  test("an upstream that cannot be reached uses up no attempt, and a held call waits for it only so long", () => {
    const targets = [closedLane(lane, now + 1000)];
    const held = step(refused, { counted: 4 }, { targets });
    expect(held).toMatchObject({
      kind: "retry",
      dueAt: now + 1000,
      counted: false,
      reason: "upstream_closed",
    });
    const since = { unreachableSince: now - 30_000, deadlineAt: now + 570_000 };
    expect(step(refused, since, { targets })).toMatchObject({
      kind: "fail",
      counted: false,
      reason: "unreachable",
      failure: { code: "upstream_unreachable", status: 502 },
    });
    expect(step(refused, { ...since, terms: terms({ held: false }) }, { targets })).toMatchObject({
      kind: "retry",
    });
  });

  test("an upstream's own error code is not taken for our deadline", () => {
    const error = { message: "upstream gave up", code: "deadline_exceeded" };
    expect(step(response(504, { error }))).toMatchObject({ kind: "retry", reason: "backoff" });
  });

  test("at the deadline nothing is tried again", () => {
    const at = { now: now + 600_000 };
    expect(step(response(500), {}, at)).toMatchObject({
      kind: "fail",
      reason: "deadline",
      failure: { status: 500 },
    });
    expect(step(lost, {}, at)).toMatchObject({
      kind: "fail",
      failure: { code: "deadline_exceeded", status: 504 },
    });
    expect(step({ kind: "timeout", phase: "deadline" })).toMatchObject({
      kind: "fail",
      reason: "deadline",
      failure: { code: "deadline_exceeded" },
    });
  });

  test("nothing is tried again at the very deadline, only before it", () => {
    const told = (ms: number) => response(500, { headers: { "retry-after-ms": String(ms) } });
    expect(step(told(600_000))).toMatchObject({ kind: "fail", reason: "deadline", failure: { status: 500 } });
    expect(step(told(599_999))).toMatchObject({ kind: "retry", dueAt: now + 599_999 });
    const targets = [closedLane(lane, now + 600_000)];
    expect(step(response(429), {}, { targets })).toMatchObject({ kind: "fail", reason: "deadline" });
    expect(step(refused, {}, { targets })).toMatchObject({ kind: "fail", reason: "deadline" });
  });

  test("an answer at the deadline is still an answer", () => {
    expect(step(response(200), {}, { now: now + 600_001 })).toEqual({ kind: "complete" });
  });
});

describe("a prompt that is too long", () => {
  const large = (name: string, until = 0): Opening => ({ ...closedLane(name, until), largerContext: true });

  test("goes to the next target that takes longer ones, past those that do not", () => {
    const targets = [...openLanes("a/m", "b/m"), large("c/m"), large("d/m")];
    expect(step(tooLong, {}, { targets })).toMatchObject({
      kind: "retry",
      lane: "c/m",
      dueAt: now,
      counted: true,
      reason: "next_target",
      excluded: ["a/m", "b/m"],
    });
  });

  test("waits for one that was told to wait", () => {
    expect(step(tooLong, {}, { targets: [...openLanes("a/m"), large("c/m", now + 3000)] })).toMatchObject({
      lane: "c/m",
      dueAt: now + 3000,
    });
    const targets = [...openLanes("a/m"), large("c/m", now + 600_000)];
    expect(step(tooLong, {}, { targets })).toMatchObject({ kind: "fail", reason: "permanent" });
  });

  test("is told as it is where there is none, and is not tried again in its lane", () => {
    for (const targets of [openLanes("a/m"), openLanes("a/m", "b/m"), [large("a/m")]]) {
      expect(step(tooLong, {}, { targets })).toMatchObject({
        kind: "fail",
        reason: "permanent",
        failure: { code: "context_length_exceeded", status: 400 },
      });
    }
  });

  test("goes from one that takes longer ones to another such one", () => {
    const targets = [large("a/m"), large("b/m")];
    const first = step(tooLong, {}, { targets });
    expect(first).toMatchObject({ lane: "b/m", excluded: ["a/m"] });
    expect(step(tooLong, { lane: "b/m", excluded: ["a/m"] }, { targets })).toMatchObject({ kind: "fail" });
  });

  test("has no more attempts than any other request", () => {
    const targets = [...openLanes("a/m"), large("c/m")];
    expect(step(tooLong, { counted: 4 }, { targets })).toMatchObject({ kind: "fail", reason: "permanent" });
  });
});

describe("an answer that is not valid", () => {
  const budget = terms({ maxInvalid: 2 });

  test("is asked for again at once, of the same target, and uses up none of the other attempts", () => {
    const targets = openLanes("a/m", "b/m");
    expect(step(invalid(["no"]), { counted: 4, terms: budget }, { targets })).toEqual({
      kind: "retry",
      dueAt: now,
      lane,
      counted: false,
      reason: "invalid_output",
      excluded: [],
    });
  });

  test("is asked for again as often as its own budget lets it", () => {
    let current = record({ terms: budget });
    const ends: string[] = [];
    for (let i = 0; i < 3; i++) {
      const reading = classify(invalid(["no"]), lane, now);
      const next = decide(current, reading, circumstances());
      const { record: after } = transition(current, {
        type: "ended",
        now,
        result: reading.result,
        step: next,
      })!;
      ends.push(after.state);
      current = { ...after, state: "processing" };
    }
    expect(ends).toEqual(["retrying", "retrying", "failed"]);
    expect(current).toMatchObject({
      invalid: 3,
      counted: 0,
      endReason: "invalid_output",
      error: { code: "invalid_output" },
    });
  });

  test("is not asked for again where there is no budget", () => {
    for (const maxInvalid of [0, undefined]) {
      expect(step(invalid(["no"]), { terms: terms({ maxInvalid }) })).toMatchObject({
        kind: "fail",
        reason: "invalid_output",
        counted: false,
      });
    }
  });

  test("says what is wrong with it", () => {
    const { failure } = classify(invalid(["It is no JSON."]), lane, now).result;
    expect(failure).toMatchObject({
      code: "invalid_output",
      message: expect.stringContaining("It is no JSON."),
    });
    expect(failure!.status).toBeGreaterThanOrEqual(500);
  });

  test("is not asked for again at the deadline", () => {
    const at = { now: now + 600_000 };
    expect(step(invalid(["no"]), { terms: budget }, at)).toMatchObject({ kind: "fail", reason: "deadline" });
  });
});

describe("after a time-out", () => {
  const held = { heldBy: "rate_limit" as const, closedUntil: 0 };

  test("the next open target is asked at once", () => {
    const targets = openLanes("a/m", "b/m");
    expect(step(timedOut, {}, { targets })).toMatchObject({ lane: "b/m", dueAt: now, counted: true });
  });

  test("who was silent is not asked again where another is open by then", () => {
    const targets = [...openLanes("a/m"), { lane: "b/m", opensAt: now + 100, ...held }];
    const at = { targets, luck: 0.5 };
    expect(step(timedOut, {}, at)).toMatchObject({ lane: "b/m", dueAt: now + 125, reason: "backoff" });
    // Any other failure begins with the first target again.
    expect(step(response(500), {}, at)).toMatchObject({ lane: "a/m", dueAt: now + 125 });
  });

  test("who was silent is asked again where there is nobody else", () => {
    expect(step(timedOut)).toMatchObject({ lane, dueAt: now + 125 });
    const targets = [...openLanes("a/m"), closedLane("b/m", now + 60_000)];
    expect(step(timedOut, {}, { targets })).toMatchObject({ lane: "a/m" });
    expect(step(timedOut, { excluded: ["b/m"] }, { targets: openLanes("a/m", "b/m") })).toMatchObject({
      lane: "a/m",
    });
  });
});

describe("a request that nobody waits for", () => {
  const limited = (name: string, opensAt: number): Opening => ({ ...closedLane(name, 0), opensAt });
  const broken = (heldBy: Opening["heldBy"]): Opening => ({ ...closedLane(lane, now + 5000), heldBy });

  test("waits for its own lane when that is throttled, where others go elsewhere", () => {
    const targets = [closedLane(lane, now + 5000), ...openLanes("b/m")];
    expect(step(throttledFor(5), {}, { targets, isPatient: true })).toMatchObject({
      lane,
      dueAt: now + 5000,
      counted: false,
      reason: "retry_after",
    });
    expect(step(throttledFor(5), {}, { targets })).toMatchObject({ lane: "b/m", dueAt: now });
  });

  test("is not due later for a limit that opens by itself: it stands in the queue of its lane", () => {
    const targets = [limited(lane, now + 20_000), ...openLanes("b/m")];
    expect(step(response(429), {}, { targets, isPatient: true })).toMatchObject({ lane, dueAt: now });
  });

  test("goes elsewhere where its lane does not open before the deadline", () => {
    const targets = [closedLane(lane, now + 600_000), ...openLanes("b/m")];
    expect(step(throttledFor(600), {}, { targets, isPatient: true })).toMatchObject({
      lane: "b/m",
      dueAt: now,
    });
  });

  test("goes elsewhere where its upstream is taken for broken, or cannot be reached", () => {
    for (const heldBy of ["breaker", "unreachable"] as const) {
      const targets = [broken(heldBy), ...openLanes("b/m")];
      for (const outcome of [refused, throttledFor(1)]) {
        expect(step(outcome, {}, { targets, isPatient: true })).toMatchObject({ lane: "b/m", dueAt: now });
      }
    }
  });

  test("goes to the next target after a failure, as any other does", () => {
    const targets = openLanes("a/m", "b/m");
    for (const outcome of [response(500), lost, timedOut]) {
      expect(step(outcome, {}, { targets, isPatient: true })).toMatchObject({ lane: "b/m", dueAt: now });
    }
  });
});

describe("an interrupted attempt", () => {
  test("is tried again in its lane, and counts", () => {
    const { result, step: next } = decideInterrupted(record(), now);
    expect(result).toMatchObject({ verdict: "ambiguous", failure: { code: "interrupted" } });
    expect(next).toMatchObject({ kind: "retry", lane, dueAt: now, counted: true, reason: "interrupted" });
  });

  test("fails when it was the last one", () => {
    expect(decideInterrupted(record({ counted: 4 }), now).step).toMatchObject({
      kind: "fail",
      reason: "exhausted",
    });
  });

  test("fails with an unknown outcome where the caller wants that, even if it was the last one", () => {
    for (const counted of [0, 4]) {
      const unsure = record({ counted, terms: terms({ onUnknown: "fail" }) });
      expect(decideInterrupted(unsure, now).step).toMatchObject({
        kind: "fail",
        reason: "outcome_unknown",
        failure: { code: "upstream_outcome_unknown" },
      });
    }
  });
});

describe("full jitter", () => {
  it("is a whole number from 1 ms to the cap, which doubles up to its maximum", () => {
    const luck = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
    const ms = fc.integer({ min: 1, max: 1_000_000 });
    fc.assert(
      fc.property(ms, ms, fc.nat(2000), luck, (baseMs, maxMs, n, drawn) => {
        const wait = fullJitterMs({ baseMs, maxMs }, n, drawn);
        expect(Number.isInteger(wait)).toBe(true);
        expect(wait).toBeGreaterThanOrEqual(1);
        expect(wait).toBeLessThanOrEqual(Math.max(1, Math.min(maxMs, baseMs * 2 ** n)));
      }),
    );
  });

  it("covers the whole range", () => {
    expect(fullJitterMs(backoff, 3, 0)).toBe(1);
    expect(fullJitterMs(backoff, 3, 0.25)).toBe(500);
    expect(fullJitterMs(backoff, 3, 0.999_999)).toBe(2000);
    expect(fullJitterMs(backoff, 30, 0.999_999)).toBe(8000);
  });
});

// ---- properties over anything that can happen ----

const lanes = ["a/m", "b/m", "c/m"];
const statuses = [200, 302, 400, 401, 404, 408, 409, 413, 425, 429, 500, 502, 503, 504, 529];
const anyHeaders = fc.option(
  fc.oneof(
    fc.nat(100_000).map((ms): Record<string, string> => ({ "retry-after-ms": String(ms) })),
    fc
      .double({ min: 0, max: 900, noNaN: true })
      .map((s): Record<string, string> => ({ "retry-after": s.toFixed(4) })),
  ),
  { nil: {} },
);
const anyResponse = fc
  .record({ status: fc.constantFrom(...statuses), headers: anyHeaders, wellFormed: fc.boolean() })
  .map(({ status, ...more }): Outcome => response(status, more));
const anySpecial = fc.constantFrom<Outcome>(lost, refused, timedOut, tooLong, invalid(["no"]), invalid([]));
const anyOutcome: fc.Arbitrary<Outcome> = fc.oneof(
  { weight: 4, arbitrary: anyResponse },
  { weight: 2, arbitrary: anySpecial },
);
const luck = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
const anyRecord = fc
  .record({
    lane: fc.constantFrom(...lanes),
    counted: fc.nat(24),
    invalid: fc.nat(3),
    maxInvalid: fc.option(fc.nat(3), { nil: undefined }),
    leftMs: fc.integer({ min: -1000, max: 100_000 }),
    excluded: fc.subarray(lanes),
    held: fc.boolean(),
    maxAttempts: fc.integer({ min: 1, max: 25 }),
    onUnknown: fc.constantFrom<"retry" | "fail">("retry", "fail"),
    unreachableForMs: fc.option(fc.nat(60_000), { nil: undefined }),
  })
  .map(({ leftMs, excluded, held, maxAttempts, maxInvalid, onUnknown, unreachableForMs, ...rest }) =>
    record({
      ...rest,
      deadlineAt: now + leftMs,
      excluded: excluded.filter((one) => one !== rest.lane),
      unreachableSince: unreachableForMs === undefined ? undefined : now - unreachableForMs,
      terms: terms({ held, maxAttempts, maxInvalid, onUnknown }),
    }),
  );
const anyOpening = fc.record({
  opensAt: fc.integer({ min: now - 1000, max: now + 120_000 }).map((at) => (at < now ? 0 : at)),
  heldBy: fc.constantFrom<Opening["heldBy"]>("rate_limit", "breaker", "unreachable"),
  /** What holds it is that it was told to wait, rather than a limit or a breaker. */
  isTold: fc.boolean(),
  largerContext: fc.option(fc.boolean(), { nil: undefined }),
});
const anyTargets = fc
  .tuple(fc.shuffledSubarray(lanes, { minLength: 0 }), fc.array(anyOpening, { minLength: 3, maxLength: 3 }))
  .map(([some, openings]) =>
    some.map((one, i): Opening => {
      const { opensAt, heldBy, isTold, largerContext } = openings[i]!;
      const isHeld = opensAt > now;
      return {
        lane: one,
        opensAt,
        heldBy: isHeld ? heldBy : undefined,
        closedUntil: isHeld && isTold ? opensAt : 0,
        largerContext,
      };
    }),
  );

describe("whatever happens,", () => {
  const everything = fc.tuple(anyRecord, anyOutcome, anyTargets, luck, fc.boolean());
  type Everything = [RequestRecord, Outcome, Opening[], number, boolean];
  const decided = ([of, outcome, targets, drawn, isPatient]: Everything) => {
    const reading = classify(outcome, of.lane, now);
    const next = decide(of, reading, circumstances({ targets, luck: drawn, isPatient }));
    return { of, targets, isPatient, reading, next };
  };

  it("the next attempt is due at a whole millisecond, not in the past, and before the deadline", () => {
    fc.assert(
      fc.property(everything, (all) => {
        const { of, next } = decided(all);
        if (next.kind !== "retry") return;
        expect(Number.isSafeInteger(next.dueAt)).toBe(true);
        expect(next.dueAt).toBeGreaterThanOrEqual(now);
        expect(next.dueAt).toBeLessThan(of.deadlineAt);
      }),
      { numRuns: 2000 },
    );
  });

  it("a lane that was told to wait is not called earlier; an answer that is not valid says nothing of its lane", () => {
    fc.assert(
      fc.property(everything, (all) => {
        const { of, targets, reading, next } = decided(all);
        if (next.kind !== "retry") return;
        if (next.reason === "invalid_output") {
          expect(next).toMatchObject({ lane: of.lane, dueAt: now });
          return;
        }
        if (next.lane === of.lane)
          expect(next.dueAt).toBeGreaterThanOrEqual(now + (reading.retryAfterMs ?? 0));
        const target = targets.find((one) => one.lane === next.lane);
        if (target) expect(next.dueAt).toBeGreaterThanOrEqual(target.closedUntil);
      }),
      { numRuns: 2000 },
    );
  });

  it("a prompt that is too long goes to a target that takes longer ones, or nowhere, and to no smaller one again", () => {
    fc.assert(
      fc.property(fc.tuple(anyRecord, fc.constant(tooLong), anyTargets, luck, fc.boolean()), (all) => {
        const { of, targets, next } = decided(all);
        expect(next.kind).not.toBe("complete");
        if (next.kind !== "retry") return;
        expect(next.lane).not.toBe(of.lane);
        expect(targets.find((one) => one.lane === next.lane)?.largerContext).toBe(true);
        const smaller = targets.filter(({ largerContext }) => !largerContext).map((one) => one.lane);
        expect(next.excluded).toEqual(expect.arrayContaining([of.lane, ...smaller]));
      }),
      { numRuns: 1000 },
    );
  });

  it("who is patient and was throttled stays, where its lane opens by itself before the deadline", () => {
    fc.assert(
      fc.property(everything, (all) => {
        const { of, targets, reading, isPatient, next } = decided(all);
        if (!isPatient || reading.verdict !== "throttled" || next.kind !== "retry") return;
        const own = targets.find((one) => one.lane === of.lane);
        const waits = own?.heldBy === "rate_limit" && own.opensAt < of.deadlineAt;
        if (own && (own.opensAt <= now || waits)) expect(next.lane).toBe(of.lane);
      }),
      { numRuns: 2000 },
    );
  });

  it("a lane that refused is never chosen, and what refused is remembered", () => {
    fc.assert(
      fc.property(everything, (all) => {
        const { of, next } = decided(all);
        if (next.kind !== "retry") return;
        expect(of.excluded).not.toContain(next.lane);
        expect(next.excluded).not.toContain(next.lane);
        expect(next.excluded).toEqual(expect.arrayContaining(of.excluded));
      }),
      { numRuns: 2000 },
    );
  });

  it("no more attempts count than the request may have", () => {
    fc.assert(
      fc.property(everything, (all) => {
        const { of, next } = decided(all);
        if (next.kind === "retry" && next.counted) expect(of.counted + 1).toBeLessThan(of.terms.maxAttempts);
      }),
      { numRuns: 2000 },
    );
  });

  it("a request ends, or waits for an instant that comes", () => {
    const script = fc.array(fc.tuple(anyOutcome, luck, fc.nat(5000)), { minLength: 30, maxLength: 300 });
    fc.assert(
      fc.property(anyRecord, script, fc.boolean(), (first, outcomes, isPatient) => {
        let current = first;
        let at = now;
        let counting = 0;
        const closedUntil = new Map<string, number>();
        for (const [outcome, drawn, tookMs] of outcomes) {
          at += tookMs;
          const reading = classify(outcome, current.lane, at);
          if (reading.verdict === "throttled" || reading.verdict === "not_sent") {
            closedUntil.set(current.lane, at + Math.max(1000, reading.retryAfterMs ?? 0));
          }
          const targets = lanes.map((one) => closedLane(one, closedUntil.get(one) ?? 0));
          const next = decide(current, reading, circumstances({ now: at, luck: drawn, targets, isPatient }));
          const moved = transition(current, { type: "ended", now: at, result: reading.result, step: next });
          counting += moved!.attempt!.counted ? 1 : 0;
          current = moved!.record;
          expect(current.counted).toBe(first.counted + counting);
          expect(current.invalid).toBeLessThanOrEqual(
            Math.max(first.invalid, current.terms.maxInvalid ?? 0) + 1,
          );
          if (isTerminal(current.state)) return;
          at = Math.max(at, current.dueAt);
          expect(at).toBeLessThan(current.deadlineAt);
          current = transition(current, {
            type: "started",
            now: at,
            owner: { node: "local", epoch: 1 },
          })!.record;
        }
        // Only what uses up no attempt can go on so long, and each such wait takes a second at least.
        expect(counting).toBeLessThan(current.terms.maxAttempts);
      }),
    );
  });
});
