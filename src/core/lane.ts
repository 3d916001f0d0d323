/** A lane, its upstream, and a slot in it: what is known of them in this process. */

import type { Backlog, Unaccepted } from "./backlog.ts";
import type { LaneFlow, UpstreamFlow } from "./flow.ts";
import type { Gate } from "./gate.ts";
import type { Holds } from "./holds.ts";
import type { Amounts, Taken } from "./meter.ts";
import type { Failure, WaitReason } from "./request.ts";
import type { Member, Members } from "./table.ts";

export interface UpstreamState {
  name: string;
  gate: Gate;
  inFlight: number;
  maxConcurrency: number;
  lanes: Lane[];
  /** The lane that was served last: the next turn is its neighbour's. */
  turn: number;
  flow: UpstreamFlow;
  /** What its lanes share, and behind it what it shares with the other upstreams of its limit group. */
  shared: Shared[];
}

/** Limits that several lanes share, in one place, are given to them in the order in which they were refused. */
export interface Shared {
  /** The lane that has been refused for longest, and when its request fits. Others wait until it has. */
  owed?: { lane: string; opensAt: number; since: number };
}

/** A caller who waits for a slot before its request is accepted; undefined: there is none soon. */
export interface Newcomer extends Unaccepted {
  serve(slot: Slot | undefined): void;
}

export interface Lane {
  key: string;
  upstream: UpstreamState;
  gate: Gate;
  backlog: Backlog<Newcomer>;
  /** What the upstream said when it closed the lane. */
  refusal?: Failure;
  flow: LaneFlow;
  /** The calls in flight, in the order in which they were granted. */
  slots: Members<Slot>;
  /** When a call was answered last; steady, as all instants of lanes. */
  answeredAt: number;
  /** How long it takes from one answer to the next, of late; in ms. */
  answerGapMs: number;
  holds: Holds;
}

/** The right to make one call in a lane; given back by `free` or `abandon`, once. */
export interface Slot {
  lane: Lane;
  /** Among the slots of its lane. */
  member?: Member<Slot>;
  grantedAt: number;
  /** What its request waited for since it was due, and what it was due then for. */
  waitedFor: WaitReason[];
  taken: Taken;
  /** The call was granted as the one probe of the lane's gate or breaker, or of the upstream's. */
  laneProbe: boolean;
  upstreamProbe: boolean;
  laneTrial: boolean;
  upstreamTrial: boolean;
  /** It is a stream that has said something. */
  hasSpoken: boolean;
  /** What came of the call is known, and perhaps not written yet. */
  isOver: boolean;
}

/** What a slot takes where nothing is limited: what its call asks for was not worked out, and is not settled. */
export const unreckoned: Amounts = { requests: 1, tokens: 0 };
export const nothing: Amounts = { requests: 0, tokens: 0 };

/** A probe that took so long that the gate opened without it, and perhaps closed again, proves nothing any more. */
export const probesLane = ({ lane: { gate }, laneProbe, grantedAt }: Slot): boolean =>
  laneProbe && gate.kind === "probing" && gate.probeAt === grantedAt;
export const probesUpstream = ({ lane: { upstream }, upstreamProbe, grantedAt }: Slot): boolean =>
  upstreamProbe && upstream.gate.kind === "probing" && upstream.gate.probeAt === grantedAt;

/** A stream may have closed the breaker that it was to try; what opened since is tried by another. */
export const triesLane = ({ lane: { flow }, laneTrial, grantedAt }: Slot): boolean =>
  laneTrial && flow.breaker.kind === "half_open" && flow.breaker.probeAt === grantedAt;
export const triesUpstream = ({ lane: { upstream }, upstreamTrial, grantedAt }: Slot): boolean =>
  upstreamTrial && upstream.flow.breaker.kind === "half_open" && upstream.flow.breaker.probeAt === grantedAt;
