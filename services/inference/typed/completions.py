"""Requests for texts that go on where others end."""

from collections.abc import Mapping
from typing import Any

from infermesh.inference.v1 import inference_service_pb2 as pb
from services.inference import extensions
from services.inference.typed import settings
from services.inference.typed.structs import options, struct_of

_OPTIONAL = ("max_tokens", "echo", "n", "best_of", "logprobs")
_TEXTS = ("suffix", "user")
_OF_RPC = frozenset({"stream", "stream_options"})
_OWN = frozenset({*_OPTIONAL, *_TEXTS, "model", "prompt"}) | settings.SAMPLING_FIELDS | _OF_RPC


def completion_to_json(request: pb.CompleteRequest, *, stream: bool) -> dict[str, Any]:
    """Returns a completion as OpenAI's request; unset fields are left out.

    Raises:
        MeshError: `INVALID_ARGUMENT` for fields that contradict each other.
    """
    prompts: list[Any] = list(request.prompts) or [list(each.ids) for each in request.token_prompts]
    fields: dict[str, Any] = {
        "model": request.model,
        # Every engine takes one; not every engine takes several.
        "prompt": prompts[0] if len(prompts) == 1 else prompts,
        **settings.sampling_to_json(request.sampling),
    }
    for name in _OPTIONAL:
        if request.HasField(name):  # type: ignore[arg-type]
            fields[name] = getattr(request, name)
    for name in _TEXTS:
        if value := getattr(request, name):
            fields[name] = value
    fields |= settings.extensions_to_json(request)
    if stream:
        fields["stream"] = True
        fields["stream_options"] = {"include_usage": True}
    if request.HasField("engine_options"):
        fields |= options(request.engine_options, _OWN)
    return fields


def completion_from_json(fields: Mapping[str, Any]) -> pb.CompleteRequest:
    """Returns OpenAI's request as a typed one; whether it streams is the RPC's to say.

    Raises:
        AttributeError, LookupError, TypeError, ValueError: It is not what OpenAI says it is.
    """
    prompt = fields["prompt"]
    prompts: list[Any] = [prompt] if isinstance(prompt, str) else prompt
    if prompts and isinstance(prompts[0], int):
        prompts = [prompts]
    is_text = bool(prompts) and isinstance(prompts[0], str)
    request = pb.CompleteRequest(
        model=fields["model"],
        prompts=prompts if is_text else (),
        token_prompts=() if is_text else [pb.TokenIds(ids=ids) for ids in prompts],
        **{name: fields[name] for name in _OPTIONAL if fields.get(name) is not None},
        **{name: fields[name] for name in _TEXTS if fields.get(name)},
        **settings.extensions_from_json(fields),
    )
    sampling = settings.sampling_from_json(fields)
    if sampling.ByteSize():
        request.sampling.CopyFrom(sampling)
    known = _OWN | extensions.NAMES
    if more := {name: value for name, value in fields.items() if name not in known}:
        request.engine_options.CopyFrom(struct_of(more))
    return request
