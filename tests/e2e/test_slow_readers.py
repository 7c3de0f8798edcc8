"""200 callers who read slowly cost the mesh a bounded memory, and nobody else anything."""

import asyncio
import json
import socket
import time

import httpx

from e2e.fleet import Fleet
from e2e.mesh import Mesh
from e2e.torrent import torrent_engine
from support import until

MODEL = "torrent"
NODE = "torrent-1"
READERS = 200
# One read a second.
READ_BYTES = 1000
SETTLE_S = 15
WATCH_S = 15
MIB = 1024 * 1024
# What one reader may hold of the node's and of Envoy's memory together, and what all of them may
# take more of it while they read on.
MOST_PER_READER = 1.0 * MIB
MOST_GROWTH = 8 * MIB
# From the hang-up to the engine's, for 200 at once, whose streams would have no end.
MOST_HANG_UP_S = 20.0


def memory(mesh: Mesh, fleet: Fleet) -> dict[str, int]:
    """Returns the resident bytes of those that an answer passes through."""
    return {
        "node": fleet.process(NODE).memory_info().rss,
        "envoy": mesh.part("envoy").memory_info().rss,
    }


def _chat(max_tokens: int) -> dict[str, object]:
    messages = [{"role": "user", "content": "Tell me all."}]
    return {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "stream": True}


class SlowReader:
    """A caller with a small window, who takes a thousand bytes a second."""

    def __init__(self) -> None:
        self.received = 0
        self.head = b""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        # Loopback's own segments are larger than the window, which would stall it.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)
        self._socket.setblocking(False)

    async def run(self, mesh: Mesh) -> None:
        body = json.dumps(_chat(1_000_000)).encode()
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", mesh.port))
        await loop.sock_sendall(
            self._socket,
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: mesh\r\n"
            b"content-type: application/json\r\nauthorization: Bearer %s\r\n"
            b"content-length: %d\r\n\r\n%s" % (mesh.admin_key.encode(), len(body), body),
        )
        while data := await loop.sock_recv(self._socket, READ_BYTES):
            self.head = self.head or data
            self.received += len(data)
            await asyncio.sleep(1)

    def close(self) -> None:
        self._socket.close()


async def test_slow_readers_hold_little_and_nobody_up(mesh: Mesh, fleet: Fleet) -> None:
    headers = {"authorization": f"Bearer {mesh.admin_key}"}
    async with (
        torrent_engine(MODEL) as engine,
        httpx.AsyncClient(base_url=mesh.url, headers=headers, timeout=60) as http,
    ):

        async def quick_reader() -> float:
            began = time.monotonic()
            answer = await http.post("/v1/chat/completions", json=_chat(20))
            assert answer.status_code == 200, answer.text
            assert answer.text.endswith("data: [DONE]\n\n")
            return time.monotonic() - began

        await asyncio.to_thread(
            fleet.join, {NODE: ("--engine", "openai", "--url", engine.url)}, ENGINE_SLOTS="256"
        )
        # What a first call makes everybody load is no cost of slow readers.
        await quick_reader()
        before = memory(mesh, fleet)
        readers = [SlowReader() for _ in range(READERS)]
        reading = [asyncio.create_task(reader.run(mesh)) for reader in readers]
        try:
            await until(lambda: engine.running == READERS, 60)
            await asyncio.sleep(SETTLE_S)
            assert engine.running == READERS
            settled = memory(mesh, fleet)
            print(f"the engine was rid of {sum(engine.sent) / MIB:.0f} MiB in {SETTLE_S} s")
            for name, size in settled.items():
                print(f"{name}: {before[name] / MIB:.0f} MiB before, {size / MIB:.0f} now")
            quick = []
            for _ in range(5):
                await asyncio.sleep(WATCH_S / 5)
                quick.append(await quick_reader())
            after = memory(mesh, fleet)
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
            sent = sum(engine.sent)
            for reader in readers:
                reader.close()
        closed = time.monotonic()
        while engine.running and time.monotonic() < closed + MOST_HANG_UP_S:
            await asyncio.sleep(0.01)
        stopped_s = time.monotonic() - closed
    for name in before:
        print(
            f"{name}: {before[name] / MIB:.0f} MiB before, {settled[name] / MIB:.0f} after "
            f"{SETTLE_S} s, {after[name] / MIB:.0f} after {SETTLE_S + WATCH_S} s"
        )
    took = sorted(reader.received for reader in readers)
    print(f"read: {took[0]} to {took[-1]} bytes each; the engine was rid of {sent / MIB:.0f} MiB")
    print(f"a quick reader beside them: {max(quick):.3f} s at most")
    print(f"all hung up: engine idle after {1000 * stopped_s:.0f} ms")
    # They were served all the time, and as fast as this process came round to read.
    assert took[0] > (SETTLE_S + WATCH_S) * READ_BYTES * 0.4
    assert all(reader.head.startswith(b"HTTP/1.1 200 OK\r\n") for reader in readers)
    assert sum(after.values()) - sum(settled.values()) < MOST_GROWTH
    assert sum(after.values()) - sum(before.values()) < READERS * MOST_PER_READER
    # One may have waited for other work of the machine; behind slow readers all would wait.
    assert min(quick) < 1.0
    assert not engine.running, stopped_s
