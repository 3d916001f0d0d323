/** Values of the API as people read them. */

import type { RequestObject } from "../contract.ts";
import type { Colour } from "./terminal.ts";

const colours: Record<string, Colour> = {
  completed: "green",
  success: "green",
  ok: "green",
  failed: "red",
  fail: "red",
  permanent: "red",
  cancelled: "grey",
};
/** Of a status or a verdict; what is still under way, or was not the end, is between good and bad. */
export const colourOf = (word: string): Colour | undefined => colours[word] ?? (word ? "yellow" : undefined);

/** "2026-11-21 08:00:00", in UTC as everywhere in the API. */
export const time = (iso: string | null): string =>
  iso === null ? "" : iso.replace("T", " ").replace(/(\.\d+)?Z$/, "");

/** 950 ms, 12.3 s, 4m 05s, 3h 20m, 2d 4h. */
export function length(ms: number | null): string {
  if (ms === null) return "";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 60) return `${minutes}m ${two(Math.floor(ms / 1000) % 60)}s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours}h ${two(minutes % 60)}m` : `${Math.floor(hours / 24)}d ${hours % 24}h`;
}
const two = (value: number): string => String(value).padStart(2, "0");

export function size(bytes: number): string {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log10(Math.max(1, bytes)) / 3)));
  return power === 0 ? `${bytes} bytes` : `${(bytes / 1000 ** power).toFixed(1)} ${units[power]}`;
}

export const number = (value: number): string => value.toLocaleString("en-GB");
export const money = (value: number | null): string =>
  value === null ? "" : `$${value.toFixed(value !== 0 && value < 0.01 ? 6 : 2)}`;

/** "1 request", "1,234 requests". */
export const requests = (count: number): string => `${number(count)} request${count === 1 ? "" : "s"}`;

/** Ms from acceptance to the end; null while it goes on. */
export const duration = ({ created_at, ended_at }: RequestObject): number | null =>
  ended_at === null ? null : Date.parse(ended_at) - Date.parse(created_at);

/** Why it failed, or what it waits for. */
export const trouble = ({ status, error, last_error_code, waiting_for }: RequestObject): string =>
  [error?.code ?? (status === "completed" ? null : last_error_code), waiting_for && `waits: ${waiting_for}`]
    .filter(Boolean)
    .join(", ");
