"""`POST /tokenize` and `POST /detokenize` in vLLM's form.

https://docs.vllm.ai/en/stable/serving/openai_compatible_server/
"""

from typing import Any

import orjson

from services.inference import errors, extensions
from services.inference.engines.asks import TokenizeAsk
from services.inference.engines.dialect import count_of
from services.inference.requests import check, parsed
from services.inference.tokenizing import Cut

_MAX_TOKENS = 1_000_000
_NOT_OF_CHATS = frozenset({"add_special_tokens", "return_token_strs", *extensions.NAMES})
_OF_TEXTS = frozenset({"model", "prompt", *_NOT_OF_CHATS})


def parse(body: bytes) -> TokenizeAsk:
    """Reads a request for tokens.

    Raises:
        MeshError: `INVALID_JSON`; `INVALID_ARGUMENT` with the field at fault; `UNSUPPORTED` for a
            field that would change nothing.
    """
    fields = parsed(body)
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise errors.invalid("model", "must be the name of a model")
    extensions.check(fields)
    adds_special = _flag(fields, "add_special_tokens")
    wants_texts = bool(_flag(fields, "return_token_strs"))
    if fields.get("messages") is not None:
        if fields.get("prompt") is not None:
            raise errors.invalid("prompt", "stands beside `messages`; one of both is enough")
        chat = {name: value for name, value in fields.items() if name not in _NOT_OF_CHATS}
        check("chat", body, chat)
        return TokenizeAsk(model, chat, adds_special, wants_texts)
    prompt = fields.get("prompt")
    if not isinstance(prompt, str):
        raise errors.invalid("prompt", "must be a text")
    if left := sorted(fields.keys() - _OF_TEXTS):
        raise errors.unsupported(left[0], "changes nothing of a text's tokens.")
    return TokenizeAsk(model, {"prompt": prompt}, adds_special, wants_texts)


def answer(cut: Cut) -> bytes:
    """Returns the body of an answer; what is unknown is null."""
    said: dict[str, Any] = {
        "count": len(cut.tokenized.ids),
        "max_model_len": cut.model.context_length or None,
        "tokens": cut.tokenized.ids,
        "token_strs": cut.tokenized.texts,
        "model": cut.model.name,
    }
    return orjson.dumps(said)


def parse_tokens(body: bytes) -> tuple[str, list[int]]:
    """Reads a request for a text; returns the model and the tokens. Raises like `parse`."""
    fields = parsed(body)
    model, tokens = fields.get("model"), fields.get("tokens")
    if not isinstance(model, str) or not model:
        raise errors.invalid("model", "must be the name of a model")
    extensions.check(fields)
    if not isinstance(tokens, list) or len(tokens) > _MAX_TOKENS:
        raise errors.invalid("tokens", f"must be a list of at most {_MAX_TOKENS} ids")
    for index, token in enumerate(tokens):
        if type(token) is not int or count_of(token) is None:
            raise errors.invalid(f"tokens[{index}]", "must be a token's id")
    if left := sorted(fields.keys() - extensions.NAMES - {"model", "tokens"}):
        raise errors.unsupported(left[0], "changes nothing of a text.")
    return model, tokens


def answer_text(model: str, text: str) -> bytes:
    """Returns the body of an answer with a text."""
    return orjson.dumps({"prompt": text, "model": model})


def _flag(fields: dict[str, Any], name: str) -> bool | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise errors.invalid(name, "must be true or false")
    return value
