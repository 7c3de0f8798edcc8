"""Runs the embeddings service."""

from services.kit import workers


def main() -> None:
    """Serves until told to stop."""
    # Before the rest is loaded, which the parent of several has no use for.
    workers.share_port()

    from services.embeddings.app import make_app
    from services.embeddings.settings import EmbeddingsSettings
    from services.kit import server, settings

    loaded = settings.load(EmbeddingsSettings)
    server.run("embeddings", loaded, make_app(loaded))


if __name__ == "__main__":
    main()
