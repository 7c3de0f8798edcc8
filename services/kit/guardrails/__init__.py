"""Checks of prompts before an engine sees them: length, blocked patterns, redaction."""
