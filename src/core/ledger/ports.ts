/** What the ledger needs of a store: to find, count and erase what was asked, and to add up what it used. */

import type { Priority, RequestRecord, State, Terms } from "../request.ts";

/**
 * Something that a caller told of a request and that it can be found by: `tag`, `user`, `safety_identifier`, `trace_id`,
 * `client_request_id`, or `metadata.` and a name.
 */
export interface Label {
  name: string;
  value: string;
}

/** Whose fault a failure is: what the caller sent will never do, or somebody else's. */
export type Cause = "caller" | "upstream";

/** Which requests of a project are meant: those for which all of what is given holds. */
export interface Filter {
  project: string;
  states?: State[];
  model?: string;
  upstream?: string;
  /** The code of the newest error, whether it ended the request or not. */
  errorCode?: string;
  endpoint?: string;
  /** Of failed ones. */
  causedBy?: Cause;
  /** Of failed ones: whether somebody has marked them as resolved. */
  resolved?: boolean;
  labels?: Label[];
  idempotencyKey?: string;
  /** Epoch ms, both exclusive. */
  createdAfter?: number;
  createdBefore?: number;
}

export interface ListQuery extends Filter {
  /** Keyset cursor: the id of the last record of the page before. One that was erased meanwhile still has its place. */
  after?: string;
  /** The id of the newest request that is meant, by acceptance. */
  upTo?: string;
  order: "asc" | "desc";
  limit: number;
}

export type CountBy = "status" | "model" | "upstream" | "endpoint" | "error_code" | "caused_by" | "resolved";

/** How many requests share these values; a value is null where a request has none. */
export interface Count {
  values: Partial<Record<CountBy, string | null>>;
  count: number;
}

/** Failed requests with one cause. */
export interface DeadLetters {
  errorCode: string;
  model: string;
  upstream: string | null;
  endpoint: string;
  causedBy: Cause;
  count: number;
  /** How many of them are marked as resolved. */
  resolved: number;
  /** The oldest and the newest, by acceptance. */
  first: RequestRecord;
  last: RequestRecord;
}

/** What requests have used: sums over those that ended, and over their attempts, in a day. */
export interface Sums {
  /** Rounds that ended, and how. */
  completed: number;
  failed: number;
  cancelled: number;
  /** Answered without a call. */
  cached: number;
  attempts: number;
  inputTokens: number;
  cachedTokens: number;
  outputTokens: number;
  reasoningTokens: number;
  /** Attempts whose usage is an estimate, and attempts that used tokens of no known price. */
  estimated: number;
  unpriced: number;
  /** US dollars. */
  cost: number;
  /** Ms from acceptance (or `run_at`) to the end, over all that completed with a call. */
  durationMs: number;
  /** Answers with these problems; one answer may have several. */
  refusal: number;
  contentFilter: number;
  length: number;
  empty: number;
  invalidJson: number;
  schemaMismatch: number;
}

/** What sums are kept apart by. */
export interface UsageKey {
  /** Days since 1970-01-01 UTC. */
  day: number;
  project: string;
  endpoint: string;
  model: string;
  /** "" where it never had one. */
  upstream: string;
  promptHash: string;
}

/** What one change adds; `tags` are those of its request: each has sums of its own beside those of all. */
export interface Tally {
  key: UsageKey;
  tags: string[];
  sums: Partial<Sums>;
}

export type UsageBy = "day" | "model" | "upstream" | "project" | "endpoint" | "tag" | "prompt_hash";
export interface UsageQuery {
  /** Undefined: of all projects. */
  project?: string;
  /** Days since 1970-01-01 UTC, both inclusive. */
  fromDay: number;
  toDay: number;
  by: UsageBy[];
  model?: string;
  upstream?: string;
  endpoint?: string;
  tag?: string;
  promptHash?: string;
  limit: number;
}
export interface UsageGroup {
  values: Partial<Record<UsageBy, string | number>>;
  sums: Sums;
}

/** What another round of a request changes; JSON. */
export interface RetryChange {
  terms?: Partial<Terms>;
  priority?: Priority;
  /** Epoch ms, or ms from when it is done; neither: at once. */
  runAt?: number;
  delayMs?: number;
}

export type BulkAction = "retry" | "cancel" | "erase" | "resolve";

/** Something to be done with many requests, step by step; it goes on after a restart. */
export interface Bulk {
  /** `bulk_…`. */
  id: string;
  project: string;
  action: BulkAction;
  filter: Filter;
  /** What a full text search has to find, too. */
  text?: string;
  /** What retries change. */
  options?: RetryChange;
  state: "in_progress" | "completed" | "cancelled" | "failed";
  /** How many requests matched when it was asked for; undefined where they were not counted. */
  total?: number;
  /** How many were done; how many were no longer in a state for it; how many could not be done. */
  done: number;
  skipped: number;
  failed: number;
  /**
   * The last request that was dealt with, or those that are just being erased, with commas between; and the last one
   * that is meant. Undefined: none.
   */
  cursor?: string;
  lastId?: string;
  /** Of the newest that could not be done. */
  errorCode?: string;
  idempotencyKey?: string;
  /** SHA-256 (hex) of what was asked, so that a key is not used for something else. */
  fingerprint?: string;
  createdAt: number;
  updatedAt: number;
  endedAt?: number;
}

/** How large the database is. Bytes on disk, without the log; those of free pages; rows. */
export interface Size {
  bytes: number;
  freeBytes: number;
  requests: number;
}

export interface LedgerStore {
  list(query: ListQuery): Promise<RequestRecord[]>;
  /** Those of these ids that are there, in the order of the ids. */
  many(ids: string[]): Promise<RequestRecord[]>;
  /** How many requests match, apart by `by` (all together where it is empty), most first. */
  counts(filter: Filter, by: CountBy[]): Promise<Count[]>;
  /** Failed requests that match, by cause, most first. */
  deadLetters(filter: Filter, limit: number): Promise<DeadLetters[]>;
  usage(query: UsageQuery): Promise<UsageGroup[]>;
  /**
   * Ended requests that may be erased, those that ended first at first: `bodies`, those that still have theirs;
   * `record`, all. Never one whose caller may still come for it, nor, with a key, one younger than `keyedBefore`.
   * @param query epoch ms, both exclusive
   */
  erasable(query: {
    what: "bodies" | "record";
    state: "completed" | "failed" | "cancelled";
    endedBefore: number;
    keyedBefore: number;
    /** Callers who went before this instant do not come back. */
    orphanedBefore: number;
    limit: number;
  }): Promise<string[]>;
  /** Requests that asked for no storage and whose time is over (`store: "none"`); instants as above. */
  unwanted(endedBefore: number, limit: number, orphanedBefore: number): Promise<string[]>;
  size(): Promise<Size>;
  bulk(id: string): Promise<Bulk | undefined>;
  bulkByKey(project: string, key: string): Promise<Bulk | undefined>;
  /** Newest first; with `state`, of all projects where `project` is undefined. */
  bulks(query: { project?: string; state?: Bulk["state"]; after?: string; limit: number }): Promise<Bulk[]>;
}

export interface SearchQuery {
  project: string;
  /** As somebody has typed it: words, and "phrases"; all of them have to be there. */
  text: string;
  /** The id of a request: what comes behind it in this order. */
  after?: string;
  /** Only these requests are looked at, in the order in which they are given. */
  among?: string[];
  order: "asc" | "desc";
  limit: number;
}

/** The text of prompts and answers, in a place of its own that can be made anew from the store. */
export interface SearchIndex {
  readonly isOn: boolean;
  /** Ids of requests, in their order. @throws AppError `invalid_parameter` where no word is left to look for */
  find(query: SearchQuery): Promise<string[]>;
  /** Nothing of these requests is found any more, nor left in its files. Resolves when that is so on disk. */
  forget(ids: string[]): Promise<void>;
  /** How many requests wait to be looked through. */
  behind(): Promise<number>;
}
