/**
 * Streams say what they cost only where they are asked to. We ask for it whether or not the caller did, and keep
 * from callers what they did not ask for.
 */

import { cutMembers, rawMember, setMember } from "../core/json-text.ts";
import type { Outcome } from "../core/ports.ts";

/** The body of a call with the wish in it; the very same text if it is there already. */
export function askForUsage(body: string): string {
  const options = rawMember(body, "stream_options");
  const isThere = options !== undefined && options !== "null";
  return setMember(body, "stream_options", setMember(isThere ? options : "{}", "include_usage", "true"));
}

/** Whether an answer says that its upstream does not know the wish. */
export function refusesUsage(outcome: Outcome): boolean {
  if (outcome.kind !== "response" || !isRefusal(outcome.status)) return false;
  const text = Buffer.from(outcome.body).toString("latin1");
  return text.includes("stream_options") || text.includes("include_usage");
}

const isRefusal = (status: number): boolean => status === 400 || status === 422;

const lastMember = ',"usage":null}';

/** A chunk without the `"usage": null` that it has because the last chunk will have a usage. */
export const withoutNullUsage = (chunk: string): string =>
  chunk.endsWith(lastMember) ? `${chunk.slice(0, -lastMember.length)}}` : cutMembers(chunk, ["usage"]);
