/** All of core in this process on simulated time, with a store in memory and an upstream that the test scripts. */

import type { Lanes } from "../../src/core/lanes.ts";
import type { Abort, Outcome, Told, Upstream, World } from "../../src/core/ports.ts";
import { Queue, type QueueSettings } from "../../src/core/queue.ts";
import type { RequestRecord, Terms } from "../../src/core/request.ts";
import type { Draft } from "../../src/core/submissions.ts";
import { openMemory } from "../../src/store/sqlite/memory.ts";
import { SimClock, seeded } from "../sim/clock.ts";
import { usual } from "../sim/world.ts";
import { noSearch } from "./no-search.ts";

const encoder = new TextEncoder();
export const minuteMs = 60_000;

/** A call that has reached the upstream. */
export interface LoopCall {
  /** Epoch ms. */
  at: number;
  upstream: string;
  model: string;
  body: Uint8Array;
}

export interface LoopOptions {
  settings: Partial<QueueSettings> & Pick<QueueSettings, "upstreams">;
  /** What a call comes to, and after how long. */
  answer?: (call: LoopCall) => { ms: number; outcome: Outcome };
  /** Changes what the queue is given to work with, before it is made. */
  world?: (world: World, clock: SimClock) => World;
}

type Asked = Partial<Omit<Draft, "terms">> & { terms?: Partial<Terms> };

export const response = (status: number, tokens = 20): Outcome => {
  const error = status === 200 ? undefined : { message: "no" };
  const usage = JSON.stringify({
    prompt_tokens: 10,
    completion_tokens: tokens - 10,
    total_tokens: tokens,
  });
  const facts = { wellFormed: true, error, usage: status === 200 ? usage : undefined };
  return { kind: "response", status, headers: [], body: encoder.encode("{}"), facts, firstByteAt: 0 };
};

/** `size`: at first a byte of text counts as a quarter of a token. */
const someTerms: Terms = {
  maxAttempts: 25,
  deadlineMs: 86_400_000,
  onUnknown: "retry",
  onDisconnect: "continue",
  held: false,
  size: { textBytes: 40, mediaTokens: 0, maxOutput: 10 },
};

export class Loop {
  readonly clock = new SimClock();
  readonly calls: LoopCall[] = [];
  readonly told: Told[] = [];
  readonly queue: Queue;
  private ids = 0;

  constructor({ settings, answer = () => ({ ms: 100, outcome: response(200) }), world }: LoopOptions) {
    const { clock, calls } = this;
    const store = openMemory();
    const comesTo = (ms: number, outcome: Outcome, abort: Abort) =>
      new Promise<Outcome>((resolve) => {
        const cancel = clock.timer(ms, () => resolve(outcome));
        abort.onAbort = () => {
          cancel();
          resolve({ kind: "aborted", sent: true });
        };
      });
    const upstream = {
      async call({ upstream, model, body }: LoopCall, abort: Abort) {
        const call = { at: clock.now(), upstream, model, body };
        calls.push(call);
        const { ms, outcome } = answer(call);
        return { kind: "ended", outcome: await comesTo(ms, outcome, abort) };
      },
      schemaProblem: () => undefined,
    } as unknown as Upstream;
    const usually: World = {
      clock,
      random: { next: seeded(1), id: () => `req_${String(++this.ids).padStart(20, "0")}` },
      store,
      flow: store,
      cache: store,
      ledger: store,
      search: noSearch,
      upstream,
      observer: { tell: (event) => this.told.push(event) },
    };
    const owner = { node: "local", epoch: store.nextEpoch("local", clock.now()) };
    const table = { upstreams: settings.upstreams.map(({ name }) => ({ name, models: [] })), routes: [] };
    this.queue = new Queue(world?.(usually, clock) ?? usually, { ...usual, owner, table, ...settings });
  }

  static async begun(options: LoopOptions): Promise<Loop> {
    const loop = new Loop(options);
    await loop.queue.recover();
    loop.queue.begin();
    return loop;
  }

  get lanes(): Lanes {
    const { scheduler } = this.queue as unknown as { scheduler: { lanes: Lanes } };
    return scheduler.lanes;
  }

  /** Submits a request that nobody stays on the line for. */
  async submit(model: string, over: Asked = {}) {
    return (await this.queue.submit(this.draft(model, over))).record;
  }

  /** A caller with its answer. */
  async call(model: string, over: Asked = {}): Promise<void> {
    const { line } = await this.queue.submit(this.draft(model, { hold: true, ...over }));
    await new Promise<unknown>((resolve) => line!.onEnded(resolve));
    line!.close();
  }

  private draft(model: string, { terms, ...over }: Asked): Draft {
    const head = { method: "POST", path: "/chat/completions", headers: [] };
    return {
      project: "acme",
      endpoint: "chat.completions",
      model,
      content: { head, body: encoder.encode("{}") },
      terms: { ...someTerms, ...terms },
      priority: "default",
      tags: [],
      hold: false,
      ...over,
    };
  }

  async submitMany(count: number, model: string, over: Asked = {}) {
    const all: RequestRecord[] = [];
    for (let i = 0; i < count; i++) all.push(await this.submit(model, over));
    return all;
  }

  /** Lets time pass. Returns how many timers fired. */
  async pass(ms: number): Promise<number> {
    const until = this.clock.now() + ms;
    this.clock.timer(ms, () => {});
    let fired = 0;
    while (await this.clock.step(until)) fired++;
    return fired;
  }

  get(id: string): Promise<RequestRecord> {
    return this.queue.get("acme", id);
  }

  callsOf(model: string): LoopCall[] {
    return this.calls.filter((call) => call.model === model);
  }
}

/** The most calls in any such span of time. */
export function mostIn(calls: LoopCall[], ms: number): number {
  return Math.max(
    0,
    ...calls.map(({ at }) => calls.filter((one) => one.at >= at && one.at < at + ms).length),
  );
}
