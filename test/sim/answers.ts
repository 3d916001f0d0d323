/** What the simulated upstream says: texts that are the same for the same request, and chunks of them. */

import { createHash } from "node:crypto";
import type { Chunk, Identity, Part, StreamWish } from "../../src/core/ports.ts";
import { seeded } from "./clock.ts";

/** What becomes of a stream. Where it breaks is drawn for each one: also before its first content. */
export type StreamFate = "whole" | "no_done" | "cut" | "stall" | "malformed" | "error_event";

/** One answer, in the pieces of one attempt. */
export interface Telling {
  /** All that it says. */
  said: string;
  identity: Identity;
  chunks: Chunk[];
  /** The chat.completion that its chunks make. */
  body: string;
}

interface Manner {
  /** Arguments of a tool instead of content: nothing that a second answer could be compared with. */
  callsTool: boolean;
  /** Blows up every chunk, so that streams are longer than what is read from the disk at a time. */
  padding: number;
  words: number;
}

const hashed = (text: string): number => createHash("sha256").update(text).digest().readUInt32BE(0);

function mannerOf(nonce: string): Manner {
  const luck = seeded(hashed(nonce));
  const callsTool = luck() < 0.12;
  const isBulky = luck() < 0.06;
  return { callsTool, padding: isBulky ? 60_000 : 0, words: 1 + Math.floor(luck() ** 2 * 60) };
}

/** The text of a request; another variant of it begins with the same words, or with none of them. */
function textOf(nonce: string, variant: number, words: number): string {
  const base = seeded(hashed(nonce));
  const own = seeded(hashed(`${nonce} ${variant}`));
  const fork = variant === 0 ? words : Math.floor(own() * words);
  const wordAt = (i: number): string => {
    const common = Math.floor(base() * 1e6).toString(36);
    return i < fork ? common : Math.floor(own() * 1e6).toString(36);
  };
  return Array.from({ length: words }, (_, i) => `${wordAt(i)} `).join("");
}

/** Cut where it happens, so that the pieces of two attempts are not the same. */
function pieces(text: string, luck: () => number): string[] {
  const longest = 1 + Math.floor(luck() * 40);
  const found: string[] = [];
  for (let from = 0; from < text.length; ) {
    const length = 1 + Math.floor(luck() * longest);
    found.push(text.slice(from, from + length));
    from += length;
  }
  return found;
}

/** A whole answer. `variant` 0 is what the request is told as a rule. */
export function telling(nonce: string, variant: number, wish: StreamWish, luck: () => number): Telling {
  const { callsTool, padding, words } = mannerOf(nonce);
  const said = textOf(nonce, variant, words);
  const identity = wish.identity ?? {
    id: `chatcmpl-${nonce}-${variant}-${Math.floor(luck() * 1e9)}`,
    created: 1,
  };
  const event = (choices: object[], more: object = {}) =>
    JSON.stringify({ ...identity, object: "chat.completion.chunk", choices, ...more });
  const chunk = (delta: object, finish_reason: string | null, facts: Omit<Chunk, "data">): Chunk => ({
    data: event([{ index: 0, delta, finish_reason }], padding ? { padding: "x".repeat(padding) } : {}),
    ...facts,
  });
  const deltaOf = (piece: string) =>
    callsTool ? { tool_calls: [{ index: 0, function: { arguments: piece } }] } : { content: piece };
  const factsOf = (piece: string) => ({
    isContent: true,
    isEnd: false,
    text: callsTool ? undefined : piece,
    chars: piece.length,
  });
  const chunks = [
    chunk({ role: "assistant" }, null, { isContent: false, isEnd: false, text: "", chars: 0 }),
    ...pieces(said, luck).map((piece) => chunk(deltaOf(piece), null, factsOf(piece))),
    chunk({}, "stop", { isContent: true, isEnd: true, text: "", chars: 0 }),
  ];
  const usage = { prompt_tokens: 1, completion_tokens: said.length, total_tokens: said.length + 1 };
  if (wish.usage)
    chunks.push({ data: event([], { usage }), isContent: false, isEnd: false, text: "", chars: 0 });
  return { said, identity, chunks, body: completion(identity, said, callsTool) };
}

/** The `chat.completion` of an answer. */
export function completion(identity: Identity, said: string, callsTool = false): string {
  const message = callsTool
    ? { role: "assistant", content: null, tool_calls: [{ id: "c", function: { arguments: said } }] }
    : { role: "assistant", content: said };
  const choices = [{ index: 0, message, finish_reason: "stop" }];
  return JSON.stringify({ ...identity, object: "chat.completion", choices });
}

interface Words {
  content?: string | null;
  tool_calls?: { function: { arguments: string } }[];
}

const wordsOf = ({ content, tool_calls }: Words): string =>
  (content ?? "") + (tool_calls ?? []).map((call) => call.function.arguments).join("");

interface ChunkObject {
  id: string;
  choices: { delta: Words; finish_reason: string | null }[];
}

/** What events of a stream say: all their text, the ids that they go by, and how many ends they have. */
export function readEvents(events: string[]): { said: string; ids: Set<string>; ends: number } {
  const chunks = events.map((data) => JSON.parse(data) as ChunkObject);
  const choices = chunks.flatMap((chunk) => chunk.choices);
  return {
    said: choices.map(({ delta }) => wordsOf(delta)).join(""),
    ids: new Set(chunks.map(({ id }) => id)),
    ends: choices.filter(({ finish_reason }) => finish_reason !== null).length,
  };
}

/** The same of a recorded answer; undefined where there is none. */
export function readCompletion(parts: Part[]): { said: string; id: string } | undefined {
  const answer = parts.find(({ kind }) => kind === "answer");
  if (!answer) return undefined;
  const { id, choices } = JSON.parse(new TextDecoder().decode(answer.bytes)) as {
    id: string;
    choices: { message: Words }[];
  };
  return { id, said: choices.map(({ message }) => wordsOf(message)).join("") };
}
