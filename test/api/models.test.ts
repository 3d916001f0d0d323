import { afterEach, beforeEach, describe, expect, it } from "vitest";
import {
  answer,
  closedPort,
  deltas,
  type FakeUpstream,
  fail,
  hang,
  type Step,
  startFake,
  stream,
} from "../support/fake-upstream.ts";
import { hello, type Outlast, startOutlast } from "../support/outlast.ts";
import { errorOf, refusalOf, WatchedClock } from "./wire.ts";

let outlast: Outlast;
let one: FakeUpstream;
let two: FakeUpstream;

beforeEach(async () => {
  [one, two] = await Promise.all([startFake(), startFake()]);
});

afterEach(async () => {
  await Promise.all([one.close(), two.close()]);
  await outlast.close();
});

/** Lists these models, and answers everything else. */
function lists(...ids: string[]): Step {
  const data = ids.map((id) => ({ id, object: "model", created: 1, owned_by: "them" }));
  return (call, res) => {
    const list = call.method === "GET" && call.url === "/v1/models";
    return answer(list ? { body: { object: "list", data } } : {})(call, res);
  };
}

interface Shape {
  /** What the configuration says that an upstream has. */
  one?: string[];
  two?: string[];
  routes?: string;
  baseUrl?: string;
  toml?: string;
  clock?: WatchedClock;
}

async function start(shape: Shape = {}) {
  const table = (name: string, baseUrl: string, models: string[] = []) =>
    `[upstreams.${name}]\nbase_url = "${baseUrl}"\nmodels = ${JSON.stringify(models)}\n`;
  const upstreams =
    table("one", shape.baseUrl ?? one.baseUrl, shape.one) + table("two", two.baseUrl, shape.two);
  const tables = `${upstreams}\n[routes]\n${shape.routes ?? ""}`;
  outlast = await startOutlast({ upstreams: {}, tables, toml: shape.toml, clock: shape.clock });
  return outlast;
}

async function names(): Promise<string[]> {
  const ids: string[] = [];
  for await (const model of outlast.client().models.list()) ids.push(model.id);
  return ids;
}

describe("the list of models", () => {
  it("is the union of what the upstreams have, in their order", async () => {
    one.otherwise(lists("gpt-4.1", "gpt-4.1-mini"));
    two.otherwise(lists("llama-3"));
    const { fetch } = await start({ one: ["gpt-*"], two: ["llama-*"] });
    expect(await (await fetch("/v1/models")).json()).toEqual({
      object: "list",
      data: [
        { id: "gpt-4.1", object: "model", created: 0, owned_by: "one" },
        { id: "gpt-4.1-mini", object: "model", created: 0, owned_by: "one" },
        { id: "llama-3", object: "model", created: 0, owned_by: "two" },
      ],
      first_id: "gpt-4.1",
      last_id: "llama-3",
      has_more: false,
    });
  });

  it("names a model after its upstream where its own name leads elsewhere", async () => {
    one.otherwise(lists("shared", "only-one"));
    two.otherwise(lists("shared", "only-two"));
    const { post } = await start();
    expect(await names()).toEqual(["shared", "only-one", "two/shared", "two/only-two"]);
    for (const model of await names()) await post("/v1/chat/completions", { ...hello, model });
    const asked = (fake: FakeUpstream) =>
      fake.seen
        .filter(({ method }) => method === "POST")
        .map(({ body }) => JSON.parse(body.toString()).model);
    expect(asked(one)).toEqual(["shared", "only-one"]);
    expect(asked(two)).toEqual(["shared", "only-two"]);
  });

  it("has the routes, and no globs", async () => {
    one.otherwise(lists("gpt-4.1"));
    two.otherwise(lists("llama-3"));
    await start({
      one: ["gpt-*"],
      two: ["llama-*"],
      routes: '"smart" = ["one/gpt-4.1"]\n"fast-*" = ["two/llama-3"]',
    });
    expect(await names()).toEqual(["smart", "gpt-4.1", "llama-3"]);
  });

  it("has what the configuration lists, also where the upstream does not say so", async () => {
    one.otherwise(lists("gpt-4.1"));
    two.otherwise(fail(404));
    await start({ one: ["gpt-4.1", "gpt-hidden"], two: ["llama-3", "llama-*"] });
    expect(await names()).toEqual(["gpt-4.1", "gpt-hidden", "llama-3"]);
  });

  it.each([
    ["refuses connections", "closed", lists()],
    ["says 500", "open", fail(500)],
    ["says something else", "open", answer({ body: "<h1>Hi</h1>" })],
    ["lists nothing that can be read", "open", answer({ body: { object: "list", data: { a: 1 } } })],
  ] as const)("leaves out an upstream that %s", async (_name, port, step) => {
    one.otherwise(step);
    two.otherwise(lists("llama-3"));
    await start({ baseUrl: port === "closed" ? await closedPort() : undefined, two: ["llama-*"] });
    expect(await names()).toEqual(["llama-3"]);
  });

  it("leaves out an upstream that does not answer in time", async () => {
    const clock = new WatchedClock();
    one.otherwise(hang());
    two.otherwise(lists("llama-3"));
    await start({ clock, two: ["llama-*"] });
    const listing = names();
    await Promise.all([one.calls(1), two.calls(1)]);
    await two.idle();
    await outlast.fetch("/healthz");
    clock.advance(5000);
    expect(await listing).toEqual(["llama-3"]);
  });

  it("is asked for again when it is a minute old, and not before", async () => {
    const clock = new WatchedClock();
    one.otherwise(lists("a"));
    two.otherwise(lists("x"));
    await start({ clock, two: ["x"] });
    await names();
    clock.advance(60_000);
    await names();
    expect(one.seen).toHaveLength(1);
    one.otherwise(lists("a", "b"));
    clock.advance(1);
    expect(await names()).toEqual(["a", "b", "x"]);
  });

  it("is asked for again soon where an upstream could not be asked", async () => {
    const clock = new WatchedClock();
    one.otherwise(fail(503));
    two.otherwise(lists("llama-3"));
    await start({ clock, two: ["llama-*"] });
    expect(await names()).toEqual(["llama-3"]);
    one.otherwise(lists("gpt-4.1"));
    clock.advance(5000);
    expect(await names()).toEqual(["llama-3"]);
    clock.advance(1);
    expect(await names()).toEqual(["gpt-4.1", "llama-3"]);
  });

  it("shows the upstream's key to the upstream, not the caller's", async () => {
    await start({ toml: 'api_keys = [{ key = "caller-key" }]' });
    await outlast.client().models.list();
    expect(one.seen[0]!.headers.authorization).toBeUndefined();
  });
});

describe("a single model", () => {
  it("is found by its name, its slashes escaped or not", async () => {
    one.otherwise(lists("meta-llama/Llama-3", "ft:gpt-4o:org::id"));
    const { client, fetch } = await start({ two: ["x"] });
    const model = { id: "meta-llama/Llama-3", object: "model", created: 0, owned_by: "one" };
    expect(await (await fetch("/v1/models/meta-llama/Llama-3")).json()).toEqual(model);
    expect(await client().models.retrieve("meta-llama/Llama-3")).toEqual(model);
    expect((await client().models.retrieve("ft:gpt-4o:org::id")).id).toBe("ft:gpt-4o:org::id");
    expect(one.seen.map(({ url }) => url)).toEqual(["/v1/models"]);
  });

  it("is found by the name of its upstream and its own", async () => {
    one.otherwise(lists("shared", "org/only-one"));
    two.otherwise(lists("shared"));
    const { fetch } = await start();
    expect(await (await fetch("/v1/models/two/shared")).json()).toMatchObject({
      id: "two/shared",
      owned_by: "two",
    });
    expect(await (await fetch("/v1/models/one/shared")).json()).toMatchObject({
      id: "one/shared",
      owned_by: "one",
    });
    expect(await (await fetch("/v1/models/one/org/only-one")).json()).toMatchObject({
      id: "one/org/only-one",
    });
  });

  it("that nobody lists is asked for where it would be served", async () => {
    one.otherwise((call, res) =>
      (call.url === "/v1/models" ? lists("a") : answer({ body: { id: "secret", object: "model" } }))(
        call,
        res,
      ),
    );
    const { fetch } = await start({ two: ["x"] });
    expect(await (await fetch("/v1/models/secret")).json()).toEqual({ id: "secret", object: "model" });
    await fetch("/v1/models/one/org%2Fsecret");
    expect(one.seen.map(({ url }) => url)).toEqual([
      "/v1/models",
      "/v1/models/secret",
      "/v1/models/org%2Fsecret",
    ]);
  });

  it("that nobody serves is 404", async () => {
    const { fetch } = await start({ one: ["gpt-*"], two: ["llama-*"] });
    expect(await refusalOf(await fetch("/v1/models/claude"))).toEqual({
      status: 404,
      code: "model_not_found",
      param: "model",
    });
  });
});

describe("a model is served by", () => {
  const served = async (model: string, stream_?: true) => {
    const response = await outlast.post("/v1/chat/completions", {
      ...hello,
      model,
      ...(stream_ && { stream: true }),
    });
    const upstream = response.headers.get("outlast-upstream");
    const last = { one, two }[upstream ?? ""]?.seen.at(-1)?.body.toString();
    await response.text();
    return `${upstream}: ${last && JSON.parse(last).model}`;
  };
  const shape: Shape = {
    one: ["gpt-*", "exact", "both"],
    two: ["exact-*", "gpt-4.1", "both"],
    routes:
      '"smart" = ["two/llama-70b", "one"]\n"same" = ["two"]\n"gpt-5*" = ["two"]\n"gpt-5-mini" = ["one"]',
  };

  it.each([
    ["the upstream that its name begins with", "two/gpt-x", "two: gpt-x"],
    ["that upstream, also where more slashes follow", "one/meta-llama/Llama-3", "one: meta-llama/Llama-3"],
    ["that upstream, whatever the routes say", "one/smart", "one: smart"],
    ["the first target of its route, under the name that it has there", "smart", "two: llama-70b"],
    ["its route, under its own name", "same", "two: same"],
    ["its route rather than a glob among the routes", "gpt-5-mini", "one: gpt-5-mini"],
    ["a glob among the routes rather than the lists", "gpt-5-pro", "two: gpt-5-pro"],
    ["the upstream that lists it rather than one whose glob fits", "gpt-4.1", "two: gpt-4.1"],
    ["the upstream whose glob fits", "gpt-4o", "one: gpt-4o"],
    ["the first one of those that list it", "both", "one: both"],
  ])("%s: %s", async (_rule, model, expected) => {
    await start(shape);
    expect(await served(model)).toBe(expected);
    one.script(stream(deltas("Hi")));
    two.script(stream(deltas("Hi")));
    expect(await served(model, true)).toBe(expected);
  });

  it("the first upstream that lists none, where no other one knows it", async () => {
    await start({ one: ["gpt-*"] });
    expect(await served("anything/at-all")).toBe("two: anything/at-all");
    expect(await served("gpt-4o")).toBe("one: gpt-4o");
  });

  it("nobody, else: 404 that names what exists", async () => {
    const { post, fetch } = await start(shape);
    for (const more of [{}, { stream: true }, { wait: false }]) {
      const response = await post("/v1/chat/completions", { ...hello, model: "claude", ...more });
      expect(response.status).toBe(404);
      const error = await errorOf(response);
      expect(error).toMatchObject({ code: "model_not_found", param: "model", type: "invalid_request_error" });
      for (const name of ["claude", "smart", "gpt-*", "exact-*"]) expect(error.message).toContain(name);
    }
    expect([...one.seen, ...two.seen]).toEqual([]);
    expect(await (await fetch("/v1/requests")).json()).toMatchObject({ data: [] });
  });

  it("the upstream that the call names, under the name that its route gives it there", async () => {
    const { post } = await start(shape);
    const at = async (model: string, upstream: string) => {
      const response = await post("/v1/chat/completions", { ...hello, model, outlast: { upstream } });
      const seen = { one, two }[upstream]?.seen.at(-1)?.body.toString() ?? "{}";
      return `${response.headers.get("outlast-upstream")}: ${JSON.parse(seen).model}`;
    };
    expect(await at("gpt-4o", "two")).toBe("two: gpt-4o");
    expect(await at("smart", "two")).toBe("two: llama-70b");
    expect(await at("smart", "one")).toBe("one: smart");
    expect(await at("one/x", "one")).toBe("one: x");
  });
});
