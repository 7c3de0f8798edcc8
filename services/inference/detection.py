"""Finds out which engine listens at an address, by asking for what only one of them has."""

import asyncio
import logging
from typing import Any

import orjson

from services.inference.http_client import (
    EngineClient,
    EngineConnectionError,
    EngineTimeoutError,
)

log = logging.getLogger(__name__)

_ASK_TIMEOUT_S = 5.0
_RETRY_S = 1.0
_MAX_PAGE_BYTES = 1024 * 1024


async def wait_for_engine(client: EngineClient) -> str:
    """Returns the dialect of the engine once one answers; asks again every second until then."""
    has_told = False
    while (dialect := await detect(client)) is None:
        if not has_told:
            log.warning("no engine answers yet", extra={"asks_again_every_s": _RETRY_S})
        has_told = True
        await asyncio.sleep(_RETRY_S)
    log.info("engine found", extra={"dialect": dialect})
    return dialect


async def detect(client: EngineClient) -> str | None:
    """Returns the dialect of the engine that listens, or None where none can be made out.

    An engine that is loading its model may not answer with what it can be told by.
    """
    try:
        async with asyncio.timeout(_ASK_TIMEOUT_S):
            return await _detect(client)
    except (EngineConnectionError, EngineTimeoutError, TimeoutError) as error:
        log.debug("the engine cannot be asked", extra={"error": repr(error)})
        return None


async def _detect(client: EngineClient) -> str | None:
    props = await _page(client, "/props")
    if props and "default_generation_settings" in props:
        return "llamacpp"
    for path in ("/get_model_info", "/model_info"):
        info = await _page(client, path)
        if info and "model_path" in info:
            return "sglang"
    info = await _page(client, "/info")
    if info and "model_id" in info and "max_total_tokens" in info:
        return "tgi"
    if info and "model_id" in info and "model_type" in info:
        return "tei"
    version = await _page(client, "/api/version")
    if version and isinstance(version.get("version"), str):
        return "ollama"
    listing = await _page(client, "/v1/models")
    models = listing.get("data") if listing else None
    if not isinstance(models, list):
        return None
    owners = {model.get("owned_by") for model in models if isinstance(model, dict)}
    if "vllm" in owners:
        return "vllm"
    return "openai"


async def _page(client: EngineClient, path: str) -> dict[str, Any] | None:
    """Returns the JSON object at a path, or None where there is none."""
    with await client.get(path) as exchange:
        if exchange.status != 200:
            return None
        body = await exchange.read_all(_MAX_PAGE_BYTES)
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return data if isinstance(data, dict) else None
