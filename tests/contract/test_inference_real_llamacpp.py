"""The inference proxy in front of a real llama.cpp."""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import orjson
import pytest
from google.api import httpbody_pb2

from inference_node import (
    MODEL,
    FakeMesh,
    Node,
    running,
    text_of,
    until,
)
from support import free_port


@pytest.fixture(scope="module")
async def llamacpp_url(models_dir: Path) -> AsyncIterator[str]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.inference.llamacpp_server"),
        *("--model", str(models_dir / "smollm2-135m.gguf"), "--port", str(port), "--alias", MODEL),
        env=os.environ,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as http, asyncio.timeout(60):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(f"{url}/health")).status_code == 200:
                        break
                await asyncio.sleep(0.1)
        yield url
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def real(llamacpp_url: str, mesh: FakeMesh, tmp_path: Path) -> AsyncIterator[Node]:
    port = int(llamacpp_url.rpartition(":")[2])
    async with running(port, mesh.address, tmp_path) as node:
        await until(node.is_serving)
        yield node


# What differs from one call to the next.
_VARYING = re.compile(
    rb'("(?:created|[a-z]+_ms|[a-z_]+_per_second|[a-z_]+_per_token_ms|cached_tokens|cache_n'
    rb'|prompt_n)":)[-0-9.e+]+|("id":"chatcmpl-)\w+'
)
PROMPT = [{"role": "user", "content": "Say hi in one word"}]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": True, "top_logprobs": 2},
        {"stop": ["o"]},
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"include_usage": False}, "timings_per_token": True},
        {"prompt": "1, 2, 3,"},
        {"prompt": "1, 2, 3,", "stream": True},
        {"prompt": "1, 2, 3,", "logprobs": 2},
    ],
)
async def test_answers_equal_a_direct_call(
    real: Node, llamacpp_url: str, fields: dict[str, object]
) -> None:
    is_chat = "prompt" not in fields
    body = {"model": MODEL, "temperature": 0, "max_tokens": 6, **fields}
    if is_chat:
        body["messages"] = PROMPT
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    create = real.openai.CreateChatCompletion if is_chat else real.openai.CreateCompletion
    async with httpx.AsyncClient() as http:
        direct = await http.post(llamacpp_url + path, content=orjson.dumps(body), timeout=60)
    call = create(httpbody_pb2.HttpBody(data=orjson.dumps(body)))
    messages = [message async for message in call]
    assert messages[0].content_type == direct.headers["content-type"]
    ours, theirs = (
        _VARYING.sub(rb"\g<1>\g<2>0", text) for text in (text_of(messages), direct.content)
    )
    if fields.get("stream"):
        assert ours == theirs
    else:
        assert orjson.loads(ours) == orjson.loads(theirs)


async def _running(url: str) -> int:
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{url}/metrics", timeout=30)).text
    return int(re.search(r"^llamacpp:requests_processing (\d+)", text, re.MULTILINE)[1])


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", ["Tell a very long story.", "lorem ipsum dolor " * 200])
async def test_hanging_up_stops_llamacpp(
    real: Node, llamacpp_url: str, stream: bool, prompt: str
) -> None:
    """Stops it while it generates, and in the middle of a long prompt."""

    async def is_idle() -> bool:
        return await _running(llamacpp_url) == 0

    async def is_busy() -> bool:
        return await _running(llamacpp_url) == 1

    call = real.chat(
        stream=stream,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=2000,
        ignore_eos=True,
        cache_prompt=False,
    )
    await until(is_busy)
    await asyncio.sleep(0.3)
    assert await is_busy()
    call.cancel()
    # It would go on for longer.
    async with asyncio.timeout(5):
        await until(is_idle)
