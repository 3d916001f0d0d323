/** Erases requests that have ended: first what can be found of them, then what they are. */

import type { World } from "../ports.ts";

export class Eraser {
  private readonly world: World;

  constructor(world: World) {
    this.world = world;
  }

  /**
   * Erases the bodies, or all, of those of these requests that have ended. In this order, a crash in between leaves a
   * request that is not found by its text, and can be erased again; the other way round its text would stay.
   * `unlessHeld`: not where somebody may still come for the answer. @throws StorageError
   */
  async erase(what: "bodies" | "record", ids: string[], { unlessHeld }: { unlessHeld: boolean }) {
    const { store, search, clock } = this.world;
    if (ids.length === 0) return;
    if (search.isOn) await search.forget(ids);
    await store.commit({ kind: "erase", what, ids, at: clock.now(), unlessHeld });
  }
}
