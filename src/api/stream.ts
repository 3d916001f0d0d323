/** Answers as streams: of the call that asks for one, and of `GET /v1/requests/{id}/stream` (DESIGN §4.3, §5). */

import { z } from "zod";
import { AppError, failures } from "../core/errors.ts";
import type { FeedSource } from "../core/feed.ts";
import type { HeaderList } from "../core/headers.ts";
import { rawMember } from "../core/json-text.ts";
import type { Line } from "../core/line.ts";
import type { Ended } from "../core/ports.ts";
import type { StreamEnd, StreamReader, StreamSink } from "../core/reader.ts";
import { type Failure, isTerminal, type RequestRecord } from "../core/request.ts";
import { chunksOf, usageChunkOf } from "../core/restream.ts";
import { bodiesErased } from "../core/rounds.ts";
import { beginning, cursorText, parseCursor, type StreamCursor } from "../core/stream-cursor.ts";
import {
  type Answer,
  asyncReply,
  callersHeaders,
  endedReply,
  insteadReply,
  stillRunning,
} from "./answers.ts";
import type { ApiOptions, Call, Handler } from "./context.ts";
import type { Degrading } from "./degrading.ts";
import { failureOf } from "./errors.ts";
import { restOfTurn } from "./event-loop.ts";
import { EventStream } from "./event-stream.ts";
import { whenGone } from "./hang-up.ts";
import { answerOf, pollUrl, requestHeaders, resultText, textOf } from "./present.ts";

/** What a caller reads, and how. */
export interface Reading {
  record: RequestRecord;
  /** The reader's from now on. */
  line: Line;
  cursor: StreamCursor;
  /** For whom the numbers of events count: only events that are on disk are told. */
  resumable: boolean;
  withIds: boolean;
  /** The usage chunk is wanted. */
  usage: boolean;
  /** Nothing is told before the answer is whole. */
  wholeOnly: boolean;
  isReplay: boolean;
  /** Further headers of the reply. */
  headers: HeaderList;
  /** How long the caller waits for the beginning before it is told to come back; undefined: as long as it takes. */
  patienceMs?: number;
  /** What the caller gets where the request is in trouble before anything was told. */
  degrading?: Degrading;
}

/** What becomes of a stream that was told; one of them is called, once, unless nothing was. */
export interface StreamHooks {
  /** The last bytes of a whole answer are about to be written. */
  onWhole(): void;
  /** The caller was told why the request failed. */
  onFailed(): void;
  /** The caller was told that the request goes on elsewhere. */
  onInterrupted(contentSent: boolean): void;
  onGone(contentSent: boolean): void;
}

/** Tells a stream to its caller, to its end. Resolves with the answer that is still to be given where nothing was written. */
export function tellStream(
  reading: Reading,
  call: Call,
  options: ApiOptions,
  hooks: StreamHooks,
): Promise<Answer | undefined> {
  return new Telling(reading, call, options, hooks).run();
}

class Telling implements StreamSink {
  private readonly reading: Reading;
  private readonly call: Call;
  private readonly options: ApiOptions;
  private readonly hooks: StreamHooks;
  private readonly stream: EventStream;
  private reader: StreamReader | undefined;
  private contentSent = false;
  private isOver = false;
  private unwatch = () => {};
  private cancelPatience = () => {};
  private resolve: (answer?: Answer) => void = () => {};
  private reject: (error: unknown) => void = () => {};

  constructor(reading: Reading, call: Call, options: ApiOptions, hooks: StreamHooks) {
    this.reading = reading;
    this.call = call;
    this.options = options;
    this.hooks = hooks;
    const { clock, heartbeatMs } = options;
    this.stream = new EventStream(call.outgoing, clock, heartbeatMs, () => this.reader?.resume());
  }

  async run(): Promise<Answer | undefined> {
    const { line, record, cursor, resumable: committedOnly, wholeOnly, patienceMs } = this.reading;
    const { queue, clock } = this.options;
    const answer = new Promise<Answer | undefined>((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.unwatch = whenGone(this.call, () => this.gone());
    // The caller went while its request was being written.
    if (this.isOver) return answer;
    if (patienceMs === undefined) this.stream.keepAlive(() => this.begin(undefined));
    else this.cancelPatience = clock.timer(patienceMs, () => this.settle(this.impatient()));
    try {
      this.reader = await queue.lines.read(line, record, { cursor, committedOnly, wholeOnly }, this);
    } catch (error) {
      line.close();
      this.fail(error);
    }
    if (this.isOver) this.reader?.close();
    else this.reading.degrading?.watch(() => this.settle(this.degrade(undefined)));
    return answer;
  }

  /** Where nothing was told yet, the caller gets something else than it has waited for. False where there is nothing. */
  private async degrade(ended: Ended | undefined): Promise<boolean> {
    const { degrading, record, headers, usage } = this.reading;
    if (!degrading || this.contentSent || (this.isOver && !ended)) return false;
    const instead = await degrading.insteadOf(ended);
    if (!instead || this.contentSent || (this.isOver && !ended)) return false;
    const reply = insteadReply(record, instead);
    const text = typeof reply.body === "string" ? reply.body : textOf(reply.body);
    const chunks = chunksOf(text);
    if (!chunks && this.stream.hasBegun) return false;
    this.leave();
    this.reader?.close();
    await degrading.given(instead);
    // What cannot be told as a stream is an answer all the same.
    if (!chunks) {
      this.resolve({ reply, isFinal: true });
      return true;
    }
    if (!this.stream.hasBegun) this.stream.begin([...reply.headers, ...headers]);
    const used: unknown = JSON.parse(text).usage;
    if (usage && used) chunks.push(usageChunkOf(JSON.parse(text), JSON.stringify(used)));
    this.hooks.onWhole();
    this.stream.end(`${chunks.map((data) => `data: ${data}\n\n`).join("")}data: [DONE]\n\n`);
    this.resolve();
    return true;
  }

  private settle(ending: Promise<unknown>): void {
    ending.catch((error) => this.fail(error));
  }

  private fail(error: unknown): void {
    this.leave();
    // A reply that has begun cannot become another one.
    if (this.stream.hasBegun) this.call.outgoing.destroy();
    this.reject(error);
  }

  take(data: string[], last: StreamCursor, source: FeedSource | undefined): boolean {
    if (this.isOver) return false;
    if (!this.stream.hasBegun) this.begin(source);
    this.contentSent = true;
    return this.stream.write(this.eventsOf(data, last));
  }

  end(how: StreamEnd): void {
    this.settle(this.finish(how));
  }

  private eventsOf(data: string[], last: StreamCursor): string {
    const { withIds, usage, record } = this.reading;
    let text = "";
    for (const [i, line] of data.entries()) {
      // Recorded for a caller who wanted it, and not for this one.
      if (!usage && record.terms.stream?.usage && isUsageChunk(line)) continue;
      if (withIds) text += `id: ${cursorText({ ...last, after: last.after - data.length + 1 + i })}\n`;
      text += `data: ${line}\n\n`;
    }
    return text;
  }

  private begin(source: FeedSource | undefined): void {
    const { record, isReplay, line, headers } = this.reading;
    // The caller has its answer from here on, or an error in its place.
    this.cancelPatience();
    this.stream.keepAlive(() => {});
    const now = source
      ? { ...record, attempt: source.attempt, lane: source.lane, upstream: undefined }
      : (line.ended?.record ?? record);
    const replayed: HeaderList = isReplay ? [["idempotent-replayed", "true"]] : [];
    const theirs = source?.headers ?? (line.ended && answerOf(line.ended)?.headers) ?? [];
    this.stream.begin([...callersHeaders(theirs, isReplay), ...requestHeaders(now), ...replayed, ...headers]);
  }

  /** The caller came for an answer within some time; as long as it has seen nothing of it, it can be told to come back. */
  private async impatient(): Promise<void> {
    const { queue } = this.options;
    const { record, line } = this.reading;
    const current = await queue.get(record.project, record.id);
    // Its answer is there meanwhile, or about to be told.
    if (this.isOver || this.stream.hasBegun || line.ended || isTerminal(current.state)) return;
    this.leave();
    this.reader?.close();
    this.resolve({ reply: asyncReply(current, this.options), isFinal: false });
  }

  private gone(): void {
    this.leave();
    this.reader?.close();
    // Where there is no reader yet, nobody else closes it in time for those who ask who is still there.
    this.reading.line.close();
    this.hooks.onGone(this.contentSent);
    this.resolve();
  }

  private leave(): void {
    this.isOver = true;
    this.unwatch();
    this.reading.degrading?.unwatch();
    this.cancelPatience();
    this.stream.close();
  }

  private async finish(how: StreamEnd): Promise<void> {
    await restOfTurn();
    if (this.isOver) return;
    this.leave();
    if (how.kind === "ended" && how.ended.record.state === "completed") return this.whole(how.ended);
    if (how.kind === "ended" && (await this.degrade(how.ended))) return;
    if (!this.stream.hasBegun) {
      const answer = this.unbegun(how);
      if (answer) return this.resolve(answer);
      this.begin(undefined);
    }
    const event = errorEvent(this.failureOf(how), this.reading.record.id);
    // A stream without any content does not look whole to anybody.
    if (this.contentSent) this.stream.breakOff(event);
    else this.stream.end(event);
    if (how.kind === "ended") this.hooks.onFailed();
    else this.hooks.onInterrupted(this.contentSent);
    this.resolve();
  }

  private whole(ended: Ended): void {
    const { cursor, isReplay } = this.reading;
    // A plain answer that is no completion cannot be told as a stream.
    const isUntold = !this.contentSent && cursor.after === 0;
    if (isUntold && !this.stream.hasBegun) {
      return this.resolve({ reply: endedReply(ended, isReplay), isFinal: true });
    }
    if (isUntold) return this.interrupted(ended.record);
    if (!this.stream.hasBegun) this.begin(undefined);
    this.stream.close();
    this.hooks.onWhole();
    this.stream.end(`${this.lateUsage(ended)}data: [DONE]\n\n`);
    this.resolve();
  }

  /** Only its headers were sent. */
  private interrupted({ id }: RequestRecord): void {
    const message = `The answer cannot be told as a stream. It is at ${pollUrl(id)}.`;
    this.stream.end(errorEvent(failureOf(new AppError("stream_interrupted", message)), id));
    this.hooks.onInterrupted(false);
    this.resolve();
  }

  /** The usage chunk of who wants it, where the stream was recorded without. */
  private lateUsage(ended: Ended): string {
    const { cachedFrom } = ended.record;
    const isRecorded = this.reading.record.terms.stream?.usage && cachedFrom === undefined;
    if (!this.reading.usage || isRecorded) return "";
    const text = resultText(ended) ?? "";
    // What is answered without a call has used nothing; its answer says what it used when it was made.
    const usage = cachedFrom === undefined ? ended.record.usage : rawMember(text, "usage");
    return usage?.startsWith("{") ? `data: ${usageChunkOf(JSON.parse(text), usage)}\n\n` : "";
  }

  /** What the caller of a stream that has not begun gets: the same as the caller of a plain answer. */
  private unbegun(how: StreamEnd): Answer | undefined {
    const { queue } = this.options;
    const { record, isReplay } = this.reading;
    if (how.kind === "ended") return { reply: endedReply(how.ended, isReplay), isFinal: true };
    if (how.kind === "stopping") return { reply: stillRunning(queue, record), isFinal: false };
    return undefined;
  }

  private failureOf(how: StreamEnd): Failure {
    const { record, resumable } = this.reading;
    switch (how.kind) {
      case "ended":
        if (how.ended.record.state !== "cancelled") return how.ended.record.error ?? failures.deadline();
        return failureOf(new AppError("request_cancelled", "The request was cancelled."));
      case "stopping":
        return failureOf(this.options.queue.shuttingDown(goesOn("The server is shutting down", record)));
      case "restarted":
        if (!resumable)
          return failureOf(new AppError("stream_interrupted", goesOn("The stream broke", record)));
        return failureOf(
          new AppError(
            "stream_restarted",
            "The answer has begun anew since that event: read it again from 0.",
          ),
        );
      case "failed":
        return failureOf(new AppError("storage_failed", "The stream could not be read. Try again later."));
    }
  }
}

const goesOn = (what: string, { id }: RequestRecord): string =>
  `${what}. The request ${id} goes on: read its stream at ${pollUrl(id)}/stream, or its result at ${pollUrl(id)}.`;

/** OpenAI's shape, which its SDKs throw as an error, and the request's id. */
function errorEvent({ message, type, param, code }: Failure, id: string): string {
  const error = { message, type, param: param ?? null, code, request_id: id };
  return `data: ${JSON.stringify({ error })}\n\n`;
}

const isUsageChunk = (data: string): boolean => /"choices":\s*\[\s*\]/.test(data) && data.includes('"usage"');

const querySchema = z.strictObject({
  starting_after: z.string().optional(),
  ids: z.enum(["true", "false"]).optional(),
});

/** GET /v1/requests/{id}/stream. */
export const getStream: Handler = async (call, options) => {
  const { queue } = options;
  const lastId = call.header("last-event-id");
  const { starting_after, ids } = readQuery(call);
  const cursor = readCursor(lastId || starting_after, lastId ? "Last-Event-ID" : "starting_after");
  const record = await queue.get(call.caller.project, call.params.id ?? "");
  if (record.state === "completed" && record.bodiesErasedAt !== undefined) throw bodiesErased(record.id);
  const line = await queue.lines.listen(record.id, { caller: false });
  const usage = record.terms.stream?.usage ?? false;
  const withIds = ids === "true" || (ids === undefined && Boolean(lastId));
  const how = { cursor, resumable: true, withIds, usage, wholeOnly: false, isReplay: false };
  const nothing = { onWhole() {}, onFailed() {}, onInterrupted() {}, onGone() {} };
  return (await tellStream({ record, line, headers: [], ...how }, call, options, nothing))?.reply;
};

function readQuery(call: Call): z.infer<typeof querySchema> {
  const parsed = querySchema.safeParse(Object.fromEntries(call.query));
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0]!;
  if (issue.code !== "unrecognized_keys") {
    throw new AppError("invalid_parameter", "`ids` must be true or false.", { param: "ids" });
  }
  const param = issue.keys[0]!;
  const allowed = Object.keys(querySchema.shape).join(", ");
  throw new AppError("invalid_parameter", `\`${param}\` is not a parameter. Allowed: ${allowed}.`, { param });
}

/** @throws AppError `invalid_parameter` */
function readCursor(text: string | undefined, param: string): StreamCursor {
  const cursor = text === undefined ? beginning : parseCursor(text);
  if (cursor) return cursor;
  const message = `\`${param}\` must be the number of an event of this stream, as its \`id:\` line says it.`;
  throw new AppError("invalid_parameter", message, { param });
}
