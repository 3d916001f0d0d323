/**
 * The embedded store: a writer thread with group commit and a reader thread, on one file; a second reader from when
 * somebody first asks for lists and sums, which take longer than what requests wait for; and the librarian's thread.
 *
 * Group commit needs no timer: while one batch is being written and the next is on its way, whatever arrives is the
 * one after it.
 */

import { mkdir, statfs } from "node:fs/promises";
import { dirname } from "node:path";
import { scheduler } from "node:timers/promises";
import { faultText, StorageError } from "../../core/errors.ts";
import type { LedgerStore } from "../../core/ledger/ports.ts";
import type {
  CacheStore,
  ChangeSet,
  Clock,
  CommitResult,
  FlowStore,
  Observer,
  Store,
} from "../../core/ports.ts";
import { Watchers } from "../watchers.ts";
import { type FiledOp, type Op, opOf, sizeOf } from "./op.ts";
import { pack } from "./parcel.ts";
import type { Reads } from "./reader.ts";
import { Search } from "./search.ts";
import { faultError, Thread } from "./thread.ts";

export interface SqliteOptions {
  path: string;
  node: string;
  /** Below this much free space on the file's disk no new work is accepted; 0 turns the check off. */
  minFreeDiskBytes: number;
  /** Prompts and answers can be searched; otherwise there is no index of them. */
  search: boolean;
  clock: Clock;
  observer: Observer;
  /** The disk or the file is in doubt: the process must stop and recover on its next start. */
  onFailed: (error: Error) => void;
  /** NORMAL loses acknowledged commits on a power cut: only for the test that shows it. */
  synchronous?: "FULL" | "NORMAL";
}

interface Pending {
  /** What watchers are told, where it is theirs to know. */
  change?: ChangeSet;
  op: Op;
  resolve(result: CommitResult): void;
  reject(error: Error): void;
}

/** So many changes go into one transaction at most; a longer one would make each of them wait. */
const batchMax = 512;
const batchBytesMax = 32 * 1024 * 1024;
/** So many are not kept until the end of the turn: the thread writes them while the rest of the turn is dealt with. */
const batchEnough = 32;
/** While the thread writes one batch the next is on its way, so that it never waits for this thread. */
const batchesInFlight = 2;
/** Notes that are lazy wait this long at most for a commit that takes them along. */
const lazyMs = 1000;
const spaceCheckMs = 1000;
/** A disk that was too full has room again when this much is free, also where no floor is set. */
const roomBytes = 1024 * 1024;

/** After these there is something to do for the librarian. */
const noted = new Set<ChangeSet["kind"]>(["accept", "change", "erase"]);

export class SqliteStore implements Store, FlowStore, CacheStore, LedgerStore {
  /** The number of this start. */
  readonly epoch: number;
  readonly search: Search;
  private readonly writer: Thread;
  private readonly reader: Thread;
  private lister: Promise<Thread> | undefined;
  private readonly options: SqliteOptions;
  private readonly watchers = new Watchers();
  private pending: Pending[] = [];
  /** Requests whose callers have their answers, not yet written. */
  private answeredIds: string[] = [];
  private cancelLazy: (() => void) | undefined;
  private armed = false;
  private inFlight = 0;
  private space = true;
  private cancelSpaceCheck: () => void = () => {};
  /** Why nothing is written any more. */
  private failure: StorageError | undefined;
  private closed = false;
  private closing: Promise<void> | undefined;
  private onDrained: (() => void) | undefined;

  private constructor(options: SqliteOptions, writer: Thread, reader: Thread) {
    this.options = options;
    this.writer = writer;
    this.reader = reader;
    this.epoch = writer.epoch;
    const { path, search: isOn, clock, observer } = options;
    const write = (filed: FiledOp) => this.file(filed);
    this.search = new Search({ path, epoch: writer.epoch, isOn, clock, observer, write });
  }

  /** Opens (and creates or upgrades) the file. @throws Error when another process owns it, or it is no database of ours. */
  static async open(options: SqliteOptions): Promise<SqliteStore> {
    const { path, node, clock, synchronous = "FULL" } = options;
    await mkdir(dirname(path), { recursive: true });
    const writer = await Thread.start({ role: "writer", path, node, now: clock.now(), synchronous });
    const reader = await Thread.start({ role: "reader", path }).catch(async (error) => {
      await writer.ask({ kind: "close" });
      throw error;
    });
    const store = new SqliteStore(options, writer, reader);
    await store.checkSpace();
    return store;
  }

  commit(change: ChangeSet): Promise<CommitResult> {
    if (noted.has(change.kind)) this.search.note();
    // What cannot be written is a rejection as any other.
    return new Promise((resolve, reject) => this.enqueue({ change, op: opOf(change), resolve, reject }));
  }

  private async file(filed: FiledOp): Promise<void> {
    await new Promise<CommitResult>((resolve, reject) => this.enqueue({ op: filed, resolve, reject }));
  }

  private enqueue(pending: Pending): void {
    if (this.closed) return pending.reject(closedError());
    this.pending.push(pending);
    if (this.pending.length >= batchEnough) this.writeNext();
    else this.arm();
  }

  answered(id: string): void {
    if (this.closing) return;
    this.answeredIds.push(id);
    this.cancelLazy ??= this.options.clock.timer(lazyMs, () => this.flushAnswered());
  }

  get: Store["get"] = (id) => this.read("get", id);
  byKey: Store["byKey"] = (...key) => this.read("byKey", ...key);
  byResponse: Store["byResponse"] = (...key) => this.read("byResponse", ...key);
  parts: Store["parts"] = (id, kinds) => this.read("parts", id, kinds);
  events: Store["events"] = (id, after, maxBytes) => this.read("events", id, after, maxBytes);
  attempts: Store["attempts"] = (id) => this.read("attempts", id);
  groups: Store["groups"] = () => this.read("groups");
  heads: Store["heads"] = (group, limit) => this.read("heads", group, limit);
  expiring: Store["expiring"] = (query) => this.read("expiring", query);
  toldToWait: Store["toldToWait"] = (now) => this.read("toldToWait", now);
  interrupted: Store["interrupted"] = (owner, limit) => this.read("interrupted", owner, limit);
  flow: FlowStore["flow"] = () => this.read("flow");
  calledSince: FlowStore["calledSince"] = (at) => this.read("calledSince", at);
  newest: CacheStore["newest"] = (...key) => this.read("newest", ...key);
  vectors: CacheStore["vectors"] = (...key) => this.read("vectors", ...key);
  list: LedgerStore["list"] = (query) => this.survey("list", query);
  many: LedgerStore["many"] = (ids) => this.survey("many", ids);
  counts: LedgerStore["counts"] = (filter, by) => this.survey("counts", filter, by);
  deadLetters: LedgerStore["deadLetters"] = (filter, limit) => this.survey("deadLetters", filter, limit);
  usage: LedgerStore["usage"] = (query) => this.survey("usage", query);
  erasable: LedgerStore["erasable"] = (query) => this.read("erasable", query);
  unwanted: LedgerStore["unwanted"] = (...query) => this.read("unwanted", ...query);
  size: LedgerStore["size"] = () => this.read("size");
  bulk: LedgerStore["bulk"] = (id) => this.read("bulk", id);
  bulkByKey: LedgerStore["bulkByKey"] = (project, key) => this.read("bulkByKey", project, key);
  bulks: LedgerStore["bulks"] = (query) => this.read("bulks", query);
  watch: Store["watch"] = (id, onEnded) => this.watchers.watch(id, onEnded);

  hasSpace(): boolean {
    return this.space && !this.failure;
  }

  /** Waits until everything that was handed in is on disk, then closes. */
  close(): Promise<void> {
    this.closing ??= this.drainAndClose();
    return this.closing;
  }

  private async drainAndClose(): Promise<void> {
    this.cancelSpaceCheck();
    await this.search.close();
    this.flushAnswered();
    if (this.inFlight > 0 || this.pending.length > 0) {
      await new Promise<void>((resolve) => {
        this.onDrained = resolve;
      });
    }
    this.closed = true;
    await this.reader.ask({ kind: "close" }).catch(() => {});
    await this.lister?.then((lister) => lister.ask({ kind: "close" })).catch(() => {});
    await this.writer.ask({ kind: "close" }).catch(() => {});
  }

  private flushAnswered(): void {
    if (this.answeredIds.length === 0) return;
    this.pending.push(this.takeAnswered());
    this.arm();
  }

  /** Not to be told twice: where it cannot be written, no more is lost than in a crash. */
  private takeAnswered(): Pending {
    this.cancelLazy?.();
    this.cancelLazy = undefined;
    const ids = this.answeredIds;
    this.answeredIds = [];
    return { op: { kind: "answered", ids }, resolve() {}, reject() {} };
  }

  /** What is handed in during one turn of the event loop shares a batch, unless it is much. */
  private arm(): void {
    if (this.armed || this.inFlight >= batchesInFlight) return;
    this.armed = true;
    void scheduler.yield().then(() => {
      this.armed = false;
      this.writeNext();
    });
  }

  private writeNext(): void {
    if (this.pending.length === 0 || this.inFlight >= batchesInFlight) return;
    void this.writeBatch(this.takeBatch());
    if (this.pending.length > 0) this.arm();
  }

  /** At least one change, and no more than a transaction or one buffer should hold. */
  private takeBatch(): Pending[] {
    let count = 0;
    let bytes = 0;
    while (count < this.pending.length && count < batchMax && bytes < batchBytesMax) {
      bytes += sizeOf(this.pending[count++]!.op);
    }
    return this.pending.splice(0, count);
  }

  private async writeBatch(batch: Pending[]): Promise<void> {
    if (this.answeredIds.length > 0) batch.push(this.takeAnswered());
    this.inFlight++;
    try {
      // After a failed fsync a second one may succeed without having written anything: no more promises are made.
      if (this.failure) throw this.failure;
      const parcel = pack(batch.map(({ op }) => op));
      const reply = await this.writer.ask({ kind: "commit", parcel }, [parcel.bytes]);
      const others = new Map("others" in reply ? reply.others : []);
      for (const [i, one] of batch.entries()) this.finish(one, others.get(i) ?? { status: "applied" });
    } catch (error) {
      for (const { reject } of batch) reject(this.trouble(error));
    }
    this.inFlight--;
    if (this.pending.length > 0) this.arm();
    else if (this.inFlight === 0) this.onDrained?.();
  }

  private finish(pending: Pending, result: CommitResult | Parameters<typeof faultError>[0]): void {
    if ("fault" in result) {
      pending.reject(this.trouble(faultError(result)));
      return;
    }
    pending.resolve(result);
    if (result.status !== "applied" || !pending.change) return;
    try {
      this.watchers.tell(pending.change);
    } catch (error) {
      this.options.observer.tell({ event: "fault", where: "watcher", message: faultText(error) });
    }
  }

  /** Takes note of what an error means for the work to come. */
  private trouble(error: unknown): Error {
    const known = error instanceof Error ? error : new Error(String(error));
    if (!(known instanceof StorageError) || known === this.failure) return known;
    const { kind } = known;
    const message = `The database ${this.options.path}: ${known.message}.`;
    const named = new StorageError(kind, message);
    if (kind === "full" && this.space) {
      this.space = false;
      this.options.observer.tell({ event: "storage_trouble", kind, message });
    }
    if (kind === "failed" && !this.failure) {
      this.failure = named;
      this.options.observer.tell({ event: "storage_trouble", kind, message });
      this.options.onFailed(named);
    }
    return named;
  }

  private read<N extends keyof Reads>(name: N, ...args: Parameters<Reads[N]>): Promise<ReturnType<Reads[N]>> {
    return this.readBy(this.reader, name, ...args);
  }

  /** Reads what may take some time, so that nothing has to wait behind it that a request waits for. */
  private survey<N extends keyof Reads>(
    name: N,
    ...args: Parameters<Reads[N]>
  ): Promise<ReturnType<Reads[N]>> {
    if (this.closing) return Promise.reject(closedError());
    this.lister ??= this.startLister();
    return this.readBy(this.lister, name, ...args);
  }

  private startLister(): Promise<Thread> {
    return Thread.start({ role: "reader", path: this.options.path }).catch((error) => {
      // The next one to ask tries again.
      this.lister = undefined;
      throw error;
    });
  }

  private async readBy<N extends keyof Reads>(
    reader: Thread | Promise<Thread>,
    name: N,
    ...args: Parameters<Reads[N]>
  ): Promise<ReturnType<Reads[N]>> {
    if (this.closed) throw closedError();
    try {
      return await (await reader).read(name, ...args);
    } catch (error) {
      throw this.trouble(error);
    }
  }

  private async checkSpace(): Promise<void> {
    const { minFreeDiskBytes, clock, observer, path } = this.options;
    try {
      const { bavail, bsize } = await statfs(dirname(path));
      const had = this.space;
      this.space = bavail * bsize >= (had ? minFreeDiskBytes : Math.max(minFreeDiskBytes, roomBytes));
      if (had && !this.space) {
        const message = `less than ${minFreeDiskBytes} bytes are free: no new requests are accepted`;
        observer.tell({ event: "storage_trouble", kind: "low", message });
      }
      if (!had && this.space) observer.tell({ event: "storage_recovered" });
    } catch (error) {
      // Who has closed the store may have taken its directory away meanwhile.
      if (!this.closing) observer.tell({ event: "fault", where: "statfs", message: String(error) });
    }
    if (!this.closing) this.cancelSpaceCheck = clock.timer(spaceCheckMs, () => void this.checkSpace());
  }
}

const closedError = () => new StorageError("failed", "The store is closed.");
