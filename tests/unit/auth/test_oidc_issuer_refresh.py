"""When an issuer's keys are fetched, and what becomes of them."""

import asyncio
import logging
from typing import Any

import pytest

from services.auth.oidc.adoption import Adoption
from services.auth.oidc.fetching import Document
from services.kit.errors import StoreUnavailableError
from unit.auth.oidc_samples import World


@pytest.mark.parametrize(
    ("max_age_s", "delay_s"), [(None, 600), (0, 60), (59, 60), (900, 900), (86400, 3600)]
)
async def test_keys_are_fetched_again_in_time(max_age_s: int | None, delay_s: float) -> None:
    world = World()
    world.max_age_s = max_age_s
    assert await world.issuer.refresh() == delay_s


async def test_an_issuer_that_is_away_is_tried_less_and_less_often(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    world = World()
    world.is_away = True
    delays = [await world.issuer.refresh() for _ in range(9)]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert not world.issuer.is_known()
    world.is_away = False
    assert await world.issuer.refresh() == 600
    assert world.issuer.is_known()
    world.is_away = True
    assert await world.issuer.refresh() == 1
    said = [record.getMessage() for record in caplog.records]
    assert [text[:22] for text in said] == [
        "an issuer of tokens is",
        "an issuer of tokens is",
        "an issuer of tokens is",
    ]
    assert "back" in said[1]


@pytest.mark.parametrize("content", [{}, {"keys": []}, {"keys": [{"kty": "oct", "k": "AAAA"}]}])
async def test_a_key_set_without_keys_takes_none_away(content: dict[str, Any]) -> None:
    world = World()
    await world.issuer.refresh()
    assert world.issuer.find("ES256", "ES256") is not None

    async def fetch() -> Document:
        return Document(content, None)

    world.issuer._fetch = fetch
    assert await world.issuer.refresh() == 1
    assert world.issuer.find("ES256", "ES256") is not None


async def test_what_nobody_thought_of_does_not_end_the_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()

    async def fetch() -> Document:
        raise RuntimeError("a bug")

    world.issuer._fetch = fetch
    assert await world.issuer.refresh() == 1
    assert "a bug" in caplog.text


async def test_the_loop_fetches_at_once_and_when_it_is_asked() -> None:
    world = World()
    task = asyncio.create_task(world.issuer.run())
    await asyncio.sleep(0)
    assert world.fetched == 1
    assert world.issuer.is_known()
    assert not world.issuer.can_ask()
    world.now += 10
    assert world.issuer.can_ask()
    await asyncio.gather(world.issuer.ask(), world.issuer.ask())
    assert world.fetched == 2
    task.cancel()


async def test_tenants_of_tokens_are_made_once_and_when_they_can_be() -> None:
    made: list[tuple[str, str]] = []
    is_away = True

    async def make(tenant: str, project: str) -> None:
        if is_away:
            raise StoreUnavailableError("away")
        made.append((tenant, project))

    adoption = Adoption(make)
    for pair in (("a", "x"), ("a", "y"), ("a", "x")):
        adoption.note(*pair)
    task = asyncio.create_task(adoption.run())
    await asyncio.sleep(0)
    assert made == []
    task.cancel()
    is_away = False
    task = asyncio.create_task(adoption.run())
    adoption.note("b", "default")
    for _ in range(3):
        await asyncio.sleep(0)
    assert made == [("a", "x"), ("a", "y"), ("b", "default")]
    task.cancel()


async def test_what_is_kept_of_tenants_is_bounded() -> None:
    async def make(tenant: str, project: str) -> None:
        raise AssertionError

    adoption = Adoption(make)
    for number in range(25_000):
        adoption.note(f"t{number}", "default")
    assert len(adoption._known) <= 10_000
    assert len(adoption._pending) <= 10_000
