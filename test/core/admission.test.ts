import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Admission, comeBackMs, felt, noPressure, type Place } from "../../src/core/admission.ts";
import { AppError } from "../../src/core/errors.ts";
import { HandClock } from "../support/clock.ts";

const limits = { maxQueued: 5, maxHeld: 4, maxBodyMemoryBytes: 100 };
const admissionOf = (luck = 0.5, clock = new HandClock()) =>
  new Admission(limits, { clock, random: { next: () => luck, id: () => "req_" } });

function enter(admission: Admission): Place | undefined {
  try {
    return admission.enter();
  } catch (error) {
    expect(error).toMatchObject({ code: "overloaded" });
    return undefined;
  }
}

/** What a caller does with its place; the number says which of the places. */
const step = fc.oneof(
  fc.record({ kind: fc.constant("enter" as const), n: fc.nat(9), bytes: fc.constant(0) }),
  fc.record({ kind: fc.constantFrom("take", "keep"), n: fc.nat(9), bytes: fc.nat(60) }),
  fc.record({ kind: fc.constantFrom("drop", "leave"), n: fc.nat(9), bytes: fc.constant(0) }),
);

describe("whatever callers do", () => {
  test("no more are held than may be, what is taken fits, and when all have left nothing is counted", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const admission = admissionOf();
        const places: Place[] = [];
        for (const { kind, n, bytes } of steps) {
          const place = places[n % Math.max(1, places.length)];
          if (kind === "enter") {
            const came = enter(admission);
            if (came) places.push(came);
            else expect(admission.held).toBe(limits.maxHeld);
          } else if (kind === "take" && place) {
            const before = admission.bytes;
            const refusal = place.take(bytes);
            if (refusal) expect(before + bytes).toBeGreaterThan(limits.maxBodyMemoryBytes);
            if (refusal) expect(admission.bytes).toBe(before);
            else expect(admission.bytes).toBeLessThanOrEqual(Math.max(before, limits.maxBodyMemoryBytes));
          } else if (kind === "keep") place?.keep(bytes);
          else if (kind === "drop") place?.drop();
          else place?.leave();
          expect(admission.held).toBeLessThanOrEqual(limits.maxHeld);
          expect(admission.bytes).toBeGreaterThanOrEqual(0);
        }
        for (const place of places) place.leave();
        for (const place of places) place.keep(7);
        expect([admission.held, admission.bytes]).toEqual([0, 0]);
      }),
    );
  });
});

describe("when a refused caller should come back", () => {
  const counts = fc.record({ admitted: fc.nat(10_000), refused: fc.integer({ min: 1, max: 10_000 }) });
  const luck = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });

  test("is between half a second and the 60 s that SDKs obey", () => {
    fc.assert(
      fc.property(counts, luck, (counts, luck) => {
        const ms = comeBackMs({ at: 0, ...counts }, luck);
        expect(ms).toBeGreaterThanOrEqual(500);
        expect(ms).toBeLessThanOrEqual(60_000);
      }),
    );
  });

  test("is the later, the more are refused", () => {
    fc.assert(
      fc.property(counts, fc.nat(10_000), luck, ({ admitted, refused }, more, luck) => {
        const sooner = comeBackMs({ at: 0, admitted, refused }, luck);
        expect(comeBackMs({ at: 0, admitted, refused: refused + more }, luck)).toBeGreaterThanOrEqual(sooner);
      }),
    );
  });

  test("is the later, the more are refused in a second, however many are served meanwhile", () => {
    const thousands = { at: 0, admitted: 50_000 };
    const few = comeBackMs({ ...thousands, refused: 72 }, 0.5);
    // Ten a second.
    expect(few).toBeGreaterThan(1090);
    expect(few).toBeLessThan(1200);
    // 300 a second, for some time.
    expect(comeBackMs({ ...thousands, refused: 2164 }, 0.5)).toBeGreaterThan(4000);
  });

  test("is spread by chance over a time as long as its mean", () => {
    const pressure = { at: 0, admitted: 10, refused: 50 };
    const middle = comeBackMs(pressure, 0.5);
    expect(comeBackMs(pressure, 0)).toBe(Math.round(middle / 2));
    expect(comeBackMs(pressure, 0.999)).toBeGreaterThan(middle * 1.49);
  });

  test("is soon again when nobody has been refused for a while", () => {
    const admission = admissionOf();
    const clock = new HandClock();
    const other = admissionOf(0.5, clock);
    const told = (of: Admission) => (of.queueRefusal(limits.maxQueued) as AppError).retryAfterMs!;
    for (let i = 0; i < 100; i++) told(admission);
    expect(told(admission)).toBe(40_000);
    for (let i = 0; i < 100; i++) told(other);
    clock.advance(60_000);
    expect(told(other)).toBeLessThan(6000);
  });

  test("counts what happened of late, whatever the clock does", () => {
    const pressure = felt(felt(noPressure(1000), 1000, "refused"), 6000, "admitted");
    expect(pressure).toEqual({ at: 6000, admitted: 1, refused: 0.5 });
    expect(felt(pressure, 0, "refused")).toEqual({ at: 0, admitted: 1, refused: 1.5 });
  });
});

test("those who do not stay are always let in, and counted", () => {
  const admission = admissionOf();
  for (let i = 0; i < limits.maxHeld; i++) enter(admission);
  expect(enter(admission)).toBeUndefined();
  const place = admission.enter(true);
  expect(admission.held).toBe(limits.maxHeld + 1);
  place.leave();
  expect(admission.held).toBe(limits.maxHeld);
});

test("whose body is being received is told when no more are wanted, and only then", () => {
  const admission = admissionOf();
  const told: string[] = [];
  const first = admission.enter();
  const done = first.receive(() => told.push("first"));
  admission.enter().receive(({ code }) => told.push(`second: ${code}`));
  done();
  admission.refuseUploads(() => new AppError("shutting_down", "The server is shutting down."));
  expect(told).toEqual(["second: shutting_down"]);
});
