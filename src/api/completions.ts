/** Calls that are recorded: held, waited for or asynchronous. POST /v1/chat/completions and /v1/embeddings; GET by the request's id. */

import { AppError } from "../core/errors.ts";
import type { HeaderList } from "../core/headers.ts";
import type { Line } from "../core/line.ts";
import type { Ended } from "../core/ports.ts";
import { isTerminal } from "../core/request.ts";
import { beginning } from "../core/stream-cursor.ts";
import type { Submission } from "../core/submissions.ts";
import { type Answer, asyncReply, endedReply, insteadReply, stillRunning } from "./answers.ts";
import { parseBody, readBody } from "./body.ts";
import type { ApiOptions, Call, Handler } from "./context.ts";
import { Degrading } from "./degrading.ts";
import { chat, type Endpoint, embeddings, readDraft } from "./draft.ts";
import { waitWithCaller } from "./hang-up.ts";
import type { Asked } from "./options.ts";
import { passThrough } from "./passthrough.ts";
import type { Reply } from "./reply.ts";
import { readWaitMs } from "./requests.ts";
import { type Reading, type StreamHooks, tellStream } from "./stream.ts";

/** Takes a call of an endpoint whose calls are recorded, and gives its caller what it asked for. */
const recorded =
  (endpoint: Endpoint): Handler =>
  async (call, options) => {
    const taken = await take(endpoint, call, options);
    return give(taken, call, options);
  };

export const postCompletion = recorded(chat);
export const postEmbeddings = recorded(embeddings);

/** What was submitted, and what its caller asked for. */
export interface Taken {
  submission: Submission;
  asked: Asked;
}

/** Reads a call and submits it. A function of its own, so that nothing keeps the body while the caller waits. */
async function take(endpoint: Endpoint, call: Call, options: ApiOptions): Promise<Taken> {
  const bytes = await readBody(call, options.maxBodyBytes);
  const { draft, asked } = drafted(endpoint, call, bytes, options);
  if (draft.isRetry) await options.rests.heed(draft.callHash);
  return { submission: await options.queue.submit(draft), asked };
}

/** Of its own, too: what the body says as text and as values is not kept while the caller waits for its turn. */
function drafted(endpoint: Endpoint, call: Call, bytes: Buffer, options: ApiOptions) {
  return readDraft(endpoint, call, parseBody(bytes), options);
}

/** Gives the caller of a request what it asked for. */
export function give(
  { submission, asked }: Taken,
  call: Call,
  options: ApiOptions,
): Promise<Reply | undefined> {
  // It is on disk now, and counted with the call that sends it.
  call.place.drop();
  if (submission.hasGone) return Promise.resolve(undefined);
  if (submission.kind === "accepted" && submission.line) call.exchange.served = submission.record;
  const { preferenceApplied } = asked;
  const applied: HeaderList = preferenceApplied ? [["preference-applied", preferenceApplied]] : [];
  const told = asked.terms.stream
    ? streamTo(submission, asked, applied, call, options)
    : adoptably(submission, call, options, () => replyTo(submission, asked, call, options));
  if (applied.length === 0) return told;
  return told.then((reply) => reply && { ...reply, headers: [...reply.headers, ...applied] });
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

const final = (reply: Reply): Answer => ({ reply, isFinal: true });
const forNow = (reply: Reply | undefined): Answer => ({ reply, isFinal: false });

async function replyTo(
  submission: Submission,
  asked: Asked,
  call: Call,
  options: ApiOptions,
): Promise<Answer> {
  const { queue } = options;
  const { record, line } = submission;
  const replayed = submission.kind === "replayed";
  if (!line) {
    // Who does not wait gets what it gets always, also where the answer was known before.
    const isAnswered = isTerminal(record.state) && submission.kind !== "accepted";
    if (!isAnswered) return forNow(asyncReply(record, options));
    const reply = endedReply(await queue.withAnswer(record), replayed);
    if (submission.kind === "echoed") reply.headers.push(["outlast-echo", "true"]);
    return final(reply);
  }
  const { mode, wishes } = asked;
  const waitMs = mode.kind === "wait" ? mode.ms : options.defaults.holdTimeoutMs;
  const degrading = wishes.onFailure && new Degrading(record, wishes.onFailure, options.queue);
  const ended = await waitHere(line, waitMs, call, options, submission, degrading);
  const instead = await degrading?.insteadOf(ended);
  if (degrading && instead && !call.exchange.connection.isGone) {
    await degrading.given(instead);
    return final(insteadReply(record, instead));
  }
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
  degrading?: Degrading,
): Promise<Ended | undefined> {
  const onGone = () => hungUp(submission, options);
  return waitWithCaller(call, options.queue, line, waitMs, onGone, (stop) => degrading?.watch(stop));
}

/** A caller who hangs up and asked for it takes the request along. */
function hungUp({ kind, record: { id, project, terms } }: Submission, { queue, observer }: ApiOptions): void {
  // Whoever shares a request by its key neither takes it from others nor loses it through them.
  if (terms.onDisconnect !== "cancel" || kind !== "accepted" || queue.lines.isConnected(id)) return;
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
  const line = submission.line ?? (await queue.lines.listen(id, { caller: false }));
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
  const { mode, terms, wishes } = asked;
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
    degrading: wishes.onFailure && new Degrading(record, wishes.onFailure, queue),
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
    const line = await queue.lines.listen(id, { caller: false });
    const ended = await waitWithCaller(call, queue, line, waitMs);
    if (ended) return endedReply(ended, false);
  }
  const current = await queue.get(call.caller.project, id);
  if (!isTerminal(current.state)) return asyncReply(current, options);
  return endedReply(await queue.withAnswer(current), false);
};
