/** How tests of the ledger speak to a server: every answer is held against the contract, word for word. */

import { expect } from "vitest";
import { z } from "zod";
import {
  bulkSchema,
  countSchema,
  deadLetterSchema,
  deletedSchema,
  filterSchema,
  usageSchema,
} from "../../src/contract.ts";
import { hello, type Outlast } from "../support/outlast.ts";
import { strictAsync, strictAttempt, strictList, strictRequest } from "./wire.ts";

type Headers = Record<string, string>;

const strictBulk = z.strictObject({ ...bulkSchema.shape, filter: z.strictObject(filterSchema.shape) });
export type BulkObject = z.infer<typeof strictBulk>;
export type RequestObject = z.infer<typeof strictRequest>;

export class LedgerCalls {
  private readonly of: () => Outlast;

  constructor(of: () => Outlast) {
    this.of = of;
  }

  /** Submits without waiting; the id. */
  async submit(more: object = {}, headers?: Headers): Promise<string> {
    const response = await this.of().post(
      "/v1/chat/completions",
      { ...hello, wait: false, ...more },
      headers,
    );
    expect(response.status).toBe(202);
    return strictAsync.parse(await response.json()).id;
  }

  /** Submits and waits for the end; the id. */
  async finish(more: object = {}, headers?: Headers): Promise<string> {
    const response = await this.of().post("/v1/chat/completions", { ...hello, ...more }, headers);
    await response.arrayBuffer();
    return response.headers.get("outlast-request-id") ?? "";
  }

  async get<T extends z.ZodType>(path: string, schema: T, headers?: Headers): Promise<z.infer<T>> {
    const response = await this.of().fetch(path, { headers });
    expect([path, response.status]).toEqual([path, 200]);
    return schema.parse(await response.json());
  }

  record(id: string, query = "", headers?: Headers): Promise<RequestObject> {
    return this.get(`/v1/requests/${id}${query}`, strictRequest, headers);
  }

  /** When it has ended. */
  ended(id: string): Promise<RequestObject> {
    return this.record(id, "?wait=60");
  }

  async attempts(id: string, query = "") {
    return (await this.get(`/v1/requests/${id}/attempts${query}`, strictList(strictAttempt))).data;
  }

  list(query: string, headers?: Headers) {
    return this.get(`/v1/requests?${query}`, strictList(strictRequest), headers);
  }

  async ids(query: string, headers?: Headers): Promise<string[]> {
    return (await this.list(query, headers)).data.map(({ id }) => id);
  }

  async counts(query: string, headers?: Headers) {
    const schema = strictList(z.strictObject(countSchema.shape));
    const { data } = await this.get(`/v1/requests/counts?${query}`, schema, headers);
    return data.map(({ object: _object, ...rest }) => rest);
  }

  async deadLetters(query = "", headers?: Headers) {
    const schema = strictList(z.strictObject(deadLetterSchema.shape));
    return (await this.get(`/v1/requests/dead_letters?${query}`, schema, headers)).data;
  }

  async usage(query = "", headers?: Headers) {
    const schema = strictList(z.strictObject(usageSchema.shape));
    return (await this.get(`/v1/usage?${query}`, schema, headers)).data;
  }

  /** Without a body where there is none. */
  act(id: string, action: string, body?: object, headers?: Headers): Promise<Response> {
    const path = `/v1/requests/${id}/${action}`;
    if (body === undefined) return this.of().fetch(path, { method: "POST", headers });
    return this.of().post(path, body, headers);
  }

  async acted(id: string, action: string, body?: object): Promise<RequestObject> {
    const response = await this.act(id, action, body);
    expect([action, response.status]).toEqual([action, 200]);
    return strictRequest.parse(await response.json());
  }

  erase(id: string, headers?: Headers): Promise<Response> {
    return this.of().fetch(`/v1/requests/${id}`, { method: "DELETE", headers });
  }

  async erased(id: string): Promise<void> {
    const response = await this.erase(id);
    expect(response.status).toBe(200);
    const deleted = z.strictObject(deletedSchema.shape).parse(await response.json());
    expect(deleted).toEqual({ id, object: "request", deleted: true });
  }

  async bulk(id: string, headers?: Headers): Promise<BulkObject> {
    return this.get(`/v1/bulks/${id}`, strictBulk, headers);
  }

  async bulks(query = "", headers?: Headers) {
    return this.get(`/v1/bulks?${query}`, strictList(strictBulk), headers);
  }

  /** Asks for a bulk; as it was accepted. */
  async asked(action: string, ask: object, headers?: Headers): Promise<BulkObject> {
    const response = await this.of().post(`/v1/requests/${action}`, ask, headers);
    expect([action, response.status]).toEqual([action, 202]);
    const bulk = strictBulk.parse(await response.json());
    expect(response.headers.get("location")).toBe(`/v1/bulks/${bulk.id}`);
    return bulk;
  }

  /** Asks for a bulk; as it has ended. */
  async done(action: string, ask: object): Promise<BulkObject> {
    const bulk = await this.asked(action, ask);
    if (bulk.status === "in_progress") await this.of().ear.event("bulk_ended", ({ id }) => id === bulk.id);
    return this.bulk(bulk.id);
  }
}
