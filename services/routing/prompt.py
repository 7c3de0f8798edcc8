"""What routing reads of a prompt: a bounded cut of it, as chained block hashes.

However long a prompt is, a cut takes 6.3 KB of it at most: its first 4 KiB as they are, then 64
bytes out of every 1 KiB up to 16 KiB, out of every 4 KiB up to 64 KiB, and out of every 16 KiB up
to 256 KiB. So prompts that share a long preamble and part ways late are still told apart, at a cost
that does not grow. Envoy makes the same cut in Lua (`envoy/front.lua`); `cut` is its twin for
gateways that send bodies.

    bytes  0         4 KiB        16 KiB        64 KiB         256 KiB
           ├ 512 each ┼ 64 of 1024 ┼ 64 of 4096 ─┼ 64 of 16384 ─┤
    blocks      8           12           12            12

Each hash is seeded with the one before it, so a block's hash stands for everything up to its end,
as it does in the engines' own prefix caches. The chain's seed is the model: adapters do not share.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import xxhash

HEAD_BYTES = 4096
SAMPLE_BYTES = 64
CUT_BYTES = HEAD_BYTES + 36 * SAMPLE_BYTES
"""The longest cut."""

_SEARCHED_BYTES = (4096, 32768)
"""How far into a body its prompt is looked for, first and last."""

_SAMPLES = tuple(at * 1024 for at in (*range(5, 17), *range(20, 68, 4), *range(80, 272, 16)))
_HEAD_ENDS = tuple(range(0, HEAD_BYTES + 1, 512))
_HEAD_BLOCKS = tuple(pairwise(_HEAD_ENDS))
_SAMPLE_ENDS = tuple(at + SAMPLE_BYTES for at in _SAMPLES)

_BLANKS = b" \t\r\n"
_KEYS = (b'"messages"', b'"prompt"')


@dataclass(slots=True, frozen=True)
class Prompt:
    """A prompt as the prefix index knows it.

    Attributes:
        blocks: The chained hashes of its blocks, 64 bits each.
        ends: Where each of them ends in the prompt, in bytes.
        size: The prompt's whole length in bytes.
    """

    blocks: Sequence[int]
    ends: Sequence[int]
    size: int

    def share(self, depth: int) -> float:
        """Returns which share of the prompt its first `depth` blocks are, 0 to 1."""
        return min(1.0, self.ends[depth - 1] / self.size) if depth else 0.0


def cut(body: bytes) -> tuple[bytes, int] | None:
    """Returns the cut of an OpenAI body and the length of its prompt; None where it has none.

    The prompt is what follows the key `messages` or `prompt`, up to the body's end.
    """
    start = _start(body)
    if start is None:
        return None
    pieces = [body[start : start + HEAD_BYTES]]
    size = len(body) - start
    for at in _SAMPLES[: bisect_right(_SAMPLES, size - SAMPLE_BYTES)]:
        pieces.append(body[start + at : start + at + SAMPLE_BYTES])
    return b"".join(pieces), size


def _start(body: bytes) -> int | None:
    for searched in _SEARCHED_BYTES:
        head = body[:searched]
        for key in _KEYS:
            start = head.find(key)
            if start >= 0:
                return start
    return None


def read(model: str, taken: bytes, size: int, *, reads_end: bool = False) -> Prompt:
    """Returns the prompt that a cut stands for.

    Blanks do not count in the first 4 KiB, so that JSON written by different clients looks alike.

    Args:
        model: The model that answers.
        taken: What `cut` takes, or Envoy.
        size: The length of the prompt in bytes.
        reads_end: Whether what is left after the last whole block of a prompt of up to 4 KiB is a
            block too, so that the blocks stand for all of it.
    """
    taken = taken[:CUT_BYTES]
    head = taken[:HEAD_BYTES].translate(None, _BLANKS)
    length = len(head)
    chained = _seed(model)
    digest = xxhash.xxh3_64_intdigest
    blocks: list[int] = []
    end = 0
    for start, end in _HEAD_BLOCKS:
        if end > length:
            end = start
            break
        chained = digest(head[start:end], chained)
        blocks.append(chained)
    stretch = min(size, HEAD_BYTES) / (length or 1)
    ends = [int(each * stretch) for each in _HEAD_ENDS[1 : len(blocks) + 1]]
    if len(taken) > HEAD_BYTES:
        if end < length:  # What the blanks left over is a block of its own.
            chained = digest(head[end:], chained)
            blocks.append(chained)
            ends.append(HEAD_BYTES)
        count = (len(taken) - HEAD_BYTES) // SAMPLE_BYTES
        for start in range(HEAD_BYTES, HEAD_BYTES + count * SAMPLE_BYTES, SAMPLE_BYTES):
            chained = digest(taken[start : start + SAMPLE_BYTES], chained)
            blocks.append(chained)
        ends.extend(_SAMPLE_ENDS[:count])
    elif reads_end and end < length:
        blocks.append(digest(head[end:], chained))
        ends.append(size)
    return Prompt(blocks, ends, max(size, 1))


@lru_cache(maxsize=1024)
def _seed(model: str) -> int:
    return int(xxhash.xxh3_64_intdigest(model.encode()))
