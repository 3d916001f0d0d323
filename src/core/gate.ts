/**
 * The gate of a lane, or of a whole upstream: open, closed until an instant, or half open while one
 * probe is under way. A value; every function returns the next one.
 *
 * A lane closes when its upstream throttles (DESIGN: back off as a whole, then one probe), an upstream
 * when it cannot be reached. Whoever waits behind a gate makes no attempt.
 */

export type ClosedWhy = "rate_limit" | "unreachable";

export type Gate =
  | { kind: "open" }
  | { kind: "closed"; until: number; since: number; strikes: number; why: ClosedWhy }
  /** `until`: an instant that an earlier call was told to wait for; the probe's success does not undo it. */
  | { kind: "probing"; until: number; since: number; strikes: number; why: ClosedWhy };

export interface GateBackoff {
  baseMs: number;
  maxMs: number;
}

export const open: Gate = { kind: "open" };

/** Whether a request may pass now, and whether it would be the one probe of a closed gate. */
export function admits(gate: Gate, now: number): "yes" | "probe" | "no" {
  if (gate.kind === "open") return "yes";
  if (gate.kind === "closed" && gate.until <= now) return "probe";
  return "no";
}

/** When the gate lets somebody through at the earliest: 0 for an open one, Infinity while a probe is under way. */
export function opensAt(gate: Gate): number {
  if (gate.kind === "open") return 0;
  return gate.kind === "closed" ? gate.until : Number.POSITIVE_INFINITY;
}

/** The gate while its probe is under way. */
export function probing(gate: Gate): Gate {
  if (gate.kind !== "closed") return gate;
  return { ...gate, kind: "probing" };
}

/**
 * Closes for max(what the upstream told, the backoff of the gate), so that `Retry-After: 0` never loops.
 * A failed probe doubles the backoff; further failures of calls that were already under way when the
 * gate closed only prolong it, for they say nothing new. Up to a tenth of jitter keeps nodes apart.
 */
export function close(
  gate: Gate,
  told: { now: number; luck: number; why: ClosedWhy; retryAfterMs?: number; probe: boolean },
  backoff: GateBackoff,
): Gate {
  const { now, why } = told;
  const strikes = gate.kind === "open" ? 1 : gate.strikes + (told.probe ? 1 : 0);
  const backoffMs = Math.min(backoff.maxMs, backoff.baseMs * 2 ** Math.min(strikes - 1, 30));
  const ownUntil = Math.round(now + backoffMs * (1 + told.luck / 10));
  const until = Math.max(ownUntil, now + (told.retryAfterMs ?? 0));
  const since = gate.kind === "open" ? now : gate.since;
  if (gate.kind === "probing" && !told.probe) return { ...gate, until };
  if (gate.kind === "closed") return { ...gate, until: Math.max(gate.until, until) };
  return { kind: "closed", until, since, strikes, why };
}

/** After a probe that was never sent: the next one may try at once. */
export function probeAbandoned(gate: Gate, now: number): Gate {
  return gate.kind === "probing" ? { ...gate, kind: "closed", until: Math.max(gate.until, now) } : gate;
}

/** After a probe that got through: open, unless another call was told to wait meanwhile. */
export function probePassed(gate: Gate, now: number): Gate {
  return gate.kind === "probing" && gate.until > now ? { ...gate, kind: "closed" } : open;
}
