/**
 * A thread that holds one connection: the writer, which also holds the lock on the file, or the reader.
 * It answers every question with its number; group commit happens on the other side, which sends the
 * next batch when this one is acknowledged.
 */

import { parentPort, workerData } from "node:worker_threads";
import type { CommitResult } from "../../core/ports.ts";
import { diskErrorKind, Engine, type Reads } from "./engine.ts";
import { lockFile } from "./lock.ts";
import { type Parcel, unpack } from "./op.ts";

export interface WorkerData {
  role: "writer" | "reader";
  path: string;
  node: string;
  now: number;
  synchronous: "FULL" | "NORMAL";
}

export type Ask =
  | { n: number; kind: "commit"; parcel: Parcel }
  | { n: number; kind: "read"; name: keyof Reads; args: unknown[] }
  | { n: number; kind: "close" };

/** An error as it crosses the thread: `kind` says what it means for the store. */
export interface Fault {
  fault: "full" | "failed" | "bug";
  message: string;
}
export type CommitAnswer = CommitResult | Fault;
export type Answer =
  /** What became of changes that were not simply applied, by their place in the parcel. */
  | { n: number; others: [number, CommitAnswer][] }
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

function othersOf(results: (CommitResult | Error)[]): [number, CommitAnswer][] {
  const others: [number, CommitAnswer][] = [];
  for (const [i, result] of results.entries()) {
    if (result instanceof Error) others.push([i, faultOf(result)]);
    else if (result.status !== "applied") others.push([i, result]);
  }
  return others;
}

function serve(engine: Engine, unlock: () => void): void {
  const answerTo = (ask: Ask): Answer => {
    switch (ask.kind) {
      case "commit": {
        const results = engine.writeAll(unpack(ask.parcel));
        return { n: ask.n, others: othersOf(results) };
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
  const answer = (ask: Ask): Answer => {
    try {
      return answerTo(ask);
    } catch (error) {
      return { n: ask.n, ...faultOf(error) };
    }
  };
  parentPort!.on("message", (asks: Ask[]) => {
    parentPort!.postMessage(asks.map(answer));
    if (asks.some(({ kind }) => kind === "close")) parentPort!.close();
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
