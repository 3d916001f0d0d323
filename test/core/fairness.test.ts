import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { type Account, Turns } from "../../src/core/fairness.ts";
import type { Priority } from "../../src/core/request.ts";

interface Waiting {
  priority: Priority;
  project: string;
  account: Account;
}
const priorities: Priority[] = ["interactive", "default", "batch"];

/** A lane's turns, in which whoever is served has more to do unless it is said otherwise. */
class Lane {
  private readonly turns = new Turns();

  waits(priority: Priority, project = "p"): Waiting {
    return { priority, project, account: this.turns.account(priority, project) };
  }

  /** Serves the next one of those that wait. */
  serve(due: Waiting[], tokens: number | ((of: Waiting) => number) = 1, isLast = false): Waiting {
    const chosen = this.turns.next(due)!;
    if (this.turns.next(due) !== chosen) throw new Error("Asking has changed something.");
    this.turns.book(chosen, typeof tokens === "number" ? tokens : tokens(chosen), due, !isLast);
    return chosen;
  }

  serveOften(due: Waiting[], turnsTaken: number): Waiting[] {
    return Array.from({ length: turnsTaken }, () => this.serve(due));
  }
}

const count = (those: Waiting[], some: Partial<Waiting>) =>
  those.filter((one) => Object.entries(some).every(([key, value]) => one[key as keyof Waiting] === value))
    .length;

test("nobody is served where nobody waits", () => {
  expect(new Turns().next([])).toBeUndefined();
});

describe("priorities", () => {
  test("share 8 : 3 : 1 where all of them wait, in every dozen of turns, whatever their requests cost", () => {
    const lane = new Lane();
    const due = priorities.map((priority) => lane.waits(priority));
    for (let dozen = 0; dozen < 100; dozen++) {
      const served = Array.from({ length: 12 }, (_, i) => lane.serve(due, ((dozen + i) % 7) * 1000));
      expect(priorities.map((priority) => count(served, { priority }))).toEqual([8, 3, 1]);
    }
  });

  test("share 3 : 1 where only the lower two wait", () => {
    const lane = new Lane();
    const turns = lane.serveOften([lane.waits("default"), lane.waits("batch")], 400);
    expect(count(turns, { priority: "default" })).toBe(300);
  });

  test("begin with the highest", () => {
    const lane = new Lane();
    const due = (["batch", "default", "interactive"] as const).map((priority) => lane.waits(priority));
    expect(lane.serve(due).priority).toBe("interactive");
  });

  test("a higher one that was idle does not save up turns", () => {
    const lane = new Lane();
    lane.serveOften([lane.waits("default"), lane.waits("batch")], 1000);
    const after = lane.serveOften(
      priorities.map((priority) => lane.waits(priority)),
      12,
    );
    expect(count(after, { priority: "interactive" })).toBeLessThanOrEqual(9);
    expect(count(after, { priority: "default" })).toBeGreaterThanOrEqual(2);
  });

  it("never starve one that waits, whoever comes and goes beside it", () => {
    const others = fc.array(fc.subarray(priorities), { minLength: 60, maxLength: 200, size: "max" });
    fc.assert(
      fc.property(fc.constantFrom(...priorities), others, (patient, comings) => {
        const lane = new Lane();
        let waited = 0;
        let longest = 0;
        for (const present of comings) {
          const due = [...new Set([...present, patient])].map((priority) => lane.waits(priority));
          waited = lane.serve(due).priority === patient ? 0 : waited + 1;
          longest = Math.max(longest, waited);
        }
        expect(longest).toBeLessThanOrEqual(36);
      }),
      { numRuns: 200 },
    );
  });
});

describe("projects", () => {
  test("take turns within a priority where all requests cost the same", () => {
    const lane = new Lane();
    const due = ["a", "b", "c"].map((project) => lane.waits("default", project));
    const served = lane.serveOften(due, 7).map(({ project }) => project);
    expect(served).toEqual(["a", "b", "c", "a", "b", "c", "a"]);
  });

  test("take turns in each priority of its own", () => {
    const lane = new Lane();
    const due = priorities.flatMap((priority) => ["a", "b"].map((project) => lane.waits(priority, project)));
    const turns = lane.serveOften(due, 1200);
    for (const priority of priorities) {
      expect(count(turns, { priority, project: "a" })).toBe(count(turns, { priority, project: "b" }));
    }
  });

  test("share by tokens: one whose requests cost ten times as much has a tenth of the turns", () => {
    const lane = new Lane();
    const due = [lane.waits("default", "large"), lane.waits("default", "small")];
    const served = Array.from({ length: 1100 }, () =>
      lane.serve(due, ({ project }) => (project === "large" ? 1000 : 100)),
    );
    expect(count(served, { project: "large" })).toBe(100);
  });

  test("pay a token at least, so that requests that are reckoned at nothing starve nobody", () => {
    for (const tokens of [0, -5, Number.NaN, 0.1]) {
      const lane = new Lane();
      const due = [lane.waits("default", "free"), lane.waits("default", "other")];
      const served = Array.from({ length: 10 }, () =>
        lane.serve(due, ({ project }) => (project === "free" ? tokens : 1)),
      );
      expect(count(served, { project: "other" })).toBe(5);
    }
  });

  test("a newcomer is served next, and gains nothing from having been away", () => {
    const lane = new Lane();
    const regulars = ["a", "b"].map((project) => lane.waits("default", project));
    lane.serveOften(regulars, 100);
    const after = lane.serveOften([...regulars, lane.waits("default", "new")], 30);
    expect(after[0]!.project).toBe("new");
    expect(count(after, { project: "new" })).toBe(10);
  });

  test("a newcomer starts where those stand who still wait, not where somebody stood who has left", () => {
    const lane = new Lane();
    const [brief, patient] = [lane.waits("default", "brief"), lane.waits("default", "patient")];
    expect(lane.serve([brief, patient], 1)).toBe(brief);
    expect(lane.serve([brief, patient], 1000)).toBe(patient);
    expect(lane.serve([brief, patient], 1, true)).toBe(brief);
    const after = lane.serveOften([patient, lane.waits("default", "new"), brief], 9);
    for (const project of ["patient", "new", "brief"]) expect(count(after, { project })).toBe(3);
  });

  test("a newcomer starts where those of its own priority stand", () => {
    const lane = new Lane();
    const [own, other] = [lane.waits("default", "own"), lane.waits("batch", "other")];
    for (let i = 0; i < 100; i++) lane.serve([own, other], 1000);
    const after = lane.serveOften([own, lane.waits("default", "new"), other], 40);
    expect(count(after, { project: "own" })).toBe(15);
    expect(count(after, { project: "new" })).toBe(15);
  });

  test("one that waits is not overtaken by another that never has two waiting", () => {
    const lane = new Lane();
    const patient = lane.waits("default", "patient");
    const tokens = { patient: 0, sly: 0 };
    for (let i = 0; i < 1000; i++) {
      const sly = lane.waits("default", "sly");
      const cost = ({ project }: Waiting) => (project === "sly" ? 500 : 100);
      const served = lane.serve([sly, patient], cost);
      tokens[served.project as keyof typeof tokens] += cost(served);
    }
    expect(Math.abs(tokens.patient - tokens.sly)).toBeLessThanOrEqual(500);
  });

  test("one that was served alone, however much, is owed nothing and owes nothing", () => {
    const lane = new Lane();
    const alone = lane.waits("default", "alone");
    for (let i = 0; i < 1000; i++) lane.serve([alone], 10_000, true);
    const due = [alone, lane.waits("default", "new")];
    const served = lane.serveOften(due, 100);
    expect(count(served, { project: "alone" })).toBe(50);
  });

  it("never lets one that waits be overtaken twice by another, where all requests cost the same", () => {
    const names = ["a", "b", "c", "d"];
    const comings = fc.array(fc.subarray(names), { minLength: 20, maxLength: 100, size: "max" });
    fc.assert(
      fc.property(fc.constantFrom(...names), comings, (patient, present) => {
        const lane = new Lane();
        let since: string[] = [];
        for (const those of present) {
          const due = [...new Set([...those, patient])].map((project) => lane.waits("batch", project));
          const { project } = lane.serve(due);
          since = project === patient ? [] : [...since, project];
          expect(new Set(since).size).toBe(since.length);
        }
      }),
      { numRuns: 200 },
    );
  });
});

describe("of two projects", () => {
  const largest = 5000;
  const cost = fc.oneof(fc.integer({ min: 1, max: 10 }), fc.integer({ min: 1, max: largest }));
  const costs = fc.array(cost, { minLength: 200, maxLength: 400, size: "max" });

  it("that wait both, neither has more than one largest request's cost more than the other, at any time", () => {
    fc.assert(
      fc.property(costs, costs, fc.nat(100), (ofA, ofB, headStart) => {
        const lane = new Lane();
        const a = lane.waits("default", "a");
        for (const tokens of ofA.slice(0, headStart)) lane.serve([a], tokens);
        const due = [a, lane.waits("default", "b")];
        const next = { a: headStart, b: 0 };
        const served = { a: 0, b: 0 };
        let worst = 0;
        while (next.a < ofA.length && next.b < ofB.length) {
          const costOf = ({ project }: Waiting) => (project === "a" ? ofA[next.a]! : ofB[next.b]!);
          const { project } = lane.serve(due, costOf);
          if (project === "a") served.a += ofA[next.a++]!;
          else served.b += ofB[next.b++]!;
          worst = Math.max(worst, Math.abs(served.a - served.b));
        }
        expect(worst).toBeLessThanOrEqual(largest);
      }),
      { numRuns: 200 },
    );
  });

  it("neither starves, whatever comes and goes beside them: who waits is behind nobody by more than two requests", () => {
    const others = ["b", "c", "d"];
    const step = fc.record({ present: fc.subarray(others), tokens: cost, isLast: fc.boolean() });
    const steps = fc.array(step, { minLength: 50, maxLength: 300, size: "max" });
    fc.assert(
      fc.property(steps, (comings) => {
        const lane = new Lane();
        const served = new Map<string, number>();
        let worst = 0;
        for (const { present, tokens, isLast } of comings) {
          const due = ["patient", ...present].map((project) => lane.waits("default", project));
          const { project } = lane.serve(due, tokens, isLast && due.length > 1);
          if (project === "patient") served.clear();
          else served.set(project, (served.get(project) ?? 0) + tokens);
          worst = Math.max(worst, ...served.values());
        }
        expect(worst).toBeLessThanOrEqual(2 * largest);
      }),
      { numRuns: 200 },
    );
  });
});
