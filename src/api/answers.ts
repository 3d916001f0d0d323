/** What the callers of a request get: its answer, why there is none, or where to look for it later. */

import { AppError, failures } from "../core/errors.ts";
import type { HeaderList } from "../core/headers.ts";
import type { Ended } from "../core/ports.ts";
import type { Queue } from "../core/queue.ts";
import type { RequestRecord } from "../core/request.ts";
import { bodiesErased } from "../core/rounds.ts";
import type { Instead } from "../core/substitutes.ts";
import type { ApiOptions } from "./context.ts";
import { comeBack, errorReply, failureOf, failureReply, jsonReply } from "./errors.ts";
import { answerOf, pollUrl, presentAsync, requestHeaders } from "./present.ts";
import { oursAlone, type Reply } from "./reply.ts";

/** `isFinal`: it ends the matter, and nothing is left to come back for. */
export interface Answer {
  reply: Reply | undefined;
  isFinal: boolean;
}

/** For a caller who waits no longer. */
export function stillRunning(queue: Queue, record: RequestRecord): Reply {
  const refusal = errorReply(notYet(queue, record.id));
  return { ...refusal, headers: [...refusal.headers, ...requestHeaders(record)] };
}

export function notYet(queue: Queue, id: string): AppError {
  if (queue.isStopping) {
    return queue.shuttingDown("The server is shutting down; the request goes on after its restart.");
  }
  const message = `The request is still running. Fetch its result later: GET ${pollUrl(id)}.`;
  return new AppError("still_running", message);
}

/** 202 with the async object. */
export function asyncReply(record: RequestRecord, { queue, clock }: ApiOptions): Reply {
  const untilMs = (queue.explain(record)?.until ?? 0) - clock.now();
  const [retryAfter] = comeBack(untilMs);
  const headers: HeaderList = [["location", pollUrl(record.id)], retryAfter!, ...requestHeaders(record)];
  return jsonReply(202, presentAsync(record), headers);
}

/** Rate limits and encodings of an answer say nothing any more when it is replayed. */
const staleHeader = /^(x-ratelimit-|anthropic-ratelimit-|content-encoding$|retry-after)/;

/** Headers of an upstream's answer that its callers get. */
export const callersHeaders = (headers: HeaderList, replayed: boolean): HeaderList =>
  headers.filter(([name]) => {
    if (name === "x-should-retry" || oursAlone.test(name)) return false;
    return !(replayed && staleHeader.test(name));
  });

/** What the caller of an ended request gets: the upstream's answer, or why there is none. */
export function endedReply(ended: Ended, replayed: boolean): Reply {
  const { record } = ended;
  const ours = requestHeaders(record);
  if (replayed) ours.push(["idempotent-replayed", "true"]);
  if (record.state === "cancelled") {
    const message = "The request was cancelled.";
    const reply = errorReply(new AppError("request_cancelled", message));
    return { ...reply, headers: [...reply.headers, ...ours, ["x-should-retry", "false"]] };
  }
  // The call is not made again: who needs it may send it as a new request, or under another key.
  if (record.state === "completed" && record.bodiesErasedAt !== undefined) {
    const reply = failureReply(failureOf(bodiesErased(record.id)), ours);
    return { ...reply, headers: [...reply.headers, ["x-should-retry", "false"]] };
  }
  const answer = answerOf(ended);
  if (record.state === "failed") ours.push(["x-should-retry", "false"]);
  const fits = answer && (record.state === "completed" || answer.status >= 400);
  if (!fits) return failureReply(record.error ?? failures.deadline(), ours);
  const headers = [...callersHeaders(answer.headers, replayed || record.cachedFrom !== undefined), ...ours];
  return { status: answer.status, headers, body: answer.body };
}

/** What a caller gets instead of its answer, marked as such. */
export function insteadReply(record: RequestRecord, instead: Instead): Reply {
  const headers: HeaderList = [...requestHeaders(record), ["outlast-degraded", instead.degraded]];
  const older = instead.degraded === "stale" ? answerOf(instead.ended) : undefined;
  if (older) {
    const theirs = callersHeaders(older.headers, true);
    return { status: older.status, headers: [...theirs, ...headers], body: older.body };
  }
  const answer = instead.degraded === "fixed" ? fixedAnswer(record, instead.answer) : {};
  return jsonReply(200, answer, headers);
}

/** A text as a completion; an object is one, and is only given what it has not. */
function fixedAnswer({ id, model, createdAt }: RequestRecord, answer: unknown): object {
  const given = typeof answer === "string" ? { choices: [choiceOf(answer)] } : (answer as object);
  return {
    id: `chatcmpl-${id}`,
    object: "chat.completion",
    created: Math.floor(createdAt / 1000),
    model,
    usage: { prompt_tokens: 0, completion_tokens: 0, total_tokens: 0 },
    ...given,
  };
}

const choiceOf = (content: string) => ({
  index: 0,
  message: { role: "assistant", content, refusal: null },
  logprobs: null,
  finish_reason: "stop",
});
