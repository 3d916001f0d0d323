/**
 * Edits and compares JSON as text. A body that is parsed and serialised again loses numbers beyond 2^53,
 * escapes, duplicate keys and white space; here every byte that is not meant stays as it was.
 *
 * All functions expect text that JSON.parse accepts (RFC 8259). On any other text they neither throw nor
 * hang, but what they return says nothing. All take linear time, save for sorting the keys of an object.
 */

/** A member of an object: its decoded key, and where the raw key and value stand in the text. */
export type Member = {
  readonly key: string;
  /** The index of the key's opening quote. */
  readonly keyStart: number;
  readonly valueStart: number;
  /** The index behind the value's last character. */
  readonly valueEnd: number;
};

const quote = 0x22;
const comma = 0x2c;
const colon = 0x3a;
const backslash = 0x5c;
const openBracket = 0x5b;
const closeBracket = 0x5d;
const openBrace = 0x7b;
const closeBrace = 0x7d;

/** The top-level members of the object in `text`, in their order; undefined if the root is no object. */
export function members(text: string): Member[] | undefined {
  const found: Member[] = [];
  let at = skipSpace(text, 0);
  if (text.charCodeAt(at) !== openBrace) return undefined;
  at = skipSpace(text, at + 1);
  if (text.charCodeAt(at) === closeBrace) return found;
  for (;;) {
    const member = memberAt(text, at);
    if (member === undefined) return undefined;
    found.push(member);
    at = skipSpace(text, member.valueEnd);
    const next = text.charCodeAt(at);
    if (next === closeBrace) return found;
    if (next !== comma) return undefined;
    at = skipSpace(text, at + 1);
  }
}

/**
 * The text without its top-level members of these names (every occurrence, however the key is escaped)
 * and without the commas that belonged to them. Text whose root is no object comes back unchanged.
 */
export function cutMembers(text: string, names: ReadonlySet<string> | readonly string[]): string {
  const cut: ReadonlySet<string> = names instanceof Set ? names : new Set(names);
  const all = members(text) ?? [];
  let kept = "";
  let from = 0;
  let keptBefore = false;
  for (const [index, member] of all.entries()) {
    if (!cut.has(member.key)) {
      keptBefore = true;
      continue;
    }
    // Behind a kept member the comma in front goes; before the first kept member the comma behind goes.
    const start = keptBefore ? all[index - 1]!.valueEnd : member.keyStart;
    const end = keptBefore ? member.valueEnd : (all[index + 1]?.keyStart ?? member.valueEnd);
    kept += text.slice(from, start);
    from = end;
  }
  return from === 0 ? text : kept + text.slice(from);
}

/** The text with the value of every top-level member `name` replaced by `jsonValue`; unchanged if none is there. */
export function replaceMember(text: string, name: string, jsonValue: string): string {
  let replaced = "";
  let from = 0;
  for (const member of members(text) ?? []) {
    if (member.key !== name) continue;
    replaced += text.slice(from, member.valueStart) + jsonValue;
    from = member.valueEnd;
  }
  return from === 0 ? text : replaced + text.slice(from);
}

/** The text with the top-level member `name` as said: its value replaced, or put in front if there is no such member. */
export function setMember(text: string, name: string, jsonValue: string): string {
  const all = members(text);
  if (all === undefined) return text;
  if (all.some(({ key }) => key === name)) return replaceMember(text, name, jsonValue);
  const first = all[0];
  const at = first?.keyStart ?? text.indexOf("{") + 1;
  const member = `${JSON.stringify(name)}:${jsonValue}`;
  return text.slice(0, at) + member + (first ? "," : "") + text.slice(at);
}

/** The text of the value of the top-level member `name`, of several the last, as JSON.parse has it. */
export function rawMember(text: string, name: string): string | undefined {
  let found: string | undefined;
  for (const { key, valueStart, valueEnd } of members(text) ?? []) {
    if (key === name) found = text.slice(valueStart, valueEnd);
  }
  return found;
}

/**
 * A form in which two JSON texts are equal exactly if they differ in nothing but insignificant white space,
 * the order of object members, and the spelling of keys ("\u0061" is the key "a"). Number and string values
 * stay as they are written: 1.0 is not 1, "\u0041" is not "A".
 *
 * It is valid JSON without white space, keys in JSON.stringify's spelling and sorted by UTF-16 code units
 * (the order of RFC 8785 §3.2.3). Top-level members named in `without` are left out.
 *
 * Undefined if an object at any depth, left out or not, has a key twice: readers disagree on what that means
 * (RFC 8259 §4), so such bodies can only be compared as bytes.
 */
export function canonical(text: string, without: ReadonlySet<string>): string | undefined {
  return new Canonicaliser(text, without).result();
}

/** An object whose end is not reached yet. */
type OpenObject = {
  /** The output in front of the object. */
  readonly before: string;
  readonly keys: string[];
  readonly values: string[];
};

/**
 * One pass over the text with a stack of its own, as deep nesting would overflow the call stack. Output is
 * only ever concatenated, which costs V8 no copying; joining at every level would be quadratic in the depth.
 */
class Canonicaliser {
  private readonly text: string;
  private readonly without: ReadonlySet<string>;
  /** What is open at `at`; undefined stands for an array. */
  private readonly open: (OpenObject | undefined)[] = [];
  private at = 0;
  /** The text between `copied` and `at` goes to the output as it is. */
  private copied = 0;
  private out = "";

  constructor(text: string, without: ReadonlySet<string>) {
    this.text = text;
    this.without = without;
  }

  result(): string | undefined {
    while (this.at < this.text.length) {
      if (!this.step()) return undefined;
    }
    this.copy();
    return this.open.length === 0 && this.out !== "" ? this.out : undefined;
  }

  /** Reads one token, or one character of a number or literal; false if there is no canonical form. */
  private step(): boolean {
    const code = this.text.charCodeAt(this.at);
    switch (code) {
      case quote:
        return this.string();
      case comma:
        return this.comma();
      case openBrace:
        return this.openObject();
      case closeBrace:
        return this.closeObject();
      case openBracket:
        this.open.push(undefined);
        break;
      case closeBracket:
        if (this.open.length === 0 || this.open.pop() !== undefined) return false;
        break;
      default:
        if (isSpace(code)) {
          this.copy();
          this.skipTo(skipSpace(this.text, this.at));
          return true;
        }
    }
    this.at++;
    return true;
  }

  /** A string is a key if its object has a value for every key so far. */
  private string(): boolean {
    const end = stringEnd(this.text, this.at);
    if (end < 0) return false;
    const object = this.open.at(-1);
    if (object === undefined || object.keys.length > object.values.length) {
      this.at = end;
      return true;
    }
    const key = decoded(this.text, this.at, end);
    const separator = skipSpace(this.text, end);
    if (key === undefined || this.text.charCodeAt(separator) !== colon) return false;
    object.keys.push(key);
    this.skipTo(separator + 1);
    return true;
  }

  private comma(): boolean {
    const object = this.open.at(-1);
    if (object === undefined) {
      this.at++;
      return true;
    }
    if (!this.endMember(object)) return false;
    this.skipTo(this.at + 1);
    return true;
  }

  private openObject(): boolean {
    this.copy();
    this.open.push({ before: this.out, keys: [], values: [] });
    this.out = "";
    this.skipTo(this.at + 1);
    return true;
  }

  private closeObject(): boolean {
    const object = this.open.pop();
    if (object === undefined) return false;
    if (object.keys.length > 0 && !this.endMember(object)) return false;
    const isRoot = this.open.length === 0;
    const closed = sortedObject(object, isRoot ? this.without : undefined);
    if (closed === undefined) return false;
    this.out = object.before + closed;
    this.skipTo(this.at + 1);
    return true;
  }

  private endMember(object: OpenObject): boolean {
    this.copy();
    if (object.keys.length !== object.values.length + 1) return false;
    object.values.push(this.out);
    this.out = "";
    return true;
  }

  private copy(): void {
    if (this.copied < this.at) this.out += this.text.slice(this.copied, this.at);
    this.copied = this.at;
  }

  private skipTo(at: number): void {
    this.at = at;
    this.copied = at;
  }
}

function sortedObject(object: OpenObject, without: ReadonlySet<string> | undefined): string | undefined {
  const { keys, values } = object;
  const order = keys.map((_, index) => index).sort((a, b) => compare(keys[a]!, keys[b]!));
  let out = "{";
  let previous: string | undefined;
  for (const index of order) {
    const key = keys[index]!;
    if (key === previous) return undefined;
    previous = key;
    if (without?.has(key)) continue;
    if (out !== "{") out += ",";
    out += `${JSON.stringify(key)}:`;
    out += values[index]!;
  }
  return `${out}}`;
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function memberAt(text: string, keyStart: number): Member | undefined {
  if (text.charCodeAt(keyStart) !== quote) return undefined;
  const keyEnd = stringEnd(text, keyStart);
  if (keyEnd < 0) return undefined;
  const key = decoded(text, keyStart, keyEnd);
  const separator = skipSpace(text, keyEnd);
  if (key === undefined || text.charCodeAt(separator) !== colon) return undefined;
  const valueStart = skipSpace(text, separator + 1);
  const valueEnd = endOfValue(text, valueStart);
  return valueEnd <= valueStart ? undefined : { key, keyStart, valueStart, valueEnd };
}

/** The index behind the value that starts at `start`; not beyond `start` if there is none. */
function endOfValue(text: string, start: number): number {
  const code = text.charCodeAt(start);
  if (code === quote) return stringEnd(text, start);
  if (code === openBrace || code === openBracket) return containerEnd(text, start);
  let at = start;
  while (at < text.length && !endsLiteral(text.charCodeAt(at))) at++;
  return at;
}

function endsLiteral(code: number): boolean {
  return code === comma || code === closeBrace || code === closeBracket || isSpace(code);
}

/** The index behind the bracket that closes the one at `start`, or -1. */
function containerEnd(text: string, start: number): number {
  let depth = 0;
  for (let at = start; at < text.length; at++) {
    const code = text.charCodeAt(at);
    if (code === quote) {
      const end = stringEnd(text, at);
      if (end < 0) return -1;
      at = end - 1;
    } else if (code === openBrace || code === openBracket) {
      depth++;
    } else if (code === closeBrace || code === closeBracket) {
      depth--;
      if (depth === 0) return at + 1;
    }
  }
  return -1;
}

/** The index behind the string whose opening quote is at `start`, or -1 if nothing closes it. */
function stringEnd(text: string, start: number): number {
  let at = text.indexOf('"', start + 1);
  while (at > 0) {
    // A quote closes the string unless an odd number of backslashes stands in front of it.
    let before = at - 1;
    while (text.charCodeAt(before) === backslash) before--;
    if ((at - before) % 2 === 1) return at + 1;
    at = text.indexOf('"', at + 1);
  }
  return -1;
}

/** The value of the string between `start` and `end`, quotes included; undefined if it is no JSON string. */
function decoded(text: string, start: number, end: number): string | undefined {
  const inner = text.slice(start + 1, end - 1);
  if (!inner.includes("\\")) return inner;
  try {
    return JSON.parse(text.slice(start, end));
  } catch {
    return undefined;
  }
}

function skipSpace(text: string, start: number): number {
  let at = start;
  while (isSpace(text.charCodeAt(at))) at++;
  return at;
}

function isSpace(code: number): boolean {
  return code === 0x20 || code === 0x0a || code === 0x0d || code === 0x09;
}
