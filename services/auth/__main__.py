"""Runs the auth service: `python -m services.auth`."""

from services.auth.app import make_app
from services.auth.settings import AuthSettings
from services.kit import server
from services.kit.settings import load

if __name__ == "__main__":
    settings = load(AuthSettings)
    server.run("auth", settings, make_app(settings))
