/** What every handler has at hand. */

import type { IncomingMessage, ServerResponse } from "node:http";
import type { Place } from "../core/admission.ts";
import type { HeaderList } from "../core/headers.ts";
import type { Clock, Observer, Upstream } from "../core/ports.ts";
import type { Queue } from "../core/queue.ts";
import type { RouteTable } from "../core/routing.ts";
import type { Exchange } from "./connection.ts";
import type { Deliveries } from "./delivery.ts";
import type { Caller, Guard, HeaderOf } from "./guard.ts";
import type { Defaults } from "./options.ts";
import type { Reply } from "./reply.ts";
import type { Rests } from "./rests.ts";

export interface ApiOptions {
  queue: Queue;
  deliveries: Deliveries;
  rests: Rests;
  upstream: Upstream;
  clock: Clock;
  observer: Observer;
  guard: Guard;
  /** Whether JSON routes insist on a JSON content type, which a web page cannot send to us unasked. */
  jsonOnly: boolean;
  table: RouteTable;
  defaults: Defaults;
  maxBodyBytes: number;
  /** How long the caller of a stream hears nothing at most. */
  heartbeatMs: number;
  passthrough: "inference" | "all" | "off";
  /** Account-wide paths are open to every caller: on loopback, or with a single project. */
  accountPathsOpen: boolean;
}

export interface Call {
  incoming: IncomingMessage;
  outgoing: ServerResponse;
  exchange: Exchange;
  header: HeaderOf;
  caller: Caller;
  /** Holds what is in memory for this call. */
  place: Place;
  /** Below /v1, with the query as the caller sent it. */
  path: string;
  query: URLSearchParams;
  params: Record<string, string>;
}

/** Undefined: the reply has been written, or nobody is there to have it. */
export type Handler = (call: Call, options: ApiOptions) => Promise<Reply | undefined>;

/** The headers of a call in their order; one that occurs more than once stays so. */
export function headersOf({ incoming }: Call): HeaderList {
  const list: HeaderList = [];
  for (let i = 0; i + 1 < incoming.rawHeaders.length; i += 2) {
    list.push([incoming.rawHeaders[i]!.toLowerCase(), incoming.rawHeaders[i + 1]!]);
  }
  return list;
}
