"""The dialects of the engines: one file each, behind one small interface."""

from collections.abc import Callable, Mapping

from services.inference.engines.dialect import Engine
from services.inference.engines.llamacpp import LlamaCpp
from services.inference.engines.openai import OpenAICompatible

ENGINES: Mapping[str, Callable[[], Engine]] = {
    "llamacpp": LlamaCpp,
    "openai": OpenAICompatible,
}
"""Every dialect by the name that `INFERMESH_ENGINE` takes."""
