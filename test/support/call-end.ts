import type {
  Abort,
  CallEnd,
  StreamWish,
  Upstream,
  UpstreamCall,
  UpstreamEvent,
} from "../../src/core/ports.ts";

export type EitherCall = UpstreamCall & { stream?: StreamWish };

/** The end of a call of either kind. */
export const endOfCall = (
  upstream: Upstream,
  { stream, ...call }: EitherCall,
  abort: Abort,
): Promise<CallEnd> => (stream ? endOf(upstream.stream(call, stream, abort)) : upstream.call(call, abort));

/** The last event. */
export async function endOf(events: AsyncIterable<UpstreamEvent>): Promise<CallEnd> {
  for await (const event of events) if (event.kind === "ended") return event;
  throw new Error("the call has no end");
}
