"""Runs the metrics service."""

from services.kit import server, settings
from services.metrics.app import make_app
from services.metrics.settings import MetricsSettings


def main() -> None:
    """Serves until told to stop."""
    loaded = settings.load(MetricsSettings)
    server.run("metrics", loaded, make_app(loaded))


if __name__ == "__main__":
    main()
