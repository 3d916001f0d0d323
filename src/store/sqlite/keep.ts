/**
 * better-sqlite3 12, built on Node 24.19 or newer, aborts the process when one of its objects is collected
 * while no JavaScript runs: Node's ObjectWrap then asks for an environment that is not there
 * (WiseLibs/better-sqlite3#1515; version 13 is cured, but crashes on Node 20). So none of ours ever is.
 */

const kept: unknown[] = [];

/** Keeps a database or a statement for the life of the process. For the few that are made once, not for many. */
export function keep<T>(object: T): T {
  kept.push(object);
  return object;
}
