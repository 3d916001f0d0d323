import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { type Member, Members, Table } from "../../src/core/table.ts";

const keys = fc.constantFrom("a", "b", "c", "d", "e");
const steps = fc.array(
  fc.oneof(
    fc.record({ do: fc.constant("set" as const), key: keys, value: fc.integer() }),
    fc.record({ do: fc.constant("delete" as const), key: keys }),
    fc.record({ do: fc.constant("clear" as const) }),
  ),
  { maxLength: 60 },
);

describe("A table", () => {
  it("has at any time what a Map would have, in the same order", () => {
    fc.assert(
      fc.property(steps, (all) => {
        const table = new Table<string, number>();
        const map = new Map<string, number>();
        for (const step of all) {
          if (step.do === "set") {
            table.set(step.key, step.value);
            map.set(step.key, step.value);
          } else if (step.do === "delete") expect(table.delete(step.key)).toBe(map.delete(step.key));
          else {
            table.clear();
            map.clear();
          }
          expect([...table.values()]).toEqual([...map.values()]);
          expect(table.size).toBe(map.size);
          for (const key of ["a", "b", "c", "d", "e"]) {
            expect(table.get(key)).toBe(map.get(key));
            expect(table.has(key)).toBe(map.has(key));
          }
        }
      }),
    );
  });
});

describe("Members", () => {
  const moves = fc.array(fc.oneof(fc.constant("add" as const), fc.nat(20)), { maxLength: 60 });

  it("are those that came and have not left, in the order in which they came", () => {
    fc.assert(
      fc.property(moves, (all) => {
        const members = new Members<number>();
        const came: Member<number>[] = [];
        const left = new Set<number>();
        for (const move of all) {
          if (move === "add") came.push(members.add(came.length));
          else if (move < came.length) {
            // Whoever has left may be told to leave again.
            members.delete(came[move]!);
            left.add(move);
          }
          const there = came.map(({ value }) => value).filter((value) => !left.has(value));
          expect([...members]).toEqual(there);
          expect(members.size).toBe(there.length);
          expect(members.oldest).toBe(there[0]);
        }
      }),
    );
  });

  it("lead nowhere when they have left", () => {
    const members = new Members<string>();
    const [, middle] = ["first", "middle", "last"].map((value) => members.add(value));
    members.delete(middle!);
    expect(middle).toEqual({ value: "middle", before: undefined, after: undefined });
  });
});
