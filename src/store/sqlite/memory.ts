/**
 * The store in process: in memory for the simulation and for tests, on a file that is only read for `cli/`. Synchronous
 * underneath, so deterministic.
 */

import type { LedgerStore } from "../../core/ledger/ports.ts";
import type { CacheStore, ChangeSet, CommitResult, FlowStore, Store } from "../../core/ports.ts";
import { Watchers } from "../watchers.ts";
import { Engine } from "./engine.ts";
import type { Reads } from "./reader.ts";

export interface MemoryStore extends Store, FlowStore, CacheStore, LedgerStore {
  engine: Engine;
  /** Counts a start, as opening a file does. */
  nextEpoch(node: string, now: number): number;
}

export function openMemory(engine = new Engine(":memory:", { readonly: false })): MemoryStore {
  const watchers = new Watchers();
  const read =
    <N extends keyof Reads>(name: N) =>
    async (...args: Parameters<Reads[N]>): Promise<Awaited<ReturnType<Reads[N]>>> => {
      const ask = engine[name] as (...those: Parameters<Reads[N]>) => ReturnType<Reads[N]>;
      // As between threads: what cannot be copied cannot be asked.
      return ask.apply(engine, structuredClone(args)) as never;
    };
  return {
    engine,
    nextEpoch: (node, now) => engine.nextEpoch(node, now),
    async commit(change: ChangeSet): Promise<CommitResult> {
      const [result] = engine.commitAll([change]);
      if (result instanceof Error) throw result;
      if (result!.status === "applied") watchers.tell(change);
      return result!;
    },
    answered: (id) => void engine.commitAll([{ kind: "answered", ids: [id] }]),
    get: read("get"),
    byKey: read("byKey"),
    byResponse: read("byResponse"),
    parts: read("parts"),
    events: read("events"),
    attempts: read("attempts"),
    groups: read("groups"),
    heads: read("heads"),
    expiring: read("expiring"),
    toldToWait: read("toldToWait"),
    interrupted: read("interrupted"),
    flow: read("flow"),
    calledSince: read("calledSince"),
    newest: read("newest"),
    vectors: read("vectors"),
    list: read("list"),
    many: read("many"),
    counts: read("counts"),
    deadLetters: read("deadLetters"),
    usage: read("usage"),
    erasable: read("erasable"),
    unwanted: read("unwanted"),
    size: read("size"),
    bulk: read("bulk"),
    bulkByKey: read("bulkByKey"),
    bulks: read("bulks"),
    watch: (id, onEnded) => watchers.watch(id, onEnded),
    hasSpace: () => true,
    close: async () => engine.close(),
  };
}
