"""How likely the tokens of answers were, in the two forms that OpenAI has for it."""

from collections.abc import Iterable, Mapping
from typing import Any

from infermesh.inference.v1 import inference_service_pb2 as pb


def logprobs_from_json(choice: Mapping[str, Any]) -> pb.Logprobs | None:
    """Returns what a choice says; None where it says nothing.

    llama.cpp gives completions the form of chats.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: It is not what OpenAI says it is.
    """
    said = choice.get("logprobs")
    if said is None:
        return None
    if "tokens" in said:
        return pb.Logprobs(content=_from_lists(said))
    return pb.Logprobs(
        content=[_from_object(token) for token in said.get("content") or ()],
        refusal=[_from_object(token) for token in said.get("refusal") or ()],
    )


def logprobs_to_json(logprobs: pb.Logprobs) -> dict[str, Any]:
    """Returns what a chat's choice says."""
    return {
        "content": [_to_object(token) for token in logprobs.content] or None,
        "refusal": [_to_object(token) for token in logprobs.refusal] or None,
    }


def lists_to_json(tokens: Iterable[pb.TokenLogprob]) -> dict[str, Any]:
    """Returns what a completion's choice says: lists beside each other."""
    tokens = list(tokens)
    top = [{each.token: each.logprob for each in t.top_logprobs} or None for t in tokens]
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [t.logprob if t.HasField("logprob") else None for t in tokens],
        "top_logprobs": top if any(top) else None,
        "text_offset": [t.text_offset if t.HasField("text_offset") else None for t in tokens],
    }


def _from_lists(said: Mapping[str, Any]) -> list[pb.TokenLogprob]:
    tokens = said["tokens"] or ()
    count = len(tokens)
    return [
        pb.TokenLogprob(
            token=token,
            logprob=logprob,
            top_logprobs=[
                pb.TopLogprob(token=other, logprob=value) for other, value in (top or {}).items()
            ],
            text_offset=offset,
        )
        for token, logprob, top, offset in zip(
            tokens,
            said.get("token_logprobs") or [None] * count,
            said.get("top_logprobs") or [None] * count,
            said.get("text_offset") or [None] * count,
            strict=True,
        )
    ]


def _from_object(said: Mapping[str, Any]) -> pb.TokenLogprob:
    return pb.TokenLogprob(
        token=said.get("token") or "",
        logprob=said.get("logprob"),
        bytes=_bytes(said),
        top_logprobs=[
            pb.TopLogprob(token=top.get("token") or "", logprob=top["logprob"], bytes=_bytes(top))
            for top in said.get("top_logprobs") or ()
        ],
    )


def _to_object(token: pb.TokenLogprob) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": token.logprob if token.HasField("logprob") else None,
        "bytes": list(token.bytes) if token.HasField("bytes") else None,
        "top_logprobs": [
            {
                "token": top.token,
                "logprob": top.logprob,
                "bytes": list(top.bytes) if top.HasField("bytes") else None,
            }
            for top in token.top_logprobs
        ],
    }


def _bytes(said: Mapping[str, Any]) -> bytes | None:
    values = said.get("bytes")
    return None if values is None else bytes(values)
