/** Ends what waits in vain: requests past their deadline, and those whose lane opens too late for them. */

import { failures } from "./errors.ts";
import type { Lane, Lanes } from "./lanes.ts";
import type { World } from "./ports.ts";
import type { Failure, Reason, RequestRecord } from "./request.ts";
import { nextTarget } from "./routing.ts";

/** What can be done with a request that waits. */
export interface Hands {
  routeOf(record: RequestRecord): string[];
  /** Both are false where the request does not wait any more. */
  reroute(record: RequestRecord, lane: string | undefined): Promise<boolean>;
  giveUp(record: RequestRecord, failure: Failure, reason: Reason): Promise<boolean>;
}

/** How often lanes that stay closed are looked at. */
const lookMs = 1000;
const rowsPerRead = 128;
/** Somebody waits for each of these: they are looked at all together. */
const callersPerRead = 2048;
const never = Number.POSITIVE_INFINITY;

export class Expiry {
  private readonly world: World;
  private readonly unreachableAfterMs: number;
  private readonly lanes: Lanes;
  private readonly hands: Hands;
  /** When there may be something to do, at the earliest. */
  private dueAt = 0;
  private sweeping = false;

  /** `unreachableAfterMs`: how long a plain held call waits for an upstream that cannot be reached. */
  constructor(world: World, settings: { unreachableAfterMs: number }, lanes: Lanes, hands: Hands) {
    this.world = world;
    this.unreachableAfterMs = settings.unreachableAfterMs;
    this.lanes = lanes;
    this.hands = hands;
  }

  /** When to sweep next; Infinity while a sweep is under way, whose end will tell. */
  get nextAt(): number {
    return this.sweeping ? never : this.dueAt;
  }

  /** A request has come to wait. Returns when to sweep next. */
  noteDeadline({ deadlineAt }: RequestRecord): number {
    this.dueBy(deadlineAt);
    return this.nextAt;
  }

  /** A lane that stays closed may hold requests that cannot wait for it. Returns when to sweep next. */
  noteClosed(lane: Lane): number {
    const closed = this.lanes.opening(lane.key).opensAt > 0;
    if (closed && !lane.backlog.isEmpty) this.dueBy(this.world.clock.now() + lookMs);
    return this.nextAt;
  }

  /** Does what is due. Where the store fails, it is tried again a moment later. */
  async sweep(): Promise<void> {
    if (this.sweeping || this.dueAt > this.world.clock.now()) return;
    this.sweeping = true;
    this.dueAt = never;
    try {
      await this.sweepDeadlines();
      for (const lane of [...this.lanes.all()]) await this.sweepClosed(lane);
    } catch {
      this.dueBy(this.world.clock.now() + lookMs);
    } finally {
      this.sweeping = false;
    }
  }

  private dueBy(at: number): void {
    this.dueAt = Math.min(this.dueAt, at);
  }

  private async sweepDeadlines(): Promise<void> {
    for (;;) {
      const rows = await this.world.store.expiring({ limit: rowsPerRead });
      const now = this.world.clock.now();
      const overdue = rows.filter(({ deadlineAt }) => deadlineAt <= now);
      const ended = await Promise.all(
        overdue.map((row) => this.hands.giveUp(row, failures.deadline(), "deadline")),
      );
      const next = rows[overdue.length];
      if (next) this.dueBy(next.deadlineAt);
      if (next || rows.length === 0) return;
      if (ended.some(Boolean)) continue;
      // Rows that are being claimed just now are not waiting any more; they end at their deadline.
      return this.dueBy(now + lookMs);
    }
  }

  private async sweepClosed(lane: Lane): Promise<void> {
    const now = this.world.clock.now();
    const { opensAt } = this.lanes.opening(lane.key);
    if (lane.backlog.isEmpty || opensAt <= now) return;
    this.dueBy(now + lookMs);
    for (const group of lane.backlog.groupsOf("interactive")) {
      const rows = await this.world.store.heads(group, callersPerRead);
      await Promise.all(rows.map((row) => this.release(row, lane, now)));
    }
    for (;;) {
      const rows = await this.world.store.expiring({ lane: lane.key, limit: rowsPerRead });
      const released = await Promise.all(rows.map((row) => this.release(row, lane, now)));
      if (rows.length < rowsPerRead || !released.every(Boolean)) return;
    }
  }

  /**
   * Moves a request to an open lane of its route, if its own upstream cannot be reached or somebody waits for
   * it; what runs in the background waits for its turn. Ends what waits in vain. False where it stays.
   */
  private async release(row: RequestRecord, lane: Lane, now: number): Promise<boolean> {
    const openings = this.hands.routeOf(row).map((key) => this.lanes.opening(key));
    const soonest = Math.min(this.lanes.opening(lane.key).opensAt, ...openings.map(({ opensAt }) => opensAt));
    const hopeless = this.hopeless(row, lane, soonest, now);
    const next = nextTarget(openings, row, "soonest", now);
    const elsewhere = next && next.opensAt <= now ? next.lane : undefined;
    const unreachable = this.lanes.unreachableSince(lane.key) !== undefined;
    const moves = row.dueAt <= now && (unreachable || row.priority === "interactive");
    if ((hopeless || moves) && (await this.hands.reroute(row, elsewhere))) return true;
    return hopeless !== undefined && this.hands.giveUp(row, hopeless.failure, hopeless.reason);
  }

  /** Why a request that waits in a closed lane has nothing to wait for; undefined where it has. */
  private hopeless(
    record: RequestRecord,
    lane: Lane,
    soonest: number,
    now: number,
  ): { failure: Failure; reason: Reason } | undefined {
    const since = this.lanes.unreachableSince(lane.key);
    if (since !== undefined && record.terms.held) {
      // Its patience begins with its round, and not before it was to run.
      const waitedMs = now - Math.max(since, record.deadlineAt - record.terms.deadlineMs);
      const failure = failures.unreachable(lane.upstream.name);
      if (waitedMs >= this.unreachableAfterMs) return { failure, reason: "unreachable" };
    }
    const tooLate = since === undefined && soonest >= record.deadlineAt;
    return tooLate && lane.refusal ? { failure: lane.refusal, reason: "deadline" } : undefined;
  }
}
