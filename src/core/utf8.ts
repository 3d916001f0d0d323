/** Text as bytes. */

/**
 * Short texts share memory: a buffer of its own for each costs several times as much to make, and to get rid of. So what
 * is kept for long must not be made by this.
 */
export const utf8 = (text: string): Uint8Array => Buffer.from(text);
