/** What comes out: whether it can be trusted, the table for people, the targets, the JSON. */

import { writeFileSync } from "node:fs";
import { median, ratios, round, spread } from "./statistics.mjs";

/** Beyond these the figures say more about the machine than about the servers. */
export const limits = {
  /** the same arithmetic, over the rounds: (largest − smallest) / median */
  calibrationSpread: 0.15,
  /** the reference server at its highest concurrency, over the rounds: (largest − smallest) / median */
  referenceSpread: 0.3,
  /** the share of the machine that other programs took, as the median of all measurements */
  foreign: 0.05,
  /** the share that the hypervisor withheld, as the median of all measurements */
  steal: 0.02,
};

const percent = (share) => `${round(share * 100, 1)} %`;

const rates = { name: "perSecond", called: "rates" };

/** @returns what was too noisy, as sentences; none: the run can be reported */
export function noise({ calibrationsMs, samples, steady = rates }, reference, concurrency) {
  const all = Object.values(samples).flatMap((byConcurrency) => Object.values(byConcurrency).flat());
  const found = {
    calibrationSpread: spread(calibrationsMs),
    referenceSpread: spread(samples[reference][concurrency].map((sample) => sample[steady.name])),
    foreign: median(all.map(({ foreign }) => foreign)),
    steal: median(all.map(({ steal }) => steal)),
  };
  const what = {
    calibrationSpread: "A fixed calculation took times that differ by",
    referenceSpread: `${reference} at c=${concurrency} had ${steady.called} that differ by`,
    foreign: "Other programs used a share of the machine of",
    steal: "The hypervisor withheld a share of the machine of",
  };
  const complaints = Object.keys(limits)
    .filter((name) => !(found[name] <= limits[name]))
    .map((name) => `${what[name]} ${percent(found[name])} (limit ${percent(limits[name])}).`);
  return { found, complaints };
}

export const ratioText = ({ median: middle, min, max }) =>
  `${middle.toFixed(2)} [${min.toFixed(2)}–${max.toFixed(2)}]`;

/** The values of one column in one cell: medians, but for errors (their sum) and memory (the largest). */
export function summary(list) {
  const of = (name) => list.map((sample) => sample[name]);
  const middle = (name, digits) => round(median(of(name)), digits);
  return {
    perSecond: middle("perSecond", 0),
    p50Ms: middle("p50Ms", 2),
    p99Ms: middle("p99Ms", 1),
    errors: of("errors").reduce((sum, one) => sum + one, 0),
    cpuMicros: middle("cpuMicros", 0),
    laterMicros: middle("laterMicros", 0),
    rssMb: Math.round(Math.max(...of("rssMb"))),
    ...("lifecyclesPerSecond" in list[0] && { lifecyclesPerSecond: middle("lifecyclesPerSecond", 0) }),
  };
}

/**
 * @param columns title → function of (summary, peer, concurrency), for what is beside the common columns
 * @returns one table per concurrency, as Markdown
 */
export function tables(samples, concurrencies, columns) {
  return concurrencies
    .map((concurrency) => {
      const rows = Object.entries(samples).map(([peer, byConcurrency]) => {
        const sums = summary(byConcurrency[concurrency]);
        const { perSecond, p50Ms, p99Ms, errors, cpuMicros, laterMicros, rssMb } = sums;
        const more = Object.values(columns).map((cell) => cell(sums, peer, concurrency) ?? "");
        return [peer, perSecond, p50Ms, p99Ms, errors, cpuMicros, laterMicros, rssMb, ...more];
      });
      const head = [
        `c=${concurrency}`,
        "requests/s",
        "p50 ms",
        "p99 ms",
        "errors",
        "CPU µs",
        "later",
        "RSS MB",
      ];
      return aligned([[...head, ...Object.keys(columns)], ...rows]);
    })
    .join("\n\n");
}

/** @returns rows of cells, the first of them the titles, as a table of Markdown */
export function aligned(rows) {
  const texts = rows.map((row) => row.map(String));
  const widths = texts[0].map((_, column) => Math.max(...texts.map((row) => row[column].length)));
  const line = (row) =>
    `| ${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join(" | ")} |`;
  const rule = `|${widths.map((width, i) => (i === 0 ? "-".repeat(width + 2) : `${"-".repeat(width + 1)}:`)).join("|")}|`;
  return [line(texts[0]), rule, ...texts.slice(1).map(line)].join("\n");
}

/** A column with the ratio of each peer's value to one peer's, round by round. */
export function ratioColumn(samples, base, name = "perSecond") {
  return (_sums, peer, concurrency) => {
    const ratio = ratioOf(samples, [peer, name], [base, name], concurrency);
    return ratio && ratioText(ratio);
  };
}

/** @returns undefined where one of the two was not measured */
export function ratioOf(samples, [peer, name], [base, baseName], concurrency) {
  const of = (one, field) => samples[one]?.[concurrency]?.map((sample) => sample[field]);
  const [above, below] = [of(peer, name), of(base, baseName)];
  if (!above || !below || above[0] === undefined || below[0] === undefined) return undefined;
  return ratios(above, below);
}

/** @param target `what`, the `value` (undefined: not measured), and `atLeast` or `atMost` */
export function judged({ what, value, spread: ratio, atLeast, atMost }) {
  if (value === undefined) return { what, passed: undefined, text: `not measured  ${what}` };
  const passed = atLeast === undefined ? value <= atMost : value >= atLeast;
  const bound = atLeast === undefined ? `at most ${atMost}` : `at least ${atLeast}`;
  const found = ratio ? ratioText(ratio) : round(value, 2);
  return {
    what,
    value: round(value, 3),
    passed,
    text: `${passed ? "pass" : "FAIL"}  ${what}: ${found} (${bound})`,
  };
}

export function writeJson(file, result) {
  writeFileSync(file, `${JSON.stringify(result, undefined, 2)}\n`);
}
