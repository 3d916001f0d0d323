import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    testTimeout: 30_000,
    hookTimeout: 30_000,
    // Tests wait more than they compute: on two cores one worker takes nearly twice as long.
    maxWorkers: Math.max(2, availableParallelism() - 1),
  },
});
