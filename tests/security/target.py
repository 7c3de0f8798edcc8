"""The mesh under attack, and how to tell that nothing got in and nothing fell over."""

import os
import random
import re
import socket
from dataclasses import dataclass
from functools import cached_property

import httpx

from e2e.mesh import CHAT, Mesh

PORT, BASE_PORT = 23580, 23500
ROUNDS = int(os.environ.get("SECURITY_ROUNDS", "30"))
"""How many variants each random test tries; `make test-security` says more."""
SEED = int(os.environ.get("SECURITY_SEED", "4"))
CANARY = "canary"
"""The name that every attack gives what it tries to make; nothing may ever have it."""
PAGE = "https://app.example.com"
"""The origin whose web pages this mesh lets call it."""
MAX_ENVOY_BYTES = 700 * 1024 * 1024
"""Envoy's resident memory, which is about 100 MiB after its start here."""

_PAUSE_S = 0.25
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")


@dataclass
class Target:
    """A running mesh, a key that may do little, and what must stay as it is.

    Attributes:
        mesh: The mesh.
        user_key: A key of the role `user` that may use the chat model and no other.
        pids: The processes of the parts at the start, by name.
    """

    mesh: Mesh
    user_key: str
    pids: dict[str, int]

    def raw(self, data: bytes, wait_s: float = 0.6, pause_s: float = _PAUSE_S) -> bytes:
        """Sends bytes and returns what comes until the connection ends or falls silent."""
        with socket.create_connection(("127.0.0.1", self.mesh.port), timeout=20) as connection:
            return exchange(connection, data, wait_s, pause_s)

    @cached_property
    def admin(self) -> httpx.Client:
        """Calls with the admin key."""
        return self.client(self.mesh.admin_key)

    @cached_property
    def user(self) -> httpx.Client:
        """Calls with the key that may do little."""
        return self.client(self.user_key)

    def client(self, key: str) -> httpx.Client:
        # Without certificates, which take longer to load than a hundred calls.
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.mesh.url, headers=headers, timeout=60, verify=False)

    def chat(self, key: str | None = None, **fields: object) -> httpx.Response:
        body = {"model": CHAT, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        headers = {"authorization": f"Bearer {key or self.user_key}"}
        return self.user.post("/v1/chat/completions", json={**body, **fields}, headers=headers)

    def assert_nothing_got_in(self) -> None:
        """Fails where an attack has made what it tried to make."""
        for path in ("/mesh/v1/keys?page_size=1000", "/mesh/v1/tenants", "/mesh/v1/nodes"):
            listed = self.admin.get(path)
            assert listed.status_code == 200, (path, listed.text)
            assert CANARY not in listed.text, path

    def assert_nothing_fell_over(self) -> None:
        """Fails where a part is not the process that it was, or does not do its work."""
        reply = self.chat()
        assert reply.status_code == 200, reply.text
        assert {name: self.mesh.part(name).pid for name in self.pids} == self.pids
        assert self.mesh.part("envoy").memory_info().rss < MAX_ENVOY_BYTES


def exchange(
    connection: socket.socket, data: bytes, wait_s: float, pause_s: float = _PAUSE_S
) -> bytes:
    """Sends bytes and returns what comes until the connection ends or falls silent.

    Silent is `wait_s` before the first byte and `pause_s` after it.
    """
    connection.settimeout(wait_s)
    received = b""
    try:
        connection.sendall(data)
        while chunk := connection.recv(65536):
            received += chunk
            connection.settimeout(min(wait_s, pause_s))
    except (TimeoutError, ConnectionError):
        pass  # an end like others: what came until then is what counts
    return received


def statuses(received: bytes) -> list[int]:
    """Returns the statuses of the HTTP/1.1 answers in what came, but for `100 Continue`."""
    return [int(each) for each in _STATUS.findall(received) if each != b"100"]


def dice(name: str) -> random.Random:
    """Returns random numbers that are the same in each run, for one test."""
    return random.Random(f"{SEED}-{name}")
