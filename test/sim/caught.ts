/** Runs stories with a planted bug until one of them shows it. */

import { vi } from "vitest";
import type { Plant } from "./world.ts";

const seedsMax = 250;

/**
 * The text of the first violation that is seen. What few stories show is begun with the one where it was seen last
 * (`from`), so that the others need not be told each time.
 */
export async function caught(plant?: Plant, { seeds = seedsMax, from = 1 } = {}): Promise<string> {
  // Modules that are planted in are loaded anew, and with them all that use them.
  vi.resetModules();
  const { tell } = await import("./scenario.ts");
  for (let i = 0; i < seeds; i++) {
    const seed = ((from - 1 + i) % seeds) + 1;
    const { violations } = await tell(seed, plant);
    if (violations.length > 0) return violations.join("\n");
  }
  return "nothing was seen";
}
