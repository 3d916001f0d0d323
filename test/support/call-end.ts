import type { Abort, CallEnd, Upstream, UpstreamCall, UpstreamEvent } from "../../src/core/ports.ts";

/** The end of a call of either kind. */
export const endOfCall = (upstream: Upstream, call: UpstreamCall, abort: Abort): Promise<CallEnd> =>
  call.stream ? endOf(upstream.stream(call, abort)) : upstream.call(call, abort);

/** The last event. */
export async function endOf(events: AsyncIterable<UpstreamEvent>): Promise<CallEnd> {
  for await (const event of events) if (event.kind === "ended") return event;
  throw new Error("the call has no end");
}
