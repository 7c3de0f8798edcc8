"""The dialects of the engines: one file each, behind one small interface."""

from collections.abc import Callable, Mapping

from services.inference.engines.dialect import Engine, EngineOptions
from services.inference.engines.llamacpp import LlamaCpp
from services.inference.engines.ollama import Ollama
from services.inference.engines.openai import OpenAICompatible
from services.inference.engines.sglang import SgLang
from services.inference.engines.sim import Simulator
from services.inference.engines.tei import Tei
from services.inference.engines.tgi import Tgi
from services.inference.engines.vllm import Vllm

ENGINES: Mapping[str, Callable[[EngineOptions], Engine]] = {
    "llamacpp": LlamaCpp,
    "ollama": Ollama,
    "openai": OpenAICompatible,
    "sglang": SgLang,
    "sim": Simulator,
    "tei": Tei,
    "tgi": Tgi,
    "vllm": Vllm,
}
"""Every dialect by the name that `INFERMESH_ENGINE` takes."""
