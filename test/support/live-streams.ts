/** Streams for tests: what an upstream says chunk by chunk, and a caller who reads events one by one. */

import { type Step, stream } from "./fake-upstream.ts";

/** So many tokens, each different from all others: "t1 ", "t2 ", … */
export const tokens = (count: number, word = "t"): string[] =>
  Array.from({ length: count }, (_, i) => `${word}${i + 1} `);

interface Naming {
  id?: string;
  created?: number;
  model?: string;
}

/** The data of one chunk of the answer's choices. */
export function chunkOf(choices: object[], naming: Naming = {}, more: object = {}): string {
  const { id = "chatcmpl-first", created = 1_700_000_000, model = "fake" } = naming;
  return JSON.stringify({ id, object: "chat.completion.chunk", created, model, choices, ...more });
}

export const roleChunk = (naming?: Naming): string =>
  chunkOf([{ index: 0, delta: { role: "assistant", content: "" }, finish_reason: null }], naming);

export const textChunk = (content: string, naming?: Naming): string =>
  chunkOf([{ index: 0, delta: { content }, finish_reason: null }], naming);

export const stopChunk = (naming?: Naming): string =>
  chunkOf([{ index: 0, delta: {}, finish_reason: "stop" }], naming);

/** The beginning of an answer: its role and these texts. */
export const begun = (texts: string[], naming?: Naming): string[] => [
  roleChunk(naming),
  ...texts.map((text) => textChunk(text, naming)),
];

/** A whole answer of these texts. */
export const whole = (texts: string[], naming?: Naming): string[] => [
  ...begun(texts, naming),
  stopChunk(naming),
];

/** Ends cleanly where it should go on: without a finish_reason and without `[DONE]`. */
export const cutShort = (chunks: string[]): Step => stream(chunks, { done: false });

/** Says so much, and then nothing. */
export const goesSilent = (chunks: string[]): Step => stream(chunks, { end: "hang" });

/** An upstream's stream that says one thing at a time, when the test wants it. */
export class Faucet {
  readonly step: Step;
  /** Resolves when the call has come. */
  readonly called: Promise<void>;
  private readonly waiting: (() => void)[] = [];
  private readonly said: (string | Buffer | undefined)[] = [];

  /** @param end what follows the last words: a regular end with `[DONE]`, a clean or hard break, or silence */
  constructor(end: "done" | "cut" | "reset" | "hang" = "done") {
    let isCalled = () => {};
    this.called = new Promise((resolve) => {
      isCalled = resolve;
    });
    this.step = async (_call, res) => {
      res.writeHead(200, { "content-type": "text/event-stream" }).flushHeaders();
      isCalled();
      for (let next = await this.next(); next !== undefined; next = await this.next()) {
        res.write(typeof next === "string" ? `data: ${next}\n\n` : next);
      }
      if (end === "done") res.end("data: [DONE]\n\n");
      if (end === "cut") res.end();
      if (end === "reset")
        res.write(": reset\n\n", () => setImmediate(() => res.req.socket.resetAndDestroy()));
    };
  }

  say(...chunks: (string | Buffer)[]): void {
    this.said.push(...chunks);
    for (const wake of this.waiting.splice(0)) wake();
  }

  /** No more comes. */
  end(): void {
    this.said.push(undefined);
    for (const wake of this.waiting.splice(0)) wake();
  }

  private async next(): Promise<string | Buffer | undefined> {
    while (this.said.length === 0) {
      await new Promise<void>((resolve) => {
        this.waiting.push(resolve);
      });
    }
    return this.said.shift();
  }
}

export interface SseEvent {
  id?: string;
  name?: string;
  data: string;
}

export interface ErrorData {
  message: string;
  type: string;
  param: string | null;
  code: string;
  request_id: string;
}

/** Somebody who reads a stream event by event, and knows how it ended. */
export class SseCaller {
  readonly status: number;
  readonly headers: Headers;
  readonly events: SseEvent[] = [];
  readonly comments: string[] = [];
  /** `clean`: as HTTP wants it. `broken`: the connection broke. */
  ended: "clean" | "broken" | undefined;
  private readonly over: Promise<void>;
  private readonly reader: ReadableStreamDefaultReader<Uint8Array>;
  private wakers: (() => void)[] = [];

  private constructor(response: Response) {
    this.status = response.status;
    this.headers = response.headers;
    this.reader = response.body!.getReader() as ReadableStreamDefaultReader<Uint8Array>;
    this.over = this.readAll();
  }

  /** Reads the reply of a call; the promise resolves with its headers. */
  static async of(reply: Promise<Response>): Promise<SseCaller> {
    return new SseCaller(await reply);
  }

  /** The same to the end. */
  static async whole(reply: Promise<Response>): Promise<SseCaller> {
    const caller = await SseCaller.of(reply);
    await caller.over;
    return caller;
  }

  private async readAll(): Promise<void> {
    const decoder = new TextDecoder();
    let text = "";
    try {
      for (;;) {
        const { done, value } = await this.reader.read();
        if (done) break;
        text += decoder.decode(value, { stream: true });
        for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
          this.note(text.slice(0, end));
          text = text.slice(end + 2);
        }
      }
      this.ended = "clean";
    } catch {
      this.ended = "broken";
    }
    this.wake();
  }

  private note(block: string): void {
    const event: SseEvent = { data: "" };
    for (const line of block.split("\n")) {
      const [, name, value = ""] = /^([^:]*): ?(.*)$/.exec(line) ?? [];
      if (name === "") this.comments.push(value);
      if (name === "id") event.id = value;
      if (name === "event") event.name = value;
      if (name === "data") event.data += value;
    }
    if (event.data !== "") this.events.push(event);
    this.wake();
  }

  private wake(): void {
    for (const wake of this.wakers.splice(0)) wake();
  }

  /** Resolves when it is so; rejects when the stream ends before. */
  async until(fits: (caller: this) => boolean): Promise<void> {
    while (!fits(this)) {
      if (this.ended) throw new Error(`the stream ended (${this.ended}): ${JSON.stringify(this.events)}`);
      await new Promise<void>((resolve) => {
        this.wakers.push(resolve);
      });
    }
  }

  /** Resolves when the stream has ended, however. */
  async end(): Promise<this> {
    await this.over;
    return this;
  }

  /** Goes away. */
  async leave(): Promise<void> {
    await this.reader.cancel();
    await this.over;
  }

  /** What is part of the answer: neither `[DONE]` nor an error. */
  get chunks(): SseEvent[] {
    return this.events.filter(({ data }) => data !== "[DONE]" && !data.startsWith('{"error"'));
  }

  /** What its chunks say about the first choice. */
  get text(): string {
    return this.chunks.map(({ data }) => contentOf(data)).join("");
  }

  get isDone(): boolean {
    return this.events.at(-1)?.data === "[DONE]";
  }

  get error(): ErrorData | undefined {
    const found = this.events.find(({ data }) => data.startsWith('{"error"'));
    return found && (JSON.parse(found.data) as { error: ErrorData }).error;
  }

  get ids(): (string | undefined)[] {
    return this.chunks.map(({ id }) => id);
  }

  get requestId(): string {
    return this.headers.get("outlast-request-id") ?? "";
  }
}

export function contentOf(data: string): string {
  const { choices } = JSON.parse(data) as { choices: { delta: { content?: string | null } }[] };
  return choices[0]?.delta.content ?? "";
}
