/** The HTTP server around the routes: how it listens, and how it goes without cutting anybody off. */

import { once } from "node:events";
import { createServer, type Server } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import type { Duplex } from "node:stream";
import { getRequestListener } from "@hono/node-server";
import { AppError } from "../core/errors.ts";
import type { Clock } from "../core/ports.ts";
import { createApp } from "./app.ts";
import type { ApiOptions } from "./context.ts";
import { errorReply } from "./errors.ts";

export interface HttpServer {
  /** Resolves with where it listens: `http://127.0.0.1:4080`. Rejects where the port is taken. */
  listen(host: string, port: number): Promise<string>;
  /** Finishes the replies that are being written, for `withinMs` at most; their connections close behind them. */
  close(withinMs: number): Promise<void>;
}

export function createHttpServer(options: ApiOptions, clock: Clock, keepAliveTimeoutMs: number): HttpServer {
  const fetch = createApp(options).fetch as never;
  const errorHandler = () => unreadable();
  const server = createServer(getRequestListener(fetch, { overrideGlobalObjects: false, errorHandler }));
  server.keepAliveTimeout = keepAliveTimeoutMs;
  // Has to be longer, or a reused connection is cut between the two.
  server.headersTimeout = keepAliveTimeoutMs + 5000;
  // Uploads may be slow and answers late; both have limits of their own.
  server.requestTimeout = 0;
  server.on("clientError", refuseUnreadable);
  const unused = unusedConnections(server);
  server.on("request", (_incoming, outgoing) => {
    // A connection that falls idle while the server stops would keep it waiting for a next call.
    outgoing.once("close", () => {
      if (options.queue.isStopping) server.closeIdleConnections();
    });
  });
  return {
    async listen(host, port) {
      server.listen(port, host);
      await once(server, "listening");
      const { address, port: actual, family } = server.address() as AddressInfo;
      return `http://${family === "IPv6" ? `[${address}]` : address}:${actual}`;
    },
    async close(withinMs) {
      const closed = once(server, "close");
      const cancelTimer = clock.timer(withinMs, () => server.closeAllConnections());
      server.close();
      server.closeIdleConnections();
      for (const socket of unused) socket.destroy();
      await closed;
      cancelTimer();
    },
  };
}

/** Connections on which nothing has been asked yet: Node does not count them as idle. */
function unusedConnections(server: Server): Set<Socket> {
  const unused = new Set<Socket>();
  server.on("connection", (socket) => {
    unused.add(socket);
    socket.once("close", () => unused.delete(socket));
  });
  server.on("request", ({ socket }) => unused.delete(socket));
  return unused;
}

/** What is no HTTP, or has headers that are too long, is refused in the shape of every other error. */
function refuseUnreadable(error: NodeJS.ErrnoException, socket: Duplex): void {
  if (error.code === "ECONNRESET" || !socket.writable) return void socket.destroy();
  const tooLong = error.code === "HPE_HEADER_OVERFLOW";
  const message = tooLong ? "The headers are too long." : "This is not a valid HTTP request.";
  const { body } = errorReply(new AppError("invalid_body", message));
  const status = tooLong ? "431 Request Header Fields Too Large" : "400 Bad Request";
  const length = Buffer.byteLength(body);
  const head = `content-type: application/json\r\ncontent-length: ${length}\r\nconnection: close`;
  socket.end(`HTTP/1.1 ${status}\r\n${head}\r\n\r\n${body}`);
}

/** For a call whose host or target is no part of a URL: no route ever sees it. */
function unreadable(): Response {
  const message = "The address of this call cannot be read.";
  const { status, headers, body } = errorReply(new AppError("not_found", message));
  return new Response(body as string, { status, headers });
}
