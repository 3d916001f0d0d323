/**
 * Whose turn is next in a lane: priority first, but so that none starves; within a priority the project that has been
 * served least, in tokens. To ask changes nothing; what is taken is booked.
 */

import type { Priority } from "./request.ts";

/** Of 12 turns with work of every kind waiting, so many go to each. */
export const shares: Record<Priority, number> = { interactive: 8, default: 3, batch: 1 };
const priorities = Object.keys(shares) as Priority[];

/** What a project has been served in a priority. */
export interface Account {
  readonly priority: Priority;
  /** Tokens; counted from the floor, if that is higher. */
  tokens: number;
  /** The number of its last turn; -1 before the first. */
  turn: number;
}

/** A group of requests that wait, and its account. */
interface Waiting {
  account: Account;
}

export class Turns {
  private readonly credits: Record<Priority, number> = { interactive: 0, default: 0, batch: 0 };
  /**
   * The level of the least served of those who waited last: who was idle joins there, so that nobody saves up
   * turns while away. Who was served more than that has still to wait for the others, also if it was away.
   */
  private readonly floors: Record<Priority, number> = { interactive: 0, default: 0, batch: 0 };
  private readonly accounts = new Map<string, Account>();
  private turn = 0;

  account(priority: Priority, project: string): Account {
    const key = `${priority} ${project}`;
    let account = this.accounts.get(key);
    if (!account) {
      account = { priority, tokens: 0, turn: -1 };
      this.accounts.set(key, account);
    }
    return account;
  }

  /** The one of these groups, all of which have work due, whose turn it is. */
  next<G extends Waiting>(due: readonly G[]): G | undefined {
    if (due.length < 2) return due[0];
    const priority = this.richest(due);
    let chosen: G | undefined;
    for (const group of due) {
      if (group.account.priority !== priority) continue;
      if (!chosen || this.isBefore(group.account, chosen.account)) chosen = group;
    }
    return chosen;
  }

  /**
   * Books a turn of one of the groups that had work due when it was chosen; whether it has still. A turn costs a token
   * at least.
   */
  book<G extends Waiting>(served: G, tokens: number, due: readonly G[], isStillDue: boolean): void {
    const { account } = served;
    const { priority } = account;
    if (due.length > 1) this.pay(priority, due);
    account.tokens = this.level(account) + (tokens >= 1 ? tokens : 1);
    account.turn = this.turn++;
    let least = Number.POSITIVE_INFINITY;
    for (const group of due) {
      const waits = group.account.priority === priority && (group !== served || isStillDue);
      if (waits) least = Math.min(least, this.level(group.account));
    }
    // Where nobody waits any more, nobody is owed anything.
    if (least === Number.POSITIVE_INFINITY) least = account.tokens;
    this.floors[priority] = Math.max(this.floors[priority], least);
  }

  /**
   * Smooth weighted round robin (the scheme of nginx's upstream balancer): each priority that waits earns its share,
   * the richest is served and pays the sum.
   */
  private richest(due: readonly Waiting[]): Priority {
    return present(due).reduce((a, b) => (this.credits[b] + shares[b] > this.credits[a] + shares[a] ? b : a));
  }

  private pay(served: Priority, due: readonly Waiting[]): void {
    for (const priority of present(due)) {
      this.credits[priority] += shares[priority];
      this.credits[served] -= shares[priority];
    }
  }

  private level(account: Account): number {
    return Math.max(account.tokens, this.floors[account.priority]);
  }

  /** Among those who were served equally much, who was served longest ago. */
  private isBefore(a: Account, b: Account): boolean {
    const more = this.level(a) - this.level(b);
    return more < 0 || (more === 0 && a.turn < b.turn);
  }
}

const present = (due: readonly Waiting[]): Priority[] =>
  priorities.filter((priority) => due.some(({ account }) => account.priority === priority));
