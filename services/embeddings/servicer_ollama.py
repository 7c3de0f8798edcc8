"""The RPCs of the embeddings service in Ollama's form."""

import time
from collections.abc import Sequence
from typing import Any, cast

import grpc
from google.api import httpbody_pb2

from infermesh.embeddings.v1 import ollama_embeddings_service_pb2_grpc
from services.embeddings import ollama
from services.embeddings.accounting import Accounting
from services.embeddings.servicer import EmbeddingsServicer
from services.embeddings.vectors import Vector
from services.kit import headers
from services.kit.caller import caller_of

_Context = grpc.aio.ServicerContext[Any, Any]


class OllamaEmbeddingsServicer(ollama_embeddings_service_pb2_grpc.OllamaEmbeddingsServiceServicer):
    """Serves embeddings in Ollama's form.

    Args:
        embeddings: Checks texts and makes their vectors.
        accounting: Accounts for each call.
    """

    def __init__(self, embeddings: EmbeddingsServicer, accounting: Accounting) -> None:
        self._embeddings = embeddings
        self._accounting = accounting

    async def EmbedTexts(
        self, request: httpbody_pb2.HttpBody, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Answers `POST /api/embed`."""
        began_ns = time.monotonic_ns()
        asked, vectors = await self._embed(request.data, "input", context)
        return _body(ollama.answer(asked, vectors, time.monotonic_ns() - began_ns))

    async def EmbedPrompt(
        self, request: httpbody_pb2.HttpBody, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Answers `POST /api/embeddings`."""
        _, vectors = await self._embed(request.data, "prompt", context)
        return _body(ollama.single(vectors))

    async def _embed(
        self, body: bytes, field: str, context: _Context
    ) -> tuple[ollama.OllamaRequest, Sequence[Vector]]:
        caller = caller_of(cast(Any, context.invocation_metadata()))
        with self._accounting.account(caller) as account:
            asked = ollama.parse(body, field)
            texts, redactions = await self._embeddings.checked(caller, asked.inputs, field)
            vectors = await self._embeddings.vectors(
                caller, account, asked.model, texts, field, asked.dimensions
            )
        if redactions:
            await context.send_initial_metadata(((headers.REDACTIONS, str(redactions)),))
        return asked, vectors


def _body(data: bytes) -> httpbody_pb2.HttpBody:
    return httpbody_pb2.HttpBody(content_type="application/json; charset=utf-8", data=data)
