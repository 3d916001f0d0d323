import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { type Price, costOf as priced } from "../../src/core/price.ts";
import { usageOf } from "../../src/core/token-estimate.ts";

/** Of a usage as an upstream tells it. */
const costOf = (prices: Price[], upstream: string, model: string, usage: string | undefined) =>
  priced(prices, upstream, model, usageOf(usage));

const usage = (prompt: number, output: number, cached?: number): string =>
  JSON.stringify({
    prompt_tokens: prompt,
    completion_tokens: output,
    total_tokens: prompt + output,
    ...(cached === undefined ? {} : { prompt_tokens_details: { cached_tokens: cached } }),
  });
const price = (model: string, input: number): Price => ({ model, input, output: 0 });
const million = usage(1_000_000, 0);

describe("what a call has cost", () => {
  test("is its tokens at the prices of its model, per million", () => {
    const prices: Price[] = [{ model: "gpt-5", input: 2.5, output: 10, cachedInput: 1.25 }];
    expect(costOf(prices, "openai", "gpt-5", usage(1000, 500))).toBeCloseTo(0.0075, 12);
    expect(costOf(prices, "openai", "gpt-5", usage(1000, 500, 400))).toBeCloseTo(0.007, 12);
  });

  test("counts cached input as any other where it has no price of its own", () => {
    expect(costOf([price("m", 2)], "u", "m", usage(1000, 0, 1000))).toBeCloseTo(0.002, 12);
  });

  test("never counts more of the prompt as cached than there is", () => {
    const prices: Price[] = [{ model: "m", input: 2, output: 0, cachedInput: 1 }];
    expect(costOf(prices, "u", "m", usage(1000, 0, 5000))).toBeCloseTo(0.001, 12);
  });

  test("is what the provider says, before any price", () => {
    expect(costOf([price("m", 2)], "u", "m", '{"prompt_tokens":1000,"cost":0.5}')).toBe(0.5);
    expect(costOf([], "u", "m", '{"cost":0}')).toBe(0);
    expect(costOf([price("m", 2)], "u", "m", '{"prompt_tokens":1000,"cost":"0.5"}')).toBeCloseTo(0.002, 12);
  });

  test("is read from Anthropic's usage too", () => {
    const prices: Price[] = [{ model: "claude-*", input: 3, output: 15, cachedInput: 0.3 }];
    const text = '{"input_tokens":100,"cache_read_input_tokens":900,"output_tokens":10}';
    expect(costOf(prices, "anthropic", "claude-x", text)).toBeCloseTo(
      (100 * 3 + 900 * 0.3 + 10 * 15) / 1e6,
      12,
    );
  });

  test.each<[string, string, string, number]>([
    ["the model at its upstream, before", "openai", "gpt-5", 1],
    ["the model itself, before", "azure", "gpt-5", 2],
    ["the first glob that fits", "azure", "gpt-5-mini", 3],
    ["of the name alone or", "local", "llama-3", 4],
    ["with its upstream", "openai", "whatever", 5],
    ["also of a model with a slash in its name", "router", "meta/llama", 6],
  ])("takes the price of %s", (_, upstream, model, input) => {
    const prices = [
      price("gpt-5-*", 3),
      price("gpt-*", 99),
      price("gpt-5", 2),
      price("openai/gpt-5", 1),
      price("llama-*", 4),
      price("openai/*", 5),
      price("meta/*", 6),
    ];
    expect(costOf(prices, upstream, model, million)).toBeCloseTo(input, 12);
  });

  test.each<[string, string | undefined]>([
    ["no usage", undefined],
    ["no JSON", "{"],
    ["no tokens", "{}"],
    ["only a total", '{"total_tokens":5}'],
  ])("is not known with %s", (_, text) => {
    expect(costOf([price("*", 1)], "u", "m", text)).toBeUndefined();
  });

  test("is not known where there is no price", () => {
    expect(costOf([price("gpt-*", 1)], "u", "llama", million)).toBeUndefined();
  });

  it("is never negative, never more than all of it at the dearest price, and grows with what is used", () => {
    const money = fc.double({ min: 0, max: 100, noNaN: true });
    const tokens = fc.nat(2_000_000);
    const priced = fc.record(
      { model: fc.constant("m"), input: money, output: money, cachedInput: money },
      { requiredKeys: ["model", "input", "output"] },
    );
    fc.assert(
      fc.property(priced, tokens, tokens, tokens, tokens, (one, prompt, output, cached, more) => {
        const cost = costOf([one], "u", "m", usage(prompt, output, cached))!;
        const dearest = Math.max(one.input, one.output, one.cachedInput ?? 0);
        expect(cost).toBeGreaterThanOrEqual(0);
        expect(cost).toBeLessThanOrEqual(((prompt + output) * dearest) / 1e6 + 1e-9);
        expect(costOf([one], "u", "m", usage(prompt, output + more, cached))!).toBeGreaterThanOrEqual(
          cost - 1e-9,
        );
      }),
      { numRuns: 500 },
    );
  });
});
