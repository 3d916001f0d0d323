/** The test of the simulator: bugs are planted, one at a time, and each must be seen. */

import { afterEach, describe, expect, test, vi } from "vitest";
import type { ChangeSet, Chunk } from "../../src/core/ports.ts";
import type { RequestEvent, RequestRecord } from "../../src/core/request.ts";
import type { Circumstances, Reading } from "../../src/core/retry.ts";
import type { StreamCursor } from "../../src/core/stream-cursor.ts";
import { caught } from "./caught.ts";
import type { Plant } from "./world.ts";

afterEach(() => {
  vi.doUnmock("../../src/core/retry-after.ts");
  const mocked = [
    "gate",
    "retry",
    "request",
    "backlog",
    "adoption",
    "splice",
    "feed",
    "reader",
    "intake",
    "stream-cursor",
  ];
  for (const module of mocked) vi.doUnmock(`../../src/core/${module}.ts`);
  vi.resetModules();
});

const isStart = (change: ChangeSet) =>
  change.kind === "change" && change.transition.record.state === "processing";
const isCancel = (change: ChangeSet) =>
  change.kind === "change" && change.transition.record.state === "cancelled";

describe("a planted bug is seen:", () => {
  test("a store that writes without looking at the fence", async () => {
    const commit: Plant["commit"] = (change, next) => {
      const result = next(change);
      if (change.kind !== "change" || result.status === "applied" || !result.current) return result;
      const { state, attempt, round, owner } = result.current;
      return next({
        ...change,
        // Its attempt has ended already; a second end would be refused by the table.
        transition: { ...change.transition, attempt: undefined, expect: { state, attempt, round, owner } },
      });
    };
    expect(await caught({ commit })).toMatch(/stale writer|left the terminal state/);
  });

  test("a key that is not bound in the transaction that accepts its request", async () => {
    const commit: Plant["commit"] = (change, next) =>
      change.kind === "accept" ? next({ ...change, key: undefined }) : undefined;
    expect(await caught({ commit })).toMatch(/stands for \d+ requests/);
  });

  test("a request that is acknowledged before it is on disk", async () => {
    const store: Plant["store"] = (real) => ({
      ...real,
      commit: async (change) => {
        if (change.kind !== "accept" || change.record.state === "processing") return real.commit(change);
        const later = async () => {
          for (let i = 0; i < 200; i++) await real.get("req_none");
          await real.commit(change);
        };
        void later();
        return { status: "applied" };
      },
    });
    expect(await caught({ store })).toMatch(/acknowledged and is lost|given to another call/);
  });

  test("a call whose attempt is not on disk", async () => {
    const commit: Plant["commit"] = (change) => (isStart(change) ? { status: "applied" } : undefined);
    expect(await caught({ commit })).toMatch(/without a started attempt/);
  });

  test("a retry before the Retry-After that was told", async () => {
    vi.doMock("../../src/core/retry-after.ts", () => ({ retryAfterMs: () => undefined }));
    expect(await caught()).toMatch(/before a lane may be used/);
  });

  test("a gate that lets everybody through", async () => {
    vi.doMock("../../src/core/gate.ts", async (original) => ({
      ...(await original<object>()),
      admits: () => "yes",
    }));
    expect(await caught()).toMatch(/before a lane may be used|while a lane is being probed/);
  });

  test("more than one probe of a closed lane", async () => {
    vi.doMock("../../src/core/gate.ts", async (original) => ({
      ...(await original<object>()),
      passed: () => ({ kind: "open" }),
    }));
    expect(await caught()).toMatch(/while a lane is being probed/);
  });

  test("requests that start before they are due", async () => {
    vi.doMock("../../src/core/backlog.ts", async (original) => {
      const real = await original<typeof import("../../src/core/backlog.ts")>();
      class Impatient extends real.Backlog {
        override next() {
          return super.next(Number.POSITIVE_INFINITY);
        }
        override nextDueAt() {
          return super.nextDueAt() === undefined ? undefined : 0;
        }
      }
      return { ...real, Backlog: Impatient };
    });
    expect(await caught()).toMatch(/ms early/);
  });

  test("a budget of attempts that is not kept", async () => {
    vi.doMock("../../src/core/retry.ts", async (original) => {
      const real = await original<typeof import("../../src/core/retry.ts")>();
      const decide = (record: RequestRecord, reading: Reading, at: Circumstances) =>
        real.decide({ ...record, terms: { ...record.terms, maxAttempts: 1e9 } }, reading, at);
      return { ...real, decide };
    });
    expect(await caught({}, { from: 17 })).toMatch(/counted \d+ attempts/);
  });

  test("a second run that the record does not admit", async () => {
    vi.doMock("../../src/core/request.ts", async (original) => {
      const real = await original<typeof import("../../src/core/request.ts")>();
      const transition = (record: RequestRecord, event: RequestEvent) => {
        const moved = real.transition(record, event);
        return moved && { ...moved, record: { ...moved.record, duplicatePossible: false } };
      };
      return { ...real, transition };
    });
    expect(await caught()).toMatch(/does not say so/);
  });

  test("a cap on concurrency that is not kept", async () => {
    const settings: Plant["settings"] = (real) => ({
      ...real,
      upstreams: real.upstreams.map(({ name }) => ({ name, maxConcurrency: 1000 })),
    });
    expect(await caught({ settings })).toMatch(/calls at once/);
  });

  test("a cancellation that is acknowledged and not written", async () => {
    const commit: Plant["commit"] = (change) => (isCancel(change) ? { status: "applied" } : undefined);
    expect(await caught({ commit })).toMatch(/was cancelled and is/);
  });

  test("interrupted requests that nobody takes up", async () => {
    const store: Plant["store"] = (real) => ({ ...real, interrupted: async () => [] });
    expect(await caught({ store })).toMatch(/is still processing/);
  });

  test("a backlog that loses one request in five", async () => {
    vi.doMock("../../src/core/backlog.ts", async (original) => {
      const real = await original<typeof import("../../src/core/backlog.ts")>();
      let added = 0;
      class Leaky extends real.Backlog {
        override add(record: RequestRecord) {
          if (++added % 5 !== 0) super.add(record);
        }
      }
      return { ...real, Backlog: Leaky };
    });
    expect(await caught()).toMatch(/missed a deadline|after the last fault|is still/);
  });

  test("an orphan that stays one when it is adopted", async () => {
    const commit: Plant["commit"] = (change, next) => {
      if (change.kind !== "accept" && change.kind !== "repeat") return undefined;
      const result = next(change);
      if (result.status === "adopted") {
        const { id, updatedAt: at } = result.current;
        next({ kind: "orphaned", id, at, contentSent: false, forgetBefore: 0 });
      }
      return result;
    };
    expect(await caught({ commit })).toMatch(/two callers at a time|answered and is given away again/);
  });

  test("an orphan that is adopted by another call", async () => {
    const commit: Plant["commit"] = (change, next) => {
      if (change.kind !== "accept" || change.record.callHash === undefined) return undefined;
      return next({ ...change, record: { ...change.record, callHash: "00".repeat(32) } });
    };
    expect(await caught({ commit })).toMatch(/given to another call than its own/);
  });

  test("an orphan whose mark is lost", async () => {
    const commit: Plant["commit"] = ({ kind }) => (kind === "orphaned" ? { status: "applied" } : undefined);
    expect(await caught({ commit })).toMatch(/was left and is not found/);
  });

  test("a restart that does not make orphans of those who were connected", async () => {
    const commit: Plant["commit"] = ({ kind }) =>
      kind === "all_orphaned" ? { status: "applied" } : undefined;
    expect(await caught({ commit })).toMatch(/was left and is not found/);
  });

  test("a restart that makes orphans of what was answered, as if nobody had read it", async () => {
    const commit: Plant["commit"] = (change, next) =>
      change.kind === "accept" && change.repeats
        ? next({ ...change, repeats: { ...change.repeats, isRetry: true } })
        : undefined;
    expect(await caught({ commit })).toMatch(/given to a first call/);
  });

  test("an answered call that becomes an orphan all the same", async () => {
    vi.doMock("../../src/core/adoption.ts", async (original) => {
      const real = await original<typeof import("../../src/core/adoption.ts")>();
      class Forgetful extends real.Adoption {
        override answered(id: string) {
          this.orphaned(id, true);
        }
      }
      return { ...real, Adoption: Forgetful };
    });
    expect(await caught()).toMatch(/was answered and is given away again/);
  });

  test("an answer that is lost on its way to the disk", async () => {
    const commit: Plant["commit"] = (change, next) =>
      change.kind === "change" && change.parts ? next({ ...change, parts: [] }) : undefined;
    expect(await caught({ commit })).toMatch(/completed without an answer/);
  });
});

type FeedModule = typeof import("../../src/core/feed.ts");
type IntakeModule = typeof import("../../src/core/intake.ts");
type ReaderModule = typeof import("../../src/core/reader.ts");

/** Changes what a module of core is, each time that it is loaded. */
function plantIn<Module extends object>(name: string, plant: (real: Module) => object): void {
  vi.doMock(`../../src/core/${name}.ts`, async (original) => {
    const real = await original<Module>();
    return { ...real, ...plant(real) };
  });
}

describe("a planted bug in streams is seen:", () => {
  test("a second answer that is not compared with the first one", async () => {
    class Blind {
      private left: number;
      constructor(delivered: string) {
        this.left = delivered.length;
      }
      take(chunk: Chunk) {
        if (this.left <= 0) return { kind: "joined", chunks: [chunk] };
        this.left -= chunk.text?.length ?? 0;
        return { kind: "comparing" };
      }
      end() {
        return { kind: "joined", chunks: [] };
      }
    }
    plantIn("splice", () => ({ Splice: Blind }));
    expect(await caught()).toMatch(/told a caller what nobody said|another answer than its stream/);
  });

  test("an answer begun anew that keeps its version", async () => {
    plantIn<FeedModule>("feed", ({ Feed }) => {
      const { restart } = Feed.prototype;
      Feed.prototype.restart = function () {
        const { forks } = this;
        restart.call(this);
        this.forks = forks;
      };
      return {};
    });
    expect(await caught({}, { from: 84 })).toMatch(
      /was read on in another answer|other events than are recorded/,
    );
  });

  test("callers who are not told that the answer begins anew", async () => {
    plantIn<ReaderModule>("reader", ({ StreamReader }) => {
      StreamReader.prototype.restarted = () => {};
      return {};
    });
    expect(await caught()).toMatch(/told a caller what nobody said|was read on in another answer/);
  });

  test("an end that is written without the last events", async () => {
    const commit: Plant["commit"] = (change, next) =>
      change.kind === "change" && change.events ? next({ ...change, events: undefined }) : undefined;
    expect(await caught({ commit })).toMatch(/another answer than its stream/);
  });

  test("an answer that is told to the end twice", async () => {
    plantIn<IntakeModule>("intake", ({ Intake }) => {
      Object.defineProperty(Intake.prototype, "isTold", { get: () => false });
      return {};
    });
    expect(await caught({}, { from: 184 })).toMatch(/its stream has \d+ ends/);
  });

  test("a buffered answer that is told before it is whole", async () => {
    plantIn<IntakeModule>("intake", ({ Intake }) => {
      class Hasty extends Intake {
        constructor(...[feed, source]: ConstructorParameters<typeof Intake>) {
          super(feed, source, false);
        }
      }
      return { Intake: Hasty };
    });
    expect(await caught({}, { from: 20 })).toMatch(/told of an answer that was not whole/);
  });

  test("events that readers are told before they are on disk", async () => {
    plantIn<ReaderModule>("reader", ({ StreamReader }) => {
      class Hasty extends StreamReader {
        constructor(...[store, line, feed, from, sink]: ConstructorParameters<typeof StreamReader>) {
          super(store, line, feed, { ...from, committedOnly: false }, sink);
        }
      }
      return { StreamReader: Hasty };
    });
    expect(await caught()).toMatch(/to a reader and has not recorded it/);
  });

  test("a reader who is told the last event again when it comes back", async () => {
    plantIn<ReaderModule>("reader", ({ StreamReader }) => {
      const { start } = StreamReader.prototype;
      StreamReader.prototype.start = function () {
        const reader = this as unknown as { after: number };
        reader.after = Math.max(0, reader.after - 1);
        start.call(this);
      };
      return {};
    });
    expect(await caught()).toMatch(/was read from [\d-]+ to [\d-]+ with \d+ events/);
  });

  test("a process that does not know all that was recorded before it", async () => {
    plantIn<FeedModule>("feed", ({ Feed }) => {
      const { load } = Feed.prototype;
      Feed.prototype.load = function (data) {
        load.call(this, data.slice(0, -1));
      };
      return {};
    });
    expect(await caught({}, { from: 9 })).toMatch(/records event \d+ behind event|fault/);
  });

  test("events that are written by who has lost the request", async () => {
    const commit: Plant["commit"] = (change, next) => {
      if (change.kind !== "events") return undefined;
      const result = next(change);
      if (result.status === "applied" || !result.current) return result;
      const { state, attempt, round, owner } = result.current;
      return next({ ...change, expect: { state, attempt, round, owner } });
    };
    expect(await caught({ commit }, { from: 44 })).toMatch(
      /records event \d+ behind event|after its end|fault|another answer than its stream/,
    );
  });

  test("events that are written with the end only", async () => {
    plantIn<FeedModule>("feed", ({ Feed }) => {
      Feed.prototype.write = () => {};
      return {};
    });
    expect(await caught()).toMatch(/has not recorded event \d+ 100 ms after/);
  });

  test("readers who are told that they have lost their place, and have not", async () => {
    plantIn<typeof import("../../src/core/stream-cursor.ts")>("stream-cursor", ({ isValidCursor }) => ({
      isValidCursor: (cursor: StreamCursor, forks: number[]) =>
        cursor.after < 3 && isValidCursor(cursor, forks),
    }));
    expect(await caught()).toMatch(/was told to begin anew, and did not/);
  });

  test("a silence that nobody ends", async () => {
    const settings: Plant["settings"] = (real) => ({ ...real, idleMs: 2 ** 40 });
    expect(await caught({ settings }, { from: 10 })).toMatch(
      /missed a deadline|after the last fault|is still/,
    );
  });

  test("readers who are never told the end", async () => {
    plantIn<ReaderModule>("reader", ({ StreamReader }) => {
      Object.defineProperty(StreamReader.prototype, "conclude", { value() {} });
      return {};
    });
    expect(await caught()).toMatch(/waits for ever/);
  });
});

test("without a planted bug nothing is seen", async () => {
  expect(await caught(undefined, { seeds: 50 })).toBe("nothing was seen");
});
