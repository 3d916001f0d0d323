/** The lane in which a request starts, and its further rounds: another start on the same record. */

import type { Content } from "./attempts.ts";
import { AppError, StorageError } from "./errors.ts";
import { exchangePart } from "./exchange.ts";
import type { RetryChange } from "./ledger/ports.ts";
import type { ChangeSet, CommitResult, Part, World } from "./ports.ts";
import {
  type CallSize,
  isTerminal,
  type RequestRecord,
  type StreamTerms,
  type Terms,
  transition,
} from "./request.ts";
import { drawOf, laneOf, nextTarget, type RouteTable, targetsFor } from "./routing.ts";
import type { Scheduler } from "./scheduler.ts";
import { utf8 } from "./utf8.ts";

/** A body in place of the one before, and what was read from it. */
export interface ChangedContent {
  content: Content;
  model: string;
  promptHash?: string;
  size?: CallSize;
  maxInvalid?: number;
  /** Where the body asks for a stream. */
  stream?: StreamTerms;
}

/** What a round is begun with. */
interface Beginning {
  terms: Terms;
  priority?: RequestRecord["priority"];
  /** Epoch ms. */
  dueAt: number;
  changed?: ChangedContent;
}

export interface RoundSettings {
  table: RouteTable;
  /** For rounds that nobody waits for on the line. */
  comeBack: { maxAttempts: number; deadlineMs: number };
}

export class Rounds {
  private readonly world: World;
  private readonly settings: RoundSettings;
  private readonly scheduler: Scheduler;

  constructor(world: World, settings: RoundSettings, scheduler: Scheduler) {
    this.world = world;
    this.settings = settings;
    this.scheduler = scheduler;
  }

  /** In which lane a request waits, or starts. @throws AppError `model_not_found`, `upstream_not_found` */
  firstLane(
    id: string,
    asked: Pick<RequestRecord, "model" | "terms" | "priority">,
    deadlineAt: number,
  ): string {
    const now = this.world.clock.now();
    const { table } = this.settings;
    const targets = targetsFor(table, asked.model, asked.terms.upstream, drawOf(id)).map(laneOf);
    if (targets.length === 1) return targets[0]!;
    const openings = targets.map((lane) => this.scheduler.lanes.opening(lane, now, asked));
    const patienceMs = this.scheduler.targets.failoverAfterMs(asked);
    const patientUntil = patienceMs === undefined ? deadlineAt : now + patienceMs + 1;
    const choice = { rule: "first" as const, at: now, patientUntil };
    return nextTarget(openings, { lane: "", excluded: [] }, choice)?.lane ?? targets[0]!;
  }

  /**
   * Begins another round of a failed or cancelled request. `record` is the new state where it was applied, else what
   * stands in the way. @throws AppError `bodies_erased`, `storage_full`, …
   */
  async begin(
    current: RequestRecord,
    { terms, priority = current.priority, dueAt, changed }: Beginning,
  ): Promise<{ applied: boolean; record: RequestRecord | undefined }> {
    if (current.bodiesErasedAt !== undefined && !changed) throw bodiesErased(current.id);
    const model = changed?.model ?? current.model;
    const lane = this.firstLane(current.id, { model, terms, priority }, dueAt + terms.deadlineMs);
    const last = (await this.world.store.attempts(current.id)).at(-1);
    const moved = transition(current, {
      type: "revived",
      now: this.world.clock.now(),
      lane,
      terms,
      dueAt,
      priority,
      model: changed?.model,
      promptHash: changed?.promptHash,
      lastWasAmbiguous: last?.verdict === "ambiguous",
    });
    if (!moved) return { applied: false, record: current };
    const parts = changed && [...contentParts(changed.content), ...(await this.partsBefore(current))];
    const result = await commit(this.world, { kind: "change", transition: moved, dropAnswer: true, parts });
    if (result.status !== "applied") return { applied: false, record: result.current };
    this.scheduler.enqueue(moved.record, changed?.content);
    return { applied: true, record: moved.record };
  }

  /** What was asked until now stays with its last attempt. */
  private async partsBefore({ id, attempt }: RequestRecord): Promise<Part[]> {
    if (attempt === 0) return [];
    const parts = await this.world.store.parts(id, ["head", "body", "sent"]);
    const body = parts.find(({ kind }) => kind === "body");
    const isKept = parts.some(({ kind, seq }) => kind === "sent" && seq === attempt);
    if (!body || isKept) return [];
    return [exchangePart("sent", attempt, { head: { headers: [] }, body: body.bytes })];
  }

  /**
   * Retries a request by somebody's hand. @throws AppError `request_active`, `request_completed` where it has not
   * failed and was not cancelled, `bodies_erased`, `model_not_found`, …
   */
  async retry(
    record: RequestRecord,
    change: RetryChange,
    changed?: ChangedContent,
  ): Promise<{ applied: boolean; record: RequestRecord | undefined }> {
    const { id: requestId, state } = record;
    if (state === "completed") {
      const message = "The request completed: `replay` makes a new request of it.";
      throw new AppError("request_completed", message, { requestId });
    }
    if (!isTerminal(state)) {
      throw new AppError("request_active", `The request is ${state}: it has not ended yet.`, { requestId });
    }
    const now = this.world.clock.now();
    const dueAt = Math.max(now, change.runAt ?? now + (change.delayMs ?? 0));
    return this.begin(record, {
      terms: this.termsOf(record, change, changed),
      priority: change.priority,
      dueAt,
      changed,
    });
  }

  /** Nobody is on the line for it, so it has the time and the attempts of one that is looked up later. */
  private termsOf({ terms }: RequestRecord, change: RetryChange, changed?: ChangedContent): Terms {
    const { comeBack } = this.settings;
    const next: Terms = { ...terms, ...comeBack, ownDeadline: undefined, held: false, ...change.terms };
    // The body says whether the upstream is asked for a stream.
    next.stream = terms.stream;
    if (changed) {
      const { size, maxInvalid, stream } = changed;
      Object.assign(next, { size, maxInvalid, stream });
    }
    return next;
  }
}

export const bodiesErased = (requestId: string): AppError =>
  new AppError("bodies_erased", "The prompt and the answer of this request are no longer stored.", {
    requestId,
  });

/** The parts that go with a request when it is accepted. */
export function contentParts({ head, body }: Content): Part[] {
  return [
    { kind: "head", seq: 0, bytes: utf8(JSON.stringify(head)) },
    { kind: "body", seq: 0, bytes: body },
  ];
}

/** @throws AppError `storage_full`, `storage_failed` */
export function commit({ store }: World, change: ChangeSet): Promise<CommitResult> {
  return store.commit(change).catch(refuse);
}

function refuse(error: unknown): never {
  if (!(error instanceof StorageError)) throw error;
  const message = "The request could not be stored; nothing was sent. Try again later.";
  throw new AppError(error.kind === "full" ? "storage_full" : "storage_failed", message);
}
