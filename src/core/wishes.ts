/** What a caller, a route or the configuration may wish for an answer beyond the answer itself. */

/** `validate`: what makes an answer invalid. */
export interface ValidateWish {
  /** It is not JSON, where JSON was asked for (or `schema` is given). */
  json: boolean;
  /** The model refused, or a filter cut the answer. */
  refusal: boolean;
  /** It was cut off by a limit of tokens. */
  length: boolean;
  /** It says nothing. */
  empty: boolean;
  /** JSON Schema of the content; without it, the one that `response_format` gives, if it does. */
  schema?: unknown;
  /** How many further attempts invalid answers may cause. */
  maxRetries: number;
  /** The next attempt is told the invalid answer and what is wrong with it. */
  feedback: boolean;
}

/** `cache`: an equal request of the same project that completed within this time answers this one. */
export interface CacheWish {
  ttlMs: number;
}

/** `on_failure`: what the caller gets where its request fails, or is in trouble. The older answer goes first. */
export interface FailureWish {
  /** The newest answer to an equal request, if it is no older than this. */
  staleMs?: number;
  /** A text, or a whole answer. */
  answer?: unknown;
}

/** What `true` means. */
export const validateAll: ValidateWish = {
  json: true,
  refusal: true,
  length: true,
  empty: true,
  maxRetries: 2,
  feedback: false,
};
