/**
 * A worker thread with one connection, asked by message. Waking a thread costs more than most questions: what
 * is asked while it is busy goes to it in one message, and comes back in one. What hands buffers over is grouped
 * already, and goes at once.
 */

import { Worker } from "node:worker_threads";
import { StorageError } from "../../core/errors.ts";
import { Table } from "../../core/table.ts";
import type { Answer, Ask, Asks, Fault, WorkerData } from "./worker.ts";

type Reply = Extract<Answer, { n: number }>;
/** `Ask` without its number. */
type Question = Ask extends infer A ? (A extends { n: number } ? Omit<A, "n"> : never) : never;

export class Thread {
  private readonly worker: Worker;
  private readonly waiting = new Table<number, { resolve(reply: Reply): void; reject(error: Error): void }>();
  private asked = 0;
  /** Not yet sent. */
  private questions: Ask[] = [];
  private handovers: ArrayBuffer[] = [];
  private busy = false;
  private gone: Error | undefined;
  /** The number of this start, told by the writer. */
  epoch = 0;

  private constructor(worker: Worker) {
    this.worker = worker;
  }

  /** It can be asked no more. */
  get isGone(): boolean {
    return this.gone !== undefined;
  }

  /** Starts the thread and opens its connection. @throws Error when the file cannot be opened. */
  static async start(data: WorkerData): Promise<Thread> {
    const worker = new Worker(workerUrl(), {
      workerData: data,
      resourceLimits: { maxYoungGenerationSizeMb: data.role === "writer" ? 8 : 4 },
    });
    const thread = new Thread(worker);
    await new Promise<void>((resolve, reject) => {
      worker.once("error", reject);
      worker.once("exit", () => reject(new Error("The thread of the database stopped before it was ready.")));
      worker.once("message", (first: Answer) => {
        if ("refused" in first) return reject(new Error(first.refused));
        if ("ready" in first) thread.epoch = first.epoch;
        resolve();
      });
    }).catch(async (error) => {
      await worker.terminate();
      throw error;
    });
    worker.removeAllListeners("error");
    worker.removeAllListeners("exit");
    worker.on("message", (replies: Reply[]) => thread.receive(replies));
    worker.on("error", (error) => thread.lose(error));
    worker.on("exit", () => thread.lose(new Error("the thread has stopped")));
    return thread;
  }

  /** @param handover buffers of the question that are moved to the thread, not copied */
  ask(question: Question, handover: ArrayBuffer[] = []): Promise<Reply> {
    if (this.gone) return Promise.reject(new StorageError("failed", this.gone.message));
    const n = ++this.asked;
    return new Promise((resolve, reject) => {
      this.waiting.set(n, { resolve, reject });
      this.questions.push({ ...question, n } as Ask);
      this.handovers.push(...handover);
      if (!this.busy || handover.length > 0) this.send();
    });
  }

  /** What it answers to a question by name. */
  async read<N extends keyof Asks>(name: N, ...args: Parameters<Asks[N]>): Promise<ReturnType<Asks[N]>> {
    const reply = await this.ask({ kind: "read", name, args });
    return ("value" in reply ? reply.value : undefined) as ReturnType<Asks[N]>;
  }

  private send(): void {
    this.busy = true;
    const asks = this.questions;
    const handovers = this.handovers;
    this.questions = [];
    this.handovers = [];
    try {
      this.worker.postMessage(asks, handovers);
    } catch (error) {
      // None of them would ever be answered.
      this.lose(error);
    }
  }

  private receive(replies: Reply[]): void {
    this.busy = false;
    if (this.questions.length > 0) this.send();
    for (const reply of replies) {
      const asker = this.waiting.get(reply.n);
      this.waiting.delete(reply.n);
      if ("fault" in reply) asker?.reject(faultError(reply));
      else asker?.resolve(reply);
    }
  }

  private lose(error: unknown): void {
    this.gone ??= error instanceof Error ? error : new Error(String(error));
    for (const asker of this.waiting.values()) asker.reject(new StorageError("failed", this.gone.message));
    this.waiting.clear();
  }
}

/** A fault of the disk as a StorageError; a fault of ours as it is, to be seen. */
export function faultError({ fault, message }: Fault): Error {
  return fault === "bug" ? new Error(message) : new StorageError(fault, message);
}

/** Threads run built JavaScript, also when the caller runs from source: a worker of Node 20 cannot load TypeScript. */
function workerUrl(): URL {
  const built = import.meta.url.replace(/\/src\/(.*)\/thread\.ts$/, "/dist/$1/thread.js");
  return new URL("./worker.js", built);
}
