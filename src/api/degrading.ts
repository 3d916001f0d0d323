/** What a caller gets where its request is in trouble, if it asked for that (`on_failure`). The work goes on. */

import type { Ended } from "../core/ports.ts";
import type { Queue } from "../core/queue.ts";
import type { RequestRecord } from "../core/request.ts";
import type { Instead } from "../core/substitutes.ts";
import type { FailureWish } from "../core/wishes.ts";

export class Degrading {
  private readonly record: RequestRecord;
  private readonly wish: FailureWish;
  private readonly queue: Queue;
  private stopWatching = () => {};
  private found: Promise<Instead | undefined> | undefined;

  constructor(record: RequestRecord, wish: FailureWish, queue: Queue) {
    this.record = record;
    this.wish = wish;
    this.queue = queue;
  }

  /** Calls back when the request is in trouble and there is something else for its caller. */
  watch(onInstead: () => void): void {
    const look = async (isCertain: boolean) => {
      if (!isCertain && !(await this.waitsForBreaker())) return;
      this.found ??= this.queue.substitutes.insteadOf(this.record, this.wish);
      if (await this.found) onInstead();
    };
    const onTrouble = (isCertain: boolean) => void look(isCertain).catch(() => {});
    this.stopWatching = this.queue.substitutes.onTrouble(this.record.id, onTrouble);
    // Its upstream was taken for broken before it came.
    if (this.queue.explain(this.record)?.why === "breaker") onTrouble(true);
  }

  private async waitsForBreaker(): Promise<boolean> {
    const current = await this.queue.get(this.record.project, this.record.id);
    return this.queue.explain(current)?.why === "breaker";
  }

  unwatch(): void {
    this.stopWatching();
    this.stopWatching = () => {};
  }

  /** What the caller gets instead, at the end of its wait; undefined where it gets what it has waited for. */
  async insteadOf(ended: Ended | undefined): Promise<Instead | undefined> {
    this.unwatch();
    const { state } = ended?.record ?? {};
    if (state === "completed" || state === "cancelled") return undefined;
    const before = await this.found?.catch(() => undefined);
    // What was not there when the trouble began may be there now.
    if (before || state !== "failed") return before;
    return this.queue.substitutes.insteadOf(this.record, this.wish).catch(() => undefined);
  }

  /** The caller is being given that. */
  async given({ degraded }: Instead): Promise<void> {
    await this.queue.substitutes.markDegraded(this.record.id, degraded);
  }
}
