"""Scorers: each rates nodes from 0 to 1 by one quality."""
