"""What a text becomes."""

import struct
from typing import NamedTuple


class Vector(NamedTuple):
    """A text's vector.

    Args:
        data: The components as little-endian float32, which is also OpenAI's base64 form.
        tokens: Tokens of the text.
        cached: Whether it came from the cache.
    """

    data: bytes
    tokens: int
    cached: bool = False

    def values(self) -> tuple[float, ...]:
        """Returns the components."""
        return struct.unpack(f"<{len(self.data) // 4}f", self.data)
