// The official OpenAI SDK for JavaScript on responses, unmodified. Prints what it got as JSON.
import OpenAI from "openai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const asked = {
  model,
  instructions: "You are a helpful assistant. Reply in one short English sentence.",
  input: "What is the capital of France?",
  temperature: 0,
};

const first = await client.responses.create(asked);
const stream = client.responses.stream({ ...asked, previous_response_id: first.id });
const events = [];
for await (const event of stream) events.push(event.type);
const final = await stream.finalResponse();
const kept = await client.responses.retrieve(final.id);
const items = (await client.responses.inputItems.list(final.id)).data.map((item) => item.role);
await client.responses.delete(first.id);
let refused;
try {
  await client.responses.retrieve(first.id);
} catch (error) {
  refused = { status: error.status, code: error.code, param: error.param };
}
console.log(
  JSON.stringify({
    first: first.output_text,
    streamed: final.output_text,
    last: events.at(-1),
    same: kept.id === final.id && kept.output_text === final.output_text,
    items,
    refused,
  }),
);
