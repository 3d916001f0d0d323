/** The commands that look at, and change, what a server has done. */

import { type Command, CommanderError } from "commander";
import type { Environment } from "../config/source.ts";
import { ConfigError } from "../config.ts";
import type { Clock, Random } from "../core/ports.ts";
import { addBackup } from "./backup.ts";
import { addChanges } from "./changes.ts";
import { addDoctor } from "./doctor.ts";
import { Unsuccessful, UsageError } from "./failure.ts";
import { addReading } from "./requests.ts";
import { createCli } from "./source.ts";
import { addStats } from "./stats.ts";
import { addTail } from "./tail.ts";
import { visibleLines } from "./terminal.ts";

/** sysexits.h: the configuration is wrong. Process managers need not restart. */
const exitConfig = 78;
const exitUsage = 64;
const exitFailure = 1;

export function addCommands(
  program: Command,
  env: Environment,
  parts: { clock: Clock; random: Random },
): void {
  const cli = createCli(env, parts);
  const requests = program.command("requests").description("what was asked, and what became of it");
  addReading(requests, cli);
  addTail(requests, cli);
  addChanges(requests, cli);
  addStats(program, cli);
  addBackup(program, cli);
  addDoctor(program, cli);
}

/** Tells what ended a command, where that was not told yet. @returns the exit code */
export function exitOf(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : exitUsage;
  if (error instanceof Unsuccessful) return exitFailure;
  console.error(visibleLines(error instanceof Error ? error.message : String(error)));
  if (error instanceof UsageError) return exitUsage;
  return error instanceof ConfigError ? exitConfig : exitFailure;
}
