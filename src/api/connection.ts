/** One connection of a caller: the calls on it that have no whole reply yet, and how it comes to its end. */

import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";

/** The caller closes its half, resets the connection, or it is closed. */
export type Farewell = "end" | "reset" | "close";

/** Listeners are objects in a set, and the socket has one of each kind for all calls: its own are dear. */
export interface FarewellListener {
  farewell(how: Farewell): void;
}

export class Connection {
  readonly socket: Socket;
  /** Calls without a finished reply, in the order in which they came. */
  readonly exchanges = new Set<Exchange>();
  newest: Exchange | undefined;
  /** Epoch ms: a refused caller was told not to ask before. */
  comeBackAt = 0;
  private readonly listeners = new Set<FarewellListener>();

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
    this.exchanges.add(exchange);
    this.newest = exchange;
    outgoing.once("close", () => exchange.end());
    return exchange;
  }

  listen(listener: FarewellListener): void {
    this.listeners.add(listener);
  }

  ignore(listener: FarewellListener): void {
    this.listeners.delete(listener);
  }

  private tell(how: Farewell): void {
    for (const listener of this.listeners) listener.farewell(how);
  }

  private close(hadError: boolean): void {
    this.tell(hadError ? "reset" : "close");
    // Responses are silent where the reply to an earlier call of the connection is still to come.
    for (const exchange of this.exchanges) exchange.end();
  }
}

/** One call and its reply. */
export class Exchange {
  readonly connection: Connection;
  readonly outgoing: ServerResponse;
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
    this.connection.exchanges.delete(this);
    for (const listener of listeners) listener();
  }
}
