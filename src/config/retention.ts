import type { z } from "zod";
import { formatDuration } from "../core/duration.ts";
import { dayMs, duration, hourMs, size, table } from "./field.ts";
import { formatSize } from "./size.ts";

/* How long requests are kept. Nothing is deleted unless it is asked for. */

/** What is absent is kept for ever. Ages count from the end of a request. */
export interface Retention {
  completedMs?: number;
  failedMs?: number;
  cancelledMs?: number;
  /** Of prompts and answers; the record, its key and its hashes stay. */
  bodiesMs?: number;
  /** Of the database; above it, what ended first goes first. */
  maxBytes?: number;
}

/** A number without its unit must not erase all that there is. */
const age = duration(hourMs, 36_500 * dayMs).optional();
const leastBytes = 64 * 1024 * 1024;

export const retention = table({
  completed: age,
  failed: age,
  cancelled: age,
  bodies: age,
  max_size: size(leastBytes).optional(),
}).prefault({});

type Written = z.output<typeof retention>;

export function buildRetention({
  completed,
  failed,
  cancelled,
  bodies,
  max_size: maxSize,
}: Written): Retention {
  return {
    ...(completed !== undefined && { completedMs: completed }),
    ...(failed !== undefined && { failedMs: failed }),
    ...(cancelled !== undefined && { cancelledMs: cancelled }),
    ...(bodies !== undefined && { bodiesMs: bodies }),
    ...(maxSize !== undefined && { maxBytes: maxSize }),
  };
}

export function retentionAsWritten({ completedMs, failedMs, cancelledMs, bodiesMs, maxBytes }: Retention) {
  const age = (ms?: number) => (ms === undefined ? undefined : formatDuration(ms));
  return {
    completed: age(completedMs),
    failed: age(failedMs),
    cancelled: age(cancelledMs),
    bodies: age(bodiesMs),
    max_size: maxBytes === undefined ? undefined : formatSize(maxBytes),
  };
}
