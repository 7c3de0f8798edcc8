// The official OpenAI SDK for JavaScript, unmodified. Prints what it got as one JSON object.
import OpenAI, { toFile } from "openai";

const [baseURL, apiKey, chatModel, embeddingModel] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [
  { role: "system", content: "You are a helpful assistant. Reply in one short English sentence." },
  { role: "user", content: "What is the capital of France?" },
];
const settings = { model: chatModel, messages, temperature: 0, max_tokens: 24 };
const text = { model: chatModel, prompt: "The capital of France is", temperature: 0, max_tokens: 5 };

async function refusal(act) {
  try {
    await act();
  } catch (error) {
    return { class: error.constructor.name, status: error.status, code: error.code, param: error.param };
  }
}

const chat = await client.chat.completions.create(settings);
let chunks = 0;
// The helper puts the answer together, and fails where chunks do not fit.
const stream = client.chat.completions.stream({
  ...settings,
  stream_options: { include_usage: true },
});
stream.on("chunk", () => (chunks += 1));
const streamed = await stream.finalChatCompletion();
const several = await client.chat.completions.create({
  ...settings,
  n: 2,
  max_tokens: 2,
  logprobs: true,
  top_logprobs: 2,
});
const parsed = await client.chat.completions.parse({
  ...settings,
  max_tokens: 60,
  response_format: {
    type: "json_schema",
    json_schema: {
      name: "city",
      schema: {
        type: "object",
        properties: { city: { type: "string", maxLength: 20 } },
        required: ["city"],
      },
    },
  },
});

const completion = await client.completions.create({ ...text, prompt: [text.prompt, "1, 2, 3,"] });
let completed = "";
for await (const chunk of await client.completions.create({ ...text, stream: true }))
  completed += chunk.choices[0]?.text ?? "";

const models = [];
for await (const model of client.models.list()) models.push(model.id);
const model = await client.models.retrieve(chatModel);

const input = ["one", "two"];
// The SDK asks for base64 where nothing is said, and decodes it.
const packed = await client.embeddings.create({ model: embeddingModel, input });
const floats = await client.embeddings.create({
  model: embeddingModel,
  input,
  encoding_format: "float",
});

const line = {
  custom_id: "a",
  method: "POST",
  url: "/v1/chat/completions",
  body: { ...settings, max_tokens: 2 },
};
const uploaded = await toFile(Buffer.from(JSON.stringify(line)), "lines.jsonl");
const file = await client.files.create({ file: uploaded, purpose: "batch" });
const files = [];
for await (const each of client.files.list({ limit: 1 })) {
  files.push(each.id);
  if (files.length === 2) break;
}
const content = await (await client.files.content(file.id)).json();
const batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
let done = batch;
while (!["completed", "failed", "cancelled", "expired"].includes(done.status)) {
  await new Promise((resolve) => setTimeout(resolve, 100));
  done = await client.batches.retrieve(batch.id);
}
const listed = (await client.batches.list({ limit: 1 })).data.map((each) => each.id);
const result = await (await client.files.content(done.output_file_id)).json();

console.log(
  JSON.stringify({
    chat: chat.choices[0].message.content,
    usage: chat.usage,
    streamed: streamed.choices[0].message.content,
    streamedUsage: streamed.usage,
    chunks,
    several: several.choices.map((choice) => choice.logprobs.content[0].top_logprobs.length),
    parsed: Object.keys(parsed.choices[0].message.parsed ?? JSON.parse(parsed.choices[0].message.content)),
    completions: completion.choices.map((choice) => choice.text),
    completed,
    models,
    model: [model.id, model.object],
    dimensions: packed.data.map((item) => item.embedding.length),
    apart: Math.abs(packed.data[0].embedding[0] - floats.data[0].embedding[0]),
    file: [file.object, file.status, content.custom_id, files.includes(file.id)],
    batch: [done.status, done.request_counts.completed, listed[0] === batch.id],
    result: result.response.body.object,
    deleted: (await client.files.delete(file.id)).deleted,
    refused: {
      model: await refusal(() => client.chat.completions.create({ ...settings, model: "gpt-9" })),
      value: await refusal(() => client.completions.create({ ...text, max_tokens: -5 })),
      batch: await refusal(() => client.batches.cancel("batch_none")),
      key: await refusal(() => client.withOptions({ apiKey: "im-nobody" }).models.list()),
    },
  }),
);
