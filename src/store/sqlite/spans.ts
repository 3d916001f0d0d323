/**
 * When the requests of a block were accepted: rows are numbered in the order of acceptance, but clocks are set, so
 * instants follow that order nearly always only. A block may hold fewer requests than it did: its instants stay.
 */

import type { FindStatement } from "./connection.ts";

/** So many numbers share a row. */
const blockSize = 1024;

const extend = `INSERT INTO spans (block, oldest, newest, last) VALUES (?, ?, ?, ?)
  ON CONFLICT (block) DO UPDATE SET oldest = min(oldest, excluded.oldest),
    newest = max(newest, excluded.newest), last = excluded.last`;
const lastSeq = "SELECT last FROM spans ORDER BY block DESC LIMIT 1";

interface Span {
  oldest: number;
  newest: number;
  last: number;
}

/** Numbers from `first` to `last`. `isWhole`: all of them were accepted in the time that was asked for. */
export interface Stretch {
  first: number;
  last: number;
  isWhole: boolean;
}

/** The writer's view: it gives out numbers, none twice, also where the request that had it is erased. */
export class Spans {
  private readonly statement: FindStatement;
  private last: number | undefined;
  private readonly changed = new Map<number, Span>();

  constructor(statement: FindStatement) {
    this.statement = statement;
  }

  /** The number of a new request. @param createdAt epoch ms */
  next(createdAt: number): number {
    this.last ??= (this.statement(lastSeq).pluck().get() as number | undefined) ?? 0;
    const last = ++this.last;
    const block = Math.floor(last / blockSize);
    const span = this.changed.get(block);
    const oldest = Math.min(span?.oldest ?? createdAt, createdAt);
    const newest = Math.max(span?.newest ?? createdAt, createdAt);
    this.changed.set(block, { oldest, newest, last });
    return last;
  }

  /** To be called at the end of a transaction. */
  flush(): void {
    for (const [block, { oldest, newest, last }] of this.changed) {
      this.statement(extend).run(block, oldest, newest, last);
    }
    this.changed.clear();
  }

  /** What a transaction gave out that was rolled back is free again. */
  forget(): void {
    this.last = undefined;
    this.changed.clear();
  }
}

/** Where requests accepted between two instants (epoch ms, both exclusive) can be, in the order of their numbers. */
export function stretches(statement: FindStatement, after = -1, before = Number.MAX_SAFE_INTEGER): Stretch[] {
  const found = statement(
    "SELECT block, oldest, newest FROM spans WHERE newest > ? AND oldest < ? ORDER BY block",
  ).all(after, before) as { block: number; oldest: number; newest: number }[];
  const joined: Stretch[] = [];
  for (const { block, oldest, newest } of found) {
    const first = block * blockSize;
    const last = first + blockSize - 1;
    const isWhole = oldest > after && newest < before;
    const previous = joined.at(-1);
    if (previous && previous.last === first - 1 && previous.isWhole === isWhole) previous.last = last;
    else joined.push({ first, last, isWhole });
  }
  return joined;
}
