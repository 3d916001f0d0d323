/** What the paced upstream streams, and what callers must have at the end: the same text, piece by piece. */

/** As real ones are: a word and a bit, each another, so that a missing or repeated piece is noticed. */
export function pieces(chunks) {
  return Array.from({ length: chunks }, (_, i) => ` word${i}${i % 20 === 19 ? ".\n" : ","}`);
}

/** The upstream is told by the model's name, because that is what every proxy hands on. */
export function pacedModel({ chunks, paceMs }) {
  return `paced-${chunks}-${paceMs}`;
}

/** @returns what a request asks for: number of content chunks, ms between them, whether its usage is to be told */
export function pacedBy(body) {
  const [, chunks, paceMs] = /"model":\s*"paced-(\d+)-(\d+)"/.exec(body) ?? [];
  if (chunks === undefined) return undefined;
  const hasUsage = /"include_usage":\s*true/.test(body);
  return { chunks: Number(chunks), paceMs: Number(paceMs), hasUsage };
}
