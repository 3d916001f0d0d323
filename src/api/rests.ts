/** Connections that are not read for a moment, because whoever asks next on them would only stand behind a crowd. */

import type { Socket } from "node:net";
import { scheduler } from "node:timers/promises";
import type { Clock } from "../core/ports.ts";
import type { Queue } from "../core/queue.ts";
import type { RequestRecord } from "../core/request.ts";
import { Table } from "../core/table.ts";
import type { Exchange } from "./connection.ts";

/** So many callers who wait for their turn keep the process busy until others are read. */
const crowdSize = 128;
/** How often those who rest are looked after. */
const lookMs = 5;
/**
 * No call is unread for longer: the one that comes next on a connection may be of another kind. It is shorter than
 * what it takes to tell that a reply has arrived, for a connection that is not read does not say that it was reset.
 */
const longestRestMs = 500;

type Queued = Pick<RequestRecord, "lane" | "priority" | "project">;

/** Those who would wait for the same turns. */
interface Group {
  key: string;
  of: Queued;
  /** In the order in which they were served. `untilMs`: by the clock's ticks. */
  resting: { socket: Socket; untilMs: number }[];
}

/**
 * Where a crowd waits for its turn, a connection whose reply is written is not read until those before it have had
 * theirs. What is unread waits as long, but outside of this process; what is read grows old in it, and is moved and
 * collected as garbage in vain: with ten times as many callers as there is CPU for, that was a fifth of the work.
 */
export class Rests {
  private readonly queue: Queue;
  private readonly clock: Clock;
  private readonly groups = new Table<string, Group>();
  private armed = false;

  constructor(queue: Queue, clock: Clock) {
    this.queue = queue;
    this.clock = clock;
  }

  /** The connection of a call may rest behind its reply. */
  after(exchange: Exchange, { lane, priority, project }: RequestRecord): void {
    exchange.whenOver(() => this.rest(exchange, { lane, priority, project }));
  }

  /** Nobody rests any longer. Resolves when what they have said meanwhile has been read. */
  async end(): Promise<void> {
    for (const group of this.groups.values()) this.wake(group, group.resting.length);
    // It is read between two turns.
    await scheduler.yield();
    await scheduler.yield();
  }

  private rest({ connection }: Exchange, of: Queued): void {
    const { exchanges, isGone, socket } = connection;
    if (exchanges.length > 0 || isGone || this.queue.isStopping) return;
    const key = `${of.lane} ${of.priority} ${of.project}`;
    let group = this.groups.get(key);
    if (!group) {
      if (this.queue.crowd(of) < crowdSize) return;
      group = { key, of, resting: [] };
      this.groups.set(key, group);
    }
    socket.pause();
    group.resting.push({ socket, untilMs: this.clock.ticks() + longestRestMs });
    this.arm();
  }

  private arm(): void {
    if (this.armed || this.groups.size === 0) return;
    this.armed = true;
    this.clock.timer(lookMs, () => {
      this.armed = false;
      for (const group of this.groups.values()) this.wake(group, this.room(group));
      this.arm();
    });
  }

  /** How many of a group are to be read now. */
  private room({ of, resting }: Group): number {
    if (this.queue.isStopping) return resting.length;
    const now = this.clock.ticks();
    const room = Math.max(0, crowdSize - this.queue.crowd(of));
    const overdue = resting.findIndex(({ untilMs }) => untilMs > now);
    return Math.max(room, overdue < 0 ? resting.length : overdue);
  }

  private wake({ key, resting }: Group, count: number): void {
    for (const { socket } of resting.splice(0, count)) socket.resume();
    if (resting.length === 0) this.groups.delete(key);
  }
}
