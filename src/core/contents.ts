/** What is to be sent for those who wait: kept from when it was accepted a moment ago, or read from the store. */

import type { Content } from "./attempts.ts";
import type { Store } from "./ports.ts";
import { Table } from "./table.ts";

/** No more than this is kept; what comes when it is full is read when its turn comes. */
const maxBytes = 32 * 1024 * 1024;
const decoder = new TextDecoder();

/** What is to be sent for a request. Undefined where its bodies have been erased, which nobody does while it waits. */
export async function readContent(store: Store, id: string): Promise<Content | undefined> {
  const parts = await store.parts(id, ["head", "body"]);
  const heads = parts.filter(({ kind }) => kind === "head");
  const body = parts.find(({ kind }) => kind === "body");
  const head = heads.find(({ seq }) => seq === 0);
  if (!head || !body) return undefined;
  const newest = heads.at(-1)!;
  const feedback = newest === head ? undefined : JSON.parse(decoder.decode(newest.bytes));
  return { head: JSON.parse(decoder.decode(head.bytes)), body: body.bytes, feedback };
}

export class Contents {
  private readonly byId = new Table<string, Content>();
  private readonly count: (bytes: number) => void;
  private bytes = 0;

  /** `count` is told how many bytes more (or less) are in memory. */
  constructor(count: (bytes: number) => void) {
    this.count = count;
  }

  keep(id: string, content: Content): void {
    if (this.bytes + content.body.byteLength > maxBytes) return;
    this.byId.set(id, content);
    this.add(content.body.byteLength);
  }

  /** The content, which is not kept any more. */
  take(id: string): Content | undefined {
    const content = this.byId.get(id);
    if (!content) return undefined;
    this.byId.delete(id);
    this.add(-content.body.byteLength);
    return content;
  }

  private add(bytes: number): void {
    this.bytes += bytes;
    this.count(bytes);
  }
}
