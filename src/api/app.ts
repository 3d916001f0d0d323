/** Every route, in one list; what all of them share around it. */

import type { IncomingMessage } from "node:http";
import type { ParamIndexMap, ParamStash } from "hono/router";
import { RegExpRouter } from "hono/router/reg-exp-router";
import { getPath, tryDecodeURIComponent } from "hono/utils/url";
import type { Place } from "../core/admission.ts";
import { AppError, faultText, StorageError } from "../core/errors.ts";
import { replayRequest, retryRequest } from "./again.ts";
import { askBulk, cancelBulk, getBulk, listBulks } from "./bulks.ts";
import { getCompletion, postCompletion, postEmbeddings } from "./completions.ts";
import type { Exchange } from "./connection.ts";
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

/** Undefined: the reply has been written, or nobody is there to have it. */
type Route = (exchange: Exchange, params: Params, address: Address) => Promise<Reply | undefined>;
type Params = Record<string, string>;

/** What is only let through but takes nothing but JSON. */
const jsonPaths = ["completions", "responses", "moderations", "messages", "rerank"];

const bulkActions = ["retry", "cancel", "erase", "resolve"] as const;

/**
 * What answers every call. Of Hono only the router: its contexts, and requests and responses as fetch knows them, would
 * be made for every call, and nobody here reads them.
 */
export function createApp(
  options: ApiOptions,
  connections: Connections,
): (exchange: Exchange) => Promise<void> {
  const v1 =
    (handler: Handler): Route =>
    (exchange, params, address) =>
      answer({ exchange, params, ...address }, options, connections, handler);
  const find = finder(routesOf(options, v1), v1(passThroughUnread), v1(noSuchRoute));
  const finish = (exchange: Exchange, reply: Reply) => {
    // A connection is not closed before the calls that came behind this one have their replies.
    const last = options.queue.isStopping && exchange.connection.newest === exchange;
    send(exchange.outgoing, reply, last, options.clock);
  };
  return async (exchange) => {
    try {
      const { method = "", url = "" } = exchange.outgoing.req;
      const address = addressOf(url);
      const [route, params] = find(method === "HEAD" ? "GET" : method, address.pathname);
      const reply = await route(exchange, params, address);
      if (reply) finish(exchange, reply);
    } catch (error) {
      finish(exchange, errorReply(asAppError(error, options)));
    }
  };
}

function routesOf(options: ApiOptions, v1: (handler: Handler) => Route): RegExpRouter<Route> {
  const router = new RegExpRouter<Route>();
  const get = (path: string, route: Route) => router.add("GET", path, route);
  const post = (path: string, route: Route) => router.add("POST", path, route);
  const models = createModels();
  get("/healthz", async () => jsonReply(200, { status: "ok" }));
  get("/readyz", async () => readiness(options));
  post("/v1/chat/completions", v1(jsonRoute(postCompletion)));
  post("/v1/chat/completions/", v1(jsonRoute(postCompletion)));
  post("/v1/embeddings", v1(jsonRoute(postEmbeddings)));
  post("/v1/embeddings/", v1(jsonRoute(postEmbeddings)));
  get("/v1/upstreams", v1(listUpstreams));
  get("/v1/upstreams/", v1(listUpstreams));
  get("/v1/chat/completions/:id", v1(getCompletion));
  get("/v1/requests", v1(listRequests));
  get("/v1/requests/:id", v1(named({ counts: countRequests, dead_letters: listDeadLetters }, getRequest)));
  get("/v1/requests/:id/attempts", v1(getAttempts));
  get("/v1/requests/:id/stream", v1(getStream));
  router.add("DELETE", "/v1/requests/:id", v1(eraseRequest));
  post("/v1/requests/:id/cancel", v1(cancelRequest));
  post("/v1/requests/:id/retry", v1(jsonIfAny(retryRequest)));
  post("/v1/requests/:id/replay", v1(jsonIfAny(replayRequest)));
  post("/v1/requests/:id/resolve", v1(jsonIfAny(resolveRequest)));
  const bulks = Object.fromEntries(bulkActions.map((action) => [action, jsonRoute(askBulk(action))]));
  post("/v1/requests/:id", v1(named(bulks, noSuchRoute)));
  get("/v1/bulks", v1(listBulks));
  get("/v1/bulks/:id", v1(getBulk));
  post("/v1/bulks/:id/cancel", v1(cancelBulk));
  get("/v1/usage", v1(getUsage));
  get("/v1/models", v1(models.list));
  get("/v1/models/:id{.+}", v1(models.get));
  for (const path of jsonPaths) post(`/v1/${path}`, v1(jsonRoute(passThroughUnread)));
  return router;
}

const noParams: Params = {};

/** What finds the route of a call, and what stands in its path. @throws where two routes are in each other's way */
function finder(router: RegExpRouter<Route>, theirs: Route, none: Route) {
  const find = (method: string, pathname: string): [Route, Params] => {
    const path = pathname.includes("%")
      ? getPath({ url: `http://localhost${pathname}` } as Request)
      : pathname;
    const [[found], stash] = router.match(method, path) as [[Route, ParamIndexMap][], ParamStash];
    if (!found) return [isTheirs(path) ? theirs : none, noParams];
    const [route, places] = found;
    const params = Object.entries(places).map(([name, at]) => [name, tryDecodeURIComponent(stash[at] ?? "")]);
    return [route, params.length > 0 ? Object.fromEntries(params) : noParams];
  };
  // The router is made with the first call, and would not tell before.
  find("GET", "/");
  return find;
}

/** Names that stand where ids do: the router takes no routes of their own beside one for every id. */
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
  return (call, options) => {
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
  { exchange, params, path, pathname, query }: Address & { exchange: Exchange; params: Params },
  options: ApiOptions,
  connections: Connections,
  handler: Handler,
): Promise<Reply | undefined> {
  const { outgoing } = exchange;
  const incoming = outgoing.req;
  let place: Place | undefined;
  try {
    const header = headerOf(incoming);
    const caller = options.guard(header);
    // What was let through by its path must not be understood as another path upstream.
    if (climbs(pathname)) throw new AppError("not_found", "A path must not have `.` or `..` as a segment.");
    place = options.queue.admission.enter(isBrief(incoming, query));
    exchange.whenOver(() => place?.leave());
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

/** Where a call goes, as the caller wrote it. */
interface Address {
  /** With `/v1`, without the query. */
  pathname: string;
  /** Below `/v1`, with the query. */
  path: string;
  query: URLSearchParams;
}

const noQuery = new URLSearchParams();

/** Calls as to a proxy name us by the whole URL. @throws AppError `not_found` where it is no address */
function addressOf(url: string): Address {
  const target = url.replace(/^https?:\/\/[^/?#]*/i, "");
  const mark = target.indexOf("?");
  const pathname = mark < 0 ? target : target.slice(0, mark);
  if (!/^\/[^\\]*$/.test(pathname) || (target !== url && !URL.canParse(url))) {
    throw new AppError("not_found", "The address of this call cannot be read.");
  }
  const query = mark < 0 ? noQuery : new URLSearchParams(target.slice(mark + 1));
  return { pathname, path: target.replace(/^\/v1(?=[/?]|$)/, ""), query };
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
