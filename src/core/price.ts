/** What a call has cost. Pure. */

import { matchesGlob } from "./routing.ts";
import type { Usage } from "./token-estimate.ts";

/** What a model costs, in US dollars per 1,000,000 tokens. */
export interface Price {
  /** A model, `upstream/model`, or a glob of either. */
  model: string;
  input: number;
  output: number;
  /** Of prompt tokens that the provider had in its cache; as `input` where it is not given. */
  cachedInput?: number;
}

/**
 * US dollars for a call with this usage. What the provider itself says it cost (`usage.cost`) goes before
 * the price list; undefined where neither is known.
 */
export function costOf(
  prices: readonly Price[],
  upstream: string,
  model: string,
  usage: Usage,
): number | undefined {
  if (usage.cost !== undefined) return usage.cost;
  if (usage.prompt === undefined && usage.output === undefined) return undefined;
  const price = priceOf(prices, upstream, model);
  if (price === undefined) return undefined;
  const prompt = usage.prompt ?? 0;
  const cached = Math.min(usage.cached ?? 0, prompt);
  const promptCost = (prompt - cached) * price.input + cached * (price.cachedInput ?? price.input);
  return (promptCost + (usage.output ?? 0) * price.output) / 1_000_000;
}

/** The price of a model: of `upstream/model` itself, else of the model itself, else of the first glob that fits. */
function priceOf(prices: readonly Price[], upstream: string, model: string): Price | undefined {
  const lane = `${upstream}/${model}`;
  return (
    prices.find((price) => price.model === lane) ??
    prices.find((price) => price.model === model) ??
    prices.find((price) => matchesGlob(price.model, lane) || matchesGlob(price.model, model))
  );
}
