/** Continues a stream whose first attempt broke off: does the answer of the next one begin with what callers have? */

import { cutMembers, rawMember, replaceMember } from "./json-text.ts";
import type { Chunk } from "./ports.ts";

/**
 * `comparing`: all of it is known so far; nothing goes out. `joined`: the chunks are what lies beyond the delivered
 * text. `diverged`: it is another answer; the chunks are all of it, from its start, unchanged.
 */
export type Spliced = { kind: "comparing" } | { kind: "joined" | "diverged"; chunks: Chunk[] };

/**
 * Compares an answer that was begun anew with the text that was delivered already. Chunks are compared as text: where
 * one ends and the next begins may differ. Once it has joined or diverged it has nothing more to say.
 */
export class Splice {
  private readonly delivered: string;
  /** How many characters of `delivered` have come again. */
  private matched = 0;
  private readonly compared: Chunk[] = [];

  /** @param delivered not empty */
  constructor(delivered: string) {
    this.delivered = delivered;
  }

  take(chunk: Chunk): Spliced {
    const { text, isContent } = chunk;
    const open = this.delivered.length - this.matched;
    this.compared.push(chunk);
    if (text === undefined || (isContent && text === "")) return this.diverged();
    const isSame =
      text.length < open
        ? this.delivered.startsWith(text, this.matched)
        : text.startsWith(this.delivered.slice(this.matched));
    if (!isSame) return this.diverged();
    if (text.length >= open) return { kind: "joined", chunks: beyond(chunk, text.slice(open)) };
    this.matched += text.length;
    return { kind: "comparing" };
  }

  /** The answer is whole: whatever is still being compared is shorter than what was delivered. */
  end(): Spliced {
    return this.diverged();
  }

  private diverged(): Spliced {
    return { kind: "diverged", chunks: this.compared };
  }
}

/** The chunk with only the end of its text; nothing where that leaves it nothing to say. */
function beyond(chunk: Chunk, rest: string): Chunk[] {
  if (rest === "" && !chunk.isEnd) return [];
  const data = edited(chunk.data, "choices", (choices) => {
    const choice = choices.slice(1, -1);
    return `[${edited(choice, "delta", (delta) => withContent(delta, rest))}]`;
  });
  const chars = chunk.chars - (chunk.text!.length - rest.length);
  return [{ ...chunk, data, text: rest, chars }];
}

/** Without the role: it was told with the delivered text, and some SDKs add up whatever text they are told twice. */
function withContent(delta: string, content: string): string {
  return replaceMember(cutMembers(delta, ["role"]), "content", JSON.stringify(content));
}

function edited(text: string, name: string, edit: (value: string) => string): string {
  const value = rawMember(text, name);
  return value === undefined ? text : replaceMember(text, name, edit(value));
}
