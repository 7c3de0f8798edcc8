// Anthropic's official SDK for JavaScript, unmodified. Prints what it got as one JSON object.
import Anthropic from "@anthropic-ai/sdk";

const [baseURL, apiKey, model, toolModel] = process.argv.slice(2);
const client = new Anthropic({ baseURL, apiKey, maxRetries: 0 });
const settings = {
  model,
  system: "You are a helpful assistant. Reply in one short English sentence.",
  messages: [{ role: "user", content: "What is the capital of France?" }],
  temperature: 0,
  max_tokens: 24,
};

const message = await client.messages.create(settings);
const stream = client.messages.stream(settings);
let deltas = 0;
stream.on("text", () => (deltas += 1));
const streamed = await stream.finalMessage();
const { max_tokens: _, temperature: __, ...prompt } = settings;
const counted = await client.messages.countTokens(prompt);
const tools = [
  {
    name: "get_weather",
    description: "Tells the weather.",
    input_schema: { type: "object", properties: { city: { type: "string" } } },
  },
];
const asked = { role: "user", content: "What is the weather in Paris?" };
const common = { model: toolModel, max_tokens: 50, tools };
const calling = await client.messages.stream({ ...common, messages: [asked] }).finalMessage();
const call = calling.content.find((block) => block.type === "tool_use");
const told = await client.messages.create({
  ...common,
  messages: [
    asked,
    { role: "assistant", content: calling.content },
    { role: "user", content: [{ type: "tool_result", tool_use_id: call.id, content: "20 degrees" }] },
  ],
});
const errors = {};
for (const [name, change, key] of [
  ["missing", { model: "gpt-9" }],
  ["bad", { max_tokens: 0 }],
  ["stranger", {}, "im-nobody"],
]) {
  try {
    const other = key ? new Anthropic({ baseURL, apiKey: key, maxRetries: 0 }) : client;
    await other.messages.create({ ...settings, ...change });
  } catch (error) {
    errors[name] = {
      class: error.constructor.name,
      status: error.status,
      type: error.error.error.type,
      request: error.requestID === error.error.request_id,
    };
  }
}
console.log(
  JSON.stringify({
    text: message.content[0].text,
    stop: message.stop_reason,
    usage: message.usage,
    request: message._request_id,
    streamed: streamed.content[0].text,
    streamedUsage: streamed.usage,
    deltas,
    counted: counted.input_tokens,
    call: { name: call.name, input: call.input },
    told: told.content[0].text,
    errors,
  }),
);
