"""Whatever Ollama's callers send is read or refused, and never an accident."""

from typing import Any, Literal

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.embeddings import ollama as embeddings
from services.inference.engines import ENGINES
from services.inference.engines.dialect import EngineOptions
from services.inference.ollama import options, requests
from services.kit.errors import MeshError

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**33), 2**33)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "x", "user", "assistant", "tool", "low", "json", "0", "iVBORw0KGgo="])
)
NAMES = st.sampled_from(
    [
        *("role", "content", "images", "tool_calls", "function", "name", "arguments", "id"),
        *("tool_name", "tool_call_id", "thinking", "stop", "num_ctx", "num_predict", "top_k"),
        *("mirostat", "temperature", "repeat_penalty", "seed", "type", "x"),
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        *("messages", "tools", "format", "options", "keep_alive", "think", "logprobs", "stream"),
        *("top_logprobs", "prompt", "suffix", "images", "system", "template", "context", "raw"),
        *("input", "dimensions", "truncate", "session_id", "fallback_models", "priority", "x"),
    ]
)
TEXTS = st.sampled_from(["", "hi", "f", "a"])
CALLS = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": TEXTS | VALUES}, optional={"arguments": VALUES})},
    optional={"id": TEXTS | VALUES},
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
    optional={
        "content": TEXTS | VALUES,
        "images": st.lists(SCALARS, max_size=2) | VALUES,
        "thinking": VALUES,
        "tool_calls": st.lists(CALLS, max_size=3) | VALUES,
        "tool_name": TEXTS | VALUES,
        "tool_call_id": TEXTS | VALUES,
    },
)
BODIES = st.builds(
    lambda body, chat: body | chat,
    st.dictionaries(FIELDS, VALUES, max_size=4),
    st.fixed_dictionaries({}, optional={"messages": st.lists(MESSAGES, max_size=4)}),
)


@pytest.mark.parametrize("path", ["chat", "generate"])
@pytest.mark.parametrize("engine", sorted(ENGINES))
@settings(max_examples=50)
@given(body=BODIES)
def test_requests(path: Literal["chat", "generate"], engine: str, body: dict[str, Any]) -> None:
    try:
        asked = requests.parse(path, orjson.dumps({"model": "m", **body}))
        more = options.to_openai(asked.options, engine, 4096)
        if asked.only_loads:
            return
        request = requests.finish(asked, more)
        ENGINES[engine](EngineOptions()).plan(request)
    except MeshError as error:
        assert error.http_status == 400
        return
    # What passes is what was asked for.
    assert request.is_stream is (body.get("stream") is not False)
    assert orjson.loads(request.body) == request.fields


@pytest.mark.parametrize("field", ["input", "prompt"])
@settings(max_examples=200)
@given(body=BODIES)
def test_requests_for_vectors(field: str, body: dict[str, Any]) -> None:
    try:
        asked = embeddings.parse(orjson.dumps({"model": "m", **body}), field)
    except MeshError as error:
        assert error.http_status == 400
        return
    assert asked.inputs
    assert all(isinstance(text, str) and text for text in asked.inputs)
