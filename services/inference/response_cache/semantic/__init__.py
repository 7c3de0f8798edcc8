"""Answers that are given to questions in other words; loaded only where the operator wants it."""
