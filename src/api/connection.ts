/** One connection of a caller: the calls on it that have no whole reply yet, and how it comes to its end. */

import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { GroupKey } from "../core/ports.ts";
import type { RequestRecord } from "../core/request.ts";

/** The caller closes its half, resets the connection, or it is closed. */
export type Farewell = "end" | "reset" | "close";

/** Listeners are objects, and the socket has one of each kind for all calls: its own are dear. */
export interface FarewellListener {
  farewell(how: Farewell): void;
}

function without<T>(list: T[], one: T): void {
  const at = list.indexOf(one);
  if (at >= 0) list.splice(at, 1);
}

export class Connection {
  readonly socket: Socket;
  /** Calls without a finished reply, in the order in which they came. */
  readonly exchanges: Exchange[] = [];
  newest: Exchange | undefined;
  /** For which turns its last call waited, if it did. */
  turns: GroupKey | undefined;
  /** Epoch ms: a refused caller was told not to ask before. */
  comeBackAt = 0;
  /** A set would keep all that were ever in it until garbage is collected thoroughly, see core/table.ts. */
  private readonly listeners: FarewellListener[] = [];

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("end", () => this.tell("end"));
    // A reset is an `error` before it is a `close`, and a retry that came right behind it may lie in between.
    socket.on("error", () => this.tell("reset"));
    socket.on("close", (hadError) => this.close(hadError));
  }

  /** The connection is closed, or the caller has closed its half of it. */
  get isGone(): boolean {
    return this.socket.destroyed || this.socket.readableEnded;
  }

  begin(outgoing: ServerResponse): Exchange {
    const exchange = new Exchange(this, outgoing);
    this.exchanges.push(exchange);
    this.newest = exchange;
    outgoing.once("close", () => exchange.end());
    return exchange;
  }

  listen(listener: FarewellListener): void {
    this.listeners.push(listener);
  }

  ignore(listener: FarewellListener): void {
    without(this.listeners, listener);
  }

  private tell(how: Farewell): void {
    // One may end what another listens for.
    for (const listener of [...this.listeners]) if (this.listeners.includes(listener)) listener.farewell(how);
  }

  private close(hadError: boolean): void {
    this.tell(hadError ? "reset" : "close");
    // Responses are silent where the reply to an earlier call of the connection is still to come.
    for (const exchange of [...this.exchanges]) exchange.end();
  }
}

/** One call and its reply. */
export class Exchange {
  readonly connection: Connection;
  readonly outgoing: ServerResponse;
  /** The request of its own that the caller waits for. */
  served: RequestRecord | undefined;
  private listeners: (() => void)[] | undefined = [];

  constructor(connection: Connection, outgoing: ServerResponse) {
    this.connection = connection;
    this.outgoing = outgoing;
  }

  /** Whether the whole reply was handed to the system. */
  get isWritten(): boolean {
    return this.outgoing.writableFinished;
  }

  /** Calls back, once, when the reply is written or never will be. */
  whenOver(listener: () => void): void {
    if (this.listeners) this.listeners.push(listener);
    else listener();
  }

  end(): void {
    const { listeners } = this;
    if (!listeners) return;
    this.listeners = undefined;
    const { connection } = this;
    without(connection.exchanges, this);
    // Else a connection would keep its last call for as long as nothing is asked.
    if (connection.newest === this) connection.newest = undefined;
    for (const listener of listeners) listener();
  }
}
