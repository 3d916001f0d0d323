import { describe, expect, test } from "vitest";
import { dayOf, talliesOf, talliesOfHit } from "../../../src/core/ledger/usage.ts";
import { type AttemptResult, type Step, type Transition, transition } from "../../../src/core/request.ts";
import { aRecord, start } from "../../support/builders.ts";

const owner = { node: "local", epoch: 1 };
const lane = "up/served-model";
const record = (over = {}) =>
  aRecord({ lane, model: "asked-model", tags: ["a", "b"], promptHash: "0a".repeat(32), ...over });
const processing = (over = {}) => {
  const { deadlineMs } = record().terms;
  const asked = { createdAt: start, dueAt: start, deadlineAt: start + deadlineMs };
  return transition(record({ state: "queued", owner: undefined, attempt: 0, ...asked, ...over }), {
    type: "started",
    now: start,
    owner,
  })!.record;
};
const ended = (result: Partial<AttemptResult>, step: Step, now = start + 250): Transition =>
  transition(processing(), { type: "ended", now, result: { verdict: "success", ...result }, step })!;

const usage = JSON.stringify({
  prompt_tokens: 100,
  completion_tokens: 40,
  total_tokens: 140,
  prompt_tokens_details: { cached_tokens: 60 },
  completion_tokens_details: { reasoning_tokens: 30 },
});
const failure = { code: "server_error", message: "m", type: "t", status: 500 };

describe("what a change adds to the sums", () => {
  test("an answer: its tokens, its cost, how long it took, under the model that was called", () => {
    const [tally, ...others] = talliesOf(ended({ usage, cost: 0.5 }, { kind: "complete" }));
    expect(others).toEqual([]);
    expect(tally).toEqual({
      key: {
        day: dayOf(start),
        project: record().project,
        endpoint: record().endpoint,
        model: "served-model",
        upstream: "up",
        promptHash: "0a".repeat(32),
      },
      tags: ["a", "b"],
      sums: {
        completed: 1,
        durationMs: 250,
        attempts: 1,
        inputTokens: 100,
        cachedTokens: 60,
        outputTokens: 40,
        reasoningTokens: 30,
        cost: 0.5,
      },
    });
  });

  test("an attempt that is followed by another one ends no round", () => {
    const step: Step = { kind: "retry", dueAt: start, lane, counted: true, reason: "backoff", excluded: [] };
    const [tally] = talliesOf(ended({ verdict: "transient", failure }, step));
    expect(tally?.sums).toEqual({ attempts: 1 });
  });

  test("a failure counts its attempt, and what that was billed", () => {
    const step: Step = { kind: "fail", failure, counted: true, reason: "exhausted" };
    const [tally] = talliesOf(ended({ verdict: "invalid_output", usage, cost: 1, failure }, step));
    expect(tally?.sums).toMatchObject({ failed: 1, attempts: 1, inputTokens: 100, cost: 1 });
    expect(tally?.sums).not.toHaveProperty("completed");
  });

  test("estimates are marked, and so are tokens of no known price", () => {
    const estimated = '{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15,"estimated":true}';
    const [tally] = talliesOf(ended({ usage: estimated }, { kind: "complete" }));
    expect(tally?.sums).toMatchObject({ estimated: 1, unpriced: 1, inputTokens: 10 });
  });

  test("every problem of an answer is counted", () => {
    const findings = { finishReason: "length", problems: ["length" as const, "invalid_json" as const] };
    const [tally] = talliesOf(ended({ usage, findings }, { kind: "complete" }));
    expect(tally?.sums).toMatchObject({ length: 1, invalidJson: 1 });
  });

  test("one that is cancelled while it waits counts where it waited", () => {
    const moved = transition(record({ state: "queued", owner: undefined, upstream: undefined }), {
      type: "cancelled",
      now: start,
    })!;
    expect(talliesOf(moved)).toMatchObject([
      { key: { upstream: "", model: "served-model" }, sums: { cancelled: 1 } },
    ]);
  });

  test("one that starts, is moved or begins anew adds nothing", () => {
    const queued = record({ state: "queued", owner: undefined });
    expect(talliesOf(transition(queued, { type: "started", now: start, owner })!)).toEqual([]);
    expect(talliesOf(transition(queued, { type: "rerouted", now: start, lane })!)).toEqual([]);
    const failed = record({ state: "failed", owner: undefined, endedAt: start });
    const { terms } = failed;
    const revived = { type: "revived" as const, now: start, lane, terms, dueAt: start };
    expect(talliesOf(transition(failed, { ...revived, lastWasAmbiguous: false })!)).toEqual([]);
  });

  test("an answer that was known costs nothing", () => {
    const hit = record({ state: "completed", owner: undefined, upstream: "up", cachedFrom: "req_1" });
    expect(talliesOfHit(hit)).toMatchObject([{ sums: { completed: 1, cached: 1 } }]);
  });
});

test("days are those of UTC", () => {
  expect(dayOf(Date.UTC(1970, 0, 2) - 1)).toBe(0);
  expect(dayOf(Date.UTC(2026, 10, 21, 23, 59))).toBe(Date.UTC(2026, 10, 21) / 86_400_000);
});
