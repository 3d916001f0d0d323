/** Server-sent events out of bytes, however these are cut. */

import { StringDecoder } from "node:string_decoder";
import { createParser, type EventSourceParser } from "eventsource-parser";

export interface EventListener {
  /** An event's data, on one line; its name where it has one. Ids and retry times mean nothing to us. */
  event(data: string, name: string | undefined): void;
  /** One event is larger than anybody's memory should be; nothing more is read. */
  tooLarge(): void;
}

const byteOrderMark = "\ufeff";

export class EventReader {
  private readonly decoder = new StringDecoder("utf8");
  private readonly parser: EventSourceParser;
  private isAtStart = true;
  /** The text until now ended in CR; a LF that follows belongs to it. */
  private isBehindCr = false;
  private isOver = false;
  /** What was read until now ended with an event. */
  private isBetween = true;
  private readonly listener: EventListener;

  /** @param maxEventLength characters of one event */
  constructor(listener: EventListener, maxEventLength: number) {
    this.listener = listener;
    this.parser = createParser({
      onEvent: ({ data, event }) => listener.event(oneLine(data), event),
      onError: ({ type }) => {
        if (type !== "max-buffer-size-exceeded") return;
        this.isOver = true;
        listener.tooLarge();
      },
      maxBufferSize: maxEventLength,
    });
  }

  read(bytes: Uint8Array): void {
    this.feed(this.decoder.write(bytes as Buffer));
  }

  /** No more bytes come. An event that lacks its blank line is taken as whole, which its data may deny. */
  end(): void {
    this.feed(`${this.decoder.end()}\n\n`);
  }

  /**
   * The parser gets lines that end in LF alone: it would not take a CR for an end of a line before it has seen what
   * follows, and an event that ends in CR would come late, or never.
   */
  private feed(decoded: string): void {
    let text = decoded;
    if (this.isOver || text === "") return;
    if (this.isAtStart && text.startsWith(byteOrderMark)) text = text.slice(1);
    this.isAtStart = false;
    if (this.isBehindCr && text.startsWith("\n")) text = text.slice(1);
    this.isBehindCr = decoded.endsWith("\r");
    if (text.includes("\r")) text = text.replaceAll("\r\n", "\n").replaceAll("\r", "\n");
    const isWhole = this.isBetween && isOneEvent(text);
    this.isBetween = text.endsWith("\n\n");
    if (isWhole) this.listener.event(text.slice(dataField.length, -2), undefined);
    else this.parser.feed(text);
  }
}

const dataField = "data: ";

/** What a packet mostly is: an event of one line of data, which there is nothing to parse in. */
const isOneEvent = (text: string): boolean =>
  text.startsWith(dataField) && text.indexOf("\n") === text.length - 2 && text.endsWith("\n\n");

/** In JSON a line break is white space wherever it may stand. */
const oneLine = (data: string): string => (data.includes("\n") ? data.replaceAll("\n", " ") : data);
