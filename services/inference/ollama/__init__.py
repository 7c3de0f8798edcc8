"""Ollama's HTTP surface: its requests become OpenAI's, OpenAI's answers become its own.

https://github.com/ollama/ollama/blob/main/docs/api.md. The other way round, an Ollama as the
engine, is `services.inference.engines.ollama`.
"""
