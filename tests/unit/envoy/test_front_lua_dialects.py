"""envoy/front.lua gives refusals the form of the dialect that the path belongs to."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lupa import luajit21

from infermesh.errors.v1 import errors_pb2
from services.kit import dialects
from services.kit.errors import FORMS, MeshError

SCRIPT = (Path(__file__).parents[3] / "envoy" / "front.lua").read_bytes()
# As Envoy's: what is said of the headers must be said before the body, which may be waited for.
HANDLE = b"""
function(headers, metadata, body, route)
  local is_over = false
  local header = {
    get = function(_, name)
      assert(not is_over, "out of scope")
      return headers[name]
    end,
    replace = function(_, name, value)
      assert(not is_over, "out of scope")
      headers[name] = value
    end,
    remove = function(_, name) headers[name] = nil end,
  }
  local dynamic = {
    get = function(_, space) return metadata[space] end,
    set = function(_, space, key, value)
      metadata[space] = metadata[space] or {}
      metadata[space][key] = value
    end,
  }
  local buffer = {
    length = function() return #body.text end,
    getBytes = function(_, from, count) return body.text:sub(from + 1, from + count) end,
    setBytes = function(_, text) body.text = text end,
  }
  return {
    headers = function() return header end,
    body = function() is_over = true; return buffer end,
    metadata = function() return {get = function(_, key) return route[key] end} end,
    streamInfo = function() return {dynamicMetadata = function() return dynamic end} end,
    base64Escape = function(_, text) return text end,
  }
end
"""


def told(
    path: str | None,
    status: int,
    body: str = "",
    *,
    trailer: str | None = None,
    route: str | None = None,
    kind: str = "application/json",
) -> tuple[str, dict[str, str]]:
    """Runs the script on a call and on its answer; returns the body and the headers.

    Args:
        path: The path; None for a call that the script never sees.
        status: The answer's status.
        body: The answer's body.
        trailer: The error of a service.
        route: The dialect of the route.
        kind: The call's content type.
    """
    lua = luajit21.LuaRuntime(encoding="latin-1")
    lua.execute(SCRIPT)
    make = lua.eval(HANDLE)
    metadata = lua.table()
    if path is not None:
        asked = {
            ":path": path,
            ":method": "POST",
            "x-request-id": "r-1",
            "content-type": kind,
        }
        handle = make(lua.table_from(asked), metadata, lua.table(text="{}"), lua.table())
        lua.globals()["envoy_on_request"](handle)
    headers = lua.table_from({":status": str(status), "content-type": "text/plain"})
    if trailer is not None:
        headers["x-mesh-error"] = trailer
        headers["grpc-status"] = "3"
    answer = lua.table(text=body)
    lua.globals()["envoy_on_response"](make(headers, metadata, answer, lua.table(dialect=route)))
    return answer["text"], dict(headers)


@pytest.mark.parametrize(
    ("path", "block", "expected"),
    [
        ("/v1/messages", {"type": "image", "source": {}}, True),
        ("/v1/messages", {"type": "text", "text": '"type": "image"'}, None),
        ("/v1/chat/completions", {"type": "image"}, None),
        ("/api/chat", {"images": ["aGk="]}, True),
        ("/api/chat", {"images": []}, None),
        ("/api/chat", {"type": "text", "text": '"images": ["'}, None),
        ("/v1/chat/completions", {"images": ["aGk="]}, None),
    ],
)
def test_routing_hears_of_pictures(path: str, block: dict[str, Any], expected: object) -> None:
    lua = luajit21.LuaRuntime(encoding="latin-1")
    lua.execute(SCRIPT)
    metadata = lua.table()
    asked = lua.table_from({":path": path, ":method": "POST", "x-request-id": "r"})
    body = json.dumps({"messages": [{"role": "user", "content": [block]}]})
    handle = lua.eval(HANDLE)(asked, metadata, lua.table(text=body), lua.table())
    lua.globals()["envoy_on_request"](handle)
    assert metadata["infermesh.prompt"]["vision"] is expected
    assert metadata["infermesh.request"]["prompt_bytes"] == len(body)


def openai(message: str = "No.", param: str | None = None) -> str:
    error = {"message": message, "type": "x", "param": param, "code": "y"}
    return json.dumps({"error": error}, separators=(",", ":"))


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages?beta=true", "/v1/messages/x"])
def test_anthropics_paths(path: str) -> None:
    body, headers = told(path, 400, openai("No.", "max_tokens"))
    assert orjson.loads(body) == {
        "type": "error",
        "error": {"type": "invalid_request_error", "message": "No.", "param": "max_tokens"},
        "request_id": "r-1",
    }
    assert headers["content-type"] == "application/json"
    assert headers["request-id"] == "r-1"


def test_ollamas_paths() -> None:
    body, headers = told("/api/chat", 404, openai("No."))
    assert orjson.loads(body) == {"error": "No."}
    assert "request-id" not in headers


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/messagesx", "/api", "/mesh/v1/nodes", "/v1/"]
)
def test_other_paths_keep_openais_form(path: str) -> None:
    assert told(path, 400, openai())[0] == openai()
    assert told(path, 400, "", trailer=openai())[0] == openai()


def test_services_errors_too() -> None:
    body, headers = told("/v1/messages", 503, "", trailer=openai())
    assert orjson.loads(body)["error"]["type"] == "overloaded_error"
    assert "x-mesh-error" not in headers
    assert "grpc-status" not in headers


def test_who_is_refused_before_the_script_runs_is_known_by_the_route() -> None:
    body, _ = told(None, 401, openai(), route="anthropic")
    assert orjson.loads(body) == {
        "type": "error",
        "error": {"type": "authentication_error", "message": "No."},
        "request_id": None,
    }
    assert orjson.loads(told(None, 401, openai(), route="ollama")[0]) == {"error": "No."}
    assert told(None, 401, openai())[0] == openai()


def test_answers_and_grpc_pass() -> None:
    assert told("/v1/messages", 200, "fine")[0] == "fine"
    assert told("/v1/messages", 400, openai(), kind="application/grpc")[0] == openai()


def test_what_is_no_error_of_ours_is_still_a_refusal() -> None:
    body, _ = told("/v1/messages", 502, "oh")
    assert orjson.loads(body)["error"] == {"type": "api_error", "message": "The call was refused."}


@given(st.text(), st.none() | st.text(min_size=1))
def test_messages_of_every_kind(message: str, param: str | None) -> None:
    error = MeshError(errors_pb2.ERROR_REASON_INVALID_ARGUMENT, message, param=param)
    body, _ = told("/v1/messages", 400, error.openai_body())
    assert json.loads(body) == json.loads(_twin(error))
    assert json.loads(told("/api/x", 400, error.openai_body())[0]) == {
        "error": json.loads(error.openai_body())["error"]["message"]
    }


@pytest.mark.parametrize("reason", sorted(FORMS))
def test_both_twins_name_every_refusal_alike(reason: Any) -> None:
    error = MeshError(reason, "No.")
    body, _ = told("/v1/messages", error.http_status, error.openai_body())
    assert orjson.loads(body) == orjson.loads(dialects.anthropic_error(error, "r-1"))
    body, _ = told("/api/chat", error.http_status, error.openai_body())
    assert orjson.loads(body) == orjson.loads(dialects.ollama_error(error))


def _twin(error: MeshError) -> str:
    # Lone halves of pairs, which JSON's escapes can say and UTF-8 cannot, are compared as such.
    said = json.loads(error.openai_body())["error"]
    inner = {"type": "invalid_request_error", "message": said["message"]}
    if said["param"] is not None:
        inner["param"] = said["param"]
    return json.dumps({"type": "error", "error": inner, "request_id": "r-1"})


@pytest.mark.parametrize("path", ["/v1/files", "/v1/responses", "/v1/messages", "/api/chat"])
def test_what_is_too_large_has_the_status_of_that(path: str) -> None:
    large = MeshError(errors_pb2.ERROR_REASON_REQUEST_TOO_LARGE, "Too large.")
    assert told(path, 400, trailer=large.openai_body())[1][":status"] == "413"
    said = MeshError(errors_pb2.ERROR_REASON_INVALID_ARGUMENT, '"code":"request_too_large"')
    assert told(path, 400, trailer=said.openai_body())[1][":status"] == "400"
