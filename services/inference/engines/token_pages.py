"""The pages on which engines cut texts into tokens and make texts of them."""

from collections.abc import Mapping
from typing import Any

from services.inference import errors
from services.inference.engines.asks import TokenizeAsk, Tokenized
from services.inference.engines.dialect import count_of
from services.inference.engines.standard import asked
from services.inference.http_client import EngineClient

# What of a chat makes its prompt, for vLLM.
_CHAT_FIELDS = (
    *("messages", "tools", "chat_template", "chat_template_kwargs"),
    *("add_generation_prompt", "continue_final_message"),
)


async def tokenize_vllm(client: EngineClient, ask: TokenizeAsk) -> Tokenized | None:
    """Asks vLLM's `/tokenize`, which takes texts and chats."""
    fields: dict[str, Any] = {"model": ask.model}
    if "prompt" in ask.fields:
        fields["prompt"] = ask.fields["prompt"]
    else:
        fields |= {name: ask.fields[name] for name in _CHAT_FIELDS if name in ask.fields}
    if ask.adds_special is not None:
        fields["add_special_tokens"] = ask.adds_special
    if ask.wants_texts:
        fields["return_token_strs"] = True
    said = await asked(client, "/tokenize", fields)
    if said is None:
        return None
    ids = ids_of(said.get("tokens"))
    return Tokenized(ids, _texts(said.get("token_strs"), ids) if ask.wants_texts else None)


async def tokenize_llamacpp(client: EngineClient, ask: TokenizeAsk) -> Tokenized | None:
    """Asks llama.cpp's `/tokenize`; of a chat `/apply-template` writes the text first."""
    is_chat = "prompt" not in ask.fields
    text = ask.fields.get("prompt")
    if is_chat:
        prompt = await asked(client, "/apply-template", ask.fields)
        if prompt is None:
            return None
        text = prompt.get("prompt")
    fields = {
        "content": text,
        "add_special": ask.adds_special is not False,
        # What a template writes is special; what a caller writes is text.
        "parse_special": is_chat,
    }
    if ask.wants_texts:
        fields["with_pieces"] = True
    said = await asked(client, "/tokenize", fields)
    if said is None:
        return None
    tokens = said.get("tokens")
    if not ask.wants_texts:
        return Tokenized(ids_of(tokens))
    if not isinstance(tokens, list) or not all(isinstance(each, Mapping) for each in tokens):
        raise unreadable("/tokenize")
    ids = ids_of([each.get("id") for each in tokens])
    return Tokenized(ids, [_piece(each.get("piece")) for each in tokens])


async def text_of(
    client: EngineClient, path: str, fields: Mapping[str, Any], name: str
) -> str | None:
    """Returns the text that an engine makes of tokens; None where it has no such page.

    Args:
        client: Connections to the engine.
        path: The page.
        fields: What to send.
        name: The field that holds the text.

    Raises:
        MeshError: The engine refuses, or answers with something else.
        EngineConnectionError: It does not answer.
        EngineTimeoutError: It does not answer in time.
    """
    said = await asked(client, path, fields)
    if said is None:
        return None
    text = said.get(name)
    if not isinstance(text, str):
        raise unreadable(path)
    return text


def ids_of(values: object) -> list[int]:
    """Returns tokens' ids. Raises `MeshError` where there are none."""
    if not isinstance(values, list) or any(count_of(value) is None for value in values):
        raise unreadable("/tokenize")
    return [int(value) for value in values]


def unreadable(path: str) -> Exception:
    """Returns the error for a page that says something else than it is known to."""
    return errors.failed(f"The engine's {path} cannot be read.")


def _texts(values: object, ids: list[int]) -> list[str]:
    is_text = isinstance(values, list) and all(isinstance(value, str) for value in values)
    if not is_text or not isinstance(values, list) or len(values) != len(ids):
        raise unreadable("/tokenize")
    return values


def _piece(piece: object) -> str:
    """Returns a token's text, which llama.cpp gives as bytes where it is no whole character."""
    if isinstance(piece, str):
        return piece
    if isinstance(piece, list) and all(type(each) is int and 0 <= each < 256 for each in piece):
        return bytes(piece).decode(errors="replace")
    raise unreadable("/tokenize")
