import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/power/**/*.power.ts"],
    globalSetup: "test/power/shim.ts",
    // Each file has a server, and a disk or a shim of its own; together they would only slow each other down.
    fileParallelism: false,
    testTimeout: 120_000,
    hookTimeout: 60_000,
  },
});
