/** GET /v1/models: what can be asked for, over all upstreams. */

import type { Upstream } from "../core/ports.ts";
import { type RouteTable, targetsFor } from "../core/routing.ts";
import type { ApiOptions, Call, Handler } from "./context.ts";
import { jsonReply } from "./errors.ts";
import { passThrough } from "./passthrough.ts";
import type { Reply } from "./reply.ts";

interface ModelObject {
  id: string;
  object: "model";
  /** Unix seconds; not known over several upstreams. */
  created: number;
  owned_by: string;
}

interface Union {
  models: ModelObject[];
  /** Whether every upstream could be asked. */
  complete: boolean;
}

/** How long a list is good before the upstreams are asked again; one that lacks an upstream is good for less. */
const freshMs = 60_000;
const incompleteFreshMs = 5000;

export function createModels(): { list: Handler; get: Handler } {
  let cached: { until: number; union: Promise<Union> } | undefined;
  const known = async ({ table, upstream, clock }: ApiOptions): Promise<ModelObject[]> => {
    const now = clock.ticks();
    if (cached && now <= cached.until) return (await cached.union).models;
    const asked = { until: now + freshMs, union: unionOf(table, upstream) };
    cached = asked;
    const { models, complete } = await asked.union;
    if (!complete) asked.until = now + incompleteFreshMs;
    return models;
  };
  return {
    list: async (_call, options) => {
      const data = await known(options);
      const ends = { first_id: data[0]?.id ?? null, last_id: data.at(-1)?.id ?? null };
      return jsonReply(200, { object: "list", data, ...ends, has_more: false });
    },
    get: async (call, options) => retrieve(call, options, await known(options)),
  };
}

/** A model as it is listed; or under another name that leads to it, such as `upstream/model`; or as its upstream has it. */
async function retrieve(call: Call, options: ApiOptions, models: ModelObject[]): Promise<Reply | undefined> {
  const id = call.params.id ?? "";
  const listed = models.find((one) => one.id === id);
  if (listed) return jsonReply(200, listed);
  const { upstream, model } = targetsFor(options.table, id)[0]!;
  const names = [model, `${upstream}/${model}`];
  if (models.some((one) => one.owned_by === upstream && names.includes(one.id))) {
    return jsonReply(200, { id, object: "model", created: 0, owned_by: upstream } satisfies ModelObject);
  }
  const path = model === id ? call.path : `/models/${encodeURIComponent(model)}`;
  return passThrough({ ...call, path }, options, undefined, { model: id });
}

/** Routes, listed models, and what the upstreams say they have, each under a name that leads there. */
async function unionOf(table: RouteTable, upstream: Upstream): Promise<Union> {
  const names = new Map<string, string>();
  const add = (id: string, owner: string) => {
    if (!names.has(id)) names.set(id, owner);
  };
  for (const { model } of table.routes) if (!model.includes("*")) add(model, "outlast");
  const lists = await Promise.all(table.upstreams.map(({ name }) => upstream.models(name)));
  for (const [i, { name, models }] of table.upstreams.entries()) {
    const listed = models.filter((model) => !model.includes("*"));
    for (const id of new Set([...listed, ...(lists[i] ?? [])])) {
      add(leadsTo(table, id) === name ? id : `${name}/${id}`, name);
    }
  }
  const models = [...names].map(([id, owned_by]): ModelObject => {
    return { id, object: "model", created: 0, owned_by };
  });
  return { models, complete: !lists.includes(undefined) };
}

function leadsTo(table: RouteTable, model: string): string | undefined {
  try {
    return targetsFor(table, model)[0]?.upstream;
  } catch {
    return undefined;
  }
}
