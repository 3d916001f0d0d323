-- A file as the last version of schema 2 left it in the middle of its work: its schema, and a request of every kind.

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

INSERT INTO nodes VALUES ('local', 1, 1767323045000);

INSERT INTO requests VALUES (1, 'req_held_queued', 'default', 'chat.completions', 'gpt-test', 'queued', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323045000, NULL, NULL, 1767323645000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0101010101010101010101010101010101010101010101010101010101010101', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO requests VALUES (2, 'req_held_processing', 'default', 'chat.completions', 'gpt-test', 'processing', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323046000, 1767323046000, NULL, 1767323645000, 1, 1, 0, 0, NULL, NULL, 'local', 1, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0202020202020202020202020202020202020202020202020202020202020202', 0, NULL, 'fake', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO requests VALUES (3, 'req_held_retrying', 'default', 'chat.completions', 'gpt-test', 'retrying', 'fake/gpt-test', 1, 1767323047500, 1767323045000, 1767323047000, 1767323046000, NULL, 1767323645000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0303030303030303030303030303030303030303030303030303030303030303', 0, NULL, 'fake', NULL, NULL, NULL, NULL, 'server_error', NULL);
INSERT INTO requests VALUES (4, 'req_held_second_attempt', 'default', 'chat.completions', 'gpt-test', 'processing', 'fake/gpt-test', 1, 1767323047500, 1767323045000, 1767323048000, 1767323046000, NULL, 1767323645000, 2, 1, 1, 0, NULL, NULL, 'local', 1, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0404040404040404040404040404040404040404040404040404040404040404', 0, NULL, 'fake', NULL, NULL, NULL, NULL, 'server_error', NULL);
INSERT INTO requests VALUES (5, 'req_held_completed', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323047000, 1767323046000, 1767323047000, 1767323645000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0505050505050505050505050505050505050505050505050505050505050505', 0, NULL, 'fake', NULL, 'chatcmpl-held_completed', '{"total_tokens":6}', NULL, NULL, 'answered');
INSERT INTO requests VALUES (6, 'req_held_failed', 'default', 'chat.completions', 'gpt-test', 'failed', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323047000, 1767323046000, 1767323047000, 1767323645000, 1, 1, 1, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0606060606060606060606060606060606060606060606060606060606060606', 0, NULL, 'fake', NULL, NULL, NULL, '{"code":"server_error","message":"The server had an error.","type":"server_error","status":500}', 'server_error', 'permanent');
INSERT INTO requests VALUES (7, 'req_held_gave_up', 'default', 'chat.completions', 'gpt-test', 'failed', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323046000, NULL, 1767323046000, 1767323645000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0707070707070707070707070707070707070707070707070707070707070707', 0, NULL, NULL, NULL, NULL, NULL, '{"code":"deadline_exceeded","message":"The server had an error.","type":"server_error","status":504}', 'deadline_exceeded', 'deadline');
INSERT INTO requests VALUES (8, 'req_held_cancelled', 'default', 'chat.completions', 'gpt-test', 'cancelled', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323047000, 1767323046000, 1767323047000, 1767323645000, 1, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":true}', NULL, NULL, X'0808080808080808080808080808080808080808080808080808080808080808', 0, NULL, 'fake', NULL, NULL, NULL, NULL, 'request_cancelled', 'cancelled');
INSERT INTO requests VALUES (9, 'req_keyed_queued', 'default', 'chat.completions', 'gpt-test', 'queued', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323045000, NULL, NULL, 1767323645000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', 'key-queued', X'0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A', NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO requests VALUES (10, 'req_keyed_processing', 'default', 'chat.completions', 'gpt-test', 'processing', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323046000, 1767323046000, NULL, 1767323645000, 1, 1, 0, 0, NULL, NULL, 'local', 1, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', 'key-processing', X'0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A', NULL, 0, '["a","b"]', 'fake', NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO requests VALUES (11, 'req_keyed_completed', 'default', 'chat.completions', 'gpt-test', 'completed', 'fake/gpt-test', 1, 1767323047500, 1767323045000, 1767323049000, 1767323046000, 1767323049000, 1767323645000, 2, 1, 1, 1, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', 'key-completed', X'0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A0A', NULL, 0, NULL, 'fake', NULL, 'chatcmpl-keyed_completed', NULL, NULL, 'rate_limited', 'answered');
INSERT INTO requests VALUES (12, 'req_async_queued', 'default', 'chat.completions', 'gpt-test', 'queued', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323045000, NULL, NULL, 1767323645000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO requests VALUES (13, 'req_async_cancelled', 'default', 'chat.completions', 'gpt-test', 'cancelled', 'fake/gpt-test', 1, 1767323045000, 1767323045000, 1767323046000, NULL, 1767323046000, 1767323645000, 0, 1, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL, NULL, NULL, 'request_cancelled', 'cancelled');
INSERT INTO requests VALUES (14, 'req_async_revived', 'default', 'chat.completions', 'gpt-test', 'queued', 'fake/gpt-test', 1, 1767323053000, 1767323050000, 1767323053000, 1767323051000, NULL, 1767323653000, 1, 2, 0, 0, NULL, NULL, NULL, NULL, '{"maxAttempts":5,"deadlineMs":600000,"onUnknown":"retry","onDisconnect":"continue","held":false}', NULL, NULL, NULL, 0, '["a","b"]', 'fake', NULL, NULL, NULL, NULL, 'server_error', NULL);

INSERT INTO idempotency_keys VALUES ('default', 'chat.completions', 'key-queued', 9);
INSERT INTO idempotency_keys VALUES ('default', 'chat.completions', 'key-processing', 10);
INSERT INTO idempotency_keys VALUES ('default', 'chat.completions', 'key-completed', 11);

INSERT INTO parts VALUES (1, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (1, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A2268656C645F717565756564227D');
INSERT INTO parts VALUES (2, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (2, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A2268656C645F70726F63657373696E67227D');
INSERT INTO parts VALUES (3, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (3, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A2268656C645F7265747279696E67227D');
INSERT INTO parts VALUES (4, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (4, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A2268656C645F7365636F6E645F617474656D7074227D');
INSERT INTO parts VALUES (5, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (5, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A2268656C645F636F6D706C65746564227D');
INSERT INTO parts VALUES (5, 'answer_head', 0, 'identity', NULL, X'7B22737461747573223A3230302C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (5, 'answer', 0, 'identity', NULL, X'7B226964223A2263686174636D706C2D68656C645F636F6D706C65746564227D');
INSERT INTO parts VALUES (6, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (6, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A2268656C645F6661696C6564227D');
INSERT INTO parts VALUES (7, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (7, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A2268656C645F676176655F7570227D');
INSERT INTO parts VALUES (8, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (8, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A2268656C645F63616E63656C6C6564227D');
INSERT INTO parts VALUES (9, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (9, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A226B657965645F717565756564227D');
INSERT INTO parts VALUES (10, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (10, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A226B657965645F70726F63657373696E67227D');
INSERT INTO parts VALUES (11, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (11, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A226B657965645F636F6D706C65746564227D');
INSERT INTO parts VALUES (11, 'answer_head', 0, 'identity', NULL, X'7B22737461747573223A3230302C2268656164657273223A5B5B22636F6E74656E742D74797065222C226170706C69636174696F6E2F6A736F6E225D5D7D');
INSERT INTO parts VALUES (11, 'answer', 0, 'identity', NULL, X'7B226964223A2263686174636D706C2D6B657965645F636F6D706C65746564227D');
INSERT INTO parts VALUES (12, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (12, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A226173796E635F717565756564227D');
INSERT INTO parts VALUES (13, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (13, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A226173796E635F63616E63656C6C6564227D');
INSERT INTO parts VALUES (14, 'head', 0, 'identity', NULL, X'7B226D6574686F64223A22504F5354222C2270617468223A222F636861742F636F6D706C6574696F6E73222C2268656164657273223A5B5D7D');
INSERT INTO parts VALUES (14, 'body', 0, 'identity', NULL, X'7B226D6F64656C223A226770742D74657374222C226D65737361676573223A5B5D2C2275736572223A226173796E635F72657669766564227D');

INSERT INTO attempts VALUES (3, 1, 1, 'fake', 'gpt-test', 1767323046000, NULL, 1767323047000, 500, 'transient', 1, 'server_error', 'The server had an error.', 'backoff', 1767323047500, NULL, NULL);
INSERT INTO attempts VALUES (4, 1, 1, 'fake', 'gpt-test', 1767323046000, NULL, 1767323047000, 500, 'transient', 1, 'server_error', 'The server had an error.', 'backoff', 1767323047500, NULL, NULL);
INSERT INTO attempts VALUES (5, 1, 1, 'fake', 'gpt-test', 1767323046000, NULL, 1767323047000, 200, 'success', 1, NULL, NULL, 'answered', NULL, NULL, '{"total_tokens":6}');
INSERT INTO attempts VALUES (6, 1, 1, 'fake', 'gpt-test', 1767323046000, NULL, 1767323047000, 500, 'permanent', 1, 'server_error', 'The server had an error.', 'permanent', NULL, NULL, NULL);
INSERT INTO attempts VALUES (8, 1, 1, 'fake', 'gpt-test', 1767323046000, NULL, 1767323047000, NULL, 'ambiguous', 0, 'request_cancelled', NULL, 'cancelled', NULL, NULL, NULL);
INSERT INTO attempts VALUES (11, 1, 1, 'fake', 'gpt-test', 1767323046000, NULL, 1767323047000, 429, 'throttled', 0, 'rate_limited', 'The server had an error.', 'retry_after', 1767323047500, NULL, NULL);
INSERT INTO attempts VALUES (11, 2, 1, 'fake', 'gpt-test', 1767323048000, NULL, 1767323049000, 200, 'success', 1, NULL, NULL, 'answered', NULL, NULL, NULL);
INSERT INTO attempts VALUES (14, 1, 1, 'fake', 'gpt-test', 1767323051000, NULL, 1767323052000, 500, 'transient', 1, 'server_error', 'The server had an error.', 'exhausted', NULL, NULL, NULL);

INSERT INTO held VALUES (1, X'0101010101010101010101010101010101010101010101010101010101010101', 1767323054000, 0);
INSERT INTO held VALUES (2, X'0202020202020202020202020202020202020202020202020202020202020202', NULL, 0);
INSERT INTO held VALUES (3, X'0303030303030303030303030303030303030303030303030303030303030303', 1767323055000, 1);
INSERT INTO held VALUES (4, X'0404040404040404040404040404040404040404040404040404040404040404', NULL, 0);

PRAGMA application_id = 1333097580;
PRAGMA user_version = 2;
