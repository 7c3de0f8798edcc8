"""Turns texts into vectors, one request to the engine for each text.

One at a time gives what a list does not: the tokens of each text, and which one is too long. The
engine batches what arrives together, so it is no slower (64 short texts on llama.cpp: 0.5 s both).
"""

import asyncio
from collections.abc import Iterator, Sequence

from infermesh.errors.v1 import errors_pb2
from services.inference import errors
from services.inference.engines.dialect import Engine, Vector
from services.inference.http_client import EngineClient, Exchange
from services.kit.errors import MeshError

__all__ = ["Embedder", "Vector"]

_MAX_PARALLEL = 8


class Embedder:
    """Embeds with one engine.

    Args:
        engine: The engine's dialect.
        client: Connections to it.
    """

    def __init__(self, engine: Engine, client: EngineClient) -> None:
        self._engine = engine
        self._client = client

    async def embed(
        self,
        model: str,
        texts: Sequence[str | list[int]],
        context_length: int,
        dimensions: int | None = None,
    ) -> list[Vector]:
        """Returns the vectors in the order of the texts.

        Args:
            model: The model's name.
            texts: The texts or their tokens, none empty.
            context_length: The most tokens that a text may have; 0 where that is unknown.
            dimensions: The components that the vectors are to have; None is all.

        Raises:
            MeshError: `INPUT_TOO_LONG` with the index of the text; `UNSUPPORTED` where the engine
                takes no tokens or cuts no vectors; other refusals of the engine's.
            EngineConnectionError: The engine broke off.
            EngineTimeoutError: The engine fell silent.
        """
        vectors: list[Vector | None] = [None] * len(texts)
        waiting: Iterator[int] = iter(range(len(texts)))

        async def work() -> None:
            for index in waiting:
                vectors[index] = await self._one(
                    model, texts[index], index, context_length, dimensions
                )

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_MAX_PARALLEL, len(texts))):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [vector for vector in vectors if vector is not None]

    async def _one(
        self,
        model: str,
        text: str | list[int],
        index: int,
        context_length: int,
        dimensions: int | None,
    ) -> Vector:
        path, body = self._engine.embedding(model, text, dimensions)
        with await self._client.post(path, body) as exchange:
            answer = await exchange.read_all()
        if exchange.status != 200:
            raise await self._refusal(exchange, answer, model, text, index, context_length)
        try:
            vector = self._engine.vector(answer)
        except (AttributeError, LookupError, TypeError, ValueError):
            raise errors.failed("The engine's vectors cannot be read.") from None
        if dimensions is not None and len(vector.values) != dimensions:
            # Engines that do not know the field return the whole vector without a word.
            raise errors.unsupported(
                "dimensions", f"the vectors of `{model}` have {len(vector.values)} components."
            )
        return vector

    async def _refusal(
        self,
        exchange: Exchange,
        answer: bytes,
        model: str,
        text: str | list[int],
        index: int,
        context_length: int,
    ) -> MeshError:
        is_too_long = self._engine.is_too_long(exchange.status, errors.error_of(answer))
        if not is_too_long and context_length:
            # Engines have several ways of failing on a long text; its length decides.
            tokens: int | None = len(text)
            if isinstance(text, str):
                tokens = await self._engine.count_tokens(self._client, model, text)
            is_too_long = tokens is not None and tokens > context_length
        if not is_too_long:
            return errors.from_response(exchange.status, answer)
        limit = f" of {context_length} tokens" if context_length else ""
        return MeshError(
            errors_pb2.ERROR_REASON_INPUT_TOO_LONG,
            f"input[{index}] is longer than the model's context{limit}.",
            param=f"input[{index}]",
            metadata={"index": str(index), "max_tokens": str(context_length)},
        )
