/** Which headers travel on. Names are lower case; values stay as they came. Pure. */

export type HeaderList = [string, string][];

/** What belongs to one connection, or is computed anew for each message. */
export const perConnection: ReadonlySet<string> = new Set([
  "connection",
  "keep-alive",
  "proxy-connection",
  "te",
  "trailer",
  "transfer-encoding",
  "upgrade",
  "content-length",
  "host",
  "expect",
]);

/** RFC 9110 §7.6.1. */
const hopByHop = new Set([...perConnection, "proxy-authenticate", "proxy-authorization"]);

/** The caller's credentials, our own fields, and what tells where the caller sits. */
const keptBack = new Set([
  "authorization",
  "api-key",
  "x-api-key",
  "x-goog-api-key",
  "cookie",
  "idempotency-key",
  "prefer",
  "outlast-options",
  "origin",
  "referer",
  "forwarded",
  "via",
  "x-real-ip",
]);
const keptBackPrefixes = ["x-forwarded-", "sec-", "outlast-", "cf-"];

/** Of an answer: what speaks for the provider's own site, not for ours. */
const siteBound = new Set(["set-cookie", "alt-svc", "strict-transport-security", "nel", "report-to"]);

/** Request headers that go to an upstream. `recorded` calls are asked for unencoded: their answers are stored and read. */
export function toUpstream(headers: HeaderList, recorded: boolean): HeaderList {
  const named = namedByConnection(headers);
  return headers.filter(([name]) => {
    if (hopByHop.has(name) || keptBack.has(name) || named.has(name)) return false;
    if (recorded && name === "accept-encoding") return false;
    return !keptBackPrefixes.some((prefix) => name.startsWith(prefix));
  });
}

/** Answer headers that go back to a caller. */
export function toCaller(headers: HeaderList): HeaderList {
  const named = namedByConnection(headers);
  return headers.filter(([name]) => !hopByHop.has(name) && !siteBound.has(name) && !named.has(name));
}

const noNames: ReadonlySet<string> = new Set();

function namedByConnection(headers: HeaderList): ReadonlySet<string> {
  if (!headers.some(([name]) => name === "connection")) return noNames;
  const values = headers.filter(([name]) => name === "connection").flatMap(([, value]) => value.split(","));
  return new Set(values.map((one) => one.trim().toLowerCase()));
}
