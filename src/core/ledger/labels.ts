/** What a request can be found by beside its own fields: what its caller told of it. */

import type { RequestRecord } from "../request.ts";
import type { Label } from "./ports.ts";

export function labelsOf({ tags, origin }: Pick<RequestRecord, "tags" | "origin">): Label[] {
  const labels = tags.map((value) => ({ name: "tag", value }));
  if (!origin) return labels;
  const add = (name: string, value: string | undefined) => {
    if (value !== undefined) labels.push({ name, value });
  };
  add("user", origin.user);
  add("safety_identifier", origin.safetyIdentifier);
  add("trace_id", origin.traceId);
  add("client_request_id", origin.clientRequestId);
  for (const [key, value] of Object.entries(origin.metadata ?? {})) add(`metadata.${key}`, value);
  return labels;
}
