/** What was accepted a moment ago and waits for its turn: its body need not be read from the store again. */

import type { Content } from "./attempts.ts";
import { Table } from "./table.ts";

/** No more than this is kept; what comes when it is full is read when its turn comes. */
const maxBytes = 32 * 1024 * 1024;

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
