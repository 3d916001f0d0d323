/** Connections that are not read for a moment, because whoever asks next on them would only stand behind a crowd. */

import type { Socket } from "node:net";
import type { Clock, GroupKey } from "../core/ports.ts";
import type { Queue } from "../core/queue.ts";
import { Table } from "../core/table.ts";
import type { Connection, Exchange } from "./connection.ts";
import { arrivals } from "./event-loop.ts";

/** So many callers who wait for their turn keep the process busy until others are read. */
const crowdSize = 128;
/** How often those who rest are looked after. */
const lookMs = 5;
/**
 * Nobody rests for longer: what comes next on a connection may be of another kind than what came before. It is half of
 * what it takes to tell that a reply has arrived, for a connection that is not read does not say that it was reset.
 */
const longestRestMs = 500;

interface Resting {
  socket: Socket;
  /** Of the call whose reply is written. */
  callHash: string | undefined;
  /** By the clock's ticks. */
  untilMs: number;
}

/** Those who would wait for the same turns, in the order in which they were served. */
interface Group {
  key: string;
  turns: GroupKey;
  resting: Resting[];
}

/**
 * Where a crowd waits for its turn, a connection whose reply is written is not read until there is room in the crowd. What
 * is unread waits as long, but outside of this process; what is read grows old in it, and is moved and collected as
 * garbage in vain: with ten times as many callers as there is CPU for, that was a fifth of the work.
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

  /**
   * A call is over. Only who has asked for the same twice in a row may rest: a connection that is used once has a close
   * to tell, and on one that several share the next call may be anybody's.
   */
  after({ connection, served }: Exchange): void {
    const { turns } = connection;
    if (served && turns && isSame(turns, served)) return this.rest(connection, turns, served.callHash);
    connection.turns = served && { lane: served.lane, priority: served.priority, project: served.project };
  }

  /**
   * To be called before a retry is looked up. Its caller may be one who rests, and has gone without its answer: only
   * reading tells. Resolves when it has.
   */
  async heed(callHash: string | undefined): Promise<void> {
    if (callHash === undefined || this.groups.size === 0) return;
    let isAny = false;
    for (const group of this.groups.values()) {
      const those = group.resting.filter((one) => one.callHash === callHash);
      if (those.length === 0) continue;
      isAny = true;
      const others = group.resting.filter((one) => one.callHash !== callHash);
      this.wake(group, those, others);
    }
    if (isAny) await arrivals();
  }

  /** Nobody rests any longer. Resolves when what has arrived meanwhile is being read. */
  async end(): Promise<void> {
    for (const group of this.groups.values()) this.wake(group, group.resting, []);
    await arrivals();
  }

  private rest(
    { exchanges, isGone, socket }: Connection,
    turns: GroupKey,
    callHash: string | undefined,
  ): void {
    if (exchanges.length > 0 || isGone || !socket.writable || this.queue.isStopping) return;
    const key = `${turns.lane} ${turns.priority} ${turns.project}`;
    let group = this.groups.get(key);
    if (!group) {
      if (this.queue.crowd(turns) < crowdSize) return;
      group = { key, turns, resting: [] };
      this.groups.set(key, group);
    }
    socket.pause();
    group.resting.push({ socket, callHash, untilMs: this.clock.ticks() + longestRestMs });
    this.arm();
  }

  private arm(): void {
    if (this.armed || this.groups.size === 0) return;
    this.armed = true;
    this.clock.timer(lookMs, () => {
      this.armed = false;
      for (const group of this.groups.values()) this.look(group);
      this.arm();
    });
  }

  private look(group: Group): void {
    const { turns, resting } = group;
    const now = this.clock.ticks();
    const room = this.queue.isStopping ? resting.length : crowdSize - this.queue.crowd(turns);
    let count = Math.max(0, room);
    while (count < resting.length && resting[count]!.untilMs <= now) count++;
    if (count > 0) this.wake(group, resting.slice(0, count), resting.slice(count));
  }

  private wake(group: Group, those: Resting[], others: Resting[]): void {
    for (const { socket } of those) socket.resume();
    group.resting = others;
    if (others.length === 0) this.groups.delete(group.key);
  }
}

const isSame = (a: GroupKey, b: GroupKey): boolean =>
  a.lane === b.lane && a.priority === b.priority && a.project === b.project;
