/** What was sent and received, as it may be seen: no key, token or cookie is in it, but in bodies, which are the caller's. */

import type { HeaderList } from "./headers.ts";
import { scrub } from "./scrub.ts";

/** What must not be seen, beside what looks like a secret. */
interface Hidden {
  /** Names of headers. */
  names: ReadonlySet<string>;
  values: readonly string[];
}
const nothing: Hidden = { names: new Set(), values: [] };

const redacted = "[redacted]";
/** Rather one too many: what is not a secret is not missed much. */
const secretName =
  /auth|key|token|secret|cookie|pass|pwd|credential|session|sig|hmac|jwt|saml|dpop|assertion|cert|vault|code|otp|nonce|account|organi[sz]ation|project/i;
/** Headers of answers that name the provider's account. */
const accountHeaders = new Set(["openai-organization", "openai-project"]);

export const isSecretName = (name: string): boolean => secretName.test(name);

/** A text without these values, and without what looks like a secret. */
export const redact = (text: string, values: readonly string[] = []): string =>
  scrub(values.reduce((rest, value) => rest.replaceAll(value, redacted), text));

/** Of what is sent: every header with its name. */
export const visibleHeaders = (headers: HeaderList, hidden = nothing): HeaderList =>
  headers.map(([name, value]) => [
    name,
    hidden.names.has(name) || isSecret(name, value, hidden) ? redacted : value,
  ]);

/** Of an answer. */
export const visibleAnswerHeaders = (headers: HeaderList, values: readonly string[] = []): HeaderList =>
  headers.filter(([name]) => !accountHeaders.has(name)).map(([name, value]) => [name, redact(value, values)]);

/** An address, or a path, with the names of all that its query has. */
export function visibleUrl(url: string, hidden = nothing): string {
  const mark = url.indexOf("?");
  if (mark < 0) return url;
  const fields = url.slice(mark + 1).split("&");
  const visible = fields.map((field) => {
    const [name = ""] = field.split("=", 1);
    return isSecret(decoded(name), decoded(field), hidden) ? `${name}=${redacted}` : field;
  });
  return `${url.slice(0, mark)}?${visible.join("&")}`;
}

const isSecret = (name: string, value: string, { values }: Hidden): boolean =>
  isSecretName(name) || redact(value, values) !== value;

/** As the server reads it; what cannot be decoded stays. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text.replaceAll("+", " "));
  } catch {
    return text;
  }
}
