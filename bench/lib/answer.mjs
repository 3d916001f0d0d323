/** What the fake provider answers to every plain call: a chat completion of about 600 bytes. */

const sentence = "It will cost nothing, as the dog is asleep and the fox pays for the jump by itself. ";

export const answer = JSON.stringify({
  id: "chatcmpl-BenchBenchBenchBenchBench000",
  object: "chat.completion",
  created: 1760000000,
  model: "bench-model",
  choices: [
    { index: 0, message: { role: "assistant", content: sentence.repeat(4).trim() }, finish_reason: "stop" },
  ],
  usage: { prompt_tokens: 320, completion_tokens: 80, total_tokens: 400 },
});

export const answerHeaders = {
  "content-type": "application/json",
  "content-length": Buffer.byteLength(answer),
};
