"""What is asked of engines besides answers and vectors, and what they say to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RerankAsk:
    """Documents that are to be ranked.

    Attributes:
        model: The model's name at the engine.
        query: The query.
        documents: The documents, none empty.
        top_n: How many of the best are wanted; None is all.
        options: Fields that only the engine knows.
    """

    model: str
    query: str
    documents: list[str]
    top_n: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The places of documents with their scores, best first; the prompt's tokens, None unknown."""

    scores: list[tuple[int, float]]
    tokens: int | None


@dataclass(frozen=True, slots=True)
class TokenizeAsk:
    """What is to be cut into tokens.

    Attributes:
        model: The model's name at the engine.
        fields: `prompt`, a text, or else OpenAI's fields of a chat, `messages` among them.
        adds_special: Whether special tokens stand around it; None is the engine's own way, which
            for texts is yes.
        wants_texts: Whether the text of each token is wanted.
    """

    model: str
    fields: Mapping[str, Any]
    adds_special: bool | None = None
    wants_texts: bool = False


@dataclass(frozen=True, slots=True)
class Tokenized:
    """Tokens by their ids, with their texts where they were wanted."""

    ids: list[int]
    texts: list[str] | None = None
