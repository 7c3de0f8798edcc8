"""`POST /v1/rerank` in Jina's and Cohere's form.

https://jina.ai/reranker/ and https://docs.cohere.com/reference/rerank
"""

from typing import Any, NamedTuple

import orjson

from services.inference import errors, extensions
from services.inference.engines.asks import RerankAsk
from services.inference.fair_queue import Priority
from services.inference.requests import check_width, parsed
from services.inference.reranking import Ranked

_MAX_DOCUMENTS = 2048
_OWN = extensions.NAMES | {"model", "query", "documents", "top_n", "return_documents"}


class RerankRequest(NamedTuple):
    """A request that was read: what is asked, and whether the documents are to come back."""

    ask: RerankAsk
    returns_documents: bool
    priority: Priority


def parse(body: bytes) -> RerankRequest:
    """Reads a request.

    Raises:
        MeshError: `INVALID_JSON`, `INVALID_ARGUMENT` with the field at fault, or `UNSUPPORTED` for
            documents that are no texts.
    """
    fields = parsed(body)
    check_width(body, fields)
    model, query, top_n = fields.get("model"), fields.get("query"), fields.get("top_n")
    if not isinstance(model, str) or not model:
        raise errors.invalid("model", "must be the name of a model")
    if not isinstance(query, str) or not query:
        raise errors.invalid("query", "must be a text that is not empty")
    if top_n is not None and (type(top_n) is not int or top_n < 1):
        raise errors.invalid("top_n", "must be a whole number from 1")
    returns_documents = fields.get("return_documents")
    if returns_documents is not None and not isinstance(returns_documents, bool):
        raise errors.invalid("return_documents", "must be true or false")
    ask = RerankAsk(
        model=model,
        query=query,
        documents=_documents(fields.get("documents")),
        top_n=top_n,
        options={name: value for name, value in fields.items() if name not in _OWN},
    )
    return RerankRequest(ask, bool(returns_documents), extensions.check(fields))


def answer(ranked: Ranked, *, returns_documents: bool) -> bytes:
    """Returns the body of an answer; usage is left out where the engine does not tell it."""
    results: list[dict[str, Any]] = []
    for place, score, document in ranked.results:
        result: dict[str, Any] = {"index": place, "relevance_score": score}
        if returns_documents:
            result["document"] = {"text": document}
        results.append(result)
    said: dict[str, Any] = {
        "id": ranked.id,
        "object": "list",
        "model": ranked.model,
        "results": results,
    }
    if ranked.tokens is not None:
        said["usage"] = {"prompt_tokens": ranked.tokens, "total_tokens": ranked.tokens}
    if ranked.metadata is not None:
        said["gateway_metadata"] = ranked.metadata
    return orjson.dumps(said)


def _documents(value: object) -> list[str]:
    if not isinstance(value, list) or not 0 < len(value) <= _MAX_DOCUMENTS:
        raise errors.invalid("documents", f"must be a list of 1 to {_MAX_DOCUMENTS} texts")
    documents = []
    for index, document in enumerate(value):
        param = f"documents[{index}]"
        text = document
        if isinstance(document, dict):
            if document.keys() != {"text"}:
                raise errors.unsupported(param, "an object with `text` alone can be ranked.")
            text = document["text"]
        if not isinstance(text, str) or not text:
            raise errors.invalid(param, "must be a text that is not empty")
        documents.append(text)
    return documents
