/**
 * Keyless requests whose callers do not have their answers yet, because they are on the line, or because they have gone
 * and may ask again: then the request is an orphan.
 */

import type { ChangeSet, Repeats } from "../../core/ports.ts";
import { type RequestRecord, reasonsInVain } from "../../core/request.ts";
import type { FindStatement } from "./connection.ts";
import * as rows from "./rows.ts";

type Change<K> = Extract<ChangeSet, { kind: K }>;

/** So many are remembered, and looked up otherwise. */
const rememberedMax = 10_000;

const sql = {
  insert: "INSERT INTO held (request_seq, call_hash) VALUES (?, unhex(?))",
  orphan: `SELECT requests.* FROM held JOIN requests ON seq = request_seq
    WHERE held.call_hash = unhex(?) AND orphaned_at > ? AND content_sent <= ?
      AND (state = 'completed' OR (state IN ('queued', 'processing', 'retrying') AND deadline_at > ?))
    ORDER BY orphaned_at, request_seq LIMIT 1`,
  adopt: "UPDATE held SET orphaned_at = NULL WHERE request_seq = ?",
  failedCall: `SELECT * FROM requests WHERE call_hash = unhex(?) AND state = 'failed' AND ended_at > ?
    AND end_reason IN (${reasonsInVain.map(() => "?").join(", ")})
    AND NOT EXISTS (SELECT 1 FROM held WHERE request_seq = seq AND orphaned_at IS NOT NULL)
    ORDER BY ended_at DESC LIMIT 1`,
  anyOrphan: "SELECT 1 FROM held WHERE orphaned_at IS NOT NULL LIMIT 1",
  lastFailedCall: "SELECT max(ended_at) FROM requests WHERE state = 'failed' AND call_hash IS NOT NULL",
  orphaned: `UPDATE held SET orphaned_at = ?, content_sent = max(content_sent, ?)
    WHERE request_seq = (SELECT seq FROM requests WHERE id = ?) AND orphaned_at IS NULL`,
  allOrphaned: `UPDATE held SET orphaned_at = ?, content_sent =
      max(content_sent, (SELECT state = 'completed' FROM requests WHERE seq = request_seq),
        EXISTS (SELECT 1 FROM events WHERE events.request_seq = held.request_seq))
    WHERE orphaned_at IS NULL`,
  forgetOrphans: "DELETE FROM held WHERE orphaned_at <= ?",
  forgetSomeOrphans: `DELETE FROM held WHERE request_seq IN
    (SELECT request_seq FROM held WHERE orphaned_at <= ? ORDER BY orphaned_at LIMIT 16)`,
  shift: "UPDATE held SET orphaned_at = orphaned_at + ? WHERE orphaned_at IS NOT NULL",
  delete: "DELETE FROM held WHERE request_seq = ?",
  deleteById: "DELETE FROM held WHERE request_seq = (SELECT seq FROM requests WHERE id = ?)",
};

/** Nobody waits for it, or went without it at an instant or later and may come back. */
export const notHeld = `NOT EXISTS (SELECT 1 FROM held WHERE request_seq = requests.seq
  AND (orphaned_at IS NULL OR orphaned_at >= ?))`;

/** The writer's view of the table. */
export class HeldTable {
  private readonly statement: FindStatement;
  /** Rows of those that this connection has seen accepted; the newest of them. */
  private readonly seqs = new Map<string, number>();
  /** Whether there is an orphan, and when the last keyless call failed; undefined: to be looked up. */
  private hasOrphans: boolean | undefined;
  private lastFailedAt: number | undefined;

  constructor(statement: FindStatement) {
    this.statement = statement;
  }

  insert(id: string, seq: number, callHash: string): void {
    this.statement(sql.insert).run(seq, callHash);
    if (this.seqs.size >= rememberedMax) this.seqs.clear();
    this.seqs.set(id, seq);
  }

  /** What an equal call left behind. An orphan is given to this caller in the same transaction, so to one only. */
  repeated(
    callHash: string,
    repeats: Repeats,
  ): { status: "adopted" | "echoed"; current: RequestRecord } | undefined {
    const { now, orphanedAfter, isRetry, failedAfter } = repeats;
    // Nearly always there is nothing to be found, and every call looks for it.
    this.hasOrphans ??= this.statement(sql.anyOrphan).get() !== undefined;
    const orphan =
      this.hasOrphans && this.statement(sql.orphan).get(callHash, orphanedAfter, isRetry ? 1 : 0, now);
    if (orphan) {
      const row = orphan as rows.RequestRow;
      this.statement(sql.adopt).run(row.seq);
      this.hasOrphans = undefined;
      return { status: "adopted", current: rows.toRecord(row) };
    }
    this.lastFailedAt ??= (this.statement(sql.lastFailedCall).pluck().get() as number | null) ?? 0;
    if (this.lastFailedAt <= failedAfter) return undefined;
    const failed = this.statement(sql.failedCall).get(callHash, failedAfter, ...reasonsInVain);
    return failed ? { status: "echoed", current: rows.toRecord(failed as rows.RequestRow) } : undefined;
  }

  orphaned({ id, at, contentSent, forgetBefore }: Change<"orphaned">): void {
    this.statement(sql.orphaned).run(at, contentSent ? 1 : 0, id);
    // Every new one sweeps out a few old ones: there are never many, and nobody has to think of it.
    this.statement(sql.forgetSomeOrphans).run(forgetBefore);
    this.hasOrphans = undefined;
  }

  allOrphaned({ at, forgetBefore }: Change<"all_orphaned">): void {
    this.statement(sql.forgetOrphans).run(forgetBefore);
    this.statement(sql.allOrphaned).run(at);
    this.hasOrphans = undefined;
  }

  /** Their callers have their answers. */
  answered(ids: readonly string[]): void {
    for (const id of ids) {
      const seq = this.seqs.get(id);
      if (seq === undefined) this.statement(sql.deleteById).run(id);
      else this.delete(seq);
      this.seqs.delete(id);
    }
  }

  delete(seq: number): void {
    this.statement(sql.delete).run(seq);
  }

  /** A request has failed, which an equal call may be told again. @param endedAt epoch ms */
  failed(endedAt: number): void {
    if (this.lastFailedAt !== undefined && endedAt > this.lastFailedAt) this.lastFailedAt = endedAt;
  }

  /** The wall clock was set. */
  shift(byMs: number): void {
    this.statement(sql.shift).run(byMs);
  }

  /** A transaction was undone: what is known may not hold. A failure that is not there is looked for in vain, at worst. */
  forget(): void {
    this.seqs.clear();
    this.hasOrphans = undefined;
  }
}
