import fc from "fast-check";
import { describe, expect, it, test } from "vitest";
import { EventReader } from "../../src/outbound/sse.ts";

type Event = { data: string; name: string | undefined };

function read(pieces: Uint8Array[], limit = 1e6): Event[] {
  const events: Event[] = [];
  const reader = new EventReader(
    {
      event: (data, name) => void events.push({ data, name }),
      tooLarge: () => void events.push({ data: "", name: "too large" }),
    },
    limit,
  );
  for (const piece of pieces) reader.read(piece);
  reader.end();
  return events;
}

const bytesOf = (text: string) => Buffer.from(text);

/** The bytes cut at these places. */
function cut(bytes: Buffer, places: number[]): Buffer[] {
  const at = [0, ...[...places].sort((a, b) => a - b), bytes.length];
  return at.slice(1).map((end, i) => bytes.subarray(at[i], end));
}

const character = fc.constantFrom(...'aß👋{}:" \u2028\ufeffé語');
const line = fc.string({ unit: character, maxLength: 8 });
const block = fc.oneof(
  fc.record({
    data: fc.array(line, { minLength: 1, maxLength: 3 }),
    name: fc.option(fc.constantFrom("error", "message", "ping"), { nil: undefined }),
    extra: fc.constantFrom("", ": comment", "id: 7", "retry: 10", "unknown", "unknown: x"),
  }),
  fc.record({ comment: line }),
);
const lineEnd = fc.constantFrom("\n", "\r", "\r\n");

const stream = fc
  .tuple(fc.array(block, { maxLength: 6 }), fc.infiniteStream(lineEnd), fc.boolean(), fc.boolean())
  .map(([blocks, ends, hasMark, isSpaced]) => {
    const end = () => ends.next().value;
    const space = isSpaced ? " " : "";
    let text = hasMark ? "\ufeff" : "";
    // Two ends of a line must not become one.
    const add = (one: string) => {
      const chosen = end();
      text += one === "" && text.endsWith("\r") && chosen.startsWith("\n") ? "\r" : one + chosen;
    };
    const events: Event[] = [];
    for (const one of blocks) {
      if ("comment" in one) {
        add(`:${one.comment}`);
      } else {
        if (one.name) add(`event:${space}${one.name}`);
        if (one.extra) add(one.extra);
        for (const data of one.data) add(`data: ${data}`);
        events.push({ data: one.data.join(" "), name: one.name });
      }
      add("");
    }
    return { text, events };
  });

describe("an event reader", () => {
  it("finds the same events however lines end and wherever the bytes are cut", () => {
    fc.assert(
      fc.property(stream, fc.array(fc.nat(), { maxLength: 12 }), ({ text, events }, places) => {
        const bytes = bytesOf(text);
        const inside = places.map((place) => place % (bytes.length + 1));
        expect(read(cut(bytes, inside))).toEqual(events);
      }),
      { numRuns: 2000 },
    );
  });

  it("finds the same events at every single cut, and at all of them", () => {
    const text = '\ufeffevent: x\r\ndata: {"a":"👋ß"}\r\n\r\n: 語\r\rdata: 1\rdata: 2\n\ndata:3\r\n\r';
    const bytes = bytesOf(text);
    const events = [
      { data: '{"a":"👋ß"}', name: "x" },
      { data: "1 2", name: undefined },
      { data: "3", name: undefined },
    ];
    for (let at = 0; at <= bytes.length; at++) expect(read(cut(bytes, [at]))).toEqual(events);
    expect(read([...bytes].map((byte) => Uint8Array.of(byte)))).toEqual(events);
  });

  test.each(["\n\n", "\r\r", "\r\n\r\n", "\r\n\r"])("gives an event as soon as it ends in %j", (end) => {
    const events: string[] = [];
    const reader = new EventReader({ event: (data) => void events.push(data), tooLarge: () => {} }, 100);
    reader.read(bytesOf(`data: a${end}`));
    expect(events).toEqual(["a"]);
  });

  it("takes an event without its blank line when no more comes", () => {
    expect(read([bytesOf("data: a\n\ndata: b")])).toEqual([
      { data: "a", name: undefined },
      { data: "b", name: undefined },
    ]);
  });

  test.each([
    ["on one line", "data: ", "x".repeat(10)],
    ["on a line that is no data", "", "x".repeat(10)],
    ["on many lines", "", `data: ${"x".repeat(10)}\n`],
  ])("gives up an event that grows without end %s", (_, begin, piece) => {
    const pieces = [bytesOf(begin), ...Array(200).fill(bytesOf(piece))];
    expect(read(pieces, 1000)).toEqual([{ data: "", name: "too large" }]);
    expect(read(pieces.slice(0, 90), 1000)).not.toContainEqual({ data: "", name: "too large" });
  });
});
