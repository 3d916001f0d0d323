#!/usr/bin/env node
/** The command line: arguments → command → exit code. */

import { Command } from "commander";
import { addCommands, exitOf } from "./cli/commands.ts";
import { exampleModel } from "./config/providers.ts";
import { type Config, describeConfig, environment, loadConfig } from "./config.ts";
import { faultText } from "./core/errors.ts";
import type { Running } from "./server.ts";
import { systemClock, systemRandom, tuneGarbageCollection } from "./system.ts";

const exitFailure = 1;

interface Flags {
  config?: string;
  host?: string;
  port?: string;
}

function read(flags: Flags): Config {
  const { config: file, host, port } = flags;
  return loadConfig({ env: environment(), file, flags: { host, port } });
}

function check(flags: Flags): void {
  console.log(describeConfig(read(flags)));
}

async function serve(flags: Flags): Promise<void> {
  const config = read(flags);
  tuneGarbageCollection();
  // Commands that only ask a server need not load one.
  const { startServer } = await import("./server.ts");
  const { createLog } = await import("./telemetry/log.ts");
  const observer = createLog(config.log.level);
  const running = await startServer(config, { clock: systemClock, random: systemRandom, observer });
  const stopped = new Promise<number>((resolve) => {
    let stopping = false;
    const onSignal = () => {
      // A second signal stops at once; what is under way is found interrupted at the next start.
      if (stopping) process.exit(exitFailure);
      stopping = true;
      running.stop().then(() => resolve(0), fail);
    };
    const fail = (error: unknown) => {
      observer.tell({ event: "fault", where: "stop", message: faultText(error) });
      resolve(exitFailure);
    };
    process.on("SIGTERM", onSignal);
    process.on("SIGINT", onSignal);
    running.failed.then(() => resolve(exitFailure));
    for (const event of ["uncaughtException", "unhandledRejection"] as const) {
      // Everything that was acknowledged is on disk: the safe way on is a new start.
      process.on(event, (error: unknown) => {
        observer.tell({ event: "fault", where: event, message: faultText(error) });
        resolve(exitFailure);
      });
    }
  });
  console.log(greeting(running, config));
  process.exit(await stopped);
}

function greeting({ url, upstreams }: Running, config: Config): string {
  const [first] = upstreams;
  const demo = first?.origin === "demo";
  const model = first ? exampleModel(first) : "MODEL";
  const list = upstreams.map(({ name, baseUrl, models, origin }) => {
    const what = models.length > 0 ? models.join(", ") : "any model no other upstream lists";
    return `  ${name.padEnd(12)} ${origin === "demo" ? "built in, works offline" : baseUrl}   ${what}`;
  });
  const key = config.apiKeys.length > 0 ? ["  -H 'Authorization: Bearer YOUR_KEY' \\"] : [];
  return [
    `Outlast listens on ${url}   (database ${config.store.url.replace(/^sqlite:/, "")})`,
    "Upstreams:",
    ...list,
    ...(demo
      ? ["No provider is configured: set OPENAI_API_KEY (or another provider's key) for a real one."]
      : []),
    "Try it:",
    `curl ${url}/v1/chat/completions \\`,
    ...key,
    "  -H 'Content-Type: application/json' \\",
    `  -d '{"model": "${model}", "messages": [{"role": "user", "content": "Hello"}]}'`,
    `Point an OpenAI SDK at it: baseURL = ${url}/v1`,
  ].join("\n");
}

function program(): Command {
  const command = new Command("outlast")
    .description("An OpenAI-compatible reverse proxy that makes LLM requests finish.")
    .exitOverride();
  const withConfig = (name: string, description: string) =>
    command
      .command(name)
      .description(description)
      .option("--config <file>", "configuration file (default: outlast.toml, if there is one)")
      .option("--host <host>", "address to listen on")
      .option("--port <port>", "port to listen on; 0 lets the system pick");
  withConfig("serve", "run the proxy").action(serve);
  withConfig("check", "validate the configuration and print it, secrets masked").action(check);
  addCommands(command, environment(), { clock: systemClock, random: systemRandom });
  return command;
}

try {
  await program().parseAsync();
} catch (error) {
  process.exit(exitOf(error));
}
