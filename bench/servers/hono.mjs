/** A proxy as one writes it with Hono and undici: nothing stored, nothing read. */

import { parseArgs } from "node:util";
import { serve } from "@hono/node-server";
import { Hono } from "hono";
import { Pool } from "undici";

const { values } = parseArgs({ options: { upstream: { type: "string" } } });
const pool = new Pool(values.upstream, { connections: 256 });

const app = new Hono();
app.post("/v1/chat/completions", async (c) => {
  const body = Buffer.from(await c.req.arrayBuffer());
  const headers = { "content-type": "application/json", authorization: c.req.header("authorization") };
  const answer = await pool.request({ method: "POST", path: c.req.path, headers, body });
  const bytes = await answer.body.arrayBuffer();
  return c.body(bytes, answer.statusCode, { "content-type": answer.headers["content-type"] });
});

serve({ fetch: app.fetch, port: 0, hostname: "127.0.0.1" }, ({ port }) => {
  console.log(`listens on http://127.0.0.1:${port}`);
});
