/**
 * Callers who wait for their turn before their request is accepted: nothing is promised and nothing sent before. It is
 * then accepted as started, which saves the way through the queue: a third of the work, when there is too much of it.
 */

import type { Lane } from "./lane.ts";
import type { Lanes } from "./lanes.ts";
import type { RequestRecord } from "./request.ts";

/** How long one who waits for the answer anyhow waits for its turn. */
const heldPatienceMs = 1000;
/**
 * Who only wants to know that its request is accepted waits for a slot, too, where slots come so quickly that it is
 * hardly told later: its request is spared the way through the queue, and once a queue is there it grows, because
 * accepting takes the CPU from those who could empty it.
 */
const briefPatienceMs = 100;
/** Where answers are further apart, a producer who hands in one request after the other would be held up. */
const quickGapMs = 2;
/** Where as many wait already, nobody does so: they must not be the crowd for which others rest. */
const mostBrief = 64;

/**
 * How long a newcomer may wait for its turn, in ms. Undefined where more than others is in its way, or its turn does not
 * seem to come within that time.
 *
 * @param hold the caller waits for its answer anyhow; else it wants to be told at once
 */
export function patienceMs(
  lanes: Lanes,
  lane: Lane,
  { record, hold }: { record: RequestRecord; hold: boolean },
  now: number,
): number | undefined {
  const isQuick = hold ? isQueueQuick(lane, record, now) : areAnswersQuick(lanes, lane, now);
  if (!isQuick || lanes.openingOf(lane, now).opensAt > now) return undefined;
  const isHeldByOthers = lanes.isBusy(lane) || lane.backlog.next(now) !== undefined;
  if (!isHeldByOthers) return undefined;
  return hold ? heldPatienceMs : briefPatienceMs;
}

/**
 * Where even the queue moves within a caller's patience, newcomers need not go through it: else the first one in there
 * would send all who come after it the same way, for as long as there are more of them than capacity.
 */
const isQueueQuick = ({ backlog }: Lane, record: RequestRecord, now: number): boolean =>
  !backlog.hasWaitedSince(record, now - heldPatienceMs);

/** For one who is to be told at once its turn is reckoned by how quickly answers come. */
function areAnswersQuick(lanes: Lanes, lane: Lane, now: number): boolean {
  const { newcomerCount, size } = lane.backlog;
  const gapMs = lanes.answerGapMs(lane, now);
  if (gapMs > quickGapMs || newcomerCount >= mostBrief) return false;
  return (newcomerCount + size + 1) * gapMs <= briefPatienceMs;
}
