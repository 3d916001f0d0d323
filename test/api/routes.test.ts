/** How calls find their routes. */

import { expect, test } from "vitest";
import { createApp } from "../../src/api/app.ts";
import type { Connections } from "../../src/api/connections.ts";
import type { ApiOptions } from "../../src/api/context.ts";

// Some routes beside each other make Hono fall back, in silence, to a router that costs every call several times as much.
test("every route is found by one expression, and a call for a completion by nothing but its own route", () => {
  const { router } = createApp({} as ApiOptions, {} as Connections);
  const [handlers] = router.match("POST", "/v1/chat/completions");
  expect(handlers).toHaveLength(1);
  expect(router.name).toBe("SmartRouter + RegExpRouter");
});
