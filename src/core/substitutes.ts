/** Answers that are there without a call: equal ones that were given before, and what callers get in place of one. */

import type { Content } from "./attempts.ts";
import type { Ended, Part, World } from "./ports.ts";
import type { Degraded, RequestRecord } from "./request.ts";
import { Recall } from "./vectors.ts";
import type { CacheWish, FailureWish } from "./wishes.ts";

/** What is asked for, as far as it tells what it may be answered with. */
interface Wanted {
  model: string;
  content: Content;
  bodyHash?: string;
  cache?: CacheWish;
}

/** An answer without a call, and what the record has from where it comes from. */
interface Hit {
  facts: Partial<RequestRecord> & { cachedFrom: string };
  answer: Part[];
}

/** What a caller gets in place of an answer: an older one, or the one that was given for that. */
export type Instead = { degraded: "stale"; ended: Ended } | { degraded: "fixed"; answer: unknown };

export class Substitutes {
  private readonly world: World;
  /** Whom to tell that a request is in trouble. */
  private readonly troubled = new Map<string, Set<(isCertain: boolean) => void>>();

  constructor(world: World) {
    this.world = world;
  }

  /** Whether there may be an answer without a call: only to what is asked for now, and wants to be known. */
  mayKnow({ cache, bodyHash, content, runAt }: Wanted & { runAt?: number }): boolean {
    return (
      runAt === undefined &&
      (content.head.vectors !== undefined || (cache !== undefined && bodyHash !== undefined))
    );
  }

  /** The answer to an equal request, or one whose every part is known. `record`: what the draft is about to become. */
  async cached({ cache, bodyHash, model, content }: Wanted, record: RequestRecord): Promise<Hit | undefined> {
    const now = this.world.clock.now();
    const { vectors } = content.head;
    if (vectors) {
      const recall = await Recall.of(this.world.cache, record, vectors, now);
      return recall.isWhole ? { facts: { cachedFrom: "inputs" }, answer: recall.answer(model) } : undefined;
    }
    if (!cache || bodyHash === undefined) return undefined;
    const hit = await this.answeredBefore(record.project, bodyHash, now - cache.ttlMs);
    if (!hit) return undefined;
    const { upstream, servedModel, responseId, findings, id: cachedFrom, lane } = hit.record;
    return { facts: { upstream, servedModel, responseId, findings, cachedFrom, lane }, answer: hit.answer };
  }

  private async answeredBefore(
    project: string,
    bodyHash: string,
    endedAfter: number,
  ): Promise<Ended | undefined> {
    const record = await this.world.cache.newest(project, bodyHash, endedAfter);
    // What was cut by a limit would be so again; who was refused may try again.
    if (!record || record.findings?.problems.some((problem) => problem !== "length")) return undefined;
    const answer = await this.world.store.parts(record.id, ["answer_head", "answer"]);
    return answer.length > 0 ? { record, answer } : undefined;
  }

  /**
   * Calls back each time that a request gets into trouble, or perhaps: a breaker has opened, and it may be one that it
   * waits behind. The returned function ends that.
   */
  onTrouble(id: string, callback: (isCertain: boolean) => void): () => void {
    const callbacks = this.troubled.get(id) ?? new Set();
    this.troubled.set(id, callbacks.add(callback));
    return () => {
      callbacks.delete(callback);
      if (callbacks.size === 0) this.troubled.delete(id);
    };
  }

  tellTrouble(id: string): void {
    for (const callback of [...(this.troubled.get(id) ?? [])]) callback(true);
  }

  tellBreaker(): void {
    for (const callbacks of [...this.troubled.values()])
      for (const callback of [...callbacks]) callback(false);
  }

  /** What the caller of a request in trouble gets instead of its answer, if there is anything. */
  async insteadOf(
    { project, bodyHash }: RequestRecord,
    { staleMs, answer }: FailureWish,
  ): Promise<Instead | undefined> {
    if (staleMs !== undefined && bodyHash !== undefined) {
      const ended = await this.answeredBefore(project, bodyHash, this.world.clock.now() - staleMs);
      if (ended) return { degraded: "stale", ended };
    }
    return answer === undefined ? undefined : { degraded: "fixed", answer };
  }

  /** Notes on the record that its caller was given something else. */
  async markDegraded(id: string, degraded: Degraded): Promise<void> {
    this.world.observer.tell({ event: "degraded", id, degraded });
    await this.world.store.commit({ kind: "degraded", id, degraded }).catch(() => {});
  }
}
