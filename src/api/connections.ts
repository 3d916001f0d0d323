/** The open connections: which call on each is the newest, and how they are closed without cutting anybody off. */

import type { Server, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { Clock } from "../core/ports.ts";
import { Members } from "../core/table.ts";
import { Connection, type Exchange } from "./connection.ts";
import type { Rests } from "./rests.ts";

/** How long the other side has to close its half, so that what it is just sending meets no reset. */
const lingerMs = 1000;
/** A refusal is kept back no longer than this. */
const longestPatienceMs = 5000;

export class Connections {
  private readonly clock: Clock;
  private readonly rests: Rests;
  private readonly stopping: () => boolean;
  private readonly bySocket = new Map<Socket, Connection>();
  private readonly keptBack = new Members<() => void>();
  private quiet = false;
  private closing = false;
  private onLastClosed = () => {};

  constructor(server: Server, clock: Clock, rests: Rests, stopping: () => boolean) {
    this.clock = clock;
    this.rests = rests;
    this.stopping = stopping;
    server.on("connection", (socket) => {
      this.bySocket.set(socket, new Connection(socket));
      socket.once("close", () => {
        this.bySocket.delete(socket);
        if (this.bySocket.size === 0) this.onLastClosed();
      });
    });
  }

  /** A new call on a connection. */
  asked(socket: Socket, outgoing: ServerResponse): Exchange {
    const connection = this.bySocket.get(socket) ?? new Connection(socket);
    const exchange = connection.begin(outgoing);
    exchange.whenOver(() => {
      if (this.closing && connection.exchanges.length === 0) this.leave(socket);
      else this.rests.after(exchange);
    });
    return exchange;
  }

  /**
   * Resolves when a refusal may be sent: at once, but where the connection asks again before the time that it was
   * told, only then. So callers who do not wait cost no more than those who do.
   */
  async mayRefuse({ connection }: Exchange, retryAfterMs: number): Promise<void> {
    if (this.quiet) return this.keepBack();
    if (this.stopping()) return;
    const now = this.clock.ticks();
    const patienceMs = Math.min(longestPatienceMs, connection.comeBackAt - now);
    connection.comeBackAt = now + Math.max(0, patienceMs) + retryAfterMs;
    if (patienceMs > 0) await this.keepBack(patienceMs);
  }

  /**
   * Keeps all refusals back until `speak`: whoever waits for one opens no new connection, so that the system's
   * queue of new connections is empty when listening ends. What is in it then would be reset.
   */
  beQuiet(): void {
    this.quiet = true;
  }

  speak(): void {
    this.quiet = false;
    for (const release of this.keptBack) release();
  }

  /** Closes every connection as soon as it owes no reply. Resolves when all who listen to their ends were told. */
  async closeIdle(): Promise<void> {
    this.closing = true;
    this.speak();
    for (const [socket, { exchanges }] of this.bySocket) if (exchanges.length === 0) this.leave(socket);
    if (this.bySocket.size === 0) return;
    await new Promise<void>((resolve) => {
      this.onLastClosed = resolve;
    });
  }

  /** Until `speak`, and no longer than `ms` where that is given. */
  private keepBack(ms?: number): Promise<void> {
    return new Promise((resolve) => {
      const release = () => {
        cancelTimer?.();
        this.keptBack.delete(member);
        resolve();
      };
      const cancelTimer = ms === undefined ? undefined : this.clock.timer(ms, release);
      const member = this.keptBack.add(release);
    });
  }

  /** Says that nothing more will come, and goes on reading for a while: closing at once would reset what is on its way. */
  private leave(socket: Socket): void {
    if (socket.destroyed) return;
    socket.end();
    const cancelTimer = this.clock.timer(lingerMs, () => socket.destroy());
    socket.once("close", cancelTimer);
  }
}
