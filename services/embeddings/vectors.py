"""What is embedded, and what it becomes."""

import math
import struct
from typing import NamedTuple

Input = str | tuple[int, ...]
"""A text, or the ids of its tokens in the model's vocabulary."""


class Vector(NamedTuple):
    """An input's vector.

    Args:
        data: The components as little-endian float32, which is also OpenAI's base64 form.
        tokens: Tokens of the input.
        cached: Whether it came from the cache.
    """

    data: bytes
    tokens: int
    cached: bool = False

    @property
    def size(self) -> int:
        """How many components it has."""
        return len(self.data) // 4

    def values(self) -> tuple[float, ...]:
        """Returns the components."""
        return struct.unpack(f"<{self.size}f", self.data)

    def cut(self, dimensions: int) -> "Vector":
        """Returns its first components, of length 1 again; one that is all zeros stays so.

        That is of use for models that were trained to bear it (Kusupati et al., "Matryoshka
        Representation Learning", 2022).

        Args:
            dimensions: How many, at most as many as there are.
        """
        if dimensions == self.size:
            return self
        kept = struct.unpack_from(f"<{dimensions}f", self.data)
        length = math.sqrt(math.fsum(each * each for each in kept))
        if length:
            kept = tuple(each / length for each in kept)
        return self._replace(data=struct.pack(f"<{dimensions}f", *kept))
