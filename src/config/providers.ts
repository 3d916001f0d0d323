import { isIPv6 } from "node:net";

/** A provider that one environment variable is enough to use. */
export interface Provider {
  /** the upstream's name */
  name: string;
  /** the environment variable with its API key */
  keyVariable: string;
  /** where it speaks the OpenAI API, without a trailing slash */
  baseUrl: string;
  /** the models that it is known to serve, as names or globs; none = it may be the default upstream */
  models: readonly string[];
  /** a model that everybody with a key may try */
  example: string;
}

/** In the order in which they become upstreams. OpenAI and Ollama have rules of their own, see below. */
export const providers: readonly Provider[] = [
  {
    name: "openai",
    keyVariable: "OPENAI_API_KEY",
    baseUrl: "https://api.openai.com/v1",
    models: [],
    example: "gpt-4o-mini",
  },
  {
    name: "anthropic",
    keyVariable: "ANTHROPIC_API_KEY",
    baseUrl: "https://api.anthropic.com/v1",
    models: ["claude-*"],
    example: "claude-haiku-4-5",
  },
  {
    name: "gemini",
    keyVariable: "GEMINI_API_KEY",
    baseUrl: "https://generativelanguage.googleapis.com/v1beta/openai",
    models: ["gemini-*", "gemma-*"],
    example: "gemini-2.5-flash",
  },
  {
    name: "openrouter",
    keyVariable: "OPENROUTER_API_KEY",
    baseUrl: "https://openrouter.ai/api/v1",
    models: ["*/*"],
    example: "openrouter/auto",
  },
  {
    name: "groq",
    keyVariable: "GROQ_API_KEY",
    baseUrl: "https://api.groq.com/openai/v1",
    models: [],
    example: "llama-3.3-70b-versatile",
  },
  {
    name: "xai",
    keyVariable: "XAI_API_KEY",
    baseUrl: "https://api.x.ai/v1",
    models: ["grok-*"],
    example: "grok-4",
  },
  {
    name: "mistral",
    keyVariable: "MISTRAL_API_KEY",
    baseUrl: "https://api.mistral.ai/v1",
    models: [
      "mistral-*",
      "ministral-*",
      "magistral-*",
      "codestral-*",
      "devstral-*",
      "pixtral-*",
      "voxtral-*",
      "open-mistral-*",
    ],
    example: "mistral-small-latest",
  },
  {
    name: "deepseek",
    keyVariable: "DEEPSEEK_API_KEY",
    baseUrl: "https://api.deepseek.com/v1",
    models: ["deepseek-*"],
    example: "deepseek-chat",
  },
];

/** An upstream as the environment describes it, in the file's words. */
export interface FoundUpstream {
  name: string;
  fields: { base_url: string; api_key?: string; models: string[] };
  /** which variable gave which field */
  variables: { base_url: string; api_key?: string };
}

/**
 * The upstreams that the providers' usual environment variables make, in the table's order, Ollama last.
 * @param read gives a variable's value, or undefined if it is unset or empty
 */
export function environmentUpstreams(read: (variable: string) => string | undefined): FoundUpstream[] {
  const found: FoundUpstream[] = [];
  for (const provider of providers) {
    const apiKey = read(provider.keyVariable);
    // Servers that speak OpenAI's API often need no key, so the address alone is enough for this one.
    const address = provider.name === "openai" ? read("OPENAI_BASE_URL") : undefined;
    if (apiKey === undefined && address === undefined) continue;
    const base_url = address ?? provider.baseUrl;
    found.push({
      name: provider.name,
      fields: { base_url, ...(apiKey !== undefined && { api_key: apiKey }), models: [...provider.models] },
      variables: {
        base_url: address === undefined ? provider.keyVariable : "OPENAI_BASE_URL",
        ...(apiKey !== undefined && { api_key: provider.keyVariable }),
      },
    });
  }
  const ollama = read("OLLAMA_HOST");
  if (ollama !== undefined) {
    const fields = { base_url: ollamaBaseUrl(ollama), models: [] };
    found.push({ name: "ollama", fields, variables: { base_url: "OLLAMA_HOST" } });
  }
  return found;
}

/**
 * Reads OLLAMA_HOST as Ollama does: "host" and "host:port" are http with port 11434 unless one is given, a URL has
 * its scheme's usual port. The addresses that only a server can listen on become the loopback address.
 * Text that makes no sense comes back as it is, to be refused where base URLs are checked.
 */
export function ollamaBaseUrl(host: string): string {
  const [, scheme, authority = "", path = ""] = /^(?:(https?):\/\/)?([^/]*)(\/.*)?$/i.exec(host) ?? [];
  const bare = isIPv6(authority) ? `[${authority}]` : authority;
  const parts = /^(\[[^\]]*\]|[^:]*)(?::(\d+))?$/.exec(bare);
  if (!parts) return host;
  const reachable = new Map([
    ["", "127.0.0.1"],
    ["0.0.0.0", "127.0.0.1"],
    ["[::]", "[::1]"],
  ]);
  const name = reachable.get(parts[1]!) ?? parts[1]!;
  const port = parts[2] ?? (scheme === undefined ? "11434" : undefined);
  const prefix = path.replace(/\/+$/, "").replace(/\/v1$/, "");
  return `${scheme ?? "http"}://${name}${port === undefined ? "" : `:${port}`}${prefix}/v1`;
}

/** A model to try an upstream with: one that it lists, or one of its provider's. */
export function exampleModel(upstream: { name: string; models: readonly string[] }): string {
  const listed = upstream.models.find((model) => !model.includes("*"));
  if (listed !== undefined) return listed;
  if (upstream.name === "ollama") return "llama3.2";
  return providers.find(({ name }) => name === upstream.name)?.example ?? "MODEL";
}
