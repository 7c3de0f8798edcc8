"""Tells one life of an engine from the next: after a start its prefix cache is empty."""

from services.inference.engines.dialect import Load

# The time of a start is a float that went through text; no engine starts twice in a second.
_SAME_START = 1.0


class EngineInstance:
    """Remembers what tells an engine's lives apart."""

    def __init__(self) -> None:
        self._instance: float | None = None
        self._work: float | None = None
        self._has_been_away = False

    def note_away(self) -> None:
        """Notes that the engine took no connections, as while it starts again."""
        self._has_been_away = True

    def is_new(self, load: Load) -> bool:
        """Takes in what an engine that is up says of itself; returns whether it has started again.

        Its own number decides where it has one. A count that fell tells a start too. Where it says
        neither, one that was away counts as new: an empty cache that is expected to be full costs
        less than a full one that is not.
        """
        before, self._instance = self._instance, load.instance
        work_before, self._work = self._work, load.work
        was_away, self._has_been_away = self._has_been_away, False
        if before is not None and load.instance is not None:
            return abs(load.instance - before) >= _SAME_START
        if work_before is not None and load.work is not None:
            return load.work < work_before
        return was_away
