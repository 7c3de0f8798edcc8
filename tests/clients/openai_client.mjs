// The official OpenAI SDK for JavaScript, unmodified. Prints what it got as one JSON object.
import OpenAI from "openai";

const [baseURL, apiKey, chatModel, embeddingModel] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [
  { role: "system", content: "You are a helpful assistant. Reply in one short English sentence." },
  { role: "user", content: "What is the capital of France?" },
];
const settings = { model: chatModel, messages, temperature: 0, max_tokens: 24 };

const chat = await client.chat.completions.create(settings);
let streamed = "";
let chunks = 0;
for await (const chunk of await client.chat.completions.create({ ...settings, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  chunks += 1;
}
const completion = await client.completions.create({
  model: chatModel,
  prompt: "The capital of France is",
  temperature: 0,
  max_tokens: 5,
});
const models = (await client.models.list()).data.map((model) => model.id);
const embedding = await client.embeddings.create({ model: embeddingModel, input: ["one", "two"] });
let refused;
try {
  await client.chat.completions.create({ ...settings, model: "gpt-9" });
} catch (error) {
  refused = { status: error.status, code: error.code, param: error.param };
}
console.log(
  JSON.stringify({
    chat: chat.choices[0].message.content,
    streamed,
    chunks,
    completion: completion.choices[0].text,
    models,
    dimensions: embedding.data.map((item) => item.embedding.length),
    refused,
  }),
);
