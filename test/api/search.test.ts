import { describe, expect, it } from "vitest";
import { answer } from "../support/fake-upstream.ts";
import { hello, type OutlastOptions } from "../support/outlast.ts";
import { refusalOf, serveTest, strictList, strictRequest } from "./wire.ts";

async function start(options: OutlastOptions = {}) {
  const outlast = await serveTest(options);
  const list = (query: Record<string, string>) => outlast.fetch(`/v1/requests?${new URLSearchParams(query)}`);
  return {
    ...outlast,
    list,
    /** A completed call; its id. */
    async ask(content: string, more: object = {}): Promise<string> {
      const body = { ...hello, messages: [{ role: "user", content }], ...more };
      const response = await outlast.post("/v1/chat/completions", body);
      expect(response.status).toBe(200);
      await response.arrayBuffer();
      return response.headers.get("outlast-request-id")!;
    },
    async found(q: string, more: Record<string, string> = {}): Promise<string[]> {
      const response = await list({ q, order: "asc", ...more });
      expect(response.status).toBe(200);
      return strictList(strictRequest)
        .parse(await response.json())
        .data.map(({ id }) => id);
    },
  };
}

describe("q", () => {
  it("finds requests by what was asked and answered, with all other filters, page by page", async () => {
    const { fake, ask, found } = await start();
    for (const city of ["Oslo", "Rome", "Lima"]) fake.script(answer({ text: `The capital is ${city}.` }));
    const norway = await ask("Tell me about Norway", { user: "u1" });
    const italy = await ask("Tell me about Italy", { user: "u2" });
    const peru = await ask("Tell me about Perú", { user: "u1" });
    while ((await found("tell")).length < 3);
    expect(await found("oslo")).toEqual([norway]);
    expect(await found('"capital is rome"')).toEqual([italy]);
    expect(await found("peru lima")).toEqual([peru]);
    expect(await found("norway lima")).toEqual([]);
    expect(await found("capital", { user: "u1" })).toEqual([norway, peru]);
    expect(await found("capital", { status: "failed" })).toEqual([]);
    expect(await found("capital", { limit: "1", after: norway })).toEqual([italy]);
    expect(await found("capital", { order: "desc", limit: "2" })).toEqual([peru, italy]);
  });

  it("does not find what was erased", async () => {
    const { fetch, ask, found } = await start();
    const id = await ask("something regrettable");
    while ((await found("regrettable")).length === 0);
    const response = await fetch(`/v1/requests/${id}`, { method: "DELETE" });
    expect(response.status).toBe(200);
    expect(await found("regrettable")).toEqual([]);
  });

  it.each([["*"], ['""'], ["?"], ["ab*"]])("that says nothing to look for (%s) is refused", async (q) => {
    const { list } = await start();
    const response = await list({ q });
    expect(await refusalOf(response)).toEqual({ status: 400, code: "invalid_parameter", param: "q" });
  });

  it("is refused where text search is turned off", async () => {
    const { list } = await start({ toml: "[search]\nenabled = false" });
    const response = await list({ q: "word" });
    expect(await refusalOf(response)).toEqual({ status: 400, code: "invalid_parameter", param: "q" });
  });
});
