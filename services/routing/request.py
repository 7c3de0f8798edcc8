"""A call as routing sees it, whichever gateway sent it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.routing import prompt as prompts
from services.routing.prompt import Prompt


@dataclass(slots=True)
class Request:
    """What a decision is made by.

    Attributes:
        models: The models that it may be answered with, best first; at least one.
        framework: The engine that the caller prefers; empty for any.
        needs: What the engine must be able to do, bits `1 << Capability`.
        session: A number that stands for the caller's session; None where it has none.
        taken: The cut of its prompt (`prompt.cut`); None where it is not known or not to be
            cached.
        size: The length of the prompt in bytes.
        reads_ends: Whether what is left after the prompt's last whole block is a block too.
        is_streamed: Whether the caller wants a stream.
        debug: Whether the caller wants to see the decision.
        subset: The addresses that may be chosen; None for all.
    """

    models: Sequence[str]
    framework: str = ""
    needs: int = 0
    session: int | None = None
    taken: bytes | None = None
    size: int = 0
    reads_ends: bool = False
    is_streamed: bool = False
    debug: bool = False
    subset: frozenset[str] | None = None
    _read: dict[str, Prompt] = field(default_factory=dict)

    def prompt(self, model: str) -> Prompt | None:
        """Returns the prompt as it is hashed for a model; None where it is not known."""
        if self.taken is None:
            return None
        read = self._read.get(model)
        if read is None:
            read = self._read[model] = prompts.read(
                model, self.taken, self.size, reads_end=self.reads_ends
            )
        return read
