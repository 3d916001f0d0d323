/**
 * Preloaded into a server with --import: on SIGUSR2 it writes how late the event loop of the main thread was since the
 * signal before, in ms, to a file of the process's number in its working directory. See lib/loop-delay.mjs.
 */

import { renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { monitorEventLoopDelay } from "node:perf_hooks";
import { isMainThread } from "node:worker_threads";

if (isMainThread) {
  const resolution = 10;
  const file = join(process.cwd(), `loop-delay-${process.pid}.json`);
  const histogram = monitorEventLoopDelay({ resolution });
  histogram.enable();
  // It measures the time between two timers, which is the resolution where nothing is late.
  const lateMs = (ns) => Math.max(0, ns / 1e6 - resolution);
  let looks = 0;
  process.on("SIGUSR2", () => {
    const late = { p50Ms: histogram.percentile(50), p99Ms: histogram.percentile(99), maxMs: histogram.max };
    const found = Object.entries(late).map(([name, ns]) => [name, lateMs(ns)]);
    histogram.reset();
    writeFileSync(`${file}.new`, JSON.stringify({ ...Object.fromEntries(found), looks: ++looks }));
    renameSync(`${file}.new`, file);
  });
}
