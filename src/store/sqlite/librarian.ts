/**
 * The librarian: goes through requests that have ended, puts what they say into the text index, and packs it.
 * It only reads the database: what is to be written there goes back with each step.
 */

import type { Engine, Shelved } from "./engine.ts";
import { isHeavy } from "./ledger.ts";
import type { Op } from "./op.ts";
import { packed } from "./pack.ts";
import { isBroken, type Lookup, removeSearchFile, SearchFile } from "./search-file.ts";
import { textsOf } from "./search-texts.ts";

/** Forgotten requests that are looked after in a step. */
const forgottenMax = 64;

export interface LibrarianOptions {
  /** Of the database. */
  path: string;
  /** The number of the database's start, and whether it has had a librarian already. */
  epoch: number;
  isRestart: boolean;
  /** There is text search. */
  isOn: boolean;
}

export type Filed = Extract<Op, { kind: "filed" }>;

export interface StepQuery {
  /** Requests that have not ended, and were accepted before this instant, are indexed by their prompts. Epoch ms. */
  waitingSince: number;
  /** How many requests are dealt with. */
  limit: number;
}

export interface Step {
  /** What is to be written; undefined where there was nothing. */
  filed?: Filed;
  hasMore: boolean;
  /** Why the index has begun anew, if it has since the last step. */
  rebuilding?: string;
}

/** What it is asked, by name. */
export type LibrarianAsks = Pick<Librarian, "step" | "find" | "forget" | "flush" | "behind">;

export class Librarian {
  private readonly engine: Engine;
  private readonly path: string;
  private readonly epoch: number;
  /** Undefined where text search is turned off. */
  private file: SearchFile | undefined;
  private rebuilding: string | undefined;
  private hasRenewed = false;
  /** The newest of the requests that have not ended and are indexed. */
  private waitingTo = 0;
  /** The last of the forgotten ones that were looked after. */
  private forgottenTo = "";

  constructor(engine: Engine, { path, epoch, isRestart, isOn }: LibrarianOptions) {
    this.engine = engine;
    this.path = path;
    this.epoch = epoch;
    if (isOn) {
      const { file, why } = SearchFile.open(path, { epoch, isRestart });
      this.file = file;
      this.rebuilding = why;
    } else {
      // It would know ever less of what is there.
      removeSearchFile(path);
    }
  }

  /** Deals with some requests: those that have ended, those that wait for long and, while the index is made, all. */
  step({ waitingSince, limit }: StepQuery): Step {
    const ended = this.engine.unfiled(limit);
    const hasMore = ended.length === limit || isHeavy(ended);
    const { file } = this;
    if (!file) return { filed: filedOf(ended), hasMore };
    try {
      const waiting = this.engine.waitingSince(waitingSince, this.waitingTo, limit);
      const older = this.older(file, limit - ended.length);
      // While the index is made, one that has just ended is met twice.
      const toFile = [
        ...new Map([...older.requests, ...ended].map((request) => [request.seq, request])).values(),
      ];
      this.index(file, [...toFile, ...waiting]);
      this.waitingTo = waiting.at(-1)?.seq ?? this.waitingTo;
      file.lookedTo = older.lookedTo;
      this.dropForgotten(file);
      const { rebuilding } = this;
      this.rebuilding = undefined;
      const isMade = older.lookedTo === undefined;
      const filed = filedOf(toFile);
      const moreWait = waiting.length === limit || isHeavy(waiting);
      return { filed, hasMore: hasMore || moreWait || !isMade, rebuilding };
    } catch (error) {
      this.renew(error);
      return { hasMore: true };
    }
  }

  /** Requests that ended before the index knew of them. */
  private older(file: SearchFile, limit: number): { requests: Shelved[]; lookedTo: number | undefined } {
    const from = file.lookedTo;
    if (from === undefined || limit === 0) return { requests: [], lookedTo: from };
    const { requests, lookedTo } = this.engine.endedFrom(from, limit);
    return { requests, lookedTo: lookedTo === from ? undefined : lookedTo };
  }

  private index(file: SearchFile, requests: Shelved[]): void {
    file.add(
      requests.map(({ seq, id, project, endpoint, parts }) => ({
        seq,
        id,
        project,
        ...textsOf(endpoint, parts),
      })),
    );
  }

  /** A forgotten request that is gone from the database cannot come back. */
  private dropForgotten(file: SearchFile): void {
    const ids = file.forgotten(this.forgottenTo, forgottenMax);
    this.forgottenTo = ids.length === forgottenMax ? ids.at(-1)! : "";
    const gone = ids.filter((id) => {
      const record = this.engine.get(id);
      return !record || record.bodiesErasedAt !== undefined;
    });
    if (gone.length > 0) file.dropForgotten(gone);
  }

  /** Ids of requests, in their order. */
  find(query: Lookup): string[] {
    try {
      return this.file!.find(query);
    } catch (error) {
      this.renew(error);
      throw new Error("The text index was damaged, and is being made anew");
    }
  }

  forget(ids: string[]): void {
    try {
      this.file?.forget(ids);
    } catch (error) {
      this.renew(error);
      this.file?.forget(ids);
    }
  }

  /** What is forgotten is no longer in the file's log either. */
  flush(): void {
    try {
      this.file?.flush();
    } catch (error) {
      this.renew(error);
    }
  }

  /** How many requests are not looked through yet; while the index is being made, about. */
  behind(): number {
    const unfiled = this.engine.countUnfiled();
    const looked = this.file?.lookedTo;
    return looked === undefined ? unfiled : Math.max(unfiled, this.engine.size().requests - looked, 1);
  }

  close(): void {
    this.file?.close();
    this.engine.close();
  }

  /** Begins a new index where the error says that the old one is of no use, once. @throws the error where it does not help */
  private renew(error: unknown): void {
    if (!isBroken(error) || this.hasRenewed || !this.file) throw error;
    this.hasRenewed = true;
    this.file.close();
    this.file = SearchFile.anew(this.path, this.epoch);
    this.rebuilding = "it is damaged";
    this.waitingTo = 0;
  }
}

function filedOf(requests: Shelved[]): Filed | undefined {
  if (requests.length === 0) return undefined;
  const filed: Filed = { kind: "filed", seqs: [], packs: [] };
  for (const { seq, round, parts, isPacked } of requests) {
    filed.seqs.push([seq, round]);
    const isOurs = parts.every(({ keyId }) => keyId === null);
    if (!isPacked && isOurs && parts.length > 0) filed.packs.push([seq, packed(parts)]);
  }
  return filed;
}
