/** A faulty upstream, and the ledger that it keeps of every call: the witness against the scheduler. */

import { probePatienceMs } from "../../src/core/gate.ts";
import type {
  Abort,
  Clock,
  Outcome,
  StreamWish,
  Upstream,
  UpstreamCall,
  UpstreamEvent,
} from "../../src/core/ports.ts";
import { endOf } from "../support/call-end.ts";
import { completion, type StreamFate, telling } from "./answers.ts";

export type Fate =
  | "answer"
  | "error_500"
  | "error_503"
  | "throttle"
  | "throttle_told"
  | "unreachable"
  | "reset"
  | "silence"
  | "bad_request"
  | "bad_key"
  | "malformed"
  | "invalid"
  | "quota";

export interface Weather {
  /** Draws what happens to a call. */
  fate(now: number): Fate;
  latencyMs(): number;
  /** What a throttling answer tells, in seconds. */
  retryAfterS(): number;
  /** Of calls that are answered with a stream. */
  streams: StreamWeather;
  /** What the upstream itself makes of a call, and of how many there are. */
  provider?: Provider;
}

/** An upstream that keeps account of what is asked of it. */
export interface Provider {
  /** A call arrives. */
  begin(entry: LedgerEntry): { refusedWith?: number; headers: [string, string][] };
  end?(entry: LedgerEntry): void;
  /** Whoever was connected is not any more. */
  crashed?(): void;
}

export interface StreamWeather {
  fate(): StreamFate;
  /** Between two arrivals. */
  gapMs(): number;
  /** What is said: 0 is what the request is told as a rule. */
  variant(): number;
  luck(): number;
}

/** One call, as the upstream saw it. */
export interface LedgerEntry {
  request: string;
  upstream: string;
  lane: string;
  process: number;
  at: number;
  fate: Fate;
  /** What it costs, if it is executed. */
  tokens: Tokens;
  /** The provider's own words: a refusal, and what it tells of its limits. */
  refusedWith?: number;
  headers: [string, string][];
  /** The upstream did the work, whatever became of the answer. */
  executed: boolean;
  over: boolean;
}

/** What a request costs in truth; stands in its body. */
export interface Tokens {
  prompt: number;
  output: number;
}

/** What the simulated callers send. */
export interface SimBody {
  nonce: string;
  tokens?: Tokens;
}

type LaneModel =
  | { state: "open" }
  | { state: "closed"; since: number; until: number }
  | { state: "probing"; since: number; entry: LedgerEntry };

/** Longer than the simulated store takes for a claim. */
const writingMs = 20;

const executedFates: Fate[] = ["answer", "reset", "malformed", "invalid"];
const encoder = new TextEncoder();
const decoder = new TextDecoder();

export class SimUpstream {
  readonly ledger: LedgerEntry[] = [];
  /** All that was ever being said to a request in a stream. */
  readonly said = new Map<string, Set<string>>();
  weather: Weather;
  private readonly clock: Clock;
  private readonly violation: (text: string) => void;
  private readonly maxConcurrency: number;
  /** What each process has been told of each lane: `process lane`. */
  private readonly lanes = new Map<string, LaneModel>();
  private readonly inFlight = new Map<string, number>();
  /** Called when a call begins, to check it against the store; tells when its attempt was started. */
  onCall: (entry: LedgerEntry) => number = () => Number.POSITIVE_INFINITY;
  onBegin: (entry: LedgerEntry, startedAt: number) => void = () => {};
  onEnd: (entry: LedgerEntry, outcome: Outcome) => void = () => {};

  constructor(clock: Clock, weather: Weather, maxConcurrency: number, violation: (text: string) => void) {
    this.clock = clock;
    this.weather = weather;
    this.maxConcurrency = maxConcurrency;
    this.violation = violation;
  }

  /** The port as one process sees it. */
  forProcess(process: number): Upstream {
    return {
      call: (call, abort) => endOf(this.call(process, call, abort)),
      stream: (call, wish, abort) => this.call(process, call, abort, wish),
      forward: () => Promise.reject(new Error("not simulated")),
      models: async () => undefined,
      schemaProblem: () => undefined,
    };
  }

  private async *call(
    process: number,
    call: UpstreamCall,
    abort: Abort,
    wish?: StreamWish,
  ): AsyncGenerator<UpstreamEvent> {
    const fate = this.weather.fate(this.clock.now());
    const { nonce, tokens = { prompt: 1, output: 1 } } = JSON.parse(decoder.decode(call.body)) as SimBody;
    const { upstream } = call;
    const entry: LedgerEntry = {
      request: nonce,
      upstream,
      lane: `${upstream}/${call.model}`,
      process,
      at: this.clock.now(),
      fate,
      tokens,
      headers: [],
      executed: false,
      over: false,
    };
    this.ledger.push(entry);
    this.begin(entry, upstream);
    if (fate !== "unreachable") Object.assign(entry, this.weather.provider?.begin(entry));
    let outcome = await this.outcome(entry, abort);
    // What was to be answered is told.
    if (wish && entry.fate === "answer" && outcome.kind === "response" && outcome.status === 200)
      outcome = yield* this.tell(entry, wish, abort);
    entry.over = true;
    const key = `${process} ${upstream}`;
    this.inFlight.set(key, this.inFlight.get(key)! - 1);
    this.weather.provider?.end?.(entry);
    this.learn(entry, outcome);
    this.onEnd(entry, outcome);
    yield { kind: "ended", outcome };
  }

  private begin(entry: LedgerEntry, upstream: string): void {
    const key = `${entry.process} ${upstream}`;
    const calls = (this.inFlight.get(key) ?? 0) + 1;
    this.inFlight.set(key, calls);
    if (calls > this.maxConcurrency) this.violation(`${calls} calls at once to ${upstream}`);
    const lane = `${entry.process} ${entry.lane}`;
    const model = this.lanes.get(lane) ?? { state: "open" };
    const startedAt = this.onCall(entry);
    this.onBegin(entry, startedAt);
    // An attempt whose start was being written when the lane closed is under way: it is not called back.
    if (model.state === "open" || startedAt <= model.since) return;
    // The patience counts from the grant of the probe's slot, some writing before its call.
    if (model.state === "probing" && entry.at >= model.entry.at + probePatienceMs - writingMs) {
      this.lanes.set(lane, { state: "open" });
      return;
    }
    if (model.state === "probing") {
      this.violation("a second call while a lane is being probed");
      return;
    }
    if (entry.at < model.until)
      this.violation(`a call ${model.until - entry.at} ms before a lane may be used`);
    this.lanes.set(lane, { state: "probing", since: model.since, entry });
  }

  /** Keeps the lane's state as a process must see it from the answers that it got. */
  private learn(entry: LedgerEntry, outcome: Outcome): void {
    const lane = `${entry.process} ${entry.lane}`;
    const model = this.lanes.get(lane) ?? { state: "open" };
    const probe = model.state === "probing" && model.entry === entry;
    const throttled = outcome.kind === "response" && outcome.status === 429 && !outcome.facts.error?.code;
    if (throttled) {
      const told = Number(outcome.headers.find(([name]) => name === "retry-after")?.[1] ?? 0) * 1000;
      const until = Math.max(this.clock.now() + told, model.state === "closed" ? model.until : 0);
      const since = model.state === "closed" ? model.since : this.clock.now();
      if (model.state !== "probing" || probe) this.lanes.set(lane, { state: "closed", since, until });
    } else if (probe) {
      this.lanes.set(lane, { state: "open" });
    }
  }

  private outcome(entry: LedgerEntry, abort: Abort): Promise<Outcome> {
    return new Promise((resolve) => {
      const finish = (outcome: Outcome) => {
        abort.onAbort = undefined;
        cancel();
        resolve(outcome);
      };
      const isSilent = entry.fate === "silence" && entry.refusedWith === undefined;
      const latencyMs = isSilent ? 2 ** 40 : this.weather.latencyMs();
      const cancel = this.clock.timer(latencyMs, () => {
        entry.executed ||= !entry.refusedWith && executedFates.includes(entry.fate);
        finish(this.answer(entry));
      });
      abort.onAbort = () => finish(this.hungUp(entry));
      if (abort.aborted) abort.onAbort();
    });
  }

  /** A stream, as far as it goes. */
  private async *tell(
    entry: LedgerEntry,
    wish: StreamWish,
    abort: Abort,
  ): AsyncGenerator<UpstreamEvent, Outcome> {
    const { streams } = this.weather;
    const { luck } = streams;
    const { said, chunks, body, identity } = telling(entry.request, streams.variant(), wish, luck);
    this.said.set(entry.request, (this.said.get(entry.request) ?? new Set()).add(said));
    const end = streams.fate();
    entry.executed = end !== "malformed" && end !== "error_event";
    const isWhole = end === "whole" || end === "no_done";
    const told = isWhole ? chunks.length : Math.floor(luck() * (chunks.length - 1));
    yield { kind: "head", headers: [["x-request-id", identity.id]] };
    for (let from = 0; from < told; ) {
      if (!(await this.pause(streams.gapMs(), abort))) return this.hungUp(entry);
      const to = Math.min(told, from + 1 + Math.floor(luck() ** 3 * 8));
      yield { kind: "chunks", chunks: chunks.slice(from, to) };
      from = to;
    }
    const lastMs = end === "stall" ? 2 ** 40 : end === "no_done" ? 1000 : streams.gapMs();
    if (!(await this.pause(lastMs, abort))) return this.hungUp(entry);
    if (end === "malformed") return this.response(200, [], { wellFormed: false });
    if (end === "error_event") return this.response(200);
    if (end === "cut") return { kind: "network_error", code: "STREAM_CUT", sent: true };
    const facts = { wellFormed: true, id: identity.id, usage: usageText(entry) };
    return this.response(200, entry.headers, facts, body);
  }

  /** False where the call was given up meanwhile. */
  private pause(ms: number, abort: Abort): Promise<boolean> {
    return new Promise((resolve) => {
      if (abort.aborted) return resolve(false);
      const cancel = this.clock.timer(ms, () => {
        abort.onAbort = undefined;
        resolve(true);
      });
      abort.onAbort = () => {
        abort.onAbort = undefined;
        cancel();
        resolve(false);
      };
    });
  }

  /** Whoever hangs up does not know how far the work has come. */
  private hungUp(entry: LedgerEntry): Outcome {
    entry.executed = true;
    return { kind: "aborted", sent: true };
  }

  private answer(entry: LedgerEntry): Outcome {
    const id = `chatcmpl-${entry.request}`;
    const { headers, refusedWith } = entry;
    const usage = usageText(entry);
    if (refusedWith !== undefined) return this.response(refusedWith, headers);
    switch (entry.fate) {
      case "answer":
        return this.response(
          200,
          headers,
          { wellFormed: true, id, usage },
          completion({ id, created: 1 }, entry.request),
        );
      case "invalid":
        return this.response(200, headers, { wellFormed: true, id, usage, invalid: ["It is no JSON."] });
      case "malformed":
        return this.response(200, [], { wellFormed: false });
      case "error_500":
        return this.response(500, headers);
      case "error_503":
        return this.response(503, headers);
      case "throttle":
        return this.response(429, headers);
      case "throttle_told":
        return this.response(429, [...headers, ["retry-after", String(this.weather.retryAfterS())]]);
      case "quota":
        return this.response(429, [], {
          wellFormed: true,
          error: { message: "q", code: "insufficient_quota" },
        });
      case "bad_request":
        return this.response(400);
      case "bad_key":
        return this.response(401);
      case "unreachable":
        return { kind: "network_error", code: "ECONNREFUSED", sent: false };
      default:
        return { kind: "network_error", code: "ECONNRESET", sent: true };
    }
  }

  private response(
    status: number,
    headers: [string, string][] = [],
    facts: Extract<Outcome, { kind: "response" }>["facts"] = { wellFormed: true, error: { message: "no" } },
    text = "{}",
  ): Outcome {
    const body = encoder.encode(text);
    return { kind: "response", status, headers, body, facts, firstByteAt: this.clock.now() };
  }
}

const usageText = ({ tokens: { prompt, output } }: LedgerEntry): string =>
  JSON.stringify({ prompt_tokens: prompt, completion_tokens: output, total_tokens: prompt + output });
