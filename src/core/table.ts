/**
 * Maps and sets for what comes and goes with every request. A `Map` or `Set` in which as much is deleted as is added
 * is copied into a new table again and again, and V8 lets the old table lead to the new one. As soon as one of them
 * has grown old, minor collections of garbage take all that follow it for alive, with everything that was in them
 * when they were left, until the next major one: all requests would grow old although each lives for milliseconds.
 * (With 128 objects of 10 kB at a time in a `Map`, 200,000 of them: 80 to 140 major collections instead of 6, and three to
 * five times the CPU, on Node 20, 22 and 24.) Here a `Map` has only numbers, and keys that are small.
 */

export class Table<K extends string | number, V> {
  private readonly places = new Map<K, number>();
  private readonly content: (V | undefined)[] = [];
  private readonly free: number[] = [];

  get size(): number {
    return this.places.size;
  }

  has(key: K): boolean {
    return this.places.has(key);
  }

  get(key: K): V | undefined {
    const place = this.places.get(key);
    return place === undefined ? undefined : this.content[place];
  }

  set(key: K, value: V): void {
    let place = this.places.get(key);
    if (place === undefined) {
      place = this.free.pop() ?? this.content.length;
      this.places.set(key, place);
    }
    this.content[place] = value;
  }

  /** Whether it was there. */
  delete(key: K): boolean {
    const place = this.places.get(key);
    if (place === undefined) return false;
    this.places.delete(key);
    this.content[place] = undefined;
    this.free.push(place);
    return true;
  }

  clear(): void {
    for (const key of [...this.places.keys()]) this.delete(key);
  }

  /** In the order in which they came; what comes and goes meanwhile does no harm. */
  *values(): IterableIterator<V> {
    for (const place of this.places.values()) yield this.content[place]!;
  }
}

/** One of `Members`. */
export interface Member<T> {
  readonly value: T;
  before?: Member<T>;
  after?: Member<T>;
}

/** A set of which each member is taken out by what it got when it came in. */
export class Members<T> {
  private first: Member<T> | undefined;
  private last: Member<T> | undefined;
  private count = 0;

  get size(): number {
    return this.count;
  }

  add(value: T): Member<T> {
    const member: Member<T> = { value, before: this.last, after: undefined };
    if (this.last) this.last.after = member;
    else this.first = member;
    this.last = member;
    this.count++;
    return member;
  }

  /** Whether it was in here still. */
  delete(member: Member<T>): boolean {
    const { before, after } = member;
    if (!before && this.first !== member) return false;
    if (before) before.after = after;
    else this.first = after;
    if (after) after.before = before;
    else this.last = before;
    // What has left leads nowhere, see above.
    member.before = undefined;
    member.after = undefined;
    this.count--;
    return true;
  }

  /** Takes out who came first. */
  shift(): T | undefined {
    const { first } = this;
    if (first) this.delete(first);
    return first?.value;
  }

  /** Those of this moment, in the order in which they came. */
  [Symbol.iterator](): IterableIterator<T> {
    const values: T[] = [];
    for (let member = this.first; member; member = member.after) values.push(member.value);
    return values.values();
  }

  /** Who came first of those who are still there. */
  get oldest(): T | undefined {
    return this.first?.value;
  }
}
