import { z } from "zod";
import { formatDuration } from "../core/duration.ts";
import type { Route } from "../core/routing.ts";
import { choice, duration, list, table, text, wholeNumber, yesOrNo } from "./field.ts";
import { buildWishes, wishes, wishesAsWritten } from "./wishes.ts";

/** A target is a table, or short: "upstream" or "upstream/model", split at the first slash. */
const target = z.preprocess(
  (value) => {
    if (typeof value !== "string") return value;
    const slash = value.indexOf("/");
    return slash < 0
      ? { upstream: value }
      : { upstream: value.slice(0, slash), model: value.slice(slash + 1) };
  },
  table({
    upstream: text(),
    model: text().optional(),
    weight: wholeNumber(0, 1_000).optional(),
    larger_context: yesOrNo.optional(),
  }),
);

const targets = list(target)
  .min(1, "must name at least one upstream")
  .refine(
    (all) => all.length === 0 || all.some(({ weight = 1 }) => weight > 0),
    "must give at least one target a weight above 0",
  );

/** The longest that somebody can be held. */
const longestHoldMs = 86_400_000;
export const failoverAfter = duration(0, longestHoldMs);

/** What is kept of the calls of a request. */
export const kept = choice("last", "all", "none").optional();

/** A route is a list of targets, or a table that says more. */
export const route = z.union(
  [targets, table({ targets, failover_after: failoverAfter.optional(), store: kept, ...wishes })],
  {
    error: 'must be a list of targets, or a table that has such a list as "targets"',
  },
);

export type WrittenRoute = z.output<typeof route>;

/** Where a route has its targets, in the form in which it is written. */
export function writtenTargets(written: WrittenRoute) {
  return Array.isArray(written)
    ? { path: [], targets: written }
    : { path: ["targets"], targets: written.targets };
}

export function buildRoute(model: string, written: WrittenRoute): Route {
  const targets = writtenTargets(written).targets.map(({ larger_context: largerContext, ...target }) => ({
    ...target,
    ...(largerContext !== undefined && { largerContext }),
  }));
  if (Array.isArray(written)) return { model, targets };
  const { failover_after: failoverAfterMs, store } = written;
  return {
    model,
    targets,
    ...(failoverAfterMs !== undefined && { failoverAfterMs }),
    ...(store !== undefined && { store }),
    ...buildWishes(written),
  };
}

export function routeAsWritten({ targets: built, failoverAfterMs, store, ...wishes }: Route) {
  const targets = built.map(({ largerContext, ...target }) => ({ ...target, larger_context: largerContext }));
  const more = {
    failover_after: failoverAfterMs === undefined ? undefined : formatDuration(failoverAfterMs),
    store,
    ...wishesAsWritten(wishes),
  };
  return Object.values(more).every((value) => value === undefined) ? targets : { targets, ...more };
}
