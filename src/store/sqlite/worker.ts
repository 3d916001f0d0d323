/**
 * A thread that holds a connection: the writer, which also holds the lock on the file, a reader, or the librarian.
 * It answers every question with its number; group commit happens on the other side, which has the next batch on its way
 * while this one is being written.
 */

import { parentPort, workerData } from "node:worker_threads";
import type { CommitResult } from "../../core/ports.ts";
import { diskErrorKind } from "./connection.ts";
import { Engine } from "./engine.ts";
import type { LibrarianAsks, LibrarianOptions } from "./librarian.ts";
import { lockFile } from "./lock.ts";
import { type Parcel, unpack } from "./parcel.ts";
import { Reader, type Reads } from "./reader.ts";

export type WorkerData =
  | { role: "writer"; path: string; node: string; now: number; synchronous: "FULL" | "NORMAL" }
  | { role: "reader"; path: string }
  | ({ role: "librarian" } & LibrarianOptions);

/** What can be asked by name. */
export type Asks = Reads & LibrarianAsks;

export type Ask =
  | { n: number; kind: "commit"; parcel: Parcel }
  | { n: number; kind: "read"; name: keyof Asks; args: unknown[] }
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

function faultOf(error: unknown): Fault {
  const message = error instanceof Error ? error.message : String(error);
  return { fault: diskErrorKind(error) ?? "bug", message };
}

/** SQLite's own errors do not say which file they are about. */
function refusal(error: unknown, path: string): string {
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

/** What a thread does. */
interface Duty {
  commit?(parcel: Parcel): [number, CommitAnswer][];
  reads: object;
  close(): void;
}

function serve({ commit, reads, close }: Duty): void {
  const answerTo = (ask: Ask): Answer => {
    switch (ask.kind) {
      case "commit":
        return { n: ask.n, others: commit!(ask.parcel) };
      case "read": {
        const read = reads[ask.name as keyof typeof reads] as (...args: unknown[]) => unknown;
        return { n: ask.n, value: read.apply(reads, ask.args) };
      }
      case "close":
        close();
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

function write({ path, node, now, synchronous }: Extract<WorkerData, { role: "writer" }>): number {
  const unlock = lockFile(path);
  const engine = new Engine(path, { readonly: false, synchronous });
  const epoch = engine.nextEpoch(node, now);
  serve({
    commit: (parcel) => othersOf(engine.writeAll(unpack(parcel))),
    reads: engine,
    close() {
      engine.close();
      unlock();
    },
  });
  return epoch;
}

/** The others start faster without what it needs. */
async function librarian(reader: Reader, options: LibrarianOptions) {
  const { Librarian } = await import("./librarian.ts");
  return new Librarian(reader, options);
}

const data = workerData as WorkerData;
try {
  let epoch = 0;
  if (data.role === "writer") epoch = write(data);
  else {
    const reader = new Reader(data.path, { readonly: true });
    const reads = data.role === "librarian" ? await librarian(reader, data) : reader;
    serve({ reads, close: () => reads.close() });
  }
  parentPort!.postMessage({ ready: true, epoch } satisfies Answer);
} catch (error) {
  parentPort!.postMessage({ refused: refusal(error, data.path) } satisfies Answer);
}
