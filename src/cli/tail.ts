/** `outlast requests tail`: new requests and what becomes of them, as it happens. */

import type { Command } from "commander";
import { type RequestObject, requestSchema } from "../contract.ts";
import { parseDuration } from "../core/duration.ts";
import type { Clock } from "../core/ports.ts";
import { type Api, Refusal } from "./api.ts";
import { UsageError } from "./failure.ts";
import { type FilterFlags, queryOf, wholeNumber, withFilters } from "./filters.ts";
import { pages } from "./requests.ts";
import { type Cli, type SourceFlags, withApi, withServer } from "./source.ts";
import { type Terminal, visible } from "./terminal.ts";
import * as words from "./words.ts";

type TailFlags = SourceFlags & FilterFlags & { interval: string; count?: string };

const live = "queued,processing,retrying";
/** So many that go on are watched at most, the newest: there may be any number, and each look asks for all of them. */
const watchedMax = 1000;
/** What is true of a request only later must not keep it from being watched. */
const changing = ["status", "upstream", "error_code", "caused_by", "resolved"];

export function addTail(requests: Command, cli: Cli): void {
  withFilters(withServer(requests.command("tail").description("follow requests as they come and change")))
    .option("--interval <duration>", "how often to look", "1s")
    .option("--count <n>", "end after so many lines")
    .action((flags) => tail(flags, cli));
}

async function tail(flags: TailFlags, cli: Cli): Promise<void> {
  const { clock, terminal } = cli;
  const intervalMs = parseDuration(flags.interval) ?? 0;
  if (intervalMs < 10) throw new UsageError('--interval must be a duration such as "500ms" or "2s".');
  for (const option of ["search", "since", "until"]) {
    if (flags[option] !== undefined) throw new UsageError(`--${option} is of no use to tail: see list.`);
  }
  let left = flags.count === undefined ? Number.POSITIVE_INFINITY : wholeNumber("--count", flags.count);
  const wished = queryOf(flags, clock.now());
  const tell = (request: RequestObject): boolean => {
    if (left <= 0 || !isWished(request, wished)) return left > 0;
    terminal.print(flags.json ? JSON.stringify(request) : lineOf(request, terminal));
    left--;
    return left > 0;
  };
  const stopped = new Promise<void>((resolve) => void process.once("SIGINT", () => resolve()));
  await withApi(flags, cli, async (api) => {
    const follower = await Follower.begin(api, wished);
    while (await follower.look(tell)) if (await pause(clock, intervalMs, stopped)) return;
  });
}

/** @returns whether it was stopped meanwhile */
async function pause(clock: Clock, ms: number, stopped: Promise<void>): Promise<boolean> {
  let cancel = () => {};
  const over = new Promise<false>((resolve) => {
    cancel = clock.timer(ms, () => resolve(false));
  });
  const wasStopped = await Promise.race([over, stopped.then(() => true)]);
  cancel();
  return wasStopped;
}

/** Knows where the list ended, and which requests still change. */
class Follower {
  private readonly api: Api;
  private readonly query: URLSearchParams;
  /** The newest request that was seen. */
  private cursor: string | undefined;
  /** Those that go on, as they were told last. */
  private readonly watched = new Map<string, string>();

  private constructor(api: Api, wished: URLSearchParams) {
    this.api = api;
    this.query = new URLSearchParams(wished);
    for (const name of changing) this.query.delete(name);
  }

  /** From now on: what is there already is told when it changes. */
  static async begin(api: Api, wished: URLSearchParams): Promise<Follower> {
    const follower = new Follower(api, wished);
    for await (const { data } of pages(api, new URLSearchParams(), 1)) follower.cursor = data[0]?.id;
    for (const request of [...(await follower.goingOn()).values()].reverse()) follower.note(request);
    return follower;
  }

  /** @param tell returns false when enough was told. @returns the same */
  async look(tell: (request: RequestObject) => boolean): Promise<boolean> {
    const query = new URLSearchParams(this.query);
    query.set("order", "asc");
    if (this.cursor !== undefined) query.set("after", this.cursor);
    for await (const { data } of pages(this.api, query)) {
      for (const request of data) {
        this.cursor = request.id;
        if (this.note(request) && !tell(request)) return false;
      }
    }
    // Where all that went on were watched, another one is an older request that was retried.
    const wasWhole = this.watched.size < watchedMax;
    const goingOn = await this.goingOn();
    for (const id of new Set([...this.watched.keys(), ...[...goingOn.keys()].reverse()])) {
      const isKnown = wasWhole || this.watched.has(id);
      const request = goingOn.get(id) ?? (await this.ended(id));
      if (request && this.note(request) && isKnown && !tell(request)) return false;
    }
    return true;
  }

  /** @returns whether there is something new to tell */
  private note(request: RequestObject): boolean {
    const isNew = this.watched.get(request.id) !== stage(request);
    if (request.ended_at !== null) this.watched.delete(request.id);
    else this.watched.set(request.id, stage(request));
    const [oldest] = this.watched.keys();
    if (this.watched.size > watchedMax) this.watched.delete(oldest!);
    return isNew;
  }

  /** The newest first. */
  private async goingOn(): Promise<Map<string, RequestObject>> {
    const query = new URLSearchParams(this.query);
    query.set("status", live);
    const found = new Map<string, RequestObject>();
    for await (const { data } of pages(this.api, query, watchedMax)) {
      for (const one of data) found.set(one.id, one);
    }
    return found;
  }

  /** Undefined where it was erased. */
  private async ended(id: string): Promise<RequestObject | undefined> {
    try {
      return (await this.api.json(requestSchema, "GET", `/v1/requests/${id}`)) as RequestObject;
    } catch (error) {
      if (!(error instanceof Refusal) || error.code !== "request_not_found") throw error;
      this.watched.delete(id);
      return undefined;
    }
  }
}

const stage = ({ status, attempts }: RequestObject): string => `${status} ${attempts}`;

function isWished(request: RequestObject, wished: URLSearchParams): boolean {
  const is = (name: string, value: string | null) => !wished.has(name) || wished.get(name) === value;
  const statuses = wished.get("status")?.split(",") ?? [request.status];
  const resolved = request.status === "failed" ? String(request.resolved_at !== null) : null;
  return (
    statuses.includes(request.status) &&
    is("upstream", request.upstream) &&
    is("error_code", request.last_error_code) &&
    is("caused_by", request.caused_by) &&
    is("resolved", resolved)
  );
}

function lineOf(request: RequestObject, terminal: Terminal): string {
  const { id, status, model, upstream, attempts, updated_at: at } = request;
  return [
    words.time(at).slice(11),
    visible(id),
    terminal.paint(words.colourOf(status), status.padEnd(10)),
    visible(upstream === null ? model : `${model} by ${upstream}`),
    attempts > 1 ? `${attempts} attempts` : "",
    words.length(words.duration(request)),
    visible(words.trouble(request)),
  ]
    .filter(Boolean)
    .join("  ");
}
