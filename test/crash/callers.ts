/** Callers of every kind, who keep a log of everything that they were told. */

import { createHash } from "node:crypto";
import { setTimeout as after } from "node:timers/promises";
import OpenAI from "openai";
import { type Heard, hear, isEventStream } from "./listeners.ts";

/** What a caller wants: one nonce is one thing that should happen once. */
export interface Wish {
  nonce: string;
  key?: string;
  onUnknown: "retry" | "fail";
  /** A stock SDK without a key, which repeats its call by itself: `impatient` also while the server works on it. */
  repeats?: "patient" | "impatient";
}

/** A reply that reached a caller whole. */
export interface Reply {
  nonce: string;
  call: "post" | "get" | "cancel";
  status: number;
  /** The request that the reply speaks of. */
  id?: string;
  sha: string;
  /** Of an error. */
  code?: string;
  /** `x-should-retry: false`: the failure is final. */
  final: boolean;
  /** Of a record. */
  state?: string;
}

/** Where the server is at the moment; callers wait here while there is none. */
export class Door {
  private url: string | undefined;
  private waiting: ((url: string) => void)[] = [];

  open(url: string): void {
    this.url = url;
    for (const resolve of this.waiting.splice(0)) resolve(url);
  }

  shut(): void {
    this.url = undefined;
  }

  find(): Promise<string> {
    if (this.url !== undefined) return Promise.resolve(this.url);
    return new Promise((resolve) => {
      this.waiting.push(resolve);
    });
  }
}

/** What callers do, with how often. Those of the SDK pause for seconds before they try again, so more of them come. */
const bareKinds: [kind: Bare, weight: number][] = [
  ["async", 3],
  ["async-keyed", 3],
  ["wait", 2],
  ["wait-keyed", 2],
  ["cancel", 1],
];
const streamKinds: [kind: Streamed, weight: number][] = [
  ["stream", 2],
  ["stream-keyed", 2],
  ["stream-read", 3],
  ["stream-sdk", 1],
];
const sdkKinds: [kind: Sdk, weight: number][] = [
  ["held", 2],
  ["held-retrying", 3],
  ["held-impatient", 2],
  ["held-keyed", 2],
];
type Bare = "async" | "async-keyed" | "wait" | "wait-keyed" | "cancel";
type Streamed = "stream" | "stream-keyed" | "stream-read" | "stream-sdk";
type Sdk = "held" | "held-retrying" | "held-impatient" | "held-keyed";

/** Shorter than many an answer takes. */
const impatienceMs = 200;

/** Scripts of the upstream: what it does with the first call, the second, …; the last step is repeated. */
const scripts: [script: (luck: () => number) => string[], weight: number][] = [
  [() => ["ok"], 40],
  [(luck) => [`slow:${10 + Math.floor(luck() * 300)}`], 25],
  [() => ["trickle:5"], 8],
  [() => ["error:500", "ok"], 6],
  [() => ["error:429", "ok"], 6],
  [() => ["error:503", "error:500", "slow:20"], 3],
  [() => ["drop", "ok"], 4],
  [() => ["cut", "ok"], 4],
  [() => ["error:400"], 2],
  [() => ["error:500"], 2],
];

/** The same for streams. Only those that take some time can be interrupted. */
const streamScripts: typeof scripts = [
  [() => ["ok"], 20],
  [(luck) => [`slow:${100 + Math.floor(luck() * 1000)}`], 50],
  [(luck) => [`trickle:${5 + Math.floor(luck() * 20)}`], 10],
  [() => ["error:500", "slow:200"], 5],
  [() => ["drop", "slow:200"], 5],
  [() => ["cut", "trickle:10"], 10],
  [() => ["cut", "error:400"], 3],
  [() => ["error:400"], 2],
];

function pick<T>(of: [T, number][], luck: () => number): T {
  let left = luck() * of.reduce((sum, [, weight]) => sum + weight, 0);
  return of.find(([, weight]) => {
    left -= weight;
    return left < 0;
  })![0];
}

export class Callers {
  readonly wishes = new Map<string, Wish>();
  readonly replies: Reply[] = [];
  readonly heard: Heard[] = [];
  readonly door = new Door();
  private readonly luck: () => number;
  private readonly name: string;
  private leaving = false;
  private crowd: Promise<void>[] = [];
  private readonly calling = new Set<string>();

  constructor(name: string, luck: () => number) {
    this.name = name;
    this.luck = luck;
  }

  /** So many callers call, one call after the other each, until `leave`. */
  come({ bare, sdk, streamed }: { bare: number; sdk: number; streamed: number }): void {
    const repeat = async (call: () => Promise<void>) => {
      while (!this.leaving) {
        // Every call begins with its wish.
        const nonce = this.nextNonce;
        this.calling.add(nonce);
        await call();
        this.calling.delete(nonce);
      }
    };
    this.crowd = [
      ...Array.from({ length: bare }, () => repeat(() => this.callBare(pick(bareKinds, this.luck)))),
      ...Array.from({ length: sdk }, () => repeat(() => this.callSdk(pick(sdkKinds, this.luck)))),
      ...Array.from({ length: streamed }, () => repeat(() => this.callStream(pick(streamKinds, this.luck)))),
    ];
  }

  /** The nonces of those who wait for a reply. */
  get unserved(): string[] {
    return [...this.calling];
  }

  private get nextNonce(): string {
    return `${this.name}-${this.wishes.size}`;
  }

  /** Resolves when everybody has had the last reply that they wait for. */
  async leave(): Promise<void> {
    this.leaving = true;
    await Promise.all(this.crowd);
  }

  /** Ids of which callers were told that they were accepted, with their nonces. */
  acknowledged(): Map<string, string> {
    const told = [...this.replies, ...this.heard];
    return new Map(told.flatMap(({ id, nonce }) => (id === undefined ? [] : [[id, nonce]])));
  }

  /** Fetches a result, as often as the server dies over it. */
  async fetchResult(id: string, nonce: string): Promise<void> {
    await this.untilTold(nonce, "get", `/v1/chat/completions/${id}?wait=10`);
  }

  /** Reads a stream from its beginning to its end, as often as the server dies over it. */
  async readStream(id: string, nonce: string): Promise<void> {
    let from = "";
    for (;;) {
      const path = `/v1/requests/${id}/stream?ids=true`;
      const init = from === "" ? {} : { headers: { "last-event-id": from } };
      const heard = await this.listen({ nonce, call: "get", from }, path, init);
      if (heard === "told" || (heard && isOver(heard))) return;
      if (heard && heard.code === "stream_restarted") from = "";
      else from = heard?.events.at(-1)?.number ?? from;
      await after(5);
    }
  }

  /** A new wish, and the body of the call that asks for it. */
  private wish(kind: Bare | Sdk | Streamed): { wish: Wish; body: object } {
    const nonce = this.nextNonce;
    const key = kind.endsWith("keyed") ? `key-${nonce}` : undefined;
    const onUnknown = this.luck() < 0.2 ? "fail" : "retry";
    const wish: Wish = { nonce, key, onUnknown };
    if (kind === "held-retrying") wish.repeats = "patient";
    if (kind === "held-impatient") wish.repeats = "impatient";
    this.wishes.set(nonce, wish);
    const isStream = kind.startsWith("stream");
    const script = pick(isStream ? streamScripts : scripts, this.luck)(this.luck);
    // Lanes of their own: a throttled one closes for everybody in it.
    const model = script[0] === "error:429" ? "throttled" : `model-${Math.floor(this.luck() * 3)}`;
    const messages = [
      { role: "user", content: JSON.stringify({ nonce, script, fickle: this.luck() < 0.3 }) },
    ];
    const stream = isStream ? true : undefined;
    return { wish, body: { model, messages, stream, outlast: { on_unknown: onUnknown } } };
  }

  /** The real SDK, with its own retries. */
  private async callSdk(kind: Sdk): Promise<void> {
    const { wish, body } = this.wish(kind);
    const client = new OpenAI({
      baseURL: "http://outlast/v1",
      apiKey: "unused",
      maxRetries: kind === "held" ? 0 : 20,
      timeout: kind === "held-impatient" ? impatienceMs : undefined,
      fetch: (input, init) => this.knock(wish.nonce, "post", new URL(String(input)).pathname, init),
    });
    const headers = wish.key === undefined ? {} : { "idempotency-key": wish.key };
    await client.chat.completions.create(body as never, { headers }).catch((error: unknown) => {
      if (!(error instanceof OpenAI.APIError)) throw error;
    });
  }

  private async callStream(kind: Streamed): Promise<void> {
    const { wish, body } = this.wish(kind);
    const { nonce, key } = wish;
    if (kind === "stream-sdk") return this.streamBySdk(nonce, body);
    const wait = kind === "stream-read" ? false : undefined;
    const text = JSON.stringify({ ...body, wait, idempotency_key: key });
    if (kind === "stream-read") {
      const response = await this.post(nonce, text);
      if (response?.status === 202)
        await this.readStream(((await response.json()) as { id: string }).id, nonce);
      return;
    }
    const init = { method: "POST", headers: { "content-type": "application/json" }, body: text };
    for (;;) {
      const heard = await this.listen({ nonce, call: "post" }, "/v1/chat/completions", init);
      if (key === undefined || heard === "told" || (heard && isOver(heard))) return;
      await after(5);
    }
  }

  /** The real SDK: it gives an answer as whole, or throws. */
  private async streamBySdk(nonce: string, body: object): Promise<void> {
    let heard: Promise<Heard> | undefined;
    const client = new OpenAI({
      baseURL: "http://outlast/v1",
      apiKey: "unused",
      maxRetries: 0,
      fetch: async (input, init) => {
        const { pathname } = new URL(String(input));
        const response = await fetch((await this.door.find()) + pathname, init);
        if (!isEventStream(response)) return this.noted(response, nonce, "post");
        heard = hear(response.clone(), { nonce, call: "post" });
        return response;
      },
    });
    let isWhole = false;
    try {
      const stream = await client.chat.completions.create(body as never);
      for await (const _ of stream as unknown as AsyncIterable<unknown>);
      isWhole = true;
    } catch {
      // Whatever it throws, it has not given the answer as whole.
    }
    const told = await heard;
    if (told) this.heard.push(isWhole && told.end !== "done" ? { ...told, end: "ended" } : told);
  }

  /** One call for a stream. `told`: the reply was none. Undefined where no reply came. */
  private async listen(
    who: Pick<Heard, "nonce" | "call" | "from">,
    path: string,
    init: RequestInit,
  ): Promise<Heard | "told" | undefined> {
    const url = await this.door.find();
    const response = await fetch(url + path, init).catch(() => undefined);
    if (!response) return undefined;
    if (!isEventStream(response)) {
      const reply = await this.noted(response, who.nonce, who.call).catch(() => undefined);
      return reply && reply.headers.get("x-should-retry") !== "true" ? "told" : undefined;
    }
    const heard = await hear(response, who);
    this.heard.push(heard);
    return heard;
  }

  /** A program of somebody's own, which repeats a call only where a key makes that safe. */
  private async callBare(kind: Bare): Promise<void> {
    const { wish, body } = this.wish(kind);
    const { nonce, key } = wish;
    const wait = kind.startsWith("wait") ? 0.2 : false;
    const text = JSON.stringify({ ...body, wait, idempotency_key: key });
    const posts = key === undefined ? [this.post(nonce, text)] : [this.untilPosted(nonce, text)];
    if (key !== undefined && this.luck() < 0.3) posts.push(this.untilPosted(nonce, text));
    const [response] = await Promise.all(posts);
    if (response?.status !== 202) return;
    const { id } = (await response.json()) as { id: string };
    if (kind === "cancel")
      await this.untilTold(nonce, "cancel", `/v1/requests/${id}/cancel`, { method: "POST" });
    else if (this.luck() < 0.5) await this.fetchResult(id, nonce);
  }

  /** Undefined where no whole reply came. */
  private post(nonce: string, body: string): Promise<Response | undefined> {
    const headers = { "content-type": "application/json" };
    const init = { method: "POST", headers, body };
    return this.knock(nonce, "post", "/v1/chat/completions", init).catch(() => undefined);
  }

  private async untilPosted(nonce: string, body: string): Promise<Response> {
    for (;;) {
      const response = await this.post(nonce, body);
      if (response && response.headers.get("x-should-retry") !== "true") return response;
      await after(5);
    }
  }

  private async untilTold(
    nonce: string,
    call: Reply["call"],
    path: string,
    init?: RequestInit,
  ): Promise<void> {
    for (;;) {
      const response = await this.knock(nonce, call, path, init).catch(() => undefined);
      if (response && response.status !== 202) return;
      if (!response) await after(5);
    }
  }

  /** One HTTP call. A reply counts when it is there whole: then it goes into the log. */
  private async knock(
    nonce: string,
    call: Reply["call"],
    path: string,
    init?: RequestInit,
  ): Promise<Response> {
    const url = await this.door.find();
    return this.noted(await fetch(url + path, init), nonce, call);
  }

  private async noted(response: Response, nonce: string, call: Reply["call"]): Promise<Response> {
    const bytes = new Uint8Array(await response.arrayBuffer());
    const { status, headers } = response;
    const sha = createHash("sha256").update(bytes).digest("hex");
    const { id, code, state } = readReply(status, bytes);
    this.replies.push({
      nonce,
      call,
      status,
      id: headers.get("outlast-request-id") ?? id,
      sha,
      code,
      final: headers.get("x-should-retry") === "false",
      state,
    });
    return new Response(bytes, { status, headers });
  }
}

/** Whether nothing more is to be had of a stream. */
const isOver = ({ end, code }: Heard): boolean =>
  end === "done" || (end === "error" && !/^(stream_(restarted|interrupted)|shutting_down)$/.test(code ?? ""));

function readReply(status: number, bytes: Uint8Array): Pick<Reply, "id" | "code" | "state"> {
  const value = parsed(bytes) as { id?: string; object?: string; status?: string; error?: { code?: string } };
  if (value.object === "request" || status === 202) return { id: value.id, state: value.status };
  return { code: value.error?.code };
}

function parsed(bytes: Uint8Array): object {
  try {
    return JSON.parse(Buffer.from(bytes).toString());
  } catch {
    return {};
  }
}
