/**
 * How many calls at once a lane bears: additive increase, multiplicative decrease. A value; every function returns
 * the next one. Only what an upstream refuses lowers it: a slow answer says nothing about how many there may be.
 */

export interface Concurrency {
  /** Calls at once. Not whole: of n successes each adds 1/n. */
  limit: number;
  /** Of the last decrease, epoch ms; 0 = none yet. */
  loweredAt: number;
  /** Calls at once when an answer came last. */
  calm: number;
}

const decrease = 0.7;
/** One wave of refusals is one signal, however many calls it hits. */
const waveMs = 1_000;
/** When nothing was refused for so long, the limit grows with each success, as from a fresh start. */
const quietMs = 60_000;

/** Of an upstream that has not answered yet nobody knows what it bears: so many calls go first. */
const firstCalls = 32;

/** Starts with a few calls, and then grows with each answer until the first refusal. */
export function startConcurrency(min: number, max: number): Concurrency {
  const limit = Math.min(max, Math.max(min, firstCalls));
  return { limit, loweredAt: 0, calm: limit };
}

/** After an answer. `inFlight`, with that call: a limit that was not in use has not been shown to hold. */
export function onSuccess(before: Concurrency, inFlight: number, max: number, now: number): Concurrency {
  const { loweredAt } = before;
  const isInUse = inFlight >= Math.floor(before.limit) - 1;
  if (before.limit >= max || !isInUse)
    return before.calm === before.limit ? before : { limit: before.limit, loweredAt, calm: before.limit };
  const isQuiet = now - loweredAt > quietMs;
  const limit = Math.min(max, before.limit + (isQuiet ? 1 : 1 / before.limit));
  return { limit, loweredAt, calm: limit };
}

/** After it has turned out that everything is refused: how many calls there are at once is not what is wrong. */
export const restored = ({ limit, loweredAt, calm }: Concurrency): Concurrency => ({
  limit: Math.max(limit, calm),
  loweredAt,
  calm,
});

/**
 * After a call that was refused because there were too many. `inFlight`, with that call, are too many: so many there
 * must not be again. A new wave of refusals lowers the limit by a factor, too. Instants are epoch ms.
 */
export function onOverload(
  before: Concurrency,
  grantedAt: number,
  now: number,
  min: number,
  inFlight: number,
): Concurrency {
  const clockWasSetBack = now < before.loweredAt;
  const isOld = grantedAt <= before.loweredAt || now - before.loweredAt < waveMs;
  const { limit, calm } = before;
  const least = Math.max(1, min);
  const borne = Math.min(limit, Math.max(least, inFlight - 1));
  if (isOld && !clockWasSetBack) {
    return borne === limit ? before : { limit: borne, loweredAt: before.loweredAt, calm };
  }
  const lowered = Math.max(least, decrease * Math.min(limit, Math.max(1, inFlight)));
  return { limit: Math.min(borne, lowered), loweredAt: now, calm };
}
