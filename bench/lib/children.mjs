/** Servers as child processes: started with a clean environment, on ports that the system picks, and always stopped. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";

const startLimitMs = 20_000;
const stopLimitMs = 15_000;
const running = new Set();

process.on("exit", () => {
  for (const child of running) child.kill("SIGKILL");
});

/**
 * Starts a program and waits until it is ready.
 *
 * @param ready gets what the program has written so far; anything but undefined ends the wait and is given back
 * @returns the process id, what `ready` gave, and how to stop it
 */
export async function start({ name, dir, command, args, env = {}, user, stopSignal = "SIGTERM", ready }) {
  const logFile = join(dir, `${name}.log`);
  const log = openSync(logFile, "w");
  const child = spawn(command, args, {
    cwd: dir,
    // Keys and settings of whoever runs this must not reach the servers.
    env: { PATH: process.env.PATH, HOME: process.env.HOME, NODE_ENV: "production", ...env },
    stdio: ["ignore", log, log],
    ...user,
  });
  closeSync(log);
  running.add(child);
  child.once("exit", () => running.delete(child));
  const failure = await Promise.race([once(child, "spawn").then(() => undefined), once(child, "error")]);
  if (failure) throw new Error(`${name} could not be started: ${failure[0].message}`);
  const found = await untilReady(name, child, logFile, ready);
  return { pid: child.pid, found, stop: () => stop(child, stopSignal) };
}

async function untilReady(name, child, logFile, ready) {
  const giveUpAt = performance.now() + startLimitMs;
  while (performance.now() < giveUpAt) {
    const log = readFileSync(logFile, "utf8");
    if (child.exitCode !== null || child.signalCode) throw new Error(`${name} stopped at once:\n${log}`);
    const found = await ready(log);
    if (found !== undefined) return found;
    await pause(20);
  }
  throw new Error(`${name} was not ready in time:\n${readFileSync(logFile, "utf8")}`);
}

async function stop(child, signal) {
  if (child.exitCode !== null || child.signalCode) return;
  const gone = once(child, "exit");
  child.kill(signal);
  const late = setTimeout(() => child.kill("SIGKILL"), stopLimitMs);
  await gone;
  clearTimeout(late);
}

/** For programs that cannot be told to pick one themselves. */
export async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
}

/** @returns whether anything answers HTTP there, as `ready` wants it */
export async function answers(url) {
  try {
    await (await fetch(url)).arrayBuffer();
    return url;
  } catch {
    return undefined;
  }
}
