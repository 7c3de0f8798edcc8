"""Runs an inference proxy: `python -m services.inference`."""

from services.inference.app import make_app
from services.inference.settings import InferenceSettings
from services.kit import server
from services.kit.settings import load

if __name__ == "__main__":
    settings = load(InferenceSettings)
    server.run("inference", settings, make_app(settings))
