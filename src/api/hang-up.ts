/** Callers who go away before they have their answer. */

import type { Line } from "../core/line.ts";
import type { Ended } from "../core/ports.ts";
import type { Queue } from "../core/queue.ts";
import type { Call } from "./context.ts";

/**
 * Calls back, at most once, when the caller goes before its reply is written; the returned function stops
 * watching. It is the socket that tells: the response stays silent where the caller left before anybody
 * listened, or where the reply to an earlier call of the same connection is still to come.
 */
export function whenGone({ incoming, outgoing }: Call, onGone: () => void): () => void {
  const { socket } = incoming;
  const check = () => {
    if (!outgoing.writableFinished) onGone();
  };
  if (socket.destroyed) check();
  else socket.once("close", check);
  return () => socket.off("close", check);
}

/** Waits on a line for as long as the caller stays on theirs. */
export async function waitWithCaller(
  call: Call,
  queue: Queue,
  line: Line,
  waitMs: number,
  onGone: () => void = () => {},
): Promise<Ended | undefined> {
  let unwatch = () => {};
  const ended = await queue.wait(line, waitMs, (hangUp) => {
    unwatch = whenGone(call, () => {
      hangUp();
      onGone();
    });
  });
  unwatch();
  return ended;
}
