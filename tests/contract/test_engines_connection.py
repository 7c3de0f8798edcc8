"""What all adapters share with the wire: hang-ups that reach the engine, and TLS."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest

from exchanges import Calls
from services.inference.engines import ENGINES
from services.inference.engines.dialect import (
    Description,
    EngineModel,
)
from services.inference.engines.pages import get
from services.inference.http_client import (
    EngineClient,
    EngineConnectError,
    EngineConnectionError,
)

# How each dialect's answer begins, where it is not OpenAI's.
_CHUNK = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
_SSE = b"data: " + orjson.dumps(_CHUNK) + b"\n\n"
_LINE = orjson.dumps({"message": {"content": "a"}, "done": False}) + b"\n"
_BEGINNINGS = {"ollama": (b"application/x-ndjson", _LINE)}


class Endless:
    """An engine that begins an answer and never ends it."""

    def __init__(self, engine: str, *, begins: bool) -> None:
        self._content_type, self._piece = _BEGINNINGS.get(engine, (b"text/event-stream", _SSE))
        self._begins = begins
        self.asked = asyncio.Event()
        self.hung_up = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked.set()
        if self._begins:
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n"
                b"%x\r\n%b\r\n" % (self._content_type, len(self._piece), self._piece)
            )
        with contextlib.suppress(ConnectionError):
            while await reader.read(65536):
                pass
        self.hung_up.set()
        writer.transport.abort()


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("engine", sorted(ENGINES))
async def test_hanging_up_reaches_every_engine(engine: str, is_stream: bool, begins: bool) -> None:
    endless = Endless(engine, begins=begins)
    server = await asyncio.start_server(endless.serve, "127.0.0.1", 0)
    async with server:
        calls = Calls(engine, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        calls.know(Description("", (EngineModel("m", can_chat=True, can_embed=False),)))
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": is_stream}
        call = asyncio.create_task(calls.call("chat", body))
        async with asyncio.timeout(20):
            await endless.asked.wait()
        await asyncio.sleep(0.02)
        assert not endless.hung_up.is_set()
        call.cancel()
        async with asyncio.timeout(10):
            await endless.hung_up.wait()
        assert calls.state.in_flight == 0


@asynccontextmanager
async def silent() -> AsyncIterator[EngineClient]:
    """An engine that sends a head and then nothing, and connections to it."""
    endless = Endless("vllm", begins=True)
    server = await asyncio.start_server(endless.serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield EngineClient(url, idle_timeout_s=60)


async def test_the_silence_of_an_engine_that_is_down_is_cut_short() -> None:
    async with silent() as client:
        with await client.post("/v1/chat/completions", b"{}") as exchange:
            assert await exchange.read() == _SSE
            reading = asyncio.create_task(exchange.read())
            await asyncio.sleep(0.05)
            client.hurry(0.1)
            async with asyncio.timeout(10):
                with pytest.raises(EngineConnectionError):
                    await reading
        assert client.busy == set()


async def test_what_was_cut_short_is_not_sent_again_on_a_fresh_connection() -> None:
    asked = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        with contextlib.suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                asked += 1
                if asked == 1:
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = EngineClient(url, idle_timeout_s=60)
        assert await get(client, "/health") == (200, b"")
        posting = asyncio.create_task(client.post("/v1/chat/completions", b""))
        await asyncio.sleep(0.05)
        client.hurry(0.01)
        async with asyncio.timeout(10):
            with pytest.raises(EngineConnectionError):
                await posting
        assert asked == 2


async def test_an_engine_that_is_back_has_its_time_again() -> None:
    async with silent() as client:
        with await client.post("/v1/chat/completions", b"{}") as exchange:
            assert await exchange.read() == _SSE
            reading = asyncio.create_task(exchange.read())
            await asyncio.sleep(0)
            client.hurry(0.1)
            client.hurry(None)
            await asyncio.sleep(0.2)
            assert not reading.done()
            reading.cancel()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost` that its own authority signed, and its key in one file."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return folder


@asynccontextmanager
async def secure(certificate: Path) -> AsyncIterator[int]:
    """Serves `ok` over TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_certificate_that_nobody_vouches_for_is_refused(certificate: Path) -> None:
    async with secure(certificate) as port:
        client = EngineClient(f"https://localhost:{port}", idle_timeout_s=5)
        with pytest.raises(EngineConnectError):
            await get(client, "/v1/models")


async def test_a_certificate_must_be_the_hosts(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    async with secure(certificate) as port:
        client = EngineClient(f"https://127.0.0.1:{port}", idle_timeout_s=5)
        with pytest.raises(EngineConnectError):
            await get(client, "/v1/models")


async def test_tls_with_an_authority_that_is_known(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    async with secure(certificate) as port:
        client = EngineClient(f"https://localhost:{port}/", idle_timeout_s=5)
        for _ in range(3):
            assert await get(client, "/v1/models") == (200, b"ok")
        client.close()
