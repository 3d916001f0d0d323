/** The built command line as a process of its own, beside a server in this one. */

import { type ChildProcessWithoutNullStreams, spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import type { RequestObject } from "../../src/contract.ts";
import { hello, type Outlast, type OutlastOptions, quick, startOutlast } from "../support/outlast.ts";

const main = join(import.meta.dirname, "../../dist/main.js");

export interface Running {
  child: ChildProcessWithoutNullStreams;
  output(): string;
  /** Resolves when the output has this in it; rejects when the command ends without. */
  says(what: string): Promise<void>;
  ended: Promise<Ended>;
}
export interface Ended {
  code: number | null;
  output: string;
  errors: string;
  lines: string[];
}

/** In the folder of a server whose configuration is the one that the command reads. */
export function begin(args: string[], dir: string, env: Record<string, string> = {}): Running {
  const child = spawn(process.execPath, [main, ...args], {
    cwd: dir,
    env: { PATH: process.env.PATH, OUTLAST_DATA_DIR: dir, OUTLAST_STORE_MIN_FREE_DISK: "0", ...env },
  });
  let output = "";
  let errors = "";
  child.stdout.on("data", (bytes) => {
    output += bytes;
  });
  child.stderr.on("data", (bytes) => {
    errors += bytes;
  });
  const ended = once(child, "close").then(([code]) => ({
    code: code as number | null,
    output,
    errors,
    lines: output.trimEnd().split("\n"),
  }));
  return {
    child,
    output: () => output,
    async says(what) {
      while (!output.includes(what)) {
        const next = await Promise.race([once(child.stdout, "data"), ended]);
        if (!Array.isArray(next) && !output.includes(what)) throw new Error(`it ended without: ${errors}`);
      }
    },
    ended,
  };
}

export const run = (args: string[], dir: string, env?: Record<string, string>): Promise<Ended> =>
  begin(args, dir, env).ended;

/** A server whose address and folder a command finds in its configuration, as on one's own machine. */
export async function serverAndCli(options: OutlastOptions = {}) {
  const outlast = await startOutlast({ ...options, env: { ...quick, ...options.env } });
  const env = { OUTLAST_PORT: new URL(outlast.url).port };
  return {
    outlast,
    cli: (...args: string[]) => run(args, outlast.dir, env),
    beginCli: (...args: string[]) => begin(args, outlast.dir, env),
  };
}

/** What is in the place of a server, and need not mean well. */
export async function standIn(reply: (url: URL) => { status?: number; body: object }) {
  const server = createServer((req, res) => {
    const { status = 200, body } = reply(new URL(req.url!, "http://stand-in"));
    res.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    close: () => new Promise((resolve) => server.close(resolve)),
  };
}

/** Accepted, and answered later. @returns its id */
export async function submit(outlast: Outlast, body: object = {}, headers = {}): Promise<string> {
  const reply = await outlast.post("/v1/chat/completions", { ...hello, wait: false, ...body }, headers);
  if (reply.status !== 202) throw new Error(`${reply.status} ${await reply.text()}`);
  return ((await reply.json()) as { id: string }).id;
}

/** The record, when the request has ended. */
export async function ended(outlast: Outlast, id: string): Promise<RequestObject> {
  return (await (await outlast.fetch(`/v1/requests/${id}?wait=20`)).json()) as RequestObject;
}

export async function done(outlast: Outlast, body: object = {}, headers = {}): Promise<string> {
  const id = await submit(outlast, body, headers);
  await ended(outlast, id);
  return id;
}
