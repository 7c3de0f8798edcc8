"""The calls that `cancellation.py` hangs up on, one for each dialect and form."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc

from infermesh.embeddings.v1 import embeddings_service_pb2 as embeddings_pb
from infermesh.embeddings.v1 import embeddings_service_pb2_grpc
from infermesh.inference.v1 import inference_service_pb2 as pb
from infermesh.inference.v1 import inference_service_pb2_grpc
from services.cli import stack

MODEL, EMBEDDER = stack.CHAT_MODEL, stack.EMBEDDING_MODEL
CHAT_STATES = ("prefill", "decode", "queued", "node")
# What gives no tokens is over once its prompt is read.
PROMPT_STATES = ("prefill", "queued", "node")
_ANSWER_TOKENS = 8000
_WEB = "/infermesh.inference.v1.InferenceService/"

HangUp = Callable[[], None]
Call = Callable[[str], Awaitable[HangUp]]
"""Sends a prompt and returns how its caller hangs up."""

# Of equal texts the embeddings service sends one, or none.
_number = itertools.count()


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        dialect: What is spoken.
        form: `stream` or `whole`.
        call: Sends a prompt.
        states: In which states its callers leave.
        embeds: Whether it goes to the engine for vectors and rankings.
    """

    dialect: str
    form: str
    call: Call
    states: tuple[str, ...] = CHAT_STATES
    embeds: bool = False


def rows(port: int, key: str, channel: grpc.aio.Channel) -> list[Row]:
    """Returns all lines of the table."""
    found = []
    for dialect, path, body in (
        ("OpenAI, chat", "/v1/chat/completions", _chat),
        ("OpenAI, completion", "/v1/completions", _completion),
        ("OpenAI, response", "/v1/responses", _response),
        ("Anthropic", "/v1/messages", _chat),
        ("Ollama, chat", "/api/chat", _ollama_chat),
        ("Ollama, generate", "/api/generate", _ollama_generate),
    ):
        for stream in (True, False):
            form = "stream" if stream else "whole"
            found.append(Row(dialect, form, _rest(port, key, path, body, stream)))
    stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
    web = _web(port, key)
    found += [
        Row("typed, chat", "stream", _typed(stub.StreamChat, key, _typed_stream)),
        Row("typed, chat", "whole", _typed(stub.Chat, key, _typed_chat)),
        Row("typed, completion", "stream", _typed(stub.StreamComplete, key, _typed_completion)),
        Row("typed, completion", "whole", _typed(stub.Complete, key, _typed_completion)),
        Row("gRPC-Web, chat", "stream", web("StreamChat", _typed_stream)),
        Row("gRPC-Web, chat", "whole", web("Chat", _typed_chat)),
    ]
    embed = embeddings_service_pb2_grpc.EmbeddingsServiceStub(channel).Embed
    for dialect, call in (
        ("OpenAI, embeddings", _rest(port, key, "/v1/embeddings", _embedding, None)),
        ("typed, embeddings", _typed(embed, key, _typed_embedding)),
        ("rerank", _rest(port, key, "/v1/rerank", _ranking, None)),
        ("typed, rerank", _typed(stub.Rerank, key, _typed_ranking)),
    ):
        found.append(Row(dialect, "whole", call, PROMPT_STATES, embeds=True))
    return found


def _chat(prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL, "messages": messages, "max_tokens": _ANSWER_TOKENS}


def _completion(prompt: str) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "max_tokens": _ANSWER_TOKENS}


def _response(prompt: str) -> dict[str, Any]:
    return {"model": MODEL, "input": prompt, "max_output_tokens": _ANSWER_TOKENS}


def _ollama_chat(prompt: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt}]
    return {"model": MODEL, "messages": messages, "options": {"num_predict": _ANSWER_TOKENS}}


def _ollama_generate(prompt: str) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, "options": {"num_predict": _ANSWER_TOKENS}}


def _embedding(prompt: str) -> dict[str, Any]:
    return {"model": EMBEDDER, "input": f"{next(_number)} {prompt}"}


def _ranking(prompt: str) -> dict[str, Any]:
    return {"model": EMBEDDER, "query": "Which?", "documents": [f"{next(_number)} {prompt}"]}


def _typed_chat(prompt: str) -> pb.ChatRequest:
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content=[pb.ContentPart(text=prompt)])
    return pb.ChatRequest(model=MODEL, messages=[message], max_tokens=_ANSWER_TOKENS)


def _typed_stream(prompt: str) -> pb.StreamChatRequest:
    return pb.StreamChatRequest(chat=_typed_chat(prompt))


def _typed_completion(prompt: str) -> pb.CompleteRequest:
    return pb.CompleteRequest(model=MODEL, prompts=[prompt], max_tokens=_ANSWER_TOKENS)


def _typed_embedding(prompt: str) -> embeddings_pb.EmbedRequest:
    return embeddings_pb.EmbedRequest(model=EMBEDDER, inputs=[f"{next(_number)} {prompt}"])


def _typed_ranking(prompt: str) -> pb.RerankRequest:
    documents = [f"{next(_number)} {prompt}"]
    return pb.RerankRequest(model=EMBEDDER, query="Which?", documents=documents)


def _rest(
    port: int, key: str, path: str, body: Callable[[str], dict[str, Any]], stream: bool | None
) -> Call:
    async def call(prompt: str) -> HangUp:
        said = body(prompt) if stream is None else {**body(prompt), "stream": stream}
        return await _post(port, key, path, "application/json", json.dumps(said).encode())

    return call


def _web(port: int, key: str) -> Callable[[str, Callable[[str], Any]], Call]:
    def make(method: str, message: Callable[[str], Any]) -> Call:
        async def call(prompt: str) -> HangUp:
            data = message(prompt).SerializeToString()
            data = b"\0" + len(data).to_bytes(4, "big") + data
            return await _post(port, key, _WEB + method, "application/grpc-web+proto", data)

        return call

    return make


async def _post(port: int, key: str, path: str, kind: str, data: bytes) -> HangUp:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST %s HTTP/1.1\r\nhost: mesh\r\ncontent-type: %s\r\nanthropic-version: 2023-06-01\r\n"
        b"authorization: Bearer %s\r\ncontent-length: %d\r\n\r\n%s"
        % (path.encode(), kind.encode(), key.encode(), len(data), data)
    )
    await writer.drain()

    def hang_up(_: asyncio.StreamReader = reader) -> None:
        # Without its reader a connection would be closed before.
        writer.close()

    return hang_up


def _typed(method: Any, key: str, message: Callable[[str], Any]) -> Call:
    async def call(prompt: str) -> HangUp:
        under_way = method(message(prompt), metadata=(("authorization", f"Bearer {key}"),))

        def hang_up() -> None:
            under_way.cancel()

        return hang_up

    return call
