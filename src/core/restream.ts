/** Tells a whole answer as a stream, for callers who ask for one of what was answered plainly. */

type Fields = Record<string, unknown>;

/** Pieces of content are at most so long, in UTF-16 units. */
const pieceLength = 65_536;

/**
 * The data of the events of a stream that says the same as this `chat.completion`, in JSON on one line each, without
 * its usage; the same answer always makes the same events. Undefined where the text is no such object.
 */
export function chunksOf(completion: string): string[] | undefined {
  const parsed = parse(completion);
  if (!isFields(parsed)) return undefined;
  const {
    id,
    object: _object,
    created,
    model,
    system_fingerprint,
    service_tier,
    choices,
    usage: _usage,
    ...more
  } = parsed;
  if (!Array.isArray(choices) || !choices.every(isChoice)) return undefined;
  const head = { id, object: "chat.completion.chunk", created, model, system_fingerprint, service_tier };
  const told = choices.flatMap(chunksOfChoice).map((choice) => [choice]);
  const events = told.length > 0 ? told : [[]];
  return events.map((some, at) => JSON.stringify({ ...head, ...(at === 0 && more), choices: some }));
}

/**
 * The data of the event that tells those who asked for it the usage: the last one of the stream.
 * @param usageJson its JSON text; it travels on as it is
 */
export function usageChunkOf(
  { id, created, model }: { id?: string; created?: number; model?: string },
  usageJson: string,
): string {
  const chunk = JSON.stringify({ id, object: "chat.completion.chunk", created, model, choices: [] });
  // Line breaks in JSON mean nothing, and an event's data has none.
  return `${chunk.slice(0, -1)},"usage":${usageJson.replace(/[\r\n]+/g, " ").trim()}}`;
}

interface Choice {
  message: Fields;
  index?: unknown;
  finish_reason?: unknown;
  logprobs?: unknown;
}

function chunksOfChoice({ index, message, finish_reason, logprobs, ...more }: Choice, at: number) {
  const deltas = deltasOf(message);
  const chunks: Fields[] = deltas.map((delta) => ({ index: index ?? at, delta, finish_reason: null }));
  chunks.push({ index: index ?? at, delta: {}, finish_reason: finish_reason ?? null, ...more });
  // Whole, with the text that they belong to; where there is none, with the end.
  const withText = deltas.findIndex(({ content, refusal }) => Boolean(content || refusal));
  if (logprobs !== undefined) chunks.at(withText)!.logprobs = logprobs;
  return chunks;
}

/**
 * In the order in which providers tell them. Fields that we do not know, reasoning among them, come whole: some SDKs
 * join the pieces of such a field, others keep the last one.
 */
function deltasOf({ role, content, refusal, tool_calls, function_call, ...more }: Fields): Fields[] {
  const text = typeof content === "string" ? content : "";
  return [
    { role: role ?? "assistant", content: typeof content === "string" ? "" : null },
    ...(Object.keys(more).length > 0 ? [more] : []),
    ...(typeof content === "object" && content !== null ? [{ content }] : []),
    ...pieces(text).map((content) => ({ content })),
    ...(refusal ? [{ refusal }] : []),
    ...(Array.isArray(tool_calls)
      ? tool_calls.map((call, index) => ({ tool_calls: [{ ...call, index }] }))
      : []),
    ...(function_call ? [{ function_call }] : []),
  ];
}

/** No piece ends between the halves of a character: not every SDK puts them together again. */
function pieces(text: string): string[] {
  const found: string[] = [];
  let start = 0;
  while (start < text.length) {
    let end = start + pieceLength;
    if (isHighSurrogate(text.charCodeAt(end - 1))) end--;
    found.push(text.slice(start, end));
    start = end;
  }
  return found;
}

const isHighSurrogate = (code: number): boolean => code >= 0xd800 && code < 0xdc00;

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const isFields = (value: unknown): value is Fields =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const isChoice = (value: unknown): value is Choice => isFields(value) && isFields(value.message);
