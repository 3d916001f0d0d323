/**
 * How far somebody has read a stream: "12", or "2-12" where it was taken up again or began anew in between. The
 * number is the count of the events, the version that of the beginnings; see `RequestRecord.forks`.
 */

export interface StreamCursor {
  version: number;
  /** How many events have been read. */
  after: number;
}

export const beginning: StreamCursor = { version: 1, after: 0 };

export const versionOf = (forks: number[]): number => forks.length + 1;

/** As it stands in an `id:` line. */
export const cursorText = ({ version, after }: StreamCursor): string =>
  version === 1 ? String(after) : `${version}-${after}`;

/** Undefined where the text is no cursor. */
export function parseCursor(text: string): StreamCursor | undefined {
  const [, version = "1", after] = /^(?:([1-9]\d{0,8})-)?(\d{1,15})$/.exec(text) ?? [];
  return after === undefined ? undefined : { version: Number(version), after: Number(after) };
}

/** The first version in which so many events meant what they mean now. */
export function cursorAt(after: number, forks: number[]): StreamCursor {
  let version = versionOf(forks);
  while (version > 1 && after <= forks[version - 2]!) version--;
  return { version, after };
}

/** Whether what was read then is what the stream begins with now. */
export function isValidCursor({ version, after }: StreamCursor, forks: number[]): boolean {
  return version <= versionOf(forks) && forks.slice(version - 1).every((shared) => after <= shared);
}
