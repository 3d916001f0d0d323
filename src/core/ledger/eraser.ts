/** Erases requests that have ended: first what can be found of them, then what they are. */

import type { World } from "../ports.ts";

/** In one transaction: bodies may be large, and whoever commits meanwhile waits. */
const atOnce = 8;

export class Eraser {
  private readonly world: World;

  constructor(world: World) {
    this.world = world;
  }

  /**
   * Erases the bodies, or all, of those of these requests that have ended. In this order, a crash in between leaves a
   * request that is not found by its text, and can be erased again; the other way round its text would stay.
   * `unlessHeld`: not where somebody may still come for the answer, see `ChangeSet`. @throws StorageError
   */
  async erase(
    what: "bodies" | "record",
    ids: string[],
    unlessHeld?: { orphanedBefore: number },
  ): Promise<void> {
    const { store, search, clock } = this.world;
    for (let i = 0; i < ids.length; i += atOnce) {
      const some = ids.slice(i, i + atOnce);
      if (search.isOn) await search.forget(some);
      await store.commit({ kind: "erase", what, ids: some, at: clock.now(), unlessHeld });
    }
  }
}
