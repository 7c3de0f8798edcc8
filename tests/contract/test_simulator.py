"""The engine simulator on real ports, as its dialect and its callers meet it."""

import asyncio
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from services.inference.engines.asks import TokenizeAsk
from services.inference.engines.dialect import EngineOptions as DialectOptions
from services.inference.engines.sim import Simulator
from services.inference.http_client import EngineClient
from services.inference.simulator.api import VERSION, Api
from services.inference.simulator.options import EngineOptions
from services.inference.simulator.server import serving
from support import free_port

_OPTIONS = EngineOptions(
    prefill_rate=50_000.0, decode_rate=200.0, slots=2, blocks=500, adapters=("lora",)
)
_CHAT = {"model": "sim", "messages": [{"role": "user", "content": "x" * 4000}], "max_tokens": 400}


@pytest.fixture
async def engines() -> AsyncIterator[tuple[list[str], list[Api]]]:
    ports = [free_port(), free_port()]
    async with serving("127.0.0.1", ports, _OPTIONS) as apis:
        yield [f"http://127.0.0.1:{port}" for port in ports], list(apis)


async def test_tokens_can_be_read_again(engines: tuple[list[str], list[Api]]) -> None:
    (url, _), _ = engines
    client = EngineClient(url, idle_timeout_s=5)
    dialect = Simulator(DialectOptions())
    cut = await dialect.tokenize(client, TokenizeAsk("sim", {"prompt": "hello"}, wants_texts=True))
    assert cut is not None
    assert cut.texts == ["hell", "o"]
    assert await dialect.detokenize(client, "sim", cut.ids) == "hello"
    client.close()


async def test_its_dialect_reads_models_and_load(engines: tuple[list[str], list[Api]]) -> None:
    (url, _), _ = engines
    client = EngineClient(url, idle_timeout_s=5)
    dialect = Simulator(DialectOptions())
    found = await dialect.describe(client)
    assert found.version == VERSION
    assert [(m.name, m.base_model, m.can_chat) for m in found.models] == [
        ("sim", "", True),
        ("lora", "sim", True),
    ]
    assert found.models[0].context_length == 8000
    async with httpx.AsyncClient(base_url=url) as http:
        asked = [
            asyncio.create_task(http.post("/v1/chat/completions", json=_CHAT, timeout=60))
            for _ in range(3)
        ]
        load = await dialect.probe(client)
        while load is None or load.queued != 1:
            await asyncio.sleep(0.01)
            load = await dialect.probe(client)
        assert load.running == 2
        assert load.kv_capacity_tokens == 8000
        assert load.kv_use is not None
        assert 0.1 < load.kv_use < 0.5
        assert load.instance is not None
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    client.close()


async def test_engines_in_one_process_share_nothing(
    engines: tuple[list[str], list[Api]],
) -> None:
    urls, apis = engines
    short = {**_CHAT, "max_tokens": 1}
    async with httpx.AsyncClient() as http:
        for url in urls:
            answer = await http.post(f"{url}/v1/chat/completions", json=short)
            assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        await http.post(f"{urls[0]}/sim/faults", json={"error_rate": 1})
        broken = await http.post(f"{urls[0]}/v1/chat/completions", json=short)
        well = await http.post(f"{urls[1]}/v1/chat/completions", json=short)
    assert (broken.status_code, well.status_code) == (500, 200)
    assert well.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 992
    assert [api.engine.answered for api in apis] == [1, 2]


async def test_time_is_kept_on_a_real_loop(engines: tuple[list[str], list[Api]]) -> None:
    (url, _), _ = engines
    async with httpx.AsyncClient(base_url=url) as http:
        began = time.monotonic()
        await http.post("/v1/chat/completions", json={**_CHAT, "max_tokens": 61})
        spent = time.monotonic() - began
    # A thousand tokens of prompt and sixty steps; a busy machine may take longer, never shorter.
    assert 0.31 < spent < 20.0


async def test_a_closed_connection_frees_its_slot(
    engines: tuple[list[str], list[Api]],
) -> None:
    (url, _), (api, _) = engines
    async with httpx.AsyncClient(base_url=url) as http:
        async with http.stream(
            "POST", "/v1/chat/completions", json={**_CHAT, "stream": True}
        ) as answer:
            async for _ in answer.aiter_bytes():
                break
            assert api.engine.running == 1
        for _ in range(1000):
            if not api.engine.running:
                break
            await asyncio.sleep(0.01)
    assert api.engine.running == 0
