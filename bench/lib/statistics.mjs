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

/**
 * How likely it is that two things that do not differ differ in as many rounds in the same direction, by chance
 * (two-sided sign test; rounds with the same value count for neither).
 */
export function signTest(values, base) {
  const differ = values.map((value, round) => value - base[round]).filter((difference) => difference !== 0);
  const rarer = Math.min(...[1, -1].map((sign) => differ.filter((one) => Math.sign(one) === sign).length));
  let ways = 1;
  let sum = 0;
  for (let i = 0; i <= rarer; i++) {
    sum += ways;
    ways = (ways * (differ.length - i)) / (i + 1);
  }
  return Math.min(1, (2 * sum) / 2 ** differ.length);
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
