/** Whether a reply reached its caller. */

import type { Clock } from "../core/ports.ts";
import type { Connection, Exchange, Farewell } from "./connection.ts";
import { arrivals } from "./event-loop.ts";

/** What became of a reply. `contentSent`: a part of it may have reached the caller. */
export type Fate = { answered: true } | { answered: false; contentSent: boolean };

/** A reset this soon after the last byte means that the caller had gone before it read them. */
const doubtMs = 1000;

/** One reply, until it is known whether its caller has it; after that it holds nothing any more. */
class Delivery {
  /** Epoch ms; of a reply that is written. */
  untilMs = 0;
  private readonly connection: Connection;
  /** Until the reply is written: a call whose reply is, is not kept for the sake of a doubt. */
  private exchange: Exchange | undefined;
  private tell: ((fate: Fate) => void) | undefined;

  constructor(exchange: Exchange, tell: (fate: Fate) => void) {
    this.connection = exchange.connection;
    this.exchange = exchange;
    this.tell = tell;
    this.connection.listen(this);
  }

  written(): void {
    this.exchange = undefined;
  }

  farewell(how: Farewell): void {
    // Whoever closes its half while the reply is being written may still be reading it.
    if (how === "end") return;
    const { exchange } = this;
    if (how === "close" && (exchange?.isWritten ?? true)) this.answered();
    else this.over({ answered: false, contentSent: exchange?.outgoing.headersSent ?? true });
  }

  answered(): void {
    this.over({ answered: true });
  }

  private over(fate: Fate): void {
    const { tell } = this;
    if (!tell) return;
    this.tell = undefined;
    this.exchange = undefined;
    this.connection.ignore(this);
    tell(fate);
  }
}

/**
 * Follows final replies until it is known whether their callers have them. A reply is *answered* when all
 * of it was handed to a socket that saw no reset for a second, or until the caller asked for more on it.
 */
export class Deliveries {
  private readonly clock: Clock;
  /** Written whole, and not yet beyond doubt; in the order of time, so that one timer serves all. */
  private readonly doubted: Delivery[] = [];
  /** Of one connection: pipelined replies are more than one. */
  private readonly byConnection = new WeakMap<Connection, Delivery[]>();
  private armed = false;

  constructor(clock: Clock) {
    this.clock = clock;
  }

  /** To be called before the reply is written; `tell` is called once. */
  follow(exchange: Exchange, tell: (fate: Fate) => void): void {
    const { headersSent: contentSent } = exchange.outgoing;
    if (exchange.connection.isGone) return tell({ answered: false, contentSent });
    const delivery = new Delivery(exchange, tell);
    exchange.whenOver(() => {
      if (exchange.isWritten) this.doubt(delivery, exchange.connection);
      else delivery.farewell("reset");
    });
  }

  /** The caller asks for more on a connection, so it has read what came before. */
  asksAgain(connection: Connection): void {
    for (const delivery of this.byConnection.get(connection) ?? []) delivery.answered();
    this.byConnection.delete(connection);
  }

  private doubt(delivery: Delivery, connection: Connection): void {
    delivery.written();
    delivery.untilMs = this.clock.ticks() + doubtMs;
    const those = this.byConnection.get(connection);
    if (those) those.push(delivery);
    else this.byConnection.set(connection, [delivery]);
    this.doubted.push(delivery);
    this.arm();
  }

  private arm(): void {
    const [first] = this.doubted;
    if (this.armed || !first) return;
    this.armed = true;
    const leftMs = Math.max(1, first.untilMs - this.clock.ticks());
    this.clock.timer(Math.min(doubtMs, leftMs), () => {
      const now = this.clock.ticks();
      // After a stall, what has arrived meanwhile is read first: a caller may have gone in time.
      void arrivals().then(() => {
        this.armed = false;
        this.settle(now);
        this.arm();
      });
    });
  }

  /** Callers who had not gone by then have their answers. */
  private settle(now: number): void {
    // Where the wall clock was set back, what seems far ahead is of long ago.
    const isOver = ({ untilMs }: Delivery) => untilMs <= now || untilMs > now + doubtMs;
    let over = 0;
    while (over < this.doubted.length && isOver(this.doubted[over]!)) this.doubted[over++]!.answered();
    this.doubted.splice(0, over);
  }
}
