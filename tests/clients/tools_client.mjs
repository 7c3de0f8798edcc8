// Calls of functions with OpenAI's and Ollama's official SDKs for JavaScript, unmodified. Prints
// what they got as one JSON object.
import { Ollama } from "ollama";
import OpenAI from "openai";

const [url, key, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const question = { role: "user", content: "What is the weather in Paris?" };
const name = "get_weather";
const parameters = { type: "object", properties: { city: { type: "string" } } };
const weather = ({ city }) => (city === "Paris" ? "20 degrees" : `no ${city}`);
const tools = [
  { type: "function", function: { name, parameters, function: weather, parse: JSON.parse } },
];

const chat = await client.chat.completions.runTools({ model, messages: [question], tools });
const stream = client.chat.completions.runTools({
  model,
  messages: [question],
  tools,
  stream: true,
});
const asked = { model, tools: [{ type: "function", name, parameters, strict: false }] };
const first = await client.responses.create({ ...asked, input: question.content });
const call = first.output.find((item) => item.type === "function_call");
const output = weather(JSON.parse(call.arguments));
const second = await client.responses.create({
  ...asked,
  previous_response_id: first.id,
  input: [{ type: "function_call_output", call_id: call.call_id, output }],
});

const ollama = new Ollama({ host: url, headers: { Authorization: `Bearer ${key}` } });
const plain = [{ type: "function", function: { name, parameters } }];
const { message } = await ollama.chat({ model, messages: [question], tools: plain });
const made = message.tool_calls[0].function.arguments;
const told = await ollama.chat({
  model,
  tools: plain,
  messages: [question, message, { role: "tool", tool_name: name, content: weather(made) }],
});
let streamed;
const settings = { model, messages: [question], tools: plain, stream: true };
for await (const part of await ollama.chat(settings))
  streamed ??= part.message.tool_calls?.[0].function.arguments;

console.log(
  JSON.stringify({
    openai: {
      chat: await chat.finalContent(),
      stream: await stream.finalContent(),
      response: second.output_text,
    },
    ollama: { call: made, told: told.message.content, streamed },
  }),
);
