import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from typer.testing import CliRunner

from services.cli import ports, probes, stack
from services.cli.main import app


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "0"),
        ("--port", "99999"),
        ("--base-port", "-5"),
        ("--base-port", "32701"),
        ("--host", "foo.bar"),
    ],
)
def test_up_refuses_what_cannot_be_an_address(arguments, tmp_path):
    state = tmp_path / "state"
    done = CliRunner().invoke(app, ["up", *arguments, "--state-dir", str(state)])
    assert done.exit_code == 2
    assert arguments[0] in done.stderr
    assert not state.exists()


def test_two_parts_on_one_port_are_refused(make_part):
    parts = [make_part("auth", ports={"auth": 1}), make_part("envoy", ports={"front door": 1})]
    found = ports.conflicts(parts)
    assert found[-1] == "port 1 is wanted twice, for auth and for envoy, front door"


def test_an_address_of_another_machine_is_refused(make_part):
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    part = make_part("envoy", ports={"front door": port})
    (found,) = ports.conflicts([part], "192.0.2.1", port)
    assert "192.0.2.1, which is no address of this machine" in found
    assert ports.conflicts([part], "127.0.0.1", port) == []


def test_the_front_door_is_reached_from_here(tmp_path):
    for host, expected in (
        ("0.0.0.0", "127.0.0.1:80"),
        ("::", "[::1]:80"),
        ("::1", "[::1]:80"),
        ("192.0.2.1", "192.0.2.1:80"),
    ):
        options = stack.Options(state_dir=tmp_path, models_dir=tmp_path, host=host, port=80)
        assert options.front_door == expected


@asynccontextmanager
async def answering(answer):
    async def talk(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\nx-request-id: 1\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\nX-Request-Id: 1\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nserver: other\r\n\r\n", False),
        (b"HTTP/1.1 404 Not Found\r\nx-request-id: 1\r\n\r\n", False),
    ],
)
async def test_envoy_is_known_by_its_answer(answer, ready):
    async with answering(answer) as port:
        assert await probes.envoy("127.0.0.1", port)() is ready


async def test_a_port_that_speaks_no_http_is_not_envoy():
    async with answering(b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0@\0") as port:  # HTTP/2, as gRPC does
        with pytest.raises(asyncio.IncompleteReadError):
            await probes.envoy("127.0.0.1", port)()
