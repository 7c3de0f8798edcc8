"""The engine simulator: vLLM's dialect under a name of its own."""

from typing import Any

from services.inference.engines.vllm import Vllm


class Simulator(Vllm):
    """The dialect of `services.inference.simulator`."""

    name = "sim"

    def thinking(self, model: str, budget: int | None) -> dict[str, Any] | None:
        """Has none to turn on."""
        return {} if budget == 0 else None
