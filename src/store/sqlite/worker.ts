/**
 * A thread that holds one connection: the writer, which also holds the lock on the file, or the reader.
 * It answers every message with the same number; group commit happens on the other side, which sends the
 * next batch when this one is acknowledged.
 */

import { parentPort, workerData } from "node:worker_threads";
import type { ChangeSet, CommitResult } from "../../core/ports.ts";
import { diskErrorKind, Engine, type Reads } from "./engine.ts";
import { lockFile } from "./lock.ts";

export interface WorkerData {
  role: "writer" | "reader";
  path: string;
  node: string;
  now: number;
  synchronous: "FULL" | "NORMAL";
}

export type Ask =
  | { n: number; kind: "commit"; changes: ChangeSet[] }
  | { n: number; kind: "read"; name: keyof Reads; args: unknown[] }
  | { n: number; kind: "close" };

/** An error as it crosses the thread: `kind` says what it means for the store. */
export interface Fault {
  fault: "full" | "failed" | "bug";
  message: string;
}
export type CommitAnswer = CommitResult | Fault;
export type Answer =
  | { n: number; results: CommitAnswer[] }
  | { n: number; value: unknown }
  | ({ n: number } & Fault)
  | { ready: true; epoch: number }
  | { refused: string };

const { role, path, node, now, synchronous } = workerData as WorkerData;

function faultOf(error: unknown): Fault {
  const message = error instanceof Error ? error.message : String(error);
  return { fault: diskErrorKind(error) ?? "bug", message };
}

/** SQLite's own errors do not say which file they are about. */
function refusal(error: unknown): string {
  const { message } = faultOf(error);
  const ofSqlite = error instanceof Error && "code" in error && String(error.code).startsWith("SQLITE_");
  return ofSqlite ? `The database ${path} cannot be opened: ${message}.` : message;
}

function serve(engine: Engine, unlock: () => void): void {
  const answer = (ask: Ask): Answer => {
    switch (ask.kind) {
      case "commit": {
        const results = engine.commitAll(ask.changes);
        return { n: ask.n, results: results.map((one) => (one instanceof Error ? faultOf(one) : one)) };
      }
      case "read": {
        const read = engine[ask.name] as (...args: unknown[]) => unknown;
        return { n: ask.n, value: read.apply(engine, ask.args) };
      }
      case "close":
        engine.close();
        unlock();
        return { n: ask.n, value: undefined };
    }
  };
  parentPort!.on("message", (ask: Ask) => {
    try {
      parentPort!.postMessage(answer(ask));
    } catch (error) {
      parentPort!.postMessage({ n: ask.n, ...faultOf(error) } satisfies Answer);
    }
    if (ask.kind === "close") parentPort!.close();
  });
}

try {
  const unlock = role === "writer" ? lockFile(path) : () => {};
  const engine = new Engine(path, { readonly: role === "reader", synchronous });
  const epoch = role === "writer" ? engine.nextEpoch(node, now) : 0;
  serve(engine, unlock);
  parentPort!.postMessage({ ready: true, epoch } satisfies Answer);
} catch (error) {
  parentPort!.postMessage({ refused: refusal(error) } satisfies Answer);
}
