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
  | { kind: "probing"; probeAt: number; until: number; since: number; strikes: number; why: ClosedWhy };

export interface GateBackoff {
  baseMs: number;
  maxMs: number;
}

export const open: Gate = { kind: "open" };

/**
 * A probe that has not been refused for so long has been let in: upstreams refuse at once, and an answer may
 * take minutes, during which nobody else should have to wait. Longer than connecting may take.
 */
export const probePatienceMs = 10_000;

/** Whether a request may pass now, and whether it would be the one probe of a closed gate. */
export function admits(gate: Gate, now: number): "yes" | "probe" | "no" {
  if (gate.kind === "open") return "yes";
  if (opensAt(gate) > now) return "no";
  return gate.kind === "closed" ? "probe" : "yes";
}

/** When the gate lets somebody through at the latest, as far as is known now: 0 for an open one. */
export function opensAt(gate: Gate): number {
  if (gate.kind === "open") return 0;
  return gate.kind === "closed" ? gate.until : Math.max(gate.until, gate.probeAt + probePatienceMs);
}

/** The gate when somebody has passed: probing, if it was closed; open, if its probe was patient enough. */
export function passed(gate: Gate, now: number): Gate {
  return gate.kind === "closed" ? { ...gate, kind: "probing", probeAt: now } : open;
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
  const toldUntil = gate.kind === "open" ? 0 : gate.until;
  const until = Math.max(ownUntil, toldUntil, now + (told.retryAfterMs ?? 0));
  const since = gate.kind === "open" ? now : gate.since;
  if (gate.kind === "probing" && !told.probe) return { ...gate, until };
  if (gate.kind === "closed") return { ...gate, until };
  return { kind: "closed", until, since, strikes, why };
}

/** After a probe that was never sent: the next one may try at once. */
export function probeAbandoned(gate: Gate, now: number): Gate {
  return gate.kind === "probing" ? closedAgain(gate, Math.max(gate.until, now)) : gate;
}

/** After a probe that got through: open, unless another call was told to wait meanwhile. */
export function probePassed(gate: Gate, now: number): Gate {
  if (gate.kind !== "probing") return gate;
  return gate.until > now ? closedAgain(gate, gate.until) : open;
}

function closedAgain({ since, strikes, why }: Exclude<Gate, { kind: "open" }>, until: number): Gate {
  return { kind: "closed", until, since, strikes, why };
}
