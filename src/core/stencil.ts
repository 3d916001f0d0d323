/**
 * Most chunks of a streamed answer are as the one before them but for their text. What such a one says is known from
 * what is the same, and it need not be parsed: parsing is a good part of what a chunk costs.
 */

import type { ReadChunk } from "./chunk.ts";

/** A JSON string without escapes, which stands for itself. What is between quotes may not have control characters. */
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is meant
const plain = /^[^"\\\u0000-\u001f]*$/;
const contentKey = /"content"\s*:\s*"/g;
/** Random padding, another in each chunk, which says nothing. */
const paddingKey = /"obfuscation"\s*:\s*"/g;

export class Stencil {
  /** What lies before, between and behind the strings that may differ; the first one is the text. */
  private readonly pieces: string[];
  /** As the chunks say it: there is no usage yet. */
  readonly hasNullUsage: boolean;

  private constructor(pieces: string[], hasNullUsage: boolean) {
    this.pieces = pieces;
    this.hasNullUsage = hasNullUsage;
  }

  /** @returns undefined for a chunk that says anything beyond its text, or whose text has escapes */
  static of(chunk: ReadChunk): Stencil | undefined {
    const { data, json, text, chars, isEnd } = chunk;
    const isText = text !== undefined && text !== "" && chars === text.length && !isEnd;
    if (!isText || (json.choices as unknown[]).length !== 1 || data.includes("\\")) return undefined;
    const start = onlyEnd(data, contentKey);
    if (start === undefined || !data.startsWith(`${text}"`, start)) return undefined;
    const end = start + text.length;
    const padded = typeof json.obfuscation === "string" ? (onlyEnd(data, paddingKey) ?? 0) : 0;
    const behind =
      padded > end ? [data.slice(end, padded), data.slice(data.indexOf('"', padded))] : [data.slice(end)];
    return new Stencil([data.slice(0, start), ...behind], json.usage === null);
  }

  /** The text of a chunk that says nothing else new; undefined for any other. */
  textOf(data: string): string | undefined {
    const { pieces } = this;
    let text: string | undefined;
    let at = 0;
    for (let i = 0; i < pieces.length; i++) {
      const piece = pieces[i]!;
      if (!data.startsWith(piece, at)) return undefined;
      at += piece.length;
      if (i === pieces.length - 1) break;
      const end = data.indexOf('"', at);
      const hole = data.slice(at, end);
      if (end < 0 || !plain.test(hole)) return undefined;
      text ??= hole;
      at = end;
    }
    return at === data.length && text !== "" ? text : undefined;
  }
}

/** Where the one match ends. Without escapes a name between quotes is a key, or there is another one that is. */
function onlyEnd(text: string, key: RegExp): number | undefined {
  key.lastIndex = 0;
  if (!key.test(text)) return undefined;
  const end = key.lastIndex;
  return key.test(text) ? undefined : end;
}
