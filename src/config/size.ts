/** Amounts of data as people write them: "512KB", "32MB", "1GB". Units are powers of 1024. */

const units = [
  ["TB", 1024 ** 4],
  ["GB", 1024 ** 3],
  ["MB", 1024 ** 2],
  ["KB", 1024],
  ["B", 1],
] as const;

const pattern = /^(\d+(?:\.\d+)?) ?(B|KB|MB|GB|TB)?$/i;

/**
 * Reads an amount of data.
 * @param text a number of bytes, or text such as "512KB", "32MB", "1GB" (1 KB = 1024 bytes); text without a unit means bytes
 * @returns whole bytes, or undefined if it is not an amount of data
 */
export function parseSize(text: string | number): number | undefined {
  const match = pattern.exec(String(text).trim());
  if (!match) return undefined;
  const unit = (match[2] ?? "B").toUpperCase();
  const bytes = Math.round(Number(match[1]) * (units.find(([name]) => name === unit)?.[1] ?? 1));
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** Writes bytes with the largest unit that needs no fraction: 33554432 → "32MB". */
export function formatSize(bytes: number): string {
  if (bytes === 0) return "0B";
  const [unit, unitBytes] = units.find(([, size]) => bytes % size === 0) ?? ["B", 1];
  return `${bytes / unitBytes}${unit}`;
}
