import { createHash } from "node:crypto";
import type { Label } from "../../core/ledger/ports.ts";

/**
 * What stands for a label in the index: 53 bits, as many as a JavaScript number holds. Two labels may share one, so who
 * finds a request by it looks at the request.
 */
export function labelNumber(project: string, { name, value }: Label): number {
  const hash = createHash("sha256")
    .update(JSON.stringify([project, name, value]))
    .digest();
  return (hash.readUInt32BE(0) & 0x1fffff) * 2 ** 32 + hash.readUInt32BE(4);
}
