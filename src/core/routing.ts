/** Which targets may serve a model, and which of them is next. Pure. */

import { AppError } from "./errors.ts";

export interface Target {
  upstream: string;
  model: string;
}

/** What routing needs to know of the configuration. Names and globs as configured, in order. */
export interface RouteTable {
  upstreams: { name: string; models: string[] }[];
  routes: { model: string; targets: { upstream: string; model?: string }[] }[];
}

/** A target's lane, and the instant from which it lets somebody through (0 = open now). */
export interface Opening {
  lane: string;
  opensAt: number;
}

export const laneOf = (target: Target): string => `${target.upstream}/${target.model}`;

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
 * @throws AppError `model_not_found`, naming what exists, or `upstream_not_found`.
 */
export function targetsFor(table: RouteTable, model: string, upstream?: string): Target[] {
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
  const routed = routeTargets(table, model);
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

function routeTargets(table: RouteTable, model: string): Target[] | undefined {
  const route =
    table.routes.find((candidate) => candidate.model === model) ??
    table.routes.find((candidate) => matchesGlob(candidate.model, model));
  return route?.targets.map((target) => ({ upstream: target.upstream, model: target.model ?? model }));
}

function notFound(table: RouteTable, model: string): string {
  const routes = table.routes.map((route) => route.model);
  const listed = table.upstreams.flatMap(({ name, models }) => models.map((one) => `${one} (${name})`));
  return `No upstream serves the model "${model}". Available: ${[...routes, ...listed].join(", ")}.`;
}

/**
 * The target that a request takes next, leaving out the lanes that refused it:
 * - `onward`: the first open one behind the request's own in the order of the route, if any
 * - `first`: the first one that is open at `at`, else the one that opens soonest
 * - `soonest`: as `first`, but rather not the one that just said no
 */
export function nextTarget(
  targets: Opening[],
  record: { lane: string; excluded: string[] },
  rule: "onward" | "first" | "soonest",
  at: number,
): Opening | undefined {
  const usable = targets.filter(({ lane }) => !record.excluded.includes(lane));
  if (rule === "onward") {
    const own = targets.findIndex(({ lane }) => lane === record.lane);
    return targets.slice(own + 1).find((target) => usable.includes(target) && target.opensAt <= at);
  }
  const isOpen = (target: Opening) => target.opensAt <= at;
  const preferred = rule === "soonest" ? usable.filter(({ lane }) => lane !== record.lane) : usable;
  const soonest = [...usable].sort((a, b) => a.opensAt - b.opensAt)[0];
  return preferred.find(isOpen) ?? soonest;
}
