import { isIPv4, isIPv6 } from "node:net";
import { formatDuration } from "../core/duration.ts";
import { isTable } from "./field.ts";
import { writtenTargets } from "./route.ts";
import type { ConfigFile } from "./schema.ts";
import { formatSize } from "./size.ts";
import { type Draft, type Path, report } from "./source.ts";
import { didYouMean } from "./suggestion.ts";

/** What keys demand of each other. */
export function checkRules(draft: Draft, file: Partial<ConfigFile>): void {
  const { host, api_keys: apiKeys, retry, limits, max_body_size: maxBodySize } = file;
  if (host !== undefined && apiKeys?.length === 0 && !isLoopback(host)) {
    const why = "listening beyond this machine needs an API key, or anyone could spend your providers' money";
    const what = "set OUTLAST_API_KEYS or [[api_keys]], or listen on 127.0.0.1";
    report(draft, ["host"], `${why}; ${what}`, { hidden: false });
  }
  apiKeys?.forEach(({ key }, index) => {
    const first = apiKeys.findIndex((other) => other.key === key);
    if (first < index) {
      report(draft, ["api_keys", index, "key"], `is the same as api_keys[${first}].key`, { hidden: true });
    }
  });
  for (const kind of ["held_backoff", "backoff", "lane_backoff"] as const) {
    if (retry && retry[`${kind}_max`] < retry[`${kind}_base`]) {
      const least = `retry.${kind}_base, which is ${formatDuration(retry[`${kind}_base`])}`;
      report(draft, ["retry", `${kind}_max`], `must be at least ${least}`, { hidden: true });
    }
  }
  if (maxBodySize !== undefined && (limits?.max_body_memory ?? maxBodySize) < maxBodySize) {
    const least = `max_body_size, which is ${formatSize(maxBodySize)}`;
    report(draft, ["limits", "max_body_memory"], `must be at least ${least}`, { hidden: true });
  }
  checkBreaker(draft, file.breaker);
  checkUpstreams(draft, file.upstreams ?? {});
  checkNames(draft, file.routes ?? {});
}

function checkBreaker(draft: Draft, breaker: ConfigFile["breaker"] | undefined): void {
  if (breaker === undefined || breaker.cooldown_max >= breaker.cooldown) return;
  const least = `breaker.cooldown, which is ${formatDuration(breaker.cooldown)}`;
  report(draft, ["breaker", "cooldown_max"], `must be at least ${least}`, { hidden: true });
}

/** Limit groups that are named but wrong count as known, as upstreams do. */
function checkUpstreams(draft: Draft, upstreams: ConfigFile["upstreams"]): void {
  const { limit_groups: groups = {} } = draft.values;
  for (const [name, upstream] of Object.entries(upstreams)) {
    const { min_concurrency: min, max_concurrency: max, limit_group: group } = upstream;
    const path = ["upstreams", name];
    const most = `max_concurrency of the upstream, which is ${max}`;
    if (min > max) report(draft, [...path, "min_concurrency"], `must be at most ${most}`, { hidden: false });
    for (const [model, lane] of Object.entries(upstream.lanes)) {
      if ((lane.max_concurrency ?? max) <= max) continue;
      report(draft, [...path, "lanes", model, "max_concurrency"], `must be at most ${most}`, {
        hidden: false,
      });
    }
    if (group === undefined || !isTable(groups)) continue;
    checkKnown(draft, [...path, "limit_group"], "limit group", group, Object.keys(groups));
  }
}

/** Upstreams that are named but wrong count as known: the routes to them are fine. */
function checkNames(draft: Draft, routes: ConfigFile["routes"]): void {
  if (draft.values.upstreams !== undefined && !isTable(draft.values.upstreams)) return;
  const known = Object.keys(draft.values.upstreams ?? {});
  known.forEach((name, index) => {
    const first = known.findIndex((other) => other.toLowerCase() === name.toLowerCase());
    if (first < index) {
      const message = `the name is taken by upstreams.${known[first]}: case does not tell names apart`;
      report(draft, ["upstreams", name], message, { hidden: true });
    }
  });
  for (const [model, route] of Object.entries(routes)) {
    const { path, targets } = writtenTargets(route);
    targets.forEach(({ upstream }, index) => {
      checkKnown(draft, ["routes", model, ...path, index], "upstream", upstream, known);
    });
  }
}

function checkKnown(draft: Draft, path: Path, what: string, name: string, known: readonly string[]): void {
  if (known.includes(name)) return;
  const hint = didYouMean(name, known);
  const names = known.length > 0 ? `${what}s: ${known.join(", ")}` : `there are no ${what}s`;
  const message = `names an unknown ${what}${hint}${hint ? " " : "; "}${names}`;
  report(draft, path, message, { hidden: false });
}

function isLoopback(host: string): boolean {
  if (host.toLowerCase() === "localhost") return true;
  if (isIPv4(host)) return host.startsWith("127.");
  const bracketed = `http://[${host}]/`;
  return isIPv6(host) && URL.canParse(bracketed) && new URL(bracketed).hostname === "[::1]";
}
