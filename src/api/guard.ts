/** Who may call: API keys, and without any, only programs on this machine. */

import { createHash, timingSafeEqual } from "node:crypto";
import { AppError } from "../core/errors.ts";

export interface ApiKey {
  key: string;
  project: string;
  role: "user" | "operator";
}

export interface Caller {
  project: string;
  role: "user" | "operator";
}

export interface GuardOptions {
  apiKeys: ApiKey[];
  /** Host names, beside the loopback ones, that are accepted without keys. */
  allowedHosts: string[];
}

/** The headers that a guard looks at. */
export type HeaderOf = (name: string) => string | undefined;

export type Guard = (header: HeaderOf) => Caller;

const digest = (text: string): Buffer => createHash("sha256").update(text).digest();

/**
 * The check that every request under /v1 passes. With keys: one of them has to be shown, and every
 * comparison takes the same time. Without: whoever reaches us on loopback may call, but a web page may not,
 * neither by name (DNS rebinding) nor from another origin.
 * @throws AppError `invalid_api_key`, `foreign_host`, `foreign_origin`
 */
export function createGuard({ apiKeys, allowedHosts }: GuardOptions): Guard {
  if (apiKeys.length === 0) {
    return (header) => {
      refuseWebPages(header, allowedHosts);
      return { project: "default", role: "operator" };
    };
  }
  const known = apiKeys.map(({ key, project, role }) => ({ digest: digest(key), project, role }));
  return (header) => {
    const shown = digest(shownKey(header) ?? "");
    let caller: Caller | undefined;
    for (const { digest, project, role } of known) {
      if (timingSafeEqual(digest, shown)) caller = { project, role };
    }
    if (caller) return caller;
    throw new AppError("invalid_api_key", "A valid API key is needed: `Authorization: Bearer <key>`.");
  };
}

function shownKey(header: HeaderOf): string | undefined {
  const bearer = /^bearer +(\S+) *$/i.exec(header("authorization") ?? "")?.[1];
  return bearer ?? header("api-key") ?? header("x-api-key");
}

function refuseWebPages(header: HeaderOf, allowedHosts: string[]): void {
  const host = header("host") ?? "";
  if (!isLocal(host, allowedHosts)) {
    throw new AppError(
      "foreign_host",
      "Without API keys only loopback host names are served. Configure an API key, or name this host in `allowed_hosts`.",
    );
  }
  const origin = header("origin");
  const site = header("sec-fetch-site");
  const sameOrigin = origin === undefined || origin === `http://${host}`;
  if (!sameOrigin || site === "cross-site" || site === "same-site") {
    throw new AppError(
      "foreign_origin",
      "Without API keys web pages of other origins are not served. Configure an API key to allow them.",
    );
  }
}

function isLocal(host: string, allowedHosts: string[]): boolean {
  const name = host.replace(/:\d*$/, "").toLowerCase();
  if (name === "localhost" || name === "[::1]") return true;
  return /^127(\.\d{1,3}){3}$/.test(name) || allowedHosts.includes(name);
}
