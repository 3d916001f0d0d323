/** GET /v1/models: what can be asked for, over all upstreams. */

import type { Upstream } from "../core/ports.ts";
import { type RouteTable, targetsFor } from "../core/routing.ts";
import type { ApiOptions, Handler } from "./context.ts";
import { jsonReply } from "./errors.ts";
import { passThrough } from "./passthrough.ts";

interface ModelObject {
  id: string;
  object: "model";
  /** Unix seconds; not known over several upstreams. */
  created: number;
  owned_by: string;
}

/** How long a list is good before the upstreams are asked again. */
const freshMs = 60_000;

export function createModels(): { list: Handler; get: Handler } {
  let cached: { at: number; models: Promise<ModelObject[]> } | undefined;
  const known = ({ table, upstream, clock }: ApiOptions): Promise<ModelObject[]> => {
    const now = clock.now();
    if (!cached || now - cached.at > freshMs) cached = { at: now, models: union(table, upstream) };
    return cached.models;
  };
  return {
    list: async (_call, options) => {
      const data = await known(options);
      const ends = { first_id: data[0]?.id ?? null, last_id: data.at(-1)?.id ?? null };
      return jsonReply(200, { object: "list", data, ...ends, has_more: false });
    },
    get: async (call, options) => {
      const id = call.params.id ?? "";
      const model = (await known(options)).find((one) => one.id === id);
      return model ? jsonReply(200, model) : passThrough(call, options, undefined, { model: id });
    },
  };
}

/** Routes, listed models, and what the upstreams say they have, each under a name that leads there. */
async function union(table: RouteTable, upstream: Upstream): Promise<ModelObject[]> {
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
  return [...names].map(([id, owned_by]) => ({ id, object: "model", created: 0, owned_by }));
}

function leadsTo(table: RouteTable, model: string): string | undefined {
  try {
    return targetsFor(table, model)[0]?.upstream;
  } catch {
    return undefined;
  }
}
