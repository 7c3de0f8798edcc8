"""Fixtures for all tests: real stores, fresh for each session, gone with it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import settings

import support
from services.cli import embedded, models
from services.cli.part import Part
from services.cli.supervisor import Supervisor

# A run's verdict depends on the code alone: other examples are `make test-properties`' work.
settings.register_profile("fixed", derandomize=True, database=None)
settings.register_profile("search", derandomize=False, print_blob=True)
settings.load_profile("fixed")


@asynccontextmanager
async def _running(part: Part) -> AsyncIterator[None]:
    supervisor = Supervisor([part])
    try:
        await supervisor.start()
        yield
    finally:
        await supervisor.stop()


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives ports on loopback that nothing listens on."""
    return support.free_port


@pytest.fixture(scope="session")
def store_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="session")
async def postgres_url(store_dir: Path) -> AsyncIterator[str]:
    """An empty database: `postgresql+asyncpg://…`."""
    store = embedded.postgres(store_dir, support.free_port(), store_dir, durable=False)
    async with _running(store.part):
        yield store.url


@pytest.fixture(scope="session")
async def redis_url(store_dir: Path) -> AsyncIterator[str]:
    """An empty Redis: `redis://…`."""
    store = embedded.redis(store_dir, support.free_port(), store_dir)
    async with _running(store.part):
        yield store.url


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder of the model files, which are fetched where they are missing."""
    folder = models.default_folder()
    models.fetch(folder, lambda name, done, total: None)
    return folder
