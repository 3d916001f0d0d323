export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** How far the values lie apart: 0.2 means that the largest and the smallest differ by 20 % of the median. */
export function spread(values) {
  return (Math.max(...values) - Math.min(...values)) / median(values);
}

/** The ratio in each round, because what slows a round down slows both; their median, smallest and largest. */
export function ratios(values, base) {
  const each = values.map((value, round) => value / base[round]);
  return { median: median(each), min: Math.min(...each), max: Math.max(...each) };
}

export function round(value, digits) {
  return Number(value.toFixed(digits));
}

/** The same values in an order of chance (Fisher and Yates). */
export function shuffled(values) {
  const list = [...values];
  for (let i = list.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [list[i], list[j]] = [list[j], list[i]];
  }
  return list;
}
