"""Runs routing: `python -m services.routing`."""

from services.kit import server, settings
from services.routing.app import make_app
from services.routing.settings import RoutingSettings

if __name__ == "__main__":
    loaded = settings.load(RoutingSettings)
    server.run("routing", loaded, make_app(loaded))
