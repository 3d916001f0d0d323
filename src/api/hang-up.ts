/** Callers who go away before they have their answer. */

import type { Line } from "../core/line.ts";
import type { Ended } from "../core/ports.ts";
import type { Queue } from "../core/queue.ts";
import type { Call } from "./context.ts";
import { restOfTurn } from "./event-loop.ts";

/**
 * Calls back, at most once, when the caller goes before its reply is written; the returned function stops
 * watching. It is the connection that tells: the response stays silent where the caller left before anybody
 * listened, or where the reply to an earlier call of the same connection is still to come. Whoever closes
 * its half of the connection has gone, too: Node then closes the other half.
 */
export function whenGone({ exchange }: Call, onGone: () => void): () => void {
  const { connection } = exchange;
  const listener = {
    farewell() {
      connection.ignore(listener);
      if (!exchange.isWritten) onGone();
    },
  };
  if (connection.isGone) listener.farewell();
  else connection.listen(listener);
  return () => connection.ignore(listener);
}

/** Waits on a line for as long as the caller stays on theirs. `onWait` is given what ends the wait without an end. */
export async function waitWithCaller(
  call: Call,
  queue: Queue,
  line: Line,
  waitMs: number,
  onGone: () => void = () => {},
  onWait: (stop: () => void) => void = () => {},
): Promise<Ended | undefined> {
  let unwatch = () => {};
  let gone = false;
  const ended = await queue.lines.wait(line, waitMs, (hangUp) => {
    unwatch = whenGone(call, () => {
      gone = true;
      hangUp();
      onGone();
    });
    if (!gone) onWait(hangUp);
  });
  if (ended && !gone) await restOfTurn();
  unwatch();
  return gone ? undefined : ended;
}
