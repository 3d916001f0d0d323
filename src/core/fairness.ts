/** Whose turn is next in a lane: priority first, but so that none starves; projects in turn. Pure. */

import type { Priority } from "./request.ts";

/** Of 12 turns with work of every kind waiting, so many go to each. */
const shares: Record<Priority, number> = { interactive: 8, default: 3, batch: 1 };
const priorities = Object.keys(shares) as Priority[];

/** Who has been served: credits of the priorities, and the turn number at which each project was served last. */
export interface Turns {
  credits: Record<Priority, number>;
  served: Map<string, number>;
  turn: number;
}

export const newTurns = (): Turns => ({
  credits: { interactive: 0, default: 0, batch: 0 },
  served: new Map(),
  turn: 0,
});

/**
 * Picks one of the groups that have work due. Priorities share by smooth weighted round robin (the scheme
 * of nginx's upstream balancer): each that waits earns its share, the richest is served and pays the sum.
 * Within a priority the project that was served longest ago goes first.
 */
export function nextGroup<G extends { priority: Priority; project: string }>(
  due: G[],
  turns: Turns,
): G | undefined {
  const [only] = due;
  if (!only || due.length === 1) return only;
  const waiting = priorities.filter((priority) => due.some((group) => group.priority === priority));
  let richest = waiting[0]!;
  let sum = 0;
  for (const priority of waiting) {
    turns.credits[priority] += shares[priority];
    sum += shares[priority];
    if (turns.credits[priority] > turns.credits[richest]) richest = priority;
  }
  turns.credits[richest] -= sum;
  const lastServed = (group: G) => turns.served.get(`${group.priority} ${group.project}`) ?? -1;
  const chosen = due
    .filter((group) => group.priority === richest)
    .reduce((a, b) => (lastServed(b) < lastServed(a) ? b : a));
  turns.served.set(`${chosen.priority} ${chosen.project}`, turns.turn++);
  return chosen;
}
