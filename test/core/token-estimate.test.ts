import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import type { CallSize } from "../../src/core/request.ts";
import {
  type Calibration,
  calibrated,
  estimate,
  readCalibration,
  usageOf,
} from "../../src/core/token-estimate.ts";

const sized = (textBytes: number, mediaTokens = 0, maxOutput?: number): CallSize => ({
  textBytes,
  mediaTokens,
  maxOutput,
});

/** What is known after the same call so often. */
function taught(times: number, size: CallSize, usage: Parameters<typeof calibrated>[2]): Calibration {
  let known: Calibration | undefined;
  for (let call = 0; call < times; call++) known = calibrated(known, size, usage);
  return known!;
}

describe("the estimate of a call's tokens", () => {
  test("is a quarter of the bytes and a thousand for the answer where nothing is known", () => {
    expect(estimate(undefined, sized(4000))).toEqual({ prompt: 1000, output: 1000 });
    expect(estimate(undefined, sized(4001, 85))).toEqual({ prompt: 1086, output: 1000 });
    expect(estimate(undefined, undefined)).toEqual({ prompt: 1000, output: 1000 });
  });

  test("takes the answer for as long as the caller lets it be", () => {
    expect(estimate(undefined, sized(4, 0, 50)).output).toBe(50);
    expect(estimate(undefined, sized(4, 0, 0)).output).toBe(0);
    expect(estimate(taught(5, sized(4000), { output: 70 }), sized(4, 0, 5000)).output).toBe(5000);
  });

  test("is kept within what a model can do", () => {
    expect(estimate(undefined, sized(1e15, 0, 1e15))).toEqual({ prompt: 10_000_000, output: 1_000_000 });
    expect(estimate(undefined, sized(4, 0, -7)).output).toBe(0);
  });

  it("comes to what a model really bills, for any language", () => {
    const lengths = fc.array(fc.integer({ min: 400, max: 100_000 }), { minLength: 150, maxLength: 150 });
    fc.assert(
      fc.property(
        fc.double({ min: 0.02, max: 0.9, noNaN: true }),
        fc.nat(2000),
        lengths,
        (ratio, media, bytes) => {
          let known: Calibration | undefined;
          for (const textBytes of bytes) {
            const prompt = Math.round(textBytes * ratio) + media;
            known = calibrated(known, sized(textBytes, media), { prompt, output: 10 });
          }
          const { prompt } = estimate(known, sized(50_000, media));
          const truth = 50_000 * ratio + media;
          expect(Math.abs(prompt - truth)).toBeLessThanOrEqual(0.02 * truth + 2);
          // Of a prompt of a few tokens, a part of one is much.
          expect(known?.error).toBeLessThan(0.05 + 1 / (400 * ratio + media));
        },
      ),
      { numRuns: 100, examples: [[0.02, 0, Array(150).fill(400)]] },
    );
  });

  it("follows a model whose text makes other tokens than before", () => {
    let known: Calibration | undefined = taught(500, sized(4000), { prompt: 1000, output: 100 });
    for (let call = 0; call < 100; call++)
      known = calibrated(known, sized(4000), { prompt: 2000, output: 400 });
    expect(Math.abs(estimate(known, sized(4000)).prompt - 2000)).toBeLessThan(40);
    expect(known.output).toBeGreaterThan(390);
  });

  it("reserves enough for most answers of a mix that stays the same, and not much more than the longest", () => {
    const mixes = fc.array(fc.integer({ min: 1, max: 4000 }), { minLength: 1, maxLength: 5 });
    fc.assert(
      fc.property(mixes, (mix) => {
        let known: Calibration | undefined;
        for (let call = 0; call < 200; call++) {
          known = calibrated(known, sized(400), { prompt: 100, output: mix[call % mix.length] });
        }
        const reserved = estimate(known, sized(400)).output;
        const enough = mix.filter((output) => output <= reserved).length;
        expect(enough).toBeGreaterThanOrEqual(0.6 * mix.length);
        expect(reserved).toBeLessThan(3 * Math.max(...mix));
      }),
      { numRuns: 200 },
    );
  });

  test("is not led astray by prompts of a word, whose frame is most of what is billed", () => {
    const known = taught(10, sized(4000), { prompt: 1000, output: 10 });
    const after = calibrated(known, sized(2), { prompt: 8, output: 10 });
    expect(estimate(after, sized(400_000)).prompt).toBeLessThan(102_000);
  });

  test("reports how far it was from the truth", () => {
    const size = sized(4000);
    expect(calibrated(undefined, size, { prompt: 2000 }).error).toBe(0.5);
    expect(taught(300, size, { prompt: 2000 }).error).toBeLessThan(0.01);
  });

  test("counts nothing for the answer of a model that gives none", () => {
    const known = taught(300, sized(4000), usageOf('{"prompt_tokens":1000,"total_tokens":1000}'));
    expect(estimate(known, sized(4000)).output).toBeLessThan(5);
  });

  test("learns of the answer alone where no size is known", () => {
    const known = calibrated(undefined, undefined, { prompt: 500, output: 20 });
    expect(known).toMatchObject({ ratio: 0.25, output: 20, samples: 1, error: 0 });
  });

  test.each<[string, Parameters<typeof calibrated>[2]]>([
    ["nothing", {}],
    ["no prompt at all", { prompt: 0 }],
    ["less than nothing", { prompt: -5, output: -5 }],
    ["what is no number", { prompt: Number.NaN, output: Number.NaN }],
    ["what no model can do", { prompt: 1e12, output: 1e12 }],
    ["what has no end", { prompt: Number.POSITIVE_INFINITY, output: Number.POSITIVE_INFINITY }],
  ])("learns nothing from %s", (_, usage) => {
    const known = taught(3, sized(4000), { prompt: 1000, output: 10 });
    expect(calibrated(known, sized(4000), usage)).toBe(known);
  });

  const number = fc.oneof(fc.integer(), fc.double(), fc.nat(100_000));
  const calls = fc.array(
    fc.record({
      size: fc.option(fc.record({ textBytes: fc.nat(1e7), mediaTokens: fc.nat(1e5) }), { nil: undefined }),
      usage: fc.record({ prompt: number, output: number }, { requiredKeys: [] }),
    }),
    { maxLength: 40 },
  );

  it("stays sound whatever it is told, and is the same after a restart", () => {
    fc.assert(
      fc.property(calls, fc.nat(1e7), (told, textBytes) => {
        let known: Calibration | undefined;
        for (const { size, usage } of told) known = calibrated(known, size, usage);
        const { prompt, output } = estimate(known, sized(textBytes));
        expect(Number.isInteger(prompt) && prompt >= 0 && prompt <= 10_000_000).toBe(true);
        expect(Number.isInteger(output) && output >= 0 && output <= 1_000_000).toBe(true);
        if (known) expect(readCalibration(JSON.parse(JSON.stringify(known)))).toEqual(known);
      }),
      { numRuns: 500 },
    );
  });

  const sound = taught(3, sized(4000), { prompt: 1000, output: 10 });
  test.each<[string, unknown]>([
    ["nothing", undefined],
    ["null", null],
    ["text", "0.25"],
    ["a list", []],
    ["an empty object", {}],
    ["a ratio of 0", { ...sound, ratio: 0 }],
    ["a ratio as text", { ...sound, ratio: "0.25" }],
    ["a negative output", { ...sound, output: -1 }],
    ["an endless output", { ...sound, output: 1e9 }],
    ["no deviation", { ...sound, outputDev: undefined }],
    ["a negative error", { ...sound, error: -0.1 }],
    ["fewer samples than none", { ...sound, samples: -1 }],
  ])("is not read from %s", (_, json) => {
    expect(readCalibration(json)).toBeUndefined();
  });

  it("is read from nothing that JSON can be without being sound", () => {
    const like = fc.record({
      ratio: number,
      output: number,
      outputDev: number,
      error: number,
      samples: number,
    });
    fc.assert(
      fc.property(fc.oneof(fc.jsonValue(), like), (json) => {
        const known = readCalibration(json);
        if (known === undefined) return;
        const { prompt, output } = estimate(known, sized(1000));
        expect(Number.isInteger(prompt) && Number.isInteger(output)).toBe(true);
        expect(
          Object.values(calibrated(known, sized(1000), { prompt: 10, output: 10 })).every(Number.isFinite),
        ).toBe(true);
      }),
      { numRuns: 1000 },
    );
  });
});

describe("the usage of an answer", () => {
  test.each<[string, string, ReturnType<typeof usageOf>]>([
    [
      "a chat completion",
      '{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"prompt_tokens_details":{"cached_tokens":4}}',
      { prompt: 19, output: 10, total: 29, cached: 4 },
    ],
    ["embeddings", '{"prompt_tokens":8,"total_tokens":8}', { prompt: 8, output: 0, total: 8 }],
    [
      "a response",
      '{"input_tokens":36,"input_tokens_details":{"cached_tokens":6},"output_tokens":87,"total_tokens":123}',
      { prompt: 36, output: 87, total: 123, cached: 6 },
    ],
    [
      "a message of Anthropic's, whose cache is counted beside its input",
      '{"input_tokens":10,"cache_creation_input_tokens":100,"cache_read_input_tokens":1000,"output_tokens":5}',
      { prompt: 1110, output: 5, total: 1115, cached: 1000 },
    ],
    [
      "OpenRouter, which says what it cost",
      '{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3,"cost":0.00014}',
      { prompt: 1, output: 2, total: 3, cost: 0.00014 },
    ],
    ["one who says nothing of the answer", '{"prompt_tokens":5}', { prompt: 5 }],
    ["one whose total cannot be", '{"prompt_tokens":5,"total_tokens":3}', { prompt: 5, total: 3 }],
    ["null", "null", {}],
    ["a list", "[1,2]", {}],
    ["no JSON", "{", {}],
    ["nothing", "", {}],
    ["garbage", '{"prompt_tokens":-1,"completion_tokens":"7","total_tokens":1.5,"cost":"free"}', {}],
    ["details that are none", '{"prompt_tokens":5,"prompt_tokens_details":7}', { prompt: 5 }],
  ])("is read from %s", (_, text, usage) => {
    expect(usageOf(text)).toEqual(usage);
  });

  it("is read from anything without throwing, and has only counts", () => {
    const keys = [
      "prompt_tokens",
      "completion_tokens",
      "total_tokens",
      "input_tokens",
      "prompt_tokens_details",
    ];
    const like = fc
      .dictionary(fc.constantFrom(...keys, "cost"), fc.jsonValue())
      .map((one) => JSON.stringify(one));
    fc.assert(
      fc.property(fc.oneof(fc.string(), fc.json(), like), (text) => {
        const { cost, estimated, ...tokens } = usageOf(text);
        for (const count of Object.values(tokens)) {
          if (count !== undefined) expect(Number.isInteger(count) && count >= 0).toBe(true);
        }
        expect(cost ?? 0).toBeGreaterThanOrEqual(0);
        expect([true, undefined]).toContain(estimated);
      }),
      { numRuns: 1000 },
    );
    expect(usageOf(undefined)).toEqual({});
  });
});
