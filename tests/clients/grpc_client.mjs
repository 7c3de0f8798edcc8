// A gRPC client for Node with types loaded from the protos. Prints what it got as one JSON object.
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [address, key, model] = process.argv.slice(2);
const definition = loader.loadSync("infermesh/inference/v1/inference_service.proto", {
  includeDirs: ["protos", "third_party"],
  keepCase: true,
  enums: String,
  defaults: true,
});
const { InferenceService } = grpc.loadPackageDefinition(definition).infermesh.inference.v1;
const client = new InferenceService(address, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${key}`);
const chat = {
  model,
  messages: [{ role: "CHAT_ROLE_USER", content: [{ text: "Say hello." }] }],
  sampling: { temperature: 0 },
  max_tokens: 8,
};

const unary = await new Promise((resolve, reject) =>
  client.Chat(chat, metadata, (error, reply) => (error ? reject(error) : resolve(reply))),
);
let streamed = "";
for await (const reply of client.StreamChat({ chat }, metadata)) {
  for (const delta of reply.deltas) streamed += delta.content;
}
const refused = await new Promise((resolve) =>
  client.Chat({ ...chat, model: "gpt-9" }, metadata, (error) => resolve(error.code)),
);
console.log(
  JSON.stringify({
    text: unary.choices[0].message.content.map((part) => part.text).join(""),
    tokens: unary.usage.completion_tokens,
    streamed,
    refused,
  }),
);
client.close();
