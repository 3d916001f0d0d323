/**
 * What is known of lanes and upstreams: limits and what was taken of them, breakers, how many calls at once are good
 * for them, how many tokens a text has. It outlives the lanes, which are forgotten when nobody uses them, and, where
 * it is worth it, the process.
 */

import { type Breaker, type BreakerSettings, closed, forRestart, isBlank, revive } from "./breaker.ts";
import { type Concurrency, startConcurrency } from "./concurrency.ts";
import { type Amounts, type Meter, Metering, meterOf } from "./meter.ts";
import type { PaceLimits } from "./pace.ts";
import type { FlowRow, FlowStore, RecentCall } from "./ports.ts";
import { readMirror } from "./provider-limits.ts";
import { type CallSize, laneParts } from "./request.ts";
import { type BudgetSettings, type RetryBudget, startBudget } from "./retry-budget.ts";
import { matchesGlob } from "./routing.ts";
import { type Calibration, estimate, readCalibration, usageOf } from "./token-estimate.ts";

export interface UpstreamSettings {
  name: string;
  maxConcurrency: number;
  /** Default 1. */
  minConcurrency?: number;
  limits?: PaceLimits;
  /** Upstreams of one group share its limits. */
  limitGroup?: string;
  /** Of its models, by name or glob; the first that fits holds. */
  lanes?: { model: string; limits: PaceLimits; maxConcurrency?: number }[];
}

export interface FlowSettings {
  upstreams: UpstreamSettings[];
  limitGroups: { name: string; limits: PaceLimits }[];
  breaker: BreakerSettings;
  retryBudget: BudgetSettings;
}

export interface LaneFlow {
  key: string;
  metering: Metering;
  breaker: Breaker;
  concurrency: Concurrency;
  minConcurrency: number;
  maxConcurrency: number;
  calibration?: Calibration;
  usedAt: number;
  /** Of its last answer. */
  succeededAt: number;
  /** It differs from what is on disk. */
  isDirty: boolean;
}

export interface UpstreamFlow {
  name: string;
  settings: UpstreamSettings;
  meter: Meter;
  breaker: Breaker;
  budget: RetryBudget;
  isDirty: boolean;
}

/** Callers choose the names of models: no more lanes than this are remembered beyond those in use. */
const lanesRemembered = 1000;
const windowMs = 60_000;

export class Flow {
  private readonly lanes = new Map<string, LaneFlow>();
  private readonly upstreams = new Map<string, UpstreamFlow>();
  private readonly groups = new Map<string, Meter>();
  private readonly breaker: BreakerSettings;

  constructor({ upstreams, limitGroups, breaker, retryBudget }: FlowSettings) {
    this.breaker = breaker;
    for (const { name, limits } of limitGroups) this.groups.set(name, meterOf(limits));
    for (const settings of upstreams) {
      const { name, limits } = settings;
      const budget = startBudget(retryBudget);
      this.upstreams.set(name, {
        name,
        settings,
        meter: meterOf(limits),
        breaker: closed,
        budget,
        isDirty: false,
      });
    }
  }

  upstream(name: string): UpstreamFlow | undefined {
    return this.upstreams.get(name);
  }

  /** What is known of a lane; made on first use. Undefined where its upstream is not configured. */
  lane(key: string, now: number): LaneFlow | undefined {
    const known = this.lanes.get(key);
    if (known) return known;
    const lane = this.newLane(key, now);
    if (lane) this.lanes.set(key, lane);
    return lane;
  }

  /** What is known of a lane, or would be if it were used: nothing is remembered. */
  look(key: string, now: number): LaneFlow | undefined {
    return this.lanes.get(key) ?? this.newLane(key, now);
  }

  known(): Iterable<LaneFlow> {
    return this.lanes.values();
  }

  knownUpstreams(): Iterable<UpstreamFlow> {
    return this.upstreams.values();
  }

  /** Forgets a lane that taught nothing, and when they are too many those that were not used for longest. */
  tidy(key: string, now: number, isInUse: (key: string) => boolean): void {
    const lane = this.lanes.get(key);
    if (!lane) return;
    if (!lane.calibration && !lane.metering.limits && isFresh(lane)) this.lanes.delete(key);
    // Not one by one: that would be a walk through all of them for each call.
    if (this.lanes.size <= lanesRemembered * 1.1) return;
    const idle = [...this.lanes.values()].filter(
      ({ key, breaker, metering }) => breaker.kind === "closed" && !isInUse(key) && !metering.isOwnInUse(now),
    );
    idle.sort((a, b) => a.usedAt - b.usedAt);
    for (const { key } of idle.slice(0, this.lanes.size - lanesRemembered)) this.lanes.delete(key);
  }

  /** Learns what an earlier start knew, and what was called in the last minute. */
  async recover(store: FlowStore, now: number): Promise<void> {
    for (const row of await store.flow()) this.restore(row, now);
    if (!this.isLimited) return;
    for (const call of await store.calledSince(now - windowMs)) this.recall(call, now);
  }

  /** Whether any limit is configured: what a provider says of itself has been kept with all that it knew. */
  private get isLimited(): boolean {
    const limits = ({ requestsPerMinute, tokensPerMinute }: PaceLimits = {}) =>
      requestsPerMinute !== undefined || tokensPerMinute !== undefined;
    const ofUpstreams = [...this.upstreams.values()].map(({ settings }) => settings);
    return (
      this.groups.size > 0 ||
      ofUpstreams.some((one) => limits(one.limits) || one.lanes?.some((lane) => limits(lane.limits)))
    );
  }

  /** What has changed since it was asked last, to be kept. */
  changes(now: number): FlowRow[] {
    const rows: FlowRow[] = [];
    for (const upstream of this.upstreams.values()) {
      if (!upstream.isDirty) continue;
      upstream.isDirty = false;
      const value = JSON.stringify({ breaker: forRestart(upstream.breaker), at: now });
      rows.push({ name: `upstream:${upstream.name}`, value });
    }
    for (const lane of this.lanes.values()) {
      if (!lane.isDirty) continue;
      lane.isDirty = false;
      const { breaker, calibration, metering, concurrency } = lane;
      const kept = {
        breaker: forRestart(breaker),
        calibration,
        mirrors: metering.mirrors,
        concurrency: Math.floor(concurrency.calm),
        at: now,
      };
      rows.push({ name: `lane:${lane.key}`, value: JSON.stringify(kept) });
    }
    return rows;
  }

  /** What was to be kept could not be. */
  keepAgain(rows: FlowRow[]): void {
    for (const { name } of rows) {
      const key = name.slice(name.indexOf(":") + 1);
      const of = name.startsWith("lane:") ? this.lanes.get(key) : this.upstreams.get(key);
      if (of) of.isDirty = true;
    }
  }

  /** What a request is reckoned at, in a lane. */
  amounts(lane: LaneFlow, size: CallSize | undefined): Amounts {
    const { prompt, output } = estimate(lane.calibration, size);
    return { requests: 1, tokens: prompt + output };
  }

  private newLane(key: string, now: number): LaneFlow | undefined {
    const { upstream: name, model } = laneParts(key);
    const upstream = this.upstreams.get(name);
    if (!upstream) return undefined;
    const { limitGroup, lanes = [], maxConcurrency: most, minConcurrency = 1 } = upstream.settings;
    const own =
      lanes.find((one) => one.model === model) ?? lanes.find((one) => matchesGlob(one.model, model));
    const group = limitGroup === undefined ? undefined : this.groups.get(limitGroup);
    const maxConcurrency = own?.maxConcurrency ?? most;
    return {
      key,
      metering: new Metering([meterOf(own?.limits), upstream.meter, ...(group ? [group] : [])]),
      breaker: closed,
      concurrency: startConcurrency(Math.min(minConcurrency, maxConcurrency), maxConcurrency),
      minConcurrency: Math.min(minConcurrency, maxConcurrency),
      maxConcurrency,
      usedAt: now,
      succeededAt: 0,
      isDirty: false,
    };
  }

  private restore({ name, value }: FlowRow, now: number): void {
    const colon = name.indexOf(":");
    const key = name.slice(colon + 1);
    const kept = parsed(value);
    if (name.startsWith("upstream:")) {
      const upstream = this.upstreams.get(key);
      if (upstream) upstream.breaker = revive(kept.breaker, now, this.breaker);
      return;
    }
    const lane = name.startsWith("lane:") ? this.lane(key, Number(kept.at) || 0) : undefined;
    if (!lane) return;
    lane.breaker = revive(kept.breaker, now, this.breaker);
    lane.calibration = readCalibration(kept.calibration);
    const { concurrency } = kept;
    if (typeof concurrency === "number" && concurrency >= lane.minConcurrency) {
      const limit = Math.min(concurrency, lane.maxConcurrency);
      lane.concurrency = { limit, loweredAt: 0, calm: limit };
    }
    const mirrors = (kept.mirrors ?? {}) as Record<string, unknown>;
    lane.metering.mirrors = { requests: readMirror(mirrors.requests), tokens: readMirror(mirrors.tokens) };
    this.tidy(key, now, () => false);
  }

  /** What an earlier start has sent in the last minute counts as if this one had. */
  private recall({ upstream, model, startedAt, usage, size, verdict }: RecentCall, now: number): void {
    if (verdict === "not_sent") return;
    const lane = this.lane(`${upstream}/${model}`, now);
    if (!lane) return;
    // What a call that was cut off has used is a guess.
    const isKnown = usage !== undefined && verdict !== "ambiguous";
    const used = isKnown ? usageOf(usage).total : undefined;
    const refused = verdict === "throttled" || verdict === "permanent";
    const tokens = used ?? (refused ? 0 : this.amounts(lane, size).tokens);
    lane.metering.recall({ requests: 1, tokens }, startedAt);
  }
}

/** It has not failed, nor refused too many calls. */
const isFresh = ({ breaker, concurrency }: LaneFlow): boolean =>
  isBlank(breaker) && concurrency.limit >= concurrency.calm;

function parsed(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}
