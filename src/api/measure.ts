/** What a body asks for: how much, for limits of tokens; and in which form, for what its answer is measured by. */

import { isDeepStrictEqual } from "node:util";
import { AppError } from "../core/errors.ts";
import type { Checks } from "../core/ports.ts";
import type { CallSize, Problem } from "../core/request.ts";
import type { ValidateWish } from "../core/wishes.ts";

/** An image, a sound, a file: what OpenAI's and Anthropic's price pages have for an image of a million pixels. */
const tokensPerMedium = 1000;

type Json = Record<string, unknown>;
const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Members that are told to the model; the others steer the call. */
const prompts = ["messages", "input", "prompt", "tools", "functions", "response_format", "instructions"];

/** Reckons without a tokenizer: it would block everybody else. The scheduler learns from usage what a byte is worth. */
export function sizeOf(body: Json): CallSize {
  const size: CallSize = { textBytes: 0, mediaTokens: 0 };
  for (const name of prompts) if (name in body) add(size, body[name]);
  const most = [body.max_completion_tokens, body.max_tokens, body.max_output_tokens].find(isCount);
  if (most !== undefined) size.maxOutput = most * (isCount(body.n) ? body.n : 1);
  return size;
}

const isCount = (value: unknown): value is number =>
  typeof value === "number" && Number.isSafeInteger(value) && value > 0;

/** Callers decide how deep a body is, so this does not call itself. */
function add(size: CallSize, prompt: unknown): void {
  const left: unknown[] = [prompt];
  while (left.length > 0) {
    const value = left.pop();
    if (typeof value === "string") {
      if (isMedium(value)) size.mediaTokens += tokensPerMedium;
      else size.textBytes += Buffer.byteLength(value);
    } else if (Array.isArray(value)) {
      // An input of token ids: a token is four bytes of text, as anywhere before anything is learned.
      if (typeof value[0] === "number") size.textBytes += value.length * 4;
      else for (const item of value) left.push(item);
    } else if (isObject(value)) {
      if (value.type === "image_url" || value.type === "input_image") size.mediaTokens += tokensPerMedium;
      else for (const item of Object.values(value)) left.push(item);
    } else if (value !== null && value !== undefined) {
      size.textBytes += 4;
    }
  }
}

/**
 * What the answer to a body is measured by; undefined where nobody asked for anything.
 * @param schemaProblem why a JSON Schema cannot be used, or undefined
 * @param where the member in which it is the caller's own wish: a schema that cannot be used is its mistake
 * @throws AppError `invalid_parameter`
 */
export function checksOf(
  body: Json,
  wish: ValidateWish | undefined,
  schemaProblem: (schema: unknown) => string | undefined,
  where?: string,
): Checks | undefined {
  const format = formatOf(body);
  const asksJson = format.type === "json_object" || format.type === "json_schema";
  if (!wish) return asksJson ? { json: true, invalidIf: [], feedback: false } : undefined;
  const schema = usable(
    wish.schema ?? (wish.json ? schemaOf(format) : undefined),
    wish,
    schemaProblem,
    where,
  );
  const json = wish.json && (asksJson || schema !== undefined);
  const invalidIf: Problem[] = [];
  // Where no JSON was asked for, that is what tools are called with.
  if (wish.json) invalidIf.push("invalid_json");
  if (schema !== undefined) invalidIf.push("schema_mismatch");
  if (wish.refusal) invalidIf.push("refusal", "content_filter");
  if (wish.length) invalidIf.push("length");
  if (wish.empty) invalidIf.push("empty");
  return { json: json || asksJson, schema, invalidIf, feedback: wish.feedback };
}

const formatOf = ({ response_format: format }: Json): Json => (isObject(format) ? format : {});
const schemaOf = ({ json_schema: asked }: Json): unknown => (isObject(asked) ? asked.schema : undefined);

/** The wish that made these checks of this body's answer, for another body; undefined where nobody wished anything. */
export function wishOf(
  { invalidIf = [], schema, feedback = false }: Partial<Checks> = {},
  maxRetries: number | undefined,
  body: Json,
): ValidateWish | undefined {
  if (invalidIf.length === 0 || maxRetries === undefined) return undefined;
  const json = invalidIf.includes("invalid_json");
  const isFormats = json && isDeepStrictEqual(schema, schemaOf(formatOf(body)));
  return {
    json,
    schema: isFormats ? undefined : schema,
    refusal: invalidIf.includes("refusal"),
    length: invalidIf.includes("length"),
    empty: invalidIf.includes("empty"),
    maxRetries,
    feedback,
  };
}

function usable(
  schema: unknown,
  wish: ValidateWish,
  schemaProblem: (schema: unknown) => string | undefined,
  where: string | undefined,
): unknown {
  if (schema === undefined) return undefined;
  const problem = schemaProblem(schema);
  if (problem === undefined) return schema;
  if (where === undefined) return undefined;
  const own = `${where}.validate.schema`;
  const param = wish.schema === undefined ? "response_format.json_schema.schema" : own;
  throw new AppError("invalid_parameter", `\`${param}\` cannot be used to validate answers: ${problem}.`, {
    param,
  });
}

/** A data URL, or what is base64 as far as one can see. */
const isMedium = (text: string): boolean =>
  text.startsWith("data:") || (text.length >= 4096 && /^[\w+/]{4096}/.test(text));
