/** What ends a command other than well. */

/** Wrong words on the command line: exit code 64. */
export class UsageError extends Error {}

/** What was asked for was not, or not wholly, done, and that has been told: exit code 1. */
export class Unsuccessful extends Error {}
