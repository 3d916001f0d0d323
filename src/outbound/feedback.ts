/** Tells a model what was wrong with its last answer. */

import { rawMember, replaceMember } from "../core/json-text.ts";

/** The body with these JSON texts behind the last of its `messages`; every other character stays. */
export function withMessages(body: string, messages: string[]): string {
  const list = rawMember(body, "messages");
  if (!list?.startsWith("[")) return body;
  const before = list.slice(0, -1);
  const comma = before.trim() === "[" ? "" : ",";
  return replaceMember(body, "messages", `${before}${comma}${messages.join(",")}]`);
}
