/**
 * Callers without a key who lose patience or their connection, and come back with the same call, also to the
 * next process; and what must hold for them: an answer is for one of them, and nobody pays twice for it.
 */

import { createHash } from "node:crypto";
import { AppError } from "../../src/core/errors.ts";
import type { Ended } from "../../src/core/ports.ts";
import { failedInVain } from "../../src/core/request.ts";
import type { Draft, Submission } from "../../src/core/submissions.ts";
import type { Audience } from "./streams.ts";
import type { SimBody } from "./upstream.ts";
import type { Process, Sim } from "./world.ts";

/** Longer than the simulated store takes for a commit. */
const writingMs = 20;
const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** A request that its caller has left. */
interface Left {
  id: string;
  at: number;
  contentSent: boolean;
  process: Process;
  /** Its mark may have met a full disk. */
  doubtful: boolean;
}

interface Handover {
  draft: Draft;
  isRetry: boolean;
  process: Process;
  left: Left | undefined;
}

/** Everybody who makes one and the same call. */
export class Crowd {
  private readonly sim: Sim;
  private readonly luck: () => number;
  private readonly audience: Audience;
  private readonly name: string;
  /** How many they are. */
  readonly size: number;
  private readonly callHash: string;
  private asked = 0;
  /** Who is on the line for a request, by the process that holds it. */
  private readonly onTheLine = new Map<string, Process>();
  /** Requests of which a caller has read something. */
  private readonly partlyRead = new Set<string>();
  /** Requests whose answer somebody has, and which process gave it. */
  private readonly confirmed = new Map<string, Process>();
  readonly acknowledged: { id: string; nonce: string; project: string; delivered?: string }[] = [];

  constructor(
    { sim, luck, audience }: { sim: Sim; luck: () => number; audience: Audience },
    name: string,
    size: number,
  ) {
    this.sim = sim;
    this.luck = luck;
    this.audience = audience;
    this.name = name;
    this.size = size;
    this.callHash = createHash("sha256").update(name).digest("hex");
  }

  /** One of them: asks until it has an answer, or has had enough. */
  async caller(draft: Draft): Promise<void> {
    let left: Left | undefined;
    const tries = 1 + Math.floor(this.luck() * 6);
    for (let tried = 0; tried < tries; tried++) {
      const process = await this.sim.serving();
      const isRetry = tried > 0 && this.luck() < 0.7;
      const submission = await this.submit(draft, isRetry, process);
      if (submission) {
        this.checkHandover(submission, { draft, isRetry, process, left });
        const outcome = draft.terms.stream
          ? await this.hear(submission, process)
          : await this.hold(submission, process);
        if (outcome === "satisfied") return;
        left = outcome;
      }
      await this.pause(writingMs + this.luck() * (this.luck() < 0.5 ? 500 : 10_000));
    }
  }

  /** Undefined where the call was refused, or the process died over it. */
  private async submit(draft: Draft, isRetry: boolean, process: Process): Promise<Submission | undefined> {
    const nonce = `${this.name} ${++this.asked}`;
    const { tokens } = JSON.parse(decoder.decode(draft.content.body)) as SimBody;
    const body = encoder.encode(JSON.stringify({ nonce, tokens }));
    const { callHash } = this;
    const runAt = draft.runAt === undefined ? undefined : this.sim.clock.now() + draft.runAt;
    const call: Draft = { ...draft, content: { ...draft.content, body }, runAt, callHash, isRetry };
    try {
      const submission = await Promise.race([process.queue.submit(call), process.died]);
      if (!submission) return undefined;
      const { record } = submission;
      this.acknowledged.push({ id: record.id, nonce: this.nonceOf(record.id), project: record.project });
      return submission;
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      return undefined;
    }
  }

  /** Stays on the line for as long as patience and connection last, and does as the API does behind it. */
  private async hold(
    { line, record }: Submission,
    process: Process,
  ): Promise<Left | "satisfied" | undefined> {
    const { clock } = this.sim;
    const { id } = record;
    if (!line) return undefined;
    this.onTheLine.set(id, process);
    const patienceMs = this.drawPatienceMs();
    const waiting = process.queue.lines.wait(line, 280_000, (hangUp) => clock.timer(patienceMs, hangUp));
    const ended = await Promise.race([waiting, process.died.then(() => "died" as const)]);
    this.onTheLine.delete(id);
    if (ended === "died") return this.leave(id, process, false);
    if (!ended) return this.orphan(id, process, false);
    if (ended.record.state !== "completed") return this.luck() < 0.5 ? "satisfied" : undefined;
    if (this.luck() < 0.3) return this.orphan(id, process, this.luck() < 0.5);
    this.confirm(ended, process);
    return "satisfied";
  }

  /** The same with a stream, of which a caller has a part as soon as it begins. */
  private async hear(
    { line, record }: Submission,
    process: Process,
  ): Promise<Left | "satisfied" | undefined> {
    const { id } = record;
    if (!line) return undefined;
    this.onTheLine.set(id, process);
    const told = await this.audience.call(process, { line, record }, this.drawPatienceMs());
    const { heard, contentSent } = told;
    this.onTheLine.delete(id);
    if (heard.kind === "died") return this.leave(id, process, contentSent);
    if (heard.kind !== "ended") return this.orphan(id, process, contentSent);
    if (heard.ended.record.state === "completed" && this.luck() >= 0.3) this.confirm(heard.ended, process);
    else if (heard.ended.record.state === "completed") return this.orphan(id, process, this.luck() < 0.5);
    else if (contentSent) process.queue.adoption.answered(id);
    return "satisfied";
  }

  private drawPatienceMs(): number {
    return this.luck() < 0.5 ? this.luck() * 3000 : this.luck() * 60_000;
  }

  private orphan(id: string, process: Process, contentSent: boolean): Left {
    process.queue.adoption.orphaned(id, contentSent);
    if (contentSent) this.partlyRead.add(id);
    return this.leave(id, process, contentSent);
  }

  private leave(id: string, process: Process, contentSent: boolean): Left {
    return { id, at: this.sim.clock.now(), contentSent, process, doubtful: this.sim.diskFull > 0 };
  }

  private confirm({ record: { id }, answer }: Ended, process: Process): void {
    this.confirmed.set(id, process);
    const bytes = answer.find(({ kind }) => kind === "answer")?.bytes;
    const ack = this.acknowledged.findLast((one) => one.id === id)!;
    ack.delivered = bytes && decoder.decode(bytes);
    // The doubt about a reset lasts a second at most.
    this.sim.clock.timer(this.luck() * 1000, () => process.alive && process.queue.adoption.answered(id));
  }

  private checkHandover({ kind, record }: Submission, { isRetry, process, left }: Handover): void {
    const { sim } = this;
    const say = (text: string) => sim.violation(`${record.id} ${text}`);
    if (!this.nonceOf(record.id).startsWith(`${this.name} `)) say("was given to another call than its own");
    if (kind !== "echoed" && this.onTheLine.get(record.id) === process) say("has two callers at a time");
    if (kind === "adopted") {
      if (record.state === "failed" || record.state === "cancelled") say(`was adopted ${record.state}`);
      if (this.partlyRead.has(record.id) && !isRetry) say("was read in part and given to a first call");
      const giver = this.confirmed.get(record.id);
      if (giver === process || sim.answered.has(record.id)) say("was answered and is given away again");
      if (giver && !isRetry) say("was answered before a crash and given to a first call");
    } else if (left && this.mustBeAdopted(left, isRetry)) {
      sim.violation(`${left.id} was left and is not found by its caller's ${kind} call`);
    }
    if (
      kind === "echoed" &&
      !(failedInVain(record) && sim.clock.now() - record.endedAt! <= 10_000 + writingMs)
    ) {
      say("is echoed, and has not just failed in vain");
    }
  }

  /** Whether a caller who is alone with its call must find what it left. */
  private mustBeAdopted({ id, at, contentSent, process, doubtful }: Left, isRetry: boolean): boolean {
    if (this.size > 1 || doubtful || this.sim.clock.now() - at > 500_000) return false;
    const state = this.sim.memory.engine.get(id)?.state;
    // One that is lost is a violation of its own.
    if (state === undefined || state === "failed" || state === "cancelled") return false;
    const maybeRead =
      contentSent || this.partlyRead.has(id) || (state === "completed" && process !== this.sim.process);
    return isRetry || !maybeRead;
  }

  private nonceOf(id: string): string {
    return this.sim.nonces.get(id) ?? "of nobody";
  }

  private pause(ms: number): Promise<void> {
    return new Promise((resolve) => this.sim.clock.timer(ms, resolve));
  }
}
