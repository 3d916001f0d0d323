/** How much may be sent in a minute, and when the next may go. Pure: `now` is given, epoch ms. */

/** What may be sent in any minute; undefined = no limit. */
export interface PaceLimits {
  requestsPerMinute?: number;
  tokensPerMinute?: number;
}

const bucketMs = 250;
/** A minute, and 10 seconds, and the bucket under way: what lies in a bucket is as old as the bucket's end. */
const minuteBuckets = 60_000 / bucketMs + 1;
const burstBuckets = 10_000 / bucketMs + 1;
const smallestBurst = 10;
/** More turns than this are not played through: there are hardly ever more than a few in a minute. */
const longestPlay = 64;
/** Sums of so many amounts up to this one are exact. */
const largestAmount = 1e12;

/**
 * A limit per minute that no window of 60 s exceeds, wherever it begins; and no 10 s see more than a quarter of it (at
 * least 10), so that a minute is not spent at once. An amount that is larger than a limit fits where nothing else is
 * in that window.
 *
 * Calls come in the order of time: an instant before the last one means that the clock was set back. What was taken
 * in the future is then as of that instant, so that it counts for too long rather than not long enough.
 */
export class Pace {
  /** Requests or tokens. */
  readonly perMinute: number;
  private readonly perBurst: number;
  /** What was taken in the last minute, as a ring. */
  private readonly buckets = new Float64Array(minuteBuckets);
  /** The newest bucket: which one since the epoch, and where it is in the ring. */
  private head = 0;
  private headSlot = 0;
  private inMinute = 0;
  private inBurst = 0;
  /** What was taken in buckets up to this one may lie in an earlier one, since the clock was set back. */
  private movedUntil = -1;

  constructor(perMinute: number) {
    this.perMinute = perMinute;
    this.perBurst = Math.max(smallestBurst, Math.ceil(perMinute / 4));
  }

  /** The instant from which `amount` fits if nothing else is taken; `now` if it does already. Epoch ms. */
  opensAt(amount: number, now: number): number {
    this.turn(now);
    const whole = wholeAmount(amount);
    if (whole === 0) return now;
    const overMinute = excess(this.inMinute, whole, this.perMinute);
    const overBurst = excess(this.inBurst, whole, this.perBurst);
    if (overMinute <= 0 && overBurst <= 0) return now;
    return Math.max(now, this.freedAt(overMinute, minuteBuckets), this.freedAt(overBurst, burstBuckets));
  }

  /** Takes the amount at `now` (epoch ms), whether it fits or not. */
  take(amount: number, now: number): void {
    this.turn(now);
    this.add(0, wholeAmount(amount));
  }

  /** What was `taken` at that instant (epoch ms) was `actual` in truth. Of no effect where it counts no more. */
  settle(at: number, taken: number, actual: number): void {
    const bucket = Math.floor(at / bucketMs);
    const age = Math.max(0, this.head - bucket);
    if (age >= minuteBuckets) return;
    const more = wholeAmount(actual) - wholeAmount(taken);
    const isMoved = bucket > this.head || bucket <= this.movedUntil;
    // To give it back where it may not lie would let out what others have taken.
    if (more < 0 && isMoved) return;
    this.add(age, Math.max(more, -this.takenAt(age)));
  }

  /**
   * When `amount` fits behind `ahead` of it that wait already, if all take what they can as soon as they can: whole
   * minutes, and what is left over played through.
   */
  turnAt(ahead: number, amount: number, now: number): number {
    const minutes = Math.floor(ahead / this.perMinute);
    const copy = new Pace(this.perMinute);
    copy.become(this);
    let left = ahead - minutes * this.perMinute;
    let at = copy.opensAt(amount, now);
    for (let turns = 0; left > 0 && turns < longestPlay; turns++) {
      const free = Math.min(this.perMinute - copy.inMinute, copy.perBurst - copy.inBurst);
      const taken = Math.min(left, Math.max(free, amount));
      copy.take(taken, at);
      left -= taken;
      at = copy.opensAt(amount, at);
    }
    return at + minutes * minuteBuckets * bucketMs;
  }

  private become(other: Pace): void {
    this.buckets.set(other.buckets);
    this.head = other.head;
    this.headSlot = other.headSlot;
    this.inMinute = other.inMinute;
    this.inBurst = other.inBurst;
  }

  /** What counts against the limit at `now` (epoch ms). */
  used(now: number): number {
    this.turn(now);
    return this.inMinute;
  }

  /** Where the bucket is that is so many buckets older than the newest. */
  private slot(age: number): number {
    const slot = this.headSlot - age;
    return slot < 0 ? slot + minuteBuckets : slot;
  }

  private takenAt(age: number): number {
    return this.buckets[this.slot(age)] ?? 0;
  }

  private add(age: number, amount: number): void {
    this.buckets[this.slot(age)] = this.takenAt(age) + amount;
    this.inMinute += amount;
    if (age < burstBuckets) this.inBurst += amount;
  }

  /** Makes the bucket of `now` the newest, and lets go those that count no more. */
  private turn(now: number): void {
    const head = Math.floor(now / bucketMs);
    if (head === this.head) return;
    if (head < this.head) return this.turnBack(head);
    const steps = Math.min(head - this.head, minuteBuckets);
    for (let step = 0; step < steps; step++) {
      this.headSlot = this.slot(minuteBuckets - 1);
      this.inMinute -= this.takenAt(0);
      this.buckets[this.headSlot] = 0;
      this.inBurst -= this.takenAt(burstBuckets);
    }
    this.head = head;
  }

  /** Puts what lies in later buckets into this one. */
  private turnBack(head: number): void {
    const ages = Math.min(this.head - head, minuteBuckets);
    let moved = 0;
    for (let age = 0; age < ages; age++) {
      moved += this.takenAt(age);
      this.buckets[this.slot(age)] = 0;
    }
    // A window later all that was moved has been let go, so that it no longer matters where it lay.
    this.movedUntil = Math.min(this.head, head + minuteBuckets);
    this.headSlot = this.slot(ages % minuteBuckets);
    this.head = head;
    this.buckets[this.headSlot] = this.takenAt(0) + moved;
    this.inBurst = 0;
    for (let age = 0; age < burstBuckets; age++) this.inBurst += this.takenAt(age);
  }

  /** When so much of what was taken in the newest `count` buckets counts there no more. */
  private freedAt(amount: number, count: number): number {
    let age = count;
    for (let freed = 0; freed < amount; ) freed += this.takenAt(--age);
    return (this.head - age + count) * bucketMs;
  }
}

/** How much of what is used has to go before the amount fits. */
const excess = (used: number, amount: number, limit: number): number => Math.min(used, used + amount - limit);

/** Amounts are whole, so that what is added and taken away again leaves nothing behind. */
const wholeAmount = (amount: number): number => (amount > 0 ? Math.min(Math.ceil(amount), largestAmount) : 0);
