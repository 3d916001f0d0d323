import { accessSync, constants, statfsSync } from "node:fs";
import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";

const memory = "/dev/shm";
const enoughBytes = 4 * 1024 ** 3;

/** Tests sync some thousand small databases, which a file system in memory does for nothing. */
function scratch(): Record<string, string> {
  try {
    accessSync(memory, constants.W_OK);
    const { bavail, bsize } = statfsSync(memory);
    return bavail * bsize >= enoughBytes ? { TMPDIR: memory } : {};
  } catch {
    return {};
  }
}

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    env: scratch(),
    testTimeout: 30_000,
    hookTimeout: 30_000,
    // Tests wait more than they compute: on two cores one worker takes nearly twice as long.
    maxWorkers: Math.max(2, availableParallelism() - 1),
  },
});
