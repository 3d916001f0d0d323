/**
 * A durable queue as a team would build it with pg-boss: POST sends a job and answers 202 with its id, workers in the
 * same process call the upstream, the answer is the job's output.
 *
 * The workers are loops of our own around fetch() and complete(): work() looks only twice a second at best and stores
 * one output for a whole batch.
 */

import { createServer } from "node:http";
import { setTimeout as pause } from "node:timers/promises";
import { parseArgs } from "node:util";
import PgBoss from "pg-boss";
import { createCaller, createFront } from "./front.mjs";

const { values } = parseArgs({
  options: { upstream: { type: "string" }, postgres: { type: "string" }, workers: { type: "string" } },
});
const loops = 4;
const batchSize = Number(values.workers) / loops;
const idleMs = 5;

const boss = new PgBoss({
  host: "127.0.0.1",
  port: Number(values.postgres),
  user: "bench",
  database: "postgres",
  max: 20,
});
boss.on("error", (error) => console.error(error));
await boss.start();
await boss.createQueue("calls");

const call = createCaller(values.upstream);
const front = createFront((body) => boss.send("calls", body, { retryLimit: 5, retryBackoff: true }));

async function runOne({ id, data }) {
  try {
    await boss.complete("calls", id, { answer: await call(data) });
    front.stored();
  } catch (error) {
    await boss.fail("calls", id, error);
    front.lost(error);
  }
}

async function work() {
  for (;;) {
    const jobs = await boss.fetch("calls", { batchSize });
    if (jobs.length === 0) await pause(idleMs);
    await Promise.all(jobs.map(runOne));
  }
}
for (let i = 0; i < loops; i++) work();

const server = createServer(front.handle);
server.listen(0, "127.0.0.1", () => console.log(`listens on http://127.0.0.1:${server.address().port}`));
