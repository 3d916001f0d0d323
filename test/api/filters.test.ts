import fc from "fast-check";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { z } from "zod";
import {
  filterFields,
  filterOf,
  presentFilter,
  readFilter,
  readQuery,
  states,
} from "../../src/api/filter.ts";
import { fail } from "../support/fake-upstream.ts";
import { type Outlast, startOutlast } from "../support/outlast.ts";
import { LedgerCalls } from "./ledger-calls.ts";
import { errorOf, refusalOf, serveTest, WatchedClock } from "./wire.ts";

const traceId = "4bf92f3577b34da6a3ce929d0e0e4736";
const iso = (at: number) => encodeURIComponent(new Date(at).toISOString());

describe("a filter", () => {
  const word = fc.string({ minLength: 1, maxLength: 12 });
  const name = word.filter((text) => text !== "__proto__");
  const at = fc.integer({ min: 0, max: 4_000_000_000_000 }).map((ms) => new Date(ms).toISOString());
  const asked = fc.record(
    {
      status: fc.uniqueArray(fc.constantFrom(...states), { minLength: 1 }),
      model: word,
      error_code: word,
      caused_by: fc.constantFrom("caller", "upstream"),
      resolved: fc.boolean(),
      tag: fc.array(word, { minLength: 1 }),
      user: word,
      metadata: fc.dictionary(name, word, { minKeys: 1 }),
      trace_id: word,
      created_after: at,
      created_before: at,
      q: word.map((text) => `x${text}`),
    },
    { requiredKeys: [] },
  );

  it("means the same in a query and as JSON, and is said back as it was asked", () => {
    fc.assert(
      fc.property(asked, (filter) => {
        const read = filterOf("p", readFilter(filter));
        const { tag = [], metadata = {}, status, ...rest } = filter;
        const query = new URLSearchParams();
        for (const [key, value] of Object.entries(rest)) query.set(key, String(value));
        if (status) query.set("status", status.join(","));
        for (const one of tag) query.append("tag", one);
        for (const [key, value] of Object.entries(metadata)) query.append(`metadata[${key}]`, value);
        expect(filterOf("p", readQuery(z.strictObject(filterFields), query))).toEqual(read);
        expect(JSON.parse(JSON.stringify(presentFilter(read.filter, read.text)))).toEqual(filter);
      }),
    );
  });
});

describe("requests of all kinds", () => {
  let outlast: Outlast;
  const clock = new WatchedClock();
  const calls = new LedgerCalls(() => outlast);
  const t0 = clock.now();
  const ids: Record<string, string> = {};
  const named = (list: string[]) => list.map((id) => Object.keys(ids).find((name) => ids[name] === id));

  beforeAll(async () => {
    outlast = await startOutlast({ clock, luck: 0.5, upstreams: ["one", "two"] });
    const { fakes } = outlast;
    ids.plain = await calls.finish({ user: "ann", metadata: { team: "red", "odd.name]": "=&" } });
    clock.advance(10_000);
    ids.tagged = await calls.finish({
      user: "ann",
      safety_identifier: "safe-1",
      metadata: { team: "blue" },
      outlast: { tags: ["t1", "t2"] },
      model: "two/x",
    });
    clock.advance(10_000);
    fakes.two!.script(fail(400, { code: "bad" }));
    ids.refused = await calls.finish({
      model: "two/x",
      user: "bob",
      outlast: { tags: ["t1"] },
      idempotency_key: "key-1",
    });
    clock.advance(10_000);
    fakes.one!.script(fail(401, { code: "no_key" }));
    ids.locked = await calls.finish({}, { traceparent: `00-${traceId}-00f067aa0ba902b7-01` });
    clock.advance(10_000);
    ids.stopped = await calls.submit({ outlast: { delay: 600 } }, { "x-request-id": "mine-1" });
    await calls.acted(ids.stopped, "cancel");
    clock.advance(10_000);
    const { status } = await outlast.post("/v1/embeddings", { model: "two/e", input: "x", user: "bob" });
    expect(status).toBe(200);
    ids.vectors = (await calls.ids("limit=1"))[0]!;
    ids.waiting = await calls.submit({ user: "ann", outlast: { delay: 600, tags: ["t1"] } });
    expect(named(await calls.ids("order=asc"))).toEqual(Object.keys(ids));
  });
  afterAll(() => outlast.close());
  beforeEach(() => {
    outlast.ear.heard.length = 0;
  });

  it.each([
    ["status=completed", "vectors tagged plain"],
    ["status=failed,cancelled", "stopped locked refused"],
    ["status=failed&status=cancelled", "stopped locked refused"],
    ["status=processing", ""],
    ["model=two/x", "refused tagged"],
    ["model=two", ""],
    ["upstream=two", "vectors refused tagged"],
    ["endpoint=embeddings", "vectors"],
    ["error_code=bad", "refused"],
    ["error_code=request_cancelled", "stopped"],
    ["caused_by=caller", "refused"],
    ["caused_by=upstream", "locked"],
    ["resolved=false", "locked refused"],
    ["resolved=true", ""],
    ["tag=t1", "waiting refused tagged"],
    ["tag=t1&tag=t2", "tagged"],
    ["tag=t1&tag=t3", ""],
    ["user=ann", "waiting tagged plain"],
    ["user=an", ""],
    ["user=", ""],
    ["user=true", ""],
    ["safety_identifier=safe-1", "tagged"],
    ["metadata[team]=red", "plain"],
    ["metadata%5Bteam%5D=blue", "tagged"],
    [`metadata[${encodeURIComponent("odd.name]")}]=${encodeURIComponent("=&")}`, "plain"],
    [`metadata[team]=red&metadata[${encodeURIComponent("odd.name]")}]=${encodeURIComponent("=&")}`, "plain"],
    ["metadata[team]=red&metadata[other]=x", ""],
    ["metadata[user]=ann", ""],
    [`trace_id=${traceId}`, "locked"],
    ["client_request_id=mine-1", "stopped"],
    ["idempotency_key=key-1", "refused"],
    [`created_after=${t0 / 1000}`, "waiting vectors stopped locked refused tagged"],
    [`created_after=${iso(t0 + 15_000)}&created_before=${iso(t0 + 35_000)}`, "locked refused"],
    [`created_before=${iso(t0)}`, ""],
    ["user=ann&status=completed", "tagged plain"],
    ["user=ann&tag=t1&status=completed&upstream=two&model=two/x&metadata[team]=blue", "tagged"],
    ["user=bob&status=completed,failed&upstream=two", "vectors refused"],
    ["user=bob&endpoint=chat.completions", "refused"],
    [`tag=t1&created_after=${iso(t0 + 15_000)}`, "waiting refused"],
    ["caused_by=caller&resolved=false&error_code=bad&idempotency_key=key-1", "refused"],
    ["caused_by=caller&error_code=no_key", ""],
  ])("are found by %s", async (query, expected) => {
    const newestFirst = expected.split(" ").filter(Boolean);
    expect(named(await calls.ids(query))).toEqual(newestFirst);
    expect(named(await calls.ids(`${query}&order=asc`))).toEqual([...newestFirst].reverse());
    const [all] = await calls.counts(query);
    expect(all?.count ?? 0).toBe(newestFirst.length);
    if (newestFirst.length < 2) return;
    const page = await calls.list(`${query}&limit=1`);
    expect(page.has_more).toBe(true);
    const rest = await calls.list(`${query}&limit=100&after=${page.last_id}`);
    expect(named([...page.data, ...rest.data].map(({ id }) => id))).toEqual(newestFirst);
  });

  it("are counted by what they are", async () => {
    expect(await calls.counts("by=status")).toEqual(
      expect.arrayContaining([
        { status: "completed", count: 3 },
        { status: "failed", count: 2 },
        { status: "cancelled", count: 1 },
        { status: "queued", count: 1 },
      ]),
    );
    expect((await calls.counts("by=status"))[0]).toEqual({ status: "completed", count: 3 });
    expect(await calls.counts("by=upstream,caused_by&status=failed")).toEqual(
      expect.arrayContaining([
        { upstream: "one", caused_by: "upstream", count: 1 },
        { upstream: "two", caused_by: "caller", count: 1 },
      ]),
    );
    expect(await calls.counts("by=error_code&user=bob")).toEqual(
      expect.arrayContaining([
        { error_code: null, count: 1 },
        { error_code: "bad", count: 1 },
      ]),
    );
    expect(await calls.counts("by=resolved&status=failed")).toEqual([{ resolved: false, count: 2 }]);
    expect(await calls.counts("by=endpoint,model&endpoint=embeddings")).toEqual([
      { endpoint: "embeddings", model: "two/e", count: 1 },
    ]);
    expect(await calls.counts("")).toEqual([{ count: 7 }]);
  });

  it("that failed are grouped by cause, those that callers caused apart", async () => {
    expect(await calls.deadLetters()).toEqual([
      {
        object: "dead_letter",
        error_code: "no_key",
        model: "gpt-test",
        upstream: "one",
        endpoint: "chat.completions",
        caused_by: "upstream",
        count: 1,
        resolved: 0,
        first_at: new Date(t0 + 30_000).toISOString(),
        last_at: new Date(t0 + 30_000).toISOString(),
        last_request_id: ids.locked,
        last_error_message: "the fake upstream says 401",
      },
    ]);
    const [refused] = await calls.deadLetters("caused_by=caller");
    expect(refused).toMatchObject({ error_code: "bad", last_request_id: ids.refused, caused_by: "caller" });
    expect(await calls.deadLetters("caused_by=any")).toHaveLength(2);
    expect(await calls.deadLetters("caused_by=any&model=two/x&tag=t1")).toHaveLength(1);
    expect(await calls.deadLetters("resolved=true")).toEqual([]);
  });

  it.each([
    ["counts?by=colour", "by"],
    ["counts?by=", "by"],
    ["counts?by=status,,model", "by"],
    ["counts?q=x", "q"],
    ["counts?limit=3", "limit"],
    ["dead_letters?status=failed", "status"],
    ["dead_letters?caused_by=me", "caused_by"],
    ["dead_letters?resolved=maybe", "resolved"],
    ["dead_letters?limit=0", "limit"],
    ["?resolved=maybe", "resolved"],
    ["?caused_by=me", "caused_by"],
    ["?metadata=x", "metadata"],
    ["?metadata[]=x", "metadata[]"],
    ["?user=a&user=b", "user"],
    ["?model=a&model=b", "model"],
    ["?q=", "q"],
    ["?q=%20", "q"],
    ["?limit=5&limit=6", "limit"],
  ])("cannot be asked for by %s: the error names the field and what is allowed", async (path, param) => {
    const response = await outlast.fetch(`/v1/requests${path.startsWith("?") ? "" : "/"}${path}`);
    expect(response.status).toBe(400);
    const error = await errorOf(response);
    expect(error).toMatchObject({ code: "invalid_parameter", param, type: "invalid_request_error" });
    expect(error.message).not.toMatch(/invalid input|expected|received|NaN|undefined/i);
  });

  it("are told by a list of all parameters where one is unknown", async () => {
    const { message } = await errorOf(await outlast.fetch("/v1/requests?colour=red"));
    for (const name of ["status", "metadata[name]", "safety_identifier", "trace_id", "q", "limit"]) {
      expect(message).toContain(name);
    }
  });

  it.each([
    ["POST", "/v1/requests/counts"],
    ["GET", "/v1/requests/counts/x"],
    ["PUT", "/v1/requests/retry"],
    ["DELETE", "/v1/requests"],
    ["POST", "/v1/usage"],
    ["GET", "/v1/usage/x"],
    ["POST", "/v1/bulks"],
    ["DELETE", "/v1/bulks/bulk_x"],
  ])("have nothing at %s %s, and neither has the upstream", async (method, path) => {
    expect(await refusalOf(await outlast.fetch(path, { method }))).toMatchObject({ code: "not_found" });
    expect(outlast.fakes.one!.seen.some(({ url }) => url.includes("requests"))).toBe(false);
  });
});

describe("a page of a filtered list", () => {
  it.each(["asc", "desc"])(
    "goes on where the one before ended, while rows arrive and change: %s",
    async (order) => {
      const clock = new WatchedClock();
      const outlast = await serveTest({ clock, luck: 0.5 });
      const calls = new LedgerCalls(() => outlast);
      const mine = { user: "ann", outlast: { delay: 600, tags: ["t"] } };
      const before: string[] = [];
      for (let i = 0; i < 12; i++) {
        before.push(await calls.submit(mine));
        await calls.submit({ user: i % 2 ? "bob" : "ann", outlast: { delay: 600 } });
      }
      const got: string[] = [];
      for (let after = "", page = 1; ; page++) {
        const list = await calls.list(
          `user=ann&tag=t&status=queued,cancelled&limit=3&order=${order}${after}`,
        );
        got.push(...list.data.map(({ id }) => id));
        if (!list.has_more) break;
        // What was seen changes, and what is new comes behind what was accepted before.
        await calls.acted(list.last_id!, "cancel");
        if (page <= 2) before.push(await calls.submit(mine));
        after = `&after=${list.last_id}`;
      }
      expect(got).toEqual(order === "asc" ? before : before.slice(0, 12).reverse());
    },
  );

  it("may be about another filter's requests, and never about another project's", async () => {
    const keys = ["a", "b"].map((name) => `[[api_keys]]\nkey = "key-of-${name}"\nproject = "${name}"\n`);
    const outlast = await serveTest({ tables: keys.join("") });
    const calls = new LedgerCalls(() => outlast);
    const [a, b] = ["a", "b"].map((name) => ({ authorization: `Bearer key-of-${name}` }));
    const first = await calls.finish({ user: "ann" }, a);
    const second = await calls.finish({ user: "bob", outlast: { tags: ["t"] } }, a);
    await calls.finish({ user: "ann", outlast: { tags: ["t"] } }, b);
    expect(await calls.ids(`user=ann&after=${second}`, a)).toEqual([first]);
    expect(await calls.ids("tag=t", a)).toEqual([second]);
    expect(await calls.counts("", b)).toEqual([{ count: 1 }]);
    expect(await calls.counts("user=bob", b)).toEqual([]);
    const refused = await outlast.fetch(`/v1/requests?user=ann&after=${first}`, { headers: b });
    expect((await refusalOf(refused)).code).toBe("invalid_cursor");
  });
});
