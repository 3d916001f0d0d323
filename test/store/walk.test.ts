import fc from "fast-check";
import { expect, test } from "vitest";
import { common, ListWalk, Stretches, Union, type Walk } from "../../src/store/sqlite/walk.ts";

const sorted = (numbers: number[]): number[] => [...new Set(numbers)].sort((a, b) => a - b);
const aNumber = fc.integer({ min: -3000, max: 3000 });
const aList = fc.oneof(
  fc.array(aNumber, { maxLength: 20 }).map(sorted),
  // Denser than the pieces in which it is read.
  fc
    .tuple(aNumber, fc.integer({ min: 1, max: 3 }))
    .map(([first, step]) => Array.from({ length: 1500 }, (_, i) => first + i * step)),
);

/** What a walk goes through, and how it is made. */
type Made = [members: Set<number>, walk: () => Walk];

const listOf = (members: number[]): Made => [
  new Set(members),
  () => new ListWalk((from, limit) => members.filter((n) => n >= from).slice(0, limit)),
];
const aWalk: fc.Arbitrary<Made> = fc.oneof(
  aList.map(listOf),
  fc
    .array(aList.map(listOf), { maxLength: 4 })
    .map(
      (made): Made => [
        new Set(made.flatMap(([members]) => [...members])),
        () => new Union(made.map(([, walk]) => walk())),
      ],
    ),
  fc.array(aNumber, { maxLength: 6 }).map((ends): Made => {
    const bounds = sorted(ends);
    const stretches = Array.from({ length: Math.floor(bounds.length / 2) }, (_, i) => ({
      first: bounds[2 * i]!,
      last: bounds[2 * i + 1]!,
    }));
    const within = (n: number) => stretches.some(({ first, last }) => n >= first && n <= last);
    const all = Array.from({ length: 6001 }, (_, i) => i - 3000).filter(within);
    return [new Set(all), () => new Stretches(stretches)];
  }),
);

test("what walks have in common is what is in each of them, in order, from a number on", () => {
  fc.assert(
    fc.property(fc.array(aWalk, { minLength: 1, maxLength: 4 }), aNumber, (made, from) => {
      const [first, ...others] = made.map(([members]) => members);
      const expected = sorted([...first!]).filter(
        (n) => n >= from && others.every((members) => members.has(n)),
      );
      expect([
        ...common(
          made.map(([, walk]) => walk()),
          from,
        ),
      ]).toEqual(expected);
    }),
    { numRuns: 60 },
  );
});
