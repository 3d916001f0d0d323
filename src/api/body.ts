/** Reads a body: whole, at most so large, as JSON text whose every other byte travels on unchanged. */

import { isUtf8 } from "node:buffer";
import { createHash } from "node:crypto";
import type { IncomingMessage } from "node:http";
import { AppError } from "../core/errors.ts";
import type { HeaderList } from "../core/headers.ts";
import { canonical, cutMembers } from "../core/json-text.ts";
import { ourFields } from "./options.ts";

/** @throws AppError `body_too_large`. Rejects with undefined where the caller went away before the end. */
export function readBody(incoming: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const tooLarge = () =>
    new AppError("body_too_large", `The body is larger than the ${maxBytes} bytes that are allowed.`);
  if (Number(incoming.headers["content-length"] ?? 0) > maxBytes) return Promise.reject(tooLarge());
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let size = 0;
    incoming.on("data", (chunk: Buffer) => {
      size += chunk.length;
      if (size <= maxBytes) chunks.push(chunk);
      else reject(tooLarge());
    });
    incoming.on("end", () => resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks)));
    incoming.on("close", () => reject(undefined));
    incoming.on("error", () => reject(undefined));
  });
}

export interface JsonBody {
  bytes: Buffer;
  text: string;
  value: Record<string, unknown>;
}

/** @throws AppError `invalid_json`, `invalid_body` */
export function parseBody(bytes: Buffer): JsonBody {
  const text = bytes.toString("utf8");
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new AppError("invalid_json", "The body is not valid JSON.");
  }
  if (typeof value !== "object" || value === null || Array.isArray(value)) {
    throw new AppError("invalid_body", "The body must be a JSON object.");
  }
  return { bytes, text, value: value as Record<string, unknown> };
}

/**
 * The bytes for the upstream: our fields are cut out, and nothing else changes. As Latin-1 every byte is a
 * character, so also bytes that are no UTF-8 stay; what JSON is made of is the same in both.
 */
export function withoutOurs({ bytes, value }: JsonBody): Uint8Array {
  for (const field of ourFields) {
    if (field in value) return Buffer.from(cutMembers(bytes.toString("latin1"), ourFields), "latin1");
  }
  return bytes;
}

const notCompared: ReadonlySet<string> = new Set([...ourFields, "stream", "stream_options"]);

/** SHA-256 (hex) of what two bodies under one idempotency key must share. */
export function fingerprintOf({ bytes, text }: JsonBody): string {
  // What is no UTF-8 reads alike although it differs, so it is compared as it came.
  return sha256((isUtf8(bytes) && canonical(text, notCompared)) || bytes);
}

/** Headers that differ between a call and its repetition, or that change nothing about the answer. */
const volatile =
  /^(x-stainless-|accept|user-agent$|content-length$|traceparent$|tracestate$|baggage$|x-request-id$)/;

/** SHA-256 (hex) of what makes a keyless call the repetition of another: who, where, how, and every byte. */
export function callHashOf(call: {
  project: string;
  authorization: string | undefined;
  path: string;
  headers: HeaderList;
  body: Uint8Array;
}): string {
  const headers = call.headers.filter(([name]) => !volatile.test(name)).sort(([a], [b]) => (a < b ? -1 : 1));
  const hash = createHash("sha256");
  hash.update(JSON.stringify([call.project, call.authorization ?? "", call.path, headers]));
  return hash.update(call.body).digest("hex");
}

const sha256 = (data: string | Uint8Array): string => createHash("sha256").update(data).digest("hex");
