/** Every route, in one list; what all of them share around it. */

import type { IncomingMessage, ServerResponse } from "node:http";
import { RESPONSE_ALREADY_SENT } from "@hono/node-server/utils/response";
import { type Context, Hono } from "hono";
import type { Place } from "../core/admission.ts";
import { AppError, faultText, StorageError } from "../core/errors.ts";
import { replayRequest, retryRequest } from "./again.ts";
import { askBulk, cancelBulk, getBulk, listBulks } from "./bulks.ts";
import { getCompletion, postCompletion, postEmbeddings } from "./completions.ts";
import type { Connections } from "./connections.ts";
import type { ApiOptions, Call, Handler } from "./context.ts";
import { errorReply, jsonReply } from "./errors.ts";
import { countRequests, listDeadLetters, listRequests } from "./lists.ts";
import { createModels } from "./models.ts";
import { passThroughUnread } from "./passthrough.ts";
import { type Reply, send } from "./reply.ts";
import { cancelRequest, eraseRequest, getAttempts, getRequest, resolveRequest } from "./requests.ts";
import { getStream } from "./stream.ts";
import { listUpstreams } from "./upstreams.ts";
import { getUsage } from "./usage.ts";

type Bindings = { incoming: IncomingMessage; outgoing: ServerResponse };
type AppContext = Context<{ Bindings: Bindings }>;

/** What is only let through but takes nothing but JSON. */
const jsonPaths = ["completions", "responses", "moderations", "messages", "rerank"];

const bulkActions = ["retry", "cancel", "erase", "resolve"] as const;

export function createApp(options: ApiOptions, connections: Connections): Hono<{ Bindings: Bindings }> {
  const app = new Hono<{ Bindings: Bindings }>();
  const models = createModels();
  const finish = (c: AppContext, reply: Reply) => {
    const { outgoing } = c.env;
    // A connection is not closed before the calls that came behind this one have their replies.
    const exchange = connections.exchangeOf(outgoing);
    const last = options.queue.isStopping && exchange.connection.newest === exchange;
    send(outgoing, reply, last, options.clock);
    return RESPONSE_ALREADY_SENT;
  };
  const v1 = (handler: Handler) => async (c: AppContext) => {
    const reply = await answer(c, options, connections, handler);
    return reply ? finish(c, reply) : RESPONSE_ALREADY_SENT;
  };
  const open = (reply: () => Reply) => (c: AppContext) => finish(c, reply());

  app.get(
    "/healthz",
    open(() => jsonReply(200, { status: "ok" })),
  );
  app.get(
    "/readyz",
    open(() => readiness(options)),
  );
  app.post("/v1/chat/completions", v1(jsonRoute(postCompletion)));
  app.post("/v1/chat/completions/", v1(jsonRoute(postCompletion)));
  app.post("/v1/embeddings", v1(jsonRoute(postEmbeddings)));
  app.post("/v1/embeddings/", v1(jsonRoute(postEmbeddings)));
  app.get("/v1/upstreams", v1(listUpstreams));
  app.get("/v1/upstreams/", v1(listUpstreams));
  app.get("/v1/chat/completions/:id", v1(getCompletion));
  app.get("/v1/requests", v1(listRequests));
  app.get(
    "/v1/requests/:id",
    v1(named({ counts: countRequests, dead_letters: listDeadLetters }, getRequest)),
  );
  app.get("/v1/requests/:id/attempts", v1(getAttempts));
  app.get("/v1/requests/:id/stream", v1(getStream));
  app.delete("/v1/requests/:id", v1(eraseRequest));
  app.post("/v1/requests/:id/cancel", v1(cancelRequest));
  app.post("/v1/requests/:id/retry", v1(jsonIfAny(retryRequest)));
  app.post("/v1/requests/:id/replay", v1(jsonIfAny(replayRequest)));
  app.post("/v1/requests/:id/resolve", v1(jsonIfAny(resolveRequest)));
  const bulks = Object.fromEntries(bulkActions.map((action) => [action, jsonRoute(askBulk(action))]));
  app.post("/v1/requests/:id", v1(named(bulks, noSuchRoute)));
  app.get("/v1/bulks", v1(listBulks));
  app.get("/v1/bulks/:id", v1(getBulk));
  app.post("/v1/bulks/:id/cancel", v1(cancelBulk));
  app.get("/v1/usage", v1(getUsage));
  app.get("/v1/models", v1(models.list));
  app.get("/v1/models/:id{.+}", v1(models.get));
  for (const path of jsonPaths) app.post(`/v1/${path}`, v1(jsonRoute(passThroughUnread)));
  // As routes, these would match every call as well.
  app.notFound((c: AppContext) => v1(isTheirs(c.req.path) ? passThroughUnread : noSuchRoute)(c));
  return app;
}

/** Names that stand where ids do. Routes of their own beside one for every id would cost each call the fast router. */
const named =
  (handlers: Record<string, Handler>, otherwise: Handler): Handler =>
  (call, options) => {
    const { id = "" } = call.params;
    return (Object.hasOwn(handlers, id) ? handlers[id]! : otherwise)(call, options);
  };

/** Below `/v1`, what is not ours goes to the upstream as it is. */
const isTheirs = (path: string): boolean => /^\/v1\/(?!(requests|bulks|usage|upstreams)(\/|$))/.test(path);

const noSuchRoute: Handler = async ({ incoming }) => {
  const path = incoming.url?.split("?", 1)[0];
  throw new AppError("not_found", `There is nothing at ${incoming.method} ${path}.`);
};

function readiness({ queue }: ApiOptions): Reply {
  const refusal = queue.refusal();
  return refusal ? errorReply(refusal) : jsonReply(200, { status: "ready" });
}

/** Without API keys, only what a web page cannot send unasked: a JSON content type needs a preflight. */
function jsonRoute(handler: Handler): Handler {
  return async (call, options) => {
    const type = call.header("content-type") ?? "";
    if (options.jsonOnly && !/^application\/([\w.-]+\+)?json\b/i.test(type)) {
      const message = "The body must be sent with `Content-Type: application/json`.";
      throw new AppError("unsupported_content_type", message);
    }
    return handler(call, options);
  };
}

/** A body, where there is one, has to be JSON: without one, what a web page sends names its origin. */
const jsonIfAny = (handler: Handler): Handler => {
  const withBody = jsonRoute(handler);
  return (call, options) => {
    const { "content-length": length = "0", "transfer-encoding": encoding } = call.incoming.headers;
    return (length === "0" && encoding === undefined ? handler : withBody)(call, options);
  };
};

/** Look-ups that do not wait, and what ends requests: they end at once, and help where everything else is too much. */
function isBrief({ method, url = "" }: IncomingMessage, query: URLSearchParams): boolean {
  if (method === "DELETE") return /^\/v1\/requests\//.test(url);
  if (method === "POST") {
    return /^\/v1\/(requests|bulks)\/([^/?]+\/)?(cancel|resolve|erase)(\?|$)/.test(url);
  }
  return (
    method === "GET" &&
    !query.has("wait") &&
    !/^\/v1\/requests\/[^/?]+\/stream/.test(url) &&
    /^\/v1\/((requests|bulks|usage)([/?]|$)|upstreams\/?(\?|$)|chat\/completions\/req_)/.test(url)
  );
}

async function answer(
  c: AppContext,
  options: ApiOptions,
  connections: Connections,
  handler: Handler,
): Promise<Reply | undefined> {
  const { incoming, outgoing } = c.env;
  const exchange = connections.exchangeOf(outgoing);
  let place: Place | undefined;
  try {
    const header = headerOf(incoming);
    const caller = options.guard(header);
    const { path, query } = addressOf(incoming);
    place = options.queue.admission.enter(isBrief(incoming, query));
    exchange.whenOver(() => place?.leave());
    const params = c.req.param();
    const call: Call = { incoming, outgoing, exchange, header, caller, place, path, query, params };
    const reply = await handler(call, options);
    if (reply) place.keep(reply.body.length);
    return reply;
  } catch (error) {
    // Nothing was thrown but the fact that the caller has gone.
    if (error === undefined) return undefined;
    const refusal = asAppError(error, options);
    if (refusal.retryAfterMs !== undefined) {
      place?.leave();
      incoming.resume();
      await connections.mayRefuse(exchange, refusal.retryAfterMs);
    }
    return errorReply(refusal);
  }
}

const noQuery = new URLSearchParams();

/** Where a call goes, as the caller wrote it; calls as to a proxy name us by the whole URL. */
function addressOf(incoming: IncomingMessage): Pick<Call, "path" | "query"> {
  const target = (incoming.url ?? "").replace(/^https?:\/\/[^/?#]*/i, "");
  const mark = target.indexOf("?");
  const pathname = mark < 0 ? target : target.slice(0, mark);
  // What was let through by its path must not be understood as another path upstream.
  if (climbs(pathname)) throw new AppError("not_found", "A path must not have `.` or `..` as a segment.");
  const query = mark < 0 ? noQuery : new URLSearchParams(target.slice(mark + 1));
  return { path: target.replace(/^\/v1(?=[/?]|$)/, ""), query };
}

/** Whether a segment is `.` or `..`, also where it, or what separates it, is escaped. */
function climbs(pathname: string): boolean {
  const plain = pathname.replace(/%2e/gi, ".").replace(/%(2f|5c)/gi, "/");
  return /(^|[/\\])\.\.?([/\\;]|$)/.test(plain);
}

function headerOf(incoming: IncomingMessage) {
  return (name: string): string | undefined => {
    const value = incoming.headers[name];
    return Array.isArray(value) ? value.join(", ") : value;
  };
}

function asAppError(error: unknown, { observer }: ApiOptions): AppError {
  if (error instanceof AppError) return error;
  // The store has told of it.
  if (error instanceof StorageError) {
    const code = error.kind === "full" ? "storage_full" : "storage_failed";
    return new AppError(code, "The database cannot be read or written now. Try again later.");
  }
  observer.tell({ event: "fault", where: "api", message: faultText(error) });
  return new AppError("internal_error", "Something went wrong on our side.");
}
