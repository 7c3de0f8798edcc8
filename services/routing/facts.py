"""What a gateway tells of a call, before policies, aliases and fallbacks are looked at."""

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.kit.globs import ModelGlobs
from services.routing import prompt as prompts
from services.routing.filters import capability

MAX_FALLBACKS = 8
_MAX_NAME_CHARS = 200
_MAX_SESSION_CHARS = 200


@dataclass(slots=True)
class Facts:
    """What is known of a call. What the caller got wrong reads as if it were not there.

    Attributes:
        model: What the caller named: a model or an alias.
        key_id: The caller's key; empty inside the mesh.
        user: OpenAI's field `user`; empty where there is none.
        session_id: The caller's session; empty where there is none.
        framework: The engine that the caller prefers; empty for any.
        fallbacks: The caller's own fallback models.
        level: The caller's `optimization_level`; empty where there is none.
        is_cached: Whether caches may be looked at and filled; `enable_caching`.
        reuses_answers: Whether it asks for an answer that a node may have given before.
        is_streamed: Whether it wants a stream.
        needs: What the engine must be able to do, bits `1 << Capability`.
        taken: The cut of its prompt; None where it is not known.
        size: The length of the prompt in bytes.
        debug: Whether the caller wants to see the decision.
        sees_all: Whether the caller may see what other nodes and other callers' prompts are like.
        is_rest: Whether the caller speaks REST; else it speaks gRPC.
        subset: The addresses that the gateway allows; None for all.
        globs: Which models the caller's key may use; None for all.
    """

    model: str = ""
    key_id: str = ""
    user: str = ""
    session_id: str = ""
    framework: str = ""
    fallbacks: Sequence[str] = ()
    level: str = ""
    is_cached: bool = True
    reuses_answers: bool = False
    is_streamed: bool = False
    needs: int = 0
    taken: bytes | None = None
    size: int = 0
    debug: bool = False
    sees_all: bool = False
    is_rest: bool = False
    subset: frozenset[str] | None = None
    globs: ModelGlobs | None = None

    def take_body(self, body: bytes) -> bool:
        """Reads an OpenAI body; returns False, and reads nothing, where it is no JSON object."""
        try:
            fields = orjson.loads(body)
        except orjson.JSONDecodeError:
            return False
        if not isinstance(fields, dict):
            return False
        model = fields.get("model")
        if not self.model and isinstance(model, str):
            self.model = model
        form = fields.get("response_format")
        fields["response_format"] = form.get("type") if isinstance(form, dict) else None
        self.take_fields(fields)
        cut = prompts.cut(body)
        if cut is not None:
            self.take_prompt(*cut)
        return True

    def take_fields(self, fields: Mapping[str, Any]) -> None:
        """Reads the fields of a body that matter here.

        Args:
            fields: `response_format` is the type in it; `tools` anything where there are some.
        """
        for key, value in fields.items():
            if key == "stream":
                self.is_streamed = value is True
            elif key == "user":
                self.user = _text(value, _MAX_SESSION_CHARS)
            elif key == "session_id":
                self.session_id = _text(value, _MAX_SESSION_CHARS)
            elif key == "preferred_framework":
                self.framework = _text(value, _MAX_NAME_CHARS)
            elif key == "fallback_models":
                self.fallbacks = _names(value)
            elif key == "optimization_level":
                self.level = _text(value, _MAX_NAME_CHARS)
            elif key == "enable_caching":
                self.is_cached = value is not False
                self.reuses_answers = value is True
            elif key == "tools":
                self.needs |= capability.TOOLS if value else 0
            elif key == "response_format" and value == "json_schema":
                self.needs |= capability.STRUCTURED_OUTPUT

    def take_prompt(self, taken: bytes, size: int) -> None:
        """Takes the cut of the prompt."""
        self.taken, self.size = taken, size
        self.needs |= capability.CHAT
        if b'"image_url"' in taken:
            self.needs |= capability.VISION

    def take_encoded_fallbacks(self, encoded: str) -> None:
        """Takes the list of fallback models as base64 of JSON; nothing where it is none."""
        try:
            self.fallbacks = _names(orjson.loads(binascii.a2b_base64(encoded)))
        except ValueError:
            return

    def take_encoded_prompt(self, encoded: str, size: float) -> None:
        """Takes the cut of the prompt in base64, as Envoy sends it; nothing where it is none."""
        try:
            taken = binascii.a2b_base64(encoded)
        except ValueError:
            return
        if taken and size >= 1:
            self.take_prompt(taken[: prompts.CUT_BYTES], int(size))


def _text(value: object, limit: int) -> str:
    return value if isinstance(value, str) and len(value) <= limit else ""


def _names(value: object) -> Sequence[str]:
    if not isinstance(value, list) or len(value) > MAX_FALLBACKS:
        return ()
    return [name for each in value if (name := _text(each, _MAX_NAME_CHARS))]
