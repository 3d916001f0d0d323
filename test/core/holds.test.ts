/** What a request that starts has waited for, as far as its lane was looked at. */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Hold, Holds, ownWait } from "../../src/core/holds.ts";
import type { WaitReason } from "../../src/core/request.ts";
import { now, record } from "../support/records.ts";

const forGood = Number.POSITIVE_INFINITY;
const full: Hold = { why: "capacity", until: forGood };
const limited = (until: number): Hold => ({ why: "rate_limit", until });

describe("a lane that was held", () => {
  test("held those who were due before it opened", () => {
    const holds = new Holds();
    holds.see([full], 10);
    expect(holds.passed(10, 30)).toEqual(["capacity"]);
    // It is told also to those who start behind the first one.
    expect(holds.passed(29, 30)).toEqual(["capacity"]);
  });

  test("held nobody who came when it was open again", () => {
    const holds = new Holds();
    holds.see([full], 10);
    holds.passed(10, 30);
    expect(holds.passed(30, 30)).toEqual([]);
    expect(holds.passed(31, 40)).toEqual([]);
  });

  test("held as long as it was to, although nobody looked at it in between", () => {
    const holds = new Holds();
    holds.see([limited(20)], 10);
    expect(holds.passed(19, 50)).toEqual(["rate_limit"]);
    expect(holds.passed(20, 50)).toEqual([]);
  });

  test("opened before that, if it was seen to", () => {
    const holds = new Holds();
    holds.see([limited(60)], 10);
    holds.see([], 20);
    expect(holds.passed(25, 70)).toEqual([]);
    expect(holds.passed(15, 70)).toEqual(["rate_limit"]);
  });

  test("held for one reason after the other, and for two at once", () => {
    const holds = new Holds();
    holds.see([{ why: "breaker", until: 20 }, full], 10);
    holds.see([limited(40)], 20);
    expect(holds.passed(10, 40)).toEqual(["breaker", "capacity", "rate_limit"]);
    expect(holds.passed(20, 40)).toEqual(["rate_limit"]);
  });

  test("held somebody for exactly the reasons that were in force while he waited", () => {
    const why = fc.constantFrom<WaitReason>("capacity", "rate_limit", "breaker", "backoff");
    const hold = fc.record({ why, lasts: fc.integer({ min: 1, max: 40 }) });
    const looks = fc.array(fc.tuple(fc.nat(20), fc.uniqueArray(hold, { selector: (one) => one.why })));
    fc.assert(
      fc.property(looks, fc.nat(200), fc.nat(50), (looks, since, more) => {
        const holds = new Holds();
        const spans: { why: WaitReason; to: number }[] = [];
        let at = 0;
        for (const [i, [gapMs, seen]] of looks.entries()) {
          at += gapMs;
          holds.see(
            seen.map(({ why, lasts }) => ({ why, until: at + lasts })),
            at,
          );
          const nextAt = at + (looks[i + 1]?.[0] ?? more);
          for (const { why, lasts } of seen) spans.push({ why, to: Math.min(at + lasts, nextAt) });
        }
        const reasons = new Set(spans.filter(({ to }) => to > since).map(({ why }) => why));
        expect(new Set(holds.passed(since, at + more))).toEqual(reasons);
      }),
    );
  });
});

describe("a request waits by its own date", () => {
  const later = now + 1000;

  test.each([
    ["scheduled", "a first one", { state: "queued", dueAt: later, attempt: 0 }],
    [
      "scheduled",
      "a first one that was moved to another lane since",
      { state: "queued", dueAt: later, updatedAt: later + 5, attempt: 0 },
    ],
    ["scheduled", "the first one of a later round", { state: "queued", dueAt: later, round: 2, attempt: 3 }],
    ["backoff", "one that follows another", { state: "retrying", dueAt: later }],
    [undefined, "one that is asked for at once", { state: "queued", attempt: 0 }],
    [undefined, "one that follows at once", { state: "retrying", createdAt: now - 1000 }],
    [undefined, "one of a later round at once", { state: "queued", round: 2, createdAt: now - 1000 }],
    [undefined, "one that was due before it was asked for", { state: "queued", dueAt: now - 1000 }],
  ] as const)("%s: %s", (reason, _, some) => expect(ownWait(record(some))).toBe(reason));
});
