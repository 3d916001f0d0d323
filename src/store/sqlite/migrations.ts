/**
 * The schema, as the steps that led to it. A step that has been released is never edited: a change is a new
 * step, and `user_version` counts the steps that a file has taken.
 */

import type { Database } from "better-sqlite3";
import { keep } from "./keep.ts";

const first = `
CREATE TABLE nodes (
  node TEXT PRIMARY KEY,
  epoch INTEGER NOT NULL,
  started_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The hot row: what the scheduler reads and writes. Bodies are in parts.
CREATE TABLE requests (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  project TEXT NOT NULL,
  endpoint TEXT NOT NULL,
  model TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('queued', 'processing', 'retrying', 'completed', 'failed', 'cancelled')),
  lane TEXT NOT NULL CHECK (instr(lane, '/') > 1),
  priority INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 2),
  due_at INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  started_at INTEGER,
  ended_at INTEGER,
  deadline_at INTEGER NOT NULL,
  attempt INTEGER NOT NULL CHECK (attempt >= 0),
  round INTEGER NOT NULL CHECK (round >= 1),
  counted INTEGER NOT NULL CHECK (counted >= 0),
  throttled INTEGER NOT NULL CHECK (throttled >= 0),
  excluded TEXT CHECK (json_valid(excluded)),
  unreachable_since INTEGER,
  owner_node TEXT,
  owner_epoch INTEGER,
  terms TEXT NOT NULL CHECK (json_valid(terms)),
  idempotency_key TEXT,
  fingerprint BLOB CHECK (length(fingerprint) = 32),
  call_hash BLOB CHECK (length(call_hash) = 32),
  answered INTEGER NOT NULL DEFAULT 0 CHECK (answered IN (0, 1)),
  duplicate_possible INTEGER NOT NULL DEFAULT 0 CHECK (duplicate_possible IN (0, 1)),
  tags TEXT CHECK (json_valid(tags)),
  upstream TEXT,
  served_model TEXT,
  response_id TEXT,
  usage TEXT,
  error TEXT CHECK (json_valid(error)),
  last_error_code TEXT,
  end_reason TEXT,
  CHECK ((state = 'processing') = (owner_node IS NOT NULL)),
  CHECK ((owner_node IS NULL) = (owner_epoch IS NULL)),
  CHECK ((state IN ('completed', 'failed', 'cancelled')) = (ended_at IS NOT NULL)),
  CHECK (state <> 'failed' OR error IS NOT NULL)
) STRICT;

CREATE INDEX requests_ready ON requests (lane, priority, project, due_at, id)
  WHERE state IN ('queued', 'retrying');
CREATE INDEX requests_deadline ON requests (deadline_at)
  WHERE state IN ('queued', 'retrying');
CREATE INDEX requests_lane_deadline ON requests (lane, deadline_at)
  WHERE state IN ('queued', 'retrying');
CREATE INDEX requests_processing ON requests (owner_node, owner_epoch)
  WHERE state = 'processing';
CREATE INDEX requests_project ON requests (project);
CREATE INDEX requests_response ON requests (project, response_id)
  WHERE response_id IS NOT NULL;

CREATE TABLE idempotency_keys (
  project TEXT NOT NULL,
  endpoint TEXT NOT NULL,
  key TEXT NOT NULL,
  request_seq INTEGER NOT NULL REFERENCES requests (seq) ON DELETE CASCADE,
  PRIMARY KEY (project, endpoint, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_request ON idempotency_keys (request_seq);

CREATE TABLE parts (
  request_seq INTEGER NOT NULL REFERENCES requests (seq) ON DELETE CASCADE,
  kind TEXT NOT NULL CHECK (kind IN ('head', 'body', 'answer_head', 'answer')),
  seq INTEGER NOT NULL CHECK (seq >= 0),
  codec TEXT NOT NULL DEFAULT 'identity' CHECK (codec IN ('identity')),
  key_id TEXT,
  bytes BLOB NOT NULL,
  PRIMARY KEY (request_seq, kind, seq)
) STRICT;

CREATE TABLE attempts (
  request_seq INTEGER NOT NULL REFERENCES requests (seq) ON DELETE CASCADE,
  number INTEGER NOT NULL CHECK (number >= 1),
  round INTEGER NOT NULL CHECK (round >= 1),
  upstream TEXT NOT NULL,
  model TEXT NOT NULL,
  started_at INTEGER NOT NULL,
  first_byte_at INTEGER,
  ended_at INTEGER,
  status INTEGER,
  verdict TEXT CHECK (verdict IN
    ('success', 'throttled', 'transient', 'ambiguous', 'not_sent', 'invalid_output', 'permanent')),
  counted INTEGER NOT NULL CHECK (counted IN (0, 1)),
  error_code TEXT,
  error_message TEXT,
  reason TEXT,
  retry_at INTEGER,
  provider_request_id TEXT,
  usage TEXT,
  PRIMARY KEY (request_seq, number),
  CHECK ((ended_at IS NULL) = (verdict IS NULL))
) STRICT, WITHOUT ROWID;
`;

/** Adoption: who waits for an answer is a small table of its own, so that the hot row is not written again for it. */
const held = `
-- Keyless held requests whose caller is not known to have the answer; an orphan has no caller any more.
CREATE TABLE held (
  request_seq INTEGER PRIMARY KEY NOT NULL REFERENCES requests (seq) ON DELETE CASCADE,
  call_hash BLOB NOT NULL CHECK (length(call_hash) = 32),
  orphaned_at INTEGER,
  content_sent INTEGER NOT NULL DEFAULT 0 CHECK (content_sent IN (0, 1))
) STRICT;
CREATE INDEX held_orphans ON held (call_hash, orphaned_at) WHERE orphaned_at IS NOT NULL;
CREATE INDEX held_age ON held (orphaned_at) WHERE orphaned_at IS NOT NULL;
INSERT INTO held (request_seq, call_hash)
  SELECT seq, call_hash FROM requests
  WHERE call_hash IS NOT NULL AND state IN ('queued', 'processing', 'retrying');
ALTER TABLE requests DROP COLUMN answered;
-- An attempt has a row when it has ended; the one under way stands in its request's row.
DELETE FROM attempts WHERE ended_at IS NULL;
CREATE INDEX requests_failed_calls ON requests (call_hash, ended_at)
  WHERE state = 'failed' AND call_hash IS NOT NULL;
`;

/** Streams: what callers were given of an answer while it came. */
const streamed = `
-- Events of streamed answers, in batches: the data of each event on a line; seq is the number of the event before.
-- With a rowid: the batches of streams that run at once lie side by side, not each on a page of its stream's own.
CREATE TABLE events (
  request_seq INTEGER NOT NULL REFERENCES requests (seq) ON DELETE CASCADE,
  seq INTEGER NOT NULL CHECK (seq >= 0),
  bytes BLOB NOT NULL,
  PRIMARY KEY (request_seq, seq)
) STRICT;
-- For each version of the stream but the first, how many events it shares with the one before. It only grows.
ALTER TABLE requests ADD COLUMN forks TEXT CHECK (json_valid(forks));
`;

/** What is known of upstreams and of answers beyond one request, and what became of answers. */
const learned = `
ALTER TABLE requests ADD COLUMN invalid INTEGER NOT NULL DEFAULT 0 CHECK (invalid >= 0);
ALTER TABLE requests ADD COLUMN cost REAL;
ALTER TABLE requests ADD COLUMN findings TEXT CHECK (json_valid(findings));
ALTER TABLE requests ADD COLUMN degraded TEXT CHECK (degraded IN ('stale', 'fixed'));
ALTER TABLE requests ADD COLUMN body_hash BLOB CHECK (length(body_hash) = 32);
ALTER TABLE requests ADD COLUMN cached_from TEXT;
ALTER TABLE attempts ADD COLUMN cost REAL;
ALTER TABLE attempts ADD COLUMN findings TEXT CHECK (json_valid(findings));
CREATE INDEX attempts_started ON attempts (started_at);
-- Only answers that an upstream gave: were a copy found, its copies would be ever new, and the answer never too old.
CREATE INDEX requests_bodies ON requests (project, body_hash, ended_at)
  WHERE body_hash IS NOT NULL AND state = 'completed' AND cached_from IS NULL;

CREATE TABLE flow (
  name TEXT PRIMARY KEY NOT NULL,
  value TEXT NOT NULL CHECK (json_valid(value))
) STRICT, WITHOUT ROWID;

-- Parts of answers, by what they are the answer to. With a rowid: a vector is too large to be sorted in between.
CREATE TABLE vectors (
  project TEXT NOT NULL,
  hash BLOB NOT NULL CHECK (length(hash) = 32),
  created_at INTEGER NOT NULL,
  bytes BLOB NOT NULL,
  PRIMARY KEY (project, hash)
) STRICT;
CREATE INDEX vectors_age ON vectors (created_at);
`;

const steps: string[] = [first, held, streamed, learned];

/** Marks a file as ours: "Outl". */
const applicationId = 0x4f75746c;

/** How many steps this version knows. */
export const schemaVersion = steps.length;

/** @throws Error where the file holds something else. Nothing is written before this has been asked. */
export function assertOurs(db: Database): void {
  const isNew = pragma(db, "schema_version") === 0;
  if (isNew || pragma(db, "application_id") === applicationId) return;
  throw new Error(`${db.name} is a database of another program.`);
}

/**
 * Takes the steps that the file has not taken yet, each in a transaction of its own.
 * @throws Error where the file was written by a newer version.
 */
export function migrate(db: Database): void {
  const taken = pragma(db, "user_version");
  if (taken > schemaVersion) {
    throw new Error(
      `The database has schema ${taken}, this version of Outlast knows ${schemaVersion}: use a newer Outlast.`,
    );
  }
  for (let step = taken; step < schemaVersion; step++) {
    db.transaction(() => {
      db.exec(steps[step]!);
      db.exec(`PRAGMA application_id = ${applicationId}; PRAGMA user_version = ${step + 1};`);
    }).immediate();
  }
}

const pragma = (db: Database, name: string): number =>
  keep(db.prepare(`PRAGMA ${name}`))
    .pluck()
    .get() as number;
