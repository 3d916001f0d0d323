/** SIGTERM under load, as a process of its own: nobody is reset without an answer, and a restart costs only time. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import { afterEach, expect, test } from "vitest";
import { openSocket, parseReply, type RawReply, rawCall } from "../api/wire.ts";
import {
  answer,
  type FakeUpstream,
  gate,
  type Seen,
  type Step,
  startFake,
} from "../support/fake-upstream.ts";
import { hello } from "../support/outlast.ts";

const path = "/v1/chat/completions";
const main = join(import.meta.dirname, "../../dist/main.js");
const kept = { "Content-Type": "application/json", Connection: "keep-alive" };
const cleanups: (() => unknown)[] = [];

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

interface Server {
  url: string;
  child: ChildProcess;
  exited: Promise<unknown>;
}

interface Place {
  dir: string;
  fake: FakeUpstream;
}

async function place(toml = ""): Promise<Place> {
  const dir = mkdtempSync(join(tmpdir(), "outlast-drain-"));
  cleanups.push(() => rmSync(dir, { recursive: true, force: true }));
  const fake = await startFake();
  cleanups.push(() => fake.close());
  const upstream = `[upstreams.fake]\nbase_url = "${fake.baseUrl}"\n`;
  writeFileSync(join(dir, "outlast.toml"), `${toml}\n[log]\nlevel = "warn"\n${upstream}`);
  return { dir, fake };
}

/** @param port 0: the system picks one */
async function serve({ dir }: Place, port = 0): Promise<Server> {
  const env = {
    PATH: process.env.PATH,
    OUTLAST_PORT: String(port),
    OUTLAST_DATA_DIR: dir,
    OUTLAST_STORE_MIN_FREE_DISK: "0",
  };
  const child = spawn(process.execPath, [main, "serve"], { cwd: dir, env });
  const exited = once(child, "close").then(([code, signal]) => code ?? signal);
  cleanups.push(async () => {
    child.kill("SIGKILL");
    await exited;
  });
  let output = "";
  for await (const piece of child.stdout) {
    output += piece;
    const url = /Outlast listens on (http:\S+)/.exec(output)?.[1];
    if (url) return { url, child, exited };
  }
  throw new Error(`it ended: ${output}`);
}

const says = (content: string) => JSON.stringify({ ...hello, messages: [{ role: "user", content }] });
const textOf = ({ body }: Seen) =>
  (JSON.parse(body.toString()) as { messages: { content: string }[] }).messages[0]!.content;

/** A connection that reads replies one by one; what ends it without one is an error. */
class Line {
  readonly socket: Socket;
  private text = "";
  private ended: string | undefined;
  private wake = () => {};

  constructor(socket: Socket) {
    this.socket = socket;
    const end = (how: string) => {
      this.ended ??= how;
      this.wake();
    };
    socket.on("data", (piece: Buffer) => {
      this.text += piece.toString("latin1");
      this.wake();
    });
    socket.on("error", (error: NodeJS.ErrnoException) => end(error.code ?? "error"));
    socket.on("end", () => end("FIN"));
    socket.on("close", () => end("closed"));
  }

  static async to(url: string): Promise<Line> {
    return new Line(await openSocket(url));
  }

  write(bytes: string | Buffer): void {
    this.socket.write(bytes);
  }

  async reply(): Promise<RawReply> {
    for (;;) {
      const end = this.text.indexOf("\r\n\r\n");
      const reply = parseReply(this.text);
      const length = Number(reply.headers["content-length"]);
      if (end >= 0 && this.text.length >= end + 4 + length) {
        this.text = this.text.slice(end + 4 + length);
        return { ...reply, body: reply.body.slice(0, length) };
      }
      if (this.ended) throw new Error(`no answer: ${this.ended}`);
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
  }

  /** How the other side ended the connection. */
  async end(): Promise<string> {
    while (!this.ended) {
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
    return this.ended;
  }
}

test("three restarts under load: every caller has its answers, and every connection its reply", async () => {
  const here = await place('drain_timeout = "2s"');
  const slow: Step = async (call, res) => {
    await new Promise((resolve) => setTimeout(resolve, 20 + ((call.n * 37) % 400)));
    return answer({ text: textOf(call) })(call, res);
  };
  here.fake.otherwise(slow);
  let server = await serve(here);
  const { url } = server;
  const port = Number(new URL(url).port);
  let up = Promise.resolve();
  let over = false;
  let asked = 0;
  const finished: { id: string | null; status: number }[] = [];
  const unanswered: string[] = [];

  /** A user of the SDK, who notices nothing. */
  const user = async (keyed: boolean) => {
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "key", maxRetries: 5 });
    while (!over) {
      const text = `sdk-${++asked}`;
      const headers = keyed ? { "Idempotency-Key": text } : {};
      const body = { ...hello, messages: [{ role: "user" as const, content: text }] };
      const { data, response } = await client.chat.completions.create(body, { headers }).withResponse();
      expect(data.choices[0]!.message.content).toBe(text);
      finished.push({ id: response.headers.get("outlast-request-id"), status: response.status });
    }
  };
  /** Somebody with a raw socket, who sees every end of a connection. `once`: a new connection for each call. */
  const watcher = async (once: boolean) => {
    let line: Line | undefined;
    while (!over) {
      await up;
      line ??= await Line.to(url).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== "ECONNREFUSED") unanswered.push(`connecting: ${error.code}`);
        return undefined;
      });
      if (!line) continue;
      line.write(rawCall(`POST ${path}`, kept, says(`raw ${++asked}`)));
      const reply = await line.reply().catch((error: Error) => unanswered.push(error.message));
      if (typeof reply === "number") {
        line = undefined;
        continue;
      }
      const id = reply.headers["outlast-request-id"] ?? null;
      if (reply.status === 200) finished.push({ id, status: 200 });
      else expect([reply.status, reply.headers["x-should-retry"]]).toEqual([503, "true"]);
      if (!once && reply.headers.connection !== "close") continue;
      line.socket.destroy();
      line = undefined;
    }
    line?.socket.destroy();
  };
  const callers = [
    ...Array.from({ length: 20 }, (_, i) => user(i % 2 === 0)),
    ...Array.from({ length: 20 }, (_, i) => watcher(i % 2 === 0)),
  ];
  for (let restart = 0; restart < 3; restart++) {
    await here.fake.calls(here.fake.seen.length + 200);
    server.child.kill("SIGTERM");
    expect(await server.exited).toBe(0);
    let started = () => {};
    up = new Promise((resolve) => {
      started = resolve;
    });
    server = await serve(here, port);
    started();
  }
  await here.fake.calls(here.fake.seen.length + 200);
  over = true;
  await Promise.all(callers);
  expect(unanswered).toEqual([]);

  const unfinished = async () => {
    const pages = ["queued", "processing", "retrying"].map((state) =>
      fetch(`${url}/v1/requests?status=${state}`),
    );
    const bodies = await Promise.all((await Promise.all(pages)).map((page) => page.json()));
    return bodies.flatMap((body) => (body as { data: unknown[] }).data);
  };
  while ((await unfinished()).length > 0);
  const failed = await (await fetch(`${url}/v1/requests?status=failed`)).json();
  expect(failed).toMatchObject({ data: [] });
  for (const { id } of finished) {
    expect(await (await fetch(`${url}/v1/requests/${id}`)).json()).toMatchObject({ status: "completed" });
  }
  expect(finished.length).toBeGreaterThan(500);
}, 120_000);

test("an upload that a stop interrupts is refused, and its caller can read that however much it still sends", async () => {
  const here = await place();
  const server = await serve(here);
  const line = await Line.to(server.url);
  const body = Buffer.alloc(8 * 1024 * 1024, " ");
  line.write(rawCall(`POST ${path}`, { ...kept, "Content-Length": String(body.length) }));
  line.write(body.subarray(0, 1024 * 1024));
  // Answered after the head of the upload was read: it came earlier.
  expect((await fetch(`${server.url}/healthz`)).status).toBe(200);
  server.child.kill("SIGTERM");
  const reply = await line.reply();
  expect(reply).toMatchObject({ status: 503, headers: { "x-should-retry": "true", connection: "close" } });
  expect(JSON.parse(reply.body)).toMatchObject({ error: { code: "shutting_down" } });
  line.write(body.subarray(1024 * 1024));
  expect(await line.end()).toBe("FIN");
  expect(await server.exited).toBe(0);
});

test("an upload that comes during a stop is read to its end before its connection closes", async () => {
  const here = await place();
  const called = gate();
  here.fake.script(called.step);
  const server = await serve(here);
  const running = fetch(server.url + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: says("running"),
  });
  await called.arrived;
  const line = await Line.to(server.url);
  server.child.kill("SIGTERM");
  while ((await fetch(`${server.url}/readyz`)).status !== 503);
  const body = Buffer.from(says("x".repeat(20 * 1024 * 1024)));
  const written = new Promise((resolve) => {
    line.socket.write(
      Buffer.concat([rawCall(`POST ${path}`, { ...kept, "Content-Length": String(body.length) }), body]),
      resolve,
    );
  });
  expect(await written).toBeFalsy();
  expect(await line.reply()).toMatchObject({ status: 503, headers: { connection: "close" } });
  expect(await line.end()).toBe("FIN");
  called.release();
  expect((await running).status).toBe(200);
  expect(await server.exited).toBe(0);
});

test("pipelined calls are all answered before their connection closes", async () => {
  const here = await place();
  const gates = [gate(), gate()];
  here.fake.script(...gates.map(({ step }) => step));
  const server = await serve(here);
  const line = await Line.to(server.url);
  line.write(Buffer.concat(["one", "two"].map((text) => rawCall(`POST ${path}`, kept, says(text)))));
  await here.fake.calls(2);
  server.child.kill("SIGTERM");
  while ((await fetch(`${server.url}/readyz`)).status !== 503);
  line.write(rawCall("GET /healthz", kept));
  for (const { release } of gates) release();
  const replies = [await line.reply(), await line.reply(), await line.reply()];
  expect(replies.map(({ status }) => status)).toEqual([200, 200, 200]);
  expect(replies.map(({ headers }) => headers.connection)).toEqual(["keep-alive", "keep-alive", "close"]);
  expect(await line.end()).toBe("FIN");
  expect(await server.exited).toBe(0);
});

test("a call on a connection that was idle is answered, and what comes too late meets no reset", async () => {
  const here = await place('drain_delay = "500ms"');
  const server = await serve(here);
  const idle = await Line.to(server.url);
  idle.write(rawCall("GET /healthz", kept));
  expect((await idle.reply()).status).toBe(200);
  const { hostname, port } = new URL(server.url);
  const late = new Line(connect({ host: hostname, port: Number(port), allowHalfOpen: true }));
  late.write(rawCall("GET /healthz", kept));
  expect((await late.reply()).status).toBe(200);

  server.child.kill("SIGTERM");
  while ((await fetch(`${server.url}/readyz`)).status !== 503);
  idle.write(rawCall(`POST ${path}`, kept, says("just in time")));
  expect(await idle.reply()).toMatchObject({ status: 503, headers: { connection: "close" } });
  expect(await idle.end()).toBe("FIN");
  expect(await late.end()).toBe("FIN");
  const errors: unknown[] = [];
  late.socket.on("error", (error) => errors.push(error));
  late.socket.end(rawCall(`POST ${path}`, kept, says("too late")));
  expect(await server.exited).toBe(0);
  expect(errors).toEqual([]);
  expect(here.fake.seen).toEqual([]);
});

test("who is refused by a stop is told to come back when it is over", async () => {
  const here = await place('drain_timeout = "20s"');
  const called = gate();
  here.fake.script(called.step);
  const server = await serve(here);
  const running = fetch(server.url + path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: says("running"),
  });
  await called.arrived;
  server.child.kill("SIGTERM");
  while ((await fetch(`${server.url}/readyz`)).status !== 503);
  const line = await Line.to(server.url);
  line.write(rawCall(`POST ${path}`, kept, says("refused")));
  const refused = await line.reply();
  expect(refused.status).toBe(503);
  const ms = Number(refused.headers["retry-after-ms"]);
  expect(ms).toBeGreaterThan(5000);
  expect(ms).toBeLessThanOrEqual(22_000);
  called.release();
  expect((await running).status).toBe(200);
  expect(await server.exited).toBe(0);
});
