/** What an earlier start of this node left behind: attempts that began and did not end. */

import { StorageError } from "./errors.ts";
import { talliesOf } from "./ledger/usage.ts";
import type { ChangeSet, World } from "./ports.ts";
import { type Owner, type RequestRecord, transition } from "./request.ts";
import { decideInterrupted } from "./retry.ts";

const rowsPerRead = 128;

/** Ends them as interrupted. Resolves with how many there were. @throws StorageError, also where none of them gives way */
export async function recoverInterrupted({ store, clock }: World, owner: Owner): Promise<number> {
  let interrupted = 0;
  for (;;) {
    const rows = await store.interrupted(owner, rowsPerRead);
    if (rows.length === 0) return interrupted;
    const results = await Promise.all(rows.map((row) => store.commit(interruption(row, clock.now()))));
    if (results.every(({ status }) => status === "conflict")) {
      throw new StorageError("failed", "Requests that a crash interrupted could not be recovered.");
    }
    interrupted += rows.length;
  }
}

function interruption(record: RequestRecord, now: number): ChangeSet {
  const moved = transition(record, { type: "interrupted", now, ...decideInterrupted(record, now) });
  if (!moved) throw new Error(`${record.id} is ${record.state}, not processing`);
  return { kind: "change", transition: moved, tallies: talliesOf(moved) };
}
