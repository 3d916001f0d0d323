/** Who waits for the end of which request, in this process. */

import type { ChangeSet, Ended } from "../core/ports.ts";
import { isTerminal } from "../core/request.ts";
import { Table } from "../core/table.ts";

export class Watchers {
  private readonly byId = new Table<string, Set<(ended: Ended) => void>>();

  watch(id: string, onEnded: (ended: Ended) => void): () => void {
    const those = this.byId.get(id) ?? new Set();
    those.add(onEnded);
    this.byId.set(id, those);
    return () => {
      those.delete(onEnded);
      if (those.size === 0 && this.byId.get(id) === those) this.byId.delete(id);
    };
  }

  /** Tells those who wait, after a change has been committed. What was written is handed on; nothing is read back. */
  tell(change: ChangeSet): void {
    if (change.kind !== "change" && change.kind !== "accept") return;
    const { record } = change.kind === "change" ? change.transition : change;
    if (!isTerminal(record.state)) return;
    const those = this.byId.get(record.id);
    if (!those) return;
    this.byId.delete(record.id);
    const answer = (change.parts ?? []).filter(({ kind }) => kind === "answer_head" || kind === "answer");
    for (const onEnded of those) onEnded({ record, answer });
  }
}
