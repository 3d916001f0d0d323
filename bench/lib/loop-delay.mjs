/** How late a server's event loop is: asks the module that was preloaded into it (servers/loop-delay.mjs). */

import { readFileSync, readlinkSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";

/** What Node is told, so that a server can be asked. */
export const loopDelayFlags = ["--import", join(import.meta.dirname, "../servers/loop-delay.mjs")];

const answerLimitMs = 10_000;
const looksSeen = new Map();

/** @returns `p50Ms`, `p99Ms` and `maxMs` of the main thread since it was asked before */
export async function loopDelay(pid) {
  const file = join(readlinkSync(`/proc/${pid}/cwd`), `loop-delay-${pid}.json`);
  const seen = looksSeen.get(pid) ?? 0;
  const giveUpAt = performance.now() + answerLimitMs;
  process.kill(pid, "SIGUSR2");
  while (performance.now() < giveUpAt) {
    const { looks, ...found } = contentOf(file);
    if (looks > seen) {
      looksSeen.set(pid, looks);
      return found;
    }
    await pause(5);
  }
  throw new Error(`The process ${pid} did not say how late its event loop is.`);
}

function contentOf(file) {
  try {
    return JSON.parse(readFileSync(file, "utf8"));
  } catch {
    return {};
  }
}
