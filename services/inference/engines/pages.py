"""Asks an engine for pages that say something of itself."""

from typing import Any

import orjson

from services.inference.engines.dialect import EngineNotReadyError
from services.inference.http_client import EngineClient


async def get_json(client: EngineClient, path: str) -> dict[str, Any]:
    """Returns the JSON object at a path of the engine's.

    Raises:
        EngineNotReadyError: The answer is not 200 with a JSON object.
        EngineConnectionError: The engine does not answer.
        EngineTimeoutError: The engine does not answer in time.
    """
    status, body = await get(client, path)
    if status != 200:
        raise EngineNotReadyError(f"{path} answers {status}")
    return _object(path, body)


async def get_first(client: EngineClient, *paths: str) -> dict[str, Any]:
    """Returns the JSON object at the first of several paths that is there. Raises like above."""
    for path in paths:
        status, body = await get(client, path)
        if status == 200:
            return _object(path, body)
        if status != 404:
            break
    raise EngineNotReadyError(f"{path} answers {status}")


async def post_json(client: EngineClient, path: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the JSON object that answers another one. Raises like `get_json`."""
    with await client.post(path, orjson.dumps(fields)) as exchange:
        body = await exchange.read_all()
    if exchange.status != 200:
        raise EngineNotReadyError(f"{path} answers {exchange.status}")
    return _object(path, body)


async def get(client: EngineClient, path: str) -> tuple[int, bytes]:
    """Returns the status and the body at a path of the engine's. Raises like `EngineClient`."""
    with await client.get(path) as exchange:
        return exchange.status, await exchange.read_all()


def _object(path: str, body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise EngineNotReadyError(f"{path} is not a JSON object")
    return data
