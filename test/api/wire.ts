/** What tests of the API share: a clock that says who waits, raw sockets, and schemas that allow nothing extra. */

import { connect, type Socket } from "node:net";
import { afterAll, beforeAll, beforeEach, expect, onTestFinished } from "vitest";
import { z } from "zod";
import { asyncSchema, attemptSchema, errorSchema, listOf, requestSchema } from "../../src/contract.ts";
import { HandClock } from "../support/clock.ts";
import { answer } from "../support/fake-upstream.ts";
import { type Outlast, type OutlastOptions, startOutlast } from "../support/outlast.ts";

/** A server for one test, closed behind it. */
export async function serveTest(options: OutlastOptions = {}): Promise<Outlast> {
  const outlast = await startOutlast(options);
  onTestFinished(() => outlast.close());
  return outlast;
}

/** One server for a group of tests, each of which sees only its own calls and events. `use` is handed it. */
export function serveGroup(use: (outlast: Outlast) => void, options: OutlastOptions = {}): void {
  let outlast: Outlast;
  beforeAll(async () => {
    outlast = await startOutlast(options);
  });
  beforeEach(() => {
    for (const fake of Object.values(outlast.fakes)) {
      fake.seen.length = 0;
      fake.otherwise(answer());
    }
    outlast.ear.heard.length = 0;
    use(outlast);
  });
  afterAll(() => outlast.close());
}

export const strictAsync = z.strictObject(asyncSchema.shape);
export const strictAttempt = z.strictObject(attemptSchema.shape);
export const strictRequest = z.strictObject({
  ...requestSchema.shape,
  attempt_list: z.array(strictAttempt).optional(),
});
export const strictList = <T extends z.ZodType>(item: T) => z.strictObject(listOf(item).shape);
const strictError = z.strictObject({ error: z.strictObject(errorSchema.shape.error.shape) });

/** The error of a reply, which has to be one of ours, word for word by the contract. */
export async function errorOf(response: Response) {
  expect(response.headers.get("content-type")).toBe("application/json");
  return strictError.parse(await response.json()).error;
}

/** Status, code and param of a refusal. */
export async function refusalOf(response: Response) {
  const { code, param } = await errorOf(response);
  return { status: response.status, code, param };
}

/** Stands still like HandClock, and tells when timers of a certain length have been set: somebody waits now. */
export class WatchedClock extends HandClock {
  private readonly lengths: number[] = [];
  private watchers: { delayMs: number; times: number; resolve: () => void }[] = [];

  override timer(delayMs: number, run: () => void): () => void {
    this.lengths.push(delayMs);
    const ready = this.watchers.filter((one) => this.count(one.delayMs) >= one.times);
    this.watchers = this.watchers.filter((one) => !ready.includes(one));
    for (const { resolve } of ready) resolve();
    return super.timer(delayMs, run);
  }

  /** Resolves when `times` timers of this length have been set in all. */
  armed(delayMs: number, times = 1): Promise<void> {
    if (this.count(delayMs) >= times) return Promise.resolve();
    return new Promise((resolve) => {
      this.watchers.push({ delayMs, times, resolve });
    });
  }

  private count(delayMs: number): number {
    return this.lengths.filter((one) => one === delayMs).length;
  }
}

export function openSocket(url: string): Promise<Socket> {
  const { port, hostname } = new URL(url);
  return new Promise((resolve, reject) => {
    const socket = connect(Number(port), hostname);
    socket.once("error", reject);
    socket.once("connect", () => {
      socket.off("error", reject);
      socket.on("error", () => {});
      resolve(socket);
    });
  });
}

/** Writes bytes on a connection of its own and reads until the server closes it. */
export async function talk(url: string, bytes: string | Buffer): Promise<RawReply> {
  const socket = await openSocket(url);
  const pieces: Buffer[] = [];
  socket.on("data", (piece) => pieces.push(piece));
  const closed = new Promise((resolve) => socket.once("close", resolve));
  socket.write(bytes);
  await closed;
  return parseReply(Buffer.concat(pieces).toString("latin1"));
}

export interface RawReply {
  status: number;
  headers: Record<string, string>;
  body: string;
}

export function parseReply(text: string): RawReply {
  const [head = "", ...rest] = text.split("\r\n\r\n");
  const [start = "", ...lines] = head.split("\r\n");
  const headers = lines.map((line) => {
    const colon = line.indexOf(":");
    return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()] as const;
  });
  return {
    status: Number(start.split(" ")[1]),
    headers: Object.fromEntries(headers),
    body: rest.join("\r\n\r\n"),
  };
}

/** A call as bytes; the connection closes behind its answer. */
export function rawCall(
  start: string,
  headers: Record<string, string | string[]> = {},
  body?: string | Buffer,
): Buffer {
  const length = body === undefined ? {} : { "Content-Length": String(Buffer.byteLength(body)) };
  const all = { Host: "localhost", Connection: "close", ...length, ...headers };
  const lines = Object.entries(all).flatMap(([name, value]) =>
    [value].flat().map((one) => `${name}: ${one}`),
  );
  return Buffer.concat([
    Buffer.from([`${start} HTTP/1.1`, ...lines, "", ""].join("\r\n"), "latin1"),
    Buffer.from(body ?? ""),
  ]);
}
