import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import type { AppError } from "../../src/core/errors.ts";
import {
  matchesGlob,
  nextTarget,
  type Opening,
  type RouteTable,
  targetsFor,
} from "../../src/core/routing.ts";

describe("a glob", () => {
  test.each<[string, string, boolean]>([
    ["gpt-4", "gpt-4", true],
    ["gpt-4", "gpt-4o", false],
    ["gpt-*", "gpt-4", true],
    ["gpt-*", "gpt-", true],
    ["gpt-*", "xgpt-4", false],
    ["*", "", true],
    ["*", "anything/at all", true],
    ["*-mini", "gpt-4o-mini", true],
    ["*-mini", "gpt-4o-mini-2", false],
    ["a*a", "a", false],
    ["a*a", "aa", true],
    ["a*b*c", "a--b--c", true],
    ["a*b*c", "a--c--b", false],
    ["a**b", "ab", true],
    ["*ab*ab*", "ab", false],
    ["*ab*ab*", "abab", true],
    ["g.t", "gpt", false],
    ["gpt-4?", "gpt-4o", false],
    ["[a-z]*", "gpt", false],
  ])("%s and %s: %s", (glob, name, matches) => {
    expect(matchesGlob(glob, name)).toBe(matches);
  });

  it("means what the same regular expression means", () => {
    const text = fc.string({ unit: fc.constantFrom("a", "b", "*"), maxLength: 8 });
    const name = fc.string({ unit: fc.constantFrom("a", "b"), maxLength: 10 });
    fc.assert(
      fc.property(text, name, (glob, candidate) => {
        const pattern = new RegExp(`^${glob.replaceAll("*", ".*")}$`);
        expect(matchesGlob(glob, candidate)).toBe(pattern.test(candidate));
      }),
      { numRuns: 2000 },
    );
  });

  it("is matched quickly, however many stars it has", () => {
    expect(matchesGlob("*a".repeat(200), "b".repeat(10_000))).toBe(false);
  });
});

describe("the targets of a model", () => {
  const table: RouteTable = {
    upstreams: [
      { name: "openai", models: ["gpt-4", "gpt-*"] },
      { name: "azure", models: ["gpt-4"] },
      { name: "local", models: [] },
      { name: "spare", models: [] },
    ],
    routes: [
      { model: "fast", targets: [{ upstream: "azure", model: "gpt-4o-mini" }, { upstream: "openai" }] },
      { model: "team-*", targets: [{ upstream: "local", model: "llama" }] },
      { model: "*-eu", targets: [{ upstream: "azure" }] },
    ],
  };
  const of = (model: string, upstream?: string) =>
    targetsFor(table, model, upstream).map((target) => `${target.upstream}/${target.model}`);

  test.each<[string, string, string[]]>([
    ["one that names its upstream", "azure/gpt-4", ["azure/gpt-4"]],
    ["one that names its upstream and has slashes", "local/meta/llama-3", ["local/meta/llama-3"]],
    ["one with a slash that names no upstream", "meta/llama-3", ["local/meta/llama-3"]],
    ["a route, in its order", "fast", ["azure/gpt-4o-mini", "openai/fast"]],
    ["a route with a glob", "team-blue", ["local/llama"]],
    ["the first of two fitting routes", "team-eu", ["local/llama"]],
    ["one that an upstream lists", "gpt-4", ["openai/gpt-4"]],
    ["one that a glob lists", "gpt-5", ["openai/gpt-5"]],
    ["one that nobody lists", "mystery", ["local/mystery"]],
    ["one that begins with a slash", "/gpt-4", ["local//gpt-4"]],
  ])("%s", (_, model, targets) => {
    expect(of(model)).toEqual(targets);
  });

  test("an upstream that the caller names serves it, under the name of its route", () => {
    expect(of("fast", "azure")).toEqual(["azure/gpt-4o-mini"]);
    expect(of("fast", "spare")).toEqual(["spare/fast"]);
    expect(of("gpt-4", "azure")).toEqual(["azure/gpt-4"]);
  });

  test("a name listed as it is goes before a glob of an earlier upstream", () => {
    const listed = {
      upstreams: [
        { name: "a", models: ["*"] },
        { name: "b", models: ["x"] },
      ],
      routes: [],
    };
    expect(targetsFor(listed, "x")).toEqual([{ upstream: "b", model: "x" }]);
  });

  test("an exact route goes before a glob that stands earlier", () => {
    const routes = [
      { model: "*", targets: [{ upstream: "local" }] },
      { model: "x", targets: [{ upstream: "azure" }] },
    ];
    expect(targetsFor({ ...table, routes }, "x")).toEqual([{ upstream: "azure", model: "x" }]);
  });

  test("a model that nobody serves is refused, and the refusal names what exists", () => {
    const closed = {
      upstreams: [{ name: "a", models: ["x"] }],
      routes: [{ model: "y", targets: [{ upstream: "a" }] }],
    };
    expect(() => targetsFor(closed, "z")).toThrow(
      expect.objectContaining({
        code: "model_not_found",
        message: expect.stringMatching(/y.*x \(a\)/),
      }) as AppError,
    );
  });

  test("an upstream that does not exist is refused", () => {
    expect(() => targetsFor(table, "gpt-4", "nope")).toThrow(
      expect.objectContaining({
        code: "upstream_not_found",
        message: expect.stringContaining("azure"),
      }) as AppError,
    );
  });
});

describe("the next target", () => {
  const at = 1000;
  const targets: Opening[] = [
    { lane: "a", opensAt: 0 },
    { lane: "b", opensAt: 5000 },
    { lane: "c", opensAt: 0 },
    { lane: "d", opensAt: 3000 },
  ];
  const next = (
    rule: "onward" | "first" | "soonest",
    lane: string,
    excluded: string[] = [],
    from = targets,
  ) => nextTarget(from, { lane, excluded }, rule, at)?.lane;

  test("onward is the first open one behind the own one, if any", () => {
    expect(next("onward", "a")).toBe("c");
    expect(next("onward", "a", ["c"])).toBeUndefined();
    expect(next("onward", "c")).toBeUndefined();
    expect(next("onward", "elsewhere")).toBe("a");
  });

  test("first is the first open one, or the one that opens soonest", () => {
    expect(next("first", "c")).toBe("a");
    expect(next("first", "c", ["a", "c"])).toBe("d");
    expect(next("first", "c", ["a", "b", "c", "d"])).toBeUndefined();
  });

  test("soonest is rather not the own one", () => {
    expect(next("soonest", "a")).toBe("c");
    expect(next("soonest", "a", ["c"])).toBe("a");
    expect(
      next(
        "soonest",
        "a",
        [],
        [
          { lane: "a", opensAt: 2000 },
          { lane: "b", opensAt: 5000 },
        ],
      ),
    ).toBe("a");
  });

  it("is one of the targets, not excluded, and missing only where all are excluded", () => {
    const lanes = ["a", "b", "c", "d"];
    const any = fc.array(fc.record({ lane: fc.constantFrom(...lanes), opensAt: fc.nat(3000) }), {
      maxLength: 5,
    });
    fc.assert(
      fc.property(any, fc.constantFrom(...lanes), fc.subarray(lanes), (all, lane, excluded) => {
        const usable = all.filter((target) => !excluded.includes(target.lane));
        for (const rule of ["first", "soonest"] as const) {
          const found = nextTarget(all, { lane, excluded }, rule, at);
          if (found) expect(usable).toContain(found);
          else expect(usable).toEqual([]);
          if (usable.some(({ opensAt }) => opensAt <= at)) expect(found!.opensAt).toBeLessThanOrEqual(at);
        }
      }),
    );
  });
});
