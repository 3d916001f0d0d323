/** What core needs from the outside: the World. Built twice: by server.ts, and by the simulation with a seed. */

import type { Bulk, LedgerStore, SearchIndex, Tally } from "./ledger/ports.ts";
import type {
  AttemptRecord,
  CallSize,
  Degraded,
  Expectation,
  Failure,
  Findings,
  Owner,
  Problem,
  RequestRecord,
  State,
  Transition,
  Verdict,
} from "./request.ts";

export interface World {
  clock: Clock;
  random: Random;
  store: Store;
  flow: FlowStore;
  cache: CacheStore;
  ledger: LedgerStore;
  search: SearchIndex;
  upstream: Upstream;
  observer: Observer;
}

export interface Clock {
  /** Epoch ms. Somebody may set this clock, to earlier or later. */
  now(): number;
  /** Ms of a clock that nobody sets, from whatever beginning: for how long something takes. */
  ticks(): number;
  /** Runs `run` once after `delayMs`; the returned function cancels. Delays of a second and more may be rounded up. */
  timer(delayMs: number, run: () => void): () => void;
}

export interface Random {
  /** Uniform in [0, 1). */
  next(): number;
  /** A new request id, `req_…`; later ones sort after earlier ones. */
  id(): string;
}

/**
 * Parts of a request that are kept apart from its row. Heads are JSON: number 0 is what goes with the body, one
 * behind it (`Feedback`) what the attempt that follows is told beside it. `sent` and `received` are what an attempt,
 * whose number they have, has sent and got: a line of JSON (`ExchangeHead`), and behind it the body.
 */
export type PartKind = "head" | "body" | "answer_head" | "answer" | "sent" | "received";
export interface Part {
  kind: PartKind;
  seq: number;
  bytes: Uint8Array;
}

/**
 * Events of a streamed answer that lie next to each other: the data of each, one a line, as UTF-8. An event's number
 * is its count, from 1; `after` is the number of the event before the first of these.
 */
export interface EventBatch {
  after: number;
  bytes: Uint8Array;
}

/** What is added to the recorded events of a request. */
export interface EventsWritten extends EventBatch {
  /** Drops what was recorded before: the answer has begun anew. */
  anew: boolean;
}

/** Everything that one step of a request writes, in one transaction or not at all. */
export type ChangeSet =
  | {
      kind: "accept";
      record: RequestRecord;
      parts: Part[];
      tallies?: Tally[];
      /** Bound in this very transaction, so that of two equal keys exactly one is accepted. */
      key?: { project: string; endpoint: string; key: string };
      /** Where the record has a call hash: what is taken instead, if it is there. */
      repeats?: Repeats;
    }
  | {
      kind: "change";
      transition: Transition;
      /** In place of those of the same kind and number. */
      parts?: Part[];
      /** What is added to the sums of what was used. */
      tallies?: Tally[];
      /** The last events of its stream. */
      events?: EventsWritten;
      /** Drop the answer, the events and the feedback of the round before. */
      dropAnswer?: boolean;
      /** Parts of the answer that other requests may be given. */
      vectors?: Vector[];
    }
  /** The next events of a request that is being processed; `forks` as they are from now on, see `RequestRecord`. */
  | { kind: "events"; id: string; expect: Expectation; forks: number[]; events: EventsWritten }
  /** Only what a keyless call may get instead of a request of its own; a conflict where there is nothing. */
  | { kind: "repeat"; callHash: string; repeats: Repeats }
  /** The caller of a request with a call hash has gone without its answer: the request is an orphan. */
  | { kind: "orphaned"; id: string; at: number; contentSent: boolean; forgetBefore: number }
  /** After a start: nobody is connected, so every such request is an orphan; what was answered is perhaps not known. */
  | { kind: "all_orphaned"; at: number; forgetBefore: number }
  /** The callers of these requests have their answers: they are never orphans. */
  | { kind: "answered"; ids: string[] }
  /**
   * The wall clock, which said `before`, was set: whoever waits for a while still waits for that while, who was due is
   * due, and deadlines are as far away as before.
   */
  | { kind: "clock_set"; byMs: number; before: number }
  /** What a caller was given while its request goes on. */
  | { kind: "degraded"; id: string; degraded: Degraded }
  /** What was learned of lanes and upstreams, each in place of what was known under its name. */
  | { kind: "flow"; rows: FlowRow[] }
  /**
   * Ended requests are erased: their `bodies` (parts, events, vectors made of them), or the whole `record`. One that is
   * not there, or has not ended, is left as it is; with `unlessHeld` also one whose caller waits for it, or went without
   * its answer at this instant (epoch ms) or later.
   */
  | {
      kind: "erase";
      what: "bodies" | "record";
      ids: string[];
      at: number;
      unlessHeld?: { orphanedBefore: number };
    }
  /** Failed requests are marked as resolved, or (undefined) no longer so. */
  | { kind: "resolve"; ids: string[]; at: number | undefined }
  /** A bulk as it is from now on; a conflict where its key is taken by another one of its project. */
  | { kind: "bulk"; bulk: Bulk }
  /** So many free pages at most go back to the disk. */
  | { kind: "vacuum"; pages: number };

/** What is known of a lane or an upstream beyond this process: JSON that only core reads. */
export interface FlowRow {
  name: string;
  value: string;
}

/** An attempt that has ended, as far as limits need to know it. */
export interface RecentCall {
  upstream: string;
  model: string;
  startedAt: number;
  /** JSON text of what it used, where the upstream told. */
  usage?: string;
  size?: CallSize;
  verdict: Verdict;
}

/** What outlives a start of the knowledge about upstreams. */
export interface FlowStore {
  flow(): Promise<FlowRow[]>;
  /** Attempts that began at this instant or later, and have ended. Epoch ms. */
  calledSince(at: number): Promise<RecentCall[]>;
}

/** A part of an answer under the SHA-256 (hex) of what it is the answer to. */
export interface Vector {
  /** With what else keeps vectors apart: only equal texts meet. */
  project: string;
  hash: string;
  bytes: Uint8Array;
  /** Epoch ms. */
  createdAt: number;
}

/** Answers that were given before. */
export interface CacheStore {
  /** The newest completed request of the project with this body hash that ended after the instant (epoch ms). */
  newest(project: string, bodyHash: string, endedAfter: number): Promise<RequestRecord | undefined>;
  /** Those of the vectors that are known and were created after the instant. */
  vectors(project: string, hashes: string[], createdAfter: number): Promise<Vector[]>;
}

/** What a keyless call may get instead of a request of its own. Instants are epoch ms. */
export interface Repeats {
  /** An orphan whose deadline is over is nobody's. */
  now: number;
  /** The oldest equal request that became an orphan after this instant is adopted. */
  orphanedAfter: number;
  /** The call is a retry by its own account: it may also adopt what somebody has perhaps read in part. */
  isRetry: boolean;
  /** The newest equal request that failed in vain after this instant is echoed. */
  failedAfter: number;
}

/**
 * `conflict`: nothing was written; `current` is the record that stands in the way, if it exists.
 * `adopted`: instead of being accepted the call has become the caller of `current`, an orphan until now.
 * `echoed`: nothing was written; `current` failed in vain a moment ago.
 */
export type CommitResult =
  | { status: "applied" }
  | { status: "conflict"; current: RequestRecord | undefined }
  | { status: "adopted" | "echoed"; current: RequestRecord };

/** For what turns requests wait: those of a lane that a priority and a project get. */
export interface GroupKey {
  lane: string;
  priority: RequestRecord["priority"];
  project: string;
}

/** Requests that wait in one lane, by priority and project. */
export interface ReadyGroup extends GroupKey {
  count: number;
}

/** An ended request, handed to those who wait for it. */
export interface Ended {
  record: RequestRecord;
  /** Parts of the answer, where an upstream gave one. */
  answer: Part[];
}

/**
 * The lifecycle of requests on disk. Every promise resolves after COMMIT, and rejects with a
 * StorageError only. All instants are parameters: no query reads a clock.
 */
export interface Store {
  commit(change: ChangeSet): Promise<CommitResult>;
  /** Notes, with one of the next commits, that a caller has its answer. A crash may undo it. */
  answered(id: string): void;
  get(id: string): Promise<RequestRecord | undefined>;
  byKey(project: string, endpoint: string, key: string): Promise<RequestRecord | undefined>;
  /** The newest record of the project whose answer has this id. */
  byResponse(project: string, responseId: string): Promise<RequestRecord | undefined>;
  parts(id: string, kinds: PartKind[]): Promise<Part[]>;
  /**
   * Recorded events of a stream in their order, from the batch that holds event `after + 1` on, or from the last one
   * where there is none. Those of the first batch may be known already. Stops behind the batch that reaches
   * `maxBytes`; empty where nothing is recorded.
   */
  events(id: string, after: number, maxBytes: number): Promise<EventBatch[]>;
  /** Those that have ended, and the one under way. */
  attempts(id: string): Promise<AttemptRecord[]>;
  /** How many requests wait, per lane, priority and project. */
  groups(): Promise<ReadyGroup[]>;
  /** The waiting requests of one group in the order of (dueAt, id). */
  heads(group: GroupKey, limit: number): Promise<RequestRecord[]>;
  /** Waiting requests (of one lane, if named) in the order of their deadlines. */
  expiring(query: { lane?: string; limit: number }): Promise<RequestRecord[]>;
  /** Lanes in which a waiting request was told to wait beyond `now`, and until when at the latest. */
  toldToWait(now: number): Promise<{ lane: string; until: number }[]>;
  /** Processing requests whose owner is an earlier start of this node. */
  interrupted(owner: Owner, limit: number): Promise<RequestRecord[]>;
  /** Calls back once when the request has ended, wherever it ran; the returned function stops watching. */
  watch(id: string, onEnded: (ended: Ended) => void): () => void;
  /** Whether new work may be accepted: false while free disk space is below the floor. */
  hasSpace(): boolean;
  close(): Promise<void>;
}

/** One call of one attempt. */
export interface UpstreamCall {
  upstream: string;
  /** As the target names it; `askedModel` is what the body says. */
  model: string;
  askedModel: string;
  method: string;
  /** Below the upstream's base URL, with the query as the caller sent it. */
  path: string;
  headers: [string, string][];
  body: Uint8Array;
  /** What the answer is measured by. */
  checks?: Checks;
  /** Messages, as JSON texts, to be added behind those of the body. */
  feedback?: string[];
  /** What is sent is told with the end: see `CallEnd`. */
  keepSent?: boolean;
}

/** What goes before the body in a part that keeps what was sent or received. No secret is among the headers. */
export interface ExchangeHead {
  method?: string;
  /** The whole URL, without a query's secrets. */
  url?: string;
  status?: number;
  headers: [string, string][];
}

/** One way of a call: a head, and the body as it went over the wire. */
export interface Exchange {
  head: ExchangeHead;
  body: Uint8Array;
}

/** What an answer is measured by. */
export interface Checks {
  /** JSON was asked for: whether it came is among the findings. */
  json: boolean;
  /** What the content has to follow, as JSON Schema. */
  schema?: unknown;
  /** Problems that make an answer invalid; empty where they are only noted. */
  invalidIf: Problem[];
  /** The attempt that follows an invalid answer is told that answer, and what is wrong with it. */
  feedback: boolean;
}

export interface StreamWish {
  /** The caller asked for the usage chunk; it is kept from one who did not. */
  usage: boolean;
  /** What chunks and answer call themselves instead of their own: others of the same answer were seen before. */
  identity?: Identity;
}

/** The answer's own id, and Unix seconds. */
export interface Identity {
  id: string;
  created: number;
}

/** One event of a streamed answer, read where it arrives. */
export interface Chunk {
  /** JSON on one line, as it goes to callers. */
  data: string;
  /** It says something to a caller: text, a tool call, a refusal, an end. Chunks that only name a role do not. */
  isContent: boolean;
  /** It says why the answer, or a choice of it, ends. */
  isEnd: boolean;
  /**
   * The text that it adds to the only choice; "" where it adds none. Undefined where it says anything else that an
   * answer begun anew could not be compared by: a tool call, a second choice, reasoning, log probabilities.
   */
  text: string | undefined;
  /** How many characters of output it has, of whatever kind; what cut attempts are billed for is estimated from them. */
  chars: number;
}

/** What an answer says about itself; read once, where it arrives, so that core never parses bodies. */
export interface AnswerFacts {
  /** False where a JSON answer does not parse. */
  wellFormed: boolean;
  id?: string;
  model?: string;
  /** JSON text of the answer's `usage`. */
  usage?: string;
  /** What a completion was found to be; absent for anything else. */
  findings?: Findings;
  /** Why the answer is not valid, for people; absent where it is, or where nobody asked. */
  invalid?: string[];
  /** For the attempt that follows an invalid answer, where that was asked for: see `UpstreamCall.feedback`. */
  feedback?: string[];
  /** An error object in the body, whatever the status. Scrubbed of keys and organisation ids. */
  error?: { message: string; type?: string; code?: string; param?: string };
}

/** What came back from an attempt, as data: never an exception, never a faked response. */
export type Outcome =
  | {
      kind: "response";
      status: number;
      headers: [string, string][];
      body: Uint8Array;
      facts: AnswerFacts;
      firstByteAt: number;
    }
  | { kind: "network_error"; code: string; sent: boolean }
  | {
      kind: "timeout";
      phase: "connect" | "headers" | "first_token" | "idle" | "attempt" | "share" | "deadline";
    }
  | { kind: "aborted"; sent: boolean };

/**
 * The last event of a stream is always `ended`. The outcome of a whole stream is a `response` whose
 * body is the chat.completion that its chunks make. A stream that breaks off ends with what broke it.
 */
export type UpstreamEvent =
  /** A stream begins; the headers are those that may go to a caller. */
  | { kind: "head"; headers: [string, string][] }
  /** Chunks that arrived together; none is a sign of life. */
  | { kind: "chunks"; chunks: Chunk[] }
  | CallEnd;

/** How a call ended. */
export interface CallEnd {
  kind: "ended";
  outcome: Outcome;
  /** When the call had a connection (epoch ms); undefined where it never had one. */
  connectedAt?: number;
  /** Where it was asked for, and anything was sent. */
  sent?: Exchange;
  /** Then also what had come of a stream that broke off: as the answer that it would have been. */
  received?: Exchange;
}

/** A call that is let through without a record: any method, any body, both ways as they come. */
export interface ForwardCall {
  upstream: string;
  /** Where the body names a model: how the target names it, and what the body says. */
  model?: string;
  askedModel?: string;
  method: string;
  path: string;
  headers: [string, string][];
  body: AsyncIterable<Uint8Array> | Uint8Array | undefined;
}
export type ForwardReply =
  | { kind: "response"; status: number; headers: [string, string][]; body: AsyncIterable<Uint8Array> }
  | { kind: "network_error"; code: string; sent: boolean }
  | { kind: "timeout"; phase: "connect" | "headers" };

/** Says once that a call is no longer wanted. Lighter than an AbortController, and the same in the simulation. */
export interface Abort {
  aborted: boolean;
  onAbort: (() => void) | undefined;
}

export interface Upstream {
  /** Makes a call, and resolves with its end, whatever that is. */
  call(call: UpstreamCall, abort: Abort): Promise<CallEnd>;
  /** Makes a call whose answer is wanted as a stream; its end is the last event. */
  stream(call: UpstreamCall, wish: StreamWish, abort: Abort): AsyncIterable<UpstreamEvent>;
  forward(call: ForwardCall, abort: Abort): Promise<ForwardReply>;
  /** The models that an upstream lists, or undefined where it could not be asked. */
  models(upstream: string): Promise<string[] | undefined>;
  /** Why answers could not be measured by this JSON Schema; undefined where they can. */
  schemaProblem(schema: unknown): string | undefined;
}

/** Tells what happened; no prompt, answer or secret is ever in it. */
export interface Observer {
  tell(event: Told): void;
}
export type Told =
  | { event: "accepted"; id: string; lane: string; state: State }
  | { event: "orphaned"; id: string }
  | { event: "adopted"; id: string }
  | { event: "echoed"; id: string }
  | { event: "attempt_started"; id: string; attempt: number; lane: string }
  | {
      event: "attempt_ended";
      id: string;
      attempt: number;
      lane: string;
      verdict: Verdict;
      status?: number;
      code?: string;
      durationMs: number;
      next: string;
      retryAt?: number;
    }
  | { event: "ended"; id: string; state: State; attempts: number; durationMs: number; code?: string }
  | { event: "fenced"; id: string; attempt: number }
  | { event: "gate_closed"; gate: string; why: string; until: number; strikes: number }
  | { event: "gate_opened"; gate: string }
  | { event: "breaker_opened"; breaker: string; why: string; until: number; opens: number }
  | { event: "breaker_closed"; breaker: string }
  | { event: "concurrency_lowered"; lane: string; limit: number }
  | { event: "clock_set"; byMs: number }
  | { event: "parked"; id: string; upstream: string; until: number }
  | { event: "degraded"; id: string; degraded: Degraded }
  | { event: "cache_hit"; id: string; from: string }
  | { event: "alert"; lane: string; code: string; status: number; message: string }
  | { event: "recovered"; interrupted: number; waiting: number }
  | { event: "storage_trouble"; kind: "full" | "failed" | "low"; message: string }
  | { event: "storage_recovered" }
  | { event: "erased"; what: "bodies" | "record"; count: number; why: "age" | "size" | "unwanted" }
  | { event: "bulk_ended"; id: string; action: string; state: string; done: number; failed: number }
  | { event: "search_rebuilding"; why: string }
  | { event: "fault"; where: string; message: string };

export type { Failure };
