/** `outlast backup`: a copy of the database, also of one that a server is writing to. */

import { resolve } from "node:path";
import type { Command } from "commander";
import { copyDatabase } from "../store/sqlite/inspection.ts";
import { type Cli, databaseOf, readConfig, type SourceFlags, withConfig, withJson } from "./source.ts";
import * as words from "./words.ts";

type BackupFlags = SourceFlags & { force?: boolean };

export function addBackup(program: Command, cli: Cli): void {
  withJson(withConfig(program.command("backup").description("copy the database, while a server runs or not")))
    .argument("<file>", "where the copy goes")
    .option("--db <file>", "the database (default: the one of the configuration)")
    .option("--force", "replace the file if it exists")
    .action((target, flags) => backUp(target, flags, cli));
}

async function backUp(target: string, flags: BackupFlags, cli: Cli): Promise<void> {
  const { terminal } = cli;
  const path = flags.db ?? databaseOf(readConfig(flags, cli));
  const tell = terminal.progress("copy");
  let isStopped = false;
  const stop = () => {
    isStopped = true;
  };
  process.on("SIGINT", stop);
  const { requests, bytes } = await copyDatabase(resolve(path), resolve(target), {
    overwrite: flags.force === true,
    onProgress(share) {
      // So that what is half done is taken away.
      if (isStopped) throw new Error("Stopped: there is no copy.");
      tell(share);
    },
    onCheck() {
      // Nothing of ours runs until it is checked: from now on the signal itself ends the command.
      process.off("SIGINT", stop);
      terminal.note("The copy is whole, and is being checked.");
    },
  });
  if (flags.json) terminal.print(JSON.stringify({ object: "backup", file: target, requests, bytes }));
  else terminal.print(`${target}: ${words.requests(requests)}, ${words.size(bytes)}, checked.`);
}
