"""What the parts of the proxy know together of their engine."""

import asyncio

from services.inference.answers import Answers
from services.inference.engines.dialect import Description, EngineModel


class EngineState:
    """Whether the engine is up, what it serves, and how much the proxy has running there.

    Attributes:
        is_up: Whether it took the latest request or answered the latest probe.
        models: What it serves, by name; empty until it has been asked.
        version: Its version; empty when unknown.
        slots: Requests that the engine runs at a time, where the operator says it; None where only
            the engine does.
        in_flight: Requests of the proxy's that it works on now.
        waiting: Requests that wait in the proxy for the engine to have room.
        engine_generation: Counts the engine's starts as the proxy sees them; whoever sees one adds
            1, for the prefix cache is then empty.
        answers: What the proxy's own answers say of the engine.
        changed: Set when `is_up` changes; who waits for it clears it.
    """

    def __init__(self, slots: int | None = None) -> None:
        self.is_up = False
        self.models: dict[str, EngineModel] = {}
        self.version = ""
        self.slots = slots
        self.in_flight = 0
        self.waiting = 0
        self.engine_generation = 0
        self.answers = Answers()
        self.changed = asyncio.Event()

    def describe(self, description: Description) -> bool:
        """Takes in what the engine says of itself. Returns whether that is news."""
        models = {model.name: model for model in description.models}
        is_news = models != self.models or description.version != self.version
        self.models = models
        self.version = description.version
        return is_news

    def set_up(self, is_up: bool) -> None:
        """Notes whether the engine answers."""
        if is_up != self.is_up:
            self.is_up = is_up
            self.changed.set()
