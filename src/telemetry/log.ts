/** What happened, as lines of JSON on standard error. Names, numbers and codes only: no prompt, answer or secret. */

import pino from "pino";
import type { Observer, Told } from "../core/ports.ts";

export type LogLevel = "fatal" | "error" | "warn" | "info" | "debug" | "silent";

const levels: Record<Told["event"], "error" | "warn" | "info" | "debug"> = {
  accepted: "debug",
  orphaned: "info",
  adopted: "info",
  echoed: "info",
  attempt_started: "debug",
  attempt_ended: "debug",
  ended: "info",
  fenced: "warn",
  gate_closed: "warn",
  gate_opened: "info",
  breaker_opened: "warn",
  breaker_closed: "info",
  concurrency_lowered: "info",
  clock_set: "warn",
  parked: "info",
  degraded: "info",
  cache_hit: "debug",
  alert: "error",
  recovered: "info",
  storage_trouble: "error",
  storage_recovered: "info",
  erased: "info",
  bulk_ended: "info",
  search_rebuilding: "warn",
  fault: "error",
};

/** When nobody reads the log, what is beyond this is dropped. */
const longestBacklogBytes = 16 * 1024 * 1024;

export function createLog(level: LogLevel): Observer {
  // Not synchronous: a slow reader of the log must not slow the requests. What is left is written at the exit.
  const destination = pino.destination({ dest: 2, sync: false, maxLength: longestBacklogBytes });
  const log = pino({ level, base: undefined, timestamp: pino.stdTimeFunctions.isoTime }, destination);
  return {
    tell(told) {
      const level = levelOf(told);
      if (!log.isLevelEnabled(level)) return;
      const { event, ...facts } = told;
      log[level](facts, event);
    },
  };
}

/** What goes wrong is worth a line; what goes well stands in the record, and there is much of it. */
function levelOf(told: Told): "error" | "warn" | "info" | "debug" {
  if (told.event === "attempt_ended" && told.verdict !== "success") return "warn";
  if (told.event === "ended" && told.state === "completed") return "debug";
  return levels[told.event];
}
