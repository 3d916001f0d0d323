/**
 * SIGKILL at random times and at every failpoint, under callers of every kind.
 * KILLS=n kills so often (default 24), SEED=n replays the plan of a run.
 */

import { expect, test } from "vitest";
import { crashRun, deathsOf, described } from "./run.ts";

const seed = Number(process.env.SEED ?? Date.now() % 1_000_000);
const kills = Number(process.env.KILLS ?? 24);

test(`nothing is lost, and nothing is paid twice in silence, over ${kills} kills`, async () => {
  const deaths = deathsOf(seed, kills);
  const { faults, hits, ...report } = await crashRun({ seed, deaths, drainMs: 60_000 });
  console.log(JSON.stringify({ seed, kills, ...report, hits, faults: faults.length }));
  const replay = `replay: SEED=${seed} KILLS=${kills}; it died at: ${deaths.map(described).join(", ")}`;
  expect(faults.slice(0, 20), replay).toEqual([]);
  // Silence would also keep every promise.
  expect(report.summary.acknowledged).toBeGreaterThan(kills);
  expect(report.summary.delivered).toBeGreaterThan(kills);
  for (const { point } of deaths) if (point) expect(hits[point], `deaths at ${point}`).toBeGreaterThan(0);
});
