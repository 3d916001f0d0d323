import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import {
  attemptUnderWay,
  chart,
  failedInVain,
  isReady,
  isTerminal,
  laneParts,
  type RequestEvent,
  type RequestRecord,
  type State,
  type Step,
  startAtOnce,
  throttledKept,
  transition,
  type Verdict,
} from "../../src/core/request.ts";
import { now, record, terms } from "../support/records.ts";

const later = now + 500;
const owner = { node: "local", epoch: 3 };
const states: State[] = ["queued", "processing", "retrying", "completed", "failed", "cancelled"];
const failure = { code: "server_error", message: "no", type: "server_error", status: 500 };

const retry = (some: Partial<Extract<Step, { kind: "retry" }>> = {}): Step => ({
  kind: "retry",
  dueAt: later + 1000,
  lane: "b/n",
  counted: true,
  reason: "backoff",
  excluded: ["c/m"],
  ...some,
});
const fail: Step = { kind: "fail", failure, counted: true, reason: "exhausted" };
const ended = (step: Step, verdict: Verdict = "transient"): RequestEvent => ({
  type: "ended",
  now: later,
  result: { verdict, status: 500, failure: step.kind === "complete" ? undefined : failure },
  step,
});
const events: Record<RequestEvent["type"], RequestEvent[]> = {
  started: [{ type: "started", now: later, owner }],
  ended: [ended({ kind: "complete" }, "success"), ended(retry()), ended(fail)],
  interrupted: [retry({ reason: "interrupted" }), fail].map((step) => ({
    type: "interrupted",
    now: later,
    result: { verdict: "ambiguous", failure },
    step,
  })),
  cancelled: [{ type: "cancelled", now: later }],
  gave_up: [{ type: "gave_up", now: later, failure, reason: "deadline" }],
  rerouted: [{ type: "rerouted", now: later, lane: "b/n" }],
  revived: [
    {
      type: "revived",
      now: later,
      lane: "b/n",
      terms: terms({ deadlineMs: 1000 }),
      dueAt: later + 5,
      lastWasAmbiguous: false,
    },
  ],
};
const everyEvent = Object.values(events).flat();

describe("the chart", () => {
  for (const state of states) {
    for (const event of everyEvent) {
      const { from, to } = chart[event.type];
      const may = from.includes(state);
      const detail = "step" in event ? ` to ${event.step.kind}` : "";
      test(`${state} ${may ? "may" : "may not"} be ${event.type}${detail}`, () => {
        const moved = transition(record({ state, error: state === "failed" ? failure : undefined }), event);
        if (!may) return expect(moved).toBeUndefined();
        expect(to).toContain(moved!.record.state);
      });
    }
  }

  test("has no way out of a terminal state but a new round", () => {
    const ways = Object.entries(chart).filter(([, { from }]) => from.some(isTerminal));
    expect(ways.map(([event]) => event)).toEqual(["revived"]);
    expect(chart.revived.from).not.toContain("completed");
  });

  test("leads every state that is not terminal to a terminal one", () => {
    for (const state of states.filter((one) => !isTerminal(one))) {
      const ways = Object.values(chart).filter(({ from }) => from.includes(state));
      expect(ways.some(({ to }) => to.some(isTerminal))).toBe(true);
    }
  });
});

describe("a transition", () => {
  it("expects what stood before, keeps what the store checks, and changes no record that it was given", () => {
    fc.assert(
      fc.property(fc.constantFrom(...states), fc.constantFrom(...everyEvent), (state, event) => {
        const before = record({
          state,
          attempt: 4,
          round: 2,
          counted: 1,
          error: state === "failed" ? failure : undefined,
        });
        const copy = structuredClone(before);
        const moved = transition(before, event);
        expect(before).toEqual(copy);
        if (!moved) return;
        expect(moved.expect).toEqual({ state, attempt: 4, round: 2, owner: before.owner });
        const { record: after } = moved;
        expect(after.owner !== undefined).toBe(after.state === "processing");
        expect(after.endedAt !== undefined).toBe(isTerminal(after.state));
        if (after.state === "failed") expect(after.error).toBeDefined();
        expect(after.updatedAt).toBe(later);
        for (const key of ["id", "project", "endpoint", "model", "priority", "createdAt"] as const) {
          expect(after[key]).toBe(before[key]);
        }
      }),
    );
  });

  test("that starts an attempt counts it, gives it to its owner, and says where it goes", () => {
    const waiting = record({ state: "retrying", attempt: 2, lane: "b/meta/llama", round: 2 });
    const moved = transition(waiting, { type: "started", now: later, owner })!;
    expect(moved.record).toMatchObject({ state: "processing", attempt: 3, owner, startedAt: later });
    expect(moved.attempt).toBeUndefined();
    expect(attemptUnderWay(moved.record)).toEqual({
      requestId: "req_1",
      number: 3,
      round: 2,
      upstream: "b",
      model: "meta/llama",
      dueAt: waiting.dueAt,
      startedAt: later,
      counted: false,
    });
  });

  test("that starts a later attempt leaves the start of the first", () => {
    const waiting = record({ state: "retrying", startedAt: now });
    expect(transition(waiting, { type: "started", now: later, owner })!.record.startedAt).toBe(now);
  });

  test("that ends an attempt well keeps what the answer says about itself", () => {
    const result = {
      verdict: "success" as const,
      status: 200,
      responseId: "chatcmpl-1",
      servedModel: "m-1",
      usage: "{}",
    };
    const moved = transition(record(), { type: "ended", now: later, result, step: { kind: "complete" } })!;
    expect(moved.record).toMatchObject({
      state: "completed",
      endReason: "answered",
      upstream: "a",
      responseId: "chatcmpl-1",
      servedModel: "m-1",
      usage: "{}",
      counted: 1,
    });
    expect(moved.record.error).toBeUndefined();
    expect(moved.attempt).toMatchObject({
      number: 1,
      endedAt: later,
      verdict: "success",
      reason: "answered",
      counted: true,
    });
  });

  test("that is followed by another attempt says when, where and why", () => {
    const moved = transition(record(), ended(retry()))!;
    expect(moved.record).toMatchObject({
      state: "retrying",
      dueAt: later + 1000,
      lane: "b/n",
      excluded: ["c/m"],
      counted: 1,
    });
    expect(moved.attempt).toMatchObject({
      upstream: "a",
      model: "m",
      reason: "backoff",
      retryAt: later + 1000,
      counted: true,
    });
  });

  test("that does not count leaves the budget alone", () => {
    const moved = transition(record({ counted: 2 }), ended(retry({ counted: false }), "throttled"))!;
    expect(moved.record).toMatchObject({ counted: 2, throttled: 1 });
    expect(moved.attempt!.counted).toBe(false);
  });

  test("after an answer that was not valid uses up nothing but its own budget", () => {
    const step = retry({ counted: false, reason: "invalid_output", dueAt: later });
    const moved = transition(record({ counted: 2, invalid: 1 }), ended(step, "invalid_output"))!;
    expect(moved.record).toMatchObject({ state: "retrying", counted: 2, throttled: 0, invalid: 2 });
    expect(moved.attempt).toMatchObject({
      verdict: "invalid_output",
      counted: false,
      reason: "invalid_output",
    });
    expect(transition(record({ invalid: 1 }), ended(retry()))!.record.invalid).toBe(1);
  });

  test("adds up what all attempts have cost, as far as it is known, and keeps what each has", () => {
    const tried = (before: RequestRecord, cost: number | undefined) =>
      transition(before, {
        type: "ended",
        now: later,
        result: { verdict: "transient", failure, cost },
        step: retry(),
      })!;
    const first = tried(record(), undefined);
    expect([first.record.cost, first.attempt!.cost]).toEqual([undefined, undefined]);
    const second = tried(record({ cost: first.record.cost }), 0.25);
    expect([second.record.cost, second.attempt!.cost]).toEqual([0.25, 0.25]);
    const third = tried(record({ cost: second.record.cost }), 0.5);
    expect([third.record.cost, third.attempt!.cost]).toEqual([0.75, 0.5]);
    expect(tried(record({ cost: 0.75 }), undefined).record.cost).toBe(0.75);
    expect(tried(record(), 0).record.cost).toBe(0);
  });

  test("keeps the findings of the newest answer that has any", () => {
    const found = (problem: "length" | "empty") => ({ problems: [problem] });
    const tried = (before: RequestRecord, findings: RequestRecord["findings"]) => {
      const result = { verdict: "transient" as const, failure, findings };
      return transition(before, { type: "ended", now: later, result, step: retry() })!;
    };
    const first = tried(record(), found("length"));
    expect([first.record.findings, first.attempt!.findings]).toEqual([found("length"), found("length")]);
    const second = tried(record({ findings: found("length") }), undefined);
    expect([second.record.findings, second.attempt!.findings]).toEqual([found("length"), undefined]);
    expect(tried(record({ findings: found("length") }), found("empty")).record.findings).toEqual(
      found("empty"),
    );
  });

  test("with an unknown outcome makes a duplicate possible, and that is never taken back", () => {
    const unsure = transition(record(), ended(retry(), "ambiguous"))!.record;
    expect(unsure.duplicatePossible).toBe(true);
    const again = transition(unsure, { type: "started", now: later, owner })!.record;
    expect(transition(again, ended({ kind: "complete" }, "success"))!.record.duplicatePossible).toBe(true);
    expect(transition(record(), ended(fail, "ambiguous"))!.record.duplicatePossible).toBe(false);
  });

  test("remembers since when an upstream cannot be reached, until it can", () => {
    const first = transition(record(), ended(retry({ counted: false }), "not_sent"))!.record;
    expect(first.unreachableSince).toBe(later);
    const again = transition(first, { type: "started", now: later + 9, owner })!.record;
    expect(transition(again, ended(retry(), "not_sent"))!.record.unreachableSince).toBe(later);
    expect(transition(again, ended(retry(), "transient"))!.record.unreachableSince).toBeUndefined();
  });

  test("that cancels a running request ends its attempt, too", () => {
    const moved = transition(record(), { type: "cancelled", now: later })!;
    expect(moved.attempt).toMatchObject({
      number: 1,
      endedAt: later,
      verdict: "ambiguous",
      reason: "cancelled",
    });
    expect(
      transition(record({ state: "queued" }), { type: "cancelled", now: later })!.attempt,
    ).toBeUndefined();
  });

  test("into a new round begins with nothing used up, and keeps the history", () => {
    const failed = record({
      state: "failed",
      error: failure,
      endedAt: now,
      endReason: "exhausted",
      attempt: 5,
      counted: 5,
      throttled: 7,
      invalid: 3,
      excluded: ["a/m"],
      unreachableSince: now,
      cost: 0.5,
      findings: { problems: ["length"] },
      degraded: "stale",
    });
    const { record: after } = transition(failed, events.revived[0]!)!;
    expect(after).toMatchObject({
      state: "queued",
      round: 2,
      attempt: 5,
      counted: 0,
      throttled: 0,
      invalid: 0,
      excluded: [],
      cost: 0.5,
      lane: "b/n",
      dueAt: later + 5,
      deadlineAt: later + 1005,
    });
    for (const key of ["endedAt", "endReason", "error", "unreachableSince", "findings", "degraded"] as const)
      expect(after[key]).toBeUndefined();
  });
});

test("a request that starts as it is accepted is as one that was queued and then started", () => {
  const queued = record({ state: "queued", attempt: 0 });
  const moved = transition(queued, { type: "started", now, owner })!;
  expect(startAtOnce(queued, { now, owner })).toEqual(moved.record);
});

test("a request with many attempts makes room for the next throttled one, so that a hundred are kept", () => {
  const few = transition(record({ state: "retrying", attempt: throttledKept - 1 }), {
    type: "started",
    now,
    owner,
  })!;
  expect(few.keepThrottled).toBeUndefined();
  const many = transition(record({ state: "retrying", attempt: throttledKept }), {
    type: "started",
    now,
    owner,
  })!;
  expect(many.keepThrottled).toBe(throttledKept - 1);
});

test("a state is ready, terminal or processing", () => {
  for (const state of states) {
    expect([isReady(state), isTerminal(state), state === "processing"].filter(Boolean)).toHaveLength(1);
  }
});

test("a request failed in vain where no one refused it", () => {
  const after = (endReason: RequestRecord["endReason"]) =>
    failedInVain(record({ state: "failed", endReason }));
  const inVain = ["exhausted", "deadline", "unreachable", "invalid_output"] as const;
  expect(inVain.map(after)).toEqual([true, true, true, true]);
  const refused = ["permanent", "outcome_unknown", undefined] as const;
  expect(refused.map(after)).toEqual([false, false, false]);
  expect(failedInVain(record({ state: "cancelled", endReason: "deadline" }))).toBe(false);
});

test("a lane is split at its first slash", () => {
  expect(laneParts("local/meta/llama-3")).toEqual({ upstream: "local", model: "meta/llama-3" });
  expect(laneParts("local//odd")).toEqual({ upstream: "local", model: "/odd" });
});
