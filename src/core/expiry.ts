/** Ends what waits in vain: requests past their deadline, and those whose lane opens too late for them. */

import { failures } from "./errors.ts";
import type { Lane } from "./lane.ts";
import type { Lanes } from "./lanes.ts";
import type { World } from "./ports.ts";
import type { Failure, Reason, RequestRecord } from "./request.ts";
import { nextTarget, type Opening } from "./routing.ts";
import type { Targets } from "./targets.ts";

/** What can be done with a request that waits. */
export interface Hands {
  targets: Targets;
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

  /** A request has come to wait. */
  noteDeadline({ deadlineAt }: RequestRecord): void {
    this.dueBy(deadlineAt);
  }

  /** A lane that stays closed, or full, may hold requests that cannot wait for it. */
  noteHeld(lane: Lane, opensAt: number): void {
    // A gate that may be tried again is not open yet.
    if (this.holds(lane, opensAt, 0)) this.dueBy(this.world.clock.now() + lookMs);
  }

  private holds(lane: Lane, opensAt: number, since: number): boolean {
    return (
      opensAt > since || (this.lanes.isBusy(lane) && this.hands.targets.hasAlternatives(lane.upstream.name))
    );
  }

  /** The wall clock was set. */
  clockSet(byMs: number): void {
    this.dueAt += byMs;
  }

  /** Does what is due. Where the store fails, it is tried again a moment later. */
  async sweep(): Promise<void> {
    if (this.sweeping || this.dueAt > this.world.clock.now()) return;
    this.sweeping = true;
    this.dueAt = never;
    try {
      await this.sweepDeadlines();
      for (const lane of [...this.lanes.all()]) await this.sweepHeld(lane);
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

  private async sweepHeld(lane: Lane): Promise<void> {
    const now = this.world.clock.now();
    const opening = this.lanes.openingOf(lane, now, lane.backlog.next(now));
    const { opensAt, heldBy } = opening;
    if (lane.backlog.size === 0 || !this.holds(lane, opensAt, now)) return;
    this.dueBy(now + lookMs);
    // Where limits are all that holds them, they have nowhere else to go, and nothing to fear.
    if (
      heldBy === "rate_limit" &&
      lane.gate.kind === "open" &&
      !this.hands.targets.hasAlternatives(lane.upstream.name)
    )
      return;
    for (const group of lane.backlog.groupsOf("interactive")) {
      const rows = await this.world.store.heads(group, callersPerRead);
      await Promise.all(rows.map((row) => this.release(row, lane, now)));
    }
    if (opensAt <= now) return;
    for (;;) {
      const rows = await this.world.store.expiring({ lane: lane.key, limit: rowsPerRead });
      const released = await Promise.all(rows.map((row) => this.release(row, lane, now)));
      if (rows.length < rowsPerRead || !released.every(Boolean)) return;
    }
  }

  /**
   * Moves a request to an open lane of its route, if its own upstream is broken or cannot be reached, or if somebody
   * has waited, or would have to wait, too long for it; what runs in the background waits for limits. Ends what waits
   * in vain. False where it stays.
   */
  private async release(row: RequestRecord, lane: Lane, now: number): Promise<boolean> {
    const openings = this.hands.targets.openingsFor(row);
    const own = this.lanes.openingOf(lane, now, row);
    const soonest = Math.min(own.opensAt, ...openings.map(({ opensAt }) => opensAt));
    const hopeless = this.hopeless(row, lane, soonest, now);
    const withRoom = openings.filter((one) => one.lane === row.lane || this.hasRoom(one));
    const next = nextTarget(withRoom, row, { rule: "soonest", at: now });
    const elsewhere = next && next.opensAt <= now ? next.lane : undefined;
    const patienceMs = this.hands.targets.failoverAfterMs(row);
    const tooLong =
      patienceMs !== undefined && Math.max(own.opensAt, now) - Math.min(row.dueAt, now) > patienceMs;
    const isBroken = own.heldBy === "unreachable" || own.heldBy === "breaker";
    const moves = row.dueAt <= now && (isBroken || tooLong);
    if ((hopeless || moves) && (await this.hands.reroute(row, elsewhere))) return true;
    return hopeless !== undefined && this.hands.giveUp(row, hopeless.failure, hopeless.reason);
  }

  private hasRoom({ lane: key }: Opening): boolean {
    const lane = this.lanes.find(key);
    return lane === undefined || !this.lanes.isBusy(lane);
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
    // Only what was told, and what limits say, is certain: a breaker may be closed sooner than it thinks.
    const tooLate = since === undefined && soonest >= record.deadlineAt && lane.gate.kind !== "open";
    return tooLate && lane.refusal ? { failure: lane.refusal, reason: "deadline" } : undefined;
  }
}
