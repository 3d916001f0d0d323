/**
 * How many retries an upstream gets: a share of the first attempts that it gets, and a floor. A value; every function
 * returns the next one. Whoever finds it empty is told when the floor will have brought his retry, behind those who
 * were told before: retries over the budget are late, never lost.
 */

export interface BudgetSettings {
  /** Retries that each first attempt brings. */
  ratio: number;
  /** Retries that each second brings; above 0. */
  perSecond: number;
}

export interface RetryBudget extends BudgetSettings {
  /** Retries that may be made at once. */
  level: number;
  /** Retries that are promised from what the floor will bring. */
  owed: number;
  /** The instant at which these hold, epoch ms. */
  at: number;
}

/** The floor of so many seconds is saved up. */
const savedSeconds = 60;

export const startBudget = ({ ratio, perSecond }: BudgetSettings): RetryBudget => ({
  ratio,
  perSecond,
  level: most(perSecond),
  owed: 0,
  at: 0,
});

/** After a first attempt at `now` (epoch ms). What it brings is not for those who were promised a retry already. */
export function earn(before: RetryBudget, now: number): RetryBudget {
  const budget = asOf(before, now);
  budget.level = Math.min(most(budget.perSecond), budget.level + budget.ratio);
  return budget;
}

/** Retries that may be made at once. */
export const available = (budget: RetryBudget, now: number): number => asOf(budget, now).level;

/** Takes one retry: `at` (epoch ms) is when it may be made, `now` if there is one. */
export function draw(before: RetryBudget, now: number): { budget: RetryBudget; at: number } {
  const budget = asOf(before, now);
  if (budget.level >= 1) {
    budget.level -= 1;
    return { budget, at: now };
  }
  // A part of a retry that was earned is kept: spent here, it would put promises closer together than the floor does.
  budget.owed += 1;
  return { budget, at: now + Math.ceil((budget.owed / budget.perSecond) * 1000) };
}

/** A copy that holds at `now`. Where the clock was set back, no time has passed. */
function asOf({ ratio, perSecond, level, owed, at }: RetryBudget, now: number): RetryBudget {
  const brought = (Math.max(0, now - at) / 1000) * perSecond;
  const left = Math.max(0, owed - brought);
  const saved = Math.min(most(perSecond), level + brought - (owed - left));
  return { ratio, perSecond, level: saved, owed: left, at: now };
}

const most = (perSecond: number) => Math.max(1, perSecond * savedSeconds);
