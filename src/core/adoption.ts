/**
 * Callers without a key who go before they have their answer (DESIGN §4.2). Their request becomes an orphan,
 * which the next equal call adopts, so that the retries of a stock SDK cost nothing. What failed in vain is
 * echoed for a moment to clients that retry although they were told not to.
 */

import { faultText, StorageError } from "./errors.ts";
import type { Repeats, World } from "./ports.ts";

export interface AdoptionSettings {
  /** How long an orphan can be adopted; 0 = not at all. */
  adoptWindowMs: number;
  /** How long a failure in vain is repeated to equal calls; 0 = not at all. */
  failureEchoMs: number;
}

interface RepeatTerms {
  isRetry?: boolean;
  takesEcho?: boolean;
}

export class Adoption {
  private readonly world: World;
  private readonly settings: AdoptionSettings;

  constructor(world: World, settings: AdoptionSettings) {
    this.world = world;
    this.settings = settings;
  }

  /**
   * What a keyless call may get instead of a request of its own. `isRetry`: it says itself that it is one. `takesEcho`:
   * to be told again how the last one failed is of use to it.
   */
  repeats({ isRetry = false, takesEcho = true }: RepeatTerms, now: number): Repeats {
    const { adoptWindowMs, failureEchoMs } = this.settings;
    // Also where the wall clock was set back nothing is later than this.
    const since = (windowMs: number) => (windowMs === 0 ? Number.MAX_SAFE_INTEGER : now - windowMs);
    return {
      now,
      orphanedAfter: since(adoptWindowMs),
      isRetry,
      failedAfter: since(takesEcho ? failureEchoMs : 0),
    };
  }

  /** After a start: whoever was connected to the process before is gone. */
  async recover(): Promise<void> {
    const at = this.world.clock.now();
    await this.world.store.commit({ kind: "all_orphaned", at, forgetBefore: this.forgetBefore(at) });
  }

  /** The caller has its answer. */
  answered(id: string): void {
    this.world.store.answered(id);
  }

  /**
   * The caller has gone without its answer, or was told to come back. Handed to the store at once, so that
   * a retry, which is handed to it later, finds the orphan. `contentSent`: it may have read a part.
   */
  orphaned(id: string, contentSent: boolean): void {
    const { clock, store, observer } = this.world;
    const at = clock.now();
    const change = { kind: "orphaned" as const, id, at, contentSent, forgetBefore: this.forgetBefore(at) };
    store.commit(change).then(
      () => observer.tell({ event: "orphaned", id }),
      (error) => {
        // The store has told of its own trouble; the retry then costs a call more.
        if (error instanceof StorageError) return;
        observer.tell({ event: "fault", where: "orphan", message: faultText(error) });
      },
    );
  }

  private forgetBefore(now: number): number {
    return now - this.settings.adoptWindowMs;
  }
}
