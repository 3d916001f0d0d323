/** All parts of a request that has ended, in one row: what they have in common is then stored once. */

import { deflateRawSync, inflateRawSync } from "node:zlib";
import type { Part, PartKind } from "../../core/ports.ts";

/** What is in nearly every head and body. A pack can only be read with the words it was made with: they never change. */
const words = new TextEncoder().encode(
  [
    '{"error":{"message":"","type":"invalid_request_error","param":null,"code":null}}',
    '"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,',
    '"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"service_tier":"default",',
    '"system_fingerprint":null,"tool_calls":[{"id":"call_","type":"function","function":{"name":"","arguments":"{\\"',
    '"response_format":{"type":"json_schema","json_schema":{"name":"","strict":true,"schema":{"type":"object",',
    '"properties":{"description":"","required":[],"additionalProperties":false}}}},"tools":[{"type":"function",',
    '{"status":200,"headers":[["content-type","application/json"],["content-type","text/event-stream; charset=utf-8"],',
    '["openai-organization",""],["openai-processing-ms",""],["openai-version","2020-10-01"],["openai-model",""],',
    '["server","cloudflare"],["cf-cache-status","DYNAMIC"],["cf-ray",""],["alt-svc","h3=\\":443\\"; ma=86400"],',
    '["strict-transport-security","max-age=31536000; includeSubDomains; preload"],["x-content-type-options","nosniff"],',
    '["x-ratelimit-limit-requests",""],["x-ratelimit-limit-tokens",""],["x-ratelimit-remaining-requests",""],',
    '["x-ratelimit-remaining-tokens",""],["x-ratelimit-reset-requests",""],["x-ratelimit-reset-tokens","0s"],',
    '["x-request-id","req_"],["date",""]]}',
    '{"method":"POST","path":"/chat/completions","headers":[["accept","application/json"],["accept-language","*"],',
    '["content-type","application/json"],["user-agent","OpenAI/JS "],["user-agent","OpenAI/Python "],',
    '["user-agent","AsyncOpenAI/Python "],["x-stainless-arch","x64"],["x-stainless-arch","arm64"],',
    '["x-stainless-lang","js"],["x-stainless-lang","python"],["x-stainless-os","Linux"],["x-stainless-os","MacOS"],',
    '["x-stainless-package-version",""],["x-stainless-retry-count","0"],["x-stainless-runtime","node"],',
    '["x-stainless-runtime","CPython"],["x-stainless-runtime-version","v"],["x-stainless-timeout","600"],',
    '["sec-fetch-mode","cors"],["traceparent","00-"]]}',
    '{"model":"gpt-","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"',
    '"},{"role":"assistant","content":"","stream":true,"stream_options":{"include_usage":true},"temperature":0.,',
    '"max_tokens":,"max_completion_tokens":,"metadata":{"user":"","safety_identifier":"',
    '{"id":"chatcmpl-","object":"chat.completion","created":17,"model":"gpt-","choices":[{"index":0,"message":',
    '{"role":"assistant","content":"","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],',
    '"usage":{"prompt_tokens":,"completion_tokens":,"total_tokens":',
  ].join(""),
);

const kinds: PartKind[] = ["head", "body", "answer_head", "answer", "sent", "received"];
/** Kind, number, length. */
const entryBytes = 9;

/** Reads are worth more than space: a high level costs twice as much for a twentieth less. */
const level = 6;

export function packed(parts: readonly Part[]): Uint8Array {
  const index = Buffer.alloc(4 + parts.length * entryBytes);
  index.writeUInt32LE(parts.length, 0);
  for (const [i, { kind, seq, bytes }] of parts.entries()) {
    const at = 4 + i * entryBytes;
    index.writeUInt8(kinds.indexOf(kind), at);
    index.writeUInt32LE(seq, at + 1);
    index.writeUInt32LE(bytes.byteLength, at + 5);
  }
  const all = Buffer.concat([index, ...parts.map(({ bytes }) => bytes)]);
  // Zlib's result is a piece of a buffer of 16 KB, all of which would cross the threads.
  return new Uint8Array(deflateRawSync(all, { dictionary: words, level }));
}

export function unpacked(bytes: Uint8Array): Part[] {
  const all = inflateRawSync(bytes, { dictionary: words });
  const count = all.readUInt32LE(0);
  const parts: Part[] = [];
  let from = 4 + count * entryBytes;
  for (let i = 0; i < count; i++) {
    const at = 4 + i * entryBytes;
    const length = all.readUInt32LE(at + 5);
    const kind = kinds[all.readUInt8(at)]!;
    parts.push({ kind, seq: all.readUInt32LE(at + 1), bytes: all.subarray(from, from + length) });
    from += length;
  }
  return parts;
}
