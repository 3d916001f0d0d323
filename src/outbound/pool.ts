/** Connections to one upstream. */

import type { Socket } from "node:net";
import { buildConnector, Pool } from "undici";

/** @param connections how many there may be at a time; without a limit if undefined */
export function createPool(origin: string, connectMs: number, connections?: number): Pool {
  const connectPlainly = buildConnector({ timeout: connectMs });
  const connect: buildConnector.connector = (options, callback) =>
    connectPlainly(options, (...result) => {
      const [, socket] = result;
      if (socket) guard(socket);
      callback(...result);
    });
  return new Pool(origin, { connections, connect, pipelining: 1 });
}

/** The part of undici's parser that the guard needs. It stands at the socket under a symbol of undici's own. */
interface Parser {
  paused: boolean;
  shouldKeepAlive: boolean;
  ptr: number;
  llhttp: { llhttp_resume(ptr: number): void };
}

/**
 * Where an answer ends with its connection, undici 7 tells its parser of the end, and asserts that this is not
 * paused; but nothing keeps a connection from ending while somebody reads slowly. The failed assertion would end the
 * process. And it takes a reset for such an end, so that a cut answer looks whole. These listeners run before its own.
 */
function guard(socket: Socket): void {
  const parserOf = (): Parser | undefined => {
    const symbol = Object.getOwnPropertySymbols(socket).find(({ description }) => description === "parser");
    return (symbol && (socket as unknown as Record<symbol, Parser | null>)[symbol]) ?? undefined;
  };
  // Everything has been read, so the answer is whole as far as the connection knows.
  socket.on("end", () => {
    const parser = parserOf();
    if (!parser?.paused) return;
    parser.llhttp.llhttp_resume(parser.ptr);
    parser.paused = false;
  });
  // A parser that has stopped is not asked again whether the answer is whole: it is broken.
  const stop = () => {
    const parser = parserOf();
    if (parser) parser.paused = false;
  };
  socket.on("error", () => {
    stop();
    const parser = parserOf();
    if (parser) parser.shouldKeepAlive = true;
  });
  socket.on("close", stop);
}
