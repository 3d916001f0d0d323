/** The real clock, the real randomness, the machine. The only place with Date.now, timers and random numbers. */

import { randomInt } from "node:crypto";
import { availableParallelism } from "node:os";
import { setFlagsFromString } from "node:v8";
import { customAlphabet } from "nanoid";
import type { Clock, Random } from "./core/ports.ts";

/** Node keeps timers of one length in one list; rounding long ones up makes nearly all of them share a few lists. */
const coarseMs = 100;
const maxTimerMs = 2 ** 31 - 1;

export const systemClock: Clock = {
  now: () => Date.now(),
  ticks: () => performance.now(),
  timer(delayMs, run) {
    const rounded = delayMs >= 1000 ? Math.ceil(delayMs / coarseMs) * coarseMs : Math.max(0, delayMs);
    const timer = setTimeout(run, Math.min(rounded, maxTimerMs));
    return () => clearTimeout(timer);
  },
};

/** Crockford's base 32, in lower case: sorts as its numbers do. */
const digits = "0123456789abcdefghjkmnpqrstvwxyz";
const ticksPerMs = 32;
const tail = customAlphabet(digits, 16);
let lastTick = 0;

/** `req_`, ten digits of time (1/32 ms, so ids of one process never tie), 80 random bits. */
function requestId(): string {
  lastTick = Math.max(Date.now() * ticksPerMs, lastTick + 1);
  let left = lastTick;
  let time = "";
  for (let i = 0; i < 10; i++) {
    time = digits[left % 32] + time;
    left = Math.floor(left / 32);
  }
  return `req_${time}${tail()}`;
}

export const systemRandom: Random = {
  next: () => randomInt(2 ** 32) / 2 ** 32,
  id: requestId,
};

/** Collects garbage as suits a process that is busy for long, and beside others. */
export function tuneGarbageCollection(): void {
  // V8 does not wait until the room for new objects is full, in case nothing else is to be done; there always is.
  setFlagsFromString("--no-minor-gc-task");
  // What `npm start` gives this thread would be every other thread's, too, whatever that one is limited to.
  setFlagsFromString("--max-semi-space-size=0");
  // What is made while callers connect lives long; V8 would make the like of it among what is old from then on, although
  // each later call leaves it behind at once, and it keeps what it points to. Which kinds differs by process: every
  // second one or so had up to four times as many thorough collections, a tenth more CPU, and 20 MB more.
  setFlagsFromString("--no-allocation-site-pretenuring");
  // On two cores, threads that help to collect take more from the other programs than they give this one.
  if (availableParallelism() <= 2) setFlagsFromString("--no-parallel-scavenge");
}
