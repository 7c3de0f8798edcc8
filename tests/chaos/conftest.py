"""One fleet for all faults of nodes and services."""

import time
from collections.abc import Callable, Iterator

import pytest

from chaos.fleet import Fleet, network


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with network() as allowed:
        fleet = Fleet(tmp_path_factory.mktemp("chaos"), cut_off="node-4" if allowed else "")
        fleet.start()
        try:
            wait(lambda: len(fleet.ready_nodes()) == 4, 60)
            yield fleet
        finally:
            fleet.stop()


def wait(condition: Callable[[], object], limit_s: float) -> float:
    """Waits until the condition holds; returns how many seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < limit_s, "it did not come to pass"
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture(autouse=True)
def whole(fleet: Fleet) -> Iterator[None]:
    yield
    wait(lambda: len(fleet.ready_nodes()) == 4, 40)
