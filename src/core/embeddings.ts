/**
 * Takes calls for embeddings apart by their inputs, and puts answers together from vectors, as text: numbers stay as
 * they are written. The texts are what JSON.parse accepts.
 */

import { canonical, type Member, members, replaceMember } from "./json-text.ts";

const nothing: ReadonlySet<string> = new Set();
/** Members that say nothing about the vector of an input. */
const ofTheCall: ReadonlySet<string> = new Set(["input", "user", "safety_identifier", "metadata"]);

/** The inputs of a call as canonical JSON texts; undefined where they are not of a usual form. */
export function readInputs(body: string): string[] | undefined {
  const inputs = rawInputs(body)?.map((input) => canonical(input, nothing));
  return inputs?.every((input) => input !== undefined) ? inputs : undefined;
}

/**
 * For every input the hash of all that its vector depends on: the input, and what the call says of model,
 * dimensions, format and whatever else. Undefined where the call cannot be taken apart.
 */
export function hashInputs(body: string, hash: (text: string) => string): string[] | undefined {
  const inputs = readInputs(body);
  const call = inputs && canonical(body, ofTheCall);
  return call === undefined ? undefined : inputs?.map((input) => hash(`[${call},${input}]`));
}

/**
 * The body with these inputs only.
 * @param keep their indexes, ascending
 */
export function cutInputs(body: string, keep: readonly number[]): string {
  const inputs = rawInputs(body) ?? [];
  if (keep.length === inputs.length) return body;
  return replaceMember(body, "input", `[${keep.map((at) => inputs[at]).join(",")}]`);
}

/**
 * The JSON texts of an answer's vectors in the order of the inputs; undefined where it does not have exactly one for
 * each of them.
 */
export function split(answer: string, inputs: number): string[] | undefined {
  const data = onlyMember(answer, "data");
  const items = data === undefined ? undefined : elements(data);
  if (items?.length !== inputs) return undefined;
  const vectors = new Map<number, string>();
  for (const item of items) {
    const all = members(item) ?? [];
    const index = onlyOf(item, all, "index");
    const vector = onlyOf(item, all, "embedding");
    if (index === undefined || !/^\d{1,15}$/.test(index) || Number(index) >= inputs) return undefined;
    if (vector === undefined || !/^["[]/.test(vector)) return undefined;
    vectors.set(Number(index), vector);
  }
  if (vectors.size !== inputs) return undefined;
  return [...vectors].sort(([a], [b]) => a - b).map(([, vector]) => vector);
}

/**
 * The whole answer.
 * @param answer the upstream's to what it was asked; undefined where it was asked nothing
 * @param vectors of all inputs, as JSON texts
 * @param model what the answer calls itself where there was no call
 */
export function join(answer: string | undefined, vectors: readonly string[], model: string): string {
  const items = vectors.map((vector, at) => `{"object":"embedding","index":${at},"embedding":${vector}}`);
  const data = `[${items.join(",")}]`;
  if (answer !== undefined) return replaceMember(answer, "data", data);
  const usage = '{"prompt_tokens":0,"total_tokens":0}';
  return `{"object":"list","data":${data},"model":${JSON.stringify(model)},"usage":${usage}}`;
}

/** One text or one list of tokens is one input; a list of texts, or of lists of tokens, is as many as it has. */
function rawInputs(body: string): string[] | undefined {
  const input = onlyMember(body, "input");
  if (input === undefined) return undefined;
  if (isText(input)) return [input];
  const items = elements(input);
  if (!items || items.length === 0) return undefined;
  if (items.every(isToken)) return [input];
  return items.every(isText) || items.every(isTokens) ? items : undefined;
}

const isText = (raw: string): boolean => raw.startsWith('"');
const isToken = (raw: string): boolean => /^\d+$/.test(raw);
const isTokens = (raw: string): boolean => {
  const tokens = elements(raw);
  return tokens !== undefined && tokens.length > 0 && tokens.every(isToken);
};

/** A member that is there once: of two, nobody knows which one is meant. */
const onlyMember = (text: string, name: string): string | undefined =>
  onlyOf(text, members(text) ?? [], name);

function onlyOf(text: string, all: Member[], name: string): string | undefined {
  const [found, another] = all.filter(({ key }) => key === name);
  return found && !another ? text.slice(found.valueStart, found.valueEnd) : undefined;
}

/** The elements of an array without the white space around them; undefined for anything else. */
function elements(array: string): string[] | undefined {
  if (!array.startsWith("[")) return undefined;
  const found: string[] = [];
  let depth = 1;
  let start = 1;
  for (let at = nextMark(array, 1, depth); at >= 0; at = nextMark(array, at + 1, depth)) {
    const mark = array[at]!;
    if (mark === '"') at = closingQuote(array, at);
    else if (mark === "[" || mark === "{") depth++;
    else if (mark !== ",") depth--;
    const isLast = depth === 0;
    if (!isLast && mark !== ",") continue;
    const element = array.slice(start, at).trim();
    if (element !== "" || !isLast) found.push(element);
    if (isLast) return found;
    start = at + 1;
  }
  return undefined;
}

/** Where the next string or bracket is; in the array itself a comma, too. Lists of numbers in it are passed quickly. */
function nextMark(text: string, from: number, depth: number): number {
  const mark = depth === 1 ? /["[\]{},]/g : /["[\]{}]/g;
  mark.lastIndex = from;
  return mark.exec(text)?.index ?? -1;
}

/** The index of the quote that ends the string that begins at `start`; the text's length where none does. */
function closingQuote(text: string, start: number): number {
  for (let at = text.indexOf('"', start + 1); at > 0; at = text.indexOf('"', at + 1)) {
    let before = at - 1;
    while (text[before] === "\\") before--;
    // Behind an odd number of backslashes a quote is a character like others.
    if ((at - before) % 2 === 1) return at;
  }
  return text.length;
}
