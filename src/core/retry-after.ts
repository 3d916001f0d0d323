/** How long an upstream asks us to wait, read from the headers that providers use for it. */

const dayMs = 86_400_000;
const longestMs = 30 * dayMs;
/** The Gregorian calendar repeats after 400 years. */
const calendarCycleMs = 146_097 * dayMs;
const yearMs = calendarCycleMs / 400;

/**
 * The wait in ms from `now` (epoch ms) that a reply asks for: a whole number from 0 to 30 days, rounded up so
 * that we never call earlier than told; undefined if no header says anything usable.
 *
 * Read in the order of the OpenAI SDKs: `retry-after-ms`, Azure's `x-ms-retry-after-ms`, then `retry-after`
 * (RFC 9110 §10.2.3: seconds or a date; some providers send fractions of a second). A value that is neither is
 * passed over for the next header. A date in the past means now.
 */
export function retryAfterMs(headers: (name: string) => string | undefined, now: number): number | undefined {
  const asked =
    decimal(headers("retry-after-ms"), 0) ??
    decimal(headers("x-ms-retry-after-ms"), 0) ??
    decimal(headers("retry-after"), 3) ??
    untilDate(headers("retry-after"), now);
  return asked === undefined ? undefined : Math.min(asked, longestMs);
}

/**
 * An unsigned decimal number times 10^`shift`, rounded up; undefined for anything else. It moves the point in
 * the text, as a product of floats may come out below or above the number that was written.
 */
function decimal(value: string | undefined, shift: number): number | undefined {
  // Most answers say nothing of the kind.
  if (value === undefined) return undefined;
  const match = /^[ \t]*(\d+)(?:\.(\d+))?[ \t]*$/.exec(value);
  if (match === null) return undefined;
  const [, whole = "", fraction = ""] = match;
  const rest = fraction.slice(shift);
  return Number(whole + fraction.slice(0, shift).padEnd(shift, "0")) + (/[1-9]/.test(rest) ? 1 : 0);
}

function untilDate(value: string | undefined, now: number): number | undefined {
  const at = value === undefined ? undefined : httpDate(value.trim(), now);
  return at === undefined ? undefined : Math.max(0, Math.ceil(at - now));
}

const monthNames = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const shortDay = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)";
const longDay = "(?:Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)";
const month = `(?<month>${monthNames.join("|")})`;
const time = "(?<hour>[01]\\d|2[0-3]):(?<minute>[0-5]\\d):(?<second>[0-5]\\d|60)";

/** The three formats of RFC 9110 §5.6.7: IMF-fixdate, and the obsolete ones of RFC 850 and of asctime(). */
const dateFormats = [
  new RegExp(`^${shortDay}, (?<day>\\d\\d) ${month} (?<year>\\d{4}) ${time} GMT$`),
  new RegExp(`^${longDay}, (?<day>\\d\\d)-${month}-(?<year>\\d\\d) ${time} GMT$`),
  new RegExp(`^${shortDay} ${month} (?<day>\\d\\d| \\d) ${time} (?<year>\\d{4})$`),
];

/**
 * The instant of an HTTP date. Date.parse is no use here: it takes "5 apples" for the first of May. A weekday
 * that does not fit the date is let pass, as the date itself says enough.
 */
function httpDate(text: string, now: number): number | undefined {
  for (const format of dateFormats) {
    const part = format.exec(text)?.groups;
    if (part === undefined) continue;
    const number = (name: string) => Number(part[name]);
    const timeMs = ((number("hour") * 60 + number("minute")) * 60 + number("second")) * 1000;
    const instant = (year: number) =>
      dayStart(year, monthNames.indexOf(part.month ?? ""), number("day"), timeMs);
    return part.year?.length === 2 ? inCentury(number("year"), instant, now) : instant(number("year"));
  }
  return undefined;
}

/** The instant `timeMs` after the start of a day in UTC; undefined if the month has no such day. */
function dayStart(year: number, monthIndex: number, day: number, timeMs: number): number | undefined {
  // Date.UTC takes the years 0 to 99 for 1900 to 1999, hence the detour by a calendar cycle.
  const monthStart = Date.UTC(year + 400, monthIndex, 1) - calendarCycleMs;
  const monthEnd = Date.UTC(year + 400, monthIndex + 1, 1) - calendarCycleMs;
  const start = monthStart + (day - 1) * dayMs;
  return start >= monthStart && start < monthEnd ? start + timeMs : undefined;
}

/**
 * A two-digit year is in this century, or the one around it, such that it is not more than 50 years in the
 * future (RFC 9110 §5.6.7).
 */
function inCentury(
  yearInCentury: number,
  instant: (year: number) => number | undefined,
  now: number,
): number | undefined {
  const nextCentury = (Math.floor((1970 + now / yearMs) / 100) + 1) * 100;
  const years = [nextCentury, nextCentury - 100, nextCentury - 200].map((start) => start + yearInCentury);
  return years.map(instant).find((at) => at !== undefined && at <= now + 50 * yearMs);
}
