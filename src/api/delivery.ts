/** Whether a reply reached its caller. */

import type { IncomingMessage, ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { Clock } from "../core/ports.ts";

interface Exchange {
  incoming: IncomingMessage;
  outgoing: ServerResponse;
}

/** What became of a reply. `contentSent`: a part of it may have reached the caller. */
export type Fate = { answered: true } | { answered: false; contentSent: boolean };

/** A reset this soon after the last byte means that the caller had gone before it read them. */
const doubtMs = 1000;

interface Doubted {
  untilMs: number;
  settle: (() => void) | undefined;
}

/**
 * Follows final replies until it is known whether their callers have them. A reply is *answered* when all
 * of it was handed to a socket that saw no reset for a second, or until the caller asked for more on it.
 */
export class Deliveries {
  private readonly clock: Clock;
  /** Written whole, and not yet beyond doubt; in the order of time, so that one timer serves all. */
  private readonly doubted: Doubted[] = [];
  /** Of one connection: pipelined replies are more than one. */
  private readonly bySocket = new WeakMap<Socket, Doubted[]>();
  private armed = false;

  constructor(clock: Clock) {
    this.clock = clock;
  }

  /** To be called before the reply is written; `tell` is called once. */
  follow({ incoming, outgoing }: Exchange, tell: (fate: Fate) => void): void {
    const { socket } = incoming;
    if (socket.destroyed || socket.readableEnded) return tell({ answered: false, contentSent: false });
    const settle = (fate: Fate) => {
      socket.off("close", onClose);
      socket.off("error", onError);
      outgoing.off("finish", onFinish);
      tell(fate);
    };
    let doubt: Doubted | undefined;
    const onFinish = () => {
      doubt = { untilMs: this.clock.now() + doubtMs, settle: () => settle({ answered: true }) };
      this.doubt(socket, doubt);
    };
    const onClose = (hadError: boolean) => {
      if (doubt && !doubt.settle) return;
      if (doubt) doubt.settle = undefined;
      const answered = doubt !== undefined && !hadError;
      settle(answered ? { answered } : { answered: false, contentSent: outgoing.headersSent });
    };
    // A reset is an `error` before it is a `close`, and a retry that came right behind it may lie in between.
    const onError = () => onClose(true);
    socket.once("error", onError);
    socket.once("close", onClose);
    outgoing.once("finish", onFinish);
  }

  /** The caller asks for more on a connection, so it has read what came before. */
  asksAgain(socket: Socket): void {
    for (const doubt of this.bySocket.get(socket) ?? []) conclude(doubt);
    this.bySocket.delete(socket);
  }

  private doubt(socket: Socket, doubt: Doubted): void {
    const those = this.bySocket.get(socket);
    if (those) those.push(doubt);
    else this.bySocket.set(socket, [doubt]);
    this.doubted.push(doubt);
    this.arm();
  }

  private arm(): void {
    const [first] = this.doubted;
    if (this.armed || !first) return;
    this.armed = true;
    const leftMs = Math.max(1, first.untilMs - this.clock.now());
    this.clock.timer(Math.min(doubtMs, leftMs), () => {
      this.armed = false;
      const now = this.clock.now();
      // Where the wall clock was set back, what seems far ahead is of long ago.
      const isOver = ({ untilMs }: Doubted) => untilMs <= now || untilMs > now + doubtMs;
      let over = 0;
      while (over < this.doubted.length && isOver(this.doubted[over]!)) conclude(this.doubted[over++]!);
      this.doubted.splice(0, over);
      this.arm();
    });
  }
}

function conclude(doubt: Doubted): void {
  const { settle } = doubt;
  doubt.settle = undefined;
  settle?.();
}
