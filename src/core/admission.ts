/** Who is let in: callers at once, bytes in memory, requests that wait. Counters and no more. */

import { AppError } from "./errors.ts";
import type { Clock, Random } from "./ports.ts";
import { Members } from "./table.ts";

export interface Limits {
  /** Requests that wait to be called. */
  maxQueued: number;
  /** Callers at once. */
  maxHeld: number;
  /** Bodies and answers that callers and calls under way keep in memory. */
  maxBodyMemoryBytes: number;
}

/** How many were let in and how many were refused of late; both halve every `halfLifeMs`. */
export interface Pressure {
  at: number;
  admitted: number;
  refused: number;
}

const halfLifeMs = 5_000;
const shortestMs = 1_000;
/** Where ten times as many ask, and few a second are let in, settles at a refusal for every two or three of them. */
const dampening = 4;
/** So many refusals a second add another `shortestMs`: each takes CPU that would serve somebody, see bench/README. */
const affordablePerSecond = 100;
/** With its jitter of up to a half no refusal asks for more than the 60 s that SDKs obey. */
const longestMs = 40_000;

export const noPressure = (now: number): Pressure => ({ at: now, admitted: 0, refused: 0 });

export function felt(pressure: Pressure, now: number, was: "admitted" | "refused"): Pressure {
  const left = 0.5 ** (Math.max(0, now - pressure.at) / halfLifeMs);
  const { admitted, refused } = pressure;
  const faded = { at: now, admitted: admitted * left, refused: refused * left };
  faded[was]++;
  return faded;
}

/**
 * When a refused caller should come back, in ms: the later, the more are refused, in a second and for each that is
 * let in; spread by half of it to both sides, so that those who were refused together do not return together.
 */
export function comeBackMs({ admitted, refused }: Pressure, luck: number): number {
  const perSecond = (refused * Math.LN2 * 1000) / halfLifeMs;
  const waits = 1 + (dampening * refused) / Math.max(dampening, admitted) + perSecond / affordablePerSecond;
  return Math.round(Math.min(longestMs, shortestMs * waits) * (0.5 + luck));
}

export class Admission {
  private readonly limits: Limits;
  private readonly clock: Clock;
  private readonly random: Random;
  private pressure: Record<"overloaded" | "queue_full", Pressure>;
  private heldNow = 0;
  private bytesNow = 0;
  private readonly receiving = new Members<(refusal: AppError) => void>();

  constructor(limits: Limits, { clock, random }: { clock: Clock; random: Random }) {
    this.limits = limits;
    this.clock = clock;
    this.random = random;
    const none = noPressure(clock.now());
    this.pressure = { overloaded: none, queue_full: none };
  }

  /** Callers at once. */
  get held(): number {
    return this.heldNow;
  }

  /** Bytes in memory. */
  get bytes(): number {
    return this.bytesNow;
  }

  /**
   * A place for one caller, to be left when it has its reply. `always` is for those who do not stay.
   * @throws AppError `overloaded`
   */
  enter(always = false): Place {
    if (this.heldNow >= this.limits.maxHeld && !always) {
      throw this.refuse("overloaded", "Too many callers are waiting here. Try again later.");
    }
    if (!always) this.feel("overloaded", "admitted");
    this.heldNow++;
    return new Place(this, () => this.heldNow--);
  }

  /** Why a request may not be added to `queued` ones, or undefined. */
  queueRefusal(queued: number): AppError | undefined {
    if (queued >= this.limits.maxQueued) {
      return this.refuse("queue_full", "Too many requests are waiting to be called. Try again later.");
    }
    this.feel("queue_full", "admitted");
    return undefined;
  }

  /** Why `bytes` more may not come into memory, or undefined. */
  memoryRefusal(bytes: number): AppError | undefined {
    if (this.bytesNow + bytes <= this.limits.maxBodyMemoryBytes) return undefined;
    return this.refuse("overloaded", "Too many bytes of requests are in memory. Try again later.");
  }

  /** Counts bytes that are in memory anyhow; negative where they are given back. */
  count(bytes: number): void {
    this.bytesNow += bytes;
  }

  /** Calls `refuse` for a body that is being received when no more bodies are wanted. */
  whileReceiving(refuse: (refusal: AppError) => void): () => void {
    const member = this.receiving.add(refuse);
    return () => this.receiving.delete(member);
  }

  /** Refuses every caller whose body is still being received. */
  refuseUploads(refusal: () => AppError): void {
    for (const refuse of this.receiving) refuse(refusal());
  }

  private refuse(code: "overloaded" | "queue_full", message: string): AppError {
    this.feel(code, "refused");
    return new AppError(code, message, {
      retryAfterMs: comeBackMs(this.pressure[code], this.random.next()),
    });
  }

  private feel(code: "overloaded" | "queue_full", was: "admitted" | "refused"): void {
    this.pressure[code] = felt(this.pressure[code], this.clock.now(), was);
  }
}

/** One caller, with the bytes that are in memory for its sake. After `leave` nothing counts any more. */
export class Place {
  private readonly admission: Admission;
  private readonly onLeave: () => void;
  private bytes = 0;
  private hasLeft = false;

  constructor(admission: Admission, onLeave: () => void) {
    this.admission = admission;
    this.onLeave = onLeave;
  }

  /** Counts bytes that have come, or says why they may not stay. */
  take(bytes: number): AppError | undefined {
    const refusal = this.hasLeft ? undefined : this.admission.memoryRefusal(bytes);
    if (!refusal) this.keep(bytes);
    return refusal;
  }

  /** Counts bytes that cannot be refused. */
  keep(bytes: number): void {
    if (this.hasLeft) return;
    this.bytes += bytes;
    this.admission.count(bytes);
  }

  /** Whether so many bytes could be taken now: what does not fit is refused before it comes. */
  refusalOf(bytes: number): AppError | undefined {
    return this.admission.memoryRefusal(bytes);
  }

  /** Refuses the body that is being received here when no more bodies are wanted. The returned function ends that. */
  receive(refuse: (refusal: AppError) => void): () => void {
    return this.admission.whileReceiving(refuse);
  }

  /** Gives all its bytes back. */
  drop(): void {
    this.admission.count(-this.bytes);
    this.bytes = 0;
  }

  leave(): void {
    if (this.hasLeft) return;
    this.hasLeft = true;
    this.drop();
    this.onLeave();
  }
}
