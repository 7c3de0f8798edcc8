"""What a prompt says, as guardrails see it."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Prompt:
    """The texts of one request, apart from the form that they came in.

    Attributes:
        texts: What may be replaced, in order.
        params: The request field that holds each of `texts`, for errors. Example: `messages[0]`.
        names: Words that may not be replaced, such as the names of fields in a schema.
        readings: The same texts as an engine may put them together; searched, and nothing else.
        redactions: How many places were replaced.
    """

    texts: list[str] = field(default_factory=list)
    params: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    readings: list[str] = field(default_factory=list)
    redactions: int = 0

    def add(self, text: str, param: str) -> None:
        """Adds a text that may be replaced."""
        self.texts.append(text)
        self.params.append(param)

    @property
    def chars(self) -> int:
        """The characters of all texts and names together."""
        return sum(map(len, self.texts)) + sum(map(len, self.names))
