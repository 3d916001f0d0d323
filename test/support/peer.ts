/** A caller on a raw socket: says what it likes when it likes, reads or does not, and goes as it likes. */

import { connect, type Socket } from "node:net";

export interface PeerReply {
  status: number;
  headers: Record<string, string>;
  body: Buffer;
}

export interface PeerOptions {
  /** Does not read what comes until `read` is called. */
  unread?: boolean;
}

export class Peer {
  readonly socket: Socket;
  private bytes = Buffer.alloc(0);
  private onBytes = () => {};
  private readonly over: Promise<void>;

  private constructor(socket: Socket, unread: boolean) {
    this.socket = socket;
    socket.on("error", () => {});
    this.over = new Promise((resolve) => socket.once("close", () => resolve()));
    if (!unread) this.read();
  }

  static open(url: string, { unread = false }: PeerOptions = {}): Promise<Peer> {
    const { port, hostname } = new URL(url);
    const socket = connect({ port: Number(port), host: hostname, allowHalfOpen: true, noDelay: true });
    return new Promise((resolve, reject) => {
      socket.once("error", reject);
      socket.once("connect", () => {
        socket.off("error", reject);
        resolve(new Peer(socket, unread));
      });
    });
  }

  /** Resolves when the bytes were handed to the system. */
  say(...pieces: (string | Buffer)[]): Promise<void> {
    const bytes = Buffer.concat(pieces.map((piece) => Buffer.from(piece)));
    return new Promise((resolve) => this.socket.write(bytes, () => resolve()));
  }

  read(): void {
    const { socket } = this;
    socket.on("data", (piece) => {
      this.bytes = Buffer.concat([this.bytes, piece as Buffer]);
      this.onBytes();
    });
    for (const event of ["end", "close"]) socket.once(event, () => this.onBytes());
  }

  /** The next whole reply. @throws Error where the connection ends before. */
  async reply(): Promise<PeerReply> {
    for (;;) {
      const reply = this.takeReply();
      if (reply) return reply;
      if (this.socket.destroyed || this.socket.readableEnded) {
        throw new Error(`the connection ended after ${this.bytes.length} bytes of a reply`);
      }
      await new Promise<void>((resolve) => {
        this.onBytes = resolve;
      });
    }
  }

  /** Resolves when at least so many bytes of a reply have come and were not taken. */
  async some(count: number): Promise<void> {
    while (this.bytes.length < count) {
      await new Promise<void>((resolve) => {
        this.onBytes = resolve;
      });
    }
  }

  /** Goes with a RST. */
  async reset(): Promise<void> {
    this.socket.resetAndDestroy();
    await this.over;
  }

  /** Goes with a FIN, as a client that closes its connection does. */
  async close(): Promise<void> {
    this.socket.destroy();
    await this.over;
  }

  /** Ends its own half, and goes on reading. */
  endHalf(): Promise<void> {
    return new Promise((resolve) => this.socket.end(() => resolve()));
  }

  /** Resolves when the connection is closed. */
  closed(): Promise<void> {
    return this.over;
  }

  private takeReply(): PeerReply | undefined {
    const end = this.bytes.indexOf("\r\n\r\n");
    if (end < 0) return undefined;
    const [start = "", ...lines] = this.bytes.toString("latin1", 0, end).split("\r\n");
    const headers = Object.fromEntries(
      lines.map((line) => {
        const colon = line.indexOf(":");
        return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
      }),
    );
    const status = Number(start.split(" ")[1]);
    const length = end + 4 + Number(headers["content-length"] ?? 0);
    if (this.bytes.length < length) return undefined;
    const body = Buffer.from(this.bytes.subarray(end + 4, length));
    this.bytes = this.bytes.subarray(length);
    return { status, headers, body };
  }
}

/** A chat completion as bytes, with a length unless told. */
export function chatCall(
  body: unknown,
  headers: Record<string, string | undefined> = {},
  version = "1.1",
): Buffer {
  const bytes = Buffer.from(typeof body === "string" ? body : JSON.stringify(body));
  const all = {
    Host: "localhost",
    "Content-Type": "application/json",
    "Content-Length": String(bytes.length),
    ...headers,
  };
  const lines = Object.entries(all).flatMap(([name, value]) =>
    value === undefined ? [] : `${name}: ${value}`,
  );
  const head = [`POST /v1/chat/completions HTTP/${version}`, ...lines, "", ""].join("\r\n");
  return Buffer.concat([Buffer.from(head), bytes]);
}
