/** What a request's prompt and answer say, for the index. Bodies are JSON of any kind, or no JSON at all. */

import type { Shelved } from "./ledger.ts";
import { folded } from "./search-words.ts";

export interface Texts {
  prompt: string;
  answer: string;
}

/** No more is indexed of either side: what comes behind it is not found. Characters. */
const sideMax = 256 * 1024;
/** A part that is larger would take too much memory to be read. Bytes. */
const partMax = 32 * 1024 * 1024;

/** Of messages only what is said in them: not their roles, ids and kinds. */
const said = new Set([
  "messages",
  "choices",
  "message",
  "content",
  "text",
  "refusal",
  "name",
  "tool_calls",
  "function_call",
  "function",
  "custom",
  "arguments",
  "input",
]);
const nothing = new Set<string>();
const inputs = new Set(["input"]);
/** What is looked into of each side; undefined: all. */
const members: Record<string, { body?: Set<string>; answer?: Set<string> }> = {
  "chat.completions": { body: said, answer: said },
  embeddings: { body: inputs, answer: nothing },
};

const decoder = new TextDecoder("utf-8");
/** Images and sounds as text. */
const isData = (text: string): boolean => text.startsWith("data:") || /^[\w+/-]{512}/.test(text);

/** The texts of a request, as the index has them. What is encrypted is never looked into. */
export function textsOf(endpoint: string, parts: Shelved["parts"]): Texts {
  const side = (kind: "body" | "answer"): string => {
    const part = parts.find((one) => one.kind === kind);
    if (!part || part.keyId !== null || part.bytes.byteLength > partMax) return "";
    return folded(textOf(decoder.decode(part.bytes), members[endpoint]?.[kind]));
  };
  return { prompt: side("body"), answer: side("answer") };
}

function textOf(body: string, within: Set<string> | undefined): string {
  const found: string[] = [];
  let left = sideMax;
  const collect = (value: unknown): void => {
    if (left <= 0) return;
    if (typeof value === "string") {
      if (isData(value)) return;
      found.push(value.slice(0, left));
      left -= value.length + 1;
    } else if (Array.isArray(value)) {
      for (const one of value) collect(one);
    } else if (value !== null && typeof value === "object") {
      for (const [name, one] of Object.entries(value)) if (!within || within.has(name)) collect(one);
    }
  };
  try {
    collect(parsed(body));
  } catch (error) {
    // Callers decide how deep a body is: it is indexed as far as that could be followed.
    if (!(error instanceof RangeError)) throw error;
  }
  return found.join("\n");
}

/** What is no JSON is text, unless it is nothing of the kind. */
function parsed(body: string): unknown {
  try {
    return JSON.parse(body);
  } catch {
    return /[\0\ufffd]/.test(body) ? undefined : body;
  }
}
