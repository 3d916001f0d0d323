/** What a crash and a deploy leave of streams, with the built server as a process of its own. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import type { AttemptObject, RequestObject } from "../../src/contract.ts";
import { type FakeUpstream, startFake, stream } from "../support/fake-upstream.ts";
import {
  begun,
  chunkOf,
  contentOf,
  Faucet,
  SseCaller,
  stopChunk,
  textChunk,
  tokens,
  whole,
} from "../support/live-streams.ts";
import { hello } from "../support/outlast.ts";

const main = join(import.meta.dirname, "../../dist/main.js");
const cleanups: (() => unknown)[] = [];
const twenty = tokens(20);
const text = twenty.join("");
/** The same text in other pieces, from a server that names its answer otherwise. */
const second = { id: "chatcmpl-second", created: 1_800_000_000 };
const rechunked = whole(text.match(/[\s\S]{1,7}/g)!, second);
const other = whole(tokens(12, "other"), second);

afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

interface Server {
  child: ChildProcess;
  exited: Promise<unknown>;
  errors(): string;
  fetch(path: string, init?: RequestInit): Promise<Response>;
}

interface Place {
  dir: string;
  fake: FakeUpstream;
}

async function place(toml = ""): Promise<Place> {
  const dir = mkdtempSync(join(tmpdir(), "outlast-streams-"));
  cleanups.push(() => rmSync(dir, { recursive: true, force: true }));
  const fake = await startFake();
  cleanups.push(() => fake.close());
  // Who reads has its headers soon, also where nothing is being said.
  const heartbeat = '[stream]\nheartbeat = "50ms"\n';
  writeFileSync(
    join(dir, "outlast.toml"),
    `${toml}\n${heartbeat}[upstreams.fake]\nbase_url = "${fake.baseUrl}"\n`,
  );
  return { dir, fake };
}

async function serve({ dir }: Place): Promise<Server> {
  const env = {
    PATH: process.env.PATH,
    OUTLAST_PORT: "0",
    OUTLAST_DATA_DIR: dir,
    OUTLAST_STORE_MIN_FREE_DISK: "0",
    OUTLAST_RETRY_HELD_BACKOFF_BASE: "1ms",
    OUTLAST_RETRY_BACKOFF_BASE: "1ms",
  };
  const child = spawn(process.execPath, [main, "serve"], { cwd: dir, env });
  const exited = once(child, "close").then(([code, signal]) => code ?? signal);
  cleanups.push(async () => {
    child.kill("SIGKILL");
    await exited;
  });
  let output = "";
  let errors = "";
  child.stderr.on("data", (bytes) => {
    errors += bytes;
  });
  for await (const piece of child.stdout) {
    output += piece;
    const url = /Outlast listens on (http:\S+)/.exec(output)?.[1];
    if (url) return { child, exited, errors: () => errors, fetch: (path, init) => fetch(url + path, init) };
  }
  throw new Error(`it ended: ${errors}`);
}

const post = (server: Server, more: object = {}) =>
  server.fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...hello, stream: true, ...more }),
  });
const open = (server: Server, id: string, query = "") =>
  SseCaller.of(server.fetch(`/v1/requests/${id}/stream${query}`));
const read = async (...args: Parameters<typeof open>) => (await open(...args)).end();
async function recordOf(server: Server, id: string): Promise<RequestObject> {
  return (await (await server.fetch(`/v1/requests/${id}?wait=20`)).json()) as RequestObject;
}
async function attemptsOf(server: Server, id: string): Promise<AttemptObject[]> {
  const reply = await server.fetch(`/v1/requests/${id}/attempts`);
  return ((await reply.json()) as { data: AttemptObject[] }).data;
}
const dataOf = (caller: SseCaller): string[] => caller.chunks.map(({ data }) => data);
const numbers = (from: number, to: number): string[] =>
  Array.from({ length: to - from + 1 }, (_, i) => String(from + i));
const faults = ({ errors }: Server) =>
  errors()
    .split("\n")
    .filter((line) => /fault|unhandled|uncaught|storage_trouble|TypeError|^\s+at /i.test(line));

/** A stream of which a reader and the caller have seen ten events, and its server. */
async function streaming(toml = "", chunks = begun(twenty.slice(0, 9))) {
  const here = await place(toml);
  const first = new Faucet();
  here.fake.script(first.step);
  const server = await serve(here);
  const calling = SseCaller.of(post(server));
  await first.called;
  first.say(...chunks);
  const live = await calling;
  const id = live.requestId;
  const reader = await open(server, id, "?ids=true");
  for (const one of [live, reader]) await one.until((caller) => caller.chunks.length === chunks.length);
  return { here, first, server, live, reader, id };
}

async function kill(server: Server): Promise<void> {
  server.child.kill("SIGKILL");
  expect(await server.exited).toBe("SIGKILL");
}

describe("after a kill in the midst of a stream", () => {
  test("its readers go on behind the last number that they saw, and have every event once", async () => {
    const { here, server, live, reader, id } = await streaming();
    await kill(server);
    for (const one of [live, reader])
      expect([(await one.end()).ended, one.isDone]).toEqual(["broken", false]);
    const next = new Faucet();
    here.fake.script(next.step);
    const after = await serve(here);
    // Comes before the new attempt has said anything.
    const early = await open(after, id, `?ids=true&starting_after=${reader.ids.at(-1)}`);
    const fromStart = await open(after, id, "?ids=true");
    await fromStart.until((caller) => caller.chunks.length === 10);
    await next.called;
    next.say(...rechunked);
    next.end();
    await Promise.all([early.end(), fromStart.end()]);
    const late = await read(after, id, `?ids=true&starting_after=${reader.ids.at(-1)}`);
    for (const rest of [early, late]) {
      expect([rest.isDone, rest.error]).toEqual([true, undefined]);
      expect([...dataOf(reader), ...dataOf(rest)].map(contentOf).join("")).toBe(text);
      expect(dataOf(rest)).toEqual(dataOf(fromStart).slice(10));
    }
    expect(fromStart.ids.slice(0, 10)).toEqual(numbers(1, 10));
    expect(fromStart.ids.slice(10)).toEqual(fromStart.ids.slice(10).map((_, i) => `2-${i + 11}`));
    // All chunks call themselves as the first ones did.
    const names = dataOf(fromStart).map((data) => (JSON.parse(data) as { id: string }).id);
    expect(new Set(names)).toEqual(new Set(["chatcmpl-first"]));
    const record = await recordOf(after, id);
    expect(record).toMatchObject({
      status: "completed",
      attempts: 2,
      result: { id: "chatcmpl-first", choices: [{ message: { content: text } }] },
    });
    expect(await attemptsOf(after, id)).toMatchObject([
      { verdict: "ambiguous", reason: "interrupted" },
      { verdict: "success" },
    ]);
    expect(faults(after)).toEqual([]);
  });

  test("a caller who had read further than the disk is told to read again", async () => {
    const { here, server, live, reader, id, first } = await streaming();
    // Said and killed in one breath: if the disk has it nevertheless, its number is good.
    first.say(textChunk("t10 "));
    await live.until((caller) => caller.chunks.length === 11);
    await kill(server);
    await reader.end();
    here.fake.script(stream(rechunked));
    const after = await serve(here);
    await recordOf(after, id);
    const told = await read(after, id, `?ids=true&starting_after=${live.chunks.length}`);
    if (told.error) {
      expect(told.error).toMatchObject({ code: "stream_restarted", request_id: id });
      expect(told.chunks).toEqual([]);
    } else {
      expect([...dataOf(live), ...dataOf(told)].map(contentOf).join("")).toBe(text);
    }
    // A number that nobody can have seen on disk.
    const beyond = await read(after, id, "?starting_after=15");
    expect([beyond.error?.code, beyond.chunks]).toEqual(["stream_restarted", []]);
    expect((await read(after, id)).text).toBe(text);
  });

  test("where the new answer is another one, whoever has read of the old one is told to read again", async () => {
    const { here, server, reader, id } = await streaming();
    await kill(server);
    await reader.end();
    const next = new Faucet();
    here.fake.script(next.step);
    const after = await serve(here);
    const resumed = await open(after, id, "?ids=true");
    await resumed.until((caller) => caller.chunks.length === 10);
    await next.called;
    next.say(...other);
    next.end();
    await resumed.end();
    expect([resumed.error?.code, resumed.isDone]).toEqual(["stream_restarted", false]);
    const late = await read(after, id, `?starting_after=${reader.ids.at(-1)}`);
    expect([late.error?.code, late.chunks]).toEqual(["stream_restarted", []]);
    const again = await read(after, id, "?ids=true");
    expect([again.text, again.isDone]).toEqual([tokens(12, "other").join(""), true]);
    const middle = await read(after, id, `?ids=true&starting_after=${again.ids[4]}`);
    expect(dataOf(middle)).toEqual(dataOf(again).slice(5));
  });

  test("a tool call that was begun is begun anew, and read whole", async () => {
    const delta = (id: string, args: string) => ({
      tool_calls: [{ index: 0, id, type: "function", function: { name: "f", arguments: args } }],
    });
    const chunk = (some: object, finish: string | null = null) =>
      chunkOf([{ index: 0, delta: some, finish_reason: finish }]);
    const { here, server, reader, id } = await streaming("", [chunk(delta("call_1", '{"a":'))]);
    await kill(server);
    await reader.end();
    const chunks = [chunk(delta("call_2", '{"a":1}')), chunk({}, "tool_calls")];
    here.fake.script(stream(chunks));
    const after = await serve(here);
    expect(await recordOf(after, id)).toMatchObject({ status: "completed", attempts: 2 });
    expect((await read(after, id, "?starting_after=1")).error?.code).toBe("stream_restarted");
    expect(dataOf(await read(after, id)).map((data) => JSON.parse(data))).toEqual(
      chunks.map((data) => JSON.parse(data)),
    );
  });

  test("killed again and again: whoever comes back each time has every event once", async () => {
    const here = await place();
    const seen: string[] = [];
    let cursor = "0";
    let id: string | undefined;
    // Each life says a little more of the same, in pieces of its own.
    for (let life = 1; life <= 4; life++) {
      const said = twenty.slice(0, life * 5).join("");
      const faucet = new Faucet();
      here.fake.script(faucet.step);
      const server = await serve(here);
      id ??= ((await (await post(server, { wait: false })).json()) as { id: string }).id;
      const reader = await open(server, id, `?ids=true&starting_after=${cursor}`);
      await faucet.called;
      const pieces = begun(said.match(new RegExp(`[\\s\\S]{1,${life + 1}}`, "g"))!, { id: `life-${life}` });
      faucet.say(...pieces, ...(life === 4 ? [stopChunk()] : []));
      const soFar = () => [...seen, ...dataOf(reader)].map(contentOf).join("");
      await reader.until(() => soFar() === said);
      if (life === 4) {
        faucet.end();
        await reader.end();
        expect(reader.isDone).toBe(true);
      }
      await kill(server);
      await reader.end();
      expect(reader.error).toBeUndefined();
      seen.push(...dataOf(reader));
      cursor = reader.ids.at(-1)!;
    }
    expect(seen.map(contentOf).join("")).toBe(text);
    const after = await serve(here);
    expect(dataOf(await read(after, id!))).toEqual(seen);
    expect(await recordOf(after, id!)).toMatchObject({ attempts: 4, result: { id: "life-1" } });
  });
});

describe("SIGTERM in the midst of a stream", () => {
  const stopping = async (server: Server) => {
    server.child.kill("SIGTERM");
    while ((await server.fetch("/readyz")).status !== 503);
  };

  test("one that is short is told to its end", async () => {
    const { server, first, live, reader } = await streaming();
    await stopping(server);
    first.say(...twenty.slice(9).map((token) => textChunk(token)), stopChunk());
    first.end();
    for (const one of [live, reader]) {
      await one.end();
      expect([one.text, one.isDone, one.ended]).toEqual([text, true, "clean"]);
    }
    expect(await server.exited).toBe(0);
  });

  test("one that is cut while the server stops is not begun anew before the restart", async () => {
    const { here, server, first, live, reader, id } = await streaming();
    await stopping(server);
    first.say(Buffer.from('data: {"error":{"message":"gone","code":"gone"}}\n\n'));
    for (const one of [live, reader]) {
      expect((await one.end()).error).toMatchObject({ code: "shutting_down", request_id: id });
    }
    expect(await server.exited).toBe(0);
    expect(here.fake.seen).toHaveLength(1);
    here.fake.script(stream(rechunked));
    const after = await serve(here);
    const rest = await read(after, id, `?starting_after=${live.chunks.length}`);
    expect([...dataOf(live), ...dataOf(rest)].map(contentOf).join("")).toBe(text);
    first.end();
  });

  const endings: [string, string[], boolean][] = [
    ["the same answer", rechunked, true],
    ["another answer", other, false],
  ];
  test.each(endings)(
    "one that is long ends with an error, and goes on after the restart: %s",
    async (...it) => {
      const [, chunks, isSame] = it;
      const { here, server, live, reader, id } = await streaming('drain_timeout = "200ms"');
      server.child.kill("SIGTERM");
      for (const one of [live, reader]) {
        await one.end();
        expect(one.error).toMatchObject({ code: "shutting_down", request_id: id, param: null });
        expect(one.error!.message).toContain(id);
        expect([one.isDone, one.ended]).toEqual([false, "broken"]);
      }
      expect(await server.exited).toBe(0);
      here.fake.script(stream(chunks));
      const after = await serve(here);
      expect(await recordOf(after, id)).toMatchObject({ status: "completed", attempts: 2 });
      expect((await attemptsOf(after, id))[0]).toMatchObject({
        reason: "interrupted",
        usage: { estimated: true },
      });
      // The caller of the moment has counted; what it was given is on disk.
      const rest = await read(after, id, `?starting_after=${live.chunks.length}`);
      if (isSame) {
        expect([rest.isDone, rest.error]).toEqual([true, undefined]);
        expect([...dataOf(live), ...dataOf(rest)].map(contentOf).join("")).toBe(text);
      } else {
        expect([rest.error?.code, rest.chunks]).toEqual(["stream_restarted", []]);
        expect((await read(after, id)).text).toBe(tokens(12, "other").join(""));
      }
    },
  );
});
