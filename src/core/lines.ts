/** Everybody who waits for a request: their lines are opened and read from here, and they hear when the server stops. */

import { Line } from "./line.ts";
import type { Ended, Store, World } from "./ports.ts";
import { type StreamFrom, StreamReader, type StreamSink } from "./reader.ts";
import { isTerminal, type RequestRecord } from "./request.ts";
import type { Scheduler } from "./scheduler.ts";
import { Members } from "./table.ts";

/** What a request that has ended says to those who wait for it. */
export async function withAnswer(store: Store, record: RequestRecord): Promise<Ended> {
  return { record, answer: await store.parts(record.id, ["answer_head", "answer"]) };
}

export class Lines {
  private readonly world: World;
  private readonly scheduler: Scheduler;
  /** How many callers wait on the line for a request. */
  private readonly connected = new Map<string, number>();
  private readonly waiting = new Members<(last: boolean) => void>();

  constructor(world: World, scheduler: Scheduler) {
    this.world = world;
    this.scheduler = scheduler;
  }

  /** Whether a caller waits on the line for a request. */
  isConnected(id: string): boolean {
    return this.connected.has(id);
  }

  /** The server stops: callers whose request will not end here any more have their reply; at the `last`, all have. */
  tellStopping(last: boolean): void {
    for (const tell of this.waiting) tell(last);
  }

  /** A line, without a look whether its request has ended already. `caller`: see `Line`. */
  open(id: string, caller = true): Line {
    const count = (by: number) => {
      const callers = (this.connected.get(id) ?? 0) + by;
      if (callers > 0) this.connected.set(id, callers);
      else this.connected.delete(id);
    };
    if (caller) count(1);
    return new Line(this.world.store, id, () => caller && count(-1));
  }

  /** A line to a request that may have ended already. `caller`: see `Line`. */
  async listen(id: string, as: { caller: boolean }): Promise<Line> {
    const { store } = this.world;
    const line = this.open(id, as.caller);
    try {
      const record = await store.get(id);
      if (record && isTerminal(record.state)) line.hear(await withAnswer(store, record));
      return line;
    } catch (error) {
      line.close();
      throw error;
    }
  }

  /**
   * Waits on a line until the request ends, at most `waitMs`, and closes the line. Undefined when it has not
   * ended by then, when `hangUp` is called because nobody listens any more, or when the server stops and
   * the request is not just being answered.
   */
  wait(line: Line, waitMs: number, onHangUp?: (hangUp: () => void) => void): Promise<Ended | undefined> {
    return new Promise((resolve) => {
      const finish = (ended: Ended | undefined) => {
        cancelTimer();
        this.waiting.delete(member);
        line.close();
        resolve(ended);
      };
      const onStopping = (last: boolean) => {
        if (last || !this.scheduler.isRunning(line.id)) finish(undefined);
      };
      const cancelTimer = this.world.clock.timer(waitMs, () => finish(undefined));
      const member = this.waiting.add(onStopping);
      onHangUp?.(() => finish(undefined));
      line.onEnded(finish);
      if (this.scheduler.isStopping) onStopping(false);
    });
  }

  /** Reads the stream of a request to its end. The line is the reader's from now on. */
  async read(line: Line, record: RequestRecord, from: StreamFrom, sink: StreamSink): Promise<StreamReader> {
    const { store } = this.world;
    const isRunning = record.terms.stream && !line.ended && !from.wholeOnly;
    const feed = isRunning ? await this.scheduler.feeds.open(record) : undefined;
    const reader = new StreamReader(store, line, feed, { ...from, forks: record.forks }, sink);
    const onStopping = (last: boolean) => {
      // What has ended is read to its end.
      if (!line.ended && (last || !this.scheduler.isRunning(line.id))) reader.stop();
    };
    const member = this.waiting.add(onStopping);
    reader.onClose = () => this.waiting.delete(member);
    reader.start();
    if (this.scheduler.isStopping) onStopping(false);
    return reader;
  }
}
