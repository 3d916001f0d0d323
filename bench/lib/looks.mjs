/** What people and programs look for in the ledger, and how long they wait for it. */

import { counts, outage, planted } from "./history.mjs";
import { calibrate, disturbance, machineCpu } from "./machine.mjs";
import { lottery, zipf } from "./prose.mjs";
import { median, round, shuffled } from "./statistics.mjs";

const dayMs = 86_400_000;
const hourMs = 3_600_000;

/**
 * @returns by name: the `group` whose goal holds, the `path` with values that are others each time, and whether it is the
 * `second` page that counts
 */
export function looksInto({ untilAt, some }) {
  const draw = lottery(11);
  const any = (list) => list[Math.floor(draw() * list.length)];
  const list = (query, more = {}) => ({ group: "list", path: () => `/v1/requests?${query()}`, ...more });
  const of = (query) => list(() => query);
  const user = () => `user=user-${zipf(draw(), counts.users)}`;
  const customer = () => `metadata[customer]=customer-${zipf(draw(), counts.customers)}`;
  const tag = () => `tag=${any(["support", "summary", "classify", "billing", "beta"])}`;
  const team = () => `tag=team-${zipf(draw(), 40)}`;
  const within = (ms) => () => {
    const from = untilAt - 29 * dayMs + Math.floor(draw() * 27 * dayMs);
    return `created_after=${new Date(from).toISOString()}&created_before=${new Date(from + ms).toISOString()}`;
  };
  const hour = within(hourMs);
  const day = within(dayMs);
  const outageAt = new Date(untilAt - outage.startsMs).toISOString();
  const second = { second: true };
  return {
    newest: of("limit=20"),
    "newest, 100": of("limit=100"),
    "newest, second page": list(() => "limit=20", second),
    oldest: of("order=asc"),
    "oldest, second page": list(() => "order=asc", second),
    "status=completed": of("status=completed"),
    "status=failed": of("status=failed"),
    "status=failed, second page": list(() => "status=failed", second),
    "status=queued,processing,retrying": of("status=queued,processing,retrying"),
    "model, common": of("model=gpt-4.1-mini"),
    "model, rare": of("model=mistral-large-2512"),
    "model, absent": of("model=none-such"),
    "upstream, common": of("upstream=openai"),
    "upstream, rare": of("upstream=mistral"),
    endpoint: of("endpoint=chat.completions"),
    "error_code, common": of("error_code=server_error"),
    "error_code, rare": of("error_code=invalid_api_key"),
    "caused_by=caller": of("caused_by=caller"),
    "resolved=true": of("resolved=true"),
    "tag, common": list(tag),
    "tag, rare": of("tag=canary"),
    "tag, absent": of("tag=none-such"),
    "tag, second page": list(tag, second),
    user: list(user),
    "user, absent": of("user=nobody"),
    "user, second page": list(user, second),
    safety_identifier: list(() => `safety_identifier=${any(some.safety)}`),
    "metadata, common": list(() => `metadata[release]=2026.${Math.floor(draw() * counts.releases)}`),
    "metadata, rare": list(customer),
    trace_id: list(() => `trace_id=${any(some.traces)}`),
    client_request_id: list(() => `client_request_id=${any(some.clientIds)}`),
    idempotency_key: list(() => `idempotency_key=${any(some.keys)}`),
    "created in an hour": list(hour),
    "created in a day, oldest": list(() => `${day()}&order=asc`),
    "status + model": of("status=failed&model=gpt-4.1"),
    "status + model + error": of("status=failed&model=gpt-4o&error_code=rate_limit_exceeded"),
    "status + model + error, rare": of("status=failed&model=mistral-large-2512&error_code=invalid_api_key"),
    "upstream + model + day": list(() => `upstream=groq&model=llama-3.3-70b-versatile&${day()}`),
    "status=failed + hour": list(() => `status=failed&${hour()}`),
    "model, rare + hour": list(() => `model=mistral-large-2512&${hour()}`),
    "two tags": list(() => `${tag()}&${team()}`),
    "two tags, second page": list(() => `${tag()}&${team()}`, second),
    "user + metadata": list(() => `${user()}&${customer()}`),
    "user + tag + status": list(() => `${user()}&${tag()}&status=completed`),
    "tag, common + status=failed": list(() => `${tag()}&status=failed`),
    "tag, common + error_code, rare": list(() => `${tag()}&error_code=invalid_api_key`),
    "metadata + model, rare": list(() => `${customer()}&model=mistral-large-2512`),
    "user + day": list(() => `${user()}&${day()}`),
    "tag + hour": list(() => `${tag()}&${hour()}`),
    "counts by status, model": { group: "list", path: () => "/v1/requests/counts?by=status,model" },
    "counts by error_code of failed": {
      group: "list",
      path: () => "/v1/requests/counts?by=error_code,caused_by&status=failed",
    },
    "counts of a day": { group: "list", path: () => `/v1/requests/counts?by=status&${day()}` },
    "counts of a user": { group: "list", path: () => `/v1/requests/counts?by=status,model&${user()}` },
    "dead letters": { group: "list", path: () => "/v1/requests/dead_letters" },
    "dead letters since the outage": {
      group: "list",
      path: () => `/v1/requests/dead_letters?created_after=${outageAt}`,
    },
    "usage by day, model": { group: "list", path: () => "/v1/usage?group_by=day,model" },
    "usage by tag": { group: "list", path: () => "/v1/usage?group_by=tag" },
    "usage by prompt_hash of a model": {
      group: "list",
      path: () => "/v1/usage?group_by=prompt_hash,day&model=gpt-4.1",
    },
    "one, with attempts and bodies": {
      group: "list",
      path: () => `/v1/requests/${any(some.ids)}?include=body,attempts`,
    },
    ...searches({ list, user, hour, second }),
  };
}

function searches({ list, user, hour, second }) {
  const search = (text, more = () => "", page = {}) => ({
    ...list(() => `q=${encodeURIComponent(text)}${more()}`, page),
    group: "search",
  });
  return {
    "search, rare": search(planted.rare),
    "search, common": search(planted.common),
    "search, in nearly all": search("the"),
    "search, absent": search("xyzzyplugh"),
    "search, two words": search(`${planted.common} warehouse`),
    "search, two common words": search("account invoice"),
    "search, phrase": search(`"${planted.phrase}"`),
    "search, phrase of common words": search('"of the"'),
    "search, prefix": search("escal*"),
    "search, second page": search(planted.common, () => "", second),
    "search + status=failed": search(planted.common, () => "&status=failed"),
    "search + user": search("account", () => `&${user()}`),
    "search + hour": search("invoice", () => `&${hour()}`),
  };
}

/**
 * Looks everything up, one after the other, each time in an order of chance.
 *
 * @returns ms and rows by name, one value for each time, and what else was going on
 */
export async function lookUp(base, looks, { times, say }) {
  const samples = Object.fromEntries(Object.keys(looks).map((name) => [name, { ms: [], rows: [] }]));
  // Once for nothing: statements are prepared, pages are read.
  for (const look of Object.values(looks)) await once(base, look);
  const calibrationsMs = [calibrate()];
  const before = machineCpu();
  for (let time = 1; time <= times; time++) {
    for (const name of shuffled(Object.keys(looks))) {
      const { ms, rows } = await once(base, looks[name]);
      samples[name].ms.push(ms);
      samples[name].rows.push(rows);
    }
    if (time % 10 === 0) say(`looked everything up ${time} of ${times} times`);
  }
  const disturbed = disturbance(before, machineCpu());
  calibrationsMs.push(calibrate());
  return { samples, calibrationsMs, ...disturbed };
}

async function once(base, { path, second }) {
  const first = base + path();
  if (!second) return timed(first);
  const { last_id: last } = await (await fetch(first)).json();
  return timed(last ? `${first}&after=${last}` : first);
}

async function timed(url) {
  const startedAt = performance.now();
  const answer = await fetch(url);
  const text = await answer.text();
  const ms = performance.now() - startedAt;
  if (answer.status !== 200)
    throw new Error(`${url} was answered with ${answer.status}: ${text.slice(0, 300)}`);
  return { ms, rows: JSON.parse(text).data?.length ?? 1 };
}

export function percentile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)];
}

/** @returns rows for a table, the slowest first */
export function lookRows(looks, samples, group) {
  return Object.entries(samples)
    .filter(([name]) => looks[name].group === group)
    .map(([name, { ms, rows }]) => [
      name,
      median(rows),
      round(percentile(ms, 0.5), 1),
      round(percentile(ms, 0.95), 1),
      round(Math.max(...ms), 1),
    ])
    .sort((a, b) => b[3] - a[3]);
}
