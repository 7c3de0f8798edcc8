"""Answers that are given again where the same is asked again; see docs/cache.md."""
