"""Lets schemathesis call models that there are: most requests would else end at the front door."""

import json
import os
import zlib
from typing import Any

import schemathesis

_MODELS = json.loads(os.environ["OPENAPI_MODELS"])  # what answers chats, and what makes vectors
_VECTORS = ("/v1/embeddings", "/rerank", "/api/embed")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Names a model that there is in four of five bodies that name one."""
    body = case.body
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        return
    if zlib.crc32(body["model"].encode("utf-8", "surrogatepass")) % 5:
        makes_vectors = any(path in case.path for path in _VECTORS)
        body["model"] = _MODELS["vectors" if makes_vectors else "chat"]
