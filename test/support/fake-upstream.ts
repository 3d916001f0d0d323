/**
 * A scripted upstream over real sockets: the only fake in our tests. It does what its script says, one step
 * per call, and remembers what it saw. Ordinary answers go through node:http; faults are done to the socket.
 */
import {
  createServer,
  type IncomingHttpHeaders,
  type IncomingMessage,
  type OutgoingHttpHeaders,
  type ServerResponse,
} from "node:http";
import {
  type AddressInfo,
  createServer as createTcpServer,
  type Socket,
  connect as tcpConnect,
} from "node:net";

/** A call that arrived whole. */
export interface Seen {
  /** 1 for the first call. */
  n: number;
  method: string;
  url: string;
  headers: IncomingHttpHeaders;
  rawHeaders: string[];
  body: Buffer;
  /** When its last byte came, in epoch ms. */
  at: number;
}

/** What the upstream does with one call. */
export type Step = (call: Seen, res: ServerResponse) => void | Promise<void>;

/** How a scripted answer ends: as HTTP wants it, with a RST, or never. */
export type End = "clean" | "reset" | "hang";

/** An error as OpenAI writes it. */
export interface ApiError {
  message?: string;
  type?: string;
  code?: string | null;
  param?: string | null;
}

/** A running scripted upstream. */
export interface FakeUpstream {
  /** `http://127.0.0.1:PORT/v1` */
  baseUrl: string;
  /** `http://127.0.0.1:PORT` */
  origin: string;
  /** Every call, in the order in which they arrived whole. */
  readonly seen: Seen[];
  /** Appends steps; each call takes the next one. */
  script(...steps: Step[]): void;
  /** What a call gets when the script is empty; `answer()` unless told. */
  otherwise(step: Step): void;
  /** Resolves when `n` calls were seen in all; rejects when the upstream closes before that. */
  calls(n: number): Promise<void>;
  /** Calls that were seen and whose answer has neither ended nor lost its connection. */
  readonly inFlight: number;
  readonly maxInFlight: number;
  /** Resolves when no call is in flight. */
  idle(): Promise<void>;
  /** Hangs up on everyone. Rejects with the first error that a step threw, if one did. */
  close(): Promise<void>;
}

interface Waiter {
  n: number;
  resolve(): void;
  reject(error: Error): void;
}

interface State {
  seen: Seen[];
  steps: Step[];
  fallback: Step;
  waiters: Waiter[];
  idlers: (() => void)[];
  inFlight: number;
  maxInFlight: number;
  closed: boolean;
  thrown: unknown[];
}

/** Starts a scripted upstream on a port of 127.0.0.1 that the system picks. */
export async function startFake(): Promise<FakeUpstream> {
  const state = emptyState();
  const server = createServer((req, res) => void take(state, req, res));
  server.keepAliveTimeout = 0; // only a step or close() hangs up, never a timer
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  return {
    baseUrl: `${origin}/v1`,
    origin,
    seen: state.seen,
    script: (...steps) => void state.steps.push(...steps),
    otherwise: (step) => {
      state.fallback = step;
    },
    calls: (n) => waitForCalls(state, n),
    get inFlight() {
      return state.inFlight;
    },
    get maxInFlight() {
      return state.maxInFlight;
    },
    idle: () => whenIdle(state),
    close: async () => {
      rejectWaiters(state);
      await new Promise<void>((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      });
      if (state.thrown.length > 0) throw state.thrown[0];
    },
  };
}

function emptyState(): State {
  return {
    seen: [],
    steps: [],
    fallback: answer(),
    waiters: [],
    idlers: [],
    inFlight: 0,
    maxInFlight: 0,
    closed: false,
    thrown: [],
  };
}

async function take(state: State, req: IncomingMessage, res: ServerResponse): Promise<void> {
  const pieces: Buffer[] = [];
  try {
    for await (const piece of req as AsyncIterable<Buffer>) pieces.push(piece);
  } catch {
    return; // the caller left before its call was whole, so no call was made
  }
  const { method = "", url = "", headers, rawHeaders } = req;
  const body = Buffer.concat(pieces);
  const call = { n: state.seen.length + 1, method, url, headers, rawHeaders, body, at: Date.now() };
  const step = state.steps.shift() ?? state.fallback;
  see(state, call, res);
  try {
    await step(call, res);
  } catch (error) {
    state.thrown.push(error);
    res.req.socket.resetAndDestroy();
  }
}

function see(state: State, call: Seen, res: ServerResponse): void {
  state.seen.push(call);
  // A caller that is gone by now has had its "close" already.
  if (!res.destroyed) {
    state.inFlight += 1;
    state.maxInFlight = Math.max(state.maxInFlight, state.inFlight);
    res.once("close", () => {
      state.inFlight -= 1;
      if (state.inFlight === 0) for (const resolve of state.idlers.splice(0)) resolve();
    });
  }
  for (const waiter of state.waiters.filter(({ n }) => n <= call.n)) waiter.resolve();
  state.waiters = state.waiters.filter(({ n }) => n > call.n);
}

function waitForCalls(state: State, n: number): Promise<void> {
  if (state.seen.length >= n) return Promise.resolve();
  const waiting = new Promise<void>((resolve, reject) => {
    if (state.closed) reject(tooFew(state, n));
    else state.waiters.push({ n, resolve, reject });
  });
  waiting.catch(() => {}); // a wait that nobody awaits any more must not fail the run
  return waiting;
}

function whenIdle(state: State): Promise<void> {
  if (state.inFlight === 0) return Promise.resolve();
  return new Promise((resolve) => void state.idlers.push(resolve));
}

function rejectWaiters(state: State): void {
  state.closed = true;
  for (const waiter of state.waiters) waiter.reject(tooFew(state, waiter.n));
  state.waiters = [];
}

function tooFew(state: State, n: number): Error {
  return new Error(`the fake upstream closed after ${state.seen.length} calls; ${n} were awaited`);
}

// ---- steps ----

/** What `answer` sends; `body` goes out exactly as given (an object as its JSON). */
export interface AnswerOptions {
  text?: string;
  id?: string;
  model?: string;
  status?: number;
  headers?: OutgoingHttpHeaders;
  body?: string | Buffer | object;
}

/** A good answer: unless told otherwise, a chat.completion that says "ok", with an x-request-id. */
export function answer(options: AnswerOptions = {}): Step {
  return (call, res) => {
    const body = options.body ?? completion(call, options);
    const defaults = { "content-type": "application/json", "x-request-id": `fake-req-${call.n}` };
    send(res, options.status ?? 200, { ...defaults, ...lowerCased(options.headers) }, toBuffer(body));
  };
}

/** An error in OpenAI's shape. */
export function fail(status: number, error: ApiError = {}, headers: OutgoingHttpHeaders = {}): Step {
  const type = status === 429 ? "requests" : status >= 500 ? "server_error" : "invalid_request_error";
  const code = status === 429 ? "rate_limit_exceeded" : null;
  const message = `the fake upstream says ${status}`;
  return answer({ status, headers, body: { error: { message, type, param: null, code, ...error } } });
}

/** What a proxy in between would say: a page instead of JSON. */
export function html(status: number, text: string): Step {
  return (_call, res) => send(res, status, { "content-type": "text/html; charset=utf-8" }, toBuffer(text));
}

/** A RST before any byte of the answer. */
export function reset(): Step {
  return (_call, res) => void res.req.socket.resetAndDestroy();
}

/** Promises a whole body, sends `after` bytes of it (0: the head alone), then a RST. */
export function cut(options: { after: number; status?: number; body?: string | Buffer | object }): Step {
  return async (call, res) => {
    const { after, status = 200 } = options;
    const body = toBuffer(options.body ?? completion(call, {}));
    const length = Math.max(body.length, after + 1); // never whole, however much was asked for
    const padding = Buffer.alloc(length - body.length, " ");
    const head = [
      `HTTP/1.1 ${status} Cut`,
      "content-type: application/json",
      `content-length: ${length}`,
      `x-request-id: fake-req-${call.n}`,
    ];
    const sent = Buffer.concat([body, padding]).subarray(0, after);
    await raw(Buffer.concat([Buffer.from(`${head.join("\r\n")}\r\n\r\n`), sent]), "reset")(call, res);
  };
}

/** Never answers; the connection stays open until the caller or the upstream closes it. */
export function hang(): Step {
  return () => {};
}

/** A call that waits until the test lets it go on. */
export interface Gate {
  step: Step;
  /** Resolves when a call has arrived at the gate. */
  arrived: Promise<void>;
  /** Lets the call go on with a step, `answer()` unless told. */
  release(step?: Step): void;
}

/** Makes a gate: put its `step` into the script, await `arrived`, then `release`. */
export function gate(): Gate {
  let arrive = () => {};
  let open: (step: Step) => void = () => {};
  const arrived = new Promise<void>((resolve) => {
    arrive = resolve;
  });
  const opened = new Promise<Step>((resolve) => {
    open = resolve;
  });
  return {
    step: async (call, res) => {
      arrive();
      const next = await opened;
      await next(call, res);
    },
    arrived,
    release: (step = answer()) => open(step),
  };
}

/** A string is the data of one event, a Buffer is written as it is, a promise is awaited before what follows it. */
export type StreamChunk = string | Buffer | Promise<unknown>;

/** `done` (the event `[DONE]`) comes by default exactly with the clean end. */
export interface StreamOptions {
  done?: boolean;
  end?: End;
  headers?: OutgoingHttpHeaders;
}

/** An SSE answer. Every chunk is handed to the system before the next one is looked at. */
export function stream(chunks: readonly StreamChunk[], options: StreamOptions = {}): Step {
  const { end = "clean", done = end === "clean", headers } = options;
  return async (call, res) => {
    setHeaders(res, { "content-type": "text/event-stream", "x-request-id": `fake-req-${call.n}` });
    setHeaders(res, lowerCased(headers));
    res.flushHeaders();
    for (const chunk of done ? [...chunks, "[DONE]"] : chunks) {
      if (chunk instanceof Promise) await chunk;
      else await written(res, typeof chunk === "string" ? `data: ${chunk}\n\n` : chunk);
    }
    if (end === "clean") res.end();
    if (end === "reset") await breakOff(res.req.socket);
  };
}

/** The data of chat.completion.chunk events that say `texts`, from the role to finish_reason "stop". */
export function deltas(...texts: string[]): string[] {
  const event = (delta: object, finish_reason: string | null) =>
    JSON.stringify({
      id: "chatcmpl-fake",
      object: "chat.completion.chunk",
      created: 1_700_000_000,
      model: "fake",
      choices: [{ index: 0, delta, finish_reason }],
    });
  return [
    event({ role: "assistant", content: "" }, null),
    ...texts.map((content) => event({ content }, null)),
    event({}, "stop"),
  ];
}

/** Writes bytes on the socket past node:http, then ends the connection: with a FIN unless told. */
export function raw(bytes: string | Buffer, end: End = "clean"): Step {
  return async (_call, res) => {
    const { socket } = res.req;
    await new Promise<void>((resolve) => socket.write(bytes, () => resolve()));
    if (end === "clean") socket.end();
    if (end === "reset") await breakOff(socket);
  };
}

/**
 * A base URL on 127.0.0.1 on which nothing listens, now or later: the port is the near end of an open
 * connection, so the system refuses calls to it and gives it to nobody else while this process lives.
 */
export async function closedPort(): Promise<string> {
  const server = createTcpServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const accepted = new Promise<Socket>((resolve) => server.once("connection", resolve));
  const holder = tcpConnect((server.address() as AddressInfo).port, "127.0.0.1");
  await new Promise((resolve, reject) => holder.once("connect", resolve).once("error", reject));
  (await accepted).unref();
  holder.unref();
  server.close();
  return `http://127.0.0.1:${holder.localPort}/v1`;
}

/**
 * A RST behind bytes. Node takes bytes and a RST that arrive together for bytes and a FIN, so a caller in this
 * process gets a turn of the loop to read first; one in another process may see either, and a cut body anyway.
 */
async function breakOff(socket: Socket): Promise<void> {
  // The first turn may be one whose polling is over already.
  for (let turn = 0; turn < 2; turn++) await new Promise((resolve) => setImmediate(resolve));
  socket.resetAndDestroy();
}

function completion(call: Seen, { text = "ok", id, model }: AnswerOptions): object {
  return {
    id: id ?? `chatcmpl-fake-${call.n}`,
    object: "chat.completion",
    created: 1_700_000_000,
    model: model ?? askedModel(call.body) ?? "fake",
    choices: [
      {
        index: 0,
        message: { role: "assistant", content: text, refusal: null },
        logprobs: null,
        finish_reason: "stop",
      },
    ],
    usage: { prompt_tokens: 5, completion_tokens: 1, total_tokens: 6 },
  };
}

function askedModel(body: Buffer): string | undefined {
  try {
    const { model } = JSON.parse(body.toString()) as { model?: unknown };
    return typeof model === "string" ? model : undefined;
  } catch {
    return undefined; // no model can be read from a GET or from a body that is no JSON
  }
}

function send(res: ServerResponse, status: number, headers: OutgoingHttpHeaders, body: Buffer): void {
  setHeaders(res, { "content-length": body.length, ...headers });
  res.statusCode = status;
  res.end(body);
}

function setHeaders(res: ServerResponse, headers: OutgoingHttpHeaders): void {
  for (const [name, value] of Object.entries(headers)) {
    if (value !== undefined) res.setHeader(name, value);
  }
}

/** So that a test's `X-Request-Id: undefined` takes our default away, whatever its case. */
function lowerCased(headers: OutgoingHttpHeaders = {}): OutgoingHttpHeaders {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]));
}

function toBuffer(body: string | Buffer | object): Buffer {
  if (Buffer.isBuffer(body)) return body;
  return Buffer.from(typeof body === "string" ? body : JSON.stringify(body));
}

function written(res: ServerResponse, bytes: string | Buffer): Promise<void> {
  return new Promise((resolve) => {
    res.write(bytes, () => resolve());
  });
}
