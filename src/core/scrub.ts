/**
 * Takes secrets and account ids out of the error texts of providers, which quote parts of the caller's key and
 * name the organisation that pays.
 */

const redacted = "[redacted]";

/**
 * A credential behind "Bearer", its slashes possibly escaped. What stands before it stays, so a "b" that belongs
 * to the escape "\b" does too. Quotes are no separators, lest a bare JSON number after the key "bearer" be hit.
 */
const bearer =
  /(bearer(?:[ \t:=+'`<]|%20){1,4})(?!bearer)([\w*\u2022\u2026](?:[\w\-.~+/=*\u2022\u2026]|\\+\/)*)/gi;

/** What follows "Bearer" in prose: a word or a placeholder such as YOUR_API_KEY. */
const prose = /^(?:[A-Z]?[a-z]+(?:[-_/][a-z]+)*|[A-Z]+(?:_[A-Z]+)*)=?$/;
const longestProse = 32;

/** Anthropic names organisations by UUID, Google projects by number. */
const account = [
  /((?:organi[sz]ation|project|org)(?:[_ -]?id)?[ :=('"`\\]{1,6})[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/gi,
  /(project_number:)\d+/g,
];

/**
 * A word, or something that ends one although it holds letters: an escape of JSON (with more backslashes
 * where JSON is quoted in JSON) and a percent-encoded byte. Its alternatives start with different characters
 * and none looks back over a run of them, so a search is linear.
 */
const token = /\\+(?:u[0-9a-fA-F]{4}|[bfnrt])?|%[0-9A-Fa-f]{2}|[A-Za-z0-9_*.\u2022\u2026-]+/g;

/** Prefixes that stand for a secret whatever follows. Grok's model names may carry xAI's name in front. */
const secretPrefix = /(?<![A-Za-z0-9])(?:sk-|gsk_|csk-|AIza|xai-(?!grok))/;

/** Prefixes that also begin plain words such as "org-wide" or "proj_name". */
const likelyPrefix = /(?<![A-Za-z0-9])(?:org[-_]|proj_|hf_|r8_|pplx-|nvapi-|sess-|tgp_v1_|eyJ)/;
const anything = /[A-Za-z0-9*]/;
const looksRandom = /[0-9*\u2022\u2026]|\.\.\.|[a-z][A-Z]|[A-Za-z]{20}/;

/** Shorter rests are other things: "sk-SK" is a language, "bearer: 401" a status. */
const shortestRest = 4;

/**
 * The text with API keys (also in the masked forms in which providers quote them, such as "sk-ab***yz"), bearer
 * tokens and the ids of organisations and projects replaced by "[redacted]". Request ids and prose stay.
 *
 * Applied to a JSON text, it leaves one of the same structure: it touches nothing but characters inside of
 * strings. It takes linear time whatever the text.
 */
export function scrub(text: string): string {
  let scrubbed = text.replace(bearer, scrubBearer);
  for (const pattern of account) scrubbed = scrubbed.replace(pattern, `$1${redacted}`);
  return scrubbed.replace(token, scrubToken);
}

function scrubBearer(match: string, before: string, credential: string): string {
  const core = withoutDots(credential);
  if (core.length < shortestRest) return match;
  if (core.length <= longestProse && prose.test(core)) return match;
  return before + redacted + credential.slice(core.length);
}

function scrubToken(word: string): string {
  const core = withoutDots(word);
  const start = sensitiveStart(core);
  return start < 0 ? word : core.slice(0, start) + redacted + word.slice(core.length);
}

/** The dots at the end of a word end a sentence. */
function withoutDots(word: string): string {
  let end = word.length;
  while (word[end - 1] === ".") end--;
  return word.slice(0, end);
}

/** Where in a word something begins that must not be seen, or -1. */
function sensitiveStart(word: string): number {
  if (word.startsWith("req_") || word.startsWith("req-")) return -1;
  if (word.includes("***")) return isMasked(word) ? 0 : -1;
  const secret = prefixStart(word, secretPrefix, anything);
  const likely = prefixStart(word, likelyPrefix, looksRandom);
  return secret < 0 || likely < 0 ? Math.max(secret, likely) : Math.min(secret, likely);
}

/**
 * The first prefix decides: the rest behind a later one is a part of the rest behind the first, so what would
 * make the later one count makes the first one count. Trying each of them would be quadratic.
 */
function prefixStart(word: string, prefix: RegExp, wanted: RegExp): number {
  const match = prefix.exec(word);
  if (match === null) return -1;
  const rest = word.slice(match.index + match[0].length);
  return rest.length >= shortestRest && wanted.test(rest) ? match.index : -1;
}

/** Keys are quoted with stars between or beside what is shown; stars on both sides are Markdown. */
function isMasked(word: string): boolean {
  if (!/[A-Za-z0-9]/.test(word)) return false;
  return secretPrefix.test(word) || !(word.startsWith("*") && word.endsWith("*"));
}
