/** Embeddings that are known by their input: a call asks for the others only, and its answer has them all. */

import { cutInputs, join, split } from "./embeddings.ts";
import type { CacheStore, Outcome, Part, Vector } from "./ports.ts";
import { utf8 } from "./utf8.ts";

/** Where the answer to each input would be found, in their order. */
export interface VectorPlan {
  /** SHA-256 (hex) of each input with all that its vector depends on. */
  hashes: string[];
  ttlMs: number;
}

// Every byte stays: bodies with anything but UTF-8 are never taken apart.
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** Targets may know a model by the same name and mean another one: vectors of two must never meet in an answer. */
const scopeOf = (project: string, lane: string): string => `${project} ${lane}`;

export class Recall {
  private readonly hashes: string[];
  /** JSON texts of the vectors, by the place of their input; undefined = not known. */
  private readonly vectors: (string | undefined)[];
  /** What the call has brought. */
  private fresh: string[] = [];
  private readonly missing: number[];

  private constructor(hashes: string[], known: Map<string, string>) {
    this.hashes = hashes;
    this.vectors = hashes.map((hash) => known.get(hash));
    this.missing = hashes.map((_, i) => i).filter((i) => this.vectors[i] === undefined);
  }

  /** What is known when a call is about to be made in a lane. @param now epoch ms */
  static async of(
    cache: CacheStore,
    { project, lane }: { project: string; lane: string },
    { hashes, ttlMs }: VectorPlan,
    now: number,
  ): Promise<Recall> {
    const found = await cache.vectors(scopeOf(project, lane), [...new Set(hashes)], now - ttlMs);
    return new Recall(hashes, new Map(found.map(({ hash, bytes }) => [hash, decoder.decode(bytes)])));
  }

  /** The body with those inputs that are not known. All of them, where all are: an attempt is a call. */
  bodyOf(body: Uint8Array): Uint8Array {
    if (!this.isCut) return body;
    return utf8(cutInputs(decoder.decode(body), this.missing));
  }

  /** Whether only a part of the inputs is asked for. */
  get isCut(): boolean {
    return !this.isWhole && this.missing.length < this.hashes.length;
  }

  /** Whether nothing need be asked. */
  get isWhole(): boolean {
    return this.missing.length === 0;
  }

  /** The answer to the whole request. Where it does not fit, it is the upstream's mistake, as malformed JSON is. */
  wholeOf(outcome: Outcome): Outcome {
    if (outcome.kind !== "response" || outcome.status !== 200 || outcome.facts.error) return outcome;
    const { missing, vectors } = this;
    const asked = missing.length > 0 ? missing : vectors.map((_, i) => i);
    const text = decoder.decode(outcome.body);
    const fresh = split(text, asked.length);
    // An answer to all of it is the caller's, whatever it is like.
    if (!fresh && asked.length === vectors.length) return outcome;
    if (!fresh) return { ...outcome, facts: { ...outcome.facts, wellFormed: false } };
    this.fresh = fresh;
    for (const [i, vector] of fresh.entries()) vectors[asked[i]!] = vector;
    if (asked.length === vectors.length) return outcome;
    return { ...outcome, body: utf8(join(text, vectors as string[], "")) };
  }

  /** The answer where everything is known. @param model what it calls itself */
  answer(model: string): Part[] {
    const head = { status: 200, headers: [["content-type", "application/json"]] };
    return [
      { kind: "answer_head", seq: 0, bytes: utf8(JSON.stringify(head)) },
      { kind: "answer", seq: 0, bytes: utf8(join(undefined, this.vectors as string[], model)) },
    ];
  }

  /** What later calls need not ask for again. */
  learned({ project, lane }: { project: string; lane: string }, createdAt: number): Vector[] {
    const places = this.missing.length > 0 ? this.missing : this.hashes.map((_, i) => i);
    return this.fresh.map((vector, i) => ({
      project: scopeOf(project, lane),
      hash: this.hashes[places[i]!]!,
      bytes: utf8(vector),
      createdAt,
    }));
  }
}
