/** Streams as they reach callers: what was told, under which numbers, and how it ended. */

/** What came over one connection. */
export interface Heard {
  nonce: string;
  call: "post" | "get";
  id: string;
  /** The number of the last event that the reader had before. */
  from?: string;
  events: { number?: string; data: string }[];
  /**
   * `done`: with [DONE]. `error`: an error event came, and then no more. `broken`: the connection broke.
   * `ended`: the reply ended as if it were whole, without having said so.
   */
  end: "done" | "error" | "broken" | "ended";
  /** Of the error event. */
  code?: string;
}

export const isEventStream = (response: Response): boolean =>
  (response.headers.get("content-type") ?? "").startsWith("text/event-stream");

/** Reads a reply to its end, whatever that is. Never rejects. */
export async function hear(response: Response, who: Pick<Heard, "nonce" | "call" | "from">): Promise<Heard> {
  const id = response.headers.get("outlast-request-id") ?? "";
  const heard: Heard = { ...who, id, events: [], end: "broken" };
  let rest = "";
  try {
    for await (const text of response.body!.pipeThrough(new TextDecoderStream())) {
      const blocks = (rest + text).split("\n\n");
      rest = blocks.pop()!;
      for (const block of blocks) note(heard, block);
    }
    if (heard.end === "broken") heard.end = "ended";
  } catch {
    // The connection broke: what came before counts, and was noted.
  }
  return heard;
}

function note(heard: Heard, block: string): void {
  const lines = block.split("\n");
  const field = (name: string) => lines.find((line) => line.startsWith(name))?.slice(name.length);
  const data = field("data: ");
  if (data === undefined) return;
  if (data === "[DONE]") {
    heard.end = "done";
    return;
  }
  const { error } = JSON.parse(data) as { error?: { code?: string } };
  if (error) {
    heard.end = "error";
    heard.code = error.code;
  } else heard.events.push({ number: field("id: "), data });
}

interface ChunkObject {
  choices: { delta: { content?: string | null }; finish_reason: string | null }[];
}

/** What events say, and how many ends they have. */
export function readEvents(events: string[]): { text: string; ends: number } {
  const choices = events.flatMap((data) => (JSON.parse(data) as ChunkObject).choices);
  return {
    text: choices.map(({ delta }) => delta.content ?? "").join(""),
    ends: choices.filter(({ finish_reason }) => finish_reason !== null).length,
  };
}
