/** What is read while requests are under way: records, what they were asked and answered, and whose turn is next. */

import type {
  EventBatch,
  FlowRow,
  GroupKey,
  Part,
  PartKind,
  ReadyGroup,
  RecentCall,
  Vector,
} from "../../core/ports.ts";
import { type AttemptRecord, attemptUnderWay, type Owner, type RequestRecord } from "../../core/request.ts";
import { Ledger } from "./ledger.ts";
import { unpacked } from "./pack.ts";
import { partsIn, rowKinds, type StoredPart } from "./parts.ts";
import * as rows from "./rows.ts";

/** What reads offer, by name: the reader thread is asked by these names. */
export type Reads = Pick<
  Reader,
  | "get"
  | "byKey"
  | "byResponse"
  | "parts"
  | "events"
  | "attempts"
  | "list"
  | "groups"
  | "heads"
  | "expiring"
  | "toldToWait"
  | "interrupted"
  | "flow"
  | "calledSince"
  | "newest"
  | "vectors"
  | "many"
  | "counts"
  | "deadLetters"
  | "usage"
  | "erasable"
  | "unwanted"
  | "size"
  | "bulk"
  | "bulkByKey"
  | "bulks"
>;

const isReady = "state IN ('queued', 'retrying')";
const eventsFrom = `SELECT seq AS after, bytes FROM events WHERE request_seq = ? AND seq <= ?
  ORDER BY seq DESC LIMIT 1`;
const nextEvents =
  "SELECT seq AS after, bytes FROM events WHERE request_seq = ? AND seq > ? ORDER BY seq LIMIT 1";

export class Reader extends Ledger {
  get(id: string): RequestRecord | undefined {
    return this.one("SELECT * FROM requests WHERE id = ?", id);
  }

  byKey(project: string, endpoint: string, key: string): RequestRecord | undefined {
    const sql = `SELECT requests.* FROM idempotency_keys JOIN requests ON requests.seq = request_seq
      WHERE idempotency_keys.project = ? AND idempotency_keys.endpoint = ? AND key = ?`;
    return this.one(sql, project, endpoint, key);
  }

  byResponse(project: string, responseId: string): RequestRecord | undefined {
    const sql = "SELECT * FROM requests WHERE project = ? AND response_id = ? ORDER BY seq DESC LIMIT 1";
    return this.one(sql, project, responseId);
  }

  parts(id: string, kinds: PartKind[]): Part[] {
    const loose = this.looseParts(id, kinds);
    if (loose.length > 0) return loose;
    // All of one instant: they may just be packed, or unpacked.
    return this.atOnce(() => {
      const sql = "SELECT bytes FROM packs JOIN requests ON seq = request_seq WHERE id = ?";
      const pack = this.statement(sql).pluck().get(id) as Uint8Array | undefined;
      return pack ? unpacked(pack).filter(({ kind }) => kinds.includes(kind)) : this.looseParts(id, kinds);
    });
  }

  private looseParts(id: string, kinds: PartKind[]): Part[] {
    const inRows = rowKinds(kinds);
    const sql = `SELECT kind, parts.seq AS seq, codec, bytes FROM parts
      JOIN requests ON requests.seq = request_seq WHERE id = ? AND kind IN (${inRows.map(() => "?").join(", ")})`;
    const found = this.statement(sql).all(id, ...inRows) as StoredPart[];
    return partsIn(found).filter(({ kind }) => kinds.includes(kind));
  }

  events(id: string, after: number, maxBytes: number): EventBatch[] {
    // All of one instant: a stream that begins anew meanwhile must not be mixed with what it was.
    return this.atOnce(() => {
      const seq = this.seqOf(id);
      return seq === undefined ? [] : this.eventsFrom(seq, after, maxBytes);
    });
  }

  private eventsFrom(seq: number, after: number, maxBytes: number): EventBatch[] {
    const batches: EventBatch[] = [];
    let size = 0;
    let batch = this.statement(eventsFrom).get(seq, after) as EventBatch | undefined;
    const next = this.statement(nextEvents);
    while (batch) {
      batches.push(batch);
      size += batch.bytes.byteLength;
      batch = size < maxBytes ? (next.get(seq, batch.after) as EventBatch | undefined) : undefined;
    }
    return batches;
  }

  /** An attempt has a row of its own when it has ended; the one under way stands in its request's row. */
  attempts(id: string): AttemptRecord[] {
    const sql = `SELECT attempts.*, ${rows.ofAnswer("usage")}, ${rows.ofAnswer("findings")}
      FROM attempts JOIN requests ON requests.seq = request_seq WHERE id = ? ORDER BY number`;
    // All of one instant: an attempt that ends meanwhile must not be in neither place.
    return this.atOnce(() => {
      const ended = (this.statement(sql).all(id) as rows.RequestRow[]).map((row) => rows.toAttempt(id, row));
      const record = this.get(id);
      return record?.state === "processing" ? [...ended, attemptUnderWay(record)] : ended;
    });
  }

  groups(): ReadyGroup[] {
    const sql = `SELECT lane, priority, project, count(*) AS count FROM requests
      WHERE ${isReady} GROUP BY lane, priority, project`;
    const found = this.statement(sql).all() as (Omit<ReadyGroup, "priority"> & { priority: number })[];
    return found.map((group) => ({ ...group, priority: rows.priorities[group.priority]! }));
  }

  heads({ lane, priority, project }: GroupKey, limit: number) {
    const sql = `SELECT * FROM requests WHERE ${isReady} AND lane = ? AND priority = ? AND project = ?
      ORDER BY due_at, id LIMIT ?`;
    return this.all(sql, lane, rows.priorityNumber(priority), project, limit);
  }

  expiring({ lane, limit }: { lane?: string; limit: number }): RequestRecord[] {
    const inLane = lane === undefined ? "" : "AND lane = ?";
    // Of one lane, the planner would rather read and sort the whole lane.
    const index = lane === undefined ? "requests_deadline" : "requests_lane_deadline";
    const sql = `SELECT * FROM requests INDEXED BY ${index}
      WHERE ${isReady} ${inLane} ORDER BY deadline_at LIMIT ?`;
    return lane === undefined ? this.all(sql, limit) : this.all(sql, lane, limit);
  }

  toldToWait(now: number): { lane: string; until: number }[] {
    const sql = `SELECT lane, max(due_at) AS until FROM requests WHERE ${isReady} AND due_at > ? AND EXISTS (SELECT 1 FROM attempts
        WHERE request_seq = seq AND number = attempt AND reason = 'retry_after') GROUP BY lane`;
    return this.statement(sql).all(now) as { lane: string; until: number }[];
  }

  interrupted(owner: Owner, limit: number): RequestRecord[] {
    const sql = `SELECT * FROM requests
      WHERE state = 'processing' AND owner_node = ? AND owner_epoch < ? LIMIT ?`;
    return this.all(sql, owner.node, owner.epoch, limit);
  }

  flow(): FlowRow[] {
    return this.statement("SELECT name, value FROM flow ORDER BY name").all() as FlowRow[];
  }

  calledSince(at: number): RecentCall[] {
    const sql = `SELECT attempts.upstream, attempts.model, attempts.started_at, ${rows.ofAnswer("usage")}, verdict,
        terms ->> '$.size' AS size
      FROM attempts JOIN requests ON seq = request_seq
      WHERE attempts.started_at >= ? AND attempts.ended_at IS NOT NULL
      ORDER BY attempts.started_at, request_seq, number`;
    return (this.statement(sql).all(at) as rows.RequestRow[]).map(rows.toRecentCall);
  }

  newest(project: string, bodyHash: string, endedAfter: number): RequestRecord | undefined {
    const sql = `SELECT * FROM requests
      WHERE project = ? AND body_hash = unhex(?) AND ended_at > ? AND state = 'completed' AND cached_from IS NULL
      ORDER BY ended_at DESC, seq DESC LIMIT 1`;
    return this.one(sql, project, bodyHash, endedAfter);
  }

  vectors(project: string, hashes: string[], createdAfter: number): Vector[] {
    const sql = `SELECT created_at AS createdAt, bytes FROM vectors
      WHERE project = ? AND hash = unhex(?) AND created_at > ?`;
    // In a transaction only because that is faster than to lock the file for each.
    return this.atOnce(() => {
      const found: Vector[] = [];
      for (const hash of new Set(hashes)) {
        const vector = this.statement(sql).get(project, hash, createdAfter);
        if (vector) found.push({ project, hash, ...(vector as Pick<Vector, "createdAt" | "bytes">) });
      }
      return found;
    });
  }
}
