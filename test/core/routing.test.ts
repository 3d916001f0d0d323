import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import type { AppError } from "../../src/core/errors.ts";
import {
  type Choice,
  drawOf,
  matchesGlob,
  nextTarget,
  type Opening,
  type Route,
  type RouteTable,
  routeFor,
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

describe("the route for a model", () => {
  const routes: Route[] = [
    { model: "team-*", targets: [{ upstream: "a" }], failoverAfterMs: 1 },
    { model: "*", targets: [{ upstream: "a" }], failoverAfterMs: 2 },
    { model: "team-red", targets: [{ upstream: "a" }], failoverAfterMs: 3 },
  ];
  const of = (model: string, all = routes) =>
    routeFor({ upstreams: [], routes: all }, model)?.failoverAfterMs;

  test("is the one of its name, else the first whose glob it matches", () => {
    expect([of("team-red"), of("team-blue"), of("else")]).toEqual([3, 1, 2]);
  });

  test("is none where nothing fits", () => {
    expect(of("else", [routes[0]!])).toBeUndefined();
  });
});

describe("a route whose targets have weights", () => {
  const weighed = (...weights: (number | undefined)[]): RouteTable => ({
    upstreams: weights.map((_, i) => ({ name: `u${i}`, models: [] })),
    routes: [{ model: "m", targets: weights.map((weight, i) => ({ upstream: `u${i}`, weight })) }],
  });
  const orderOf = (table: RouteTable, draw: number) =>
    targetsFor(table, "m", undefined, draw).map(({ upstream }) => upstream);
  const firstOf = (table: RouteTable, draw: number) => orderOf(table, draw)[0];
  const draw = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
  const weight = fc.oneof(fc.constant(undefined), fc.constant(0), fc.integer({ min: 1, max: 100 }));
  const weights = fc.array(weight, { minLength: 1, maxLength: 6 });

  test("begins with each of them in its proportion; the others follow in their order", () => {
    const table = weighed(1, 2, 1);
    expect(orderOf(table, 0)).toEqual(["u0", "u1", "u2"]);
    expect(orderOf(table, 0.249)).toEqual(["u0", "u1", "u2"]);
    expect(orderOf(table, 0.25)).toEqual(["u1", "u0", "u2"]);
    expect(orderOf(table, 0.749)).toEqual(["u1", "u0", "u2"]);
    expect(orderOf(table, 0.75)).toEqual(["u2", "u0", "u1"]);
  });

  test("takes the weight of a target without one for 1", () => {
    const table = weighed(undefined, 3);
    expect([firstOf(table, 0.249), firstOf(table, 0.25)]).toEqual(["u0", "u1"]);
  });

  test("begins with the first of those that all have none, or all have 0", () => {
    for (const table of [weighed(undefined, undefined), weighed(0, 0)]) {
      for (const drawn of [0, 0.5, 0.999_999]) expect(firstOf(table, drawn)).toBe("u0");
    }
  });

  test("has all its targets once, whatever is drawn, and all but the first in their order", () => {
    fc.assert(
      fc.property(weights, draw, (all, drawn) => {
        const [first, ...others] = orderOf(weighed(...all), drawn);
        const rest = all.map((_, i) => `u${i}`).filter((name) => name !== first);
        expect(others).toEqual(rest);
      }),
    );
  });

  test("begins with one of weight 0 only where no other has any", () => {
    fc.assert(
      fc.property(weights, fc.integer({ min: 0, max: 2 ** 32 - 1 }), (all, drawn) => {
        fc.pre(all.some((one) => one !== 0));
        const first = Number(firstOf(weighed(...all), drawn / 2 ** 32)!.slice(1));
        expect(all.every((one) => one === undefined) || all[first] !== 0).toBe(true);
      }),
      { numRuns: 1000 },
    );
  });

  test("shares ten thousand requests by weight, to within two in a hundred", () => {
    const table = weighed(0, 7, 2, 1);
    const counts = new Map<string, number>();
    const many = 10_000;
    for (let i = 0; i < many; i++) {
      const first = firstOf(table, drawOf(idOf(i)))!;
      counts.set(first, (counts.get(first) ?? 0) + 1);
    }
    const shares = ["u0", "u1", "u2", "u3"].map((name) => (counts.get(name) ?? 0) / many);
    expect(shares[0]).toBe(0);
    for (const [i, share] of [0, 0.7, 0.2, 0.1].entries())
      expect(Math.abs(shares[i]! - share)).toBeLessThan(0.02);
  });

  test("leaves one that the caller names alone with its model", () => {
    const table = weighed(1, 1);
    for (const drawn of [0, 0.9]) {
      expect(targetsFor(table, "m", "u1", drawn)).toMatchObject([{ upstream: "u1", model: "m" }]);
    }
  });
});

/** As the product makes them: those of one millisecond differ in their ends only. */
function idOf(i: number): string {
  return `req_01k6${String(i).padStart(22, "0")}`;
}

describe("what is drawn for an id", () => {
  const spread = (ids: Iterable<string>, slots: number) => {
    const counts = new Array<number>(slots).fill(0);
    for (const id of ids) counts[Math.floor(drawOf(id) * slots)]!++;
    return counts;
  };

  it("is always the same, and in [0, 1)", () => {
    fc.assert(
      fc.property(fc.string({ unit: "grapheme" }), (id) => {
        const drawn = drawOf(id);
        expect(drawn).toBe(drawOf(id));
        expect(drawn >= 0 && drawn < 1).toBe(true);
      }),
    );
  });

  it("is spread evenly over ids that follow each other, and over ids drawn at random", () => {
    const many = 20_000;
    const slots = 20;
    let seed = 1;
    const letters = "0123456789abcdefghjkmnpqrstvwxyz";
    const letter = () => {
      seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
      return letters[seed >>> 27];
    };
    const random = Array.from(
      { length: many },
      () => `req_01k6${Array.from({ length: 22 }, letter).join("")}`,
    );
    const following = Array.from({ length: many }, (_, i) => idOf(i));
    for (const ids of [following, random]) {
      const expected = many / slots;
      const off = spread(ids, slots).reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
      // Chi-square of 19 degrees of freedom: even a fair die is above 43.8 once in a thousand times.
      expect(off).toBeLessThan(43.8);
    }
  });

  it("does not move with the id: neighbours are as far from each other as any two", () => {
    let apart = 0;
    for (let i = 0; i < 1000; i++) apart += Math.abs(drawOf(idOf(i)) - drawOf(idOf(i + 1)));
    // Of two that are drawn evenly, a third on average.
    expect(Math.abs(apart / 1000 - 1 / 3)).toBeLessThan(0.05);
  });
});

describe("the next target", () => {
  const at = 1000;
  const opening = (lane: string, opensAt = 0, some: Partial<Opening> = {}): Opening => ({
    lane,
    opensAt,
    closedUntil: 0,
    ...some,
  });
  const targets = [opening("a"), opening("b", 5000), opening("c"), opening("d", 3000)];
  const next = (
    rule: Choice["rule"],
    lane: string,
    excluded: string[] = [],
    from = targets,
    patientUntil?: number,
  ) => nextTarget(from, { lane, excluded }, { rule, at, patientUntil })?.lane;

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
    expect(next("soonest", "a", [], [opening("a", 2000), opening("b", 5000)])).toBe("a");
  });

  test("larger is the first open one that takes longer prompts, or the one of them that opens soonest", () => {
    const large = { largerContext: true };
    const some = [opening("a"), opening("b"), opening("c", 5000, large), opening("d", 3000, large)];
    expect(next("larger", "a", [], some)).toBe("d");
    expect(next("larger", "a", ["d"], some)).toBe("c");
    expect(next("larger", "d", [], some)).toBe("c");
    expect(next("larger", "a", [], [...some, opening("e", 0, large)])).toBe("e");
    expect(next("larger", "a", ["c", "d"], some)).toBeUndefined();
  });

  test("who is patient waits for the limits of a target as if it were open, in its own lane before all", () => {
    const limited = { heldBy: "rate_limit" as const };
    const some = [opening("a", 5000, limited), opening("b", 0), opening("c", 4000, limited)];
    expect(next("soonest", "a", [], some)).toBe("b");
    expect(next("soonest", "a", [], some, 5001)).toBe("a");
    expect(next("soonest", "a", [], some, 5000)).toBe("b");
    expect(next("soonest", "c", [], some, 6000)).toBe("c");
    expect(next("first", "b", [], some, 6000)).toBe("a");
    expect(next("soonest", "a", ["a"], some, 6000)).toBe("b");
  });

  test("who is patient does not wait for one that is broken, or that cannot be reached", () => {
    for (const heldBy of ["breaker", "unreachable"] as const) {
      const some = [opening("a", 5000, { heldBy }), opening("b", 0)];
      expect(next("soonest", "a", [], some, 1_000_000)).toBe("b");
      expect(next("first", "a", [], some, 1_000_000)).toBe("b");
    }
  });

  const lanes = ["a", "b", "c", "d"];
  const anyOpening = fc.record({
    lane: fc.constantFrom(...lanes),
    opensAt: fc.nat(3000),
    closedUntil: fc.constant(0),
    heldBy: fc.constantFrom(undefined, "rate_limit" as const, "breaker" as const, "unreachable" as const),
    largerContext: fc.boolean(),
  });
  const anyOpenings = fc.uniqueArray(anyOpening, { maxLength: 4, selector: ({ lane }) => lane });
  const patience = fc.option(fc.nat(4000), { nil: undefined });
  const rules = fc.constantFrom<Choice["rule"]>("onward", "first", "soonest", "larger");

  it("is one of the targets, not excluded, and missing only where all are excluded", () => {
    fc.assert(
      fc.property(anyOpenings, fc.constantFrom(...lanes), fc.subarray(lanes), (all, lane, excluded) => {
        const usable = all.filter((target) => !excluded.includes(target.lane));
        for (const rule of ["first", "soonest"] as const) {
          const found = nextTarget(all, { lane, excluded }, { rule, at });
          if (found) expect(usable).toContain(found);
          else expect(usable).toEqual([]);
          if (usable.some(({ opensAt }) => opensAt <= at)) expect(found!.opensAt).toBeLessThanOrEqual(at);
        }
      }),
    );
  });

  it("is never one that refused, whatever the rule; larger is never the own lane, nor a smaller one", () => {
    const any = fc.tuple(anyOpenings, fc.constantFrom(...lanes), fc.subarray(lanes), rules, patience);
    fc.assert(
      fc.property(any, ([all, lane, excluded, rule, patientUntil]) => {
        const found = nextTarget(all, { lane, excluded }, { rule, at, patientUntil });
        if (!found) return;
        expect(excluded).not.toContain(found.lane);
        if (rule !== "larger") return;
        expect(found.lane).not.toBe(lane);
        expect(found.largerContext).toBe(true);
      }),
      { numRuns: 1000 },
    );
  });

  it("is for the patient one that they would wait for, wherever there is such a one", () => {
    const any = fc.tuple(anyOpenings, fc.constantFrom(...lanes), patience);
    fc.assert(
      fc.property(any, ([all, lane, patientUntil = 0]) => {
        const waitsFor = ({ opensAt, heldBy }: Opening) =>
          opensAt <= at || (heldBy === "rate_limit" && opensAt < patientUntil);
        for (const rule of ["first", "soonest"] as const) {
          const found = nextTarget(all, { lane, excluded: [] }, { rule, at, patientUntil });
          const others = all.filter((one) => rule === "first" || one.lane !== lane || patientUntil > 0);
          if (found && others.some(waitsFor)) expect(waitsFor(found)).toBe(true);
        }
      }),
      { numRuns: 1000 },
    );
  });
});
