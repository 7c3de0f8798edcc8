"""Makes a stream name the model that answers, where the engine calls it something else."""

import re

import orjson

# Quotes inside a JSON text are escaped, so this is the name of a field and nothing that was said.
_MODEL = re.compile(rb'"model"\s*:\s*("(?:[^"\\]|\\.)*")')


class Renaming:
    """Decides with the first events; the bytes of all later ones follow suit.

    Args:
        model: The model that answers.
    """

    def __init__(self, model: str) -> None:
        self._model = orjson.dumps(model)
        self._engines = b""
        self._ours = b""

    @property
    def is_needed(self) -> bool:
        """Whether the events so far have named another model."""
        return bool(self._engines)

    def apply(self, events: bytes) -> bytes:
        """Returns whole events with the right name."""
        if not self._engines:
            found = _MODEL.search(events)
            if found is None or found[1] == self._model:
                return events
            self._engines = found[0]
            self._ours = found[0][: -len(found[1])] + self._model
        return events.replace(self._engines, self._ours)
