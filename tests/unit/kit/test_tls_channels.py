"""When a channel is made again, and when the old one goes."""

import asyncio
from collections.abc import Callable
from typing import Any

from services.kit.channels import RenewingChannel


class Call:
    """A call that ends when it is told."""

    def __init__(self) -> None:
        self._ended: Callable[[Any], None] = lambda _: None

    def add_done_callback(self, act: Callable[[Any], None]) -> None:
        self._ended = act

    def end(self) -> None:
        self._ended(self)


class Channel:
    """Notes what is made of it."""

    def __init__(self) -> None:
        self.made = 0
        self.is_closed = False

    def unary_unary(self, method: str, **_: Any) -> Callable[..., Call]:
        self.made += 1
        return lambda *_: Call()

    async def close(self, grace: float | None = None) -> None:
        self.is_closed = True


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.files: object = 1
        self.is_broken = False
        self.channels: list[Channel] = []
        self.channel = RenewingChannel(self.make, lambda: self.files, lambda: self.now)
        self.method = self.channel.unary_unary("/t.S/M")

    def make(self) -> Any:
        if self.is_broken:
            raise OSError("half of it")
        self.channels.append(Channel())
        return self.channels[-1]

    def call(self) -> Call:
        self.now += 2
        call: Call = self.method(b"")
        return call


async def test_calls_go_over_one_channel_while_the_files_stay() -> None:
    world = World()
    for _ in range(3):
        world.call().end()
    assert [(each.made, each.is_closed) for each in world.channels] == [(1, False)]


async def test_the_old_channel_goes_with_its_last_call() -> None:
    world = World()
    first, second = world.call(), world.call()
    world.files = 2
    third = world.call()
    assert len(world.channels) == 2
    first.end()
    await asyncio.sleep(0)
    assert not world.channels[0].is_closed
    second.end()
    await asyncio.sleep(0)
    assert world.channels[0].is_closed
    third.end()
    await asyncio.sleep(0)
    assert not world.channels[1].is_closed


async def test_files_are_looked_at_once_a_second() -> None:
    world = World()
    world.call().end()
    world.files = 2
    world.method(b"").end()  # in the same instant
    assert len(world.channels) == 1
    world.call().end()
    assert len(world.channels) == 2


async def test_files_that_are_missing_or_broken_change_nothing() -> None:
    world = World()
    world.files = None
    world.call().end()
    world.files, world.is_broken = 2, True
    world.call().end()
    assert len(world.channels) == 1
    world.is_broken = False
    world.call().end()
    assert len(world.channels) == 2


async def test_close_closes_all_of_them() -> None:
    world = World()
    world.call()
    world.files = 2
    world.call()
    await world.channel.close()
    assert [each.is_closed for each in world.channels] == [True, True]
