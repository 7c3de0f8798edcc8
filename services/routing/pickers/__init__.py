"""Pickers: each orders rated nodes."""
