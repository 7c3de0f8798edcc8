"""Runs the auth service: `python -m services.auth`."""

from services.kit import workers

if __name__ == "__main__":
    # Before the rest is loaded, which the parent of several has no use for.
    workers.share_port()

    from services.auth.app import make_app
    from services.auth.settings import AuthSettings
    from services.kit import server
    from services.kit.settings import load

    settings = load(AuthSettings)
    server.run("auth", settings, make_app(settings))
