/** Reads the chunks of a streamed chat completion, and makes of them the answer that a plain call would have had. */

import { GrowingText } from "./growing-text.ts";
import type { Chunk, Identity } from "./ports.ts";

type Json = Record<string, unknown>;

/** A chunk, and what it says. */
export interface ReadChunk extends Chunk {
  json: Json;
  /** It has the bill and nothing else. */
  isUsageOnly: boolean;
}

/** @returns undefined for text that is no JSON object */
export function readChunk(data: string): ReadChunk | undefined {
  let json: unknown;
  try {
    json = JSON.parse(data);
  } catch {
    return undefined;
  }
  if (!isObject(json)) return undefined;
  const choices = choicesOf(json);
  const isUsageOnly = choices.length === 0 && isObject(json.usage);
  const says: Saying = { isContent: false, isEnd: false, text: "", chars: 0 };
  for (const choice of choices) readChoice(choice, says);
  return { data, ...says, json, isUsageOnly };
}

type Saying = Omit<Chunk, "data">;

function readChoice(choice: Json, says: Saying): void {
  const { delta, logprobs, finish_reason: finish } = choice;
  if (indexOf(choice) !== 0 || isSomething(logprobs)) says.text = undefined;
  if (isSomething(finish)) says.isContent = says.isEnd = true;
  if (!isObject(delta)) return;
  for (const name in delta) {
    const value = delta[name];
    if (name === "role" || !isSomething(value)) continue;
    says.isContent = true;
    says.chars += charsOf(value);
    if (name !== "content" || typeof value !== "string") says.text = undefined;
    else if (says.text !== undefined) says.text += value;
  }
}

/** Of a delta's value: the text in it, and what calls of tools are made of. */
function charsOf(value: unknown): number {
  if (typeof value === "string") return value.length;
  if (Array.isArray(value)) return value.reduce((sum: number, item) => sum + charsOf(item), 0);
  if (!isObject(value)) return 0;
  let chars = 0;
  for (const name in value) if (!fixed.has(name)) chars += charsOf(value[name]);
  return typeof value.name === "string" ? chars + value.name.length : chars;
}

/** Members that come once or are repeated. All other strings come in pieces. */
const fixed = new Set(["id", "type", "name", "role", "index", "format", "call_id"]);

/** Top-level members of chunks that are none of an answer's; "obfuscation" is random padding. */
const chunkOnly = new Set(["object", "choices", "obfuscation", "__proto__"]);

interface Choice {
  index: number;
  message: Json;
  logprobs: Json | undefined;
  finish: unknown;
  /** What else its chunks said beside their deltas. */
  rest: Json;
}

/** Gathers the chunks of one answer. Every chunk takes time in proportion to its own size only. */
export class Assembly {
  private readonly choices = new Map<number, Choice>();
  private readonly top: Json = {};
  private readonly expected: number;
  private unfinished = 0;
  /** Something was said behind an end: some upstreams give every chunk a finish_reason. */
  private wentOn = false;
  /** What is still to be added to the first choice's text. */
  private appended: GrowingText | undefined;

  /** @param expected how many choices were asked for, where that is known: they may come one after the other */
  constructor(expected = 1) {
    this.expected = expected;
  }

  /** Takes a chunk, whose parts it keeps and changes. */
  add(json: Json): void {
    this.settle();
    for (const name in json) {
      const value = json[name];
      if (value !== null && !chunkOnly.has(name)) this.top[name] = value;
    }
    for (const choice of choicesOf(json)) this.addChoice(choice);
  }

  /** Takes a chunk that is as the one before but for its text, see `Stencil`. False where it has to be taken whole. */
  append(text: string): boolean {
    if (typeof this.choices.get(0)?.message.content !== "string") return false;
    this.appended ??= new GrowingText();
    this.appended.add(text);
    return true;
  }

  private settle(): void {
    if (!this.appended) return;
    this.choices.get(0)!.message.content += this.appended.toString();
    this.appended = undefined;
  }

  /** No choice was seen. */
  get isEmpty(): boolean {
    return this.choices.size === 0;
  }

  /** Every choice has said why it ended. */
  get finished(): boolean {
    return !this.wentOn && this.choices.size >= this.expected && this.unfinished === 0;
  }

  get id(): string | undefined {
    return typeof this.top.id === "string" && this.top.id !== "" ? this.top.id : undefined;
  }

  get model(): string | undefined {
    return typeof this.top.model === "string" && this.top.model !== "" ? this.top.model : undefined;
  }

  /** As JSON. */
  get usage(): string | undefined {
    return isObject(this.top.usage) ? JSON.stringify(this.top.usage) : undefined;
  }

  /** The chat.completion as JSON. */
  completion(identity?: Identity): string {
    this.settle();
    const { id, created, model, usage, ...rest } = this.top;
    const choices = [...this.choices.values()].sort((a, b) => a.index - b.index).map(finalChoice);
    return JSON.stringify({
      id: identity?.id ?? id,
      object: "chat.completion",
      created: identity?.created ?? created,
      model,
      choices,
      usage,
      ...rest,
    });
  }

  private addChoice(json: Json): void {
    const { delta, logprobs, finish_reason: finish, index: _index, ...rest } = json;
    const choice = this.choiceAt(indexOf(json));
    if (isObject(delta)) {
      if (isSomething(choice.finish) && saysSomething(delta)) this.wentOn = true;
      merge(choice.message, delta);
    }
    if (isObject(logprobs)) choice.logprobs = merge(choice.logprobs ?? {}, logprobs);
    for (const name in rest) if (rest[name] !== null) choice.rest[name] = rest[name];
    if (!isSomething(finish)) return;
    if (!isSomething(choice.finish)) this.unfinished--;
    choice.finish = finish;
  }

  private choiceAt(index: number): Choice {
    const known = this.choices.get(index);
    if (known) return known;
    const choice: Choice = { index, message: {}, logprobs: undefined, finish: null, rest: {} };
    this.choices.set(index, choice);
    this.unfinished++;
    return choice;
  }
}

function finalChoice({ index, message, logprobs, finish, rest }: Choice): Json {
  const { role = "assistant", content, refusal = null, tool_calls: calls, ...others } = message;
  const callsTools = Array.isArray(calls) && calls.length > 0;
  const saysNothing = !isSomething(content) && (callsTools || isObject(others.function_call));
  return {
    index,
    message: {
      role,
      content: saysNothing ? null : (content ?? null),
      refusal: refusal === "" ? null : refusal,
      ...(callsTools ? { tool_calls: finalCalls(calls) } : {}),
      ...others,
    },
    logprobs: logprobs ? { content: null, refusal: null, ...logprobs } : null,
    finish_reason: finish,
    ...rest,
  };
}

/** In the order of their indexes, which a plain answer does not have. */
function finalCalls(calls: unknown[]): unknown[] {
  const indexed = calls.filter(isObject).map((call, at) => ({ call, order: numberOf(call.index) ?? at }));
  return indexed
    .sort((a, b) => a.order - b.order)
    .map(({ call: { index: _index, id, type, ...rest } }) => ({
      id,
      type: type ?? (rest.function === undefined ? undefined : "function"),
      ...rest,
    }));
}

/** Adds `more` to `target`: strings continue each other, arrays too, and whatever else comes last holds. */
function merge(target: Json, more: Json): Json {
  for (const name in more) {
    const value = more[name];
    if (value === null || name === "__proto__") continue;
    if (fixed.has(name)) {
      if (value !== "") target[name] = value;
    } else {
      target[name] = Object.hasOwn(target, name) ? joined(target[name], value) : started(value);
    }
  }
  return target;
}

function joined(before: unknown, more: unknown): unknown {
  if (typeof before === "string" && typeof more === "string") return before + more;
  if (Array.isArray(before)) return joinedArray(before, Array.isArray(more) ? more : [textPart(more)]);
  if (Array.isArray(more)) return joinedArray(before === "" ? [] : [textPart(before)], more);
  if (isObject(before) && isObject(more)) return merge(before, more);
  return started(more);
}

/** The first piece of an array may name one item twice already. */
const started = (value: unknown): unknown => (Array.isArray(value) ? joinedArray([], value) : value);

/** Items with the same index are one; text behind text too. */
function joinedArray(before: unknown[], more: unknown[]): unknown[] {
  for (const item of more) {
    const same = isObject(item) ? sameItem(before, item) : undefined;
    if (same) merge(same, item as Json);
    else before.push(item);
  }
  return before;
}

function sameItem(items: unknown[], item: Json): Json | undefined {
  const last = items.at(-1);
  if (numberOf(item.index) === undefined) {
    return isObject(last) && last.type === "text" && isTextPart(item) ? last : undefined;
  }
  // Nearly always the last one is meant.
  if (isObject(last) && last.index === item.index) return last;
  return items.find((one): one is Json => isObject(one) && one.index === item.index);
}

/** Contents may be lists of parts, to which plain strings are added. */
const textPart = (value: unknown): unknown =>
  typeof value === "string" ? { type: "text", text: value } : value;
const isTextPart = ({ type, text }: Json): boolean => type === "text" && typeof text === "string";

const choicesOf = ({ choices }: Json): Json[] =>
  Array.isArray(choices) ? (choices.every(isObject) ? choices : choices.filter(isObject)) : [];
const indexOf = ({ index }: Json): number => numberOf(index) ?? 0;
const numberOf = (value: unknown): number | undefined => (typeof value === "number" ? value : undefined);
const isObject = (value: unknown): value is Json =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const saysSomething = (delta: Json): boolean => {
  for (const name in delta) if (name !== "role" && isSomething(delta[name])) return true;
  return false;
};

/** Some providers send with every chunk the fields that it does not use. */
const isSomething = (value: unknown): boolean =>
  value !== null && value !== undefined && value !== "" && !(Array.isArray(value) && value.length === 0);
