/** What the machine is, and what it does while we measure. Reads /proc: Linux only. */

import { execFileSync } from "node:child_process";
import {
  closeSync,
  fdatasyncSync,
  openSync,
  readdirSync,
  readFileSync,
  statfsSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { availableParallelism, cpus, loadavg, release, totalmem } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { median, round } from "./statistics.mjs";

const ticksPerSecond = Number(execFileSync("getconf", ["CLK_TCK"]));

/** Every process: its parent, and the CPU seconds of its threads and of its ended children. */
function processes() {
  const all = new Map();
  for (const entry of readdirSync("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      const stat = readFileSync(`/proc/${entry}/stat`, "utf8");
      const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
      const ticks = fields.slice(11, 15).reduce((sum, field) => sum + Number(field), 0);
      all.set(Number(entry), { parent: Number(fields[1]), cpuSeconds: ticks / ticksPerSecond });
    } catch {
      // It ended while we read.
    }
  }
  return all;
}

/** @returns the ids of the process and of all below it */
function treeOf(root, all) {
  const tree = [root];
  for (const pid of tree) {
    for (const [child, { parent }] of all) if (parent === pid) tree.push(child);
  }
  return tree;
}

/** CPU seconds that each of these processes has used so far, with all its threads and children. */
export function cpuSecondsOf(roots) {
  const all = processes();
  const pids = new Set(roots.flatMap((root) => treeOf(root, all)));
  return [...pids].reduce((sum, pid) => sum + (all.get(pid)?.cpuSeconds ?? 0), 0);
}

/** So much of a core more than when there is nothing to do is quiet still. */
const quietShare = 0.1;
const lookMs = 250;
const quietLimitMs = 60_000;

/** Which share of a core these processes use now: before any load, what they use for looking whether there is work. */
export async function idleShare(pids) {
  const before = cpuSecondsOf(pids);
  await pause(4 * lookMs);
  return (cpuSecondsOf(pids) - before) / ((4 * lookMs) / 1000);
}

/**
 * Waits until these processes have done what they left for later, for a minute at most: it would be taken from whoever
 * is measured next.
 *
 * @param idle their `idleShare`; it may be half as much again when they have a history
 * @returns the CPU seconds that they have used meanwhile
 */
export async function untilQuiet(pids, idle = 0) {
  const quietSeconds = ((1.5 * idle + quietShare) * lookMs) / 1000;
  const begun = cpuSecondsOf(pids);
  const giveUpAt = performance.now() + quietLimitMs;
  for (let before = begun; ; ) {
    await pause(lookMs);
    const now = cpuSecondsOf(pids);
    if (now - before < quietSeconds || performance.now() > giveUpAt) return now - begun;
    before = now;
  }
}

/**
 * MB of memory at the peak since each process started; shared memory counts once per process, which overstates
 * servers of many processes such as PostgreSQL.
 */
export function peakRssMb(roots) {
  return memoryMb(roots, /VmHWM:\s+(\d+)/);
}

/** MB of memory now; what is shared counts once per process. */
export function rssMb(roots) {
  return memoryMb(roots, /VmRSS:\s+(\d+)/);
}

function memoryMb(roots, field) {
  const all = processes();
  const pids = new Set(roots.flatMap((root) => treeOf(root, all)));
  const kilobytes = [...pids].map((pid) => {
    try {
      return Number(field.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0);
    } catch {
      return 0;
    }
  });
  return kilobytes.reduce((sum, one) => sum + one, 0) / 1024;
}

/** From now on the peak is the one since now. */
export function forgetPeakRss(roots) {
  const all = processes();
  for (const pid of new Set(roots.flatMap((root) => treeOf(root, all)))) {
    writeFileSync(`/proc/${pid}/clear_refs`, "5");
  }
}

/** The CPU seconds of the whole machine so far, and of this program with everything that it started. */
export function machineCpu() {
  const line = readFileSync("/proc/stat", "utf8").split("\n", 1)[0];
  const [user, nice, system, , , , , steal] = line.split(/\s+/).slice(1).map(Number);
  // Interrupts are left out: the loopback's belong to us, and no process has them in its account.
  const busy = (user + nice + system) / ticksPerSecond;
  return { at: performance.now(), busy, steal: steal / ticksPerSecond, ours: cpuSecondsOf([process.pid]) };
}

/** Which share of the machine others took, and the hypervisor withheld, between two looks at it. */
export function disturbance(before, after) {
  const capacity = ((after.at - before.at) / 1000) * availableParallelism();
  const foreign = after.busy - before.busy - (after.ours - before.ours);
  return { foreign: Math.max(0, foreign) / capacity, steal: (after.steal - before.steal) / capacity };
}

/** How long a fixed piece of arithmetic takes now, in ms: what changes is the machine. */
export function calibrate() {
  const times = Array.from({ length: 5 }, () => {
    const start = performance.now();
    let x = 1;
    for (let i = 0; i < 2e7; i++) x = (Math.imul(x, 1664525) + 1013904223) | 0;
    if (x === 0) throw new Error("a multiplication went wrong");
    return performance.now() - start;
  });
  return median(times);
}

/** What one appended and synchronised page costs here, in ms: what every durable system below pays per commit. */
function fdatasyncMs(dir) {
  const file = openSync(join(dir, "fdatasync"), "w");
  const page = Buffer.alloc(4096, 1);
  const times = Array.from({ length: 200 }, () => {
    const start = performance.now();
    writeSync(file, page);
    fdatasyncSync(file);
    return performance.now() - start;
  });
  closeSync(file);
  return round(median(times), 3);
}

/** Memory is no disk: a commit there costs nothing, and proves nothing. */
export function isMemory(dir) {
  const tmpfs = 0x01021994;
  const ramfs = 0x858458f6;
  return [tmpfs, ramfs].includes(statfsSync(dir).type);
}

/** For the record beside every result. */
export function describeMachine(dir) {
  return {
    cpu: cpus()[0]?.model ?? "unknown",
    cores: availableParallelism(),
    memoryGb: Math.round(totalmem() / 2 ** 30),
    kernel: release(),
    node: process.version,
    loadAverage: loadavg().map((load) => round(load, 2)),
    fdatasyncMs: fdatasyncMs(dir),
  };
}
