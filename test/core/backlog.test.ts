import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { Backlog, windowSize } from "../../src/core/backlog.ts";
import type { Priority, RequestRecord } from "../../src/core/request.ts";
import { record } from "../support/records.ts";

const lane = "a/m";
const limit = windowSize * 2;
const group = { priority: "default" as Priority, project: "acme" };
let made = 0;

const waiting = (some: Partial<RequestRecord> = {}): RequestRecord =>
  record({ id: `req_${String(++made).padStart(6, "0")}`, state: "queued", lane, dueAt: 0, ...some });
const byTurn = (a: RequestRecord, b: RequestRecord) => a.dueAt - b.dueAt || (a.id < b.id ? -1 : 1);

/** Takes the request whose turn it is. */
function takeNext(backlog: Backlog, now: number, tokens = 1): RequestRecord | undefined {
  const next = backlog.next(now);
  expect(backlog.next(now), "asking changes nothing").toBe(next);
  if (next) backlog.take(next, tokens);
  return next;
}

/** How many heads are in memory. */
function known(backlog: Backlog): number {
  const { groups } = backlog as unknown as { groups: Map<string, { heads: unknown[] }> };
  return [...groups.values()].reduce((sum, { heads }) => sum + heads.length, 0);
}

describe("a backlog", () => {
  test("gives those that are due, in the order in which they are due, then of their ids", () => {
    const backlog = new Backlog(lane);
    const [a, b, c, d] = [
      waiting({ dueAt: 20 }),
      waiting({ dueAt: 10 }),
      waiting({ dueAt: 10 }),
      waiting({ dueAt: 99 }),
    ];
    for (const one of [c, d, a, b]) backlog.add(one);
    expect(backlog.nextDueAt()).toBe(10);
    expect([1, 2, 3, 4].map(() => takeNext(backlog, 20))).toEqual([b, c, a, undefined]);
    expect(backlog.size).toBe(1);
    expect(backlog.nextDueAt()).toBe(99);
  });

  test("is empty when the last one has been taken or removed", () => {
    const backlog = new Backlog(lane);
    const [a, b] = [waiting(), waiting()];
    backlog.add(a);
    backlog.add(b);
    backlog.remove(a);
    expect(takeNext(backlog, 0)).toBe(b);
    expect(backlog.isEmpty).toBe(true);
    expect(backlog.startLoading([])).toEqual([]);
  });

  test("holds a window of each group in memory, however many wait", () => {
    const backlog = new Backlog(lane);
    backlog.know({ lane, ...group, count: 100_000 });
    for (let i = 0; i < 10_000; i++) backlog.add(waiting({ dueAt: i }));
    expect(backlog.size).toBe(110_000);
    expect(known(backlog)).toBe(0);
    expect(backlog.startLoading([])).toEqual([{ lane, ...group }]);
    for (let i = 0; i < 10_000; i++) backlog.add(waiting({ dueAt: 1_000_000 + i }));
    backlog.loaded(
      group,
      Array.from({ length: limit }, (_, i) => waiting({ dueAt: i })),
      limit,
    );
    for (let i = 0; i < 10_000; i++) backlog.add(waiting({ dueAt: i % 100 }));
    expect(backlog.size).toBe(130_000);
    expect(known(backlog)).toBeLessThanOrEqual(windowSize);
  });

  test("asks for a window once, and again when it could not be read", () => {
    const backlog = new Backlog(lane);
    backlog.know({ lane, ...group, count: 3 });
    expect(backlog.startLoading([])).toHaveLength(1);
    expect(backlog.startLoading([])).toEqual([]);
    backlog.notLoaded(group);
    expect(backlog.startLoading([])).toHaveLength(1);
  });

  test("does not take up again what is being claimed while a window is read", () => {
    const backlog = new Backlog(lane);
    const [claimed, other] = [waiting(), waiting()];
    backlog.know({ lane, ...group, count: 1 });
    backlog.startLoading([claimed.id]);
    backlog.loaded(group, [claimed, other], limit);
    expect(takeNext(backlog, 0)).toBe(other);
    expect(backlog.isEmpty).toBe(true);
  });

  test("takes up again what could not be claimed after all while a window is read", () => {
    const backlog = new Backlog(lane);
    const claimed = waiting();
    backlog.know({ lane, ...group, count: 1 });
    backlog.startLoading([claimed.id]);
    backlog.add({ ...claimed, dueAt: 7 });
    backlog.loaded(group, [claimed, waiting({ dueAt: 9 })], limit);
    expect(takeNext(backlog, 100)).toMatchObject({ id: claimed.id, dueAt: 7 });
    expect(backlog.size).toBe(1);
  });

  test("never forgets a head that it knows, even if somebody who had left is removed", () => {
    const backlog = new Backlog(lane);
    const [gone, other] = [waiting(), waiting()];
    backlog.add(gone);
    backlog.add(other);
    expect(takeNext(backlog, 0)).toBe(gone);
    backlog.remove(gone);
    expect(takeNext(backlog, 0)).toBe(other);
  });

  test("loses nobody whom it does not know, though some who had left are removed, and are not counted any more", () => {
    const backlog = new Backlog(lane);
    const all = Array.from({ length: windowSize + 20 }, () => waiting());
    backlog.know({ lane, ...group, count: all.length });
    for (let i = 0; i < 20; i++) backlog.remove(waiting());
    const served: (RequestRecord | undefined)[] = [];
    for (let i = 0; i < all.length; i++) {
      for (const of of backlog.startLoading([])) backlog.loaded(of, all.slice(i, i + windowSize), windowSize);
      served.push(takeNext(backlog, 0));
    }
    expect(served).toEqual(all);
  });

  test("serves a group of which nothing is known yet no worse than others, once its window is there", () => {
    const backlog = new Backlog(lane);
    backlog.know({ lane, priority: "interactive", project: "acme", count: 1 });
    const low = waiting({ priority: "batch" });
    backlog.add(low);
    expect(takeNext(backlog, 0)).toBe(low);
    backlog.startLoading([]);
    const high = waiting({ priority: "interactive" });
    backlog.loaded({ priority: "interactive", project: "acme" }, [high], limit);
    expect(takeNext(backlog, 0)).toBe(high);
  });
});

describe("whose turn it is", () => {
  test("stays the same until somebody is taken", () => {
    const backlog = new Backlog(lane);
    const all = ["acme", "zeta"].flatMap((project) =>
      (["interactive", "default", "batch"] as const).map((priority) => waiting({ project, priority })),
    );
    for (const one of all) backlog.add(one);
    const first = backlog.next(0);
    for (let i = 0; i < 20; i++) expect(backlog.next(0)).toBe(first);
    expect(backlog.size).toBe(all.length);
    expect(all.map(() => takeNext(backlog, 0)).map((one) => one?.id)).not.toContain(undefined);
    expect(backlog.next(0)).toBeUndefined();
  });

  test("is given to the project that was served fewer tokens", () => {
    const backlog = new Backlog(lane);
    for (let i = 0; i < 40; i++) for (const project of ["acme", "zeta"]) backlog.add(waiting({ project }));
    const served = { acme: 0, zeta: 0 };
    for (let i = 0; i < 22; i++) {
      const { project } = backlog.next(0)!;
      takeNext(backlog, 0, project === "acme" ? 1000 : 100);
      served[project as keyof typeof served]++;
    }
    expect(served).toEqual({ acme: 2, zeta: 20 });
  });

  test("does not come sooner for a project that never has two waiting", () => {
    const backlog = new Backlog(lane);
    const patient = Array.from({ length: 30 }, () => waiting({ project: "zeta" }));
    for (const one of patient) backlog.add(one);
    const served: string[] = [];
    for (let i = 0; i < 30; i++) {
      if (i === 0 || served.at(-1) === "acme") backlog.add(waiting());
      served.push(takeNext(backlog, 0, backlog.next(0)!.project === "acme" ? 900 : 100)!.project);
    }
    expect(served.filter((project) => project === "acme")).toHaveLength(3);
  });

  test("is not that of a request which has gone in the meantime", () => {
    const backlog = new Backlog(lane);
    const [gone, other] = [waiting(), waiting()];
    backlog.add(gone);
    backlog.add(other);
    expect(backlog.next(0)).toBe(gone);
    backlog.remove(gone);
    backlog.take(gone, 1);
    expect(backlog.size).toBe(1);
    expect(takeNext(backlog, 0)).toBe(other);
  });

  it("comes for a single request after one slot at most, though another project has 100,000 waiting", () => {
    const tokens = fc.array(fc.oneof(fc.integer({ min: 1, max: 9 }), fc.integer({ min: 1, max: 1e6 })), {
      minLength: 1,
      maxLength: 50,
      size: "max",
    });
    const deep = Array.from({ length: 3000 }, () => waiting());
    fc.assert(
      fc.property(fc.nat(1500), tokens, (servedBefore, sizes) => {
        const backlog = new Backlog(lane);
        backlog.know({ lane, ...group, count: 100_000 });
        let taken = 0;
        const serve = () => {
          for (const of of backlog.startLoading([])) {
            backlog.loaded(of, deep.slice(taken, taken + limit), limit);
          }
          const next = backlog.next(0)!;
          backlog.take(next, sizes[taken % sizes.length]!);
          if (next.project === group.project) taken++;
          return next;
        };
        while (taken < servedBefore) serve();
        const single = waiting({ project: "zeta" });
        backlog.add(single);
        expect([serve(), serve()]).toContain(single);
        expect(backlog.size).toBe(100_000 - taken);
      }),
      { numRuns: 60 },
    );
  });
});

describe("who goes before a request", () => {
  test("is whoever is due before it, and as many of each project that shares with it", () => {
    const backlog = new Backlog(lane);
    const own = Array.from({ length: 10 }, () => waiting());
    for (const one of own) backlog.add(one);
    expect(own.map((one) => backlog.ahead(one))).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for (let i = 0; i < 4; i++) backlog.add(waiting({ project: "zeta" }));
    expect(own.map((one) => backlog.ahead(one))).toEqual([0, 2, 4, 6, 8, 9, 10, 11, 12, 13]);
  });

  test("is who is of another priority, as far as its share goes", () => {
    const backlog = new Backlog(lane);
    const [low, high] = [waiting({ priority: "batch" }), waiting({ priority: "interactive" })];
    backlog.know({ lane, project: "zeta", priority: "interactive", count: 1000 });
    backlog.add(low);
    expect(backlog.ahead(low)).toBe(8);
    backlog.add(high);
    expect(backlog.ahead(high)).toBe(0);
    for (let i = 0; i < 50; i++) backlog.add(waiting({ priority: "batch" }));
    expect(backlog.ahead(high)).toBe(0);
  });

  test("is everybody else of its project, where it is not held in memory, and nobody, where nobody waits", () => {
    const backlog = new Backlog(lane);
    expect(backlog.ahead(waiting())).toBe(0);
    backlog.know({ lane, ...group, count: 100_000 });
    expect(backlog.ahead(waiting())).toBe(99_999);
    expect(backlog.next(Number.POSITIVE_INFINITY)).toBeUndefined();
    const head = waiting();
    backlog.startLoading([]);
    backlog.loaded(group, [head], 1);
    expect(backlog.next(Number.POSITIVE_INFINITY)).toBe(head);
  });
});

// ---- against a model: the rows of a store, and who is being claimed ----

type Action =
  | { kind: "accept"; dueAt: number; project: string; priority: Priority }
  /** A caller whose request is not accepted yet; it waits for its turn, or goes. */
  | { kind: "arrive"; project: string; priority: Priority }
  | { kind: "leave"; nth: number }
  | { kind: "take" }
  | { kind: "claimed"; nth: number; how: "started" | "failed" }
  | { kind: "cancel"; nth: number }
  /** Cancelled while it was being claimed: the claim finds that out before the cancelling hand tells. */
  | { kind: "cancelClaimed"; nth: number }
  | { kind: "startLoading" }
  | { kind: "read"; nth: number }
  | { kind: "loaded"; nth: number; lost: boolean };

const projects = ["acme", "zeta"];
const anyAction: fc.Arbitrary<Action> = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      kind: fc.constant("accept" as const),
      dueAt: fc.nat(40),
      project: fc.constantFrom(...projects),
      priority: fc.constantFrom<Priority>("default", "batch"),
    }),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant("arrive" as const),
      project: fc.constantFrom(...projects),
      priority: fc.constantFrom<Priority>("default", "batch"),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("leave" as const), nth: fc.nat(100) }) },
  { weight: 7, arbitrary: fc.constant<Action>({ kind: "take" }) },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant("claimed" as const),
      nth: fc.nat(100),
      how: fc.constantFrom<"started" | "failed">("started", "failed"),
    }),
  },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant("cancel" as const), nth: fc.nat(1000) }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant("cancelClaimed" as const), nth: fc.nat(100) }) },
  { weight: 3, arbitrary: fc.constant<Action>({ kind: "startLoading" }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant("read" as const), nth: fc.nat(10) }) },
  {
    weight: 3,
    arbitrary: fc.record({ kind: fc.constant("loaded" as const), nth: fc.nat(10), lost: fc.boolean() }),
  },
);

interface Load {
  of: { priority: Priority; project: string };
  rows?: RequestRecord[];
}

/** The store and the scheduler around a backlog, each in its simplest form. `limit` rows are read at a time. */
class Model {
  readonly backlog = new Backlog(lane);
  readonly rows: Map<string, RequestRecord>;
  readonly claiming: RequestRecord[] = [];
  readonly arrived: { record: RequestRecord; leave: () => void }[] = [];
  loads: Load[] = [];
  toldTwice = false;
  private readonly readLimit: number;

  constructor(before: RequestRecord[], readLimit: number) {
    this.readLimit = readLimit;
    this.rows = new Map(before.map((row) => [row.id, row]));
    for (const project of projects) {
      for (const priority of ["default", "batch"] as const) {
        const count = this.of({ priority, project }).length;
        if (count > 0) this.backlog.know({ lane, priority, project, count });
      }
    }
  }

  of({ priority, project }: Load["of"]): RequestRecord[] {
    return [...this.rows.values()]
      .filter((row) => row.priority === priority && row.project === project)
      .sort(byTurn);
  }

  get waitingCount(): number {
    return this.rows.size - this.claiming.length;
  }

  do(action: Action, now: number): void {
    switch (action.kind) {
      case "accept": {
        const { dueAt, project, priority } = action;
        const row = waiting({ dueAt, project, priority });
        this.rows.set(row.id, row);
        return this.backlog.add(row);
      }
      case "arrive": {
        const { project, priority } = action;
        const record = waiting({ dueAt: now, project, priority });
        this.arrived.push({ record, leave: this.backlog.arrive({ record }) });
        return;
      }
      case "leave": {
        const [newcomer] = this.arrived.splice(action.nth % Math.max(1, this.arrived.length), 1);
        newcomer?.leave();
        return;
      }
      case "take": {
        const taken = takeNext(this.backlog, now);
        if (!taken || this.served(taken)) return;
        expect(this.rows.has(taken.id), "is in the store").toBe(true);
        expect(taken.dueAt).toBeLessThanOrEqual(now);
        expect(this.claiming, "is not claimed twice").not.toContainEqual(
          expect.objectContaining({ id: taken.id }),
        );
        this.claiming.push(taken);
        return;
      }
      case "claimed": {
        const [row] = this.claiming.splice(action.nth % Math.max(1, this.claiming.length), 1);
        if (!row) return;
        if (action.how === "failed") return this.backlog.add(row);
        this.rows.delete(row.id);
        return;
      }
      case "cancel": {
        const free = [...this.rows.values()].filter((row) => !this.claiming.some(({ id }) => id === row.id));
        const row = free[action.nth % Math.max(1, free.length)];
        if (!row) return;
        this.rows.delete(row.id);
        return this.backlog.remove(row);
      }
      case "cancelClaimed": {
        const [row] = this.claiming.splice(action.nth % Math.max(1, this.claiming.length), 1);
        if (!row) return;
        this.rows.delete(row.id);
        this.toldTwice = true;
        return this.backlog.remove(row);
      }
      case "startLoading":
        this.loads.push(
          ...this.backlog.startLoading(this.claiming.map(({ id }) => id)).map((of) => ({ of })),
        );
        return;
      case "read": {
        const load = this.loads[action.nth % Math.max(1, this.loads.length)];
        if (load) load.rows ??= this.of(load.of).slice(0, this.readLimit);
        return;
      }
      case "loaded": {
        const ready = this.loads.filter((load) => load.rows);
        const load = ready[action.nth % Math.max(1, ready.length)];
        if (!load) return;
        this.loads = this.loads.filter((one) => one !== load);
        if (action.lost) return this.backlog.notLoaded(load.of);
        return this.backlog.loaded(load.of, load.rows!, this.readLimit);
      }
    }
  }

  /** Whether it was a caller's, who then leaves. */
  private served(taken: RequestRecord): boolean {
    const at = this.arrived.findIndex(({ record }) => record === taken);
    if (at >= 0) this.arrived.splice(at, 1)[0]!.leave();
    return at >= 0;
  }

  /** Lets everything under way come to its end, then takes all that is left, in turns of one group each. */
  drain(): string[] {
    const taken: string[] = [];
    for (let quiet = 0; quiet < 3; ) {
      const before = taken.length;
      this.do({ kind: "startLoading" }, 0);
      while (this.loads.length > 0) {
        this.do({ kind: "read", nth: 0 }, 0);
        this.do({ kind: "loaded", nth: 0, lost: false }, 0);
      }
      while (this.claiming.length > 0) this.do({ kind: "claimed", nth: 0, how: "started" }, 0);
      for (let one = takeNext(this.backlog, 1e9); one; one = takeNext(this.backlog, 1e9)) {
        taken.push(one.id);
        if (!this.served(one)) this.rows.delete(one.id);
      }
      quiet = taken.length === before ? quiet + 1 : 0;
    }
    return taken;
  }
}

describe("whatever happens between a backlog and its store,", () => {
  const history = fc.array(anyAction, { maxLength: 400, size: "max" });
  const before = fc.array(
    fc.record({
      dueAt: fc.nat(40),
      project: fc.constantFrom(...projects),
      priority: fc.constantFrom<Priority>("default", "batch"),
    }),
    { maxLength: 300, size: "max" },
  );
  // A window as small as this shows in few rows what a large one hides in many.
  const readLimit = fc.constantFrom(1, 2, 5, limit);

  it("counts who waits, claims nobody twice, loses nobody, and keeps the order within a group", () => {
    fc.assert(
      fc.property(before, history, readLimit, (rows, actions, most) => {
        const model = new Model(
          rows.map((row) => waiting(row)),
          most,
        );
        const now = 20;
        for (const action of actions) {
          model.do(action, now);
          if (!model.toldTwice)
            expect(model.backlog.size, "the count").toBeGreaterThanOrEqual(model.waitingCount);
        }
        expect(model.backlog.size, "the count").toBeLessThanOrEqual(model.waitingCount + 4);
        for (const load of [...model.loads]) load.rows ??= model.of(load.of).slice(0, most);
        while (model.loads.length > 0) model.do({ kind: "loaded", nth: 0, lost: false }, now);
        while (model.claiming.length > 0) model.do({ kind: "claimed", nth: 0, how: "started" }, now);
        const left = [...model.rows.values(), ...model.arrived.map(({ record }) => record)];
        const taken = model.drain();
        expect([...taken].sort()).toEqual(left.map(({ id }) => id).sort());
        expect([model.backlog.isEmpty, model.backlog.newcomerCount > 0]).toEqual([true, false]);
        for (const project of projects) {
          for (const priority of ["default", "batch"]) {
            const inGroup = (row: RequestRecord) => row.project === project && row.priority === priority;
            const expected = left
              .filter(inGroup)
              .sort(byTurn)
              .map(({ id }) => id);
            expect(taken.filter((id) => expected.includes(id))).toEqual(expected);
          }
        }
      }),
      { numRuns: 100 },
    );
  });
});
