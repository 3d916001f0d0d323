-- A file as the last version of schema 5 left it in the middle of its work: its schema, and a request of every kind.

CREATE TABLE nodes (
  node TEXT PRIMARY KEY,
  epoch INTEGER NOT NULL,
  started_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
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
  duplicate_possible INTEGER NOT NULL DEFAULT 0 CHECK (duplicate_possible IN (0, 1)),
  tags TEXT CHECK (json_valid(tags)),
  upstream TEXT,
  served_model TEXT,
  response_id TEXT,
  usage TEXT,
  error TEXT CHECK (json_valid(error)),
  last_error_code TEXT,
  end_reason TEXT, forks TEXT CHECK (json_valid(forks)), invalid INTEGER NOT NULL DEFAULT 0 CHECK (invalid >= 0), cost REAL, findings TEXT CHECK (json_valid(findings)), degraded TEXT CHECK (degraded IN ('stale', 'fixed')), body_hash BLOB CHECK (length(body_hash) = 32), cached_from TEXT, origin TEXT CHECK (json_valid(origin)), prompt_hash BLOB CHECK (length(prompt_hash) = 32), replay_of TEXT, resolved_at INTEGER, bodies_erased_at INTEGER, unwanted INTEGER CHECK (unwanted = 1), facet INTEGER NOT NULL DEFAULT 0,
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
  kind TEXT NOT NULL CHECK (kind IN ('head', 'body', 'answer_head', 'answer', 'sent', 'received')),
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
  usage TEXT, cost REAL, findings TEXT CHECK (json_valid(findings)), due_at INTEGER, waited_for TEXT CHECK (json_valid(waited_for)), connected_at INTEGER,
  PRIMARY KEY (request_seq, number),
  CHECK ((ended_at IS NULL) = (verdict IS NULL))
) STRICT, WITHOUT ROWID;
CREATE TABLE held (
  request_seq INTEGER PRIMARY KEY NOT NULL REFERENCES requests (seq) ON DELETE CASCADE,
  call_hash BLOB NOT NULL CHECK (length(call_hash) = 32),
  orphaned_at INTEGER,
  content_sent INTEGER NOT NULL DEFAULT 0 CHECK (content_sent IN (0, 1))
) STRICT;
CREATE INDEX held_orphans ON held (call_hash, orphaned_at) WHERE orphaned_at IS NOT NULL;
CREATE INDEX held_age ON held (orphaned_at) WHERE orphaned_at IS NOT NULL;
CREATE INDEX requests_failed_calls ON requests (call_hash, ended_at)
  WHERE state = 'failed' AND call_hash IS NOT NULL;
CREATE TABLE events (
  request_seq INTEGER NOT NULL REFERENCES requests (seq) ON DELETE CASCADE,
  seq INTEGER NOT NULL CHECK (seq >= 0),
  bytes BLOB NOT NULL,
  PRIMARY KEY (request_seq, seq)
) STRICT;
CREATE INDEX attempts_started ON attempts (started_at);
CREATE INDEX requests_bodies ON requests (project, body_hash, ended_at)
  WHERE body_hash IS NOT NULL AND state = 'completed' AND cached_from IS NULL;
CREATE TABLE flow (
  name TEXT PRIMARY KEY NOT NULL,
  value TEXT NOT NULL CHECK (json_valid(value))
) STRICT, WITHOUT ROWID;
CREATE TABLE vectors (
  project TEXT NOT NULL,
  hash BLOB NOT NULL CHECK (length(hash) = 32),
  created_at INTEGER NOT NULL,
  bytes BLOB NOT NULL,
  PRIMARY KEY (project, hash)
) STRICT;
CREATE INDEX vectors_age ON vectors (created_at);
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
CREATE INDEX requests_facet ON requests (facet);
CREATE TABLE spans (
  block INTEGER PRIMARY KEY,
  oldest INTEGER NOT NULL,
  newest INTEGER NOT NULL,
  last INTEGER NOT NULL
) STRICT;
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
CREATE TABLE unfiled (
  request_seq INTEGER PRIMARY KEY NOT NULL REFERENCES requests (seq) ON DELETE CASCADE
) STRICT;
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

INSERT INTO nodes VALUES ('local', 1, 1767323045000);

INSERT INTO requests VALUES (1, 'req_held_queued', 'default', 'chat.completions', 'gpt-test', 'queued', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323045000, NULL, NULL, 1767323645000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0101010101010101010101010101010101010101010101010101010101010101', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 4);
INSERT INTO requests VALUES (2, 'req_held_processing', 'default', 'chat.completions', 'gpt-test', 'processing', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323046000, 1767323046000, NULL, 1767323645000, 1, 1, 0, 0, NULL, NULL, 'local', 1, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0202020202020202020202020202020202020202020202020202020202020202', 0, NULL, 'fake', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 11);
INSERT INTO requests VALUES (3, 'req_held_retrying', 'default', 'chat.completions', 'gpt-test', 'retrying', 'fake/gpt-test', 1, 1767323047500, 1767323045000, 1767323047000, 1767323046000, NULL, 1767323645000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0303030303030303030303030303030303030303030303030303030303030303', 0, NULL, 'fake', NULL, NULL, NULL, NULL, 'server_error', NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 14);
INSERT INTO requests VALUES (4, 'req_held_second_attempt', 'default', 'chat.completions', 'gpt-test', 'processing', 'fake/gpt-test', 1, 1767323047500, 1767323045000, 1767323048000, 1767323046000, NULL, 1767323645000, 2, 1, 1, 0, NULL, NULL, 'local', 1, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0404040404040404040404040404040404040404040404040404040404040404', 0, NULL, 'fake', NULL, NULL, NULL, NULL, 'server_error', NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 12);
INSERT INTO requests VALUES (5, 'req_held_completed', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323047000, 1767323046000, 1767323047000, 1767323645000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0505050505050505050505050505050505050505050505050505050505050505', 0, NULL, 'fake', NULL, 'chatcmpl-held_completed', '{"total_tokens":6}', NULL, NULL, 'answered', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 6);
INSERT INTO requests VALUES (6, 'req_held_failed', 'default', 'chat.completions', 'gpt-test', 'failed', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323047000, 1767323046000, 1767323047000, 1767323645000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0606060606060606060606060606060606060606060606060606060606060606', 0, NULL, 'fake', NULL, NULL, NULL, '{"code":"server_error","message":"The server had an error.","type":"server_error","status":500}', 'server_error', 'permanent', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 10);
INSERT INTO requests VALUES (7, 'req_held_gave_up', 'default', 'chat.completions', 'gpt-test', 'failed', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323046000, NULL, 1767323046000, 1767323645000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0707070707070707070707070707070707070707070707070707070707070707', 0, NULL, NULL, NULL, NULL, NULL, '{"code":"deadline_exceeded","message":"The server had an error.","type":"server_error","status":504}', 'deadline_exceeded', 'deadline', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 3);
INSERT INTO requests VALUES (8, 'req_held_cancelled', 'default', 'chat.completions', 'gpt-test', 'cancelled', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323047000, 1767323046000, 1767323047000, 1767323645000, 1, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0808080808080808080808080808080808080808080808080808080808080808', 0, NULL, 'fake', NULL, NULL, NULL, NULL, 'request_cancelled', 'cancelled', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 5);
INSERT INTO requests VALUES (9, 'req_keyed_queued', 'default', 'chat.completions', 'gpt-test', 'queued', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323045000, NULL, NULL, 1767323645000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', 'key-queued', X'0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 4);
INSERT INTO requests VALUES (10, 'req_keyed_processing', 'default', 'chat.completions', 'gpt-test', 'processing', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323046000, 1767323046000, NULL, 1767323645000, 1, 1, 0, 0, NULL, NULL, 'local', 1, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', 'key-processing', X'0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A', NULL, 0, '["a","b"]', 'fake', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 11);
INSERT INTO requests VALUES (11, 'req_keyed_completed', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323047500, 1767323045000, 1767323049000, 1767323046000, 1767323049000, 1767323645000, 2, 1, 1, 1, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', 'key-completed', X'0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A', NULL, 0, NULL, 'fake', NULL, 'chatcmpl-keyed_completed', NULL, NULL, 'rate_limited', 'answered', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 7);
INSERT INTO requests VALUES (12, 'req_async_queued', 'default', 'chat.completions', 'gpt-test', 'queued', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323045000, NULL, NULL, 1767323645000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 4);
INSERT INTO requests VALUES (13, 'req_async_cancelled', 'default', 'chat.completions', 'gpt-test', 'cancelled', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323046000, NULL, 1767323046000, 1767323645000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, 'request_cancelled', 'cancelled', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1);
INSERT INTO requests VALUES (14, 'req_async_revived', 'default', 'chat.completions', 'gpt-test', 'queued', 'fake/gpt-test', 1, 1767323053000, 1767323050000, 1767323053000, 1767323051000, NULL, 1767323653000, 1, 2, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', NULL, NULL, NULL, 0, '["a","b"]', 'fake', NULL, NULL, NULL, NULL, 'server_error', NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 13);
INSERT INTO requests VALUES (15, 'req_stream_completed', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323056000, 1767323056000, 1767323058000, 1767323057000, 1767323058000, 1767323656000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"stream":{"mode":"live","usage":true}}', NULL, NULL, NULL, 0, NULL, 'fake', NULL, 'chatcmpl-s', '{"total_tokens":7}', NULL, NULL, 'answered', '[0]', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 6);
INSERT INTO requests VALUES (16, 'req_stream_processing', 'default', 'chat.completions', 'gpt-test', 'processing', 'fake/gpt-test', 1, 1767323056000, 1767323056000, 1767323057000, 1767323057000, NULL, 1767323656000, 1, 1, 0, 0, NULL, NULL, 'local', 1, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"stream":{"mode":"live","usage":true}}', NULL, NULL, NULL, 0, NULL, 'fake', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 11);
INSERT INTO requests VALUES (17, 'req_stream_revived', 'default', 'chat.completions', 'gpt-test', 'queued', 'fake/gpt-test', 1, 1767323059000, 1767323056000, 1767323059000, 1767323057000, NULL, 1767323659000, 1, 2, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"stream":{"mode":"live","usage":true}}', NULL, NULL, NULL, 0, NULL, 'fake', NULL, NULL, NULL, NULL, 'server_error', NULL, '[0]', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 13);
INSERT INTO requests VALUES (18, 'req_cache_source', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323062500, 1767323060000, 1767323064000, 1767323061000, 1767323064000, 1767323660000, 2, 1, 2, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', NULL, NULL, NULL, 0, '["nightly","eu"]', 'fake', NULL, 'chatcmpl-req_cache_source', '{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}', NULL, 'server_error', 'answered', NULL, 0, 0.0003, '{"finishReason":"length","problems":["length"]}', NULL, X'0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 8);
INSERT INTO requests VALUES (19, 'req_cache_copy', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323060000, 1767323060000, 1767323060000, NULL, 1767323061000, 1767323660000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', NULL, NULL, NULL, 0, '["nightly"]', NULL, NULL, NULL, NULL, NULL, NULL, 'answered', NULL, 0, NULL, NULL, NULL, X'0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C', 'req_cache_source', NULL, NULL, NULL, NULL, NULL, NULL, 2);
INSERT INTO requests VALUES (20, 'req_invalid_failed', 'default', 'chat.completions', 'gpt-test', 'failed', 'fake/gpt-test', 1, 1767323062500, 1767323060000, 1767323064000, 1767323061000, 1767323064000, 1767323660000, 2, 1, 2, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', NULL, NULL, NULL, 0, NULL, 'fake', NULL, NULL, NULL, '{"code":"invalid_value","message":"The model does not like it.","type":"invalid_request_error","status":422}', 'invalid_value', 'permanent', NULL, 1, NULL, '{"problems":["invalid_json"],"details":["not JSON"]}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 9);
INSERT INTO requests VALUES (21, 'req_degraded', 'default', 'chat.completions', 'gpt-test', 'processing', 'fake/gpt-test', 1, 1767323060000, 1767323060000, 1767323061000, 1767323061000, NULL, 1767323660000, 1, 1, 0, 0, NULL, NULL, 'local', 1, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', NULL, NULL, X'0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D', 0, NULL, 'fake', NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, 'stale', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 11);
INSERT INTO requests VALUES (22, 'req_embedded', 'default', 'embeddings', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323060000, 1767323060000, 1767323062000, 1767323061000, 1767323062000, 1767323660000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', NULL, NULL, NULL, 0, NULL, 'fake', NULL, NULL, NULL, NULL, NULL, 'answered', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 15);
INSERT INTO requests VALUES (23, 'req_kept_packed', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323067500, 1767323065000, 1767323069000, 1767323066000, 1767323069000, 1767323665000, 2, 1, 2, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64},"store":"all","maxInvalid":1}', NULL, NULL, NULL, 0, '["nightly"]', 'fake', 'gpt-test-2026-01-02', 'chatcmpl-req_kept_packed', '{"prompt_tokens":20,"completion_tokens":4,"total_tokens":24,"prompt_tokens_details":{"cached_tokens":8}}', NULL, 'invalid_output', 'answered', NULL, 1, 0.0007, '{"finishReason":"stop","problems":[]}', NULL, X'1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C1C', NULL, '{"user":"req_kept_packed"}', X'2A6137B43981F497449CC440FEA4982F4E518B3C7409987F0FD5114A77301DD8', NULL, NULL, NULL, NULL, 18);
INSERT INTO requests VALUES (24, 'req_resolved', 'default', 'chat.completions', 'gpt-test', 'failed', 'fake/gpt-test', 1, 1767323065000, 1767323065000, 1767323067000, 1767323066000, 1767323067000, 1767323665000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64}}', 'key-resolved', X'0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A', NULL, 0, '["eu"]', 'fake', NULL, NULL, NULL, '{"code":"invalid_value","message":"The model does not like it.","type":"invalid_request_error","status":422}', 'invalid_value', 'permanent', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1767323070000, NULL, NULL, 19);
INSERT INTO requests VALUES (25, 'req_dead', 'default', 'chat.completions', 'gpt-test', 'failed', 'fake/gpt-test', 1, 1767323065000, 1767323065000, 1767323067000, 1767323066000, 1767323067000, 1767323665000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64}}', NULL, NULL, NULL, 0, '["nightly"]', 'fake', NULL, NULL, NULL, '{"code":"server_error","message":"The server had an error.","type":"server_error","status":500}', 'server_error', 'exhausted', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, X'2A6137B43981F497449CC440FEA4982F4E518B3C7409987F0FD5114A77301DD8', NULL, NULL, NULL, NULL, 10);
INSERT INTO requests VALUES (26, 'req_retried', 'default', 'chat.completions', 'gpt-test', 'queued', 'fake/gpt-test', 2, 1767323072000, 1767323065000, 1767323072000, 1767323066000, NULL, 1767409472000, 1, 2, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":20,"deadlineMs":86400000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64}}', NULL, NULL, NULL, 0, '["nightly"]', 'fake', NULL, NULL, NULL, NULL, 'server_error', NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, X'2A6137B43981F497449CC440FEA4982F4E518B3C7409987F0FD5114A77301DD8', NULL, NULL, NULL, NULL, 13);
INSERT INTO requests VALUES (27, 'req_reworded', 'default', 'chat.completions', 'gpt-other', 'queued', 'fake/gpt-other', 1, 1767323072000, 1767323065000, 1767323072000, 1767323066000, NULL, 1767409472000, 1, 2, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":20,"deadlineMs":86400000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64},"store":"all"}', NULL, NULL, NULL, 0, NULL, 'fake', NULL, NULL, NULL, NULL, 'server_error', NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, X'2A6137B43981F497449CC440FEA4982F4E518B3C7409987F0FD5114A77301DD8', NULL, NULL, NULL, NULL, 21);
INSERT INTO requests VALUES (28, 'req_erased', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323065000, 1767323065000, 1767323067000, 1767323066000, 1767323067000, 1767323665000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64}}', NULL, NULL, NULL, 0, '["eu"]', 'fake', NULL, 'chatcmpl-req_erased', '{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}', NULL, NULL, 'answered', NULL, 0, 0.0003, NULL, NULL, NULL, NULL, '{"user":"Zoë"}', NULL, NULL, NULL, 1767323071000, NULL, 6);
INSERT INTO requests VALUES (29, 'req_told', 'default', 'chat.completions', 'gpt-test', 'queued', 'fake/gpt-test', 2, 1767326675000, 1767323075000, 1767323075000, NULL, NULL, 1767327275000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64}}', NULL, NULL, NULL, 0, '["eu","nightly"]', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, '{"user":"Zoë","safetyIdentifier":"safe-1","metadata":{"team":"search","run":"42"},"traceId":"4bf92f3577b34da6a3ce929d0e0e4736","clientRequestId":"client-1"}', X'2A6137B43981F497449CC440FEA4982F4E518B3C7409987F0FD5114A77301DD8', NULL, NULL, NULL, NULL, 4);
INSERT INTO requests VALUES (30, 'req_kept_processing', 'default', 'chat.completions', 'gpt-test', 'processing', 'fake/gpt-test', 1, 1767323076500, 1767323075000, 1767323077000, 1767323075000, NULL, 1767323675000, 2, 1, 1, 0, NULL, NULL, 'local', 1, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64},"store":"all"}', NULL, NULL, X'0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F', 0, NULL, 'fake', NULL, NULL, NULL, NULL, 'server_error', NULL, NULL, 0, 0.0003, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 12);
INSERT INTO requests VALUES (31, 'req_replay', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323075000, 1767323075000, 1767323077000, 1767323076000, 1767323077000, 1767323675000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64}}', NULL, NULL, NULL, 0, '["eu"]', 'fake', NULL, 'chatcmpl-req_replay', '{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}', NULL, NULL, 'answered', NULL, 0, 0.0003, NULL, NULL, NULL, NULL, NULL, NULL, 'req_resolved', NULL, NULL, NULL, 6);
INSERT INTO requests VALUES (32, 'req_hit', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323075000, 1767323075000, 1767323075000, NULL, 1767323075000, 1767323675000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64}}', NULL, NULL, NULL, 0, '["nightly"]', NULL, 'gpt-test-2026-01-02', NULL, NULL, NULL, NULL, 'answered', NULL, 0, NULL, '{"finishReason":"stop","problems":[]}', NULL, NULL, 'req_kept_packed', NULL, NULL, NULL, NULL, NULL, NULL, 2);
INSERT INTO requests VALUES (33, 'req_kept_all', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323077500, 1767323075000, 1767323079000, 1767323076000, 1767323079000, 1767323675000, 2, 1, 1, 1, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64},"store":"all"}', NULL, NULL, NULL, 0, '["eu"]', 'fake', NULL, 'chatcmpl-req_kept_all', '{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}', NULL, 'rate_limited', 'answered', NULL, 0, 0.0003, '{"finishReason":"length","problems":["length"]}', NULL, X'1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E1E', NULL, NULL, X'2A6137B43981F497449CC440FEA4982F4E518B3C7409987F0FD5114A77301DD8', NULL, NULL, NULL, NULL, 7);
INSERT INTO requests VALUES (34, 'req_unwanted', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323075000, 1767323075000, 1767323077000, 1767323076000, 1767323077000, 1767323675000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64},"store":"none"}', NULL, NULL, NULL, 0, NULL, 'fake', NULL, 'chatcmpl-req_unwanted', NULL, NULL, NULL, 'answered', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1, 6);
INSERT INTO requests VALUES (35, 'req_erased_unfiled', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323075000, 1767323075000, 1767323077000, 1767323076000, 1767323077000, 1767323675000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64},"store":"none"}', NULL, NULL, NULL, 0, NULL, 'fake', NULL, 'chatcmpl-req_erased_unfiled', NULL, NULL, NULL, 'answered', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1767323080000, 1, 6);
INSERT INTO requests VALUES (36, 'req_next_day', 'default', 'chat.completions', 'gpt-test', 'failed', 'fake/gpt-test', 1, 1767409445000, 1767409445000, 1767409447000, 1767409446000, 1767409447000, 1767410045000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false,"size":{"textBytes":40,"mediaTokens":0,"maxOutput":64}}', NULL, NULL, NULL, 0, '["nightly"]', 'fake', NULL, NULL, NULL, '{"code":"upstream_overloaded","message":"The server had an error.","type":"server_error","status":503}', 'upstream_overloaded', 'exhausted', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 24);

INSERT INTO idempotency_keys VALUES ('default', 'chat.completions', 'key-queued', 9);
INSERT INTO idempotency_keys VALUES ('default', 'chat.completions', 'key-processing', 10);
INSERT INTO idempotency_keys VALUES ('default', 'chat.completions', 'key-completed', 11);
INSERT INTO idempotency_keys VALUES ('default', 'chat.completions', 'key-resolved', 24);

INSERT INTO parts VALUES (1, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (1, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A2268656C645F717565756564227D');
INSERT INTO parts VALUES (2, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (2, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A2268656C645F70726F63657373696E67227D');
INSERT INTO parts VALUES (3, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (3, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A2268656C645F7265747279696E67227D');
INSERT INTO parts VALUES (4, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (4, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A2268656C645F7365636F6E645F617474656D7074227D');
INSERT INTO parts VALUES (9, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (9, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A226B657965645F717565756564227D');
INSERT INTO parts VALUES (10, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (10, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A226B657965645F70726F63657373696E67227D');
INSERT INTO parts VALUES (12, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (12, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A226173796E635F717565756564227D');
INSERT INTO parts VALUES (14, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (14, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A226173796E635F72657669766564227D');
INSERT INTO parts VALUES (16, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (16, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2273747265616D223A747275652C2275736572223A2273747265616D5F70726F63657373696E67227D');
INSERT INTO parts VALUES (17, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (17, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2273747265616D223A747275652C2275736572223A2273747265616D5F72657669766564227D');
INSERT INTO parts VALUES (21, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (21, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A227265715F6465677261646564227D');
INSERT INTO parts VALUES (26, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B7B22726F6C65223A2273797374656D222C22636F6E74656E74223A2242652062726965662E227D5D2C2275736572223A227265715F72657472696564227D');
INSERT INTO parts VALUES (26, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (27, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D6F74686572222C226D65737361676573223A5B7B22726F6C65223A2273797374656D222C22636F6E74656E74223A2242652062726965662E227D5D2C2275736572223A227265715F7265776F72646564227D');
INSERT INTO parts VALUES (27, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (27, 'received', 1, 'identity', NULL, X'7B22737461747573223A3530302C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D0A7B226572726F72223A7B226D657373616765223A22546865207365727665722068616420616E206572726F722E227D7D');
INSERT INTO parts VALUES (27, 'sent', 1, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2275726C223A2268747470733A2F2F6170692E6578616D706C652E636F6D2F76312F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D0A7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A227265715F7265776F72646564227D');
INSERT INTO parts VALUES (29, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (29, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B7B22726F6C65223A2273797374656D222C22636F6E74656E74223A2242652062726965662E227D5D2C2275736572223A225A6FC3AB222C227361666574795F6964656E746966696572223A22736166652D31222C226D65746164617461223A7B227465616D223A22736561726368222C2272756E223A223432227D7D');
INSERT INTO parts VALUES (30, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (30, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A227265715F6B6570745F70726F63657373696E67227D');
INSERT INTO parts VALUES (30, 'sent', 1, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2275726C223A2268747470733A2F2F6170692E6578616D706C652E636F6D2F76312F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D0A7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A227265715F6B6570745F70726F63657373696E67227D');
INSERT INTO parts VALUES (30, 'received', 1, 'identity', NULL, X'7B22737461747573223A3530302C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D0A7B226572726F72223A7B226D657373616765223A22546865207365727665722068616420616E206572726F722E227D7D');
INSERT INTO parts VALUES (31, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (31, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A227265715F7265706C6179227D');
INSERT INTO parts VALUES (31, 'answer_head', 0, 'identity', NULL, X'7B22737461747573223A3230302C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (31, 'answer', 0, 'identity', NULL, X'7B226964223A2263686174636D706C2D7265715F7265706C6179227D');
INSERT INTO parts VALUES (32, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (32, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A227265715F686974227D');
INSERT INTO parts VALUES (32, 'answer_head', 0, 'identity', NULL, X'7B22737461747573223A3230302C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (32, 'answer', 0, 'identity', NULL, X'7B226964223A2263686174636D706C2D7265715F6B6570745F7061636B6564227D');
INSERT INTO parts VALUES (33, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (33, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B7B22726F6C65223A2273797374656D222C22636F6E74656E74223A2242652062726965662E227D5D2C2275736572223A227265715F6B6570745F616C6C227D');
INSERT INTO parts VALUES (33, 'sent', 1, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2275726C223A2268747470733A2F2F6170692E6578616D706C652E636F6D2F76312F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D0A7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B7B22726F6C65223A2273797374656D222C22636F6E74656E74223A2242652062726965662E227D5D2C2275736572223A227265715F6B6570745F616C6C227D');
INSERT INTO parts VALUES (33, 'received', 1, 'identity', NULL, X'7B22737461747573223A3432392C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D0A7B226572726F72223A7B226D657373616765223A22546865207365727665722068616420616E206572726F722E227D7D');
INSERT INTO parts VALUES (33, 'sent', 2, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2275726C223A2268747470733A2F2F6170692E6578616D706C652E636F6D2F76312F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D0A7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B7B22726F6C65223A2273797374656D222C22636F6E74656E74223A2242652062726965662E227D5D2C2275736572223A227265715F6B6570745F616C6C227D');
INSERT INTO parts VALUES (33, 'answer_head', 0, 'identity', NULL, X'7B22737461747573223A3230302C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (33, 'answer', 0, 'identity', NULL, X'7B226964223A2263686174636D706C2D7265715F6B6570745F616C6C227D');
INSERT INTO parts VALUES (34, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (34, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A227265715F756E77616E746564227D');
INSERT INTO parts VALUES (34, 'answer_head', 0, 'identity', NULL, X'7B22737461747573223A3230302C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (34, 'answer', 0, 'identity', NULL, X'7B226964223A2263686174636D706C2D7265715F756E77616E746564227D');
INSERT INTO parts VALUES (36, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (36, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A227265715F6E6578745F646179227D');

INSERT INTO attempts VALUES (3, 1, 1, 'fake', 'gpt-test', 1767323046000, NULL, 1767323047000, 500, 'transient', 1, 'server_error', 'The server had an error.', 'backoff', 1767323047500, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (4, 1, 1, 'fake', 'gpt-test', 1767323046000, NULL, 1767323047000, 500, 'transient', 1, 'server_error', 'The server had an error.', 'backoff', 1767323047500, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (5, 1, 1, 'fake', 'gpt-test', 1767323046000, NULL, 1767323047000, 200, 'success', 1, NULL, NULL, 'answered', NULL, NULL, '{"total_tokens":6}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (6, 1, 1, 'fake', 'gpt-test', 1767323046000, NULL, 1767323047000, 500, 'permanent', 1, 'server_error', 'The server had an error.', 'permanent', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (8, 1, 1, 'fake', 'gpt-test', 1767323046000, NULL, 1767323047000, NULL, 'ambiguous', 0, 'request_cancelled', NULL, 'cancelled', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (11, 1, 1, 'fake', 'gpt-test', 1767323046000, NULL, 1767323047000, 429, 'throttled', 0, 'rate_limited', 'The server had an error.', 'retry_after', 1767323047500, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (11, 2, 1, 'fake', 'gpt-test', 1767323048000, NULL, 1767323049000, 200, 'success', 1, NULL, NULL, 'answered', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (14, 1, 1, 'fake', 'gpt-test', 1767323051000, NULL, 1767323052000, 500, 'transient', 1, 'server_error', 'The server had an error.', 'exhausted', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (15, 1, 1, 'fake', 'gpt-test', 1767323057000, 1767323057500, 1767323058000, 200, 'success', 1, NULL, NULL, 'answered', NULL, NULL, '{"total_tokens":7}', NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (17, 1, 1, 'fake', 'gpt-test', 1767323057000, NULL, 1767323058000, 500, 'permanent', 1, 'server_error', 'The server had an error.', 'permanent', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (18, 1, 1, 'fake', 'gpt-test', 1767323061000, NULL, 1767323062000, 500, 'transient', 1, 'server_error', 'The server had an error.', 'backoff', 1767323062500, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (18, 2, 1, 'fake', 'gpt-test', 1767323063000, NULL, 1767323064000, 200, 'success', 1, NULL, NULL, 'answered', NULL, NULL, '{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}', 0.0003, '{"finishReason":"length","problems":["length"]}', NULL, NULL, NULL);
INSERT INTO attempts VALUES (20, 1, 1, 'fake', 'gpt-test', 1767323061000, NULL, 1767323062000, 500, 'invalid_output', 1, 'server_error', 'The server had an error.', 'backoff', 1767323062500, NULL, NULL, NULL, '{"problems":["invalid_json"],"details":["not JSON"]}', NULL, NULL, NULL);
INSERT INTO attempts VALUES (20, 2, 1, 'fake', 'gpt-test', 1767323063000, NULL, 1767323064000, 422, 'permanent', 1, 'invalid_value', 'The model does not like it.', 'permanent', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (22, 1, 1, 'fake', 'gpt-test', 1767323061000, NULL, 1767323062000, 200, 'success', 1, NULL, NULL, 'answered', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO attempts VALUES (23, 1, 1, 'fake', 'gpt-test', 1767323066000, 1767323066500, 1767323067000, 200, 'invalid_output', 1, 'invalid_output', 'The answer is not valid.', 'backoff', 1767323067500, NULL, '{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}', 0.0003, '{"finishReason":"stop","problems":["invalid_json"],"details":["not JSON"]}', 1767323065250, '["rate_limit"]', 1767323066010);
INSERT INTO attempts VALUES (23, 2, 1, 'fake', 'gpt-test', 1767323068000, 1767323068500, 1767323069000, 200, 'success', 1, NULL, NULL, 'answered', NULL, 'x-2', NULL, 0.0004, NULL, 1767323067500, '["backoff","capacity"]', 1767323068010);
INSERT INTO attempts VALUES (24, 1, 1, 'fake', 'gpt-test', 1767323066000, NULL, 1767323067000, 422, 'permanent', 1, 'invalid_value', 'The model does not like it.', 'permanent', NULL, NULL, NULL, NULL, NULL, 1767323065000, NULL, NULL);
INSERT INTO attempts VALUES (25, 1, 1, 'fake', 'gpt-test', 1767323066000, NULL, 1767323067000, 500, 'transient', 1, 'server_error', 'The server had an error.', 'exhausted', NULL, NULL, NULL, NULL, NULL, 1767323065000, '[]', 1767323066100);
INSERT INTO attempts VALUES (26, 1, 1, 'fake', 'gpt-test', 1767323066000, NULL, 1767323067000, 500, 'transient', 1, 'server_error', 'The server had an error.', 'exhausted', NULL, NULL, NULL, NULL, NULL, 1767323065000, '[]', 1767323066100);
INSERT INTO attempts VALUES (27, 1, 1, 'fake', 'gpt-test', 1767323066000, NULL, 1767323067000, 500, 'transient', 1, 'server_error', 'The server had an error.', 'exhausted', NULL, NULL, NULL, NULL, NULL, 1767323065000, '[]', 1767323066100);
INSERT INTO attempts VALUES (28, 1, 1, 'fake', 'gpt-test', 1767323066000, NULL, 1767323067000, 200, 'success', 1, NULL, NULL, 'answered', NULL, NULL, NULL, 0.0003, NULL, 1767323065000, NULL, NULL);
INSERT INTO attempts VALUES (30, 1, 1, 'fake', 'gpt-test', 1767323075000, NULL, 1767323076000, 500, 'transient', 1, 'server_error', 'The server had an error.', 'backoff', 1767323076500, NULL, '{"prompt_tokens":12,"completion_tokens":3,"total_tokens":15}', 0.0003, NULL, 1767323075000, '[]', 1767323075010);
INSERT INTO attempts VALUES (31, 1, 1, 'fake', 'gpt-test', 1767323076000, NULL, 1767323077000, 200, 'success', 1, NULL, NULL, 'answered', NULL, NULL, NULL, 0.0003, NULL, 1767323075000, '["rate_limit"]', 1767323076005);
INSERT INTO attempts VALUES (33, 1, 1, 'fake', 'gpt-test', 1767323076000, NULL, 1767323077000, 429, 'throttled', 0, 'rate_limited', 'The server had an error.', 'retry_after', 1767323077500, NULL, NULL, NULL, NULL, 1767323075000, '["rate_limit"]', 1767323076005);
INSERT INTO attempts VALUES (33, 2, 1, 'fake', 'gpt-test', 1767323078000, 1767323078400, 1767323079000, 200, 'success', 1, NULL, NULL, 'answered', NULL, NULL, NULL, 0.0003, NULL, 1767323077500, '["backoff"]', 1767323078005);
INSERT INTO attempts VALUES (34, 1, 1, 'fake', 'gpt-test', 1767323076000, NULL, 1767323077000, 200, 'success', 1, NULL, NULL, 'answered', NULL, NULL, NULL, NULL, NULL, 1767323075000, NULL, NULL);
INSERT INTO attempts VALUES (35, 1, 1, 'fake', 'gpt-test', 1767323076000, NULL, 1767323077000, 200, 'success', 1, NULL, NULL, 'answered', NULL, NULL, NULL, NULL, NULL, 1767323075000, NULL, NULL);
INSERT INTO attempts VALUES (36, 1, 1, 'fake', 'gpt-test', 1767409446000, NULL, 1767409447000, 503, 'transient', 1, 'upstream_overloaded', 'The server had an error.', 'exhausted', NULL, NULL, NULL, NULL, NULL, 1767409445000, '[]', 1767409446100);

INSERT INTO held VALUES (1, X'0101010101010101010101010101010101010101010101010101010101010101', 1767323054000, 0);
INSERT INTO held VALUES (2, X'0202020202020202020202020202020202020202020202020202020202020202', NULL, 0);
INSERT INTO held VALUES (3, X'0303030303030303030303030303030303030303030303030303030303030303', 1767323055000, 1);
INSERT INTO held VALUES (4, X'0404040404040404040404040404040404040404040404040404040404040404', NULL, 0);
INSERT INTO held VALUES (21, X'0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D0D', NULL, 0);
INSERT INTO held VALUES (30, X'0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F0F', NULL, 0);

INSERT INTO events VALUES (15, 0, X'7B226964223A2263686174636D706C2D73222C226F626A656374223A22636861742E636F6D706C6574696F6E2E6368756E6B222C2263686F69636573223A5B7B22696E646578223A302C2264656C7461223A7B22636F6E74656E74223A2231227D7D5D7D0A7B226964223A2263686174636D706C2D73222C226F626A656374223A22636861742E636F6D706C6574696F6E2E6368756E6B222C2263686F69636573223A5B7B22696E646578223A302C2264656C7461223A7B22636F6E74656E74223A2232227D7D5D7D');
INSERT INTO events VALUES (15, 2, X'5B444F4E455D');
INSERT INTO events VALUES (16, 0, X'7B226964223A2263686174636D706C2D73222C226F626A656374223A22636861742E636F6D706C6574696F6E2E6368756E6B222C2263686F69636573223A5B7B22696E646578223A302C2264656C7461223A7B22636F6E74656E74223A2231227D7D5D7D0A7B226964223A2263686174636D706C2D73222C226F626A656374223A22636861742E636F6D706C6574696F6E2E6368756E6B222C2263686F69636573223A5B7B22696E646578223A302C2264656C7461223A7B22636F6E74656E74223A2232227D7D5D7D');
INSERT INTO events VALUES (16, 2, X'7B226964223A2263686174636D706C2D73222C226F626A656374223A22636861742E636F6D706C6574696F6E2E6368756E6B222C2263686F69636573223A5B7B22696E646578223A302C2264656C7461223A7B22636F6E74656E74223A2233227D7D5D7D');

INSERT INTO flow VALUES ('fake/gpt-test', '{"breaker":{"openings":1}}');

INSERT INTO vectors VALUES ('default fake/gpt-test', X'0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E0E', 1767323062000, X'5B302E32355D');

INSERT INTO facets VALUES (1, 'default', 'chat.completions', 'gpt-test', NULL, 'cancelled', 'request_cancelled', NULL, 0, 1);
INSERT INTO facets VALUES (2, 'default', 'chat.completions', 'gpt-test', NULL, 'completed', NULL, NULL, 0, 2);
INSERT INTO facets VALUES (3, 'default', 'chat.completions', 'gpt-test', NULL, 'failed', 'deadline_exceeded', 'upstream', 0, 1);
INSERT INTO facets VALUES (4, 'default', 'chat.completions', 'gpt-test', NULL, 'queued', NULL, NULL, 0, 4);
INSERT INTO facets VALUES (5, 'default', 'chat.completions', 'gpt-test', 'fake', 'cancelled', 'request_cancelled', NULL, 0, 1);
INSERT INTO facets VALUES (6, 'default', 'chat.completions', 'gpt-test', 'fake', 'completed', NULL, NULL, 0, 6);
INSERT INTO facets VALUES (7, 'default', 'chat.completions', 'gpt-test', 'fake', 'completed', 'rate_limited', NULL, 0, 2);
INSERT INTO facets VALUES (8, 'default', 'chat.completions', 'gpt-test', 'fake', 'completed', 'server_error', NULL, 0, 1);
INSERT INTO facets VALUES (9, 'default', 'chat.completions', 'gpt-test', 'fake', 'failed', 'invalid_value', 'caller', 0, 1);
INSERT INTO facets VALUES (10, 'default', 'chat.completions', 'gpt-test', 'fake', 'failed', 'server_error', 'upstream', 0, 2);
INSERT INTO facets VALUES (11, 'default', 'chat.completions', 'gpt-test', 'fake', 'processing', NULL, NULL, 0, 4);
INSERT INTO facets VALUES (12, 'default', 'chat.completions', 'gpt-test', 'fake', 'processing', 'server_error', NULL, 0, 2);
INSERT INTO facets VALUES (13, 'default', 'chat.completions', 'gpt-test', 'fake', 'queued', 'server_error', NULL, 0, 3);
INSERT INTO facets VALUES (14, 'default', 'chat.completions', 'gpt-test', 'fake', 'retrying', 'server_error', NULL, 0, 1);
INSERT INTO facets VALUES (15, 'default', 'embeddings', 'gpt-test', 'fake', 'completed', NULL, NULL, 0, 1);
INSERT INTO facets VALUES (16, 'default', 'chat.completions', 'gpt-test', 'fake', 'retrying', 'invalid_output', NULL, 0, 0);
INSERT INTO facets VALUES (17, 'default', 'chat.completions', 'gpt-test', 'fake', 'processing', 'invalid_output', NULL, 0, 0);
INSERT INTO facets VALUES (18, 'default', 'chat.completions', 'gpt-test', 'fake', 'completed', 'invalid_output', NULL, 0, 1);
INSERT INTO facets VALUES (19, 'default', 'chat.completions', 'gpt-test', 'fake', 'failed', 'invalid_value', 'caller', 1, 1);
INSERT INTO facets VALUES (20, 'default', 'chat.completions', 'gpt-test', 'fake', 'failed', 'server_error', 'upstream', 1, 0);
INSERT INTO facets VALUES (21, 'default', 'chat.completions', 'gpt-other', 'fake', 'queued', 'server_error', NULL, 0, 1);
INSERT INTO facets VALUES (22, 'default', 'chat.completions', 'gpt-test', 'fake', 'retrying', 'rate_limited', NULL, 0, 0);
INSERT INTO facets VALUES (23, 'default', 'chat.completions', 'gpt-test', 'fake', 'processing', 'rate_limited', NULL, 0, 0);
INSERT INTO facets VALUES (24, 'default', 'chat.completions', 'gpt-test', 'fake', 'failed', 'upstream_overloaded', 'upstream', 0, 1);

INSERT INTO spans VALUES (0, 1767323045000, 1767409445000, 37);

INSERT INTO labels VALUES (402406375263467, 28);
INSERT INTO labels VALUES (402406375263467, 29);
INSERT INTO labels VALUES (932761201609229, 23);
INSERT INTO labels VALUES (1479390716012764, 10);
INSERT INTO labels VALUES (1479390716012764, 14);
INSERT INTO labels VALUES (1695445883170088, 29);
INSERT INTO labels VALUES (1950397633335221, 29);
INSERT INTO labels VALUES (3175953765920328, 29);
INSERT INTO labels VALUES (3688301732747123, 29);
INSERT INTO labels VALUES (4239763171740959, 18);
INSERT INTO labels VALUES (4239763171740959, 24);
INSERT INTO labels VALUES (4239763171740959, 28);
INSERT INTO labels VALUES (4239763171740959, 29);
INSERT INTO labels VALUES (4239763171740959, 31);
INSERT INTO labels VALUES (4239763171740959, 33);
INSERT INTO labels VALUES (4849792417910492, 18);
INSERT INTO labels VALUES (4849792417910492, 19);
INSERT INTO labels VALUES (4849792417910492, 23);
INSERT INTO labels VALUES (4849792417910492, 25);
INSERT INTO labels VALUES (4849792417910492, 26);
INSERT INTO labels VALUES (4849792417910492, 29);
INSERT INTO labels VALUES (4849792417910492, 32);
INSERT INTO labels VALUES (4849792417910492, 36);
INSERT INTO labels VALUES (6222645327733482, 10);
INSERT INTO labels VALUES (6222645327733482, 14);
INSERT INTO labels VALUES (6275937467080783, 29);

INSERT INTO usage VALUES (20455, 'default', 'chat.completions', 'gpt-test', '', '', '', 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO usage VALUES (20455, 'default', 'chat.completions', 'gpt-test', '', '', 'nightly', 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
INSERT INTO usage VALUES (20455, 'default', 'chat.completions', 'gpt-test', 'fake', '', '', 4, 2, 0, 0, 7, 36, 0, 9, 0, 0, 0, 0.0009, 8000, 0, 0, 0, 0, 0, 0);
INSERT INTO usage VALUES (20455, 'default', 'chat.completions', 'gpt-test', 'fake', '', 'eu', 2, 1, 0, 0, 3, 24, 0, 6, 0, 0, 0, 0.0006, 4000, 0, 0, 0, 0, 0, 0);
INSERT INTO usage VALUES (20455, 'default', 'chat.completions', 'gpt-test', 'fake', '2a6137b43981f497449cc440fea4982f4e518b3c7409987f0fd5114a77301dd8', '', 2, 2, 0, 0, 6, 44, 8, 10, 0, 0, 0, 0.001, 8000, 0, 0, 1, 0, 1, 0);
INSERT INTO usage VALUES (20455, 'default', 'chat.completions', 'gpt-test', 'fake', '2a6137b43981f497449cc440fea4982f4e518b3c7409987f0fd5114a77301dd8', 'eu', 1, 0, 0, 0, 2, 12, 0, 3, 0, 0, 0, 0.0003, 4000, 0, 0, 1, 0, 0, 0);
INSERT INTO usage VALUES (20455, 'default', 'chat.completions', 'gpt-test', 'fake', '2a6137b43981f497449cc440fea4982f4e518b3c7409987f0fd5114a77301dd8', 'nightly', 1, 2, 0, 0, 4, 32, 8, 7, 0, 0, 0, 0.0007, 4000, 0, 0, 0, 0, 1, 0);
INSERT INTO usage VALUES (20456, 'default', 'chat.completions', 'gpt-test', 'fake', '', '', 1, 1, 0, 0, 2, 12, 0, 3, 0, 0, 0, 0.0003, 2000, 0, 0, 0, 0, 0, 0);
INSERT INTO usage VALUES (20456, 'default', 'chat.completions', 'gpt-test', 'fake', '', 'eu', 1, 0, 0, 0, 1, 12, 0, 3, 0, 0, 0, 0.0003, 2000, 0, 0, 0, 0, 0, 0);
INSERT INTO usage VALUES (20456, 'default', 'chat.completions', 'gpt-test', 'fake', '', 'nightly', 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);

INSERT INTO unfiled VALUES (31);
INSERT INTO unfiled VALUES (32);
INSERT INTO unfiled VALUES (33);
INSERT INTO unfiled VALUES (34);
INSERT INTO unfiled VALUES (35);
INSERT INTO unfiled VALUES (36);

INSERT INTO packs VALUES (5, X'63616060606660606050606060600231EC18181818410C2B0628B0646060400FB98CD49C14586CA4A628D5525283A3A7E292D4E212D4940CF625380631ED25AB388EAD0500');
INSERT INTO packs VALUES (6, X'636260606064606060306780024B060606D45455925A5C829AB2C0B6824334233527253E2D313327354589DCB231B61600');
INSERT INTO packs VALUES (7, X'636260606064606060B06080024B060606D45455925A5C829AB2C0B6824334233527253E3DB12C35BEB44089DCC231B61600');
INSERT INTO packs VALUES (8, X'636260606064606060B06280024B060606D45455925A5C829AB2C0B6824334233527253E39312F39352727354589DCE231B61600');
INSERT INTO packs VALUES (11, X'63616060606660606050646060600231EC18181818410C6B0628B0646060400FB9ECD4CAD4145874A4A628D5525285A327E392D4E212D4A40CF626380AB1584C56811C5B0B00');
INSERT INTO packs VALUES (13, X'636260606064606060B06680024B060606D45455925A5C829AB2C0B6824334115464C42727E625A7E6E4A4A628915B3EC6D60200');
INSERT INTO packs VALUES (15, X'63616060606660606010666060600231EC18181818410C2F0628B0646060400FB962A55A4A2A6DF4845B925A5C829A7863D153113466A18909EAB5D41425724BE4D85A00');
INSERT INTO packs VALUES (18, X'63616060606660606050626060600231EC18181818410C1B062888616060400F3950D108AEBCE28BF34B8B9253956A29A9C3D1D371496A71096A5A06FB131C87D86C26B34826C25D00');
INSERT INTO packs VALUES (19, X'63616060606660606050626060600231EC18181818410C2B062888616060400F3950D108AEBCE28BF34B8B9253956A29A9C3D1D371496A71096A5A06FB131C87089B93F30B2A95C82F9089701500');
INSERT INTO packs VALUES (20, X'636260606064606060B063808218060606D45455925A5C829AB2C0B68243145444C21A8269899939A9294AE41791040BBBD85A00');
INSERT INTO packs VALUES (22, X'63616060606660606090626060600231EC18181818410C05062898C7C0C0801E72A9B949A92929A9294AB594D4DDE8E9B724B5181450997905A5A060AA50C253DC425C9099978E5AD0C6EA2895A5269780328D55B552466271063896940C5229834AB13A4A252539BEC54A56E01AD7C0C0A0B61600');
INSERT INTO packs VALUES (23, X'E3606060606660606050646060600231EC18181818418C2406288861800A59303030B082186E0C0C0C2C20C60D108309CA400F5D50F1999D5A50120FCA8DA9294AB59454F3E849BD24B5B884F8E4EE94AA905494999AA6070D31706AC0E23E32CB76225C1F0D6ABA811C18A364150376418C924E0C4C2758302423B14421B358212F5FC12BD8DF4F2F46A9562996B230E3829A85E9B3D222504866949414145BE9EB271664EAA5562482FC07CA03FA658654F032D740C4D8F0F01700');
INSERT INTO packs VALUES (24, X'63616060606660606030606060600231EC18181818410C0B062888616060A8C6D6160CC9485580546E0A1989290A89790A60457A4AB5B5881ADDC4C888C41A1D3D5597A41697A0A66CB0AFC1310A2AA28B528BF373CA525394C82F9C89701300');
INSERT INTO packs VALUES (25, X'6362606060646060608866808218060606D45455925A5C427CCA724A55482ACA4C4DD3833A0E1CF0A092342535314589FCF2936049185B0B00');

INSERT INTO bulks VALUES ('bulk_resolved', 'default', 'resolve', '{"project":"default","states":["failed"],"causedBy":"caller","labels":[{"name":"tag","value":"eu"}]}', NULL, NULL, 'completed', 1, 1, 0, 0, 'req_resolved', 'req_resolved', NULL, NULL, NULL, 1767323069000, 1767323070000, 1767323070000);
INSERT INTO bulks VALUES ('bulk_retrying', 'default', 'retry', '{"project":"default","states":["failed"],"errorCode":"server_error"}', NULL, '{"priority":"batch","terms":{"maxAttempts":20,"deadlineMs":86400000},"delayMs":500}', 'in_progress', 5, 2, 1, 1, 'req_retried', 'req_reworded', 'model_not_found', 'key-bulk', X'0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B0B', 1767323069000, 1767323072000, NULL);
INSERT INTO bulks VALUES ('bulk_erasing', 'default', 'erase', '{"project":"default","states":["completed"],"createdBefore":1767323070000}', 'Zoë''s "first draft"', NULL, 'in_progress', NULL, 1, 0, 0, 'req_kept_packed,req_erased', 'req_erased', NULL, NULL, NULL, 1767323069000, 1767323073000, NULL);
INSERT INTO bulks VALUES ('bulk_cancelled', 'default', 'cancel', '{"project":"default","states":["queued","retrying"],"model":"gpt-test"}', NULL, NULL, 'cancelled', 8, 1, 0, 0, 'req_async_cancelled', 'req_reworded', NULL, NULL, NULL, 1767323069000, 1767323074000, 1767323074000);
INSERT INTO bulks VALUES ('bulk_failed', 'other', 'retry', '{"project":"other","resolved":false}', NULL, NULL, 'failed', 3, 0, 0, 1, NULL, 'req_of_other', 'internal_error', 'key-bulk', X'0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C0C', 1767323069000, 1767323074000, 1767323074000);

PRAGMA application_id = 1333097580;
PRAGMA user_version = 5;
