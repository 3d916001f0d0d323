/** Callers that write down every acknowledgement, and what a database must still know of it afterwards. */

import { createHash } from "node:crypto";
import { join } from "node:path";
import { KeptDatabase, partReader } from "../support/database.ts";
import { answer, fail, type Step } from "../support/fake-upstream.ts";
import type { Luck } from "./luck.ts";

const json = { "content-type": "application/json" };

/** What was promised to callers. */
export class Ledger {
  /** Requests whose id came back in a 202 or with a result. */
  readonly accepted = new Set<string>();
  /** SHA-256 of the results that were delivered, by request. */
  readonly delivered = new Map<string, string>();

  forget(): void {
    this.accepted.clear();
    this.delivered.clear();
  }
}

export const hash = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

/** A call with a prompt of `size` bytes, as `wait` says; keeps what came back. Rejects when the connection breaks. */
export async function call(
  url: string,
  ledger: Ledger,
  { size = 20, wait, key }: { size?: number; wait?: boolean; key?: string } = {},
): Promise<Response> {
  const messages = [{ role: "user", content: "x".repeat(size) }];
  const response = await fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: key === undefined ? json : { ...json, "idempotency-key": key },
    body: JSON.stringify({ model: "fake", messages, ...(wait !== undefined && { wait }) }),
  });
  const body = new Uint8Array(await response.clone().arrayBuffer());
  const id = response.headers.get("outlast-request-id");
  if (id && (response.status === 202 || response.status === 200)) ledger.accepted.add(id);
  if (id && response.status === 200) ledger.delivered.set(id, hash(body));
  return response;
}

/** One call after the other, until the server is gone, which may take `most` calls. */
export async function callUntilGone(url: string, ledger: Ledger, luck: Luck, most = 2000): Promise<void> {
  try {
    for (let n = 0; n < most; n++) {
      const size = luck.next() < 0.2 ? luck.between(1, 60_000) : luck.between(1, 500);
      const key = luck.next() < 0.2 ? `key-${luck.next()}` : undefined;
      await call(url, ledger, { size, wait: luck.next() < 0.5 ? false : undefined, key });
    }
  } catch {
    return; // the connection broke: what this call came to is not known
  }
  throw new Error("the server goes on");
}

/** An upstream that answers differently every time, and fails now and then. */
export function moody(luck: Luck): Step {
  return (seen, res) => {
    if (luck.next() < 0.1) return fail(500)(seen, res);
    const text = `answer ${seen.n} ${"y".repeat(luck.between(0, luck.next() < 0.1 ? 50_000 : 300))}`;
    return answer({ text })(seen, res);
  };
}

/** Waits until every request has ended. */
export async function drained(url: string): Promise<void> {
  for (let round = 0; round < 1000; round++) {
    const list = await fetch(`${url}/v1/requests?limit=100&status=queued,processing,retrying`);
    const { data } = (await list.json()) as { data: { id: string }[] };
    if (data.length === 0) return;
    const ends = data.map(({ id }) => fetch(`${url}/v1/requests/${id}?wait=30`));
    for (const end of await Promise.all(ends)) await end.arrayBuffer();
  }
  throw new Error("requests do not end");
}

export interface Finding {
  requests: number;
  /** Acknowledged, but not there. */
  lost: string[];
  /** Delivered to a caller, but recorded as something else or not at all. */
  altered: string[];
  /** Requests that have not ended, and attempts without an end. */
  unfinished: string[];
  /** What SQLite finds wrong with the file. */
  corrupt: string[];
}

/** Compares what callers were told with what a stopped server has left in its database. */
export function inspect(dir: string, { accepted, delivered }: Ledger): Finding {
  const db = new KeptDatabase(join(dir, "outlast.db"), { readonly: true });
  const all = (sql: string) => db.prepare(sql).pluck().all() as string[];
  const known = new Set(all("SELECT id FROM requests"));
  const part = partReader(db);
  const completed = db.prepare("SELECT id, seq FROM requests WHERE state = 'completed'").all();
  const answers = (completed as { id: string; seq: number }[]).map(({ id, seq }) => ({
    id,
    bytes: part(seq, "answer"),
  }));
  const recorded = new Map(answers.map(({ id, bytes }) => [id, bytes && hash(bytes)]));
  const unfinished = all("SELECT id FROM requests WHERE state NOT IN ('completed', 'failed', 'cancelled')");
  const open = all(
    "SELECT DISTINCT id FROM attempts JOIN requests ON request_seq = seq WHERE verdict IS NULL",
  );
  const wrong = [...all("PRAGMA integrity_check"), ...all("PRAGMA foreign_key_check")];
  db.close();
  return {
    requests: known.size,
    lost: [...accepted].filter((id) => !known.has(id)),
    altered: [...delivered].filter(([id, was]) => recorded.get(id) !== was).map(([id]) => id),
    unfinished: [...unfinished, ...open],
    corrupt: wrong.filter((line) => line !== "ok"),
  };
}
