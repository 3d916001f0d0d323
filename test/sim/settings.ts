/** Flow control as somebody may have configured it, drawn for each seed; and the sizes of requests. */

import type { PaceLimits } from "../../src/core/pace.ts";
import type { QueueSettings } from "../../src/core/queue.ts";
import type { CallSize } from "../../src/core/request.ts";
import type { Tokens } from "./upstream.ts";
import { twoUpstreams } from "./world.ts";

type Drawn = Pick<
  QueueSettings,
  "upstreams" | "limitGroups" | "breaker" | "retryBudget" | "failoverAfterMs" | "table"
>;

export function drawSettings(luck: () => number, maxConcurrency: number): Drawn {
  const some = <T>(chance: number, draw: () => T): T | undefined => (luck() < chance ? draw() : undefined);
  const limits = (): PaceLimits => ({
    requestsPerMinute: some(0.6, () => 5 + Math.floor(luck() * 60)),
    tokensPerMinute: some(0.4, () => 2000 + Math.floor(luck() * 20_000)),
  });
  const isGrouped = luck() < 0.3;
  const upstreams = twoUpstreams.upstreams.map(({ name }) => ({
    name,
    maxConcurrency,
    limits: some(0.4, limits),
    limitGroup: isGrouped ? "account" : undefined,
    lanes: some(0.3, () => [{ model: luck() < 0.5 ? "both" : "*", limits: limits() }]),
  }));
  const [both, alone] = twoUpstreams.routes;
  const failoverAfterMs = some(0.5, () => Math.floor(luck() * 10_000));
  return {
    upstreams,
    limitGroups: [{ name: "account", limits: limits() }],
    breaker: {
      enabled: luck() < 0.9,
      consecutiveFailures: 2 + Math.floor(luck() * 4),
      failureRate: 0.3 + luck() * 0.6,
      minCalls: 4 + Math.floor(luck() * 8),
      windowMs: 10_000 + Math.floor(luck() * 50_000),
      cooldownMs: 2000 + Math.floor(luck() * 18_000),
      maxCooldownMs: 20_000 + Math.floor(luck() * 40_000),
    },
    retryBudget:
      luck() < 0.5 ? { ratio: 0.2, perSecond: 2 } : { ratio: luck() * 0.3, perSecond: 0.05 + luck() * 0.3 },
    failoverAfterMs: 1000,
    table: { ...twoUpstreams, routes: [{ ...both!, failoverAfterMs }, alone!] },
  };
}

/**
 * What core is told of the size of a request, and what it costs in truth: never more than it is reckoned at, with a
 * ratio of tokens to bytes that is the same for all.
 */
export function sizes(luck: () => number): () => { size: CallSize; tokens: Tokens } {
  const bytesPerToken = [4, 5, 8][Math.floor(luck() * 3)]!;
  return () => {
    const textBytes = 40 * (1 + Math.floor(luck() ** 2 * 60));
    const maxOutput = 10 + Math.floor(luck() * 500);
    const tokens = { prompt: textBytes / bytesPerToken, output: Math.floor(luck() * maxOutput) };
    return { size: { textBytes, mediaTokens: 0, maxOutput }, tokens };
  };
}
