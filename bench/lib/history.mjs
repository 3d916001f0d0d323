/**
 * A database with a past: requests of the last 30 days, written by the store's own engine as the product writes them
 * (accepted, attempts, end), so that every table and index is as it would be.
 */

import { createHash } from "node:crypto";
import { dirname, join } from "node:path";
import { lottery, prose, zipf } from "./prose.mjs";

const dayMs = 86_400_000;
const pastMs = 30 * dayMs;
const batchSize = 500;

/** Upstream, model, its share of the requests; US dollars per 1,000,000 tokens. */
const lanes = [
  ["openai", "gpt-4.1-mini", 0.4, 0.4, 1.6],
  ["openai", "gpt-4.1", 0.2, 2, 8],
  ["anthropic", "claude-sonnet-5", 0.18, 2, 10],
  ["azure", "gpt-4o", 0.12, 2.5, 10],
  ["groq", "llama-3.3-70b-versatile", 0.0995, 0.59, 0.79],
  ["mistral", "mistral-large-2512", 0.0005, 0.5, 1.5],
];
/** What the server needs to know so that it can call these again. */
export const upstreamModels = Object.fromEntries(
  [...new Set(lanes.map(([upstream]) => upstream))].map((upstream) => [
    upstream,
    lanes.filter(([name]) => name === upstream).map(([, model]) => model),
  ]),
);

/** Code, status, how it ends, share of the failures. */
const failures = [
  ["server_error", 500, "exhausted", 0.35],
  ["rate_limit_exceeded", 429, "exhausted", 0.25],
  ["context_length_exceeded", 400, "permanent", 0.2],
  ["invalid_request_error", 400, "permanent", 0.15],
  ["deadline_exceeded", 504, "deadline", 0.048],
  ["invalid_api_key", 401, "permanent", 0.002],
];

/** What died while a provider was down, all of it within an hour. */
export const outage = {
  upstream: "azure",
  model: "gpt-4o",
  code: "upstream_unreachable",
  startsMs: 5 * dayMs,
};
const outageMs = 3_600_000;

const features = [
  ...[
    "support",
    "summary",
    "search",
    "classify",
    "translate",
    "extract",
    "agent",
    "onboarding",
    "invoice",
    "review",
  ],
  ...[
    "digest",
    "moderation",
    "routing",
    "draft",
    "quality",
    "billing",
    "catalogue",
    "forecast",
    "alerts",
    "beta",
  ],
];
export const counts = { users: 5000, customers: 1000, releases: 12 };
const prompts = 12;

/** Words that stand only in some of the prompts: one in 10,000, and one in 20. */
export const planted = { rare: "quetzalcoatlus", common: "escalation", phrase: "second line support" };

const encoder = new TextEncoder();
const json = (value) => encoder.encode(JSON.stringify(value));

const callHeaders = [
  ["accept", "application/json"],
  ["content-type", "application/json"],
  ["user-agent", "OpenAI/JS 6.49.0"],
  ["x-stainless-arch", "x64"],
  ["x-stainless-lang", "js"],
  ["x-stainless-os", "Linux"],
  ["x-stainless-package-version", "6.49.0"],
  ["x-stainless-retry-count", "0"],
  ["x-stainless-runtime", "node"],
  ["x-stainless-runtime-version", "v20.20.2"],
  ["x-stainless-timeout", "600"],
];

/**
 * Fills a new database.
 *
 * @param main the built main.js of the product whose store is used
 * @param requests how many; 95 % of them completed, 4 % failed, 1 % cancelled
 * @param failed how many more failed in the outage
 * @returns how many there are, the bytes of their prompts and answers, the instant of the newest, and `some`: values
 * that they have, to look for
 */
export async function fillHistory({ main, path, requests, failed, say }) {
  const product = (name) => import(join(dirname(main), name));
  const [{ Engine }, core, { talliesOf }, { costOf }] = await Promise.all([
    product("store/sqlite/engine.js"),
    product("core/request.js"),
    product("core/ledger/usage.js"),
    product("core/price.js"),
  ]);
  const untilAt = Date.now() - 600_000;
  // It is not kept if the power goes, so it need not be synchronised.
  const engine = new Engine(path, { readonly: false, synchronous: "NORMAL" });
  const owner = { node: "bench", epoch: engine.nextEpoch("bench", untilAt) };
  const made = maker({ owner, core, talliesOf, costOf, untilAt, requests, failed });
  const total = requests + failed;
  const startedAt = performance.now();
  for (let done = 0; done < total; done += batchSize) {
    const changes = made.batch(Math.min(batchSize, total - done));
    for (const result of engine.commitAll(changes)) {
      if (result.status !== "applied")
        throw new Error(`The store refused a change: ${result.message ?? result.status}`);
    }
    if (done % 50_000 === 0 && done > 0) {
      const perSecond = done / ((performance.now() - startedAt) / 1000);
      say(`filled ${done} of ${total}, ${Math.round(perSecond)}/s`);
    }
  }
  engine.close();
  return { requests: total, bodyBytes: made.bodyBytes(), untilAt, some: made.some };
}

/** Makes changes, batch by batch in the order of time. */
function maker(setting) {
  const draw = lottery(7);
  const systems = Array.from({ length: prompts }, (_, n) => `You are assistant ${n}. ${prose(draw, 380)}`);
  const some = { traces: [], clientIds: [], safety: [], keys: [], ids: [] };
  const { untilAt, requests, failed } = setting;
  const outageAt = untilAt - outage.startsMs;
  const startsAt = untilAt - pastMs;
  let bodyBytes = 0;
  let madeOrdinary = 0;
  let madeInOutage = 0;

  /** Those of the outage come in its hour, in between the others. */
  const next = () => {
    const at = startsAt + (madeOrdinary / requests) * pastMs;
    const inOutageAt = outageAt + (madeInOutage / failed) * outageMs;
    const isOfOutage = madeInOutage < failed && (inOutageAt < at || madeOrdinary === requests);
    if (isOfOutage) return { at: Math.floor(inOutageAt), ofOutage: true, n: madeInOutage++ };
    return { at: Math.floor(at), ofOutage: false, n: madeOrdinary++ };
  };

  const batch = (size) => {
    const answered = [];
    const changes = Array.from({ length: size }, () => {
      const { at, ofOutage, n } = next();
      const request = requestOf({ draw, at, ofOutage, n, systems, setting });
      const life = lifeOf({ draw, ofOutage, ...request }, setting);
      bodyBytes += life.bodyBytes;
      if (request.record.callHash) answered.push(request.record.id);
      note(some, request.record, draw);
      return life.changes;
    });
    return [...changes.flat(), { kind: "answered", ids: answered }];
  };
  return { batch, bodyBytes: () => bodyBytes, some };
}

/** Keeps some of the values that only one request has. */
function note(some, { id, origin, idempotencyKey }, draw) {
  const most = 500;
  const keep = (list, value) => {
    if (value === undefined) return;
    if (list.length < most) list.push(value);
    else if (draw() < 0.01) list[Math.floor(draw() * most)] = value;
  };
  keep(some.ids, id);
  keep(some.traces, origin?.traceId);
  keep(some.clientIds, origin?.clientRequestId);
  keep(some.safety, origin?.safetyIdentifier);
  keep(some.keys, idempotencyKey);
}

const digits = "0123456789abcdefghjkmnpqrstvwxyz";

/** As the product's: ten digits of time (1/32 ms), 80 bits of chance. */
function idAt(at, n, draw) {
  let left = at * 32 + (n % 32);
  let time = "";
  for (let i = 0; i < 10; i++) {
    time = digits[left % 32] + time;
    left = Math.floor(left / 32);
  }
  return `req_${time}${Array.from({ length: 16 }, () => digits[Math.floor(draw() * 32)]).join("")}`;
}

const hex = (draw, length) => Array.from({ length }, () => Math.floor(draw() * 16).toString(16)).join("");
const sha256 = (text) => createHash("sha256").update(text).digest("hex");

function chosenBy(draw, table, share) {
  let left = draw();
  for (const row of table) {
    left -= row[share];
    if (left < 0) return row;
  }
  return table[0];
}

function requestOf({ draw, at, ofOutage, n, systems, setting }) {
  const lane = ofOutage ? lanes.find(([, model]) => model === outage.model) : chosenBy(draw, lanes, 2);
  const [upstream, model] = lane;
  const system = systems[zipf(draw(), systems.length)];
  const origin = originOf(draw);
  const body = json({
    model,
    messages: [
      { role: "system", content: system },
      { role: "user", content: question(draw) },
    ],
    temperature: 0.2,
    ...(origin?.user && { user: origin.user }),
    ...(origin?.metadata && { metadata: origin.metadata }),
  });
  const id = idAt(at, n, draw);
  const hasKey = draw() < 0.15;
  const head = json({ method: "POST", path: "/v1/chat/completions", headers: callHeaders });
  const waiting = {
    ...{ id, project: "default", endpoint: "chat.completions", model, state: "queued" },
    ...{ lane: `${upstream}/${model}`, priority: draw() < 0.8 ? "interactive" : "batch", dueAt: at },
    ...{ createdAt: at, updatedAt: at, deadlineAt: at + 600_000, attempt: 0, round: 1, counted: 0 },
    ...{ throttled: 0, invalid: 0, excluded: [], duplicatePossible: false, forks: [] },
    terms: {
      ...{ maxAttempts: 5, deadlineMs: 600_000, onUnknown: "retry", onDisconnect: "continue", held: true },
      size: { textBytes: body.length - 120, mediaTokens: 0 },
    },
    idempotencyKey: hasKey ? `key-${hex(draw, 24)}` : undefined,
    fingerprint: hasKey ? sha256(body) : undefined,
    callHash: hasKey ? undefined : sha256(id),
    tags: tagsOf(draw, n),
    origin,
    promptHash: sha256(system),
  };
  const record = setting.core.startAtOnce(waiting, { now: at, owner: setting.owner });
  return { record, lane, body, head };
}

function question(draw) {
  const words = prose(draw, 500 + draw() * 900);
  const luck = draw();
  if (luck < 0.0001) return `${words} ${planted.rare} ${hex(draw, 8)}`;
  return luck < 0.05 ? `${words} This is an ${planted.common} from ${planted.phrase}.` : words;
}

function tagsOf(draw, n) {
  if (draw() < 0.4) return n % 20_000 === 0 ? ["canary"] : [];
  const first = features[zipf(draw(), features.length)];
  return draw() < 0.4 ? [first, `team-${zipf(draw(), 40)}`] : [first];
}

function originOf(draw) {
  const origin = {
    user: draw() < 0.7 ? `user-${zipf(draw(), counts.users)}` : undefined,
    safetyIdentifier: draw() < 0.1 ? sha256(`safety-${zipf(draw(), counts.users)}`) : undefined,
    metadata:
      draw() < 0.3
        ? {
            customer: `customer-${zipf(draw(), counts.customers)}`,
            release: `2026.${Math.floor(draw() * counts.releases)}`,
          }
        : undefined,
    traceId: draw() < 0.5 ? hex(draw, 32) : undefined,
    clientRequestId: draw() < 0.2 ? `call-${hex(draw, 16)}` : undefined,
  };
  return Object.values(origin).some((value) => value !== undefined) ? origin : undefined;
}

/** @returns the changes of a request from its accept to its end, and the bytes of its prompt and last answer */
function lifeOf({ draw, ofOutage, record, lane, body, head }, setting) {
  const parts = [
    { kind: "head", seq: 0, bytes: head },
    { kind: "body", seq: 0, bytes: body },
  ];
  const key =
    record.idempotencyKey === undefined
      ? undefined
      : { project: record.project, endpoint: record.endpoint, key: record.idempotencyKey };
  const changes = [{ kind: "accept", record, parts, key }];
  let answerBytes = 0;
  let current = record;
  const add = (event, answer) => {
    const transition = setting.core.transition(current, event);
    current = transition.record;
    answerBytes = answer?.[1].bytes.length ?? 0;
    changes.push({ kind: "change", transition, parts: answer, tallies: setting.talliesOf(transition) });
  };
  for (const { event, answer } of eventsOf({ draw, ofOutage, at: record.createdAt, lane, body }, setting))
    add(event, answer);
  return { changes, bodyBytes: body.length + answerBytes };
}

function eventsOf({ draw, ofOutage, at, lane, body }, setting) {
  const tookMs = 300 + Math.floor(draw() ** 3 * 20_000);
  const fate = draw();
  if (ofOutage)
    return [failing({ draw, now: at + 30_000, lane }, [outage.code, 502, "unreachable"], "not_sent")];
  if (fate < 0.01) return [{ event: { type: "cancelled", now: at + tookMs } }];
  const before = fate > 0.97 || fate < 0.03 ? retried({ draw, at, lane }, setting) : [];
  const now = at + tookMs + before.length * 2000;
  if (fate < 0.05) return [...before, failing({ draw, now, lane }, chosenBy(draw, failures, 3), "permanent")];
  return [...before, completing({ draw, now, tookMs, lane, body }, setting)];
}

/** An attempt in vain, and the start of the next one. */
function retried({ draw, at, lane: [upstream, model] }, { owner }) {
  const { failure, result } = failedCall({ draw, now: at + 800, upstream }, ["server_error", 503]);
  const step = {
    kind: "retry",
    dueAt: at + 1500,
    lane: `${upstream}/${model}`,
    counted: true,
    reason: "backoff",
    excluded: [],
  };
  const ended = { type: "ended", now: at + 800, step, result: { ...result, verdict: "transient", failure } };
  return [{ event: ended, answer: undefined }, { event: { type: "started", now: at + 1500, owner } }];
}

function failedCall({ draw, now, upstream }, [code, status]) {
  const failure = {
    code,
    status,
    type: "api_error",
    message: `The upstream "${upstream}" answered: ${code}.`,
  };
  return { failure, result: { status, firstByteAt: now - 5, providerRequestId: `req-${hex(draw, 24)}` } };
}

function failing({ draw, now, lane: [upstream] }, [code, status, reason], verdict) {
  const { failure, result } = failedCall({ draw, now, upstream }, [code, status]);
  const step = { kind: "fail", failure, counted: true, reason };
  const call = verdict === "not_sent" ? {} : result;
  const event = {
    type: "ended",
    now,
    step,
    result: { ...call, verdict: reason === "exhausted" ? "transient" : verdict, failure },
  };
  const { code: name, ...error } = failure;
  const answer =
    verdict === "not_sent" ? undefined : answerOf(draw, now, status, { error: { ...error, code: name } });
  return { event, answer };
}

function completing({ draw, now, tookMs, lane, body }, { costOf }) {
  const [upstream, model, , input, output] = lane;
  const content = prose(draw, 250 + draw() * 700);
  const [prompt, completion] = [Math.round(body.length / 4.2), Math.round(content.length / 4.2)];
  const cached = draw() < 0.3 ? Math.floor(prompt / 2) : 0;
  const usage = {
    prompt_tokens: prompt,
    completion_tokens: completion,
    total_tokens: prompt + completion,
    prompt_tokens_details: { cached_tokens: cached, audio_tokens: 0 },
    completion_tokens_details: { reasoning_tokens: 0, audio_tokens: 0 },
  };
  const responseId = `chatcmpl-${hex(draw, 29)}`;
  const problems = draw() < 0.02 ? [["length", "refusal", "invalid_json"][Math.floor(draw() * 3)]] : [];
  const finish = problems[0] === "length" ? "length" : "stop";
  const answer = answerOf(draw, now, 200, {
    id: responseId,
    object: "chat.completion",
    created: Math.floor(now / 1000),
    model,
    choices: [
      {
        index: 0,
        message: { role: "assistant", content, refusal: null },
        logprobs: null,
        finish_reason: finish,
      },
    ],
    usage,
    system_fingerprint: "fp_51e1070cf2",
  });
  const result = {
    ...{ verdict: "success", status: 200, firstByteAt: now - 2, connectedAt: now - tookMs + 1 },
    ...{
      providerRequestId: `req-${hex(draw, 24)}`,
      responseId,
      servedModel: model,
      usage: JSON.stringify(usage),
    },
    cost: costOf([{ model, input, output }], upstream, model, { prompt, cached, output: completion }),
    findings: { finishReason: finish, problems },
  };
  return { event: { type: "ended", now, result, step: { kind: "complete" } }, answer };
}

function answerOf(draw, now, status, body) {
  const headers = [
    ["content-type", "application/json"],
    ["date", new Date(now).toUTCString()],
    ["openai-processing-ms", String(Math.floor(draw() * 3000))],
    ["openai-version", "2020-10-01"],
    ["x-ratelimit-limit-requests", "10000"],
    ["x-ratelimit-limit-tokens", "2000000"],
    ["x-ratelimit-remaining-requests", String(Math.floor(draw() * 10_000))],
    ["x-ratelimit-remaining-tokens", String(Math.floor(draw() * 2_000_000))],
    ["x-request-id", `req-${hex(draw, 24)}`],
  ];
  return [
    { kind: "answer_head", seq: 0, bytes: json({ status, headers }) },
    { kind: "answer", seq: 0, bytes: json(body) },
  ];
}
