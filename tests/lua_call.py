"""Runs the front door's Lua on a call, as Envoy does."""

import base64
from pathlib import Path
from typing import Any

from lupa import luajit21
from lupa.luajit21 import lua_type

_FOLDER = Path(__file__).parents[1] / "envoy"
_HANDLE = b"""
function(path, kind, body)
  local found = {}
  local waits = 0
  -- What Envoy handed out before the script waited is dead after.
  local function alive(object)
    local born = waits
    return setmetatable({}, {__index = function(_, name)
      assert(waits == born, "object used outside of proper scope")
      return object[name]
    end})
  end
  local metadata = {set = function(_, namespace, key, value)
    found[#found + 1] = {namespace, key, value}
  end}
  local said = {[":path"] = path, [":method"] = "POST", ["content-type"] = kind}
  local headers = {
    get = function(_, name) return said[name] end,
    remove = function() end,
  }
  local buffer = {
    length = function() return #body end,
    getBytes = function(_, from, count) return body:sub(from + 1, from + count) end,
  }
  return {
    headers = function() return alive(headers) end,
    body = function()
      waits = waits + 1
      return alive(buffer)
    end,
    base64Escape = function(_, text) return {text} end, -- Python does that after
    streamInfo = function()
      return {dynamicMetadata = function() return alive(metadata) end}
    end,
  }, found
end
"""
_runtimes: dict[str, Any] = {}


def metadata_of(script: str, body: bytes, path: bytes, kind: bytes | None = None) -> dict[str, Any]:
    """Returns the dynamic metadata that a script sets, without its namespaces.

    Args:
        script: The file's name.
        body: The request's body.
        path: Its path.
        kind: Its `content-type`; None for none.
    """
    lua = _runtimes.get(script)
    if lua is None:
        lua = _runtimes[script] = luajit21.LuaRuntime(encoding=None)
        lua.execute((_FOLDER / script).read_bytes())
    handle, said = lua.eval(_HANDLE)(path, kind, body)
    lua.globals()[b"envoy_on_request"](handle)
    return {entry[2].decode(): _plain(entry[3]) for entry in said.values()}


def _plain(value: Any) -> Any:
    is_escaped = lua_type(value) == "table"
    return base64.b64encode(value[1]) if is_escaped else value
