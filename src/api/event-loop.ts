/** To wait for what the event loop has at hand: it reads what has arrived once in every turn. */

import { scheduler } from "node:timers/promises";

let turn: Promise<void> | undefined;

/**
 * Resolves when the events that have arrived together are dealt with. After a stall the answer and the caller's
 * hang-up are among them in any order; who hung up before the answer was written must not count as answered.
 */
export function restOfTurn(): Promise<void> {
  turn ??= scheduler.yield().then(() => {
    turn = undefined;
  });
  return turn;
}

/** Resolves when what has arrived by now has been read, wherever in its turn the loop is. */
export async function arrivals(): Promise<void> {
  await scheduler.yield();
  await scheduler.yield();
}
