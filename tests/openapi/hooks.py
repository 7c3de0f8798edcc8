"""Lets schemathesis call what there is: most requests would else end at the front door."""

import json
import os
import zlib
from typing import Any

import schemathesis

_MODELS = json.loads(os.environ["OPENAPI_MODELS"])  # what answers chats, and what makes vectors
_IDS = json.loads(os.environ["OPENAPI_IDS"])  # by parameter
_VECTORS = ("/v1/embeddings", "/rerank", "/api/embed")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Names a model, a response, a batch or a file that there is, in most calls that name one."""
    body = case.body
    if isinstance(body, dict):
        if _is_replaced(body.get("model")):
            makes_vectors = any(path in case.path for path in _VECTORS)
            body["model"] = _MODELS["vectors" if makes_vectors else "chat"]
        if _is_replaced(body.get("input_file_id")):
            body["input_file_id"] = _IDS["file_id"][0]
    for name, value in case.path_parameters.items():
        ids = _IDS.get(name)
        if ids is None:
            continue
        if case.method != "DELETE":
            case.path_parameters[name] = ids[0] if _is_replaced(value) else value
        elif value == ids[0] or _is_replaced(value):
            # The first stays for those that only read.
            case.path_parameters[name] = ids.pop() if ids[1:] else "gone"


def _is_replaced(value: object) -> bool:
    return isinstance(value, str) and bool(zlib.crc32(value.encode("utf-8", "surrogatepass")) % 5)
