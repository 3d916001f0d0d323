/**
 * How much may be sent: requests and tokens in a minute, as configured for a lane, its upstream and the group of
 * upstreams that share an account, or else as the provider says of itself. What a call asks for is taken from all of
 * them when it is let through, and set right when it is known what it has used.
 */

import { Pace, type PaceLimits } from "./pace.ts";
import {
  type LimitReading,
  levelAt,
  type Mirror,
  mirrored,
  mirrorOpensAt,
  nearMs,
  taken,
} from "./provider-limits.ts";

export type Kind = "requests" | "tokens";
export type Amounts = Record<Kind, number>;
const kinds: Kind[] = ["requests", "tokens"];

/** The limits of one place: those of a lane, an upstream or a group. */
export interface Meter {
  requests?: Pace;
  tokens?: Pace;
}

export function meterOf({ requestsPerMinute, tokensPerMinute }: PaceLimits = {}): Meter {
  return {
    requests: requestsPerMinute === undefined ? undefined : new Pace(requestsPerMinute),
    tokens: tokensPerMinute === undefined ? undefined : new Pace(tokensPerMinute),
  };
}

/** What a lane was granted at an instant. */
export interface Taken {
  at: number;
  amounts: Amounts;
  /** What the lane had been granted in all, with this. */
  mark: Amounts;
}

/** The newest calls that turned out to use something else than they were reckoned at. */
const settledKept = 256;
/** How finely, and how far back, it is known what had been granted. */
const historyStepMs = 50;
const historyKept = 128;

/** All that limits one lane. */
export class Metering {
  private readonly places: Meter[];
  private readonly hasPaces: boolean;
  /** As calls were reckoned at when they were let through. */
  private readonly granted: Amounts = { requests: 0, tokens: 0 };
  private readonly settled: { mark: Amounts; more: Amounts }[] = [];
  /** The newest call behind which the provider's account was read: it has all calls up to that. */
  private readonly readUpTo: Amounts = { requests: 0, tokens: 0 };
  mirrors: Partial<Record<Kind, Mirror>> = {};
  /** What had been granted at some instants of the last seconds, in their order. */
  private history: { at: number; granted: Amounts }[] = [];

  constructor(places: Meter[]) {
    this.places = places;
    this.hasPaces = places.some(({ requests, tokens }) => requests !== undefined || tokens !== undefined);
  }

  /** Whether anything limits the lane, so that it matters what calls ask for. */
  get limits(): boolean {
    const { mirrors } = this;
    return this.hasPaces || mirrors.requests !== undefined || mirrors.tokens !== undefined;
  }

  /** From when on a call of this size may be sent, in epoch ms; `now` or earlier if it may already. */
  opensAt(amounts: Amounts, now: number): number {
    let at = this.pacesOpenAt(amounts, now);
    for (const kind of kinds) {
      const mirror = this.mirrorOf(kind);
      if (mirror) at = Math.max(at, mirrorOpensAt(mirror, amounts[kind], now));
    }
    return at;
  }

  private pacesOpenAt(amounts: Amounts, now: number): number {
    let at = 0;
    for (const kind of kinds)
      for (const place of this.places) at = Math.max(at, place[kind]?.opensAt(amounts[kind], now) ?? 0);
    return at;
  }

  /** When somebody may go behind so many others of its like, epoch ms. */
  turnAt(ahead: number, amounts: Amounts, now: number): number {
    let at = this.opensAt(amounts, now);
    for (const kind of kinds) {
      const mirror = this.mirrorOf(kind);
      if (mirror) at = Math.max(at, mirrorOpensAt(mirror, 0, now) + (ahead * amounts[kind]) / mirror.perMs);
      for (const place of this.places)
        at = Math.max(at, place[kind]?.turnAt(ahead * amounts[kind], amounts[kind], now) ?? 0);
    }
    return Math.round(at);
  }

  private remember(now: number): void {
    const { history } = this;
    const newest = history.at(-1);
    if (newest && now >= newest.at && now - newest.at < historyStepMs) return;
    if (newest && now < newest.at) history.length = 0;
    history.push({ at: now, granted: { ...this.granted } });
    if (history.length > historyKept) history.shift();
  }

  /** What had been granted before all calls that may have reached the provider together with this one. */
  private grantedBefore(call: Taken): Amounts {
    const { history } = this;
    const from = call.at - nearMs;
    let before = call.mark;
    for (let i = history.length - 1; i >= 0 && history[i]!.at > from; i--) before = history[i]!.granted;
    return before;
  }

  /**
   * Which limits hold such a call now, the narrowest: 0 are those of the lane alone, 1 those that its upstream's lanes
   * share, 2 those of the group; undefined where none do.
   */
  heldAt(amounts: Amounts, now: number): number | undefined {
    for (const kind of kinds) {
      const mirror = this.mirrorOf(kind);
      if (mirror && mirrorOpensAt(mirror, amounts[kind], now) > now) return 0;
    }
    const holds = (place: Meter) =>
      kinds.some((kind) => (place[kind]?.opensAt(amounts[kind], now) ?? 0) > now);
    const at = this.places.findIndex(holds);
    return at < 0 ? undefined : at;
  }

  /** Whether something is taken of the limits that are the lane's alone. */
  isOwnInUse(now: number): boolean {
    return kinds.some((kind) => (this.places[0]?.[kind]?.used(now) ?? 0) > 0);
  }

  take(amounts: Amounts, now: number): Taken {
    this.remember(now);
    for (const kind of kinds) {
      for (const place of this.places) place[kind]?.take(amounts[kind], now);
      this.granted[kind] += amounts[kind];
      this.book(kind, amounts[kind], now);
    }
    return { at: now, amounts, mark: { ...this.granted } };
  }

  /**
   * What was taken is only sent now: it counts from here on. Where the disk was so slow that others have taken its
   * place, nothing is taken, and the instant (epoch ms) is told from which it can be; else `now`.
   */
  move(call: Taken, now: number): number {
    if (now <= call.at || !this.hasPaces) return now;
    for (const kind of kinds)
      for (const place of this.places) place[kind]?.settle(call.at, call.amounts[kind], 0);
    call.at = 0;
    const opensAt = this.pacesOpenAt(call.amounts, now);
    if (opensAt > now) return opensAt;
    for (const kind of kinds) for (const place of this.places) place[kind]?.take(call.amounts[kind], now);
    call.at = now;
    return now;
  }

  /** What was taken by an earlier start. The provider's own account has it already. In the order of time. */
  recall(amounts: Amounts, at: number): void {
    for (const kind of kinds) for (const place of this.places) place[kind]?.take(amounts[kind], at);
  }

  /** What was taken turned out to be something else. */
  settle({ at, amounts, mark }: Taken, actual: Amounts, now: number): void {
    const more = { requests: actual.requests - amounts.requests, tokens: actual.tokens - amounts.tokens };
    for (const kind of kinds) {
      if (more[kind] === 0) continue;
      for (const place of this.places) place[kind]?.settle(at, amounts[kind], actual[kind]);
      if (mark.requests > this.readUpTo[kind]) this.book(kind, more[kind], now);
    }
    if (more.tokens === 0 && more.requests === 0) return;
    this.settled.push({ mark, more });
    if (this.settled.length > settledKept) this.settled.shift();
  }

  /** What the provider said behind a call of what is left. */
  read(readings: Partial<Record<Kind, LimitReading>>, call: Taken): void {
    for (const kind of kinds) {
      const reading = readings[kind];
      if (!reading) continue;
      const base = this.grantedBefore(call);
      const later = this.settled.filter(({ mark }) => mark.requests > base.requests && mark !== call.mark);
      const corrected = later.reduce((sum, { more }) => sum + more[kind], 0);
      const own = base === call.mark ? 0 : call.amounts[kind];
      const since = this.granted[kind] - base[kind] - own + corrected;
      this.readUpTo[kind] = Math.max(this.readUpTo[kind], call.mark.requests);
      this.mirrors[kind] = mirrored(this.mirrors[kind], reading, call.at, since);
    }
  }

  /** The provider's own account, where nothing is configured. */
  mirrorOf(kind: Kind): Mirror | undefined {
    return this.isConfigured(kind) ? undefined : this.mirrors[kind];
  }

  isConfigured(kind: Kind): boolean {
    return this.places.some((place) => place[kind] !== undefined);
  }

  /** The narrowest limit of a kind in a minute, if there is one, and what of it is used. */
  limitOf(
    kind: Kind,
    now: number,
  ): { perMinute: number; used: number; source: "config" | "learned" } | undefined {
    const paces = this.places.map((place) => place[kind]).filter((pace) => pace !== undefined);
    const pace = paces.reduce<Pace | undefined>(
      (a, b) => (a && a.perMinute <= b.perMinute ? a : b),
      undefined,
    );
    if (pace) return { perMinute: pace.perMinute, used: pace.used(now), source: "config" };
    const mirror = this.mirrors[kind];
    if (!mirror) return undefined;
    const level = levelAt(mirror, Math.max(now, mirror.at));
    return {
      perMinute: mirror.limit,
      used: Math.max(0, Math.round(mirror.limit - level)),
      source: "learned",
    };
  }

  private book(kind: Kind, amount: number, now: number): void {
    const mirror = this.mirrors[kind];
    if (mirror) this.mirrors[kind] = taken(mirror, amount, now);
  }
}
