/** Takes in what is submitted: as a new request, or as what is known already of one that was submitted before. */

import type { Admission } from "./admission.ts";
import type { Adoption } from "./adoption.ts";
import type { Content } from "./attempts.ts";
import { AppError } from "./errors.ts";
import type { Slot } from "./lane.ts";
import { talliesOfHit } from "./ledger/usage.ts";
import type { Line } from "./line.ts";
import type { Lines } from "./lines.ts";
import type { ChangeSet, World } from "./ports.ts";
import {
  failedInVain,
  isTerminal,
  type Origin,
  type Owner,
  type Priority,
  type RequestRecord,
  startAtOnce,
  type Terms,
} from "./request.ts";
import { commit, contentParts, type Rounds } from "./rounds.ts";
import type { Scheduler } from "./scheduler.ts";
import type { Substitutes } from "./substitutes.ts";
import type { CacheWish } from "./wishes.ts";

/** What a caller asks for, as api has read it. */
export interface Draft {
  project: string;
  endpoint: string;
  model: string;
  content: Content;
  terms: Terms;
  priority: Priority;
  /** Epoch ms; undefined = now. */
  runAt?: number;
  tags: string[];
  origin?: Origin;
  promptHash?: string;
  /** The request that it is a copy of. */
  replayOf?: string;
  idempotencyKey?: string;
  fingerprint?: string;
  /** Where a call without a key, whose caller waits, may be repeated. */
  callHash?: string;
  /** SHA-256 (hex) of what is compared where `cache` or `onFailure` look for an equal request. */
  bodyHash?: string;
  cache?: CacheWish;
  /** By its own account the call is a retry of one before. */
  isRetry?: boolean;
  /** False where its caller gets something else in place of a failure, and so has no reason to come back for it. */
  takesEcho?: boolean;
  /** The caller stays on the line. */
  hold: boolean;
  /** Whether the caller has gone. With `hold`, what is not accepted by then never is. */
  isGone?: () => boolean;
  /** Calls back when the caller goes; the returned function ends that. */
  onGone?: (callback: () => void) => () => void;
}

export type Submission = {
  /**
   * `replayed`: the key is known and its request has ended. `joined`: it is still under way. `adopted`: an
   * equal call's request whose caller had gone. `echoed`: an equal call failed in vain a moment ago.
   */
  kind: "accepted" | "joined" | "replayed" | "adopted" | "echoed";
  record: RequestRecord;
  /** Open where the draft said `hold`, but for `echoed`; to be handed to `Lines.wait`, or closed. */
  line?: Line;
  /** The caller went while its request was being written: that it is an orphan is noted already. */
  hasGone?: boolean;
};

/** What submissions need of the queue that they belong to. */
interface Needs {
  owner: Owner;
  admission: Admission;
  adoption: Adoption;
  substitutes: Substitutes;
  scheduler: Scheduler;
  rounds: Rounds;
  lines: Lines;
  /** Why nothing new is taken now. */
  refusal(): AppError | undefined;
}

export class Submissions {
  private readonly world: World;
  private readonly needs: Needs;
  /** Requests that will wait to be called, and are just being written. */
  private arriving = 0;

  constructor(world: World, needs: Needs) {
    this.world = world;
    this.needs = needs;
  }

  /** See `Queue.submit`. */
  submit(draft: Draft): Promise<Submission> {
    return this.accept(draft).catch((error) => this.knownOr(error, draft));
  }

  private async accept(draft: Draft): Promise<Submission> {
    const refusal = this.needs.refusal();
    if (refusal) throw refusal;
    const record = this.newRecord(draft);
    const known = this.needs.substitutes.mayKnow(draft) ? await this.fromCache(draft, record) : undefined;
    if (known) return known;
    try {
      let slot = this.needs.scheduler.slotFor(record);
      if (!slot && mayWaitUnaccepted(draft)) {
        const soon = this.needs.scheduler.slotSoon(record, draft.hold);
        if (soon) slot = await soon;
        this.checkStillWanted(draft, slot);
      }
      return slot ? await this.write(draft, record, slot) : await this.writeQueued(draft, record);
    } finally {
      // Callers choose the names of models: a lane that was only looked at must not stay.
      this.needs.scheduler.lanes.tidy(record.lane, this.world.clock.now());
    }
  }

  /** @throws AppError where nothing new is taken any more; undefined where a caller on the line has gone meanwhile */
  private checkStillWanted(draft: Draft, slot: Slot | undefined): void {
    const refusal = this.needs.refusal();
    // Who does not wait for the answer may go: it wants its request accepted.
    if (!refusal && !(draft.hold && draft.isGone?.())) return;
    if (slot) this.needs.scheduler.release(slot);
    throw refusal;
  }

  /** What was answered before is answered again, without a call: on a record of its own, so that it is known. */
  private async fromCache(draft: Draft, record: RequestRecord): Promise<Submission | undefined> {
    const { idempotencyKey, hold } = draft;
    const hit = await this.needs.substitutes.cached(draft, record);
    if (!hit) return undefined;
    const now = this.world.clock.now();
    const answered: RequestRecord = {
      ...record,
      ...hit.facts,
      // It is not what later ones are answered with: it would never grow old.
      bodyHash: undefined,
      callHash: undefined,
      state: "completed",
      endReason: "answered",
      dueAt: now,
      endedAt: now,
    };
    const parts = [...contentParts(draft.content), ...hit.answer];
    const key = idempotencyKey === undefined ? undefined : keyOf(draft);
    const tallies = talliesOfHit(answered);
    const result = await this.commit({ kind: "accept", record: answered, parts, tallies, key });
    if (result.status === "conflict") return this.known(draft, result.current);
    this.world.observer.tell({ event: "cache_hit", id: answered.id, from: hit.facts.cachedFrom });
    if (!hold) return { kind: "accepted", record: answered };
    const line = this.needs.lines.open(answered.id);
    line.hear({ record: answered, answer: hit.answer });
    return { kind: "accepted", record: answered, line };
  }

  private async writeQueued(draft: Draft, record: RequestRecord): Promise<Submission> {
    const refusal = this.needs.admission.queueRefusal(this.needs.scheduler.lanes.waiting + this.arriving);
    if (refusal) return this.repeatedOr(refusal, draft);
    this.arriving++;
    try {
      return await this.write(draft, record);
    } finally {
      this.arriving--;
    }
  }

  /** Where nothing new is taken, a retry still finds what it has asked for before. */
  private async repeatedOr(refusal: AppError, draft: Draft): Promise<Submission> {
    const { callHash } = draft;
    if (callHash === undefined) throw refusal;
    const repeats = this.needs.adoption.repeats(draft, this.world.clock.now());
    const result = await this.commit({ kind: "repeat", callHash, repeats });
    if (result.status !== "adopted" && result.status !== "echoed") throw refusal;
    return this.repeated(result.status, result.current);
  }

  private async write(draft: Draft, record: RequestRecord, slot?: Slot): Promise<Submission> {
    const now = this.world.clock.now();
    const first = slot ? startAtOnce(record, { now, owner: this.needs.owner }) : record;
    const line = draft.hold ? this.needs.lines.open(record.id) : undefined;
    const change: ChangeSet = {
      kind: "accept",
      record: first,
      parts: contentParts(draft.content),
      key: keyOf(draft),
      repeats: draft.callHash === undefined ? undefined : this.needs.adoption.repeats(draft, now),
    };
    const abandon = () => {
      line?.close();
      if (slot) this.needs.scheduler.release(slot);
    };
    const committed = this.commit(change);
    // Whoever goes now may come back before the commit does: the mark has to stand right behind the accept.
    let hasGone = false;
    const unwatch =
      draft.callHash === undefined
        ? undefined
        : draft.onGone?.(() => {
            hasGone = true;
            this.needs.adoption.orphaned(record.id, false);
          });
    const result = await committed.catch((error) => {
      unwatch?.();
      abandon();
      throw error;
    });
    unwatch?.();
    if (result.status !== "applied") {
      abandon();
      if (result.status === "conflict") return this.known(draft, result.current);
      return this.repeated(result.status, result.current);
    }
    const { id, lane, state } = first;
    this.world.observer.tell({ event: "accepted", id, lane, state });
    if (slot) this.needs.scheduler.run(first, slot, draft.content);
    else this.needs.scheduler.enqueue(record, draft.content);
    if (hasGone) line?.close();
    return { kind: "accepted", record: first, line, hasGone };
  }

  /** A keyless call that gets what an equal one left behind. */
  private async repeated(kind: "adopted" | "echoed", record: RequestRecord): Promise<Submission> {
    this.world.observer.tell({ event: kind, id: record.id });
    if (kind === "echoed") return { kind, record };
    try {
      return { kind, record, line: await this.needs.lines.listen(record.id, { caller: true }) };
    } catch (error) {
      this.needs.adoption.orphaned(record.id, false);
      throw error;
    }
  }

  /** What cannot be accepted may be known by its key: that is neither new work nor in need of a route. */
  private async knownOr(refusal: unknown, draft: Draft): Promise<Submission> {
    const key = keyOf(draft);
    if (!key || !(refusal instanceof AppError) || refusal.requestId !== undefined) throw refusal;
    const known = this.world.store.byKey(key.project, key.endpoint, key.key);
    // Where the store cannot even be read, the refusal says more than that.
    const current = await known.catch(() => undefined);
    if (!current || failedInVain(current)) throw refusal;
    return this.known(draft, current);
  }

  /** What an idempotency key that is taken leads to. */
  private async known(draft: Draft, current: RequestRecord | undefined): Promise<Submission> {
    if (!current) throw new AppError("internal_error", "A new request collided with an old one. Try again.");
    if (current.fingerprint !== draft.fingerprint) {
      throw new AppError(
        "idempotency_key_reused",
        "This idempotency key was used with another body. Use a new key for a new request.",
        { param: "idempotency_key", requestId: current.id },
      );
    }
    if (failedInVain(current)) return this.revive(draft, current);
    return this.knownAs(isTerminal(current.state) ? "replayed" : "joined", draft, current);
  }

  private async knownAs(
    kind: "joined" | "replayed",
    draft: Draft,
    record: RequestRecord,
  ): Promise<Submission> {
    const line = draft.hold ? await this.needs.lines.listen(record.id, { caller: true }) : undefined;
    return { kind, record, line };
  }

  /** A key whose request failed for want of time or attempts starts a new round on the same record. */
  private async revive(draft: Draft, current: RequestRecord): Promise<Submission> {
    const { content, model, promptHash } = draft;
    // What it asks for is the same; it is needed where the body that was stored has been erased since.
    const changed = current.bodiesErasedAt === undefined ? undefined : { content, model, promptHash };
    // The body that is stored says whether the upstream is asked for a stream.
    const terms = { ...draft.terms, stream: (changed ? draft : current).terms.stream };
    const dueAt = draft.runAt ?? this.world.clock.now();
    const begun = await this.needs.rounds.begin(current, { terms, dueAt, changed });
    if (begun.applied) return this.knownAs("joined", draft, begun.record!);
    return begun.record === current
      ? this.knownAs("replayed", draft, current)
      : this.known(draft, begun.record);
  }

  private newRecord(draft: Draft): RequestRecord {
    const { clock, random } = this.world;
    const now = clock.now();
    const { project, endpoint, model, terms, priority, tags, idempotencyKey, fingerprint, callHash } = draft;
    const dueAt = draft.runAt ?? now;
    const deadlineAt = dueAt + terms.deadlineMs;
    const id = random.id();
    // Every field is there from the start: records that never change their shape are copied fast.
    return {
      id,
      project,
      endpoint,
      model,
      state: "queued",
      lane: this.needs.rounds.firstLane(id, draft, deadlineAt),
      priority,
      dueAt,
      createdAt: now,
      updatedAt: now,
      startedAt: undefined,
      endedAt: undefined,
      deadlineAt,
      attempt: 0,
      round: 1,
      counted: 0,
      throttled: 0,
      invalid: 0,
      excluded: [],
      unreachableSince: undefined,
      owner: undefined,
      terms,
      idempotencyKey,
      fingerprint,
      callHash,
      duplicatePossible: false,
      tags,
      origin: draft.origin,
      promptHash: draft.promptHash,
      replayOf: draft.replayOf,
      resolvedAt: undefined,
      bodiesErasedAt: undefined,
      upstream: undefined,
      servedModel: undefined,
      responseId: undefined,
      usage: undefined,
      cost: undefined,
      findings: undefined,
      degraded: undefined,
      bodyHash: draft.bodyHash,
      cachedFrom: undefined,
      error: undefined,
      lastErrorCode: undefined,
      endReason: undefined,
      forks: [],
    };
  }

  private commit(change: ChangeSet) {
    return commit(this.world, change);
  }
}

/** A call that cannot be known yet. */
const mayWaitUnaccepted = ({ idempotencyKey, isRetry }: Draft): boolean =>
  idempotencyKey === undefined && !isRetry;

function keyOf({ project, endpoint, idempotencyKey }: Draft) {
  return idempotencyKey === undefined ? undefined : { project, endpoint, key: idempotencyKey };
}
