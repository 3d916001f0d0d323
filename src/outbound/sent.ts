/** What was sent, as it may be kept: no key, token or cookie is in it, but in the body, which is the caller's own. */

import type { HeaderList } from "../core/headers.ts";
import type { Exchange } from "../core/ports.ts";
import { scrub } from "../core/scrub.ts";

/** What went over the wire. */
export interface Sent {
  method: string;
  origin: string;
  /** With its query. */
  path: string;
  headers: HeaderList;
  body: Uint8Array;
}

/** What must not be kept of it, beside what looks like a secret. */
interface Hidden {
  /** Names of headers. */
  names: ReadonlySet<string>;
  values: readonly string[];
}

const redacted = "[redacted]";
/** Rather one too many: what is not a secret is not missed much. */
const secretName = /auth|key|token|secret|cookie|passw|credential|session|sig|jwt|organi[sz]ation|project/i;

export function sentExchange({ method, origin, path, headers, body }: Sent, hidden: Hidden): Exchange {
  const mark = path.indexOf("?");
  const query = mark < 0 ? "" : `?${visibleQuery(path.slice(mark + 1), hidden)}`;
  const url = origin + (mark < 0 ? path : path.slice(0, mark)) + query;
  const visible = headers.map(([name, value]): [string, string] => [
    name,
    hidden.names.has(name) || isSecret(name, value, hidden) ? redacted : value,
  ]);
  return { head: { method, url, headers: visible }, body };
}

function visibleQuery(query: string, hidden: Hidden): string {
  const fields = query.split("&").map((field) => {
    const [name = ""] = field.split("=", 1);
    return isSecret(decoded(name), decoded(field), hidden) ? `${name}=${redacted}` : field;
  });
  return fields.join("&");
}

const isSecret = (name: string, value: string, { values }: Hidden): boolean =>
  secretName.test(name) || values.some((secret) => value.includes(secret)) || scrub(value) !== value;

/** As the server reads it; what cannot be decoded stays. */
function decoded(text: string): string {
  try {
    return decodeURIComponent(text.replaceAll("+", " "));
  } catch {
    return text;
  }
}
