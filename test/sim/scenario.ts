/** A seed's story: who asks for what and when, what goes wrong, and what must hold at the end. */

import { AppError } from "../../src/core/errors.ts";
import type { Queue } from "../../src/core/queue.ts";
import { type CallSize, isTerminal, type RequestRecord, throttledKept } from "../../src/core/request.ts";
import type { Draft } from "../../src/core/submissions.ts";
import type { StreamFate } from "./answers.ts";
import { seeded, start } from "./clock.ts";
import { Crowd } from "./keyless.ts";
import { Babbling, Crowded, Metered, type ResetForm } from "./providers.ts";
import { drawSettings, sizes } from "./settings.ts";
import { Audience } from "./streams.ts";
import type { Fate, LedgerEntry, Provider, StreamWeather, Tokens } from "./upstream.ts";
import { checkLimits } from "./witness.ts";
import { type Plant, Sim } from "./world.ts";

export interface Report {
  violations: string[];
  digest: string;
  calls: number;
  crashes: number;
  requests: number;
  states: Record<string, number>;
  /** How often a keyless call got what another one had left. */
  adopted: number;
  echoed: number;
  streams: StreamReport;
  /** How often breakers opened, retries waited for their budget, and answers were not valid. */
  opened: number;
  parked: number;
  invalid: number;
}

interface StreamReport {
  completed: number;
  /** Answers that began anew after something of them was recorded. */
  restarted: number;
  /** Callers and readers of streams. */
  audience: number;
}

interface Acked {
  id: string;
  nonce: string;
  key?: string;
  project: string;
  cancelledAt?: number;
  delivered?: string;
}

const troubles: Fate[] = [
  "error_500",
  "error_503",
  "throttle",
  "throttle_told",
  "unreachable",
  "reset",
  "silence",
  "bad_request",
  "bad_key",
  "malformed",
  "invalid",
  "quota",
];

/** Faults drawn per seed: some seeds know only one kind of trouble, some know all. */
function drawWeather(luck: () => number) {
  const rates = new Map<Fate, number>();
  for (const trouble of troubles) if (luck() < 0.35) rates.set(trouble, luck() * luck() * 0.6);
  const slowness = 50 + luck() * 5000;
  return {
    provider: undefined as Provider | undefined,
    calm: false,
    fate(): Fate {
      if (this.calm) return "answer";
      let draw = luck();
      for (const [trouble, rate] of rates) {
        if (draw < rate) return trouble;
        draw -= rate;
      }
      return "answer";
    },
    latencyMs: () => 1 + Math.floor(luck() * slowness),
    retryAfterS: () => Math.floor(luck() * 40),
    streams: drawStreams(luck),
  };
}

/** Some keep account of what is asked of them, some of how many there are, and some talk nonsense about it. */
function drawProvider(luck: () => number, clock: Sim["clock"]): Provider | undefined {
  const draw = luck();
  const limits = { requests: 20 + Math.floor(luck() * 60), tokens: 10_000 + Math.floor(luck() * 50_000) };
  const forms: ResetForm[] = ["duration", "seconds", "instant", "none"];
  const how = { form: forms[Math.floor(luck() * forms.length)]!, saysWhen: luck() < 0.5 };
  if (draw < 0.2) return new Metered(clock, limits, how);
  if (draw < 0.3) return new Crowded(clock, 2 + Math.floor(luck() * 3), luck() < 0.5 ? 503 : 429);
  return draw < 0.4 ? new Babbling(luck) : undefined;
}

const breaks: StreamFate[] = ["no_done", "cut", "stall", "malformed", "error_event"];

function drawStreams(luck: () => number): StreamWeather & { calm: boolean } {
  const most = (fate: StreamFate) => (fate === "no_done" ? 1 : 0.3);
  const rates = breaks.map((fate): [StreamFate, number] => [fate, luck() < 0.5 ? luck() * most(fate) : 0]);
  const fickleness = luck() < 0.5 ? luck() * 0.7 : 0;
  const slowness = 10 + luck() ** 3 * 3000;
  return {
    calm: false,
    luck,
    fate() {
      let draw = luck();
      for (const [fate, rate] of this.calm ? [] : rates) {
        if (draw < rate) return fate;
        draw -= rate;
      }
      return "whole";
    },
    gapMs: () => Math.floor(luck() ** 2 * slowness),
    variant: () => (luck() < fickleness ? Math.floor(luck() * 3) : 0),
  };
}

const encoder = new TextEncoder();
const storyMs = 120_000;
const hourMs = 3_600_000;

export async function tell(seed: number, plant?: Plant): Promise<Report> {
  const luck = seeded(seed ^ 0x5eed);
  const weather = drawWeather(luck);
  const maxConcurrency = 1 + Math.floor(luck() * 6);
  const diskFull = luck() < 0.2 ? luck() * 0.1 : 0;
  const settings = drawSettings(seeded(seed ^ 0xf10e), maxConcurrency);
  const sim = new Sim({ seed, weather, maxConcurrency, diskFull, settings, plant });
  weather.provider = drawProvider(seeded(seed ^ 0x9e0), sim.clock);
  const acked: Acked[] = [];
  const audience = new Audience(sim, luck, start + storyMs);
  await sim.boot();
  watchCalls(sim, acked);
  const crowds = schedule({ sim, luck, acked, audience, drawSize: sizes(seeded(seed ^ 0x512e)) });
  const crashes = await live(sim, luck);
  weather.calm = true;
  weather.streams.calm = true;
  sim.diskFull = 0;
  await drain(sim);
  audience.check();
  check(sim, [...acked, ...crowds.flatMap(({ acknowledged }) => acknowledged)]);
  checkLimits(sim, settings);
  sim.retries.check();
  const rows = all(sim);
  const states: Record<string, number> = {};
  for (const { state } of rows) states[state] = (states[state] ?? 0) + 1;
  await sim.memory.close();
  const { violations } = sim;
  return {
    violations,
    digest: sim.digest(),
    calls: sim.upstream.ledger.length,
    crashes,
    requests: rows.length,
    states,
    adopted: sim.told.filter(({ event }) => event === "adopted").length,
    echoed: sim.told.filter(({ event }) => event === "echoed").length,
    streams: {
      completed: rows.filter(({ state, terms }) => state === "completed" && terms.stream).length,
      restarted: rows.filter(({ id }) => sim.recordings.beginnings(id) > 1).length,
      audience: audience.size,
    },
    opened: sim.breakers.opened,
    parked: sim.retries.parked,
    invalid: sim.upstream.ledger.filter(({ fate }) => fate === "invalid").length,
  };
}

/** Lets the story run; every now and then the process dies and another one takes over. */
async function live(sim: Sim, luck: () => number): Promise<number> {
  const crashEveryMs = luck() < 0.6 ? 5000 + luck() * 60_000 : Number.POSITIVE_INFINITY;
  let nextCrashAt = start + luck() * crashEveryMs;
  let crashes = 0;
  while (sim.clock.now() < start + storyMs) {
    if (!(await sim.clock.step(Math.min(start + storyMs, nextCrashAt)))) {
      if (nextCrashAt > start + storyMs) break;
      sim.clock.timer(Math.max(0, nextCrashAt - sim.clock.now()), () => {});
      await sim.clock.step(nextCrashAt);
      // Now and then just while events are on their way to the disk, if there are any soon.
      if (luck() < 0.3) while (sim.eventsUnderWay === 0 && (await sim.clock.step(nextCrashAt + 2000)));
      sim.crash();
      crashes++;
      await sim.boot();
      nextCrashAt = sim.clock.now() + 1 + luck() * crashEveryMs;
    }
  }
  return crashes;
}

/** The faults are over: everything must come to an end, by its deadline at the latest. */
async function drain(sim: Sim): Promise<void> {
  const limit = sim.clock.now() + 26 * hourMs;
  for (let steps = 0; steps < 200_000; steps++) {
    if (steps % 64 === 0 && all(sim).every(({ state }) => isTerminal(state))) break;
    if (!(await sim.clock.step(limit))) break;
  }
  // Whoever reads is told the end.
  const last = sim.clock.now() + 60_000;
  while (await sim.clock.step(last));
}

const all = (sim: Sim): RequestRecord[] =>
  ["p1", "p2"].flatMap((project) => sim.memory.engine.list({ project, order: "asc", limit: 100_000 }));

interface Story {
  sim: Sim;
  luck: () => number;
  acked: Acked[];
  audience: Audience;
  drawSize: () => { size: CallSize; tokens: Tokens };
}

function schedule(story: Story): Crowd[] {
  const { sim, luck, audience, drawSize } = story;
  const crowds: Crowd[] = [];
  const count = 10 + Math.floor(luck() * 40);
  for (let i = 0; i < count; i++) {
    const draft = drawDraft(luck, i, drawSize());
    const at = luck() * storyMs * 0.8;
    if (draft.terms.held && draft.idempotencyKey === undefined) {
      const size = luck() < 0.7 ? 1 : 2 + Math.floor(luck() * 4);
      const crowd = new Crowd({ sim, luck, audience }, `n${i}`, size);
      crowds.push(crowd);
      for (let n = 0; n < crowd.size; n++)
        sim.clock.timer(at + Math.floor(luck() * 4) * 100, () => void crowd.caller(draft));
      continue;
    }
    const copies = draft.idempotencyKey && luck() < 0.5 ? 2 : 1;
    for (let copy = 0; copy < copies; copy++) {
      const later = copy === 0 ? 0 : luck() < 0.5 ? 1 : luck() * 30_000;
      const cancelAfterMs = luck() < 0.1 ? luck() * 20_000 : undefined;
      sim.clock.timer(at + later, () => void ask(story, draft, `n${i}`, cancelAfterMs));
    }
  }
  return crowds;
}

function drawDraft(luck: () => number, i: number, { size, tokens }: ReturnType<Story["drawSize"]>): Draft {
  const held = luck() < 0.4;
  const key = luck() < 0.4 ? `key${Math.floor(luck() * 15)}` : undefined;
  const project = luck() < 0.7 ? "p1" : "p2";
  const nonce = key === undefined ? `n${i}` : `${project} ${key}`;
  const start = luck();
  return {
    project,
    endpoint: "chat.completions",
    model: ["both", "alone", "other", "beta-1"][Math.floor(luck() * 4)]!,
    content: {
      head: { method: "POST", path: "/chat/completions", headers: [] },
      body: encoder.encode(JSON.stringify({ nonce, tokens })),
    },
    terms: {
      maxAttempts: held ? 5 : 25,
      deadlineMs: held ? 600_000 : luck() < 0.2 ? 5000 + Math.floor(luck() * 60_000) : 86_400_000,
      onUnknown: luck() < 0.2 ? "fail" : "retry",
      onDisconnect: "continue",
      held,
      stream: luck() < 0.4 ? { mode: luck() < 0.15 ? "buffered" : "live", usage: luck() < 0.3 } : undefined,
      size,
      maxInvalid: size.textBytes % 3,
    },
    priority: (["interactive", "default", "batch"] as const)[Math.floor(luck() * 3)]!,
    runAt: start < 0.15 ? Math.floor(start * 1e6) : undefined,
    tags: [],
    idempotencyKey: key,
    fingerprint: key === undefined ? undefined : "ab".repeat(32),
    hold: held || luck() < 0.3,
  };
}

async function ask(
  story: Story,
  draft: Draft,
  nonce: string,
  cancelAfterMs: number | undefined,
): Promise<void> {
  const { sim, luck, acked, audience } = story;
  const process = await sim.serving();
  const { queue } = process;
  const runAt = draft.runAt === undefined ? undefined : sim.clock.now() + draft.runAt;
  try {
    const { record, line } = await queue.submit({ ...draft, runAt });
    const ack: Acked = { id: record.id, nonce, key: draft.idempotencyKey, project: draft.project };
    acked.push(ack);
    if (cancelAfterMs !== undefined) sim.clock.timer(cancelAfterMs, () => void cancel(sim, queue, ack));
    // Also of what was not asked for as a stream.
    if (luck() < (draft.terms.stream ? 0.6 : 0.1)) void audience.read(ack.project, ack.id);
    if (!line) return;
    if (draft.terms.stream) {
      const patienceMs = luck() < 0.7 ? 1e9 : luck() * 10_000;
      const { heard } = await audience.call(process, { line, record }, patienceMs);
      // Who has a key comes back with it.
      const comesBack = draft.idempotencyKey !== undefined && heard.kind === "died";
      if (comesBack) sim.clock.timer(luck() * 5000, () => void ask(story, draft, nonce, undefined));
      return;
    }
    const ended = await queue.lines.wait(line, 50_000);
    const answer = ended?.answer.find(({ kind }) => kind === "answer");
    if (ended?.record.state === "completed" && answer) ack.delivered = new TextDecoder().decode(answer.bytes);
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
  }
}

async function cancel(sim: Sim, queue: Queue, ack: Acked): Promise<void> {
  try {
    await queue.cancel(ack.project, ack.id);
    ack.cancelledAt = sim.clock.now();
  } catch (error) {
    if (!(error instanceof AppError)) throw error;
  }
}

/** What must hold whenever a call begins. */
export function watchCalls(sim: Sim, acked: Acked[]): void {
  const { engine } = sim.memory;
  sim.upstream.onCall = (entry: LedgerEntry) => {
    if (entry.process !== sim.process.number) return Number.NEGATIVE_INFINITY;
    const ids = sim.byNonce.get(entry.request) ?? [];
    const row = ids.map((id) => engine.get(id)!).find(({ state }) => state === "processing");
    if (!row) {
      // A cancellation may be faster than the call whose start it undoes.
      const cancelled = acked.some((ack) => ack.cancelledAt === sim.clock.now());
      if (!cancelled) sim.violation(`a call for ${entry.request} without a started attempt on disk`);
      return Number.NEGATIVE_INFINITY;
    }
    const now = sim.clock.wall();
    const started = engine.attempts(row.id).at(-1);
    if (started?.endedAt !== undefined || started?.number !== row.attempt) {
      sim.violation(`${row.id} is processing without an open attempt`);
    }
    if (now < row.dueAt) sim.violation(`${row.id} was called ${row.dueAt - now} ms early`);
    if (row.updatedAt >= row.deadlineAt) sim.violation(`${row.id} was called after its deadline`);
    return row.updatedAt;
  };
}

/** What must hold at the end. */
function check(sim: Sim, acked: Acked[]): void {
  const rows = all(sim);
  const byId = new Map(rows.map((row) => [row.id, row]));
  for (const ack of acked) if (!byId.has(ack.id)) sim.violation(`${ack.id} was acknowledged and is lost`);
  for (const row of rows) checkRecord(sim, row);
  for (const ack of acked) checkDelivery(sim, ack);
  const byKey = new Map<string, Set<string>>();
  for (const { key, project, id } of acked) {
    if (key !== undefined)
      byKey.set(`${project} ${key}`, (byKey.get(`${project} ${key}`) ?? new Set()).add(id));
  }
  for (const [key, ids] of byKey) if (ids.size > 1) sim.violation(`${key} stands for ${ids.size} requests`);
}

const isGood = (fate: Fate): boolean => fate !== "malformed" && fate !== "invalid";

function checkRecord(sim: Sim, row: RequestRecord): void {
  const { engine } = sim.memory;
  if (!isTerminal(row.state)) sim.violation(`${row.id} is still ${row.state}`);
  const attempts = engine.attempts(row.id);
  const nonce = sim.nonces.get(row.id)!;
  const sharing = sim.byNonce.get(nonce)!;
  const calls = sim.upstream.ledger.filter(({ request }) => request === nonce);
  if (sharing.length === 1) {
    if (calls.length > row.attempt)
      sim.violation(`${row.id}: ${calls.length} calls, ${row.attempt} attempts`);
    const executed = calls.filter((call) => call.executed && isGood(call.fate)).length;
    const known = attempts.filter(({ verdict }) => verdict === "success").length;
    const unsure = row.duplicatePossible || row.endReason === "outcome_unknown" || row.state !== "completed";
    if (executed > Math.max(1, known) && !unsure)
      sim.violation(`${row.id} ran ${executed} times and does not say so`);
  }
  const patient = row.terms.deadlineMs > 12 * hourMs;
  if (patient && row.endReason === "deadline") sim.violation(`${row.id} missed a deadline a day away`);
  if (row.endedAt !== undefined && row.endedAt > start + storyMs + hourMs) {
    sim.violation(`${row.id} ended ${row.endedAt - start - storyMs} ms after the last fault`);
  }
  checkInvalid(sim, row);
  if (row.counted > row.terms.maxAttempts) sim.violation(`${row.id} counted ${row.counted} attempts`);
  const throttled = attempts.filter(({ verdict }) => verdict === "throttled").length;
  if (throttled > throttledKept + 1) sim.violation(`${row.id} keeps ${throttled} throttled attempts`);
  const open = attempts.filter(({ endedAt }) => endedAt === undefined);
  if (open.length > 0) sim.violation(`${row.id} has ended with an open attempt`);
  if (row.state === "completed" && engine.parts(row.id, ["answer"]).length !== 1) {
    sim.violation(`${row.id} completed without an answer`);
  }
}

/** Answers that are not valid have a budget of their own, and the last of them is kept. */
function checkInvalid(sim: Sim, { id, round, invalid, endReason, error, terms }: RequestRecord): void {
  const attempts = sim.memory.engine.attempts(id).filter((one) => one.verdict === "invalid_output");
  if (attempts.some(({ counted }) => counted)) sim.violation(`${id} counted an invalid answer`);
  const inRound = attempts.filter((one) => one.round === round).length;
  if (inRound !== invalid) sim.violation(`${id} had ${inRound} invalid answers, and says ${invalid}`);
  const most = (terms.maxInvalid ?? 0) + 1;
  if (invalid > most) sim.violation(`${id} had ${invalid} invalid answers, of ${most}`);
  if (endReason !== "invalid_output") return;
  if (invalid !== most) sim.violation(`${id} failed for ${invalid} invalid answers, of ${most}`);
  if (error?.code !== "invalid_output") sim.violation(`${id} failed as ${error?.code}`);
  if (sim.memory.engine.parts(id, ["answer"]).length !== 1) sim.violation(`${id} lost its invalid answer`);
}

function checkDelivery(sim: Sim, ack: Acked): void {
  const row = sim.memory.engine.get(ack.id);
  if (ack.cancelledAt !== undefined) {
    if (row?.state !== "cancelled") sim.violation(`${ack.id} was cancelled and is ${row?.state}`);
    const late = sim.upstream.ledger.some(
      ({ request, at }) => request === ack.nonce && ack.key === undefined && at > ack.cancelledAt!,
    );
    if (late) sim.violation(`${ack.id} was called after it was cancelled`);
  }
  if (ack.delivered === undefined) return;
  const [answer] = sim.memory.engine.parts(ack.id, ["answer"]);
  const recorded = answer && new TextDecoder().decode(answer.bytes);
  if (recorded !== ack.delivered)
    sim.violation(`${ack.id} was answered with something else than is recorded`);
}
