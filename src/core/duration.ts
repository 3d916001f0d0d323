/** Lengths of time as people write them: "250ms", "10s", "5m", "24h", "7d". */

const units = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["m", 60_000],
  ["s", 1_000],
  ["ms", 1],
] as const;

const pattern = /^(\d+(?:\.\d+)?) ?(ms|s|m|h|d)?$/;

/**
 * Reads a length of time.
 * @param text a number of seconds, or text such as "250ms", "10s", "5m", "24h", "7d"; text without a unit means seconds
 * @returns whole milliseconds, or undefined if it is not a length of time (negative, no number, an unknown unit)
 */
export function parseDuration(text: string | number): number | undefined {
  if (typeof text === "number") return text >= 0 ? safe(text * 1_000) : undefined;
  const match = pattern.exec(text.trim());
  if (!match) return undefined;
  const unitMs = units.find(([unit]) => unit === (match[2] ?? "s"))?.[1] ?? 1_000;
  return safe(Number(match[1]) * unitMs);
}

/** Writes milliseconds with the largest unit that needs no fraction: 280000 → "280s", 600000 → "10m". */
export function formatDuration(ms: number): string {
  if (ms === 0) return "0s";
  const [unit, unitMs] = units.find(([, size]) => ms % size === 0) ?? ["ms", 1];
  return `${ms / unitMs}${unit}`;
}

function safe(ms: number): number | undefined {
  const whole = Math.round(ms);
  return Number.isSafeInteger(whole) ? whole : undefined;
}
