"""The bodies of the calls: made up to a length, or from a file."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from services.cli.bench.plan import Plan

# Short English words: with the space before it, each is one token in about every vocabulary. All
# have the same length, so that a text of some of them is a slice.
_WORDS = (  # noqa: SIM905
    "the and for are but not you all any can had her was one our out day get has him his how man "
    "new now old see two way who boy did its let put say she too use air ask big box car cut end "
    "far few got hot job key law lay led leg low map men met mix net oil own pay per ran red run "
    "sea set sit six sky son sun ten top try war win yes yet add age ago arm art bad bed bit eye"
).split()
_WORD = 4
_FIRST_WORDS, _SPARE_WORDS = 16, 4096
_MAX_LINES = 100_000

Bodies = Callable[[int], bytes]
"""Gives the body of the call with a number."""


def bodies(plan: Plan) -> Bodies:
    """Returns what the calls of a plan ask.

    Raises:
        ValueError: The file of prompts, or the further fields, are not what they must be.
        OSError: The file cannot be read.
    """
    common: dict[str, Any] = {"model": plan.model, "max_tokens": plan.output_tokens}
    if plan.is_stream:
        common |= {"stream": True, "stream_options": {"include_usage": True}}
    if plan.body:
        common |= _further(plan.body)
    if plan.prompts:
        read = [common | line for line in _lines(Path(plan.prompts))]
        return lambda number: orjson.dumps(read[number % len(read)])
    shared_words = round(plan.prompt_tokens * plan.shared)
    own_words = plan.prompt_tokens - shared_words
    chance = random.Random(plan.seed)  # noqa: S311
    shared = _text(chance, shared_words)
    # Words by chance cost too much to be made for each call of a long prompt: a few at its
    # beginning, behind which no cache of prefixes finds anything, and a piece of a long text.
    first_words = min(own_words, _FIRST_WORDS)
    rest = _text(chance, own_words + _SPARE_WORDS)

    def made(number: int) -> bytes:
        own = random.Random(f"{plan.seed} {number}")  # noqa: S311
        at = own.randrange(_SPARE_WORDS) * _WORD
        first, last = _text(own, first_words), rest[at : at + (own_words - first_words) * _WORD]
        messages = [{"role": "user", "content": f"{shared}{first}{last}".strip()}]
        return orjson.dumps({**common, "messages": messages})

    return made


def _further(text: str) -> dict[str, Any]:
    try:
        fields = orjson.loads(text)
    except orjson.JSONDecodeError:
        fields = None
    if not isinstance(fields, dict):
        raise ValueError("The further fields of a call are a JSON object.")
    return fields


def _text(chance: random.Random, words: int) -> str:
    return "".join(f"{word} " for word in chance.choices(_WORDS, k=words))


def _lines(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if len(found) == _MAX_LINES:
                raise ValueError(f"{path} has more than {_MAX_LINES:,} prompts.")
            found.append(_line(line, f"{path}, line {number}"))
    if not found:
        raise ValueError(f"{path} has no prompts.")
    return found


def _line(line: bytes, where: str) -> dict[str, Any]:
    """Returns the fields that a line of the file says: `prompt`, or `messages`, and any others."""
    try:
        read = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise ValueError(f"{where}: this is no JSON.") from None
    if isinstance(read, str):
        read = {"prompt": read}
    if not isinstance(read, dict):
        raise ValueError(f"{where}: a prompt is a text or an object.")
    prompt = read.pop("prompt", None)
    if isinstance(prompt, str) and prompt:
        read["messages"] = [{"role": "user", "content": prompt}]
    if not isinstance(read.get("messages"), list):
        raise ValueError(f"{where}: there is neither `prompt` nor `messages`.")
    return read
