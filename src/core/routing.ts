/** Which targets may serve a model, and which of them is next. Pure. */

import { AppError } from "./errors.ts";
import type { CacheWish, FailureWish, ValidateWish } from "./wishes.ts";

export interface Target {
  upstream: string;
  model: string;
  /** It takes prompts that are too long for others of its route. */
  largerContext?: boolean;
}

/** What routing needs to know of the configuration. Names and globs as configured, in order. */
export interface RouteTable {
  upstreams: { name: string; models: string[] }[];
  routes: Route[];
}

export interface Route {
  model: string;
  /** Where any has a weight, requests begin with one of them in this proportion; without one it is 1. */
  targets: { upstream: string; model?: string; weight?: number; largerContext?: boolean }[];
  /** How long a lane may hold a request that somebody waits for, before another target has it. */
  failoverAfterMs?: number;
  validate?: ValidateWish | false;
  cache?: CacheWish | false;
  onFailure?: FailureWish | false;
  /** What is kept of the calls; `last` where the configuration has another default. */
  store?: "all" | "last" | "none";
}

/** A target's lane, and the instant from which it lets somebody through, as far as is known (0 = open now). */
export interface Opening {
  lane: string;
  opensAt: number;
  /** What holds it: limits open by themselves, what is broken perhaps does not. */
  heldBy?: "rate_limit" | "breaker" | "unreachable";
  /** Until when it was told to wait, or backs off: a request that stays in the lane is not due before. 0 = not. */
  closedUntil: number;
  largerContext?: boolean;
}

export const laneOf = (target: Target): string => `${target.upstream}/${target.model}`;

/** A number in [0, 1) that an id always gives: so a request keeps the order of its targets. FNV-1a. */
export function drawOf(id: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < id.length; i++) hash = Math.imul(hash ^ id.charCodeAt(i), 0x01000193);
  // The last characters of an id differ most, and move the high bits least.
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
  return ((hash ^ (hash >>> 13)) >>> 0) / 2 ** 32;
}

/** The route for a model: by its name, else the first glob that it matches. */
export function routeFor(table: RouteTable, model: string): Route | undefined {
  return (
    table.routes.find((candidate) => candidate.model === model) ??
    table.routes.find((candidate) => matchesGlob(candidate.model, model))
  );
}

/** Whether `name` matches a glob in which `*` stands for any run of characters. */
export function matchesGlob(glob: string, name: string): boolean {
  const pieces = glob.split("*");
  const [head = ""] = pieces;
  if (pieces.length === 1) return glob === name;
  if (!name.startsWith(head)) return false;
  let at = head.length;
  for (const piece of pieces.slice(1, -1)) {
    const found = name.indexOf(piece, at);
    if (found < 0) return false;
    at = found + piece.length;
  }
  const tail = pieces.at(-1) ?? "";
  return name.length - tail.length >= at && name.endsWith(tail);
}

/**
 * The targets for a model, in order: `upstream/model` names one; else the route for it; else the
 * upstream that lists it; else the first one that lists none. An upstream that the caller names
 * serves the model under the name that its route gives it there, or as it was asked for.
 * @param draw in [0, 1): with which target a route with weights begins
 * @throws AppError `model_not_found`, naming what exists, or `upstream_not_found`.
 */
export function targetsFor(table: RouteTable, model: string, upstream?: string, draw = 0): Target[] {
  const names = table.upstreams.map(({ name }) => name);
  if (upstream !== undefined && !names.includes(upstream)) {
    throw new AppError(
      "upstream_not_found",
      `There is no upstream "${upstream}". Configured: ${names.join(", ")}.`,
      { param: "outlast.upstream" },
    );
  }
  const slash = model.indexOf("/");
  const named = slash > 0 && slash < model.length - 1 ? model.slice(0, slash) : "";
  if (names.includes(named) && (upstream === undefined || upstream === named)) {
    return [{ upstream: named, model: model.slice(slash + 1) }];
  }
  const routed = routeTargets(table, model, draw);
  if (upstream !== undefined) {
    const ofUpstream = routed?.filter((target) => target.upstream === upstream) ?? [];
    return ofUpstream.length > 0 ? ofUpstream : [{ upstream, model }];
  }
  if (routed) return routed;
  const serving =
    table.upstreams.find(({ models }) => models.includes(model)) ??
    table.upstreams.find(({ models }) => models.some((glob) => matchesGlob(glob, model))) ??
    table.upstreams.find(({ models }) => models.length === 0);
  if (serving) return [{ upstream: serving.name, model }];
  throw new AppError("model_not_found", notFound(table, model), { param: "model" });
}

function routeTargets(table: RouteTable, model: string, draw: number): Target[] | undefined {
  const route = routeFor(table, model);
  if (!route) return undefined;
  const first = weighted(route.targets, draw);
  const order = first === 0 ? route.targets : [route.targets[first]!, ...route.targets.toSpliced(first, 1)];
  return order.map(({ upstream, model: renamed = model, largerContext }) => ({
    upstream,
    model: renamed,
    largerContext,
  }));
}

/** With which target to begin: the first, unless they have weights. One of weight 0 is only ever a fallback. */
function weighted(targets: Route["targets"], draw: number): number {
  if (targets.every(({ weight }) => weight === undefined)) return 0;
  const weights = targets.map(({ weight = 1 }) => weight);
  let left = draw * weights.reduce((sum, weight) => sum + weight, 0);
  const drawn = weights.findIndex((weight) => {
    left -= weight;
    return left < 0;
  });
  return Math.max(0, drawn);
}

function notFound(table: RouteTable, model: string): string {
  const routes = table.routes.map((route) => route.model);
  const listed = table.upstreams.flatMap(({ name, models }) => models.map((one) => `${one} (${name})`));
  return `No upstream serves the model "${model}". Available: ${[...routes, ...listed].join(", ")}.`;
}

/** How the next target is chosen. */
export interface Choice {
  /**
   * `onward`: the first open one behind the request's own in the order of the route, if any.
   * `first`: the first one that is open, else the one that opens soonest.
   * `soonest`: as `first`, but rather not the one that just said no.
   * `larger`: the first open one that takes longer prompts, else the one of them that opens soonest.
   */
  rule: "onward" | "first" | "soonest" | "larger";
  /** When it has to be open, in epoch ms. */
  at: number;
  /** Nobody waits for the answer: a target whose limits open before this instant is as good as an open one. */
  patientUntil?: number;
}

/** The target that a request takes next, leaving out the lanes that refused it. */
export function nextTarget(
  targets: Opening[],
  record: { lane: string; excluded: string[] },
  { rule, at, patientUntil = 0 }: Choice,
): Opening | undefined {
  const usable = targets.filter(({ lane }) => !record.excluded.includes(lane));
  const isOpen = ({ opensAt, heldBy }: Opening) =>
    opensAt <= at || (heldBy === "rate_limit" && opensAt < patientUntil);
  if (rule === "onward") {
    const own = targets.findIndex(({ lane }) => lane === record.lane);
    return targets.slice(own + 1).find((target) => usable.includes(target) && isOpen(target));
  }
  const others = usable.filter(({ lane }) => lane !== record.lane);
  if (rule === "larger") {
    const larger = others.filter(({ largerContext }) => largerContext);
    return larger.find(isOpen) ?? soonest(larger);
  }
  // Who can wait for its own lane does not leave it for another that it would have to pay more for, perhaps.
  const own = usable.find(({ lane }) => lane === record.lane);
  if (rule === "soonest" && patientUntil > 0 && own && isOpen(own)) return own;
  return (rule === "soonest" ? others : usable).find(isOpen) ?? soonest(usable);
}

const soonest = (targets: Opening[]): Opening | undefined =>
  targets.reduce<Opening | undefined>((a, b) => (a && a.opensAt <= b.opensAt ? a : b), undefined);
