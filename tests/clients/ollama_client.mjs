// Drives the official Ollama client for JavaScript against the mesh and prints what it got.
//   node ollama_client.mjs URL KEY CHAT_MODEL EMBEDDING_MODEL
import { Ollama } from "ollama";

const [host, key, chatModel, embedModel] = process.argv.slice(2);
const client = new Ollama({ host, headers: { Authorization: `Bearer ${key}` } });
const messages = [
  { role: "system", content: "You are a helpful assistant. Reply in one short English sentence." },
  { role: "user", content: "What is the capital of France?" },
];
const options = { temperature: 0, num_predict: 24 };

const chat = await client.chat({ model: chatModel, messages, options });
let streamed = "";
let chunks = 0;
let last;
for await (const part of await client.chat({ model: chatModel, messages, options, stream: true })) {
  streamed += part.message.content;
  chunks += 1;
  last = part;
}
const generated = await client.generate({ model: chatModel, prompt: "Say hi", options });
let pieces = "";
for await (const part of await client.generate({
  model: chatModel,
  prompt: "Say hi",
  options,
  stream: true,
}))
  pieces += part.response;
const embedded = await client.embed({ model: embedModel, input: ["one", "two"] });
const older = await client.embeddings({ model: embedModel, prompt: "one" });
const listed = await client.list();
const running = await client.ps();
const shown = await client.show({ model: chatModel });
const { version } = await client.version();
const pulled = [(await client.pull({ model: chatModel })).status];
for await (const step of await client.pull({ model: chatModel, stream: true }))
  pulled.push(step.status);
let kept;
try {
  await client.delete({ model: chatModel });
} catch (error) {
  kept = error.status_code;
}

let refused;
try {
  await client.chat({ model: "no-such-model", messages });
} catch (error) {
  refused = { name: error.name, status: error.status_code, message: error.message };
}

const aborted = await client.chat({ model: chatModel, messages, stream: true });
let abort;
try {
  for await (const _ of aborted) aborted.abort();
} catch (error) {
  abort = error.name;
}

console.log(
  JSON.stringify({
    chat: chat.message.content,
    counts: [chat.prompt_eval_count, chat.eval_count, chat.done_reason],
    streamed,
    chunks,
    done: [last.done, last.eval_count > 0, last.total_duration > 0],
    generated: [generated.response, pieces],
    version,
    pulled,
    kept,
    dimensions: [...embedded.embeddings.map((each) => each.length), older.embedding.length],
    models: listed.models.map((each) => each.model),
    running: running.models.map((each) => each.name),
    capabilities: shown.capabilities,
    refused,
    abort,
  }),
);
