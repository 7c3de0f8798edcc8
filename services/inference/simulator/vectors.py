"""Embedding vectors that mean nothing, but always the same for the same text; and scores."""

import base64
import math
import random
import struct


def vector(text: str, dimensions: int) -> list[float]:
    """Returns a text's vector, of length 1."""
    source = random.Random(text)  # noqa: S311
    values = [source.uniform(-1.0, 1.0) for _ in range(dimensions)]
    size = math.sqrt(sum(value * value for value in values)) or 1.0
    return [value / size for value in values]


def packed(values: list[float]) -> str:
    """Returns a vector in OpenAI's base64 form: little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def score(query: str, document: str) -> float:
    """Returns how well a document answers a query: which share of the query's words it has."""
    words = set(query.lower().split())
    found = words & set(document.lower().split())
    return len(found) / len(words) if words else 0.0
