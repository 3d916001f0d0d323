/**
 * Witnesses of flow control: what the upstreams saw, and what a process told, held against what was configured. None
 * of them asks the code that it watches.
 */

import type { BreakerSettings } from "../../src/core/breaker.ts";
import type { UpstreamSettings } from "../../src/core/flow.ts";
import type { PaceLimits } from "../../src/core/pace.ts";
import type { Outcome, Told } from "../../src/core/ports.ts";
import { laneParts } from "../../src/core/request.ts";
import type { BudgetSettings } from "../../src/core/retry-budget.ts";
import { matchesGlob } from "../../src/core/routing.ts";
import type { SimClock } from "./clock.ts";
import type { LedgerEntry } from "./upstream.ts";
import type { Sim } from "./world.ts";

const minuteMs = 60_000;
/** The simulated store has written what it was given after this long, if the disk was not full. */
const writtenMs = 100;

/** One limit, and the calls that it is for. */
interface Place {
  name: string;
  limits: PaceLimits;
  holds: (entry: LedgerEntry) => boolean;
}

export interface Limits {
  upstreams: UpstreamSettings[];
  limitGroups: { name: string; limits: PaceLimits }[];
}

function placesOf({ upstreams, limitGroups }: Limits): Place[] {
  const places: Place[] = [];
  for (const { name, limits, lanes = [] } of upstreams) {
    if (limits) places.push({ name, limits, holds: (entry) => entry.upstream === name });
    const laneNames = (entry: LedgerEntry) => laneParts(entry.lane).model;
    const own = (model: string) =>
      lanes.find((one) => one.model === model) ?? lanes.find((one) => matchesGlob(one.model, model));
    for (const lane of lanes) {
      // A glob stands for each of its lanes, not for their sum.
      const models = new Set<string>();
      const holdsFor = (model: string) => (entry: LedgerEntry) =>
        entry.upstream === name && laneNames(entry) === model && own(model) === lane;
      for (const model of ["both", "alone", "other", "beta-1"]) if (own(model) === lane) models.add(model);
      for (const model of models)
        places.push({ name: `${name}/${model}`, limits: lane.limits, holds: holdsFor(model) });
    }
  }
  for (const { name, limits } of limitGroups) {
    const members = upstreams.filter(({ limitGroup }) => limitGroup === name).map((one) => one.name);
    places.push({ name, limits, holds: (entry) => members.includes(entry.upstream) });
  }
  return places;
}

/**
 * In no window of 60 s did an upstream see more requests than were configured; nor more tokens, as they were in truth, where callers set a limit to answers. One call that is larger
 * than a limit may go alone.
 */
export function checkLimits(sim: Sim, limits: Limits): void {
  const seen = sim.upstream.ledger.filter(({ fate }) => fate !== "unreachable");
  const tokensOf = ({ executed, tokens: { prompt, output } }: LedgerEntry) =>
    executed ? prompt + output : 0;
  for (const { name, limits: configured, holds } of placesOf(limits)) {
    const calls = seen.filter(holds);
    const { requestsPerMinute = Number.POSITIVE_INFINITY, tokensPerMinute = Number.POSITIVE_INFINITY } =
      configured;
    const largest = Math.max(0, ...calls.map(tokensOf));
    let first = 0;
    let tokens = 0;
    for (const [last, call] of calls.entries()) {
      tokens += tokensOf(call);
      while (calls[first]!.at <= call.at - minuteMs) tokens -= tokensOf(calls[first++]!);
      const count = last - first + 1;
      const at = `at ${call.at}, ${call.at - calls[first]!.at} ms`;
      if (count > requestsPerMinute)
        sim.violation(`${name} saw ${count} calls in a minute, of ${requestsPerMinute} ${at}`);
      if (tokens > Math.max(tokensPerMinute, largest))
        sim.violation(`${name} saw ${tokens} tokens in a minute, of ${tokensPerMinute} ${at}`);
    }
  }
}

type Known =
  | { state: "open"; since: number; until: number }
  | { state: "half_open"; since: number; until: number; probe: LedgerEntry; startedAt: number };

/** What is known of the calls of a breaker since it was closed, or since its process began. */
interface Record {
  since: number;
  /** Calls that certainly, or perhaps, showed that the upstream is broken; and those in a row. */
  faults: { source: string }[];
  calls: number;
  run: { at: number; source: string }[];
}

/** Holds calls against what was told of breakers; and what was told against the answers of the upstream. */
export class BreakerWitness {
  private readonly clock: SimClock;
  private readonly settings: BreakerSettings;
  private readonly violation: (text: string) => void;
  /** Those that are not closed. */
  private readonly known = new Map<string, Known>();
  private readonly records = new Map<string, Record>();
  /** When each was told last to have opened, or closed. */
  private readonly toldAt = new Map<string, number>();
  /** The one that lives; they are numbered from 1. */
  private process = 1;
  /** How often any has opened. */
  opened = 0;

  constructor(clock: SimClock, settings: BreakerSettings, violation: (text: string) => void) {
    this.clock = clock;
    this.settings = settings;
    this.violation = violation;
  }

  heard(event: Told): void {
    if (event.event !== "breaker_opened" && event.event !== "breaker_closed") return;
    const { breaker: name } = event;
    const now = this.clock.now();
    this.toldAt.set(name, now);
    if (event.event === "breaker_closed") {
      this.known.delete(name);
      this.records.delete(name);
      return;
    }
    this.opened++;
    if (!this.settings.enabled) this.violation(`the breaker of ${name} opened and is not enabled`);
    const before = this.known.get(name);
    if (event.why === "failures") this.checkReason(name);
    else if (before === undefined && this.process === 1)
      this.violation(`the breaker of ${name} was closed when its probe failed`);
    const openMs = event.until - this.clock.wall();
    const { cooldownMs, maxCooldownMs } = this.settings;
    const expectedMs = Math.min(maxCooldownMs, cooldownMs * 2 ** Math.min(event.opens - 1, 30));
    if (openMs < expectedMs - 1 || openMs > expectedMs * 1.05 + 1)
      this.violation(`the breaker of ${name} opened for ${openMs} ms, the time number ${event.opens}`);
    this.known.set(name, { state: "open", since: now, until: now + openMs });
    this.records.delete(name);
  }

  /** It opens for a run of failures, or for their share: either way there were some, and not of one request. */
  private checkReason(name: string): void {
    const { consecutiveFailures, failureRate, minCalls } = this.settings;
    const { faults, calls } = this.recordOf(name);
    const least = Math.min(consecutiveFailures, Math.ceil(failureRate * minCalls));
    const text = `the breaker of ${name} opened for ${faults.length} failures of ${calls} calls`;
    if (faults.length < least || new Set(faults.map(({ source }) => source)).size < 2) this.violation(text);
  }

  /** A call begins, whose attempt was started at that instant. */
  began(entry: LedgerEntry, startedAt: number): void {
    for (const name of [entry.lane, entry.upstream]) {
      const known = this.known.get(name);
      if (!known || startedAt <= known.since) continue;
      if (known.state === "half_open") {
        if (startedAt > known.startedAt)
          this.violation(`a second call to ${name} while its open breaker is being probed`);
      } else if (startedAt < known.until) {
        this.violation(`a call to ${name} ${known.until - startedAt} ms before its breaker lets it through`);
      } else {
        this.known.set(name, { ...known, state: "half_open", probe: entry, startedAt });
      }
    }
  }

  ended(entry: LedgerEntry, outcome: Outcome): void {
    // What becomes of a dead process's calls, its successor does not see.
    if (entry.process !== this.process) return;
    const reading = read(outcome);
    for (const name of [entry.lane, entry.upstream]) {
      const known = this.known.get(name);
      // What came of the probe is told in this very instant; until then it may be that it says nothing.
      if (known?.state === "half_open" && known.probe === entry)
        this.known.set(name, { state: "open", since: known.since, until: this.clock.now() });
      if (!known) this.note(name, entry, reading);
    }
  }

  private note(name: string, entry: LedgerEntry, reading: "fault" | "perhaps" | "no"): void {
    const record = this.recordOf(name);
    const source = name === entry.lane ? entry.request : entry.lane;
    // One that began before the breaker closed says nothing new; here it may count as failure, not for a run.
    record.calls++;
    if (reading !== "no") record.faults.push({ source });
    if (reading !== "fault" || entry.at <= record.since + writtenMs) {
      record.run = [];
      return;
    }
    const { consecutiveFailures, enabled } = this.settings;
    const now = this.clock.now();
    record.run.push({ at: now, source });
    const isLong = record.run.length >= consecutiveFailures && now - record.run[0]!.at >= 1000;
    if (!enabled || !isLong || new Set(record.run.map((one) => one.source)).size < 2) return;
    const { length } = record.run;
    const process = this.process;
    this.clock.timer(1, () => {
      const isOpen = this.known.has(name) || (this.toldAt.get(name) ?? 0) >= now;
      if (!isOpen && process === this.process)
        this.violation(`${length} failures of ${name} in a row, and its breaker is closed`);
    });
  }

  /** What was told before it was certainly on disk, the next process may not know. */
  crashed(isDiskSound: boolean): void {
    this.process++;
    const now = this.clock.now();
    this.records.clear();
    for (const [name, known] of this.known) {
      if (!isDiskSound || known.since > now - writtenMs) this.known.delete(name);
      // Its probe has died with its process.
      else if (known.state === "half_open")
        this.known.set(name, { state: "open", since: known.since, until: Math.min(known.until, now) });
    }
  }

  private recordOf(name: string): Record {
    const since = this.toldAt.get(name) ?? 0;
    const record = this.records.get(name) ?? { since, faults: [], calls: 0, run: [] };
    this.records.set(name, record);
    return record;
  }
}

/** Whether an outcome shows that the upstream is broken. Of a call that was given up only core knows why. */
function read(outcome: Outcome): "fault" | "perhaps" | "no" {
  if (outcome.kind === "network_error") return outcome.sent ? "fault" : "no";
  if (outcome.kind !== "response") return "perhaps";
  const { status, facts, headers } = outcome;
  if (status >= 200 && status < 300) return facts.wellFormed && !facts.error ? "no" : "fault";
  // It may be broken, or have too much to do.
  if (status === 503) return headers.some(([name]) => name === "retry-after") ? "no" : "perhaps";
  return status >= 500 && status !== 529 ? "fault" : "no";
}

/** A retry that was granted at some instant from `from` to `to`. */
interface Granted {
  from: number;
  to: number;
}

/** Holds the retries that a process grants against its budget for them. */
export class RetryWitness {
  private readonly sim: Sim;
  private readonly settings: BudgetSettings;
  /** By process and upstream. */
  private readonly firsts = new Map<string, number[]>();
  private readonly retries = new Map<string, Granted[]>();
  /** How many had to wait for the budget. */
  parked = 0;

  constructor(sim: Sim, settings: BudgetSettings) {
    this.sim = sim;
    this.settings = settings;
  }

  heard(event: Told, process: number): void {
    const now = this.sim.clock.now();
    if (event.event === "parked") this.parked++;
    if (event.event === "attempt_started" && event.attempt === 1)
      push(this.firsts, `${process} ${laneParts(event.lane).upstream}`, now);
    if (event.event !== "attempt_ended" || event.retryAt === undefined) return;
    const row = this.sim.memory.engine.get(event.id);
    const attempt = this.sim.memory.engine.attempts(event.id).find(({ number }) => number === event.attempt);
    const { upstream } = laneParts(event.lane);
    // Where it was called on at once, which cannot be seen any more, it does not count here.
    if (row?.state !== "retrying" || row.attempt !== event.attempt) return;
    if (!attempt || attempt.reason === "interrupted" || laneParts(row.lane).upstream !== upstream) return;
    if (!attempt.counted && attempt.verdict !== "invalid_output") return;
    const from = attempt.endedAt! - this.sim.clock.wall() + now;
    push(this.retries, `${process} ${upstream}`, { from, to: from + event.retryAt - attempt.endedAt! });
  }

  /** In no window more than the first attempts brought, the floor brought, and was saved. */
  check(): void {
    const { ratio, perSecond } = this.settings;
    const saved = Math.max(1, perSecond * 60);
    for (const [key, granted] of this.retries) {
      const firsts = this.firsts.get(key) ?? [];
      for (const { from } of granted)
        for (const windowMs of [1000, 10_000, minuteMs]) {
          const to = from + windowMs;
          const within = granted.filter((one) => one.from >= from && one.to <= to).length;
          // A first attempt is told some writing after its slot was granted.
          const earned = firsts.filter((at) => at >= from && at <= to + writtenMs).length * ratio;
          const most = earned + (perSecond * windowMs) / 1000 + saved + 1;
          if (within > most)
            return this.sim.violation(`${key}: ${within} retries in ${windowMs} ms, of ${most}`);
        }
    }
  }
}

function push<T>(map: Map<string, T[]>, key: string, value: T): void {
  const list = map.get(key) ?? [];
  map.set(key, list);
  list.push(value);
}
