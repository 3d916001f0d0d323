/** What callers tell of themselves, so that their requests can be found by it. Nothing of it changes a call. */

import { hash } from "node:crypto";
import type { Origin } from "../core/request.ts";
import type { HeaderOf } from "./guard.ts";

type Json = Record<string, unknown>;
const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** OpenAI's limits; what is beyond them, or is no text, is the upstream's to judge and is not found by. */
const longestText = 512;
const longestName = 64;
const mostPairs = 16;

const textOf = (value: unknown): string | undefined =>
  typeof value === "string" && value !== "" && value.length <= longestText ? value : undefined;

/** Undefined where the caller says nothing of itself. */
export function originOf(body: Json, header: HeaderOf): Origin | undefined {
  const user = textOf(body.user);
  const safetyIdentifier = textOf(body.safety_identifier);
  const metadata = metadataOf(body.metadata);
  const traceId = traceIdOf(header("traceparent"));
  const clientRequestId = /^[\x21-\x7e]{1,200}$/.exec(header("x-request-id") ?? "")?.[0];
  const says = user ?? safetyIdentifier ?? metadata ?? traceId ?? clientRequestId;
  return says === undefined ? undefined : { user, safetyIdentifier, metadata, traceId, clientRequestId };
}

function metadataOf(value: unknown): Record<string, string> | undefined {
  if (!isObject(value)) return undefined;
  const pairs: [string, string][] = [];
  for (const [name, one] of Object.entries(value)) {
    const text = textOf(one);
    if (text === undefined || name === "" || name.length > longestName) continue;
    if (pairs.push([name, text]) === mostPairs) break;
  }
  return pairs.length > 0 ? Object.fromEntries(pairs) : undefined;
}

/** Of a W3C `traceparent` of this version or a later one, which may say more. */
function traceIdOf(parent: string | undefined): string | undefined {
  const match = /^([\da-f]{2})-([\da-f]{32})-([\da-f]{16})-[\da-f]{2}(-.*)?$/.exec(parent?.trim() ?? "");
  if (!match) return undefined;
  const [, version, traceId, parentId, more] = match;
  if (version === "ff" || (version === "00" && more !== undefined)) return undefined;
  return /^0+$/.test(traceId!) || /^0+$/.test(parentId!) ? undefined : traceId;
}

/** Members that instruct the model, beside messages of these roles. */
const instructing = ["instructions", "tools", "functions", "response_format"];
const instructors: unknown[] = ["system", "developer"];

/** SHA-256 (hex) of a body's instructions as they were written; undefined without any. */
export function promptHashOf(body: Json): string | undefined {
  const found: unknown[] = [];
  for (const message of Array.isArray(body.messages) ? body.messages : []) {
    if (isObject(message) && instructors.includes(message.role)) found.push([message.role, message.content]);
  }
  for (const name of instructing) {
    if (body[name] !== undefined && body[name] !== null) found.push([name, body[name]]);
  }
  if (found.length === 0) return undefined;
  try {
    return hash("sha256", JSON.stringify(found));
  } catch (error) {
    // Callers decide how deep a body is. What is too deep to be written is not compared.
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}
