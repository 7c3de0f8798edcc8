"""Makes OpenAI's fields of Ollama's `options`, for the engine that answers.

Four kinds: those that every engine has; those that some engines have, under names of their own;
those that tune the machine, which is not the caller's here; all others are refused.
"""

from collections.abc import Mapping
from typing import Any

from services.inference import errors

# What every engine has.
_COMMON: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
_SAME = {name: name for name in ("top_k", "min_p", "typical_p", "repeat_penalty", "repeat_last_n")}
_VLLM = {"top_k": "top_k", "min_p": "min_p", "repeat_penalty": "repetition_penalty"}
# What only some have, by dialect. An endpoint of which nothing is known refuses by itself.
_OF_ENGINES: Mapping[str, Mapping[str, str]] = {
    "llamacpp": _SAME | {name: name for name in ("mirostat", "mirostat_tau", "mirostat_eta")},
    "ollama": _SAME,
    "vllm": _VLLM,
    "sglang": _VLLM,
    "sim": _VLLM,
    "openai": {"top_k": "top_k", "min_p": "min_p"},
}
# Values that ask for nothing.
_NEUTRAL: Mapping[str, object] = {
    "repeat_penalty": 1,
    "typical_p": 1,
    "tfs_z": 1,
    "top_k": 0,
    "min_p": 0,
    "mirostat": 0,
}
# Mean something only where another option does.
_COMPANIONS: Mapping[str, str] = {
    "repeat_last_n": "repeat_penalty",
    "mirostat_tau": "mirostat",
    "mirostat_eta": "mirostat",
    "penalize_newline": "repeat_penalty",
}
# How Ollama is to use its machine, and what it keeps of prompts that it cuts: the mesh cuts none.
_MACHINE = frozenset(
    {
        *("numa", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all"),
        *("vocab_only", "use_mmap", "use_mlock", "embedding_only", "num_thread", "num_keep"),
    }
)
_MAX_TOKENS = 2**31 - 1
_MAX_STOPS = 64


def to_openai(options: object, engine: str, context_length: int) -> dict[str, Any]:
    """Returns the fields.

    Args:
        options: The request's `options`; None where it has none.
        engine: The dialect of the engine that answers.
        context_length: The tokens that a request to the model may use; 0 is unknown.

    Raises:
        MeshError: `INVALID_ARGUMENT` or `UNSUPPORTED` with the option at fault.
    """
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise errors.invalid("options", "must be an object")
    fields: dict[str, Any] = {}
    special = _OF_ENGINES.get(engine, {})
    for name, value in options.items():
        if value is None or name in _MACHINE:
            continue
        if name == "stop":
            _add_stop(fields, value)
        elif name == "num_predict":
            _add_length(fields, value)
        elif name == "num_ctx":
            _check_context(value, context_length)
        elif (ours := _COMMON.get(name) or special.get(name)) is not None:
            fields[ours] = _number(name, value)
        elif not _asks_nothing(name, value, options):
            raise errors.unsupported(
                f"options.{name[:40]}", "the model's engine has no such thing."
            )
    return fields


def _asks_nothing(name: str, value: object, options: dict[str, Any]) -> bool:
    if name in _NEUTRAL:
        return value == _NEUTRAL[name]
    other = _COMPANIONS.get(name)
    return other is not None and options.get(other) in (None, _NEUTRAL[other])


def _number(name: str, value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise errors.invalid(f"options.{name}", "must be a number")
    return value


def _add_stop(fields: dict[str, Any], value: object) -> None:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS:
        raise errors.invalid("options.stop", f"must be a list of at most {_MAX_STOPS} texts")
    if not all(isinstance(each, str) for each in stops):
        raise errors.invalid("options.stop", "must be a list of texts")
    if kept := [each for each in stops if each]:
        fields["stop"] = kept


def _add_length(fields: dict[str, Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not -2 <= value <= _MAX_TOKENS:
        raise errors.invalid("options.num_predict", f"must be a number from -2 to {_MAX_TOKENS}")
    # -1 is no bound, -2 as much as the context holds: no engine goes beyond that.
    if value > 0:
        fields["max_tokens"] = value
    elif value == 0:
        raise errors.unsupported("options.num_predict", "an answer has at least one token.")


def _check_context(value: object, context_length: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise errors.invalid("options.num_ctx", "must be a number of tokens")
    # A shorter one would only cut the prompt.
    if context_length and value > context_length:
        raise errors.unsupported(
            "options.num_ctx", f"the model's context has {context_length} tokens here."
        )
