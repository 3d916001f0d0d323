import { execFile } from "node:child_process";
import { promisify } from "node:util";
import { expect, test } from "vitest";

/** In a process with the flags of `npm start`: how much room for what is young a thread takes that was given 4 MB. */
const script = `
import { Worker } from "node:worker_threads";
import { tuneGarbageCollection } from ${JSON.stringify(new URL("../dist/system.js", import.meta.url).href)};
tuneGarbageCollection();
const work = \`
  import { getHeapSpaceStatistics } from "node:v8";
  import { parentPort } from "node:worker_threads";
  const kept = [];
  for (let i = 0; i < 2e6; i++) kept[i % 100_000] = { text: "x" + i };
  const space = getHeapSpaceStatistics().find(({ space_name: name }) => name === "new_space");
  parentPort.postMessage(space.space_size);
\`;
const worker = new Worker(work, { eval: true, resourceLimits: { maxYoungGenerationSizeMb: 4 } });
worker.on("message", (bytes) => console.log(bytes));
`;

test("a thread keeps to its own limit of memory, whatever the flags give to the main one", async () => {
  const args = ["--max-semi-space-size=32", "--input-type=module", "--eval", script];
  const { stdout } = await promisify(execFile)(process.execPath, args);
  expect(Number(stdout)).toBeGreaterThan(0);
  expect(Number(stdout)).toBeLessThan(8 * 1024 * 1024);
});
