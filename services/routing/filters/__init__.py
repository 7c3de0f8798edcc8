"""Filters: each refuses nodes for one reason."""
