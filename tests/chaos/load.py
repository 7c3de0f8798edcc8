"""Steady load, and what became of each request."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx

from chaos.fleet import Fleet
from services.cli import stack


@dataclass(slots=True)
class Outcome:
    """One request; times are seconds since the load began.

    Attributes:
        began_s: When it was sent.
        ended_s: When its answer was complete, or failed.
        first_s: When its first byte came, of its headers where it went well; None for none.
        is_stream: Whether it asked for a stream.
        node: Who answered; empty for nobody.
        failure: What went wrong; empty for nothing.
    """

    began_s: float
    is_stream: bool
    ended_s: float = 0.0
    first_s: float | None = None
    node: str = ""
    failure: str = ""


@dataclass(slots=True)
class Event:
    """Something that is done to the mesh at a time of the load.

    Attributes:
        at_s: When it is to be done.
        act: What is done.
        began_s: When it was begun: late where this process had to wait for its turn.
        done_s: When it was done.
    """

    at_s: float
    act: Callable[[], None]
    began_s: float = 0.0
    done_s: float = 0.0


async def run(fleet: Fleet, rate: float, seconds: float, events: list[Event]) -> list[Outcome]:
    """Sends `rate` requests per second, every other one a stream, and does what is to be done."""
    outcomes: list[Outcome] = []
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    headers = {"authorization": f"Bearer {fleet.key}"}
    loop = asyncio.get_running_loop()
    async with (
        httpx.AsyncClient(base_url=fleet.url, headers=headers, limits=limits, timeout=60) as http,
        asyncio.TaskGroup() as tasks,
    ):
        began = time.monotonic()
        due = sorted(events, key=lambda event: event.at_s)
        for number in range(int(rate * seconds)):
            at_s = number / rate
            await asyncio.sleep(max(0.0, began + at_s - time.monotonic()))
            while due and due[0].at_s <= at_s:
                event = due.pop(0)
                event.began_s = time.monotonic() - began
                await loop.run_in_executor(None, event.act)
                event.done_s = time.monotonic() - began
            outcome = Outcome(time.monotonic() - began, number % 2 == 0)
            outcomes.append(outcome)
            tasks.create_task(_ask(http, outcome, began))
    return outcomes


async def _ask(http: httpx.AsyncClient, outcome: Outcome, began: float) -> None:
    body = {
        "model": stack.CHAT_MODEL,
        "messages": [{"role": "user", "content": f"Question at {outcome.began_s:.6f}"}],
        "stream": outcome.is_stream,
    }
    tail = b""
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as reply:
            outcome.node = reply.headers.get("x-mesh-node", "")
            if reply.status_code == 200:
                outcome.first_s = time.monotonic() - began
            async for piece in reply.aiter_raw():
                if outcome.first_s is None:
                    outcome.first_s = time.monotonic() - began
                tail = (tail + piece)[-4096:]
            if reply.status_code != 200:
                outcome.failure = f"{reply.status_code} {tail[-300:].decode()}"
            elif b'"error"' in tail or not tail.rstrip().endswith(
                b"data: [DONE]" if outcome.is_stream else b"}"
            ):
                outcome.failure = f"broke off: {tail[-200:].decode()}"
    except httpx.HTTPError as error:
        outcome.failure = repr(error)
    outcome.ended_s = time.monotonic() - began
