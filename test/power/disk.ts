/** A disk of our own that can be full: a small tmpfs. */

import { execFileSync } from "node:child_process";
import {
  closeSync,
  mkdtempSync,
  openSync,
  rmdirSync,
  rmSync,
  statfsSync,
  statSync,
  truncateSync,
  writeSync,
} from "node:fs";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";

const { uid, gid } = userInfo();

function asRoot(command: string, ...args: string[]): void {
  const [program, ...all] = uid === 0 ? [command, ...args] : ["sudo", "-n", command, ...args];
  execFileSync(program!, all, { stdio: "pipe" });
}

export class Disk {
  readonly dir = mkdtempSync(join(tmpdir(), "outlast-disk-"));

  /** @throws Error where this user may not mount */
  constructor(megabytes: number) {
    const options = `size=${megabytes}m,uid=${uid},gid=${gid}`;
    try {
      asRoot("mount", "-t", "tmpfs", "-o", options, "tmpfs", this.dir);
    } catch (error) {
      rmdirSync(this.dir);
      const how = "run it as root, where sudo asks for no password, or as: unshare -rm npm run test:power";
      throw new Error(`A disk that can be full needs a mount: ${how}\n${String(error)}`);
    }
  }

  get freeBytes(): number {
    const { bavail, bsize } = statfsSync(this.dir);
    return bavail * bsize;
  }

  /** Leaves only so many bytes free; with 0, really none. */
  fill(leaveBytes: number): void {
    const file = openSync(join(this.dir, "ballast"), "a");
    try {
      const block = Buffer.alloc(4096, 1);
      while (this.freeBytes > leaveBytes || leaveBytes === 0) writeSync(file, block);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
    } finally {
      closeSync(file);
    }
  }

  /** Gives back a part of what `fill` took. */
  giveBack(bytes: number): void {
    const file = join(this.dir, "ballast");
    truncateSync(file, statSync(file).size - bytes);
  }

  /** Gives back all that `fill` took. */
  clear(): void {
    rmSync(join(this.dir, "ballast"), { force: true });
  }

  remove(): void {
    asRoot("umount", this.dir);
    rmdirSync(this.dir);
  }
}
