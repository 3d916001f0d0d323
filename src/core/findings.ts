/** Reads a completion for what is wrong with it, and for what its caller asked it to be. */

import type { AnswerFacts, Checks } from "./ports.ts";
import type { Findings, Problem } from "./request.ts";

type Json = Record<string, unknown>;

/** Where a value does not follow a JSON Schema: places and rules, at most ten; empty where it does. */
export type Mismatches = (schema: unknown, value: unknown) => string[];

export type Measured = Pick<AnswerFacts, "findings" | "invalid" | "feedback">;

/** @returns undefined for an answer that is no completion */
export function measure(
  answer: Json,
  checks: Checks | undefined,
  mismatches: Mismatches,
): Measured | undefined {
  const choices = choicesOf(answer);
  if (!choices) return undefined;
  const notes = choices.map((choice) => read(choice, checks, mismatches));
  const all = choices.length > 0 ? notes.flat() : [emptyNote];
  const findings = findingsOf(choices[0]?.finish, all);
  const invalidIf = checks ? faults(checks) : [];
  const isAtFault = (note: Note) => invalidIf.includes(note.problem);
  const invalid = [...new Set(all.filter(isAtFault).map(({ reason }) => reason))];
  if (invalid.length === 0) return { findings };
  if (!checks?.feedback || choices.some(({ isChat }) => !isChat)) return { findings, invalid };
  const culprit = choices[notes.findIndex((some) => some.some(isAtFault))];
  return { findings, invalid, feedback: feedbackOf(culprit, invalid) };
}

/** One choice of a chat completion, or of a legacy one. */
interface Choice {
  isChat: boolean;
  finish: string | undefined;
  /** As it came. */
  content: unknown;
  text: string;
  /** It says something that is no text. */
  hasMedia: boolean;
  refuses: boolean;
  /** What tools are called with. */
  calls: unknown[];
}

interface Note {
  problem: Problem;
  reason: string;
  details?: string[];
}

const emptyNote: Note = { problem: "empty", reason: "the answer is empty" };

function choicesOf({ choices, object }: Json): Choice[] | undefined {
  if (!Array.isArray(choices)) return undefined;
  if (choices.length === 0 && object !== "chat.completion" && object !== "text_completion") return undefined;
  const found: Choice[] = [];
  for (const choice of choices) {
    const one = isObject(choice) ? choiceOf(choice) : undefined;
    if (!one) return undefined;
    found.push(one);
  }
  return found;
}

function choiceOf({ message, text, finish_reason: reason }: Json): Choice | undefined {
  const finish = typeof reason === "string" && reason !== "" ? reason.slice(0, 100) : undefined;
  const nothing = { hasMedia: false, refuses: false, calls: [] };
  if (typeof text === "string") return { isChat: false, finish, content: text, text, ...nothing };
  if (!isObject(message)) return undefined;
  const { content, refusal, audio, images, tool_calls: calls, function_call: call } = message;
  const parts = Array.isArray(content) ? content.filter(isObject) : [];
  return {
    isChat: true,
    finish,
    content,
    text: typeof content === "string" ? content : parts.map(textOf).join(""),
    hasMedia:
      isObject(audio) || (Array.isArray(images) && images.length > 0) || parts.some((part) => isMedia(part)),
    refuses: isText(refusal) || parts.some((part) => isText(part.refusal)),
    calls: [...(Array.isArray(calls) ? calls : []), ...(isObject(call) ? [{ function: call }] : [])],
  };
}

const textOf = ({ text }: Json): string => (typeof text === "string" ? text : "");
const notMedia = new Set(["text", "output_text", "refusal", "thinking", "reasoning"]);
const isMedia = ({ type }: Json): boolean => typeof type === "string" && !notMedia.has(type);

function read(choice: Choice, checks: Checks | undefined, mismatches: Mismatches): Note[] {
  const { refuses, calls } = choice;
  const notes: Note[] = [];
  const finish = choice.finish?.toLowerCase() ?? "";
  if (refuses) notes.push({ problem: "refusal", reason: "the model refused to answer" });
  // Some providers say behind it what the filter found.
  if (finish.startsWith("content_filter"))
    notes.push({
      problem: "content_filter",
      reason: "a content filter withheld the answer, or a part of it",
    });
  if (limits.has(finish))
    notes.push({ problem: "length", reason: "the answer was cut off by its limit of tokens" });
  if (isEmpty(choice)) notes.push(emptyNote);
  if (calls.some(hasBrokenArguments))
    notes.push({ problem: "invalid_json", reason: "the arguments of a tool call are not JSON" });
  // Who calls a tool, or refuses, does not answer yet, or at all.
  if (checks && calls.length === 0 && !refuses) notes.push(...readContent(choice, checks, mismatches));
  return notes;
}

const limits = new Set(["length", "max_tokens", "model_length"]);

/** White space says nothing in a chat; where a text is continued it may be all that was missing. */
const isEmpty = ({ isChat, text, hasMedia, refuses, calls }: Choice): boolean =>
  (isChat ? text.trim() : text) === "" && !hasMedia && !refuses && calls.length === 0;

/** Tools without parameters are called with "" by some providers. */
function hasBrokenArguments(call: unknown): boolean {
  const text = isObject(call) && isObject(call.function) ? call.function.arguments : undefined;
  return typeof text === "string" && text.trim() !== "" && parse(text) === undefined;
}

function readContent({ text }: Choice, { json, schema }: Checks, mismatches: Mismatches): Note[] {
  if (!json && schema === undefined) return [];
  const parsed = parse(text);
  if (!parsed) {
    const isFenced = /^\s*```/.test(text);
    const why = isFenced ? "the content is not JSON, but Markdown: a code fence stands around it" : undefined;
    return [{ problem: "invalid_json", reason: why ?? "the content is not JSON" }];
  }
  const details = schema === undefined ? [] : mismatches(schema, parsed.value);
  if (details.length === 0) return [];
  const reason = `the content does not follow the schema: ${details.join("; ")}`;
  return [{ problem: "schema_mismatch", reason, details }];
}

function findingsOf(finishReason: string | undefined, notes: Note[]): Findings {
  const findings: Findings = { problems: [...new Set(notes.map(({ problem }) => problem))] };
  if (finishReason !== undefined) findings.finishReason = finishReason;
  const details = notes.flatMap((note) => note.details ?? []);
  if (details.length > 0) findings.details = [...new Set(details)].slice(0, 10);
  return findings;
}

/** What is no JSON follows no schema. */
const faults = ({ invalidIf }: Checks): Problem[] =>
  invalidIf.includes("schema_mismatch") ? [...invalidIf, "invalid_json"] : invalidIf;

/** The answer, where it has a content, and what is wrong with it, as JSON texts of messages. */
function feedbackOf(choice: Choice | undefined, reasons: string[]): string[] {
  const complaint = [
    "Your last answer cannot be used:",
    ...reasons.map((reason) => `- ${reason}`),
    "Answer again, with the corrected answer only: no apology and no explanation.",
  ].join("\n");
  const message = JSON.stringify({ role: "user", content: complaint });
  if (!choice || choice.text.trim() === "") return [message];
  return [JSON.stringify({ role: "assistant", content: choice.content }), message];
}

function parse(text: string): { value: unknown } | undefined {
  try {
    return { value: JSON.parse(text) };
  } catch {
    return undefined;
  }
}

const isText = (value: unknown): boolean => typeof value === "string" && value !== "";
const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);
