/**
 * The librarian: goes through requests that have ended, puts what they say into the text index, and packs it.
 * It only reads the database: what is to be written there goes back with each step.
 */

import { faultText } from "../../core/errors.ts";
import { isHeavy, type Shelved } from "./ledger.ts";
import type { FiledOp } from "./op.ts";
import { packed } from "./pack.ts";
import type { Reader } from "./reader.ts";
import {
  type Forgotten,
  isBroken,
  type Lookup,
  removeSearchFile,
  type SearchDoc,
  SearchFile,
} from "./search-file.ts";
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

export interface StepQuery {
  /** Requests that have not ended, and were accepted before this instant, are indexed by their prompts. Epoch ms. */
  waitingSince: number;
  /** How many requests are dealt with. */
  limit: number;
}

export interface Step {
  /** What is to be written; undefined where there was nothing. */
  filed?: FiledOp;
  hasMore: boolean;
  /** Why the index has begun anew, if it has since the last step. */
  rebuilding?: string;
  /** What is wrong with a request that was filed without its text. */
  fault?: string;
}

/** What it is asked, by name. */
export type LibrarianAsks = Pick<Librarian, "step" | "find" | "forget" | "flush" | "behind">;

export class Librarian {
  private readonly reader: Reader;
  private readonly options: LibrarianOptions;
  /** Not before it is needed: where it cannot be opened, the next one to ask tries again. */
  private opened: SearchFile | undefined;
  private rebuilding: string | undefined;
  private hasRenewed = false;
  /** The newest of the requests that have not ended and are indexed. */
  private waitingTo = 0;
  /** The last of the forgotten ones that were looked after. */
  private forgottenTo = "";
  /** Of a request that could not be dealt with in the step under way. */
  private fault: string | undefined;

  constructor(reader: Reader, options: LibrarianOptions) {
    this.reader = reader;
    this.options = options;
    // It would know ever less of what is there.
    if (!options.isOn) removeSearchFile(options.path);
  }

  /** Undefined where text search is turned off. @throws where it cannot be opened now */
  private get file(): SearchFile | undefined {
    if (this.opened || !this.options.isOn) return this.opened;
    const { file, why } = SearchFile.open(this.options.path, this.options);
    this.rebuilding = why;
    this.opened = file;
    return file;
  }

  /** Deals with some requests: those that have ended, those that wait for long and, while the index is made, all. */
  step({ waitingSince, limit }: StepQuery): Step {
    this.fault = undefined;
    const ended = this.reader.unfiled(limit);
    const hasMore = ended.length === limit || isHeavy(ended);
    if (!this.options.isOn) return { filed: filedOf(ended), hasMore };
    const known = this.ofFile((file) => ({
      lookedTo: file.lookedTo,
      forgotten: file.forgotten(this.forgottenTo, forgottenMax),
    }));
    if (!known) return { hasMore: true };
    const waiting = this.reader.waitingSince(waitingSince, this.waitingTo, limit);
    const older = this.older(known.lookedTo, limit - ended.length);
    // While the index is made, one that has just ended is met twice.
    const toFile = [
      ...new Map([...older.requests, ...ended].map((request) => [request.seq, request])).values(),
    ];
    const inOrder = [...toFile, ...waiting].sort((a, b) => a.seq - b.seq);
    const gone = known.forgotten.filter((one) => this.isGone(one)).map(({ id }) => id);
    const isDone = this.ofFile((file) => {
      file.add(this.docsOf(inOrder));
      file.lookedTo = older.lookedTo;
      if (gone.length > 0) file.dropForgotten(gone);
      return true;
    });
    if (!isDone) return { hasMore: true };
    this.waitingTo = waiting.at(-1)?.seq ?? this.waitingTo;
    this.forgottenTo = known.forgotten.length === forgottenMax ? known.forgotten.at(-1)!.id : "";
    const { rebuilding } = this;
    this.rebuilding = undefined;
    const isMade = older.lookedTo === undefined;
    const moreWait = waiting.length === limit || isHeavy(waiting);
    return {
      filed: filedOf(toFile),
      hasMore: hasMore || moreWait || !isMade,
      rebuilding,
      fault: this.fault,
    };
  }

  /** Undefined where the file turned out to be of no use, and a new one has begun. */
  private ofFile<T>(work: (file: SearchFile) => T): T | undefined {
    try {
      return work(this.file!);
    } catch (error) {
      this.renew(error);
      return undefined;
    }
  }

  /** Requests that ended before the index knew of them. */
  private older(
    from: number | undefined,
    limit: number,
  ): { requests: Shelved[]; lookedTo: number | undefined } {
    if (from === undefined || limit === 0) return { requests: [], lookedTo: from };
    const { requests, lookedTo } = this.reader.endedFrom(from, limit);
    return { requests, lookedTo: lookedTo === from ? undefined : lookedTo };
  }

  /** One by one, so that no more of them than one is in memory. */
  private *docsOf(requests: Shelved[]): Iterable<SearchDoc> {
    for (const request of requests) yield this.docOf(request);
  }

  /** One request that cannot be read must not stop all others: it has no text. */
  private docOf({ seq, id, round, project, endpoint, parts, fault }: Shelved): SearchDoc {
    const doc = { seq, id, round, project };
    if (fault !== undefined) this.fault ??= fault;
    try {
      return { ...doc, ...textsOf(endpoint, parts) };
    } catch (error) {
      this.fault ??= faultText(error);
      return { ...doc, prompt: "", answer: "" };
    }
  }

  /** A forgotten request that is gone from the database cannot come back; one that was tried again is another. */
  private isGone({ id, round }: Forgotten): boolean {
    const record = this.reader.get(id);
    return !record || record.bodiesErasedAt !== undefined || record.round > round;
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
    const requests = ids.map((id) => ({ id, round: this.reader.get(id)?.round ?? 0 }));
    const isDone = this.ofFile((file) => {
      file.forget(requests);
      return true;
    });
    if (!isDone) this.file?.forget(requests);
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
    const unfiled = this.reader.countUnfiled();
    try {
      const looked = this.file?.lookedTo;
      return looked === undefined ? unfiled : Math.max(unfiled, this.reader.size().requests - looked, 1);
    } catch {
      // It is not made as long as it cannot be opened; the next step tells why.
      return Math.max(unfiled, 1);
    }
  }

  close(): void {
    this.opened?.close();
    this.reader.close();
  }

  /** Begins a new index where the error says that the old one is of no use, once. @throws the error where it does not help */
  private renew(error: unknown): void {
    if (!isBroken(error) || this.hasRenewed || !this.opened) throw error;
    this.hasRenewed = true;
    this.opened.close();
    this.opened = undefined;
    this.opened = SearchFile.anew(this.options.path, this.options.epoch);
    this.rebuilding = "it is damaged";
    this.waitingTo = 0;
  }
}

function filedOf(requests: Shelved[]): FiledOp | undefined {
  if (requests.length === 0) return undefined;
  const filed: FiledOp = { kind: "filed", seqs: [], packs: [] };
  for (const { seq, round, parts, isPacked } of requests) {
    filed.seqs.push([seq, round]);
    const isOurs = parts.every(({ keyId }) => keyId === null);
    if (!isPacked && isOurs && parts.length > 0) filed.packs.push([seq, packed(parts)]);
  }
  return filed;
}
