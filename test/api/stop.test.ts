import { expect, test } from "vitest";
import { HandClock } from "../support/clock.ts";
import { startOutlast } from "../support/outlast.ts";
import { openSocket } from "./wire.ts";

test("a connection on which nothing was asked does not hold up a stop", async () => {
  const outlast = await startOutlast({ clock: new HandClock() });
  const socket = await openSocket(outlast.url);
  // Answered after the connection was accepted: connections are accepted in order.
  expect((await outlast.fetch("/healthz")).status).toBe(200);
  await outlast.stop();
  await outlast.close();
  socket.destroy();
});
