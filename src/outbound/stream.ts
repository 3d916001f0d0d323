/** Reads streamed answers as they come, and tells a whole one from one that broke off. */

import type { Transform } from "node:stream";
import { createBrotliDecompress, createGunzip, createInflate } from "node:zlib";
import type { Dispatcher } from "undici";
import { Assembly, readChunk } from "../core/chunk.ts";
import { type HeaderList, toCaller } from "../core/headers.ts";
import { rawMember, replaceMember } from "../core/json-text.ts";
import type { Abort, CallEnd, Clock, Exchange, Outcome, StreamWish, UpstreamEvent } from "../core/ports.ts";
import { visibleAnswerHeaders } from "../core/redact.ts";
import { chunksOf } from "../core/restream.ts";
import { Stencil } from "../core/stencil.ts";
import { answerOf, errorOf, type Reading } from "./answer.ts";
import { Arrivals } from "./arrivals.ts";
import { failed, PlainAnswer } from "./plain.ts";
import { EventReader } from "./sse.ts";
import { askForUsage, refusesUsage, withoutNullUsage } from "./usage-wish.ts";

/** What is known of an upstream. */
export interface StreamPeer {
  /** It is asked for usage; set to false when it refuses. */
  asksUsage: boolean;
}

export interface StreamCall {
  wish: StreamWish;
  reading: Reading;
  /** JSON with `"stream": true`. */
  body: Uint8Array;
  send(body: Uint8Array, handler: Dispatcher.DispatchHandler): void;
  /** What is kept of a body that was sent; undefined where nothing is. */
  keep: ((body: Uint8Array) => Exchange) | undefined;
}

/** More than this many characters that nobody pulls, and the upstream has to wait. */
const maxUnpulled = 256 * 1024;
const maxEventLength = 16 * 1024 * 1024;
/** What is whole is not waited for: neither for its `[DONE]`, nor, behind that, for the end of the connection's use. */
const lingerMs = 1000;

const decoders: Record<string, () => Transform> = {
  gzip: createGunzip,
  "x-gzip": createGunzip,
  deflate: createInflate,
  br: createBrotliDecompress,
};

/** Makes a call whose answer is wanted as a stream; where the upstream gives another one, it is a plain answer. */
export function callStream(
  peer: StreamPeer,
  { wish, reading, body, send, keep }: StreamCall,
  abort: Abort,
  clock: Clock,
): AsyncIterable<UpstreamEvent> {
  const arrivals = new Arrivals();
  // As Latin-1, so that every byte that is not meant stays.
  const plain = Buffer.from(body).toString("latin1");
  const expected = choicesAsked(plain);
  const call = (text: string, asked: boolean, whenEnded: (ended: CallEnd) => void) => {
    const terms = { wish, hidesUsage: asked && !wish.usage, expected };
    const sent = Buffer.from(text, "latin1");
    const answer: StreamedAnswer = new StreamedAnswer(arrivals, terms, reading, abort, clock, (ended) => {
      const isKept = keep && ended.connectedAt !== undefined;
      whenEnded(isKept ? { ...ended, sent: keep(sent), received: answer.soFar(ended.outcome) } : ended);
    });
    send(sent, answer);
  };
  const callWithout = (connectedAt: number | undefined) =>
    call(plain, false, (ended) => {
      const { outcome } = ended;
      // Not if it refuses this one, too.
      if (outcome.kind === "response" && outcome.status < 300) peer.asksUsage = false;
      arrivals.end({ ...ended, connectedAt });
    });
  const asking = peer.asksUsage ? askForUsage(plain) : plain;
  call(asking, asking !== plain, (ended) => {
    if (asking !== plain && refusesUsage(ended.outcome)) callWithout(ended.connectedAt);
    else arrivals.end(ended);
  });
  return arrivals;
}

function choicesAsked(body: string): number {
  const asked = body.includes('"n"') ? Number(rawMember(body, "n")) : 1;
  return Number.isSafeInteger(asked) && asked > 0 ? asked : 1;
}

interface Terms {
  wish: StreamWish;
  /** We asked for usage, the caller did not. */
  hidesUsage: boolean;
  /** How many choices the answer should have. */
  expected: number;
}

class StreamedAnswer extends PlainAnswer {
  private readonly arrivals: Arrivals;
  private readonly terms: Terms;
  private readonly assembly: Assembly;
  private reader: EventReader | undefined;
  /** Where the stream is encoded against our wish. */
  private decoder: Transform | undefined;
  /** Why no more comes, where it is not the regular end. */
  private brokenBy: Error | undefined;
  private isAtEnd = false;
  private isPaused = false;
  private firstContentAt: number | undefined;
  /** What the next chunk is like, if it is like the newest one. */
  private stencil: Stencil | undefined;
  /** The newest chunk said why the answer ends, or what it used, and nothing else. */
  private saidLast = false;
  private cancelTimer: (() => void) | undefined;

  constructor(
    arrivals: Arrivals,
    terms: Terms,
    reading: Reading,
    abort: Abort,
    clock: Clock,
    resolve: (ended: CallEnd) => void,
  ) {
    super(reading, abort, clock, resolve);
    this.arrivals = arrivals;
    this.terms = terms;
    this.assembly = new Assembly(terms.expected);
    arrivals.onRoom = () => this.resume();
    arrivals.onLeft = () => this.stop();
  }

  override onResponseStart(controller: Dispatcher.DispatchController, status: number): void {
    super.onResponseStart(controller, status);
    if (this.over || status < 200 || status > 299 || !isEventStream(this.headers)) return;
    this.reader = new EventReader(
      {
        event: (data, name) => this.event(data, name),
        tooLarge: () => this.fail(""),
      },
      maxEventLength,
    );
    const encoding = this.headers.find(([name]) => name === "content-encoding")?.[1].toLowerCase();
    this.decoder = encoding === undefined ? undefined : decoders[encoding]?.();
    if (this.decoder) this.decode(this.decoder);
    this.arrivals.begin(toCaller(this.headers));
  }

  override onResponseData(controller: Dispatcher.DispatchController, bytes: Buffer): void {
    if (!this.reader) super.onResponseData(controller, bytes);
    else if (!this.decoder) this.read(bytes);
    else if (!this.over && !this.decoder.write(bytes)) controller.pause();
  }

  override onResponseEnd(): void {
    if (this.reader) this.atEnd(undefined);
    else super.onResponseEnd();
  }

  override onResponseError(controller: Dispatcher.DispatchController, error: Error): void {
    if (this.reader) this.atEnd(error);
    else super.onResponseError(controller, error);
  }

  /** What has come of an answer that broke off: as the one that it would have been. */
  soFar(outcome: Outcome): Exchange | undefined {
    const { status, assembly, reading } = this;
    if (outcome.kind === "response" || assembly.isEmpty) return undefined;
    const body = Buffer.from(assembly.completion(this.terms.wish.identity));
    const headers = visibleAnswerHeaders(toCaller(this.headersAsJson()), reading.secrets);
    return { head: { status, headers }, body };
  }

  /** What is whole is kept, whoever wants no more of it. */
  protected override stop(): void {
    if (!this.assembly?.finished || !this.saidLast) return super.stop();
    this.succeed();
    this.hangUp();
  }

  protected override finish(outcome: Outcome): void {
    this.cancelTimer?.();
    this.cancelTimer = undefined;
    this.decoder?.destroy();
    super.finish(this.reader ? outcome : tellable(outcome));
  }

  private decode(decoder: Transform): void {
    decoder.on("data", (bytes: Buffer) => this.read(bytes));
    decoder.on("drain", () => this.controller?.resume());
    decoder.on("end", () => this.whenRead());
    decoder.on("error", (error) => {
      this.brokenBy ??= error;
      this.whenRead();
    });
  }

  /** Several events, or a part of one. */
  private read(bytes: Buffer): void {
    if (this.over) return;
    this.reader?.read(bytes);
    if (this.over) return;
    this.arrivals.readSomething();
    if (this.arrivals.size > maxUnpulled) this.pause();
    if (!this.assembly.finished || !this.saidLast) {
      this.cancelTimer?.();
      this.cancelTimer = undefined;
    } else {
      this.cancelTimer ??= this.clock.timer(lingerMs, () => {
        this.succeed();
        this.hangUp();
      });
    }
  }

  private event(data: string, name: string | undefined): void {
    if (this.over || data === "") return;
    if (name === undefined && this.takeAlike(data)) return;
    if (data.startsWith("[DONE]")) {
      if (this.assembly.isEmpty) this.fail("");
      else this.succeed();
      return;
    }
    const read = readChunk(data);
    if (name === "error" || !read || errorOf(read.json)) {
      // What is whole stays whole, whatever follows.
      if (this.assembly.finished) return this.succeed();
      // What is cut off in its midst is no error of its own.
      if (read || !this.isAtEnd) this.fail(data, name);
      return;
    }
    // Pings and the like.
    if (name !== undefined && !("choices" in read.json)) return;
    const isFirst = this.assembly.isEmpty;
    this.assembly.add(read.json);
    this.stencil = Stencil.of(read);
    if (read.isContent) this.firstContentAt ??= this.clock.now();
    // Where an upstream gives every chunk a finish_reason, one with text is not the last word, nor is the first one.
    this.saidLast = read.isUsageOnly || (read.isEnd && read.chars === 0 && !isFirst);
    if (read.isUsageOnly && !this.terms.wish.usage) return;
    const { isContent, isEnd, text, chars } = read;
    this.arrivals.add({
      data: this.forCaller(data, read.json.usage === null),
      isContent,
      isEnd,
      text,
      chars,
    });
  }

  /** Takes a chunk that says nothing new but its text; false where it may be another one. */
  private takeAlike(data: string): boolean {
    const { stencil } = this;
    const text = stencil?.textOf(data);
    if (text === undefined || !this.assembly.append(text)) return false;
    const forCaller = this.forCaller(data, stencil!.hasNullUsage);
    this.arrivals.add({ data: forCaller, isContent: true, isEnd: false, text, chars: text.length });
    return true;
  }

  private forCaller(data: string, hasNullUsage: boolean): string {
    const { hidesUsage, wish } = this.terms;
    const text = hidesUsage && hasNullUsage ? withoutNullUsage(data) : data;
    if (!wish.identity) return text;
    const { id, created } = wish.identity;
    return replaceMember(replaceMember(text, "id", JSON.stringify(id)), "created", String(created));
  }

  private atEnd(error: Error | undefined): void {
    this.brokenBy = error;
    this.cancelTimer?.();
    this.cancelTimer = undefined;
    if (this.over) return;
    if (this.decoder) this.decoder.end();
    else this.whenRead();
  }

  /** No more comes, and what came has been read. */
  private whenRead(): void {
    if (this.over) return;
    this.isAtEnd = true;
    this.reader?.end();
    if (this.over) return;
    if (this.assembly.finished) this.succeed();
    else this.finish(this.brokenBy ? failed(this.brokenBy, true) : cutOff);
  }

  private succeed(): void {
    if (this.over) return;
    const { assembly, status, reading } = this;
    const { identity } = this.terms.wish;
    const { model, usage } = assembly;
    const completion = assembly.completion(identity);
    const measured = reading.measure?.(JSON.parse(completion));
    this.finish({
      kind: "response",
      status,
      headers: toCaller(this.headersAsJson()),
      body: Buffer.from(completion),
      facts: { wellFormed: true, id: identity?.id ?? assembly.id, model, usage, ...measured },
      firstByteAt: this.firstContentAt ?? this.firstByteAt,
    });
    // The connection is good for the next call, if its answer ends soon.
    if (!this.isAtEnd) this.cancelTimer = this.clock.timer(lingerMs, () => this.hangUp());
  }

  /** Ends with what says that something is wrong: an error, or something that is no chunk. */
  private fail(data: string, name?: string): void {
    if (this.over) return;
    const { status, reading } = this;
    const answer = answerOf(status, this.headersAsJson(), Buffer.from(asError(data, name)), reading);
    const facts = answer.facts.error ? answer.facts : { wellFormed: false };
    this.finish({
      kind: "response",
      ...answer,
      facts,
      firstByteAt: this.firstContentAt ?? this.firstByteAt,
    });
    this.hangUp();
  }

  /** The outcome is told as the JSON that it is. */
  private headersAsJson(): HeaderList {
    const others = this.headers.filter(([name]) => name !== "content-type" && name !== "content-encoding");
    return [["content-type", "application/json"], ...others];
  }

  private pause(): void {
    if (this.isPaused) return;
    this.isPaused = true;
    (this.decoder ?? this.controller)?.pause();
  }

  private resume(): void {
    if (!this.isPaused) return;
    this.isPaused = false;
    (this.decoder ?? this.controller)?.resume();
  }
}

/** What came in place of a stream has to be an answer that can be told as one. */
function tellable(outcome: Outcome): Outcome {
  if (outcome.kind !== "response" || outcome.status >= 300 || !outcome.facts.wellFormed) return outcome;
  if (outcome.facts.error || chunksOf(Buffer.from(outcome.body).toString())) return outcome;
  const { id, model, usage } = outcome.facts;
  return { ...outcome, facts: { wellFormed: false, id, model, usage } };
}

const cutOff: Outcome = { kind: "network_error", code: "STREAM_CUT", sent: true };

const isEventStream = (headers: HeaderList): boolean =>
  headers.some(([name, value]) => name === "content-type" && /^\s*text\/event-stream\b/i.test(value));

/** The data of an error event in the form of an error, whatever it is; other data as it is. */
function asError(data: string, name: string | undefined): string {
  if (name !== "error") return data;
  const json = readChunk(data)?.json;
  if (!json) return JSON.stringify({ error: { message: data } });
  return errorOf(json) ? data : JSON.stringify({ error: json });
}
