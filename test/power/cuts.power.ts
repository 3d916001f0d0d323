/**
 * The power goes, again and again: while the database is made, while it is written, while its log is copied into
 * it, while what the last cut left is being recovered. CUTS says how often; SEED repeats what was drawn in a run,
 * though not the order in which threads had their turns. What a failed run leaves behind is kept in its directory.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { type FakeUpstream, startFake } from "../support/fake-upstream.ts";
import { callUntilGone, drained, type Finding, inspect, Ledger, moody } from "./callers.ts";
import { Luck } from "./luck.ts";
import { garble, powerWent, Server, type ServerOptions } from "./server.ts";

const cuts = Number(process.env.CUTS ?? 10);
const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
const msPerCut = 30_000;
const callers = 12;

let fake: FakeUpstream;
let server: Server;

beforeAll(async () => {
  fake = await startFake();
});

afterAll(async () => {
  await server.stop("SIGKILL");
  await fake.close();
});

interface Tally {
  cuts: number;
  /** Cuts at which something was written and not yet synced. */
  dirty: number;
  /** Cuts at which some of that was in the database itself: it was being made, or the log copied into it. */
  inDatabase: number;
  /** Ids that callers got, and results. */
  acknowledged: number;
  delivered: number;
  lost: number;
  altered: number;
  unfinished: number;
  corrupt: string[];
}

/** A few cuts of one database: runs it until the power goes, then looks at what is left. */
class Life {
  private readonly options: ServerOptions;
  private readonly ledger = new Ledger();
  private readonly luck: Luck;
  private readonly tally: Tally;

  constructor(options: ServerOptions, luck: Luck, tally: Tally) {
    this.options = options;
    this.luck = luck;
    this.tally = tally;
  }

  /** One cut, at times one more before anything is recovered. */
  async cut(young: boolean): Promise<void> {
    const kind = this.luck.next();
    if (kind < (young ? 0.5 : 0.2)) await this.runUntilCut(80);
    else if (kind < 0.75) await this.runUntilCut(3000);
    else await this.runUntilCut(300, true);
    if (this.luck.next() < 0.2) await this.runUntilCut(60);
    this.count(await this.restart());
  }

  private async runUntilCut(latest: number, inDatabase = false): Promise<void> {
    const cutAt = this.luck.between(1, latest);
    const power = { cutAt, inDatabase, seed: this.luck.between(1, 2 ** 31) };
    server = new Server({ ...this.options, power });
    const url = await server.listening;
    const { accepted, delivered } = this.ledger;
    const before = { accepted: accepted.size, delivered: delivered.size };
    const lucks = Array.from({ length: callers }, () => new Luck(this.luck.between(1, 2 ** 31)));
    if (url) await Promise.all(lucks.map((luck) => callUntilGone(url, this.ledger, luck)));
    expect(await server.ended, server.output).toBe(powerWent);
    const [, unsynced, ofDatabase] = /unsynced (\d+), of the database itself (\d+)/.exec(server.output)!;
    this.tally.cuts++;
    if (Number(unsynced) > 0) this.tally.dirty++;
    if (Number(ofDatabase) > 0) this.tally.inDatabase++;
    this.tally.acknowledged += accepted.size - before.accepted;
    this.tally.delivered += delivered.size - before.delivered;
    if (this.luck.next() < 0.5) garble(this.options.dir, this.luck.between(0, 255));
  }

  /** A start with the power on, until all has ended. */
  private async restart(): Promise<Finding> {
    server = new Server(this.options);
    await drained(await server.url());
    expect(await server.stop(), server.output).toBe(0);
    return inspect(this.options.dir, this.ledger);
  }

  private count({ lost, altered, unfinished, corrupt }: Finding): void {
    const { tally } = this;
    tally.lost += lost.length;
    tally.altered += altered.length;
    tally.unfinished += unfinished.length;
    tally.corrupt.push(...corrupt);
    // What is lost is counted once.
    if (this.options.synchronous === "NORMAL") this.ledger.forget();
  }
}

async function cutAgainAndAgain(times: number, synchronous: "FULL" | "NORMAL"): Promise<Tally> {
  const luck = new Luck(seed);
  fake.otherwise(moody(new Luck(luck.between(1, 2 ** 31))));
  const tally: Tally = {
    cuts: 0,
    dirty: 0,
    inDatabase: 0,
    acknowledged: 0,
    delivered: 0,
    lost: 0,
    altered: 0,
    unfinished: 0,
    corrupt: [],
  };
  // Few cuts may happen to lose nothing: those that should are then given more chances.
  const goesOn = () =>
    tally.cuts < times || (synchronous === "NORMAL" && tally.lost === 0 && tally.cuts < 10 * times);
  while (goesOn()) {
    const dir = mkdtempSync(join(tmpdir(), "outlast-power-"));
    const life = new Life({ dir, upstream: fake.baseUrl, synchronous }, luck, tally);
    for (let n = 0; n < 10 && goesOn(); n++) await life.cut(n === 0);
    const { lost, altered, unfinished, corrupt } = tally;
    if (lost + altered + unfinished + corrupt.length === 0 || synchronous === "NORMAL")
      rmSync(dir, { recursive: true, force: true });
    else console.log(`kept: ${dir}`);
  }
  return tally;
}

test(
  `nothing that was acknowledged is lost and no file is corrupt after ${cuts} power cuts`,
  async ({ task }) => {
    console.log(`CUTS=${cuts} SEED=${seed}`);
    const tally = await cutAgainAndAgain(cuts, "FULL");
    Object.assign(task.meta, { power: tally });
    console.log(JSON.stringify({ synchronous: "FULL", ...tally }));
    expect(tally.corrupt).toEqual([]);
    expect(tally).toMatchObject({ lost: 0, altered: 0, unfinished: 0 });
    expect(tally.acknowledged).toBeGreaterThan(cuts);
    expect(tally.dirty).toBeGreaterThan(cuts / 2);
  },
  cuts * msPerCut,
);

test(
  "the cuts are real: with synchronous=NORMAL they lose what was acknowledged",
  async ({ task }) => {
    const tally = await cutAgainAndAgain(Math.max(5, Math.ceil(cuts / 4)), "NORMAL");
    Object.assign(task.meta, { power: tally });
    console.log(JSON.stringify({ synchronous: "NORMAL", ...tally }));
    expect(tally.corrupt).toEqual([]);
    expect(tally.lost).toBeGreaterThan(0);
  },
  Math.max(cuts, 50) * msPerCut,
);
