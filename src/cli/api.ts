/** Asks the API of Outlast: that of a server, or the same one on a file that only this command can reach. */

import { Agent, request } from "undici";
import { type ErrorObject, errorSchema } from "../contract.ts";

/** A schema of contract.ts. */
interface Schema<T> {
  safeParse(value: unknown): { success: boolean; data?: T };
}

type Method = "GET" | "POST" | "DELETE";

export interface Ask {
  query?: URLSearchParams;
  body?: unknown;
}

/** What the API refused, in its words. */
export class Refusal extends Error {
  readonly code: string | null;

  constructor({ message, code }: ErrorObject["error"], advice = "") {
    super(`${message}${advice}${code === null ? "" : ` (${code})`}`);
    this.code = code;
  }
}

const connectMs = 5000;
/** Searching and counting may take long on a slow disk; a server that says nothing for so long is not there. */
const silenceMs = 120_000;
/** Listing models takes a provider less. */
const probeMs = 10_000;

export class Api {
  readonly url: string;
  private readonly key: string | undefined;
  private readonly agent = new Agent({ connect: { timeout: connectMs } });
  private readonly onClose: () => Promise<void>;

  /** @param url without a path */
  constructor(url: string, key: string | undefined, onClose = async () => {}) {
    this.url = url;
    this.key = key;
    this.onClose = onClose;
  }

  /** The JSON as it came. @throws Refusal; Error where there is no server, or none of ours */
  async text(method: Method, path: string, ask: Ask = {}): Promise<string> {
    const { status, text } = await this.reply(method, path, ask);
    if (status < 400) return text;
    const error = parsed(errorSchema, text)?.error;
    if (!error) throw this.foreign(status);
    const needsKey = status === 401 ? " Give one with --key or OUTLAST_API_KEY." : "";
    throw new Refusal(error, needsKey);
  }

  /** @throws as `text`; Error where the reply is not what the API promises */
  async json<T>(schema: Schema<T>, method: Method, path: string, ask?: Ask): Promise<T> {
    return this.read(schema, await this.text(method, path, ask));
  }

  /** What a reply says. @throws Error where it is not what the API promises */
  read<T>(schema: Schema<T>, text: string): T {
    const found = parsed(schema, text);
    if (found === undefined) throw this.foreign(200);
    return found;
  }

  /** Whatever it says. @throws Error where there is no server */
  async reply(
    method: Method,
    path: string,
    { query, body }: Ask = {},
  ): Promise<{ status: number; text: string }> {
    const search = query && query.size > 0 ? `?${query}` : "";
    try {
      const { statusCode, body: answer } = await request(`${this.url}${path}${search}`, {
        method,
        dispatcher: this.agent,
        headersTimeout: silenceMs,
        bodyTimeout: silenceMs,
        headers: {
          ...(this.key !== undefined && { authorization: `Bearer ${this.key}` }),
          ...(method !== "GET" && { "content-type": "application/json" }),
        },
        ...(method === "POST" && { body: JSON.stringify(body ?? {}) }),
      });
      return { status: statusCode, text: await answer.text() };
    } catch (error) {
      throw new Error(
        `No server can be reached at ${this.url} (${codeOf(error)}): start it with \`outlast serve\`, name another one with --url, or read a database file with --db.`,
      );
    }
  }

  async close(): Promise<void> {
    await this.agent.destroy();
    await this.onClose();
  }

  private foreign(status: number): Error {
    return new Error(
      `What answers at ${this.url} (HTTP ${status}) is no Outlast, or one of another version: see --url.`,
    );
  }
}

/** What the schema promises, and whatever else is there. */
function parsed<T>(schema: Schema<T>, text: string): T | undefined {
  try {
    const value = JSON.parse(text);
    return schema.safeParse(value).success ? value : undefined;
  } catch {
    return undefined;
  }
}

const codeOf = (error: unknown): string => {
  const { code, name } = error as { code?: unknown; name?: unknown };
  return String(code ?? name ?? "unknown error");
};

/** What a provider says to a GET: its status and its time; or why it said nothing. */
export async function probe(
  url: string,
  headers: Record<string, string>,
  timeoutMs: number,
): Promise<{ status: number; date?: string } | { code: string }> {
  const agent = new Agent({ connect: { timeout: timeoutMs } });
  try {
    const limits = { headersTimeout: probeMs, bodyTimeout: probeMs };
    const answer = await request(url, { headers, dispatcher: agent, ...limits });
    await answer.body.dump();
    const { date } = answer.headers;
    return { status: answer.statusCode, date: typeof date === "string" ? date : undefined };
  } catch (error) {
    return { code: codeOf(error) };
  } finally {
    await agent.destroy();
  }
}
