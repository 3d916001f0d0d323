import { defineConfig } from "vitest/config";

/** The crash suite has processes to start and to kill, so its files run one after the other. */
export default defineConfig({
  test: {
    include: ["test/crash/**/*.crash.ts"],
    fileParallelism: false,
    testTimeout: 120_000 + Number(process.env.KILLS ?? 0) * 5_000,
    hookTimeout: 60_000,
    disableConsoleIntercept: true,
  },
});
