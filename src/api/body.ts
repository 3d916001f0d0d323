/** Reads a body: whole, at most so large, as JSON text whose every other byte travels on unchanged. */

import { isUtf8 } from "node:buffer";
import { hash } from "node:crypto";
import { AppError } from "../core/errors.ts";
import type { HeaderList } from "../core/headers.ts";
import { canonical, cutMembers } from "../core/json-text.ts";
import type { Call } from "./context.ts";
import { ourFields } from "./options.ts";

/**
 * Rejects with undefined where the caller went away before the end.
 * @throws AppError `body_too_large`, `overloaded`, `shutting_down`
 */
export function readBody({ incoming, place }: Call, maxBytes: number): Promise<Buffer> {
  const tooLarge = () =>
    new AppError("body_too_large", `The body is larger than the ${maxBytes} bytes that are allowed.`);
  const announced = Number(incoming.headers["content-length"] ?? 0);
  const unwanted = announced > maxBytes ? tooLarge() : place.refusalOf(announced);
  if (unwanted) return Promise.reject(unwanted);
  return new Promise((resolve, reject) => {
    let chunks: Buffer[] = [];
    let size = 0;
    const onData = (chunk: Buffer) => {
      size += chunk.length;
      const refusal = size > maxBytes ? tooLarge() : place.take(chunk.length);
      if (refusal) fail(refusal);
      else chunks.push(chunk);
    };
    const onEnd = () => {
      settle();
      resolve(chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks));
    };
    const onGone = () => fail(undefined);
    // The caller may stay for long, and what listens to it stays as long.
    const settle = () => {
      incoming.off("data", onData).off("end", onEnd).off("close", onGone).off("error", onGone);
      stopReceiving();
    };
    const fail = (error: AppError | undefined) => {
      settle();
      chunks = [];
      place.drop();
      reject(error);
    };
    const stopReceiving = place.receive(fail);
    incoming.on("data", onData).on("end", onEnd).on("close", onGone).on("error", onGone);
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

/**
 * Headers that differ between a call and its repetition, or that change nothing about the answer: those of
 * SDKs, of balancers and of tracers.
 */
const volatile = new RegExp(
  [
    "^x-stainless-|^accept|^user-agent$|^content-length$",
    "^traceparent$|^tracestate$|^baggage$|^b3$|^x-b3-|^uber-trace-id$|^sentry-trace$|^x-datadog-",
    "^x-amzn-trace-id$|^x-cloud-trace-context$|^x-request-start$|^x-request-id$|^x-correlation-id$",
    "^x-client-request-id$|^x-ms-client-request-id$",
  ].join("|"),
);

/** SHA-256 (hex) of what makes a keyless call the repetition of another: who, where, how, and every byte. */
export function callHashOf(call: {
  project: string;
  authorization: string | undefined;
  path: string;
  headers: HeaderList;
  body: Uint8Array;
}): string {
  const headers = call.headers.filter(([name]) => !volatile.test(name)).sort(([a], [b]) => (a < b ? -1 : 1));
  return sha256(
    JSON.stringify([call.project, call.authorization ?? "", call.path, headers, sha256(call.body)]),
  );
}

const sha256 = (data: string | Uint8Array): string => hash("sha256", data);
