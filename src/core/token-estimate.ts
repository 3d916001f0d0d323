/**
 * How many tokens a call will use, and how many it has used. No tokenizer: how many tokens a byte of text makes is
 * learned per model from what providers bill. All pure.
 */

import type { CallSize } from "./request.ts";

/** What is known of a model. JSON-able. */
export interface Calibration {
  /** Tokens per byte of a prompt's text. */
  ratio: number;
  /** Tokens of a usual answer, and how far answers are from that, on average. */
  output: number;
  outputDev: number;
  /** How far estimates of prompts were from the truth, relative to it, on average. */
  error: number;
  /** Answers from which this was learned. */
  samples: number;
}

/** What a provider billed, in tokens; undefined where it does not say. */
export interface Usage {
  prompt?: number;
  output?: number;
  total?: number;
  /** Of the prompt, what came from the provider's cache. */
  cached?: number;
  /** Of the output, what the model thought to itself. */
  reasoning?: number;
  /** US dollars, where the provider says so itself. */
  cost?: number;
  /** It was not the provider who said so. */
  estimated?: boolean;
}

const untaught: Calibration = { ratio: 0.25, output: 1000, outputDev: 0, error: 0, samples: 0 };
/** For calls of which no size is known. */
const unknownPrompt = 1000;
/** Beyond what any model takes or gives. */
const mostTokens = 10_000_000;
const mostOutput = 1_000_000;
/** No tokenizer makes more than one token of a byte; a page of one repeated word makes about 100 bytes a token. */
const mostPerByte = 1;
const leastPerByte = 0.01;
/** One absurd answer must not drown what all others say. */
const mostError = 10;
/** Weight of the newest answer, once there are enough of them. */
const newest = 0.05;
/** A prompt of this many bytes says half as much about the ratio as a very long one: every message has its frame. */
const halfWeightBytes = 200;

/**
 * Tokens that a call is reckoned at: its prompt, and the most that its answer may have or, where the caller sets no
 * limit, rather more than is usual.
 */
export function estimate(
  calibration: Calibration | undefined,
  size: CallSize | undefined,
): { prompt: number; output: number } {
  const known = calibration ?? untaught;
  const output = Math.ceil(size?.maxOutput ?? known.output + 2 * known.outputDev);
  return { prompt: promptOf(known, size), output: Math.min(mostOutput, Math.max(0, output)) };
}

function promptOf(known: Calibration, size: CallSize | undefined): number {
  if (size === undefined) return unknownPrompt;
  return Math.min(mostTokens, Math.ceil(size.textBytes * known.ratio + size.mediaTokens));
}

/** What is known after an answer. What cannot be true teaches nothing. */
export function calibrated(
  before: Calibration | undefined,
  size: CallSize | undefined,
  usage: Usage,
): Calibration {
  const known = before ?? untaught;
  const prompt = isWithin(usage.prompt, 1, mostTokens) ? usage.prompt : undefined;
  const output = isWithin(usage.output, 0, mostOutput) ? usage.output : undefined;
  if (output === undefined && (prompt === undefined || size === undefined)) return known;
  const samples = Math.min(known.samples + 1, Number.MAX_SAFE_INTEGER);
  const weight = Math.max(1 / samples, newest);
  const next = { ...known, samples };
  if (prompt !== undefined && size !== undefined) learnPrompt(next, size, prompt, weight);
  if (output !== undefined) {
    next.outputDev += weight * (Math.abs(output - known.output) - known.outputDev);
    next.output += weight * (output - known.output);
  }
  return next;
}

function learnPrompt(next: Calibration, size: CallSize, prompt: number, weight: number): void {
  const error = Math.min(mostError, Math.abs(promptOf(next, size) - prompt) / prompt);
  next.error += weight * (error - next.error);
  const text = prompt - size.mediaTokens;
  if (text <= 0 || size.textBytes <= 0) return;
  const observed = Math.min(mostPerByte, Math.max(leastPerByte, text / size.textBytes));
  const says = size.textBytes / (size.textBytes + halfWeightBytes);
  next.ratio += weight * says * (observed - next.ratio);
}

/** Reads what `calibrated` returned and JSON has kept; undefined for anything else. */
export function readCalibration(json: unknown): Calibration | undefined {
  if (typeof json !== "object" || json === null) return undefined;
  const { ratio, output, outputDev, error, samples } = json as Record<string, unknown>;
  const isSound =
    isWithin(ratio, leastPerByte, mostPerByte) &&
    isWithin(output, 0, mostOutput) &&
    isWithin(outputDev, 0, mostOutput) &&
    isWithin(error, 0, mostError) &&
    isWithin(samples, 0, Number.MAX_SAFE_INTEGER);
  return isSound ? { ratio, output, outputDev, error, samples } : undefined;
}

function isWithin(value: unknown, least: number, most: number): value is number {
  return typeof value === "number" && value >= least && value <= most;
}

/**
 * Reads a `usage` object, given as JSON text, in the words of OpenAI's Chat Completions and Responses and of
 * Anthropic's Messages. Never throws: what is not there, or is not a number of tokens, is undefined.
 */
export function usageOf(jsonText: string | undefined): Usage {
  const usage = objectOf(jsonText === undefined ? undefined : parsed(jsonText));
  const prompt = count(usage.prompt_tokens) ?? inputOf(usage);
  const told = count(usage.completion_tokens) ?? count(usage.output_tokens);
  const total = count(usage.total_tokens);
  const rest = prompt !== undefined && total !== undefined && total >= prompt ? total - prompt : undefined;
  const output = told ?? rest;
  return {
    prompt,
    output,
    total: total ?? (prompt !== undefined && output !== undefined ? prompt + output : undefined),
    cached:
      count(objectOf(usage.prompt_tokens_details).cached_tokens) ??
      count(objectOf(usage.input_tokens_details).cached_tokens) ??
      count(usage.cache_read_input_tokens),
    reasoning:
      count(objectOf(usage.completion_tokens_details).reasoning_tokens) ??
      count(objectOf(usage.output_tokens_details).reasoning_tokens),
    cost: isWithin(usage.cost, 0, Number.MAX_VALUE) ? usage.cost : undefined,
    estimated: usage.estimated === true ? true : undefined,
  };
}

/** Anthropic counts what it reads from its cache, or writes to it, beside `input_tokens`. */
function inputOf(usage: Record<string, unknown>): number | undefined {
  const input = count(usage.input_tokens);
  if (input === undefined) return undefined;
  return (
    input + (count(usage.cache_read_input_tokens) ?? 0) + (count(usage.cache_creation_input_tokens) ?? 0)
  );
}

const count = (value: unknown): number | undefined =>
  isWithin(value, 0, Number.MAX_SAFE_INTEGER) && Number.isInteger(value) ? value : undefined;

const objectOf = (value: unknown): Record<string, unknown> =>
  typeof value === "object" && value !== null ? (value as Record<string, unknown>) : {};

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * What an upstream is paid for that did not come to its account of it. Four characters make a token, roughly, in
 * English text; JSON around the prompt counts as prompt.
 */
export function estimatedUsage(promptBytes: number, chars: number): string {
  const prompt_tokens = Math.ceil(promptBytes / 4);
  const completion_tokens = Math.ceil(chars / 4);
  const total_tokens = prompt_tokens + completion_tokens;
  return JSON.stringify({ prompt_tokens, completion_tokens, total_tokens, estimated: true });
}
