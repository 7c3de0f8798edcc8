"""The key's guardrails on what goes to the engine."""
