/** Stock SDKs behind something that cuts connections which are silent for too long, and through kills. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import OpenAI from "openai";
import { describe, expect, onTestFinished, test } from "vitest";
import type { RequestObject } from "../../src/contract.ts";
import { answer, type FakeUpstream, gate, hang, startFake } from "../support/fake-upstream.ts";
import { hello, type Outlast, startOutlast } from "../support/outlast.ts";
import { chatCall, Peer } from "../support/peer.ts";

const main = join(import.meta.dirname, "../../dist/main.js");

/** How a balancer treats its client when the server has been silent for too long. */
type Cut = "silently" | "with a 504";

const timedOut = "<html><head><title>504 Gateway Time-out</title></head></html>";

/**
 * Passes bytes on in both directions, and cuts what is silent for `idleMs`: both sides, as a balancer of
 * connections does, or the server's side behind a 504 for the client, as nginx does.
 */
async function balancer(
  target: string,
  idleMs: number,
  cut: Cut,
): Promise<{ baseURL: string; cuts(): number }> {
  const { port, hostname } = new URL(target);
  const open = new Set<Socket>();
  let cuts = 0;
  const server = createServer((client) => {
    const behind = connect(Number(port), hostname);
    for (const socket of [client, behind]) {
      open.add(socket);
      socket.on("error", () => {});
      socket.once("close", () => open.delete(socket));
    }
    client.pipe(behind);
    behind.pipe(client);
    behind.setTimeout(idleMs, () => {
      cuts++;
      behind.unpipe(client);
      behind.destroy();
      if (cut === "silently") client.destroy();
      else
        client.end(
          `HTTP/1.1 504 Gateway Time-out\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: ${timedOut.length}\r\n\r\n${timedOut}`,
        );
    });
    client.once("close", () => behind.destroy());
    behind.once("close", () => client.end());
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => {
    for (const socket of open) socket.destroy();
    server.close();
  });
  return { baseURL: `http://127.0.0.1:${(server.address() as AddressInfo).port}/v1`, cuts: () => cuts };
}

describe.each<Cut>(["silently", "with a 504"])("behind a load balancer that cuts %s", (cut) => {
  const idleMs = 200;

  async function start() {
    const outlast: Outlast = await startOutlast();
    onTestFinished(() => outlast.close());
    const between = await balancer(outlast.url, idleMs, cut);
    const client = new OpenAI({ baseURL: between.baseURL, apiKey: "caller-key", maxRetries: 2 });
    return { outlast, client, between, fake: outlast.fake, ear: outlast.ear };
  }

  test("a stock SDK gets an answer that takes longer than two cuts, for one call of the upstream", async () => {
    const { client, between, fake, ear } = await start();
    const slow = gate();
    fake.script(slow.step);
    const calling = client.chat.completions.create(hello);
    calling.catch(() => {});
    await ear.event("adopted", () => ear.all("adopted").length === 2);
    slow.release(answer({ text: "at last" }));
    expect((await calling).choices[0]?.message.content).toBe("at last");
    expect(between.cuts()).toBe(2);
    expect(fake.seen).toHaveLength(1);
    expect(ear.all("accepted")).toHaveLength(1);
  });

  test("a stock SDK gets an answer that came while nobody was there", async () => {
    const { client, fake, ear } = await start();
    const slow = gate();
    fake.script(slow.step);
    const calling = client.chat.completions.create(hello);
    calling.catch(() => {});
    await ear.event("orphaned");
    slow.release(answer({ text: "early enough" }));
    expect((await calling).choices[0]?.message.content).toBe("early enough");
    expect(fake.seen).toHaveLength(1);
    expect(ear.all("adopted")).toHaveLength(1);
  });

  test("five equal calls get an answer each, for five calls of the upstream", async () => {
    const { client, fake, ear } = await start();
    const slow = gate();
    fake.otherwise(slow.step);
    const calls = Array.from({ length: 5 }, () => client.chat.completions.create(hello));
    for (const calling of calls) calling.catch(() => {});
    await ear.event("adopted", () => ear.all("adopted").length === 5);
    slow.release();
    const ids = (await Promise.all(calls)).map(({ id }) => id);
    expect(new Set(ids).size).toBe(5);
    expect(fake.seen).toHaveLength(5);
  });
});

// ---- as a process of its own ----

interface Spawned {
  url: string;
  kill(signal: "SIGKILL" | "SIGTERM"): Promise<void>;
  post(body: object, headers?: Record<string, string>): Promise<Response>;
}

async function serve(dir: string, port = 0): Promise<Spawned> {
  const env = { PATH: process.env.PATH, HOME: dir, OUTLAST_PORT: String(port), OUTLAST_DRAIN_TIMEOUT: "0" };
  const child: ChildProcess = spawn(process.execPath, [main, "serve"], { cwd: dir, env });
  const exited = once(child, "close");
  const kill = async (signal: NodeJS.Signals) => {
    child.kill(signal);
    await exited;
  };
  onTestFinished(() => kill("SIGKILL"));
  let output = "";
  const listening = /Outlast listens on (http:\S+)/;
  child.stdout!.on("data", (chunk) => {
    output += chunk;
  });
  child.stderr!.on("data", (chunk) => {
    output += chunk;
  });
  while (!listening.test(output)) {
    const next = await Promise.race([once(child.stdout!, "data"), exited.then(() => undefined)]);
    if (!next) throw new Error(`it ended: ${output}`);
  }
  const url = listening.exec(output)![1]!;
  const post = (body: object, headers?: Record<string, string>) =>
    fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", ...headers },
      body: JSON.stringify(body),
    });
  return { url, kill, post };
}

async function directory(): Promise<{ dir: string; fake: FakeUpstream }> {
  const fake = await startFake();
  onTestFinished(() => fake.close());
  const dir = mkdtempSync(join(tmpdir(), "outlast-e2e-"));
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }));
  const upstream = `[upstreams.fake]\nbase_url = "${fake.baseUrl}"\napi_key = "sk-secret-upstream"\n`;
  writeFileSync(join(dir, "outlast.toml"), `data_dir = "."\n[store]\nmin_free_disk = "0"\n${upstream}`);
  return { dir, fake };
}

const idOf = (response: Response) => response.headers.get("outlast-request-id");
const isRetry = { "x-stainless-retry-count": "1" };

async function recordOf({ url }: Spawned, id: string): Promise<RequestObject> {
  return (await (await fetch(`${url}/v1/requests/${id}`)).json()) as RequestObject;
}

describe("after the process was killed", () => {
  test.each(["SIGKILL", "SIGTERM"] as const)(
    "(%s) a stock SDK gets its answer from the next one",
    async (signal) => {
      const { dir, fake } = await directory();
      fake.script(hang());
      const before = await serve(dir);
      const client = new OpenAI({ baseURL: `${before.url}/v1`, apiKey: "caller-key", maxRetries: 6 });
      const calling = client.chat.completions.create(hello).withResponse();
      calling.catch(() => {});
      await fake.calls(1);
      await before.kill(signal);
      const after = await serve(dir, Number(new URL(before.url).port));
      const { data, response } = await calling;
      expect(data.choices[0]?.message.content).toBe("ok");
      // The call that was cut off, and the one that took its place.
      expect(fake.seen).toHaveLength(2);
      const record = await recordOf(after, idOf(response)!);
      expect(record).toMatchObject({ status: "completed", attempts: 2, duplicate_possible: true });
    },
  );

  test("what was under way is adopted by any equal call", async () => {
    const { dir, fake } = await directory();
    fake.script(hang());
    const before = await serve(dir);
    before.post(hello).catch(() => {});
    await fake.calls(1);
    await before.kill("SIGKILL");
    const after = await serve(dir);
    const response = await after.post(hello);
    expect(response.headers.get("outlast-attempts")).toBe("2");
    expect(fake.seen).toHaveLength(2);
    expect(idOf(await after.post(hello))).not.toBe(idOf(response));
  });

  test("what had completed, with nobody knowing who has read it, is adopted by retries alone", async () => {
    const { dir, fake } = await directory();
    const before = await serve(dir);
    const peer = await Peer.open(before.url);
    await peer.say(chatCall(hello));
    const { headers } = await peer.reply();
    await before.kill("SIGKILL");
    const after = await serve(dir);
    const id = headers["outlast-request-id"];
    expect(idOf(await after.post(hello))).not.toBe(id);
    expect(idOf(await after.post(hello, isRetry))).toBe(id);
    expect(idOf(await after.post(hello, isRetry))).not.toBe(id);
    expect(fake.seen).toHaveLength(3);
  });

  test("what had completed while nobody was there is adopted by any equal call", async () => {
    const { dir, fake } = await directory();
    const slow = gate();
    fake.script(slow.step);
    const before = await serve(dir);
    const peer = await Peer.open(before.url);
    await peer.say(chatCall(hello));
    await slow.arrived;
    await peer.reset();
    slow.release();
    const listed = (await (await fetch(`${before.url}/v1/requests`)).json()) as { data: RequestObject[] };
    const [found] = listed.data;
    const ended = await (await fetch(`${before.url}/v1/requests/${found!.id}?wait=20`)).json();
    expect(ended).toMatchObject({ status: "completed" });
    await before.kill("SIGKILL");
    const after = await serve(dir);
    expect(idOf(await after.post(hello))).toBe(found!.id);
    expect(fake.seen).toHaveLength(1);
  });

  test("what was answered is nobody's, once that is on disk", async () => {
    const { dir, fake } = await directory();
    const before = await serve(dir);
    const peer = await Peer.open(before.url);
    await peer.say(chatCall(hello));
    const { headers } = await peer.reply();
    // Whoever asks for more has read what came before; that goes to disk with what is asked for.
    await peer.say(chatCall({ ...hello, wait: false, user: "another" }));
    expect((await peer.reply()).status).toBe(202);
    await fake.calls(2);
    await before.kill("SIGKILL");
    const after = await serve(dir);
    expect(idOf(await after.post(hello, isRetry))).not.toBe(headers["outlast-request-id"]);
  });
});
