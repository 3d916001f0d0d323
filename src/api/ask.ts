/** Bodies that say what is to be done with requests. */

import type { z } from "zod";
import { type JsonBody, parseBody, readBody } from "./body.ts";
import type { ApiOptions, Call } from "./context.ts";
import { parse } from "./filter.ts";

/** What is asked, which may be nothing; and the bytes of a new body, each as it was sent. */
export async function readAsk<T extends z.ZodRawShape>(
  call: Call,
  { maxBodyBytes }: ApiOptions,
  schema: z.ZodObject<T>,
  meaning: Record<string, string>,
): Promise<{ asked: z.infer<z.ZodObject<T>>; whole: JsonBody | undefined }> {
  const bytes = await readBody(call, maxBodyBytes);
  const whole = bytes.length === 0 ? undefined : parseBody(bytes);
  return { asked: parse(schema, whole?.value ?? {}, meaning), whole };
}
