/** What has held the requests of a lane, so that one that starts can tell what it waited for. Instants are steady. */

import type { RequestRecord, WaitReason } from "./request.ts";

export interface Hold {
  why: WaitReason;
  /** As far as is known. */
  until: number;
}

const none: Hold[] = [];

export class Holds {
  /** As they were when the lane was looked at last. */
  private current = none;
  /** When those before have ended, the newest of each kind. */
  private readonly ended = new Map<WaitReason, number>();

  /** From now on the lane is held by these; by those that held it until now, it was so as long as they were to. */
  see(holds: Hold[], now: number): void {
    for (const { why, until } of this.current) this.ended.set(why, Math.min(until, now));
    this.current = holds;
  }

  /** A request starts, so nothing holds the lane: what has held it since an instant. */
  passed(since: number, now: number): WaitReason[] {
    if (this.current.length > 0) this.see(none, now);
    const reasons: WaitReason[] = [];
    for (const [why, endedAt] of this.ended) if (endedAt > since) reasons.push(why);
    return reasons;
  }
}

/** What a request that waits has waited for by its own date, whatever its lane was like; undefined: for nothing. */
export function ownWait(record: RequestRecord): WaitReason | undefined {
  const { state, round, dueAt, createdAt, updatedAt } = record;
  const toldAt = state === "queued" && round === 1 ? createdAt : updatedAt;
  if (dueAt <= toldAt) return undefined;
  return state === "queued" ? "scheduled" : "backoff";
}
