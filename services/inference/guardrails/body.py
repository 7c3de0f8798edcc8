"""The texts of an OpenAI body: every one that is not known to stay out of prompts.

Engines read more fields than OpenAI has (documents, templates, suffixes), and some take names in
any case. So nothing is looked for: all of the body is looked at.
"""

import json
from typing import Any

import orjson

from infermesh.errors.v1 import errors_pb2
from services.inference import errors
from services.inference.guardrails.words import MEDIA, NOT_PROMPT, TOKENS, WORDED, WORDS
from services.kit.errors import MeshError
from services.kit.guardrails.prompt import Prompt


class _Arguments:
    """A function's arguments: JSON that is a text of the body, and that engines parse.

    Attributes:
        holder: The object that has them as `arguments`.
        value: What they say.
        is_changed: Whether they have to be written anew.
    """

    __slots__ = ("holder", "is_changed", "value")

    def __init__(self, holder: dict[str, Any], value: dict[str, Any], is_changed: bool) -> None:
        self.holder = holder
        self.value = value
        self.is_changed = is_changed


class BodyTexts:
    """The texts of a request, and the way to put others in their place.

    Args:
        fields: The request, parsed.

    Attributes:
        prompt: The texts.

    Raises:
        MeshError: `UNSUPPORTED`: a prompt is not text, and cannot be checked.
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self.prompt = Prompt()
        self._fields = fields
        self._places: list[tuple[Any, Any, _Arguments | None]] = []
        self._arguments: list[_Arguments] = []
        for name, value in fields.items():
            lower = name.lower()
            if lower in TOKENS and value is not None:
                raise _not_text(name)
            if lower == "prompt" and isinstance(value, list | dict):
                _check_texts(name, value)
            if name == "messages" and isinstance(value, list):
                for index, message in enumerate(value):
                    self._add_message(value, index, message)
            elif name not in NOT_PROMPT:
                self._walk(fields, name, name)

    def written(self) -> bytes:
        """Puts the prompt's texts into the request, and returns it as JSON without repeated names.

        Raises:
            MeshError: `INVALID_JSON`: the request is nested too deeply to be written.
        """
        for (holder, key, owner), text in zip(self._places, self.prompt.texts, strict=True):
            if str(holder[key]) != text:
                holder[key] = text
                if owner is not None:
                    owner.is_changed = True
        for arguments in self._arguments:
            if arguments.is_changed:
                # The form in which models write them.
                arguments.holder["arguments"] = json.dumps(arguments.value, ensure_ascii=False)
        try:
            return orjson.dumps(self._fields)
        except orjson.JSONEncodeError as error:
            raise errors.invalid_json(f"The body is nested too deeply: {error}") from None

    def _add_message(self, messages: list[Any], index: int, message: Any) -> None:
        param = f"messages[{index}]"
        if not isinstance(message, dict):
            self._walk(messages, index, param)
            return
        for name, value in message.items():
            if name == "content" and isinstance(value, list):
                self._add_parts(value, param + ".content")
                continue
            if name not in WORDS:
                self.prompt.names.append(name)
            self._walk(message, name, f"{param}.{name}" if name in WORDS else param)

    def _add_parts(self, parts: list[Any], param: str) -> None:
        texts = []
        for index, part in enumerate(parts):
            if not isinstance(part, dict):
                self._walk(parts, index, param)
                continue
            for name, value in part.items():
                if name in MEDIA:
                    continue
                if name == "text" and isinstance(value, str):
                    texts.append(value)
                if name not in WORDS:
                    self.prompt.names.append(name)
                self._walk(part, name, param)
        if len(texts) > 1:
            # Engines make one text of them, some with lines between.
            self.prompt.readings += ("".join(texts), "\n".join(texts))

    def _walk(self, holder: Any, key: Any, param: str, owner: _Arguments | None = None) -> None:
        # Not by recursion: bodies may be nested deeper than Python's stack.
        waiting = [(holder, key)]
        while waiting:
            holder, key = waiting.pop()
            value = holder[key]
            if isinstance(value, str):
                if key in WORDED and value in WORDS:
                    continue
                if (
                    key == "arguments"
                    and owner is None
                    and self._add_arguments(holder, value, param)
                ):
                    continue
                self._add(holder, key, value, param, owner)
            elif isinstance(value, dict):
                self.prompt.names.extend(name for name in value if name not in WORDS)
                waiting.extend((value, name) for name in reversed(value))
            elif isinstance(value, list):
                waiting.extend((value, index) for index in range(len(value) - 1, -1, -1))
            elif owner is not None and type(value) is int:
                self._add(holder, key, str(value), param, owner)

    def _add(self, holder: Any, key: Any, text: str, param: str, owner: _Arguments | None) -> None:
        self._places.append((holder, key, owner))
        self.prompt.add(text, param)

    def _add_arguments(self, holder: dict[str, Any], text: str, param: str) -> bool:
        """Adds what arguments say; returns whether they are JSON that can be taken apart."""
        has_twice = False

        def read(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            nonlocal has_twice
            fields = dict(pairs)
            has_twice = has_twice or len(fields) < len(pairs)
            return fields

        try:
            # Lone halves of pairs, which JSON can say and UTF-8 cannot, are no text.
            value = json.loads(text, object_pairs_hook=read)
            json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            return False
        if not isinstance(value, dict):
            return False
        arguments = _Arguments(holder, value, has_twice)
        self._arguments.append(arguments)
        # As it stands too: an engine may put it into the prompt without reading it.
        self.prompt.readings.append(text)
        self.prompt.names.extend(name for name in value if name not in WORDS)
        for name in value:
            self._walk(value, name, param, arguments)
        return True


def _check_texts(name: str, value: list[Any] | dict[str, Any]) -> None:
    if isinstance(value, dict) or not all(isinstance(each, str) for each in value):
        raise _not_text(name)


def _not_text(name: str) -> MeshError:
    return MeshError(
        errors_pb2.ERROR_REASON_UNSUPPORTED,
        f"{name[:100]}: must be text for an API key with guardrails",
        param=name,
    )
