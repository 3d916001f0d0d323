/** Reads an answer: what it says about itself, and what must not be kept of it. */

import { promisify } from "node:util";
import { brotliDecompress, gunzip, inflate } from "node:zlib";
import type { Measured } from "../core/findings.ts";
import { type HeaderList, toCaller } from "../core/headers.ts";
import type { AnswerFacts } from "../core/ports.ts";
import { redact, visibleAnswerHeaders } from "../core/redact.ts";

export interface Answer {
  status: number;
  headers: HeaderList;
  body: Uint8Array;
  facts: AnswerFacts;
}

/** What reading an answer takes. */
export interface Reading {
  /** Keys that we sent, which its errors may quote. */
  readonly secrets: string[];
  /** What a completion is found to be. */
  measure?(answer: Record<string, unknown>): Measured | undefined;
}

const decoders: Record<string, (bytes: Uint8Array) => Promise<Uint8Array>> = {
  gzip: promisify<Uint8Array, Uint8Array>(gunzip),
  "x-gzip": promisify<Uint8Array, Uint8Array>(gunzip),
  deflate: promisify<Uint8Array, Uint8Array>(inflate),
  br: promisify<Uint8Array, Uint8Array>(brotliDecompress),
};

/**
 * Makes an answer of what came over the wire. Bodies that were encoded against our wish are decoded, since
 * they are stored and read.
 */
export async function readAnswer(
  status: number,
  rawHeaders: HeaderList,
  rawBody: Uint8Array,
  reading: Reading,
): Promise<Answer> {
  const { headers, body } = await decode(rawHeaders, rawBody);
  return answerOf(status, headers, body, reading);
}

/**
 * Errors, and what is no JSON, are rid of key fragments and account ids. A successful answer's bytes are left exactly
 * as they are.
 */
export function answerOf(
  status: number,
  rawHeaders: HeaderList,
  body: Uint8Array,
  { secrets, measure }: Reading,
): Answer {
  const headers = toCaller(rawHeaders);
  const facts = readFacts(body, status < 300 ? measure : undefined);
  if (status < 400 && facts.wellFormed && !facts.error) return { status, headers, body, facts };
  return {
    status,
    headers: visibleAnswerHeaders(headers, secrets),
    body: scrubBody(body, secrets),
    facts: { ...facts, error: facts.error && scrubError(facts.error, secrets) },
  };
}

export const isEncoded = (headers: HeaderList): boolean =>
  headers.some(([name]) => name === "content-encoding");

async function decode(
  headers: HeaderList,
  body: Uint8Array,
): Promise<{ headers: HeaderList; body: Uint8Array }> {
  const encoding = headers.find(([name]) => name === "content-encoding")?.[1].toLowerCase();
  const decoder = encoding === undefined ? undefined : decoders[encoding];
  if (!decoder) return { headers, body };
  try {
    const plain = await decoder(body);
    return { headers: headers.filter(([name]) => name !== "content-encoding"), body: plain };
  } catch {
    return { headers, body };
  }
}

function readFacts(body: Uint8Array, measure: Reading["measure"]): AnswerFacts {
  let json: unknown;
  try {
    json = JSON.parse(textOf(body));
  } catch {
    return { wellFormed: false };
  }
  // Google's compatible endpoint wraps its errors in an array.
  const root = Array.isArray(json) ? json[0] : json;
  if (!isObject(root)) return { wellFormed: true };
  const error = errorOf(root);
  return {
    wellFormed: true,
    id: stringOf(root.id),
    model: stringOf(root.model),
    usage: isObject(root.usage) ? JSON.stringify(root.usage) : undefined,
    error,
    ...(error ? undefined : measure?.(root)),
  };
}

/** OpenAI's `{error: {…}}`, a bare string, and vLLM's `{object: "error", message}`. */
export function errorOf(root: Record<string, unknown>): AnswerFacts["error"] {
  const error = root.object === "error" && !root.error ? root : root.error;
  if (typeof error === "string" && error !== "") return { message: error };
  if (!isObject(error)) return undefined;
  return {
    message: stringOf(error.message) ?? "The upstream gave no message.",
    type: stringOf(error.type) ?? stringOf(error.status),
    code: stringOf(error.code),
    param: stringOf(error.param),
  };
}

function scrubError(error: NonNullable<AnswerFacts["error"]>, secrets: string[]): AnswerFacts["error"] {
  const clean = (text: string | undefined) => (text === undefined ? undefined : redact(text, secrets));
  return {
    message: clean(error.message) ?? "",
    type: clean(error.type),
    code: clean(error.code),
    param: clean(error.param),
  };
}

function scrubBody(body: Uint8Array, secrets: string[]): Uint8Array {
  const text = textOf(body);
  const clean = redact(text, secrets);
  return clean === text ? body : Buffer.from(clean);
}

const textOf = (bytes: Uint8Array): string =>
  Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("utf8");
const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Codes are numbers with some providers. */
function stringOf(value: unknown): string | undefined {
  if (typeof value === "number") return String(value);
  return typeof value === "string" && value !== "" ? value : undefined;
}
