"""What answers took, and how they came about."""

from collections.abc import Mapping
from typing import Any

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.inference.engines.dialect import Tokens, count_of, tokens_of

_OF_PROMPT = {"audio_tokens": "prompt_audio_tokens"}
_OF_ANSWER = {
    "reasoning_tokens": "reasoning_tokens",
    "audio_tokens": "completion_audio_tokens",
    "accepted_prediction_tokens": "accepted_prediction_tokens",
    "rejected_prediction_tokens": "rejected_prediction_tokens",
}


def usage_of(tokens: Tokens, said: Mapping[str, Any] | None = None) -> pb.Usage:
    """Returns what a request took.

    Args:
        tokens: The counts, over all answers.
        said: OpenAI's usage object, for what they are made of; None where there is none.
    """
    usage = pb.Usage(
        prompt_tokens=tokens.prompt,
        completion_tokens=tokens.completion,
        cached_tokens=tokens.cached,
    )
    if said is not None:
        _add(usage, said.get("prompt_tokens_details"), _OF_PROMPT)
        _add(usage, said.get("completion_tokens_details"), _OF_ANSWER)
    return usage


def usage_from_json(said: dict[str, Any]) -> pb.Usage:
    """Returns what OpenAI's usage object says."""
    return usage_of(tokens_of(said), said)


def usage_to_json(usage: pb.Usage) -> dict[str, Any]:
    """Returns OpenAI's usage object; unknown counts are left out."""
    fields: dict[str, Any] = _known(
        usage, {"prompt_tokens": "prompt_tokens", "completion_tokens": "completion_tokens"}
    )
    if len(fields) == 2:
        fields["total_tokens"] = usage.prompt_tokens + usage.completion_tokens
    if details := _known(usage, {"cached_tokens": "cached_tokens", **_OF_PROMPT}):
        fields["prompt_tokens_details"] = details
    if details := _known(usage, _OF_ANSWER):
        fields["completion_tokens_details"] = details
    return fields


def metadata_to_json(metadata: pb.GatewayMetadata) -> dict[str, Any]:
    """Returns how an answer came about, null for what is unknown."""
    return {
        field.name: None
        if field.has_presence and not metadata.HasField(field.name)  # type: ignore[arg-type]
        else getattr(metadata, field.name)
        for field in metadata.DESCRIPTOR.fields
    }


def _add(usage: pb.Usage, said: object, names: Mapping[str, str]) -> None:
    if isinstance(said, Mapping):
        for name, ours in names.items():
            if (count := count_of(said.get(name))) is not None:
                setattr(usage, ours, count)


def _known(usage: pb.Usage, names: Mapping[str, str]) -> dict[str, int]:
    return {
        name: getattr(usage, ours)
        for name, ours in names.items()
        if usage.HasField(ours)  # type: ignore[arg-type]
    }
