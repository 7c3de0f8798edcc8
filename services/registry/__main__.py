"""Runs the registry: `python -m services.registry`."""

from services.kit import server, settings
from services.registry.app import make_app
from services.registry.settings import RegistrySettings

if __name__ == "__main__":
    loaded = settings.load(RegistrySettings)
    server.run("registry", loaded, make_app(loaded))
