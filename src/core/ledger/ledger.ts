/** To find, count, mark and erase what was asked, one request or many. */

import type { Content } from "../attempts.ts";
import { AppError } from "../errors.ts";
import { exchangeOf } from "../exchange.ts";
import type { Exchange, World } from "../ports.ts";
import { isTerminal, type RequestRecord } from "../request.ts";
import { bodiesErased } from "../rounds.ts";
import { type BulkDraft, Bulks, type Hands } from "./bulks.ts";
import { Eraser } from "./eraser.ts";
import { matches } from "./filter.ts";
import type {
  Bulk,
  Count,
  CountBy,
  DeadLetters,
  Filter,
  ListQuery,
  UsageGroup,
  UsageQuery,
} from "./ports.ts";
import { Retention, type RetentionSettings } from "./retention.ts";

/** How many are looked at together, and so often by their text alone: mostly that is enough. */
const pageSize = 256;
const stepsAlone = 2;

/** Those of some requests that match, and the last of those that were looked at; undefined: there are no more. */
interface FoundPage {
  records: RequestRecord[];
  last: string | undefined;
}

/** What is found page by page, in one order. */
class Found {
  records: RequestRecord[] = [];
  private after: string | undefined;
  private isOver = false;
  private readonly limit: number;
  private readonly page: (after: string | undefined) => Promise<FoundPage>;

  constructor({ after, limit }: ListQuery, page: (after: string | undefined) => Promise<FoundPage>) {
    this.after = after;
    this.limit = limit;
    this.page = page;
  }

  get isWhole(): boolean {
    return this.isOver || this.records.length === this.limit;
  }

  async step(): Promise<void> {
    const { records, last } = await this.page(this.after);
    this.records = [...this.records, ...records].slice(0, this.limit);
    this.after = last;
    this.isOver = last === undefined;
  }
}
const decoder = new TextDecoder();

export class Ledger {
  private readonly world: World;
  private readonly hands: Hands;
  private readonly eraser: Eraser;
  private readonly retention: Retention;
  private readonly bulkRuns: Bulks;

  constructor(world: World, settings: RetentionSettings, hands: Hands) {
    this.world = world;
    this.hands = hands;
    this.eraser = new Eraser(world);
    this.retention = new Retention(world, settings, this.eraser);
    this.bulkRuns = new Bulks(world, hands, this.eraser, (query) => this.found(query));
  }

  /** Goes on with what an earlier start left unfinished. */
  begin(): void {
    this.retention.begin();
    // Where the store cannot be read, the next start does it.
    void this.bulkRuns.recover().catch(() => {});
  }

  async stop(): Promise<void> {
    await Promise.all([this.retention.stop(), this.bulkRuns.stop()]);
  }

  /**
   * One page of a project's requests; `text` has to be in their prompt or answer.
   * @throws AppError `invalid_cursor`, `invalid_parameter`
   */
  async list(query: ListQuery & { text?: string }): Promise<RequestRecord[]> {
    const { after, project } = query;
    // Who was erased meanwhile still has its place.
    const cursor = after === undefined ? undefined : await this.world.store.get(after);
    if (after !== undefined && (!/^req_\w{1,90}$/.test(after) || (cursor && cursor.project !== project))) {
      const message = "`after` must be the id of a request of an earlier page.";
      throw new AppError("invalid_cursor", message, { param: "after" });
    }
    return this.found(query);
  }

  private async found({ text, ...query }: ListQuery & { text?: string }): Promise<RequestRecord[]> {
    const { ledger, search } = this.world;
    if (text === undefined) return ledger.list(query);
    if (!search.isOn) {
      const message = "`q`: text search is turned off in the configuration.";
      throw new AppError("invalid_parameter", message, { param: "q" });
    }
    const byText = new Found(query, (after) => this.pageByText({ ...query, text, after }));
    for (let steps = 0; steps < stepsAlone && !byText.isWhole; steps++) await byText.step();
    // Nobody knows which are fewer, those with the text or those that are meant otherwise: both are gone through in
    // turn, so that it takes twice as long at most as the better way.
    const byFilter = new Found(query, (after) => this.pageByFilter({ ...query, text, after }));
    while (!byText.isWhole) {
      await byFilter.step();
      if (byFilter.isWhole) return byFilter.records;
      await byText.step();
    }
    return byText.records;
  }

  private async pageByText({ text, ...query }: ListQuery & { text: string }): Promise<FoundPage> {
    const { ledger, search } = this.world;
    const { project, after, order, upTo = "~" } = query;
    const ids = await search.find({ project, text, after, order, limit: pageSize });
    const records = await ledger.many(ids);
    return {
      // Ids sort in the order of acceptance.
      records: records.filter((record) => record.id <= upTo && matches(query, record)),
      last: ids.length < pageSize ? undefined : ids.at(-1),
    };
  }

  private async pageByFilter({ text, ...query }: ListQuery & { text: string }): Promise<FoundPage> {
    const { ledger, search } = this.world;
    const { project, order } = query;
    const records = await ledger.list({ ...query, limit: pageSize });
    const among = records.map(({ id }) => id);
    const ids = new Set(await search.find({ project, text, among, order, limit: pageSize }));
    return {
      records: records.filter(({ id }) => ids.has(id)),
      last: records.length < pageSize ? undefined : among.at(-1),
    };
  }

  /** How many requests match, apart by `by`, most first. */
  counts(filter: Filter, by: CountBy[]): Promise<Count[]> {
    return this.world.ledger.counts(filter, by);
  }

  /** Failed requests by their cause, most first. */
  deadLetters(filter: Filter, limit: number): Promise<DeadLetters[]> {
    return this.world.ledger.deadLetters(filter, limit);
  }

  usage(query: UsageQuery): Promise<UsageGroup[]> {
    return this.world.ledger.usage(query);
  }

  /** What attempts have sent and received, by their number, as far as it is kept. */
  async exchanges({ id }: RequestRecord): Promise<Map<number, { sent?: Exchange; received?: Exchange }>> {
    const exchanges = new Map<number, { sent?: Exchange; received?: Exchange }>();
    for (const { kind, seq, bytes } of await this.world.store.parts(id, ["sent", "received"])) {
      exchanges.set(seq, { ...exchanges.get(seq), [kind]: exchangeOf(bytes) });
    }
    return exchanges;
  }

  /** What a request asks for. @throws AppError `bodies_erased` */
  async content({ id }: RequestRecord): Promise<Content> {
    const parts = await this.world.store.parts(id, ["head", "body"]);
    const head = parts.find(({ kind, seq }) => kind === "head" && seq === 0);
    const body = parts.find(({ kind }) => kind === "body");
    if (!head || !body) throw bodiesErased(id);
    return { head: JSON.parse(decoder.decode(head.bytes)), body: body.bytes };
  }

  /** Marks a failed request as resolved, or as not. @throws AppError `request_not_failed` */
  async resolve(project: string, id: string, isResolved: boolean): Promise<RequestRecord> {
    const record = await this.hands.get(project, id);
    const { id: requestId, state } = record;
    if (state !== "failed") {
      const message = `The request is ${state}: only failed ones can be resolved.`;
      throw new AppError("request_not_failed", message, { requestId });
    }
    const at = isResolved ? this.world.clock.now() : undefined;
    await this.world.store.commit({ kind: "resolve", ids: [requestId], at });
    return this.hands.get(project, requestId);
  }

  /** Erases a request with all that belongs to it; one that goes on is cancelled first. As it was. */
  async erase(project: string, id: string): Promise<RequestRecord> {
    const found = await this.hands.get(project, id);
    for (;;) {
      const record = await this.world.store.get(found.id);
      if (!record) return found;
      if (!isTerminal(record.state)) {
        // It may end by itself meanwhile.
        await this.hands.cancel(project, record.id).catch(ignoreEnded);
      }
      await this.eraser.erase("record", [record.id]);
    }
  }

  /** Asks for something to be done with all that match. @throws AppError `idempotency_key_reused`, `storage_full`, … */
  ask(draft: BulkDraft): Promise<{ bulk: Bulk; isKnown: boolean }> {
    return this.bulkRuns.ask(draft);
  }

  /** @throws AppError `bulk_not_found` */
  bulk(project: string, id: string): Promise<Bulk> {
    return this.bulkRuns.get(project, id);
  }

  async bulks(query: { project: string; after?: string; limit: number }): Promise<Bulk[]> {
    const bulks = await this.world.ledger.bulks(query);
    return bulks.map((bulk) => this.bulkRuns.current(bulk));
  }

  /** @throws AppError `bulk_not_found` */
  cancelBulk(project: string, id: string): Promise<Bulk> {
    return this.bulkRuns.cancel(project, id);
  }
}

function ignoreEnded(error: unknown): void {
  if (!(error instanceof AppError) || error.code !== "request_ended") throw error;
}
