"""The ids of tool calls: an engine's own, in Anthropic's clothes.

`toolu_` stands before the engine's id, so that the next turn brings the engine's own back and
nothing has to be kept. Anthropic's ids have letters, digits, `_` and `-`; what has others, or could
be taken for it, goes as base64 after `toolu_b64_`.
"""

import base64
import binascii
import re
import uuid

_PREFIX = "toolu_"
_CODED = "b64_"
_PLAIN = re.compile(r"[a-zA-Z0-9_-]+")


def to_anthropic(engine_id: object) -> str:
    """Returns the id for an engine's; a new one where the engine gives none."""
    if not isinstance(engine_id, str) or not engine_id:
        return f"{_PREFIX}{uuid.uuid4().hex}"
    if _PLAIN.fullmatch(engine_id) and not engine_id.startswith(_CODED):
        return _PREFIX + engine_id
    coded = base64.urlsafe_b64encode(engine_id.encode()).rstrip(b"=").decode()
    return f"{_PREFIX}{_CODED}{coded}"


def to_engine(call_id: str) -> str:
    """Returns the engine's id; one that was not made here stays as it is."""
    bare = call_id.removeprefix(_PREFIX)
    if bare == call_id or not bare:
        return call_id
    if not bare.startswith(_CODED):
        return bare
    coded = bare.removeprefix(_CODED)
    try:
        found = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        return found.decode() or call_id
    except (binascii.Error, ValueError):
        return call_id
