"""Runs the embeddings service."""

from services.embeddings.app import make_app
from services.embeddings.settings import EmbeddingsSettings
from services.kit import server, settings


def main() -> None:
    """Serves until told to stop."""
    loaded = settings.load(EmbeddingsSettings)
    server.run("embeddings", loaded, make_app(loaded))


if __name__ == "__main__":
    main()
