"""Embedding vectors that mean nothing, but always the same for the same text."""

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
