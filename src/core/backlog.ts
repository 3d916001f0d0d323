/**
 * The waiting requests of one lane, as far as memory needs to know them: per priority and project a count
 * and a small window of heads in the order of (dueAt, id). The rows themselves stay in the store.
 */

import { newTurns, nextGroup, type Turns } from "./fairness.ts";
import type { ReadyGroup } from "./ports.ts";
import type { RequestRecord } from "./request.ts";

/** How many heads of a group are held at most. */
export const windowSize = 512;
/** A window is read again when fewer are left, so that nobody waits for the read. */
const lowWater = windowSize / 4;

interface Group {
  lane: string;
  priority: RequestRecord["priority"];
  project: string;
  count: number;
  heads: RequestRecord[];
  /** What changed while a window was being read, to be applied to what the read brings. */
  loading?: { added: RequestRecord[]; removed: Set<string> };
}

const keyOf = (of: { priority: string; project: string }): string => `${of.priority} ${of.project}`;
const before = (a: RequestRecord, b: RequestRecord): boolean =>
  a.dueAt < b.dueAt || (a.dueAt === b.dueAt && a.id < b.id);

export class Backlog {
  readonly lane: string;
  private readonly groups = new Map<string, Group>();
  private readonly turns: Turns = newTurns();

  constructor(lane: string) {
    this.lane = lane;
  }

  /** Whether anybody waits, due or not. */
  get isEmpty(): boolean {
    return this.groups.size === 0;
  }

  /** How many requests wait, due or not. */
  get size(): number {
    let sum = 0;
    for (const group of this.groups.values()) sum += group.count;
    return sum;
  }

  /** Sets the count of a group whose rows the store knows, as at start. */
  know(group: ReadyGroup): void {
    this.groupOf(group).count = group.count;
  }

  add(record: RequestRecord): void {
    const group = this.groupOf(record);
    const whole = group.heads.length === group.count;
    group.count++;
    group.loading?.added.push(record);
    group.loading?.removed.delete(record.id);
    const last = group.heads.at(-1);
    if (whole || (last && before(record, last))) insert(group.heads, record);
    if (group.heads.length > windowSize) group.heads.pop();
  }

  /** A waiting request was cancelled, expired or moved. */
  remove(record: RequestRecord): void {
    const group = this.groups.get(keyOf(record));
    if (!group) return;
    group.loading?.removed.add(record.id);
    const others = group.heads.filter(({ id }) => id !== record.id);
    const isHead = others.length < group.heads.length;
    // It is one of those that are not known here, or it had been taken and is told twice. So one of them stays
    // counted: a count too high is set right by the next read, one too low would hide somebody who waits.
    if (isHead) group.count--;
    else if (group.count > others.length + 1) group.count--;
    group.heads = others;
    this.forgetEmpty(group);
  }

  /** Takes the request whose turn it is out of the backlog, if one is due. */
  take(now: number): RequestRecord | undefined {
    const due = [...this.groups.values()].filter(({ heads }) => heads[0] && heads[0].dueAt <= now);
    const group = nextGroup(due, this.turns);
    const record = group?.heads.shift();
    if (!group || !record) return undefined;
    group.count--;
    group.loading?.removed.add(record.id);
    this.forgetEmpty(group);
    return record;
  }

  /** The groups of a priority that have anybody waiting. */
  groupsOf(priority: RequestRecord["priority"]): Omit<ReadyGroup, "count">[] {
    return [...this.groups.values()].filter((group) => group.priority === priority && group.count > 0);
  }

  /** When the next known head is due; undefined when none is known. */
  nextDueAt(): number | undefined {
    let next: number | undefined;
    for (const { heads } of this.groups.values()) {
      const dueAt = heads[0]?.dueAt;
      if (dueAt !== undefined && (next === undefined || dueAt < next)) next = dueAt;
    }
    return next;
  }

  /**
   * Groups with waiting requests of which few are known: their windows have to be read. Marks them as
   * being read. Requests in `claiming` have left the backlog, though the store may not know it yet.
   */
  startLoading(claiming: Iterable<string>): Omit<ReadyGroup, "count">[] {
    const hungry = [...this.groups.values()].filter((group) => {
      return group.heads.length < Math.min(lowWater, group.count) && !group.loading;
    });
    for (const group of hungry) {
      group.loading = { added: [], removed: new Set(claiming) };
    }
    return hungry.map(({ lane, priority, project }) => ({ lane, priority, project }));
  }

  /** Hands in a window that was read. `limit` is how many were asked for: fewer rows are all there are. */
  loaded(
    of: { priority: RequestRecord["priority"]; project: string },
    rows: RequestRecord[],
    limit: number,
  ): void {
    const group = this.groups.get(keyOf(of));
    if (!group?.loading) return;
    const { added, removed } = group.loading;
    group.loading = undefined;
    const heads: RequestRecord[] = [];
    const seen = new Set(removed);
    const last = rows.length < limit ? undefined : rows.at(-1);
    for (const record of [...added, ...rows]) {
      const beyond = last && before(last, record);
      if (seen.has(record.id) || beyond) continue;
      seen.add(record.id);
      insert(heads, record);
    }
    group.heads = heads.slice(0, windowSize);
    group.count = last ? Math.max(group.count, heads.length) : heads.length;
    this.forgetEmpty(group);
  }

  /** A window could not be read: it will be asked for again. */
  notLoaded(of: { priority: RequestRecord["priority"]; project: string }): void {
    const group = this.groups.get(keyOf(of));
    if (group) group.loading = undefined;
  }

  private groupOf(of: { priority: RequestRecord["priority"]; project: string }): Group {
    const key = keyOf(of);
    let group = this.groups.get(key);
    if (!group) {
      group = { lane: this.lane, priority: of.priority, project: of.project, count: 0, heads: [] };
      this.groups.set(key, group);
    }
    return group;
  }

  private forgetEmpty(group: Group): void {
    if (group.count === 0 && !group.loading) this.groups.delete(keyOf(group));
  }
}

/** Inserts in order; mostly at the end. */
function insert(heads: RequestRecord[], record: RequestRecord): void {
  let at = heads.length;
  while (at > 0 && before(record, heads[at - 1]!)) at--;
  heads.splice(at, 0, record);
}
