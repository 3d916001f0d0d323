/** Upstreams that keep account of what is asked of them. */

import type { Clock } from "../../src/core/ports.ts";
import { start } from "./clock.ts";
import type { LedgerEntry, Provider } from "./upstream.ts";

type Kind = "requests" | "tokens";

interface Bucket {
  limit: number;
  level: number;
  at: number;
}

/** How a provider writes when all will be there again. */
export type ResetForm = "duration" | "seconds" | "instant" | "none";

/**
 * Token buckets of requests and tokens per minute for each upstream, as OpenAI keeps them: a call that finds one
 * empty is refused with 429. Every answer says what is left.
 */
export class Metered implements Provider {
  /** Calls that were refused, and when. */
  readonly refusedAt: number[] = [];
  private readonly clock: Pick<Clock, "now">;
  private readonly limits: Partial<Record<Kind, number>>;
  private readonly form: ResetForm;
  private readonly saysWhen: boolean;
  private readonly buckets = new Map<string, Bucket>();

  constructor(
    clock: Pick<Clock, "now">,
    limits: Partial<Record<Kind, number>>,
    how: { form: ResetForm; saysWhen: boolean },
  ) {
    this.clock = clock;
    this.limits = limits;
    this.form = how.form;
    this.saysWhen = how.saysWhen;
  }

  begin({ upstream, tokens: { prompt, output } }: LedgerEntry) {
    const asked = { requests: 1, tokens: prompt + output };
    const kinds = (["requests", "tokens"] as const).filter((kind) => this.limits[kind] !== undefined);
    const buckets = kinds.map((kind) => ({ kind, bucket: this.bucket(upstream, kind) }));
    const missing = buckets.filter(({ kind, bucket }) => bucket.level < Math.min(asked[kind], bucket.limit));
    const isRefused = missing.length > 0;
    if (isRefused) this.refusedAt.push(this.clock.now() - start);
    else for (const { kind, bucket } of buckets) bucket.level -= asked[kind];
    const headers = buckets.flatMap(({ kind, bucket }) => this.headersOf(kind, bucket));
    if (!isRefused) return { headers };
    const waits = missing.map(({ kind, bucket }) => ((asked[kind] - bucket.level) / bucket.limit) * 60);
    if (this.saysWhen) headers.push(["retry-after", String(Math.ceil(Math.max(...waits)))]);
    return { refusedWith: 429, headers };
  }

  private bucket(upstream: string, kind: Kind): Bucket {
    const now = this.clock.now();
    const key = `${upstream} ${kind}`;
    const limit = this.limits[kind]!;
    const bucket = this.buckets.get(key) ?? { limit, level: limit, at: now };
    this.buckets.set(key, bucket);
    bucket.level = Math.min(limit, bucket.level + ((now - bucket.at) / 60_000) * limit);
    bucket.at = now;
    return bucket;
  }

  private headersOf(kind: Kind, { limit, level }: Bucket): [string, string][] {
    const headers: [string, string][] = [
      [`x-ratelimit-limit-${kind}`, String(limit)],
      [`x-ratelimit-remaining-${kind}`, String(Math.max(0, Math.floor(level)))],
    ];
    const resetMs = Math.ceil(((limit - level) / limit) * 60_000);
    const seconds = (resetMs / 1000).toFixed(3);
    const instant = () => new Date(this.clock.now() + resetMs).toISOString();
    const texts = { duration: `${seconds}s`, seconds, instant: instant(), none: undefined };
    const reset = texts[this.form];
    if (reset !== undefined) headers.push([`x-ratelimit-reset-${kind}`, reset]);
    return headers;
  }
}

/** Bears only so many calls at once, and says no more than that. */
export class Crowded implements Provider {
  readonly refusedAt: number[] = [];
  /** When it took a call. */
  readonly takenAt: number[] = [];
  private readonly clock: Pick<Clock, "now">;
  private readonly most: number;
  private readonly status: number;
  private readonly inside = new Set<LedgerEntry>();

  constructor(clock: Pick<Clock, "now">, most: number, status: number) {
    this.clock = clock;
    this.most = most;
    this.status = status;
  }

  begin(entry: LedgerEntry) {
    const now = this.clock.now() - start;
    if (this.inside.size >= this.most) {
      this.refusedAt.push(now);
      return { refusedWith: this.status, headers: [] };
    }
    this.takenAt.push(now);
    this.inside.add(entry);
    return { headers: [] };
  }

  end(entry: LedgerEntry): void {
    this.inside.delete(entry);
  }

  crashed(): void {
    this.inside.clear();
  }
}

/** An upstream is out of order from one instant to another, in ms from the start. */
export class Broken implements Provider {
  private readonly clock: Pick<Clock, "now">;
  private readonly upstream: string;
  private readonly fromMs: number;
  private readonly toMs: number;

  constructor(clock: Pick<Clock, "now">, upstream: string, [fromMs, toMs]: [number, number]) {
    this.clock = clock;
    this.upstream = upstream;
    this.fromMs = fromMs;
    this.toMs = toMs;
  }

  begin({ upstream }: LedgerEntry) {
    const now = this.clock.now() - start;
    const isOut = upstream === this.upstream && now >= this.fromMs && now < this.toMs;
    return isOut ? { refusedWith: 503, headers: [] } : { headers: [] };
  }
}

const absurd = [
  "-1",
  "0",
  "",
  "NaN",
  "1e400",
  "99999999999999999999",
  "12abc",
  "-0.5s",
  "1d",
  "∞",
  "null",
  "5, 7",
];

/** Says things about its limits that make no sense. */
export class Babbling implements Provider {
  private readonly luck: () => number;

  constructor(luck: () => number) {
    this.luck = luck;
  }

  begin() {
    const word = () => absurd[Math.floor(this.luck() * absurd.length)]!;
    const names = ["limit", "remaining", "reset"].flatMap((name) =>
      (["requests", "tokens"] as const).map((kind) => `x-ratelimit-${name}-${kind}`),
    );
    return { headers: names.filter(() => this.luck() < 0.8).map((name): [string, string] => [name, word()]) };
  }
}
