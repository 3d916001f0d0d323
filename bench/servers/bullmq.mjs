/**
 * A durable queue as a team would build it with BullMQ: POST adds a job and answers 202 with its id, a worker in the
 * same process calls the upstream, the answer is the job's return value.
 */

import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { Queue, Worker } from "bullmq";
import { createCaller, createFront } from "./front.mjs";

const { values } = parseArgs({
  options: { upstream: { type: "string" }, redis: { type: "string" }, workers: { type: "string" } },
});
const connection = { host: "127.0.0.1", port: Number(values.redis), maxRetriesPerRequest: null };
const jobOptions = { attempts: 5, backoff: { type: "exponential", delay: 1000 } };
const queue = new Queue("calls", { connection, defaultJobOptions: jobOptions });
await queue.waitUntilReady();

const call = createCaller(values.upstream);
const front = createFront(async (body) => (await queue.add("call", body)).id);
const worker = new Worker("calls", ({ data }) => call(data), {
  connection,
  concurrency: Number(values.workers),
});
worker.on("completed", () => front.stored());
worker.on("failed", (_job, error) => front.lost(error));
await worker.waitUntilReady();

const server = createServer(front.handle);
server.listen(0, "127.0.0.1", () => console.log(`listens on http://127.0.0.1:${server.address().port}`));
