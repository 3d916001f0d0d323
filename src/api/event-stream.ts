/** A stream of server-sent events on the wire: events, comments while there are none, and an end. */

import type { ServerResponse } from "node:http";
import type { Socket } from "node:net";
import type { HeaderList } from "../core/headers.ts";
import type { Clock } from "../core/ports.ts";
import { restOfTurn } from "./event-loop.ts";

/** Between an error and the break of the connection: some clients drop what they have not yet read when it breaks. */
const lastWordMs = 250;

/** What a stream's headers always say; balancers are asked not to wait for the end of it. */
const ownHeaders: HeaderList = [
  ["content-type", "text/event-stream; charset=utf-8"],
  ["cache-control", "no-cache"],
  ["x-accel-buffering", "no"],
];

/** Node joins text to headers that are still to be sent, and writes both as UTF-8; headers are Latin-1. */
const bytesOf = (text: string): Buffer => Buffer.from(text);

const lastChunk = "0\r\n\r\n";

/** More characters than these of one stream do not wait for the others. */
const holdMax = 16 * 1024;
/** Streams with something to write at the end of this turn of the event loop. */
let speaking: EventStream[] = [];

/**
 * What streams say in one turn goes out together: a write that comes long after the one before finds the reader of
 * all of them asleep, and to wake it is dear (a tenth of what a chunk costs on the main thread).
 */
function speakSoon(stream: EventStream): void {
  speaking.push(stream);
  if (speaking.length > 1) return;
  void restOfTurn().then(() => {
    const those = speaking;
    speaking = [];
    for (const one of those) one.flush();
  });
}

export class EventStream {
  private readonly outgoing: ServerResponse;
  private readonly clock: Clock;
  private readonly heartbeatMs: number;
  /** By the clock's ticks. */
  private saidAt: number;
  private cancelBeat = () => {};
  private isBeating = false;
  /** What is written has to be framed as chunks of HTTP/1.1. */
  private isChunked = false;
  private hasWritten = false;
  /** Framed, and to be written at the end of the turn. */
  private held = "";
  /** The socket has not yet taken what was written. */
  private isFull = false;
  private readonly onDrain: () => void;

  /**
   * @param heartbeatMs how long the caller hears nothing at most
   * @param onDrain the caller takes more again
   */
  constructor(outgoing: ServerResponse, clock: Clock, heartbeatMs: number, onDrain: () => void) {
    this.outgoing = outgoing;
    this.clock = clock;
    this.heartbeatMs = heartbeatMs;
    this.saidAt = clock.ticks();
    this.onDrain = onDrain;
    outgoing.on("drain", onDrain);
  }

  /** Whether the headers were sent: from then on an error can only be told as an event. */
  get hasBegun(): boolean {
    return this.outgoing.headersSent;
  }

  /** Sends the headers. */
  begin(headers: HeaderList): void {
    // What an upstream encoded was decoded to be read.
    const taken = new Set(["content-encoding", ...ownHeaders.map(([name]) => name)]);
    const others = headers.filter(([name]) => !taken.has(name));
    this.outgoing.writeHead(200, [...others, ...ownHeaders].flat());
    // Node makes four writes of a chunk, and a task that puts them together again: a fifth of what a small one costs.
    this.isChunked = this.outgoing.chunkedEncoding;
    this.outgoing.chunkedEncoding = false;
  }

  /** From now on breaks every silence with a comment; the first one may have to send the headers. */
  keepAlive(begin: () => void): void {
    if (this.isBeating) return;
    this.isBeating = true;
    this.beat(begin);
  }

  private beat(begin: () => void): void {
    const leftMs = this.saidAt + this.heartbeatMs - this.clock.ticks();
    if (leftMs > 0) {
      this.cancelBeat = this.clock.timer(leftMs, () => this.beat(begin));
      return;
    }
    if (!this.hasBegun) begin();
    // Who is slow to read has enough to read.
    if (!this.isFull && !this.outgoing.writableNeedDrain) this.write(": keep-alive\n\n");
    this.cancelBeat = this.clock.timer(this.heartbeatMs, () => this.beat(begin));
  }

  /** False: no more until the caller has taken what there is. */
  write(text: string): boolean {
    this.saidAt = this.clock.ticks();
    const { socket } = this.outgoing;
    // The first write takes the headers with it; without a socket, another answer is under way on the connection.
    if (this.isChunked && this.hasWritten && socket) return this.hold(this.framed(text));
    this.hasWritten = true;
    return this.outgoing.write(bytesOf(this.framed(text)));
  }

  private hold(text: string): boolean {
    if (this.held === "" && text !== "") speakSoon(this);
    this.held += text;
    return this.held.length > holdMax ? this.flush() : !this.isFull;
  }

  /** Writes what is held. False: no more until the caller has taken what there is. */
  flush(): boolean {
    const { held } = this;
    const { socket } = this.outgoing;
    this.held = "";
    return held === "" || !socket?.writable ? !this.isFull : this.writeTo(socket, held);
  }

  private writeTo(socket: Socket, text: string): boolean {
    if (socket.write(text)) return true;
    if (this.isFull) return false;
    this.isFull = true;
    socket.once("drain", () => {
      this.isFull = false;
      this.onDrain();
    });
    return false;
  }

  end(text: string): void {
    this.close();
    this.flush();
    this.outgoing.end(bytesOf(this.isChunked ? this.framed(text) + lastChunk : text));
  }

  private framed(text: string): string {
    // A chunk without anything would be the last one.
    return this.isChunked && text !== "" ? `${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n` : text;
  }

  /** Says what went wrong, and then breaks the connection: the stream must not look whole to anybody. */
  breakOff(text: string): void {
    this.close();
    this.flush();
    const { outgoing } = this;
    outgoing.write(this.framed(text), () => {
      const cancelTimer = this.clock.timer(lastWordMs, () => {
        if (this.isChunked) outgoing.destroy();
        // In HTTP/1.0, which some balancers speak, a whole stream ends with its connection, too.
        else outgoing.socket?.resetAndDestroy();
      });
      outgoing.once("close", cancelTimer);
    });
  }

  /** Nothing more is said by itself. */
  close(): void {
    this.cancelBeat();
  }
}
