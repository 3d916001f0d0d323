/** Records and outcomes for tests of core, with only what matters said. */

import type { Outcome } from "../../src/core/ports.ts";
import type { RequestRecord, Terms } from "../../src/core/request.ts";

export const now = Date.UTC(2026, 0, 2, 3, 4, 5);

export const terms = (some: Partial<Terms> = {}): Terms => ({
  maxAttempts: 5,
  deadlineMs: 600_000,
  onUnknown: "retry",
  onDisconnect: "continue",
  held: true,
  ...some,
});

/** A request of `acme` in the lane `a/m`; `processing` in its first attempt unless told. */
export function record(some: Partial<RequestRecord> = {}): RequestRecord {
  const state = some.state ?? "processing";
  return {
    id: "req_1",
    project: "acme",
    endpoint: "chat.completions",
    model: "m",
    state,
    lane: "a/m",
    priority: "default",
    dueAt: now,
    createdAt: now,
    updatedAt: now,
    deadlineAt: now + 600_000,
    attempt: 1,
    round: 1,
    counted: 0,
    throttled: 0,
    invalid: 0,
    excluded: [],
    owner: state === "processing" ? { node: "local", epoch: 1 } : undefined,
    terms: terms(),
    duplicatePossible: false,
    tags: [],
    forks: [],
    ...some,
  };
}

type ResponseOutcome = Extract<Outcome, { kind: "response" }>;

/** An upstream's answer. */
export function response(
  status: number,
  some: {
    headers?: Record<string, string>;
    error?: ResponseOutcome["facts"]["error"];
    wellFormed?: boolean;
  } = {},
): ResponseOutcome {
  return {
    kind: "response",
    status,
    headers: Object.entries(some.headers ?? {}),
    body: new Uint8Array(),
    facts: { wellFormed: some.wellFormed ?? true, error: some.error },
    firstByteAt: now,
  };
}
