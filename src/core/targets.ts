/** Where requests may be called: the targets of today's routes, and how long one waits for which. */

import type { Lanes } from "./lanes.ts";
import type { Clock } from "./ports.ts";
import type { RequestRecord } from "./request.ts";
import {
  drawOf,
  laneOf,
  type Opening,
  type RouteTable,
  routeFor,
  type Target,
  targetsFor,
} from "./routing.ts";

export interface TargetSettings {
  table: RouteTable;
  /** How long a lane may hold a request that somebody waits for, unless its route says otherwise. */
  failoverAfterMs: number;
}

export class Targets {
  private readonly settings: TargetSettings;
  private readonly lanes: Lanes;
  private readonly clock: Clock;
  /** Upstreams on routes that have others, too. */
  private readonly shared: Set<string>;

  constructor(settings: TargetSettings, lanes: Lanes, clock: Clock) {
    this.settings = settings;
    this.lanes = lanes;
    this.clock = clock;
    const routes = settings.table.routes.filter(({ targets }) => targets.length > 1);
    this.shared = new Set(routes.flatMap(({ targets }) => targets.map(({ upstream }) => upstream)));
  }

  /** The targets of today's route of a request, without those that refused it, and when each lets it through. */
  openingsFor(record: RequestRecord): Opening[] {
    const now = this.clock.now();
    return this.targetsOf(record)
      .map((target) => ({
        ...this.lanes.opening(laneOf(target), now, record),
        ...largerOf(target),
      }))
      .filter(({ lane }) => !record.excluded.includes(lane));
  }

  /** Whether requests of an upstream may have other targets. */
  hasAlternatives(upstream: string): boolean {
    return this.shared.has(upstream);
  }

  /** How long a lane may hold a request before another target has it; as long as it takes, if nobody waits for it. */
  failoverAfterMs({ model, priority }: Pick<RequestRecord, "model" | "priority">): number | undefined {
    if (priority !== "interactive") return undefined;
    return routeFor(this.settings.table, model)?.failoverAfterMs ?? this.settings.failoverAfterMs;
  }

  private targetsOf({ id, model, terms }: RequestRecord): Target[] {
    try {
      return targetsFor(this.settings.table, model, terms.upstream, drawOf(id));
    } catch {
      return [];
    }
  }
}

const largerOf = ({ largerContext }: Target) => (largerContext ? { largerContext } : {});
