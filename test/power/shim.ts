/** Builds the shim before the suite, for all of its files, and takes it away behind it. */

import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"];

/** @throws Error where there is no C compiler */
export default function build(): () => void {
  const folder = mkdtempSync(join(tmpdir(), "outlast-shim-"));
  const file = join(folder, "power-cut.so");
  execFileSync("cc", [...flags, "-o", file, join(import.meta.dirname, "power-cut.c"), "-lpthread"]);
  // What the processes that run the files inherit.
  process.env.POWER_SHIM = file;
  return () => rmSync(folder, { recursive: true, force: true });
}
