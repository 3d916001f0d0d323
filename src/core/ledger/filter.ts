/** Whether a request is among those that a filter means. Pure; the store has the same rules as conditions. */

import { causeOf, type RequestRecord } from "../request.ts";
import { labelsOf } from "./labels.ts";
import type { Filter } from "./ports.ts";

export function matches(filter: Filter, record: RequestRecord): boolean {
  const { states, model, upstream, errorCode, endpoint, causedBy, resolved } = filter;
  const { labels = [], idempotencyKey, createdAfter, createdBefore } = filter;
  const is = <T>(wanted: T | undefined, value: T | undefined) => wanted === undefined || wanted === value;
  return (
    record.project === filter.project &&
    (states === undefined || states.includes(record.state)) &&
    is(model, record.model) &&
    is(upstream, record.upstream) &&
    is(errorCode, record.lastErrorCode) &&
    is(endpoint, record.endpoint) &&
    is(causedBy, causeOf(record)) &&
    is(resolved, record.state === "failed" ? record.resolvedAt !== undefined : undefined) &&
    is(idempotencyKey, record.idempotencyKey) &&
    (createdAfter === undefined || record.createdAt > createdAfter) &&
    (createdBefore === undefined || record.createdAt < createdBefore) &&
    hasAll(record, labels)
  );
}

function hasAll(record: RequestRecord, wanted: readonly { name: string; value: string }[]): boolean {
  if (wanted.length === 0) return true;
  const own = labelsOf(record);
  return wanted.every(({ name, value }) => own.some((one) => one.name === name && one.value === value));
}
