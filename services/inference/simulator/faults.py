"""What can be switched to go wrong, so that others can show how they cope."""

from dataclasses import dataclass
from typing import Any


class Share:
    """Says yes to a share of questions, evenly spread and the same in every run."""

    __slots__ = ("_sum",)

    def __init__(self) -> None:
        self._sum = 0.0

    def next(self, share: float) -> bool:
        """Answers the next question."""
        self._sum += share
        if self._sum < 1.0 - 1e-9:
            return False
        self._sum -= 1.0
        return True


@dataclass(frozen=True, slots=True)
class Faults:
    """The switches of one engine; as it is made, nothing goes wrong.

    Attributes:
        slow: Everything takes this many times as long, 0.001 to 10,000; below 1 is faster.
        error_rate: The share of requests that are answered with 500.
        drop_rate: The share of requests whose connection is closed without an answer.
        hang: Requests are taken and never answered; health and metrics still are.
        stall_after: Streams fall silent after so many tokens, with the connection open.
        drop_after: Connections are closed after so many tokens of a stream.
        nan_metrics: The gauges are all NaN.
    """

    slow: float = 1.0
    error_rate: float = 0.0
    drop_rate: float = 0.0
    hang: bool = False
    stall_after: int | None = None
    drop_after: int | None = None
    nan_metrics: bool = False


_NUMBERS = {"slow": (0.001, 10_000.0), "error_rate": (0.0, 1.0), "drop_rate": (0.0, 1.0)}
_SWITCHES = ("hang", "nan_metrics")
_LIMITS = ("stall_after", "drop_after")


def faults_of(fields: object) -> Faults:
    """Reads the switches; those that are not named are off.

    Raises:
        ValueError: A switch is unknown or its value is out of range.
    """
    if not isinstance(fields, dict):
        raise ValueError("the body is not a JSON object")
    values: dict[str, Any] = {}
    for name, value in fields.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _NUMBERS:
            low, high = _NUMBERS[name]
            if not is_number or not low <= value <= high:
                raise ValueError(f"{name} must be a number from {low:g} to {high:g}")
        elif name in _SWITCHES:
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false")
        elif name in _LIMITS:
            if value is not None and not (is_number and isinstance(value, int) and value >= 0):
                raise ValueError(f"{name} must be null or a number of tokens")
        else:
            raise ValueError(f"there is no fault {name}")
        values[name] = value
    return Faults(**values)
