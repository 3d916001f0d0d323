/** Collects plain answers. Whatever happens on the way is an outcome; nothing is thrown. */

import type { Dispatcher } from "undici";
import type { HeaderList } from "../core/headers.ts";
import type { Abort, CallEnd, Clock, Outcome } from "../core/ports.ts";
import { type Answer, answerOf, isEncoded, type Reading, readAnswer } from "./answer.ts";

/** Collects one answer. undici calls it; whatever comes first, an end, an error or an abort, is the outcome. */
export class PlainAnswer implements Dispatcher.DispatchHandler {
  protected controller: Dispatcher.DispatchController | undefined;
  protected status = 0;
  protected headers: HeaderList = [];
  private readonly chunks: Buffer[] = [];
  protected firstByteAt = 0;
  protected over = false;
  protected readonly reading: Reading;
  private readonly abort: Abort;
  protected readonly clock: Clock;
  private connectedAt: number | undefined;
  private readonly resolve: (ended: CallEnd) => void;

  constructor(reading: Reading, abort: Abort, clock: Clock, resolve: (ended: CallEnd) => void) {
    this.reading = reading;
    this.abort = abort;
    this.clock = clock;
    this.resolve = resolve;
    abort.onAbort = () => this.stop();
    if (abort.aborted) this.stop();
  }

  protected stop(): void {
    this.finish({ kind: "aborted", sent: this.controller !== undefined });
    this.hangUp();
  }

  protected hangUp(): void {
    this.controller?.abort(new Error("no longer wanted"));
  }

  protected finish(outcome: Outcome): void {
    if (this.over) return;
    this.over = true;
    this.abort.onAbort = undefined;
    this.resolve({ kind: "ended", outcome, connectedAt: this.connectedAt });
  }

  /** Called when a connection is there and the request is about to be written to it. */
  onRequestStart(controller: Dispatcher.DispatchController): void {
    this.connectedAt = this.clock.now();
    if (this.over) controller.abort(new Error("no longer wanted"));
    else this.controller = controller;
  }

  onResponseStart(controller: Dispatcher.DispatchController, status: number): void {
    // Informational answers (100, 103) are followed by the real one.
    if (status < 200) return;
    this.status = status;
    this.headers = headerList((controller.rawHeaders ?? []) as (Buffer | string)[]);
    this.firstByteAt = this.clock.now();
  }

  onResponseData(_controller: Dispatcher.DispatchController, chunk: Buffer): void {
    this.chunks.push(chunk);
  }

  onResponseEnd(): void {
    if (this.over) return;
    const [only] = this.chunks;
    const body = this.chunks.length === 1 && only ? only : Buffer.concat(this.chunks);
    const { status, headers, reading } = this;
    if (isEncoded(headers)) {
      readAnswer(status, headers, body, reading).then(
        (answer) => this.answered(answer),
        (error) => this.finish(failed(error, true)),
      );
      return;
    }
    try {
      this.answered(answerOf(status, headers, body, reading));
    } catch (error) {
      this.finish(failed(error, true));
    }
  }

  private answered(answer: Answer): void {
    this.finish({ kind: "response", ...answer, firstByteAt: this.firstByteAt });
  }

  onResponseError(_controller: Dispatcher.DispatchController, error: Error): void {
    this.finish(failed(error, this.controller !== undefined));
  }
}

export function failed(
  error: unknown,
  sent: boolean,
): Extract<Outcome, { kind: "network_error" | "timeout" }> {
  const code = codeOf(error);
  if (code === "UND_ERR_CONNECT_TIMEOUT") return { kind: "timeout", phase: "connect" };
  if (code === "UND_ERR_HEADERS_TIMEOUT") return { kind: "timeout", phase: "headers" };
  return { kind: "network_error", code, sent };
}

export function codeOf(error: unknown): string {
  if (error instanceof AggregateError && error.errors.length > 0) return codeOf(error.errors[0]);
  const code = error instanceof Error && "code" in error ? error.code : undefined;
  return typeof code === "string" ? code : "UNKNOWN";
}

export function headerList(raw: (Buffer | string)[]): HeaderList {
  const list: HeaderList = [];
  for (let i = 0; i + 1 < raw.length; i += 2) {
    list.push([raw[i]!.toString("latin1").toLowerCase(), raw[i + 1]!.toString("latin1")]);
  }
  return list;
}
