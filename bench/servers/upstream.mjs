/**
 * The provider: answers every POST with the same chat completion, after `--delay` ms. GET says how many it has
 * answered. On bare sockets, because it shares the machine with what is measured: this costs half of what a
 * server of node:http does.
 */

import { createServer } from "node:net";
import { parseArgs } from "node:util";
import { answer, answerHeaders } from "../lib/answer.mjs";

const { values } = parseArgs({ options: { delay: { type: "string", default: "0" } } });
const delayMs = Number(values.delay);

let answered = 0;

const headers = Object.entries(answerHeaders).map(([name, value]) => `${name}: ${value}\r\n`);
const completion = `HTTP/1.1 200 OK\r\n${headers.join("")}\r\n${answer}`;

/** Where the first request of `text` ends (exclusive), or -1 as long as it is not whole. */
function endOf(text) {
  const head = text.indexOf("\r\n\r\n") + 4;
  if (head < 4) return -1;
  const fields = text.slice(0, head);
  const length = /\r\ncontent-length: *(\d+)/i.exec(fields);
  if (length) return text.length >= head + Number(length[1]) ? head + Number(length[1]) : -1;
  if (!/\r\ntransfer-encoding: *chunked/i.test(fields)) return head;
  const last = text.indexOf("\r\n0\r\n\r\n", head - 2);
  return last < 0 ? -1 : last + 7;
}

function reply(socket, request) {
  if (request.startsWith("GET")) {
    const count = String(answered);
    return socket.write(`HTTP/1.1 200 OK\r\ncontent-length: ${count.length}\r\n\r\n${count}`);
  }
  const send = () => {
    answered++;
    socket.write(completion, "latin1");
  };
  if (delayMs > 0) setTimeout(send, delayMs);
  else send();
}

const server = createServer({ noDelay: true }, (socket) => {
  let text = "";
  socket.on("error", () => {});
  socket.on("data", (more) => {
    text += more.latin1Slice();
    for (let end = endOf(text); end > 0; end = endOf(text)) {
      reply(socket, text.slice(0, end));
      text = text.slice(end);
    }
  });
});
server.listen(0, "127.0.0.1", () => console.log(`listens on http://127.0.0.1:${server.address().port}`));
