/**
 * The waiting requests of one lane, as far as memory needs to know them: per priority and project a count
 * and a small window of heads in the order of (dueAt, id). The rows themselves stay in the store. Callers whose
 * requests are not accepted yet wait among them.
 */

import { type Account, shares, Turns } from "./fairness.ts";
import type { GroupKey, ReadyGroup } from "./ports.ts";
import type { RequestRecord } from "./request.ts";
import { Members, Table } from "./table.ts";

/** A caller whose request is not accepted yet. */
export interface Unaccepted {
  record: RequestRecord;
}

/** How many heads of a group are held at most. */
export const windowSize = 512;
/** A window is read again when fewer are left, so that nobody waits for the read. */
const lowWater = windowSize / 4;

interface Group<N> {
  lane: string;
  priority: RequestRecord["priority"];
  project: string;
  account: Account;
  count: number;
  heads: RequestRecord[];
  /** In the order in which they came; not counted. */
  newcomers: Members<N>;
  /** What changed while a window was being read, to be applied to what the read brings. */
  loading?: { added: RequestRecord[]; removed: Set<string> };
}

const keyOf = (of: { priority: string; project: string }): string => `${of.priority} ${of.project}`;
const before = (a: RequestRecord, b: RequestRecord): boolean =>
  a.dueAt < b.dueAt || (a.dueAt === b.dueAt && a.id < b.id);

export class Backlog<N extends Unaccepted = Unaccepted> {
  readonly lane: string;
  private readonly groups = new Table<string, Group<N>>();
  private readonly turns = new Turns();
  /** The instant for which a turn was asked last. */
  private askedAt = 0;
  private newcomersNow = 0;

  constructor(lane: string) {
    this.lane = lane;
  }

  /** Whether anybody waits, due or not. */
  get isEmpty(): boolean {
    return this.groups.size === 0;
  }

  /** How many requests wait, due or not, of those that are accepted. */
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

  /** How many callers wait whose requests are not accepted yet. */
  get newcomerCount(): number {
    return this.newcomersNow;
  }

  /** How many of a group wait without being accepted. */
  crowd(of: { priority: string; project: string }): number {
    return this.groups.get(keyOf(of))?.newcomers.size ?? 0;
  }

  /** Who waits without being accepted. */
  newcomers(): N[] {
    return [...this.groups.values()].flatMap(({ newcomers }) => [...newcomers]);
  }

  /** A caller waits for its turn without being accepted, until the returned function is called. */
  arrive(newcomer: N): () => void {
    const group = this.groupOf(newcomer.record);
    const member = group.newcomers.add(newcomer);
    this.newcomersNow++;
    return () => {
      if (!group.newcomers.delete(member)) return;
      this.newcomersNow--;
      this.forgetEmpty(group);
    };
  }

  /** Whether somebody of a group that is in the queue has been waiting since before `at` (epoch ms), or may have. */
  hasWaitedSince(of: { priority: string; project: string }, at: number): boolean {
    const group = this.groups.get(keyOf(of));
    if (!group || group.count === 0) return false;
    const [head] = group.heads;
    return head === undefined || head.dueAt < at;
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

  /** The request whose turn it is, if one is due; it stays in the backlog until it is taken. */
  next(now: number): RequestRecord | undefined {
    this.askedAt = now;
    const group = this.turns.next(this.dueGroups(now));
    return group && firstOf(group, now);
  }

  /**
   * Takes what `next` has given out of the backlog; `tokens` are booked on its project. Returned is the caller, where
   * it is not accepted yet.
   */
  take(record: RequestRecord, tokens: number): N | undefined {
    const group = this.groups.get(keyOf(record));
    if (!group) return undefined;
    const due = this.dueGroups(this.askedAt);
    let newcomer: N | undefined;
    if (group.newcomers.oldest?.record === record) {
      newcomer = group.newcomers.shift();
      this.newcomersNow--;
    } else {
      const at = group.heads.indexOf(record);
      if (at < 0) return undefined;
      group.heads.splice(at, 1);
      group.count--;
      group.loading?.removed.add(record.id);
    }
    this.turns.book(group, tokens, due, isDue(group, this.askedAt));
    this.forgetEmpty(group);
    return newcomer;
  }

  /** The groups of a priority that have anybody waiting who is accepted. */
  groupsOf(priority: RequestRecord["priority"]): GroupKey[] {
    return [...this.groups.values()]
      .filter((group) => group.priority === priority && group.count > 0)
      .map(({ lane, project }) => ({ lane, priority, project }));
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

  /** How many of those who wait have their turn before this one, if all cost the same and nobody comes; roughly. */
  ahead(record: RequestRecord): number {
    const own = this.groups.get(keyOf(record));
    if (!own) return 0;
    const at = own.heads.findIndex(({ id }) => id === record.id);
    const place = at < 0 ? Math.max(0, own.count - 1) : at;
    let inPriority = place;
    const others = new Map<RequestRecord["priority"], number>();
    for (const { priority, count } of [...this.groups.values()].filter((group) => group !== own)) {
      if (priority === own.priority) inPriority += Math.min(count, place);
      else others.set(priority, (others.get(priority) ?? 0) + count);
    }
    let ahead = inPriority;
    for (const [priority, count] of others) {
      const turns = Math.floor(((inPriority + 1) * shares[priority]) / shares[own.priority]);
      ahead += Math.min(count, turns);
    }
    return ahead;
  }

  /**
   * Groups with waiting requests of which few are known: their windows have to be read. Marks them as
   * being read. Requests in `claiming` have left the backlog, though the store may not know it yet.
   */
  startLoading(claiming: Iterable<string>): GroupKey[] {
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
    // Where there may be more, one more is counted at least, so that the store is asked again before it is forgotten.
    group.count = last ? Math.max(group.count, heads.length + 1) : heads.length;
    this.forgetEmpty(group);
  }

  /** What is known of the rows holds no more: they are read again. */
  forgetHeads(): void {
    for (const group of this.groups.values()) {
      group.heads = [];
      group.loading = undefined;
    }
  }

  /** A window could not be read: it will be asked for again. */
  notLoaded(of: { priority: RequestRecord["priority"]; project: string }): void {
    const group = this.groups.get(keyOf(of));
    if (group) group.loading = undefined;
  }

  private groupOf(of: { priority: RequestRecord["priority"]; project: string }): Group<N> {
    const key = keyOf(of);
    let group = this.groups.get(key);
    if (!group) {
      const { priority, project } = of;
      const account = this.turns.account(priority, project);
      group = { lane: this.lane, priority, project, account, count: 0, heads: [], newcomers: new Members() };
      this.groups.set(key, group);
    }
    return group;
  }

  /** The groups of which somebody is due. */
  private dueGroups(now: number): Group<N>[] {
    const due: Group<N>[] = [];
    for (const group of this.groups.values()) if (isDue(group, now)) due.push(group);
    return due;
  }

  private forgetEmpty(group: Group<N>): void {
    if (group.count === 0 && group.newcomers.size === 0 && !group.loading) this.groups.delete(keyOf(group));
  }
}

/** Who arrived is due, also where the clock was set since; but not before those who are only known by their number. */
function isDue({ heads: [head], newcomers, count }: Group<Unaccepted>, now: number): boolean {
  if (head && head.dueAt <= now) return true;
  return newcomers.size > 0 && (head !== undefined || count === 0);
}

/** Who comes first of those who are due in a group. */
function firstOf({ heads: [head], newcomers: { oldest } }: Group<Unaccepted>, now: number): RequestRecord {
  const isHead = head && (!oldest || (head.dueAt <= now && before(head, oldest.record)));
  return isHead ? head : oldest!.record;
}

/** Inserts in order; mostly at the end. */
function insert(heads: RequestRecord[], record: RequestRecord): void {
  let at = heads.length;
  while (at > 0 && before(record, heads[at - 1]!)) at--;
  heads.splice(at, 0, record);
}
