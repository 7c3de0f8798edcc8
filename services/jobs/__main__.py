"""Runs the jobs service."""

from services.jobs.app import make_app
from services.jobs.settings import JobsSettings
from services.kit import server, settings


def main() -> None:
    """Serves until told to stop."""
    loaded = settings.load(JobsSettings)
    server.run("jobs", loaded, make_app(loaded))


if __name__ == "__main__":
    main()
