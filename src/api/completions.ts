/** POST /v1/chat/completions: durable, held, waited for or asynchronous. GET by the request's id. */

import { AppError } from "../core/errors.ts";
import { type HeaderList, toUpstream } from "../core/headers.ts";
import type { Line } from "../core/line.ts";
import type { Ended } from "../core/ports.ts";
import type { Draft, Submission } from "../core/queue.ts";
import { isTerminal } from "../core/request.ts";
import { beginning } from "../core/stream-cursor.ts";
import { type Answer, asyncReply, endedReply, stillRunning } from "./answers.ts";
import { callHashOf, fingerprintOf, type JsonBody, parseBody, readBody, withoutOurs } from "./body.ts";
import { type ApiOptions, type Call, type Handler, headersOf } from "./context.ts";
import { waitWithCaller, whenGone } from "./hang-up.ts";
import { type Asked, readAsked } from "./options.ts";
import { passThrough } from "./passthrough.ts";
import type { Reply } from "./reply.ts";
import { readWaitMs } from "./requests.ts";
import { type Reading, type StreamHooks, tellStream } from "./stream.ts";

const endpoint = "chat.completions";

export const postCompletion: Handler = async (call, options) => {
  const { submission, asked } = await taken(call, options);
  // It is on disk now, and counted with the call that sends it.
  call.place.drop();
  if (submission.hasGone) return undefined;
  const applied: HeaderList = asked.preferenceApplied
    ? [["preference-applied", asked.preferenceApplied]]
    : [];
  const reply = await (asked.terms.stream
    ? streamTo(submission, asked, applied, call, options)
    : adoptably(submission, call, options, () => replyTo(submission, asked, call, options)));
  return reply && { ...reply, headers: [...reply.headers, ...applied] };
};

/** Reads a call and submits it. A function of its own, so that nothing keeps the body while the caller waits. */
async function taken(call: Call, options: ApiOptions): Promise<{ submission: Submission; asked: Asked }> {
  const body = parseBody(await readBody(call, options.maxBodyBytes));
  checkBody(body.value);
  const asked = readAsked(body.value, call.header, options.defaults, options.clock.now());
  return { submission: await options.queue.submit(draftOf(call, body, asked)), asked };
}

/**
 * Keeps account of a keyless request: with a caller who is gone, or was told to come back, it is an orphan,
 * for the next equal call to adopt; with one who has the answer it never is.
 */
async function adoptably(
  { line, record: { id, callHash } }: Submission,
  call: Call,
  { queue: { adoption }, deliveries }: ApiOptions,
  answer: () => Promise<Answer>,
): Promise<Reply | undefined> {
  if (!line || callHash === undefined) return (await answer()).reply;
  let given: Answer | undefined;
  try {
    given = await answer();
  } finally {
    if (!given?.isFinal) adoption.orphaned(id, false);
  }
  if (given.isFinal) {
    deliveries.follow(call.exchange, (fate) => {
      if (fate.answered) adoption.answered(id);
      else adoption.orphaned(id, fate.contentSent);
    });
  }
  return given.reply;
}

/** @throws AppError naming the field. What is inside is the upstream's to judge. */
function checkBody(value: Record<string, unknown>): void {
  const missing = (param: string) =>
    new AppError("missing_required_parameter", `Missing required parameter: \`${param}\`.`, { param });
  if (value.model === undefined) throw missing("model");
  if (typeof value.model !== "string" || value.model === "" || value.model.length > 512) {
    throw new AppError("invalid_parameter", "`model` must be a string of 1 to 512 characters.", {
      param: "model",
    });
  }
  if (value.messages === undefined) throw missing("messages");
  if (!Array.isArray(value.messages)) {
    throw new AppError("invalid_parameter", "`messages` must be an array.", { param: "messages" });
  }
  if (value.stream !== undefined && value.stream !== null && typeof value.stream !== "boolean") {
    throw new AppError("invalid_parameter", "`stream` must be true or false.", { param: "stream" });
  }
}

/** What stays with us and yet makes two calls differ: who calls, and what is asked of us. */
const toldToUs =
  /^(outlast-options|api-key|x-api-key|x-goog-api-key|cookie|proxy-authorization|x-forwarded-(user|email))$/;

function draftOf(call: Call, body: JsonBody, asked: Asked): Draft {
  const { project } = call.caller;
  const all = headersOf(call);
  const headers = toUpstream(all, true);
  const told = [...headers, ...all.filter(([name]) => toldToUs.test(name))];
  const { idempotencyKey, terms, priority, runAt, tags, mode } = asked;
  const repeatable = idempotencyKey === undefined && terms.held && terms.onDisconnect === "continue";
  const authorization = call.header("authorization");
  return {
    project,
    endpoint,
    model: body.value.model as string,
    content: {
      head: { method: "POST", path: call.path.replace(/\/(?=\?|$)/, ""), headers },
      body: withoutOurs(body),
    },
    terms,
    priority,
    runAt,
    tags,
    idempotencyKey,
    fingerprint: idempotencyKey === undefined ? undefined : fingerprintOf(body),
    callHash: repeatable
      ? callHashOf({ project, authorization, path: call.path, headers: told, body: body.bytes })
      : undefined,
    isRetry: /^0*[1-9]\d*$/.test(call.header("x-stainless-retry-count") ?? ""),
    hold: mode.kind !== "async",
    isGone: () => call.exchange.connection.isGone,
    onGone: (callback) => whenGone(call, callback),
  };
}

async function replyTo(
  submission: Submission,
  asked: Asked,
  call: Call,
  options: ApiOptions,
): Promise<Answer> {
  const { queue } = options;
  const { record, line } = submission;
  const replayed = submission.kind === "replayed";
  const final = (reply: Reply): Answer => ({ reply, isFinal: true });
  const forNow = (reply: Reply | undefined): Answer => ({ reply, isFinal: false });
  if (!line) {
    if (!isTerminal(record.state)) return forNow(asyncReply(record, options));
    const reply = endedReply(await queue.withAnswer(record), replayed);
    if (submission.kind === "echoed") reply.headers.push(["outlast-echo", "true"]);
    return final(reply);
  }
  const { mode } = asked;
  const waitMs = mode.kind === "wait" ? mode.ms : options.defaults.holdTimeoutMs;
  const ended = await waitHere(line, waitMs, call, options, submission);
  if (ended) return final(endedReply(ended, replayed));
  if (call.exchange.connection.isGone) return forNow(undefined);
  const current = await queue.get(record.project, record.id);
  if (isTerminal(current.state)) return final(endedReply(await queue.withAnswer(current), replayed));
  if (mode.kind === "wait") return forNow(asyncReply(current, options));
  return forNow(stillRunning(queue, current));
}

/** Waits with the caller on the line. */
function waitHere(
  line: Line,
  waitMs: number,
  call: Call,
  options: ApiOptions,
  submission: Submission,
): Promise<Ended | undefined> {
  return waitWithCaller(call, options.queue, line, waitMs, () => hungUp(submission, options));
}

/** A caller who hangs up and asked for it takes the request along. */
function hungUp({ kind, record: { id, project, terms } }: Submission, { queue, observer }: ApiOptions): void {
  // Whoever shares a request by its key neither takes it from others nor loses it through them.
  if (terms.onDisconnect !== "cancel" || kind !== "accepted" || queue.isConnected(id)) return;
  queue.cancel(project, id).catch((error) => {
    if (error instanceof AppError && error.code === "request_ended") return;
    observer.tell({ event: "fault", where: "cancel on disconnect", message: String(error) });
  });
}

/** The same as a stream. */
async function streamTo(
  submission: Submission,
  asked: Asked,
  applied: HeaderList,
  call: Call,
  options: ApiOptions,
): Promise<Reply | undefined> {
  const { queue, deliveries } = options;
  const { kind, record } = submission;
  const { id, callHash } = record;
  const isReplay = kind === "replayed";
  if (kind === "echoed" || (!submission.line && !isReplay)) {
    return adoptably(submission, call, options, () => replyTo(submission, asked, call, options));
  }
  const line = submission.line ?? (await queue.listen(id, { caller: false }));
  const { adoption } = queue;
  const keyless = submission.line ? callHash !== undefined : false;
  const hooks: StreamHooks = {
    onWhole() {
      if (!keyless) return;
      deliveries.follow(call.exchange, (fate) => {
        if (fate.answered) adoption.answered(id);
        else adoption.orphaned(id, fate.contentSent);
      });
    },
    onFailed() {
      if (keyless) adoption.answered(id);
    },
    onInterrupted(contentSent) {
      if (keyless) adoption.orphaned(id, contentSent);
    },
    onGone(contentSent) {
      if (keyless) adoption.orphaned(id, contentSent);
      hungUp(submission, options);
    },
  };
  const { mode, terms } = asked;
  const reading: Reading = {
    record,
    line,
    cursor: beginning,
    resumable: false,
    withIds: false,
    usage: terms.stream?.usage ?? false,
    wholeOnly: terms.stream?.mode === "buffered",
    isReplay,
    headers: applied,
    patienceMs: mode.kind === "wait" ? mode.ms : undefined,
  };
  const answer = await tellStream(reading, call, options, hooks).catch((error) => {
    if (keyless) adoption.orphaned(id, false);
    throw error;
  });
  return answer && adoptably(submission, call, options, async () => answer);
}

/** GET /v1/chat/completions/{id}: what the POST would have answered. Ids that are not ours are the upstream's. */
export const getCompletion: Handler = async (call, options) => {
  const { queue } = options;
  const id = call.params.id ?? "";
  if (!id.startsWith("req_")) return passThrough(call, options);
  const record = await queue.get(call.caller.project, id);
  const waitMs = readWaitMs(call, options);
  if (!isTerminal(record.state) && waitMs > 0) {
    const line = await queue.listen(id, { caller: false });
    const ended = await waitWithCaller(call, queue, line, waitMs);
    if (ended) return endedReply(ended, false);
  }
  const current = await queue.get(call.caller.project, id);
  if (!isTerminal(current.state)) return asyncReply(current, options);
  return endedReply(await queue.withAnswer(current), false);
};
