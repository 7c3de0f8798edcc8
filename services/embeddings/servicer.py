"""The RPCs of the embeddings service."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

import grpc
from google.api import httpbody_pb2

from infermesh.embeddings.v1 import embeddings_service_pb2, embeddings_service_pb2_grpc
from infermesh.errors.v1 import errors_pb2
from services.embeddings import openai
from services.embeddings.accounting import Account, Accounting
from services.embeddings.embedder import Embedder
from services.embeddings.vectors import Input, Vector
from services.kit import headers
from services.kit.audit_inference import InferenceAudit
from services.kit.caller import Caller, caller_of
from services.kit.errors import MeshError
from services.kit.guardrails.guard import PromptGuard
from services.kit.guardrails.prompt import Prompt

_Context = grpc.aio.ServicerContext[Any, Any]


class EmbeddingsServicer(embeddings_service_pb2_grpc.EmbeddingsServiceServicer):
    """Serves embeddings in OpenAI's form and with typed messages."""

    def __init__(
        self,
        embedder: Embedder,
        accounting: Accounting,
        guard: PromptGuard,
        audit: InferenceAudit | None = None,
    ) -> None:
        self._embedder = embedder
        self._guard = guard
        self._accounting = accounting
        self._audit = audit

    async def CreateEmbeddings(
        self, request: httpbody_pb2.HttpBody, context: _Context
    ) -> httpbody_pb2.HttpBody:
        """Answers OpenAI's `POST /v1/embeddings`."""
        caller = _caller(context)
        with self._accounting.account(caller) as account:
            parsed = openai.parse(request.data)
            texts, redactions = await self.checked(caller, parsed.inputs, "input")
            vectors = await self.vectors(
                caller, account, parsed.model, texts, "input", parsed.dimensions
            )
            if redactions:
                await _show(redactions, context)
            return httpbody_pb2.HttpBody(
                content_type="application/json", data=openai.answer(parsed, vectors)
            )

    async def Embed(
        self, request: embeddings_service_pb2.EmbedRequest, context: _Context
    ) -> embeddings_service_pb2.EmbedResponse:
        """Answers with typed messages."""
        caller = _caller(context)
        with self._accounting.account(caller) as account:
            inputs: Sequence[Input] = request.inputs
            if request.token_inputs:
                inputs = [tuple(each.ids) for each in request.token_inputs]
            field = "token_inputs" if request.token_inputs else "inputs"
            texts, redactions = await self.checked(caller, inputs, field)
            dimensions = request.dimensions if request.HasField("dimensions") else None
            vectors = await self.vectors(caller, account, request.model, texts, field, dimensions)
            if redactions:
                await _show(redactions, context)
            return embeddings_service_pb2.EmbedResponse(
                model=request.model,
                embeddings=(
                    embeddings_service_pb2.Embedding(values=vector.values(), cached=vector.cached)
                    for vector in vectors
                ),
                prompt_tokens=sum(vector.tokens for vector in vectors),
            )

    async def checked(
        self, caller: Caller, texts: Sequence[Input], field: str
    ) -> tuple[Sequence[Input], int]:
        """Returns what the key's guardrails let pass, and how many places were replaced.

        Raises:
            MeshError: `CONTENT_BLOCKED`; `UNSUPPORTED` for tokens, which no guardrail can read.
        """
        if not caller.guardrails:
            return texts, 0
        prompt = Prompt()
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise MeshError(
                    errors_pb2.ERROR_REASON_UNSUPPORTED,
                    f"The key's guardrails cannot read tokens; send `{field}` as texts.",
                    param=field,
                )
            prompt.add(text, f"{field}[{index}]")
        await self._guard.check(caller.guardrails, prompt)
        return prompt.texts, prompt.redactions

    async def vectors(
        self,
        caller: Caller,
        account: Account,
        model: str,
        texts: Sequence[Input],
        field: str,
        dimensions: int | None = None,
    ) -> list[Vector]:
        """Returns the vectors of texts that are checked, and notes on the account what they take.

        Raises:
            MeshError: `INVALID_ARGUMENT` where the body names another model than auth has checked;
                what the embedder raises.
        """
        _check_model(caller, model)
        account.set_model(model)
        if caller.audits_body and self._audit is not None:
            self._audit.note(caller, "embedding", model, {"model": model, field: texts})
        vectors = await self._embedder.embed(
            model,
            texts,
            tenant=caller.tenant,
            request_id=caller.request_id,
            field=field,
            dimensions=dimensions,
        )
        account.set_vectors(vectors)
        return vectors


async def _show(redactions: int, context: _Context) -> None:
    # Not earlier: a refusal after headers does not reach REST callers as one.
    await context.send_initial_metadata(((headers.REDACTIONS, str(redactions)),))


def _caller(context: _Context) -> Caller:
    metadata = cast("Iterable[tuple[str, str | bytes]]", context.invocation_metadata() or ())
    return caller_of(metadata)


def _check_model(caller: Caller, model: str) -> None:
    """Refuses a body that names another model than the one that auth has checked.

    JSON allows a key twice, and two parsers may then read two models.
    """
    if caller.model and caller.model != model:
        raise MeshError(
            errors_pb2.ERROR_REASON_INVALID_ARGUMENT,
            "`model` must be in the body once.",
            param="model",
        )
