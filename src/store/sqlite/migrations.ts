/**
 * The schema, as the steps that led to it. A step that has been released is never edited: a change is a new
 * step, and `user_version` counts the steps that a file has taken.
 */

import type { Database } from "better-sqlite3";
import { keep } from "./keep.ts";
import { labelNumber } from "./label-number.ts";

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

/** Whose fault the failure of a request is, as core says. */
const cause = `CASE WHEN requests.state = 'failed' THEN
  iif(end_reason IS 'permanent' AND
    error ->> '$.status' IN (400, 405, 406, 410, 411, 413, 414, 415, 416, 422, 431), 'caller', 'upstream') END`;

/** Finds, counts and erases what was asked, and adds up what it used. */
const ledger = `
ALTER TABLE requests ADD COLUMN origin TEXT CHECK (json_valid(origin));
ALTER TABLE requests ADD COLUMN prompt_hash BLOB CHECK (length(prompt_hash) = 32);
ALTER TABLE requests ADD COLUMN replay_of TEXT;
ALTER TABLE requests ADD COLUMN resolved_at INTEGER;
ALTER TABLE requests ADD COLUMN bodies_erased_at INTEGER;
-- 1: its terms say that nothing of it is to be kept.
ALTER TABLE requests ADD COLUMN unwanted INTEGER CHECK (unwanted = 1);
ALTER TABLE attempts ADD COLUMN due_at INTEGER;
ALTER TABLE attempts ADD COLUMN waited_for TEXT CHECK (json_valid(waited_for));
ALTER TABLE attempts ADD COLUMN connected_at INTEGER;

-- Each combination of these values that requests have, and how many have it.
CREATE TABLE facets (
  id INTEGER PRIMARY KEY,
  project TEXT NOT NULL,
  endpoint TEXT NOT NULL,
  model TEXT NOT NULL,
  upstream TEXT,
  state TEXT NOT NULL CHECK (state IN ('queued', 'processing', 'retrying', 'completed', 'failed', 'cancelled')),
  error_code TEXT,
  caused_by TEXT CHECK (caused_by IN ('caller', 'upstream')),
  resolved INTEGER NOT NULL CHECK (resolved IN (0, 1)),
  n INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX facets_values ON facets (project, endpoint, model, ifnull(upstream, ''), state,
  ifnull(error_code, ''), ifnull(caused_by, ''), resolved);
ALTER TABLE requests ADD COLUMN facet INTEGER NOT NULL DEFAULT 0;
INSERT INTO facets (project, endpoint, model, upstream, state, error_code, caused_by, resolved, n)
  SELECT project, endpoint, model, upstream, state, last_error_code, ${cause}, 0, count(*)
  FROM requests GROUP BY 1, 2, 3, 4, 5, 6, 7;
UPDATE requests SET facet = (SELECT id FROM facets
  WHERE facets.project = requests.project AND facets.endpoint = requests.endpoint
    AND facets.model = requests.model AND ifnull(facets.upstream, '') = ifnull(requests.upstream, '')
    AND facets.state = requests.state AND ifnull(error_code, '') = ifnull(last_error_code, '')
    AND ifnull(caused_by, '') = ifnull(${cause}, '') AND resolved = 0);
-- The number of the row stands behind it: of each facet, its requests in their order.
CREATE INDEX requests_facet ON requests (facet);
DROP INDEX requests_project;

-- When the requests of each 1,024 numbers were accepted, and the last number that was given out.
CREATE TABLE spans (
  block INTEGER PRIMARY KEY,
  oldest INTEGER NOT NULL,
  newest INTEGER NOT NULL,
  last INTEGER NOT NULL
) STRICT;
INSERT INTO spans SELECT seq / 1024, min(created_at), max(created_at), max(seq) FROM requests GROUP BY 1;

-- Hashes of what callers told of their requests.
CREATE TABLE labels (
  label INTEGER NOT NULL,
  request_seq INTEGER NOT NULL,
  PRIMARY KEY (label, request_seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage (
  day INTEGER NOT NULL,
  project TEXT NOT NULL,
  endpoint TEXT NOT NULL,
  model TEXT NOT NULL,
  upstream TEXT NOT NULL,
  prompt_hash TEXT NOT NULL,
  -- Empty: of all requests, those with tags among them.
  tag TEXT NOT NULL,
  completed REAL NOT NULL,
  failed REAL NOT NULL,
  cancelled REAL NOT NULL,
  cached REAL NOT NULL,
  attempts REAL NOT NULL,
  input_tokens REAL NOT NULL,
  cached_tokens REAL NOT NULL,
  output_tokens REAL NOT NULL,
  reasoning_tokens REAL NOT NULL,
  estimated REAL NOT NULL,
  unpriced REAL NOT NULL,
  cost REAL NOT NULL,
  duration_ms REAL NOT NULL,
  refusal REAL NOT NULL,
  content_filter REAL NOT NULL,
  length REAL NOT NULL,
  empty REAL NOT NULL,
  invalid_json REAL NOT NULL,
  schema_mismatch REAL NOT NULL,
  PRIMARY KEY (day, project, endpoint, model, upstream, prompt_hash, tag)
) STRICT, WITHOUT ROWID;

-- Ended requests that the librarian has not looked through.
CREATE TABLE unfiled (
  request_seq INTEGER PRIMARY KEY NOT NULL REFERENCES requests (seq) ON DELETE CASCADE
) STRICT;
INSERT INTO unfiled SELECT seq FROM requests WHERE ended_at IS NOT NULL;

-- All parts of such a request together, once it has been: see pack.ts.
CREATE TABLE packs (
  request_seq INTEGER PRIMARY KEY NOT NULL REFERENCES requests (seq) ON DELETE CASCADE,
  bytes BLOB NOT NULL
) STRICT;

CREATE TABLE bulks (
  id TEXT NOT NULL UNIQUE,
  project TEXT NOT NULL,
  action TEXT NOT NULL CHECK (action IN ('retry', 'cancel', 'erase', 'resolve')),
  filter TEXT NOT NULL CHECK (json_valid(filter)),
  text TEXT,
  options TEXT CHECK (json_valid(options)),
  state TEXT NOT NULL CHECK (state IN ('in_progress', 'completed', 'cancelled', 'failed')),
  total INTEGER,
  done INTEGER NOT NULL,
  skipped INTEGER NOT NULL,
  failed INTEGER NOT NULL,
  cursor TEXT,
  last_id TEXT,
  error_code TEXT,
  idempotency_key TEXT,
  fingerprint BLOB CHECK (length(fingerprint) = 32),
  created_at INTEGER NOT NULL,
  updated_at INTEGER NOT NULL,
  ended_at INTEGER
) STRICT;
CREATE UNIQUE INDEX bulks_key ON bulks (project, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX bulks_project ON bulks (project);
CREATE INDEX bulks_state ON bulks (state);

CREATE INDEX requests_ended ON requests
  (state, (bodies_erased_at IS NOT NULL), (idempotency_key IS NOT NULL), ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX requests_unwanted ON requests (ended_at)
  WHERE unwanted = 1 AND ended_at IS NOT NULL AND bodies_erased_at IS NULL;
`;

/** The kinds that the parts table takes, in schema 1 and from schema 5 on. */
const kinds = "'head', 'body', 'answer_head', 'answer'";
const moreKinds = `${kinds}, 'sent', 'received'`;

/**
 * Changes what tables check, without copying what is in them: sqlite.org/lang_altertable.html describes this way for
 * changes that leave what is on disk as it is.
 */
function rewriteTables(db: Database, change: (sql: string) => string): void {
  db.unsafeMode(true);
  try {
    const version = pragma(db, "schema_version");
    db.exec("PRAGMA writable_schema = ON");
    db.function("changed", (sql) => change(sql as string));
    const sql = "UPDATE sqlite_schema SET sql = changed(sql) WHERE type = 'table'";
    keep(db.prepare(sql)).run();
    db.exec(`PRAGMA schema_version = ${version + 1}; PRAGMA writable_schema = RESET`);
  } finally {
    db.unsafeMode(false);
  }
}

/**
 * For a list of three and more SQLite makes a table, sorted, with every row that is checked: a fifth of what writing a
 * request cost. Comparisons cost next to nothing.
 */
const compared = (sql: string): string =>
  sql.replace(/(\w+)\s+IN\s*\(('\w+'(?:,\s*'\w+'){2,})\)/g, (_, column: string, list: string) => {
    const each = list.split(/,\s*/).map((value) => `${column} = ${value}`);
    return `(${each.join(" OR ")})`;
  });

/** Requests of earlier versions have tags only. */
function labelTags(db: Database): void {
  db.function("tag_number", (project, value) =>
    labelNumber(project as string, { name: "tag", value: value as string }),
  );
  db.exec(`INSERT OR IGNORE INTO labels
    SELECT tag_number(project, value), seq FROM requests, json_each(tags) WHERE tags IS NOT NULL`);
}

/** The codecs of parts, until schema 5 and from schema 6 on. */
const codecs = "codec IN ('identity')";
const moreCodecs = "codec IN ('identity', 'headed')";

type Step = (db: Database) => void;

const steps: Step[] = [
  (db) => db.exec(first),
  (db) => db.exec(held),
  (db) => db.exec(streamed),
  (db) => db.exec(learned),
  (db) => {
    db.exec(ledger);
    rewriteTables(db, (sql) => sql.replace(kinds, moreKinds));
    labelTags(db);
  },
  (db) => rewriteTables(db, (sql) => compared(sql).replace(codecs, moreCodecs)),
];

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
      steps[step]!(db);
      db.exec(`PRAGMA application_id = ${applicationId}; PRAGMA user_version = ${step + 1};`);
    }).immediate();
  }
}

const pragma = (db: Database, name: string): number =>
  keep(db.prepare(`PRAGMA ${name}`))
    .pluck()
    .get() as number;
