"""The engine simulator: vLLM's dialect under a name of its own."""

from services.inference.engines.vllm import Vllm


class Simulator(Vllm):
    """The dialect of `services.inference.simulator`."""

    name = "sim"
