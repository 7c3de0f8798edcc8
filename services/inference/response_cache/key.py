"""What makes two requests the same, and which requests may be answered with an earlier answer."""

import fnmatch
import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import orjson

from services.inference import extensions
from services.inference.requests import OpenAIRequest, written
from services.kit.caller import Caller

Form = Literal["whole", "bytes", "objects"]
"""How an answer goes to its surface: as one object, as the bytes of a stream, as its objects."""

_DIGEST_BYTES = 20
# What says how an answer is delivered, billed or filed, and not what stands in it.
_WITHOUT_EFFECT = extensions.NAMES | {
    "model",
    "stream",
    "stream_options",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "metadata",
    "store",
    "service_tier",
}


class CachedModels:
    """The models whose answers are kept although the request does not ask for it.

    Args:
        patterns: Names, with `*` for any characters.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._patterns = tuple(patterns)

    @classmethod
    def read(cls, text: str) -> "CachedModels":
        """Reads names with commas between."""
        return cls([name.strip() for name in text.split(",") if name.strip()])

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def __contains__(self, model: object) -> bool:
        return isinstance(model, str) and any(
            fnmatch.fnmatchcase(model, pattern) for pattern in self._patterns
        )


def may_reuse(caller: Caller, request: OpenAIRequest, model: str, models: CachedModels) -> bool:
    """Says whether a request may be answered with an earlier answer.

    A key that wants none is given none. Else a request that says `enable_caching` decides itself.
    One that does not may where its key wants it or the operator has its model's answers kept, and
    it asks for no chance: its `temperature` is 0. Calls from inside the mesh have no tenant, and
    those that want to see how an answer came about want a new one.

    Args:
        caller: Who asks.
        request: What is asked.
        model: The model that answers.
        models: The models whose answers are kept.
    """
    if not caller.tenant or caller.decision or caller.caching == "off":
        return False
    asked = request.fields.get("enable_caching")
    if asked is not None:
        return bool(asked)
    is_wanted = caller.caching == "on" or model in models
    return is_wanted and request.fields.get("temperature") == 0


def key_of(
    caller: Caller, request: OpenAIRequest, model: str, form: Form, generation: int
) -> bytes:
    """Returns what stands for all requests with the same answer, as 20 bytes of BLAKE2b.

    The tenant is part of it although it changes no answer: a shared one would tell one tenant, by
    the time that it takes, what another has asked. Fields may stand in any order, and null is the
    same as nothing.

    Args:
        caller: Who asks.
        request: What is asked.
        model: The model that answers.
        form: How its surface wants the answer.
        generation: Counts the starts of the engine, which may come back with other weights.
    """
    fields: dict[str, Any] = {
        name: value
        for name, value in request.fields.items()
        if value is not None and name not in _WITHOUT_EFFECT
    }
    shown = (request.wants_usage, request.wants_progress)
    if options := request.fields.get("stream_options"):
        # Engines have options of their own there, which change the pieces.
        more = {name: said for name, said in options.items() if name != "include_usage"}
        if request.is_stream and more:
            fields["stream_options"] = more
    said = [caller.tenant, model, request.kind, form, *shown, generation, fields]
    text = written(said, orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest()
