import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { newTurns, nextGroup, type Turns } from "../../src/core/fairness.ts";
import type { Priority } from "../../src/core/request.ts";

interface Waiting {
  priority: Priority;
  project: string;
}
const priorities: Priority[] = ["interactive", "default", "batch"];
const waits = (priority: Priority, project = "p"): Waiting => ({ priority, project });

function served(due: Waiting[], turnsTaken: number, turns: Turns = newTurns()): Waiting[] {
  return Array.from({ length: turnsTaken }, () => nextGroup(due, turns)!);
}
const count = (those: Waiting[], some: Partial<Waiting>) =>
  those.filter((one) => Object.entries(some).every(([key, value]) => one[key as keyof Waiting] === value))
    .length;

test("nobody is served where nobody waits", () => {
  expect(nextGroup([], newTurns())).toBeUndefined();
});

describe("priorities", () => {
  test("share 8 : 3 : 1 where all of them wait, in every dozen of turns", () => {
    const turns = served(
      priorities.map((priority) => waits(priority)),
      1200,
    );
    for (let from = 0; from < turns.length; from += 12) {
      const dozen = turns.slice(from, from + 12);
      expect(priorities.map((priority) => count(dozen, { priority }))).toEqual([8, 3, 1]);
    }
  });

  test("share 3 : 1 where only the lower two wait", () => {
    const turns = served([waits("default"), waits("batch")], 400);
    expect(count(turns, { priority: "default" })).toBe(300);
  });

  test("begin with the highest", () => {
    expect(served([waits("batch"), waits("default"), waits("interactive")], 1)).toEqual([
      waits("interactive"),
    ]);
  });

  test("a higher one that was idle does not save up turns", () => {
    const turns = newTurns();
    served([waits("default"), waits("batch")], 1000, turns);
    const after = served(
      priorities.map((priority) => waits(priority)),
      12,
      turns,
    );
    expect(count(after, { priority: "interactive" })).toBeLessThanOrEqual(9);
    expect(count(after, { priority: "default" })).toBeGreaterThanOrEqual(2);
  });

  it("never starve one that waits, whoever comes and goes beside it", () => {
    const others = fc.array(fc.subarray(priorities), { minLength: 60, maxLength: 200 });
    fc.assert(
      fc.property(fc.constantFrom(...priorities), others, (patient, comings) => {
        const turns = newTurns();
        let waited = 0;
        for (const present of comings) {
          const due = [...new Set([...present, patient])].map((priority) => waits(priority));
          waited = nextGroup(due, turns)!.priority === patient ? 0 : waited + 1;
          expect(waited).toBeLessThanOrEqual(36);
        }
      }),
      { numRuns: 500 },
    );
  });
});

describe("projects", () => {
  test("take turns within a priority", () => {
    const due = ["a", "b", "c"].map((project) => waits("default", project));
    expect(served(due, 7).map(({ project }) => project)).toEqual(["a", "b", "c", "a", "b", "c", "a"]);
  });

  test("take turns in each priority of its own", () => {
    const due = priorities.flatMap((priority) => ["a", "b"].map((project) => waits(priority, project)));
    const turns = served(due, 1200);
    for (const priority of priorities) {
      expect(count(turns, { priority, project: "a" })).toBe(count(turns, { priority, project: "b" }));
    }
  });

  test("a newcomer is served next, and gains nothing from having been away", () => {
    const turns = newTurns();
    served([waits("default", "a"), waits("default", "b")], 100, turns);
    const after = served(
      ["a", "b", "new"].map((project) => waits("default", project)),
      30,
      turns,
    );
    expect(after[0]!.project).toBe("new");
    expect(count(after, { project: "new" })).toBe(10);
  });

  it("never lets one that waits be overtaken twice by another", () => {
    const names = ["a", "b", "c", "d"];
    const comings = fc.array(fc.subarray(names), { minLength: 20, maxLength: 100 });
    fc.assert(
      fc.property(fc.constantFrom(...names), comings, (patient, present) => {
        const turns = newTurns();
        let since: string[] = [];
        for (const those of present) {
          const due = [...new Set([...those, patient])].map((project) => waits("batch", project));
          const { project } = nextGroup(due, turns)!;
          since = project === patient ? [] : [...since, project];
          expect(new Set(since).size).toBe(since.length);
        }
      }),
      { numRuns: 500 },
    );
  });
});
