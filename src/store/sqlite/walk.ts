/**
 * Requests that several lists have in common, found by going through all lists at once: whichever is ahead says where
 * the others go on. Lists are of row numbers in their order; downwards they are negated, so that every walk goes up.
 */

export interface Walk {
  /** The first of the list that is not below `from`; undefined at its end. No `from` is less than the one before. */
  seek(from: number): number | undefined;
}

const smallest = 8;
const largest = 2048;

/** A list that is read in pieces: larger ones while most of each is used, smaller ones where others leap ahead. */
export class ListWalk implements Walk {
  private readonly read: (from: number, limit: number) => number[];
  private piece: number[] = [];
  private at = 0;
  private size = smallest;
  private used = 0;
  private isLast = false;

  /** @param read the first numbers of the list from one on, in its order */
  constructor(read: (from: number, limit: number) => number[]) {
    this.read = read;
  }

  seek(from: number): number | undefined {
    while (this.at < this.piece.length && this.piece[this.at]! < from) this.at++;
    if (this.at === this.piece.length) {
      if (this.isLast) return undefined;
      this.fill(from);
    }
    this.used++;
    return this.piece[this.at];
  }

  private fill(from: number): void {
    if (this.used * 8 >= this.size) this.size = Math.min(this.size * 2, largest);
    else if (this.piece.length > 0) this.size = Math.max(this.size / 2, smallest);
    this.piece = this.read(from, this.size);
    this.isLast = this.piece.length < this.size;
    this.at = 0;
    this.used = 0;
  }
}

/** What is in any of the lists. */
export class Union implements Walk {
  private readonly walks: Walk[];
  private heads: number[] | undefined;

  constructor(walks: Walk[]) {
    this.walks = walks;
  }

  seek(from: number): number | undefined {
    this.heads ??= this.walks.map(() => Number.NEGATIVE_INFINITY);
    let first = Number.POSITIVE_INFINITY;
    for (let i = 0; i < this.walks.length; i++) {
      if (this.heads[i]! < from) this.heads[i] = this.walks[i]!.seek(from) ?? Number.POSITIVE_INFINITY;
      if (this.heads[i]! < first) first = this.heads[i]!;
    }
    return first === Number.POSITIVE_INFINITY ? undefined : first;
  }
}

/** All numbers of these stretches, which come in the order of the walk. */
export class Stretches implements Walk {
  private readonly stretches: { first: number; last: number }[];
  private at = 0;

  constructor(stretches: { first: number; last: number }[]) {
    this.stretches = stretches;
  }

  seek(from: number): number | undefined {
    while (this.at < this.stretches.length && this.stretches[this.at]!.last < from) this.at++;
    const stretch = this.stretches[this.at];
    return stretch && Math.max(stretch.first, from);
  }
}

/** What is in all of these lists, from a number on. The first of them should be the shortest. */
export function* common(walks: Walk[], from: number): Generator<number> {
  let at = from;
  for (;;) {
    const next = meet(walks, at);
    if (next === undefined) return;
    yield next;
    at = next + 1;
  }
}

function meet(walks: Walk[], from: number): number | undefined {
  let at = from;
  let agreed = 0;
  for (let i = 0; agreed < walks.length; i = (i + 1) % walks.length) {
    const found = walks[i]!.seek(at);
    if (found === undefined) return undefined;
    agreed = found === at ? agreed + 1 : 1;
    at = found;
  }
  return at;
}
