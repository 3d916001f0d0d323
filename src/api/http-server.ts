/** The HTTP server around the routes: how it listens, and how it goes without cutting anybody off. */

import { once } from "node:events";
import { createServer } from "node:http";
import { type AddressInfo, Server as TcpServer } from "node:net";
import type { Duplex } from "node:stream";
import { scheduler } from "node:timers/promises";
import { AppError } from "../core/errors.ts";
import type { Clock } from "../core/ports.ts";
import { createApp } from "./app.ts";
import { Connections } from "./connections.ts";
import type { ApiOptions } from "./context.ts";
import { errorReply } from "./errors.ts";

/**
 * So many connections the system may hold until we take them; it has a limit of its own (`net.core.somaxconn`, 4096 on
 * Linux). Whoever comes on top of Node's 511 is ignored, and tries again after a second, then after three.
 */
const mostUnaccepted = 4096;

export interface HttpServer {
  /** Resolves with where it listens: `http://127.0.0.1:4080`. Rejects where the port is taken. */
  listen(host: string, port: number): Promise<string>;
  /** For the moment before `stopListening`: see `Connections`. */
  beQuiet(): void;
  /** Takes no new connections; those that there are go on. */
  stopListening(): Promise<void>;
  /**
   * After `stopListening`. Finishes the replies that are being written, for `withinMs` at most; their connections
   * close behind them.
   */
  close(withinMs: number): Promise<void>;
}

export function createHttpServer(options: ApiOptions, clock: Clock, keepAliveTimeoutMs: number): HttpServer {
  const server = createServer();
  server.keepAliveTimeout = keepAliveTimeoutMs;
  // Has to be longer, or a reused connection is cut between the two.
  server.headersTimeout = keepAliveTimeoutMs + 5000;
  // Uploads may be slow and answers late; both have limits of their own.
  server.requestTimeout = 0;
  server.on("clientError", refuseUnreadable);
  const connections = new Connections(server, clock, options.rests, () => options.queue.isStopping);
  const app = createApp(options, connections);
  server.on("request", (incoming, outgoing) => {
    const exchange = connections.asked(incoming.socket, outgoing);
    options.deliveries.asksAgain(exchange.connection);
    void app(exchange);
  });
  const closed = new Promise<void>((resolve) => {
    server.once("close", resolve);
  });
  return {
    async listen(host, port) {
      server.listen({ port, host, backlog: mostUnaccepted });
      await once(server, "listening");
      const { address, port: actual, family } = server.address() as AddressInfo;
      return `http://${family === "IPv6" ? `[${address}]` : address}:${actual}`;
    },
    beQuiet: () => connections.beQuiet(),
    async stopListening() {
      // Right behind the turn in which the system's queue of new connections was emptied.
      await scheduler.yield();
      // The `close` of http would also reset idle connections, on which a call may just be arriving.
      TcpServer.prototype.close.call(server);
      connections.speak();
    },
    async close(withinMs) {
      const cancelTimer = clock.timer(withinMs, () => server.closeAllConnections());
      await options.rests.end();
      options.queue.admission.refuseUploads(() => options.queue.shuttingDown());
      // The server counts a connection as closed before those who listen to its end are told.
      await Promise.all([closed, connections.closeIdle()]);
      cancelTimer();
    },
  };
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
